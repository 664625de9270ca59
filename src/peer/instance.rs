//! One program in one process: held, asked again, and known to be over.

mod tree;

use std::future::Future;
use std::io;
use std::sync::{Arc, OnceLock};

use nix::libc;
use thiserror::Error;
use tokio::sync::watch;

use super::attached::Attached;
use super::cloexec::Searches;
use super::id::InstanceId;
use super::instances::Registration;
use crate::base::quota::{Full, Place, Quota};
use crate::sys::namespace;
use crate::sys::procfs::{FileId, ProcDir};
use crate::sys::{Kernel, PidFd, Status, WatchedPidFd};

/// One program in one process of this boot, shared by everyone who deals with it.
///
/// It costs two descriptors, however many connections the process has, and is forgotten with its last holder.
#[derive(Debug)]
pub struct Instance {
    id: InstanceId,
    pid: i32,
    pidfd: WatchedPidFd,
    proc_dir: Arc<ProcDir>,
    executable: Result<FileId, String>,
    weak: Option<Weakness>,
    kernel: Kernel,
    own: namespace::Own,
    pub(super) searches: Searches,
    /// The first end that was seen. It stays.
    end: watch::Sender<Option<InstanceEnd>>,
    attached: Attached,
    /// How deep its pid namespace is nested below ours: it never changes.
    depth: OnceLock<usize>,
    /// What it counts as towards its user's limit of processes, from its first connection on.
    place: OnceLock<Place>,
    _registration: Registration,
}

/// An instance with a connection: while there is one, what is attached to the instance stays.
#[derive(Debug)]
pub(super) struct Connected(Arc<Instance>);

impl Connected {
    pub(super) fn new(instance: Arc<Instance>) -> Self {
        instance.attached.connected();
        Self(instance)
    }

    pub(super) fn instance(&self) -> &Arc<Instance> {
        &self.0
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.attached.disconnected();
    }
}

/// What [`Instance::look`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The effective user id now, in our user namespace.
    pub uid: u32,
    /// The effective group id now, in our user namespace.
    pub gid: u32,
    /// The inode number of its cgroup v2 directory now; `None` where it cannot be found out.
    pub cgroup_id: Option<u64>,
}

/// Why an instance is over. It does not come back: the next program in the same process is another instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
pub enum InstanceEnd {
    /// The process has exited, or is about to.
    #[error("the process has exited")]
    Exited,
    /// The process runs another program.
    #[error("the process has executed another program")]
    ExecutableChanged,
    /// The program can no longer be seen, so that it cannot be told whether it is the same: the process has taken
    /// other privileges, and the agent is not allowed to look.
    #[error("the program of the process can no longer be seen by the agent")]
    ExecutableHidden,
}

impl InstanceEnd {
    /// A label of a small fixed set, for the ledger, metrics and audit.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Exited => "exited",
            Self::ExecutableChanged => "executable_changed",
            Self::ExecutableHidden => "executable_hidden",
        }
    }
}

/// Why [`Instance::look`] has no answer. Either way nothing may be released.
#[derive(Debug, Error)]
pub enum LookError {
    /// The instance is over, for everyone and for good.
    #[error(transparent)]
    Ended(#[from] InstanceEnd),
    /// The system could not answer now, for lack of memory or descriptors. It may later; nothing has ended.
    #[error("the process cannot be looked at now")]
    Unseen(#[source] io::Error),
}

/// Why less is known of an instance than the design promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
pub enum Weakness {
    /// Somebody below us has power over the pid namespace of the process and can send bytes in its name. Selectors
    /// about its executable must not match; those that everyone in that namespace shares may.
    #[error("its pid namespace is controlled by another user namespace, whose root can send bytes in its name")]
    ForeignPidNamespace,
    /// It could not be found out who controls the pid namespace of the process. Treated like the above.
    #[error("it cannot be found out who controls its pid namespace")]
    UnknownPidNamespace,
    /// The kernel has no peer pidfd or no unique inode for it: there is a moment at `accept` in which the number of
    /// a process that has just exited may have been given to another one of the same user.
    #[error("this kernel identifies processes by number and start time only; Linux 6.9 and later do better")]
    OldKernel,
}

impl Weakness {
    /// A label of a small fixed set, for tokens, the ledger and metrics.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::ForeignPidNamespace => "foreign_pid_namespace",
            Self::UnknownPidNamespace => "unknown_pid_namespace",
            Self::OldKernel => "old_kernel",
        }
    }

