//! Processes of a bench: the agent, the baseline server, and clients that must be processes of their own.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use super::Result;

/// A process that says `ready` and is killed when this is dropped.
pub struct Process {
    child: Child,
    output: BufReader<ChildStdout>,
    /// From just before `exec` to the line `ready`.
    pub ready_after: Duration,
}

impl Process {
    /// Starts `command` and waits for its line `ready`.
    pub fn start(command: &mut Command) -> Result<Self> {
        let begun = Instant::now();
        let mut this = Self::spawn(command)?;
        while this.line()? != "ready" {}
        this.ready_after = begun.elapsed();
        Ok(this)
    }

    /// Starts `command` and waits for nothing.
    pub fn spawn(command: &mut Command) -> Result<Self> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let output = BufReader::new(child.stdout.take().ok_or("a child without output")?);
        Ok(Self { child, output, ready_after: Duration::ZERO })
    }

    /// This program in another role.
    pub fn role(arguments: &[&str]) -> Result<Command> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("--role").args(arguments);
        Ok(command)
    }

    /// The next line it prints.
    pub fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.output.read_line(&mut line)? == 0 {
            return Err(format!("process {} ended unexpectedly", self.id()).into());
        }
        Ok(line.trim_end().to_owned())
    }

    /// Sends it a line.
    pub fn tell(&mut self, line: &str) -> Result<()> {
        let input = self.child.stdin.as_mut().ok_or("a child without input")?;
        Ok(writeln!(input, "{line}")?)
    }

    /// Kills it, and returns when it has ended.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it holds in memory, in bytes.
    pub fn resident(&self) -> Result<u64> {
        resident(self.id())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a process holds in memory, in bytes: `VmRSS`.
pub fn resident(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib * 1024)
}

/// The baseline server in a directory of its own.
pub struct EmptyServer {
    /// The process.
    pub process: Process,
    /// Where it listens.
    pub socket: PathBuf,
    _dir: tempfile::TempDir,
}

impl EmptyServer {
    /// Starts it.
    pub fn start() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let socket = dir.path().join("empty.sock");
        let process = Process::start(&mut Process::role(&["empty", &socket.display().to_string()])?)?;
        Ok(Self { process, socket, _dir: dir })
    }
}

/// The agent as a process, in a directory of its own.
pub struct Agent {
    /// The process.
    pub process: Process,
    dir: tempfile::TempDir,
}

/// The agent's program: the one built with this bench, or what `TETHER_BENCH_AGENT` names, to compare builds.
pub fn tether() -> PathBuf {
    std::env::var_os("TETHER_BENCH_AGENT").map_or_else(|| env!("CARGO_BIN_EXE_tether").into(), PathBuf::from)
}

impl Agent {
    /// Starts an agent with these entries; `settings` are `section.key=value`.
    pub fn start(entries: &str, settings: &[&str]) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().display();
        std::fs::create_dir(dir.path().join("entries.d"))?;
        std::fs::write(dir.path().join("entries.d/bench.toml"), entries)?;
        std::fs::create_dir(dir.path().join("policies"))?;
        let config = format!(
            "trust_domain = \"bench.example\"\nstate_dir = \"{path}/state\"\nentries_dir = \"{path}/entries.d\"\n\
             policies_dir = \"{path}/policies\"\n\
             [listen]\nworkload = \"{path}/workload/workload.sock\"\nadmin = \"{path}/admin/admin.sock\"\n\
             [admin]\nviewers = []\noperators = []\napprovers = []\n[log]\nlevel = \"error\"\n"
        );
        std::fs::write(dir.path().join("tether.toml"), config)?;
        let process = Self::run(dir.path(), settings)?;
        Ok(Self { process, dir })
    }

    fn run(dir: &Path, settings: &[&str]) -> Result<Process> {
        let mut command = Command::new(tether());
        command.args(["agent", "run", "--config"]).arg(dir.join("tether.toml"));
        for setting in settings {
            command.args(["--set", setting]);
        }
        // The audit goes there, a line for every SVID.
        command.stderr(std::fs::File::create(dir.join("agent.log"))?);
        Process::start(&mut command)
    }

    /// Ends it at once and starts it again where it was.
    pub fn restart(&mut self) -> Result<()> {
        self.process.child.kill()?;
        self.process.child.wait()?;
        self.process = Self::run(self.dir.path(), &[])?;
        Ok(())
    }

    /// The workload socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("workload/workload.sock")
    }

    /// The admin socket.
    pub fn admin_socket(&self) -> PathBuf {
        self.dir.path().join("admin/admin.sock")
    }

    /// Where its entries are.
    pub fn entries_dir(&self) -> PathBuf {
        self.dir.path().join("entries.d")
    }
}

/// An entry for whoever runs this bench.
pub fn entry_for_me() -> String {
    let uid = nix::unistd::geteuid();
    entry(&[format!("unix:uid:{uid}")], "")
}

/// An entry for this very program, by path and digest as well.
pub fn entry_for_this_program() -> Result<String> {
    let uid = nix::unistd::geteuid();
    let program = std::env::current_exe()?;
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &std::fs::read(&program)?);
    let digest: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let path = format!("unix:path:{}", program.display());
    Ok(entry(&[format!("unix:uid:{uid}"), path, format!("unix:sha256:{digest}")], ""))
}

/// An entry with these selectors, and more fields.
pub fn entry(selectors: &[String], more: &str) -> String {
    format!(
        "[[entry]]\nid = \"bench\"\nspiffe_id = \"spiffe://bench.example/bench\"\nmatch = {selectors:?}\n\
         owner = \"bench@bench.example\"\naudiences = [\"*\"]\n{more}\n"
    )
}
