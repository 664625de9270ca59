//! Keeps a systemd that does not answer from holding up anybody.

use std::sync::Mutex;
use std::time::Duration;

use time::OffsetDateTime;

use super::{UnitAnswer, UnitManager, UnitManagerError};
use crate::attest::Subject;
use crate::attest::memo::lock;
use crate::base::backoff::Backoff;
use crate::base::clock::Clock;
use crate::base::entropy::Entropy;

const FIRST_REST: Duration = Duration::from_millis(200);
const LONGEST_REST: Duration = Duration::from_secs(15);

/// A manager with a deadline for every question. After an outage it is left alone for a while, everybody is told so
/// at once, and then a single question tries whether it is back.
pub(super) struct Guarded {
    manager: Box<dyn UnitManager>,
    patience: Duration,
    clock: Clock,
    entropy: Entropy,
    health: Mutex<Health>,
}

struct Health {
    backoff: Backoff,
    /// Nobody asks before; `None` while all is well.
    rest_until: Option<OffsetDateTime>,
}

impl Guarded {
    pub fn new(manager: Box<dyn UnitManager>, patience: Duration, clock: Clock, entropy: Entropy) -> Self {
        let health = Health { backoff: Backoff::new(FIRST_REST, LONGEST_REST), rest_until: None };
        Self { manager, patience, clock, entropy, health: Mutex::new(health) }
    }

    /// The unit of the process, as far as the manager says in time.
    pub async fn unit_of(&self, subject: &Subject) -> Result<UnitAnswer, UnitManagerError> {
        self.admit()?;
        let answer = tokio::time::timeout(self.patience, self.manager.unit_of(subject)).await;
        let answer = answer.unwrap_or(Err(UnitManagerError::Late(self.patience)));
        let mut health = lock(&self.health);
        match &answer {
            Err(error) if error.is_outage() => {
                let rest = health.backoff.delay(&self.entropy);
                health.rest_until = Some(self.clock.now() + rest);
                tracing::warn!(%error, ?rest, "units are taken from control groups until systemd answers");
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
    fn admit(&self) -> Result<(), UnitManagerError> {
        let mut health = lock(&self.health);
        let Some(rest_until) = health.rest_until else {
            return Ok(());
        };
        let now = self.clock.now();
        let left = rest_until - now;
        // A rest longer than the longest means that the clock was set back.
        if left.is_positive() && left <= LONGEST_REST.max(self.patience) {
            return Err(UnitManagerError::Resting);
        }
        health.rest_until = Some(now + self.patience);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use futures_util::future::BoxFuture;

    use super::*;

    struct Silent;

    impl UnitManager for Silent {
        fn unit_of<'a>(&'a self, _: &'a Subject) -> BoxFuture<'a, Result<UnitAnswer, UnitManagerError>> {
            std::future::pending().boxed()
        }
    }

    #[test]
    fn after_a_rest_one_question_tries_and_the_others_are_told_at_once() {
        let (clock, hand) = Clock::manual(OffsetDateTime::UNIX_EPOCH);
        let guarded = Guarded::new(Box::new(Silent), Duration::from_secs(1), clock, Entropy::system());
        assert_eq!((guarded.admit(), guarded.admit()), (Ok(()), Ok(())));
        lock(&guarded.health).rest_until = Some(hand.now() + Duration::from_secs(5));
        assert_eq!(guarded.admit(), Err(UnitManagerError::Resting));
        hand.advance(Duration::from_secs(5));
        assert_eq!((guarded.admit(), guarded.admit()), (Ok(()), Err(UnitManagerError::Resting)));
        hand.set(OffsetDateTime::UNIX_EPOCH - Duration::from_secs(3600));
        assert_eq!(guarded.admit(), Ok(()), "a clock that was set back does not make the rest longer");
    }
}
