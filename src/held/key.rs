//! One key, and what is public about it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::HeldError;
use super::tls::{CertificateVerify, NotCertificateVerify};
use crate::base::entropy::Entropy;
use crate::id::SpiffeId;
use crate::ledger;
use crate::peer::{Instance, InstanceId};
use crate::proof::{ProofKey, ProofTarget, SignedProof};
use crate::registry::EntryId;
use crate::x509::PrivateKey;

/// What a key is for, with the public document that names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Holds {
    /// TLS: the certificates of an X.509-SVID in DER, one after the other, the leaf first.
    X509(#[serde(with = "base64_text")] Vec<u8>),
    /// Proofs: a WIT-SVID.
    Wit(String),
}

impl Holds {
    /// What the ledger calls it.
    pub fn kind(&self) -> ledger::Kind {
        match self {
            Self::X509(_) => ledger::Kind::X509,
            Self::Wit(_) => ledger::Kind::Wit,
        }
    }
}

/// What a registration entry said of a credential when it was made: when that changes, a new one is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// How long it lives; `None` for the default.
    pub ttl: Option<Duration>,
    /// The DNS names in a certificate.
    pub dns_names: Vec<String>,
    /// When the entry ends.
    #[serde(with = "time::serde::rfc3339::option")]
    pub ends: Option<OffsetDateTime>,
}

/// A key to be held, and the credential that was signed for it.
#[derive(Debug)]
pub struct NewKey {
    /// The key.
    pub key: PrivateKey,
    /// The identity.
    pub spiffe_id: SpiffeId,
    /// The entry that gives it.
    pub entry: EntryId,
    /// What the entry said.
    pub shape: Shape,
    /// The public document.
    pub holds: Holds,
    /// The certificate's serial number or the token's `jti`.
    pub id: String,
    /// The authority that signed it.
    pub authority: Arc<str>,
    /// Which other process asked, in the name of the instance.
    pub delegate: Option<InstanceId>,
    /// The binding level: 3, or 2 where the process can only be held weakly.
    pub binding: u8,
    /// When it was signed.
    pub issued_at: OffsetDateTime,
    /// When the next one is due.
    pub renew_at: OffsetDateTime,
    /// When it ends, and the key with it.
    pub not_after: OffsetDateTime,
}

/// What is public about a key that is held.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldCredential {
    handle: String,
    instance: InstanceId,
    pid: i32,
    uid: u32,
    delegate: Option<InstanceId>,
    spiffe_id: SpiffeId,
    #[serde(with = "entry_text")]
    entry: EntryId,
    shape: Shape,
    holds: Holds,
    id: String,
    authority: String,
    binding: u8,
    #[serde(with = "time::serde::rfc3339")]
    issued_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    renew_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    not_after: OffsetDateTime,
}

impl HeldCredential {
    /// The name of the key, of 128 random bits. It is no credential: it is of use to the key's instance alone.
    pub fn handle(&self) -> &str {
        &self.handle
    }

    /// The instance the key is held for.
    pub fn instance(&self) -> &InstanceId {
        &self.instance
    }

    /// Its process number.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Its user id when the key was made.
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// The other process that asked for the key, and may use it too.
    pub fn delegate(&self) -> Option<&InstanceId> {
        self.delegate.as_ref()
    }

    /// The identity.
    pub fn spiffe_id(&self) -> &SpiffeId {
        &self.spiffe_id
    }

    /// The registration entry that gives it.
    pub fn entry(&self) -> &EntryId {
        &self.entry
    }

    /// What the entry said when the credential was made.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The public document.
    pub fn holds(&self) -> &Holds {
        &self.holds
    }

    /// What the ledger calls it.
    pub fn kind(&self) -> ledger::Kind {
        self.holds.kind()
    }

    /// Whether it is for this identity of this entry.
    pub fn is_for(&self, entry: &EntryId, spiffe_id: &SpiffeId) -> bool {
        self.entry == *entry && self.spiffe_id == *spiffe_id
    }

