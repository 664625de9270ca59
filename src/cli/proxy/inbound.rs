//! `tether proxy inbound`.

use std::path::Path;
use std::time::Duration;

use super::super::args::{CustodyName, InboundArgs};
use super::super::failure::{Exit, Failure};
use super::super::{Context, Host, sockets};
use super::{announce, serve, told_to_end};
use crate::base::text::chain;
use crate::client::Endpoint;
use crate::client::tls::Custody;
use crate::proxy::inbound::{self, Demands, Inbound};
use crate::proxy::{Address, Limits};
use crate::sys::landlock::{self, Allowed, Confined};

const DNS: u16 = 53;

pub(super) fn run(args: InboundArgs, context: &mut Context) -> Result<(), Failure> {
    let endpoint = sockets::workload(&context.host, context.socket.as_deref())?;
    // Before the first thread: it is for the calling one and those it makes.
    let confined = landlock::confine(&allowed(&args, &endpoint, &context.host));
    let settings = Inbound { clock: context.host.clock.clone(), ..settings(&args, endpoint) };
    serve(&args.log, context, async |context| {
        let confined = match confined {
            Ok(Confined::Fully) => "by Landlock, to the files and ports it needs",
            Ok(Confined::Partly) => "by Landlock, as far as this kernel knows it",
            Ok(Confined::Not) => "not: this kernel has no Landlock",
            Err(error) => {
                tracing::warn!("this process is not kept to the files and ports it needs: {}", chain(&error));
                "not"
            }
        };
        let ended = told_to_end()?;
        let mut ended = std::pin::pin!(ended);
        let upstream = settings.upstream.to_string();
        let decides = if settings.policy { "policy, for each request" } else { "--allow alone, at the handshake" };
        let bound = tokio::select! {
            bound = inbound::build(settings) => bound,
            // Told to end while it still waits for an identity.
            () = &mut ended => return Ok(()),
        };
        let bound = bound.map_err(|error| Failure::new(Exit::Failure, chain(&error)))?;
        let public: Vec<String> = bound.public.iter().map(ToString::to_string).collect();
        let mut fields = vec![
            ("listening on", bound.address.to_string()),
            ("reached at", public.join(" ")),
            ("upstream", upstream),
            ("decided by", decides.to_owned()),
            ("confined", confined.to_owned()),
        ];
        if let Some(identity) = &bound.identity {
            fields.push(("identity", identity.to_string()));
        }
        if let Some(metrics) = bound.metrics {
            fields.push(("metrics", format!("http://{metrics}/metrics")));
        }
        announce(&fields, context)?;
        bound.run(ended).await;
        Ok(())
    })
}

/// What the proxy needs, in front of whom the network is: it looks at no process and writes no file.
fn allowed(args: &InboundArgs, endpoint: &Endpoint, host: &Host) -> Allowed {
    let mut allowed = Allowed::default();
    match &args.listen {
        Address::Tcp { port, .. } => allowed.listen.push(*port),
        Address::Unix(path) => allowed.write_below.extend(path.parent().map(Path::to_owned)),
    }
    allowed.listen.extend(args.metrics.map(|address| address.port()));
    if let Address::Tcp { port, .. } = &args.upstream {
        // And a name that is too long for a datagram.
        allowed.connect.extend([*port, DNS]);
    }
    if let Endpoint::Tcp(address) = endpoint {
        allowed.connect.push(address.port());
    }
    allowed.abstract_sockets = host.variable("NOTIFY_SOCKET").is_some_and(|socket| socket.starts_with('@'));
    allowed
}

fn settings(args: &InboundArgs, endpoint: Endpoint) -> Inbound {
    Inbound {
        upstream_http2: args.upstream_http2,
        allow: args.allow.clone(),
        public: args.public.clone(),
        policy: !args.no_policy,
        demands: Demands {
            proof: args.require_proof,
            session: args.require_session,
            covered_body: args.cover_body,
            min_binding: args.min_binding,
        },
        identity: args.spiffe_id.clone(),
        custody: match args.custody {
            CustodyName::Tether => Custody::Tether,
            CustodyName::Proxy => Custody::Program,
        },
        with_certificate: args.forward_certificate,
        encoded_slashes: args.encoded_slashes,
        mcp: args.mcp,
        metrics: args.metrics,
        limits: Limits {
            connections: args.max_connections,
            connections_per_address: args.max_connections_per_address,
            upstream: Duration::from_secs(args.upstream_timeout),
            ..Limits::default()
        },
        ..Inbound::new(endpoint, args.listen.clone(), args.upstream.clone())
    }
}
