//! The cgroup of a session: exactly the one a process is in, and who is in it.
//!
//! A unit's tie never uses a cgroup that the process may have made for itself, since it could choose its own lifetime. A
//! session wants that very cgroup: it was made for the task, its emptiness is the task's end, and whoever made it can
//! only end the session earlier. Who may be in it is the kernel's rule: a process is moved by somebody who may write to
//! the `cgroup.procs` of both groups and of their common ancestor, which is root, or a user within what was delegated
//! to them. **So a process of the same user may join where the user was given a subtree**: what the cgroup tells apart
//! there is tasks, not enemies.

use std::sync::Arc;

use super::{BondError, Bonds, Tie, not_mounted};
use crate::attest::{AttestError, CgroupPaths};
use crate::peer::{Instance, LookError};
use crate::sys::cgroup::Group;

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
        let Some(cgroup) = instance.look()?.cgroup_id.filter(|_| *boot == self.0.instances.boot()) else {
            return Ok(false);
        };
        if cgroup == *id {
            return Ok(true);
        }
        let below = self.below(instance, *id, path.as_str(), cgroup);
        // Last: it may have failed because the process is gone, and holds only where the process still is.
        if instance.look()?.cgroup_id != Some(cgroup) {
            return Err(LookError::Unseen(std::io::Error::other("the process was moved to another cgroup: try again")));
        }
        below
    }

    /// Whether the directory `cgroup`, in which the process is, is below the directory `id` at `top`.
    fn below(&self, instance: &Instance, id: u64, top: &str, cgroup: u64) -> Result<bool, LookError> {
        let paths = match CgroupPaths::read(instance.proc_dir()) {
            Ok(paths) => paths,
            Err(AttestError::Read { source, .. }) => return Err(LookError::Unseen(source)),
            Err(error) => return Err(LookError::Unseen(std::io::Error::other(error))),
        };
        let Some(rest) = paths.unified.as_deref().and_then(|path| path.strip_prefix(top)) else { return Ok(false) };
        if !rest.starts_with('/') {
            return Ok(false);
        }
        let root = self.0.root.as_ref().ok_or_else(|| LookError::Unseen(not_mounted()))?;
        let id_of = |group: &Group| group.id().map_err(LookError::Unseen);
        // A directory that is not there, or is another one now, has nobody in it.
        let Ok(group) = root.below(top) else { return Ok(false) };
        if id_of(&group)? != id {
            return Ok(false);
        }
        let Ok(own) = group.below(rest) else { return Ok(false) };
        Ok(id_of(&own)? == cgroup)
    }
}
