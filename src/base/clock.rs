//! Time as an argument: the wall clock in production, a clock that tests move by hand.
//!
//! Certificates and tokens carry wall-clock times, so deadlines are wall-clock times too. A clock can be set, and a host
//! can sleep: [`Clock::keep_watch`] notices both within [`LOOK`], by the clock that nobody can set. Sleepers then read the
//! clock again: one that was set back does not fire early, and one that was set forward does not fire late.
#![allow(clippy::disallowed_methods, reason = "this is the one place that asks the system for the time")]

use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use tokio::sync::watch;

/// The longest a sleeper goes without looking at the wall clock again, where nobody keeps watch.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);
/// How often the clock is looked at.
pub const LOOK: Duration = Duration::from_secs(5);
/// A clock that differs by less from the time that passed was adjusted, and not set.
const ADJUSTED: Duration = Duration::from_secs(2);
/// How long a clock that was set forward may turn out to be wrong: what is issued lives for less.
const DOUBTED: Duration = Duration::from_secs(24 * 3600);

/// Tells the time and sleeps until a time.
#[derive(Clone, Debug)]
pub struct Clock(Source, Arc<Watched>);

#[derive(Clone, Debug)]
enum Source {
    System,
    Manual(Arc<watch::Sender<Hands>>),
}

/// Where a clock stands.
#[derive(Clone, Copy, Debug)]
struct Hands {
    wall: OffsetDateTime,
    /// What has passed, by a clock that nobody sets. Not while the host sleeps.
    passed: Duration,
}

/// What was seen of a clock.
#[derive(Debug)]
struct Watched {
    /// Counts how often it was seen to be set.
    sets: watch::Sender<u64>,
    last: Mutex<Last>,
}

#[derive(Debug)]
struct Last {
    seen: Hands,
    doubt: Doubt,
}

/// By how much a clock may be ahead, for it was set forward.
///
/// Each jump is doubted for [`DOUBTED`], or for up to twice as long where others came before: a host that sleeps every night
/// would never be rid of its doubt if the last jump prolonged that of all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Doubt {
    /// How long the clock has gone since the doubt of `older` began.
    age: Duration,
    older: time::Duration,
    /// What came later: it is the next to be `older`.
    newer: time::Duration,
}

impl Doubt {
    fn ahead(self) -> time::Duration {
        self.older + self.newer
    }

    /// The clock has gone on for so long.
    fn age(&mut self, by: Duration) {
        self.age += by;
        while self.age >= DOUBTED && !self.ahead().is_zero() {
            *self = Self { age: self.age - DOUBTED, older: self.newer, newer: time::Duration::ZERO };
        }
    }

    /// The clock was set, back where this is negative: then what was set forward last is taken back first.
    fn set(&mut self, by: time::Duration) {
        let none = time::Duration::ZERO;
        if self.ahead().is_zero() {
            *self = Self { older: by.max(none), ..Self::default() };
        } else {
            let newer = self.newer + by;
            self.newer = newer.max(none);
            self.older = (self.older + newer.min(none)).max(none);
        }
    }
}

/// What a clock knows of itself, for the next process that asks the same one: see [`Clock::remember`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    wall: OffsetDateTime,
    doubt: Doubt,
}

impl Clock {
    /// The system's wall clock.
    pub fn system() -> Self {
        Self::of(Source::System)
    }

    /// A clock that stands at `start` until the returned handle moves it.
    pub fn manual(start: OffsetDateTime) -> (Self, ManualClock) {
        let hands = Arc::new(watch::Sender::new(Hands { wall: start, passed: Duration::ZERO }));
        let clock = Self::of(Source::Manual(hands.clone()));
        let watched = clock.1.clone();
        (clock, ManualClock { hands, watched })
    }

    fn of(source: Source) -> Self {
        let seen = source.hands();
        let last = Last { seen, doubt: Doubt::default() };
        Self(source, Arc::new(Watched { sets: watch::Sender::new(0), last: Mutex::new(last) }))
    }

    /// The time now, in UTC.
    pub fn now(&self) -> OffsetDateTime {
        self.0.hands().wall
    }

    /// A time that has come for sure: what ended before it is over even if the clock is found to be wrong and set back.
    ///
    /// That is the time now, unless the clock was set forward, or the host slept or had no agent, within the last day of its
    /// running, or two. Whoever forgets what was revoked once it has expired asks for this.
    pub fn surely(&self) -> OffsetDateTime {
        self.memory().surely()
    }

    /// What it knows of itself now.
    pub fn memory(&self) -> Memory {
        self.1.look(|| self.0.hands())
    }

    /// Tells a clock that has just begun what was known of it before: as far as it is ahead of that, it may have been set
    /// meanwhile.
    pub fn remember(&self, before: Memory) {
        self.1.remember(before);
    }

    /// How often it was seen to be set, by who keeps watch and whoever asked.
    pub fn sets(&self) -> u64 {
        *self.1.sets.borrow()
    }

