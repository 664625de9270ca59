//! One session while it lives, and what is left of it afterwards.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use tokio::sync::watch;

use super::model::{EndReason, Members, State, Terms};
use super::receipt::Receipt;
use super::token::TokenKind;
use crate::attest::Launched;
use crate::bond::Hold;
use crate::policy::{AgentFacts, SessionFacts};
use crate::proof::{TargetUri, UriPrefix};

/// A clock may be set back by so much without harm: what lasts until a time lasts no longer than that.
pub(super) const SET_BACK: Duration = Duration::from_secs(10);

/// Tokens of one session that have not expired: more than any task needs, and a bound on what it takes in memory.
const MOST_TOKENS: usize = 4096;
/// So few are not looked through for those that have expired.
const FEW_TOKENS: usize = 64;

/// What a session has used of its budget, with all below it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Used {
    /// Tokens minted.
    pub tokens: u32,
    /// Requests proven.
    pub calls: u32,
}

impl Used {
    /// The larger of each.
    pub(super) fn max(self, other: Self) -> Self {
        Self { tokens: self.tokens.max(other.tokens), calls: self.calls.max(other.calls) }
    }
}

/// Why a session cannot be used now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// It waits for an approval.
    Pending,
    /// An operator suspended it.
    Suspended,
    /// It has ended, or is ending.
    Ended(EndReason),
    /// It is to end now: whoever sees this ends it.
    MustEnd(EndReason),
}

/// A token that was minted and stands, as far as the session knows.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Token {
    /// Its `jti`.
    pub(super) id: String,
    /// What it is, and with a WIT of which more proofs are made the WIT.
    pub(super) kind: TokenKind,
    /// The WIT, where proofs are to be made with it.
    pub(super) wit: Option<Arc<str>>,
    /// Where to: what proofs may be for, or the audience of a bearer token.
    pub(super) target: String,
    /// The scopes, as in the token.
    pub(super) scope: String,
    /// Whether it is good for one proof.
    pub(super) one_use: bool,
    /// Whether any proof may be made with it; otherwise those that name it alone.
    pub(super) for_any: bool,
    /// What it is worth: less than its session where a delegate had it minted that knew the member weakly.
    pub(super) binding: u8,
    /// The approval it was minted by.
    pub(super) approval: Option<String>,
    /// The authority that signed it.
    pub(super) authority: Arc<str>,
    /// When it ends.
    #[serde(with = "time::serde::timestamp")]
    pub(super) expires_at: OffsetDateTime,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("id", &self.id).field("target", &self.target).finish_non_exhaustive()
    }
}

/// What changes.
#[derive(Debug)]
pub(super) struct Inner {
    /// Nothing begins any more. ENDED is seen when everything is disposed of.
    pub(super) ending: Option<EndReason>,
    pub(super) used: Used,
    /// When it ends by the clock.
    pub(super) ends_at: OffsetDateTime,
    pub(super) heartbeat_due: Option<OffsetDateTime>,
    /// The approval it waits for, or was begun by.
    pub(super) approval: Option<String>,
    pub(super) tokens: Vec<Token>,
    /// When so many are there, those that have expired are forgotten.
    crowded: usize,
    /// When the last proof ends.
    pub(super) last_proof_until: Option<OffsetDateTime>,
    pub(super) receipt: Option<Arc<Receipt>>,
    /// Whoever acts: held as long as the session lives.
    pub(super) hold: Option<Arc<Hold>>,
    pub(super) launched: Option<Launched>,
    pub(super) key_thumbprint: Option<String>,
    /// The latest time that was seen.
    latest: OffsetDateTime,
}

/// A session. What it was begun with never changes.
#[derive(Debug)]
pub struct Session {
    terms: Arc<Terms>,
    state: watch::Sender<State>,
    inner: Mutex<Inner>,
    /// Wakes whoever watches over it: when to look next may have changed.
    pub(super) poke: tokio::sync::Notify,
    /// Held while a token is minted for a proof, so that calls that need the same one wait for it.
    pub(super) minting: tokio::sync::Mutex<()>,
}

