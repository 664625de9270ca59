//! The name of an instance.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::sys::BootId;
use crate::sys::procfs::FileId;

/// One program in one process of one boot: what ledger, sessions and audit write down.
///
/// Its text is stable: `BOOT/pidfd-INODE/exe-DEV-INODE`, with `pid-PID-START` in place of the inode on kernels that have
/// none, and `exe-unknown` when the executable could not be seen.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct InstanceId {
    boot: BootId,
    process: ProcessKey,
    executable: Option<(u64, u64)>,
}

/// What tells a process from all others of the same boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum ProcessKey {
    /// The inode number on pidfs, which is never used twice.
    Inode(u64),
    /// Number and start time in clock ticks, for older kernels: two processes can have both the same, with luck.
    Start {
        /// The process number.
        pid: i32,
        /// The start time.
        ticks: u64,
    },
}

impl InstanceId {
    pub(super) fn new(boot: BootId, process: ProcessKey, executable: Option<FileId>) -> Self {
        Self { boot, process, executable: executable.map(|file| (file.dev, file.ino)) }
    }

    /// The boot it belongs to. An instance of another boot is over.
    pub fn boot(&self) -> BootId {
        self.boot
    }

    /// The inode number on pidfs by which delegates name the process; `None` on kernels before 6.9.
    pub fn pidfs_inode(&self) -> Option<u64> {
        match self.process {
            ProcessKey::Inode(inode) => Some(inode),
            ProcessKey::Start { .. } => None,
        }
    }

    /// Whether both are in the same process, perhaps with another program.
    pub fn same_process(&self, other: &Self) -> bool {
        (self.boot, self.process) == (other.boot, other.process)
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.process {
            ProcessKey::Inode(inode) => write!(f, "{}/pidfd-{inode}", self.boot)?,
            ProcessKey::Start { pid, ticks } => write!(f, "{}/pid-{pid}-{ticks}", self.boot)?,
        }
        match self.executable {
            Some((dev, ino)) => write!(f, "/exe-{dev}-{ino}"),
            None => f.write_str("/exe-unknown"),
        }
    }
}

impl fmt::Debug for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<InstanceId> for String {
    fn from(id: InstanceId) -> Self {
        id.to_string()
    }
}

/// The text is not the name of an instance.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("`{0}` is not the name of an instance")]
pub struct InvalidInstanceId(String);

impl FromStr for InstanceId {
    type Err = InvalidInstanceId;

    fn from_str(text: &str) -> Result<Self, InvalidInstanceId> {
        parse(text)
            // One text per value: anything that would be written differently is refused.
            .filter(|id| id.to_string() == text)
            .ok_or_else(|| InvalidInstanceId(text.to_owned()))
    }
}

impl TryFrom<String> for InstanceId {
    type Error = InvalidInstanceId;

    fn try_from(text: String) -> Result<Self, InvalidInstanceId> {
        text.parse()
    }
}

fn parse(text: &str) -> Option<InstanceId> {
    let mut parts = text.splitn(3, '/');
    let boot = parts.next()?.parse().ok()?;
    let process = parts.next()?;
    let process = if let Some(inode) = process.strip_prefix("pidfd-") {
        ProcessKey::Inode(inode.parse().ok()?)
    } else {
        let (pid, ticks) = process.strip_prefix("pid-")?.split_once('-')?;
        ProcessKey::Start { pid: pid.parse().ok()?, ticks: ticks.parse().ok()? }
    };
    let executable = match parts.next()?.strip_prefix("exe-")? {
        "unknown" => None,
        file => {
            let (dev, ino) = file.split_once('-')?;
            Some((dev.parse().ok()?, ino.parse().ok()?))
        }
    };
    Some(InstanceId { boot, process, executable })
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOT: &str = "8f3c2a10-0001-4e6b-9d55-00c0ffee0000";

    #[test]
    fn the_text_of_an_instance_reads_back_as_the_same_instance() {
        for tail in ["pidfd-4242/exe-64769-5551", "pid-17-99120/exe-64769-5551", "pidfd-1/exe-unknown"] {
            let text = format!("{BOOT}/{tail}");
            let id: InstanceId = text.parse().expect("valid");
            assert_eq!(id.to_string(), text);
            assert_eq!(serde_json::from_str::<InstanceId>(&serde_json::to_string(&id).expect("json")).expect("id"), id);
        }
    }

    #[test]
    fn a_text_that_would_be_written_differently_is_refused() {
        for tail in ["", "pidfd-1", "pidfd-01/exe-1-2", "pidfd-+1/exe-1-2", "pid-1/exe-1-2", "pidfd-1/exe-1-2/x"] {
            assert!(format!("{BOOT}/{tail}").parse::<InstanceId>().is_err(), "{tail}");
        }
    }
}
