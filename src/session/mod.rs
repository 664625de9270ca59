//! A session: authority that lasts exactly as long as the task.
//!
//! A session belongs to one process, one cgroup or one tree of processes, names for whom, what for, where to, how often
//! and until when, and has one key that never leaves tether. Everything it is given hangs on it: it ends with whoever
//! acts, with the user's login or token, with the approval, the registration entry, the policy and the session above it,
//! and by the clock, and then everything below it has ended too.
//!
//! # Invariants
//! - A child's targets, scopes, boundary and end lie within its parent's, and what it uses is its parent's use as well.
//! - One session is one key, wiped before anybody sees ENDED.
//! - The budget is counted, and that is written down, before anything is signed.
//! - Whether it may be used is asked after policy, and again when the signature is there.
//! - Terms never change: another purpose, user or process is another session.
//! - ENDED is for good. Ending cascades before it returns, and ending again gives the same receipt.
//! - A clock that is set back ends sessions; it never prolongs them.

pub mod approvals;
mod begin;
mod document;
mod end;
mod error;
mod journal;
mod judge;
mod live;
mod model;
mod prove;
mod receipt;
mod record;
mod token;
mod wish;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use time::OffsetDateTime;
use tokio::sync::broadcast;

pub use self::document::SessionDocument;
pub use self::error::SessionError;
pub use self::live::{Session, Unusable, Used, covers};
pub use self::model::{Boundary, Budget, EndReason, Members, SessionId, State, Terms};
pub use self::prove::{ProveWish, Proven};
pub use self::receipt::{Disposed, Receipt};
pub use self::token::{MintWish, Minted, TokenKind};
pub use self::wish::{ProcessName, Scope, UserWish, Wish};

use self::approvals::Approvals;
use self::journal::{Journal, Read, Stored};
use self::token::Member;
use crate::base::durable::DurableError;
use crate::base::quota::{Place, Quota};
use crate::issue::{Asking, Entitled, Issuer, LooksAtSessions};
use crate::peer::{Instance, InstanceId, LookError, PeerConn};
use crate::registry::Identity;
use crate::user::Users;

/// Changes that a subscriber may fall behind by.
const BACKLOG: usize = 4096;
/// So long an ended session can be looked at.
const REMEMBERED: Duration = Duration::from_secs(60 * 60);
/// At most so many of one user.
const MOST_REMEMBERED: usize = 1024;

/// What the configuration says of sessions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How long one lasts that does not say.
    pub default_ttl: Duration,
    /// How long one lasts at most.
    pub max_ttl: Duration,
    /// How many may be above one.
    pub max_depth: u32,
    /// How many one user may have.
    pub per_uid: usize,
    /// How many there may be.
    pub total: usize,
    /// Where this node's introspection can be asked from elsewhere.
    pub introspect_url: Option<String>,
}

/// A session came to stand elsewhere.
#[derive(Clone, Debug)]
pub struct Change {
    /// Which.
    pub session: Arc<Session>,
    /// Where it stands now.
    pub state: State,
}

/// What sessions stand on.
#[derive(Debug)]
pub struct Parts {
    /// Who issues.
    pub issuer: Arc<Issuer>,
    /// Who proves people.
    pub users: Users,
    /// What people agreed to.
    pub approvals: Approvals,
    /// The configuration.
    pub settings: Settings,
    /// This node.
    pub node: String,
}

/// All sessions of this node. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Sessions(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    parts: Parts,
    places: Quota,
    book: Mutex<Book>,
    journal: Mutex<Journal>,
    changes: broadcast::Sender<Change>,
    /// Held while all sessions are judged.
    judging: tokio::sync::Mutex<()>,
}

/// Who there is.
#[derive(Debug, Default)]
struct Book {
    sessions: HashMap<SessionId, Entry>,
    children: HashMap<SessionId, Vec<SessionId>>,
    /// Of one process each.
    of_process: HashMap<InstanceId, Vec<SessionId>>,
    /// Of cgroups and trees, by their user id.
    of_groups: HashMap<u32, Vec<SessionId>>,
    /// Those that ended lately, by user id: nobody pushes out what is another's.
    ended: HashMap<u32, VecDeque<(OffsetDateTime, SessionId)>>,
}

#[derive(Debug)]
struct Entry {
    session: Arc<Session>,
    /// Given up when it ends.
    place: Option<Place>,
}

