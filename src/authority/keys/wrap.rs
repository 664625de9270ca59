//! Keys in files that are worth nothing without another key.
//!
//! A wrapped file is the 8 bytes of [`MAGIC`], whose last is the version; 8 bytes that say which key-wrapping key it
//! needs; a nonce of 12 bytes; and the PKCS#8 document under AES-256-GCM, with its tag of 16 bytes. Bound to it are all
//! bytes before the nonce and the id of its authority: a file does not open under the name of another authority.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::digest::{SHA256, digest};
use thiserror::Error;

use crate::base::durable::{self, DurableError};
use crate::base::entropy::{Entropy, hex};
use crate::base::secret::Secret;

/// The systemd credential that holds the key-wrapping key.
pub const CREDENTIAL: &str = "tether.key-wrapping-key";
/// The credential that holds the one before it, while keys are wrapped anew.
pub const FORMER_CREDENTIAL: &str = "tether.key-wrapping-key.old";

/// Begins a wrapped file; no PKCS#8 document begins so. The last byte is the version.
const MAGIC: &[u8; 8] = b"tethkey\x01";
const KEY_LEN: usize = 32;
const KEY_ID_LEN: usize = 8;
const HEADER_LEN: usize = MAGIC.len() + KEY_ID_LEN;
const TAG_LEN: usize = 16;

/// Why the key-wrapping key cannot be had.
#[derive(Debug, Error)]
pub enum WrappingError {
    /// The credential is there and cannot be read.
    #[error("the credential `{name}` cannot be read")]
    Unreadable {
        /// The credential.
        name: &'static str,
        /// The refusal.
        #[source]
        source: DurableError,
    },
    /// The credential is there and is no key.
    #[error(
        "the credential `{name}` has {found} bytes and must have exactly {KEY_LEN} random ones: restore it, or make a new \
         one with `head -c {KEY_LEN} /dev/urandom | systemd-creds encrypt --name={name} - \
         /etc/credstore.encrypted/{name}` if no key was wrapped with it"
    )]
    Length {
        /// The credential.
        name: &'static str,
        /// How many bytes it has, or one more than a key.
        found: usize,
    },
}

/// Why a wrapped key does not open.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum UnwrapError {
    /// It is wrapped and there is no key-wrapping key.
    #[error(
        "it is wrapped, and the agent was given no credential `{CREDENTIAL}`: restore \
         `/etc/credstore.encrypted/{CREDENTIAL}` and `LoadCredentialEncrypted={CREDENTIAL}` in the unit"
    )]
    NoKey,
    /// It is wrapped with a key that is none of those at hand.
    #[error(
        "it is wrapped with another key than the credential `{CREDENTIAL}`: restore the former one there, or give it to \
         the agent as `{FORMER_CREDENTIAL}` for one start"
    )]
    OtherKey,
    /// It was changed, cut, or belongs to another authority.
    #[error("it is damaged, or the key of another authority: restore it from a backup")]
    Damaged,
    /// A newer agent wrote it.
    #[error("it was wrapped by a newer agent (version {0}): upgrade this one")]
    Newer(u8),
}

/// One key-wrapping key.
struct WrappingKey {
    key: LessSafeKey,
    id: [u8; KEY_ID_LEN],
}

impl WrappingKey {
    fn new(key: &Secret<[u8; KEY_LEN]>) -> Self {
        let unbound = UnboundKey::new(&AES_256_GCM, key.expose()).expect("the array has the length of the algorithm");
        let named = [b"tether key-wrapping key ".as_slice(), key.expose()].concat();
        let named = Secret::new(named);
        let mut id = [0; KEY_ID_LEN];
        id.copy_from_slice(&digest(&SHA256, named.expose()).as_ref()[..KEY_ID_LEN]);
        Self { key: LessSafeKey::new(unbound), id }
    }

    /// What is bound to a wrapped key of this authority.
    fn bound(header: &[u8], authority: &str) -> Aad<Vec<u8>> {
        Aad::from([header, authority.as_bytes()].concat())
    }

    fn wrap(&self, authority: &str, pkcs8: &Secret<Vec<u8>>, entropy: &Entropy) -> Vec<u8> {
        let nonce: [u8; NONCE_LEN] = entropy.bytes();
        let mut file = Vec::with_capacity(HEADER_LEN + NONCE_LEN + pkcs8.expose().len() + TAG_LEN);
        file.extend_from_slice(MAGIC);
        file.extend_from_slice(&self.id);
        let bound = Self::bound(&file, authority);
        file.extend_from_slice(&nonce);
        let begin = file.len();
        // Encrypted where it stands: no copy of the plain key is left behind.
        file.extend_from_slice(pkcs8.expose());
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = self.key.seal_in_place_separate_tag(nonce, bound, &mut file[begin..]);
        file.extend_from_slice(tag.expect("a key is far shorter than AES-GCM allows").as_ref());
        file
    }

