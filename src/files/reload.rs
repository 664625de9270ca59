//! Telling a program that its files are others: by a signal, a command, or its systemd unit.

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use thiserror::Error;

use super::systemd;
use crate::base::durable;
use crate::base::files::aside;
use crate::base::text::is_hidden;
use crate::sys::procfs::ProcDir;
use crate::sys::{PidFd, WatchedPidFd};

/// The longest file with a number in it. PostgreSQL has more lines below it.
const MAX_PID_FILE: u64 = 4096;
/// Longer than any `status` of a process.
const MAX_STATUS: u64 = 1 << 20;
/// So much of what a command printed is told, its end.
const MAX_PRINTED: usize = 2048;
/// How long a command that was started has to end when it is told to.
const GRACE: Duration = Duration::from_secs(10);
/// What is not handed on to commands: they would speak to systemd in our name.
const OURS: [&str; 5] = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID"];

/// How a program is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reload {
    /// A signal to the process whose number is in a file.
    Signal {
        /// The signal.
        signal: Signal,
        /// The file.
        pid_file: PathBuf,
        /// The name that the process must have (`comm`), where one is given.
        process: Option<String>,
    },
    /// A command, which ends.
    Exec {
        /// Program and arguments; no shell.
        argv: Vec<OsString>,
        /// How long it may take.
        timeout: Duration,
    },
    /// A systemd unit that is reloaded, or restarted where it cannot be, if it runs.
    Unit(String),
    /// A command that goes on: it is started, and told by a signal from then on; when it has ended it is started again by
    /// the next change. Its input and output are ours, as with spiffe-helper.
    Child {
        /// Program and arguments; no shell.
        argv: Vec<OsString>,
        /// The signal, where it can be told.
        signal: Option<Signal>,
    },
}