impl Sessions {
    /// Reads what was there before a restart; nothing of it is usable before [`Self::resume`]. Blocks.
    pub fn open(parts: Parts, dir: &Path) -> Result<(Self, Interrupted), DurableError> {
        let (journal, read) = Journal::open(dir, &parts.node)?;
        let places = Quota::new(parts.settings.total, parts.settings.per_uid);
        let sessions = Self(Arc::new(Shared {
            parts,
            places,
            book: Mutex::default(),
            journal: Mutex::new(journal),
            changes: broadcast::Sender::new(BACKLOG),
            judging: tokio::sync::Mutex::default(),
        }));
        Ok((sessions, Interrupted(read)))
    }

    /// Lets the issuer ask about sessions when it is shown a token that hangs on one.
    pub fn answer_for_tokens(&self) {
        // Not a handle that would keep the two alive by each other.
        let looks = Arc::new(Looks(Arc::downgrade(&self.0)));
        if self.issuer().sessions.set(looks).is_err() {
            tracing::error!("BUG: the issuer has other sessions");
        }
    }

    /// One session, that lives or ended lately.
    pub fn find(&self, id: &str) -> Option<Arc<Session>> {
        self.book().find(id)
    }

    /// The sessions that `wanted` names, the newest first.
    pub fn all(&self, wanted: impl Fn(&Session) -> bool) -> Vec<Arc<Session>> {
        let all: Vec<_> = self.book().sessions.values().map(|entry| entry.session.clone()).collect();
        let mut found: Vec<_> = all.into_iter().filter(|session| wanted(session)).collect();
        found.sort_by(|a, b| (b.terms().started_at, &b.terms().id).cmp(&(a.terms().started_at, &a.terms().id)));
        found
    }

