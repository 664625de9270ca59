//! Why a launch is not believed, or cannot be measured.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use crate::peer::{LookError, Weakness};

/// Why there are no `launch:*` facts for what is to be launched.
#[derive(Debug, Error)]
pub enum LaunchError {
    /// The caller's program is none of those in `sessions.launchers`.
    #[error("only the programs in `sessions.launchers` are believed about what they launch ({0})")]
    NotALauncher(String),
    /// It cannot be seen which program the caller is.
    #[error("the program of the launcher cannot be seen: {0}")]
    Hidden(String),
    /// Somebody else can send in the caller's name.
    #[error("the launcher is not believed: {0}")]
    Weak(Weakness),
    /// A tracer can make the launcher say anything.
    #[error("the launcher is being traced, so that it is not believed")]
    Traced,
    /// Any process of its user could make it say anything.
    #[error("the launcher can be traced by every process of its user, so that it is not believed; `tether run` cannot")]
    Traceable,
    /// The launcher is gone, or cannot be looked at.
    #[error(transparent)]
    Look(#[from] LookError),
    /// A path that does not begin at the root, or is not text that a selector can hold.
    #[error("`{0}` is not an absolute path of one line")]
    Path(String),
    /// The file cannot be opened by the launcher's user.
    #[error("`{path}` cannot be read by the launcher")]
    Open {
        /// The path, as the launcher named it.
        path: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It is a socket, a pipe, a device, or a directory where a file is meant, or the reverse.
    #[error("`{path}` is not a {wanted}")]
    Kind {
        /// The path.
        path: String,
        /// `file` or `directory`.
        wanted: &'static str,
    },
    /// The file has no digest: it is too large, changes, or is on a file system that shows each reader another content.
    #[error("`{path}` cannot be measured: {why}")]
    Digest {
        /// The path.
        path: String,
        /// Why not, in words.
        why: Arc<str>,
    },
    /// It takes too long.
    #[error("what is to be launched could not be measured within {0:?}; measure less, or try again")]
    Late(Duration),
    /// There is a launch for exactly these members already.
    #[error("something was launched for the same members already; each launch needs a process or a cgroup of its own")]
    Again,
}
