//! Whether a caller is systemd itself, on its way to start a unit.
//!
//! # What is proven
//! The process that connected was root when it did and is now, is a process of our pid namespace, is its first process,
//! a child or a grandchild of that, and it and whatever is between run systemd's own program: the file that the first
//! process runs, or `systemd-executor` beside it (systemd 254 and later). For LoadCredential= that is the process that
//! systemd forks to set up a unit, or one more below it (`(sd-mkdcreds)`), before the unit's own program is executed.
//!
//! Being a child of the first process alone proves nothing: every daemon that was left by its parent is one.
//!
//! # What is not
//! Root on the host can make systemd do anything, and is out of scope. What a unit may have is therefore never decided by
//! this alone: systemd's own word, and the cgroup it put the process into, say which unit is being started.

use std::ffi::OsStr;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use thiserror::Error;

use super::instance::{Instance, LookError};
use super::instances::{InstanceError, Instances};
use crate::sys::procfs::{FileId, file_id, open_in};
use crate::sys::socket::peer_credentials;

/// The first process of the pid namespace.
const INIT: i32 = 1;
/// The first process, a child of it, and a child of that.
const GENERATIONS: usize = 3;
/// What systemd executes in a child to set up a unit, in the directory of its own program.
const EXECUTOR: &str = "systemd-executor";

/// Why a caller is not believed to be systemd.
#[derive(Debug, Error)]
pub enum NotSystemd {
    /// It cannot be told who it is.
    #[error("it cannot be told who the caller is: {0}")]
    Unidentified(#[source] io::Error),
    /// It is gone, or not of our pid namespace.
    #[error("the calling process cannot be held: {0}")]
    Unheld(#[from] InstanceError),
    /// It is of another user.
    #[error("systemd runs as root, and the caller as uid {0}")]
    NotRoot(u32),
    /// It is not where systemd's own processes are.
    #[error("process {0} is neither the first process of the host nor a child or grandchild of it")]
    Elsewhere(i32),
    /// It, or what is between it and systemd, runs something else.
    #[error("process {0} does not run systemd's own program")]
    OtherProgram(i32),
    /// The first process cannot be seen.
    #[error("the program of the first process of the host cannot be seen: {0}")]
    Init(String),
    /// It ended meanwhile, or cannot be looked at.
    #[error(transparent)]
    Look(#[from] LookError),
}

/// A caller that is systemd itself. Made only by [`SystemdCaller::of`].
#[derive(Clone, Debug)]
pub struct SystemdCaller(Arc<Instance>);

impl SystemdCaller {
    /// The caller at the other end of `socket`, if it is systemd. Call it inside a runtime.
    pub fn of(instances: &Instances, socket: impl AsFd) -> Result<Self, NotSystemd> {
        let connected_by = peer_credentials(&socket).map_err(NotSystemd::Unidentified)?;
        if connected_by.uid != 0 {
            return Err(NotSystemd::NotRoot(connected_by.uid));
        }
        let caller = instances.of_peer(&socket)?;
        let init = instances.of_pid(INIT, None)?;
        let programs = Programs::of(&init)?;
        let lineage = caller.lineage()?;
        if lineage.len() > GENERATIONS || lineage.last() != Some(&INIT) || !caller.descends_from(&init)? {
            return Err(NotSystemd::Elsewhere(caller.pid()));
        }
        programs.is_run_by(&caller)?;
        for between in lineage.iter().skip(1).filter(|pid| **pid != INIT) {
            programs.is_run_by(&*instances.of_pid(*between, None)?)?;
        }
        // Last: each number above was that of an ancestor all the time if the ancestors are the same now.
        if caller.lineage()? != lineage {
            return Err(NotSystemd::Elsewhere(caller.pid()));
        }
        let found = Self(caller);
        found.still()?;
        Ok(found)
    }

    /// A caller that a test wants believed.
    #[cfg(test)]
    pub(crate) fn believed(instance: Arc<Instance>) -> Self {
        Self(instance)
    }

    /// The process.
    pub fn instance(&self) -> &Arc<Instance> {
        &self.0
    }

    /// The check before anything is released: it lives, runs the same program, and is root.
    pub fn still(&self) -> Result<(), NotSystemd> {
        match self.0.look()?.uid {
            0 => Ok(()),
            uid => Err(NotSystemd::NotRoot(uid)),
        }
    }
}

/// The files that systemd runs as.
struct Programs {
    systemd: FileId,
    /// `None` where it has none, as before systemd 254.
    executor: Option<FileId>,
}

impl Programs {
    fn of(init: &Instance) -> Result<Self, NotSystemd> {
        let unseen = |why: &dyn std::fmt::Display| NotSystemd::Init(why.to_string());
        let systemd = init.executable().map_err(|why| unseen(&why))?;
        let path = init.proc_dir().read_link("exe").map_err(|error| unseen(&error))?;
        let root = init.proc_dir().open_handle("root").map_err(|error| unseen(&error))?;
        init.look()?;
        let beside = path.parent().map(|directory| directory.join(EXECUTOR));
        let executor = beside.and_then(|path| identity(&root, path.as_os_str()).ok());
        Ok(Self { systemd, executor })
    }

    fn is_run_by(&self, process: &Instance) -> Result<(), NotSystemd> {
        match process.executable() {
            Ok(program) if program == self.systemd || Some(program) == self.executor => Ok(()),
            _ => Err(NotSystemd::OtherProgram(process.pid())),
        }
    }
}

fn identity(root: impl AsFd, path: &OsStr) -> io::Result<FileId> {
    file_id(open_in(root, path)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::Kernel;

    #[tokio::test]
    async fn whoever_is_not_systemd_is_not_believed_root_or_not() {
        let instances = Instances::new(Kernel::probe()).unwrap();
        let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let refused = SystemdCaller::of(&instances, &ours).unwrap_err();
        let is_root = nix::unistd::geteuid().is_root();
        assert_eq!(matches!(refused, NotSystemd::NotRoot(_)), !is_root, "{refused}");
    }

    #[tokio::test]
    async fn another_program_than_the_first_process_is_not_systemds() {
        let instances = Instances::new(Kernel::probe()).unwrap();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let sleep = instances.of_pid(child.id().cast_signed(), None).unwrap();
        let us = instances.of_pid(std::process::id().cast_signed(), None).unwrap();
        let programs = Programs::of(&us).unwrap();
        let (own, other) = (programs.is_run_by(&us), programs.is_run_by(&sleep));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(own.is_ok());
        assert!(matches!(other, Err(NotSystemd::OtherProgram(_))));
    }
}
