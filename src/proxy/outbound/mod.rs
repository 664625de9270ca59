//! Beside a program: plain HTTP in, mutual TLS and proofs out, in the name of the very program that asks.
//!
//! Promises:
//! - Who asks is what the kernel says, for every connection and again for every request ([`caller`]); two programs that
//!   connect to one proxy are two, with identities, connections to the target and tokens of their own.
//! - Requests go to one target, whatever they say, and only once it has proven to be that.
//! - What a request shows there is made for it: a proof of this request, in the session that the program is in; or a
//!   token, which the program never sees. Keys are with tether alone.
//! - When the program, its session or its identity ends, its connections end, on both sides and in the middle of a body.
//!
//! Does not: read what the target answers. A target that repeats what it was sent shows a program its own bearer token.

mod bearer;
mod caller;
mod connect;
mod credential;
mod exchange;
mod program;
mod refusal;
mod serving;
mod target;

use std::path::PathBuf;
use std::sync::Arc;

use rustls_pki_types::ServerName;
use thiserror::Error;

use self::connect::{Connect, Trust};
pub use self::credential::Credential;
pub use self::program::ActAs;
use self::program::Programs;
pub use self::serving::Bound;
pub use self::target::{Target, TargetError};
use super::{Address, Limits};
use crate::base::clock::Clock;
use crate::base::quota::Turns;
use crate::client::Endpoint;
use crate::client::session::SessionClient;
use crate::client::tls::{Custody, SourceError, X509Source};
use crate::id::SpiffeId;
use crate::sys::socket::SocketError;
use crate::user::fetch::{self, Roots};

/// Bodies that are held whole at one time, of all and of one user: others wait for their turn.
const HELD_WHOLE: (usize, usize) = (64, 16);

/// What an outbound proxy is to do.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where programs connect: a Unix socket, or a port on the loopback interface.
    pub listen: Address,
    /// The mode of the Unix socket.
    pub mode: u32,
    /// Where their requests go.
    pub target: Target,
    /// Who is there.
    pub peer: Peer,
    /// The name to send along in the handshake, instead of the target's.
    pub server_name: Option<String>,
    /// What requests show.
    pub credential: Credential,
    /// Whether the target is an MCP server: the proof then names the tool that is called, and its arguments.
    pub mcp: bool,
    /// In whose name.
    pub act_as: ActAs,
    /// What programs may take.
    pub limits: Limits,
}

/// Who is to be at the target.
#[derive(Clone, Debug)]
pub enum Peer {
    /// The holder of this SPIFFE ID.
    Spiffe(SpiffeId),
    /// An outside service, with a certificate for its name from these roots; `None` for those of the host.
    Outside {
        /// A file of certificates in PEM.
        roots: Option<PathBuf>,
    },
}

/// Why a proxy does not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The address can be reached from other hosts, whose processes cannot be known.
    #[error("`{0}` can be reached from other hosts: listen on `unix:/path`, `127.0.0.1:PORT` or `[::1]:PORT`")]
    NotLocal(Address),
    /// The name to send along is no host name.
    #[error("`{0}` is not a host name")]
    ServerName(String),
    /// The roots for an outside service cannot be read.
    #[error("the roots for the target cannot be read: {0}")]
    Roots(String),
    /// The agent gives no identity.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The Unix socket cannot be had.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The system refuses.
    #[error("cannot {action}")]
    Io {
        /// What was attempted.
        action: String,
        /// The refusal.
        #[source]
        source: std::io::Error,
    },
}

/// What every connection needs.
struct Proxy {
    target: Arc<Target>,
    credential: Credential,
    mcp: bool,
    /// Bodies that are held whole, so that they have a bound.
    held_whole: Turns,
    programs: Programs,
    limits: Limits,
    clock: Clock,
}

/// Waits until the agent at `endpoint` gives this proxy an identity, and listens.
///
/// # Errors
/// Trying again cannot help.
pub async fn bind(settings: Settings, endpoint: Endpoint, clock: Clock) -> Result<Bound, StartError> {
    if !settings.listen.is_local() {
        return Err(StartError::NotLocal(settings.listen));
    }
    let trust = match &settings.peer {
        Peer::Spiffe(id) => Trust::Peer(id.clone()),
        Peer::Outside { roots } => {
            let roots = roots.clone().map_or(Roots::Host, Roots::File);
            Trust::Outside(fetch::tls(roots).await.map_err(StartError::Roots)?)
        }
    };
    let server_name = server_name(&settings)?;
    let source = X509Source::connect_by(endpoint.clone(), Custody::Tether, clock.clone()).await?;
    let listening = serving::Listening::new(&settings).await?;
    let target = Arc::new(settings.target.reached_at(listening.address()));
    let limits = settings.limits;
    let connect = Connect { target: target.clone(), server_name, trust, limits: limits.clone() };
    let programs = Programs::new(settings.act_as, source, SessionClient::new(endpoint), connect, clock.clone());
    let held_whole = Turns::new(HELD_WHOLE.0, HELD_WHOLE.1);
    let (credential, mcp) = (settings.credential, settings.mcp);
    let proxy = Proxy { target, credential, mcp, held_whole, programs, limits, clock };
    Ok(Bound::new(listening, proxy))
}

/// The name of the target. One that is known by its SPIFFE ID may be reached at an address that has none.
fn server_name(settings: &Settings) -> Result<Option<ServerName<'static>>, StartError> {
    let name = settings.server_name.clone().unwrap_or_else(|| settings.target.host().to_owned());
    match ServerName::try_from(name.clone()) {
        Ok(ServerName::IpAddress(_)) if matches!(settings.peer, Peer::Spiffe(_)) => Ok(None),
        Ok(name) => Ok(Some(name)),
        Err(_) => Err(StartError::ServerName(name)),
    }
}
