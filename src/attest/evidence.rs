//! What is known of a process, and what could not be found out.

use std::collections::BTreeSet;
use std::fmt;

use crate::selector::{KINDS, Selector, SelectorSet};

/// Why a fact that nobody asked for is missing.
pub(super) const NOT_WANTED: &str = "it was not looked at, because no entry uses it";

/// Selectors that could not be established, and why. An entry that needs one of them is unavailable, in `match` and
/// in `unless` alike: not knowing is never taken for a no (peer rule 8).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The selector type: `unix`.
    pub kind: &'static str,
    /// The keys that are affected; empty for all keys of the type.
    pub keys: &'static [&'static str],
    /// Why, in words for a person.
    pub why: String,
}

/// Something a person who asks for an explanation wants to know: why a selector does not hold, although nothing failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// The selector type of the attestor that says so.
    pub kind: &'static str,
    /// What it says.
    pub text: String,
}

/// What is known of one process at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Evidence {
    /// The facts that hold.
    pub selectors: SelectorSet,
    /// What could not be found out.
    pub gaps: Vec<Gap>,
    /// Remarks for `explain`; nothing is decided by them.
    pub notes: Vec<Note>,
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

    /// Takes back what was found of one type: it says nothing about this process.
    pub(super) fn withhold(&mut self, kind: &'static str, why: String) {
        self.selectors.retain(|selector| selector.kind() != kind);
        self.gaps.push(Gap { kind, keys: &[], why });
    }

    /// Whether something is missing that somebody wanted, so that asking again may find it.
    pub(super) fn has_failures(&self) -> bool {
        self.gaps.iter().any(|gap| gap.why != NOT_WANTED)
    }

    /// Adds what one attestor found.
    pub(super) fn add(&mut self, findings: Findings) {
        self.selectors.extend(findings.selectors);
        self.gaps.extend(findings.gaps);
        self.notes.extend(findings.notes);
    }
}

/// What one attestor found: facts of its own kind only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Findings {
    kind: &'static str,
    selectors: Vec<Selector>,
    gaps: Vec<Gap>,
    notes: Vec<Note>,
}

impl Findings {
    /// Findings of the attestor for `kind`, without any facts: the kind does not apply to this process or host.
    pub fn of(kind: &'static str) -> Self {
        Self { kind, selectors: Vec::new(), gaps: Vec::new(), notes: Vec::new() }
    }

    /// Nothing of the kind could be found out.
    pub fn none(kind: &'static str, why: impl Into<String>) -> Self {
        let mut findings = Self::of(kind);
        findings.gap(&[], why);
        findings
    }

    /// Adds what another part of the same attestor found.
    #[must_use]
    pub fn and(mut self, more: Self) -> Self {
        debug_assert_eq!(self.kind, more.kind, "an attestor speaks of its own kind");
        self.selectors.extend(more.selectors);
        self.gaps.extend(more.gaps);
        self.notes.extend(more.notes);
        self
    }

    /// Adds a fact. A value that cannot stand in a selector (empty, too long, with a newline) is left out with a note.
    pub fn fact(&mut self, key: &'static str, value: impl fmt::Display) {
        match Selector::new(self.kind, key, value) {
            Some(selector) => self.selectors.push(selector),
            None => self.note(format!("the value of `{}:{key}` cannot be written as a selector", self.kind)),
        }
    }

    /// Adds a fact; `false` for a value that cannot stand in a selector.
    pub(super) fn try_fact(&mut self, key: &'static str, value: impl fmt::Display) -> bool {
        let selector = Selector::new(self.kind, key, value);
        let is_one = selector.is_some();
        self.selectors.extend(selector);
        is_one
    }

    /// Adds a fact of this kind that was found before.
    pub(super) fn found(&mut self, selector: Selector) {
        debug_assert_eq!(self.kind, selector.kind(), "an attestor speaks of its own kind");
        self.selectors.push(selector);
    }

    /// Says that nothing is known about `keys` (about all of the kind when empty).
    pub fn gap(&mut self, keys: &'static [&'static str], why: impl Into<String>) {
        self.gaps.push(Gap { kind: self.kind, keys, why: why.into() });
    }

    /// Adds a remark for `explain`.
    pub fn note(&mut self, text: impl Into<String>) {
        self.notes.push(Note { kind: self.kind, text: text.into() });
    }
}

/// Which selectors somebody will look at. Facts that cost something are only established when they are wanted, and
/// are gaps otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted(BTreeSet<(&'static str, &'static str)>);

impl Wanted {
    /// Every kind there is: for `explain`.
    pub fn everything() -> Self {
        Self(KINDS.iter().copied().collect())
    }

    /// The given types and keys; unknown ones cannot be in an entry and are left out.
    pub fn keys<'a>(keys: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        Self(keys.into_iter().filter_map(|wanted| KINDS.iter().copied().find(|known| *known == wanted)).collect())
    }

    /// Whether selectors `kind:key:*` are wanted.
    pub fn has(&self, kind: &str, key: &str) -> bool {
        self.0.iter().any(|wanted| *wanted == (kind, key))
    }

    /// Whether any selector of the type is wanted.
    pub fn has_kind(&self, kind: &str) -> bool {
        self.0.iter().any(|(wanted, _)| *wanted == kind)
    }
}
