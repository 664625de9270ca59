//! What was issued to whom, until when, and whether it still stands.
//!
//! Every credential is written down before it is released: by id, by the instance that holds it, by what it is tied to.
//! A JWT-SVID, a WIT or a certificate of this node that is not in the ledger does not stand.
//!
//! # What survives what
//! A record is in the kernel's hands (`write(2)`) before what it is about is released, so it survives the death of the
//! agent; it is synced within [`SYNC_WITHIN`], so it survives a loss of power unless that comes first, and then the
//! reboot has ended every instance. Revocations by an operator or by entries are synced before anybody sees them. Ends of
//! processes and units are seen at once: whoever is dead stays dead, and a restart finds out again.
//!
//! Files that are damaged, cut or missing are noticed when it is opened: everything issued before has ended then
//! ([`Ledger::repaired`]).
//!
//! # What it does not
//! It does not watch anything: `ends` tells it what ended. It knows nothing of other nodes.

mod credential;
mod error;
mod index;
mod limits;
mod log;
mod record;
mod repair;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use tokio::sync::{Notify, mpsc, watch};

pub use self::credential::{Credential, Issued, Kind, Reason, RevokedCertificate, Standing};
pub use self::error::LedgerError;
use self::index::{Grant, Index, Row};
pub use self::limits::Limits;
use self::log::{Log, Opened};
use self::repair::{Head, Heading};
pub use self::repair::{last_clock, mark_restored};
use crate::base::clock::Clock;
use crate::base::drain;
use crate::base::durable::{self, Syncer};
use crate::base::entropy::hex;
use crate::base::text::chain;
use crate::bond::Tie;
use crate::peer::{Instance, InstanceId};
use crate::sys::BootId;

/// Records are on disk at the latest this long after they were written.
pub const SYNC_WITHIN: Duration = Duration::from_millis(100);

/// So many credentials are looked at before others have their turn.
const AT_A_TIME: usize = 256;

/// The random part of an id.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
struct Key([u8; 16]);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

/// What was issued. Clones are the same ledger.
#[derive(Clone, Debug)]
pub struct Ledger(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    node: String,
    clock: Clock,
    state: Mutex<State>,
    dirty: Notify,
    /// Counts revocations of what living processes may have.
    revocations: watch::Sender<u64>,
    /// Counts changes of what CRLs say.
    crl: watch::Sender<u64>,
    new_ties: mpsc::UnboundedSender<Tie>,
    limits: Limits,
    dir: PathBuf,
    heading: Mutex<Heading>,
    repaired: Option<String>,
}

#[derive(Debug)]
struct State {
    index: Index,
    log: Log,
    /// The ties that somebody watches.
    watched: HashSet<Tie>,
}

/// Ties that got their first credential and must be watched. What stood at the start is among them.
pub type NewTies = mpsc::UnboundedReceiver<Tie>;

impl Ledger {
    /// Reads what is there and begins to write. What an earlier boot left standing has ended, unless it is tied to the
    /// node. Blocks.
    pub fn open(
        dir: &Path,
        node: &str,
        boot: BootId,
        clock: Clock,
        limits: Limits,
    ) -> Result<(Self, NewTies), LedgerError> {
        let (now, memory) = (clock.now().unix_timestamp(), clock.memory());
        let mut index = Index::default();
        let Opened { log, rebooted, repaired } = Log::open(dir, node, boot, &clock, &mut index)?;
        // Nothing of the newest file is synced yet.
        let files = log.extent().into_iter();
        let newest = log.newest();
        let files = files.map(|(number, bytes)| (number, if number == newest { 0 } else { bytes }));
        let heading = Mutex::new(Heading::begin(dir, Head::new(node, files.collect(), Some(memory)))?);
        let (new_ties, watch) = mpsc::unbounded_channel();
        let state = Mutex::new(State { index, log, watched: HashSet::new() });
        let ledger = Self(Arc::new(Shared {
            node: node.to_owned(),
            clock,
            state,
            dirty: Notify::new(),
            revocations: watch::Sender::new(0),
            crl: watch::Sender::new(0),
            new_ties,
            limits,
            dir: dir.to_owned(),
            heading,
            repaired,
        }));
        if !rebooted.is_empty() {
            ledger.lock().log.ended(&rebooted, Reason::Rebooted, now)?;
            ledger.end(&mut ledger.lock(), &rebooted, Reason::Rebooted, now);
        }
        let standing = ledger.lock().index.standing_ties();
        for tie in standing {
            ledger.lock().watched.insert(tie.clone());
            // The receiver is still here.
            let _ = ledger.0.new_ties.send(tie);
        }
        Ok((ledger, watch))
    }

