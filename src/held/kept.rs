//! Keys over the end of the agent: held again by the next one, for processes that still live.

use std::fs::File;
use std::sync::Arc;

use super::key::{HeldCredential, HeldKey};
use super::session::KeptSession;
use super::table::{self, Found, Kind, Table, TableError};
use super::{Held, HeldError};
use crate::peer::{Instance, InstanceId};
use crate::sys::BootId;
use crate::x509::PrivateKey;

/// Keys that were read and are not held yet.
#[derive(Debug)]
pub struct Kept(Vec<Found>);

impl Kept {
    /// Reads the table that an agent of this boot wrote.
    ///
    /// # Errors
    /// It is none, or somebody else could have changed it.
    pub fn read(file: &File, boot: BootId) -> Result<Self, TableError> {
        table::read(file, boot).map(Self)
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

impl Held {
    /// From now on all keys are in `table` before they can be used. Call it before there are any.
    pub fn outlive_in(&self, table: Table) {
        self.0.state().table = Some(table);
    }

    /// Exchanges the table for a smaller one, if most of it is empty; `kept` is shown the new one before it is used, and
    /// if it fails the old one stays.
    pub fn compact<E: From<TableError>>(
        &self,
        boot: BootId,
        kept: impl FnOnce(&Table) -> Result<(), E>,
    ) -> Result<bool, E> {
        let mut state = self.0.state();
        let Some(table) = state.table.as_ref().filter(|table| table.is_loose()) else { return Ok(false) };
        let new = table.compacted(boot)?;
        kept(&new)?;
        state.table = Some(new);
        Ok(true)
    }

    /// Holds again the keys of which `stands` holds and whose instances still live: `find` gives the instance that a
    /// process is now. All others are left behind. Says how many are held. Call it inside a runtime.
    pub fn take_back(
        &self,
        kept: Kept,
        find: impl Fn(i32, &InstanceId) -> Option<Arc<Instance>>,
        stands: impl Fn(&HeldCredential) -> bool,
    ) -> usize {
        let mut taken = 0;
        for found in kept.0 {
            let held = match found.kind {
                // Whoever keeps sessions wipes those that do not go on.
                Kind::Session => self.take_back_session(&found).map(|()| true),
                Kind::Process => self.take_back_key(&found, &find, &stands),
            };
            match held {
                Ok(held) => taken += usize::from(held),
                Err(error) => tracing::warn!(%error, "a key that was kept over the restart cannot be held"),
            }
        }
        taken
    }

    fn take_back_session(&self, found: &Found) -> Result<(), HeldError> {
        let KeptSession { session } = serde_json::from_slice(&found.public).map_err(HeldError::Described)?;
        self.hold_session(&session, &PrivateKey::from_pkcs8(found.pkcs8.expose())?).map(drop)
    }

    fn take_back_key(
        &self,
        found: &Found,
        find: impl Fn(i32, &InstanceId) -> Option<Arc<Instance>>,
        stands: impl Fn(&HeldCredential) -> bool,
    ) -> Result<bool, HeldError> {
        let credential: HeldCredential = serde_json::from_slice(&found.public).map_err(HeldError::Described)?;
        if credential.not_after() <= self.0.clock.now() || !stands(&credential) {
            return Ok(false);
        }
        // Exactly the same: the process, and the program in it.
        let instance = find(credential.pid(), credential.instance());
        let Some(instance) = instance.filter(|instance| instance.id() == credential.instance()) else {
            return Ok(false);
        };
        let key = HeldKey::of(credential, PrivateKey::from_pkcs8(found.pkcs8.expose())?)?;
        self.insert(&instance, Arc::new(key), &found.pkcs8).map(|_| true)
    }
}