    /// Whether it makes the executable worthless as evidence of who sends.
    pub fn bars_executable(&self) -> bool {
        matches!(self, Self::ForeignPidNamespace | Self::UnknownPidNamespace)
    }
}

/// What [`super::Instances`] has found out of a process, with the handles through which it was found out.
pub(super) struct Parts {
    pub(super) id: InstanceId,
    pub(super) pid: i32,
    pub(super) pidfd: PidFd,
    pub(super) proc_dir: ProcDir,
    pub(super) executable: Result<FileId, String>,
    pub(super) weak: Option<Weakness>,
    pub(super) kernel: Kernel,
    pub(super) own: namespace::Own,
    pub(super) searches: Searches,
    pub(super) registration: Registration,
}

impl Instance {
    /// Must be called inside a runtime.
    pub(super) fn new(parts: Parts) -> io::Result<Self> {
        Ok(Self {
            id: parts.id,
            pid: parts.pid,
            pidfd: WatchedPidFd::new(parts.pidfd)?,
            proc_dir: Arc::new(parts.proc_dir),
            executable: parts.executable,
            weak: parts.weak,
            kernel: parts.kernel,
            own: parts.own,
            searches: parts.searches,
            end: watch::Sender::new(None),
            attached: Attached::default(),
            depth: OnceLock::new(),
            place: OnceLock::new(),
            _registration: parts.registration,
        })
    }

    /// Its name, unique over processes, programs and boots.
    pub fn id(&self) -> &InstanceId {
        &self.id
    }

    /// The process number in our pid namespace. It is evidence only while [`Self::is_alive`].
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// What is promised less of this instance than of others.
    pub fn weak(&self) -> Option<Weakness> {
        self.weak
    }

    /// The file the program was started from, or why it cannot be seen.
    pub fn executable(&self) -> Result<FileId, &str> {
        self.executable.as_ref().copied().map_err(String::as_str)
    }

    /// The executable as evidence of who calls: only where nobody else can send bytes in the name of the process.
    pub fn executable_evidence(&self) -> Result<FileId, String> {
        match self.weak {
            Some(weakness) if weakness.bars_executable() => Err(weakness.to_string()),
            _ => self.executable.clone(),
        }
    }

    /// The handle of the process.
    pub fn pidfd(&self) -> &PidFd {
        self.pidfd.pidfd()
    }

    /// Its `/proc` directory. What was read there counts once [`Self::look`] succeeded afterwards.
    pub fn proc_dir(&self) -> &Arc<ProcDir> {
        &self.proc_dir
    }

