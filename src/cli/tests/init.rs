//! `tether init` in a directory that stands for `/`. What systemd's programs are asked is written down by stand-ins; the real
//! ones do it in `tests/host`.

use std::path::Path;

use super::*;

/// A host with nothing but what a test puts there.
struct Root {
    dir: tempfile::TempDir,
}

impl Root {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a directory") }
    }

    fn path(&self, installed: &str) -> PathBuf {
        self.dir.path().join(installed.trim_start_matches('/'))
    }

    fn write(&self, installed: &str, text: &str) {
        let path = self.path(installed);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("created");
        std::fs::write(path, text).expect("written");
    }

    /// A program that notes its arguments and environment, and then does as `script` says.
    fn program(&self, name: &str, script: &str) {
        let log = self.path("/calls");
        let text = format!("#!/bin/sh\necho \"{name} $*\" PATH=$PATH HOME=$HOME >> '{}'\n{script}\n", log.display());
        self.write(&format!("/usr/bin/{name}"), &text);
        let program = self.path(&format!("/usr/bin/{name}"));
        std::fs::set_permissions(program, std::fs::Permissions::from_mode(0o755)).expect("chmod");
    }

    fn calls(&self) -> Vec<String> {
        let calls = std::fs::read_to_string(self.path("/calls")).unwrap_or_default();
        calls.lines().map(str::to_owned).collect()
    }

    fn host(&self, env: &[(&str, &str)], input: &str) -> Host {
        Host { uid: 0, root: Some(self.dir.path().to_owned()), ..bare_host(env, input) }
    }

    fn init(&self, arguments: &str) -> Done {
        tether_on(self.host(&[], ""), &format!("init {arguments}"))
    }

    /// Every file with what is in it.
    fn files(&self) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
        let (mut files, mut dirs) = (BTreeMap::new(), vec![self.dir.path().to_owned()]);
        while let Some(dir) = dirs.pop() {
            for found in std::fs::read_dir(dir).expect("listed") {
                let path = found.expect("listed").path();
                let meta = std::fs::symlink_metadata(&path).expect("there");
                if meta.is_dir() {
                    dirs.push(path);
                } else if meta.is_file() && path != self.path("/calls") {
                    files.insert(path.clone(), (meta.mode() & 0o7777, std::fs::read(&path).expect("read")));
                }
            }
        }
        files
    }

    fn config(&self) -> crate::config::Loaded {
        let file = Some(self.path("/etc/tether/tether.toml"));
        crate::config::Source { file, ..Default::default() }.load().expect("right")
    }
}

/// What is typed after `tether init` here, for its outcome of each step.
fn outcomes(done: &Done) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let json = done.json();
    json["steps"].as_array().expect("a list").iter().map(|step| (text(&step["step"]), text(&step["outcome"]))).collect()
}

#[test]
fn a_bare_host_gets_a_trust_domain_and_a_first_entry_that_the_agent_takes() {
    let root = Root::new();
    let done = root.init("--trust-domain example.org --output json");
    assert_eq!(done.exit, Exit::Ok, "{}", done.chatter);
    let expected =
        [("configuration", "made"), ("wrapping key", "weaker"), ("first entry", "made"), ("agent", "left_out")];
    assert_eq!(outcomes(&done), expected.map(|(step, outcome)| (step.to_owned(), outcome.to_owned())));
    let json = done.json();
    assert_eq!(keys(&json), ["next", "ready", "steps", "trust_domain", "version"]);
    assert_eq!((&json["ready"], &json["next"]), (&json!(false), &json!(["tether agent run", "tether fetch x509"])));

    let loaded = root.config();
    assert_eq!(loaded.config.trust_domain.as_str(), "example.org");
    let drop_in = root.path("/etc/tether/tether.toml.d/10-init.toml");
    assert_eq!(loaded.origin("trust_domain").to_string(), format!("{}:2", drop_in.display()));
    let mut loader = crate::registry::Loader::new(root.path("/etc/tether/entries.d"), loaded.config.entry_rules());
    let entries = loader.load(&[], NOW);
    assert!(entries.mistakes.is_empty() && entries.warnings.is_empty(), "{:?}", entries.mistakes);
    let entry = &entries.entries[0];
    assert_eq!(entry.spiffe_id().to_string(), "spiffe://example.org/user/{unix.user}");
    assert_eq!((entry.owner(), entry.bind().to_string()), (Some("root"), "unit".to_owned()));
    for (path, (mode, _)) in root.files() {
        assert_eq!(mode, 0o644, "{}", path.display());
    }
}

