//! What is known of a process, and what could not be found out.

use crate::selector::{Selector, SelectorSet};

/// Selectors that could not be established, and why. An entry that needs one of them is unavailable, in `match` and
/// in `unless` alike: not knowing is never taken for a no (design rule 8).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The selector type: `unix`.
    pub kind: &'static str,
    /// The keys that are affected; empty for all keys of the type.
    pub keys: &'static [&'static str],
    /// Why, in words for a person.
    pub why: String,
}

/// What is known of one process at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Evidence {
    /// The facts that hold.
    pub selectors: SelectorSet,
    /// What could not be found out.
    pub gaps: Vec<Gap>,
}

impl Evidence {
    /// Why nothing can be said about `selector`; `None` when its presence or absence is known.
    pub fn gap_for(&self, selector: &Selector) -> Option<&Gap> {
        self.gap(selector.kind(), selector.key())
    }

    /// Why nothing can be said about selectors `kind:key:*`.
    pub fn gap(&self, kind: &str, key: &str) -> Option<&Gap> {
        self.gaps.iter().find(|gap| gap.kind == kind && (gap.keys.is_empty() || gap.keys.contains(&key)))
    }
}
