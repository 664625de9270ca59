//! Held keys over a restart of the agent: one sealed file in memory, in the service manager's store of descriptors
//! (sd_notify(3), `FDSTORE=1`). Keys are on no disk at any time. Without a service manager that keeps them, they end
//! with the agent, and what was issued for them with the reason `agent_restart`.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use sd_notify::NotifyState;

use crate::base::drain;
use crate::held::{Held, Kept, KeptError};
use crate::issue::Issuer;
use crate::ledger::{Ledger, LedgerError, Reason, Standing};
use crate::sys::memfd;

/// The name of the file in the store.
const NAME: &str = "tether-held";
/// Changes within this time are written once: a file takes some milliseconds for thousands of keys.
const TOGETHER: Duration = Duration::from_millis(100);

/// Takes back what the agent before us kept, for processes that still live and credentials that still stand; ends what
/// was issued for keys that did not come back. Nothing may be answered before this returns.
pub(super) async fn take_back(issuer: &Issuer) -> Result<(), LedgerError> {
    let kept = match memfd::inherited(NAME) {
        Ok(files) => files,
        Err(error) => {
            tracing::warn!(%error, "held keys from before the restart cannot be taken back");
            Vec::new()
        }
    };
    for file in kept {
        match read(file) {
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
    let lost = |credential: &crate::ledger::Credential| credential.held && !issuer.held.holds(&credential.id);
    issuer.ledger.revoke(lost, Reason::AgentRestart).await.map(drop)
}

fn read(mut file: File) -> Result<Kept, KeptError> {
    // One that can be changed is not ours.
    if memfd::is_sealed(&file) { Kept::read(&mut file) } else { Err(KeptError::Damaged) }
}

/// Keeps the copy in the service manager's store current, until the drain and once more then.
pub(super) async fn keep(held: Held, mut drain: drain::Watcher) {
    let mut changes = held.changes();
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return drain.draining().await;
    }
    // What the agent before us kept may be there still, and is out of date.
    let mut stored = true;
    let mut stopping = false;
    loop {
        changes.mark_unchanged();
        if let Err(error) = store(&held, &mut stored) {
            tracing::warn!(%error, "held keys will not survive a restart of the agent: they cannot be kept");
        }
        if stopping {
            return;
        }
        tokio::select! {
            () = drain.draining() => stopping = true,
            _ = changes.changed() => tokio::time::sleep(TOGETHER).await,
        }
    }
}

/// Puts a new copy in the place of the old one; no copy where there are no keys.
fn store(held: &Held, stored: &mut bool) -> Result<(), KeptError> {
    let removed =
        || sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(NAME)]).map_err(io::Error::other);
    if held.is_empty() {
        if std::mem::take(stored) {
            removed()?;
        }
        return Ok(());
    }
    let file = memfd::sealed(NAME, |file| held.write_to(file).map(drop))?;
    if *stored {
        removed()?;
    }
    sd_notify::notify_with_fds(&[NotifyState::FdStore, NotifyState::FdName(NAME)], &[file.as_fd()])
        .map_err(io::Error::other)?;
    *stored = true;
    Ok(())
}

/// Wipes keys whose credential was revoked: the ledger refuses their use at once, and this takes them out of memory.
pub(super) async fn wipe_revoked(held: Held, ledger: Ledger, mut drain: drain::Watcher) {
    let mut revocations = ledger.revocations();
    loop {
        revocations.mark_unchanged();
        held.wipe(|key| ledger.standing(key.id()) != Standing::Stands);
        tokio::select! {
            () = drain.draining() => return,
            changed = revocations.changed() => if changed.is_err() { return },
        }
    }
}
