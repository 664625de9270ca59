//! Asking in the name of another process.

use crate::proto::session::OnBehalfOf;

/// Another process to ask for, as a delegate does: a proxy beside a program that knows nothing of SPIFFE.
///
/// The delegate's registration entry must list the other's identity under `may_act_for`. What it is given is the other's:
/// tether holds the keys, every use is checked against both processes, and everything ends with either.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ActFor {
    /// Its number.
    pub pid: i32,
    /// The number of its inode on pidfs, of the pidfd that it is known by: never used twice, as its number is.
    pub pidfs_inode: u64,
    /// Whether it is known by less than a connection of its own, as by a port on the loopback interface: then what is made
    /// for it has binding level 2 at most.
    pub weak: bool,
}

impl ActFor {
    pub(super) fn to_wire(self) -> OnBehalfOf {
        OnBehalfOf { pid: self.pid, pidfs_inode: self.pidfs_inode, weak: self.weak }
    }
}
