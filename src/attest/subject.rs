//! The process that is attested.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use crate::selector::Selector;
use crate::sys::procfs::{FileId, ProcDir};

/// What may be said about the program the process runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExecutableEvidence {
    /// It runs this file, as found when the instance was recognised.
    Known(FileId),
    /// Nothing may be said: what the kernel tells about this peer could be somebody else's (peer rules 2 and 6).
    Withheld {
        /// Why, in words for a person.
        why: String,
    },
}

/// A process, held by handles, and what its instance already knows of it.
#[derive(Clone, Debug)]
pub struct Subject {
    /// Its number in our pid namespace, for those who can only be asked by number.
    pub pid: i32,
    /// Its effective user now, in our user namespace.
    pub uid: u32,
    /// Whose share of the attestors' time it takes: that of its user, or of the owner of the user namespace it is in.
    pub share: u32,
    /// Its effective group now, in our user namespace.
    pub gid: u32,
    /// The inode number of its cgroup v2 directory now; `None` where it cannot be found out.
    pub cgroup_id: Option<u64>,
    /// Its `/proc/PID`.
    pub proc_dir: Arc<ProcDir>,
    /// Its pidfd, where the kernel has them.
    pub pidfd: Option<Arc<OwnedFd>>,
    /// The program it runs.
    pub executable: ExecutableEvidence,
    /// The path that held when this same instance was first attested. It stays, also after the file was unlinked:
    /// packages are upgraded under running programs (peer rule 4).
    pub known_path: Option<PathBuf>,
    /// What was launched, if it belongs to that: `launch:*` selectors, or why that is not known.
    pub launched: Result<Vec<Selector>, String>,
}
