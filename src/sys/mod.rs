//! The kernel, wrapped: process handles, peer credentials, credentials of each message, namespaces.
//!
//! The only unsafe code of the crate is here, each block with the reason why it is sound. Nothing here decides.

mod access;
pub mod cgroup;
pub mod harden;
pub mod inherited;
pub mod kernel;
pub mod landlock;
pub mod launch;
pub mod memfd;
pub mod namespace;
pub mod pidfd;
mod process;
pub mod procfs;
pub mod seccomp;
pub mod sockdiag;
pub mod socket;

pub use access::{Assumed, FileAccess};
pub use kernel::{BootId, Kernel};
pub use pidfd::{PidFd, WatchedPidFd};
pub use process::Status;
