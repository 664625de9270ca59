//! The ledger on disk: a few append-only files, of which the oldest goes when nothing in it matters any more.
//!
//! INVARIANT: a record refers only to records of its own file or of older ones, and files go oldest first. So what is
//! left, read in order, says everything about the credentials that are left. Where it does not, see [`super::repair`].

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};

use super::index::{Index, Row, Time};
use super::record::{Record, VERSION};
use super::repair::{self, Damage, Head};
use super::{Key, LedgerError, Reason};
use crate::base::clock::Clock;
use crate::base::durable::{self, Appender, Syncer};
use crate::base::frames::{self, Unreadable};
use crate::bond::Tie;
use crate::sys::BootId;

/// A file is left alone once it has so many bytes, and a new one begun.
const FILE_BYTES: u64 = 1024 * 1024;
/// Files may have so many bytes in all, and twice what is alive in them.
const SLACK_BYTES: u64 = 8 * FILE_BYTES;
/// How many rows of the oldest file one record carries over at most: nobody waits for a whole file.
const CARRIED_AT_ONCE: usize = 64;
/// How many ends one record has at most: files stay readable, and one that was not written whole looks like no other.
const ENDED_AT_ONCE: usize = 1024;
/// No file is larger, by far.
pub(super) const MAX_FILE: u64 = 64 * FILE_BYTES;
const SUFFIX: &str = ".log";
/// Follows the name of a file that was set aside.
const ASIDE: &str = ".damaged";

/// The files, and what the newest has declared.
#[derive(Debug)]
pub(super) struct Log {
    dir: PathBuf,
    node: String,
    boot: BootId,
    file: Appender,
    number: u64,
    declared: Declared,
    /// The rows that were written to each file, the newest file's last.
    files: VecDeque<File>,
    unsynced: Vec<Syncer>,
    /// How many syncs have begun.
    syncs: u64,
    buffer: Vec<u8>,
    /// What is left to look at in the oldest file, while its rows are carried over.
    carrying: Vec<Key>,
}

/// What a sync is to do: files to sync, and then files to remove, whose rows are dead or in the former.
#[derive(Debug)]
pub(super) struct Unsynced {
    pub(super) files: Vec<Syncer>,
    /// By number.
    pub(super) dead: Vec<u64>,
    /// The turn of this sync: of two the later may be done first.
    pub(super) turn: u64,
    /// What is there and on disk after the sync: the numbers and lengths of the files.
    pub(super) through: Vec<(u64, u64)>,
}

/// What was read.
pub(super) struct Opened {
    pub(super) log: Log,
    /// What another boot left standing and is not tied to the node: it has ended.
    pub(super) rebooted: Vec<Key>,
    /// What was found damaged; nothing stands then.
    pub(super) repaired: Option<String>,
}

#[derive(Debug)]
struct File {
    number: u64,
    bytes: u64,
    keys: Vec<Key>,
    /// How many of them are still in the index as rows of this file.
    living: usize,
}

#[derive(Debug, Default)]
struct Declared {
    holders: HashSet<u32>,
    ties: HashSet<u32>,
    grants: HashSet<u32>,
    authorities: HashSet<u32>,
    words: HashSet<u32>,
}

