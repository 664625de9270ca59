//! How often a credential is made anew because something changed meanwhile.

use super::Refusal;

/// So often, before the caller is told.
const ATTEMPTS: usize = 3;

/// Counts attempts to make a credential.
#[derive(Debug, Default)]
pub(super) struct Tries(usize);

impl Tries {
    /// Whether the caller gets this, or there is another attempt.
    pub(super) fn are_over<T>(&mut self, made: &Result<T, Refusal>) -> bool {
        self.0 += 1;
        self.0 >= ATTEMPTS || !matches!(made, Err(Refusal::Changed))
    }
}
