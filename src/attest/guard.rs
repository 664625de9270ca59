//! Keeps a service that does not answer from holding up anybody.

use std::sync::Mutex;
use std::time::Duration;

use time::OffsetDateTime;

use super::memo::lock;
use crate::base::backoff::Backoff;
use crate::base::clock::Clock;
use crate::base::entropy::Entropy;

const FIRST_REST: Duration = Duration::from_millis(200);
const LONGEST_REST: Duration = Duration::from_secs(15);

/// A deadline for every question to one service. After an outage it is left alone for a while, everybody is told so
/// at once, and then a single question tries whether it is back.
pub(crate) struct Guard {
    patience: Duration,
    /// What is the matter while the service does not answer, for the log.
    meanwhile: &'static str,
    clock: Clock,
    entropy: Entropy,
    health: Mutex<Health>,
}

struct Health {
    backoff: Backoff,
    /// Nobody asks before; `None` while all is well.
    rest_until: Option<OffsetDateTime>,
}

/// An error that can say that there was no answer.
pub(crate) trait Outage: std::fmt::Display {
    /// There was none in time.
    fn late(patience: Duration) -> Self;
    /// There was none a short time ago.
    fn resting() -> Self;
    /// Whether the next question would fare no better.
    fn is_outage(&self) -> bool;
}

impl Guard {
    pub fn new(patience: Duration, meanwhile: &'static str, clock: Clock, entropy: Entropy) -> Self {
        let health = Health { backoff: Backoff::new(FIRST_REST, LONGEST_REST), rest_until: None };
        Self { patience, meanwhile, clock, entropy, health: Mutex::new(health) }
    }

    /// The answer to a question, if there is one in time. It is not put while the service rests.
    pub async fn ask<T, E: Outage, F>(&self, question: impl FnOnce() -> F) -> Result<T, E>
    where
        F: Future<Output = Result<T, E>>,
    {
        if !self.admits() {
            return Err(E::resting());
        }
        let answer = tokio::time::timeout(self.patience, question()).await;
        let answer = answer.unwrap_or(Err(E::late(self.patience)));
        let mut health = lock(&self.health);
        match &answer {
            Err(error) if error.is_outage() => {
                let rest = health.backoff.delay(&self.entropy);
                health.rest_until = Some(self.clock.now() + rest);
                tracing::warn!(%error, ?rest, "{}", self.meanwhile);
            }
            _ => {
                health.backoff.reset();
                health.rest_until = None;
            }
        }
        answer
    }

    /// Whether this question may be put. The first one after a rest extends it until its own deadline, so that the
    /// others need not find out too.
    fn admits(&self) -> bool {
        let mut health = lock(&self.health);
        let Some(rest_until) = health.rest_until else { return true };
        let now = self.clock.now();
        let left = rest_until - now;
        // A rest longer than the longest means that the clock was set back.
        if left.is_positive() && left <= LONGEST_REST.max(self.patience) {
            return false;
        }
        health.rest_until = Some(now + self.patience);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_rest_one_question_tries_and_the_others_are_told_at_once() {
        let (clock, hand) = Clock::manual(OffsetDateTime::UNIX_EPOCH);
        let guard = Guard::new(Duration::from_secs(1), "nobody answers", clock, Entropy::system());
        assert_eq!((guard.admits(), guard.admits()), (true, true));
        lock(&guard.health).rest_until = Some(hand.now() + Duration::from_secs(5));
        assert!(!guard.admits());
        hand.advance(Duration::from_secs(5));
        assert_eq!((guard.admits(), guard.admits()), (true, false));
        hand.set(OffsetDateTime::UNIX_EPOCH - Duration::from_secs(3600));
        assert!(guard.admits(), "a clock that was set back does not make the rest longer");
    }
}
