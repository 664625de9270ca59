//! All entries, made for finding the few that apply to a process among 100,000.
//!
//! Entries whose `match` names the same kinds of selectors form a group, and there are few groups. A process that has
//! no facts of one of a group's kinds, and for which that kind is no gap, passes it by with one comparison. In the
//! others the rarest of the process's facts leads to the candidates, and only those are judged. When a kind is a gap,
//! its entries are found by the other kinds of their group, so a failed attestor does not make matching slow.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use time::OffsetDateTime;

use super::entry::{Entry, Origin};
use super::judge::{Judgement, explain, judge};
use super::keys::{Key, KeySet};
use crate::attest::{Evidence, Wanted};
use crate::id::SpiffeId;
use crate::selector::Selector;

/// An identity a process has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The entry that gives it.
    pub entry: Arc<Entry>,
    /// The SPIFFE ID.
    pub spiffe_id: SpiffeId,
    hint_is_taken: bool,
}

impl Identity {
    /// The hint to send with it. `None` also when an older identity of the same process has the same hint: hints are
    /// unique in one answer (Workload API, section 5.2.1).
    pub fn hint(&self) -> Option<&str> {
        self.entry.hint().filter(|_| !self.hint_is_taken)
    }
}

/// An entry of which it could not be found out whether it applies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unavailable {
    /// The entry.
    pub entry: Arc<Entry>,
    /// What could not be found out, in words for a person.
    pub reasons: Vec<String>,
}

/// What a process gets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Matched {
    /// Its identities, each SPIFFE ID once; the first is the default.
    pub identities: Vec<Identity>,
    /// The first entries, at most [`Matched::MAX_UNAVAILABLE`], of which nothing can be said.
    pub unavailable: Vec<Unavailable>,
    /// Whether there are more of those.
    pub more_unavailable: bool,
}

impl Matched {
    /// With one attestor down every entry may be unavailable; naming a few is enough.
    pub const MAX_UNAVAILABLE: usize = 8;
}

/// What an entry means for a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It gives an identity.
    Match {
        /// The identity.
        spiffe_id: SpiffeId,
        /// What is worth knowing, for example that another entry keeps the hint.
        notes: Vec<String>,
    },
    /// It gives none.
    NoMatch {
        /// Why.
        reasons: Vec<String>,
    },
    /// It cannot be said.
    Unavailable {
        /// What could not be found out.
        reasons: Vec<String>,
    },
}

/// An entry and what it means for a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explained {
    /// The entry.
    pub entry: Arc<Entry>,
    /// What it means.
    pub verdict: Verdict,
}

/// An immutable set of entries, in order: the rank of an entry is its place.
pub struct Index {
    generation: u64,
    entries: Box<[Arc<Entry>]>,
    groups: Box<[Group]>,
    by_id: Box<[u32]>,
    ends: Box<[OffsetDateTime]>,
    used: KeySet,
    wanted: Arc<Wanted>,
    hasher: RandomState,
}

/// Entries whose `match` names the same kinds of selectors.
struct Group {
    kinds: KeySet,
    members: Box<[u32]>,
    /// A place for every selector of every member, sorted. A collision of hashes costs one judgement, never a wrong
    /// one.
    places: Box<[Place]>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    hash: u32,
    rank: u32,
}

/// What is known of a process, prepared for looking up.
struct Facts {
    hashes: Vec<(Key, u32)>,
    present: KeySet,
    gaps: KeySet,
}

impl Index {
    /// An index over these entries, whose ids are different. They are put in order: from files by path and position,
    /// then from the store by age, then built-in ones.
    pub fn build(generation: u64, mut entries: Vec<Arc<Entry>>) -> Self {
        entries.sort_by(|a, b| in_order(a, b));
        let hasher = RandomState::new();
        let mut members: HashMap<KeySet, Vec<u32>> = HashMap::new();
        let (mut used, mut ends) = (KeySet::default(), Vec::new());
        for (rank, entry) in (0..).zip(&entries) {
            members.entry(entry.match_keys()).or_default().push(rank);
            used = used.union(entry.all_keys());
            ends.extend(entry.expires_at());
        }
        ends.sort_unstable();
        ends.dedup();
        let mut by_id: Box<[u32]> = (0..).zip(&entries).map(|(rank, _)| rank).collect();
        by_id.sort_unstable_by_key(|rank| entries[*rank as usize].id());
        let mut groups: Box<[Group]> =
            members.into_iter().map(|(kinds, members)| Group::new(kinds, members, &entries, &hasher)).collect();
        groups.sort_unstable_by_key(|group| group.kinds);
        let wanted = Arc::new(Wanted::keys(used.iter().map(|key| (key.kind(), key.key()))));
        Self { generation, entries: entries.into(), groups, by_id, ends: ends.into(), used, wanted, hasher }
    }

