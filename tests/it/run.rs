//! `tether run`: a command in a session that dies with it. The real program, real processes.

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use tether::proto::session::{EndRequest, GetRequest, Session, State};
use tether::sys::{PidFd, WatchedPidFd};

use crate::harness::{TestAgent, within};

/// A user that owns nothing.
const NOBODY: u32 = 65_534;

/// An agent that believes the program under test.
async fn agent() -> TestAgent {
    TestAgent::configured(|config| config.sessions.launchers = vec![env!("CARGO_BIN_EXE_tether").to_owned()]).await
}

fn tether(agent: &TestAgent, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tether"));
    command.arg("run").args(arguments).env("SPIFFE_ENDPOINT_SOCKET", format!("unix://{}", agent.socket().display()));
    command.env_remove("TETHER_SESSION").stdin(Stdio::null());
    command
}

async fn output(mut command: Command) -> Output {
    within(tokio::task::spawn_blocking(move || command.output().expect("it runs"))).await.unwrap()
}

async fn get(agent: &TestAgent, id: &str) -> Session {
    agent.sessions().await.get(GetRequest { session: id.to_owned(), ..Default::default() }).await.unwrap().into_inner()
}

/// `tether run` with a shell that has said its session, and the number of a process that it left behind.
struct Running {
    child: Child,
    stdout: BufReader<ChildStdout>,
    session: String,
    /// The shell, and what the shell's own child has left behind.
    processes: Vec<WatchedPidFd>,
}

