//! What askers say and hear after they were told that a call is good: of the calls they asked about, and of no others.

use std::collections::{BTreeSet, VecDeque};

use thiserror::Error;
use time::OffsetDateTime;
use tokio::sync::broadcast;

use super::Verifier;
use super::nodes::follow::Elsewhere;
use crate::audit::Event;
use crate::id::SpiffeId;
use crate::issue::{Refusal, caller};
use crate::peer::PeerConn;
use crate::proof::BodyDigest;
use crate::session::{Change, State};

/// The longest note.
const MAX_NOTE_BYTES: usize = 256;

/// What became of a call.
#[derive(Clone, Debug)]
pub struct Report {
    /// The session.
    pub session: String,
    /// The transaction.
    pub txn: String,
    /// `done`, `failed` or `refused`.
    pub outcome: &'static str,
    /// One line of the tool's.
    pub note: String,
    /// The digest of the result.
    pub result: Option<BodyDigest>,
}

/// Why a report is not taken.
#[derive(Debug, Error)]
pub enum ReportError {
    /// The caller gets nothing at all.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// This caller was not told lately that there is such a call.
    #[error("no call `{0}` of that session was checked for this caller lately: report right after the call")]
    NotChecked(String),
    /// The note is too long, or more than one line.
    #[error("a note is one line of at most {MAX_NOTE_BYTES} bytes")]
    Note,
}

/// A session came to stand elsewhere: one of this node, or of another that told so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckedChange {
    /// Which.
    pub session: String,
    /// Where it stands now; `None` when its node knows nothing of it any more: then it has ended.
    pub state: Option<State>,
    /// When it ended.
    pub at: Option<OffsetDateTime>,
}

impl From<Change> for CheckedChange {
    fn from(Change { session, state }: Change) -> Self {
        Self { session: session.terms().id.to_string(), state: Some(state), at: session.ended_at() }
    }
}

impl From<Elsewhere> for CheckedChange {
    fn from(Elsewhere { session, state, at }: Elsewhere) -> Self {
        Self { session, state, at }
    }
}

impl Verifier {
    /// Takes a report about a call that was checked for this caller, and found good.
    pub async fn report(&self, peer: &PeerConn, report: &Report) -> Result<(), ReportError> {
        let askers = self.asks_as(peer).await;
        let askers = self.issuer.recorded(peer, None, askers)?;
        if !askers.iter().any(|asker| self.memory.knows(asker, &report.session, &report.txn)) {
            return Err(ReportError::NotChecked(report.txn.clone()));
        }
        if report.note.len() > MAX_NOTE_BYTES || report.note.chars().any(char::is_control) {
            return Err(ReportError::Note);
        }
        self.issuer.audit.record(Event::CallReported {
            caller: caller(peer),
            session: report.session.clone(),
            txn: report.txn.clone(),
            outcome: report.outcome,
            note: report.note.clone(),
            result_sha256: report.result.map(|digest| digest.hex()).unwrap_or_default(),
        });
        Ok(())
    }

    /// The sessions whose calls this caller asks about, as they change from now on.
    pub async fn watch(&self, peer: &PeerConn) -> Result<CheckedChanges, Refusal> {
        // Before it is asked who it is: what changes meanwhile is not missed.
        let (changes, elsewhere) = (self.sessions.changes(), self.nodes.changes());
        let askers = self.asks_as(peer).await;
        let askers = self.issuer.recorded(peer, None, askers)?;
        Ok(CheckedChanges { askers, changes, elsewhere, missed: VecDeque::new(), peer: peer.clone() })
    }

    /// Whether a change is one that these askers hear of.
    fn concerns(&self, askers: &[SpiffeId], change: &CheckedChange) -> bool {
        askers.iter().any(|asker| self.memory.knows_session(asker, &change.session))
    }

    /// All sessions that these askers hear of, as they are; those of other nodes where they may not be used.
    fn as_they_are(&self, askers: &[SpiffeId]) -> VecDeque<CheckedChange> {
        let ids: BTreeSet<_> = askers.iter().flat_map(|asker| self.memory.sessions(asker)).collect();
        let as_it_is = |id: &std::sync::Arc<str>| match self.sessions.find(id) {
            Some(session) => Some(Change { state: session.state(), session }.into()),
            None => self.nodes.unusable(id).map(CheckedChange::from),
        };
        ids.iter().filter_map(as_it_is).collect()
    }

    /// As whom a caller may have asked.
    async fn asks_as(&self, peer: &PeerConn) -> Result<Vec<SpiffeId>, Refusal> {
        let entitled = self.issuer.entitled(peer).await?;
        Ok(entitled.identities.into_iter().map(|identity| identity.spiffe_id).collect())
    }
}

/// Changes of sessions for one asker.
#[derive(Debug)]
pub struct CheckedChanges {
    askers: Vec<SpiffeId>,
    changes: broadcast::Receiver<Change>,
    elsewhere: broadcast::Receiver<Elsewhere>,
    /// After more changes than are kept: all sessions as they are, so that no end is missed.
    missed: VecDeque<CheckedChange>,
    peer: PeerConn,
}

impl CheckedChanges {
    /// The next one; `None` when the asker is not there any more.
    pub async fn next(&mut self, verifier: &Verifier) -> Option<CheckedChange> {
        loop {
            let change = match self.missed.pop_front() {
                Some(change) => Ok(change),
                None => tokio::select! {
                    change = self.changes.recv() => change.map(CheckedChange::from),
                    change = self.elsewhere.recv() => change.map(CheckedChange::from),
                },
            };
            let change = match change {
                Ok(change) => change,
                Err(broadcast::error::RecvError::Lagged(_)) => {
                    self.missed = verifier.as_they_are(&self.askers);
                    continue;
                }
                Err(broadcast::error::RecvError::Closed) => return None,
            };
            if verifier.concerns(&self.askers, &change) {
                return self.peer.instance().look().is_ok().then_some(change);
            }
        }
    }
}
