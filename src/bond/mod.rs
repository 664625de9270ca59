//! Whose end revokes a credential, and that end as an event.
//!
//! An entry says `bind = "process" | "unit" | "node"`. [`Bonds::tie`] turns that into a [`Tie`] of one instance, which can
//! be written down, and [`Bonds::hold`] takes hold of a tie, new or read from the ledger, so that [`Hold::ended`] can be
//! waited for. Nothing polls.
//!
//! # What a unit is
//! - On a host with cgroups of version 2: the directory of the process. Where the path says that it is in a systemd
//!   unit, the directory of that unit, so that a process cannot choose one by making it (a delegated unit) and a child
//!   directory that ends early does not end what is the unit's. In the manager of a user, for a process of that user, it is
//!   the user's unit: the user chooses which, and chooses it within what lasts as long as the manager.
//! - For a process in the root of that hierarchy, as all are on hosts that use version 1: what systemd calls the unit,
//!   and which start of it. (An agent in a cgroup namespace of its own sees the root of that.)
//! - Where there is neither, the node. A process in a container of version 1 without systemd is such a one.
//!
//! # When it ends
//! - A process: when it exits. Another executable is no event of the kernel: whoever looks at the instance sees it.
//! - A cgroup: when no process is left in it or below, or the directory is gone; one made again at its path is another.
//!   Between the commands of a unit (`ExecStartPre=` and `ExecStart=`) there is no process either, and the unit goes on:
//!   so where systemd says, when the group empties, that the same start of the unit runs, its word counts. After a
//!   restart of the agent it counts for a directory that is still there: a unit that is active with `RemainAfterExit=`
//!   and has no processes lost it, and with it what was issued.
//! - A unit of systemd: when that start of it is over.
//! - All of them with the boot. The node does not end.
//!
//! # What it does not promise
//! Whoever may move processes between cgroups (root; a user within its own manager) can keep a cgroup in use.

mod members;
mod tie;
mod unit;

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use nix::libc;
use thiserror::Error;

pub use tie::{CgroupPath, InvalidTie, LINGER, Tie};

use self::unit::{Running, Units};
use crate::attest::{
    AttestError, AttestationError, Attested, Bus, CgroupPaths, Systemd, SystemdConfig, UnitManagerError, UnitWatcher,
    unit_path,
};
use crate::base::clock::Clock;
use crate::base::entropy::Entropy;
use crate::peer::{Instance, InstanceEnd, InstanceError, InstanceId, Instances};
use crate::registry::Bind;
use crate::sys::cgroup::{Group, Population, WatchedGroup};

/// Why it cannot be said to what an instance is tied. Nothing may be released.
#[derive(Debug, Error)]
pub enum BondError {
    /// The process is gone, or its place cannot be read.
    #[error("the cgroup of the process cannot be found out: {0}")]
    Place(#[from] AttestError),
    /// The process is in another cgroup than it was attested in.
    #[error("the process was moved to another cgroup while it was looked at: try again")]
    Moved,
    /// The process is where our cgroup namespace does not reach.
    #[error(
        "its cgroup `{0}` is outside the agent's cgroup namespace, so that its end cannot be seen; run the agent in the host's"
    )]
    Outside(String),
    /// The process is in no cgroup of version 2 but the root, where everybody is whom nobody has put elsewhere.
    #[error(
        "the process is in the root cgroup, as all are that nobody has put elsewhere; start it in a cgroup of its own, \
         or use the scope `process` or `tree`"
    )]
    RootCgroup,
    /// The directory cannot be opened, or its path cannot be written down.
    #[error("its cgroup `{path}` cannot be watched: {source}")]
    Cgroup {
        /// The path.
        path: String,
        /// What the kernel answered.
        #[source]
        source: io::Error,
    },
    /// systemd, which alone can tell on a host without cgroups of version 2, does not.
    #[error("systemd does not say which unit the process is in, to which it is to be bound: {0}")]
    Systemd(#[source] UnitManagerError),
    /// systemd does not tell the starts of this unit apart.
    #[error(
        "systemd has no invocation id for `{0}`, so that its end cannot be told; use `bind = \"process\"` or `\"node\"`"
    )]
    NoInvocation(String),
    /// There are no descriptors or memory for asking about the process.
    #[error("the process cannot be asked about now")]
    Attestation(#[from] AttestationError),
}

