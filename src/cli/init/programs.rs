//! The programs of systemd, run so that whoever calls has no say in which and how.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::cli::Host;

/// Where programs of the system are. Not the caller's `PATH`: what runs here runs as root.
const DIRECTORIES: [&str; 2] = ["/usr/bin", "/bin"];
const SAFE_PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// A program of the system.
pub(super) struct Program(PathBuf);

/// Why a program did not do what it was asked, for a person.
pub(super) struct Unusable(pub(super) String);

impl Program {
    /// The program with this name, if the system has it.
    pub(super) fn find(name: &str, host: &Host) -> Option<Self> {
        let paths = DIRECTORIES.iter().map(|directory| host.path(Path::new(directory)).join(name));
        paths.into_iter().find(|path| path.is_file()).map(Self)
    }

    /// Runs it with `input`, and returns what it printed when it succeeded. It sees nothing of our environment.
    pub(super) fn run(&self, arguments: &[&str], input: &[u8]) -> Result<Vec<u8>, Unusable> {
        let failed = |error: std::io::Error| Unusable(format!("cannot run `{}`: {error}", self.0.display()));
        let mut command = Command::new(&self.0);
        command.args(arguments).env_clear().env("PATH", SAFE_PATH).env("LC_ALL", "C.UTF-8").current_dir("/");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(failed)?;
        // Less than a pipe holds, so this cannot wait for a program that does not read; one that ended says why below.
        let _ = child.stdin.take().map(|mut stdin| stdin.write_all(input));
        let done = child.wait_with_output().map_err(failed)?;
        if done.status.success() {
            return Ok(done.stdout);
        }
        let said = String::from_utf8_lossy(&done.stderr);
        // It stands within a line of ours.
        let said = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ");
        Err(Unusable(if said.is_empty() { done.status.to_string() } else { said }))
    }
}