    /// How many there are in each state, of those that live or ended lately.
    pub fn by_state(&self) -> BTreeMap<&'static str, usize> {
        let all: Vec<_> = self.book().sessions.values().map(|entry| entry.session.clone()).collect();
        let mut counts = BTreeMap::new();
        for session in all {
            *counts.entry(session.state().as_str()).or_default() += 1;
        }
        counts
    }

    /// How many live.
    pub fn living(&self) -> usize {
        self.0.places.len()
    }

    /// Each change from now on.
    pub fn changes(&self) -> broadcast::Receiver<Change> {
        self.0.changes.subscribe()
    }

    /// What people agreed to.
    pub fn approvals(&self) -> &Approvals {
        &self.0.parts.approvals
    }

    /// Who issues.
    pub fn issuer(&self) -> &Arc<Issuer> {
        &self.0.parts.issuer
    }

    /// A session of the caller's user id: it may look and end. To all others there is none.
    pub async fn of_user(&self, peer: &PeerConn, id: &str) -> Result<Arc<Session>, SessionError> {
        let uid = self.caller_uid(peer).await?;
        if id.is_empty() {
            return self.innermost(peer).await?.ok_or(SessionError::InNone);
        }
        self.find(id).filter(|session| session.terms().uid == uid).ok_or(SessionError::NotFound)
    }

    /// All sessions of the caller's user id, the newest first.
    pub async fn of_caller(&self, peer: &PeerConn) -> Result<Vec<Arc<Session>>, SessionError> {
        let uid = self.caller_uid(peer).await?;
        Ok(self.all(|session| session.terms().uid == uid))
    }

    /// The caller's user id, once it has shown that it is who the kernel says.
    pub async fn caller_uid(&self, peer: &PeerConn) -> Result<u32, SessionError> {
        let proven = peer.proven().await.map_err(crate::issue::Refusal::Connection);
        proven?;
        let facts = peer.instance().look().map_err(crate::issue::Refusal::Look)?;
        Ok(facts.uid)
    }

    /// The session a caller is in: the innermost, if it is in several.
    pub async fn innermost(&self, peer: &PeerConn) -> Result<Option<Arc<Session>>, SessionError> {
        let uid = self.caller_uid(peer).await?;
        self.innermost_of(peer.instance(), uid)
    }

    fn innermost_of(&self, instance: &Arc<Instance>, uid: u32) -> Result<Option<Arc<Session>>, SessionError> {
        let candidates = self.book().around(instance.id(), uid);
        let mut found: Vec<Arc<Session>> = Vec::new();
        for session in candidates {
            if !matches!(session.state(), State::Ended(_)) && self.is_member(&session, instance)? {
                found.push(session);
            }
        }
        let Some(deepest) = found.iter().map(|session| session.terms().depth).max() else { return Ok(None) };
        let at_bottom = found.iter().filter(|session| session.terms().depth == deepest);
        let at_bottom: Vec<Arc<Session>> = at_bottom.cloned().collect();
        let [only] = at_bottom.as_slice() else {
            let ids = at_bottom.iter().map(|session| session.terms().id.to_string());
            return Err(SessionError::Ambiguous(ids.collect::<Vec<_>>().join(", ")));
        };
        // Sessions that are not above the deepest one have nothing to do with it.
        let lineage = self.book().lineage(&only.terms().id);
        match found.iter().find(|session| !lineage.iter().any(|above| Arc::ptr_eq(above, session))) {
            None => Ok(Some(only.clone())),
            Some(other) => Err(SessionError::Ambiguous(format!("{}, {}", only.terms().id, other.terms().id))),
        }
    }

    /// The session a call is about: of the caller's user id or, in the name of another process, one that this is a member
    /// of with an identity that the caller may act for.
    pub async fn of(&self, asking: Asking<'_>, id: &str) -> Result<Arc<Session>, SessionError> {
        match asking.on_behalf_of {
            None => self.of_user(asking.peer, id).await,
            Some(_) => Ok(self.as_member(asking, id).await?.session),
        }
    }

    /// The session a process is in that another asks for: the innermost, if it is in one.
    pub async fn innermost_for(&self, asking: Asking<'_>) -> Result<Option<Arc<Session>>, SessionError> {
        if asking.on_behalf_of.is_none() {
            return self.innermost(asking.peer).await;
        }
        let acting = self.issuer().acting(asking).await?;
        self.innermost_of(&acting.instance, acting.entitled.attested.uid())
    }

    /// The session, and what the process that acts is entitled to as a member of it: it is one, and still has the
    /// session's identity. An empty `id` stands for the one session it is in.
    async fn as_member<'a>(&self, asking: Asking<'a>, id: &str) -> Result<Member<'a>, SessionError> {
        let peer = asking.peer;
        let (session, acting) = if asking.on_behalf_of.is_none() {
            let session = self.of_user(peer, id).await?;
            (session, self.issuer().acting(asking).await?)
        } else {
            let acting = self.issuer().acting(asking).await?;
            let uid = acting.entitled.attested.uid();
            let session = if id.is_empty() {
                self.innermost_of(&acting.instance, uid)?.ok_or(SessionError::InNone)?
            } else {
                self.find(id).filter(|session| session.terms().uid == uid).ok_or(SessionError::NotFound)?
            };
            (session, acting)
        };
        let identity = self.identity_in(&session, &acting.instance, &acting.entitled)?;
        Ok(Member { peer, session, acting, identity })
    }

    /// The session's identity, as one of those a process is entitled to, which must be a member.
    fn identity_in(
        &self,
        session: &Session,
        instance: &Arc<Instance>,
        entitled: &Entitled,
    ) -> Result<Identity, SessionError> {
        let terms = session.terms();
        if !self.is_member(session, instance)? {
            // It may have ended a moment ago, and its members are no longer known.
            if let State::Ended(reason) = session.state() {
                return Err(SessionError::Ended(reason));
            }
            return Err(SessionError::NotMember(match &terms.members {
                Members::Process(_) => format!("process {}", terms.pid),
                Members::Cgroup(tie) => tie.to_string(),
                Members::Tree(_) => format!("process {} and its descendants", terms.pid),
            }));
        }
        let is_its =
            |identity: &&Identity| identity.spiffe_id == terms.spiffe_id && identity.entry.id().as_str() == terms.entry;
        let identity = entitled.identities.iter().find(is_its);
        identity.cloned().ok_or_else(|| crate::issue::Refusal::NotGranted(terms.spiffe_id.clone()).into())
    }

    /// Whether a process may act in a session, as the kernel knows it now.
    fn is_member(&self, session: &Session, instance: &Arc<Instance>) -> Result<bool, SessionError> {
        let looked = match &session.terms().members {
            Members::Process(meant) => return Ok(instance.id() == meant),
            Members::Cgroup(tie) => self.issuer().bonds.in_cgroup(instance, tie),
            Members::Tree(_) => match session.root() {
                Some(root) => instance.descends_from(&root),
                None => return Ok(false),
            },
        };
        match looked {
            Ok(is) => Ok(is),
            // The root is gone, or the process itself: either way it is none.
            Err(LookError::Ended(_)) => Ok(false),
            Err(unseen) => Err(crate::issue::Refusal::Look(unseen).into()),
        }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn journal(&self) -> MutexGuard<'_, Journal> {
        self.0.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> OffsetDateTime {
        self.issuer().clock.now()
    }

    /// Writes a session down as it is. It is looked at in turn: of two who write, the later must not have the older state.
    fn write(&self, session: &Session) -> Result<(), SessionError> {
        let mut journal = self.journal();
        journal.session(stored(session)).map_err(SessionError::Journal)
    }
}

