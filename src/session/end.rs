//! The end of a session: whoever sees that it must end calls [`Sessions::end`], and when that returns nothing stands.

use std::collections::HashMap;
use std::sync::Arc;

use time::OffsetDateTime;

use super::model::Terms;
use super::{
    Change, Disposed, EndReason, Receipt, Session, SessionError, SessionId, Sessions, State, TokenKind, Unusable,
};
use crate::bond::{End, Hold, Tie};
use crate::issue::Refusal;
use crate::ledger::Reason;
use crate::peer::{Instance, PeerConn};
use crate::user::UserHold;

impl Sessions {
    /// Ends a session and everything below it: keys wiped, credentials revoked, all of that written down and synced, and
    /// only then seen. Goes on to its end whatever becomes of whoever calls. A session that has ended gives the receipt it
    /// has. `by` names a person for the audit log; empty for nobody.
    ///
    /// # Errors
    /// There is no such session, or the agent is stopping.
    pub async fn end(&self, id: &SessionId, reason: EndReason, by: &str) -> Result<Arc<Receipt>, SessionError> {
        let session = self.find(id.as_str()).ok_or(SessionError::NotFound)?;
        self.end_each(vec![session.clone()], reason, by).await?;
        // It has ended, so it has one.
        session.receipt().ok_or_else(|| Refusal::Stopping.into())
    }

    /// Ends many sessions as one, with everything below them: what is synced is synced once. Those that have ended stay
    /// as they are. Returns when all have ended.
    ///
    /// # Errors
    /// The agent is stopping.
    pub async fn end_each(&self, doomed: Vec<Arc<Session>>, reason: EndReason, by: &str) -> Result<(), SessionError> {
        let (sessions, by) = (self.clone(), by.to_owned());
        let ending = tokio::spawn(async move { sessions.end_all(&doomed, reason, &by).await });
        match ending.await {
            Ok(()) => Ok(()),
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => Err(Refusal::Stopping.into()),
        }
    }

    /// Ends a session at the wish of its user id, or of the member it is the session of.
    ///
    /// # Errors
    /// There is none for this caller.
    pub async fn end_for(&self, peer: &PeerConn, id: &str) -> Result<(Arc<Receipt>, bool), SessionError> {
        let session = self.of_user(peer, id).await?;
        let had_ended = matches!(session.state(), State::Ended(_));
        let by = crate::issue::caller(peer);
        let by = format!("uid {} pid {}", by.uid, by.pid);
        Ok((self.end(&session.terms().id, EndReason::Completed, &by).await?, had_ended))
    }

    async fn end_all(&self, doomed: &[Arc<Session>], reason: EndReason, by: &str) {
        // From here on nothing begins in any of them: whoever looks afterwards sees this, and whoever looked before is
        // found in the ledger.
        let (mine, others) = {
            let book = self.book();
            let below = doomed.iter().flat_map(|root| {
                let why = |one: &Arc<Session>| if Arc::ptr_eq(one, root) { reason } else { EndReason::ParentEnded };
                book.below(&root.terms().id).into_iter().map(move |one| (why(&one), one))
            });
            let (mut mine, mut others): (Vec<Arc<Session>>, Vec<Arc<Session>>) = (Vec::new(), Vec::new());
            for (why, one) in below {
                let is_first = one.inner().ending.is_none();
                one.inner().ending.get_or_insert(why);
                if is_first { mine.push(one) } else { others.push(one) }
            }
            // Those below come last, whatever the order was that they were named in.
            mine.sort_by_key(|one| one.terms().depth);
            (mine, others)
        };
        let at = self.now();
        let mut receipts: HashMap<SessionId, Receipt> = HashMap::with_capacity(mine.len());
        // Children first: what is above stands until nothing is below, and its receipt has what theirs have.
        for one in mine.iter().rev() {
            let below = self.book().children_of(&one.terms().id);
            let mut receipt = self.dispose(one, at).await;
            for child in below.iter().filter_map(|child| receipts.get(child)) {
                receipt.take_in(child);
            }
            receipts.insert(one.terms().id.clone(), receipt);
        }
        if !reason.is_seen_again() {
            self.issuer().ledger.sync().await;
        }
        for one in &mine {
            if let Err(error) = self.journal().ended(&one.terms().id) {
                tracing::error!(%error, session = %one.terms().id, "the end of a session cannot be written down");
            }
        }
        // All at once, so that one sync is for many.
        let recorded = receipts.values().map(|receipt| async {
            if let Err(error) = self.issuer().audit.synced(super::record::ended(receipt, by)).await {
                tracing::error!(%error, session = %receipt.session, "the end of a session cannot be audited");
            }
        });
        futures_util::future::join_all(recorded).await;
        for one in mine.iter().rev() {
            let Some(receipt) = receipts.remove(&one.terms().id) else { continue };
            let why = receipt.reason;
            one.inner().receipt = Some(Arc::new(receipt));
            one.set_state(State::Ended(why));
            self.book().ended(one, at);
            self.announce(one);
        }
        // Those that somebody else is ending: this returns when all have ended.
        for other in &others {
            // The sender is in the session.
            let _ = other.watch().wait_for(|state| matches!(state, State::Ended(_))).await;
        }
    }

