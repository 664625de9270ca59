//! What a caller waits for before it is refused: another attempt, where something changed meanwhile; a rotation.

use std::time::Duration;

use super::{Issuer, Refusal};

/// So often, before the caller is told.
const ATTEMPTS: usize = 3;
/// How long callers wait for a rotation that is overdue.
const ROTATED_WITHIN: Duration = Duration::from_secs(2);

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
        if self.trust.current().signers().are_of(self.clock.now()) {
            return;
        }
        // Has the rotation begin, where nobody has noticed yet.
        self.clock.surely();
        let mut trust = self.trust.watch();
        let rotated = trust.wait_for(|trust| trust.signers().are_of(self.clock.now()));
        // Whoever signs says what is wrong.
        let _ = tokio::time::timeout(ROTATED_WITHIN, rotated).await;
    }
}
