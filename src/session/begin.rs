//! Beginning a session: who acts, as whom, for whom, and whether policy wants it. One path for parents and children.

use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;

use super::approvals::Asked;
use super::end::Watch;
use super::live::{Inner, Used, agent, facts};
use super::model::{Boundary, EndReason, Members, SessionId, State, Terms};
use super::record::Wanted;
use super::wish::is_within;
use super::{Scope, Session, SessionError, Sessions, UserWish, Wish};
use crate::attest::{Launched, LaunchedBy};
use crate::base::quota::Place;
use crate::bond::{Hold, Tie};
use crate::issue::{Entitled, Refusal};
use crate::peer::{Instance, InstanceError, PeerConn};
use crate::policy::{Action, Decision, Denial, Obligations, Question};
use crate::registry::Identity;
use crate::user::User;

/// Binding level: tether holds the key and checks the process at every signature.
const HELD: u8 = 3;
/// Binding level: tether holds the key, and the process can only be held weakly.
const HELD_WEAKLY: u8 = 2;

/// Who is to act, held.
struct Actor {
    instance: Arc<Instance>,
    members: Members,
    hold: Arc<Hold>,
    launched: Option<Launched>,
    selectors: Vec<String>,
    entitled: Entitled,
    identity: Identity,
}

impl Sessions {
    /// Begins a session.
    ///
    /// # Errors
    /// [`SessionError`]; nothing was made then. A session that waits for an approval is no error.
    pub async fn start(&self, peer: &PeerConn, wish: Wish) -> Result<Arc<Session>, SessionError> {
        let begun = self.begin_aside(peer, wish, None).await;
        self.recorded(peer, Wanted::session(Action::Start, ""), begun)
    }

    /// Begins a child of a session that the caller is a member of: within everything that is its parent's.
    ///
    /// # Errors
    /// As [`Self::start`]; a child that wants more than its parent has is refused, and not cut down.
    pub async fn delegate(&self, peer: &PeerConn, parent: &str, mut wish: Wish) -> Result<Arc<Session>, SessionError> {
        let above = self.of_user(peer, parent).await;
        let known = above.as_ref().map(|session| session.terms().id.to_string()).unwrap_or_default();
        let begun = async {
            let above = above?.terms().id.to_string();
            let parent = self.as_member(peer.into(), &above).await?.session;
            self.usable(&parent).await?;
            let terms = parent.terms();
            if wish.purpose.is_empty() {
                wish.purpose.clone_from(&terms.purpose);
            }
            self.within(&parent, &mut wish)?;
            self.begin_aside(peer, wish, Some(parent)).await
        };
        let begun = begun.await;
        self.recorded(peer, Wanted::session(Action::Delegate, &known), begun)
    }

    /// Begins a session to its end, whatever becomes of whoever calls: what is half begun would be watched by nobody.
    async fn begin_aside(
        &self,
        peer: &PeerConn,
        wish: Wish,
        parent: Option<Arc<Session>>,
    ) -> Result<Arc<Session>, SessionError> {
        let (sessions, peer) = (self.clone(), peer.clone());
        let begun = tokio::spawn(async move { sessions.begin(&peer, wish, parent.as_ref()).await }).await;
        match begun {
            Ok(begun) => begun,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => Err(Refusal::Stopping.into()),
        }
    }

    /// Whether a child's wish lies within its parent; what it leaves open becomes what the parent has.
    fn within(&self, parent: &Session, wish: &mut Wish) -> Result<(), SessionError> {
        let terms = parent.terms();
        let exceeds = |field, why: String| Err(SessionError::Exceeds { field, why });
        if wish.purpose != terms.purpose {
            return exceeds("purpose", format!("it is for `{}`", terms.purpose));
        }
        if !matches!(wish.user, UserWish::Nobody) {
            return exceeds("user", "a child acts for its parent's user".to_owned());
        }
        let outside = |target: &&String| !terms.targets.iter().any(|outer| is_within(target, outer));
        if let Some(target) = wish.targets.iter().find(outside) {
            return exceeds("targets", format!("`{target}` is not within its targets"));
        }
        if let Some(scope) = wish.scopes.iter().find(|scope| !terms.scopes.contains(scope)) {
            return exceeds("scopes", format!("`{scope}` is not among its scopes"));
        }
        let boundary = *wish.boundary.get_or_insert(terms.boundary);
        if boundary > terms.boundary {
            return exceeds("boundary", format!("it is limited to `{}`", terms.boundary.as_str()));
        }
        let more = |child: u32, parent: u32| parent != 0 && child > parent;
        if more(wish.budget.max_tokens, terms.budget.max_tokens) || more(wish.budget.max_calls, terms.budget.max_calls)
        {
            return exceeds("budget", "it has less".to_owned());
        }
        let left = (parent.ends_at() - self.now()).try_into().unwrap_or(Duration::ZERO);
        if wish.ttl.is_some_and(|ttl| ttl > left) {
            return exceeds("ttl_seconds", format!("it ends in {} s", left.as_secs()));
        }
        if terms.depth >= self.0.parts.settings.max_depth {
            return exceeds("depth", format!("{} sessions are above it, which is the limit", terms.depth));
        }
        Ok(())
    }

