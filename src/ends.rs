//! The ends: what revokes issued credentials, watched as events and carried out as one chain.
//!
//! | what ends | how it is noticed |
//! |---|---|
//! | a process, a cgroup, a unit | whoever holds the tie is told by the kernel or by systemd; what may be in files stands a minute more |
//! | a program (exec) | when anybody looks at the process: at every release, and when a verifier asks |
//! | uid, gid, groups, cgroup of a process | at every look, as a program: its entries are matched anew |
//! | an entry, by its source or an edit; that it gives to files | the next snapshot of entries |
//! | an entry, by its expiry | the clock |
//! | the permission to issue | the next set of policies |
//! | an authority | the next snapshot of trust |
//!
//! The ledger is told, and everything else follows from it: streams end or renew, verifiers that ask are refused,
//! certificates are on the CRL.
//!
//! After a restart every tie that something stands on is taken hold of again, and every process that holds something is
//! judged again, before the first answer; what is gone by then is revoked. What cannot be judged then is left alone: it
//! is judged when it asks, or when its entries change.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use tokio::task::JoinSet;

use crate::authority::Signers;
use crate::base::backoff::Backoff;
use crate::base::drain;
use crate::base::files::aside;
use crate::base::text::chain;
use crate::bond::{End, Hold, LINGER, Tie, Unheld};
use crate::id::SpiffeId;
use crate::issue::{Issuer, Refusal};
use crate::ledger::{Credential, LedgerError, NewTies, Reason};
use crate::peer::{InstanceId, Instances};
use crate::policy::{Action, AgentFacts, IssueFacts};
use crate::registry::Index;

const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(10);
/// So many processes are judged again at a time: each may wait for a disk, and those who call wait as well.
const JUDGED_AT_ONCE: usize = 16;

/// Watches everything that credentials stand on.
#[derive(Debug)]
pub struct Ends {
    judge: Judge,
    judged: Judged,
    new_ties: NewTies,
    held: Vec<(Tie, Option<Hold>)>,
}

impl Ends {
    /// Takes hold again of what credentials from before a restart are tied to, and revokes what has ended meanwhile.
    /// Nothing may be answered before this returns.
    pub async fn resume(issuer: Arc<Issuer>, instances: Instances, mut new_ties: NewTies) -> Result<Self, LedgerError> {
        let mut held = Vec::new();
        while let Ok(tie) = new_ties.try_recv() {
            if let Tie::Session(_) = tie {
                continue;
            }
            match issuer.bonds.hold(&tie).await {
                Ok(hold) => held.push((tie, Some(hold))),
                // What may be in files goes on for a while, from now: nobody knows since when it is over.
                Err(Unheld::Ended(end)) if tie.is_exported() && end != End::Rebooted => held.push((tie, None)),
                Err(Unheld::Ended(end)) => revoke_tied(&issuer, &tie, end.into())?,
                // Nothing is known to have ended; it is asked again.
                Err(unseen) => {
                    tracing::warn!(%tie, %unseen, "it cannot be seen yet whether credentials still stand");
                    held.push((tie, None));
                }
            }
        }
        let judge = Judge { issuer, instances };
        let judged = judge.now();
        judge.revoke_by_snapshots(&judged).await?;
        // Nobody knows what the entries were before: whoever holds anything is judged by what they are.
        let (entries, _) = judge.issuer.ledger.standing_on();
        judge.holders_again(&entries).await?;
        revoke_exports(&judge.issuer, &entries, &judged.entries).await?;
        Ok(Self { judge, judged, new_ties, held })
    }

    /// Revokes what ends until the drain.
    pub async fn run(self, drain: drain::Watcher) {
        let Self { judge, judged, new_ties, held } = self;
        // Neither waits for the other: who was issued something during a long round of judging may exit during it.
        let ties = watch_ties(judge.issuer.clone(), held, new_ties, drain.clone());
        tokio::join!(ties, judge.run(judged, drain));
    }
}

/// The entries, and the moment, by which everything that stands was last judged. What expires later is still to be
/// noticed.
#[derive(Debug)]
struct Judged {
    entries: Arc<Index>,
    at: OffsetDateTime,
}

