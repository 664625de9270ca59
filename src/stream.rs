//! Open streams: what each last sent, and when it must look again.
//!
//! A stream sends its complete state at once and then only what a client would see as a change (Workload API, section
//! 4.3). It wakes on a new snapshot of entries, policies or trust, when a credential in it is revoked, when its state
//! says so (renewal, the end of an entry), when its instance ends or the one it is for, and when the agent stops;
//! nothing polls. New revocation lists wake the streams of bundles only, because clients of X.509-SVIDs load everything
//! anew with each message. On each wake the caller is judged again from the beginning: whoever lost its identity loses
//! the stream.

use std::future::Future;
use std::sync::Arc;

use futures_util::stream::{self, Stream};
use time::OffsetDateTime;
use tokio::sync::watch;

use crate::base::clock::Clock;
use crate::base::drain;
use crate::issue::{Issuer, Refusal};
use crate::ledger::{Reason, Standing};
use crate::metrics::DueAt;
use crate::peer::{Instance, PeerConn};
use crate::policy::PolicySet;
use crate::trust::CrlSet;

/// What a stream sends next, and when that must be made anew whatever happens.
#[derive(Debug)]
pub struct Update<T> {
    /// The complete state.
    pub state: T,
    /// The ids of the credentials in it: one that no longer stands wakes the stream, and it ends when that was an
    /// operator's doing.
    pub credentials: Vec<String>,
    /// The process it is for, where that is not the caller.
    pub target: Option<Arc<Instance>>,
    /// When to look again; `None` for only on events.
    pub renew_at: Option<OffsetDateTime>,
}

/// A stream of complete states, each different from the one before; ends with the first refusal.
pub fn updates<T, Judge, Judged>(
    issuer: Arc<Issuer>,
    peer: PeerConn,
    drain: drain::Watcher,
    judge: Judge,
) -> impl Stream<Item = Result<T, Refusal>> + Send
where
    T: PartialEq + Clone + Send + Sync,
    Judge: Fn(Arc<Issuer>, PeerConn) -> Judged + Send + Sync,
    Judged: Future<Output = Result<Update<T>, Refusal>> + Send,
{
    updates_waking(issuer, peer, drain, None, judge)
}

/// As [`updates`], and it wakes when new revocation lists are announced too.
pub fn updates_and_crls<T, Judge, Judged>(
    issuer: Arc<Issuer>,
    peer: PeerConn,
    drain: drain::Watcher,
    judge: Judge,
) -> impl Stream<Item = Result<T, Refusal>> + Send
where
    T: PartialEq + Clone + Send + Sync,
    Judge: Fn(Arc<Issuer>, PeerConn) -> Judged + Send + Sync,
    Judged: Future<Output = Result<Update<T>, Refusal>> + Send,
{
    let crls = issuer.crls.watch();
    updates_waking(issuer, peer, drain, Some(crls), judge)
}

fn updates_waking<T, Judge, Judged>(
    issuer: Arc<Issuer>,
    peer: PeerConn,
    drain: drain::Watcher,
    crls: Option<watch::Receiver<Arc<CrlSet>>>,
    judge: Judge,
) -> impl Stream<Item = Result<T, Refusal>> + Send
where
    T: PartialEq + Clone + Send + Sync,
    Judge: Fn(Arc<Issuer>, PeerConn) -> Judged + Send + Sync,
    Judged: Future<Output = Result<Update<T>, Refusal>> + Send,
{
    let open = Open {
        registry: issuer.registry.clone(),
        trust: issuer.trust.watch(),
        policy: issuer.policy.watch(),
        crls,
        clock: issuer.clock.clone(),
        peer,
        drain,
        judge,
        sent: None,
        credentials: Vec::new(),
        target: None,
        revocations: issuer.ledger.revocations(),
        renew_at: None,
        due: None,
        issuer,
    };
    stream::unfold(Some(open), |open| async move {
        let mut open = open?;
        match open.next().await {
            Ok(state) => Some((Ok(state), Some(open))),
            Err(refusal) => Some((Err(refusal), None)),
        }
    })
}

