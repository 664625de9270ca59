//! The real agent on real sockets in a temporary directory. Only the clock is faked.
#![allow(dead_code, reason = "each test binary uses a part of the harness")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on says where")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tether::agent::{self, AgentState, Deps};
use tether::audit::{Audit, Event};
use tether::base::clock::{Clock, ManualClock};
use tether::base::entropy::Entropy;
use tether::config::Config;
use tether::proto::admin::agent_client::AgentClient;
use tether::proto::admin::audit_log_client::AuditLogClient;
use tether::proto::admin::authorities_client::AuthoritiesClient;
use tether::proto::admin::bundles_client::BundlesClient;
use tether::proto::admin::credentials_client::CredentialsClient;
use tether::proto::admin::entries_client::EntriesClient;
use tether::proto::admin::policies_client::PoliciesClient;
use tether::proto::session::sessions_client::SessionsClient;
use tether::proto::session::verifier_client::VerifierClient;
use tether::proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use tokio::net::UnixStream;
use tokio::sync::{broadcast, oneshot};
use tokio::task::JoinHandle;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Status};

/// Longer than anything takes; a test that waits this long has failed.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Puts the Workload Endpoint's metadata on every call.
#[derive(Clone)]
pub struct Header;

impl Interceptor for Header {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("workload.spiffe.io", "true".parse().unwrap());
        Ok(request)
    }
}

/// A Workload API client as every SPIFFE client is one.
pub type Workload = SpiffeWorkloadApiClient<InterceptedService<Channel, Header>>;

/// Keys that the agent holds.
pub type Sessions = SessionsClient<InterceptedService<Channel, Header>>;
/// What tools ask.
pub type Verifier = VerifierClient<InterceptedService<Channel, Header>>;

/// What agents without the built-in entry permit from the start, beside issuing.
const REACH: &str = r#"@id("reach") permit (principal, action == Action::"reach", resource);"#;

/// A running agent.
pub struct TestAgent {
    dir: tempfile::TempDir,
    config: Config,
    clock: Clock,
    hand: ManualClock,
    audit: Audit,
    entropy: Entropy,
    running: Option<Running>,
}

struct Running {
    state: std::sync::Arc<AgentState>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
    http: Option<std::net::SocketAddr>,
    https: Option<std::net::SocketAddr>,
}

impl TestAgent {
    /// A `--dev` agent: the calling user has `spiffe://dev.tether.internal/user/NAME`.
    pub async fn start() -> Self {
        Self::configured(|_| ()).await
    }

    /// A `--dev` agent with other settings.
    pub async fn configured(configure: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::for_dev(&dir.path().join("agent"));
        // The programs here are large, and many tests run at once.
        config.attest.deadline = PATIENCE;
        configure(&mut config);
        let (clock, hand) = Clock::manual(Clock::system().now());
        let mut agent =
            Self { dir, config, clock, hand, audit: Audit::default(), entropy: Entropy::system(), running: None };
        agent.run().await;
        agent
    }

    /// An agent without the built-in entry: nobody has an identity until entries are written.
    pub async fn without_entries() -> Self {
        Self::without_entries_and(|_| ()).await
    }

    /// The same with other settings.
    pub async fn without_entries_and(configure: impl FnOnce(&mut Config)) -> Self {
        Self::configured(|config| {
            configure(config);
            config.dev = false;
            let dir = config.state_dir.parent().unwrap().to_owned();
            std::fs::create_dir(&dir).unwrap();
            std::fs::create_dir(&config.entries_dir).unwrap();
            std::fs::create_dir(&config.policies_dir).unwrap();
            // Who may be called outside sessions is not what most tests are about.
            std::fs::write(config.policies_dir.join("reach.cedar"), REACH).unwrap();
        })
        .await
    }

    async fn run(&mut self) {
        let (clock, audit, entropy) = (self.clock.clone(), self.audit.clone(), self.entropy.clone());
        let deps = Deps { clock, audit, entropy, ..Deps::default() };
        let bound = agent::build(self.config.clone(), deps).await.expect("the agent starts");
        let (state, http, https) = (bound.state.clone(), bound.http, bound.https);
        let mut loads = state.registry().loads();
        loads.mark_unchanged();
        let mut policies = state.policies().loads();
        policies.mark_unchanged();
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(async move {
            let shutdown = async move {
                let _ = stopped.await;
            };
            bound.run(shutdown).await.expect("the agent runs until it is stopped");
        });
        // It reads entries and policies once more when it begins to watch them: that must not pass for a change of a
        // test's.
        within(loads.changed()).await.unwrap();
        within(policies.changed()).await.unwrap();
        self.running = Some(Running { state, stop, task, http, https });
    }

    /// Where the agent's random numbers come from after the next start.
    pub fn set_entropy(&mut self, entropy: Entropy) {
        self.entropy = entropy;
    }

    /// Stops the agent as SIGTERM does, and waits until it is gone.
    pub async fn stop(&mut self) {
        if let Some(running) = self.running.take() {
            let _ = running.stop.send(());
            within(running.task).await.unwrap();
        }
    }

    /// Stops the agent and starts it again in the same directory.
    pub async fn restart(&mut self) {
        self.stop().await;
        self.run().await;
    }

    /// The same with other settings from then on.
    pub async fn restart_with(&mut self, configure: impl FnOnce(&mut Config)) {
        self.stop().await;
        configure(&mut self.config);
        self.run().await;
    }

    fn running(&self) -> &Running {
        self.running.as_ref().expect("the agent runs")
    }

