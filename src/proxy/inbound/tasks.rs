//! What is open for each session, to be cut with it.
//!
//! The agent tells which sessions end and suspend ([`Subscription`]), but not what happened while it could not be heard. So
//! nothing begins in a session but what was checked while the agent was heard; what is open goes on while it is away, and is
//! cut once it is heard again.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::watch;

use super::super::cut::{Cut, CutReason, Lifeline, Phase};
use super::subscription::{Subscriber, Subscription};
use crate::base::backoff::Backoff;
use crate::base::entropy::Entropy;
use crate::client::ClientError;

/// How long the agent is given to take up its work before it is listened to again: at first, and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

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
    /// How often the agent was subscribed to.
    subscriptions: u64,
    /// The subscription that is in force.
    heard: watch::Sender<Option<Heard>>,
}

#[derive(Debug, Default)]
struct Session {
    lifeline: Lifeline,
    /// How many requests are open.
    open: usize,
}

/// A subscription that was in force: what changed since then was told, as long as it still is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Heard(u64);

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
    /// Returns when the agent is heard. Whoever asks it about a request in a session does so after this.
    pub(super) async fn heard(&self) -> Heard {
        let mut heard = lock(&self.0).heard.subscribe();
        loop {
            let now = *heard.borrow_and_update();
            if let Some(now) = now {
                return now;
            }
            if heard.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// A request of `session`, of which the agent has said, after it was `heard`, that it stands.
    pub(super) fn enter(&self, session: &str, heard: Heard) -> OpenTask {
        let mut open = lock(&self.0);
        let (over, now) = (open.over.get(session).copied(), *open.heard.borrow());
        let known = open.sessions.entry(session.to_owned()).or_default();
        let goes_on = known.open > 0 && known.lifeline.phase() == Phase::Open;
        // What was cut before, and is still on its way out, stays cut.
        if !goes_on {
            known.lifeline = Lifeline::default();
        }
        // There was a silence after it was checked, and what was open then is cut already.
        let missed = !goes_on && now.is_some_and(|now| now != heard);
        if let Some(reason) = over.or(missed.then_some(CutReason::SessionUnknown)) {
            known.lifeline.cut(reason);
        }
        known.open += 1;
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

    /// An operator lets it go on. What has ended has ended.
    fn resumed(&self, session: &str) {
        let mut open = lock(&self.0);
        if open.over.get(session) == Some(&CutReason::SessionSuspended) {
            open.over.remove(session);
            open.order.retain(|over| over != session);
        }
    }

    /// The agent is heard from now on. What is open was checked before a silence, in which its session may have ended, and is
    /// cut; what was suspended may have been resumed, and the agent is asked about it anyway.
    fn hear(&self) -> usize {
        let open = &mut *lock(&self.0);
        open.over.retain(|_, reason| *reason == CutReason::SessionEnded);
        open.order.retain(|session| open.over.contains_key(session));
        open.subscriptions += 1;
        open.heard.send_replace(Some(Heard(open.subscriptions)));
        let unheard = open.sessions.values().filter(|session| session.lifeline.phase() == Phase::Open);
        unheard
            .map(|session| {
                session.lifeline.cut(CutReason::SessionUnknown);
                session.open
            })
            .sum()
    }

    /// The agent is not heard any more.
    fn silence(&self) {
        lock(&self.0).heard.send_replace(None);
    }

    /// Cuts what the agent says has ended, for ever. `cut` is told how much was cut, and why.
    pub(super) async fn follow(self, subscriber: Subscriber, cut: impl Fn(CutReason, usize)) {
        let (mut backoff, entropy) = (Backoff::new(FIRST_PAUSE, LONGEST_PAUSE), Entropy::system());
        let mut warned = false;
        loop {
            let error = match subscriber.subscribe().await {
                Ok(subscription) => {
                    cut(CutReason::SessionUnknown, self.hear());
                    let error = self.listen(subscription, &cut).await;
                    self.silence();
                    backoff.reset();
                    warned = false;
                    error
                }
                Err(error) => error,
            };
            if !std::mem::replace(&mut warned, true) {
                tracing::warn!(%error, "the agent does not tell of sessions for now");
            }
            tokio::time::sleep(backoff.delay(&entropy)).await;
        }
    }

    /// Cuts what ends, until the agent cannot be heard any more, and says why.
    async fn listen(&self, mut subscription: Subscription, cut: &impl Fn(CutReason, usize)) -> ClientError {
        loop {
            match subscription.next().await {
                Ok(changed) => match changed.over {
                    Some(reason) => cut(reason, self.cut(&changed.session, reason)),
                    None => self.resumed(&changed.session),
                },
                Err(error) => return error,
            }
        }
    }
}

/// Whole whenever the lock is free, also after a panic.
fn lock(open: &Mutex<Open>) -> MutexGuard<'_, Open> {
    open.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    /// What is heard by a subscription that begins now.
    fn heard(tasks: &Tasks) -> Heard {
        tasks.hear();
        tasks.heard().now_or_never().expect("the agent is heard")
    }

    #[test]
    fn what_is_open_ends_with_its_session_and_with_no_other() {
        let tasks = Tasks::default();
        let heard = heard(&tasks);
        let (mine, too, other) = (tasks.enter("a", heard), tasks.enter("a", heard), tasks.enter("b", heard));
        assert_eq!(tasks.cut("a", CutReason::SessionSuspended), 2);
        assert_eq!(mine.cut().phase(), Phase::Cut(CutReason::SessionSuspended));
        assert_eq!(other.cut().phase(), Phase::Open);
        let late = tasks.enter("a", heard).cut().phase();
        assert_eq!(late, Phase::Cut(CutReason::SessionSuspended), "allowed before, and late");
        tasks.resumed("a");
        assert_eq!(tasks.enter("a", heard).cut().phase(), Phase::Open, "it was resumed");
        drop((mine, too, other));
        assert!(lock(&tasks.0).sessions.is_empty());
    }

    #[test]
    fn nothing_is_asked_about_a_session_while_the_agent_does_not_tell_of_its_end() {
        let tasks = Tasks::default();
        assert!(tasks.heard().now_or_never().is_none(), "before the first subscription is in force");
        let before = heard(&tasks);
        tasks.silence();
        assert!(tasks.heard().now_or_never().is_none(), "while it is away");
        assert_ne!(heard(&tasks), before);
    }

    #[test]
    fn what_was_checked_before_a_silence_goes_on_during_it_and_not_after_it() {
        let tasks = Tasks::default();
        let before = heard(&tasks);
        let open = tasks.enter("a", before);
        tasks.silence();
        let late = tasks.enter("b", before);
        assert_eq!((open.cut().phase(), late.cut().phase()), (Phase::Open, Phase::Open));
        assert_eq!(tasks.hear(), 2);
        let unknown = Phase::Cut(CutReason::SessionUnknown);
        assert_eq!((open.cut().phase(), late.cut().phase()), (unknown, unknown));
        assert_eq!(tasks.enter("c", before).cut().phase(), unknown, "later still");
        let after = tasks.heard().now_or_never().expect("the agent is heard");
        let again = tasks.enter("a", after);
        assert_eq!(again.cut().phase(), Phase::Open);
        assert_eq!(tasks.enter("a", before).cut().phase(), Phase::Open, "its session stands");
        assert_eq!(open.cut().phase(), unknown);
    }

    #[test]
    fn after_a_silence_a_suspended_session_may_have_been_resumed_and_an_ended_one_has_ended() {
        let tasks = Tasks::default();
        heard(&tasks);
        tasks.cut("suspended", CutReason::SessionSuspended);
        tasks.cut("ended", CutReason::SessionEnded);
        tasks.silence();
        let after = heard(&tasks);
        assert_eq!(tasks.enter("suspended", after).cut().phase(), Phase::Open);
        tasks.resumed("ended");
        assert_eq!(tasks.enter("ended", after).cut().phase(), Phase::Cut(CutReason::SessionEnded));
        assert_eq!(lock(&tasks.0).order, ["ended"]);
    }
}