    /// Looks at the clock every [`LOOK`], for ever: nothing else tells sleepers that it was set.
    pub async fn keep_watch(&self) {
        loop {
            tokio::time::sleep(LOOK).await;
            self.surely();
        }
    }

    /// Returns when `span` has passed, whatever the wall clock was set to meanwhile.
    pub async fn pause(&self, span: Duration) {
        match &self.0 {
            Source::System => tokio::time::sleep(span).await,
            Source::Manual(hands) => {
                let until = hands.borrow().passed + span;
                // The sender lives as long as this clock does, so waiting cannot fail.
                let _ = hands.subscribe().wait_for(|hands| hands.passed >= until).await;
            }
        }
    }

    /// Returns when the clock stands at `deadline` or later.
    pub async fn sleep_until(&self, deadline: OffsetDateTime) {
        while self.now() < deadline {
            self.sleep_until_or_set(deadline).await;
        }
    }

    /// Returns when `deadline` has come for sure, see [`Clock::surely`].
    pub async fn sleep_until_surely(&self, deadline: OffsetDateTime) {
        let mut sets = self.1.sets.subscribe();
        loop {
            let left = deadline - self.surely();
            if !left.is_positive() {
                return;
            }
            // It comes by time that passes, by the end of a doubt, or with the clock that is set right.
            tokio::select! {
                () = self.pause(left.unsigned_abs().min(LONGEST_SLEEP)) => {}
                _ = sets.changed() => {}
            }
        }
    }

    /// Returns when the clock stands at `deadline` or later, or was set: for those who then look again at what they know.
    /// What begins in the future, because it was made before the clock was set back, is none that anybody believes.
    pub async fn sleep_until_or_set(&self, deadline: OffsetDateTime) {
        let mut sets = self.1.sets.subscribe();
        let come = async {
            match &self.0 {
                Source::System => loop {
                    let left = deadline - self.now();
                    if !left.is_positive() {
                        return;
                    }
                    tokio::time::sleep(left.unsigned_abs().min(LONGEST_SLEEP)).await;
                },
                Source::Manual(hands) => drop(hands.subscribe().wait_for(|hands| hands.wall >= deadline).await),
            }
        };
        tokio::select! {
            () = come => {}
            _ = sets.changed() => {}
        }
    }
}

impl Source {
    fn hands(&self) -> Hands {
        /// What the monotonic clock is counted from.
        static START: LazyLock<Instant> = LazyLock::new(Instant::now);
        match self {
            Self::System => Hands { passed: START.elapsed(), wall: OffsetDateTime::now_utc() },
            Self::Manual(hands) => *hands.borrow(),
        }
    }
}

impl Memory {
    /// See [`Clock::now`].
    pub fn now(self) -> OffsetDateTime {
        self.wall
    }

    /// See [`Clock::surely`].
    pub fn surely(self) -> OffsetDateTime {
        self.wall - self.doubt.ahead()
    }
}

impl Watched {
    fn last(&self) -> MutexGuard<'_, Last> {
        // Plain data: what a panic left behind is whole.
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, before: Memory) {
        let mut last = self.last();
        let set_by = last.seen.wall - before.wall;
        last.doubt = before.doubt;
        last.doubt.set(set_by);
    }

    /// Takes note of where the clock stands. It is read in turn: whoever had read it and was then held up would take a
    /// later look of somebody else's for one from the future.
    fn look(&self, hands: impl FnOnce() -> Hands) -> Memory {
        let mut last = self.last();
        let now = hands();
        let passed = now.passed.saturating_sub(last.seen.passed);
        let set_by = (now.wall - last.seen.wall) - passed;
        let was_set = set_by.unsigned_abs() > ADJUSTED;
        last.doubt.age(passed);
        if was_set {
            last.doubt.set(set_by);
        }
        last.seen = now;
        let memory = Memory { wall: now.wall, doubt: last.doubt };
        drop(last);
        if was_set {
            tracing::warn!(%set_by, now = %now.wall, "the clock was set, or the host slept");
            self.sets.send_modify(|sets| *sets += 1);
        }
        memory
    }
}

/// Moves the [`Clock`] it was made with.
#[derive(Clone, Debug)]
pub struct ManualClock {
    hands: Arc<watch::Sender<Hands>>,
    watched: Arc<Watched>,
}

impl ManualClock {
    /// Lets time pass, and wakes every sleeper whose time has come.
    pub fn advance(&self, by: Duration) {
        self.hands.send_modify(|hands| *hands = Hands { wall: hands.wall + by, passed: hands.passed + by });
    }

    /// Sets the clock, backwards too, as somebody would who keeps watch.
    pub fn set(&self, to: OffsetDateTime) {
        self.hands.send_modify(|hands| hands.wall = to);
        self.watched.look(|| *self.hands.borrow());
    }

