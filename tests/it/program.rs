//! The built binary as a process of its own: for signals, logs and other users.

use std::io::{BufRead, BufReader, Read};
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::PATIENCE;

/// The user `nobody`, who has no role anywhere.
pub const NOBODY: u32 = 65534;

/// Whether the tests run as root and can act as another user.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Copies a program to where all users can run it. By another process: a child that some other test starts meanwhile would
/// inherit the file that is being written, and what is open for writing cannot be run.
pub fn copy_program(program: &Path, to: &Path) {
    let copied = Command::new("install").args(["-m", "0755"]).args([program, to]).status().expect("install is there");
    assert!(copied.success(), "the program is copied");
}

/// The binary, where other users can reach it.
pub struct Program(PathBuf);

impl Program {
    /// Copies it: the directory it was built in may be closed to others.
    pub fn copied_to(dir: &Path) -> Self {
        let path = dir.join("tether");
        copy_program(Path::new(env!("CARGO_BIN_EXE_tether")), &path);
        Self(path)
    }

    /// A command that runs as `uid` and that group alone. Takes root.
    pub fn as_user(&self, uid: u32, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.0);
        command.env_clear().current_dir("/").args(arguments).uid(uid).gid(uid).stdin(Stdio::null());
        command
    }
}

/// An agent process started with `--dev`; killed when this is dropped.
pub struct AgentProcess {
    child: Child,
    dir: PathBuf,
    log: Receiver<String>,
    logged: Vec<String>,
}

impl AgentProcess {
    /// Starts it in `dir` with more arguments and environment, and waits until it is ready.
    pub fn start(dir: &Path, arguments: &[&str], env: &[(&str, &str)]) -> Self {
        Self::run(Command::new(env!("CARGO_BIN_EXE_tether")), dir, arguments, env)
    }