    async fn begin(
        &self,
        peer: &PeerConn,
        wish: Wish,
        parent: Option<&Arc<Session>>,
    ) -> Result<Arc<Session>, SessionError> {
        wish.check()?;
        let uid = self.caller_uid(peer).await?;
        // Before anything is looked at or asked for it.
        let place = self.0.places.take(uid).map_err(SessionError::TooMany)?;
        let mut actor = self.actor(peer, &wish, uid).await?;
        let user = match parent {
            Some(parent) => parent.terms().user.clone(),
            None => self.user(&wish.user, &actor.instance).await?,
        };
        let terms = self.terms(peer, wish, parent, &actor, user, uid);
        let now = actor.entitled.now;
        if terms.expires_at <= now {
            return Err(SessionError::Field { field: "ttl_seconds", why: "leaves no time".to_owned() });
        }
        // Before anything is made or asked for it.
        let watch = self.hold(&terms, actor.hold.clone()).await?;
        let action = if parent.is_some() { Action::Delegate } else { Action::Start };
        let permitted = self.issuer().policy.start_session(&question(&terms, action, Used::default(), false, now));
        let mut inner = Inner::new(terms.expires_at, terms.heartbeat, now);
        inner.hold = Some(actor.hold.clone());
        inner.launched = actor.launched.take();
        let (state, decision) = match permitted {
            Ok(permit) => (State::Active, permit.into_decision()),
            Err(Denial::StepUp { why, policies, .. }) => {
                // Whoever approves is shown all that is allowed with it.
                let targets = terms.targets.join(" ");
                let asked = asked(&terms, action, &targets, &why, &policies);
                inner.approval = Some(self.approvals().request(&asked).await?.id.to_string());
                let set = self.issuer().policy.set().digest().into();
                let obligations = Obligations { step_up: Some(why), ..Obligations::default() };
                (State::PendingApproval, Decision { allowed: false, obligations, policies, errors: Vec::new(), set })
            }
            Err(denial) => return Err(denial.into()),
        };
        let session = Arc::new(Session::new(Arc::new(terms), state, inner));
        if let Err(error) = self.enter(peer, &session, place, watch, &decision).await {
            self.undo(&session).await;
            return Err(error);
        }
        self.look_at_begun(&session, &actor, &decision).await?;
        Ok(session)
    }

    /// Leaves nothing of a session that did not come to be. Nobody has seen it, but for the audit log.
    async fn undo(&self, session: &Session) {
        let id = &session.terms().id;
        self.issuer().held.wipe_session(id.as_str());
        self.approvals().session_ended(id).await;
        if let Err(error) = self.journal().ended(id) {
            tracing::warn!(%error, session = %id, "a session that did not come to be cannot be struck out");
        }
        self.issuer().audit.record(super::record::undone(id));
    }