/// Why a program could not be told. It is tried again.
#[derive(Debug, Error)]
pub enum ReloadError {
    /// The file with the number cannot be read: the program has not been started yet, or has ended.
    #[error("the file `{}` with the number of the process cannot be read", path.display())]
    PidFile {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is no number in the file.
    #[error("there is no number of a process in `{}`", .0.display())]
    NoPid(PathBuf),
    /// Whoever may write to it could have any process of ours signalled.
    #[error("`{}` can be written to by others than root, us and the process it names: its number is not believed", .0.display())]
    Untrusted(PathBuf),
    /// No process has the number, or another than the file meant.
    #[error("process {0} is gone, or the number is another's by now")]
    Gone(i32),
    /// The process has another name than it must have.
    #[error("process {pid} is `{found}` and not `{wanted}`: the number is another's by now")]
    OtherProgram {
        /// Its number.
        pid: i32,
        /// Its name.
        found: String,
        /// What it should be.
        wanted: String,
    },
    /// The process would be ended by the signal.
    #[error("process {pid} does not handle {signal} and would be ended by it, or ignore it: nothing was sent")]
    Unhandled {
        /// Its number.
        pid: i32,
        /// The signal.
        signal: Signal,
    },
    /// The kernel does not let us.
    #[error("the signal cannot be sent to process {pid}")]
    Send {
        /// Its number.
        pid: i32,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A command cannot be started.
    #[error("`{program}` cannot be started")]
    Start {
        /// Which.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A command has failed.
    #[error("`{program}` {how}{printed}")]
    Failed {
        /// Which.
        program: String,
        /// Its end.
        how: String,
        /// What it printed last, if anything.
        printed: String,
    },
    /// A command took too long and was stopped.
    #[error("`{program}` took longer than {} seconds and was stopped", timeout.as_secs())]
    Late {
        /// Which.
        program: String,
        /// What it had.
        timeout: Duration,
    },
    /// A running command cannot be told.
    #[error("`{0}` goes on with the files it has read: there is no `renew_signal` to tell it by")]
    NoSignal(String),
    /// systemd did not do it.
    #[error(transparent)]
    Systemd(#[from] systemd::UnitError),
}

/// How one program is told, with what was started for it.
#[derive(Debug)]
pub(super) struct Teller {
    how: Reload,
    child: Option<Started>,
}

impl Teller {
    pub(super) fn new(how: Reload) -> Self {
        Self { how, child: None }
    }

    /// Tells it, and says what was done.
    pub(super) async fn tell(&mut self) -> Result<String, ReloadError> {
        match &self.how {
            Reload::Signal { signal, pid_file, process } => send(*signal, pid_file, process.as_deref()),
            Reload::Exec { argv, timeout } => run(argv, *timeout).await,
            Reload::Unit(unit) => Ok(systemd::reload(unit, None).await?),
            Reload::Child { argv, signal } => match self.child.as_ref().filter(|child| child.runs()) {
                Some(child) => child.signal(*signal),
                None => {
                    let child = Started::new(argv, command(argv)?)?;
                    let told = format!("started `{}`", child.program);
                    self.child = Some(child);
                    Ok(told)
                }
            },
        }
    }

    /// Waits for the end of what was started; for ever, where nothing was. Dropping the future loses nothing.
    pub(super) async fn ended(&mut self) -> String {
        let Some(child) = &mut self.child else { return std::future::pending().await };
        let how = child.ended().await;
        let program = std::mem::take(&mut child.program);
        self.child = None;
        format!("`{program}` {how}; it is started again with the next files")
    }

    /// Ends what was started.
    pub(super) async fn stop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        // One that is gone needs no telling; one that does not go is stopped by being dropped.
        let _ = child.handle.pidfd().signal(Signal::SIGTERM);
        let _ = tokio::time::timeout(GRACE, child.ended()).await;
    }
}

/// A command that was started; dropped, it is killed with what it has started in its process group.
#[derive(Debug)]
struct Started {
    program: String,
    child: Child,
    handle: WatchedPidFd,
    /// Whether its process group ends with it. Only as long as it is not collected.
    group: bool,
}

impl Started {
    fn new(argv: &[OsString], mut command: Command) -> Result<Self, ReloadError> {
        let program = shown(argv);
        let failed = |source| ReloadError::Start { program: program.clone(), source };
        let mut child = command.spawn().map_err(failed)?;
        // It is our child and not waited for: nobody else has its number.
        let handle = PidFd::open(child.id().cast_signed()).and_then(WatchedPidFd::new).map_err(|error| {
            let _ = child.kill();
            let _ = child.wait();
            failed(error)
        })?;
        Ok(Self { program, child, handle, group: false })
    }

    fn runs(&self) -> bool {
        self.handle.pidfd().is_alive()
    }

    fn signal(&self, signal: Option<Signal>) -> Result<String, ReloadError> {
        let Some(signal) = signal else { return Err(ReloadError::NoSignal(self.program.clone())) };
        let pid = self.child.id().cast_signed();
        self.handle.pidfd().signal(signal).map_err(|source| ReloadError::Send { pid, source })?;
        Ok(format!("sent {signal} to `{}`", self.program))
    }

    async fn status(&mut self) -> io::Result<ExitStatus> {
        self.handle.exited().await;
        self.child.wait()
    }

    async fn ended(&mut self) -> String {
        match self.status().await {
            Ok(status) => describe(status),
            Err(error) => format!("can no longer be waited for: {error}"),
        }
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        if self.group {
            // None of them may be left. It is not collected (see `run`), so the number of the group is no other's.
            let _ = killpg(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGKILL);
        }
        if self.runs() {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}

/// Sends a signal to the process whose number is in a file.
///
/// The process is held first and looked at then: what is found out is about the process that gets the signal. It must be
/// of the user who could have written the number (or the file is root's or ours), have the name that is wanted, and handle
/// the signal. A number that was given to another process of the same user, which handles the signal too, and has no or the
/// same name, cannot be told from the right one.
fn send(signal: Signal, path: &Path, wanted: Option<&str>) -> Result<String, ReloadError> {
    let pid = pid_in(path)?;
    let gone = |_| ReloadError::Gone(pid);
    let pidfd = PidFd::open(pid).map_err(gone)?;
    let status = ProcDir::open(pid).and_then(|dir| dir.read("status", MAX_STATUS)).map_err(gone)?;
    let status = Status::parse(&status).ok_or(ReloadError::Gone(pid))?;
    if !pidfd.is_alive() || pid_in(path)? != pid {
        return Err(ReloadError::Gone(pid));
    }
    let meta = std::fs::metadata(path).map_err(|source| ReloadError::PidFile { path: path.to_owned(), source })?;
    let writers = [0, nix::unistd::geteuid().as_raw(), status.uid];
    if !writers.contains(&meta.uid()) || meta.mode() & 0o002 != 0 {
        return Err(ReloadError::Untrusted(path.to_owned()));
    }
    if let Some(wanted) = wanted.filter(|wanted| *wanted != status.name) {
        return Err(ReloadError::OtherProgram { pid, found: status.name, wanted: wanted.to_owned() });
    }
    if !status.handles(signal) {
        return Err(ReloadError::Unhandled { pid, signal });
    }
    pidfd.signal(signal).map_err(|source| ReloadError::Send { pid, source })?;
    Ok(format!("sent {signal} to process {pid} (`{}`)", status.name))
}

/// The number in the first line.
fn pid_in(path: &Path) -> Result<i32, ReloadError> {
    let content = durable::read(path, MAX_PID_FILE).map_err(|error| {
        let source = match error {
            durable::DurableError::Io { source, .. } => source,
            other => io::Error::other(other),
        };
        ReloadError::PidFile { path: path.to_owned(), source }
    })?;
    let text = String::from_utf8_lossy(&content);
    let pid = text.lines().next().and_then(|line| line.trim().parse().ok()).filter(|pid| *pid > 1);
    pid.ok_or_else(|| ReloadError::NoPid(path.to_owned()))
}

/// What of `/proc/PID/status` matters here.
struct Status {
    name: String,
    uid: u32,
    caught: u64,
}

impl Status {
    fn parse(content: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(content);
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
        Some(Self {
            name: field("Name:")?.trim().to_owned(),
            uid: field("Uid:")?.split_ascii_whitespace().nth(1)?.parse().ok()?,
            caught: u64::from_str_radix(field("SigCgt:")?.trim(), 16).ok()?,
        })
    }

    fn handles(&self, signal: Signal) -> bool {
        self.caught >> (signal as i32 - 1) & 1 == 1
    }
}

fn shown(argv: &[OsString]) -> String {
    argv.first().map(|program| program.to_string_lossy().into_owned()).unwrap_or_default()
}

fn command(argv: &[OsString]) -> Result<Command, ReloadError> {
    let Some((program, arguments)) = argv.split_first() else {
        return Err(ReloadError::Start { program: String::new(), source: io::ErrorKind::InvalidInput.into() });
    };
    let mut command = Command::new(program);
    command.args(arguments);
    for name in OURS {
        command.env_remove(name);
    }
    Ok(command)
}

/// Runs a command to its end. All that it started is stopped with it when it takes too long, or is no longer waited for.
async fn run(argv: &[OsString], timeout: Duration) -> Result<String, ReloadError> {
    let mut command = command(argv)?;
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut started = Started::new(argv, command)?;
    started.group = true;
    let (out, err) = (started.child.stdout.take(), started.child.stderr.take());
    let all = async {
        let read = futures_util::future::join(aside(|| tail(out)), aside(|| tail(err)));
        // It is not collected yet: until it is, its number stands for its process group and for no other.
        futures_util::future::join(started.handle.exited(), read).await
    };
    let Ok(((), (out, err))) = tokio::time::timeout(timeout, all).await else {
        return Err(ReloadError::Late { program: started.program.clone(), timeout });
    };
    // What it has left behind goes on.
    started.group = false;
    let status = started.status().await;
    let (program, printed) = (started.program.clone(), printed(&[out, err]));
    match status {
        Ok(status) if status.success() => Ok(format!("ran `{program}`{printed}")),
        Ok(status) => Err(ReloadError::Failed { program, how: describe(status), printed }),
        Err(source) => Err(ReloadError::Start { program, source }),
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with exit code {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}

/// The end of what comes, all of which is read. Blocks.
fn tail(pipe: Option<impl Read>) -> Vec<u8> {
    let (mut kept, mut buffer) = (Vec::new(), [0; 4096]);
    let Some(mut pipe) = pipe else { return kept };
    while let Ok(read @ 1..) = pipe.read(&mut buffer) {
        kept.extend_from_slice(&buffer[..read]);
        let superfluous = kept.len().saturating_sub(MAX_PRINTED);
        kept.drain(..superfluous);
    }
    kept
}

/// What a command printed, on one line and fit for a log.
fn printed(outputs: &[Vec<u8>]) -> String {
    let lines: Vec<String> = outputs
        .iter()
        .flat_map(|output| {
            let text = String::from_utf8_lossy(output);
            let plain: String = text.chars().map(|c| if c.is_control() || is_hidden(c) { ' ' } else { c }).collect();
            Some(plain.trim().to_owned()).filter(|text| !text.is_empty())
        })
        .collect();
    if lines.is_empty() { String::new() } else { format!(": {}", lines.join("; ")) }
}

#[cfg(test)]
mod tests;
