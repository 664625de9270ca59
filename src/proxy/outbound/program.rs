//! The programs that are acted for: each with connections of its own to the target, and an end.
//!
//! Promises: what is made for one program in one session is used by no other; with the session, the process, its program
//! or its identity everything that was made for it ends, at once. Does not: keep anything of a program that has not been
//! heard of for a minute.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OnceCell, watch};

use super::super::{Cut, CutReason, Lifeline, Phase, Upstream};
use super::bearer::Bearer;
use super::caller::Caller;
use super::connect::{Connect, Line};
use super::refusal::{Refusal, is_away};
use crate::base::clock::Clock;
use crate::client::session::{Session, SessionClient, SessionError, State};
use crate::client::tls::{X509Source, X509State};
use crate::client::{ActFor, ClientError};
use crate::id::SpiffeId;
use crate::peer::{Instance, InstanceId};

/// How long the connections of a program that has none itself are kept.
const KEPT: Duration = Duration::from_secs(60);
/// How long a request waits for an agent that is away.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// Between two attempts to reach it.
const PAUSE: Duration = Duration::from_millis(50);

/// In whose name requests are made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ActAs {
    /// Of the program that sends them: this proxy is its delegate.
    #[default]
    Program,
    /// Of this proxy itself, whoever connects.
    Proxy,
}

/// All programs that are heard of.
#[derive(Clone)]
pub(super) struct Programs(Arc<Shared>);

struct Shared {
    act_as: ActAs,
    source: X509Source,
    sessions: SessionClient,
    connect: Connect,
    clock: Clock,
    known: Mutex<HashMap<Key, Arc<Program>>>,
}

/// One program in one process, known well or less well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    instance: InstanceId,
    weak: bool,
}

/// One program, as long as it has connections and a little longer.
pub(super) struct Program {
    key: Key,
    instance: Arc<Instance>,
    acts_for: Option<ActFor>,
    sessions: SessionClient,
    /// Its identities; for a proxy that acts as itself its own.
    source: OnceCell<X509Source>,
    sourced: Notify,
    shared: Arc<Shared>,
    tasks: Mutex<HashMap<Option<String>, Arc<Task>>>,
    connections: watch::Sender<usize>,
    lifeline: Lifeline,
}

/// What is made for one program in one session, or outside of any.
pub(super) struct Task {
    pub(super) session: Option<String>,
    /// Ends with the session.
    pub(super) lifeline: Lifeline,
    pub(super) bearer: tokio::sync::Mutex<Option<Bearer>>,
    /// What the target last wanted in a DPoP proof (RFC 9449, section 8).
    nonce: Mutex<Option<String>>,
    /// Connections to the target that carry any request.
    any: Line,
    /// Those that can become WebSockets.
    http1: Line,
}

/// A connection of a program's: while there is one, the program is kept.
pub(super) struct Present(pub(super) Arc<Program>);

impl Drop for Present {
    fn drop(&mut self) {
        self.0.connections.send_modify(|connections| *connections -= 1);
    }
}

impl Programs {
    pub(super) fn new(
        act_as: ActAs,
        source: X509Source,
        sessions: SessionClient,
        connect: Connect,
        clock: Clock,
    ) -> Self {
        Self(Arc::new(Shared { act_as, source, sessions, connect, clock, known: Mutex::default() }))
    }

    /// The program of a new connection.
    pub(super) fn of(&self, caller: &Caller) -> Present {
        let key = Key { instance: *caller.instance().id(), weak: caller.acts_for().weak };
        let mut known = self.0.known();
        let standing = known.get(&key).filter(|program| program.lifeline.phase() == Phase::Open).cloned();
        let program = standing.unwrap_or_else(|| {
            let program = Arc::new(self.begin(key, caller));
            known.insert(key, program.clone());
            tokio::spawn(program.clone().until_its_end());
            program
        });
        program.connections.send_modify(|connections| *connections += 1);
        Present(program)
    }

    fn begin(&self, key: Key, caller: &Caller) -> Program {
        let shared = self.0.clone();
        let acts_for = match shared.act_as {
            ActAs::Program => Some(caller.acts_for()),
            ActAs::Proxy => None,
        };
        let sessions = acts_for.map_or_else(|| shared.sessions.clone(), |other| shared.sessions.on_behalf_of(other));
        Program {
            key,
            instance: caller.instance().clone(),
            acts_for,
            sessions,
            source: OnceCell::new(),
            sourced: Notify::new(),
            shared,
            tasks: Mutex::default(),
            connections: watch::Sender::new(0),
            lifeline: Lifeline::default(),
        }
    }
}

