//! The keys in memory that outlives the agent: one table, which the service manager holds too.
//!
//! Promises: a key is in the table before it can be used, and is overwritten with zeros there when it is wiped, whatever
//! else is held; so a crash loses none and leaves none. Both cost the same with one key and with a hundred thousand.
//!
//! Does not: give back memory of single keys. What was wiped is used again for keys of the same length; a table of which
//! little is used any more is exchanged for a new one, which is [`Table::is_loose`] and [`Table::compacted`].
//!
//! # Form
//! A page with [`VERSION`] and the boot, then slots without gaps up to the first whose length is 0. A slot is a
//! [`HEAD`] (its length, what it holds, the lengths of the two parts, all little-endian), what is public about the key as
//! JSON, and the key as PKCS#8. The length is written once and stays; what it holds is written last and unwritten first,
//! so that a slot is whole or empty in whatever moment the agent is killed.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{Ordering, compiler_fence};

use thiserror::Error;
use zeroize::Zeroize as _;

use crate::base::secret::Secret;
use crate::sys::BootId;
use crate::sys::memfd::{self, Region};

/// What the first page begins with.
const VERSION: &[u8] = b"tether held keys 3\n";
/// Where the boot stands in it.
const BOOT: usize = 64;
/// Where slots begin.
const SLOTS: usize = 4096;
/// The size of the file. It takes memory only where keys are.
const SIZE: NonZeroUsize = NonZeroUsize::MIN.saturating_add((1 << 30) - 1);
/// What one user's keys may take of it.
const SIZE_PER_UID: usize = SIZE.get() / 4;
/// Before each slot's content.
const HEAD: usize = 16;
/// Lengths of slots are multiples of this, so that few are left unused for want of a key of their size.
const STEP: usize = 256;
/// A table of less than this is left as it is, however little of it is used.
const LOOSE: usize = 1 << 24;
/// The longest slot: a key of RSA with 8192 bits, and a chain of certificates with many names.
const LONGEST: usize = 1 << 18;

/// Why keys cannot be kept, or not be taken back.
#[derive(Debug, Error)]
pub enum TableError {
    /// The kernel gives no such memory.
    #[error("there is no memory that can be kept: Linux 5.1 and later have it")]
    Memory(#[source] io::Error),
    /// It can be changed by somebody, so it is not what the agent before us wrote.
    #[error("the kept file is not sealed")]
    NotSealed,
    /// It was written by another version of the agent.
    #[error("the kept keys are in a form that this version does not know")]
    Version,
    /// It was kept over a reboot, which no process outlives.
    #[error("the keys were kept for another boot")]
    Boot,
    /// It is not what was written.
    #[error("the kept keys are damaged")]
    Damaged,
    /// It cannot be read.
    #[error("the kept keys cannot be read")]
    Read(#[source] io::Error),
    /// There is no room for one more.
    #[error("the keys that are held take all the room there is for them, or the user's part of it")]
    Full,
}

/// What a slot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The key of a process.
    Process,
    /// The key of a session.
    Session,
}

const EMPTY: u32 = 0;

impl Kind {
    fn code(self) -> u32 {
        match self {
            Self::Process => 1,
            Self::Session => 2,
        }
    }

    fn of(code: u32) -> Option<Self> {
        [Self::Process, Self::Session].into_iter().find(|kind| kind.code() == code)
    }
}

/// One key as it was found in a table.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) kind: Kind,
    /// What is public about it.
    pub(super) public: Vec<u8>,
    pub(super) pkcs8: Secret<Vec<u8>>,
}

/// The table this agent writes.
#[derive(Debug)]
pub struct Table {
    region: Region,
    /// Where the next slot is made.
    end: usize,
    /// Empty slots by length.
    empty: HashMap<usize, Vec<usize>>,
    /// By the name of the key.
    slots: HashMap<String, Slot>,
    /// What the slots of each user take.
    taken: HashMap<u32, usize>,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    at: usize,
    length: usize,
    /// Whose part it is of; sessions are counted by who keeps them.
    uid: Option<u32>,
}

impl Table {
    /// An empty one for this boot.
    ///
    /// # Errors
    /// The kernel has no such memory.
    pub fn new(boot: BootId) -> Result<Self, TableError> {
        let mut region = Region::new("tether-held", SIZE).map_err(TableError::Memory)?;
        let page = region.bytes_mut();
        page[..VERSION.len()].copy_from_slice(VERSION);
        let boot = boot.to_string();
        page[BOOT..BOOT + boot.len()].copy_from_slice(boot.as_bytes());
        Ok(Self { region, end: SLOTS, empty: HashMap::new(), slots: HashMap::new(), taken: HashMap::new() })
    }

