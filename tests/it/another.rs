//! Another process of the same user: these tests once more, which ask the agent for what they are told on standard input.

use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::Receiver;

use tether::proto::APPROVAL_METADATA;
use tether::proto::session::sessions_client::SessionsClient;
use tether::proto::session::{EndRequest, GetRequest, HoldWitRequest, MintRequest, OnBehalfOf, ProveRequest};
use tether::sys::PidFd;
use tonic::Status;

use crate::harness::{Header, PATIENCE, TestAgent, channel};
use crate::http::{ask, post};
use crate::program::{copy_program, lines};
use crate::sessions::task;

/// Where the other process finds the socket; without it there is nothing to play.
const SOCKET: &str = "TETHER_TEST_SOCKET";
const PLAYED_BY: &str = "another::these_tests_play_another_process";

/// A process that does as it is told; killed when this is dropped.
pub struct Another {
    child: Child,
    input: ChildStdin,
    answers: Receiver<String>,
}

impl Another {
    /// Starts it.
    pub fn start(socket: &Path) -> Self {
        Self::spawned(Command::new(std::env::current_exe().unwrap()), socket)
    }

    /// Starts it as another user, who can reach the agent's socket. Takes root.
    pub fn as_user(agent: &TestAgent, uid: u32) -> Self {
        // Wherever the build put it, the other user can execute this copy.
        let program = agent.dir().join("another");
        copy_program(&std::env::current_exe().unwrap(), &program);
        let mut command = Command::new(program);
        command.uid(uid).gid(uid).current_dir("/");
        Self::spawned(command, agent.socket())
    }

    fn spawned(mut command: Command, socket: &Path) -> Self {
        command.args(["--exact", PLAYED_BY, "--nocapture"]).env(SOCKET, socket);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("it starts");
        let (input, answers) = (child.stdin.take().unwrap(), lines(child.stderr.take().unwrap()));
        let mut another = Self { child, input, answers };
        assert_eq!(another.ask("begin"), "begun");
        another
    }

    /// Tells it what to do, and returns what it answers.
    pub fn ask(&mut self, what: &str) -> String {
        self.tell(what);
        self.answers.recv_timeout(PATIENCE).expect("it answers")
    }

    /// Tells it what to do.
    pub fn tell(&mut self, what: &str) {
        writeln!(self.input, "{what}").unwrap();
    }

    /// A WIT whose key is held for it: the key and the WIT.
    pub fn hold_wit(&mut self) -> (String, String) {
        let answer = self.ask("hold");
        let (key, wit) = answer.split_once(' ').unwrap_or_else(|| panic!("{answer}"));
        (key.to_owned(), wit.to_owned())
    }

    /// How a delegate names it.
    pub fn named(&self) -> OnBehalfOf {
        let pid = i32::try_from(self.child.id()).unwrap();
        OnBehalfOf { pid, pidfs_inode: PidFd::open(pid).unwrap().inode().unwrap(), weak: false }
    }

    /// Makes it run another program, and waits until it does.
    pub fn become_another_program(&mut self) {
        let program = format!("/proc/{}/exe", self.child.id());
        let before = std::fs::read_link(&program).unwrap();
        self.tell("exec");
        // In the middle of it the process has no program at all.
        while !std::fs::read_link(&program).is_ok_and(|now| now != before) {
            std::thread::yield_now();
        }
    }

    /// Ends it and waits until it is gone.
    pub fn end(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Another {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn these_tests_play_another_process() {
    let Ok(socket) = std::env::var(SOCKET) else { return };
    let mut sessions = SessionsClient::with_interceptor(channel(Path::new(&socket)).await, Header);
    let failed = |status: Status| format!("{:?} {}", status.code(), status.message());
    // On a thread of its own: the connection is served also while there is nothing to do, and closes when the agent stops.
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    std::thread::spawn(move || std::io::stdin().lines().map_while(Result::ok).try_for_each(|line| tell.send(line)));
    while let Some(line) = told.recv().await {
        let answer = match line.split(' ').collect::<Vec<_>>()[..] {
            ["begin"] => "begun".to_owned(),
            ["hold"] => match sessions.hold_wit(HoldWitRequest::default()).await {
                Ok(held) => format!("{} {}", held.get_ref().key, held.get_ref().wit_svid),
                Err(status) => failed(status),
            },
            ["prove", key, method, uri] => {
                let request = ProveRequest {
                    key: key.trim_start_matches('-').to_owned(),
                    method: method.to_owned(),
                    uri: uri.to_owned(),
                    ..ProveRequest::default()
                };
                match sessions.prove(request).await {
                    Ok(proven) => serde_json::to_string(&proven.get_ref().headers).unwrap(),
                    Err(status) => failed(status),
                }
            }
            ["start", purpose, target] => match sessions.start(task(purpose, &[target])).await {
                Ok(session) => session.get_ref().id.clone(),
                Err(status) => failed(status),
            },
            ["in", session, method, uri] => {
                let request = ProveRequest {
                    session: session.trim_start_matches('-').to_owned(),
                    method: method.to_owned(),
                    uri: uri.to_owned(),
                    ..ProveRequest::default()
                };
                match sessions.prove(request).await {
                    Ok(proven) => serde_json::to_string(&proven.get_ref().headers).unwrap(),
                    Err(status) => failed(status),
                }
            }
            ["tool", session, tool, method, uri] => {
                let request = ProveRequest {
                    session: session.to_owned(),
                    method: method.to_owned(),
                    uri: uri.to_owned(),
                    tool: tool.to_owned(),
                    rpc: "tools/call".to_owned(),
                    ..ProveRequest::default()
                };
                match sessions.prove(request).await {
                    Ok(proven) => serde_json::to_string(&proven.get_ref().headers).unwrap(),
                    Err(status) => match status.metadata().get(APPROVAL_METADATA) {
                        Some(approval) => format!("approval:{}", approval.to_str().unwrap()),
                        None => failed(status),
                    },
                }
            }
            ["mint", session, target] => {
                let (session, target) = (session.to_owned(), target.to_owned());
                match sessions.mint(MintRequest { session, target, ..MintRequest::default() }).await {
                    Ok(minted) => minted.get_ref().id.clone(),
                    Err(status) => failed(status),
                }
            }
            ["state", session] => {
                match sessions.get(GetRequest { session: session.to_owned(), ..Default::default() }).await {
                    Ok(session) => format!("{:?} {}", session.get_ref().state(), session.get_ref().end_reason),
                    Err(status) => failed(status),
                }
            }
            ["end", session] => match sessions.end(EndRequest { session: session.to_owned() }).await {
                Ok(receipt) => receipt.get_ref().end_reason.clone(),
                Err(status) => failed(status),
            },
            ["group", gid] => match nix::unistd::setgid(nix::unistd::Gid::from_raw(gid.parse().unwrap())) {
                Ok(()) => "done".to_owned(),
                Err(error) => error.to_string(),
            },
            ["user", uid] => match nix::unistd::setuid(nix::unistd::Uid::from_raw(uid.parse().unwrap())) {
                Ok(()) => "done".to_owned(),
                Err(error) => error.to_string(),
            },
            ["introspect", address, form] => ask(address.parse().unwrap(), &post(form)).await.body,
            ["exec"] => panic!("{}", Command::new("/bin/cat").exec()),
            _ => panic!("`{line}` is not understood"),
        };
        eprintln!("{answer}");
    }
}
