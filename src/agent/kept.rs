//! Held keys over a restart of the agent: one sealed file in memory, in the service manager's store of descriptors
//! (sd_notify(3), `FDSTORE=1`). Without a service manager that keeps them, they end with the agent, and what was issued
//! for them with the reason `agent_restart`.
//!
//! Promises: keys are written to no file system.
//!
//! Does not: keep them out of swap. The file is no memory that the agent could lock; `MemorySwapMax=0` in the unit holds
//! for it as long as the unit's cgroup is there, and encrypted swap, or none, also between two agents. Nor does it
//! notice a service manager that drops what it is sent, as systemd does unless the unit sets `FileDescriptorStoreMax=`
//! to more than 0, its default. And an agent that is killed loses the changes of the last [`pause`].

use std::fs::File;
use std::io::{self, Seek as _};
use std::os::fd::AsFd;
use std::time::Duration;

use sd_notify::NotifyState;

use crate::base::drain;
use crate::bond::Tie;
use crate::held::{Held, Kept, KeptError};
use crate::issue::Issuer;
use crate::ledger::{Ledger, LedgerError, Reason, Standing};
use crate::sys::inherited::Inherited;
use crate::sys::memfd;

/// The name of the file in the store.
const NAME: &str = "tether-held";
/// Changes within this time are written once, at least.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
/// What one more key adds: all are written each time, at some microseconds each, which is to stay a small part of the
/// time.
const PAUSE_PER_KEY: Duration = Duration::from_micros(200);
/// However many keys there are.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Takes back what the agent before us kept, for processes that still live and credentials that still stand; ends what
/// was issued for keys that did not come back. Nothing may be answered before this returns.
pub(super) async fn take_back(issuer: &Issuer, inherited: &Inherited) -> Result<(), LedgerError> {
    for (_, file) in inherited.files(|name| name == NAME) {
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
    // Those of sessions end with their sessions, whose keys are not theirs alone.
    let of_session = |credential: &crate::ledger::Credential| matches!(credential.tie, Tie::Session(_));
    let lost = |credential: &crate::ledger::Credential| {
        credential.held && !of_session(credential) && !issuer.held.holds(&credential.id)
    };
    issuer.ledger.revoke(lost, Reason::AgentRestart).await.map(drop)
}

fn read(mut file: File) -> Result<Kept, KeptError> {
    file.rewind()?;
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
        stored = store_aside(&held, stored).await;
        if stopping {
            return;
        }
        let changed = async {
            // The sender is in `held`.
            let _ = changes.changed().await;
            tokio::time::sleep(pause(held.len())).await;
        };
        tokio::select! {
            () = drain.draining() => stopping = true,
            () = changed => {}
        }
    }
}

/// How long changes to this many keys are gathered.
fn pause(keys: usize) -> Duration {
    let keys = u32::try_from(keys).unwrap_or(u32::MAX);
    PAUSE_PER_KEY.saturating_mul(keys).clamp(SHORTEST_PAUSE, LONGEST_PAUSE)
}

/// [`store`] where it may take its time; says whether a copy is stored now.
async fn store_aside(held: &Held, mut stored: bool) -> bool {
    let held = held.clone();
    let storing = tokio::task::spawn_blocking(move || {
        let result = store(&held, &mut stored);
        (result, stored)
    });
    // Where it did not come to an end, there may be one.
    let (result, stored) = storing.await.unwrap_or_else(|error| (Err(KeptError::Io(io::Error::other(error))), true));
    if let Err(error) = result {
        tracing::warn!(%error, "held keys will not survive a restart of the agent: they cannot be kept");
    }
    stored
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_more_keys_there_are_the_less_often_they_are_written() {
        let rows = [(0, 100), (1, 100), (500, 100), (5_000, 1_000), (50_000, 10_000), (usize::MAX, 10_000)];
        for (keys, milliseconds) in rows {
            assert_eq!(pause(keys), Duration::from_millis(milliseconds), "{keys} keys");
        }
    }
}