    /// Starts it with a hard limit of open files.
    pub fn with_open_files(dir: &Path, limit: u64) -> Self {
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", &format!("ulimit -n {limit} && exec \"$0\" \"$@\""), env!("CARGO_BIN_EXE_tether")]);
        Self::run(shell, dir, &[], &[])
    }

    /// Starts it in a network namespace. Takes root.
    pub fn in_network(namespace: &str, dir: &Path, arguments: &[&str]) -> Self {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{namespace}")).arg(env!("CARGO_BIN_EXE_tether"));
        Self::run(command, dir, arguments, &[("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")])
    }

    /// Starts it as a service manager does, with descriptors by name (sd_listen_fds(3)).
    pub fn handed(dir: &Path, arguments: &[&str], env: &[(&str, &str)], handed: &[(&str, BorrowedFd<'_>)]) -> Self {
        let (command, env) = handing("$$", handed, env);
        let env: Vec<_> = env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        Self::run(command, dir, arguments, &env)
    }

    /// The same for what is to be refused: how it ended, and what it said.
    pub fn refusing(dir: &Path, arguments: &[&str], handed: &[(&str, BorrowedFd<'_>)]) -> (ExitStatus, String) {
        let (mut command, env) = handing("$$", handed, &[]);
        command.env_clear().envs(env).args(["agent", "run", "--dev", "--dir"]).arg(dir.join("agent")).args(arguments);
        let output = command.stdin(Stdio::null()).output().expect("it starts");
        (output.status, String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// Starts it with its audit log on a file system of its own of this size, which nobody else sees. Takes root.
    pub fn with_small_audit_disk(dir: &Path, size: &str) -> Self {
        let audit = dir.join("audit");
        std::fs::create_dir(&audit).expect("created");
        let audit = audit.to_str().expect("a path of ours");
        let script = "exec unshare --mount sh -c \
            'mount -t tmpfs -o size=$SIZE,mode=0700 tmpfs \"$AUDIT\" && exec \"$0\" \"$@\"' \"$0\" \"$@\"";
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", script, env!("CARGO_BIN_EXE_tether")]);
        let setting = format!("audit.dir={audit}");
        Self::run(shell, dir, &["--set", &setting], &[("SIZE", size), ("AUDIT", audit)])
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// A path as this process sees it.
    pub fn sees(&self, path: &Path) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.child.id()));
        root.join(path.strip_prefix("/").expect("an absolute path"))
    }

    fn run(mut command: Command, dir: &Path, arguments: &[&str], env: &[(&str, &str)]) -> Self {
        let dir = dir.join("agent");
        command
            .env_clear()
            .envs(env.iter().copied())
            .args(["agent", "run", "--dev", "--dir"])
            .arg(&dir)
            .args(arguments);
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
        let log = lines(child.stderr.take().expect("piped"));
        let printed = lines(child.stdout.take().expect("piped"));
        let mut agent = Self { child, dir, log, logged: Vec::new() };
        while let Ok(line) = printed.recv_timeout(PATIENCE) {
            if line == "ready" {
                return agent;
            }
        }
        agent.log_until_end();
        panic!("it did not get ready: {:#?}", agent.logged);
    }

    /// The workload socket.
    pub fn workload(&self) -> PathBuf {
        self.dir.join("workload/workload.sock")
    }

    /// The admin socket.
    pub fn admin(&self) -> PathBuf {
        self.dir.join("admin/admin.sock")
    }

    /// Its directory for entries.
    pub fn entries(&self) -> PathBuf {
        self.dir.join("entries.d")
    }

    /// Its state directory.
    pub fn state(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// Kills it, and waits until it is gone.
    pub fn kill(mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ends");
    }

    /// Its process number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).expect("it runs");
    }

    /// The next line of the log that contains `wanted`.
    pub fn log_line(&mut self, wanted: &str) -> String {
        while let Ok(line) = self.log.recv_timeout(PATIENCE) {
            self.logged.push(line.clone());
            if line.contains(wanted) {
                return line;
            }
        }
        panic!("`{wanted}` was not logged: {:#?}", self.logged);
    }

    /// Sends SIGTERM and waits: how it ended, and everything it logged.
    pub fn stop(mut self) -> (ExitStatus, String) {
        self.signal(Signal::SIGTERM);
        let status = self.child.wait().expect("it ends");
        self.log_until_end();
        (status, self.logged.join("\n"))
    }

    fn log_until_end(&mut self) {
        let _ = self.child.kill();
        self.logged.extend(self.log.iter());
    }
}

impl Drop for AgentProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A command that is handed descriptors, and the environment that says so to the process `for_pid`.
pub fn handing(
    for_pid: &str,
    handed: &[(&str, BorrowedFd<'_>)],
    env: &[(&str, &str)],
) -> (Command, Vec<(String, String)>) {
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", &format!("LISTEN_PID={for_pid} exec \"$0\" \"$@\""), env!("CARGO_BIN_EXE_tether")]);
    let mut env: Vec<_> = env.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
    if !handed.is_empty() {
        let names: Vec<_> = handed.iter().map(|(name, _)| *name).collect();
        env.push(("LISTEN_FDS".to_owned(), handed.len().to_string()));
        env.push(("LISTEN_FDNAMES".to_owned(), names.join(":")));
    }
    let mut descriptors: Vec<_> = handed.iter().map(|(_, descriptor)| descriptor.as_raw_fd()).collect();
    let place = move || {
        // First out of the way, so that none is overwritten before it is in its place.
        for descriptor in &mut descriptors {
            // SAFETY: a call that is safe between fork and exec.
            *descriptor = Errno::result(unsafe { libc::fcntl(*descriptor, libc::F_DUPFD_CLOEXEC, 100) })?;
        }
        for (place, descriptor) in (3..).zip(&descriptors) {
            // SAFETY: as above. What was at that place belongs to nobody in the program that is run.
            Errno::result(unsafe { libc::dup2(*descriptor, place) })?;
        }
        Ok(())
    };
    // SAFETY: the closure allocates nothing and makes no call but these two. The descriptors are open until the child is
    // started, for they are borrowed from whoever starts it.
    unsafe { shell.pre_exec(place) };
    (shell, env)
}

/// The lines of a pipe as they come, until its end.
pub fn lines(pipe: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}
