//! The `tether` binary as scripts see it: exit codes, streams and signals. What the commands print is tested beside
//! them; here it is the real program and the real agent.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

fn tether(dir: &Path, arguments: &[&str]) -> Output {
    command(dir).args(arguments).output().expect("the binary runs")
}

/// The binary with nothing of this host's environment, and `dir` as the place for `--dev`.
fn command(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tether"));
    command.env_clear().env("XDG_RUNTIME_DIR", dir).stdin(Stdio::null());
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("text")
}

/// An agent started with `--dev`, ended when this is dropped.
struct Agent(Child);

impl Agent {
    fn start(dir: &Path) -> Self {
        let mut agent = command(dir);
        agent.args(["agent", "run", "--dev"]).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = agent.spawn().expect("the agent starts");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let printed: Vec<String> = lines.map(|line| line.expect("text")).take_while(|line| line != "ready").collect();
        let export =
            format!("export SPIFFE_ENDPOINT_SOCKET=unix://{}", dir.join("tether-dev/workload/workload.sock").display());
        assert!(printed.contains(&export), "{printed:#?}");
        Self(child)
    }

    /// Asks it to stop, and waits until it has.
    fn stop(mut self) -> std::process::ExitStatus {
        let pid = nix::unistd::Pid::from_raw(self.0.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("it runs");
        self.0.wait().expect("it ends")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn each_kind_of_failure_has_its_exit_code_and_says_nothing_on_standard_output() {
    let dir = tempfile::tempdir().expect("a directory");
    let wrong = dir.path().join("tether.toml");
    std::fs::write(&wrong, "trust_domain = \"example.org\"\nnonsense = 1\n").expect("written");
    let wrong = wrong.to_str().expect("text");
    let nowhere = ["--socket", "/nonexistent/socket"];
    let cases: &[(&[&str], i32, &str)] = &[
        (&["nonsense"], 2, "unrecognized subcommand"),
        (&["fetch", "jwt"], 2, "--audience"),
        (&["fetch", "x509", nowhere[0], nowhere[1]], 4, "cannot reach the agent at `unix:///nonexistent/socket`"),
        (&["fetch", "jwt", "--audience", "x", nowhere[0], nowhere[1]], 4, "is it running?"),
        (&["validate", "jwt", "--audience", "x", "a.b.c", nowhere[0], nowhere[1]], 4, "cannot reach"),
        (&["status", nowhere[0], nowhere[1]], 4, "cannot reach"),
        (&["agent", "healthcheck", nowhere[0], nowhere[1]], 4, "cannot reach"),
        (&["agent", "run", "--config", wrong], 5, "tether.toml:2:1: there is no setting `nonsense`"),
        (&["agent", "run", "--config", "/nonexistent/tether.toml"], 5, "/nonexistent/tether.toml"),
    ];
    for (arguments, code, message) in cases {
        let done = tether(dir.path(), arguments);
        let errors = text(&done.stderr);
        assert_eq!(done.status.code(), Some(*code), "{arguments:?}: {errors}");
        assert!(errors.contains(message), "{arguments:?}: {errors}");
        assert!(done.stdout.is_empty(), "{arguments:?}: {}", text(&done.stdout));
    }
}

#[test]
fn a_dev_agent_serves_its_user_is_found_without_being_named_and_stops_in_order() {
    let dir = tempfile::tempdir().expect("a directory");
    let agent = Agent::start(dir.path());
    let ok = |arguments: &[&str]| {
        let done = tether(dir.path(), arguments);
        assert!(done.status.success(), "{arguments:?}: {}", text(&done.stderr));
        text(&done.stdout)
    };
    assert!(ok(&["fetch", "x509"]).starts_with("SPIFFE ID  spiffe://dev.tether.internal/user/"));
    let token = ok(&["fetch", "jwt", "--audience", "demo"]);
    assert!(ok(&["validate", "jwt", "--audience", "demo", token.trim()]).contains("/user/"));
    let other = tether(dir.path(), &["validate", "jwt", "--audience", "other", token.trim()]);
    assert_eq!(other.status.code(), Some(5), "{}", text(&other.stderr));
    assert!(ok(&["fetch", "bundle"]).contains("BEGIN CERTIFICATE"));
    assert!(ok(&["status"]).contains("dev.tether.internal"));
    assert!(ok(&["explain"]).contains("match: dev gives spiffe://dev.tether.internal/user/"));
    assert!(ok(&["entry", "list"]).contains("built-in"));
    assert!(ok(&["authority", "show"]).contains("x509-signing"));
    ok(&["agent", "healthcheck"]);
    ok(&["agent", "reload"]);

    let written = dir.path().join("files");
    ok(&["fetch", "x509", "--write", written.to_str().expect("text")]);
    assert!(written.join("svid_key.pem").exists());
    assert!(agent.stop().success(), "SIGTERM is an order, not an error");
    assert_eq!(tether(dir.path(), &["agent", "healthcheck"]).status.code(), Some(4));
}

#[test]
fn a_dev_directory_that_is_open_to_others_is_refused_with_what_to_do() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().expect("a directory");
    let dev = dir.path().join("tether-dev");
    std::fs::create_dir(&dev).expect("created");
    std::fs::set_permissions(&dev, std::fs::Permissions::from_mode(0o777)).expect("chmod");
    let done = tether(dir.path(), &["agent", "run", "--dev"]);
    assert_eq!(done.status.code(), Some(1));
    assert!(text(&done.stderr).contains("run chmod 0700"), "{}", text(&done.stderr));
}

/// Reads from the terminal until `wanted` was shown; all that was shown.
fn shown_until(terminal: &mut std::fs::File, wanted: &str) -> String {
    use std::io::Read;
    let mut shown = Vec::new();
    let mut bytes = [0; 4096];
    while !String::from_utf8_lossy(&shown).contains(wanted) {
        match terminal.read(&mut bytes) {
            Ok(count) if count > 0 => shown.extend_from_slice(&bytes[..count]),
            end => panic!("{end:?} before `{wanted}` was shown: {:?}", String::from_utf8_lossy(&shown)),
        }
    }
    // It may end inside a character.
    String::from_utf8_lossy(&shown).into_owned()
}

#[test]
fn the_live_screen_follows_the_size_of_its_terminal_and_gives_the_terminal_back() {
    let dir = tempfile::tempdir().expect("a directory");
    let agent = Agent::start(dir.path());
    let size = nix::pty::Winsize { ws_row: 40, ws_col: 30, ws_xpixel: 0, ws_ypixel: 0 };
    let pty = nix::pty::openpty(&size, None).expect("a terminal");
    let end = || pty.slave.try_clone().expect("duplicated");
    let mut screen = command(dir.path());
    screen
        .args(["status", "--watch"])
        .env("TERM", "xterm")
        .env("NO_COLOR", "1")
        .stdin(end())
        .stdout(end())
        .stderr(end());
    let mut screen = screen.spawn().expect("it starts");
    let mut terminal = std::fs::File::from(pty.master.try_clone().expect("duplicated"));
    let shown = shown_until(&mut terminal, "AUTHORITIES");
    assert!(shown.starts_with("\u{1b}[?1049h\u{1b}[?25l"), "{shown:?}");
    assert!(shown.contains("ready  dev.tether.internal  n…"), "cut at 30 columns: {shown:?}");

    let wider = Command::new("stty").args(["cols", "120"]).stdin(end()).status().expect("stty runs");
    assert!(wider.success());
    let pid = nix::unistd::Pid::from_raw(screen.id().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGWINCH).expect("it runs");
    shown_until(&mut terminal, "dev.tether.internal  node ");

    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).expect("it runs");
    shown_until(&mut terminal, "\u{1b}[?25h\u{1b}[?1049l");
    assert_eq!(screen.wait().expect("it ends").code(), Some(0));
    agent.stop();
}

#[test]
fn without_a_terminal_the_status_is_printed_again_when_something_changed() {
    let dir = tempfile::tempdir().expect("a directory");
    let agent = Agent::start(dir.path());
    let mut watch = command(dir.path());
    watch.args(["status", "--watch", "--output", "json"]).stdout(Stdio::piped());
    let mut watch = watch.spawn().expect("it starts");
    let mut lines = BufReader::new(watch.stdout.take().expect("piped")).lines();
    let mut next = || lines.next().expect("goes on").expect("text");
    let entries = |line: &str| {
        let document: serde_json::Value = serde_json::from_str(line).expect("JSON");
        assert_eq!(document["version"], 1);
        document["entries"]["count"].as_u64().expect("a number")
    };
    assert_eq!(entries(&next()), 1);
    let text =
        "[[entry]]\nid = \"more\"\nspiffe_id = \"spiffe://dev.tether.internal/more\"\nmatch = [\"unix:uid:1\"]\n";
    std::fs::write(dir.path().join("tether-dev/entries.d/more.toml"), text).expect("written");
    while entries(&next()) != 2 {}
    watch.kill().expect("it runs");
    watch.wait().expect("it ends");
    agent.stop();
}