    /// What was found damaged when it was opened, and what that means.
    pub fn repaired(&self) -> Option<&str> {
        self.0.repaired.as_deref()
    }

    /// What is weaker than it should be, and what to do about it.
    pub fn weaknesses(&self) -> Vec<String> {
        let said = |path: PathBuf| {
            let path = path.display();
            format!(
                "the ledger was damaged, and what was issued before has ended: look into `{path}`, and remove it then"
            )
        };
        log::set_aside(&self.0.dir).into_iter().map(said).collect()
    }

    /// Writes a credential down. When this returns, it survives the death of the agent and stands.
    pub fn record(&self, instance: &Instance, tie: &Tie, issued: &Issued<'_>) -> Result<(), LedgerError> {
        let key = self.key(issued.id).ok_or_else(|| LedgerError::Id(issued.id.to_owned()))?;
        let mut state = self.lock();
        let State { index, log, watched } = &mut *state;
        let limits = &self.0.limits;
        index.expire(self.0.clock.memory().into(), limits.credentials_per_uid, |file| log.row_left(file));
        limits.check(index, issued)?;
        let mut row = Row {
            kind: issued.kind,
            binding: issued.binding,
            held: issued.held,
            used: false,
            holder: index.holders.intern(*instance.id()),
            pid: instance.pid(),
            uid: issued.uid,
            tie: index.ties.intern(tie.clone()),
            grant: index.grants.intern(Grant {
                spiffe_id: issued.spiffe_id.to_string(),
                entry: issued.entry.id().to_string(),
                owner: issued.entry.owner().unwrap_or_default().to_owned(),
                bind: issued.entry.bind(),
                single_use: issued.single_use,
            }),
            authority: index.authorities.intern(issued.authority.to_owned()),
            audience: index.words.intern(issued.audience.to_vec()),
            delegate: issued.delegate.map(|delegate| index.words.intern(vec![delegate.to_string()])),
            issued_at: issued.issued_at.unix_timestamp(),
            not_after: issued.not_after.unix_timestamp(),
            ended: None,
            ending: None,
            last_asked: 0,
            file: 0,
            is_doubtful: false,
        };
        if let Err(error) = log.issued(index, key, &mut row) {
            index.forget_unused();
            return Err(error);
        }
        index.insert(key, row);
        // It is written: whether an older one could be written again says nothing about it.
        if let Err(error) = log.carry_over(index) {
            tracing::warn!(error = %chain(&error), "old files of the ledger cannot be given up, trying again later");
        }
        if watched.insert(tie.clone()) {
            // Without a receiver the agent is stopping, and the next start watches it.
            let _ = self.0.new_ties.send(tie.clone());
        }
        drop(state);
        self.0.dirty.notify_one();
        Ok(())
    }

    /// Ends a credential that was written down and not released.
    pub fn withdraw(&self, id: &str, reason: Reason) -> Result<(), LedgerError> {
        let Some(key) = self.key(id) else { return Ok(()) };
        let now = self.now();
        let mut state = self.lock();
        self.end(&mut state, &[key], reason, now);
        state.log.ended(&[key], reason, now)
    }

    /// Whether a credential stands.
    pub fn standing(&self, id: &str) -> Standing {
        let Some(key) = self.key(id) else { return Standing::Unknown };
        self.lock().index.get(&key).map_or(Standing::Unknown, standing)
    }

    /// The same, because a verifier asks: notes when.
    pub fn asked(&self, id: &str) -> Standing {
        let Some(key) = self.key(id) else { return Standing::Unknown };
        let now = self.now();
        let mut state = self.lock();
        let Some(row) = state.index.get_mut(&key) else { return Standing::Unknown };
        row.last_asked = now;
        standing(row)
    }