    /// Grows with every change.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// All entries in order.
    pub fn entries(&self) -> &[Arc<Entry>] {
        &self.entries
    }

    /// The entry with this id.
    pub fn entry(&self, id: &str) -> Option<&Arc<Entry>> {
        let found = self.by_id.binary_search_by(|rank| self.entries[*rank as usize].id().as_str().cmp(id)).ok()?;
        Some(&self.entries[self.by_id[found] as usize])
    }

    /// Whether any entry looks at selectors `kind:key`, so that costly ones are only found out when they matter.
    pub fn uses(&self, kind: &str, key: &str) -> bool {
        Key::find(kind, key).is_some_and(|key| self.used.contains(key))
    }

    /// What attestation has to find out for these entries.
    pub fn wanted(&self) -> &Arc<Wanted> {
        &self.wanted
    }

    /// When the next entry ends: an open stream looks again then.
    pub fn next_expiry(&self, now: OffsetDateTime) -> Option<OffsetDateTime> {
        self.ends.get(self.ends.partition_point(|end| *end <= now)).copied()
    }

    /// What a process gets.
    pub fn matching(&self, evidence: &Evidence, now: OffsetDateTime) -> Matched {
        self.matching_in_order(evidence, now, |_| false)
    }

    /// What a process gets when entries about its executable are going to be refused: they come last, so that they
    /// take neither a SPIFFE ID nor a hint from an entry that can give it.
    pub fn matching_executable_last(&self, evidence: &Evidence, now: OffsetDateTime) -> Matched {
        self.matching_in_order(evidence, now, Entry::depends_on_executable)
    }

    fn matching_in_order(&self, evidence: &Evidence, now: OffsetDateTime, last: impl Fn(&Entry) -> bool) -> Matched {
        let facts = Facts::new(evidence, &self.hasher);
        let (mut held, mut unsure) = (Vec::new(), Vec::new());
        for group in &self.groups {
            group.held(&facts, &mut held);
            let unknown = |rank: u32| judge(&self.entries[rank as usize], evidence, now, |_| ()) == Judgement::Unknown;
            group.unsure(&facts, unknown, &mut unsure);
        }
        held.sort_unstable();
        held.dedup();
        held.sort_by_key(|rank| last(&self.entries[*rank as usize]));

        let mut identities: Vec<Identity> = Vec::new();
        for rank in held {
            let entry = &self.entries[rank as usize];
            match judge(entry, evidence, now, |_| ()) {
                Judgement::No => {}
                Judgement::Unknown => unsure.push(rank),
                Judgement::Match(spiffe_id) => {
                    if identities.iter().any(|earlier| earlier.spiffe_id == spiffe_id) {
                        continue; // one SVID for one identity: the first entry gives it
                    }
                    let hint = entry.hint();
                    let hint_is_taken = hint.is_some() && identities.iter().any(|earlier| earlier.hint() == hint);
                    identities.push(Identity { entry: entry.clone(), spiffe_id, hint_is_taken });
                }
            }
        }
        unsure.sort_unstable();
        unsure.dedup();
        let more_unavailable = unsure.len() > Matched::MAX_UNAVAILABLE;
        unsure.truncate(Matched::MAX_UNAVAILABLE);
        let unavailable = unsure.into_iter().map(|rank| {
            let entry = &self.entries[rank as usize];
            Unavailable { entry: entry.clone(), reasons: explain(entry, evidence, now).1 }
        });
        Matched { identities, unavailable: unavailable.collect(), more_unavailable }
    }

    /// What every entry means for a process, in order. It looks at all of them: limit how often a caller may ask.
    pub fn explain(&self, evidence: &Evidence, now: OffsetDateTime) -> Vec<Explained> {
        let mut given: Vec<Identity> = Vec::new();
        let explained = self.entries.iter().map(|entry| {
            let verdict = match explain(entry, evidence, now) {
                (Judgement::No, reasons) => Verdict::NoMatch { reasons },
                (Judgement::Unknown, reasons) => Verdict::Unavailable { reasons },
                (Judgement::Match(spiffe_id), _) => verdict_beside(entry, spiffe_id, &mut given),
            };
            Explained { entry: entry.clone(), verdict }
        });
        explained.collect()
    }
}

/// What a match on the executable depends on beside the process; which connection is meant is not known here.
const ABOUT_EXECUTABLE: &str = "it is about the executable, so it is given only on a connection that the process holds \
                                close-on-exec; Java programs do not";

