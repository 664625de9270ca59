//! Noticing that the ledger's files are not what was written, and what is done then.
//!
//! What cannot be read may say that something was revoked. So when anything is damaged, cut or missing, everything that was
//! issued before has ended ([`Reason::LedgerRepaired`]): what can still be read is on revocation lists for as long as it
//! would have lasted, and what cannot is unknown, which does not stand either. The damaged files are set aside.
//!
//! A record that was not written whole is no damage: nothing was answered on it. How far the files were synced is in the
//! head, a small file beside their directory, so that a missing end is noticed. The head itself is not synced: after a loss of
//! power it may say less than there is, never more.
//!
//! Does not: notice files that somebody has replaced, with the head, by older ones. Whoever can do that has the keys.
//!
//! [`Reason::LedgerRepaired`]: super::Reason::LedgerRepaired

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::log::Unsynced;
use super::{Ledger, LedgerError};
use crate::base::clock::Memory;
use crate::base::durable::{self, DurableError, Mark};
use crate::base::frames;

const VERSION: u8 = 3;
/// The file is smaller than this, by far.
const MAX_BYTES: u64 = 1024 * 1024;

/// How far the files go that were synced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Head {
    version: u8,
    node: String,
    /// Each file, the newest last, and how many of its bytes were synced.
    files: Vec<(u64, u64)>,
    /// The files are those of a backup.
    restored: bool,
    /// What was known then of the clock.
    clock: Option<Memory>,
}

impl Head {
    pub(super) fn new(node: &str, files: Vec<(u64, u64)>, clock: Option<Memory>) -> Self {
        Self { version: VERSION, node: node.to_owned(), files, restored: false, clock }
    }

    /// The number of the newest file.
    pub(super) fn newest(&self) -> u64 {
        self.files.last().map_or(0, |(number, _)| *number)
    }

    /// The head of the ledger of this node in `dir`. Without one, or with one that cannot be read, nothing is known.
    pub(super) fn read(dir: &Path, node: &str) -> Option<Self> {
        let bytes = durable::read(&path(dir), MAX_BYTES).ok()?;
        let (payload, _) = frames::read(&bytes).ok()?;
        let head: Self = postcard::from_bytes(payload).ok()?;
        (head.version == VERSION && head.node == node).then_some(head)
    }

    /// Whether what stands at a place of the files was synced.
    pub(super) fn covers(&self, number: u64, at: usize) -> bool {
        self.files.iter().any(|(file, bytes)| *file == number && (at as u64) < *bytes)
    }

    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        frames::write(&mut bytes, |to| postcard::to_extend(self, to).expect("a head has no unsized parts"));
        bytes
    }
}

/// Writes the head.
#[derive(Debug)]
pub(super) struct Heading {
    mark: Mark,
    head: Head,
    /// The turn of the sync that the head speaks of.
    turn: u64,
}

impl Heading {
    pub(super) fn begin(dir: &Path, head: Head) -> Result<Self, DurableError> {
        let mut mark = Mark::open(&path(dir))?;
        mark.set(&head.to_bytes())?;
        Ok(Self { mark, head, turn: 0 })
    }

    /// What a sync has put on disk. Its dead files are removed after this, when they are no longer in the head.
    pub(super) fn synced(&mut self, sync: &Unsynced, clock: Memory) -> Result<(), DurableError> {
        if sync.turn > self.turn {
            self.turn = sync.turn;
            self.head.files.clone_from(&sync.through);
            self.head.clock = Some(clock);
        } else {
            self.head.files.retain(|(number, _)| !sync.dead.contains(number));
        }
        self.mark.set(&self.head.to_bytes())?;
        if sync.dead.is_empty() { Ok(()) } else { self.mark.sync() }
    }
}

/// How often files are read anew when some are given up meanwhile.
const ATTEMPTS: usize = 3;

impl Ledger {
    /// Its files by name, as far as they are written now: for a backup. Blocks.
    pub fn snapshot(&self) -> Result<Vec<(String, Vec<u8>)>, LedgerError> {
        let mut attempt = 1;
        loop {
            let files = self.lock().log.files_now();
            let read = |(name, path, bytes): (String, PathBuf, u64)| -> Result<_, DurableError> {
                let mut content = durable::read(&path, super::log::MAX_FILE)?;
                content.truncate(usize::try_from(bytes).unwrap_or(usize::MAX));
                Ok((name, content))
            };
            match files.into_iter().map(read).collect::<Result<Vec<_>, _>>() {
                Err(error) if attempt == ATTEMPTS => return Err(error.into()),
                Err(_) => attempt += 1,
                Ok(files) => return Ok(files),
            }
        }
    }
}

/// Marks the ledger in `dir` as that of a backup, for the next start: what was revoked since is not in it.
pub fn mark_restored(dir: &Path, node: &str) -> Result<(), DurableError> {
    let head = Head { restored: true, ..Head::new(node, Vec::new(), None) };
    durable::replace(&path(dir), &head.to_bytes(), 0o600)
}

/// What was known of the clock when the ledger of this node in `dir` was last written: see [`Clock::remember`].
///
/// [`Clock::remember`]: crate::base::clock::Clock::remember
pub fn last_clock(dir: &Path, node: &str) -> Option<Memory> {
    Head::read(dir, node)?.clock
}

fn path(dir: &Path) -> PathBuf {
    dir.with_extension("head")
}

/// Something that is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Damage {
    /// The file, where it is there.
    pub(super) file: Option<u64>,
    pub(super) what: String,
}

/// What the files' names and lengths alone tell. `found` are the numbers and lengths of those that are there, in order.
pub(super) fn missing(found: &[(u64, u64)], head: Option<&Head>) -> Vec<Damage> {
    let mut damage = Vec::new();
    let mut say = |file, what| damage.push(Damage { file, what });
    let Some(head) = head else { return damage };
    if head.restored {
        say(None, "it was restored from a backup".to_owned());
    }
    for (number, had) in &head.files {
        match found.iter().find(|(file, _)| file == number) {
            None => say(None, format!("file {number} is missing")),
            Some((_, bytes)) if bytes < had => {
                say(Some(*number), format!("of the {had} bytes that file {number} had there are {bytes}"));
            }
            Some(_) => {}
        }
    }
    damage
}

/// What to say of it.
pub(super) fn said(damage: &[Damage], aside: &[PathBuf]) -> String {
    let found = damage.iter().map(|damage| damage.what.as_str()).collect::<Vec<_>>().join("; ");
    let aside = match aside {
        [] => String::new(),
        paths => {
            let paths: Vec<_> = paths.iter().map(|path| format!("`{}`", path.display())).collect();
            format!("; what is damaged was set aside as {}", paths.join(", "))
        }
    };
    format!(
        "{found}{aside}. Everything that was issued before has ended, as it is not known what of it was revoked. Certificates \
         that cannot be read any more are on no revocation list: where one of them matters, \
         `tether authority revoke` ends all at once"
    )
}
