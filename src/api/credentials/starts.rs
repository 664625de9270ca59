//! What each start of a unit was given.
//!
//! Promises: whoever asks about one start finds what the others were given; a start that is given nothing is forgotten with
//! its last question, and one that is over with the next start of its unit, or with the end of its certificate.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use time::OffsetDateTime;
use tokio::sync::Mutex as AsyncMutex;

use crate::issue::UnitSvid;

/// So many starts are known at one time. Each has a key.
pub(super) const MAX_STARTS: usize = 4096;

/// One start of one unit.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Start {
    pub(super) unit: String,
    pub(super) invocation: String,
}

/// What one start of a unit was given.
#[derive(Debug, Default)]
pub(super) struct Given {
    pub(super) svid: Option<Arc<UnitSvid>>,
    /// Which credentials, of this SVID.
    pub(super) names: HashSet<String>,
}

type Place = Arc<AsyncMutex<Given>>;

/// All starts that are known.
#[derive(Debug, Default)]
pub(super) struct Starts(Mutex<HashMap<Start, Place>>);

impl Starts {
    /// A question about a start; `None` when as many others are known as may be.
    pub(super) fn ask(&self, start: Start, now: OffsetDateTime) -> Option<Asking<'_>> {
        let mut known = self.lock();
        if !known.contains_key(&start) {
            // systemd starts a unit once at a time: what it was given before is over.
            known.retain(|other, place| other.unit != start.unit && !is_over(place, now));
            if known.len() >= MAX_STARTS {
                return None;
            }
        }
        let place = known.entry(start.clone()).or_default().clone();
        drop(known);
        Some(Asking { starts: self, start, place })
    }

    /// A question about each that is known.
    pub(super) fn all(&self) -> Vec<Asking<'_>> {
        let known = self.lock();
        known.iter().map(|(start, place)| Asking { starts: self, start: start.clone(), place: place.clone() }).collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Start, Place>> {
        // The map is whole whenever the lock is free, also after a panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether its certificate has ended, and nobody asks about it.
fn is_over(place: &Place, now: OffsetDateTime) -> bool {
    let ended = |given: &Given| given.svid.as_ref().is_some_and(|svid| svid.svid.signed.not_after <= now);
    Arc::strong_count(place) == 1 && place.try_lock().is_ok_and(|given| ended(&given))
}

/// A question about one start. With the last one a start is forgotten that was given nothing.
pub(super) struct Asking<'a> {
    starts: &'a Starts,
    start: Start,
    place: Place,
}

impl Asking<'_> {
    /// The unit.
    pub(super) fn unit(&self) -> &str {
        &self.start.unit
    }

    /// What it was given. One question after the other.
    pub(super) async fn given(&self) -> tokio::sync::MutexGuard<'_, Given> {
        self.place.lock().await
    }

    /// Forgets what it was given, if that is still `svid`.
    pub(super) async fn forget(&self, svid: &Arc<UnitSvid>) {
        let mut given = self.given().await;
        if given.svid.as_ref().is_some_and(|known| Arc::ptr_eq(known, svid)) {
            *given = Given::default();
        }
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        let mut known = self.starts.lock();
        // Others get theirs from the map, which is locked: besides that one and this there is none, or it is in use.
        let is_last = Arc::strong_count(&self.place) == 2
            && known.get(&self.start).is_some_and(|place| Arc::ptr_eq(place, &self.place));
        if is_last && self.place.try_lock().is_ok_and(|given| given.svid.is_none()) {
            known.remove(&self.start);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

    fn start(unit: &str, invocation: &str) -> Start {
        Start { unit: unit.to_owned(), invocation: invocation.to_owned() }
    }

    fn known(starts: &Starts) -> usize {
        starts.lock().len()
    }

    #[test]
    fn a_start_that_was_given_nothing_is_forgotten_with_its_last_question() {
        let starts = Starts::default();
        let first = starts.ask(start("a.service", "1"), NOW).expect("room");
        let second = starts.ask(start("a.service", "1"), NOW).expect("room");
        assert!(Arc::ptr_eq(&first.place, &second.place));
        drop(first);
        assert_eq!(known(&starts), 1);
        drop(starts.all());
        assert_eq!(known(&starts), 1);
        drop(second);
        assert_eq!(known(&starts), 0);
    }

    #[test]
    fn the_next_start_of_a_unit_ends_the_one_before_and_no_other_units() {
        let starts = Starts::default();
        let before = starts.ask(start("a.service", "1"), NOW).expect("room");
        let other = starts.ask(start("b.service", "1"), NOW).expect("room");
        let next = starts.ask(start("a.service", "2"), NOW).expect("room");
        assert_eq!(known(&starts), 2);
        drop(before);
        assert_eq!(known(&starts), 2, "a late question of the one before takes nothing along");
        drop((other, next));
        assert_eq!(known(&starts), 0);
    }

    #[test]
    fn no_more_starts_are_known_than_may_be_and_those_that_are_have_their_answers() {
        let starts = Starts::default();
        let unit = |number: usize| start(&format!("a@{number}.service"), "1");
        let mut asking: Vec<_> = (0..MAX_STARTS).map(|number| starts.ask(unit(number), NOW).expect("room")).collect();
        assert!(starts.ask(unit(MAX_STARTS), NOW).is_none());
        assert!(starts.ask(unit(0), NOW).is_some());
        asking.pop();
        assert!(starts.ask(unit(MAX_STARTS), NOW).is_some());
    }
}