    /// The certificate's serial number or the token's `jti`, by which the ledger knows it.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The authority that signed it.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// The binding level.
    pub fn binding(&self) -> u8 {
        self.binding
    }

    /// When it was signed.
    pub fn issued_at(&self) -> OffsetDateTime {
        self.issued_at
    }

    /// When the next one is due: about half of its life.
    pub fn renew_at(&self) -> OffsetDateTime {
        self.renew_at
    }

    /// When it ends, and the key with it.
    pub fn not_after(&self) -> OffsetDateTime {
        self.not_after
    }
}

impl fmt::Debug for HeldCredential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeldCredential")
            .field("handle", &self.handle)
            .field("instance", &self.instance)
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// A key in memory. The crypto library wipes its own copy when it is freed.
pub(super) struct HeldKey {
    pub(super) credential: Arc<HeldCredential>,
    purpose: Purpose,
}

enum Purpose {
    Tls(PrivateKey),
    Proofs(ProofKey),
}

impl HeldKey {
    pub(super) fn new(handle: String, instance: &Instance, uid: u32, new: NewKey) -> Result<Self, HeldError> {
        let credential = HeldCredential {
            handle,
            instance: *instance.id(),
            pid: instance.pid(),
            uid,
            delegate: new.delegate,
            spiffe_id: new.spiffe_id,
            entry: new.entry,
            shape: new.shape,
            holds: new.holds,
            id: new.id,
            authority: new.authority.as_ref().to_owned(),
            binding: new.binding,
            issued_at: new.issued_at,
            renew_at: new.renew_at,
            not_after: new.not_after,
        };
        Self::of(credential, new.key)
    }

    pub(super) fn of(credential: HeldCredential, key: PrivateKey) -> Result<Self, HeldError> {
        let purpose = match credential.holds {
            Holds::X509(_) => Purpose::Tls(key),
            Holds::Wit(_) => Purpose::Proofs(ProofKey::new(&key).map_err(HeldError::Sign)?),
        };
        Ok(Self { credential: Arc::new(credential), purpose })
    }

    pub(super) fn sign_tls(&self, content: &CertificateVerify<'_>) -> Result<Vec<u8>, HeldError> {
        let Purpose::Tls(key) = &self.purpose else { return Err(HeldError::Purpose) };
        if content.scheme() != key.tls_scheme() {
            return Err(NotCertificateVerify::OtherScheme { scheme: content.scheme(), key: key.tls_scheme() }.into());
        }
        Ok(key.sign_tls13(content.bytes())?)
    }

    pub(super) fn wpt(
        &self,
        target: &ProofTarget,
        entropy: &Entropy,
        now: OffsetDateTime,
    ) -> Result<SignedProof, HeldError> {
        let (Purpose::Proofs(key), Holds::Wit(wit)) = (&self.purpose, &self.credential.holds) else {
            return Err(HeldError::Purpose);
        };
        key.wpt(wit, target, None, entropy, now).map_err(HeldError::Sign)
    }

    pub(super) fn dpop(
        &self,
        target: &ProofTarget,
        access_token: Option<&str>,
        nonce: Option<&str>,
        entropy: &Entropy,
        now: OffsetDateTime,
    ) -> Result<SignedProof, HeldError> {
        let Purpose::Proofs(key) = &self.purpose else { return Err(HeldError::Purpose) };
        key.dpop(target, access_token, nonce, entropy, now).map_err(HeldError::Sign)
    }
}

impl fmt::Debug for HeldKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HeldKey({:?}, redacted)", self.credential)
    }
}

/// Bytes as text, a third longer than they are.
mod base64_text {
    use base64::Engine as _;
    use base64::prelude::BASE64_STANDARD;
    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64_STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        BASE64_STANDARD.decode(String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// An entry id as its text.
mod entry_text {
    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::registry::EntryId;

    pub(super) fn serialize<S: Serializer>(id: &EntryId, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(id.as_str())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<EntryId, D::Error> {
        let text = String::deserialize(deserializer)?;
        EntryId::parse(&text).ok_or_else(|| D::Error::custom("not an entry id"))
    }
}