/// Revokes what the entries and the authorities no longer give.
#[derive(Debug)]
struct Judge {
    issuer: Arc<Issuer>,
    instances: Instances,
}

impl Judge {
    fn now(&self) -> Judged {
        Judged { entries: self.issuer.registry.borrow().clone(), at: self.issuer.clock.now() }
    }

    async fn run(self, mut judged: Judged, mut drain: drain::Watcher) {
        let mut entries = self.issuer.registry.clone();
        let mut trust = self.issuer.trust.watch();
        let mut policy = self.issuer.policy.watch();
        let mut backoff = Backoff::new(FIRST_RETRY, LAST_RETRY);
        // What changed since the start began was told to nobody.
        let mut pending = true;
        loop {
            if pending {
                // Before looking: what changes from here on is the next change.
                entries.mark_unchanged();
                trust.mark_unchanged();
                policy.mark_unchanged();
                let now = self.now();
                match self.changed(&judged, &now).await {
                    Ok(()) => {
                        (judged, pending) = (now, false);
                        backoff.reset();
                    }
                    Err(error) => {
                        tracing::error!(error = %chain(&error), "credentials cannot be revoked, trying again")
                    }
                }
            }
            // What could not be written is tried again until it can.
            let retry = pending.then(|| backoff.delay(&self.issuer.entropy));
            let expiry = judged.entries.next_expiry(judged.at).filter(|_| !pending);
            tokio::select! {
                () = drain.draining() => return,
                changed = entries.changed() => {
                    if changed.is_err() { return }
                }
                changed = trust.changed() => {
                    if changed.is_err() { return }
                }
                changed = policy.changed() => {
                    if changed.is_err() { return }
                }
                () = self.issuer.clock.sleep_until(expiry.unwrap_or(judged.at)), if expiry.is_some() => {}
                () = tokio::time::sleep(retry.unwrap_or_default()), if retry.is_some() => {}
            }
            pending = true;
        }
    }

    /// Entries or trust are other than they were.
    async fn changed(&self, before: &Judged, now: &Judged) -> Result<(), LedgerError> {
        self.revoke_by_snapshots(now).await?;
        let (mut entries, _) = self.issuer.ledger.standing_on();
        entries.retain(|id| before.entries.entry(id) != now.entries.entry(id));
        revoke_exports(&self.issuer, &entries, &now.entries).await?;
        self.holders_again(&entries).await
    }

    async fn revoke_by_snapshots(&self, now: &Judged) -> Result<(), LedgerError> {
        revoke_by_authorities(&self.issuer, self.issuer.trust.current().signers()).await?;
        revoke_by_entries(&self.issuer, now).await?;
        revoke_by_policy(&self.issuer, now).await
    }

    /// Judges again whoever holds something of these entries: a few at a time, each in a task of its own, and all of
    /// them even when something cannot be written.
    async fn holders_again(&self, entries: &HashSet<String>) -> Result<(), LedgerError> {
        if entries.is_empty() {
            return Ok(());
        }
        let (mut judging, mut outcome) = (JoinSet::new(), Ok(()));
        for (id, pid) in self.issuer.ledger.holders_of(entries) {
            if judging.len() >= JUDGED_AT_ONCE {
                outcome = outcome.and(next_of(&mut judging).await);
            }
            judging.spawn(judge_again(self.issuer.clone(), self.instances.clone(), id, pid));
        }
        while !judging.is_empty() {
            outcome = outcome.and(next_of(&mut judging).await);
        }
        outcome
    }
}

/// Judges one holder again, if it is still there.
async fn judge_again(issuer: Arc<Issuer>, instances: Instances, id: InstanceId, pid: i32) -> Result<(), LedgerError> {
    // Who is gone meanwhile is revoked by its own end, unless it is bound to more than itself.
    let Ok(instance) = instances.of_pid(pid, id.pidfs_inode()) else { return Ok(()) };
    if *instance.id() != id {
        return Ok(());
    }
    match issuer.judge_again(&instance).await {
        Err(Refusal::Ledger(error)) => return Err(error),
        Err(refusal) => tracing::debug!(instance = %id, %refusal, "an instance cannot be judged again now"),
        Ok(()) => {}
    }
    Ok(())
}

