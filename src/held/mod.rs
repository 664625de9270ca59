//! Keys that never leave: made here, used here for the process they belong to, and wiped with it.
//!
//! Promises: a key belongs to one instance and one identity, or to one session. The former is found only by a handle,
//! which is no credential: the handle of somebody else's key is as good as none. Using a key takes a permit, which only
//! policy makes, and signs one of three things that are built or checked here: a WPT, a DPoP proof, a TLS 1.3
//! CertificateVerify. There is no way to sign other bytes and none to get a key out, but for the one table in memory that
//! carries keys over the end of the agent (see [`Table`]). A key is wiped when its instance ends, when its
//! credential expires and when it is told to; that of a session by whoever keeps sessions, with the session.
//!
//! Does not: decide who may ask, or know whether a credential was revoked; whoever calls asks policy and the ledger.

mod kept;
mod key;
mod session;
mod table;
#[cfg(test)]
mod tests;
mod tls;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use serde::Serialize;
use thiserror::Error;
use time::OffsetDateTime;
use tokio::sync::{Notify, watch};

use crate::base::clock::Clock;
use crate::base::entropy::Entropy;
use crate::base::quota::{Full, Place, Quota};
use crate::base::secret::Secret;
use crate::jwt::JwtError;
use crate::peer::{Instance, InstanceId};
use crate::policy::KeyUse;
use crate::proof::{ProofTarget, SignedProof};
use crate::x509::KeyError;

pub use self::kept::Kept;
use self::key::HeldKey;
pub use self::key::{HeldCredential, Holds, NewKey, Shape};
use self::session::SessionKey;
pub use self::session::SessionProof;
use self::table::Kind;
pub use self::table::{Table, TableError};
pub use self::tls::{CertificateVerify, NotCertificateVerify};

/// Processes for which keys are held: two descriptors each.
const INSTANCES: usize = 1 << 15;
/// Those of one user.
const INSTANCES_PER_UID: usize = 1 << 13;
/// Keys of one instance. Rotation leaves two or three for each identity.
const KEYS_PER_INSTANCE: usize = 256;

