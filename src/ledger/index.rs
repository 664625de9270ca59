//! The ledger in memory: what stands, by id, by holder and by tie.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::Hash;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Key, Kind, Reason};
use crate::base::clock::Memory;
use crate::bond::Tie;
use crate::peer::InstanceId;
use crate::registry::Bind;

/// How long a row stays after its credential ended by itself: longer than any leeway for clocks, so that a token that
/// is accepted is found.
const GRACE: i64 = 120;
/// Rows are dropped together with those that end in the same so many seconds.
const BUCKET: i64 = 30;

/// When it is, in seconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Time {
    pub(super) now: i64,
    /// What ended before this is over even if the clock is set back ([`Clock::surely`]).
    ///
    /// [`Clock::surely`]: crate::base::clock::Clock::surely
    pub(super) surely: i64,
}

impl From<Memory> for Time {
    fn from(clock: Memory) -> Self {
        Self { now: clock.now().unix_timestamp(), surely: clock.surely().unix_timestamp() }
    }
}

/// What a credential was issued by.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct Grant {
    pub(super) spiffe_id: String,
    pub(super) entry: String,
    pub(super) owner: String,
    pub(super) bind: Bind,
    pub(super) single_use: bool,
}

/// One credential. What many have in common is named by number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Row {
    pub(super) kind: Kind,
    pub(super) binding: u8,
    pub(super) held: bool,
    pub(super) used: bool,
    /// The number of the instance that holds it.
    pub(super) holder: u32,
    pub(super) pid: i32,
    pub(super) uid: u32,
    pub(super) tie: u32,
    pub(super) grant: u32,
    pub(super) authority: u32,
    pub(super) audience: u32,
    pub(super) delegate: Option<u32>,
    pub(super) issued_at: i64,
    pub(super) not_after: i64,
    pub(super) ended: Option<(Reason, i64)>,
    /// Its end is written and not synced yet: nobody sees it, and a copy of the row must not be without it.
    #[serde(skip)]
    pub(super) ending: Option<(Reason, i64)>,
    /// When a verifier last asked about it. Not written down.
    #[serde(skip)]
    pub(super) last_asked: i64,
    /// In which file it is.
    #[serde(skip)]
    pub(super) file: u64,
    /// It is over by the clock, which may be wrong.
    #[serde(skip)]
    pub(super) is_doubtful: bool,
}

impl Row {
    /// Whether it is beyond its time by this clock.
    pub(super) fn is_over(&self, now: i64) -> bool {
        self.not_after + GRACE < now
    }

    /// Whether it can come to stand on a CRL.
    fn is_certificate(&self) -> bool {
        self.kind == Kind::X509
    }

    /// Whether it is on a CRL, now that it has ended. One whose key tether holds identifies nobody any more, but the
    /// connections it opened go on until their other end is told: all but those that ended without anybody's wrong.
    fn is_on_crl(&self) -> bool {
        let Some((reason, _)) = self.ended else { return false };
        let is_harmless = matches!(reason, Reason::AgentRestart | Reason::Rebooted | Reason::NotRecorded);
        self.is_certificate() && !(self.held && is_harmless)
    }
}

/// Values that rows share, each once, counted, by number.
#[derive(Debug)]
pub(super) struct Table<T> {
    items: HashMap<u32, Item<T>>,
    numbers: HashMap<Arc<T>, u32>,
    next: u32,
}

#[derive(Debug)]
struct Item<T> {
    value: Arc<T>,
    /// How many rows name it.
    rows: usize,
    /// The rows, where they are asked for by this value, and some that are gone.
    keys: Vec<Key>,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { items: HashMap::new(), numbers: HashMap::new(), next: 0 }
    }
}

impl<T: Eq + Hash> Table<T> {
    /// The number of a value, old or new.
    pub(super) fn intern(&mut self, value: T) -> u32 {
        if let Some(number) = self.numbers.get(&value) {
            return *number;
        }
        let (value, number) = (Arc::new(value), self.next);
        self.next = self.next.wrapping_add(1);
        self.numbers.insert(value.clone(), number);
        self.items.insert(number, Item { value, rows: 0, keys: Vec::new() });
        number
    }

    pub(super) fn get(&self, number: u32) -> Option<&Arc<T>> {
        self.items.get(&number).map(|item| &item.value)
    }

    /// Every value that a row names.
    pub(super) fn values(&self) -> impl Iterator<Item = &T> {
        self.items.values().map(|item| &*item.value)
    }

    fn number(&self, value: &T) -> Option<u32> {
        self.numbers.get(value).copied()
    }

