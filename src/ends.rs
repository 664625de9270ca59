//! The ends: what revokes issued credentials, watched as events and carried out as one chain.
//!
//! | what ends | how it is noticed |
//! |---|---|
//! | a process, a cgroup, a unit | whoever holds the tie is told by the kernel or by systemd |
//! | a program (exec) | when anybody looks at the process: at every release, and when a verifier asks |
//! | uid, gid, groups, cgroup of a process | at every look, as a program: its entries are matched anew |
//! | an entry, by its source or an edit | the next snapshot of entries |
//! | an entry, by its expiry | the clock |
//! | an authority | the next snapshot of trust |
//!
//! The ledger is told, and everything else follows from it: streams end or renew, verifiers that ask are refused,
//! certificates are on the CRL.
//!
//! After a restart every tie that something stands on is taken hold of again before the first answer; what is gone by
//! then is revoked.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use tokio::task::JoinSet;

use crate::authority::Signers;
use crate::base::backoff::Backoff;
use crate::base::drain;
use crate::bond::{Hold, Tie, Unheld};
use crate::issue::{Issuer, Refusal};
use crate::ledger::{LedgerError, NewTies, Reason};
use crate::peer::Instances;
use crate::registry::Index;

const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(10);

/// Watches everything that credentials stand on.
#[derive(Debug)]
pub struct Ends {
    issuer: Arc<Issuer>,
    instances: Instances,
    new_ties: NewTies,
    held: Vec<(Tie, Option<Hold>)>,
    /// When the entries were last gone through: what expires after this is still to be noticed.
    looked_at: OffsetDateTime,
}

impl Ends {
    /// Takes hold again of what credentials from before a restart are tied to, and revokes what has ended meanwhile.
    /// Nothing may be answered before this returns.
    pub async fn resume(issuer: Arc<Issuer>, instances: Instances, mut new_ties: NewTies) -> Result<Self, LedgerError> {
        let mut held = Vec::new();
        while let Ok(tie) = new_ties.try_recv() {
            match issuer.bonds.hold(&tie).await {
                Ok(hold) => held.push((tie, Some(hold))),
                Err(Unheld::Ended(end)) => revoke_tied(&issuer, &tie, end.into())?,
                // Nothing is known to have ended; it is asked again.
                Err(unseen) => {
                    tracing::warn!(%tie, %unseen, "it cannot be seen yet whether credentials still stand");
                    held.push((tie, None));
                }
            }
        }
        let looked_at = issuer.clock.now();
        let ends = Self { issuer, instances, new_ties, held, looked_at };
        let entries = ends.issuer.registry.borrow().clone();
        revoke_by_entries(&ends.issuer, &entries).await?;
        let trust = ends.issuer.trust.current();
        revoke_by_authorities(&ends.issuer, trust.signers()).await?;
        Ok(ends)
    }

    /// Revokes what ends until the drain.
    pub async fn run(mut self, mut drain: drain::Watcher) {
        let mut watches = JoinSet::new();
        for (tie, hold) in std::mem::take(&mut self.held) {
            watches.spawn(watch(self.issuer.clone(), tie, hold));
        }
        let mut entries = self.issuer.registry.clone();
        let mut trust = self.issuer.trust.watch();
        let mut before = entries.borrow_and_update().clone();
        trust.mark_unchanged();
        let mut backoff = Backoff::new(FIRST_RETRY, LAST_RETRY);
        let mut pending = false;
        loop {
            // What could not be written is tried again until it can.
            let retry = pending.then(|| backoff.delay(&self.issuer.entropy));
            let expiry = before.next_expiry(self.looked_at).filter(|_| !pending);
            tokio::select! {
                () = drain.draining() => break,
                tie = self.new_ties.recv() => match tie {
                    Some(tie) => drop(watches.spawn(watch(self.issuer.clone(), tie, None))),
                    None => break,
                },
                Some(_) = watches.join_next() => {}
                changed = entries.changed() => {
                    if changed.is_err() { break }
                    pending = true;
                }
                changed = trust.changed() => {
                    if changed.is_err() { break }
                    pending = true;
                }
                () = self.issuer.clock.sleep_until(expiry.unwrap_or(self.looked_at)), if expiry.is_some() => pending = true,
                () = tokio::time::sleep(retry.unwrap_or_default()), if retry.is_some() => {}
            }
            if pending {
                let now = entries.borrow_and_update().clone();
                let looked_at = self.issuer.clock.now();
                match self.changed(&before, &now).await {
                    Ok(()) => {
                        (before, pending, self.looked_at) = (now, false, looked_at);
                        backoff.reset();
                    }
                    Err(error) => tracing::error!(error = %error, "credentials cannot be revoked, trying again"),
                }
            }
        }
        // Each holds what holds the store, which is the next agent's once this one says that it is done.
        watches.shutdown().await;
    }

