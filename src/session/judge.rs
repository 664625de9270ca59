//! Judging sessions again when what they stand on changes: registration entries, policies, authorities, approvals. And
//! once after a restart, when everything may have changed.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use super::approvals::ApprovalState;
use super::begin::{action_of, launched_by, question};
use super::journal::Read;
use super::live::{Inner, SET_BACK, Token};
use super::token::in_session;
use super::{EndReason, Interrupted, Members, Session, SessionError, SessionId, Sessions, State, TokenKind};
use crate::attest::Launch;
use crate::base::drain;
use crate::bond::{Tie, Unheld};
use crate::issue::Refusal;
use crate::ledger::Reason;
use crate::policy::{Action, Denial, IssueFacts, Question, ToolFacts};
use crate::registry::Index;

/// So many are judged at a time: each may wait for a disk.
const AT_ONCE: usize = 16;
/// How often the clock is looked at.
const LOOK_AT_CLOCK: Duration = Duration::from_secs(30);
/// How often it is tried at a start to see who acts, and how long to wait between.
const ATTEMPTS: usize = 5;
const BETWEEN: Duration = Duration::from_millis(200);

impl Sessions {
    /// Takes up what went on before a restart: sessions whose key, people and processes are all still there go on; the
    /// others have ended when this returns. Nothing may be answered before.
    pub async fn resume(&self, interrupted: Interrupted) {
        let now = self.now();
        let Read { living, latest } = interrupted.0;
        let set_back = latest.is_some_and(|latest| latest > now + SET_BACK);
        let mut living: Vec<_> = living.into_iter().filter(|stored| !matches!(stored.state, State::Ended(_))).collect();
        // Those above first, so that each finds its parent.
        living.sort_by_key(|stored| stored.terms.depth);
        let mut entered = Vec::new();
        for stored in living {
            let mut inner = Inner::new(stored.ends_at, stored.terms.heartbeat, now);
            (inner.used, inner.approval) = (stored.used, stored.approval);
            inner.tokens = stored.tokens;
            let set_back = set_back || stored.terms.started_at > now + SET_BACK;
            let uid = stored.terms.uid;
            let session = Arc::new(Session::new(stored.terms, stored.state, inner));
            // What was there is there, whatever the limits are today.
            let place = self.0.places.take_anyway(uid);
            self.book().insert(session.clone(), place);
            entered.push((session, set_back));
        }
        self.approvals().keep_only(|id| self.find(id.as_str()).is_some()).await;
        for (session, set_back) in &entered {
            let goes_on = if *set_back { Err(EndReason::ClockSetBack) } else { self.take_up(session).await };
            if let Err(reason) = goes_on {
                let _ = self.end(&session.terms().id, reason, "").await;
            }
        }
        // Keys of sessions that nobody knows.
        for id in self.issuer().held.sessions() {
            if self.find(&id).is_none() {
                self.issuer().held.wipe_session(&id);
            }
        }
        // Rows of sessions that are not there, if their end could not be written.
        let orphaned = |credential: &crate::ledger::Credential| match &credential.tie {
            Tie::Session(id) => self.find(id).is_none_or(|session| matches!(session.state(), State::Ended(_))),
            _ => false,
        };
        if let Err(error) = self.issuer().ledger.revoke(orphaned, Reason::AgentRestart).await {
            tracing::error!(%error, "credentials of sessions that are over cannot be ended");
        }
        self.judge_all(None).await;
    }

    /// One session that went on before a restart.
    async fn take_up(&self, session: &Arc<Session>) -> Result<(), EndReason> {
        let terms = session.terms();
        let parent = terms.parent.as_ref().map(|parent| self.find(parent.as_str()));
        if parent.is_some_and(|parent| parent.is_none_or(|parent| parent.inner().ending.is_some())) {
            return Err(EndReason::ParentEnded);
        }
        let waits = session.state() == State::PendingApproval;
        if !waits {
            let key = self.issuer().held.session_key(terms.id.as_str()).ok_or(EndReason::AgentRestart)?;
            session.inner().key_thumbprint = Some(key.key().thumbprint());
        }
        let tie = match &terms.members {
            Members::Process(instance) | Members::Tree(instance) => {
                Tie::Process { instance: *instance, pid: terms.pid }
            }
            Members::Cgroup(tie) => tie.clone(),
        };
        let mut tries = 0;
        let hold = loop {
            match self.issuer().bonds.hold(&tie).await {
                Ok(hold) => break Arc::new(hold),
                Err(Unheld::Ended(end)) => return Err(end.into()),
                Err(unseen) => {
                    tries += 1;
                    if tries == ATTEMPTS {
                        tracing::warn!(%unseen, session = %terms.id, "whoever acts in a session cannot be seen");
                        return Err(EndReason::AgentRestart);
                    }
                    tokio::time::sleep(BETWEEN).await;
                }
            }
        };
        if !terms.launched.is_empty() {
            // What was measured then: the files may be others by now.
            let by = launched_by(&terms.members, hold.instance()).ok_or(EndReason::AgentRestart)?;
            let launch = Launch::recorded(&terms.launched).ok_or(EndReason::AgentRestart)?;
            let launched = self.issuer().attestation.launches().add(by, &launch);
            session.inner().launched = Some(launched.map_err(|_| EndReason::AgentRestart)?);
        }
        session.inner().hold = Some(hold.clone());
        match self.hold(terms, hold).await {
            Ok(watch) => {
                self.watch_over(session, watch);
                Ok(())
            }
            Err(SessionError::Ended(reason)) => Err(reason),
            Err(error) => {
                tracing::info!(%error, session = %terms.id, "the user of a session is gone, or cannot be seen");
                Err(EndReason::UserSessionEnd)
            }
        }
    }