impl Log {
    /// Reads all files into `index` and begins a new one.
    pub(super) fn open(
        dir: &Path,
        node: &str,
        boot: BootId,
        clock: &Clock,
        index: &mut Index,
    ) -> Result<Opened, LedgerError> {
        let time = Time::from(clock.memory());
        durable::private_dir(dir)?;
        let head = Head::read(dir, node);
        let mut numbers = numbers(dir)?;
        numbers.sort_unstable();
        let mut files = VecDeque::new();
        let (mut damage, mut cut) = (Vec::new(), Vec::new());
        for number in &numbers {
            let bytes = durable::read(&path(dir, *number), MAX_FILE)?;
            let head = head.as_ref();
            let mut reader = Reader { index, node, boot, time, file: *number, head, keys: Vec::new(), whole: 0 };
            let found = reader.read(&bytes, || path(dir, *number))?;
            let (keys, whole) = (reader.keys, reader.whole);
            files.push_back(File { number: *number, bytes: bytes.len() as u64, keys, living: 0 });
            if found.is_none() && (whole < bytes.len() as u64 || Some(number) == numbers.last()) {
                // What was not written whole is cut off, or the next start would take it for damage; and what an agent that
                // was killed did not sync is as good as what it did, from here on.
                Appender::resume(&path(dir, *number), whole)?.syncer().sync()?;
                cut.push((*number, whole));
            }
            damage.extend(found);
        }
        let found: Vec<(u64, u64)> = files.iter().map(|file| (file.number, file.bytes)).collect();
        damage.extend(repair::missing(&found, head.as_ref()));
        for (number, whole) in cut {
            if let Some(file) = files.iter_mut().find(|file| file.number == number) {
                file.bytes = whole;
            }
        }
        index.forget_unused();
        for (_, row) in index.iter() {
            if let Some(file) = files.iter_mut().find(|file| file.number == row.file) {
                file.living += 1;
            }
        }
        // Never the number of a file that is missing.
        let newest = numbers.last().copied().max(head.map(|head| head.newest())).unwrap_or(0);
        let number = newest + 1;
        let (file, begin) = begin(dir, number, node, boot)?;
        files.push_back(begin);
        let mut log = Self {
            dir: dir.to_owned(),
            node: node.to_owned(),
            boot,
            unsynced: vec![file.syncer()],
            syncs: 0,
            file,
            number,
            declared: Declared::default(),
            files,
            buffer: Vec::new(),
            carrying: Vec::new(),
        };
        if !damage.is_empty() {
            let repaired = Some(log.start_over(index, &damage, time.now)?);
            return Ok(Opened { log, rebooted: Vec::new(), repaired });
        }
        let of_other_boot =
            |row: &Row| index.ties.get(row.tie).and_then(|tie| tie.boot()).is_some_and(|tied| tied != boot);
        let rebooted = index.iter().filter(|(_, row)| row.ended.is_none() && of_other_boot(row));
        let rebooted = rebooted.map(|(key, _)| *key).collect();
        Ok(Opened { log, rebooted, repaired: None })
    }

    /// Ends everything, writes it anew, and gives up the files there were. What a crash interrupts is done again by the next
    /// start.
    fn start_over(&mut self, index: &mut Index, damage: &[Damage], now: i64) -> Result<String, LedgerError> {
        let keys: Vec<Key> = index.iter().map(|(key, _)| *key).collect();
        for key in &keys {
            index.end(key, Reason::LedgerRepaired, now);
        }
        let first = self.number;
        for some in keys.chunks(CARRIED_AT_ONCE) {
            self.carry(index, some)?;
        }
        self.unsynced.iter().try_for_each(Syncer::sync)?;
        let mut aside = Vec::new();
        for number in damage.iter().filter_map(|damage| damage.file).collect::<BTreeSet<_>>() {
            let (from, to) = (path(&self.dir, number), self.dir.join(format!("{number:010}{SUFFIX}{ASIDE}")));
            durable::rename(&from, &to)?;
            aside.push(to);
        }
        let (old, new): (VecDeque<File>, _) = self.files.drain(..).partition(|file| file.number < first);
        self.files = new;
        for file in old {
            durable::remove(&path(&self.dir, file.number))?;
        }
        Ok(repair::said(damage, &aside))
    }

    /// Writes that a credential was issued; `row` gets the number of the file it is in.
    pub(super) fn issued(&mut self, index: &Index, key: Key, row: &mut Row) -> Result<(), LedgerError> {
        self.roll_when_full()?;
        self.put(index, key, row);
        self.append()?;
        self.row_came(key);
        Ok(())
    }

    /// Puts a row into the buffer.
    fn put(&mut self, index: &Index, key: Key, row: &mut Row) {
        self.declare(index, row);
        row.file = self.number;
        Record::Issued { key, row: row.clone() }.write(&mut self.buffer);
    }

    /// A row is in the newest file.
    fn row_came(&mut self, key: Key) {
        if let Some(file) = self.files.back_mut() {
            file.keys.push(key);
            file.living += 1;
        }
    }

    /// Writes that credentials ended. Of many, an error leaves some of them ended for the next start.
    pub(super) fn ended(&mut self, keys: &[Key], reason: Reason, at: i64) -> Result<(), LedgerError> {
        for some in keys.chunks(ENDED_AT_ONCE) {
            self.roll_when_full()?;
            Record::Ended { keys: some.to_vec(), reason, at }.write(&mut self.buffer);
            self.append()?;
        }
        Ok(())
    }

