//! Held keys over a restart of the agent, with a service manager that keeps a descriptor for it and with none.

use std::fs::File;
use std::io::IoSliceMut;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use tether::proto::admin::ListCredentialsRequest;
use tether::proto::admin::credentials_client::CredentialsClient;
use tether::sys::memfd;

use crate::another::Another;
use crate::harness::{PATIENCE, channel};
use crate::program::AgentProcess;

const NAME: &str = "tether-held";

/// The part of a service manager that is notified, and stores what it is told to.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
    stored: Option<File>,
}

impl Manager {
    fn new(dir: &Path) -> Self {
        let path = dir.join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket, path, stored: None }
    }

    fn env(&self) -> [(&str, &str); 1] {
        [("NOTIFY_SOCKET", self.path.to_str().unwrap())]
    }

    /// Takes notifications until one of them is `wanted`.
    fn until(&mut self, wanted: &str) {
        while !self.next().expect("notified").contains(wanted) {}
    }

    /// Takes all notifications that were sent.
    fn drain(&mut self) {
        self.socket.set_nonblocking(true).unwrap();
        while self.next().is_some() {}
    }

    fn next(&mut self) -> Option<String> {
        let mut text = [0; 4096];
        let mut space = nix::cmsg_space!([i32; 4]);
        let mut buffers = [IoSliceMut::new(&mut text)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(self.socket.as_raw_fd(), &mut buffers, Some(&mut space), flags).ok()?;
        let mut sent = Vec::new();
        for control in message.cmsgs().unwrap() {
            if let ControlMessageOwned::ScmRights(fds) = control {
                // SAFETY: the kernel made these descriptors for this message, and nobody else knows of them.
                sent.extend(fds.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        let length = message.bytes;
        let text = String::from_utf8_lossy(&text[..length]).into_owned();
        let named = text.lines().any(|line| line == format!("FDNAME={NAME}"));
        match (text.lines().next(), named) {
            (Some("FDSTORE=1"), true) => self.stored = Some(File::from(sent.remove(0))),
            (Some("FDSTOREREMOVE=1"), true) => self.stored = None,
            _ => assert!(sent.is_empty(), "{text}"),
        }
        Some(text)
    }

    /// What is stored, as a path that another process of ours can open.
    fn kept(&self) -> PathBuf {
        let file = self.stored.as_ref().expect("something is stored");
        PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()))
    }
}

/// What another process gets once it has noticed that there is another agent.
fn prove(another: &mut Another, key: &str) -> String {
    loop {
        let answer = another.ask(&format!("prove {key} GET https://a/"));
        if !answer.starts_with("Unavailable") && !answer.starts_with("Unknown") && !answer.starts_with("Cancelled") {
            return answer;
        }
    }
}

#[test]
fn held_keys_survive_the_end_of_the_agent_in_a_sealed_file_for_processes_that_still_live() {
    for end in [Signal::SIGKILL, Signal::SIGTERM] {
        let dir = tempfile::tempdir().unwrap();
        let mut manager = Manager::new(dir.path());
        let agent = AgentProcess::start(dir.path(), &[], &manager.env());
        let (mut lives, mut dies) = (Another::start(&agent.workload()), Another::start(&agent.workload()));
        let (key, wit) = lives.hold_wit();
        manager.until("FDSTORE=1");
        dies.hold_wit();
        manager.until("FDSTORE=1");
        assert!(memfd::is_sealed(manager.stored.as_ref().unwrap()));
        if end == Signal::SIGTERM {
            agent.stop();
            manager.drain();
        } else {
            drop(agent);
        }
        dies.end();

        let mut agent = AgentProcess::with_kept(dir.path(), NAME, &manager.kept(), &manager.env());
        let log = agent.log_line("held keys from before the restart");
        assert!(log.contains("taken=1") && log.contains("of=2"), "{log}");
        let proven = prove(&mut lives, &key);
        assert!(proven.contains(&wit), "the same key and the same WIT: {proven}");
        assert_eq!(lives.hold_wit(), (key, wit));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_service_manager_held_keys_end_with_the_agent_and_the_ledger_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let agent = AgentProcess::start(dir.path(), &[], &[]);
    let mut another = Another::start(&agent.workload());
    let (key, _) = another.hold_wit();
    drop(agent);
    let agent = AgentProcess::start(dir.path(), &[], &[]);
    let refused = prove(&mut another, &key);
    assert!(refused.starts_with("PermissionDenied"), "{refused}");
    let mut ledger = CredentialsClient::new(channel(&agent.admin()).await);
    let all = ListCredentialsRequest { all: true, ..ListCredentialsRequest::default() };
    let list = ledger.list(all).await.unwrap().into_inner().credentials;
    let held: Vec<_> = list
        .iter()
        .filter(|credential| credential.binding.as_ref().is_some_and(|binding| binding.level == 3))
        .collect();
    assert_eq!(held.len(), 1);
    assert_eq!(held[0].reason, "agent_restart");
}

#[test]
fn a_session_goes_on_after_a_restart_with_the_same_key_if_the_agent_could_keep_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut manager = Manager::new(dir.path());
    let agent = AgentProcess::start(dir.path(), &[], &manager.env());
    let (mut lives, mut dies) = (Another::start(&agent.workload()), Another::start(&agent.workload()));
    let id = lives.ask("start t https://a/");
    let over = dies.ask("start t https://a/");
    let before = lives.ask(&format!("in {id} GET https://a/"));
    assert!(before.starts_with('{'), "{before}");
    agent.stop();
    manager.drain();
    dies.end();

    let _agent = AgentProcess::with_kept(dir.path(), NAME, &manager.kept(), &manager.env());
    let after = loop {
        let answer = lives.ask(&format!("in {id} GET https://a/"));
        if !answer.starts_with("Unavailable") && !answer.starts_with("Unknown") && !answer.starts_with("Cancelled") {
            break answer;
        }
    };
    assert_eq!(key_of(&after), key_of(&before), "one session is one key");
    assert_eq!(lives.ask(&format!("state {id}")), "Active ");
    assert_eq!(lives.ask(&format!("state {over}")), "Ended process_exit");
}

/// The key that the WIT among these headers names.
fn key_of(headers: &str) -> serde_json::Value {
    let headers: std::collections::HashMap<String, String> =
        serde_json::from_str(headers).unwrap_or_else(|_| panic!("{headers}"));
    let wit = tether::jwt::Jws::parse(&headers["Workload-Identity-Token"]).unwrap().claims().unwrap();
    wit["cnf"].clone()
}
