//! What was launched.

use std::path::PathBuf;
use std::sync::Arc;

use thiserror::Error;

use crate::bond::Tie;
use crate::peer::Instance;

/// What to measure.
#[derive(Clone, Debug)]
pub struct LaunchRequest {
    /// The program.
    pub program: PathBuf,
    /// The script.
    pub script: Option<PathBuf>,
    /// A directory.
    pub directory: Option<PathBuf>,
}

/// What was measured.
#[derive(Clone, Debug)]
pub struct Launch(Vec<String>);

impl Launch {
    /// The selectors.
    pub fn selectors(&self) -> &[String] {
        &self.0
    }
}

/// Why it cannot be measured.
#[derive(Debug, Error)]
pub enum LaunchError {
    /// Not there yet.
    #[error("not there yet")]
    Unsupported,
}

/// Who was launched.
#[derive(Debug)]
pub enum LaunchedBy {
    /// One process.
    Process(Arc<Instance>),
    /// A tree.
    Tree(Arc<Instance>),
    /// A cgroup.
    Cgroup(Tie),
}

/// Gone when dropped.
#[derive(Debug)]
pub struct Launched;

/// What was launched.
#[derive(Clone, Debug, Default)]
pub struct Launches;

impl Launches {
    /// Measures.
    pub async fn measure(&self, _: &Arc<Instance>, _: &LaunchRequest) -> Result<Launch, LaunchError> {
        Err(LaunchError::Unsupported)
    }

    /// Adds.
    pub fn add(&self, _: LaunchedBy, _: Launch) -> Launched {
        Launched
    }
}
