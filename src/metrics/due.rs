//! When open streams look again.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use time::OffsetDateTime;

/// The moments at which something is due, and how many are due then; clones share it. Kept by the second, so its size is
/// that of the longest lifetime and not of what is due.
#[derive(Clone, Debug, Default)]
pub struct Due(Arc<Mutex<BTreeMap<i64, usize>>>);

/// One thing that is due. No longer when this is dropped.
#[derive(Debug)]
pub struct DueAt {
    all: Due,
    second: i64,
}

impl Due {
    /// Something that is due at `at`.
    pub fn at(&self, at: OffsetDateTime) -> DueAt {
        let second = at.unix_timestamp();
        *self.lock().entry(second).or_default() += 1;
        DueAt { all: self.clone(), second }
    }

    /// How many are due until `moment`, those that should have been done before now among them.
    pub fn until(&self, moment: OffsetDateTime) -> usize {
        let until = (Bound::Unbounded, Bound::Included(moment.unix_timestamp()));
        self.lock().range(until).map(|(_, count)| count).sum()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<i64, usize>> {
        // Counts alone: whole whatever panicked elsewhere.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for DueAt {
    fn drop(&mut self) {
        let mut all = self.all.lock();
        if let Some(count) = all.get_mut(&self.second) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.second);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_due_is_counted_until_it_is_done() {
        let due = Due::default();
        let at = |seconds| OffsetDateTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let (first, second, same) = (due.at(at(10)), due.at(at(20)), due.at(at(20)));
        assert_eq!([9, 10, 19, 20, 99].map(|seconds| due.until(at(seconds))), [0, 1, 1, 3, 3]);
        drop((first, same));
        assert_eq!(due.until(at(99)), 1);
        drop(second);
        assert_eq!(due.until(at(99)), 0);
        assert!(due.lock().is_empty(), "nothing is left of what is done");
    }
}