    /// The same, and when it stands and is good for one use only, this was the use.
    pub fn use_once(&self, id: &str) -> Result<Standing, LedgerError> {
        let Some(key) = self.key(id) else { return Ok(Standing::Unknown) };
        let now = self.now();
        let mut state = self.lock();
        let State { index, log, .. } = &mut *state;
        let Some(row) = index.get_mut(&key) else { return Ok(Standing::Unknown) };
        row.last_asked = now;
        let stands = standing(row);
        let grant = row.grant;
        if stands == Standing::Stands && index.grants.get(grant).is_some_and(|grant| grant.single_use) {
            log.used(key)?;
            if let Some(row) = index.get_mut(&key) {
                row.used = true;
            }
            self.0.dirty.notify_one();
        }
        Ok(stands)
    }

    /// Who holds a credential.
    pub fn holder(&self, id: &str) -> Option<InstanceId> {
        let key = self.key(id)?;
        let state = self.lock();
        let row = state.index.get(&key)?;
        Some(**state.index.holders.get(row.holder)?)
    }

    /// Whether this node made an id, whatever became of it.
    pub fn is_of_this_node(&self, id: &str) -> bool {
        id.split_once('.').is_some_and(|(node, _)| node == self.0.node)
    }

    /// One credential.
    pub fn credential(&self, id: &str) -> Option<Credential> {
        let key = self.key(id)?;
        let state = self.lock();
        self.show(&state.index, &key, state.index.get(&key)?)
    }

    /// Shows every credential that has not ended by itself to `visit`, in no order: those that are there when it begins,
    /// each as it is when its turn comes.
    pub fn each(&self, visit: impl FnMut(Credential)) {
        self.since(self.now()).for_each(visit);
    }

    /// The same, and what has ended by itself only if the clock is right: for whoever ends credentials. What is passed over
    /// stands again when the clock is set back.
    pub fn each_in_doubt_too(&self, visit: impl FnMut(Credential)) {
        self.since(self.0.clock.surely().unix_timestamp()).for_each(visit);
    }

    /// What had not ended by itself then.
    fn since(&self, then: i64) -> impl Iterator<Item = Credential> {
        self.in_small_steps(move |index, key, row| {
            (row.not_after >= then).then(|| self.show(index, key, row)).flatten()
        })
    }

    /// What `pick` makes of every row, a few at a time: whoever issues meanwhile waits for no more than these.
    fn in_small_steps<T>(&self, pick: impl Fn(&Index, &Key, &Row) -> Option<T>) -> impl Iterator<Item = T> {
        let keys: Vec<Key> = self.lock().index.iter().map(|(key, _)| *key).collect();
        let mut rest = keys.into_iter();
        let few = move || {
            let some: Vec<Key> = rest.by_ref().take(AT_A_TIME).collect();
            let state = self.lock();
            let picked = some.iter().filter_map(|key| pick(&state.index, key, state.index.get(key)?));
            (!some.is_empty()).then(|| picked.collect::<Vec<T>>())
        };
        std::iter::from_fn(few).flatten()
    }

    /// The standing credentials that `wanted` names, the newest first, as [`Self::each_in_doubt_too`] shows them.
    pub fn credentials(&self, wanted: impl Fn(&Credential) -> bool) -> Vec<Credential> {
        let mut found = Vec::new();
        self.each_in_doubt_too(|credential| {
            if credential.standing == Standing::Stands && wanted(&credential) {
                found.push(credential);
            }
        });
        found.sort_by(|a, b| (b.issued_at, &b.id).cmp(&(a.issued_at, &a.id)));
        found
    }

    /// Ends the [`Self::credentials`] that `wanted` names, and returns them. When this returns, that survives a loss of
    /// power; nobody sees it before.
    pub async fn revoke(
        &self,
        wanted: impl Fn(&Credential) -> bool,
        reason: Reason,
    ) -> Result<Vec<Credential>, LedgerError> {
        let found = self.credentials(wanted);
        let keys: Vec<Key> = found.iter().filter_map(|credential| self.key(&credential.id)).collect();
        self.end_durably(keys, reason).await?;
        Ok(found)
    }

    /// Ends what an instance holds of other identities than these, each a registration entry and a SPIFFE ID.
    pub async fn keep_only(
        &self,
        instance: &InstanceId,
        kept: impl Fn(&str, &str) -> bool,
        reason: Reason,
    ) -> Result<usize, LedgerError> {
        let keys: Vec<Key> = {
            let state = self.lock();
            let grant = |key: &Key| state.index.grants.get(state.index.get(key)?.grant);
            let goes = |key: &Key| grant(key).is_some_and(|grant| !kept(&grant.entry, &grant.spiffe_id));
            state.index.held_by(instance).into_iter().filter(goes).collect()
        };
        let ended = keys.len();
        self.end_durably(keys, reason).await?;
        Ok(ended)
    }

