//! Real sockets and real processes. What needs a caller of its own runs this test binary once more, as [`caller`].

mod connections;
mod instances;
mod plain;
mod searches;
mod shares;
mod tree;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex};

use super::*;
use crate::base::entropy::Entropy;
use crate::sys::Kernel;

/// What a client sends first (RFC 9113 section 3.4), with empty SETTINGS.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// The challenge in tests.
const CHALLENGE: [u8; 8] = *b"01234567";

fn all_kernels() -> [Kernel; 2] {
    [Kernel::probe(), Kernel::baseline()]
}

/// The refusals an observer was told of.
#[derive(Clone, Default)]
struct Refusals(Arc<Mutex<Vec<(Refusal, PeerInfo)>>>);

impl Refusals {
    fn observer(&self) -> Observer {
        let list = self.0.clone();
        Arc::new(move |refusal, info| list.lock().expect("unpoisoned").push((refusal.clone(), info.clone())))
    }

    fn labels(&self) -> Vec<&'static str> {
        self.0.lock().expect("unpoisoned").iter().map(|(refusal, _)| refusal.as_str()).collect()
    }
}

/// A listener in a directory of its own.
struct Fixture {
    listener: Listener,
    refusals: Refusals,
    instances: Instances,
    path: std::path::PathBuf,
    _dir: tempfile::TempDir,
}

impl Fixture {
    fn new(kernel: Kernel, limits: Limits) -> Self {
        Self::with(Instances::new(kernel).expect("proc is mounted"), limits)
    }

    fn with(instances: Instances, limits: Limits) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("s");
        let refusals = Refusals::default();
        let config = ListenerConfig {
            instances: instances.clone(),
            limits,
            observer: refusals.observer(),
            entropy: Entropy::from_fn(|buf| buf.copy_from_slice(&CHALLENGE)),
        };
        let listener = Listener::bind(&path, 0o666, config).expect("listening");
        Self { listener, refusals, instances, path, _dir: dir }
    }

    fn connect(&self) -> StdStream {
        StdStream::connect(&self.path).expect("connected")
    }

    async fn accept(&self) -> PeerStream {
        self.listener.accept().await.expect("accepted")
    }
}

/// A shell that becomes `cat` when it is told to.
struct Changeling {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Changeling {
    fn start() -> Self {
        let mut child = Command::new("sh")
            .args(["-c", "read line; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("sh starts");
        let stdin = child.stdin.take().expect("piped");
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        Self { child, stdin, stdout }
    }

    fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Returns once `cat` runs: it has answered.
    fn change(&mut self) {
        self.stdin.write_all(b"go\nhello\n").expect("written");
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("an answer");
        assert_eq!(line, "hello\n");
    }

    fn end(mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("reaped");
    }
}

/// Starts this test binary as [`caller`], which connects to `path` and does as `role` says. It waits for the end of its
/// standard input where its role says so.
fn start_caller(role: &str, path: &Path) -> Child {
    Command::new(std::env::current_exe().expect("our file"))
        .args(["--exact", "peer::tests::caller", "--nocapture"])
        .env(ROLE, role)
        .env(PATH, path)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("our file starts")
}

const ROLE: &str = "TETHER_TEST_CALLER_ROLE";
const PATH: &str = "TETHER_TEST_CALLER_PATH";

/// No test by itself: what [`start_caller`] runs.
#[test]
fn caller() {
    let (Ok(role), Ok(path)) = (std::env::var(ROLE), std::env::var(PATH)) else { return };
    let mut socket = StdStream::connect(path).expect("connected");
    socket.write_all(PREFACE).expect("written");
    let inherited = |socket: &StdStream| Stdio::from(OwnedFd::from(socket.try_clone().expect("cloned")));
    match role.as_str() {
        // Connects, leaves the connection to a child that only reads it, and exits when told to.
        "bequeath" => {
            let stdin = inherited(&socket);
            #[expect(clippy::zombie_processes, reason = "it has to outlive us")]
            let _heir = Command::new("cat")
                .stdin(stdin)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("cat starts");
            std::io::stdin().read_to_end(&mut Vec::new()).expect("told to exit");
        }
        // Says nothing more, and exits when told to.
        "stay" => {
            std::io::stdin().read_to_end(&mut Vec::new()).expect("told to exit");
        }
        // Becomes another program when it is told to, and then says something.
        "become" => {
            let mut line = String::new();
            std::io::stdin().read_line(&mut line).expect("told to");
            let error = Command::new("sh").args(["-c", "printf x; read line"]).stdout(inherited(&socket)).exec();
            panic!("sh starts: {error}");
        }
        // Reads the challenge, then lets another program give the answer, from the same process.
        "swap" => {
            let mut answer = read_challenge(&mut socket);
            answer[4] = 0x1;
            let octal: String = answer.iter().map(|byte| format!("\\{byte:03o}")).collect();
            // Standard input stays ours, a pipe that nobody writes to: the shell waits.
            let error = Command::new("sh")
                .args(["-c", &format!("printf '{octal}'; read line")])
                .stdout(inherited(&socket))
                .exec();
            panic!("sh starts: {error}");
        }
        other => panic!("no such role: {other}"),
    }
}

/// Reads frames until the PING, and returns it.
fn read_challenge(socket: &mut impl Read) -> Vec<u8> {
    loop {
        let mut frame = vec![0; 9];
        socket.read_exact(&mut frame).expect("a frame");
        frame.resize(9 + usize::from(frame[2]), 0);
        socket.read_exact(&mut frame[9..]).expect("a frame");
        if frame[3] == 0x6 {
            return frame;
        }
    }
}