impl Shared {
    /// The map is whole whenever the lock is free, also after a panic.
    fn known(&self) -> MutexGuard<'_, HashMap<Key, Arc<Program>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Program {
    /// Ends it.
    pub(super) fn cut(&self) -> Cut {
        self.lifeline.watch()
    }

    pub(super) fn sessions(&self) -> &SessionClient {
        &self.sessions
    }

    /// What it does now: in the session it is in, or outside of any.
    pub(super) async fn task(self: &Arc<Self>) -> Result<Arc<Task>, Refusal> {
        let find = || async {
            match self.sessions.find(None).await {
                Err(SessionError::NotFound(_)) => Ok(None),
                found => found.map(Some),
            }
        };
        let session = self.shared.patiently(find).await?.map(usable).transpose()?;
        let id = session.as_ref().map(|session| session.id.clone());
        if let Some(task) = self.tasks().get(&id).filter(|task| task.lifeline.phase() == Phase::Open) {
            return Ok(task.clone());
        }
        let task = Arc::new(self.begin(session).await?);
        if task.session.is_some() {
            tokio::spawn(self.clone().until_the_session_ends(task.clone()));
        }
        // Of two requests that begin it at once, the later one's stays; the other's goes with its requests.
        self.tasks().insert(id, task.clone());
        if let Phase::Cut(reason) = self.lifeline.phase() {
            task.lifeline.cut(reason);
        }
        Ok(task)
    }

    async fn begin(&self, session: Option<Session>) -> Result<Task, Refusal> {
        let (id, acts_as) = session.map(|session| (session.id, session.spiffe_id)).unzip();
        let source = presenting(self.source().await?, acts_as);
        let Shared { connect, clock, .. } = &*self.shared;
        let (any, http1) = (Line::new(connect, &source, true, clock), Line::new(connect, &source, false, clock));
        Ok(Task {
            session: id,
            lifeline: Lifeline::default(),
            bearer: Default::default(),
            nonce: Mutex::default(),
            any,
            http1,
        })
    }

    /// Its identities. Also where none is shown to the target: their loss is an event.
    async fn source(&self) -> Result<&X509Source, Refusal> {
        let ask = self.source.get_or_try_init(|| async {
            match self.acts_for {
                Some(other) => self.shared.source.on_behalf_of(other).await,
                None => Ok(self.shared.source.clone()),
            }
        });
        match tokio::time::timeout(PATIENCE, ask).await {
            Ok(source) => {
                self.sourced.notify_one();
                Ok(source?)
            }
            Err(_) => Err(Refusal::AgentAway(None)),
        }
    }

    /// Ends what was made for the program when its process does, or its identity, or when it has not been heard of.
    async fn until_its_end(self: Arc<Self>) {
        let reason = tokio::select! {
            _ = self.instance.ended() => CutReason::ProgramEnded,
            () = self.identity_lost() => CutReason::IdentityLost,
            () = self.forgotten() => CutReason::ProgramEnded,
        };
        self.shared.remove(&self);
        self.lifeline.cut(reason);
        for (_, task) in self.tasks().drain() {
            task.lifeline.cut(reason);
        }
    }

    /// Returns when the program has no identity any more, or others than at first: what was made for it is of those.
    async fn identity_lost(&self) {
        let source = loop {
            self.sourced.notified().await;
            if let Some(source) = self.source.get() {
                break source;
            }
        };
        let mut changes = source.changes();
        let first = ids(&source.state());
        let another = async {
            while let Some(state) = changes.next().await {
                if ids(&state) != first {
                    return;
                }
            }
            std::future::pending().await
        };
        tokio::select! {
            reason = source.ended() => tracing::info!(pid = self.instance.pid(), reason, "a program lost its identity"),
            () = another => tracing::info!(pid = self.instance.pid(), "a program has other identities than before"),
        }
    }

    /// Returns when there was no connection of the program's for [`KEPT`].
    async fn forgotten(&self) {
        let mut connections = self.connections.subscribe();
        loop {
            if connections.wait_for(|connections| *connections == 0).await.is_err() {
                return;
            }
            let again = connections.wait_for(|connections| *connections > 0);
            let is_over = tokio::time::timeout(KEPT, again).await.is_err();
            if is_over && self.shared.remove_unused(self) {
                return;
            }
        }
    }