impl Session {
    pub(super) fn new(terms: Arc<Terms>, state: State, inner: Inner) -> Self {
        Self {
            terms,
            state: watch::Sender::new(state),
            inner: Mutex::new(inner),
            poke: tokio::sync::Notify::new(),
            minting: tokio::sync::Mutex::new(()),
        }
    }

    /// What it was begun with.
    pub fn terms(&self) -> &Terms {
        &self.terms
    }

    pub(super) fn shared_terms(&self) -> Arc<Terms> {
        self.terms.clone()
    }

    /// Where it stands.
    pub fn state(&self) -> State {
        *self.state.borrow()
    }

    /// Where it stands, and each change.
    pub fn watch(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    /// What of the budget is used.
    pub fn used(&self) -> Used {
        self.inner().used
    }

    /// When it ends by the clock.
    pub fn ends_at(&self) -> OffsetDateTime {
        self.inner().ends_at
    }

    /// When it ended.
    pub fn ended_at(&self) -> Option<OffsetDateTime> {
        self.inner().receipt.as_ref().map(|receipt| receipt.ended_at)
    }

    /// When the next sign of life is due.
    pub fn heartbeat_due(&self) -> Option<OffsetDateTime> {
        self.inner().heartbeat_due
    }

    /// The approval it waits for, or was begun by.
    pub fn approval(&self) -> Option<String> {
        self.inner().approval.clone()
    }

    /// What was disposed of when it ended.
    pub fn receipt(&self) -> Option<Arc<Receipt>> {
        self.inner().receipt.clone()
    }

    /// The thumbprint (RFC 7638) of its key, once it has one; also when that is wiped.
    pub fn key_thumbprint(&self) -> Option<String> {
        self.inner().key_thumbprint.clone()
    }

    /// Who acts, as the audit log has it.
    pub fn members_text(&self) -> String {
        super::record::tie_text(self)
    }

    /// For policy: the session.
    pub fn facts(&self) -> SessionFacts<'_> {
        facts(&self.terms, self.used())
    }

    /// For policy: who acts.
    pub fn agent(&self) -> AgentFacts<'_> {
        agent(&self.terms)
    }

    /// Whether it may be used at this moment. Whoever looks also looks at who acts.
    pub fn usable(&self, now: OffsetDateTime) -> Result<(), Unusable> {
        let mut inner = self.inner();
        if let Some(reason) = inner.ending {
            return Err(Unusable::Ended(reason));
        }
        // Seen by whoever comes first: the calls, and the agent once in a while.
        if now + SET_BACK < inner.latest {
            return Err(Unusable::MustEnd(EndReason::ClockSetBack));
        }
        inner.latest = inner.latest.max(now);
        if inner.ends_at <= now {
            return Err(Unusable::MustEnd(EndReason::Expired));
        }
        if inner.heartbeat_due.is_some_and(|due| due <= now) {
            return Err(Unusable::MustEnd(EndReason::HeartbeatLost));
        }
        match self.state() {
            State::Active => Ok(()),
            State::PendingApproval => Err(Unusable::Pending),
            State::Suspended => Err(Unusable::Suspended),
            State::Ended(reason) => Err(Unusable::Ended(reason)),
        }
    }

    /// The next time something is due by the clock.
    pub(super) fn next_due(&self) -> OffsetDateTime {
        let inner = self.inner();
        inner.heartbeat_due.map_or(inner.ends_at, |due| due.min(inner.ends_at))
    }

    pub(super) fn inner(&self) -> MutexGuard<'_, Inner> {
        // Whoever panicked with it changed one value at a time.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_state(&self, state: State) {
        self.state.send_replace(state);
        self.poke.notify_one();
    }

    /// The process whose id members are told by, of sessions that are no cgroup's.
    pub(super) fn root(&self) -> Option<Arc<crate::peer::Instance>> {
        let hold = self.inner().hold.clone()?;
        hold.instance().cloned()
    }

    /// Tokens that can prove a request to `uri` for some time yet, the narrowest first.
    pub(super) fn tokens_for(&self, uri: &TargetUri, binding: u8, until: OffsetDateTime) -> Vec<Token> {
        let inner = self.inner();
        let is_fresh = |token: &Token| token.expires_at >= until && token.binding == binding;
        let fitting = |token: &&Token| token.for_any && is_fresh(token) && covers(&token.target, uri);
        let mut fitting: Vec<Token> = inner.tokens.iter().filter(fitting).cloned().collect();
        fitting.sort_by_key(|token| std::cmp::Reverse(token.target.len()));
        fitting
    }

    /// The token of this id, and if it is good for one proof, not again.
    pub(super) fn take_named(&self, id: &str) -> Option<Token> {
        let mut inner = self.inner();
        let token = inner.tokens.iter_mut().find(|token| token.id == id && token.wit.is_some())?;
        let taken = token.clone();
        if token.one_use {
            token.wit = None;
        }
        Some(taken)
    }

    /// Counts tokens and calls, and says what is used now.
    pub(super) fn count(&self, tokens: u32, calls: u32) -> (super::SessionId, Used) {
        let mut inner = self.inner();
        inner.used.tokens = inner.used.tokens.saturating_add(tokens);
        inner.used.calls = inner.used.calls.saturating_add(calls);
        (self.terms.id.clone(), inner.used)
    }

    /// A proof was made that ends then.
    pub(super) fn proof_until(&self, until: OffsetDateTime) {
        let mut inner = self.inner();
        inner.last_proof_until = Some(inner.last_proof_until.map_or(until, |at| at.max(until)));
    }

    /// Whether there is room for another token: what has expired is forgotten first.
    pub(super) fn has_room(&self, now: OffsetDateTime) -> bool {
        let mut inner = self.inner();
        if inner.tokens.len() >= inner.crowded {
            inner.tokens.retain(|known| known.expires_at > now);
            inner.crowded = (2 * inner.tokens.len()).max(FEW_TOKENS);
        }
        inner.tokens.len() < MOST_TOKENS
    }

    /// Whether it, or a token of it, hangs on an approval.
    pub(super) fn names_approvals(&self) -> bool {
        let inner = self.inner();
        inner.approval.is_some() || inner.tokens.iter().any(|token| token.approval.is_some())
    }

    /// The targets of the session that cover a URI, the narrowest first.
    pub(super) fn target_for(&self, uri: &TargetUri) -> Option<&str> {
        let fitting = self.terms.targets.iter().filter(|target| covers(target, uri));
        fitting.max_by_key(|target| target.len()).map(String::as_str)
    }
}