impl Running {
    async fn start(agent: &TestAgent) -> Self {
        // The one in the middle ends at once, so that what it started is an orphan in a group of its own.
        let script = "echo $TETHER_SESSION; echo $$; setsid sh -c 'sleep 600 >/dev/null 2>&1 & echo $!'; sleep 600; :";
        let mut command = tether(agent, &["--", "sh", "-c", script]);
        let mut child = command.stdout(Stdio::piped()).process_group(0).spawn().expect("it starts");
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (stdout, lines) = within(tokio::task::spawn_blocking(|| {
            let mut stdout = stdout;
            let mut lines = Vec::new();
            for _ in 0..3 {
                let mut line = String::new();
                stdout.read_line(&mut line).unwrap();
                lines.push(line.trim().to_owned());
            }
            (stdout, lines)
        }))
        .await
        .unwrap();
        let held = |pid: &String| WatchedPidFd::new(PidFd::open(pid.parse().unwrap()).unwrap()).unwrap();
        Self { child, stdout, session: lines[0].clone(), processes: lines[1..].iter().map(held).collect() }
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Returns when the shell and the orphan are gone.
    async fn all_gone(&self) {
        for process in &self.processes {
            within(process.exited()).await;
        }
    }

    async fn exit(mut self) -> std::process::ExitStatus {
        drop(self.stdout);
        within(tokio::task::spawn_blocking(move || self.child.wait().unwrap())).await.unwrap()
    }
}

#[tokio::test]
async fn the_command_runs_in_a_session_that_is_measured_and_ends_with_it_and_its_code_passes_through() {
    let agent = agent().await;
    let script = agent.dir().join("agent.sh");
    std::fs::write(&script, "echo $TETHER_SESSION; echo $SPIFFE_ENDPOINT_SOCKET >&2; cat; exit 7\n").unwrap();
    let mut command = tether(&agent, &["--purpose", "ticket/triage", "--", "sh", script.to_str().unwrap()]);
    command.stdin(std::fs::File::open(&script).unwrap());
    let ran = output(command).await;
    assert_eq!(ran.status.code(), Some(7), "{ran:?}");
    let (stdout, stderr) = (String::from_utf8(ran.stdout).unwrap(), String::from_utf8(ran.stderr).unwrap());
    let (id, input) = stdout.split_once('\n').unwrap();
    assert!(input.starts_with("echo $TETHER_SESSION"), "standard input is the command's: {input}");
    assert!(stderr.contains(&format!("unix://{}", agent.socket().display())), "{stderr}");
    let session = get(&agent, id).await;
    assert_eq!(
        (session.state(), &*session.end_reason, &*session.purpose),
        (State::Ended, "completed", "ticket/triage")
    );
    let measured = format!("launch:script:{}", script.canonicalize().unwrap().display());
    assert!(session.launched.contains(&measured), "{:?}", session.launched);
    assert!(session.launched.iter().any(|selector| selector.starts_with("launch:script_sha256:")));
}

#[tokio::test]
async fn a_command_that_a_signal_ends_or_that_cannot_be_started_has_the_code_that_shells_give() {
    let agent = agent().await;
    for (command, code) in
        [(&["sh", "-c", "kill -TERM $$"][..], 143), (&["/nonexistent/command"][..], 127), (&["/dev/null"][..], 126)]
    {
        let arguments: Vec<&str> = ["--"].iter().chain(command).copied().collect();
        assert_eq!(output(tether(&agent, &arguments)).await.status.code(), Some(code), "{command:?}");
    }
}

#[tokio::test]
async fn without_an_agent_the_command_is_not_started() {
    let agent = agent().await;
    let mark = agent.dir().join("mark");
    let mut command = tether(&agent, &["--", "touch", mark.to_str().unwrap()]);
    command.env("SPIFFE_ENDPOINT_SOCKET", "unix:///nonexistent/workload.sock");
    assert_eq!(output(command).await.status.code(), Some(4));
    assert!(!mark.exists());
}

#[tokio::test]
async fn the_end_of_the_session_takes_down_everything_that_was_started() {
    let agent = agent().await;
    let running = Running::start(&agent).await;
    assert_eq!(get(&agent, &running.session).await.state(), State::Active);
    agent.sessions().await.end(EndRequest { session: running.session.clone() }).await.unwrap();
    running.all_gone().await;
    assert_eq!(running.exit().await.code(), Some(143));
}

#[tokio::test]
async fn a_command_that_is_stopped_with_its_session_has_not_succeeded_whatever_it_says() {
    let agent = agent().await;
    let script = "trap 'exit 0' TERM; echo $TETHER_SESSION; while :; do sleep 0.05; done";
    let mut child = tether(&agent, &["--", "sh", "-c", script]).stdout(Stdio::piped()).spawn().expect("it starts");
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let read = tokio::task::spawn_blocking(move || {
        let mut session = String::new();
        stdout.read_line(&mut session).unwrap();
        session.trim().to_owned()
    });
    let session = within(read).await.unwrap();
    agent.sessions().await.end(EndRequest { session }).await.unwrap();
    let status = within(tokio::task::spawn_blocking(move || child.wait().unwrap())).await.unwrap();
    assert_eq!(status.code(), Some(143));
}

#[tokio::test]
async fn ctrl_c_takes_down_everything_that_was_started_and_the_session() {
    let agent = agent().await;
    let running = Running::start(&agent).await;
    killpg(running.pid(), Signal::SIGINT).unwrap();
    running.all_gone().await;
    let session = get(&agent, &running.session).await;
    assert_eq!((session.state(), &*session.end_reason), (State::Ended, "completed"));
    assert_eq!(running.exit().await.code(), Some(130));
}

#[tokio::test]
async fn what_the_command_leaves_behind_is_taken_down_when_it_exits() {
    let agent = agent().await;
    let mut running = Running::start(&agent).await;
    let orphan = running.processes.pop().unwrap();
    let shell = running.processes.pop().unwrap();
    shell.pidfd().signal(Signal::SIGKILL).unwrap();
    within(orphan.exited()).await;
    assert_eq!(running.exit().await.code(), Some(137));
}

#[tokio::test]
async fn a_launcher_that_is_killed_takes_the_command_and_the_session_with_it() {
    let agent = agent().await;
    let running = Running::start(&agent).await;
    kill(running.pid(), Signal::SIGKILL).unwrap();
    within(running.processes[0].exited()).await;
    let mut changes = agent
        .sessions()
        .await
        .watch(tether::proto::session::WatchRequest { session: running.session.clone(), ..Default::default() })
        .await
        .unwrap()
        .into_inner();
    let mut last = None;
    while let Some(change) = within(changes.message()).await.unwrap() {
        last = Some(change);
    }
    let last = last.expect("one at least");
    assert_eq!((last.state(), &*last.end_reason), (State::Ended, "process_exit"));
    // Nobody is left who could: the test says that this is so, as the documentation does.
    running.processes[1].pidfd().signal(Signal::SIGKILL).unwrap();
    assert_eq!(running.exit().await.signal(), Some(9));
}

#[tokio::test]
async fn a_run_within_a_run_is_a_child_session_that_dies_with_it() {
    let agent = agent().await;
    let inner = format!("{} run -- sh -c 'echo $TETHER_SESSION'", env!("CARGO_BIN_EXE_tether"));
    let outer = format!("echo $TETHER_SESSION; {inner}");
    let ran = output(tether(&agent, &["--purpose", "outer", "--", "sh", "-c", &outer])).await;
    let stdout = String::from_utf8(ran.stdout).unwrap();
    let [outer, inner] = stdout.lines().collect::<Vec<_>>()[..] else { panic!("{stdout} {:?}", ran.stderr) };
    let child = get(&agent, inner).await;
    assert_eq!((&*child.parent, &*child.purpose, child.depth), (outer, "outer", 1));
}

#[tokio::test]
async fn a_plain_user_gets_a_session_of_the_tree_and_is_told_what_it_lacks() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    // Where that user can reach and run it.
    let public = tempfile::tempdir().unwrap();
    let program: PathBuf = public.path().join("tether");
    std::fs::copy(env!("CARGO_BIN_EXE_tether"), &program).unwrap();
    let launchers = vec![program.to_str().unwrap().to_owned()];
    let agent = TestAgent::configured(|config| config.sessions.launchers = launchers).await;
    let entry = format!(
        "[[entry]]\nid = \"nobody\"\nspiffe_id = \"spiffe://dev.tether.internal/nobody\"\n\
         match = [\"unix:uid:{NOBODY}\"]\naudiences = [\"*\"]\n"
    );
    agent.write_entries("nobody.toml", &entry).await;
    for dir in [public.path(), agent.dir(), &agent.dir().join("agent")] {
        std::fs::set_permissions(dir, PermissionsExt::from_mode(0o755)).unwrap();
    }
    let mut command = Command::new(&program);
    command.args(["run", "--", "sh", "-c", "echo $TETHER_SESSION; id -u"]).uid(NOBODY).gid(NOBODY).stdin(Stdio::null());
    command.env("SPIFFE_ENDPOINT_SOCKET", format!("unix://{}", agent.socket().display())).current_dir("/");
    let ran = output(command).await;
    let (stdout, stderr) = (String::from_utf8(ran.stdout).unwrap(), String::from_utf8(ran.stderr).unwrap());
    assert_eq!(ran.status.code(), Some(0), "{stderr}");
    assert!(stdout.ends_with(&format!("\n{NOBODY}\n")), "{stdout}");
    assert!(stderr.contains("no cgroup for the command") && stderr.contains("not covered"), "{stderr}");
    assert!(!stderr.contains("not measured"), "{stderr}");
}
