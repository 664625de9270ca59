//! Puts a state in the place of another.
//!
//! All of it is written beside the state that is there. While files change places there is a directory [`UNFINISHED`], with
//! which no agent starts; until then a failure changes nothing. Whoever calls has taken the state directory.

use std::fs;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::Checked;
use crate::agent::RESTORE_UNFINISHED as UNFINISHED;
use crate::api::admin::{About, piece};
use crate::audit;
use crate::authority::keys::KeyStore;
use crate::base::archive::Archive;
use crate::base::durable;
use crate::{ledger, store};

/// What is written before anything changes its place.
const PREPARED: &str = "restore-new";
/// What the directories begin with that keep what was there; a number follows.
const ASIDE: &str = "before-restore-";
/// What takes the place of what.
const REPLACED: &[&str] =
    &["store.redb", "store.copy", "store.unfinished", "keys", "ledger", "ledger.head", "sessions"];

type Cause = Box<dyn std::error::Error>;

/// Why a backup is not in place.
#[derive(Debug, Error)]
pub(super) enum PlaceError {
    /// It could not be written beside the state, or the first file could not be moved.
    #[error("nothing was changed")]
    Untouched(#[source] Cause),
    /// Some files have changed places.
    #[error(
        "the restore stopped half way, and no agent starts until it is done: mend what is said here and run `tether restore` \
         again (what was there is in `{}`)",
        aside.display()
    )]
    HalfWay {
        /// Where what was there before is.
        aside: PathBuf,
        /// What stopped it.
        #[source]
        source: Cause,
    },
}

/// Puts it in place, and says where what was there before is: after restores that were interrupted, in several directories.
pub(super) fn put(
    state: &Path,
    audit_log: &audit::Settings,
    archive: &Archive,
    checked: &Checked,
    about: &About,
) -> Result<Vec<PathBuf>, PlaceError> {
    let (prepared, unfinished) = (state.join(PREPARED), state.join(UNFINISHED));
    let was_interrupted = unfinished.exists();
    let aside = free_name(state);
    let begun = prepare(state, &prepared, archive, checked, about).and_then(|()| {
        durable::private_dir(&aside)?;
        begin(&prepared, &unfinished)
    });
    if let Err(cause) = begun {
        // It is of no use, and an empty directory neither; what cannot be removed now, the next restore does.
        let _ = (durable::remove_all(&prepared), fs::remove_dir(&aside));
        return Err(PlaceError::Untouched(cause));
    }
    if let Err(source) = change_places(state, &unfinished, &aside, audit_log, about) {
        let is_untouched = !was_interrupted && is_empty(&aside) && is_whole(&unfinished);
        if is_untouched && durable::remove_all(&unfinished).is_ok() {
            let _ = fs::remove_dir(&aside);
            return Err(PlaceError::Untouched(source));
        }
        return Err(PlaceError::HalfWay { aside, source });
    }
    // Where nothing was there.
    let _ = fs::remove_dir(&aside);
    Ok(all_aside(state))
}

/// Writes all of it beside the state.
fn prepare(state: &Path, prepared: &Path, archive: &Archive, checked: &Checked, about: &About) -> Result<(), Cause> {
    durable::private_dir(state)?;
    // What a restore that died left behind.
    durable::remove_all(prepared)?;
    durable::private_dir(prepared)?;
    store::restore(&prepared.join("store.redb"), &checked.image)?;
    durable::private_dir(&prepared.join("keys"))?;
    for (id, key) in archive.below(piece::KEYS).filter(|(id, _)| checked.has_key(id)) {
        durable::replace(&prepared.join("keys").join(KeyStore::file_name(id)), key, 0o600)?;
    }
    let ledger = prepared.join("ledger");
    durable::private_dir(&ledger)?;
    for (name, content) in archive.below(piece::LEDGER) {
        durable::replace(&ledger.join(name), content, 0o600)?;
    }
    Ok(ledger::mark_restored(&ledger, &about.node)?)
}

/// From here on no agent starts. At no moment is there none of the two names after a restore that was interrupted.
fn begin(prepared: &Path, unfinished: &Path) -> Result<(), Cause> {
    if unfinished.exists() {
        for left in fs::read_dir(unfinished)? {
            let left = left?;
            if left.file_type()?.is_dir() {
                durable::remove_all(&left.path())?;
            } else {
                durable::remove(&left.path())?;
            }
        }
    }
    // An empty directory is replaced.
    Ok(durable::rename(prepared, unfinished)?)
}

fn change_places(
    state: &Path,
    unfinished: &Path,
    aside: &Path,
    audit_log: &audit::Settings,
    about: &About,
) -> Result<(), Cause> {
    for name in REPLACED.iter().filter(|name| state.join(name).exists()) {
        durable::rename(&state.join(name), &aside.join(name))?;
    }
    for name in REPLACED.iter().filter(|name| unfinished.join(name).exists()) {
        durable::rename(&unfinished.join(name), &state.join(name))?;
    }
    // The log of this node goes on where it is, or where somebody has copied it to; without one, it begins anew.
    audit::set_aside_of_others(audit_log, &about.node, aside)?;
    // The last of all, and on disk when it is done: while it is there, this is done again.
    Ok(durable::remove_all(unfinished)?)
}

/// Whether nothing has left it.
fn is_whole(unfinished: &Path) -> bool {
    ["store.redb", "keys", "ledger"].iter().all(|name| unfinished.join(name).exists())
}

fn is_empty(dir: &Path) -> bool {
    fs::read_dir(dir).is_ok_and(|mut files| files.next().is_none())
}

fn free_name(state: &Path) -> PathBuf {
    let free = (1..).map(|number| state.join(format!("{ASIDE}{number}"))).find(|path| !path.exists());
    free.unwrap_or_else(|| state.join(format!("{ASIDE}0")))
}

/// The former states that are still there, the oldest first.
fn all_aside(state: &Path) -> Vec<PathBuf> {
    let numbered = |path: PathBuf| {
        let number: u64 = path.file_name()?.to_str()?.strip_prefix(ASIDE)?.parse().ok()?;
        Some((number, path))
    };
    let found = fs::read_dir(state).into_iter().flatten().flatten();
    let mut found: Vec<_> = found.filter_map(|entry| numbered(entry.path())).collect();
    found.sort_unstable();
    found.into_iter().map(|(_, path)| path).collect()
}