    /// Wipes and revokes what one session has.
    async fn dispose(&self, session: &Arc<Session>, at: OffsetDateTime) -> Receipt {
        let id = &session.terms().id;
        let wiped = self.issuer().held.wipe_session(id.as_str());
        if let Err(error) = self.issuer().ledger.tie_ended(&session.tie(), Reason::SessionEnded) {
            tracing::error!(%error, session = %id, "the end of a session's credentials cannot be written");
        }
        self.approvals().session_ended(id).await;
        let mut inner = session.inner();
        let tokens = std::mem::take(&mut inner.tokens);
        let reason = inner.ending.unwrap_or(EndReason::Operator);
        let last_proof = inner.last_proof_until.filter(|until| *until > at);
        (inner.hold, inner.launched) = (None, None);
        drop(inner);
        let mut receipt = receipt_of(session, reason, at);
        receipt.keys_wiped = u32::from(wiped);
        for token in tokens.into_iter().filter(|token| token.expires_at > at) {
            let of =
                Disposed { kind: token.kind.as_str(), id: token.id, target: token.target, until: token.expires_at };
            // A bearer token is revoked for those who ask; to those who do not it is as good as before.
            if token.kind == TokenKind::Jwt {
                receipt.remaining.push(of.clone());
            }
            receipt.revoked.push(of);
        }
        receipt.remaining.extend(last_proof.map(|until| Disposed {
            kind: "proof",
            id: String::new(),
            target: String::new(),
            until,
        }));
        receipt
    }

    /// Tells whoever wants to know where a session stands.
    pub(super) fn announce(&self, session: &Arc<Session>) {
        // Nobody listening is fine.
        let _ = self.0.changes.send(Change { session: session.clone(), state: session.state() });
    }

    /// Takes hold of everything whose end ends a session and is an event of the host.
    ///
    /// # Errors
    /// It has ended already.
    pub(super) async fn hold(&self, terms: &Terms, members: Arc<Hold>) -> Result<Watch, SessionError> {
        let user = match &terms.user {
            None => None,
            Some(user) => Some(self.0.parts.users.hold(user).await?),
        };
        let supervisor = match &terms.supervisor {
            None => None,
            Some((instance, pid)) => {
                let tie = Tie::Process { instance: *instance, pid: *pid };
                let held = self.issuer().bonds.hold(&tie).await;
                Some(held.map_err(|_| SessionError::Ended(EndReason::ProcessExit))?)
            }
        };
        Ok(Watch { members, user, supervisor })
    }

    /// Watches for the end of what is held, and for everything that is due by the clock. Waits for nothing itself.
    pub(super) fn watch_over(&self, session: &Arc<Session>, watch: Watch) {
        let (weak, clock) = (Arc::downgrade(&self.0), self.issuer().clock.clone());
        let session = session.clone();
        tokio::spawn(async move {
            let Some(reason) = until_the_end(&session, &clock, &watch).await else { return };
            drop(watch);
            let Some(shared) = weak.upgrade() else { return };
            if let Err(error) = Sessions(shared).end(&session.terms().id, reason, "").await {
                tracing::debug!(%error, session = %session.terms().id, "a session did not end here");
            }
        });
    }

    /// A sign of life from whoever supervises a session.
    ///
    /// # Errors
    /// There is none for this caller, or it has ended.
    pub async fn heartbeat(&self, peer: &PeerConn, id: &str) -> Result<Arc<Session>, SessionError> {
        let session = self.of_user(peer, id).await?;
        let supervisor = session.terms().supervisor.as_ref();
        if supervisor.is_some_and(|(instance, _)| instance != peer.instance().id()) {
            return Err(SessionError::NotMember("its launcher".to_owned()));
        }
        match self.usable(&session).await {
            // It lives, and may not be used.
            Ok(()) | Err(SessionError::Pending | SessionError::Suspended) => {}
            Err(error) => return Err(error),
        }
        let now = self.now();
        session.inner().heartbeat_due = session.terms().heartbeat.map(|within| now + within);
        session.poke.notify_one();
        Ok(session)
    }

    /// Nothing is signed for a session, and nothing of it stands, until it is resumed.
    ///
    /// # Errors
    /// It is not active.
    pub fn suspend(&self, id: &SessionId, by: &str) -> Result<(), SessionError> {
        self.turn(id, State::Active, State::Suspended, super::record::suspended(id, by))
    }