    fn keys(&self, number: u32) -> &[Key] {
        self.items.get(&number).map_or(&[], |item| &item.keys)
    }

    fn link(&mut self, number: u32) {
        if let Some(item) = self.items.get_mut(&number) {
            item.rows += 1;
        }
    }

    fn link_key(&mut self, number: u32, key: Key, rows: &HashMap<Key, Row>) {
        if let Some(item) = self.items.get_mut(&number) {
            item.rows += 1;
            if item.keys.len() > 2 * item.rows + 16 {
                item.keys.retain(|key| rows.contains_key(key));
            }
            item.keys.push(key);
        }
    }

    /// Forgets a value that no row names.
    fn forget_unused(&mut self, number: u32) {
        if self.items.get(&number).is_some_and(|item| item.rows == 0)
            && let Some(item) = self.items.remove(&number)
        {
            self.numbers.remove(&item.value);
        }
    }

    fn forget_all_unused(&mut self) {
        let unused = self.items.iter().filter(|(_, item)| item.rows == 0).map(|(number, _)| *number);
        for number in unused.collect::<Vec<_>>() {
            self.forget_unused(number);
        }
    }

    /// One row less names it.
    fn release(&mut self, number: u32) {
        if let Some(item) = self.items.get_mut(&number) {
            item.rows = item.rows.saturating_sub(1);
        }
        self.forget_unused(number);
    }
}

/// What one user has of the ledger.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Share {
    /// Rows of what has not expired.
    pub(super) all: usize,
    /// Those that can come to stand on a CRL.
    pub(super) certificates: usize,
    /// Rows of what has expired by a clock that may be wrong.
    pub(super) doubtful: usize,
}

impl Share {
    fn add(&mut self, row: &Row) {
        if row.is_doubtful {
            self.doubtful += 1;
        } else {
            self.all += 1;
            self.certificates += usize::from(row.is_certificate());
        }
    }

    fn take(&mut self, row: &Row) {
        if row.is_doubtful {
            self.doubtful = self.doubtful.saturating_sub(1);
        } else {
            self.all = self.all.saturating_sub(1);
            self.certificates = self.certificates.saturating_sub(usize::from(row.is_certificate()));
        }
    }
}

/// Everything that is known, for as long as it matters.
#[derive(Debug, Default)]
pub(super) struct Index {
    rows: HashMap<Key, Row>,
    pub(super) holders: Table<InstanceId>,
    pub(super) ties: Table<Tie>,
    pub(super) grants: Table<Grant>,
    pub(super) authorities: Table<String>,
    pub(super) words: Table<Vec<String>>,
    by_uid: HashMap<u32, Share>,
    by_end: BTreeMap<i64, Vec<Key>>,
    /// Those that are over by a clock which may be wrong.
    doubtful: BTreeMap<i64, Vec<Key>>,
    /// Ended certificates, for CRLs.
    revoked: HashSet<Key>,
}

impl Index {
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    pub(super) fn get(&self, key: &Key) -> Option<&Row> {
        self.rows.get(key)
    }

    pub(super) fn get_mut(&mut self, key: &Key) -> Option<&mut Row> {
        self.rows.get_mut(key)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Key, &Row)> {
        self.rows.iter()
    }

    /// Puts a row in, or in the place of the same one from an older file.
    pub(super) fn insert(&mut self, key: Key, mut row: Row) {
        if let Some(former) = self.rows.get(&key) {
            // What ended does not come back by being written again.
            row.ended = former.ended.or(row.ended);
            row.used |= former.used;
        }
        let rows = &self.rows;
        self.holders.link_key(row.holder, key, rows);
        self.ties.link_key(row.tie, key, rows);
        self.grants.link(row.grant);
        self.authorities.link(row.authority);
        self.by_uid.entry(row.uid).or_default().add(&row);
        self.words.link(row.audience);
        if let Some(delegate) = row.delegate {
            self.words.link(delegate);
        }
        self.by_end.entry((row.not_after + GRACE).div_euclid(BUCKET)).or_default().push(key);
        if row.is_on_crl() {
            self.revoked.insert(key);
        }
        // Last: what both name must not be forgotten in between.
        if let Some(former) = self.rows.insert(key, row) {
            self.unlink(&former);
        }
    }

    /// Forgets what was interned for rows that were not put in.
    pub(super) fn forget_unused(&mut self) {
        self.holders.forget_all_unused();
        self.ties.forget_all_unused();
        self.grants.forget_all_unused();
        self.authorities.forget_all_unused();
        self.words.forget_all_unused();
    }