/// Why a key is not used, or cannot be held.
#[derive(Debug, Error)]
pub enum HeldError {
    /// There is no key of that handle, or it is not the caller's: which of both is not said.
    #[error("there is no such key for this process: it never was, it has ended, or it belongs to another process")]
    NotHeld,
    /// The permission that came along is for another identity, which is a mistake in the program.
    #[error("the permission is for another identity than the key")]
    OtherIdentity,
    /// The key is for another purpose: proofs and TLS have keys of their own.
    #[error("the key is not for this: `HoldWit` gives keys for proofs, `HoldX509` those for TLS")]
    Purpose,
    /// The bytes are not what TLS 1.3 signs, or the scheme is not that of the key.
    #[error(transparent)]
    Tls(#[from] NotCertificateVerify),
    /// Keys of that many processes are held already.
    #[error("keys are held for too many processes")]
    Processes(Full),
    /// The process has that many keys.
    #[error("the process has {KEYS_PER_INSTANCE} keys already, which is the limit")]
    Keys,
    /// The crypto library could not sign.
    #[error("the key cannot sign")]
    Sign(#[source] JwtError),
    /// The crypto library could not sign, or a key is none.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// It could not be put where it outlives the agent, so it is not held at all.
    #[error(transparent)]
    Table(#[from] TableError),
    /// What is public about a key cannot be written down.
    #[error("what is public about the key cannot be written down")]
    Described(#[source] serde_json::Error),
}

/// All keys this agent holds. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Held(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    places: Quota,
    clock: Clock,
    entropy: Entropy,
    /// Counts changes, for whoever keeps a copy over restarts.
    changes: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    /// INVARIANT: the same keys as in `instances`.
    keys: HashMap<String, Arc<HeldKey>>,
    /// Handles by serial or `jti`.
    credentials: HashMap<String, String>,
    /// By session id.
    sessions: HashMap<String, Arc<SessionKey>>,
    instances: HashMap<InstanceId, OfInstance>,
    /// INVARIANT: where there is one, it has the same keys.
    table: Option<Table>,
}

/// The keys of one instance, which is watched as long as there are any.
#[derive(Debug)]
struct OfInstance {
    keys: BTreeMap<String, Arc<HeldKey>>,
    /// Wakes the watcher: when to look next may have changed.
    poke: Arc<Notify>,
    _place: Place,
}

impl Held {
    /// No keys yet.
    pub fn new(clock: Clock, entropy: Entropy) -> Self {
        Self(Arc::new(Shared {
            state: Mutex::default(),
            places: Quota::new(INSTANCES, INSTANCES_PER_UID),
            clock,
            entropy,
            changes: watch::Sender::new(0),
        }))
    }

    /// Holds a key for `instance`, which has the user id `uid`, until the key's credential or the instance ends. Call it
    /// inside a runtime.
    ///
    /// # Errors
    /// There are too many.
    pub fn keep(&self, instance: &Arc<Instance>, uid: u32, key: NewKey) -> Result<Arc<HeldCredential>, HeldError> {
        let handle = self.0.entropy.hex::<16>();
        let pkcs8 = key.key.to_pkcs8()?;
        let key = HeldKey::new(handle, instance, uid, key)?;
        self.insert(instance, Arc::new(key), &pkcs8)
    }

    fn insert(
        &self,
        instance: &Arc<Instance>,
        key: Arc<HeldKey>,
        pkcs8: &Secret<Vec<u8>>,
    ) -> Result<Arc<HeldCredential>, HeldError> {
        let credential = key.credential.clone();
        let described = describe(&*credential)?;
        let now = self.0.clock.now();
        let share = instance.share(credential.uid());
        let mut state = self.0.state();
        if !state.instances.contains_key(instance.id()) {
            let place = self.0.places.take(share).map_err(HeldError::Processes)?;
            let poke = Arc::new(Notify::new());
            tokio::spawn(watch_over(Arc::downgrade(&self.0), self.0.clock.clone(), instance.clone(), poke.clone()));
            let new = OfInstance { keys: BTreeMap::new(), poke, _place: place };
            state.instances.insert(*instance.id(), new);
        }
        state.remove_of(instance.id(), |key| key.not_after() <= now);
        if state.instances.get(instance.id()).is_some_and(|of| of.keys.len() >= KEYS_PER_INSTANCE) {
            return Err(HeldError::Keys);
        }
        let handle = credential.handle().to_owned();
        state.outlive(&handle, Kind::Process, Some(share), &described, pkcs8)?;
        let State { keys, credentials, instances, .. } = &mut *state;
        // Just put in, or found above; removing leaves the instance to its watcher.
        let of = instances.get_mut(instance.id()).ok_or(HeldError::NotHeld)?;
        of.keys.insert(handle.clone(), key.clone());
        of.poke.notify_one();
        keys.insert(handle.clone(), key);
        credentials.insert(credential.id().to_owned(), handle);
        drop(state);
        self.0.changed();
        Ok(credential)
    }

    /// What the key `handle` is for, if it is held for `instance` and `by` may use it: the instance itself, or the
    /// delegate that asked for it.
    ///
    /// # Errors
    /// Otherwise.
    pub fn find(&self, handle: &str, instance: &InstanceId, by: &InstanceId) -> Result<Arc<HeldCredential>, HeldError> {
        let key = self.0.state().keys.get(handle).map(|key| key.credential.clone()).ok_or(HeldError::NotHeld)?;
        let of_caller = key.instance() == instance && (by == instance || key.delegate() == Some(by));
        if of_caller && key.not_after() > self.0.clock.now() { Ok(key) } else { Err(HeldError::NotHeld) }
    }

    /// The newest key that is held for an instance, at the wish of `delegate` or its own, and of which `wanted` holds.
    pub fn newest(
        &self,
        instance: &InstanceId,
        delegate: Option<&InstanceId>,
        wanted: impl Fn(&HeldCredential) -> bool,
    ) -> Option<Arc<HeldCredential>> {
        let state = self.0.state();
        let keys = state.instances.get(instance)?.keys.values().map(|key| &key.credential);
        let fitting = keys.filter(|key| key.delegate() == delegate && wanted(key));
        fitting.max_by_key(|key| key.issued_at()).cloned()
    }

    /// Whether the key of the credential with this serial number or `jti` is here.
    pub fn holds(&self, id: &str) -> bool {
        self.0.state().credentials.contains_key(id)
    }

    /// How many keys are held.
    pub fn len(&self) -> usize {
        let state = self.0.state();
        state.keys.len() + state.sessions.len()
    }

    /// Whether none are.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The ids of the credentials whose keys are held, those of sessions left out.
    pub fn ids(&self) -> Vec<String> {
        self.0.state().credentials.keys().cloned().collect()
    }

    /// Wipes every key of which `doomed` holds, and says what they were for. When it returns no use of them begins.
    pub fn wipe(&self, doomed: impl Fn(&HeldCredential) -> bool) -> Vec<Arc<HeldCredential>> {
        let mut state = self.0.state();
        let instances: Vec<InstanceId> = state.instances.keys().copied().collect();
        let wiped: Vec<_> = instances.iter().flat_map(|instance| state.remove_of(instance, &doomed)).collect();
        drop(state);
        if !wiped.is_empty() {
            self.0.changed();
        }
        wiped
    }

    /// Signs a TLS 1.3 CertificateVerify (RFC 8446, section 4.4.3), and nothing of any other form.
    pub fn sign_tls(
        &self,
        permit: KeyUse,
        key: &HeldCredential,
        scheme: u32,
        content: &[u8],
    ) -> Result<Vec<u8>, HeldError> {
        self.usable(&permit, key)?.sign_tls(&CertificateVerify::parse(scheme, content)?)
    }

    /// A Workload Proof Token for one request, to be sent with the WIT of the key.
    pub fn wpt(
        &self,
        permit: KeyUse,
        key: &HeldCredential,
        target: &ProofTarget,
        now: OffsetDateTime,
    ) -> Result<SignedProof, HeldError> {
        self.usable(&permit, key)?.wpt(target, &self.0.entropy, now)
    }

    /// A DPoP proof for one request, for an access token that is bound to the key, with the server's nonce.
    pub fn dpop(
        &self,
        permit: KeyUse,
        key: &HeldCredential,
        target: &ProofTarget,
        access_token: Option<&str>,
        nonce: Option<&str>,
        now: OffsetDateTime,
    ) -> Result<SignedProof, HeldError> {
        self.usable(&permit, key)?.dpop(target, access_token, nonce, &self.0.entropy, now)
    }

    fn usable(&self, permit: &KeyUse, key: &HeldCredential) -> Result<Arc<HeldKey>, HeldError> {
        if !key.is_for(permit.entry(), permit.spiffe_id()) {
            return Err(HeldError::OtherIdentity);
        }
        // Wiped meanwhile, perhaps.
        self.0.state().keys.get(key.handle()).cloned().ok_or(HeldError::NotHeld)
    }

    /// Counts what changes: for whoever keeps a copy.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // What a panic elsewhere left behind is whole: maps are changed together and nothing between can fail.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        for of in self.state().instances.values() {
            of.poke.notify_one();
        }
    }
}

impl State {
    /// Writes a key to the table, if there is one. Before it is anywhere where it could be used.
    fn outlive(
        &mut self,
        name: &str,
        kind: Kind,
        uid: Option<u32>,
        described: &[u8],
        pkcs8: &Secret<Vec<u8>>,
    ) -> Result<(), HeldError> {
        let Some(table) = &mut self.table else { return Ok(()) };
        Ok(table.add(name, kind, uid, described, pkcs8.expose())?)
    }

