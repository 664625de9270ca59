//! TLS: what a key that never leaves tether costs a handshake.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use rustls::client::ResolvesClientCert;
use rustls::{ClientConfig, ClientConnection, ConnectionCommon, ServerConfig, ServerConnection, SideData};
use tether::client::Endpoint;
use tether::client::tls::{Authorize, Custody, SvidResolver, X509Source, client_config, server_config, unnamed};

use crate::Effort;
use crate::latency::{empty_times, runtime};
use crate::support::Result;
use crate::support::client::client;
use crate::support::process::{Agent, EmptyServer, entry_for_me};
use crate::support::report::{Figure, Report};
use crate::support::stats::{Rounds, median, micros};

const ROUNDS: usize = 15;
const CALLS: usize = 100;

/// One signature by way of the library, and whole handshakes with keys here and there.
pub fn mutual(effort: Effort, report: Report) -> Result<()> {
    let (empty, agent) = (EmptyServer::start()?, Agent::start(&entry_for_me(), &[])?);
    runtime()?.block_on(async {
        let mut nobody = client(&empty.socket)?;
        let held = Side::of(&agent, Custody::Tether).await?;
        let own = Side::of(&agent, Custody::Program).await?;
        empty_times(&mut nobody, CALLS).await?;
        held.signatures(CALLS)?;
        let (mut signed, mut calls, mut with_held, mut with_own) = <(Rounds, Rounds, Rounds, Rounds)>::default();
        for _ in 0..effort.of(ROUNDS) {
            signed.0.push(median(&held.signatures(CALLS)?));
            calls.0.push(median(&empty_times(&mut nobody, CALLS).await?));
            with_held.0.push(median(&held.handshakes(CALLS)?));
            with_own.0.push(median(&own.handshakes(CALLS)?));
        }
        let what = "one CertificateVerify signed by tether, from rustls, p50";
        report.print(&Figure::of_rounds("TLS", what, &signed, "us", "empty unary call", &calls));
        let what = "mutual handshake in memory, both keys with tether, p50";
        report.print(&Figure::of_rounds("TLS both", what, &with_held, "us", "both keys in the program", &with_own));
        Ok(())
    })
}

/// Both ends of connections of one identity with itself.
struct Side {
    resolver: SvidResolver,
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

impl Side {
    async fn of(agent: &Agent, custody: Custody) -> Result<Self> {
        let source = X509Source::connect(Endpoint::Unix(agent.socket()), custody).await?;
        Ok(Self {
            resolver: SvidResolver::new(&source),
            client: Arc::new(client_config(&source, Authorize::Anyone)),
            server: Arc::new(server_config(&source, Authorize::Anyone)),
        })
    }

    fn signatures(&self, calls: usize) -> Result<Vec<f64>> {
        let content = [&[b' '; 64][..], b"TLS 1.3, server CertificateVerify\0", &[7; 32]].concat();
        let sign = || {
            let begun = Instant::now();
            let identity = self.resolver.resolve(&[], &[]).ok_or("no identity")?;
            let signer = identity.key.choose_scheme(&[rustls::SignatureScheme::ECDSA_NISTP256_SHA256]);
            black_box(signer.ok_or("no P-256 key")?.sign(&content)?);
            Ok(micros(begun.elapsed()))
        };
        (0..calls).map(|_| sign()).collect()
    }

    fn handshakes(&self, calls: usize) -> Result<Vec<f64>> {
        let handshake = || {
            let begun = Instant::now();
            let mut client = ClientConnection::new(self.client.clone(), unnamed())?;
            let mut server = ServerConnection::new(self.server.clone())?;
            while client.is_handshaking() || server.is_handshaking() {
                pass(&mut client, &mut server)?;
                pass(&mut server, &mut client)?;
            }
            Ok(micros(begun.elapsed()))
        };
        (0..calls).map(|_| handshake()).collect()
    }
}

/// Everything that one end has to say to the other.
fn pass<A: SideData, B: SideData>(from: &mut ConnectionCommon<A>, to: &mut ConnectionCommon<B>) -> Result<()> {
    let mut wire = Vec::new();
    while from.wants_write() {
        from.write_tls(&mut wire)?;
    }
    let mut rest = wire.as_slice();
    while !rest.is_empty() {
        to.read_tls(&mut rest)?;
        to.process_new_packets()?;
    }
    Ok(())
}
