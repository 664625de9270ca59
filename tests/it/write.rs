//! `tether write` and the service it uses: the real program, real files.

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tether::audit::Event;
use tether::bundle::Bundle;
use tether::id::TrustDomain;
use tether::proto::admin::{CredentialView, ListCredentialsRequest};
use tether::proto::export::exports_client::ExportsClient;
use tether::proto::export::{Choice, FetchJwtRequest, WatchX509Request};
use tether::x509::{Chain, PrivateKey};
use tonic::Code;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;

use crate::harness::{Header, PATIENCE, TestAgent, event, next, uid, within};

const DOMAIN: &str = "dev.tether.internal";

/// An agent that gives this user one identity for files, bound to `bind`.
async fn agent(bind: &str, more: &str) -> TestAgent {
    let agent = TestAgent::without_entries().await;
    agent.write_entries("web.toml", &entry(bind, more)).await;
    agent
}

fn entry(bind: &str, more: &str) -> String {
    format!(
        "[[entry]]\nid = \"web\"\nspiffe_id = \"spiffe://{DOMAIN}/web\"\nmatch = [\"unix:uid:{}\"]\nowner = \"team\"\n\
         audiences = [\"api\"]\nhint = \"for-web\"\nbind = \"{bind}\"\n{more}\n",
        uid()
    )
}

async fn exports(agent: &TestAgent) -> ExportsClient<InterceptedService<Channel, Header>> {
    ExportsClient::with_interceptor(agent.channel().await, Header)
}

fn by_hint(hint: &str) -> Option<Choice> {
    Some(Choice { hint: hint.to_owned(), ..Choice::default() })
}

async fn ledger(agent: &TestAgent) -> Vec<CredentialView> {
    let all = ListCredentialsRequest { all: true, ..ListCredentialsRequest::default() };
    agent.credentials().await.list(all).await.unwrap().into_inner().credentials
}

async fn standing(agent: &TestAgent, serial: &str) -> String {
    let view = ledger(agent).await.into_iter().find(|view| view.id == serial).expect("it is in the ledger");
    if view.reason.is_empty() { view.standing } else { view.reason }
}

fn command(agent: &TestAgent, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tether"));
    command.arg("write").args(arguments).stdin(Stdio::null()).env_remove("TETHER_SESSION");
    command.env("SPIFFE_ENDPOINT_SOCKET", format!("unix://{}", agent.socket().display()));
    command
}

async fn output(mut command: Command) -> Output {
    within(tokio::task::spawn_blocking(move || command.output().expect("it runs"))).await.unwrap()
}

/// `tether write` that goes on, and what it says.
struct Writer {
    child: Child,
    lines: Receiver<String>,
}

impl Writer {
    fn start(agent: &TestAgent, arguments: &[&str]) -> Self {
        let mut child =
            command(agent, arguments).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("started");
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Self { child, lines }
    }

    /// The first line from here on that has this in it.
    async fn says(&self, wanted: &str) -> String {
        tokio::task::block_in_place(|| {
            loop {
                let line = self.lines.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("it says `{wanted}`"));
                if line.contains(wanted) {
                    return line;
                }
            }
        })
    }

    /// The serial number of the next set of files.
    async fn wrote(&self) -> String {
        let line = self.says("wrote").await;
        let (_, after) = line.split_once("serial number ").expect("it is named");
        after.split_whitespace().next().unwrap().to_owned()
    }

    fn tell(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).expect("it lives");
    }

    fn end(mut self, signal: Signal) -> std::process::ExitStatus {
        self.tell(signal);
        self.child.wait().unwrap()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().mode() & 0o7777
}