    /// The process that is to act, held and attested. One of another user is not to be seen.
    async fn actor(&self, peer: &PeerConn, wish: &Wish, uid: u32) -> Result<Actor, SessionError> {
        let issuer = self.issuer();
        let instance = match wish.process {
            None => peer.instance().clone(),
            Some(name) => {
                let found = issuer.instances.of_pid(name.pid, name.pidfs_inode);
                let found = found.map_err(|error: InstanceError| SessionError::NoProcess(error.to_string()))?;
                let owner = found.look().map_err(|error| SessionError::NoProcess(error.to_string()))?.uid;
                if owner != uid {
                    return Err(SessionError::NoProcess("it is another user's".to_owned()));
                }
                found
            }
        };
        let process = Tie::Process { instance: *instance.id(), pid: instance.pid() };
        let (members, tie) = match wish.scope {
            Scope::Process => (Members::Process(*instance.id()), process),
            Scope::Tree => (Members::Tree(*instance.id()), process),
            Scope::Cgroup => {
                let tie = issuer.bonds.cgroup_tie(&instance)?;
                (Members::Cgroup(tie.clone()), tie)
            }
        };
        let hold = Arc::new(issuer.bonds.hold(&tie).await.map_err(SessionError::Unheld)?);
        let mut launched = None;
        let mut selectors = Vec::new();
        if let Some(what) = &wish.launch {
            let launch = issuer.attestation.launches().measure(peer.instance(), what).await?;
            selectors = launch.selectors().to_vec();
            // Before it is attested: what was launched is part of what its members are.
            let by = launched_by(&members, Some(&instance)).ok_or(SessionError::InNone)?;
            launched = Some(issuer.attestation.launches().add(by, &launch)?);
        }
        let entitled = if instance.id() == peer.instance().id() {
            issuer.entitled(peer).await?
        } else {
            issuer.entitled_of(&instance).await?
        };
        if entitled.attested.uid() != uid {
            return Err(SessionError::NoProcess("it is another user's".to_owned()));
        }
        let mut identities = entitled.identities.iter();
        let identity = match &wish.spiffe_id {
            Some(wanted) => identities
                .find(|identity| identity.spiffe_id == *wanted)
                .ok_or_else(|| Refusal::NotGranted(wanted.clone()))?,
            // There is at least one.
            None => identities.next().ok_or(SessionError::InNone)?,
        };
        let identity = identity.clone();
        Ok(Actor { instance, members, hold, launched, selectors, entitled, identity })
    }

    async fn user(&self, wish: &UserWish, instance: &Instance) -> Result<Option<User>, SessionError> {
        let users = &self.0.parts.users;
        Ok(match wish {
            UserWish::Nobody => None,
            UserWish::Local => Some(users.local(instance).await?),
            UserWish::Token(token) => Some(users.of_token(token.expose()).await?),
        })
    }

    fn terms(
        &self,
        peer: &PeerConn,
        wish: Wish,
        parent: Option<&Arc<Session>>,
        actor: &Actor,
        user: Option<User>,
        uid: u32,
    ) -> Terms {
        let settings = &self.0.parts.settings;
        let now = actor.entitled.now;
        let entry = &actor.identity.entry;
        let ttl = wish.ttl.unwrap_or(settings.default_ttl).min(settings.max_ttl);
        let ends = [
            Some(now + ttl),
            entry.expires_at(),
            user.as_ref().and_then(User::expires_at),
            parent.map(|parent| parent.ends_at()),
        ];
        let above = parent.map(|parent| parent.terms());
        // Also where it is not the one that acts: a cgroup goes on without its launcher.
        let by_launcher = wish.launch.is_some();
        let entropy = &self.issuer().entropy;
        Terms {
            id: SessionId::new(&self.0.parts.node, &entropy.hex::<16>()),
            parent: above.map(|above| above.id.clone()),
            depth: above.map_or(0, |above| above.depth + 1),
            spiffe_id: actor.identity.spiffe_id.clone(),
            entry: entry.id().to_string(),
            owner: entry.owner().unwrap_or_default().to_owned(),
            members: actor.members.clone(),
            pid: actor.instance.pid(),
            uid,
            supervisor: by_launcher.then(|| (*peer.instance().id(), peer.instance().pid())),
            user,
            purpose: wish.purpose,
            task_sha256: wish.task_sha256,
            targets: wish.targets,
            scopes: wish.scopes,
            boundary: wish.boundary.unwrap_or(Boundary::Task),
            budget: wish.budget,
            heartbeat: wish.heartbeat,
            binding: if actor.instance.weak().is_some() { HELD_WEAKLY } else { HELD },
            launched: actor.selectors.clone(),
            started_at: now,
            expires_at: ends.into_iter().flatten().min().unwrap_or(now),
            resumes: wish.resumes,
            delegated_by: above
                .map(|above| std::iter::once(&above.spiffe_id).chain(&above.delegated_by).cloned().collect())
                .unwrap_or_default(),
        }
    }

    /// Makes a session that was permitted: its key, its records, its place in the book, and whoever watches over it.
    async fn enter(
        &self,
        peer: &PeerConn,
        session: &Arc<Session>,
        place: Place,
        watch: Watch,
        decision: &Decision,
    ) -> Result<(), SessionError> {
        let issuer = self.issuer();
        if session.state() == State::Active {
            let key = issuer.held.begin_session(session.terms().id.as_str()).await?;
            session.inner().key_thumbprint = Some(key.key().thumbprint());
        }
        issuer.audit.before(super::record::started(peer, session, decision))?;
        self.write(session)?;
        {
            let mut book = self.book();
            // Under the lock under which a parent begins to end: either it sees this child, or this sees that.
            if let Some(parent) = &session.terms().parent {
                let lineage = book.lineage(parent);
                if lineage.last().is_none_or(|top| top.terms().parent.is_some()) {
                    return Err(SessionError::Ended(EndReason::ParentEnded));
                }
                let now = self.now();
                lineage.iter().try_for_each(|above| above.usable(now))?;
            }
            book.insert(session.clone(), place);
        }
        // Nothing waits between this and the insertion: no session is without.
        self.watch_over(session, watch);
        self.announce(session);
        Ok(())
    }