    /// Ends what was made in a session when that ends, or is suspended.
    async fn until_the_session_ends(self: Arc<Self>, task: Arc<Task>) {
        let mut cut = task.lifeline.watch();
        let reason = tokio::select! {
            _ = cut.cut() => return,
            reason = self.session_end(task.session.as_deref()) => reason,
        };
        tracing::info!(
            pid = self.instance.pid(),
            session = task.session,
            reason = reason.as_str(),
            "connections are cut"
        );
        let mut tasks = self.tasks();
        if tasks.get(&task.session).is_some_and(|now| Arc::ptr_eq(now, &task)) {
            tasks.remove(&task.session);
        }
        drop(tasks);
        task.lifeline.cut(reason);
    }

    async fn session_end(&self, session: Option<&str>) -> CutReason {
        let mut watch = self.sessions.watch(session);
        loop {
            match watch.next().await {
                Ok(Some(now)) => match now.state {
                    State::Active => {}
                    State::Suspended => return CutReason::SessionSuspended,
                    State::Ended { .. } | State::PendingApproval { .. } => return CutReason::SessionEnded,
                },
                Ok(None) => return CutReason::SessionEnded,
                // The watch connects again by itself.
                Err(error) if is_away(&error) => {}
                Err(error) => {
                    tracing::warn!(%error, "a session can no longer be watched");
                    return CutReason::SessionUnknown;
                }
            }
        }
    }

    fn tasks(&self) -> MutexGuard<'_, HashMap<Option<String>, Arc<Task>>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The answer of an agent that may be away for a moment.
    pub(super) async fn patiently<T, F>(&self, ask: impl Fn() -> F) -> Result<T, Refusal>
    where
        F: Future<Output = Result<T, SessionError>>,
    {
        self.shared.patiently(ask).await
    }
}

impl Shared {
    async fn patiently<T, F>(&self, ask: impl Fn() -> F) -> Result<T, Refusal>
    where
        F: Future<Output = Result<T, SessionError>>,
    {
        let mut last: Option<ClientError> = None;
        let asking = async {
            loop {
                match ask().await {
                    Err(SessionError::Agent(error)) if is_away(&error) => last = Some(error),
                    answered => return answered,
                }
                tokio::time::sleep(PAUSE).await;
            }
        };
        match tokio::time::timeout(PATIENCE, asking).await {
            Ok(answered) => Ok(answered?),
            Err(_) => Err(Refusal::AgentAway(last)),
        }
    }

    fn remove(&self, program: &Program) {
        let mut known = self.known();
        if known.get(&program.key).is_some_and(|now| std::ptr::eq(Arc::as_ptr(now), program)) {
            known.remove(&program.key);
        }
    }

    /// Removes it unless somebody has connected meanwhile.
    fn remove_unused(&self, program: &Program) -> bool {
        let mut known = self.known();
        let unused = *program.connections.borrow() == 0;
        if unused {
            known.remove(&program.key);
        }
        unused
    }
}

impl Task {
    /// The connections that a request may use.
    pub(super) fn upstream(&self, websocket: bool) -> Upstream {
        if websocket { self.http1.upstream() } else { self.any.upstream() }
    }

    pub(super) fn nonce(&self) -> Option<String> {
        self.nonce.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes what the target wants now, and says whether that is new.
    pub(super) fn replace_nonce(&self, nonce: String) -> bool {
        let mut kept = self.nonce.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = kept.as_ref() != Some(&nonce);
        *kept = Some(nonce);
        is_new
    }
}

/// A session in which requests can be made.
fn usable(session: Session) -> Result<Session, Refusal> {
    match &session.state {
        State::Active => Ok(session),
        State::PendingApproval { approval } => {
            let message = "the session waits for an approval".to_owned();
            Err(Refusal::StepUp { approval: approval.clone(), message })
        }
        State::Suspended => Err(Refusal::NotNow("the session is suspended".to_owned())),
        State::Ended { reason } => Err(Refusal::SessionEnded(reason.clone())),
    }
}

fn ids(state: &X509State) -> Vec<SpiffeId> {
    state.identities().iter().map(|identity| identity.id().clone()).collect()
}

/// In a session the identity is the session's, which the target compares with the proof's.
fn presenting(source: &X509Source, id: Option<SpiffeId>) -> X509Source {
    id.map_or_else(|| source.clone(), |id| source.presenting(id))
}
