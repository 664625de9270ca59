//! Who asks, and what this agent told it lately.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::{Mutex, PoisonError};

use crate::audit::Caller;
use crate::id::{SpiffeId, TrustDomain};

/// Askers that are remembered, and calls of each.
const MAX_ASKERS: usize = 1024;
const MAX_CALLS: usize = 1024;

/// Somebody who may ask about one URI; made by [`super::Verifier`] alone.
#[derive(Clone, Debug)]
pub struct Asker {
    pub(super) spiffe_id: SpiffeId,
    pub(super) caller: Caller,
    /// Whose WITs it may see, beyond those of our own trust domain.
    pub(super) federates_with: BTreeSet<TrustDomain>,
    /// Another node asks for its own askers: it remembers proofs for them, and decides by its own policy too.
    pub(super) is_node: bool,
}

impl Asker {
    /// As whom it asks.
    pub fn spiffe_id(&self) -> &SpiffeId {
        &self.spiffe_id
    }

    /// Whether it is the agent of another node.
    pub fn is_node(&self) -> bool {
        self.is_node
    }
}

/// The calls that were found active lately, by asker: what `Report` and `Watch` are about. The oldest give way.
#[derive(Debug, Default)]
pub(super) struct Memory(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    askers: HashMap<SpiffeId, VecDeque<(String, String)>>,
    order: VecDeque<SpiffeId>,
}

impl Memory {
    /// Remembers a call.
    pub(super) fn note(&self, asker: &SpiffeId, session: &str, txn: &str) {
        let mut known = self.lock();
        if !known.askers.contains_key(asker) {
            if known.order.len() >= MAX_ASKERS
                && let Some(oldest) = known.order.pop_front()
            {
                known.askers.remove(&oldest);
            }
            known.order.push_back(asker.clone());
        }
        let calls = known.askers.entry(asker.clone()).or_default();
        if calls.len() >= MAX_CALLS {
            calls.pop_front();
        }
        calls.push_back((session.to_owned(), txn.to_owned()));
    }

    /// Whether this asker was told that this call is active.
    pub(super) fn knows(&self, asker: &SpiffeId, session: &str, txn: &str) -> bool {
        let known = self.lock();
        let calls = known.askers.get(asker);
        calls.is_some_and(|calls| calls.iter().any(|(id, call)| id == session && call == txn))
    }

    /// The sessions whose calls this asker was told of.
    pub(super) fn sessions(&self, asker: &SpiffeId) -> HashSet<String> {
        let known = self.lock();
        let calls = known.askers.get(asker).into_iter().flatten();
        calls.map(|(session, _)| session.clone()).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Known> {
        // Whole after every statement: a panic elsewhere leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_asker_may_speak_of_the_calls_it_was_told_of_lately_and_of_no_others() {
        let id = |text: &str| SpiffeId::parse(text).unwrap();
        let (a, b) = (id("spiffe://td/a"), id("spiffe://td/b"));
        let memory = Memory::default();
        memory.note(&a, "s1", "t1");
        assert!(memory.knows(&a, "s1", "t1"));
        for (asker, session, txn) in [(&a, "s1", "t2"), (&a, "s2", "t1"), (&b, "s1", "t1")] {
            assert!(!memory.knows(asker, session, txn), "{asker} {session} {txn}");
        }
        for call in 0..MAX_CALLS {
            memory.note(&a, "s2", &call.to_string());
        }
        assert!(!memory.knows(&a, "s1", "t1"), "the oldest gives way");
        assert_eq!(memory.sessions(&a), HashSet::from(["s2".to_owned()]));
        for other in 0..MAX_ASKERS {
            memory.note(&id(&format!("spiffe://td/x{other}")), "s3", "t");
        }
        assert!(memory.sessions(&a).is_empty(), "and so does the oldest asker");
    }
}
