//! The cgroup of a session: exactly the one a process is in, and who is in it.
//!
//! A unit's tie never uses a cgroup that the process may have made for itself, since it could choose its own lifetime. A
//! session wants that very cgroup: it was made for the task, its emptiness is the task's end, and whoever made it can
//! only end the session earlier. Who may be in it is the kernel's rule: a process is moved by somebody who may write to
//! the `cgroup.procs` of both groups and of their common ancestor, which is root, or a user within what was delegated
//! to them. **So a process of the same user may join where the user was given a subtree**: what the cgroup tells apart
//! there is tasks, not enemies.

use std::sync::Arc;

use super::{BondError, Bonds, Tie};
use crate::attest::{AttestError, CgroupPaths, is_in_cgroup};
use crate::peer::{Instance, LookError};

impl Bonds {
    /// The cgroup of version 2 that the process is in, whoever made it: for sessions. [`Self::hold`] waits for its end.
    ///
    /// # Errors
    /// [`BondError::RootCgroup`] for the root, which everybody is in whom nobody has put elsewhere.
    pub fn cgroup_tie(&self, instance: &Arc<Instance>) -> Result<Tie, BondError> {
        let gone = |_| BondError::Place(AttestError::Gone);
        let cgroup = instance.look().map_err(gone)?.cgroup_id;
        let path = CgroupPaths::read(instance.proc_dir())?.unified.unwrap_or_else(|| "/".to_owned());
        if path == "/" {
            self.is_root(cgroup)?;
            return Err(BondError::RootCgroup);
        }
        let tie = self.at_path(&path, &path, cgroup)?;
        // What the path says is about this process only if it was there, and nowhere else, afterwards.
        if instance.look().map_err(gone)?.cgroup_id != cgroup { Err(BondError::Moved) } else { Ok(tie) }
    }

    /// Whether the process is in the cgroup of `tie` or below it, now. In ties of other kinds nobody is.
    ///
    /// # Errors
    /// [`LookError::Ended`] when the process is over; [`LookError::Unseen`] when the system cannot answer now.
    pub fn in_cgroup(&self, instance: &Instance, tie: &Tie) -> Result<bool, LookError> {
        let Tie::Cgroup { boot, id, path } = tie else { return Ok(false) };
        if *boot != self.0.instances.boot() {
            return Ok(false);
        }
        is_in_cgroup(instance, *id, path.as_str())
    }
}
