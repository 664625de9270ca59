//! The agent as a whole: `build` opens and binds everything and says what it bound; `run` serves until told to stop.
//!
//! Order of start: state directory, store, authorities, bundles, entries, sockets, ready. Order of stop: not ready, no
//! new connections, open streams end with Unavailable so that clients connect again, deadline, sockets removed.

mod activity;
mod build;
mod duties;
mod http;
mod kept;
mod notify;
mod pulse;
mod reload;
mod repairs;
mod state;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use thiserror::Error;
use tokio::task::JoinSet;

use crate::api::admin::Reloadable;
use crate::api::export::ExportApi;
use crate::api::gate::{RoleLayer, WorkloadGate};
use crate::api::sessions::{SessionApi, VerifierApi};
use crate::api::{admin, credentials, sds, serve, workload};
use crate::audit::{Audit, AuditError};
use crate::authority::{Authority, AuthorityError, keys::KeyStoreError};
use crate::base::clock::Clock;
use crate::base::drain;
use crate::base::durable::{self, DurableError};
use crate::base::entropy::Entropy;
use crate::base::quota::Quota;
use crate::config::Config;
use crate::ends::Ends;
use crate::issue::Issuer;
use crate::ledger::LedgerError;
use crate::peer::{Listener, Observer};
use crate::policy::{Policies, PoliciesRefused};
use crate::registry::{Registry, RegistryError};
use crate::session::Sessions;
use crate::session::approvals::ApprovalError;
use crate::store::{Store, StoreError};
use crate::sys::inherited::{Inherited, InheritedError};
use crate::sys::socket::SocketError;
use crate::telemetry::LogLevel;
use crate::trust::{CrlError, Trust, TrustError};
use crate::verify::Verifier;

pub use self::notify::failed;
pub use self::reload::{Reload, Reloaded};
pub use self::state::AgentState;

/// A directory in the state directory that is there while a backup is put in place: no agent starts then.
pub const RESTORE_UNFINISHED: &str = "restore-unfinished";

/// How long a client without a call may take to hang up when the agent stops.
const HANGING_UP: Duration = Duration::from_millis(250);

/// What comes from outside, so that tests can bring their own.
#[derive(Clone, Debug)]
pub struct Deps {
    /// The time.
    pub clock: Clock,
    /// Nonces, serials and jitter.
    pub entropy: Entropy,
    /// Who is told of events; the agent adds its log.
    pub audit: Audit,
    /// The running log.
    pub log: LogLevel,
    /// How the configuration is read again.
    pub reload: Reload,
    /// What the service manager handed over.
    pub inherited: Inherited,
    /// Where systemd put the unit's credentials (`$CREDENTIALS_DIRECTORY`).
    pub credentials: Option<PathBuf>,
    /// What was found to be weaker than it should be before there was an agent, for `tether status`.
    pub weaker: Vec<String>,
}

impl Default for Deps {
    /// The real clock and entropy, a configuration that cannot be read again, and nothing handed over.
    fn default() -> Self {
        Self {
            clock: Clock::system(),
            entropy: Entropy::system(),
            audit: Audit::default(),
            log: LogLevel::default(),
            reload: Reload::never(),
            inherited: Inherited::default(),
            credentials: None,
            weaker: Vec::new(),
        }
    }
}