    /// What the part that defined `T` keeps with this instance; made when it is first asked for, and gone with the last
    /// connection. An instance without a connection keeps nothing: each call makes another value.
    pub fn attached<T: Default + Send + Sync + 'static>(&self) -> Arc<T> {
        self.attached.get()
    }

    /// What the part that defined `T` remembers of this instance for as long as anybody holds it; made when it is first
    /// asked for. The ledger holds instances whose connections are gone: nothing secret belongs here.
    pub fn remembered<T: Default + Send + Sync + 'static>(&self) -> Arc<T> {
        self.attached.remembered()
    }

    /// Whose share it takes of what is limited by user when its user id is `uid`: that user's. In a user namespace below
    /// ours a process may have as many user ids as were given to its owner, so there it is the owner's, whatever `uid`
    /// is. Namespaces that root has made are containers, and take a share of their own each: root's is for operators.
    ///
    /// Found out anew, since a process may enter a namespace. For shares alone: what identifies it is its own user id.
    /// Where the namespace cannot be seen, for want of CAP_SYS_PTRACE, it is the share of `uid`.
    pub fn share(&self, uid: u32) -> u32 {
        let namespace = if self.kernel.pidfd_namespaces {
            self.pidfd().user_namespace()
        } else {
            self.proc_dir.open_file("ns/user").map(Into::into)
        };
        match namespace.and_then(|namespace| self.own.topmost_below(namespace)) {
            Ok(Some(below)) if below.owner == 0 => below.id,
            Ok(Some(below)) => below.owner,
            Ok(None) | Err(_) => uid,
        }
    }

    /// Counts it in `quota` as a process of `share`, for as long as anybody holds it: also without a connection it takes
    /// descriptors. It counts once.
    pub(super) fn count(&self, quota: &Quota, share: u32) -> Result<(), Full> {
        if self.place.get().is_none() {
            // Somebody else may have been faster: then this place is free again.
            let _ = self.place.set(quota.take(share)?);
        }
        Ok(())
    }

    /// Whether the process has not exited. It may run another program; that is [`Self::look`]'s question.
    pub fn is_alive(&self) -> bool {
        self.pidfd().is_alive()
    }

    /// The check to make before every use (some microseconds): the process is alive, runs the same executable, and has
    /// these credentials now. An end that is seen here is the end for every holder of the instance.
    pub fn look(&self) -> Result<Facts, LookError> {
        if let Some(end) = *self.end.borrow() {
            return Err(end.into());
        }
        self.look_now().map_err(|error| match error {
            LookError::Ended(end) => self.over(end).into(),
            unseen => unseen,
        })
    }

    /// The credentials of the process now, with its supplementary groups.
    pub fn status(&self) -> Result<Status, LookError> {
        let status = self.proc_dir.status();
        // What was read is about this instance only if it still is one.
        self.look()?;
        status.map_err(LookError::Unseen)
    }

    /// The end of this instance that was noticed already. `None` is no sign of life.
    pub fn known_end(&self) -> Option<InstanceEnd> {
        *self.end.borrow()
    }

    /// Waits for the end: the exit of the process as an event, another executable when anybody's [`Self::look`] sees it.
    pub async fn ended(&self) -> InstanceEnd {
        let mut seen = self.end.subscribe();
        tokio::select! {
            biased;
            Ok(end) = seen.wait_for(Option::is_some) => end.unwrap_or(InstanceEnd::Exited),
            () = self.pidfd.exited() => self.over(InstanceEnd::Exited),
        }
    }

    /// [`Self::ended`] as a future that keeps the instance alive.
    pub fn ended_owned(self: &Arc<Self>) -> impl Future<Output = InstanceEnd> + Send + 'static {
        let instance = self.clone();
        async move { instance.ended().await }
    }

    /// Notes the end unless there was one before, and returns the one that counts.
    fn over(&self, end: InstanceEnd) -> InstanceEnd {
        let mut counts = end;
        self.end.send_if_modified(|known| {
            counts = *known.get_or_insert(end);
            counts == end
        });
        counts
    }

    fn look_now(&self) -> Result<Facts, LookError> {
        let facts = self.facts();
        let executable = self.proc_dir.executable();
        // Last: only if it is alive now was everything above about it.
        if !self.is_alive() {
            return Err(InstanceEnd::Exited.into());
        }
        match (&self.executable, executable) {
            (Ok(first), Ok(now)) if *first == now => {}
            (_, Ok(_)) => return Err(InstanceEnd::ExecutableChanged.into()),
            (Ok(_), Err(error)) => return Err(lost_sight(error)),
            (Err(_), Err(_)) => {}
        }
        facts.map_err(LookError::Unseen)
    }

    fn facts(&self) -> io::Result<Facts> {
        if self.kernel.pidfd_info {
            let info = self.pidfd().info()?;
            return Ok(Facts { uid: info.uid, gid: info.gid, cgroup_id: info.cgroup_id });
        }
        let status = self.proc_dir.status()?;
        Ok(Facts { uid: status.uid, gid: status.gid, cgroup_id: self.proc_dir.cgroup_id()? })
    }
}

/// What it means that the executable, which could be read before, cannot be read now.
fn lost_sight(error: io::Error) -> LookError {
    match error.raw_os_error() {
        // A process without a program is on its way out.
        Some(libc::ENOENT | libc::ESRCH) => InstanceEnd::Exited.into(),
        Some(libc::EACCES | libc::EPERM) => InstanceEnd::ExecutableHidden.into(),
        _ => LookError::Unseen(error),
    }
}
