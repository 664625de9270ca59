//! Where private keys of authorities live.
//!
//! Files of mode 0600 in a directory of mode 0700. A key is on disk before the journal names it, so a crash between the
//! two leaves a file nobody names, which the next start removes; never a name without a key.
//!
//! With a key-wrapping key ([`Wrapping`]) they are encrypted: whoever gets hold of the disk, or of a backup, has nothing
//! without that key. A plain file that is found then is wrapped at once, and what it was is overwritten. That reaches the
//! file's own blocks on file systems that write in place. It does not reach other copies: snapshots and backups, the log of
//! a file system that journals data, copy-on-write file systems (btrfs, ZFS), and blocks that a flash disk has moved. Keys
//! that were ever plain on such a disk are replaced by a rotation.
//!
//! Everything else asks by id and sees keys in memory: what keeps them elsewhere (PKCS#11, a KMS) takes the place of
//! [`KeyStore`] with these same calls.

mod wrap;

use std::path::{Path, PathBuf};

use thiserror::Error;

use self::wrap::Held;
pub use self::wrap::{CREDENTIAL, FORMER_CREDENTIAL, UnwrapError, Wrapping, WrappingError};
use crate::base::durable::{self, DurableError};
use crate::base::entropy::Entropy;
use crate::base::secret::Secret;
use crate::x509::{KeyError, PrivateKey};

/// A PKCS#8 file with a 4096-bit RSA key has about 2.4 KB.
const LARGEST_KEY_FILE: u64 = 64 * 1024;
const SUFFIX: &str = ".pk8";

/// Why a key could not be kept or found.
#[derive(Debug, Error)]
pub enum KeyStoreError {
    /// The file system refused.
    #[error(transparent)]
    File(#[from] DurableError),
    /// The directory cannot be listed.
    #[error("cannot list the key directory `{}`", path.display())]
    List {
        /// The directory.
        path: PathBuf,
        /// The refusal.
        #[source]
        source: std::io::Error,
    },
    /// The crypto library cannot write the key.
    #[error("the private key of authority `{id}` cannot be written")]
    Unwritable {
        /// The authority.
        id: String,
        /// Why.
        #[source]
        source: KeyError,
    },
    /// The file is wrapped and does not open.
    #[error("the key of authority `{id}` in `{}` cannot be used", path.display())]
    Wrapped {
        /// The authority.
        id: String,
        /// The file.
        path: PathBuf,
        /// What is in the way, and what to do about it.
        source: UnwrapError,
    },
    /// The key-wrapping key cannot be had.
    #[error(transparent)]
    Wrapping(#[from] WrappingError),
    /// The file is not a private key.
    #[error("`{}` is not a private key: restore it from a backup, or revoke authority `{id}`", path.display())]
    Damaged {
        /// The authority.
        id: String,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: KeyError,
    },
}

/// The private keys of this node's authorities, by authority id.
#[derive(Clone, Debug)]
pub struct KeyStore {
    dir: PathBuf,
    wrapping: Wrapping,
    entropy: Entropy,
}

impl KeyStore {
    /// Keys below `dir`, which is created when it is missing and refused when others can enter it. Keys that are not
    /// wrapped as `wrapping` says are wrapped now.
    ///
    /// # Errors
    /// One of the keys is wrapped with a key that `wrapping` does not have: nothing is made in its place.
    pub fn open(dir: PathBuf, wrapping: Wrapping, entropy: Entropy) -> Result<Self, KeyStoreError> {
        durable::private_dir(&dir)?;
        let store = Self { dir, wrapping, entropy };
        let (mut plain, mut wrapped_before) = (0, 0);
        for id in store.ids()? {
            let (document, held) = store.read(&id)?;
            let count = match held {
                Held::Plain => &mut plain,
                Held::WrappedBefore => &mut wrapped_before,
                Held::Wrapped => continue,
            };
            if store.wrapping.is_on() {
                let wrapped = store.wrapping.wrap(&id, document, &store.entropy);
                durable::replace_and_wipe(&store.path(&id), wrapped.expose(), 0o600)?;
                *count += 1;
            }
        }
        if plain + wrapped_before > 0 {
            tracing::info!(plain, wrapped_before, "keys of authorities are wrapped now");
        }
        Ok(store)
    }

    /// What is weaker than it should be, and what to do about it.
    pub fn weakness(&self) -> Option<String> {
        (!self.wrapping.is_on()).then(|| {
            format!(
                "private keys of authorities are in files that only their mode protects, here and in backups: give the agent \
                 the credential `{CREDENTIAL}`, as `tether init` does"
            )
        })
    }

    fn path(&self, id: &str) -> PathBuf {
        self.dir.join(Self::file_name(id))
    }

    /// Keeps a key; on disk when this returns.
    pub fn save(&self, id: &str, key: &PrivateKey) -> Result<(), KeyStoreError> {
        let der = key.to_pkcs8().map_err(|source| KeyStoreError::Unwritable { id: id.to_owned(), source })?;
        let content = self.wrapping.wrap(id, der, &self.entropy);
        Ok(durable::replace(&self.path(id), content.expose(), 0o600)?)
    }

    /// The key of an authority.
    pub fn load(&self, id: &str) -> Result<PrivateKey, KeyStoreError> {
        let (document, _) = self.read(id)?;
        PrivateKey::from_pkcs8(document.expose()).map_err(|source| KeyStoreError::Damaged {
            id: id.to_owned(),
            path: self.path(id),
            source,
        })
    }

    /// Whether there is a key of this authority.
    pub fn has(&self, id: &str) -> bool {
        self.path(id).exists()
    }

    /// The name of the file with the key of an authority.
    pub fn file_name(id: &str) -> String {
        format!("{id}{SUFFIX}")
    }

    /// Whether this is the content of a key file that is wrapped.
    pub fn is_wrapped(content: &[u8]) -> bool {
        wrap::is_wrapped(content)
    }

    /// Whether one of the keys below `dir` is wrapped, as far as they can be read: for whoever is about to make a wrapping key.
    pub fn has_wrapped(dir: &Path) -> bool {
        let Ok(found) = dir.read_dir() else { return false };
        let keys = found.flatten().map(|file| file.path());
        let mut keys =
            keys.filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().ends_with(SUFFIX)));
        // It may be a key as it is.
        let read = |path: &Path| durable::read(path, LARGEST_KEY_FILE).map(Secret::new);
        keys.any(|path| read(&path).is_ok_and(|content| Self::is_wrapped(content.expose())))
    }

