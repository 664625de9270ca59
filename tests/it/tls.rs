//! Mutual TLS of Rust programs by way of the library: real agent, real handshakes.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use prost::Message as _;
use rustls::{AlertDescription, CertificateError, ClientConfig, Error, ServerConfig};
use tether::client::Endpoint;
use tether::client::tls::{
    Authorize, Changes, Custody, Standing, X509Source, X509State, client_config, peer_id, server_config, unnamed,
};
use tether::id::SpiffeId;
use tether::proto::session::HoldX509Request;
use tether::proto::workload::X509svidRequest;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use crate::handshake::{handshake, is_revoked};
use crate::harness::{TestAgent, next, uid, within};
use crate::revocation::{self, Victim};

const BOTH: [Custody; 2] = [Custody::Tether, Custody::Program];
const MINUTE: Duration = Duration::from_secs(60);

fn entry(name: &str) -> String {
    let uid = uid();
    format!(
        "[[entry]]\nid = \"{name}\"\nspiffe_id = \"spiffe://dev.tether.internal/{name}\"\nmatch = [\"unix:uid:{uid}\"]\n"
    )
}

fn id(name: &str) -> SpiffeId {
    SpiffeId::parse(&format!("spiffe://dev.tether.internal/{name}")).unwrap()
}

/// An agent that gives this process the identities `/server` and `/client` too.
async fn two_identities() -> TestAgent {
    let agent = TestAgent::start().await;
    agent.write_entries("server.toml", &entry("server")).await;
    agent.write_entries("client.toml", &entry("client")).await;
    agent
}

async fn source(agent: &TestAgent, custody: Custody) -> X509Source {
    let endpoint = Endpoint::Unix(agent.socket().to_owned());
    within(X509Source::connect_by(endpoint, custody, agent.time())).await.unwrap()
}

/// The configurations of a client that is `/client` and a server that is `/server`.
fn configs(source: &X509Source, server: Authorize, client: Authorize) -> (Arc<ClientConfig>, Arc<ServerConfig>) {
    let (client_source, server_source) = (source.presenting(id("client")), source.presenting(id("server")));
    (Arc::new(client_config(&client_source, server)), Arc::new(server_config(&server_source, client)))
}

fn each_other(source: &X509Source) -> (Arc<ClientConfig>, Arc<ServerConfig>) {
    configs(source, id("server").into(), id("client").into())
}

struct Connected {
    client: client::TlsStream<DuplexStream>,
    server: server::TlsStream<DuplexStream>,
}

impl Connected {
    fn identities(&self) -> (Option<SpiffeId>, Option<SpiffeId>) {
        (peer_id(self.client.get_ref().1), peer_id(self.server.get_ref().1))
    }

    async fn still_works(&mut self) {
        self.client.write_all(b"?").await.unwrap();
        assert_eq!(within(self.server.read_u8()).await.unwrap(), b'?');
        self.server.write_all(b"!").await.unwrap();
        assert_eq!(within(self.client.read_u8()).await.unwrap(), b'!');
    }
}

/// The TLS errors of client and server.
type Refusals = [Option<Error>; 2];

/// One handshake, and one byte in each direction: in TLS 1.3 a client learns only then that it was refused.
async fn connect((client, server): &(Arc<ClientConfig>, Arc<ServerConfig>)) -> Result<Connected, Refusals> {
    let (near, far) = tokio::io::duplex(1 << 16);
    let client = async {
        let mut stream = TlsConnector::from(client.clone()).connect(unnamed(), near).await?;
        stream.write_all(b"?").await?;
        stream.read_u8().await?;
        Ok(stream)
    };
    let server = async {
        let mut stream = TlsAcceptor::from(server.clone()).accept(far).await?;
        stream.read_u8().await?;
        stream.write_all(b"!").await?;
        Ok(stream)
    };
    match within(async { tokio::join!(client, server) }).await {
        (Ok(client), Ok(server)) => Ok(Connected { client, server }),
        (client, server) => Err([of_rustls(client.err()), of_rustls(server.err())]),
    }
}

fn of_rustls(error: Option<io::Error>) -> Option<Error> {
    error?.into_inner()?.downcast::<Error>().ok().map(|error| *error)
}

fn serials(state: &X509State) -> Vec<Vec<u8>> {
    state.identities().iter().map(|identity| identity.chain().leaf().serial().as_bytes().to_vec()).collect()
}

