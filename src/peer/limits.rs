//! How many connections may be open, counted before anything is spent on them.

use std::time::Duration;

use super::refusal::Refusal;
use crate::base::quota::Full;

/// How much callers may take. No user is exempt, root neither: the agent's own memory is what is at stake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections open at the same time, of all users together. Also the limit of processes that have connected and are
    /// still held, because they have connections or hold credentials.
    pub connections: usize,
    /// The same of one user.
    pub connections_per_uid: usize,
    /// How long a caller may take, after `accept`, to answer the challenge. Also ends connections that send nothing.
    pub half_open: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: 16_384, connections_per_uid: 4_096, half_open: Duration::from_secs(10) }
    }
}

/// Descriptors that a connection can take: its own, and two of an instance that no other connection has.
const DESCRIPTORS: u64 = 3;
/// Descriptors that are kept for everything else, as far as there are twice as many: files that are hashed or read
/// from `/proc`, the store, entries, D-Bus, http.
const RESERVE: u64 = 512;

impl Limits {
    /// How many connections of all listeners fit into so many descriptors.
    pub fn fitting(open_files: u64) -> usize {
        let left = open_files - RESERVE.min(open_files / 2);
        usize::try_from(left / DESCRIPTORS).unwrap_or(usize::MAX).max(1)
    }

    /// These limits, lowered to `connections` if they are above. No user has more than a quarter of so few.
    #[must_use]
    pub fn within(self, connections: usize) -> Self {
        if self.connections <= connections {
            return self;
        }
        let connections_per_uid = self.connections_per_uid.min((connections / 4).max(1));
        Self { connections, connections_per_uid, ..self }
    }
}

impl Refusal {
    /// There is no place for one more connection.
    pub(super) fn of_connections(full: Full) -> Self {
        let (of_user, limit) = limit(full);
        Self::TooManyConnections { of_user, limit }
    }

    /// There is no place for one more process.
    pub(super) fn of_processes(full: Full) -> Self {
        let (of_user, limit) = limit(full);
        Self::TooManyProcesses { of_user, limit }
    }
}

/// Whether it is the user's, and its name in the configuration.
fn limit(full: Full) -> (bool, &'static str) {
    match full {
        Full::User(_) => (true, "connections_per_uid"),
        Full::All(_) => (false, "connections"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_with_an_instance_each_leave_descriptors_for_the_rest() {
        for (open_files, connections) in [(256, 42), (1024, 170), (4096, 1194), (524_288, 174_592), (0, 1)] {
            assert_eq!(Limits::fitting(open_files), connections, "{open_files}");
        }
    }

    #[test]
    fn lowered_limits_leave_room_for_other_users_and_a_low_one_alone() {
        let limits = Limits::default();
        assert_eq!(limits.within(usize::MAX), limits);
        assert_eq!(limits.within(limits.connections), limits);
        for (connections, of_user) in [(32, 8), (10, 2), (1, 1)] {
            let lowered = limits.within(connections);
            assert_eq!((lowered.connections, lowered.connections_per_uid), (connections, of_user));
        }
        let low = Limits { connections_per_uid: 2, ..limits };
        assert_eq!(low.within(1000).connections_per_uid, 2);
    }
}