#[test]
fn run_again_it_changes_nothing_and_says_so() {
    let root = Root::new();
    root.init("--trust-domain example.org");
    let before = root.files();
    for again in ["--output json", "--trust-domain example.org --output json"] {
        let done = root.init(again);
        assert_eq!(done.exit, Exit::Ok, "{}", done.chatter);
        let kept: Vec<_> = outcomes(&done).into_iter().filter(|(_, outcome)| outcome == "kept").collect();
        assert_eq!(kept.len(), 2, "{}", done.data);
    }
    let said = root.init("");
    assert!(said.data.contains("nothing was changed"), "{}", said.data);
    assert!(root.files() == before);
    let first = Root::new().init("--trust-domain example.org");
    assert!(!first.data.contains("nothing was changed"), "{}", first.data);
}

#[test]
fn what_was_cut_short_is_finished_by_the_next_run() {
    let whole = Root::new();
    whole.init("--trust-domain example.org");
    let names = |root: &Root| {
        let below = |path: PathBuf| path.strip_prefix(root.dir.path()).expect("below").to_owned();
        root.files().into_keys().map(below).collect::<Vec<_>>()
    };
    let files = names(&whole);
    assert_eq!(files.len(), 2);
    // Killed before each file, with half of it written beside its place.
    for (number, cut) in files.iter().enumerate() {
        let root = Root::new();
        let cut = root.path(cut.to_str().expect("text"));
        if number > 0 {
            root.write("/etc/tether/tether.toml.d/10-init.toml", "trust_domain = \"example.org\"\n");
        }
        std::fs::create_dir_all(cut.parent().expect("a parent")).expect("created");
        std::fs::write(cut.with_file_name(".10-init.toml.1.tmp"), "trust_dom").expect("written");
        let done = root.init("--trust-domain example.org");
        assert_eq!(done.exit, Exit::Ok, "{}", done.chatter);
        assert_eq!(root.config().config.trust_domain.as_str(), "example.org");
        assert!(files.iter().all(|file| root.dir.path().join(file).exists()), "{:?}", names(&root));
    }
}

#[test]
fn a_host_stays_in_its_trust_domain() {
    let root = Root::new();
    root.write("/etc/tether/tether.toml", "# mine\ntrust_domain = \"mine.example\"\n[svid]\nx509_ttl = \"5m\"\n");
    let before = root.files();
    let done = root.init("--trust-domain other.example");
    assert_eq!(done.exit, Exit::Failure);
    for expected in ["`mine.example`", "tether.toml:2)", "every SPIFFE ID", "Nothing was changed"] {
        assert!(done.chatter.contains(expected), "{}", done.chatter);
    }
    assert!(root.files() == before);

    let done = root.init("--no-entry --output json");
    assert_eq!(done.exit, Exit::Ok, "{}", done.chatter);
    assert_eq!(done.json()["trust_domain"], "mine.example");
    assert!(root.files() == before, "what there is to be made here was not wanted");
}

#[test]
fn a_configuration_with_mistakes_is_refused_before_anything_is_written() {
    let root = Root::new();
    root.write("/etc/tether/tether.toml", "[svid]\nx509_tll = \"5m\"\n");
    let before = root.files();
    let done = root.init("--trust-domain example.org");
    assert_eq!(done.exit, Exit::Invalid);
    assert!(done.chatter.contains("tether.toml:2:1: there is no setting `svid.x509_tll`"), "{}", done.chatter);
    root.write("/etc/tether/tether.toml", "[svid]\nx509_ttl = \"0s\"\n");
    assert_eq!(root.init("--trust-domain example.org").exit, Exit::Invalid, "settings that do not fit together");
    root.write("/etc/tether/tether.toml", "[svid]\nx509_tll = \"5m\"\n");
    assert!(root.files() == before);
}

#[test]
fn only_root_can_and_the_environment_of_the_caller_is_not_the_agents() {
    let root = Root::new();
    let done = tether_on(Host { uid: 1000, ..root.host(&[], "") }, "init --trust-domain example.org");
    assert_eq!(done.exit, Exit::Usage);
    assert!(done.chatter.contains("sudo") && done.chatter.contains("--dev"), "{}", done.chatter);
    let done = tether_on(root.host(&[("TETHER_TRUST_DOMAIN", "caller.example")], ""), "init");
    assert_eq!(done.exit, Exit::Usage, "{}", done.data);
    assert!(done.chatter.contains("tether init --trust-domain example.org"), "{}", done.chatter);
    assert!(root.files().is_empty());
}