    /// Writes a key by this name. When it returns, the key outlives the agent.
    pub(super) fn add(
        &mut self,
        name: &str,
        kind: Kind,
        uid: Option<u32>,
        public: &[u8],
        pkcs8: &[u8],
    ) -> Result<(), TableError> {
        // Whoever held that name before is wiped, not forgotten.
        self.wipe(name);
        let length = (HEAD + public.len() + pkcs8.len()).next_multiple_of(STEP);
        let taken = uid.map_or(0, |uid| self.taken.get(&uid).copied().unwrap_or_default());
        if length > LONGEST || taken + length > SIZE_PER_UID {
            return Err(TableError::Full);
        }
        let at = self.place(length)?;
        let slot = &mut self.region.bytes_mut()[at..at + length];
        for (field, value) in [(2, public.len()), (3, pkcs8.len())] {
            set(slot, field, u32::try_from(value).map_err(|_| TableError::Full)?);
        }
        slot[HEAD..HEAD + public.len()].copy_from_slice(public);
        slot[HEAD + public.len()..][..pkcs8.len()].copy_from_slice(pkcs8);
        // Killed before this, the slot is empty; after it, whole.
        compiler_fence(Ordering::SeqCst);
        set(slot, 1, kind.code());
        compiler_fence(Ordering::SeqCst);
        self.slots.insert(name.to_owned(), Slot { at, length, uid });
        if let Some(uid) = uid {
            self.taken.insert(uid, taken + length);
        }
        Ok(())
    }

    /// An empty slot of this length: one that was wiped, or a new one.
    fn place(&mut self, length: usize) -> Result<usize, TableError> {
        if let Some(at) = self.empty.get_mut(&length).and_then(Vec::pop) {
            return Ok(at);
        }
        let at = self.end;
        if at + length + HEAD > SIZE.get() {
            return Err(TableError::Full);
        }
        self.end += length;
        set(&mut self.region.bytes_mut()[at..], 0, u32::try_from(length).map_err(|_| TableError::Full)?);
        Ok(at)
    }

    /// Overwrites the key of this name with zeros, if there is one.
    pub(super) fn wipe(&mut self, name: &str) {
        let Some(Slot { at, length, uid }) = self.slots.remove(name) else { return };
        let slot = &mut self.region.bytes_mut()[at..at + length];
        set(slot, 1, EMPTY);
        compiler_fence(Ordering::SeqCst);
        slot[HEAD..].zeroize();
        self.empty.entry(length).or_default().push(at);
        if let Some(uid) = uid
            && let Some(taken) = self.taken.get_mut(&uid)
        {
            *taken -= length;
            if *taken == 0 {
                self.taken.remove(&uid);
            }
        }
    }

    /// Whether most of the memory it takes is of keys that were wiped.
    pub(super) fn is_loose(&self) -> bool {
        let used: usize = self.slots.values().map(|slot| slot.length).sum();
        self.end > LOOSE && used < self.end / 4
    }

    /// The same keys in a new table, without what was wiped.
    pub(super) fn compacted(&self, boot: BootId) -> Result<Self, TableError> {
        let mut new = Self::new(boot)?;
        for (name, Slot { at, length, uid }) in &self.slots {
            let slot = &self.region.bytes()[*at..at + length];
            let [_, code, public, pkcs8] = [0, 1, 2, 3].map(|field| field_of(slot, field));
            let kind = u32::try_from(code).ok().and_then(Kind::of).ok_or(TableError::Damaged)?;
            let (public, rest) = slot[HEAD..].split_at(public);
            new.add(name, kind, *uid, public, &rest[..pkcs8])?;
        }
        Ok(new)
    }
}

impl AsFd for Table {
    /// What the service manager is to keep.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.region.as_fd()
    }
}

/// Reads a table that an agent of this boot wrote, and nobody else could have changed.
pub(super) fn read(file: &File, boot: BootId) -> Result<Vec<Found>, TableError> {
    if !memfd::is_sealed(file) {
        return Err(TableError::NotSealed);
    }
    let size = usize::try_from(file.metadata().map_err(TableError::Read)?.len()).map_err(|_| TableError::Damaged)?;
    let mut page = [0; SLOTS];
    if size < SLOTS {
        return Err(TableError::Version);
    }
    file.read_exact_at(&mut page, 0).map_err(TableError::Read)?;
    if !page.starts_with(VERSION) {
        return Err(TableError::Version);
    }
    if !page[BOOT..].starts_with(boot.to_string().as_bytes()) {
        return Err(TableError::Boot);
    }
    let (mut found, mut at) = (Vec::new(), SLOTS);
    while at + HEAD <= size {
        let mut head = [0; HEAD];
        file.read_exact_at(&mut head, at as u64).map_err(TableError::Read)?;
        let [length, code, public, pkcs8] = [0, 1, 2, 3].map(|field| field_of(&head, field));
        if length == 0 {
            return Ok(found);
        }
        let fits = length % STEP == 0 && length <= LONGEST && at + length <= size && HEAD + public + pkcs8 <= length;
        if !fits {
            return Err(TableError::Damaged);
        }
        if code != EMPTY as usize {
            let kind = u32::try_from(code).ok().and_then(Kind::of).ok_or(TableError::Damaged)?;
            let mut bytes = vec![0; public + pkcs8];
            let read = file.read_exact_at(&mut bytes, (at + HEAD) as u64);
            let bytes = Secret::new(bytes);
            read.map_err(TableError::Read)?;
            let (public, pkcs8) = bytes.expose().split_at(public);
            found.push(Found { kind, public: public.to_vec(), pkcs8: Secret::new(pkcs8.to_vec()) });
        }
        at += length;
    }
    Ok(found)
}

fn set(slot: &mut [u8], field: usize, value: u32) {
    slot[field * 4..field * 4 + 4].copy_from_slice(&value.to_le_bytes());
}

fn field_of(head: &[u8], field: usize) -> usize {
    let bytes = [0, 1, 2, 3].map(|byte| head[field * 4 + byte]);
    u32::from_le_bytes(bytes) as usize
}

#[cfg(test)]
mod tests;