    /// Judges again whatever changes, until the drain.
    pub async fn keep_judging(self, mut drain: drain::Watcher) {
        let issuer = self.issuer().clone();
        let mut entries = issuer.registry.clone();
        let mut trust = issuer.trust.watch();
        let mut policy = issuer.policy.watch();
        let mut approvals = self.approvals().watch();
        // What changed since the start began was told to nobody.
        let mut judged = None;
        let mut seen = *approvals.borrow_and_update();
        let mut all = true;
        loop {
            if all {
                // Before looking: what changes from here on is the next change.
                entries.mark_unchanged();
                trust.mark_unchanged();
                policy.mark_unchanged();
                let now = issuer.registry.borrow().clone();
                self.judge_all(judged.as_ref()).await;
                judged = Some(now);
            }
            all = true;
            tokio::select! {
                () = drain.draining() => return,
                changed = entries.changed() => if changed.is_err() { return },
                changed = trust.changed() => if changed.is_err() { return },
                changed = policy.changed() => if changed.is_err() { return },
                changed = approvals.changed() => {
                    if changed.is_err() { return }
                    all = false;
                    let before = std::mem::replace(&mut seen, *approvals.borrow_and_update());
                    self.settle_those(self.approvals().changed_since(before)).await;
                }
                () = issuer.clock.pause(LOOK_AT_CLOCK) => {
                    all = false;
                    self.look_at_clock().await;
                }
            }
        }
    }

    /// Whether the clock was set back: what lasts until a time would last longer. No event of the host tells.
    async fn look_at_clock(&self) {
        let now = self.now();
        if let Err(error) = self.journal().clock(now) {
            tracing::warn!(%error, "the time cannot be written down: a clock set back over a restart may go unnoticed");
        }
        for session in self.all(|session| !matches!(session.state(), State::Ended(_))) {
            // What must end has ended then; nobody wants to use it here.
            let _ = self.usable(&session).await;
        }
    }

    /// Judges all sessions by what approvals say now. When this returns, what was allowed by a withdrawn one has ended.
    /// Goes on to its end whatever becomes of whoever calls.
    pub async fn settle_approvals(&self) {
        let sessions = self.clone();
        // Only a runtime that is going down does not run it to its end.
        let _ = tokio::spawn(async move { sessions.settle_those(None).await }).await;
    }

    /// Judges those of these sessions, or of all, that hang on an approval.
    async fn settle_those(&self, which: Option<BTreeSet<SessionId>>) {
        let named = |session: &Session| which.as_ref().is_none_or(|ids| ids.contains(&session.terms().id));
        let before = self.issuer().registry.borrow().clone();
        let some = self
            .all(|session| session.names_approvals() && !matches!(session.state(), State::Ended(_)) && named(session));
        self.judge_each(some, Some(&before)).await;
    }

    /// Judges every session. Processes are attested anew where their entry is another than in `before`.
    async fn judge_all(&self, before: Option<&Arc<Index>>) {
        self.judge_each(self.all(|session| !matches!(session.state(), State::Ended(_))), before).await;
    }

    async fn judge_each(&self, sessions: Vec<Arc<Session>>, before: Option<&Arc<Index>>) {
        // One at a time: a session that is being begun by its approval has used that up and is not active yet.
        let _alone = self.0.judging.lock().await;
        let mut judging = JoinSet::new();
        for session in sessions {
            if judging.len() >= AT_ONCE {
                judging.join_next().await;
            }
            let (sessions, before) = (self.clone(), before.cloned());
            judging.spawn(async move { sessions.judge(&session, before.as_deref()).await });
        }
        while judging.join_next().await.is_some() {}
    }

    async fn judge(&self, session: &Arc<Session>, before: Option<&Index>) {
        let judged = match self.reason_to_end(session, before).await {
            Some(reason) => self.end(&session.terms().id, reason, "").await.map(drop),
            None => self.settle(session).await,
        };
        if let Err(error) = judged {
            tracing::warn!(%error, session = %session.terms().id, "a session could not be judged again");
        }
    }

