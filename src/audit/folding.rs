//! A flood of refusals, told as a number: whoever is refused costs the log a few records a minute, however often it asks.
//!
//! # What it promises
//! Of each user and reason [`BURST`] refusals are written one by one, and then one more every [`EACH`] seconds. The others
//! are counted, and at the end of [`INTERVAL`] one record says how many there were; so does the end of the agent. What was
//! given, ended, approved or changed is never counted in place of being written.
//!
//! # What it does not
//! A crash loses what was counted in the interval. There are places for [`MOST_USERS`] users, each of which costs the log as
//! much; a user with many user ids has as many of them. The refusals of all others are counted together.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use time::OffsetDateTime;
use tokio::sync::Notify;

use super::{Caller, Event};
use crate::base::clock::Clock;

/// So many refusals of one user for one reason are written one by one.
pub(super) const BURST: u32 = 60;
/// After so many seconds one more is.
pub(super) const EACH: i64 = 10;
/// The others are told of this long after the first of them.
pub(super) const INTERVAL: Duration = Duration::from_secs(60);
/// So many users are told apart. One that was not refused for ten minutes leaves its place.
pub(super) const MOST_USERS: usize = 64;
/// So many kinds of refusals of one user are told apart: more than one can get.
pub(super) const MOST_REASONS: usize = 32;

/// Which refusals are written one by one, and how many others there were.
#[derive(Debug)]
pub(super) struct Folding {
    clock: Clock,
    state: Mutex<State>,
    /// The first was counted.
    begun: Notify,
}

#[derive(Debug)]
struct State {
    users: BTreeMap<u32, Vec<Share>>,
    /// Of all those for whom there is no place.
    rest: Share,
    /// When to tell of what was counted; `None` when nothing was.
    due: Option<OffsetDateTime>,
    /// Nobody will tell of anything that is counted from now on.
    ended: bool,
}

/// What one user may have written of one kind of refusal.
#[derive(Debug)]
struct Share {
    /// The event's name; empty where all kinds are counted together.
    of: &'static str,
    reason: String,
    left: u32,
    /// Up to when `left` was filled up.
    filled: OffsetDateTime,
    folded: Option<Folded>,
}

#[derive(Debug)]
struct Folded {
    first: Caller,
    count: u64,
    since: OffsetDateTime,
    until: OffsetDateTime,
}

impl Folding {
    pub(super) fn new(clock: Clock) -> Self {
        let rest = Share::new("", "", clock.now());
        let state = State { users: BTreeMap::new(), rest, due: None, ended: false };
        Self { clock, state: Mutex::new(state), begun: Notify::new() }
    }

    /// Whether this event is one refusal too many. Then it was counted, and is not to be written.
    pub(super) fn folds(&self, event: &Event) -> bool {
        let Some((caller, reason)) = refusal(event) else { return false };
        let now = self.clock.now();
        let mut state = self.lock();
        if state.ended || !state.share(caller.uid, event.name(), reason, now).folds(caller, now) {
            return false;
        }
        if state.due.is_none() {
            state.due = Some(now + INTERVAL);
            self.begun.notify_one();
        }
        true
    }

    /// Returns when it is time to tell of what was counted. A clock that is set may make that earlier.
    pub(super) async fn is_due(&self) {
        loop {
            let due = self.lock().due;
            match due {
                Some(due) => return self.clock.sleep_until_or_set(due).await,
                None => self.begun.notified().await,
            }
        }
    }

    /// One event for each user and reason of which refusals were counted, and counts from nothing.
    pub(super) fn take(&self) -> Vec<Event> {
        let mut state = self.lock();
        state.due = None;
        let mut events: Vec<Event> = state.users.values_mut().flatten().filter_map(Share::take).collect();
        events.extend(state.rest.take());
        events
    }

    /// The same for the last time: from now on every refusal is written.
    pub(super) fn end(&self) -> Vec<Event> {
        self.lock().ended = true;
        self.take()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Plain data: what a panic left behind is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn share(&mut self, uid: u32, of: &'static str, reason: &str, now: OffsetDateTime) -> &mut Share {
        if self.users.len() >= MOST_USERS && !self.users.contains_key(&uid) {
            self.users.retain(|_, shares| !shares.iter_mut().all(|share| share.rests(now)));
            if self.users.len() >= MOST_USERS {
                return &mut self.rest;
            }
        }
        let shares = self.users.entry(uid).or_default();
        let known = shares.iter().position(|share| share.of == of && share.reason == reason);
        let at = match known {
            Some(at) => at,
            None if shares.len() >= MOST_REASONS => return &mut self.rest,
            None => {
                shares.push(Share::new(of, reason, now));
                shares.len() - 1
            }
        };
        &mut shares[at]
    }
}

impl Share {
    fn new(of: &'static str, reason: &str, now: OffsetDateTime) -> Self {
        Self { of, reason: reason.to_owned(), left: BURST, filled: now, folded: None }
    }

    fn folds(&mut self, caller: &Caller, now: OffsetDateTime) -> bool {
        self.fill_up(now);
        if self.left > 0 {
            self.left -= 1;
            return false;
        }
        let first = || Folded { first: caller.clone(), count: 0, since: now, until: now };
        let folded = self.folded.get_or_insert_with(first);
        folded.count += 1;
        folded.until = now;
        true
    }

    fn fill_up(&mut self, now: OffsetDateTime) {
        let passed = (now - self.filled).whole_seconds();
        if passed < 0 {
            // The clock was set back.
            self.filled = now;
            return;
        }
        let more = passed / EACH;
        self.left = self.left.saturating_add(u32::try_from(more).unwrap_or(BURST)).min(BURST);
        self.filled += time::Duration::seconds(more * EACH);
    }

    /// Whether it is as if there had been no refusal.
    fn rests(&mut self, now: OffsetDateTime) -> bool {
        self.fill_up(now);
        self.left == BURST && self.folded.is_none()
    }

    fn take(&mut self) -> Option<Event> {
        let Folded { first, count, since, until } = self.folded.take()?;
        // Of those that are counted together the first says nothing.
        let caller = (!self.of.is_empty()).then_some(first);
        Some(Event::RefusalsFolded { caller, of: self.of, reason: self.reason.clone(), count, since, until })
    }
}

/// Who was refused and why, if this is a refusal that gives nothing and leaves nothing behind.
fn refusal(event: &Event) -> Option<(&Caller, &str)> {
    match event {
        Event::Refused { caller, reason, .. }
        | Event::ConnectionRefused { caller, reason, .. }
        | Event::TokenRefused { caller, reason, .. }
        | Event::ProofRefused { caller, reason, .. }
        | Event::SuspiciousUse { caller, what: reason, .. } => Some((caller, reason)),
        // With an approval it is a question to a person.
        Event::Decided { caller: Some(caller), allowed: false, approval: None, reason, .. }
        | Event::CallChecked { caller, active: false, reason, .. } => Some((caller, reason)),
        _ => None,
    }
}