    /// The registration entries and the authorities of everything that has not expired, whether it stands or not.
    pub fn standing_on(&self) -> (HashSet<String>, HashSet<String>) {
        let state = self.lock();
        let entries = state.index.grants.values().map(|grant| grant.entry.clone()).collect();
        (entries, state.index.authorities.values().cloned().collect())
    }

    /// The instances that hold something that stands and was issued by one of these entries, with their process numbers.
    pub fn holders_of(&self, entries: &HashSet<String>) -> HashMap<InstanceId, i32> {
        let of_them = |index: &Index, _: &Key, row: &Row| {
            let grant = index.grants.get(row.grant)?;
            let holder = index.holders.get(row.holder)?;
            (row.ended.is_none() && entries.contains(&grant.entry)).then_some((**holder, row.pid))
        };
        self.in_small_steps(of_them).collect()
    }

    /// Ends everything that is tied to this, because it ended. Seen at once: see the module's promises.
    pub fn tie_ended(&self, tie: &Tie, reason: Reason) -> Result<usize, LedgerError> {
        let now = self.now();
        let mut state = self.lock();
        state.watched.remove(tie);
        let keys = state.index.tied_to(tie).0;
        if keys.is_empty() {
            return Ok(0);
        }
        // What is dead must not pass for living because a disk is full: first it ends, then that is written.
        let ended = self.end(&mut state, &keys, reason, now);
        let State { index, log, .. } = &mut *state;
        log.tie_ended(index, tie, reason, now)?;
        drop(state);
        self.0.dirty.notify_one();
        Ok(ended)
    }

    /// Whoever watches a tie may stop when nothing stands that is tied to it; otherwise not before then has surely come.
    pub fn let_go(&self, tie: &Tie) -> Result<(), OffsetDateTime> {
        let surely = self.0.clock.surely().unix_timestamp();
        let mut state = self.lock();
        match state.index.tied_to(tie).1 {
            Some(last) if last >= surely => Err(at(last + 1)),
            _ => {
                state.watched.remove(tie);
                Ok(())
            }
        }
    }

    /// Counts revocations of what living processes may have: streams look again.
    pub fn revocations(&self) -> watch::Receiver<u64> {
        self.0.revocations.subscribe()
    }

    /// The ended certificates of an authority that are not over, for its CRL.
    pub fn revoked(&self, authority: &str) -> Vec<RevokedCertificate> {
        let now = self.now();
        let state = self.lock();
        let of_it = |row: &Row| {
            row.not_after >= now && state.index.authorities.get(row.authority).is_some_and(|name| **name == authority)
        };
        let line = |(key, row): (&Key, &Row)| {
            let (reason, since) = row.ended.filter(|_| of_it(row))?;
            let (since, not_after) = (at(since), at(row.not_after));
            Some(RevokedCertificate { serial: hex(&key.0), at: since, not_after, reason })
        };
        let mut lines: Vec<RevokedCertificate> = state.index.revoked().filter_map(line).collect();
        lines.sort_by(|a, b| (a.at, &a.serial).cmp(&(b.at, &b.serial)));
        lines
    }

    /// Counts changes of what [`Self::revoked`] says.
    pub fn crl_changes(&self) -> watch::Receiver<u64> {
        self.0.crl.subscribe()
    }

    /// How many credentials it knows, and how many bytes its files have.
    pub fn size(&self) -> (usize, u64) {
        let state = self.lock();
        (state.index.len(), state.log.bytes())
    }

    /// Syncs what was written, at the latest [`SYNC_WITHIN`] after it was, until the drain; then once more.
    pub async fn keep_synced(&self, mut drain: drain::Watcher) {
        loop {
            tokio::select! {
                () = drain.draining() => break,
                () = self.0.dirty.notified() => {}
            }
            // One sync for all that is written meanwhile.
            tokio::select! {
                () = drain.draining() => break,
                () = tokio::time::sleep(SYNC_WITHIN / 2) => {}
            }
            self.sync().await;
        }
        self.sync().await;
    }

    /// Puts on disk what was written.
    pub async fn sync(&self) {
        if let Err(error) = self.sync_now().await {
            tracing::error!(error = %chain(&error), "the ledger cannot be synced: what was issued just now may not survive a loss of power");
        }
    }