    fn unwrap(&self, authority: &str, file: &[u8]) -> Result<Secret<Vec<u8>>, UnwrapError> {
        let (header, rest) = file.split_at_checked(HEADER_LEN).ok_or(UnwrapError::Damaged)?;
        let (nonce, wrapped) = rest.split_first_chunk::<NONCE_LEN>().ok_or(UnwrapError::Damaged)?;
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let mut plain = wrapped.to_vec();
        let opened = self.key.open_in_place(nonce, Self::bound(header, authority), &mut plain);
        let length = opened.map_err(|_| UnwrapError::Damaged)?.len();
        plain.truncate(length);
        Ok(Secret::new(plain))
    }
}

/// What the private keys of authorities are wrapped with. Clones share it.
#[derive(Clone, Default)]
pub struct Wrapping {
    current: Option<Arc<WrappingKey>>,
    former: Option<Arc<WrappingKey>>,
}

/// What a key file holds.
pub(super) enum Held {
    /// The document itself.
    Plain,
    /// Wrapped with the current key.
    Wrapped,
    /// Wrapped with the one before it.
    WrappedBefore,
}

impl Wrapping {
    /// Keys from systemd's directory of credentials (`$CREDENTIALS_DIRECTORY`): none where it has none, or where there is
    /// no such directory.
    pub fn from_credentials(directory: Option<&Path>) -> Result<Self, WrappingError> {
        let Some(directory) = directory else { return Ok(Self::default()) };
        Ok(Self { current: read(directory, CREDENTIAL)?, former: read(directory, FORMER_CREDENTIAL)? })
    }

    /// Whether new keys are wrapped.
    pub fn is_on(&self) -> bool {
        self.current.is_some()
    }

    /// What goes into the file of a key.
    pub(super) fn wrap(&self, authority: &str, pkcs8: Secret<Vec<u8>>, entropy: &Entropy) -> Secret<Vec<u8>> {
        match &self.current {
            Some(key) => Secret::new(key.wrap(authority, &pkcs8, entropy)),
            None => pkcs8,
        }
    }

    /// The PKCS#8 document of a file, and how it was held.
    pub(super) fn unwrap(
        &self,
        authority: &str,
        file: Secret<Vec<u8>>,
    ) -> Result<(Secret<Vec<u8>>, Held), UnwrapError> {
        let bytes = file.expose();
        let (name, version) = MAGIC.split_at(MAGIC.len() - 1);
        if !is_wrapped(bytes) {
            return Ok((file, Held::Plain));
        }
        let found = bytes.get(name.len()).copied().ok_or(UnwrapError::Damaged)?;
        if found != version[0] {
            return Err(UnwrapError::Newer(found));
        }
        let id = bytes.get(MAGIC.len()..HEADER_LEN).ok_or(UnwrapError::Damaged)?;
        let is_it = |key: &&Arc<WrappingKey>| key.id == id;
        if let Some(key) = self.current.as_ref().filter(is_it) {
            return Ok((key.unwrap(authority, bytes)?, Held::Wrapped));
        }
        if let Some(key) = self.former.as_ref().filter(is_it) {
            return Ok((key.unwrap(authority, bytes)?, Held::WrappedBefore));
        }
        Err(if self.current.is_none() && self.former.is_none() { UnwrapError::NoKey } else { UnwrapError::OtherKey })
    }
}

/// Whether a file is a wrapped key, of any version.
pub(super) fn is_wrapped(file: &[u8]) -> bool {
    file.starts_with(&MAGIC[..MAGIC.len() - 1])
}

impl fmt::Debug for Wrapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = |key: &Option<Arc<WrappingKey>>| key.as_ref().map(|key| hex(&key.id));
        f.debug_struct("Wrapping")
            .field("current", &named(&self.current))
            .field("former", &named(&self.former))
            .finish()
    }
}

fn read(directory: &Path, name: &'static str) -> Result<Option<Arc<WrappingKey>>, WrappingError> {
    let path: PathBuf = directory.join(name);
    let content = match durable::read(&path, KEY_LEN as u64) {
        Ok(content) => Secret::new(content),
        Err(DurableError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(DurableError::Io { source, .. }) if source.kind() == std::io::ErrorKind::FileTooLarge => {
            return Err(WrappingError::Length { name, found: KEY_LEN + 1 });
        }
        Err(source) => return Err(WrappingError::Unreadable { name, source }),
    };
    let length = WrappingError::Length { name, found: content.expose().len() };
    let key = <[u8; KEY_LEN]>::try_from(content.expose().as_slice()).map_err(|_| length)?;
    Ok(Some(Arc::new(WrappingKey::new(&Secret::new(key)))))
}
