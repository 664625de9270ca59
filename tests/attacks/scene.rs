//! Where credentials are stolen: an agent or a naive key service, a victim, thieves, and a tool that asks about those
//! who send it requests. All of them are processes; see [`crate::orders`].

use std::borrow::Cow;
use std::fmt::{Debug, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;
use tether::audit::Event;
use tether::base::clock::Clock;
use tether::config::{AuthorityKind, Config, KernelInterfaces};
use tether::id::TrustDomain;
use tether::proto::admin::{
    CredentialFilter, RevokeCredentialsRequest, RevokeCredentialsResponse, SetBundleRequest, ShowBundlesRequest,
};
use tether::proto::workload::X509BundlesRequest;
use tether::sys::PidFd;
use tether::x509::{Chain, Crl, KeyType, PrivateKey, Serial, Validity, self_signed_root};
use tokio::runtime::Runtime;
use tokio::sync::broadcast::Receiver;

use crate::harness::{PATIENCE, TestAgent, next};
use crate::naive_keys::NaiveKeys;
use crate::needs;
use crate::orders::{Answer, Headers, Held, Named, Order, Refused, Verdict, Wit, X509};
use crate::stage::{Actor, NOBODY, Running, Stage};
use crate::target::Side;

/// The trust domain.
pub const DOMAIN: &str = "spiffe://dev.tether.internal";
/// What JWT-SVIDs are for here.
pub const AUDIENCE: &str = "https://pay.example.com";
/// What the tool serves, and proofs are for here.
pub const URI: &str = "https://tool.example.com/charge";
/// The only signature scheme of the keys here.
pub const P256: u32 = 0x0403;

/// Sessions may be begun and used by everybody who has an identity: what else refuses them is what is tried here.
pub const EVERYTHING: &str = r#"permit (principal, action in
    [Action::"start", Action::"delegate", Action::"mint", Action::"call", Action::"reach"], resource);"#;

/// One attack's place.
pub struct Scene {
    agent: Option<TestAgent>,
    events: Option<Receiver<Event>>,
    runtime: Runtime,
    socket: PathBuf,
    stage: Stage,
}

/// What a scene is set up with, beside what every scene has.
#[derive(Clone, Copy, Default)]
pub struct Setup<'a> {
    /// Lines for the victim's entry.
    pub victim: &'a str,
    /// Lines for the tool's entry.
    pub tool: &'a str,
    /// What policy says of sessions; empty for a yes to everything.
    pub policies: &'a str,
    /// A directory with `root.pem` and `root_key.pem` that sign for several hosts.
    pub root: Option<&'a Path>,
}

impl Scene {
    /// A naive key service, or an agent that knows the programs of the stage.
    pub fn on(side: Side) -> Self {
        Self::with(side, Setup::default())
    }

    /// The same with more in it.
    pub fn with(side: Side, setup: Setup<'_>) -> Self {
        let (stage, runtime) = (Stage::new(), Runtime::new().unwrap());
        let socket = stage.path("s/workload.sock");
        let mut scene = Self { agent: None, events: None, runtime, socket, stage };
        if side == Side::Naive {
            scene.serve_naively();
        } else {
            scene.start_agent(side, setup);
        }
        scene
    }

    /// Two hosts of one trust domain, each with an agent of its own.
    pub fn two_hosts(side: Side) -> (Self, Self) {
        let dir = tempfile::tempdir().unwrap();
        write_root(dir.path());
        let setup = Setup { root: Some(dir.path()), ..Setup::default() };
        let (here, there) = (Self::with(side, setup), Self::with(side, setup));
        there.believe(&here);
        (here, there)
    }

    fn serve_naively(&self) {
        let dir = self.socket.parent().unwrap();
        std::fs::create_dir(dir).unwrap();
        let listener = UnixListener::bind(&self.socket).unwrap();
        for open in [dir, &self.socket] {
            std::fs::set_permissions(open, PermissionsExt::from_mode(0o777)).unwrap();
        }
        self.runtime.spawn(NaiveKeys::default().serve(listener));
    }