    /// Writes that everything tied to this ended.
    pub(super) fn tie_ended(
        &mut self,
        index: &mut Index,
        tie: &Tie,
        reason: Reason,
        at: i64,
    ) -> Result<(), LedgerError> {
        self.roll_when_full()?;
        let number = index.ties.intern(tie.clone());
        self.declare_tie(index, number);
        Record::TieEnded { tie: number, reason, at }.write(&mut self.buffer);
        self.append()
    }

    /// Writes that a single-use credential was used.
    pub(super) fn used(&mut self, key: Key) -> Result<(), LedgerError> {
        self.roll_when_full()?;
        Record::Used { key }.write(&mut self.buffer);
        self.append()
    }

    /// A row of this file is gone from the index, or in another file now.
    pub(super) fn row_left(&mut self, number: u64) {
        // Almost always one of the oldest.
        if let Some(file) = self.files.iter_mut().find(|file| file.number == number) {
            file.living = file.living.saturating_sub(1);
        }
    }

    /// Keeps the files few: when more than half of what is there is dead, carries what lives in the oldest file over into
    /// the newest, a few rows at a time. A file in which nothing lives is removed by the next sync.
    pub(super) fn carry_over(&mut self, index: &mut Index) -> Result<(), LedgerError> {
        if self.carrying.is_empty() && !self.is_wasteful() { Ok(()) } else { self.carry_the_oldest(index) }
    }

    /// Carries over the next rows of the oldest file that has any.
    pub(super) fn carry_the_oldest(&mut self, index: &mut Index) -> Result<(), LedgerError> {
        if self.carrying.is_empty() {
            let oldest = self.files.iter().find(|file| file.living > 0 && file.number != self.number);
            self.carrying = oldest.map(|file| file.keys.clone()).unwrap_or_default();
        }
        let first = self.carrying.len().saturating_sub(CARRIED_AT_ONCE);
        let keys = self.carrying.drain(first..).collect::<Vec<_>>();
        self.carry(index, &keys)
    }

    /// Writes rows of older files into the newest.
    fn carry(&mut self, index: &mut Index, keys: &[Key]) -> Result<(), LedgerError> {
        self.roll_when_full()?;
        let mut carried = Vec::new();
        for &key in keys {
            let Some(row) = index.get(&key).filter(|row| row.file != self.number) else { continue };
            let (from, mut row) = (row.file, row.clone());
            // The record of an end that nobody sees yet may be in a file that goes.
            row.ended = row.ended.or(row.ending);
            self.put(index, key, &mut row);
            carried.push((key, from));
        }
        self.append()?;
        for (key, from) in carried {
            self.row_left(from);
            self.row_came(key);
            if let Some(row) = index.get_mut(&key) {
                row.file = self.number;
            }
        }
        Ok(())
    }

    /// Whether more than half of the files, beyond some, is about what is dead.
    fn is_wasteful(&self) -> bool {
        let (mut bytes, mut living) = (0, 0);
        for file in self.files.iter().skip_while(|file| file.living == 0) {
            bytes += file.bytes;
            living += file.bytes * file.living as u64 / file.keys.len().max(1) as u64;
        }
        bytes > SLACK_BYTES + 2 * living
    }

    /// What is to be done so that everything written so far survives a loss of power.
    pub(super) fn take_unsynced(&mut self) -> Unsynced {
        let files = std::mem::take(&mut self.unsynced);
        self.unsynced.push(self.file.syncer());
        let mut dead = Vec::new();
        while self.files.len() > 1 && self.files.front().is_some_and(|file| file.living == 0) {
            dead.extend(self.files.pop_front().map(|file| file.number));
        }
        self.syncs += 1;
        Unsynced { files, dead, turn: self.syncs, through: self.extent() }
    }

    /// The number of the newest file.
    pub(super) fn newest(&self) -> u64 {
        self.number
    }

    /// The numbers and lengths of the files.
    pub(super) fn extent(&self) -> Vec<(u64, u64)> {
        self.files.iter().map(|file| (file.number, file.bytes)).collect()
    }

    /// The files: their names, where they are, and how many bytes they have.
    pub(super) fn files_now(&self) -> Vec<(String, PathBuf, u64)> {
        let file = |file: &File| {
            let path = path(&self.dir, file.number);
            (path.file_name().unwrap_or_default().to_string_lossy().into_owned(), path, file.bytes)
        };
        self.files.iter().map(file).collect()
    }