impl Inner {
    pub(super) fn new(ends_at: OffsetDateTime, heartbeat: Option<Duration>, now: OffsetDateTime) -> Self {
        Self {
            ending: None,
            used: Used::default(),
            ends_at,
            heartbeat_due: heartbeat.map(|within| now + within),
            approval: None,
            tokens: Vec::new(),
            crowded: FEW_TOKENS,
            last_proof_until: None,
            receipt: None,
            hold: None,
            launched: None,
            key_thumbprint: None,
            latest: now,
        }
    }
}

/// Whether a session's target stands for a URI.
pub fn covers(target: &str, uri: &TargetUri) -> bool {
    UriPrefix::parse(target).is_ok_and(|prefix| prefix.covers(uri))
}

/// For policy: the session of these terms.
pub(super) fn facts(terms: &Terms, used: Used) -> SessionFacts<'_> {
    SessionFacts {
        id: terms.id.as_str(),
        parent: terms.parent.as_ref().map(super::SessionId::as_str),
        depth: terms.depth,
        purpose: &terms.purpose,
        targets: &terms.targets,
        scopes: &terms.scopes,
        boundary: terms.boundary.as_str(),
        binding: terms.binding,
        lifetime: (terms.expires_at - terms.started_at).unsigned_abs(),
        tokens: used.tokens,
        calls: used.calls,
        max_tokens: terms.budget.max_tokens,
        max_calls: terms.budget.max_calls,
        launched: &terms.launched,
    }
}

/// For policy: who acts in it.
pub(super) fn agent(terms: &Terms) -> AgentFacts<'_> {
    AgentFacts { spiffe_id: &terms.spiffe_id, entry: &terms.entry, owner: &terms.owner }
}

impl Members {
    /// `process`, `cgroup` or `tree`.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Process(_) => "process",
            Self::Cgroup(_) => "cgroup",
            Self::Tree(_) => "tree",
        }
    }
}
