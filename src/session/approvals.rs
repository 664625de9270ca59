//! What waits for a person's word, and what they said.
//!
//! An approval answers exactly one question of one session: another target, tool, argument or effect is another
//! question. It is decided by somebody who is neither the agent nor the person it acts for; it holds for a time and for
//! so many uses, and it can be taken back. Every change is synced to the store before anybody sees it, so that an agent
//! that is restarted knows what waits, what was allowed, and how often it still may be used.
//!
//! Nothing here signs, and nothing here ends what an approval allowed: whoever acted on one follows [`Approvals::watch`].

mod record;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};
use std::time::Duration;

use thiserror::Error;
use time::OffsetDateTime;
use tokio::sync::{Mutex, watch};

use super::SessionId;
use crate::audit::{Audit, AuditError, Event};
use crate::base::clock::Clock;
use crate::base::entropy::Entropy;
use crate::store::{Change, Expect, Space, Store, StoreError};

pub use record::{Approval, ApprovalId, ApprovalState, Asked, Matter, Party};

/// How long an approval holds when nobody says.
pub const DEFAULT_TTL: Duration = Duration::from_secs(15 * 60);
/// The longest an approval may hold.
pub const MAX_TTL: Duration = Duration::from_secs(8 * 60 * 60);
/// The most uses one approval may have.
pub const MAX_USES: u32 = 1000;

/// A question nobody answers lapses, so that nobody approves what was forgotten.
const PENDING_TTL: Duration = Duration::from_secs(60 * 60);
/// Questions that may wait at once: of one session, of one user id, of all.
const MAX_PENDING: Limits = Limits { session: 16, uid: 64, all: 4096 };
/// So many changes are remembered for those who ask what changed.
const MAX_RECENT: usize = 1024;
/// How long what was decided is kept, and how much of it: of one user id, of all.
const KEPT_FOR: Duration = Duration::from_secs(24 * 60 * 60);
const MAX_KEPT: Limits = Limits { session: usize::MAX, uid: 256, all: 4096 };

struct Limits {
    session: usize,
    uid: usize,
    all: usize,
}

/// Why there is no approval, or no decision about one.
#[derive(Debug, Error)]
pub enum ApprovalError {
    /// Nobody asked for it, or it is no longer kept.
    #[error("there is no approval `{0}`: `tether approval list --all` shows what there is")]
    Unknown(String),
    /// The user id of the agent tried to decide what the agent may do.
    #[error("user id {0} runs the agent that asks: somebody else must decide")]
    OwnAgent(u32),
    /// The person an agent acts for tried to decide what it may do.
    #[error("user id {0} is the person the agent acts for: somebody else must decide")]
    OwnUser(u32),
    /// It was decided before, or its time is over.
    #[error("approval `{id}` no longer waits: it is {}", state.as_str())]
    Decided {
        /// Which.
        id: ApprovalId,
        /// What became of it.
        state: ApprovalState,
    },
    /// It cannot be used: it is not granted, used up, withdrawn, or its time is over.
    #[error("approval `{id}` cannot be used: it is {}", state.as_str())]
    NotUsable {
        /// Which.
        id: ApprovalId,
        /// What became of it.
        state: ApprovalState,
    },
    /// The same was asked before in this session, and an approver said no or took it back.
    #[error("an approver has refused this: approval `{0}`; what is refused in a session stays refused in it")]
    Refused(ApprovalId),
    /// The session has too many questions that wait.
    #[error("the session has {0} approvals waiting, which is the limit: wait until they are decided")]
    TooManyOfSession(usize),
    /// The sessions of one user id have too many questions that wait.
    #[error(
        "the sessions of user id {uid} have {limit} approvals waiting, which is the limit: wait until they are decided"
    )]
    TooManyOfUid {
        /// Whose.
        uid: u32,
        /// The limit.
        limit: usize,
    },
    /// All sessions together have too many questions that wait.
    #[error("{0} approvals are waiting, which is the limit: wait until they are decided")]
    TooMany(usize),
    /// A text cannot be put before a person as it is.
    #[error("`{field}` {why}")]
    Text {
        /// Which field of the question.
        field: &'static str,
        /// What is wrong with it.
        why: &'static str,
    },
    /// An approval without end, or without use.
    #[error("an approval holds for 1 second to {} hours and for 1 to {MAX_USES} uses", MAX_TTL.as_secs() / 3600)]
    Terms,
    /// The store could not be read or written; nothing was changed.
    #[error("the approval could not be stored")]
    Store(#[from] StoreError),
    /// It could not be put on record; nothing was changed.
    #[error("the decision could not be put into the audit log")]
    Audit(#[from] AuditError),
    /// The agent is going down.
    #[error("the agent is stopping: try again when it is back")]
    Stopping,
}

/// What an approver says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Yes, for so long and so often.
    Approve {
        /// From now on; at most [`MAX_TTL`].
        ttl: Duration,
        /// At least once, at most [`MAX_USES`] times.
        uses: u32,
    },
    /// No; of what was granted before: no longer.
    Deny,
}

