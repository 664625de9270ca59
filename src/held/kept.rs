//! Keys over a restart of the agent: written to and read from one file in memory, which systemd keeps meanwhile.
//!
//! Form: a line with the format's version; for the keys of processes, and then for those of sessions, the length of a JSON
//! list of what is public about them and that list, then the keys in its order, each as PKCS#8 after its length. Keys are written straight from where they are held, so
//! that no copy is left in a buffer.

use std::io::{self, Read, Write};
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

use super::key::{HeldCredential, HeldKey};
use super::session::KeptSession;
use super::{Held, HeldError};
use crate::base::secret::Secret;
use crate::peer::{Instance, InstanceId};
use crate::x509::PrivateKey;

/// The first line.
const VERSION: &[u8] = b"tether held keys 2\n";
/// More than all keys that can be held ever take.
const MAX_LIST: u64 = 1 << 30;
/// The largest key is RSA with 8192 bits.
const MAX_KEY: u64 = 16 * 1024;

/// Why keys cannot be written or read.
#[derive(Debug, Error)]
pub enum KeptError {
    /// The file cannot be written or read.
    #[error("the kept keys cannot be written or read")]
    Io(#[from] io::Error),
    /// It was written by another version of the agent.
    #[error("the kept keys are in a form that this version does not know")]
    Version,
    /// It is not what was written.
    #[error("the kept keys are damaged")]
    Damaged,
}

/// Keys that were read and are not held yet.
#[derive(Debug)]
pub struct Kept {
    keys: Keys<HeldCredential>,
    sessions: Keys<KeptSession>,
}

/// Private keys as PKCS#8, each with what is public about it.
type Keys<T> = Vec<(T, Secret<Vec<u8>>)>;

impl Kept {
    /// Reads what [`Held::write_to`] wrote.
    pub fn read(file: &mut impl Read) -> Result<Self, KeptError> {
        let mut version = [0; VERSION.len()];
        file.read_exact(&mut version)?;
        if version != VERSION {
            return Err(KeptError::Version);
        }
        Ok(Self { keys: read_keys(file)?, sessions: read_keys(file)? })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.keys.len() + self.sessions.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// One list with its keys.
fn read_keys<T: DeserializeOwned>(file: &mut impl Read) -> Result<Keys<T>, KeptError> {
    let mut list = Vec::new();
    let length = length(file, MAX_LIST)?;
    file.take(length).read_to_end(&mut list)?;
    let described: Vec<T> = serde_json::from_slice(&list).map_err(|_| KeptError::Damaged)?;
    let keys = described.into_iter().map(|of| {
        let mut key = vec![0; usize::try_from(length_of_key(file)?).map_err(|_| KeptError::Damaged)?];
        let read = file.read_exact(&mut key);
        let key = Secret::new(key);
        read?;
        Ok((of, key))
    });
    keys.collect()
}

/// Writes one list with its keys.
fn write_keys<'a, T: Serialize>(
    file: &mut impl Write,
    described: &[T],
    keys: impl Iterator<Item = &'a Secret<Vec<u8>>>,
) -> Result<(), KeptError> {
    let list = serde_json::to_vec(described).map_err(io::Error::other)?;
    file.write_all(&u64::try_from(list.len()).unwrap_or(u64::MAX).to_be_bytes())?;
    file.write_all(&list)?;
    for key in keys {
        let pkcs8 = key.expose();
        file.write_all(&u64::try_from(pkcs8.len()).unwrap_or(u64::MAX).to_be_bytes())?;
        file.write_all(pkcs8)?;
    }
    Ok(())
}

fn length(file: &mut impl Read, most: u64) -> Result<u64, KeptError> {
    let mut length = [0; 8];
    file.read_exact(&mut length)?;
    let length = u64::from_be_bytes(length);
    if length > most { Err(KeptError::Damaged) } else { Ok(length) }
}

fn length_of_key(file: &mut impl Read) -> Result<u64, KeptError> {
    length(file, MAX_KEY)
}

impl Held {
    /// Writes all keys to `file`, which must be memory that only this agent and its successor can read: it is the one
    /// place where keys leave. Says how many.
    pub fn write_to(&self, file: &mut impl Write) -> Result<usize, KeptError> {
        let (keys, sessions): (Vec<Arc<HeldKey>>, Vec<_>) = {
            let state = self.0.state();
            let sessions = state.sessions.iter().map(|(id, key)| (KeptSession { session: id.clone() }, key.clone()));
            (state.keys.values().cloned().collect(), sessions.collect())
        };
        file.write_all(VERSION)?;
        let of: Vec<&HeldCredential> = keys.iter().map(|key| &*key.credential).collect();
        write_keys(file, &of, keys.iter().map(|key| &key.pkcs8))?;
        let (of, session_keys): (Vec<KeptSession>, Vec<_>) = sessions.into_iter().unzip();
        write_keys(file, &of, session_keys.iter().map(|key| &key.pkcs8))?;
        Ok(of.len() + keys.len())
    }

    /// Holds again the keys of which `stands` holds and whose instances still live: `find` gives the instance that a
    /// process is now. All others are wiped. Says how many are held. Call it inside a runtime.
    pub fn take_back(
        &self,
        kept: Kept,
        find: impl Fn(i32, &InstanceId) -> Option<Arc<Instance>>,
        stands: impl Fn(&HeldCredential) -> bool,
    ) -> usize {
        let now = self.0.clock.now();
        let mut taken = 0;
        for (KeptSession { session }, key) in kept.sessions {
            // Whoever keeps sessions wipes those that do not go on.
            let key = PrivateKey::from_pkcs8(key.expose()).map_err(HeldError::Key);
            match key.and_then(|key| self.hold_session(&session, &key)) {
                Ok(_) => taken += 1,
                Err(error) => {
                    tracing::warn!(%error, "the key of a session that was kept over the restart cannot be held")
                }
            }
        }
        for (credential, key) in kept.keys {
            if credential.not_after() <= now || !stands(&credential) {
                continue;
            }
            // Exactly the same: the process, and the program in it.
            let instance = find(credential.pid(), credential.instance());
            let Some(instance) = instance.filter(|instance| instance.id() == credential.instance()) else { continue };
            let key = PrivateKey::from_pkcs8(key.expose()).map_err(HeldError::Key);
            let held = key.and_then(|key| HeldKey::of(credential, key));
            match held.and_then(|key| self.insert(&instance, Arc::new(key))) {
                Ok(_) => taken += 1,
                Err(error) => tracing::warn!(%error, "a key that was kept over the restart cannot be held"),
            }
        }
        taken
    }
}