/// How a tie ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
pub enum End {
    /// The process has exited.
    #[error("the process has exited")]
    ProcessExited,
    /// The process runs another program.
    #[error("the process has executed another program")]
    ExecutableChanged,
    /// It can no longer be seen whether the process runs the same program.
    #[error("the program of the process can no longer be seen by the agent")]
    ExecutableHidden,
    /// No process is left in the cgroup.
    #[error("no process is left in the cgroup")]
    CgroupEmpty,
    /// The unit was stopped, or was started anew.
    #[error("the unit was stopped")]
    UnitStopped,
    /// The node was started anew.
    #[error("the node was rebooted")]
    Rebooted,
}

impl End {
    /// A label of a small fixed set, for the ledger, metrics and audit.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ProcessExited => "process_exited",
            Self::ExecutableChanged => "executable_changed",
            Self::ExecutableHidden => "executable_hidden",
            Self::CgroupEmpty => "cgroup_empty",
            Self::UnitStopped => "unit_stopped",
            Self::Rebooted => "rebooted",
        }
    }
}

impl From<InstanceEnd> for End {
    fn from(end: InstanceEnd) -> Self {
        match end {
            InstanceEnd::Exited => Self::ProcessExited,
            InstanceEnd::ExecutableChanged => Self::ExecutableChanged,
            InstanceEnd::ExecutableHidden => Self::ExecutableHidden,
        }
    }
}