    fn start_agent(&mut self, side: Side, setup: Setup<'_>) {
        let entries = entries(&self.stage, setup);
        let configure = |config: &mut Config| {
            config.dev = false;
            std::fs::create_dir_all(&config.entries_dir).unwrap();
            std::fs::create_dir_all(&config.policies_dir).unwrap();
            std::fs::write(config.entries_dir.join("all.toml"), &entries).unwrap();
            let policies = if setup.policies.is_empty() { EVERYTHING } else { setup.policies };
            std::fs::write(config.policies_dir.join("all.cedar"), policies).unwrap();
            config.listen.workload = self.socket.clone();
            config.wit.enabled = true;
            // The programs here are large, and many tests run at once.
            config.attest.deadline = PATIENCE;
            if side == Side::OldKernel {
                config.attest.peer.kernel = KernelInterfaces::Baseline;
            }
            if let Some(dir) = setup.root {
                config.authority.kind = AuthorityKind::Disk;
                config.authority.cert_file = Some(dir.join("root.pem"));
                config.authority.key_file = Some(dir.join("root_key.pem"));
            }
        };
        let (agent, events) = self.runtime.block_on(async {
            let agent = TestAgent::configured(configure).await;
            let mistakes = &agent.state().registry().last_load().mistakes;
            assert!(mistakes.is_empty(), "{mistakes:?}");
            // Proofs from before the start of an agent are refused.
            agent.clock().advance(Duration::from_secs(2));
            let events = agent.audit();
            (agent, events)
        });
        (self.agent, self.events) = (Some(agent), Some(events));
    }

    /// A process of the victim's program below another of it: orders are for the one below, number and end are of the
    /// one above.
    pub fn victim_below_another(&self) -> Process {
        Process::start(Actor::new(self.stage.trusted(), "workload-below"), &self.socket)
    }

    /// Another process of the program that has the victim's identity, which nothing was stolen from.
    pub fn victim(&self) -> Process {
        Process::start(Actor::new(self.stage.trusted(), "workload"), &self.socket)
    }

    /// The same program, run by another user.
    pub fn other_user(&self) -> Process {
        Process::start(Actor::new(self.stage.trusted(), "workload").unprivileged(), &self.socket)
    }

    /// Another program of the same user.
    pub fn thief(&self) -> Process {
        Process::start(Actor::new(self.stage.thief(), "workload"), &self.socket)
    }

    /// The victim's program in a network namespace of its own, where the agent `at` is what it reaches.
    pub fn elsewhere(&self, at: &Self) -> Process {
        Process::start(Actor::under(needs::NETWORK_NAMESPACE, at.stage.trusted(), "workload"), &at.socket)
    }

    /// The tool.
    pub fn tool(&self) -> Process {
        Process::start(Actor::new(self.stage.tool(), "workload"), &self.socket)
    }