/// The first state that `wanted` picks.
async fn state(changes: &mut Changes, wanted: impl Fn(&X509State) -> bool) -> X509State {
    within(async {
        loop {
            let state = changes.next().await.expect("the source is there");
            if wanted(&state) {
                return state;
            }
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn two_identities_of_a_real_agent_prove_themselves_to_each_other_whoever_holds_the_keys() {
    let agent = two_identities().await;
    for custody in BOTH {
        let source = source(&agent, custody).await;
        assert_eq!(source.standing(), Standing::Live);
        let connected = connect(&each_other(&source)).await.map_err(|errors| format!("{errors:?}")).unwrap();
        assert_eq!(connected.identities(), (Some(id("server")), Some(id("client"))), "{custody:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_of_the_wrong_identity_is_refused_by_either_side() {
    let agent = two_identities().await;
    for custody in BOTH {
        let source = source(&agent, custody).await;
        let refused = Some(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure));
        let told = Some(Error::AlertReceived(AlertDescription::AccessDenied));
        let by_client = connect(&configs(&source, id("client").into(), Authorize::Anyone)).await.err().unwrap();
        assert_eq!(by_client, [refused.clone(), told.clone()], "{custody:?}");
        let by_server = connect(&configs(&source, Authorize::Anyone, id("server").into())).await.err().unwrap();
        assert_eq!(by_server, [told, refused], "{custody:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rotation_goes_on_under_open_and_new_connections_of_one_configuration() {
    let agent = two_identities().await;
    for custody in BOTH {
        let source = source(&agent, custody).await;
        let mut changes = source.changes();
        let configs = each_other(&source);
        let mut open = vec![connect(&configs).await.map_err(|errors| format!("{errors:?}")).unwrap()];
        for _ in 0..5 {
            let before = serials(&source.state());
            agent.clock().advance(MINUTE * 10);
            let renewed = |state: &X509State| serials(state).iter().all(|serial| !before.contains(serial));
            state(&mut changes, renewed).await;
            open.push(connect(&configs).await.map_err(|errors| format!("{custody:?} {errors:?}")).unwrap());
        }
        for connection in &mut open {
            connection.still_works().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_recovers_from_a_restart_of_the_agent_and_says_so_while_it_is_away() {
    let mut agent = two_identities().await;
    for custody in BOTH {
        let source = source(&agent, custody).await;
        let mut changes = source.changes();
        let configs = each_other(&source);
        let mut open = connect(&configs).await.map_err(|errors| format!("{errors:?}")).unwrap();
        agent.stop().await;
        within(source.standing_is(|standing| matches!(standing, Standing::Away { .. }))).await;
        assert_eq!(source.state().identities().len(), 3, "it keeps what it has");
        open.still_works().await;
        assert_eq!(
            connect(&configs).await.is_ok(),
            custody == Custody::Program,
            "a held key signs with the agent only"
        );

        agent.restart().await;
        within(source.standing_is(|standing| *standing == Standing::Live)).await;
        state(&mut changes, |state| state.identities().len() == 3).await;
        assert!(connect(&configs).await.is_ok(), "{custody:?}");
        open.still_works().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copied_key_is_refused_by_a_running_server_once_its_process_has_ended() {
    let agent = revocation::agent().await;
    for custody in BOTH {
        let source = source(&agent, custody).await;
        let server = server_config(&source, Authorize::Anyone);
        let mut victim = Victim::of(&agent).await;
        handshake(server.clone(), &victim.stolen()).expect("its process lives");

        let mut changes = source.changes();
        // The last list was announced a second ago or more, so the next one is announced at once.
        agent.clock().advance(Duration::from_secs(1));
        victim.die(&agent).await;
        state(&mut changes, |state| state.bundles().crls.iter().any(|list| list.revokes(&victim.serial()))).await;
        let refused = handshake(server, &victim.stolen()).expect_err("its process is gone");
        assert!(is_revoked(&refused), "{custody:?}: {refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_identity_that_was_taken_back_is_not_presented_any_more() {
    let agent = two_identities().await;
    let sources = [source(&agent, BOTH[0]).await, source(&agent, BOTH[1]).await];
    let mut changes = sources.each_ref().map(X509Source::changes);
    agent.remove_entries("client.toml").await;
    for (source, changes) in sources.iter().zip(&mut changes) {
        state(changes, |state| state.identity(Some(&id("client"))).is_none()).await;
        let [_, by_server] = connect(&each_other(source)).await.err().unwrap();
        assert_eq!(by_server, Some(Error::NoCertificatesPresented));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_private_key_crosses_the_socket_for_held_identities() {
    // How every private key on P-256 begins (RFC 5915, section 3): version 1, and an octet string of 32 bytes.
    const EC_PRIVATE_KEY: [u8; 5] = [2, 1, 1, 4, 32];
    let has_key = |message: Vec<u8>| message.windows(5).any(|window| window == EC_PRIVATE_KEY);
    let agent = two_identities().await;
    let mut fetched = agent.workload().await.fetch_x509svid(X509svidRequest {}).await.unwrap().into_inner();
    assert!(has_key(next(&mut fetched).await.unwrap().encode_to_vec()), "this is where keys are");
    let mut held = agent.sessions().await.hold_x509(HoldX509Request::default()).await.unwrap().into_inner();
    let held = next(&mut held).await.unwrap();
    assert_eq!(held.svids.len(), 3);
    assert!(!has_key(held.encode_to_vec()));
}