/// All approvals of this node; clones share them.
#[derive(Clone, Debug)]
pub struct Approvals(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Store,
    clock: Clock,
    entropy: Entropy,
    audit: Audit,
    rows: RwLock<Rows>,
    /// Held from reading what is to be changed until the change is visible.
    writing: Mutex<()>,
    changed: watch::Sender<u64>,
    /// Whose approvals changed lately.
    recent: std::sync::Mutex<Recent>,
}

/// The sessions of the latest changes, each with the count at which it changed.
#[derive(Debug, Default)]
struct Recent {
    changes: VecDeque<(u64, SessionId)>,
    /// Changes up to this count are forgotten.
    forgotten: u64,
}

type Rows = BTreeMap<ApprovalId, Row>;

#[derive(Clone, Debug)]
struct Row {
    approval: Approval,
    /// Of the store; `None` when the last change could not be written.
    revision: Option<u64>,
}

/// What a change comes to.
struct Draft<T> {
    put: Vec<Approval>,
    /// That more is allowed than before: in the audit log before it is so.
    before: Option<Event>,
    /// What has happened then.
    after: Option<Event>,
    answer: T,
}

impl<T> Draft<T> {
    /// All is as it should be.
    fn nothing(answer: T) -> Self {
        Self { put: Vec::new(), before: None, after: None, answer }
    }
}

impl Approvals {
    /// Reads what is stored. What lapsed meanwhile is expired.
    pub async fn open(store: Store, clock: Clock, entropy: Entropy, audit: Audit) -> Result<Self, ApprovalError> {
        let stored = store.list::<Approval>(Space::Approvals).await?;
        let rows = stored.into_iter().map(|(_, versioned)| {
            let row = Row { approval: versioned.value, revision: Some(versioned.revision) };
            (row.approval.id.clone(), row)
        });
        let inner = Arc::new(Inner {
            rows: RwLock::new(rows.collect()),
            writing: Mutex::new(()),
            changed: watch::Sender::new(0),
            recent: std::sync::Mutex::default(),
            store,
            clock,
            entropy,
            audit,
        });
        tokio::spawn(expire(Arc::downgrade(&inner), inner.clock.clone(), inner.changed.subscribe()));
        Ok(Self(inner))
    }

    /// A granted approval for exactly this question that can be used now; of several the one that ends first.
    pub fn covering(&self, asked: &Asked<'_>) -> Option<ApprovalId> {
        let (rows, now) = (self.0.rows(), self.0.clock.now());
        let fitting = rows.values().map(|row| &row.approval);
        let fitting = fitting.filter(|approval| approval.is_usable(now) && approval.matter.is(asked));
        fitting.min_by_key(|approval| approval.expires_at).map(|approval| approval.id.clone())
    }

    /// Whether the approval with this id is for exactly this question and stands: of a call that was proven with it, its
    /// last use too, and that is checked now.
    pub fn allowed(&self, id: &str, asked: &Asked<'_>) -> bool {
        let now = self.0.clock.now();
        self.0.rows().get(id).is_some_and(|row| row.approval.stands(now) && row.approval.matter.is(asked))
    }

    /// Takes one use, for good: durable when this returns, so sign afterwards. Of many that take the last use one gets it.
    pub async fn use_up(&self, id: &ApprovalId) -> Result<(), ApprovalError> {
        let id = id.clone();
        self.change(move |rows, now| {
            let approval = find(rows, id.as_str())?;
            if !approval.is_usable(now) {
                return Err(ApprovalError::NotUsable { id, state: approval.state_at(now) });
            }
            let used = approval.used_once(now);
            let after = Some(record::used(&used));
            Ok(Draft { put: vec![used], before: None, after, answer: () })
        })
        .await
    }