/// What the issuer knows of the sessions.
#[derive(Debug)]
struct Looks(Weak<Shared>);

#[tonic::async_trait]
impl LooksAtSessions for Looks {
    async fn may_be_used(&self, session: &str) -> bool {
        let Some(sessions) = self.0.upgrade().map(Sessions) else { return false };
        let Some(session) = sessions.find(session) else { return false };
        sessions.look(&session).await.is_ok()
    }
}

/// Sessions from before a restart.
#[derive(Debug)]
pub struct Interrupted(Read);

impl Book {
    fn find(&self, id: &str) -> Option<Arc<Session>> {
        self.sessions.get(id).map(|entry| entry.session.clone())
    }

    fn insert(&mut self, session: Arc<Session>, place: Place) {
        let terms = session.terms();
        let id = terms.id.clone();
        if let Some(parent) = &terms.parent {
            self.children.entry(parent.clone()).or_default().push(id.clone());
        }
        match &terms.members {
            Members::Process(instance) => self.of_process.entry(*instance).or_default().push(id.clone()),
            Members::Cgroup(_) | Members::Tree(_) => self.of_groups.entry(terms.uid).or_default().push(id.clone()),
        }
        self.sessions.insert(id, Entry { session, place: Some(place) });
    }

    /// A session has ended: its place is free, and it is remembered for a while.
    fn ended(&mut self, session: &Session, now: OffsetDateTime) {
        let terms = session.terms();
        let id = &terms.id;
        if let Some(entry) = self.sessions.get_mut(id) {
            entry.place = None;
        }
        fn leave<K: std::hash::Hash + Eq>(map: &mut HashMap<K, Vec<SessionId>>, key: &K, id: &SessionId) {
            if let Some(ids) = map.get_mut(key) {
                ids.retain(|other| other != id);
                if ids.is_empty() {
                    map.remove(key);
                }
            }
        }
        match &terms.members {
            Members::Process(instance) => leave(&mut self.of_process, instance, id),
            Members::Cgroup(_) | Members::Tree(_) => leave(&mut self.of_groups, &terms.uid, id),
        }
        if let Some(parent) = &terms.parent {
            leave(&mut self.children, parent, id);
        }
        let ended = self.ended.entry(terms.uid).or_default();
        ended.push_back((now, id.clone()));
        while let Some((at, oldest)) = ended.front() {
            if *at + REMEMBERED > now && ended.len() <= MOST_REMEMBERED {
                break;
            }
            self.sessions.remove(oldest);
            ended.pop_front();
        }
    }

    /// A session and everything below it, itself first.
    fn below(&self, id: &SessionId) -> Vec<Arc<Session>> {
        let mut found = Vec::new();
        let mut next = vec![id.clone()];
        while let Some(id) = next.pop() {
            next.extend(self.children.get(&id).into_iter().flatten().cloned());
            found.extend(self.find(id.as_str()));
        }
        found
    }

    /// The sessions right below one.
    fn children_of(&self, id: &SessionId) -> Vec<SessionId> {
        self.children.get(id).cloned().unwrap_or_default()
    }

    /// A session and everything above it, itself first, as far as it is known.
    fn lineage(&self, id: &SessionId) -> Vec<Arc<Session>> {
        let up = |session: &Arc<Session>| self.find(session.terms().parent.as_ref()?.as_str());
        std::iter::successors(self.find(id.as_str()), up).collect()
    }

    /// Sessions that a process may be in.
    fn around(&self, instance: &InstanceId, uid: u32) -> Vec<Arc<Session>> {
        let of_process = self.of_process.get(instance).into_iter().flatten();
        let of_groups = self.of_groups.get(&uid).into_iter().flatten();
        of_process.chain(of_groups).filter_map(|id| self.find(id.as_str())).collect()
    }
}

fn stored(session: &Session) -> Stored {
    let inner = session.inner();
    Stored {
        terms: session.shared_terms(),
        state: session.state(),
        used: inner.used,
        ends_at: inner.ends_at,
        approval: inner.approval.clone(),
        // Each is written by itself.
        tokens: Vec::new(),
    }
}