    /// Takes away the keys of one instance of which `doomed` holds. The last holder wipes them: nobody but a signature
    /// that is being made.
    fn remove_of(
        &mut self,
        instance: &InstanceId,
        doomed: impl Fn(&HeldCredential) -> bool,
    ) -> Vec<Arc<HeldCredential>> {
        let Some(of) = self.instances.get_mut(instance) else { return Vec::new() };
        let gone: Vec<_> = of.keys.extract_if(.., |_, key| doomed(&key.credential)).collect();
        for (handle, key) in &gone {
            self.table.as_mut().into_iter().for_each(|table| table.wipe(handle));
            self.keys.remove(handle);
            self.credentials.remove(key.credential.id());
        }
        if !gone.is_empty() {
            of.poke.notify_one();
        }
        gone.into_iter().map(|(_, key)| key.credential.clone()).collect()
    }
}

/// What is public about a key, as it stands in the table.
fn describe(public: &impl Serialize) -> Result<Vec<u8>, HeldError> {
    serde_json::to_vec(public).map_err(HeldError::Described)
}

/// Wipes the keys of one instance when it ends, and each when it expires; is done when there are none left.
async fn watch_over(held: Weak<Shared>, clock: Clock, instance: Arc<Instance>, poke: Arc<Notify>) {
    let mut ended = false;
    loop {
        let next = {
            let Some(held) = held.upgrade() else { return };
            let now = clock.now();
            let mut state = held.state();
            let wiped = state.remove_of(instance.id(), |key| ended || key.not_after() <= now);
            let next = state.instances.get(instance.id()).and_then(|of| of.first_end());
            if next.is_none() {
                state.instances.remove(instance.id());
            }
            drop(state);
            if !wiped.is_empty() {
                tracing::debug!(instance = %instance.id(), keys = wiped.len(), ended, "held keys wiped");
                held.changed();
            }
            next
        };
        let Some(next) = next else { return };
        tokio::select! {
            _ = instance.ended() => ended = true,
            () = clock.sleep_until(next) => {}
            () = poke.notified() => {}
        }
    }
}

impl OfInstance {
    /// When the first of its keys expires.
    fn first_end(&self) -> Option<OffsetDateTime> {
        self.keys.values().map(|key| key.credential.not_after()).min()
    }
}