    /// Why a session must end by what entries, policies and authorities say now.
    async fn reason_to_end(&self, session: &Arc<Session>, before: Option<&Index>) -> Option<EndReason> {
        let (issuer, terms, now) = (self.issuer(), session.terms(), self.now());
        let index = issuer.registry.borrow().clone();
        let entry = index.entry(&terms.entry).filter(|entry| !entry.is_disabled() && !entry.is_expired(now));
        let Some(entry) = entry else { return Some(EndReason::IdentityDisabled) };
        let is_as_it_was = before.is_some_and(|before| before.entry(&terms.entry) == Some(entry));
        if !is_as_it_was && let Some(root) = session.root() {
            match issuer.entitled_of(&root).await {
                Ok(entitled) => {
                    let is_its = |identity: &crate::registry::Identity| {
                        identity.spiffe_id == terms.spiffe_id && identity.entry.id().as_str() == terms.entry
                    };
                    if !entitled.identities.iter().any(is_its) {
                        return Some(EndReason::IdentityDisabled);
                    }
                }
                Err(Refusal::NoIdentity { .. }) => return Some(EndReason::IdentityDisabled),
                // It is judged when it is used.
                Err(error) => tracing::debug!(%error, session = %terms.id, "a session's process cannot be judged now"),
            }
        }
        let trust = issuer.trust.current();
        let fallen = session
            .inner()
            .tokens
            .iter()
            .any(|token| token.expires_at > now && !trust.signers().stands(&token.authority));
        if fallen {
            return Some(EndReason::TrustMoved);
        }
        let approval = session.approval().map(|id| self.approvals().find(&id));
        let approved = match &approval {
            None => false,
            Some(Some(approval)) if session.state() == State::PendingApproval => match approval.state_at(now) {
                ApprovalState::Denied => return Some(EndReason::PolicyDenied),
                ApprovalState::Pending => false,
                ApprovalState::Granted => true,
                ApprovalState::Withdrawn | ApprovalState::Used | ApprovalState::Expired => {
                    return Some(EndReason::ApprovalRevoked);
                }
            },
            Some(Some(approval)) if approval.stands(now) => true,
            Some(_) => return Some(EndReason::ApprovalRevoked),
        };
        let question = question(terms, action_of(terms), session.used(), approved, now);
        match issuer.policy.start_session(&question) {
            Ok(_) => None,
            Err(Denial::StepUp { .. }) if session.state() == State::PendingApproval => None,
            Err(_) => Some(EndReason::PolicyDenied),
        }
    }

    /// Begins a session whose approval has come; revokes tokens whose approval was withdrawn.
    async fn settle(&self, session: &Arc<Session>) -> Result<(), SessionError> {
        let now = self.now();
        if session.state() == State::PendingApproval {
            let granted = session.approval().and_then(|id| self.approvals().find(&id));
            if granted.is_some_and(|approval| approval.stands(now)) {
                match self.activate(session).await {
                    // Not the fault of who waits: another change comes.
                    Err(error @ SessionError::Denied(_)) => {
                        self.end(&session.terms().id, EndReason::PolicyDenied, "").await?;
                        return Err(error);
                    }
                    activated => return activated,
                }
            }
        }
        let tokens = session.inner().tokens.clone();
        let living = tokens.into_iter().filter(|token| token.expires_at > now);
        let doomed: Vec<(String, Reason)> =
            living.filter_map(|token| Some((token.id.clone(), self.reason_to_revoke(session, &token)?))).collect();
        for reason in [Reason::ApprovalWithdrawn, Reason::PolicyDenied] {
            let is_one = |credential: &crate::ledger::Credential| {
                doomed.iter().any(|(id, why)| *why == reason && *id == credential.id)
            };
            if doomed.iter().any(|(_, why)| *why == reason) {
                self.issuer().ledger.revoke(is_one, reason).await?;
            }
        }
        session.inner().tokens.retain(|token| !doomed.iter().any(|(id, _)| *id == token.id));
        Ok(())
    }

    /// Why a token must not stand by what approvals and policies say now.
    fn reason_to_revoke(&self, session: &Session, token: &Token) -> Option<Reason> {
        let now = self.now();
        let approved = match &token.approval {
            None => false,
            Some(id) if self.approvals().find(id).is_some_and(|approval| approval.stands(now)) => true,
            Some(_) => return Some(Reason::ApprovalWithdrawn),
        };
        let kind = token.kind.as_str();
        let tool = ToolFacts { uri: &token.target, method: "", name: "", rpc: "", arguments_sha256: "", kind };
        let mint = self.issuer().policy.decide(&in_session(session, Action::Mint, tool, approved, now));
        let audience = std::slice::from_ref(&token.target);
        let issue = match token.kind {
            TokenKind::Wit => IssueFacts { kind, audience: &[], binding: token.binding },
            TokenKind::Jwt => IssueFacts { kind, audience, binding: 0 },
        };
        let issue = Question {
            action: Action::Issue,
            agent: session.agent(),
            user: None,
            session: None,
            issue: Some(issue),
            reach: None,
            tool: None,
            approved: false,
            now,
        };
        let stands = mint.allowed && self.issuer().policy.decide(&issue).allowed;
        (!stands).then_some(Reason::PolicyDenied)
    }
}