/// Why the agent cannot start.
#[derive(Debug, Error)]
pub enum StartError {
    /// A directory cannot be used.
    #[error(transparent)]
    Directory(#[from] DurableError),
    /// A backup was being put in place, and that was interrupted.
    #[error("a restore was interrupted (`{}` is there): run `tether restore` again", .0.display())]
    Restoring(PathBuf),
    /// A backup is being put in place now.
    #[error("`tether restore` is at work in `{}`: start the agent when it is done", .0.display())]
    BeingRestored(PathBuf),
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store is missing or empty, and keys of authorities are there.
    #[error(
        "the store `{}` is damaged: it is missing or empty, as is its copy, and there are keys of authorities in `keys` \
         beside it: restore a backup (`tether restore`), or move the keys away to begin anew",
        .0.display()
    )]
    StoreGone(PathBuf),
    /// The ledger cannot be used.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The audit log cannot be used.
    #[error("the audit log cannot be opened")]
    Audit(#[from] AuditError),
    /// The approvals cannot be read.
    #[error(transparent)]
    Approvals(#[from] ApprovalError),
    /// The first revocation lists cannot be signed.
    #[error(transparent)]
    Crl(#[from] CrlError),
    /// The key directory cannot be used.
    #[error(transparent)]
    Keys(#[from] KeyStoreError),
    /// The authorities cannot be opened.
    #[error("the signing authorities cannot be opened")]
    Authority(#[from] AuthorityError),
    /// The bundles cannot be opened.
    #[error("the bundles cannot be opened")]
    Trust(#[from] TrustError),
    /// The entries cannot be opened.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The policies have mistakes.
    #[error(transparent)]
    Policies(#[from] PoliciesRefused),
    /// The built-in entry breaks its own rules.
    #[error("BUG: the built-in entry cannot be used: {0}")]
    BuiltInEntry(String),
    /// A socket cannot be bound.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// A socket that was handed over cannot be served.
    #[error(transparent)]
    Inherited(#[from] InheritedError),
    /// The configuration names no files for a disk authority.
    #[error("`[authority] kind = \"disk\"` needs `cert_file` and `key_file`")]
    DiskFiles,
    /// The http listener cannot be bound.
    #[error("cannot listen on http address {address}{}", forbidden_by_unit(source))]
    Http {
        /// The address.
        address: SocketAddr,
        /// The refusal.
        #[source]
        source: std::io::Error,
    },
    /// Another node cannot be asked where the configuration says.
    #[error("`sessions.nodes` names `{node}` with a URL that cannot be asked")]
    Node {
        /// The node.
        node: String,
        /// What is wrong with the URL.
        #[source]
        source: crate::user::fetch::EndpointError,
    },
    /// The kernel does not tell what the agent needs to know.
    #[error("the kernel does not tell what the agent must know of its callers")]
    Kernel(#[source] std::io::Error),
    /// A group of the `[admin]` section does not exist or cannot be looked up.
    #[error("`[admin]` names the group `{group}`, which cannot be looked up")]
    Group {
        /// The group.
        group: String,
        /// The refusal.
        #[source]
        source: std::io::Error,
    },
}

/// What to do where the unit has left the agent no network: a filter answers for the kernel.
fn forbidden_by_unit(error: &std::io::Error) -> &'static str {
    match Errno::from_raw(error.raw_os_error().unwrap_or(0)) {
        Errno::EAFNOSUPPORT | Errno::EPERM => {
            ", which the unit does not let the agent do: link /usr/share/tether/tether-agent.service.d/http.conf into \
             /etc/systemd/system/tether-agent.service.d, and run `systemctl daemon-reload`"
        }
        _ => "",
    }
}

/// Why a running agent stopped by itself.
#[derive(Debug, Error)]
pub enum RunError {
    /// A server ended.
    #[error("the {0} listener ended")]
    Server(&'static str, #[source] tonic::transport::Error),
    /// A task of the agent ended early.
    #[error("BUG: a task of the agent ended")]
    Task(#[source] tokio::task::JoinError),
}

/// An agent that has everything it needs and listens, and does not serve yet.
pub struct Bound {
    /// The workload socket.
    pub workload: PathBuf,
    /// The admin socket.
    pub admin: PathBuf,
    /// The socket for systemd credentials.
    pub credentials: Option<PathBuf>,
    /// The http listener's address.
    pub http: Option<SocketAddr>,
    /// The http listener's address with TLS.
    pub https: Option<SocketAddr>,
    /// What the agent knows of itself.
    pub state: Arc<AgentState>,
    parts: Parts,
}

struct Parts {
    authority: Arc<Authority>,
    trust: Arc<Trust>,
    registry: Registry,
    policies: Policies,
    issuer: Arc<Issuer>,
    sessions: Sessions,
    verifier: Arc<Verifier>,
    ends: Ends,
    workload: Listener,
    admin: Listener,
    admin_service: admin::Admin,
    admin_gate: RoleLayer,
    credentials: Option<(credentials::Listener, Arc<credentials::Credentials>)>,
    http: http::Listeners,
    limits: serve::Limits,
    calls: Quota,
    drain_deadline: Duration,
    reloader: Arc<dyn Reloadable>,
    pulse: pulse::Pulse,
    kept: Option<kept::Store>,
    store: Store,
    /// As long as the agent is there, no backup is put in the place of its state.
    _state_dir: durable::Taken,
}

/// Every metric of the agent: what `/metrics` shows.
pub fn metrics() -> Vec<crate::metrics::Described> {
    let counted = crate::metrics::Metrics::described();
    counted.into_iter().chain(activity::described()).collect()
}

/// Opens and binds everything.
pub async fn build(config: Config, deps: Deps) -> Result<Bound, StartError> {
    build::build(config, deps).await
}

impl Bound {
    /// What reads configuration, entries and policies again, for a signal handler.
    pub fn reloader(&self) -> Arc<dyn Reloadable> {
        self.parts.reloader.clone()
    }

    /// Serves until `shutdown` completes, then drains. Returns early only when something essential breaks.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), RunError> {
        let Parts { authority, trust, registry, policies, issuer, .. } = &self.parts;
        let (trigger, watcher) = drain::channel();
        // What lives as long as a connection does, which is for the client to say; and the end of those without a word.
        let (hang_up, connected) = drain::channel();
        let (cut, cutting) = drain::channel();
        let state = self.state.clone();

        let mut duties = JoinSet::new();
        // Before entries are read once more, so that its pauses are counted from before then.
        duties.spawn(issuer.crls.clone().announce(watcher.clone()));
        duties.spawn(duties::rotate(authority.clone(), trust.clone(), state.clone(), watcher.clone()));
        duties.spawn(duties::keep_own_svid(issuer.clone(), state.clone(), watcher.clone()));
        duties.spawn(duties::report_entries(registry.clone(), state.clone(), watcher.clone()));
        duties.spawn(duties::watch_entries(registry.clone(), state.clone(), watcher.clone()));
        duties.spawn(duties::report_policies(policies.clone(), state.clone(), watcher.clone()));
        duties.spawn(duties::watch_policies(policies.clone(), state.clone(), watcher.clone()));
        duties.spawn(duties::report_bundles(trust.clone(), issuer.metrics.clone(), watcher.clone()));
        duties.spawn(duties::attend_attestors(issuer.clone(), watcher.clone()));
        let ledger = issuer.ledger.clone();
        duties.spawn({
            let (ledger, watcher) = (ledger.clone(), watcher.clone());
            async move { ledger.keep_synced(watcher).await }
        });

        let audit = issuer.audit.clone();
        duties.spawn(duties::watch_clock(state.clock.clone(), watcher.clone()));
        duties.spawn(duties::keep_audit(audit.clone(), state.clone(), watcher.clone()));
        duties.spawn(duties::keep_store(self.parts.store.clone(), state.clone(), watcher.clone()));
        duties.spawn(kept::wipe_revoked(issuer.held.clone(), ledger.clone(), watcher.clone()));

        let held = issuer.held.clone();
        let workload = workload::Workload::new(issuer.clone(), state.config().wit.enabled, connected.clone());
        let exports = ExportApi::new(issuer.clone(), connected.clone());
        let offered = state.config().sessions.enabled;
        duties.spawn(self.parts.sessions.clone().keep_judging(watcher.clone()));
        let verifier = VerifierApi::new(self.parts.verifier.clone(), connected.clone());
        let sessions = offered.then(|| (SessionApi::new(self.parts.sessions.clone(), connected.clone()), verifier));
        let settings = state.config().sds();
        let secrets = settings.map(|settings| sds::Secrets::new(issuer.clone(), settings, connected.clone()));
        let services = serve::Services { workload, exports, sessions, secrets };
        duties.spawn(self.parts.ends.run(watcher.clone()));
        duties.spawn(self.parts.pulse.beat(watcher.clone()));
        if let Some(kept) = self.parts.kept {
            duties.spawn(kept.tend(held, watcher.clone()));
        }
        duties.spawn(self.parts.verifier.clone().follow_nodes(watcher.clone()));
        let calls = [self.parts.calls.clone(), self.parts.admin_gate.calls.clone()];
        let gate = WorkloadGate { calls: self.parts.calls };
        let mut servers = JoinSet::new();
        let (limits, stop) = (self.parts.limits, watcher.clone());
        let readiness = state.readiness.clone();
        let listener = self.parts.workload;
        let stop_serving = serve::Stop { drain: connected, cut: cutting };
        servers.spawn(serve::workload(listener, services, gate, readiness, limits, stop_serving.clone()));
        let (admin, service, gate) = (self.parts.admin, self.parts.admin_service, self.parts.admin_gate);
        servers.spawn(serve::admin(admin, service, gate, limits, stop_serving));
        if let Some((listener, credentials)) = self.parts.credentials {
            let stop = stop.clone();
            servers.spawn(async move {
                credentials.serve(listener, stop).await;
                Ok(())
            });
        }
        if let Some((listener, https)) = self.parts.http.tls {
            let stop = stop.clone();
            servers.spawn(async move {
                https.serve(listener, stop).await;
                Ok(())
            });
        }
        if let Some((listener, http)) = self.parts.http.plain {
            let stop = stop.clone();
            servers.spawn(async move {
                http.serve(listener, stop).await;
                Ok(())
            });
        }
        drop((watcher, stop));

        tokio::pin!(shutdown);
        let early = tokio::select! {
            () = &mut shutdown => Ok(()),
            ended = servers.join_next() => ended.map_or(Ok(()), server_ended),
            ended = duties.join_next() => ended.map_or(Ok(()), |ended| ended.map_err(RunError::Task)),
        };
        state.readiness.set("agent", Err("stopping".to_owned()));
        notify::stopping();
        let connections = async {
            let closed = async {
                hang_up.drain().await;
                while servers.join_next().await.is_some() {}
            };
            let silence = async {
                silent(&calls).await;
                cut.start();
                std::future::pending::<()>().await;
            };
            tokio::select! {
                () = closed => {}
                () = silence => {}
            }
        };
        let own = async {
            trigger.drain().await;
            while duties.join_next().await.is_some() {}
        };
        let drained = async { tokio::join!(connections, own) };
        if tokio::time::timeout(self.parts.drain_deadline, drained).await.is_err() {
            tracing::warn!("some connections did not end in time; they are cut");
        }
        // What was issued during the drain.
        ledger.sync().await;
        audit.stop().await;
        early
    }
}

/// Waits until no call is open, and then for as long as clients may take to hang up. One that has nothing to say need not
/// answer either, and the next agent waits for this one.
async fn silent(calls: &[Quota]) {
    loop {
        for open in calls {
            open.emptied().await;
        }
        tokio::time::sleep(HANGING_UP).await;
        if calls.iter().all(Quota::is_empty) {
            return;
        }
    }
}

/// A server ends before the drain only when its socket breaks.
fn server_ended(
    ended: Result<Result<(), (&'static str, tonic::transport::Error)>, tokio::task::JoinError>,
) -> Result<(), RunError> {
    ended.map_err(RunError::Task)?.map_err(|(name, error)| RunError::Server(name, error))
}

/// Refused connections become log lines, metrics and audit events.
fn observer(audit: Audit, metrics: crate::metrics::Metrics) -> Observer {
    Arc::new(move |refusal, peer| {
        metrics.connections_refused.get_or_create(&crate::metrics::Reason { reason: refusal.as_str() }).inc();
        audit.record(crate::audit::Event::ConnectionRefused {
            caller: crate::audit::Caller {
                instance: peer.instance.map(|instance| instance.to_string()).unwrap_or_default(),
                pid: peer.pid,
                uid: peer.uid,
            },
            reason: refusal.as_str(),
            detail: refusal.to_string(),
        });
    })
}
