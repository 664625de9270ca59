//! What a caller waits for before it is refused: another attempt, where something changed meanwhile; a rotation.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::{Issuer, Refusal};

/// So often, before the caller is told.
const ATTEMPTS: usize = 3;
/// How long callers wait for a rotation that is overdue.
const ROTATED_WITHIN: Duration = Duration::from_secs(2);

/// A rotation that was waited for and did not come. Whoever comes while nothing has changed since does not wait: most of
/// what is asked for does not need the authority that has ended.
#[derive(Debug, Default)]
pub struct Missed(Mutex<Option<Since>>);

/// Which authorities there are, and how often the clock was set.
type Since = (u64, u64);

impl Missed {
    fn is(&self, since: Since) -> bool {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) == Some(since)
    }

    fn note(&self, since: Since) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(since);
    }
}

/// What a refusal says about another attempt.
pub(super) trait MayPass {
    /// Whether it is for something that changed meanwhile, so that another attempt may do.
    fn is_for_a_change(&self) -> bool;
}

impl MayPass for Refusal {
    fn is_for_a_change(&self) -> bool {
        matches!(self, Self::Changed)
    }
}

/// What `make` makes, in the first attempt that nothing changed under.
pub(super) async fn again<T, E: MayPass, F>(make: impl Fn() -> F) -> Result<T, E>
where
    F: Future<Output = Result<T, E>>,
{
    for _ in 1..ATTEMPTS {
        match make().await {
            Err(refusal) if refusal.is_for_a_change() => {}
            made => return made,
        }
    }
    make().await
}

impl Issuer {
    /// Waits for the rotation that follows when the clock was set or the host slept, for so long: nobody would believe what
    /// was signed before it.
    pub(super) async fn authorities_of_now(&self) {
        let trust = self.trust.current();
        if trust.signers().are_of(self.clock.now()) {
            return;
        }
        // Has the rotation begin, where nobody has noticed yet.
        self.clock.surely();
        let since = (trust.signers().generation(), self.clock.sets());
        if self.missed_rotation.is(since) {
            return;
        }
        let mut trust = self.trust.watch();
        let rotated = trust.wait_for(|trust| trust.signers().are_of(self.clock.now()));
        if tokio::time::timeout(ROTATED_WITHIN, rotated).await.is_err() {
            // Whoever signs says what is wrong.
            self.missed_rotation.note(since);
        }
    }
}