    /// The sync failed: the next one does it.
    pub(super) fn still_unsynced(&mut self, files: Vec<Syncer>) {
        self.unsynced.splice(0..0, files);
    }

    /// How many bytes the files have.
    pub(super) fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    fn declare(&mut self, index: &Index, row: &Row) {
        if self.declared.holders.insert(row.holder)
            && let Some(instance) = index.holders.get(row.holder)
        {
            Record::Holder { number: row.holder, instance: **instance }.write(&mut self.buffer);
        }
        self.declare_tie(index, row.tie);
        if self.declared.grants.insert(row.grant)
            && let Some(grant) = index.grants.get(row.grant)
        {
            Record::Grant { number: row.grant, grant: (**grant).clone() }.write(&mut self.buffer);
        }
        if self.declared.authorities.insert(row.authority)
            && let Some(id) = index.authorities.get(row.authority)
        {
            Record::Authority { number: row.authority, id: (**id).clone() }.write(&mut self.buffer);
        }
        for number in [Some(row.audience), row.delegate].into_iter().flatten() {
            if self.declared.words.insert(number)
                && let Some(words) = index.words.get(number)
            {
                Record::Words { number, words: (**words).clone() }.write(&mut self.buffer);
            }
        }
    }

    fn declare_tie(&mut self, index: &Index, number: u32) {
        if self.declared.ties.insert(number)
            && let Some(tie) = index.ties.get(number)
        {
            Record::Tie { number, tie: (**tie).clone() }.write(&mut self.buffer);
        }
    }

    /// Writes what is in the buffer, as a whole or not at all.
    fn append(&mut self) -> Result<(), LedgerError> {
        let written = self.file.append(&self.buffer);
        self.buffer.clear();
        if written.is_err() {
            // Declarations may be among what was not written: the next records declare again.
            self.declared = Declared::default();
        }
        written?;
        if let Some(file) = self.files.back_mut() {
            file.bytes = self.file.length();
        }
        Ok(())
    }

    /// Begins a new file when this one has enough. Before anything is written, so that a row is in the file it says.
    fn roll_when_full(&mut self) -> Result<(), LedgerError> {
        if self.file.length() < FILE_BYTES { Ok(()) } else { self.begin_anew() }
    }

    pub(super) fn begin_anew(&mut self) -> Result<(), LedgerError> {
        let number = self.number + 1;
        let (file, begin) = begin(&self.dir, number, &self.node, self.boot)?;
        self.unsynced.push(file.syncer());
        self.file = file;
        self.number = number;
        self.files.push_back(begin);
        self.declared = Declared::default();
        Ok(())
    }
}

/// A new file with its first record.
fn begin(dir: &Path, number: u64, node: &str, boot: BootId) -> Result<(Appender, File), LedgerError> {
    let mut buffer = Vec::new();
    Record::Begin { version: VERSION, node: node.to_owned(), boot: boot.to_string() }.write(&mut buffer);
    let path = path(dir, number);
    let begun = Appender::create(&path).and_then(|mut file| file.append(&buffer).map(|()| file));
    let file = begun.inspect_err(|_| {
        // Half a file would be in the way of the next try. Where it was not made, there is nothing to remove.
        let _ = durable::remove(&path);
    })?;
    let bytes = file.length();
    Ok((file, File { number, bytes, keys: Vec::new(), living: 0 }))
}

/// The files that were set aside and are still there.
pub(super) fn set_aside(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let names = entries.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    let mut aside: Vec<_> = names.filter(|path| path.to_string_lossy().ends_with(ASIDE)).collect();
    aside.sort();
    aside
}

pub(super) fn path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:010}{SUFFIX}"))
}

fn numbers(dir: &Path) -> Result<Vec<u64>, LedgerError> {
    let failed = |source| LedgerError::List { path: dir.to_owned(), source };
    let mut numbers = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        numbers.extend(name.to_str().and_then(|name| name.strip_suffix(SUFFIX)).and_then(|n| n.parse::<u64>().ok()));
    }
    Ok(numbers)
}

/// Reads one file into the index.
struct Reader<'a> {
    index: &'a mut Index,
    node: &'a str,
    boot: BootId,
    time: Time,
    file: u64,
    head: Option<&'a Head>,
    keys: Vec<Key>,
    /// How many bytes could be read.
    whole: u64,
}

