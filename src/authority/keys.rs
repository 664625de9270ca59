//! Where private keys of authorities live.
//!
//! PKCS#8 files, mode 0600, in a directory of mode 0700. A key is on disk before the journal names it, so a crash
//! between the two leaves a file nobody names, which the next start removes; never a name without a key.

use std::path::PathBuf;

use thiserror::Error;

use crate::base::durable::{self, DurableError};
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
}

impl KeyStore {
    /// Keys below `dir`, which is created when it is missing and refused when others can enter it.
    pub fn open(dir: PathBuf) -> Result<Self, KeyStoreError> {
        durable::private_dir(&dir)?;
        Ok(Self { dir })
    }

    fn path(&self, id: &str) -> PathBuf {
        self.dir.join(format!("{id}{SUFFIX}"))
    }

    /// Keeps a key; on disk when this returns.
    pub fn save(&self, id: &str, key: &PrivateKey) -> Result<(), KeyStoreError> {
        let der = key.to_pkcs8().map_err(|source| KeyStoreError::Unwritable { id: id.to_owned(), source })?;
        Ok(durable::replace(&self.path(id), der.expose(), 0o600)?)
    }

    /// The key of an authority.
    pub fn load(&self, id: &str) -> Result<PrivateKey, KeyStoreError> {
        let path = self.path(id);
        let der = Secret::new(durable::read(&path, LARGEST_KEY_FILE)?);
        PrivateKey::from_pkcs8(der.expose()).map_err(|source| KeyStoreError::Damaged {
            id: id.to_owned(),
            path,
            source,
        })
    }

    /// Forgets a key.
    pub fn remove(&self, id: &str) -> Result<(), KeyStoreError> {
        Ok(durable::remove(&self.path(id))?)
    }

    /// Whether there are no keys.
    pub fn is_empty(&self) -> Result<bool, KeyStoreError> {
        let failed = |source| KeyStoreError::List { path: self.dir.clone(), source };
        for entry in std::fs::read_dir(&self.dir).map_err(failed)? {
            if matches!(entry.map_err(failed)?.file_name().to_str().and_then(Left::parse), Some(Left::Key(_))) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Removes keys and half-written files that `known` does not name: what a crash left behind.
    ///
    /// Files that this agent would not have written are left alone and named in the log.
    pub fn sweep(&self, known: impl Fn(&str) -> bool) -> Result<(), KeyStoreError> {
        let failed = |source| KeyStoreError::List { path: self.dir.clone(), source };
        for entry in std::fs::read_dir(&self.dir).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
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