    /// Where the clock stands.
    pub fn now(&self) -> OffsetDateTime {
        self.hands.borrow().wall
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_sleeper_on_a_manual_clock_wakes_when_its_time_has_come_and_not_before() {
        let start = OffsetDateTime::UNIX_EPOCH;
        let (clock, hand) = Clock::manual(start);
        let sleeper = tokio::spawn({
            let clock = clock.clone();
            async move { clock.sleep_until(start + Duration::from_secs(10)).await }
        });
        hand.advance(Duration::from_secs(9));
        tokio::task::yield_now().await;
        assert!(!sleeper.is_finished());
        hand.advance(Duration::from_secs(1));
        sleeper.await.expect("the sleeper ends");
        assert_eq!(clock.now(), start + Duration::from_secs(10));
    }

    const HOUR: Duration = Duration::from_secs(3600);

    #[tokio::test]
    async fn who_asks_to_be_told_wakes_when_the_clock_is_set_and_others_when_their_time_has_come() {
        let start = OffsetDateTime::UNIX_EPOCH + 48 * HOUR;
        let (clock, hand) = Clock::manual(start);
        let sleeper = |told: bool| {
            let clock = clock.clone();
            tokio::spawn(async move {
                let deadline = start + HOUR;
                if told { clock.sleep_until_or_set(deadline).await } else { clock.sleep_until(deadline).await }
            })
        };
        let (told, other) = (sleeper(true), sleeper(false));
        tokio::task::yield_now().await;
        hand.set(start - 24 * HOUR);
        told.await.expect("it wakes");
        tokio::task::yield_now().await;
        assert!(!other.is_finished());
        hand.set(start + 2 * HOUR);
        other.await.expect("it wakes");
    }

    #[test]
    fn what_ended_only_because_the_clock_was_set_forward_has_not_ended_for_sure_until_a_day_later() {
        let start = OffsetDateTime::UNIX_EPOCH;
        let (clock, hand) = Clock::manual(start);
        hand.advance(HOUR);
        assert_eq!(clock.surely(), start + HOUR);
        hand.set(start + 30 * HOUR);
        assert_eq!(clock.surely(), start + HOUR);
        hand.advance(HOUR);
        assert_eq!(clock.surely(), start + 2 * HOUR);
        hand.set(start + 2 * HOUR);
        assert_eq!(clock.surely(), clock.now(), "it was set right again");
        hand.set(start - HOUR);
        assert_eq!(clock.surely(), clock.now());
        hand.set(start + 30 * HOUR);
        hand.advance(24 * HOUR);
        assert_eq!(clock.surely(), clock.now(), "nobody set it back for a day");
    }

    #[tokio::test]
    async fn a_clock_that_begins_far_ahead_of_what_was_sure_before_is_doubted_like_one_that_was_set() {
        let start = OffsetDateTime::UNIX_EPOCH + 24 * HOUR;
        let (clock, hand) = Clock::manual(start);
        clock.remember(Clock::manual(start + HOUR).0.memory());
        assert_eq!(clock.surely(), start, "one that is behind is as late as it says");
        clock.remember(Clock::manual(start - 2 * HOUR).0.memory());
        assert_eq!(clock.surely(), start - 2 * HOUR);
        let waiting = {
            let clock = clock.clone();
            tokio::spawn(async move { clock.sleep_until_surely(start - HOUR).await })
        };
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        hand.set(start - HOUR);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished(), "it is right by now, and as late as before for sure");
        hand.advance(HOUR);
        waiting.await.expect("it wakes");
        assert_eq!((clock.now(), clock.surely()), (start, start - HOUR));
    }

    #[test]
    fn the_doubts_of_a_host_that_sleeps_every_night_do_not_add_up() {
        let (mut clock, mut hand) = Clock::manual(OffsetDateTime::UNIX_EPOCH);
        for day in 0..30 {
            hand.advance(16 * HOUR);
            let asleep = hand.now() + 8 * HOUR;
            if day % 2 == 0 {
                hand.set(asleep);
            } else {
                // It is switched off.
                let before = clock.memory();
                (clock, hand) = Clock::manual(asleep);
                clock.remember(before);
            }
            let ahead = clock.now() - clock.surely();
            assert!(ahead >= 8 * HOUR, "day {day}: this night may be a clock that was set");
            assert!(ahead <= 24 * HOUR, "day {day}: {ahead}");
        }
        hand.advance(48 * HOUR);
        assert_eq!(clock.surely(), clock.now(), "and end where it stays awake");
    }

    #[test]
    fn of_several_jumps_each_is_doubted_for_a_day_at_least() {
        let (clock, hand) = Clock::manual(OffsetDateTime::UNIX_EPOCH);
        let ahead = || clock.now() - clock.surely();
        hand.set(clock.now() + 10 * HOUR);
        hand.advance(23 * HOUR);
        hand.set(clock.now() + 5 * HOUR);
        assert_eq!(ahead(), 15 * HOUR);
        hand.advance(HOUR);
        assert_eq!(ahead(), 5 * HOUR, "the first has stood for a day");
        hand.set(clock.now() + 3 * HOUR);
        hand.set(clock.now() - 4 * HOUR);
        assert_eq!(ahead(), 4 * HOUR);
        hand.advance(23 * HOUR);
        assert_eq!(ahead(), 4 * HOUR);
        hand.advance(HOUR);
        assert_eq!(ahead(), Duration::ZERO);
    }
}
