//! Keys over a restart of the agent: written to and read from one file in memory, which systemd keeps meanwhile.
//!
//! Form: a line with the format's version, the length of a JSON list of what is public about the keys and that list,
//! then the keys in its order, each as PKCS#8 after its length. Keys are written straight from where they are held, so
//! that no copy is left in a buffer.

use std::io::{self, Read, Write};
use std::sync::Arc;

use thiserror::Error;

use super::key::{HeldCredential, HeldKey};
use super::{Held, HeldError};
use crate::base::secret::Secret;
use crate::peer::{Instance, InstanceId};
use crate::x509::PrivateKey;

/// The first line.
const VERSION: &[u8] = b"tether held keys 1\n";
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
pub struct Kept(Vec<(HeldCredential, Secret<Vec<u8>>)>);

impl Kept {
    /// Reads what [`Held::write_to`] wrote.
    pub fn read(file: &mut impl Read) -> Result<Self, KeptError> {
        let mut version = [0; VERSION.len()];
        file.read_exact(&mut version)?;
        if version != VERSION {
            return Err(KeptError::Version);
        }
        let mut list = Vec::new();
        let length = length(file, MAX_LIST)?;
        file.take(length).read_to_end(&mut list)?;
        let credentials: Vec<HeldCredential> = serde_json::from_slice(&list).map_err(|_| KeptError::Damaged)?;
        let keys = credentials.into_iter().map(|credential| {
            let mut key = vec![0; usize::try_from(length_of_key(file)?).map_err(|_| KeptError::Damaged)?];
            let read = file.read_exact(&mut key);
            let key = Secret::new(key);
            read?;
            Ok((credential, key))
        });
        keys.collect::<Result<_, KeptError>>().map(Self)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
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
        let keys: Vec<Arc<HeldKey>> = self.0.state().keys.values().cloned().collect();
        let list: Vec<&HeldCredential> = keys.iter().map(|key| &*key.credential).collect();
        let list = serde_json::to_vec(&list).map_err(io::Error::other)?;
        file.write_all(VERSION)?;
        file.write_all(&u64::try_from(list.len()).unwrap_or(u64::MAX).to_be_bytes())?;
        file.write_all(&list)?;
        for key in &keys {
            let pkcs8 = key.pkcs8.expose();
            file.write_all(&u64::try_from(pkcs8.len()).unwrap_or(u64::MAX).to_be_bytes())?;
            file.write_all(pkcs8)?;
        }
        Ok(keys.len())
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
        for (credential, key) in kept.0 {
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
