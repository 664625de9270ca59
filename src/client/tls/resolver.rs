//! Presents the newest SVID in each handshake.

use std::sync::Arc;

use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::{CertifiedKey, SigningKey};

use super::X509Source;
use super::signer::HeldKey;
use super::state::{Key, X509Identity};
use crate::x509::Certificate;

/// The certificate resolver of both sides: what the source has at the moment of the handshake. Rotation needs no new
/// configuration, and connections that are open go on.
#[derive(Clone, Debug)]
pub struct SvidResolver {
    source: X509Source,
}

impl SvidResolver {
    /// Presents the identity of `source`: see [`X509Source::presenting`].
    pub fn new(source: &X509Source) -> Self {
        Self { source: source.clone() }
    }

    /// An identity that has expired, which happens only while the agent is away, is not presented.
    fn current(&self) -> Option<Arc<CertifiedKey>> {
        let (state, wanted) = (self.source.state(), self.source.presented());
        let Some(identity) = state.identity(wanted) else {
            tracing::warn!(wanted = wanted.map(tracing::field::display), "no such identity to present");
            return None;
        };
        if identity.not_after() <= self.source.clock().now() {
            tracing::warn!(id = %identity.id(), standing = ?self.source.standing(), "the identity to present has expired");
            return None;
        }
        let chain = identity.chain().certificates().iter().map(Certificate::der).cloned().collect();
        Some(Arc::new(CertifiedKey::new(chain, self.signing_key(identity))))
    }

    fn signing_key(&self, identity: &X509Identity) -> Arc<dyn SigningKey> {
        match &identity.key {
            Key::Own(key) => key.clone(),
            Key::Held { name, scheme } => Arc::new(HeldKey {
                orders: self.source.orders().clone(),
                acts_for: self.source.acts_for(),
                name: name.clone(),
                scheme: *scheme,
                public_key: identity.chain().leaf().public_key().into(),
            }),
        }
    }
}

impl ResolvesServerCert for SvidResolver {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.current()
    }
}

impl ResolvesClientCert for SvidResolver {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.current()
    }

    fn has_certs(&self) -> bool {
        true
    }
}
