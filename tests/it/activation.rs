//! An agent whose sockets are the service manager's: real processes, and a manager that plays systemd.

use std::net::TcpListener;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use tether::jwt::Jws;
use tether::proto::admin::ListCredentialsRequest;
use tether::proto::admin::credentials_client::CredentialsClient;
use tether::proto::workload::JwtsvidRequest;
use tether::proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use tether::sys::Kernel;
use tether::sys::socket::listen_at;

use crate::another::Another;
use crate::harness::{Header, channel, within};
use crate::manager::Manager;
use crate::program::{AgentProcess, handing, is_root};
use crate::raw::{Answer, Raw};

const MINE: &str = "spiffe://dev.tether.internal/user/";

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_before_the_agent_is_served_with_what_it_had_sent_by_then() {
    let dir = tempfile::tempdir().unwrap();
    let manager = Manager::with_sockets(dir.path());
    // In the queue: one that is gone by the time anybody looks, and one that waits.
    let gone = Another::start(&manager.workload());
    gone.end();
    let waits = Raw::calling(&manager.workload(), "FetchX509SVID").await;
    let (mut agent, manager) = start(manager).await;
    assert_eq!(waits.answer(MINE).await, Answer::Heard, "the bytes from before the agent have a sender");

    // And again while there is none: killed, and the next.
    let mut manager = manager;
    manager.kill(agent);
    let waits = Raw::calling(&manager.workload(), "FetchX509SVID").await;
    (agent, _) = start(manager).await;
    assert_eq!(waits.answer(MINE).await, Answer::Heard);
    drop(agent);
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_somebody_else_put_into_a_waiting_connection_are_refused_as_ever() {
    let dir = tempfile::tempdir().unwrap();
    let manager = Manager::with_sockets(dir.path());
    let ours = std::os::unix::net::UnixStream::connect(manager.workload()).unwrap();
    // Another process writes on the connection that this one has opened.
    let wrote = Command::new("printf").arg("PRI * HTTP/2.0").stdout(OwnedFd::from(ours.try_clone().unwrap())).status();
    assert!(wrote.unwrap().success());
    let (_agent, _manager) = start(manager).await;
    ours.set_nonblocking(true).unwrap();
    let mut heard = Vec::new();
    let mut ours = tokio::net::UnixStream::from_std(ours).unwrap();
    let _ = within(tokio::io::AsyncReadExt::read_to_end(&mut ours, &mut heard)).await;
    let heard = String::from_utf8_lossy(&heard);
    assert!(heard.contains("process") && !heard.contains(MINE), "{heard}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets_that_were_handed_over_are_neither_removed_nor_changed() {
    let dir = tempfile::tempdir().unwrap();
    let manager = Manager::with_sockets(dir.path());
    let files = [manager.workload(), manager.admin()];
    std::fs::set_permissions(&files[0], std::fs::Permissions::from_mode(0o620)).unwrap();
    let see = || files.each_ref().map(|file| std::fs::metadata(file).map(|file| (file.ino(), file.mode())).unwrap());
    let before = see();
    let (agent, _manager) = start(manager).await;
    assert_eq!(see(), before);
    let (status, log) = tokio::task::spawn_blocking(|| agent.stop()).await.unwrap();
    assert!(status.success(), "{log}");
    assert_eq!(see(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_connection_is_let_in_and_dropped_without_a_word_while_the_agent_is_exchanged() {
    let dir = tempfile::tempdir().unwrap();
    let manager = Manager::with_sockets(dir.path());
    let socket = manager.workload();
    let (mut agent, mut manager) = start(manager).await;
    let over = Arc::new(AtomicBool::new(false));
    let callers: Vec<_> = (0..4)
        .map(|_| {
            let (socket, over) = (socket.clone(), over.clone());
            tokio::spawn(async move {
                let (mut served, mut told, mut dropped) = (0, 0, 0);
                while !over.load(Ordering::Relaxed) {
                    match call(&socket).await {
                        Answer::Heard => served += 1,
                        Answer::Told => told += 1,
                        Answer::Dropped => dropped += 1,
                    }
                }
                (served, told, dropped)
            })
        })
        .collect();
    for _ in 0..5 {
        let stopped = tokio::task::spawn_blocking(|| agent.stop()).await.unwrap();
        assert!(stopped.0.success(), "{}", stopped.1);
        (agent, manager) = start(manager).await;
        // Each agent answers somebody before it goes.
        while !matches!(call(&socket).await, Answer::Heard) {}
    }
    over.store(true, Ordering::Relaxed);
    for caller in callers {
        let (served, told, dropped) = within(caller).await.unwrap();
        assert!(served > 0);
        assert_eq!(dropped, 0, "of {served} that were served and {told} that were told to come again");
    }
    drop((agent, manager));
}

/// One call on a connection of its own, by hand: no library that tries again.
async fn call(socket: &std::path::Path) -> Answer {
    Raw::calling(socket, "FetchX509SVID").await.answer(MINE).await
}

#[test]
fn a_socket_that_is_not_as_the_unit_should_make_it_is_refused_with_the_line_that_mends_it() {
    type Make = fn(&std::path::Path) -> OwnedFd;
    let rows: Vec<(&str, Make, &str)> = vec![
        ("without PassCredentials", |path| UnixListener::bind(path).unwrap().into(), "PassCredentials=yes"),
        (
            "at another path",
            |path| listen_at(&path.with_file_name("other.sock"), 0o666, &Kernel::probe()).unwrap().into(),
            "ListenStream=",
        ),
        ("of datagrams", |path| UnixDatagram::bind(path).unwrap().into(), "ListenStream="),
        ("of TCP", |_| TcpListener::bind("127.0.0.1:0").unwrap().into(), "ListenStream="),
        ("that is none", |_| std::fs::File::open("/dev/null").unwrap().into(), "ListenStream="),
    ];
    for (what, make, line) in rows {
        let dir = tempfile::tempdir().unwrap();
        let manager = Manager::with_sockets(dir.path());
        std::fs::remove_file(manager.workload()).unwrap();
        let socket = make(&manager.workload());
        let (status, said) = AgentProcess::refusing(dir.path(), &[], &[("workload", socket.as_fd())]);
        assert_eq!(status.code(), Some(1), "{what}: {said}");
        assert!(said.contains(line) && said.contains("tether-agent.socket"), "{what}: {said}");
    }
}

#[test]
fn what_is_handed_to_another_process_is_nobodys_and_what_nobody_knows_is_closed() {
    let dir = tempfile::tempdir().unwrap();
    let odd = UnixDatagram::unbound().unwrap();
    let mut agent = AgentProcess::handed(dir.path(), &[], &[], &[("odd", odd.as_fd())]);
    assert!(agent.log_line("is not used, and was closed").contains("odd"));
    let open = std::fs::read_link(format!("/proc/{}/fd/3", agent.id())).unwrap_or_default();
    assert_ne!(open, std::fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&odd))).unwrap());

    // Said to be for process 1, it is not for this one: the agent binds its own.
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join("s")).unwrap();
    let (mut command, env) = handing("1", &[("workload", listener.as_fd())], &[]);
    let run = command.env_clear().envs(env).args(["agent", "run", "--dev", "--dir"]).arg(dir.path().join("agent"));
    let mut child = run.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let said = crate::program::lines(child.stdout.take().unwrap());
    let ready = said.iter().any(|line| line == "ready");
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(ready, "it starts");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_tries_again_loses_nothing_over_crashes_and_the_ledger_has_all_it_got() {
    let dir = tempfile::tempdir().unwrap();
    let manager = Manager::with_sockets(dir.path());
    let (socket, admin) = (manager.workload(), manager.admin());
    let (mut agent, mut manager) = start(manager).await;
    let over = Arc::new(AtomicBool::new(false));
    let client = tokio::spawn({
        let over = over.clone();
        let mut workload = SpiffeWorkloadApiClient::with_interceptor(channel(&socket).await, Header);
        async move {
            let (mut got, mut failed) = (Vec::new(), Vec::new());
            while !over.load(Ordering::Relaxed) {
                let request = JwtsvidRequest { audience: vec!["a".to_owned()], ..JwtsvidRequest::default() };
                match within(workload.fetch_jwtsvid(request)).await {
                    Ok(answer) => got.push(answer.into_inner().svids.remove(0).svid),
                    Err(status) => failed.push(status.code()),
                }
            }
            (got, failed)
        }
    });
    let mut holder = tokio::task::spawn_blocking({
        let socket = socket.clone();
        move || Another::start(&socket)
    })
    .await
    .unwrap();
    let session = holder.ask("start t https://a/");
    let key = holder.hold_wit();
    for _ in 0..5 {
        // Something was given by this agent before it is killed.
        while !matches!(call(&socket).await, Answer::Heard) {}
        manager.kill(agent);
        (agent, manager) = start(manager).await;
    }
    over.store(true, Ordering::Relaxed);
    let (got, failed) = within(client).await.unwrap();
    let odd: Vec<_> = failed
        .iter()
        .filter(|code| !matches!(code, tonic::Code::Unavailable | tonic::Code::Unknown | tonic::Code::Cancelled))
        .collect();
    assert!(odd.is_empty(), "{odd:?}");
    let ledger = CredentialsClient::new(channel(&admin).await);
    let mut ledger = ledger.max_decoding_message_size(1 << 28);
    let all = ListCredentialsRequest { all: true, limit: 100_000, ..ListCredentialsRequest::default() };
    let listed = ledger.list(all).await.unwrap().into_inner().credentials;
    for token in &got {
        let jti = Jws::parse(token).unwrap().claims().unwrap()["jti"].as_str().unwrap().to_owned();
        assert!(listed.iter().any(|row| row.id == jti && row.reason.is_empty()), "{jti} was given and is not there");
    }
    assert_eq!(holder.hold_wit(), key, "held through five crashes");
    assert_eq!(holder.ask(&format!("state {session}")), "Active ");
    let verified = Command::new(env!("CARGO_BIN_EXE_tether"))
        .env_clear()
        .args(["audit", "verify", "--socket", admin.to_str().unwrap()])
        .output()
        .unwrap();
    assert!(verified.status.success(), "{verified:?}");
    drop(agent);
}

#[test]
fn a_program_in_a_session_proves_requests_with_the_same_key_after_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let mut manager = Manager::with_sockets(dir.path());
    let launcher = format!("sessions.launchers={}", env!("CARGO_BIN_EXE_tether"));
    manager.arguments = vec!["--set", Box::leak(launcher.into_boxed_str())];
    let agent = manager.start();
    let prove = "\"$T\" prove --method GET --uri https://a/";
    let mut run = Command::new(env!("CARGO_BIN_EXE_tether"))
        .args(["run", "--", "/bin/sh", "-c", &format!("{prove}; echo; read go; {prove}; echo")])
        .env_clear()
        .env("T", env!("CARGO_BIN_EXE_tether"))
        .env("SPIFFE_ENDPOINT_SOCKET", format!("unix://{}", manager.workload().display()))
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let said = crate::program::lines(run.stdout.take().unwrap());
    let key = |line: &str| {
        let document: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"));
        let wit = document["headers"]["Workload-Identity-Token"].as_str().expect("a token").to_owned();
        Jws::parse(&wit).unwrap().claims().unwrap()["cnf"].clone()
    };
    let proof = || said.iter().find(|line| !line.is_empty()).expect("it proves");
    let before = proof();
    manager.kill(agent);
    let _agent = manager.start();
    std::io::Write::write_all(&mut run.stdin.take().unwrap(), b"go\n").unwrap();
    assert_eq!(key(&proof()), key(&before));
    assert!(run.wait().unwrap().success());
}

#[test]
fn an_agent_whose_threads_hang_is_not_fed_while_the_process_still_runs() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut manager = Manager::with_sockets(dir.path());
    manager.env.push(("WATCHDOG_USEC", "400000"));
    let agent = manager.start();
    assert!(manager.until("READY=1").contains("STATUS=serving"));
    manager.until("WATCHDOG=1");
    // All but the first thread: what only looks whether the process runs would see nothing. Each is held where it is, as
    // by a lock that nobody lets go of.
    let threads = std::fs::read_dir(format!("/proc/{}/task", agent.id())).unwrap();
    let threads = threads.map(|thread| thread.unwrap().file_name().to_str().unwrap().parse().unwrap());
    let mut workers: Vec<i32> = threads.filter(|thread| *thread != agent.id().cast_signed()).collect();
    // One that had nothing left to do may have ended since.
    workers.retain(|worker| match ptrace::seize(Pid::from_raw(*worker), ptrace::Options::empty()) {
        Err(Errno::ESRCH) => false,
        seized => seized.map(|()| true).unwrap(),
    });
    for worker in &workers {
        ptrace::interrupt(Pid::from_raw(*worker)).unwrap();
        waitpid(Pid::from_raw(*worker), Some(WaitPidFlag::__WALL)).unwrap();
    }
    manager.settle();
    manager.wait_for(Duration::from_millis(800));
    // One may have been under way.
    let late = manager.next();
    let fed = late.is_some().then(|| manager.next()).flatten();
    for worker in &workers {
        ptrace::detach(Pid::from_raw(*worker), None).unwrap();
    }
    assert_eq!(fed, None);
    manager.wait_for(crate::harness::PATIENCE);
    manager.until("WATCHDOG=1");
}

/// Starts the agent off the threads that play its clients.
async fn start(mut manager: Manager) -> (AgentProcess, Manager) {
    tokio::task::spawn_blocking(move || (manager.start(), manager)).await.unwrap()
}