    /// Entries or trust are other than they were.
    async fn changed(&self, before: &Index, now: &Index) -> Result<(), LedgerError> {
        revoke_by_authorities(&self.issuer, self.issuer.trust.current().signers()).await?;
        revoke_by_entries(&self.issuer, now).await?;
        let (entries, _) = self.issuer.ledger.standing_on();
        let changed: HashSet<String> = entries.into_iter().filter(|id| before.entry(id) != now.entry(id)).collect();
        if changed.is_empty() {
            return Ok(());
        }
        for (id, pid) in self.issuer.ledger.holders_of(&changed) {
            // Who is gone meanwhile is revoked by its own end, unless it is bound to more than itself.
            let Ok(instance) = self.instances.of_pid(pid, id.pidfs_inode()) else { continue };
            if *instance.id() != id {
                continue;
            }
            match self.issuer.judge_again(&instance).await {
                Err(Refusal::Ledger(error)) => return Err(error),
                Err(refusal) => tracing::debug!(instance = %id, %refusal, "an instance cannot be judged again now"),
                Ok(()) => {}
            }
        }
        Ok(())
    }
}

/// Waits for the end of a tie and revokes what is tied to it, or stops when nothing is any more.
async fn watch(issuer: Arc<Issuer>, tie: Tie, hold: Option<Hold>) {
    let hold = match hold {
        Some(hold) => Ok(hold),
        None => take_hold(&issuer, &tie).await,
    };
    let reason = match hold {
        Ok(hold) => until_the_end(&issuer, &tie, hold).await,
        Err(ended) => ended,
    };
    let Some(reason) = reason else { return };
    if let Err(error) = revoke_tied(&issuer, &tie, reason) {
        tracing::error!(%error, %tie, "the end of credentials cannot be written; it is found out again at the next start");
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
            () = issuer.clock.sleep_until(until) => {}
        }
    }
}

fn revoke_tied(issuer: &Issuer, tie: &Tie, reason: Reason) -> Result<(), LedgerError> {
    let ended = issuer.ledger.tie_ended(tie, reason)?;
    issuer.record_ended(tie.to_string(), reason, ended);
    Ok(())
}

/// Revokes what was issued by entries that are not there or have ended.
async fn revoke_by_entries(issuer: &Issuer, index: &Index) -> Result<(), LedgerError> {
    let now = issuer.clock.now();
    let (entries, _) = issuer.ledger.standing_on();
    for id in entries {
        let reason = match index.entry(&id) {
            None => Reason::EntryGone,
            Some(entry) if entry.is_disabled() => Reason::EntryDisabled,
            Some(entry) if entry.is_expired(now) => Reason::EntryExpired,
            Some(_) => continue,
        };
        let ended = issuer.ledger.revoke(|credential| credential.entry == id, reason).await?;
        issuer.record_ended(format!("entry {id}"), reason, ended.len());
    }
    Ok(())
}

/// Revokes what was signed by authorities that no longer stand.
async fn revoke_by_authorities(issuer: &Issuer, signers: &Signers) -> Result<(), LedgerError> {
    let (_, authorities) = issuer.ledger.standing_on();
    for id in authorities.into_iter().filter(|id| !signers.stands(id)) {
        let reason = Reason::AuthorityRevoked;
        let ended = issuer.ledger.revoke(|credential| credential.authority == id, reason).await?;
        issuer.record_ended(format!("authority {id}"), reason, ended.len());
    }
    Ok(())
}