    fn unlink(&mut self, row: &Row) {
        self.holders.release(row.holder);
        self.ties.release(row.tie);
        self.grants.release(row.grant);
        self.authorities.release(row.authority);
        if let Some(share) = self.by_uid.get_mut(&row.uid) {
            share.take(row);
            if *share == Share::default() {
                self.by_uid.remove(&row.uid);
            }
        }
        self.words.release(row.audience);
        if let Some(delegate) = row.delegate {
            self.words.release(delegate);
        }
    }

    /// Drops the rows whose time is over for sure, and tells `dropped` the file of each: what was revoked must not come back
    /// with a clock that is set back. Of those that are over by the clock alone, no user has more than `most_doubtful` tokens:
    /// what is not in the ledger does not stand.
    pub(super) fn expire(&mut self, time: Time, most_doubtful: usize, mut dropped: impl FnMut(u64)) {
        while let Some((end, keys)) = first_before(&mut self.by_end, time.now) {
            for key in keys {
                // A row that was put in twice is in two buckets, or was dropped with the first.
                let Some(row) = self.rows.get(&key).filter(|row| !row.is_doubtful && row.is_over(time.now)) else {
                    continue;
                };
                let is_too_much = !row.is_certificate() && self.share(row.uid).doubtful >= most_doubtful;
                if is_too_much || row.is_over(time.surely) {
                    self.drop_row(&key, &mut dropped);
                } else {
                    self.doubt(key, end);
                }
            }
        }
        while let Some((_, keys)) = first_before(&mut self.doubtful, time.surely) {
            keys.iter().for_each(|key| self.drop_row(key, &mut dropped));
        }
    }

    fn drop_row(&mut self, key: &Key, dropped: &mut impl FnMut(u64)) {
        if let Some(row) = self.rows.remove(key) {
            self.unlink(&row);
            self.revoked.remove(key);
            dropped(row.file);
        }
    }

    /// A row is over by the clock: it is kept, and takes nothing any more of what its user may have.
    fn doubt(&mut self, key: Key, end: i64) {
        let Some(row) = self.rows.get_mut(&key) else { return };
        let share = self.by_uid.entry(row.uid).or_default();
        share.take(row);
        row.is_doubtful = true;
        share.add(row);
        self.doubtful.entry(end).or_default().push(key);
    }

    /// Ends a credential; whether it stood, and whether that belongs on a CRL.
    pub(super) fn end(&mut self, key: &Key, reason: Reason, at: i64) -> (bool, bool) {
        let Some(row) = self.rows.get_mut(key).filter(|row| row.ended.is_none()) else { return (false, false) };
        row.ended = Some((reason, at));
        let on_crl = row.is_on_crl() && self.revoked.insert(*key);
        (true, on_crl)
    }

    pub(super) fn revoked(&self) -> impl Iterator<Item = (&Key, &Row)> {
        self.revoked.iter().filter_map(|key| Some((key, self.rows.get(key)?)))
    }

    /// What a user has of it.
    pub(super) fn share(&self, uid: u32) -> Share {
        self.by_uid.get(&uid).copied().unwrap_or_default()
    }

    /// The standing rows of an instance.
    pub(super) fn held_by(&self, instance: &InstanceId) -> Vec<Key> {
        let Some(number) = self.holders.number(instance) else { return Vec::new() };
        let standing = |key: &&Key| self.rows.get(key).is_some_and(|row| row.ended.is_none());
        self.holders.keys(number).iter().filter(standing).copied().collect()
    }

    /// The standing rows of a tie, and the end of the last of them.
    pub(super) fn tied_to(&self, tie: &Tie) -> (Vec<Key>, Option<i64>) {
        let Some(number) = self.ties.number(tie) else { return (Vec::new(), None) };
        let standing = |key: &&Key| self.rows.get(key).is_some_and(|row| row.ended.is_none());
        let keys: Vec<Key> = self.ties.keys(number).iter().filter(standing).copied().collect();
        let last = keys.iter().filter_map(|key| Some(self.rows.get(key)?.not_after)).max();
        (keys, last)
    }

    /// Everything that something standing is tied to.
    pub(super) fn standing_ties(&self) -> Vec<Tie> {
        let items = self.ties.items.values();
        let stands = |key: &Key| self.rows.get(key).is_some_and(|row| row.ended.is_none());
        items.filter(|item| item.keys.iter().any(stands)).map(|item| (*item.value).clone()).collect()
    }
}

/// Takes the first bucket out, if its time is over.
fn first_before(buckets: &mut BTreeMap<i64, Vec<Key>>, now: i64) -> Option<(i64, Vec<Key>)> {
    let first = buckets.first_entry()?;
    ((first.key() + 1) * BUCKET <= now).then(|| first.remove_entry())
}