struct Open<T, Judge> {
    issuer: Arc<Issuer>,
    peer: PeerConn,
    registry: watch::Receiver<Arc<crate::registry::Index>>,
    trust: watch::Receiver<Arc<crate::trust::Snapshot>>,
    policy: watch::Receiver<Arc<PolicySet>>,
    crls: Option<watch::Receiver<Arc<CrlSet>>>,
    clock: Clock,
    drain: drain::Watcher,
    judge: Judge,
    sent: Option<T>,
    credentials: Vec<String>,
    target: Option<Arc<Instance>>,
    revocations: watch::Receiver<u64>,
    renew_at: Option<OffsetDateTime>,
    /// Counts the renewal among those to come, until it is done or the stream ends.
    due: Option<DueAt>,
}

impl<T, Judge, Judged> Open<T, Judge>
where
    T: PartialEq + Clone,
    Judge: Fn(Arc<Issuer>, PeerConn) -> Judged,
    Judged: Future<Output = Result<Update<T>, Refusal>>,
{
    async fn next(&mut self) -> Result<T, Refusal> {
        loop {
            if self.sent.is_some() {
                self.wake().await?;
            }
            // What changes while judging is seen as the next change: mark it seen before, not after.
            self.registry.mark_unchanged();
            self.trust.mark_unchanged();
            self.policy.mark_unchanged();
            self.revocations.mark_unchanged();
            self.crls.iter_mut().for_each(watch::Receiver::mark_unchanged);
            // Whatever it was that woke us: a revocation may have come with it.
            self.not_revoked()?;
            let update = (self.judge)(self.issuer.clone(), self.peer.clone()).await?;
            // What was revoked while judging may have been replaced by it.
            self.not_revoked()?;
            self.renew_at = update.renew_at;
            self.due = self.renew_at.map(|at| self.issuer.metrics.renewals.at(at));
            self.credentials = update.credentials;
            self.target = update.target;
            if self.sent.as_ref() != Some(&update.state) {
                self.sent = Some(update.state.clone());
                return Ok(update.state);
            }
        }
    }

    async fn wake(&mut self) -> Result<(), Refusal> {
        let renewal = async {
            match self.renew_at {
                // A clock that was set back makes documents of ones that are not valid yet.
                Some(at) => self.clock.sleep_until_or_set(at).await,
                None => std::future::pending().await,
            }
        };
        let crls = async {
            match &mut self.crls {
                Some(crls) => crls.changed().await,
                None => std::future::pending().await,
            }
        };
        let (ledger, credentials) = (&self.issuer.ledger, &self.credentials);
        let revoked = async {
            // Most revocations are of others.
            loop {
                self.revocations.changed().await.map_err(|_| Refusal::Stopping)?;
                if credentials.iter().any(|id| ledger.standing(id) != Standing::Stands) {
                    return Ok(());
                }
            }
        };
        let target_ended = async {
            match &self.target {
                Some(target) => drop(target.ended().await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = self.drain.draining() => Err(Refusal::Stopping),
            end = self.peer.instance().ended() => Err(Refusal::Look(end.into())),
            changed = self.registry.changed() => changed.map_err(|_| Refusal::Stopping),
            changed = self.trust.changed() => changed.map_err(|_| Refusal::Stopping),
            changed = self.policy.changed() => changed.map_err(|_| Refusal::Stopping),
            changed = crls => changed.map_err(|_| Refusal::Stopping),
            revoked = revoked => revoked,
            () = target_ended => Ok(()),
            () = renewal => Ok(()),
        }
    }

    /// What an operator revoked is not quietly replaced: whoever has it is told.
    fn not_revoked(&self) -> Result<(), Refusal> {
        let by_operator = |id: &String| {
            let reason = Reason::Operator;
            matches!(self.issuer.ledger.standing(id), Standing::Ended { reason: why, .. } if why == reason)
        };
        if self.credentials.iter().any(by_operator) { Err(Refusal::Revoked(Reason::Operator)) } else { Ok(()) }
    }
}
