//! Where attacks take place: directories, programs, and processes with a line to the test.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::OnceLock;

use tempfile::TempDir;

use crate::{http2, roles};

/// A user that has nothing to do with the tests.
pub const NOBODY: u32 = 65534;
/// Names the directory with the copies of this program, for a process that plays a whole attack.
const PROGRAMS: &str = "TETHER_ATTACK_PROGRAMS";

/// Copies of this program: who tells programs apart by their file takes these for two. In a place that everybody
/// can reach.
#[derive(Debug)]
struct Programs(PathBuf);

static PROGRAMS_OF_THIS_RUN: OnceLock<Programs> = OnceLock::new();

/// Makes the programs. They are removed with the returned value.
pub fn prepare() -> Option<TempDir> {
    if let Some(inherited) = std::env::var_os(PROGRAMS) {
        PROGRAMS_OF_THIS_RUN.set(Programs(inherited.into())).unwrap();
        return None;
    }
    let dir = open_directory();
    let ourselves = std::env::current_exe().unwrap();
    for name in ["thief", "trusted", "tool"] {
        let program = dir.path().join(name);
        // What is for debuggers is most of it, and some attacks have the whole file hashed.
        let stripped = Command::new("strip").args(["--strip-debug", "-o"]).args([&program, &ourselves]).status();
        if stripped.is_ok_and(|status| status.success()) {
            open_to_all(&program);
        } else {
            copy(&ourselves, &program);
        }
    }
    PROGRAMS_OF_THIS_RUN.set(Programs(dir.path().to_owned())).unwrap();
    Some(dir)
}

/// Copies a program to where everybody may start it.
///
/// By another process: if we wrote the file, a child that another test forks meanwhile could hold it open for a moment,
/// in which it cannot be executed.
pub fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg(from).arg(to).status().unwrap().success());
    open_to_all(to);
}

fn open_directory() -> TempDir {
    let dir = tempfile::Builder::new().prefix("tether-attacks-").tempdir().unwrap();
    open_to_all(dir.path());
    dir
}

fn open_to_all(path: &Path) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// One attack's place.
pub struct Stage(TempDir);

impl Stage {
    pub fn new() -> Self {
        Self(open_directory())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn program(name: &str) -> PathBuf {
        PROGRAMS_OF_THIS_RUN.get().expect("made by main").0.join(name)
    }

    /// The attacker's program, which plays any role.
    pub fn thief(&self) -> PathBuf {
        Self::program("thief")
    }

    /// A trusted program that plays any role: a workload that can be registered by its path.
    pub fn trusted(&self) -> PathBuf {
        Self::program("trusted")
    }

    /// A program that serves requests and asks about their senders.
    pub fn tool(&self) -> PathBuf {
        Self::program("tool")
    }

    /// A trusted program that is no workload and does what it does: a copy of `cat`.
    pub fn trusted_cat(&self) -> PathBuf {
        let at = self.path("trusted-cat");
        if !at.exists() {
            copy(Path::new("/bin/cat"), &at);
        }
        at
    }
}

/// A process to be started in a role.
pub struct Actor {
    command: Command,
}

impl Actor {
    pub fn new(program: impl AsRef<Path>, role: &str) -> Self {
        let mut command = Command::new(program.as_ref());
        command.env(roles::ROLE, role);
        Self { command }
    }

    /// Runs under a command that sets something up first, such as unshare(1).
    pub fn under(command: &[&str], program: impl AsRef<Path>, role: &str) -> Self {
        let mut all = Command::new(command[0]);
        all.args(&command[1..]).arg(program.as_ref()).env(roles::ROLE, role);
        Self { command: all }
    }

    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.command.arg(argument);
        self
    }

    /// Makes another call than the usual one.
    pub fn calling(mut self, path: &str) -> Self {
        self.command.env(http2::CALL, path);
        self
    }

    /// Runs as somebody who is not root, where we are.
    pub fn unprivileged(mut self) -> Self {
        if nix::unistd::geteuid().is_root() {
            self.command.uid(NOBODY).gid(NOBODY);
        }
        self
    }

    pub fn start(mut self) -> Running {
        let programs = Stage::program("");
        self.command.env(PROGRAMS, programs);
        self.command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.command.spawn().unwrap_or_else(|error| panic!("{:?}: {error}", self.command));
        let (stdin, stdout) = (child.stdin.take(), BufReader::new(child.stdout.take().unwrap()));
        let stderr = BufReader::new(child.stderr.take().unwrap());
        Running { child, stdin, stdout, stderr }
    }
}

/// A process in a role. It is killed when the test lets go of it.
pub struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    stderr: BufReader<ChildStderr>,
}

impl Running {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line the process says.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        if self.stdout.read_line(&mut line).unwrap() == 0 {
            panic!("a process of the attack ended early: {}", self.complaints());
        }
        line.trim_end().to_owned()
    }

    /// What became of the attack: the next line.
    pub fn verdict(&mut self) -> String {
        self.line()
    }

    /// Waits until the process has become `cat`, which complains about a missing file.
    pub fn wait_for_swap(&mut self) {
        let mut line = String::new();
        self.stderr.read_line(&mut line).unwrap();
        assert!(line.contains("No such file"), "the process becomes another program: {line} {}", self.complaints());
    }

    /// Tells the process something: a line.
    pub fn tell(&mut self, line: &str) {
        use std::io::Write;
        writeln!(self.stdin.as_mut().expect("it listens"), "{line}").expect("the process is there");
    }

    /// Kills the process and waits until it is gone.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Tells the process to go on.
    pub fn go_on(&mut self) {
        self.stdin = None;
    }

    pub fn wait_for_exit(&mut self) {
        self.go_on();
        self.child.wait().unwrap();
    }

    /// The pipes to and from a process that is used as one.
    pub fn pipes(&mut self) -> (ChildStdin, &mut BufReader<ChildStdout>) {
        (self.stdin.take().unwrap(), &mut self.stdout)
    }

    fn complaints(&mut self) -> String {
        let _ = self.child.kill();
        let mut text = String::new();
        let _ = self.stderr.read_to_string(&mut text);
        text
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}