    /// What the agent knows of itself.
    pub fn state(&self) -> &AgentState {
        &self.running().state
    }

    /// Its configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The directory of this test, for files of its own.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The time as the agent has it, for those who talk to it.
    pub fn time(&self) -> Clock {
        self.clock.clone()
    }

    /// The clock's hand.
    pub fn clock(&self) -> &ManualClock {
        &self.hand
    }

    /// Every audit event from now on.
    pub fn audit(&self) -> broadcast::Receiver<Event> {
        self.audit.subscribe()
    }

    /// The workload socket.
    pub fn socket(&self) -> &Path {
        &self.config.listen.workload
    }

    /// The admin socket.
    pub fn admin_socket(&self) -> &Path {
        &self.config.listen.admin
    }

    /// The http listener, where the test configured one.
    pub fn http(&self) -> std::net::SocketAddr {
        self.running().http.expect("the test configured http")
    }

    /// The http listener with TLS, where the test configured one.
    pub fn https(&self) -> std::net::SocketAddr {
        self.running().https.expect("the test configured https")
    }

    /// Writes an entry file and waits until its entries are in force, or refused.
    pub async fn write_entries(&self, name: &str, toml: &str) {
        let registry = self.state().registry();
        let mut loads = registry.loads();
        loads.mark_unchanged();
        self.put(&self.config.entries_dir, name, toml);
        within(loads.changed()).await.unwrap();
    }

    /// Writes a file whole, with one event for whoever watches its directory: a hidden file in it would be another.
    fn put(&self, dir: &std::path::Path, name: &str, content: &str) {
        let made = self.dir.path().join("new");
        std::fs::write(&made, content).unwrap();
        std::fs::rename(made, dir.join(name)).unwrap();
    }

    /// Removes an entry file and waits until that is in force.
    pub async fn remove_entries(&self, name: &str) {
        let mut loads = self.state().registry().loads();
        loads.mark_unchanged();
        std::fs::remove_file(self.config.entries_dir.join(name)).unwrap();
        within(loads.changed()).await.unwrap();
    }

    /// Writes a policy file and waits until its policies are in force, or refused.
    pub async fn write_policies(&self, name: &str, cedar: &str) {
        let mut loads = self.state().policies().loads();
        loads.mark_unchanged();
        self.put(&self.config.policies_dir, name, cedar);
        within(loads.changed()).await.unwrap();
    }

    /// Removes a policy file and waits until that is in force.
    pub async fn remove_policies(&self, name: &str) {
        let mut loads = self.state().policies().loads();
        loads.mark_unchanged();
        std::fs::remove_file(self.config.policies_dir.join(name)).unwrap();
        within(loads.changed()).await.unwrap();
    }

    /// A new connection to the workload socket, without the endpoint's metadata.
    pub async fn channel(&self) -> Channel {
        channel(self.socket()).await
    }

    /// A Workload API client on a new connection.
    pub async fn workload(&self) -> Workload {
        SpiffeWorkloadApiClient::with_interceptor(self.channel().await, Header)
    }

    /// Keys that the agent holds, on a new connection.
    pub async fn sessions(&self) -> Sessions {
        SessionsClient::with_interceptor(self.channel().await, Header)
    }

    /// What tools ask, on a new connection.
    pub async fn verifier(&self) -> Verifier {
        VerifierClient::with_interceptor(self.channel().await, Header)
    }

    /// The admin API for the audit log.
    pub async fn audit_log(&self) -> AuditLogClient<Channel> {
        AuditLogClient::new(channel(self.admin_socket()).await)
    }

    /// The admin API for entries.
    pub async fn entries(&self) -> EntriesClient<Channel> {
        EntriesClient::new(channel(self.admin_socket()).await)
    }

    /// The admin API for authorities.
    pub async fn authorities(&self) -> AuthoritiesClient<Channel> {
        AuthoritiesClient::new(channel(self.admin_socket()).await)
    }

    /// The admin API for bundles.
    pub async fn bundles(&self) -> BundlesClient<Channel> {
        BundlesClient::new(channel(self.admin_socket()).await)
    }

    /// The admin API for the ledger.
    pub async fn credentials(&self) -> CredentialsClient<Channel> {
        CredentialsClient::new(channel(self.admin_socket()).await)
    }

    /// The admin API for policies.
    pub async fn policies(&self) -> PoliciesClient<Channel> {
        PoliciesClient::new(channel(self.admin_socket()).await)
    }

    /// The admin API for the agent itself.
    pub async fn agent(&self) -> AgentClient<Channel> {
        AgentClient::new(channel(self.admin_socket()).await)
    }
}

/// A new connection to a socket.
pub async fn channel(socket: &Path) -> Channel {
    let socket: PathBuf = socket.to_owned();
    let connect = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://localhost").connect_with_connector(connect).await.expect("the agent listens")
}

/// The result of something that must not take long.
pub async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.expect("this takes no longer than the test has patience")
}

/// The next message of a stream.
pub async fn next<T>(stream: &mut tonic::Streaming<T>) -> Result<T, Status> {
    within(stream.message()).await.map(|message| message.expect("the stream goes on"))
}

/// The user id of this process.
pub fn uid() -> u32 {
    nix::unistd::geteuid().as_raw()
}

/// The next audit event that `wanted` picks.
pub async fn event(events: &mut broadcast::Receiver<Event>, wanted: impl Fn(&Event) -> bool) -> Event {
    within(async {
        loop {
            let event = events.recv().await.expect("the agent records events");
            if wanted(&event) {
                return event;
            }
        }
    })
    .await
}
