//! What is open for each session, to be cut with it.
//!
//! The agent tells which sessions end and suspend ([`VerifierClient::watch`]), but not what happened while it could not be
//! heard. So what was open then goes on while the agent is away, and is cut once the agent is back, unless the same session
//! has shown since that it stands.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use super::super::cut::{Cut, CutReason, Lifeline, Phase};
use crate::client::session::State;
use crate::client::tls::{Standing, X509Source};
use crate::client::verifier::VerifierClient;

/// How long the agent is given to take up its work before it is listened to again.
const PAUSE: Duration = Duration::from_millis(200);

/// Sessions that are remembered as over. Only those matter whose last request was answered by the agent just before.
const MAX_OVER: usize = 16_384;

/// The sessions that something is open for. Clones are of the same.
#[derive(Clone, Debug, Default)]
pub(super) struct Tasks(Arc<Mutex<Open>>);

#[derive(Debug, Default)]
struct Open {
    sessions: HashMap<String, Session>,
    /// Sessions that do not stand: what the agent said of them may come before what it said of their last request.
    over: HashMap<String, CutReason>,
    /// The same, the oldest first.
    order: VecDeque<String>,
    /// Grows each time the agent could not be heard.
    silences: u64,
}

#[derive(Debug)]
struct Session {
    lifeline: Lifeline,
    /// How many requests are open.
    open: usize,
    /// When it last showed that it stands.
    seen: u64,
}

/// A request that is open.
#[derive(Debug)]
pub(super) struct OpenTask {
    tasks: Weak<Mutex<Open>>,
    session: String,
    lifeline: Lifeline,
}

impl OpenTask {
    /// Ends with the session.
    pub(super) fn cut(&self) -> Cut {
        self.lifeline.watch()
    }
}

impl Drop for OpenTask {
    fn drop(&mut self) {
        let Some(tasks) = self.tasks.upgrade() else { return };
        let mut open = lock(&tasks);
        let Some(session) = open.sessions.get_mut(&self.session) else { return };
        session.open -= 1;
        if session.open == 0 {
            open.sessions.remove(&self.session);
        }
    }
}

impl Tasks {
    /// A request of `session`, which the agent has just said stands.
    pub(super) fn enter(&self, session: &str) -> OpenTask {
        let mut open = lock(&self.0);
        let (seen, over) = (open.silences, open.over.get(session).copied());
        let known = open.sessions.entry(session.to_owned());
        let known = known.or_insert_with(|| Session { lifeline: Lifeline::default(), open: 0, seen });
        // What was cut before, and is still on its way out, stays cut.
        if known.lifeline.phase() != Phase::Open {
            known.lifeline = Lifeline::default();
        }
        if let Some(reason) = over {
            known.lifeline.cut(reason);
        }
        known.open += 1;
        known.seen = seen;
        OpenTask { tasks: Arc::downgrade(&self.0), session: session.to_owned(), lifeline: known.lifeline.clone() }
    }

    /// Cuts what is open for `session`, and what was allowed before and has not begun.
    fn cut(&self, session: &str, reason: CutReason) -> usize {
        let mut open = lock(&self.0);
        if open.over.insert(session.to_owned(), reason).is_none() {
            open.order.push_back(session.to_owned());
        }
        if open.order.len() > MAX_OVER
            && let Some(oldest) = open.order.pop_front()
        {
            open.over.remove(&oldest);
        }
        let Some(session) = open.sessions.get(session) else { return 0 };
        session.lifeline.cut(reason);
        session.open
    }

    /// An operator lets it go on.
    fn resumed(&self, session: &str) {
        let mut open = lock(&self.0);
        if open.over.remove(session).is_some() {
            open.order.retain(|over| over != session);
        }
    }

    fn silence(&self) {
        lock(&self.0).silences += 1;
    }

    /// Cuts what has not shown that it stands since the last silence.
    fn cut_unheard(&self) -> usize {
        let open = lock(&self.0);
        let unheard = open.sessions.values().filter(|session| session.seen < open.silences);
        unheard
            .map(|session| {
                session.lifeline.cut(CutReason::SessionUnknown);
                session.open
            })
            .sum()
    }

    /// Cuts what the agent says has ended, for ever. `cut` is told how much was cut, and why.
    pub(super) async fn follow(self, verifier: VerifierClient, source: X509Source, cut: impl Fn(CutReason, usize)) {
        loop {
            let mut watch = verifier.watch();
            let error = loop {
                match watch.next().await {
                    Ok(change) => {
                        let reason = match change.state {
                            State::Ended { .. } => CutReason::SessionEnded,
                            State::Suspended => CutReason::SessionSuspended,
                            State::Active | State::PendingApproval { .. } => {
                                self.resumed(&change.session);
                                continue;
                            }
                        };
                        cut(reason, self.cut(&change.session, reason));
                    }
                    Err(error) => break error,
                }
            };
            tracing::warn!(%error, "the agent does not tell of sessions for now");
            self.silence();
            tokio::time::sleep(PAUSE).await;
            source.standing_is(|standing| *standing == Standing::Live).await;
            cut(CutReason::SessionUnknown, self.cut_unheard());
        }
    }
}

/// Whole whenever the lock is free, also after a panic.
fn lock(open: &Mutex<Open>) -> MutexGuard<'_, Open> {
    open.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_open_ends_with_its_session_and_with_no_other() {
        let tasks = Tasks::default();
        let (mine, too, other) = (tasks.enter("a"), tasks.enter("a"), tasks.enter("b"));
        assert_eq!(tasks.cut("a", CutReason::SessionEnded), 2);
        assert_eq!(mine.cut().phase(), Phase::Cut(CutReason::SessionEnded));
        assert_eq!(other.cut().phase(), Phase::Open);
        assert_eq!(tasks.enter("a").cut().phase(), Phase::Cut(CutReason::SessionEnded), "allowed before, and late");
        tasks.resumed("a");
        assert_eq!(tasks.enter("a").cut().phase(), Phase::Open, "it was resumed");
        drop((mine, too, other));
        assert!(lock(&tasks.0).sessions.is_empty());
    }

    #[test]
    fn after_a_silence_only_sessions_that_have_shown_themselves_go_on() {
        let tasks = Tasks::default();
        let (silent, shown) = (tasks.enter("silent"), tasks.enter("shown"));
        tasks.silence();
        let again = tasks.enter("shown");
        assert_eq!(tasks.cut_unheard(), 1);
        assert_eq!(silent.cut().phase(), Phase::Cut(CutReason::SessionUnknown));
        assert_eq!((shown.cut().phase(), again.cut().phase()), (Phase::Open, Phase::Open));
    }
}
