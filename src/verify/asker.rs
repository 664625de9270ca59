//! Who asks, and what this agent told it lately.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use thiserror::Error;
use time::{Duration, OffsetDateTime};

use super::Verifier;
use crate::audit::Caller;
use crate::base::entropy::hex;
use crate::id::{SpiffeId, TrustDomain};
use crate::issue::{Entitled, Refusal, caller};
use crate::ledger::{Kind, Standing};
use crate::peer::{LoopbackError, LoopbackPeer, PeerConn};
use crate::proof::TargetUri;
use crate::x509::Certificate;

/// Askers that are remembered, and calls and sessions of each.
const MAX_ASKERS: usize = 1024;
const MAX_CALLS: usize = 1024;
/// So many sessions of an asker are kept without a look at which are over.
const MIN_FULL: usize = 1024;
/// A session that is asked about no more, and of whose end nothing was heard: no session lasts so long without a call.
const HEARS_FOR: Duration = Duration::days(1);

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

/// Why somebody may not ask over HTTP. It is told to nobody outside.
#[derive(Debug, Error)]
pub enum NotAsker {
    /// It is not known who asks.
    #[error("it cannot be said which process asks: {0}")]
    Unknown(#[from] LoopbackError),
    /// What it presents is not a certificate that this node issued, or it no longer stands.
    #[error("the certificate `{0}` of the asker is not one that stands in the ledger of this node")]
    NotIssuedHere(SpiffeId),
    /// It serves something else.
    #[error("no registration entry of the asker lists `{0}` under `serves`")]
    NotServed(TargetUri),
    /// Its user asks more than fits at one time.
    #[error("the user of the asker has too many questions open")]
    TooMany,
    /// It gets nothing at all.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// Why entries that match on the executable do not count over loopback.
const LOOPBACK: &str = "over loopback nobody vouches for the program that sent the request";

impl Verifier {
    /// A process on the workload socket that serves `uri`.
    pub(super) async fn asker_on_socket(&self, peer: &PeerConn, uri: &TargetUri) -> Result<Asker, Refusal> {
        let entitled = self.issuer.entitled(peer).await?;
        self.asker_that_serves(&entitled, uri, caller(peer))
    }

    /// A process of this host that asks over loopback and serves `uri`. It is attested by what everybody can see of it:
    /// an entry that matches on the executable does not count.
    pub async fn asker_on_loopback(&self, peer: &LoopbackPeer, uri: &TargetUri) -> Result<Asker, NotAsker> {
        let mut entitled = self.issuer.entitled_of(peer.instance()).await?;
        entitled.attested.require_executable(Err(LOOPBACK.to_owned()));
        let instance = peer.instance();
        let caller = Caller { instance: instance.id().to_string(), pid: instance.pid(), uid: peer.uid() };
        Ok(self.asker_that_serves(&entitled, uri, caller)?)
    }

    fn asker_that_serves(&self, entitled: &Entitled, uri: &TargetUri, caller: Caller) -> Result<Asker, Refusal> {
        let now = self.issuer.clock.now();
        let permit = self.issuer.policy.check_proof(&entitled.attested, &entitled.identities, uri, now)?;
        let federates_with = entitled.identities.iter().flat_map(|identity| identity.entry.federates_with());
        let federates_with = federates_with.cloned().collect();
        Ok(Asker { spiffe_id: permit.asker().clone(), caller, federates_with, is_node: false })
    }

    /// Whoever has the key of an X.509-SVID of our trust domain, which the handshake showed: the agent of a configured
    /// node, or a workload that this node issued it to and whose entry serves `uri`.
    pub async fn asker_with_svid(&self, leaf: &Certificate, uri: &TargetUri) -> Result<Asker, NotAsker> {
        let spiffe_id = leaf.svid_id().map_err(|_| NotAsker::NotServed(uri.clone()))?;
        if self.nodes.is_agent_of_one(&spiffe_id) {
            let caller = Caller { instance: spiffe_id.to_string(), pid: 0, uid: 0 };
            return Ok(Asker { spiffe_id, caller, federates_with: BTreeSet::new(), is_node: true });
        }
        let serial = hex(leaf.serial().as_bytes());
        let not_here = || NotAsker::NotIssuedHere(spiffe_id.clone());
        let row = self.issuer.issued_as(&serial, Kind::X509, &spiffe_id).ok_or_else(not_here)?;
        if row.standing == Standing::Stands {
            self.issuer.look_at_holder(&row).await?;
        }
        if self.issuer.ledger.standing(&serial) != Standing::Stands {
            return Err(not_here());
        }
        let index = self.issuer.registry.borrow().clone();
        let now = self.issuer.clock.now();
        let stands = index.entry(&row.entry).filter(|entry| !entry.is_disabled() && !entry.is_expired(now));
        let entry = stands.filter(|entry| entry.serves_uri(uri)).ok_or_else(|| NotAsker::NotServed(uri.clone()))?;
        Ok(Asker {
            spiffe_id,
            caller: Caller { instance: row.instance.to_string(), pid: row.pid, uid: row.uid },
            federates_with: entry.federates_with().iter().cloned().collect(),
            is_node: false,
        })
    }
}

/// What askers asked about, by asker: what `Report` and `Watch` are about. Of calls and askers the oldest give way; a
/// session is remembered until it is over, because a stream that was opened in it may have no further call.
#[derive(Debug, Default)]
pub(super) struct Memory(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    askers: HashMap<SpiffeId, Asked>,
    order: VecDeque<SpiffeId>,
}

/// What one asker asked about.
#[derive(Debug, Default)]
struct Asked {
    /// Calls that were found active lately.
    calls: VecDeque<(Arc<str>, String)>,
    /// When each was last asked about.
    sessions: HashMap<Arc<str>, OffsetDateTime>,
    /// So many sessions are looked through for those that are over.
    full: usize,
}

impl Memory {
    /// Remembers that an asker is to hear of a session. Before the last look at that: an end that the look does not see is
    /// told.
    pub(super) fn follow(&self, asker: &SpiffeId, session: &str, now: OffsetDateTime, is_over: impl Fn(&str) -> bool) {
        let mut known = self.lock();
        if !known.askers.contains_key(asker) {
            if known.order.len() >= MAX_ASKERS
                && let Some(oldest) = known.order.pop_front()
            {
                known.askers.remove(&oldest);
            }
            known.order.push_back(asker.clone());
        }
        let asked = known.askers.entry(asker.clone()).or_default();
        if let Some(at) = asked.sessions.get_mut(session) {
            *at = now;
            return;
        }
        if asked.sessions.len() >= asked.full.max(MIN_FULL) {
            asked.sessions.retain(|session, at| now - *at < HEARS_FOR && !is_over(session));
            // Looked through again when there are twice as many: each costs a little, and never all at once.
            asked.full = asked.sessions.len() * 2;
        }
        asked.sessions.insert(session.into(), now);
    }

    /// Remembers a call that was found active.
    pub(super) fn note(&self, asker: &SpiffeId, session: &str, txn: &str) {
        let mut known = self.lock();
        let Some(asked) = known.askers.get_mut(asker) else { return };
        if asked.calls.len() >= MAX_CALLS {
            asked.calls.pop_front();
        }
        let session =
            asked.sessions.get_key_value(session).map_or_else(|| Arc::from(session), |(known, _)| known.clone());
        asked.calls.push_back((session, txn.to_owned()));
    }

    /// Whether this asker was told that this call is active.
    pub(super) fn knows(&self, asker: &SpiffeId, session: &str, txn: &str) -> bool {
        let known = self.lock();
        let asked = known.askers.get(asker);
        asked.is_some_and(|asked| asked.calls.iter().any(|(id, call)| **id == *session && call == txn))
    }

    /// Whether this asker hears of this session.
    pub(super) fn knows_session(&self, asker: &SpiffeId, session: &str) -> bool {
        self.lock().askers.get(asker).is_some_and(|asked| asked.sessions.contains_key(session))
    }

    /// The sessions whose calls this asker was told of.
    pub(super) fn sessions(&self, asker: &SpiffeId) -> Vec<Arc<str>> {
        self.lock().askers.get(asker).into_iter().flat_map(|asked| asked.sessions.keys().cloned()).collect()
    }

    /// The sessions of a node whose calls anybody here was told of; at most so many.
    pub(super) fn sessions_of_node(&self, node: &str, most: usize) -> Vec<String> {
        let known = self.lock();
        let all = known.askers.values().flat_map(|asked| asked.sessions.iter());
        let of_node = all.filter(|(session, _)| session.split_once('.').is_some_and(|(of, _)| of == node));
        // The latest first: those that were asked about long ago are likely over.
        let mut latest: Vec<_> = of_node.map(|(session, at)| (std::cmp::Reverse(*at), session.clone())).collect();
        latest.sort_unstable();
        latest.dedup_by(|a, b| a.1 == b.1);
        latest.into_iter().take(most).map(|(_, session)| session.to_string()).collect()
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
        let follow =
            |asker: &SpiffeId, session: &str| memory.follow(asker, session, OffsetDateTime::UNIX_EPOCH, |_| false);
        follow(&a, "s1");
        memory.note(&a, "s1", "t1");
        assert!(memory.knows(&a, "s1", "t1"));
        for (asker, session, txn) in [(&a, "s1", "t2"), (&a, "s2", "t1"), (&b, "s1", "t1")] {
            assert!(!memory.knows(asker, session, txn), "{asker} {session} {txn}");
        }
        follow(&a, "s2");
        for call in 0..MAX_CALLS {
            memory.note(&a, "s2", &call.to_string());
        }
        assert!(!memory.knows(&a, "s1", "t1"), "the oldest gives way");
        assert!(memory.knows_session(&a, "s1") && !memory.knows_session(&b, "s1"), "and its session is followed still");
        for other in 0..MAX_ASKERS {
            follow(&id(&format!("spiffe://td/x{other}")), "s3");
        }
        assert!(memory.sessions(&a).is_empty(), "and so does the oldest asker");
    }
}
