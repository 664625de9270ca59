//! All instances that somebody holds, one for each program in each process.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use nix::libc;
use thiserror::Error;

use super::cloexec::{self, Searches};
use super::id::{InstanceId, ProcessKey};
use super::instance::{Instance, Parts, Weakness};
use crate::base::quota::Queue;
use crate::sys::namespace;
use crate::sys::procfs::{FileId, ProcDir};
use crate::sys::socket::{peer_credentials, peer_has_closed};
use crate::sys::{BootId, Kernel, PidFd};

/// Why no instance could be established.
#[derive(Debug, Error)]
pub enum InstanceError {
    /// There is no such process, or it has exited meanwhile.
    #[error("the process does not exist or has exited")]
    Gone,
    /// The process is in a pid namespace that ours does not contain.
    #[error("the process is not visible in the agent's pid namespace")]
    OutsidePidNamespace,
    /// The number belongs to another process than the one that was meant.
    #[error("process {pid} is not the one that was meant")]
    AnotherProcess {
        /// The number.
        pid: i32,
    },
    /// The kernel has no unique inode for processes, by which one was named.
    #[error("this kernel has no pidfs inodes, by which processes are named; Linux 6.9 and later have")]
    NoInodes,
    /// The system did not answer.
    #[error("cannot {action}")]
    Io {
        /// What was attempted.
        action: &'static str,
        /// The refusal.
        #[source]
        source: io::Error,
    },
}

fn failed(action: &'static str) -> impl FnOnce(io::Error) -> InstanceError {
    move |source| match source.raw_os_error() {
        // Also ENOENT: the directory of a process that is not there.
        Some(libc::ESRCH | libc::ENOENT) => InstanceError::Gone,
        _ => InstanceError::Io { action, source },
    }
}

/// Finds the instance of a process, and hands out the same one to all who ask while somebody holds it.
#[derive(Clone, Debug)]
pub struct Instances(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    kernel: Kernel,
    boot: BootId,
    own: namespace::Own,
    searches: Queue,
    known: Known,
}

type Known = Arc<Mutex<HashMap<ProcessKey, Weak<Instance>>>>;

/// Takes an instance off the list when it is dropped.
#[derive(Debug)]
pub(super) struct Registration {
    known: Known,
    process: ProcessKey,
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        // The place may be taken by a successor already: the next program of the same process.
        if known.get(&self.process).is_some_and(|instance| instance.strong_count() == 0) {
            known.remove(&self.process);
        }
    }
}

impl Instances {
    /// An empty list for this boot. `kernel` says which calls to use.
    pub fn new(kernel: Kernel) -> io::Result<Self> {
        Self::with_searches(kernel, cloexec::queue())
    }

    /// The same, with `searches` for the turns in which descriptors are looked through.
    pub(super) fn with_searches(kernel: Kernel, searches: Queue) -> io::Result<Self> {
        let (boot, own) = (BootId::current()?, namespace::Own::read()?);
        Ok(Self(Arc::new(Shared { kernel, boot, own, searches, known: Known::default() })))
    }

    /// The calls in use.
    pub fn kernel(&self) -> &Kernel {
        &self.0.kernel
    }

    /// This boot.
    pub fn boot(&self) -> BootId {
        self.0.boot
    }

    /// How many instances somebody holds.
    pub fn len(&self) -> usize {
        self.known().len()
    }

    /// How many of them are weak.
    pub fn weak(&self) -> usize {
        // Let go of only when the list is free again: what drops the last hold takes itself off it.
        let held: Vec<_> = self.known().values().filter_map(Weak::upgrade).collect();
        held.iter().filter(|instance| instance.weak().is_some()).count()
    }

    /// Whether nobody holds any.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The instance that connected `socket`, which this end has accepted. Call it inside a runtime.
    pub fn of_peer(&self, socket: impl AsFd) -> Result<Arc<Instance>, InstanceError> {
        let peer = peer_credentials(&socket).map_err(failed("read the credentials of the caller"))?;
        if peer.pid <= 0 {
            return Err(InstanceError::OutsidePidNamespace);
        }
        if self.0.kernel.peer_pidfd {
            let pidfd = PidFd::of_peer(&socket).map_err(failed("get a handle of the caller"))?;
            return self.of_handle(pidfd, peer.pid);
        }
        // Between `connect` and here the caller may have exited, and its number may have been given to another process of
        // the same user, while somebody still holds the caller's end. What the caller had sent would then pass for the
        // other's, but the challenge can be answered by that other process alone, so that nothing is released.
        let pidfd = PidFd::open(peer.pid).map_err(failed("get a handle of the caller"))?;
        let instance = self.of_handle(pidfd, peer.pid)?;
        let facts = instance.look().map_err(|_| InstanceError::Gone)?;
        if facts.uid != peer.uid || peer_has_closed(&socket) {
            return Err(InstanceError::Gone);
        }
        Ok(instance)
    }