    /// Ends a suspension.
    ///
    /// # Errors
    /// It is not suspended.
    pub fn resume_suspended(&self, id: &SessionId, by: &str) -> Result<(), SessionError> {
        self.turn(id, State::Suspended, State::Active, super::record::resumed(id, by))
    }

    fn turn(&self, id: &SessionId, from: State, to: State, event: crate::audit::Event) -> Result<(), SessionError> {
        let session = self.find(id.as_str()).ok_or(SessionError::NotFound)?;
        {
            // Under the lock under which its end begins.
            let inner = session.inner();
            if let Some(reason) = inner.ending {
                return Err(SessionError::Ended(reason));
            }
            if session.state() != from {
                let why = format!("is `{}`, not `{}`", session.state().as_str(), from.as_str());
                return Err(SessionError::Field { field: "session", why });
            }
            if to == State::Active {
                self.issuer().audit.before(event)?;
            } else {
                self.issuer().audit.record(event);
            }
            session.set_state(to);
        }
        self.write(&session)?;
        self.announce(&session);
        Ok(())
    }

    /// Looks at whoever acts in a session, for somebody who is about to rely on it.
    ///
    /// # Errors
    /// It, or one above it, cannot be used now; what is seen to be over has ended when this returns.
    pub async fn look(&self, session: &Session) -> Result<(), Unusable> {
        let hold = session.inner().hold.clone();
        let gone = match hold.as_ref().and_then(|hold| hold.instance()) {
            Some(instance) => gone(session, instance),
            None => None,
        };
        let usable = match gone {
            Some(reason) => Err((session.terms().id.clone(), Unusable::MustEnd(reason))),
            None => self.stands(session),
        };
        match usable {
            Ok(()) => Ok(()),
            Err((id, Unusable::MustEnd(reason))) => {
                // It ends whether or not this call sees it to its end.
                let _ = self.end(&id, reason, "").await;
                Err(Unusable::Ended(session.state().end_reason().unwrap_or(reason)))
            }
            Err((_, unusable)) => Err(unusable),
        }
    }
}

/// Everything whose end ends a session, held.
#[derive(Debug)]
pub(super) struct Watch {
    members: Arc<Hold>,
    user: Option<UserHold>,
    supervisor: Option<Hold>,
}

/// Whether the process of a session is over, or no longer what it was.
fn gone(session: &Session, instance: &Arc<Instance>) -> Option<EndReason> {
    use super::Members;
    use crate::peer::LookError;

    match &session.terms().members {
        // Members of a tree are looked at by themselves; their root has to be there.
        Members::Tree(_) => (!instance.is_alive()).then_some(EndReason::ProcessExit),
        Members::Cgroup(_) => None,
        Members::Process(_) => match instance.look() {
            Err(LookError::Ended(end)) => Some(End::from(end).into()),
            Ok(_) | Err(LookError::Unseen(_)) => None,
        },
    }
}

impl From<End> for EndReason {
    fn from(end: End) -> Self {
        match end {
            End::ProcessExited | End::Rebooted => Self::ProcessExit,
            End::ExecutableChanged | End::ExecutableHidden => Self::ProcessChanged,
            End::CgroupEmpty | End::UnitStopped => Self::CgroupEmpty,
        }
    }
}

/// Waits for the first thing that ends a session; `None` when somebody else ended it.
async fn until_the_end(session: &Session, clock: &crate::base::clock::Clock, watch: &Watch) -> Option<EndReason> {
    let user_ended = async {
        match &watch.user {
            Some(user) => user.ended().await,
            None => std::future::pending().await,
        }
    };
    let supervisor_ended = async {
        match &watch.supervisor {
            Some(supervisor) => supervisor.ended().await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(user_ended, supervisor_ended);
    let ended = watch.members.ended();
    tokio::pin!(ended);
    loop {
        match session.usable(clock.now()) {
            Err(Unusable::MustEnd(reason)) => return Some(reason),
            Err(Unusable::Ended(_)) => return None,
            Ok(()) | Err(Unusable::Pending | Unusable::Suspended) => {}
        }
        tokio::select! {
            end = &mut ended => return Some(end.into()),
            _ = &mut user_ended => return Some(EndReason::UserSessionEnd),
            _ = &mut supervisor_ended => return Some(EndReason::ProcessExit),
            () = clock.sleep_until(session.next_due()) => {}
            () = session.poke.notified() => {}
        }
    }
}

fn receipt_of(session: &Session, reason: EndReason, at: OffsetDateTime) -> Receipt {
    Receipt {
        session: session.terms().id.clone(),
        reason,
        ended_at: at,
        ended: vec![session.terms().id.clone()],
        keys_wiped: 0,
        revoked: Vec::new(),
        remaining: Vec::new(),
    }
}

impl Session {
    /// What its credentials are tied to.
    pub fn tie(&self) -> Tie {
        Tie::Session(self.terms().id.to_string())
    }
}