async fn next_of(judging: &mut JoinSet<Result<(), LedgerError>>) -> Result<(), LedgerError> {
    match judging.join_next().await {
        None => Ok(()),
        Some(Ok(outcome)) => outcome,
        Some(Err(broken)) if broken.is_panic() => std::panic::resume_unwind(broken.into_panic()),
        Some(Err(_)) => Err(LedgerError::Stopping),
    }
}

/// Watches each tie that something stands on until the drain.
async fn watch_ties(
    issuer: Arc<Issuer>,
    held: Vec<(Tie, Option<Hold>)>,
    mut new_ties: NewTies,
    mut drain: drain::Watcher,
) {
    let mut watches = JoinSet::new();
    for (tie, hold) in held {
        watches.spawn(watch(issuer.clone(), tie, hold));
    }
    loop {
        tokio::select! {
            () = drain.draining() => break,
            tie = new_ties.recv() => match tie {
                // Whoever keeps sessions ends what is theirs.
                Some(Tie::Session(_)) => {}
                Some(tie) => drop(watches.spawn(watch(issuer.clone(), tie, None))),
                None => break,
            },
            Some(_) = watches.join_next() => {}
        }
    }
    // Each holds what holds the store, which is the next agent's once this one says that it is done.
    watches.shutdown().await;
}

/// Waits for the end of a tie and revokes what is tied to it, or stops when nothing is any more.
async fn watch(issuer: Arc<Issuer>, tie: Tie, mut hold: Option<Hold>) {
    let reason = loop {
        let held = match hold.take() {
            Some(hold) => Ok(hold),
            None => take_hold(&issuer, &tie).await,
        };
        let reason = match held {
            Ok(hold) => until_the_end(&issuer, &tie, hold).await,
            Err(ended) => ended,
        };
        let Some(reason) = reason else { return };
        if !tie.is_exported() {
            break reason;
        }
        issuer.clock.pause(LINGER).await;
        // A cgroup that is in use again goes on, and what was handed out to it meanwhile with it.
        hold = issuer.bonds.hold(&tie).await.ok();
        if hold.is_none() {
            break reason;
        }
    };
    if let Err(error) = revoke_tied(&issuer, &tie, reason) {
        tracing::error!(error = %chain(&error), %tie, "the end of credentials cannot be written; it is found out again at the next start");
    }
}

/// Takes hold of a tie however long that takes. Otherwise it has ended, or nothing stands on it any more.
async fn take_hold(issuer: &Issuer, tie: &Tie) -> Result<Hold, Option<Reason>> {
    let mut backoff = Backoff::new(FIRST_RETRY, LAST_RETRY);
    loop {
        match issuer.bonds.hold(tie).await {
            Ok(hold) => return Ok(hold),
            Err(Unheld::Ended(end)) => return Err(Some(end.into())),
            Err(unseen) => tracing::debug!(%tie, %unseen, "a tie cannot be held now, trying again"),
        }
        if issuer.ledger.let_go(tie).is_ok() {
            return Err(None);
        }
        tokio::time::sleep(backoff.delay(&issuer.entropy)).await;
    }
}

async fn until_the_end(issuer: &Issuer, tie: &Tie, hold: Hold) -> Option<Reason> {
    let ended = hold.ended();
    tokio::pin!(ended);
    loop {
        let Err(until) = issuer.ledger.let_go(tie) else { return None };
        tokio::select! {
            end = &mut ended => return Some(end.into()),
            () = issuer.clock.sleep_until_surely(until) => {}
        }
    }
}

fn revoke_tied(issuer: &Issuer, tie: &Tie, reason: Reason) -> Result<(), LedgerError> {
    let ended = issuer.ledger.tie_ended(tie, reason)?;
    issuer.record_ended(tie.to_string(), reason, ended);
    Ok(())
}