    /// The instance that has this number now. With `pidfs_inode`, only if it is the process that was meant. Call it
    /// inside a runtime.
    pub fn of_pid(&self, pid: i32, pidfs_inode: Option<u64>) -> Result<Arc<Instance>, InstanceError> {
        if pid <= 0 {
            return Err(InstanceError::Gone);
        }
        let pidfd = PidFd::open(pid).map_err(failed("get a handle of the process"))?;
        if let Some(meant) = pidfs_inode {
            if !self.0.kernel.unique_inode {
                return Err(InstanceError::NoInodes);
            }
            if pidfd.inode().map_err(failed("identify the process"))? != meant {
                return Err(InstanceError::AnotherProcess { pid });
            }
        }
        self.of_handle(pidfd, pid)
    }

    /// `pid` is the number of the process of `pidfd`, provided that it is alive after we have used the number.
    fn of_handle(&self, pidfd: PidFd, pid: i32) -> Result<Arc<Instance>, InstanceError> {
        if self.0.kernel.unique_inode {
            let process = ProcessKey::Inode(pidfd.inode().map_err(failed("identify the process"))?);
            if let Some(instance) = self.standing(process) {
                return Ok(instance);
            }
        }
        let proc_dir = ProcDir::open(pid).map_err(failed("open the /proc directory of the process"))?;
        if !pidfd.is_alive() {
            return Err(InstanceError::Gone);
        }
        // From here on the directory is known to belong to the handle.
        let process = if self.0.kernel.unique_inode {
            ProcessKey::Inode(pidfd.inode().map_err(failed("identify the process"))?)
        } else {
            let ticks = proc_dir.start_time().map_err(failed("read the start time of the process"))?;
            ProcessKey::Start { pid, ticks }
        };
        if let Some(instance) = self.standing(process) {
            return Ok(instance);
        }
        let executable = executable(&proc_dir)?;
        let weak = self.weakness(&pidfd, &proc_dir)?;
        let id = InstanceId::new(self.0.boot, process, executable.as_ref().ok().copied());
        let registration = Registration { known: self.0.known.clone(), process };
        let (kernel, own, searches) = (self.0.kernel, self.0.own, Searches::new(self.0.searches.clone()));
        let parts = Parts { id, pid, pidfd, proc_dir, executable, weak, kernel, own, searches, registration };
        let instance = Arc::new(Instance::new(parts).map_err(failed("watch the process"))?);
        instance.look().map_err(|_| InstanceError::Gone)?;
        Ok(self.enlist(process, instance))
    }

    /// What is promised less of this process than of others.
    fn weakness(&self, pidfd: &PidFd, proc_dir: &ProcDir) -> Result<Option<Weakness>, InstanceError> {
        let kernel = &self.0.kernel;
        let namespace =
            if kernel.pidfd_namespaces { pidfd.pid_namespace() } else { proc_dir.open_file("ns/pid").map(Into::into) };
        let controlled = match namespace.and_then(|namespace| self.0.own.controls(namespace)) {
            Ok(controlled) => controlled,
            Err(error) if matches!(error.raw_os_error(), Some(libc::EACCES | libc::EPERM)) => {
                // Everybody may see how deep a process is nested. At no depth it is in our own namespace.
                let status = proc_dir.status().map_err(failed("read the status of the process"))?;
                if status.in_nested_pid_namespace() {
                    return Ok(Some(Weakness::UnknownPidNamespace));
                }
                self.0.own.controls_its_own_pid_namespace()
            }
            Err(error) => return Err(failed("find the pid namespace of the process")(error)),
        };
        if !controlled {
            return Ok(Some(Weakness::ForeignPidNamespace));
        }
        Ok((!kernel.unique_inode || !kernel.peer_pidfd).then_some(Weakness::OldKernel))
    }

    /// The known instance of a process, if a fresh look says that it still stands.
    fn standing(&self, process: ProcessKey) -> Option<Arc<Instance>> {
        let instance = self.known().get(&process).and_then(Weak::upgrade)?;
        instance.look().is_ok().then_some(instance)
    }

    /// Puts a new instance on the list, unless somebody else was faster with the same one.
    fn enlist(&self, process: ProcessKey, instance: Arc<Instance>) -> Arc<Instance> {
        let mut known = self.known();
        let rival = known.get(&process).and_then(Weak::upgrade);
        if let Some(rival) = rival.as_ref().filter(|rival| rival.id() == instance.id() && rival.known_end().is_none()) {
            let rival = rival.clone();
            drop(known);
            return rival;
        }
        known.insert(process, Arc::downgrade(&instance));
        // Before the rival is dropped: that may be its end, which takes the lock again.
        drop(known);
        drop(rival);
        instance
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<ProcessKey, Weak<Instance>>> {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The program of a process, or why it cannot be seen.
fn executable(proc_dir: &ProcDir) -> Result<Result<FileId, String>, InstanceError> {
    match proc_dir.executable() {
        Ok(file) => Ok(Ok(file)),
        Err(error) => match error.raw_os_error() {
            Some(libc::ENOENT) => Ok(Err("the process runs no program".to_owned())),
            Some(libc::EACCES | libc::EPERM) => Ok(Err(
                "the agent is not allowed to see the program of this process; run the agent as root, or grant it \
                        CAP_SYS_PTRACE"
                    .to_owned(),
            )),
            _ => Err(failed("see the program of the process")(error)),
        },
    }
}
