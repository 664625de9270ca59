//! Placeholder: replaced by the agent itself.

use std::future::Future;

use crate::config::{Config, Source};

/// What the agent needs besides its configuration.
#[derive(Debug)]
pub struct Deps {
    /// Where a reload reads the configuration from.
    pub source: Source,
}

impl Deps {
    /// The system's.
    pub fn system(source: Source) -> Self {
        Self { source }
    }
}

/// Why the agent does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// There is no agent in this build.
    #[error("there is no agent in this build")]
    Absent,
}

/// An agent whose sockets are bound.
#[derive(Debug)]
pub struct Bound;

/// Binds.
pub async fn build(_config: Config, _deps: Deps) -> Result<Bound, StartError> {
    Err(StartError::Absent)
}

impl Bound {
    /// Runs until `shutdown`.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), StartError> {
        shutdown.await;
        Ok(())
    }
}
