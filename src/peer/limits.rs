//! How many connections may be open, counted before anything is spent on them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::refusal::Refusal;

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

/// Counts the open connections of one listener.
#[derive(Clone, Debug, Default)]
pub(super) struct Admission(Arc<Mutex<Open>>);

#[derive(Debug, Default)]
struct Open {
    all: usize,
    by_uid: HashMap<u32, usize>,
}

/// The place of one open connection, free again when this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    admission: Admission,
    uid: u32,
}

impl Admission {
    /// Takes a place for a connection of `uid`.
    pub(super) fn admit(&self, uid: u32, limits: &Limits) -> Result<Place, Refusal> {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if open.by_uid.get(&uid).is_some_and(|count| *count >= limits.connections_per_uid) {
            return Err(Refusal::TooManyConnections { of_user: true, limit: "connections_per_uid" });
        }
        if open.all >= limits.connections {
            return Err(Refusal::TooManyConnections { of_user: false, limit: "connections" });
        }
        open.all += 1;
        *open.by_uid.entry(uid).or_default() += 1;
        Ok(Place { admission: self.clone(), uid })
    }

    /// How many connections are open.
    pub(super) fn open(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).all
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.admission.0.lock().unwrap_or_else(PoisonError::into_inner);
        open.all -= 1;
        if let Some(count) = open.by_uid.get_mut(&self.uid) {
            *count -= 1;
            if *count == 0 {
                open.by_uid.remove(&self.uid);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_user_at_its_limit_does_not_keep_out_another_and_a_closed_connection_makes_room() {
        let limits = Limits { connections: 3, connections_per_uid: 2, ..Limits::default() };
        let admission = Admission::default();
        let first = admission.admit(1000, &limits).expect("room");
        let _second = admission.admit(1000, &limits).expect("room");
        let refused = admission.admit(1000, &limits).expect_err("full");
        assert_eq!(refused, Refusal::TooManyConnections { of_user: true, limit: "connections_per_uid" });
        let _other = admission.admit(0, &limits).expect("room for another user");
        let refused = admission.admit(1, &limits).expect_err("full for all");
        assert_eq!(refused, Refusal::TooManyConnections { of_user: false, limit: "connections" });
        drop(first);
        admission.admit(1000, &limits).expect("room again");
        assert_eq!(admission.open(), 2);
    }

    #[test]
    fn users_without_connections_take_no_memory() {
        let admission = Admission::default();
        for uid in 0..100 {
            drop(admission.admit(uid, &Limits::default()).expect("room"));
        }
        assert!(admission.0.lock().expect("unpoisoned").by_uid.is_empty());
    }
}
