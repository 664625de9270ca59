//! Time as an argument: the wall clock in production, a clock that tests move by hand.
//!
//! Certificates and tokens carry wall-clock times, so deadlines are wall-clock times too. A sleeper re-reads the
//! clock when it wakes: a clock that was set back does not fire early, and one that was set forward is noticed at
//! the latest after a minute.
#![allow(clippy::disallowed_methods, reason = "this is the one place that asks the system for the time")]

use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use tokio::sync::watch;

/// The longest a sleeper goes without looking at the wall clock again, so that a forward jump is noticed.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// Tells the time and sleeps until a time.
#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    System,
    Manual(Arc<watch::Sender<OffsetDateTime>>),
}

impl Clock {
    /// The system's wall clock.
    pub fn system() -> Self {
        Self(Source::System)
    }

    /// A clock that stands at `start` until the returned handle moves it.
    pub fn manual(start: OffsetDateTime) -> (Self, ManualClock) {
        let now = Arc::new(watch::Sender::new(start));
        (Self(Source::Manual(now.clone())), ManualClock(now))
    }

    /// The time now, in UTC.
    pub fn now(&self) -> OffsetDateTime {
        match &self.0 {
            Source::System => OffsetDateTime::now_utc(),
            Source::Manual(now) => *now.borrow(),
        }
    }

    /// Returns when `span` has passed, whatever the wall clock was set to meanwhile.
    pub async fn pause(&self, span: Duration) {
        match &self.0 {
            Source::System => tokio::time::sleep(span).await,
            Source::Manual(_) => self.sleep_until(self.now() + span).await,
        }
    }

    /// Returns when the clock stands at `deadline` or later.
    pub async fn sleep_until(&self, deadline: OffsetDateTime) {
        match &self.0 {
            Source::System => loop {
                let left = deadline - OffsetDateTime::now_utc();
                if !left.is_positive() {
                    return;
                }
                tokio::time::sleep(left.unsigned_abs().min(LONGEST_SLEEP)).await;
            },
            Source::Manual(now) => {
                // The sender lives as long as this clock does, so waiting cannot fail.
                let _ = now.subscribe().wait_for(|now| *now >= deadline).await;
            }
        }
    }
}

/// Moves the [`Clock`] it was made with.
#[derive(Clone, Debug)]
pub struct ManualClock(Arc<watch::Sender<OffsetDateTime>>);

impl ManualClock {
    /// Moves the clock forward and wakes every sleeper whose time has come.
    pub fn advance(&self, by: Duration) {
        self.0.send_modify(|now| *now += by);
    }

    /// Sets the clock, backwards too.
    pub fn set(&self, to: OffsetDateTime) {
        self.0.send_replace(to);
    }

    /// Where the clock stands.
    pub fn now(&self) -> OffsetDateTime {
        *self.0.borrow()
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
}