#[test]
fn on_a_terminal_it_asks_until_there_is_an_answer() {
    let ask = |input: &str| {
        let root = Root::new();
        let done = tether_on(Host { interactive: true, ..root.host(&[], input) }, "init");
        (done, root)
    };
    let (done, root) = ask("Example Org\n example.org \n");
    assert_eq!(done.exit, Exit::Ok, "{}", done.chatter);
    assert_eq!(done.chatter.matches("Trust domain: ").count(), 2);
    assert_eq!(root.config().config.trust_domain.as_str(), "example.org");
    for nothing in ["", "A\nB\nC\nexample.org\n"] {
        let (done, root) = ask(nothing);
        assert_eq!(done.exit, Exit::Usage);
        assert!(done.chatter.contains("nothing was changed") && root.files().is_empty(), "{}", done.chatter);
    }
    let again = tether_on(Host { interactive: true, ..root.host(&[], "") }, "init");
    assert_eq!((again.exit, again.chatter.as_str()), (Exit::Ok, ""), "it has its answer");
}

#[test]
fn the_first_identity_is_for_who_called_sudo_or_was_named_and_never_comes_back() {
    let nobody = nix::unistd::User::from_name("nobody").expect("looked up").expect("there");
    let uid = nobody.uid.to_string();
    let entry = |root: &Root| std::fs::read_to_string(root.path("/etc/tether/entries.d/10-init.toml"));
    let root = Root::new();
    let done = tether_on(root.host(&[("SUDO_UID", uid.as_str())], ""), "init --trust-domain example.org --owner ops@x");
    assert!(done.data.contains("`spiffe://example.org/user/nobody` for `nobody`"), "{}", done.data);
    let text = entry(&root).expect("there");
    assert!(text.contains(&format!("unix:uid:{uid}")) && text.contains("owner = \"ops@x\""), "{text}");

    let root = Root::new();
    root.init("--trust-domain example.org --user nobody");
    assert!(entry(&root).expect("there").contains("owner = \"nobody\""));
    std::fs::remove_file(root.path("/etc/tether/entries.d/10-init.toml")).expect("removed");
    root.write("/etc/tether/entries.d/billing.toml", "");
    let done = root.init("");
    assert!(entry(&root).is_err() && done.data.contains("there are entries in"), "{}", done.data);
    root.init("--user nobody");
    assert!(entry(&root).is_ok(), "asked for by name");

    let done = Root::new().init("--trust-domain example.org --user nobody-of-this-name");
    assert_eq!(done.exit, Exit::Usage);
    assert!(done.chatter.contains("there is no user `nobody-of-this-name`"), "{}", done.chatter);
}

#[test]
fn the_wrapping_key_is_sealed_by_systemd_and_never_replaced() {
    let root = Root::new();
    std::fs::create_dir_all(root.path("/run/systemd/system")).expect("created");
    // Seals by counting: what it is given must be the key, and go nowhere else.
    root.program("systemd-creds", "case $1 in encrypt) printf 'sealed '; wc -c ;; has-tpm2) exit 1 ;; esac");
    let done = root.init("--trust-domain example.org");
    assert_eq!(done.exit, Exit::Ok, "{}", done.chatter);
    assert!(done.data.contains("there is no TPM"), "{}", done.data);
    let path = root.path("/etc/credstore.encrypted/tether.key-wrapping-key");
    assert_eq!(std::fs::read_to_string(&path).expect("there").trim(), "sealed 32");
    let meta = |path: &Path| std::fs::metadata(path).expect("there").mode() & 0o777;
    assert_eq!((meta(&path), meta(path.parent().expect("a parent"))), (0o600, 0o700));
    let safe = "PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=";
    let expected = [format!("systemd-creds encrypt --name=tether.key-wrapping-key - - {safe}")];
    assert_eq!(root.calls()[..1], expected, "{:?}", root.calls());
    let before = root.files();
    assert_eq!(root.init("").exit, Exit::Ok);
    assert!(root.files() == before);

    // With keys that it has wrapped, another one would be of no use.
    std::fs::remove_file(&path).expect("removed");
    root.write("/var/lib/tether/keys/0123456789abcdef0123456789abcdef.pk8", "tethkey\x01…");
    let done = root.init("");
    assert_eq!(done.exit, Exit::Failure);
    assert!(done.chatter.contains("put `") && done.chatter.contains("back from a backup"), "{}", done.chatter);
    assert!(!path.exists());
}

