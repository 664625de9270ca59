//! Whose end revokes what was issued: the process, its cgroup or unit, the node.

use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::attest::Attested;
use crate::peer::{Instance, InstanceEnd, InstanceId, Instances};
use crate::registry::Bind;

/// Whose end revokes a credential.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Tie {
    /// One program in one process.
    Process {
        /// Which.
        instance: InstanceId,
        /// Its process number.
        pid: i32,
    },
    /// A cgroup v2 directory.
    Cgroup {
        /// Its inode number.
        id: u64,
        /// Its path below the root of the hierarchy.
        path: PathBuf,
    },
    /// One run of a systemd unit.
    Unit {
        /// Its name.
        name: String,
        /// Its invocation id in hex.
        invocation: String,
    },
    /// This node: no end but revocation and expiry.
    Node,
}

impl std::fmt::Display for Tie {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Process { instance, .. } => write!(f, "process {instance}"),
            Self::Cgroup { path, .. } => write!(f, "cgroup {}", path.display()),
            Self::Unit { name, invocation } => write!(f, "unit {name} {invocation}"),
            Self::Node => f.write_str("node"),
        }
    }
}

/// How something that credentials are tied to ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The process has exited.
    ProcessExited,
    /// The process runs another program.
    ExecutableChanged,
    /// The program of the process can no longer be seen.
    ExecutableHidden,
    /// The cgroup has no process any more.
    CgroupEmpty,
    /// The unit has stopped.
    UnitStopped,
    /// The host was booted.
    Rebooted,
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

/// Why it cannot be said what a credential is tied to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it cannot be said what the process is bound to: {0}")]
pub struct BondError(String);

/// Finds and watches ties.
#[derive(Clone, Debug)]
pub struct Bonds {
    instances: Instances,
}

/// A tie that is held, so that its end is an event.
#[derive(Debug)]
pub struct Hold(Option<Arc<Instance>>);

impl Bonds {
    /// Ties of this host's processes.
    pub fn new(instances: Instances) -> Self {
        Self { instances }
    }

    /// What an instance is tied to under `bind`, now.
    pub async fn tie(&self, instance: &Arc<Instance>, _: &Attested, bind: Bind) -> Result<Tie, BondError> {
        match bind {
            Bind::Process => Ok(Tie::Process { instance: *instance.id(), pid: instance.pid() }),
            Bind::Unit | Bind::Node => Ok(Tie::Node),
        }
    }

    /// Takes hold of a tie; the end when it has ended already.
    pub async fn hold(&self, tie: &Tie) -> Result<Hold, End> {
        let Tie::Process { instance, pid } = tie else { return Ok(Hold(None)) };
        if instance.boot() != self.instances.boot() {
            return Err(End::Rebooted);
        }
        let found = self.instances.of_pid(*pid, instance.pidfs_inode()).map_err(|_| End::ProcessExited)?;
        match found.id() {
            id if id == instance => Ok(Hold(Some(found))),
            id if id.same_process(instance) => Err(End::ExecutableChanged),
            _ => Err(End::ProcessExited),
        }
    }
}

impl Hold {
    /// Waits for the end.
    pub async fn ended(&self) -> End {
        match &self.0 {
            Some(instance) => instance.ended().await.into(),
            None => std::future::pending().await,
        }
    }
}