    /// Asks for an approval. The same question again gives the same approval while it waits, and a granted one that can
    /// be used; a question that was refused in its session stays refused.
    pub async fn request(&self, asked: &Asked<'_>) -> Result<Approval, ApprovalError> {
        let matter = Matter::of(asked)?;
        let action = asked.action.as_str();
        let now = self.0.clock.now();
        let id = ApprovalId::new(self.0.entropy.hex::<8>());
        let fresh = Approval::pending(id, matter, asked, now, now + PENDING_TTL);
        self.change(move |rows, now| {
            let same = rows.values().map(|row| &row.approval).filter(|known| known.matter == fresh.matter);
            for known in same {
                match known.state_at(now) {
                    ApprovalState::Pending => return Ok(Draft::nothing(known.clone())),
                    ApprovalState::Granted if known.is_usable(now) => {
                        return Ok(Draft::nothing(known.clone()));
                    }
                    ApprovalState::Denied | ApprovalState::Withdrawn => {
                        return Err(ApprovalError::Refused(known.id.clone()));
                    }
                    _ => {}
                }
            }
            room_for(&fresh, rows, now)?;
            let after = Some(record::requested(&fresh, action));
            Ok(Draft { put: vec![fresh.clone()], before: None, after, answer: fresh })
        })
        .await
    }

    /// An approver's word. `by` is the user id of whoever says it, from the kernel.
    pub async fn decide(&self, id: &str, by: u32, verdict: Verdict, note: &str) -> Result<Approval, ApprovalError> {
        if let Verdict::Approve { ttl, uses } = verdict
            && (ttl.is_zero() || ttl > MAX_TTL || uses == 0 || uses > MAX_USES)
        {
            return Err(ApprovalError::Terms);
        }
        let (id, note) = (id.to_owned(), note.to_owned());
        self.change(move |rows, now| {
            let approval = find(rows, &id)?;
            match approval.party(by) {
                Some(Party::Agent) => return Err(ApprovalError::OwnAgent(by)),
                Some(Party::User) => return Err(ApprovalError::OwnUser(by)),
                None => {}
            }
            let decided = match (verdict, approval.state_at(now)) {
                (Verdict::Approve { ttl, uses }, ApprovalState::Pending) => Approval {
                    uses_left: uses,
                    expires_at: now + ttl,
                    ..approval.decided(ApprovalState::Granted, by, &note, now)
                },
                (Verdict::Deny, ApprovalState::Pending) => approval.decided(ApprovalState::Denied, by, &note, now),
                (Verdict::Deny, _) if approval.stands(now) => {
                    approval.decided(ApprovalState::Withdrawn, by, &note, now)
                }
                (_, state) => return Err(ApprovalError::Decided { id: approval.id.clone(), state }),
            };
            let event = Some(record::decided(&decided, by));
            // More is allowed when that is on record; less is allowed at once.
            let (before, after) = if decided.state == ApprovalState::Granted { (event, None) } else { (None, event) };
            Ok(Draft { put: vec![decided.clone()], before, after, answer: decided })
        })
        .await
    }