    async fn end_durably(&self, keys: Vec<Key>, reason: Reason) -> Result<(), LedgerError> {
        if keys.is_empty() {
            return Ok(());
        }
        let now = self.now();
        {
            let mut state = self.lock();
            state.log.ended(&keys, reason, now)?;
            for key in &keys {
                if let Some(row) = state.index.get_mut(key) {
                    row.ending = Some((reason, now));
                }
            }
        }
        self.sync_now().await?;
        self.end(&mut self.lock(), &keys, reason, now);
        Ok(())
    }

    /// Makes an end visible.
    fn end(&self, state: &mut State, keys: &[Key], reason: Reason, at: i64) -> usize {
        let (mut ended, mut on_crl) = (0, false);
        for key in keys {
            let (stood, listed) = state.index.end(key, reason, at);
            ended += usize::from(stood);
            on_crl |= listed;
        }
        if on_crl {
            self.0.crl.send_modify(|count| *count += 1);
        }
        if ended > 0 && reason.may_meet_the_living() {
            self.0.revocations.send_modify(|count| *count += 1);
        }
        ended
    }

    async fn sync_now(&self) -> Result<(), LedgerError> {
        let unsynced = self.lock().log.take_unsynced();
        let (shared, clock) = (self.0.clone(), self.0.clock.memory());
        let sync = move || {
            let synced = unsynced.files.iter().try_for_each(Syncer::sync);
            // Only now: what was carried over from them is on disk.
            let removed = synced.and_then(|()| {
                shared.heading.lock().unwrap_or_else(PoisonError::into_inner).synced(&unsynced, clock)?;
                unsynced.dead.iter().try_for_each(|number| durable::remove(&log::path(&shared.dir, *number)))
            });
            (unsynced.files, removed)
        };
        let (files, synced) = tokio::task::spawn_blocking(sync).await.map_err(|_| LedgerError::Stopping)?;
        if synced.is_err() {
            self.lock().log.still_unsynced(files);
        }
        Ok(synced?)
    }

    fn show(&self, index: &Index, key: &Key, row: &Row) -> Option<Credential> {
        let (holder, grant) = (index.holders.get(row.holder)?, index.grants.get(row.grant)?);
        let delegate = row.delegate.and_then(|number| index.words.get(number)?.first().cloned());
        Some(Credential {
            id: self.id(row.kind, key),
            kind: row.kind,
            spiffe_id: grant.spiffe_id.clone(),
            entry: grant.entry.clone(),
            owner: grant.owner.clone(),
            audience: (**index.words.get(row.audience)?).clone(),
            instance: **holder,
            pid: row.pid,
            uid: row.uid,
            binding: row.binding,
            bind: grant.bind,
            tie: (**index.ties.get(row.tie)?).clone(),
            held: row.held,
            single_use: grant.single_use,
            authority: (**index.authorities.get(row.authority)?).clone(),
            issued_at: at(row.issued_at),
            not_after: at(row.not_after),
            standing: standing(row),
            last_asked: (row.last_asked > 0).then(|| at(row.last_asked)),
            delegate,
        })
    }

    fn id(&self, kind: Kind, key: &Key) -> String {
        match kind {
            Kind::X509 => hex(&key.0),
            Kind::Jwt | Kind::Wit => format!("{}.{}", self.0.node, hex(&key.0)),
        }
    }

    /// The random part of an id of this node.
    fn key(&self, id: &str) -> Option<Key> {
        let random = match id.split_once('.') {
            Some((node, random)) if node == self.0.node => random,
            Some(_) => return None,
            None => id,
        };
        let mut key = [0; 16];
        let digits = random.as_bytes();
        if digits.len() != 2 * key.len() {
            return None;
        }
        for (byte, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
            let digit = |at: usize| char::from(pair[at]).to_digit(16).filter(|_| !pair[at].is_ascii_uppercase());
            *byte = u8::try_from(digit(0)? << 4 | digit(1)?).ok()?;
        }
        Some(Key(key))
    }

    fn now(&self) -> i64 {
        self.0.clock.now().unix_timestamp()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn standing(row: &Row) -> Standing {
    match row.ended {
        Some((reason, since)) => Standing::Ended { reason, at: at(since) },
        None if row.used => Standing::Used,
        None => Standing::Stands,
    }
}

fn at(seconds: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}
