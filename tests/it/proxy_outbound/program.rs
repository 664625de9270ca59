//! A program that knows nothing of SPIFFE: these tests once more, as another process, which speaks HTTP as it is told on
//! standard input.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::Receiver;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use serde_json::{Value, json};
use tether::client::Endpoint;
use tether::client::session::{NewSession, SessionClient};

use super::world::{Proxy, World};
use crate::harness::PATIENCE;
use crate::program::lines;

/// Where the agent is; without it there is nothing to play.
const AGENT: &str = "TETHER_TEST_PROXY_AGENT";
const PLAYED_BY: &str = "proxy_outbound::program::these_tests_play_a_program";

/// Does as it is told; killed when this is dropped.
pub struct Program {
    child: Child,
    input: ChildStdin,
    answers: Receiver<String>,
}

/// An answer that a program got.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u64,
    pub body: String,
}

impl Answer {
    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("{self:?}"))
    }
}

impl Program {
    /// Starts the program `name`, and connects it.
    pub fn connected(world: &World, name: &str, proxy: &Proxy) -> Self {
        let mut program = Self::start(Command::new(world.program(name)), world.agent.socket());
        program.connect(&proxy.address);
        program
    }

    /// The same as another user. Takes root.
    pub fn of_user(world: &World, name: &str, uid: u32, proxy: &Proxy) -> Self {
        let mut command = Command::new(world.program(name));
        command.uid(uid).gid(uid).current_dir("/");
        let mut program = Self::start(command, world.agent.socket());
        program.connect(&proxy.address);
        program
    }

    fn start(mut command: Command, agent: &Path) -> Self {
        command.args(["--exact", PLAYED_BY, "--nocapture"]).env(AGENT, agent);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("it starts");
        let (input, answers) = (child.stdin.take().unwrap(), lines(child.stderr.take().unwrap()));
        Self { child, input, answers }
    }

    pub fn connect(&mut self, address: &str) {
        assert_eq!(self.ask(json!({ "connect": address })), "connected");
    }

    pub fn tell(&mut self, what: Value) {
        writeln!(self.input, "{what}").unwrap();
    }

    pub fn ask(&mut self, what: Value) -> String {
        self.tell(what);
        self.answered()
    }

    /// What it answers to what it was told.
    pub fn answered(&mut self) -> String {
        tokio::task::block_in_place(|| self.answers.recv_timeout(PATIENCE)).expect("it answers")
    }

    /// Sends these bytes and reads an answer.
    pub fn exchange(&mut self, request: &str) -> Answer {
        let answer: Value = serde_json::from_str(&self.ask(json!({ "exchange": request }))).unwrap();
        Answer { status: answer["status"].as_u64().unwrap(), body: answer["body"].as_str().unwrap().to_owned() }
    }

    /// The answer to a request without a body.
    pub fn call(&mut self, method: &str, path: &str) -> Answer {
        self.exchange(&request(method, path))
    }

    /// Begins to read an answer that does not end.
    pub fn begin_endless(&mut self) {
        assert_eq!(self.ask(json!({ "begin": request("GET", "/endless") })), "begun");
    }

    /// Returns when its connection is closed.
    pub fn is_cut(&mut self) {
        assert_eq!(self.ask(json!({ "until_closed": true })), "closed");
    }

    /// Begins a session for this target.
    pub fn start_session(&mut self, target: &str) -> String {
        self.ask(json!({ "start": target }))
    }

    pub fn end_session(&mut self, id: &str) {
        assert_eq!(self.ask(json!({ "end": id })), "ended");
    }

    /// Makes it run a copy of `cat` that does nothing, and waits until it does.
    pub fn become_trusted(&mut self, trusted: &Path) {
        self.tell(json!({ "become": { "program": trusted } }));
        let program = format!("/proc/{}/exe", self.child.id());
        // In the middle of it the process has no program at all.
        while !std::fs::read_link(&program).is_ok_and(|now| now == trusted) {
            std::thread::yield_now();
        }
    }