    /// Whether this can be the content of the key file of an authority. What is wrapped is not opened.
    pub fn check(id: &str, content: &[u8]) -> Result<(), KeyStoreError> {
        let path = PathBuf::from(Self::file_name(id));
        if !is_id(id) {
            return Err(KeyStoreError::Damaged { id: id.to_owned(), path, source: KeyError::Unsupported });
        }
        if Self::is_wrapped(content) {
            return Ok(());
        }
        let read = PrivateKey::from_pkcs8(content).map(drop);
        read.map_err(|source| KeyStoreError::Damaged { id: id.to_owned(), path, source })
    }

    /// What the key file of an authority holds; with `plain`, the key itself.
    pub(super) fn content(&self, id: &str, plain: bool) -> Result<Secret<Vec<u8>>, KeyStoreError> {
        if plain {
            return Ok(self.read(id)?.0);
        }
        Ok(Secret::new(durable::read(&self.path(id), LARGEST_KEY_FILE)?))
    }

    /// The PKCS#8 document of an authority's key.
    fn read(&self, id: &str) -> Result<(Secret<Vec<u8>>, Held), KeyStoreError> {
        let path = self.path(id);
        let file = Secret::new(durable::read(&path, LARGEST_KEY_FILE)?);
        self.wrapping.unwrap(id, file).map_err(|source| KeyStoreError::Wrapped { id: id.to_owned(), path, source })
    }

    /// Forgets a key.
    pub fn remove(&self, id: &str) -> Result<(), KeyStoreError> {
        Ok(durable::remove(&self.path(id))?)
    }

    /// Whether there are no keys.
    pub fn is_empty(&self) -> Result<bool, KeyStoreError> {
        Ok(self.ids()?.is_empty())
    }

    /// The authorities whose keys are here.
    pub fn ids(&self) -> Result<Vec<String>, KeyStoreError> {
        let mut ids = Vec::new();
        for path in self.files()? {
            if let Some(Left::Key(id)) = path.file_name().and_then(|name| Left::parse(name.to_str()?)) {
                ids.push(id.to_owned());
            }
        }
        Ok(ids)
    }

    fn files(&self) -> Result<Vec<PathBuf>, KeyStoreError> {
        let failed = |source| KeyStoreError::List { path: self.dir.clone(), source };
        let entries = std::fs::read_dir(&self.dir).map_err(failed)?;
        entries.map(|entry| entry.map(|entry| entry.path()).map_err(failed)).collect()
    }

    /// Removes keys and half-written files that `known` does not name: what a crash left behind.
    ///
    /// Files that this agent would not have written are left alone and named in the log.
    pub fn sweep(&self, known: impl Fn(&str) -> bool) -> Result<(), KeyStoreError> {
        for path in self.files()? {
            match path.file_name().and_then(|name| Left::parse(name.to_str()?)) {
                Some(Left::Key(id)) if known(id) => {}
                Some(Left::Key(_) | Left::Temporary) => durable::remove(&path)?,
                None => tracing::warn!(path = %path.display(), "not a key of this agent: left where it is"),
            }
        }
        Ok(())
    }
}

/// A file that this agent wrote into the key directory.
enum Left<'a> {
    Key(&'a str),
    /// One that a crash kept from its final name.
    Temporary,
}

impl<'a> Left<'a> {
    fn parse(name: &'a str) -> Option<Self> {
        if let Some(id) = name.strip_suffix(SUFFIX) {
            return is_id(id).then_some(Self::Key(id));
        }
        let (key, writer) = name.strip_prefix('.')?.strip_suffix(".tmp")?.rsplit_once('.')?;
        let ours = is_id(key.strip_suffix(SUFFIX)?) && !writer.is_empty() && writer.bytes().all(|b| b.is_ascii_digit());
        ours.then_some(Self::Temporary)
    }
}

/// Serial numbers of 16 octets in hex, and SHA-256 key thumbprints in base64url (RFC 7638).
fn is_id(text: &str) -> bool {
    let serial = || text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let thumbprint = || text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    (text.len() == 32 && serial()) || (text.len() == 43 && thumbprint())
}

#[cfg(test)]
mod tests;
