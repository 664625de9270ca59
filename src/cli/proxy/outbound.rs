//! `tether proxy outbound`.

use std::time::Duration;

use super::super::args::{ActAsName, OutboundArgs, ProofName};
use super::super::failure::{Exit, Failure};
use super::super::{Context, sockets};
use super::{announce, serve, told_to_end};
use crate::base::text::chain;
use crate::proxy::Limits;
use crate::proxy::outbound::{self, ActAs, Credential, Peer, Settings};

/// An idle connection to the target is closed after this.
const UPSTREAM_IDLE: Duration = Duration::from_secs(30);

pub(super) fn run(args: OutboundArgs, context: &mut Context) -> Result<(), Failure> {
    let endpoint = sockets::workload(&context.host, context.socket.as_deref())?;
    let clock = context.host.clock.clone();
    let settings = settings(&args)?;
    serve(&args.log, context, async |context| {
        let ended = told_to_end()?;
        let mut ended = std::pin::pin!(ended);
        let (target, peer, act_as) = (settings.target.to_string(), described(&settings.peer), settings.act_as);
        let bound = tokio::select! {
            bound = outbound::bind(settings, endpoint, clock) => bound,
            // Told to end while it still waits for an identity.
            () = &mut ended => return Ok(()),
        };
        let bound = bound.map_err(|error| Failure::new(Exit::Failure, chain(&error)))?;
        let in_whose_name = match act_as {
            ActAs::Program => "the program that connects",
            ActAs::Proxy => "this proxy, whoever connects",
        };
        let fields = [
            ("listening on", bound.address().to_string()),
            ("target", target),
            ("known by", peer),
            ("in the name of", in_whose_name.to_owned()),
        ];
        announce(&fields, context)?;
        bound.run(ended).await.map_err(|error| Failure::new(Exit::Failure, chain(&error)))
    })
}

fn settings(args: &OutboundArgs) -> Result<Settings, Failure> {
    let peer = match &args.peer {
        Some(id) => Peer::Spiffe(id.clone()),
        None => Peer::Outside { roots: args.roots.clone() },
    };
    let credential = match (&args.bearer, args.proof) {
        (Some(audience), _) => Credential::Bearer { audience: audience.clone() },
        (None, ProofName::Wpt) => Credential::Wpt { cover_body: args.cover_body },
        (None, _) if args.cover_body => {
            return Err(Failure::new(Exit::Usage, "--cover-body is of --proof wpt: no other proof covers a body"));
        }
        (None, ProofName::Dpop) => Credential::Dpop,
        (None, ProofName::None) => Credential::None,
    };
    let (act_as, mode) = match args.act_as {
        ActAsName::Program => (ActAs::Program, 0o666),
        ActAsName::Proxy => (ActAs::Proxy, 0o600),
    };
    Ok(Settings {
        listen: args.listen.clone(),
        mode: args.mode.unwrap_or(mode),
        target: args.target.clone(),
        peer,
        server_name: args.server_name.clone(),
        credential,
        mcp: args.mcp,
        act_as,
        // A target is far: connections are kept longer, and a request that finds one closed is proven anew.
        limits: Limits { upstream_idle: UPSTREAM_IDLE, ..Limits::default() },
    })
}

fn described(peer: &Peer) -> String {
    match peer {
        Peer::Spiffe(id) => id.to_string(),
        Peer::Outside { roots: None } => "its name, by the roots of this host".to_owned(),
        Peer::Outside { roots: Some(file) } => format!("its name, by the roots in {}", file.display()),
    }
}
