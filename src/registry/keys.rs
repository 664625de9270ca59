//! Kinds of selectors as small numbers, and sets of them as one word, so that whole groups of entries are ruled in or
//! out by one comparison.

use std::fmt;

use crate::attest::Evidence;
use crate::selector::{KINDS, Selector};

const _: () = assert!(KINDS.len() <= 64, "a set of kinds is one 64-bit word");

/// One kind of selector, `unix.uid`: its place in [`KINDS`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key(u8);

impl Key {
    /// The kind `kind:key`, if there is one.
    pub(super) fn find(kind: &str, key: &str) -> Option<Self> {
        KINDS.iter().position(|known| *known == (kind, key)).map(|at| Self(at as u8))
    }

    /// The kind of a selector.
    pub(super) fn of(selector: &Selector) -> Self {
        // A selector's kind is in the list, or it would not have been parsed.
        Self::find(selector.kind(), selector.key()).unwrap_or(Self(0))
    }

    /// The type: `unix`.
    pub(super) fn kind(self) -> &'static str {
        KINDS[usize::from(self.0)].0
    }

    /// The key: `uid`.
    pub(super) fn key(self) -> &'static str {
        KINDS[usize::from(self.0)].1
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.kind(), self.key())
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// A set of kinds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct KeySet(u64);

impl KeySet {
    pub(super) fn insert(&mut self, key: Key) {
        self.0 |= 1 << key.0;
    }

    pub(super) fn contains(self, key: Key) -> bool {
        self.0 & (1 << key.0) != 0
    }

    pub(super) fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(super) fn is_subset(self, other: Self) -> bool {
        self.0 & !other.0 == 0
    }

    pub(super) fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(super) fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    pub(super) fn iter(self) -> impl Iterator<Item = Key> {
        (0..KINDS.len() as u8).map(Key).filter(move |key| self.contains(*key))
    }

    /// The kinds of which nothing certain is known.
    pub(super) fn gaps(evidence: &Evidence) -> Self {
        if evidence.gaps.is_empty() {
            return Self::default();
        }
        let all = (0..KINDS.len() as u8).map(Key);
        all.filter(|key| evidence.gap(key.kind(), key.key()).is_some()).collect()
    }
}

impl FromIterator<Key> for KeySet {
    fn from_iter<I: IntoIterator<Item = Key>>(keys: I) -> Self {
        let mut set = Self::default();
        keys.into_iter().for_each(|key| set.insert(key));
        set
    }
}
