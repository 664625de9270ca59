//! What is attacked: the naive server, tether, or tether on a kernel without the newer calls. Each guards one prize,
//! the identity of a trusted program, behind one rule.

use std::fmt::Write;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tether::agent::{self, AgentState, Bound, Deps};
use tether::audit::Event;
use tether::config::{Config, KernelInterfaces};
use tether::proto::admin::ExplainRequest;
use tether::proto::admin::agent_client::AgentClient;
use tokio::runtime::Runtime;
use tokio::sync::broadcast;

use crate::engine::LABEL;
use crate::http2::PRIZE;
use crate::naive::Naive;
use crate::roles::{GOT, NOTHING};
use crate::scene::EVERYTHING;
use crate::stage::Stage;

/// Longer than anything takes.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a caller may take to answer the challenge; short, because some attacks end with it.
const HALF_OPEN: Duration = Duration::from_secs(3);

/// Whom an attack is made on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The server that believes SO_PEERCRED.
    Naive,
    /// tether with everything this kernel offers.
    Tether,
    /// tether as on a kernel before 6.5.
    OldKernel,
}

impl Side {
    pub fn name(self) -> &'static str {
        match self {
            Self::Naive => "naive",
            Self::Tether => "tether",
            Self::OldKernel => "old-kernel",
        }
    }

    pub fn named(name: &str) -> Self {
        let all = [Self::Naive, Self::Tether, Self::OldKernel];
        all.into_iter().find(|side| side.name() == name).expect("a side")
    }
}

/// Who is entitled to the prize.
#[derive(Clone, Debug)]
pub enum Rule {
    /// Every process that connected as a user.
    Uid(u32),
    /// Every process that is a user's when it asks.
    UidNow(u32),
    /// Every process in a supplementary group.
    Group(u32),
    /// The program at a path.
    Path(PathBuf),
    /// The program at a path, while it has this content.
    Program { path: PathBuf, sha256: String },
    /// The processes of a unit.
    Unit(String),
    /// The processes of containers that the engine at this socket gives the label. Containers are below `parent`.
    Container { socket: PathBuf, parent: String },
}

impl Rule {
    pub fn path(path: &Path) -> Self {
        Self::Path(path.to_owned())
    }

    /// Every process of our own user.
    pub fn our_user() -> Self {
        Self::Uid(nix::unistd::geteuid().as_raw())
    }

    fn entry(&self) -> String {
        let selectors = match self {
            Self::Uid(uid) | Self::UidNow(uid) => format!("\"unix:uid:{uid}\""),
            Self::Group(gid) => format!("\"unix:supplementary_gid:{gid}\""),
            Self::Path(path) => format!("\"unix:path:{}\"", path.display()),
            Self::Program { path, sha256 } => format!("\"unix:path:{}\", \"unix:sha256:{sha256}\"", path.display()),
            Self::Container { .. } => format!("\"docker:label:{LABEL}\""),
            Self::Unit(name) => format!("\"systemd:unit:{name}\""),
        };
        format!("[[entry]]\nid = \"trusted\"\nspiffe_id = \"{PRIZE}\"\nowner = \"team\"\nmatch = [{selectors}]\n")
    }
}

/// A server and its socket.
pub struct Target {
    runtime: Option<Runtime>,
    socket: PathBuf,
    server: Server,
}

enum Server {
    Naive { server: Naive, closed: Option<UnixListener> },
    Tether(Box<Tether>),
}

struct Tether {
    closed: Option<Bound>,
    state: Arc<AgentState>,
    entries: PathBuf,
    admin: PathBuf,
    events: broadcast::Receiver<Event>,
}

impl Target {
    /// A server that listens and has not accepted anybody yet: whoever connects waits in the queue.
    pub fn closed(stage: &Stage, side: Side, rule: &Rule) -> Self {
        let runtime = Runtime::new().unwrap();
        let socket = stage.path("s/workload.sock");
        let server = match side {
            Side::Naive => {
                let dir = socket.parent().unwrap();
                std::fs::create_dir(dir).unwrap();
                open_to_all(dir);
                let closed = UnixListener::bind(&socket).unwrap();
                open_to_all(&socket);
                Server::Naive { server: Naive::new(rule), closed: Some(closed) }
            }
            Side::Tether | Side::OldKernel => {
                let _inside = runtime.enter();
                Server::Tether(Box::new(runtime.block_on(Tether::new(stage, side, &socket, rule))))
            }
        };
        Self { runtime: Some(runtime), socket, server }
    }

    /// A server that serves.
    pub fn serving(stage: &Stage, side: Side, rule: &Rule) -> Self {
        let mut target = Self::closed(stage, side, rule);
        target.open();
        target
    }