/// The verdict on an entry that applies, beside the earlier ones that do.
fn verdict_beside(entry: &Arc<Entry>, spiffe_id: SpiffeId, given: &mut Vec<Identity>) -> Verdict {
    if let Some(first) = given.iter().find(|earlier| earlier.spiffe_id == spiffe_id) {
        let reason = format!("entry `{}` comes first and already gives `{spiffe_id}`", first.entry.id());
        return Verdict::NoMatch { reasons: vec![reason] };
    }
    let keeper = entry.hint().and_then(|hint| given.iter().find(|earlier| earlier.hint() == Some(hint)));
    let notes = keeper.map(|keeper| {
        let hint = entry.hint().unwrap_or_default();
        format!("it is sent without its hint `{hint}`, which entry `{}` comes first with", keeper.entry.id())
    });
    given.push(Identity { entry: entry.clone(), spiffe_id: spiffe_id.clone(), hint_is_taken: notes.is_some() });
    let notes = notes.into_iter().chain(entry.depends_on_executable().then(|| ABOUT_EXECUTABLE.to_owned())).collect();
    Verdict::Match { spiffe_id, notes }
}

fn in_order(a: &Entry, b: &Entry) -> std::cmp::Ordering {
    fn class(entry: &Entry) -> u8 {
        match entry.origin() {
            Origin::File { .. } => 0,
            Origin::Store { .. } => 1,
            Origin::BuiltIn => 2,
        }
    }
    match (a.origin(), b.origin()) {
        (Origin::File { path: pa, line: la }, Origin::File { path: pb, line: lb }) => {
            // Entries of one file share its path; comparing paths is slow. The sort is stable, so tables on one line
            // stay in order.
            if Arc::ptr_eq(pa, pb) { la.cmp(lb) } else { pa.cmp(pb).then(la.cmp(lb)) }
        }
        (Origin::Store { created_at: ca, .. }, Origin::Store { created_at: cb, .. }) => {
            ca.cmp(cb).then_with(|| a.id().cmp(b.id()))
        }
        _ => class(a).cmp(&class(b)),
    }
}

fn hash(selector: &Selector, hasher: &RandomState) -> u32 {
    (hasher.hash_one(selector.as_str()) >> 32) as u32
}

impl Facts {
    fn new(evidence: &Evidence, hasher: &RandomState) -> Self {
        let hashes: Vec<_> = evidence.selectors.iter().map(|fact| (Key::of(fact), hash(fact, hasher))).collect();
        let present = hashes.iter().map(|(key, _)| *key).collect();
        Self { hashes, present, gaps: KeySet::gaps(evidence) }
    }
}

impl Group {
    fn new(kinds: KeySet, members: Vec<u32>, entries: &[Arc<Entry>], hasher: &RandomState) -> Self {
        let places = members.iter().flat_map(|rank| {
            let selectors = entries[*rank as usize].matches().iter();
            selectors.map(|selector| Place { hash: hash(selector, hasher), rank: *rank })
        });
        let mut places: Box<[Place]> = places.collect();
        places.sort_unstable();
        Self { kinds, members: members.into(), places }
    }

    /// The places of entries with a selector of this hash, by rank.
    fn places(&self, hash: u32) -> &[Place] {
        let start = self.places.partition_point(|place| place.hash < hash);
        let end = self.places.partition_point(|place| place.hash <= hash);
        &self.places[start..end]
    }

    /// The fewest candidates that any one of these kinds leaves, by rank. Every entry of the group has a selector of
    /// every kind, so each kind alone leads to all that can match.
    fn rarest(&self, kinds: KeySet, facts: &Facts) -> Vec<u32> {
        let of_kind = |kind: Key| {
            let hashes = facts.hashes.iter().filter(move |(key, _)| *key == kind);
            hashes.map(|(_, hash)| self.places(*hash)).collect::<Vec<_>>()
        };
        let rarest = kinds.iter().map(of_kind).min_by_key(|lists| lists.iter().map(|list| list.len()).sum::<usize>());
        let mut ranks: Vec<u32> = rarest.into_iter().flatten().flatten().map(|place| place.rank).collect();
        ranks.sort_unstable();
        ranks.dedup();
        ranks
    }

    /// Adds every member whose `match` may hold by what is known.
    fn held(&self, facts: &Facts, out: &mut Vec<u32>) {
        if self.kinds.is_subset(facts.present) {
            out.extend(self.rarest(self.kinds, facts));
        }
    }

    /// Adds the first members of which a gap leaves it open whether their `match` holds: one more than are named, so
    /// that it is known whether there are more.
    fn unsure(&self, facts: &Facts, unknown: impl Fn(u32) -> bool, out: &mut Vec<u32>) {
        let known = self.kinds.without(facts.gaps);
        if known == self.kinds || !known.is_subset(facts.present) {
            return;
        }
        let rarest = if known.is_empty() { Vec::new() } else { self.rarest(known, facts) };
        let candidates = if known.is_empty() { &*self.members } else { &rarest };
        out.extend(candidates.iter().copied().filter(|rank| unknown(*rank)).take(Matched::MAX_UNAVAILABLE + 1));
    }
}

impl fmt::Debug for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Index(generation {}, {} entries)", self.generation, self.entries.len())
    }
}

#[cfg(test)]
mod tests;
