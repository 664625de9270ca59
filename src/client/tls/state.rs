//! What a source knows: identities and whom to believe, read from the agent's messages.

use std::fmt;
use std::sync::Arc;

use rustls::SignatureScheme;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, alg_id};
use rustls::sign::SigningKey;
use time::OffsetDateTime;

use super::super::workload::{malformed, read_hint, read_id, read_x509, without_repeated_hints};
use super::super::{ClientError, X509Bundles};
use crate::id::SpiffeId;
use crate::proto::session::{HeldX509, HoldX509Response};
use crate::proto::workload::X509svidResponse;
use crate::x509::Chain;
use crate::x509::der::{Reader, tag};

/// Everything a source has at one moment. It never changes: a newer one takes its place.
#[derive(Clone, Debug, Default)]
pub struct X509State {
    pub(super) identities: Arc<[X509Identity]>,
    pub(super) bundles: Arc<X509Bundles>,
}

impl X509State {
    /// The identities of this program, the default one first.
    pub fn identities(&self) -> &[X509Identity] {
        &self.identities
    }

    /// The default identity, or the one of `id`.
    pub fn identity(&self, id: Option<&SpiffeId>) -> Option<&X509Identity> {
        match id {
            Some(id) => self.identities.iter().find(|identity| identity.id() == id),
            None => self.identities.first(),
        }
    }

    /// Whether nothing has changed since `other`.
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.identities, &other.identities) && Arc::ptr_eq(&self.bundles, &other.bundles)
    }

    /// What peers are judged by: the authorities of each trust domain, and the revocation lists.
    pub fn bundles(&self) -> &X509Bundles {
        &self.bundles
    }
}

/// An X509-SVID that can be used in a handshake, wherever its key is.
pub struct X509Identity {
    id: SpiffeId,
    hint: Option<String>,
    chain: Chain,
    pub(super) key: Key,
}

impl X509Identity {
    /// The SPIFFE ID, which is the one in the certificate.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// What the operator says it is for.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// The certificate and its intermediates.
    pub fn chain(&self) -> &Chain {
        &self.chain
    }

    /// When the certificate ends.
    pub fn not_after(&self) -> OffsetDateTime {
        self.chain.leaf().not_after()
    }
}

impl fmt::Debug for X509Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("X509Identity").field("id", &self.id).field("leaf", self.chain.leaf()).finish_non_exhaustive()
    }
}

/// Where the key of an identity is.
pub(super) enum Key {
    /// With tether, which signs when it is told this name.
    Held { name: Arc<str>, scheme: SignatureScheme },
    /// In this program.
    Own(Arc<dyn SigningKey>),
}

/// The identities of a message with keys in it.
pub(super) fn read_own(message: X509svidResponse) -> Result<Arc<[X509Identity]>, ClientError> {
    let svids = read_x509(message)?.svids.into_iter().map(|svid| {
        let pkcs8 = svid.key.to_pkcs8().map_err(|error| malformed("a key", error))?;
        // Borrowed, so that the one copy is the one that gets wiped.
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pkcs8.expose().as_slice()));
        let key = any_supported_type(&der).map_err(|error| malformed("a key", error))?;
        Ok(X509Identity { id: svid.id, hint: svid.hint, chain: svid.chain, key: Key::Own(key) })
    });
    svids.collect()
}

/// The identities of a message without keys.
pub(super) fn read_held(message: HoldX509Response) -> Result<Arc<[X509Identity]>, ClientError> {
    let svids = without_repeated_hints(message.svids, |svid| &svid.hint);
    if svids.is_empty() {
        return Err(ClientError::Malformed("an answer without an X509-SVID".to_owned()));
    }
    svids.into_iter().map(read_held_svid).collect()
}

fn read_held_svid(svid: HeldX509) -> Result<X509Identity, ClientError> {
    let id = read_id(&svid.spiffe_id)?;
    let about = |error: &dyn fmt::Display| malformed(&format!("the X509-SVID of `{id}`"), error);
    let chain = Chain::from_der(&svid.x509_svid).map_err(|error| about(&error))?;
    if chain.leaf().svid_id().map_err(|error| about(&error))? != id {
        return Err(about(&"its certificate is for another SPIFFE ID"));
    }
    if svid.key.is_empty() {
        return Err(about(&"its key has no name"));
    }
    let scheme =
        scheme_of(chain.leaf().public_key()).ok_or_else(|| about(&"its key is of a kind tether does not hold"))?;
    Ok(X509Identity { id, hint: read_hint(svid.hint), chain, key: Key::Held { name: svid.key.into(), scheme } })
}

/// How tether signs with the key of this SubjectPublicKeyInfo (`SignTlsRequest.scheme`).
fn scheme_of(public_key: &[u8]) -> Option<SignatureScheme> {
    let mut info = Reader::new(Reader::new(public_key).take(tag::SEQUENCE)?);
    let algorithm = info.take(tag::SEQUENCE)?;
    [
        (alg_id::ECDSA_P256, SignatureScheme::ECDSA_NISTP256_SHA256),
        (alg_id::ECDSA_P384, SignatureScheme::ECDSA_NISTP384_SHA384),
        (alg_id::RSA_ENCRYPTION, SignatureScheme::RSA_PSS_SHA256),
    ]
    .into_iter()
    .find_map(|(kind, scheme)| (kind.as_ref() == algorithm).then_some(scheme))
}
