use std::io::{BufRead, BufReader};
use std::process::{Command as Program, Stdio as Streams};

use super::*;

/// A shell that handles SIGHUP by printing a line, and its standard output.
struct Handler {
    child: std::process::Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Handler {
    fn start(script: &str) -> Self {
        // A shell cannot handle what was ignored when it began, as it is below `nohup`.
        let mut command = Program::new("env");
        command.args(["--default-signal=HUP", "sh", "-c", script]).stdin(Streams::piped()).stdout(Streams::piped());
        let mut child = command.spawn().expect("sh");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        assert_eq!(lines.next().expect("a line").expect("read"), "ready");
        Self { child, lines }
    }

    fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }
}

impl Drop for Handler {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn pid_file(dir: &Path, content: &str) -> PathBuf {
    let path = dir.join("pid");
    std::fs::write(&path, content).expect("written");
    path
}

#[test]
fn a_signal_goes_to_the_process_in_the_file_if_it_handles_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut handler = Handler::start("trap 'echo told' HUP; echo ready; while :; do read line; done");
    let path = pid_file(dir.path(), &format!("{}\n/var/lib/more\n", handler.pid()));
    let told = send(Signal::SIGHUP, &path, Some("sh")).expect("sent");
    assert!(told.contains("SIGHUP") && told.contains("`sh`"), "{told}");
    assert_eq!(handler.lines.next().expect("a line").expect("read"), "told");
    let error = send(Signal::SIGUSR1, &path, None).expect_err("refused");
    assert!(matches!(error, ReloadError::Unhandled { .. }), "{error}");
    let error = send(Signal::SIGHUP, &path, Some("nginx")).expect_err("refused");
    assert!(error.to_string().contains("is `sh` and not `nginx`"), "{error}");
    assert!(handler.child.try_wait().expect("asked").is_none(), "it lives");
}

#[test]
fn a_number_that_is_not_there_is_nobodys_or_could_be_anybodys_is_not_believed() {
    let dir = tempfile::tempdir().expect("a directory");
    let missing = send(Signal::SIGHUP, &dir.path().join("none"), None).expect_err("refused");
    assert!(matches!(missing, ReloadError::PidFile { .. }), "{missing}");
    for content in ["", "x", "0", "1", "-5", "99999999999"] {
        let error = send(Signal::SIGHUP, &pid_file(dir.path(), content), None).expect_err(content);
        assert!(matches!(error, ReloadError::NoPid(_)), "{content}: {error}");
    }
    let mut ended = Program::new("true").spawn().expect("true");
    let pid = ended.id();
    ended.wait().expect("reaped");
    let error = send(Signal::SIGHUP, &pid_file(dir.path(), &pid.to_string()), None).expect_err("refused");
    assert!(matches!(error, ReloadError::Gone(_)), "{error}");
    let handler = Handler::start("trap : HUP; echo ready; read line");
    let path = pid_file(dir.path(), &handler.pid().to_string());
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o666)).expect("chmod");
    let error = send(Signal::SIGHUP, &path, None).expect_err("refused");
    assert!(matches!(error, ReloadError::Untrusted(_)), "{error}");
}

fn argv(words: &[&str]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}

#[tokio::test]
async fn a_command_is_run_without_a_shell_and_what_it_printed_last_is_told() {
    let patience = Duration::from_secs(60);
    let told = run(&argv(&["printf", "%s\\n", "$HOME; x"]), patience).await.expect("run");
    assert_eq!(told, "ran `printf`: $HOME; x");
    let error = run(&argv(&["sh", "-c", "echo out; echo err >&2; exit 3"]), patience).await.expect_err("it fails");
    assert_eq!(error.to_string(), "`sh` ended with exit code 3: out; err");
    let error = run(&argv(&["sh", "-c", "kill -9 $$"]), patience).await.expect_err("it fails");
    assert_eq!(error.to_string(), "`sh` was ended by signal 9");
    let error = run(&argv(&["/nonexistent/x"]), patience).await.expect_err("there is none");
    assert_eq!(error.to_string(), "`/nonexistent/x` cannot be started");
    let told = run(&argv(&["sh", "-c", "yes x | head -c 100000; printf '\\033[1mend'"]), patience).await.expect("run");
    assert!(told.len() < 2 * MAX_PRINTED && told.ends_with("[1mend") && !told.contains('\u{1b}'), "{told}");
}

#[tokio::test]
async fn a_command_that_takes_too_long_is_stopped_with_all_that_it_started() {
    // The second has ended long before. This test ends when the last of them has let go of its output.
    for script in ["sleep 1000 & sleep 1000", "sleep 1000 &"] {
        let error = run(&argv(&["sh", "-c", script]), Duration::from_millis(200)).await.expect_err("late");
        assert!(matches!(error, ReloadError::Late { .. }), "{script}: {error}");
    }
}

#[tokio::test]
async fn a_command_that_goes_on_is_started_once_and_told_by_its_signal_until_it_has_ended() {
    let dir = tempfile::tempdir().expect("a directory");
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("a fifo");
    let script =
        format!("trap 'echo told > {0}; exit 7' USR1; echo ready > {0}; while :; do sleep 0.05; done", fifo.display());
    let line = || {
        let fifo = fifo.clone();
        tokio::task::spawn_blocking(move || std::fs::read_to_string(fifo).expect("read"))
    };
    let how = Reload::Child { argv: argv(&["sh", "-c", &script]), signal: Some(Signal::SIGUSR1) };
    let mut teller = Teller::new(how);
    assert_eq!(teller.tell().await.expect("started"), "started `sh`");
    assert_eq!(line().await.expect("read"), "ready\n");
    assert_eq!(teller.tell().await.expect("told"), "sent SIGUSR1 to `sh`");
    assert_eq!(line().await.expect("read"), "told\n");
    let ended = teller.ended().await;
    assert!(ended.starts_with("`sh` ended with exit code 7"), "{ended}");
    assert_eq!(teller.tell().await.expect("started anew"), "started `sh`");
    assert_eq!(line().await.expect("read"), "ready\n");
    teller.stop().await;
    assert!(teller.child.is_none());
}