    /// Looks again at what a session was permitted by, now that whoever changes that finds it.
    async fn look_at_begun(&self, session: &Session, actor: &Actor, decision: &Decision) -> Result<(), SessionError> {
        let issuer = self.issuer();
        let looked = actor.instance.look();
        let holds = looked.as_ref().is_ok_and(|facts| actor.entitled.attested.is_of(facts))
            && issuer.registry.borrow().generation() == actor.entitled.generation
            && issuer.policy.set().digest() == &*decision.set;
        if holds {
            return Ok(());
        }
        self.end(&session.terms().id, EndReason::IdentityDisabled, "").await?;
        looked.map_err(Refusal::Look)?;
        Err(Refusal::Changed.into())
    }

    /// Gives a session that waited for an approval its key: policy wants it now, and who acts is still there.
    pub(super) async fn activate(&self, session: &Arc<Session>) -> Result<(), SessionError> {
        let terms = session.terms();
        let Some(approval) = session.approval().and_then(|id| self.approvals().find(&id)) else {
            return Err(SessionError::NotFound);
        };
        let question = question(terms, action_of(terms), Used::default(), true, self.now());
        // Asked again, because much may have happened since.
        let _permitted = self.issuer().policy.start_session(&question)?;
        if let Some(parent) = terms.parent.as_ref().and_then(|id| self.find(id.as_str())) {
            self.usable(&parent).await?;
        }
        self.issuer().audit.before(super::record::activated(session))?;
        self.approvals().use_up(&approval.id).await?;
        let key = self.issuer().held.begin_session(terms.id.as_str()).await?;
        {
            // Under the lock under which its end begins: either that wipes the key, or this does.
            let mut inner = session.inner();
            inner.key_thumbprint = Some(key.key().thumbprint());
            if let Some(reason) = inner.ending {
                drop(inner);
                self.issuer().held.wipe_session(terms.id.as_str());
                return Err(SessionError::Ended(reason));
            }
            inner.ends_at = inner.ends_at.min(approval.expires_at);
            inner.heartbeat_due = terms.heartbeat.map(|within| self.now() + within);
            session.set_state(State::Active);
        }
        self.write(session)?;
        self.announce(session);
        Ok(())
    }
}

/// Who belongs to what is launched; `instance` is the process of members that are not a cgroup's.
pub(super) fn launched_by(members: &Members, instance: Option<&Arc<Instance>>) -> Option<LaunchedBy> {
    Some(match members {
        Members::Cgroup(Tie::Cgroup { id, path, .. }) => LaunchedBy::Cgroup { id: *id, path: path.as_str().to_owned() },
        Members::Cgroup(_) => return None,
        Members::Tree(_) => LaunchedBy::Tree(instance?.clone()),
        Members::Process(_) => LaunchedBy::Process(instance?.clone()),
    })
}

/// Which action a session was begun by.
pub(super) fn action_of(terms: &Terms) -> Action {
    if terms.parent.is_some() { Action::Delegate } else { Action::Start }
}

/// What policy is asked about a session as a whole.
pub(super) fn question(terms: &Terms, action: Action, used: Used, approved: bool, now: OffsetDateTime) -> Question<'_> {
    Question {
        action,
        agent: agent(terms),
        user: terms.user.as_ref(),
        session: Some(facts(terms, used)),
        issue: None,
        reach: None,
        tool: None,
        approved,
        now,
    }
}

/// What an approver is asked about a session as a whole.
fn asked<'a>(terms: &'a Terms, action: Action, targets: &'a str, why: &'a str, policies: &'a [String]) -> Asked<'a> {
    Asked {
        session: &terms.id,
        spiffe_id: &terms.spiffe_id,
        user: terms.user.as_ref(),
        uid: terms.uid,
        purpose: &terms.purpose,
        action,
        target: targets,
        method: "",
        tool: "",
        arguments_sha256: "",
        kind: "",
        scopes: &terms.scopes,
        why,
        policies,
    }
}