/// The serial number in a directory with a certificate and the key that belongs to it.
fn pair(certificate: &Path, key: &Path) -> String {
    let chain = Chain::from_pem(&std::fs::read(certificate).unwrap()).unwrap();
    let key = PrivateKey::from_pem(&std::fs::read(key).unwrap()).unwrap();
    assert!(chain.leaf().public_key() == key.public_key(), "they belong together");
    chain.leaf().serial().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_gives_nothing_to_files_says_which_line_to_change() {
    let agent = agent("process", "").await;
    let mut exports = exports(&agent).await;
    let refused =
        exports.watch_x509(WatchX509Request::default()).await.unwrap().into_inner().message().await.unwrap_err();
    let denial =
        |status: &tonic::Status| status.metadata().get("tether-denial").map(|label| label.to_str().unwrap().to_owned());
    assert_eq!((refused.code(), denial(&refused).as_deref()), (Code::PermissionDenied, Some("not_exportable")));
    let place = format!("{}:1", agent.config().entries_dir.join("web.toml").display());
    let text = refused.message();
    assert!(
        text.contains(&place) && text.contains("`exportable = true`") && text.contains("`bind = \"unit\"`"),
        "{text}"
    );
    let token = FetchJwtRequest { audience: vec!["api".to_owned()], choice: None };
    let refused = exports.fetch_jwt(token).await.unwrap_err();
    assert_eq!(denial(&refused).as_deref(), Some("not_exportable"));
    assert!(ledger(&agent).await.is_empty());

    // With two identities, the one that is exportable is the default, and the other one is still refused.
    let both = entry("process", "") + &entry("unit", "exportable = true").replace("web", "files");
    agent.write_entries("web.toml", &both).await;
    let given = next(&mut exports.watch_x509(WatchX509Request::default()).await.unwrap().into_inner()).await.unwrap();
    assert_eq!(given.spiffe_id, format!("spiffe://{DOMAIN}/files"));
    let asked = WatchX509Request { choice: by_hint("for-web") };
    let refused = exports.watch_x509(asked).await.unwrap().into_inner().message().await.unwrap_err();
    assert_eq!(denial(&refused).as_deref(), Some("not_exportable"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_handed_out_for_files_is_in_the_ledger_as_such_and_one_identity_at_a_time() {
    let agent = agent("unit", "exportable = true").await;
    let mut exports = exports(&agent).await;
    let state = exports.watch_x509(WatchX509Request { choice: by_hint("for-web") }).await.unwrap();
    let state = next(&mut state.into_inner()).await.unwrap();
    let serial = Chain::from_der(&state.x509_svid).unwrap().leaf().serial().to_string();
    assert!(state.x509_bundles.contains_key(&format!("spiffe://{DOMAIN}")));
    assert!(state.jwt_bundles.contains_key(&format!("spiffe://{DOMAIN}")));
    let request = FetchJwtRequest { audience: vec!["api".to_owned()], choice: None };
    let token = exports.fetch_jwt(request).await.unwrap().into_inner();
    assert_eq!(token.spiffe_id, format!("spiffe://{DOMAIN}/web"));

    let mut rows = ledger(&agent).await;
    rows.sort_by(|a, b| b.kind.cmp(&a.kind));
    let seen: Vec<_> =
        rows.iter().map(|row| (row.kind.as_str(), row.custody.as_str(), row.binding.as_ref().unwrap().level)).collect();
    assert_eq!(seen, [("x509", "file", 1), ("jwt", "file", 0)]);
    assert_eq!(rows[0].id, serial);
    assert!(rows.iter().all(|row| row.tie.starts_with("exported:")), "{rows:?}");

    let wrong = [
        (
            Some(Choice { spiffe_id: format!("spiffe://{DOMAIN}/web"), hint: "for-web".to_owned() }),
            vec!["api"],
            Code::InvalidArgument,
        ),
        (Some(Choice { spiffe_id: "web".to_owned(), hint: String::new() }), vec!["api"], Code::InvalidArgument),
        (
            Some(Choice { spiffe_id: format!("spiffe://{DOMAIN}/other"), hint: String::new() }),
            vec!["api"],
            Code::PermissionDenied,
        ),
        (by_hint("other"), vec!["api"], Code::PermissionDenied),
        (None, vec!["elsewhere"], Code::PermissionDenied),
        (None, vec![], Code::InvalidArgument),
    ];
    for (choice, audience, code) in wrong {
        let audience = audience.into_iter().map(str::to_owned).collect();
        let request = FetchJwtRequest { choice, audience };
        let refused = exports.fetch_jwt(request.clone()).await.expect_err("refused");
        assert_eq!(refused.code(), code, "{request:?}: {refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_leaves_the_old_certificate_standing_and_ends_with_a_pair_whenever_it_comes() {
    let agent = agent("node", "exportable = true").await;
    let dir = agent.dir().join("tls");
    let arguments = ["--directory", dir.to_str().unwrap(), "--names", "tls"];
    let mut serials = Vec::new();
    for signal in [Signal::SIGKILL, Signal::SIGTERM, Signal::SIGKILL] {
        let writer = Writer::start(&agent, &arguments);
        let serial = writer.wrote().await;
        assert_eq!(pair(&dir.join("tls.crt"), &dir.join("tls.key")), serial);
        let status = writer.end(signal);
        assert!(signal == Signal::SIGKILL || status.success(), "{status}");
        serials.push(serial);
    }
    for serial in &serials {
        assert_eq!(standing(&agent, serial).await, "stands");
    }
    serials.dedup();
    assert_eq!(serials.len(), 3, "each process has its own");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_files_ends_when_its_entry_gives_nothing_to_files_any_more() {
    let agent = agent("node", "exportable = true").await;
    let dir = agent.dir().join("tls");
    let writer = Writer::start(&agent, &["--directory", dir.to_str().unwrap()]);
    let serial = writer.wrote().await;
    assert_eq!(standing(&agent, &serial).await, "stands");
    let mut events = agent.audit();
    agent.write_entries("web.toml", &entry("node", "")).await;
    let told = writer.says("gives nothing to files").await;
    assert!(told.contains("trying again"), "{told}");
    event(&mut events, |event| matches!(event, Event::CredentialsEnded { .. })).await;
    assert_eq!(standing(&agent, &serial).await, "no_longer_matches");
    assert_eq!(pair(&dir.join("svid.pem"), &dir.join("svid_key.pem")), serial, "the files stay");
    // And it goes on when it may again.
    agent.write_entries("web.toml", &entry("node", "exportable = true")).await;
    assert_ne!(writer.wrote().await, serial);
}

#[tokio::test(flavor = "multi_thread")]
async fn new_certificates_are_written_when_it_is_time_and_commands_are_run_for_changes_alone() {
    let agent = agent("node", "exportable = true\nx509_ttl = \"10m\"").await;
    let (dir, log) = (agent.dir().join("tls"), agent.dir().join("log"));
    let script = format!("cat {}/svid.pem >> {}; echo told", dir.display(), log.display());
    let writer = Writer::start(&agent, &["--directory", dir.to_str().unwrap(), "--exec", "--", "sh", "-c", &script]);
    let first = writer.wrote().await;
    writer.says("ran `sh`: told").await;
    agent.clock().advance(Duration::from_secs(360));
    let second = writer.wrote().await;
    writer.says("ran `sh`").await;
    assert_ne!(first, second);
    assert_eq!(pair(&dir.join("svid.pem"), &dir.join("svid_key.pem")), second);
    assert_eq!(standing(&agent, &first).await, "stands", "whoever has not read the new files yet goes on");
    // An entry that changes in what is not in the files: the state is sent anew, or not, and nothing is written.
    let certificates = |log: &Path| std::fs::read_to_string(log).unwrap().matches("BEGIN CERTIFICATE").count();
    assert_eq!(certificates(&log) % 2, 0);
    let told = certificates(&log);

    // SIGHUP: all of it again, with modes that somebody has changed meanwhile.
    let key = dir.join("svid_key.pem");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o666)).unwrap();
    writer.tell(Signal::SIGHUP);
    assert_eq!(writer.wrote().await, second, "it is the same certificate");
    writer.says("ran `sh`").await;
    assert_eq!((mode(&key), mode(&dir.join("svid.pem"))), (0o600, 0o644));
    assert_eq!(certificates(&log), told / 2 * 3);
    assert!(writer.end(Signal::SIGTERM).success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_cannot_be_told_yet_is_told_when_it_can_be_and_the_files_stay() {
    let agent = agent("node", "exportable = true").await;
    let (dir, flag) = (agent.dir().join("tls"), agent.dir().join("flag"));
    let script = format!("test -e {}", flag.display());
    let writer = Writer::start(&agent, &["--directory", dir.to_str().unwrap(), "--exec", "--", "sh", "-c", &script]);
    writer.wrote().await;
    let trouble = writer.says("ended with exit code 1").await;
    assert!(
        trouble.contains("the files are in place, and the program was not told") && trouble.contains("trying again"),
        "{trouble}"
    );
    std::fs::write(&flag, "").unwrap();
    writer.says("ran `sh`").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_config_has_many_outputs_with_every_kind_of_file() {
    let agent = agent("node", "exportable = true").await;
    let (dir, config, password) = (agent.dir(), agent.dir().join("write.toml"), agent.dir().join("password"));
    std::fs::write(&password, "secret\n").unwrap();
    let text = format!(
        "[[output]]\ndirectory = \"{dir}/a\"\nnames = \"tls\"\nkey_mode = \"0640\"\npassword_file = \"{dir}/password\"\n\
         files = {{ combined = \"all.pem\", key_der = \"key.der\", pkcs12 = \"svid.p12\", truststore = \"trust.p12\", \
         crl = \"crl.pem\", jwks = \"jwks.json\", spiffe_bundle = \"bundle.json\" }}\n\
         [[output]]\ndirectory = \"{dir}/b\"\nlayout = \"plain\"\njwt = [{{ audience = [\"api\"], file = \"token\" }}]\n",
        dir = dir.display(),
    );
    std::fs::write(&config, text).unwrap();
    let done = output(command(&agent, &["--once", "--config", config.to_str().unwrap()])).await;
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let a = dir.join("a");
    let serial = pair(&a.join("tls.crt"), &a.join("tls.key"));
    assert_eq!(pair(&a.join("all.pem"), &a.join("all.pem")), serial);
    let key = PrivateKey::from_pkcs8(&std::fs::read(a.join("key.der")).unwrap()).unwrap();
    assert!(key.public_key() == PrivateKey::from_pem(&std::fs::read(a.join("tls.key")).unwrap()).unwrap().public_key());
    let domain = TrustDomain::parse(DOMAIN).unwrap();
    let bundle = Bundle::parse(&domain, &std::fs::read(a.join("bundle.json")).unwrap()).unwrap().bundle;
    assert!(!bundle.x509().is_empty() && bundle.x509().to_pem() == std::fs::read_to_string(a.join("ca.crt")).unwrap());
    assert_eq!(bundle.jwt_jwks(), std::fs::read_to_string(a.join("jwks.json")).unwrap());
    for (name, expected) in
        [("tls.key", 0o640), ("all.pem", 0o640), ("svid.p12", 0o640), ("trust.p12", 0o644), ("tls.crt", 0o644)]
    {
        assert_eq!(mode(&a.join(name)), expected, "{name}");
        assert!(!std::fs::read(a.join(name)).unwrap().is_empty(), "{name}");
    }
    let token = std::fs::read_to_string(dir.join("b/token")).unwrap();
    assert_eq!(token.split('.').count(), 3);
    assert_eq!(mode(&dir.join("b/token")), 0o600);
    assert!(std::fs::symlink_metadata(dir.join("b/token")).unwrap().is_file());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_configuration_of_spiffe_helper_is_taken_as_it_is() {
    let agent = agent("node", "exportable = true").await;
    let (dir, config) = (agent.dir().join("certs"), agent.dir().join("helper.conf"));
    let text = format!(
        "agent_address = \"unix://{}\"\ncert_dir = \"{}\"\ndaemon_mode = false\nhint = \"for-web\"\n\
         svid_file_name = \"svid.pem\"\nsvid_key_file_name = \"svid_key.pem\"\nsvid_bundle_file_name = \"svid_bundle.pem\"\n\
         jwt_svids = [{{jwt_audience=\"api\", jwt_svid_file_name=\"jwt_svid.token\"}}]\n\
         jwt_bundle_file_name = \"jwt_bundle.json\"\nkey_file_mode = 0640\nadd_intermediates_to_bundle = true\n",
        agent.socket().display(),
        dir.display(),
    );
    std::fs::write(&config, text).unwrap();
    let mut command = command(&agent, &["--spiffe-helper", config.to_str().unwrap()]);
    command.env_remove("SPIFFE_ENDPOINT_SOCKET");
    let done = output(command).await;
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    pair(&dir.join("svid.pem"), &dir.join("svid_key.pem"));
    let count = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap().matches("BEGIN CERTIFICATE").count();
    assert_eq!((count("svid.pem"), count("svid_bundle.pem")), (1, 2), "the intermediate is in the bundle");
    assert_eq!((mode(&dir.join("svid_key.pem")), mode(&dir.join("jwt_bundle.json"))), (0o640, 0o600));
    let bundles: serde_json::Value =
        serde_json::from_slice(&std::fs::read(dir.join("jwt_bundle.json")).unwrap()).unwrap();
    assert!(bundles[DOMAIN].is_string(), "{bundles}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_failure_has_its_exit_code_and_says_what_to_do() {
    let agent = agent("process", "").await;
    let dir = agent.dir();
    let (tls, nowhere, wrong) = (dir.join("tls"), dir.join("none.sock"), dir.join("wrong.toml"));
    std::fs::write(&wrong, "[[output]]\ndirectory = \"/x\"\nkey_mod = \"0600\"\n").unwrap();
    let open = dir.join("open");
    std::fs::create_dir(&open).unwrap();
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o777)).unwrap();
    let (tls, nowhere, wrong, open) =
        (tls.to_str().unwrap(), nowhere.to_str().unwrap(), wrong.to_str().unwrap(), open.to_str().unwrap());
    for (arguments, code, text) in [
        (vec!["--once", "--directory", tls], 6, "exportable = true"),
        (vec!["--once", "--directory", tls, "--socket", nowhere], 4, "cannot reach the agent"),
        (vec!["--once", "--config", wrong], 5, "wrong.toml:3:1: unknown field `key_mod`"),
        (vec!["--once", "--directory", tls, "--key-mode", "0644"], 2, "readable by everybody"),
        (vec!["--once", "--directory", tls, "--signal", "HUP"], 2, "--pid-file"),
        (vec!["--once", "--directory", open], 1, "run chmod go-w on it"),
        (vec!["--once"], 2, "--directory"),
    ] {
        let done = output(command(&agent, &arguments)).await;
        let stderr = String::from_utf8_lossy(&done.stderr).into_owned();
        assert_eq!(done.status.code(), Some(code), "{arguments:?}: {stderr}");
        assert!(stderr.contains(text), "{arguments:?}: {stderr}");
    }
}

/// A cgroup of our own; `None` where none can be made.
struct Group(std::path::PathBuf);

impl Group {
    fn make(name: &str) -> Option<Self> {
        let mounts = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].map(Path::new);
        let mount = mounts.into_iter().find(|mount| mount.join("cgroup.procs").is_file())?;
        let dir = mount.join(format!("tether-write-{name}-{}", std::process::id()));
        let made = std::fs::create_dir(&dir).is_ok() && dir.join("cgroup.procs").exists();
        made.then_some(Self(dir))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_unit_of_a_writer_ends_its_files_stand_for_a_minute_more() {
    let agent = agent("unit", "exportable = true").await;
    let (Some(before), Some(after)) = (Group::make("before"), Group::make("after")) else {
        eprintln!("skipped: cgroups of version 2 cannot be made here");
        return;
    };
    let dir = agent.dir().join("tls");
    // It enters the group before it becomes the writer.
    let start = |group: &Group| {
        let script = format!("echo $$ > {}/cgroup.procs && exec \"$0\" \"$@\"", group.0.display());
        let mut shell = Command::new("sh");
        shell.args(["-c", &script, env!("CARGO_BIN_EXE_tether"), "write", "--directory", dir.to_str().unwrap()]);
        shell.env("SPIFFE_ENDPOINT_SOCKET", format!("unix://{}", agent.socket().display()));
        let mut child = shell.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Writer { child, lines }
    };
    let writer = start(&before);
    let first = writer.wrote().await;
    let tie = ledger(&agent).await.remove(0).tie;
    assert!(tie.starts_with("exported:cgroup:"), "{tie}");
    writer.end(Signal::SIGTERM);
    // Started again at once, as a service is: the old one stands while the new one is made and long after.
    let writer = start(&after);
    let second = writer.wrote().await;
    assert_eq!(standing(&agent, &first).await, "stands");
    assert_eq!(pair(&dir.join("svid.pem"), &dir.join("svid_key.pem")), second);
    let mut events = agent.audit();
    let ended = event(&mut events, |event| matches!(event, Event::CredentialsEnded { .. }));
    tokio::pin!(ended);
    // Whether the minute has begun already cannot be seen: another one passes until it has.
    for _ in 0..6 {
        agent.clock().advance(Duration::from_secs(61));
        if tokio::time::timeout(Duration::from_secs(2), &mut ended).await.is_ok() {
            break;
        }
    }
    assert_eq!(standing(&agent, &first).await, "cgroup_empty");
    drop(writer);
}