/// Why a tie is not held. Nothing may be released that depends on it.
#[derive(Debug, Error)]
pub enum Unheld {
    /// It has ended.
    #[error(transparent)]
    Ended(#[from] End),
    /// The system could not answer now, for lack of memory or descriptors: nothing is known to have ended.
    #[error("what it is tied to cannot be looked at now")]
    Unseen(#[source] io::Error),
    /// systemd does not answer: nothing is known to have ended.
    #[error("systemd does not say whether the unit runs")]
    Systemd(#[source] UnitManagerError),
}

/// Finds out to what instances are tied, and holds ties. Cheap to clone.
#[derive(Clone)]
pub struct Bonds(Arc<Shared>);

struct Shared {
    instances: Instances,
    systemd: Systemd,
    units: Units,
    root: Option<Group>,
}

/// What is kept with an instance.
#[derive(Debug, Default)]
struct Memory(Mutex<Option<Known>>);

/// The tie of an instance that had this user and was in this place.
#[derive(Clone, Debug)]
struct Known {
    uid: u32,
    cgroup: Option<u64>,
    /// Kept where the cgroup alone does not tell: on hosts that use version 1.
    paths: Option<CgroupPaths>,
    tie: Tie,
}

impl Bonds {
    /// Bonds of this host's processes. systemd is asked as `config` says.
    pub fn of_host(instances: Instances, config: &SystemdConfig, clock: &Clock, entropy: &Entropy) -> io::Result<Self> {
        let bus = Arc::new(Bus::new(config.address.clone()));
        let systemd = Systemd::new(config, bus.clone(), clock.clone(), entropy.clone());
        Self::new(instances, systemd, bus, config, entropy.clone())
    }

    /// Bonds of processes whose units `systemd` names and `units` watches.
    pub fn new(
        instances: Instances,
        systemd: Systemd,
        units: Arc<dyn UnitWatcher>,
        config: &SystemdConfig,
        entropy: Entropy,
    ) -> io::Result<Self> {
        let units = Units::new(units, config.patience, entropy);
        Ok(Self(Arc::new(Shared { instances, systemd, units, root: Group::root()? })))
    }

    /// What an instance is tied to under `bind`, as it was attested. Asked again for the same instance in the same
    /// cgroup it costs nothing, or one read of `/proc` on hosts that use version 1.
    pub async fn tie(&self, instance: &Arc<Instance>, attested: &Attested, bind: Bind) -> Result<Tie, BondError> {
        match bind {
            Bind::Process => Ok(Tie::Process { instance: *instance.id(), pid: instance.pid() }),
            Bind::Unit => self.tie_of_unit(instance, attested).await,
            Bind::Node => Ok(Tie::Node),
        }
    }

    /// Takes hold of a tie, new or read from the ledger: from here on its end is not missed. Call it inside a runtime.
    pub async fn hold(&self, tie: &Tie) -> Result<Hold, Unheld> {
        if tie.boot().is_some_and(|boot| boot != self.0.instances.boot()) {
            return Err(End::Rebooted.into());
        }
        let of = match tie {
            Tie::Exported(of) => of,
            of => of,
        };
        let held = match of {
            Tie::Process { instance, pid } => Held::Process(self.hold_process(instance, *pid)?),
            Tie::Cgroup { id, path, .. } => Held::Cgroup(self.hold_cgroup(*id, path).await?),
            Tie::Unit { name, invocation, .. } => Held::Unit(self.0.units.hold(name, invocation).await?),
            Tie::Session(_) | Tie::Node | Tie::Exported(_) => Held::Nothing,
        };
        Ok(Hold { tie: tie.clone(), held, bonds: self.clone() })
    }

    async fn tie_of_unit(&self, instance: &Arc<Instance>, attested: &Attested) -> Result<Tie, BondError> {
        let (uid, cgroup) = (attested.uid(), attested.cgroup_id());
        let memory = instance.remembered::<Memory>();
        let known = memory.get().filter(|known| (known.uid, known.cgroup) == (uid, cgroup));
        if let Some(known) = known.as_ref().filter(|known| known.paths.is_none()) {
            return Ok(known.tie.clone());
        }
        let paths = CgroupPaths::read(instance.proc_dir())?;
        if let Some(known) = known.filter(|known| known.paths.as_ref() == Some(&paths) && self.stands(&known.tie)) {
            return Ok(known.tie);
        }
        let known = match paths.unified.as_deref() {
            Some("/") | None => {
                self.is_root(cgroup)?;
                let tie = self.by_systemd(instance, attested).await?;
                Known { uid, cgroup, paths: Some(paths), tie }
            }
            Some(path) => Known { uid, cgroup, paths: None, tie: self.by_path(path, cgroup, uid)? },
        };
        // It was there when it was attested and when its place was read: a process that exits meanwhile stays where it was.
        let tie = known.tie.clone();
        memory.set(known);
        Ok(tie)
    }

    /// Whether the process was attested in the root, as far as we see that: of the host, or of our cgroup namespace.
    fn is_root(&self, cgroup: Option<u64>) -> Result<(), BondError> {
        let (Some(cgroup), Some(root)) = (cgroup, &self.0.root) else { return Ok(()) };
        let unwatched = |source| BondError::Cgroup { path: "/".into(), source };
        if root.id().map_err(unwatched)? == cgroup { Ok(()) } else { Err(BondError::Moved) }
    }

    /// The directory of the unit in `path`, or the one at `path`, in which the process was found by its id.
    fn by_path(&self, path: &str, cgroup: Option<u64>, uid: u32) -> Result<Tie, BondError> {
        self.at_path(path, unit_path(path, uid).unwrap_or(path), cgroup)
    }

    /// The directory at `top`, with a process at `path`, which is that or below it, in the directory `cgroup`.
    fn at_path(&self, path: &str, top: &str, cgroup: Option<u64>) -> Result<Tie, BondError> {
        if CgroupPaths::is_outside(path) {
            return Err(BondError::Outside(path.to_owned()));
        }
        let unwatched = |source| BondError::Cgroup { path: path.to_owned(), source };
        let root = self.0.root.as_ref().ok_or_else(|| unwatched(not_mounted()))?;
        let named = CgroupPath::parse(top).ok_or_else(|| unwatched(io::ErrorKind::InvalidData.into()))?;
        let removed = |error: io::Error| match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV) => BondError::Moved,
            _ => unwatched(error),
        };
        let group = root.below(top).map_err(removed)?;
        // Through the directory we take: that the process was found below says that it is the right one.
        let own = group.below(&path[top.len()..]).and_then(|own| own.id()).map_err(removed)?;
        if cgroup.is_some_and(|cgroup| cgroup != own) {
            return Err(BondError::Moved);
        }
        Ok(Tie::Cgroup { boot: self.0.instances.boot(), id: group.id().map_err(unwatched)?, path: named })
    }

    /// What systemd calls the unit of the process.
    async fn by_systemd(&self, instance: &Arc<Instance>, attested: &Attested) -> Result<Tie, BondError> {
        let subject = attested.subject(instance)?;
        let Some(unit) = self.0.systemd.unit_of(&subject).await.map_err(BondError::Systemd)? else {
            return Ok(Tie::Node);
        };
        match unit.invocation_id {
            Some(invocation) => Ok(Tie::Unit { boot: self.0.instances.boot(), name: unit.id, invocation }),
            None => Err(BondError::NoInvocation(unit.id)),
        }
    }

    /// Whether a tie that was found before can be had again without asking.
    fn stands(&self, tie: &Tie) -> bool {
        match tie {
            Tie::Unit { name, invocation, .. } => self.0.units.is_held(name, invocation),
            _ => true,
        }
    }

    fn hold_process(&self, meant: &InstanceId, pid: i32) -> Result<Arc<Instance>, Unheld> {
        let found = self.0.instances.of_pid(pid, meant.pidfs_inode()).map_err(|error| match error {
            InstanceError::Io { source, .. } => Unheld::Unseen(source),
            // Whoever has the number now: it is not the process that was meant.
            InstanceError::Gone
            | InstanceError::OutsidePidNamespace
            | InstanceError::AnotherProcess { .. }
            | InstanceError::NoInodes => End::ProcessExited.into(),
        })?;
        if found.id() == meant {
            return Ok(found);
        }
        Err(match found.executable() {
            _ if !found.id().same_process(meant) => End::ProcessExited,
            Ok(_) => End::ExecutableChanged,
            Err(_) => End::ExecutableHidden,
        }
        .into())
    }

    async fn hold_cgroup(&self, id: u64, path: &CgroupPath) -> Result<WatchedGroup, Unheld> {
        let ended = |error: io::Error| match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV | libc::ENOTDIR) => End::CgroupEmpty.into(),
            _ => Unheld::Unseen(error),
        };
        let root = self.0.root.as_ref().ok_or_else(|| Unheld::Unseen(not_mounted()))?;
        let group = root.below(path.as_str()).map_err(ended)?;
        if group.id().map_err(Unheld::Unseen)? != id {
            return Err(End::CgroupEmpty.into());
        }
        let watched = group.watch().map_err(ended)?;
        match watched.population().map_err(Unheld::Unseen)? {
            Population::Some => Ok(watched),
            // In the moment between two commands of a unit.
            Population::None if self.unit_goes_on(path).await => Ok(watched),
            Population::None | Population::Removed => Err(End::CgroupEmpty.into()),
        }
    }

    async fn unit_goes_on(&self, path: &CgroupPath) -> bool {
        match self.unit_of(path) {
            Some(unit) => self.0.units.is_running(unit).await,
            None => false,
        }
    }

    /// The unit of the system's manager whose own directory this is. Of a user's manager nothing can be asked here: its
    /// units go with their processes.
    fn unit_of<'a>(&self, path: &'a CgroupPath) -> Option<&'a str> {
        // No user has this number: (uid_t)-1 stands for none.
        let is_units_own = self.0.systemd.has_booted() && unit_path(path.as_str(), u32::MAX) == Some(path.as_str());
        let name = path.as_str().rsplit('/').next().filter(|_| is_units_own)?;
        Some(name.strip_prefix('_').unwrap_or(name))
    }

    /// Waits until no process is left, or nothing but systemd's word that the unit goes on, and then for that to end.
    async fn group_ended(&self, path: &CgroupPath, watched: &WatchedGroup) -> End {
        match self.unit_of(path) {
            Some(unit) => self.0.units.group_ended(unit, watched).await,
            None => {
                watched.emptied().await;
                End::CgroupEmpty
            }
        }
    }
}