    /// Begins to serve.
    pub fn open(&mut self) {
        let runtime = self.runtime.as_ref().expect("until dropped");
        match &mut self.server {
            Server::Naive { server, closed } => {
                runtime.spawn(server.clone().serve(closed.take().expect("opened once")));
            }
            Server::Tether(tether) => {
                let bound = tether.closed.take().expect("opened once");
                runtime.spawn(async { bound.run(std::future::pending()).await.expect("the agent runs") });
            }
        }
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Where the admin API is served: by the naive server beside everything else.
    pub fn admin_socket(&self) -> &Path {
        match &self.server {
            Server::Naive { .. } => &self.socket,
            Server::Tether(tether) => &tether.admin,
        }
    }

    /// Makes the server send something new on open streams.
    pub fn stir(&self) {
        match &self.server {
            Server::Naive { server, .. } => server.rotate(),
            Server::Tether(tether) => {
                let file = tether.entries.join("more.toml");
                let more = Rule::our_user().entry().replace("trusted", "more");
                std::fs::write(file, more).unwrap();
                self.runtime.as_ref().expect("until dropped").block_on(tether.state.registry().reload());
            }
        }
    }

    /// Whether an attack came to what it must: the naive server fell for it, or else the test would prove nothing;
    /// tether gave nothing, and recorded each of `reasons`.
    pub fn judge(&mut self, verdict: &str, reasons: &[&str]) {
        match &mut self.server {
            Server::Naive { .. } => {
                assert_eq!(verdict, GOT, "the attack must succeed against a server that believes SO_PEERCRED");
            }
            Server::Tether(_) => {
                assert_eq!(verdict, NOTHING, "the prize must not reach the attacker");
                self.recorded(reasons);
            }
        }
    }

    /// Why tether holds that less is known of a process than of others; empty when it does not.
    pub fn weakness(&self, pid: u32) -> String {
        let Server::Tether(tether) = &self.server else { panic!("only tether says") };
        let request = ExplainRequest { pid: i32::try_from(pid).unwrap() };
        let explained = async {
            let mut agent = AgentClient::new(crate::harness::channel(&tether.admin).await);
            agent.explain(request).await.expect("we may ask").into_inner()
        };
        self.runtime.as_ref().expect("until dropped").block_on(explained).weak
    }

    /// Waits until each of `reasons` is in the audit log of tether.
    pub fn recorded(&mut self, reasons: &[&str]) {
        let Server::Tether(tether) = &mut self.server else { return };
        let mut missing = reasons.to_vec();
        let mut seen = String::new();
        let all = async {
            while !missing.is_empty() {
                match tether.events.recv().await.expect("the agent records events") {
                    Event::Refused { reason, detail, .. } | Event::ConnectionRefused { reason, detail, .. } => {
                        missing.retain(|missing| *missing != reason);
                        let _ = writeln!(seen, "{reason}: {detail}");
                    }
                    _ => {}
                }
            }
        };
        let runtime = self.runtime.as_ref().expect("until dropped");
        if runtime.block_on(async { tokio::time::timeout(PATIENCE, all).await }).is_err() {
            panic!("tether must record {missing:?}, and recorded:\n{seen}");
        }
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Tether {
    async fn new(stage: &Stage, side: Side, socket: &Path, rule: &Rule) -> Self {
        let dir = stage.path("agent");
        let mut config = Config::for_dev(&dir);
        config.dev = false;
        config.listen.workload = socket.to_owned();
        config.listen.admin = stage.path("a/admin.sock");
        config.limits.half_open = HALF_OPEN;
        // The programs here are large, and many tests run at once.
        config.attest.deadline = PATIENCE;
        if side == Side::OldKernel {
            config.attest.peer.kernel = KernelInterfaces::Baseline;
        }
        if let Rule::Container { socket, parent } = rule {
            config.attest.docker.socket = Some(socket.clone());
            config.attest.docker.cgroup_parents = vec![parent.clone()];
        }
        let (entries, admin) = (config.entries_dir.clone(), config.listen.admin.clone());
        std::fs::create_dir_all(&entries).unwrap();
        std::fs::create_dir_all(&config.policies_dir).unwrap();
        std::fs::write(config.policies_dir.join("all.cedar"), EVERYTHING).unwrap();
        std::fs::write(entries.join("trusted.toml"), rule.entry()).unwrap();
        let deps = Deps::default();
        let events = deps.audit.subscribe();
        let bound = agent::build(config, deps).await.expect("the agent starts");
        let mistakes = &bound.state.registry().last_load().mistakes;
        assert!(mistakes.is_empty(), "{mistakes:?}");
        Self { state: bound.state.clone(), closed: Some(bound), entries, admin, events }
    }
}

fn open_to_all(path: &Path) {
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(path, mode).unwrap();
}