    pub fn stage(&self) -> &Stage {
        &self.stage
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    pub fn agent(&self) -> &TestAgent {
        self.agent.as_ref().expect("tether, not a naive service")
    }

    /// Runs something that talks to the agent.
    pub fn wait<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// Stops the agent.
    pub fn stop(&mut self) {
        self.runtime.block_on(self.agent.as_mut().expect("tether").stop());
    }

    /// Starts the agent that was stopped, or stops it first.
    pub fn restart(&mut self) {
        let agent = self.agent.as_mut().expect("tether");
        self.runtime.block_on(async {
            agent.restart().await;
            agent.clock().advance(Duration::from_secs(2));
        });
    }

    /// Whether an attack came to what it must: the naive service fell for it, or else the test would prove nothing;
    /// tether refused and recorded why.
    pub fn judge<T: Debug>(&mut self, outcome: Result<T, Refused>, code: &str, reason: &str) {
        if self.agent.is_none() {
            outcome.expect("the attack must succeed against a naive service");
            return;
        }
        let refused = outcome.expect_err("tether must refuse");
        assert!(code.split('|').any(|code| code == refused.code), "{refused:?}");
        self.recorded(reason);
    }

    /// Waits until `reason` is recorded.
    pub fn recorded(&mut self, reason: &str) {
        let Some(events) = &mut self.events else { return };
        let mut seen = String::new();
        let found = async {
            loop {
                let (recorded, detail): (Cow<'_, str>, String) =
                    match events.recv().await.expect("the agent records events") {
                        Event::Refused { reason, detail, .. }
                        | Event::ConnectionRefused { reason, detail, .. }
                        | Event::ProofRefused { reason, detail, .. } => (reason.into(), detail),
                        Event::TokenRefused { reason, spiffe_id, .. } => (reason.into(), spiffe_id),
                        Event::Decided { allowed: false, reason, target, .. } => (reason.into(), target),
                        Event::CallChecked { active: false, reason, request, .. } => (reason.into(), request),
                        Event::SuspiciousUse { what, detail, .. } => (what.into(), detail),
                        Event::SessionEnded { session, reason, .. } => (reason.into(), session),
                        Event::CredentialsEnded { what, reason, .. } => (reason.into(), what),
                        _ => continue,
                    };
                if reason.split('|').any(|reason| reason == recorded) {
                    return;
                }
                let _ = writeln!(seen, "{recorded}: {detail}");
            }
        };
        if self.runtime.block_on(async { tokio::time::timeout(PATIENCE, found).await }).is_err() {
            panic!("tether must record `{reason}`, and recorded:\n{seen}");
        }
    }

    /// An operator revokes what an entry gave.
    pub fn revoke(&self, entry: &str) -> RevokeCredentialsResponse {
        let filter = Some(CredentialFilter { entry: entry.to_owned(), ..CredentialFilter::default() });
        let request = RevokeCredentialsRequest { filter, reason: "stolen".to_owned(), dry_run: false };
        self.wait(async { self.agent().credentials().await.revoke(request).await.unwrap().into_inner() })
    }

    /// The lists that everybody who asks for bundles gets now.
    pub fn lists(&self) -> Vec<Crl> {
        self.wait(async {
            let stream = self.agent().workload().await.fetch_x509_bundles(X509BundlesRequest {}).await;
            let lists = next(&mut stream.unwrap().into_inner()).await.unwrap().crl;
            lists.iter().map(|der| Crl::from_der(der).unwrap()).collect()
        })
    }

    /// What the admin API exports of our own trust domain: bundle, roots and lists.
    fn exported(&self) -> tether::proto::admin::BundleView {
        self.wait(async {
            let request = ShowBundlesRequest { trust_domain: "dev.tether.internal".to_owned() };
            self.agent().bundles().await.show(request).await.unwrap().into_inner().bundles.remove(0)
        })
    }

    /// What verifiers take keys from (a JWK set).
    pub fn bundle(&self) -> String {
        self.exported().jwks
    }

    /// The roots, and the revocation lists, in PEM.
    pub fn roots_and_lists(&self) -> (String, String) {
        let view = self.exported();
        (view.pem, view.crl_pem.concat())
    }

    /// Lets this host know the keys that sign tokens on another one.
    fn believe(&self, other: &Self) {
        if self.agent.is_none() {
            return;
        }
        let content = other.exported().jwks;
        let request = SetBundleRequest { trust_domain: "dev.tether.internal".to_owned(), content };
        self.wait(async { self.agent().bundles().await.set(request).await.unwrap() });
    }
}

impl Drop for Scene {
    /// The agent ends before what it runs on does.
    fn drop(&mut self) {
        if let Some(agent) = self.agent.as_mut().filter(|_| !std::thread::panicking()) {
            self.runtime.block_on(agent.stop());
        }
    }
}

/// Everybody has an identity: what a thief lacks is the victim's.
pub fn entries(stage: &Stage, setup: Setup<'_>) -> String {
    let uid = nix::unistd::geteuid().as_raw();
    let of = |name: &str, uid: Option<u32>, program: &Path, more: &str| {
        let uid = uid.map(|uid| format!("\"unix:uid:{uid}\", ")).unwrap_or_default();
        format!(
            "[[entry]]\nid = \"{name}\"\nspiffe_id = \"{DOMAIN}/{name}\"\nowner = \"team\"\naudiences = [\"*\"]\n\
             match = [{uid}\"unix:path:{}\"]\n{more}\n",
            program.display()
        )
    };
    let serves = format!("serves = [\"https://tool.example.com/\"]\n{}", setup.tool);
    [
        of("victim", Some(uid), &stage.trusted(), setup.victim),
        of("other-user", Some(NOBODY), &stage.trusted(), ""),
        of("thief", None, &stage.thief(), ""),
        of("tool", None, &stage.tool(), &serves),
        // Which asks for bundles, as everybody may who has an identity.
        of("test", Some(uid), &std::env::current_exe().unwrap(), ""),
    ]
    .concat()
}

/// A root for several hosts.
fn write_root(dir: &Path) {
    let now = Clock::system().now();
    let validity =
        Validity { not_before: now - Duration::from_secs(3600), not_after: now + Duration::from_secs(90 * 86_400) };
    let key = PrivateKey::generate(KeyType::EcP256).unwrap();
    let pem = key.to_pem().unwrap();
    let domain = TrustDomain::parse("dev.tether.internal").unwrap();
    let root = self_signed_root(domain, key, validity, &Serial::from_random([7; 16])).unwrap();
    std::fs::write(dir.join("root.pem"), root.certificate().to_pem()).unwrap();
    let key_file = dir.join("root_key.pem");
    std::fs::write(&key_file, pem.expose()).unwrap();
    std::fs::set_permissions(key_file, PermissionsExt::from_mode(0o600)).unwrap();
}

/// A process that does as it is told.
pub struct Process(Running);

impl Process {
    /// Starts it and waits until it listens.
    pub fn start(actor: Actor, socket: &Path) -> Self {
        let mut process = Self(actor.arg(socket).start());
        process.begun();
        process
    }

    fn begun(&mut self) {
        assert_eq!(self.answer().unwrap(), "ready");
    }

    fn answer(&mut self) -> Answer {
        serde_json::from_str(&self.0.line()).unwrap()
    }

    /// Has an order carried out.
    pub fn order<T: DeserializeOwned>(&mut self, order: &Order) -> Result<T, Refused> {
        self.tell(order);
        self.answer().map(|value| serde_json::from_value(value).unwrap())
    }

    /// Gives an order without waiting for the answer.
    pub fn tell(&mut self, order: &Order) {
        self.0.tell(&serde_json::to_string(order).unwrap());
    }

    /// What came of an order that nobody waited for.
    pub fn told<T: DeserializeOwned>(&mut self) -> Result<T, Refused> {
        self.answer().map(|value| serde_json::from_value(value).unwrap())
    }

    pub fn fetch_x509(&mut self) -> X509 {
        self.order(&Order::FetchX509).unwrap()
    }

    pub fn fetch_jwt(&mut self) -> String {
        self.order(&Order::FetchJwt(AUDIENCE.to_owned())).unwrap()
    }

    pub fn fetch_wit(&mut self) -> Wit {
        self.order(&Order::FetchWit).unwrap()
    }

    pub fn hold_wit(&mut self) -> Held {
        self.order(&Order::HoldWit(None)).unwrap()
    }

    pub fn hold_x509(&mut self) -> Held {
        self.order(&Order::HoldX509(None)).unwrap()
    }

    /// Proves one POST to the tool.
    pub fn prove(&mut self, key: &str) -> Result<Headers, Refused> {
        let (key, method, uri) = (key.to_owned(), "POST".to_owned(), URI.to_owned());
        self.order(&Order::Prove { key, method, uri, on_behalf_of: None })
    }

    /// Signs one handshake.
    pub fn sign(&mut self, key: &str) -> Result<Vec<u8>, Refused> {
        let key = key.to_owned();
        self.order(&Order::SignTls { key, scheme: P256, content: handshake(), on_behalf_of: None })
    }

    /// Asks, as the tool, about a POST with these headers.
    pub fn check(&mut self, headers: &Headers) -> Verdict {
        self.check_at("POST", URI, headers)
    }

    /// Asks about another request.
    pub fn check_at(&mut self, method: &str, uri: &str, headers: &Headers) -> Verdict {
        let (method, uri, headers) = (method.to_owned(), uri.to_owned(), headers.clone());
        self.order(&Order::Check { method, uri, headers }).expect("the tool may ask")
    }

    /// Asks about a JWT-SVID.
    pub fn validate(&mut self, token: &str) -> Result<String, Refused> {
        self.order(&Order::Validate { audience: AUDIENCE.to_owned(), token: token.to_owned() })
    }

    /// Makes it another program.
    pub fn exec(&mut self, program: PathBuf) {
        self.tell(&Order::Exec(program));
        self.begun();
    }

    /// Ends it, and waits until it is gone.
    pub fn end(&mut self) {
        self.0.kill();
    }

    pub fn pid(&self) -> u32 {
        self.0.pid()
    }

    /// How a delegate names it.
    pub fn named(&self) -> Named {
        let pid = i32::try_from(self.0.pid()).unwrap();
        Named { pid, inode: PidFd::open(pid).unwrap().inode().unwrap() }
    }
}

/// What a client signs in a handshake of TLS 1.3 (RFC 8446, section 4.4.3).
pub fn handshake() -> Vec<u8> {
    [&[b' '; 64][..], b"TLS 1.3, client CertificateVerify\0", &[7; 32]].concat()
}

/// The serial number of a certificate in PEM.
pub fn serial(chain: &str) -> Serial {
    Chain::from_pem(chain.as_bytes()).unwrap().leaf().serial().clone()
}