#[test]
fn where_nothing_can_be_sealed_it_says_what_is_weaker_and_why() {
    let bare = Root::new().init("--trust-domain example.org");
    assert!(bare.data.contains("systemd does not run here"), "{}", bare.data);
    let root = Root::new();
    std::fs::create_dir_all(root.path("/run/systemd/system")).expect("created");
    root.program("systemd-creds", "echo 'no host key' >&2; exit 1");
    let done = root.init("--trust-domain example.org");
    assert_eq!(done.exit, Exit::Ok, "{}", done.chatter);
    assert!(done.data.contains("weaker") && done.data.contains("plain files of mode 0600"), "{}", done.data);
    assert!(done.data.contains("no host key"), "{}", done.data);
    assert!(!root.path("/etc/credstore.encrypted/tether.key-wrapping-key").exists());
}

/// A host that systemd started, with the units of the package.
fn booted(systemctl: &str) -> Root {
    let root = Root::new();
    std::fs::create_dir_all(root.path("/run/systemd/system")).expect("created");
    for unit in ["tether-agent.socket", "tether-agent.service"] {
        root.write(&format!("/usr/lib/systemd/system/{unit}"), "");
    }
    root.program("systemctl", systemctl);
    root
}

#[test]
fn the_agent_is_enabled_and_started_and_waited_for() {
    let (_health, service) = tonic_health::server::health_reporter();
    let served = Served::routes(tonic::service::Routes::new(service));
    // Enabled and active once it was told so.
    let root = booted("state=\"$0.enabled\"; case $1 in enable) touch \"$state\" ;; *) test -e \"$state\" ;; esac");
    let socket = root.path("/run/tether/workload/workload.sock");
    std::fs::create_dir_all(socket.parent().expect("a parent")).expect("created");
    std::os::unix::fs::symlink(served.path(), &socket).expect("linked");
    let done = root.init("--trust-domain example.org --output json");
    assert_eq!(done.exit, Exit::Ok, "{}", done.chatter);
    assert_eq!((&done.json()["ready"], &done.json()["next"]), (&json!(true), &json!(["tether fetch x509"])));
    let told = |root: &Root| root.calls().iter().filter(|call| call.starts_with("systemctl enable --now ")).count();
    let calls = root.calls();
    let enable = "systemctl enable --now tether-agent.socket tether-agent.service PATH=";
    assert!(calls.iter().any(|call| call.starts_with(enable)), "{calls:?}");
    let again = root.init("--output json");
    assert_eq!((again.exit, &again.json()["ready"]), (Exit::Ok, &json!(true)), "{}", again.chatter);
    assert!(outcomes(&again).contains(&("agent".to_owned(), "kept".to_owned())), "{}", again.data);
    assert_eq!(told(&root), 1);

    let root = booted("");
    assert!(root.init("--trust-domain example.org --no-start").data.contains("systemctl enable --now"));
    assert!(root.calls().is_empty());
}

#[test]
fn an_agent_that_does_not_start_is_a_failure_that_says_where_to_look() {
    let root = booted("echo 'Job for tether-agent.service failed' >&2; exit 1");
    let done = root.init("--trust-domain example.org");
    assert_eq!(done.exit, Exit::Failure);
    for expected in ["Job for tether-agent.service failed", "journalctl -u tether-agent", "run `tether init` again"] {
        assert!(done.chatter.contains(expected), "{}", done.chatter);
    }
}

#[test]
fn where_there_is_no_agent_yet_the_next_command_is_named() {
    let root = Root::new();
    let advice = || tether_on(Host { uid: 1000, ..root.host(&[], "") }, "fetch x509").chatter;
    assert!(advice().contains("tether agent run --dev"), "{}", advice());
    root.write("/usr/lib/systemd/system/tether-agent.service", "");
    root.write("/etc/tether/tether.toml", "#trust_domain = \"example.org\"\n");
    assert!(advice().contains("sudo tether init"), "{}", advice());
    root.write("/etc/tether/tether.toml.d/10-init.toml", "trust_domain = \"example.org\"\n");
    assert!(advice().contains("sudo systemctl start tether-agent.socket"), "{}", advice());
}
