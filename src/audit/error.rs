//! Why something could not be recorded.

use std::path::PathBuf;

use thiserror::Error;

use crate::base::durable::DurableError;
use crate::base::text::chain;

/// Why something could not be recorded, or read. What it was about must not happen then.
#[derive(Debug, Error)]
pub enum AuditError {
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] DurableError),
    /// The directory cannot be listed.
    #[error("cannot list the audit directory `{}`", path.display())]
    List {
        /// The directory.
        path: PathBuf,
        /// The refusal.
        #[source]
        source: std::io::Error,
    },
    /// A file cannot be read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The refusal.
        #[source]
        source: std::io::Error,
    },
    /// What is in the directory is of another node.
    #[error(
        "`{}` is the audit log of another node: move it away, or name another directory in `audit.dir`",
        .0.display()
    )]
    Foreign(PathBuf),
    /// A task ended early.
    #[error("the agent is stopping")]
    Stopping,
}

impl AuditError {
    /// The error with everything behind it, on one line: that a disk is full is behind it.
    pub fn with_causes(&self) -> String {
        chain(self)
    }
}