fn not_mounted() -> io::Error {
    io::Error::other("the hierarchy of version 2 is not mounted at `/sys/fs/cgroup` or `/sys/fs/cgroup/unified`")
}

impl Memory {
    fn get(&self) -> Option<Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, known: Known) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(known);
    }
}

/// A tie that is held: its end is not missed.
pub struct Hold {
    tie: Tie,
    held: Held,
    bonds: Bonds,
}

enum Held {
    Process(Arc<Instance>),
    Cgroup(WatchedGroup),
    Unit(Running),
    /// The node does not end, and whoever keeps sessions says itself when one does.
    Nothing,
}

impl Hold {
    /// What is held.
    pub fn tie(&self) -> &Tie {
        &self.tie
    }

    /// The instance of a process: to look at before anything is released.
    pub fn instance(&self) -> Option<&Arc<Instance>> {
        match &self.held {
            Held::Process(instance) => Some(instance),
            Held::Cgroup(_) | Held::Unit(_) | Held::Nothing => None,
        }
    }

    /// Waits for the end, and returns at once if it has ended already. Never polls. Dropping the future loses nothing.
    pub async fn ended(&self) -> End {
        let of = match &self.tie {
            Tie::Exported(of) => of,
            of => of,
        };
        match (&self.held, of) {
            (Held::Process(instance), _) => instance.ended().await.into(),
            (Held::Cgroup(watched), Tie::Cgroup { path, .. }) => self.bonds.group_ended(path, watched).await,
            (Held::Cgroup(watched), _) => {
                watched.emptied().await;
                End::CgroupEmpty
            }
            (Held::Unit(running), _) => self.bonds.0.units.ended(running).await,
            (Held::Nothing, _) => std::future::pending().await,
        }
    }
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hold").field("tie", &self.tie).finish_non_exhaustive()
    }
}

impl fmt::Debug for Bonds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Bonds")
    }
}

#[cfg(test)]
mod tests;