    /// Kills it.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn request(method: &str, path: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")
}

trait Connection: Read + Write + AsFd {}
impl<C: Read + Write + AsFd> Connection for C {}

#[tokio::test]
async fn these_tests_play_a_program() {
    let Ok(agent) = std::env::var(AGENT) else { return };
    let mut connection: Option<Box<dyn Connection>> = None;
    for line in std::io::stdin().lines().map_while(Result::ok) {
        let told: Value = serde_json::from_str(&line).unwrap();
        let (what, how) = told.as_object().unwrap().iter().next().unwrap();
        let text = how.as_str().unwrap_or_default();
        let answer = match what.as_str() {
            "connect" => {
                connection = Some(match text.starts_with('/') {
                    true => Box::new(UnixStream::connect(text).unwrap()),
                    false => Box::new(TcpStream::connect(text).unwrap()),
                });
                "connected".to_owned()
            }
            "start" => {
                let sessions = SessionClient::new(Endpoint::Unix(agent.clone().into()));
                sessions.start(&NewSession::new("test", text)).await.unwrap().id
            }
            "end" => {
                let sessions = SessionClient::new(Endpoint::Unix(agent.clone().into()));
                sessions.end(Some(text)).await.unwrap();
                "ended".to_owned()
            }
            with_connection => play(with_connection, how, connection.as_mut().expect("it is connected").as_mut()),
        };
        eprintln!("{answer}");
    }
}

fn play(what: &str, how: &Value, connection: &mut dyn Connection) -> String {
    let text = how.as_str().unwrap_or_default();
    match what {
        "exchange" => {
            // One that is refused may be closed before everything was written.
            let _ = connection.write_all(text.as_bytes());
            read_answer(connection)
        }
        "send" => {
            connection.write_all(text.as_bytes()).unwrap();
            "sent".to_owned()
        }
        "begin" => {
            connection.write_all(text.as_bytes()).unwrap();
            read_until(connection, "begun");
            "begun".to_owned()
        }
        "until_closed" => {
            let mut buffer = [0; 1024];
            while connection.read(&mut buffer).is_ok_and(|count| count > 0) {}
            "closed".to_owned()
        }
        // A child that has this connection as its standard output.
        "hand_over" => {
            let handed = connection.as_fd().try_clone_to_owned().unwrap();
            let status = Command::new("printf").args(["%s", text]).stdout(handed).status().unwrap();
            format!("{}", status.success())
        }
        "keep_over_exec" => {
            fcntl(connection.as_fd(), FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
            "kept".to_owned()
        }
        // Becomes `cat`: of a file to this connection, or of nothing for as long as it lives.
        "become" => {
            let out: OwnedFd = connection.as_fd().try_clone_to_owned().unwrap();
            let mut command = Command::new(how["program"].as_str().unwrap());
            match how["file"].as_str() {
                // And lives on.
                Some(file) => command.args([file, "-"]).stdout(out),
                None => command.arg("-"),
            };
            panic!("{}", command.exec())
        }
        _ => panic!("`{what}` is not understood"),
    }
}

fn read_until(connection: &mut dyn Connection, wanted: &str) -> String {
    let (mut read, mut byte) = (Vec::new(), [0]);
    while !String::from_utf8_lossy(&read).contains(wanted) {
        match connection.read(&mut byte) {
            Ok(1) => read.push(byte[0]),
            _ => break,
        }
    }
    String::from_utf8(read).unwrap()
}

/// Status 0 when the connection was closed instead.
fn read_answer(connection: &mut dyn Connection) -> String {
    let head = read_until(connection, "\r\n\r\n");
    let status: u64 = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default();
    let length =
        head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length:").map(str::to_owned));
    let mut body = vec![0; length.and_then(|length| length.trim().parse().ok()).unwrap_or_default()];
    connection.read_exact(&mut body).unwrap();
    json!({ "status": status, "body": String::from_utf8_lossy(&body) }).to_string()
}