    /// Counts every change that anybody can see: requests, decisions, uses, ends.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.0.changed.subscribe()
    }

    /// The sessions whose approvals have changed after the count `seen` of [`Self::watch`]; `None` when that is too long
    /// ago to know: then it may be any.
    pub fn changed_since(&self, seen: u64) -> Option<BTreeSet<SessionId>> {
        let recent = self.0.recent();
        let changes = recent.changes.iter().filter(|(count, _)| *count > seen);
        (seen >= recent.forgotten).then(|| changes.map(|(_, session)| session.clone()).collect())
    }

    /// The approval with this id, as it is now.
    pub fn find(&self, id: &str) -> Option<Approval> {
        let now = self.0.clock.now();
        self.0.rows().get(id).map(|row| shown(&row.approval, now))
    }

    /// All that are kept, the newest first.
    pub fn list(&self) -> Vec<Approval> {
        let now = self.0.clock.now();
        let mut all: Vec<Approval> = self.0.rows().values().map(|row| shown(&row.approval, now)).collect();
        all.sort_by_key(|approval| std::cmp::Reverse(approval.requested_at));
        all
    }

    /// A session is over: nothing waits for it any more, and nothing is left to use.
    pub async fn session_ended(&self, session: &SessionId) {
        let session = session.clone();
        self.session_over(move |approval, _| approval.matter.session == session).await;
    }

    /// After a restart: closes what belongs to sessions that are no longer there.
    pub async fn keep_only(&self, lives: impl Fn(&SessionId) -> bool) {
        let gone: Vec<SessionId> = self.list().into_iter().map(|approval| approval.matter.session).collect();
        let gone: BTreeSet<_> = gone.into_iter().filter(|session| !lives(session)).collect();
        self.session_over(move |approval, _| gone.contains(&approval.matter.session)).await;
    }

    async fn session_over(&self, over: impl Fn(&Approval, OffsetDateTime) -> bool + Send + 'static) {
        let inner = self.0.clone();
        // Only a runtime that is going down does not run it to its end, and then nothing is visible any more.
        let _ = tokio::spawn(async move { inner.close(over, "session_ended").await }).await;
    }

    /// Judges and makes one change. It is a task of its own: a caller that goes away in the middle must not leave the
    /// store with one word and the memory with another.
    async fn change<T: Send + 'static>(
        &self,
        judge: impl FnOnce(&Rows, OffsetDateTime) -> Result<Draft<T>, ApprovalError> + Send + 'static,
    ) -> Result<T, ApprovalError> {
        let inner = self.0.clone();
        let changed = tokio::spawn(async move { inner.change(judge).await }).await;
        changed.map_err(|_| ApprovalError::Stopping)?
    }
}

impl Inner {
    async fn change<T>(
        &self,
        judge: impl FnOnce(&Rows, OffsetDateTime) -> Result<Draft<T>, ApprovalError>,
    ) -> Result<T, ApprovalError> {
        let _alone = self.writing.lock().await;
        let now = self.clock.now();
        let Draft { put, before, after, answer } = judge(&self.rows(), now)?;
        if let Some(event) = before {
            self.audit.synced(event).await?;
        }
        if !put.is_empty() {
            self.write(put, now).await?;
        }
        if let Some(event) = after
            && let Err(error) = self.audit.synced(event).await
        {
            tracing::error!(%error, "what became of an approval is not in the audit log");
        }
        Ok(answer)
    }

    /// Stores, then shows. With it goes what is kept no longer.
    async fn write(&self, put: Vec<Approval>, now: OffsetDateTime) -> Result<(), StoreError> {
        let (changes, old) = {
            let rows = self.rows();
            let expected = |id| match rows.get(id).map(|row| row.revision) {
                None => Expect::Absent,
                Some(Some(revision)) => Expect::Revision(revision),
                // It could not be written last time: memory is right.
                Some(None) => Expect::Any,
            };
            let old = too_old(&rows, now);
            let puts = put.iter().map(|new| Change::put(Space::Approvals, new.id.as_str(), new, expected(&new.id)));
            let deletes = old.iter().map(|id| Change::delete(Space::Approvals, id.as_str(), Expect::Any));
            (puts.chain(deletes).collect(), old)
        };
        let revision = self.store.apply(changes).await?;
        self.show(put, Some(revision), &old);
        Ok(())
    }

    fn show(&self, put: Vec<Approval>, revision: Option<u64>, old: &[ApprovalId]) {
        let mut rows = self.rows_mut();
        for id in old {
            rows.remove(id);
        }
        // Whoever writes is alone.
        let count = *self.changed.borrow() + 1;
        let mut recent = self.recent();
        for approval in put {
            recent.changes.push_back((count, approval.matter.session.clone()));
            rows.insert(approval.id.clone(), Row { approval, revision });
        }
        while recent.changes.len() > MAX_RECENT {
            recent.forgotten = recent.changes.pop_front().map_or(count, |(count, _)| count);
        }
        drop((rows, recent));
        self.changed.send_replace(count);
    }

    /// Ends those for which it is over. That less is allowed does not wait for a disk: when it cannot be written it is
    /// so in memory, and what is on disk has an end of its own.
    async fn close(&self, over: impl Fn(&Approval, OffsetDateTime) -> bool, reason: &'static str) {
        let _alone = self.writing.lock().await;
        let now = self.clock.now();
        let closed: Vec<Approval> = {
            let rows = self.rows();
            let open = rows.values().map(|row| &row.approval).filter(|approval| approval.state.is_open());
            open.filter(|approval| over(approval, now)).map(|approval| approval.expired(now)).collect()
        };
        if closed.is_empty() {
            return;
        }
        if let Err(error) = self.write(closed.clone(), now).await {
            tracing::error!(%error, "approvals that have ended could not be stored as such; they have ended all the same");
            self.show(closed.clone(), None, &[]);
        }
        for approval in &closed {
            self.audit.record(record::ended(approval, reason));
        }
    }