/// Revokes what was issued by entries that are not there or have ended.
async fn revoke_by_entries(issuer: &Issuer, now: &Judged) -> Result<(), LedgerError> {
    let mut ended: HashMap<Reason, HashSet<String>> = HashMap::new();
    for id in issuer.ledger.standing_on().0 {
        let reason = match now.entries.entry(&id) {
            None => Reason::EntryGone,
            Some(entry) if entry.is_disabled() => Reason::EntryDisabled,
            Some(entry) if entry.is_expired(now.at) => Reason::EntryExpired,
            Some(_) => continue,
        };
        ended.entry(reason).or_default().insert(id);
    }
    for (reason, ids) in ended {
        let revoked = issuer.ledger.revoke(|credential| ids.contains(&credential.entry), reason).await?;
        record_each(issuer, "entry", revoked.into_iter().map(|credential| credential.entry), reason);
    }
    Ok(())
}

/// Revokes what may be in files by those of these entries that no longer give anything to files.
async fn revoke_exports(issuer: &Issuer, entries: &HashSet<String>, now: &Index) -> Result<(), LedgerError> {
    let gives = |id: &&String| now.entry(id).is_none_or(|entry| entry.is_exportable());
    let withdrawn: HashSet<&String> = entries.iter().filter(|id| !gives(id)).collect();
    if withdrawn.is_empty() {
        return Ok(());
    }
    let reason = Reason::NoLongerMatches;
    let exported = |credential: &Credential| credential.tie.is_exported() && withdrawn.contains(&credential.entry);
    let revoked = issuer.ledger.revoke(exported, reason).await?;
    record_each(issuer, "entry", revoked.into_iter().map(|credential| credential.entry), reason);
    Ok(())
}

/// Revokes what the policies no longer permit to issue. What belongs to sessions is judged with them.
async fn revoke_by_policy(issuer: &Arc<Issuer>, now: &Judged) -> Result<(), LedgerError> {
    if issuer.policy.set().always_permits(Action::Issue) {
        return Ok(());
    }
    let (judging, entries, at) = (issuer.clone(), now.entries.clone(), now.at);
    // A set that looks at each of many credentials takes its time.
    let denied: HashSet<String> = aside(move || {
        let permitted = |credential: &Credential| {
            let (Some(entry), Ok(spiffe_id)) =
                (entries.entry(&credential.entry), SpiffeId::parse(&credential.spiffe_id))
            else {
                return true;
            };
            let owner = entry.owner().unwrap_or_default();
            let agent = AgentFacts { spiffe_id: &spiffe_id, entry: &credential.entry, owner };
            let (kind, audience, binding) = (credential.kind.as_str(), &*credential.audience, credential.binding);
            judging.policy.may_issue(agent, IssueFacts { kind, audience, binding }, at).is_ok()
        };
        let outside_sessions = |credential: &Credential| !matches!(credential.tie, Tie::Session(_));
        let standing = judging.ledger.credentials(outside_sessions);
        standing.into_iter().filter(|credential| !permitted(credential)).map(|credential| credential.id).collect()
    })
    .await;
    if denied.is_empty() {
        return Ok(());
    }
    let reason = Reason::PolicyDenied;
    let revoked = issuer.ledger.revoke(|credential| denied.contains(&credential.id), reason).await?;
    record_each(issuer, "entry", revoked.into_iter().map(|credential| credential.entry), reason);
    Ok(())
}

/// Revokes what was signed by authorities that no longer stand.
async fn revoke_by_authorities(issuer: &Issuer, signers: &Signers) -> Result<(), LedgerError> {
    let (_, mut ids) = issuer.ledger.standing_on();
    ids.retain(|id| !signers.stands(id));
    if ids.is_empty() {
        return Ok(());
    }
    let reason = Reason::AuthorityRevoked;
    let revoked = issuer.ledger.revoke(|credential| ids.contains(&credential.authority), reason).await?;
    record_each(issuer, "authority", revoked.into_iter().map(|credential| credential.authority), reason);
    Ok(())
}

/// Records how many credentials each of these lost.
fn record_each(issuer: &Issuer, what: &str, ids: impl Iterator<Item = String>, reason: Reason) {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    ids.for_each(|id| *counts.entry(id).or_default() += 1);
    for (id, count) in counts {
        issuer.record_ended(format!("{what} {id}"), reason, count);
    }
}
