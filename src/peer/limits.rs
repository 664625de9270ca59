//! How many connections may be open, counted before anything is spent on them.

use std::time::Duration;

use super::refusal::Refusal;
use crate::base::quota::Full;

/// How much callers may take. No user is exempt, root neither: the agent's own memory is what is at stake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections open at the same time, of all users together.
    pub connections: usize,
    /// Connections open at the same time, of one user.
    pub connections_per_uid: usize,
    /// How long a caller may take, after `accept`, to answer the challenge. Also ends connections that send nothing.
    pub half_open: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: 16_384, connections_per_uid: 4_096, half_open: Duration::from_secs(10) }
    }
}

impl From<Full> for Refusal {
    fn from(full: Full) -> Self {
        match full {
            Full::User(_) => Self::TooManyConnections { of_user: true, limit: "connections_per_uid" },
            Full::All(_) => Self::TooManyConnections { of_user: false, limit: "connections" },
        }
    }
}