    /// When the next one lapses.
    fn next_lapse(&self) -> Option<OffsetDateTime> {
        let rows = self.rows();
        let open = rows.values().filter(|row| row.approval.state.is_open());
        open.map(|row| row.approval.expires_at).min()
    }

    /// Whole whenever the lock is free, also after a panic: rows are put in and taken out, never changed in place.
    fn rows(&self) -> RwLockReadGuard<'_, Rows> {
        self.rows.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whole whenever the lock is free, as the rows are.
    fn recent(&self) -> std::sync::MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn rows_mut(&self) -> RwLockWriteGuard<'_, Rows> {
        self.rows.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::borrow::Borrow<str> for ApprovalId {
    fn borrow(&self) -> &str {
        self.as_str()
    }
}

/// Closes each when its time is over, until nobody has the approvals any more.
async fn expire(approvals: Weak<Inner>, clock: Clock, mut changed: watch::Receiver<u64>) {
    loop {
        let next = match approvals.upgrade() {
            Some(inner) => inner.next_lapse(),
            None => return,
        };
        let lapse = async {
            match next {
                Some(at) => clock.sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            told = changed.changed() => if told.is_err() { return },
            () = lapse => match approvals.upgrade() {
                Some(inner) => inner.close(|approval, now| approval.expires_at <= now, "expired").await,
                None => return,
            },
        }
    }
}

fn find<'a>(rows: &'a Rows, id: &str) -> Result<&'a Approval, ApprovalError> {
    rows.get(id).map(|row| &row.approval).ok_or_else(|| ApprovalError::Unknown(id.to_owned()))
}

/// As it is at `now`.
fn shown(approval: &Approval, now: OffsetDateTime) -> Approval {
    match approval.state_at(now) {
        state if state == approval.state => approval.clone(),
        _ => approval.expired(approval.expires_at.min(now)),
    }
}

/// Whether one more may wait.
fn room_for(fresh: &Approval, rows: &Rows, now: OffsetDateTime) -> Result<(), ApprovalError> {
    let waiting = rows.values().map(|row| &row.approval);
    let waiting: Vec<_> = waiting.filter(|known| known.state_at(now) == ApprovalState::Pending).collect();
    let of_session = waiting.iter().filter(|known| known.matter.session == fresh.matter.session).count();
    let of_uid = waiting.iter().filter(|known| known.uid == fresh.uid).count();
    if of_session >= MAX_PENDING.session {
        return Err(ApprovalError::TooManyOfSession(MAX_PENDING.session));
    }
    if of_uid >= MAX_PENDING.uid {
        return Err(ApprovalError::TooManyOfUid { uid: fresh.uid, limit: MAX_PENDING.uid });
    }
    if waiting.len() >= MAX_PENDING.all {
        return Err(ApprovalError::TooMany(MAX_PENDING.all));
    }
    Ok(())
}

/// What is kept no longer: closed long ago, or more than there is room for. What nobody decided goes first, so that
/// nobody can push a refusal out by asking for other things, and what still allows something goes last.
fn too_old(rows: &Rows, now: OffsetDateTime) -> Vec<ApprovalId> {
    let closed = rows.values().map(|row| &row.approval).filter(|approval| !approval.state.is_open());
    let (mut old, mut kept): (Vec<&Approval>, Vec<&Approval>) =
        closed.partition(|approval| approval.closed_at.is_none_or(|at| at + KEPT_FOR <= now));
    kept.sort_by_key(|approval| (approval.stands(now), approval.decided_by.is_some(), approval.closed_at));
    let mut of_uid: BTreeMap<u32, usize> = BTreeMap::new();
    let mut in_all = 0;
    for approval in kept.into_iter().rev() {
        let of_uid = of_uid.entry(approval.uid).or_default();
        if *of_uid >= MAX_KEPT.uid || in_all >= MAX_KEPT.all {
            old.push(approval);
        } else {
            *of_uid += 1;
            in_all += 1;
        }
    }
    old.into_iter().map(|approval| approval.id.clone()).collect()
}
