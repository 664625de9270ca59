//! Which proofs were seen before: in memory of a bounded size, and of no use after a restart, which it therefore minds.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use aws_lc_rs::digest::{Context, SHA256};
use thiserror::Error;
use time::OffsetDateTime;

/// Why a proof that holds is refused all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ReplayError {
    /// It was presented to this asker before.
    #[error("the proof was presented before")]
    Replayed,
    /// It was made before this cache began, so that it cannot be told whether it was presented before.
    #[error("the proof is older than the memory of what was presented before: make another one")]
    BeforeStart,
    /// There is no room to remember it.
    #[error("too many proofs are being checked")]
    Full,
}

impl ReplayError {
    /// A label of a small fixed set, for whoever asked and for audit.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Replayed => "replayed",
            Self::BeforeStart => "before_start",
            Self::Full => "busy",
        }
    }
}

/// How much is remembered: some hundred bytes for each proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplayLimits {
    /// Proofs of all askers.
    pub all: usize,
    /// Proofs of one asker.
    pub one_asker: usize,
    /// Proofs by one key for one asker once half of the asker's room is taken: a single client cannot shut out the others.
    pub one_key: usize,
}

impl Default for ReplayLimits {
    /// 262,144 in all, a quarter of which for one asker: two thousand requests a second at each. A key has a sixteenth of
    /// that, and half where others leave it.
    fn default() -> Self {
        Self { all: 1 << 18, one_asker: 1 << 16, one_key: 1 << 12 }
    }
}

/// The proofs that were presented and are not over yet. Pure: the time is an argument.
#[derive(Debug)]
pub struct ReplayCache {
    /// Whole seconds, as the times in proofs: nothing made in the second in which the cache began is accepted.
    began: OffsetDateTime,
    limits: ReplayLimits,
    askers: HashMap<String, Seen>,
    len: usize,
    /// What ended until then may be forgotten: a clock that is set back does not bring it back.
    forgotten: OffsetDateTime,
}

#[derive(Debug, Default)]
struct Seen {
    proofs: HashSet<Key>,
    /// INVARIANT: the same proofs as in `proofs`, each with the thumbprint of its key.
    by_end: BTreeMap<OffsetDateTime, Vec<(Arc<str>, Key)>>,
    /// How many there are by each key, by thumbprint. INVARIANT: none of them is 0.
    by_key: HashMap<Arc<str>, usize>,
}

/// A digest of key and `jti`, so that what callers choose takes the same room each.
type Key = [u8; 32];

impl ReplayCache {
    /// From when on a proof may have been made for a cache that begins at `now`: they are dated in whole seconds, so
    /// one of the second of the beginning may be older than the cache.
    pub fn counts_from(now: OffsetDateTime) -> OffsetDateTime {
        now.truncate_to_second() + time::Duration::SECOND
    }

    /// A cache that begins at `now` and remembers as much as `limits` says.
    pub fn new(now: OffsetDateTime, limits: ReplayLimits) -> Self {
        Self { began: Self::counts_from(now), limits, askers: HashMap::new(), len: 0, forgotten: now }
    }

    /// Notes that a proof by the key with `thumbprint` was presented to `asker`, the first time; until `forget_at`, from
    /// when on the proof is refused as expired.
    ///
    /// # Errors
    /// It was noted before, was made before the cache began, or there is no room. Nothing is forgotten to make room.
    pub fn note(
        &mut self,
        asker: &str,
        thumbprint: &str,
        jti: &str,
        made_at: OffsetDateTime,
        forget_at: OffsetDateTime,
        now: OffsetDateTime,
    ) -> Result<(), ReplayError> {
        if made_at < self.began || forget_at <= self.forgotten {
            return Err(ReplayError::BeforeStart);
        }
        let key = key(thumbprint, jti);
        if self.askers.get(asker).is_some_and(|seen| seen.proofs.contains(&key)) {
            return Err(ReplayError::Replayed);
        }
        if self.is_full(asker, thumbprint) {
            self.forget(now);
            if self.is_full(asker, thumbprint) {
                return Err(ReplayError::Full);
            }
        }
        self.askers.entry(asker.to_owned()).or_default().insert(thumbprint, key, forget_at);
        self.len += 1;
        Ok(())
    }

    /// Whether a proof was noted for this asker: for whoever has something to do before it can be noted.
    pub fn has(&self, asker: &str, thumbprint: &str, jti: &str) -> bool {
        self.askers.get(asker).is_some_and(|seen| seen.proofs.contains(&key(thumbprint, jti)))
    }

    /// How many are remembered.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether none are.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn is_full(&self, asker: &str, thumbprint: &str) -> bool {
        let seen = self.askers.get(asker);
        let of_asker = seen.map_or(0, |seen| seen.proofs.len());
        let of_key = seen.and_then(|seen| seen.by_key.get(thumbprint)).copied().unwrap_or_default();
        self.len >= self.limits.all
            || of_asker >= self.limits.one_asker
            || (of_asker >= self.limits.one_asker / 2 && of_key >= self.limits.one_key)
    }

    /// Forgets what is over.
    fn forget(&mut self, now: OffsetDateTime) {
        self.forgotten = self.forgotten.max(now);
        for seen in self.askers.values_mut() {
            self.len -= seen.forget(self.forgotten);
        }
        self.askers.retain(|_, seen| !seen.proofs.is_empty());
    }
}

impl Seen {
    fn insert(&mut self, thumbprint: &str, key: Key, forget_at: OffsetDateTime) {
        let thumbprint = match self.by_key.get_key_value(thumbprint) {
            Some((known, _)) => known.clone(),
            None => Arc::from(thumbprint),
        };
        *self.by_key.entry(thumbprint.clone()).or_default() += 1;
        self.proofs.insert(key);
        self.by_end.entry(forget_at).or_default().push((thumbprint, key));
    }

    /// Forgets what is over at `until`, and says how many that were.
    fn forget(&mut self, until: OffsetDateTime) -> usize {
        let before = self.proofs.len();
        let live = self.by_end.split_off(&(until + time::Duration::NANOSECOND));
        for (thumbprint, key) in std::mem::replace(&mut self.by_end, live).into_values().flatten() {
            self.proofs.remove(&key);
            if let Some(count) = self.by_key.get_mut(&thumbprint) {
                *count -= 1;
            }
        }
        self.by_key.retain(|_, count| *count > 0);
        before - self.proofs.len()
    }
}

fn key(thumbprint: &str, jti: &str) -> Key {
    let mut context = Context::new(&SHA256);
    // Thumbprints have one length: no two pairs are one text.
    context.update(thumbprint.as_bytes());
    context.update(jti.as_bytes());
    context.finish().as_ref().try_into().expect("SHA-256 has 32 bytes")
}