impl Reader<'_> {
    /// Reads as far as it can be read, and says what is damaged.
    fn read(&mut self, mut bytes: &[u8], path: impl Fn() -> PathBuf) -> Result<Option<Damage>, LedgerError> {
        let whole = bytes.len();
        let mut names = Names::default();
        let mut same_boot = None;
        while !bytes.is_empty() {
            let at = whole - bytes.len();
            let (record, rest) = match Record::read(bytes) {
                Ok(read) => read,
                Err(unreadable) if self.is_damage(unreadable, bytes, at, same_boot) => return Ok(self.damaged(at)),
                // Nothing was answered on what follows: either it was not written whole when the agent died, or it was
                // not synced when the machine did, and a boot ends every instance. Revocations were synced, and with
                // them everything before.
                Err(_) => {
                    tracing::warn!(file = %path().display(), at, "the ledger ends in a record that was not written whole");
                    return Ok(None);
                }
            };
            bytes = rest;
            self.whole = (whole - bytes.len()) as u64;
            match (same_boot, record) {
                (None, Record::Begin { version: VERSION, node, boot }) if node == self.node => {
                    same_boot = Some(boot == self.boot.to_string());
                }
                (None, Record::Begin { .. }) => return Err(LedgerError::Foreign(path())),
                (Some(_), record) => {
                    if self.apply(record, &mut names).is_none() {
                        return Ok(self.damaged(at));
                    }
                }
                (None, _) => return Ok(self.damaged(at)),
            }
        }
        Ok(None)
    }

    /// Whether a record that cannot be read was once there whole.
    fn is_damage(&self, unreadable: Unreadable, rest: &[u8], at: usize, same_boot: Option<bool>) -> bool {
        match self.head {
            Some(head) if head.covers(self.file, at) => true,
            _ if unreadable == Unreadable::Torn && !frames::one_follows(rest) => false,
            // While the machine ran on, what was written is what is there. When it did not, what was not synced may be
            // anything.
            head => same_boot == Some(true) || head.is_none(),
        }
    }

    fn damaged(&self, at: usize) -> Option<Damage> {
        let what = format!("file {} is damaged at byte {at}", self.file);
        Some(Damage { file: Some(self.file), what })
    }

    /// `None` when the record refers to something that was not declared.
    fn apply(&mut self, record: Record, names: &mut Names) -> Option<()> {
        let find = |names: &HashMap<u32, u32>, number| names.get(&number).copied();
        match record {
            Record::Begin { .. } => return None,
            Record::Holder { number, instance } => {
                names.holders.insert(number, self.index.holders.intern(instance));
            }
            Record::Authority { number, id } => {
                names.authorities.insert(number, self.index.authorities.intern(id));
            }
            Record::Tie { number, tie } => drop(names.ties.insert(number, self.index.ties.intern(tie))),
            Record::Grant { number, grant } => drop(names.grants.insert(number, self.index.grants.intern(grant))),
            Record::Words { number, words } => drop(names.words.insert(number, self.index.words.intern(words))),
            Record::Issued { key, mut row } => {
                row.holder = find(&names.holders, row.holder)?;
                row.tie = find(&names.ties, row.tie)?;
                row.grant = find(&names.grants, row.grant)?;
                row.authority = find(&names.authorities, row.authority)?;
                row.audience = find(&names.words, row.audience)?;
                row.delegate = match row.delegate {
                    Some(number) => Some(find(&names.words, number)?),
                    None => None,
                };
                row.file = self.file;
                if row.is_over(self.time.surely) {
                    return Some(());
                }
                self.index.insert(key, row);
                self.keys.push(key);
            }
            Record::Ended { keys, reason, at } => {
                for key in keys {
                    self.index.end(&key, reason, at);
                }
            }
            Record::TieEnded { tie, reason, at } => {
                let tie = self.index.ties.get(find(&names.ties, tie)?)?.clone();
                for key in self.index.tied_to(&tie).0 {
                    self.index.end(&key, reason, at);
                }
            }
            Record::Used { key } => {
                if let Some(row) = self.index.get_mut(&key) {
                    row.used = true;
                }
            }
        }
        Some(())
    }
}

/// What the numbers of one file stand for in the index.
#[derive(Default)]
struct Names {
    holders: HashMap<u32, u32>,
    ties: HashMap<u32, u32>,
    grants: HashMap<u32, u32>,
    authorities: HashMap<u32, u32>,
    words: HashMap<u32, u32>,
}
