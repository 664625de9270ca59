//! How often a credential is made anew because something changed meanwhile.

use super::Refusal;

/// So often, before the caller is told.
const ATTEMPTS: usize = 3;

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
