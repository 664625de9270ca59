//! Held keys over the end of the agent, in whatever way it ends: their table is in the service manager's store of
//! descriptors (sd_notify(3), `FDSTORE=1`) from the start, before anything is answered. Without a service manager that
//! keeps it, they end with the agent, and what was issued for them with the reason `agent_restart`.
//!
//! Promises: keys are written to no file system, and none that was used is lost to a crash. An agent takes back a table
//! that nobody but the one before it could write, in this boot; it writes one of its own and gives the old one up.
//!
//! Does not: keep keys out of swap once the agent is gone, see [`crate::sys::memfd::Region`]. Nor does it notice a service
//! manager that drops what it is sent, as systemd does unless the unit sets `FileDescriptorStoreMax=` to 2 or more: two,
//! because at each start there are the old table and the new one for a moment. systemd 254 and later tell how many they
//! keep (`$FDSTORE`); of what it tells, too few are reported.

use std::collections::HashSet;
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use sd_notify::NotifyState;
use thiserror::Error;

use super::notify;
use crate::base::drain;
use crate::base::entropy::Entropy;
use crate::base::text::chain;
use crate::bond::Tie;
use crate::held::{Held, Kept, Table, TableError};
use crate::issue::Issuer;
use crate::ledger::{Ledger, LedgerError, Reason, Standing};
use crate::sys::BootId;
use crate::sys::inherited::Inherited;

/// What the names of tables begin with in the store. Each has one of its own, so that the old one can be given up.
const NAME: &str = "tether-held";
/// How many descriptors the service manager has to keep.
const NEEDED: u32 = 2;
/// How often it is looked whether most of the table is empty, at most.
const PAUSE: Duration = Duration::from_secs(60);

/// Why keys are not kept.
#[derive(Debug, Error)]
enum NotKept {
    /// There is no table for them.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The service manager cannot be reached.
    #[error("the service manager cannot be reached")]
    Manager(#[source] io::Error),
}

/// The table in the service manager's store.
pub(super) struct Store {
    boot: BootId,
    entropy: Entropy,
    name: String,
}

/// Takes back what the agent before us kept, for processes that still live and credentials that still stand; ends what
/// was issued for keys that did not come back. Nothing may be answered before this returns. The store, where there is one,
/// and what is weaker without.
pub(super) async fn take_back(
    issuer: &Issuer,
    inherited: &Inherited,
) -> Result<(Option<Store>, Option<String>), LedgerError> {
    let (boot, kept) = (issuer.instances.boot(), inherited.files(|name| name.starts_with(NAME)));
    let (table, weakness) = match table(boot) {
        Ok(table) => (table, None),
        Err(why) => (None, Some(format!("{why}: held keys and sessions end with the agent"))),
    };
    let name = format!("{NAME}-{}", issuer.entropy.hex::<4>());
    let stored = table.as_ref().map(|table| keep(&name, table)).transpose();
    let (store, weakness) = match stored {
        Ok(None) => (None, weakness),
        Ok(Some(())) => (Some(Store { boot, entropy: issuer.entropy.clone(), name }), weakness),
        Err(why) => (None, Some(format!("{}: held keys and sessions end with the agent", chain(&why)))),
    };
    if let Some(table) = table {
        issuer.held.outlive_in(table);
    }
    for (_, file) in &kept {
        match Kept::read(file, boot) {
            Ok(kept) => {
                let of = kept.len();
                let find = |pid, id: &crate::peer::InstanceId| issuer.instances.of_pid(pid, id.pidfs_inode()).ok();
                let stands = |key: &crate::held::HeldCredential| issuer.ledger.standing(key.id()) == Standing::Stands;
                let taken = issuer.held.take_back(kept, find, stands);
                tracing::info!(taken, of, "held keys from before the restart");
            }
            Err(error) => tracing::warn!(%error, "held keys from before the restart cannot be taken back"),
        }
    }
    // Killed before this, the next agent finds the same keys in both, and what the ledger says of them decides.
    for (old, _) in kept {
        if let Err(error) = give_up(&old) {
            tracing::warn!(%error, "the table of the agent before this one cannot be given up");
        }
    }
    // Those of sessions end with their sessions, whose keys are not theirs alone.
    let of_session = |credential: &crate::ledger::Credential| matches!(credential.tie, Tie::Session(_));
    let lost = |credential: &crate::ledger::Credential| {
        credential.held && !of_session(credential) && !issuer.held.holds(&credential.id)
    };
    issuer.ledger.revoke(lost, Reason::AgentRestart).await?;
    Ok((store, weakness))
}

/// An empty table; `None` where there is nobody who could keep it.
fn table(boot: BootId) -> Result<Option<Table>, String> {
    if !notify::is_heard() {
        return Ok(None);
    }
    let told = std::env::var("FDSTORE").ok().and_then(|most| most.parse::<u32>().ok());
    if let Some(most) = told.filter(|most| *most < NEEDED) {
        return Err(format!(
            "systemd keeps {most} descriptors: set FileDescriptorStoreMax={NEEDED} or more in the unit"
        ));
    }
    Table::new(boot).map(Some).map_err(|error| chain(&error))
}

/// Gives the service manager a table. It is taken note of before the end of this process is, whenever that comes.
fn keep(name: &str, table: &Table) -> Result<(), NotKept> {
    // It is no socket that could be closed from outside.
    let states = [NotifyState::FdStore, NotifyState::FdName(name), NotifyState::Custom("FDPOLL=0")];
    sd_notify::notify_with_fds(&states, &[table.as_fd()]).map_err(NotKept::Manager)
}

fn give_up(name: &str) -> io::Result<()> {
    sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)])
}

impl Store {
    /// Exchanges the table when most of it is empty, until the drain.
    pub(super) async fn tend(mut self, held: Held, mut drain: drain::Watcher) {
        let mut changes = held.changes();
        loop {
            let changed = async {
                // The sender is in `held`.
                let _ = changes.changed().await;
                tokio::time::sleep(PAUSE).await;
            };
            tokio::select! {
                () = drain.draining() => return,
                () = changed => {}
            }
            changes.mark_unchanged();
            let (next, held, boot) = (format!("{NAME}-{}", self.entropy.hex::<4>()), held.clone(), self.boot);
            let exchanged = tokio::task::spawn_blocking(move || {
                held.compact(boot, |new| keep(&next, new)).map(|exchanged| exchanged.then_some(next.clone()))
            });
            match exchanged.await {
                Ok(Ok(None)) => {}
                Ok(Ok(Some(next))) => {
                    let old = std::mem::replace(&mut self.name, next);
                    if let Err(error) = give_up(&old) {
                        tracing::warn!(%error, "the table that was exchanged cannot be given up");
                    }
                }
                Ok(Err(error)) => tracing::warn!(%error, "the table of held keys stays as large as it is"),
                Err(error) => tracing::error!(%error, "the table of held keys stays as large as it is"),
            }
        }
    }
}

/// Wipes keys whose credential was revoked: the ledger refuses their use at once, and this takes them out of memory.
pub(super) async fn wipe_revoked(held: Held, ledger: Ledger, mut drain: drain::Watcher) {
    let mut revocations = ledger.revocations();
    loop {
        revocations.mark_unchanged();
        // Asked without holding up whoever signs: there may be very many.
        let gone: HashSet<String> =
            held.ids().into_iter().filter(|id| ledger.standing(id) != Standing::Stands).collect();
        if !gone.is_empty() {
            held.wipe(|key| gone.contains(key.id()));
        }
        tokio::select! {
            () = drain.draining() => return,
            changed = revocations.changed() => if changed.is_err() { return },
        }
    }
}
