//! Why the ledger could not do what was asked.

use std::path::PathBuf;

use thiserror::Error;

use crate::base::durable::DurableError;

/// Why the ledger could not do what was asked. Nothing may be released then.
#[derive(Debug, Error)]
pub enum LedgerError {
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] DurableError),
    /// The directory cannot be listed.
    #[error("cannot list the ledger's directory `{}`", path.display())]
    List {
        /// The directory.
        path: PathBuf,
        /// The refusal.
        #[source]
        source: std::io::Error,
    },
    /// A file is of another node, or of a version this agent does not read.
    #[error(
        "`{}` is not a ledger of this node that this version reads: move it away to go on without it; what was issued \
         before then no longer stands, so revoke the authorities as well",
        .0.display()
    )]
    Foreign(PathBuf),
    /// The id is not one that this node makes.
    #[error("BUG: `{0}` is not an id of this node")]
    Id(String),
    /// A user has as many credentials as it may have.
    #[error(
        "user {uid} has {limit} {what} that have not expired, which is the limit (`limits.{setting}`): let some expire, or \
         fetch fewer"
    )]
    Full {
        /// The user.
        uid: u32,
        /// How many.
        limit: usize,
        /// Of what.
        what: &'static str,
        /// The setting that says so.
        setting: &'static str,
    },
    /// A task ended early.
    #[error("the agent is stopping")]
    Stopping,
}
