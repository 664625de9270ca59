//! Signs handshakes with keys that tether holds.

use std::fmt;
use std::sync::Arc;
use std::sync::mpsc as std_mpsc;

use bytes::Bytes;
use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::sign::{Signer, SigningKey};
use rustls::{OtherError, SignatureAlgorithm, SignatureScheme};
use thiserror::Error;
use tokio::sync::mpsc;

use super::super::{ActFor, ClientError};
use super::worker::{Job, Order, SIGNATURE_DEADLINE};
use crate::proto::session::SignTlsRequest;

/// What precedes the context string of a signed handshake (RFC 8446, section 4.4.3).
const PADDING: [u8; 64] = [b' '; 64];
/// The context strings with the zero that ends them.
const CONTEXTS: [&[u8]; 2] = [b"TLS 1.3, server CertificateVerify\0", b"TLS 1.3, client CertificateVerify\0"];
/// Transcript hashes of the TLS 1.3 cipher suites: SHA-256 and SHA-384.
const HASH_LENGTHS: [usize; 2] = [32, 48];

/// Why a handshake gets no signature; the source of rustls's error.
#[derive(Debug, Error)]
pub enum SignError {
    /// What is to be signed is not a TLS 1.3 CertificateVerify: the connection is an older version's.
    #[error("tether signs TLS 1.3 handshakes and nothing else")]
    NotCertificateVerify,
    /// The agent refused or cannot be reached.
    #[error("the agent does not sign")]
    Refused(#[source] ClientError),
    /// The agent did not answer in time.
    #[error("the agent gave no signature within {} s", SIGNATURE_DEADLINE.as_secs())]
    Late,
    /// The source of the identity is gone.
    #[error("the source of this identity is gone")]
    Gone,
}

/// The private half of a certificate, by its name with tether.
#[derive(Clone)]
pub(super) struct HeldKey {
    pub(super) orders: mpsc::UnboundedSender<Order>,
    /// The process whose key it is; `None` for this one.
    pub(super) acts_for: Option<ActFor>,
    pub(super) name: Arc<str>,
    pub(super) scheme: SignatureScheme,
    /// As SubjectPublicKeyInfo.
    pub(super) public_key: Arc<[u8]>,
}

impl HeldKey {
    fn ask(&self, content: &[u8]) -> Result<Bytes, SignError> {
        if !is_certificate_verify(content) {
            return Err(SignError::NotCertificateVerify);
        }
        let request = SignTlsRequest {
            key: self.name.to_string(),
            scheme: u16::from(self.scheme).into(),
            content: Bytes::copy_from_slice(content),
            on_behalf_of: self.acts_for.map(ActFor::to_wire),
        };
        let (answer, answered) = std_mpsc::sync_channel(1);
        self.orders.send(Order::Sign(Job { request, answer })).map_err(|_| SignError::Gone)?;
        // The other end keeps the same deadline; this one holds even if its thread does not run.
        match answered.recv_timeout(SIGNATURE_DEADLINE) {
            Ok(answer) => answer.map_err(SignError::Refused),
            Err(std_mpsc::RecvTimeoutError::Timeout) => Err(SignError::Late),
            Err(std_mpsc::RecvTimeoutError::Disconnected) => Err(SignError::Gone),
        }
    }
}

/// The agent checks it too; here it keeps what is not a handshake from leaving the program.
fn is_certificate_verify(content: &[u8]) -> bool {
    let Some(rest) = content.strip_prefix(&PADDING) else { return false };
    let hash = CONTEXTS.iter().find_map(|context| rest.strip_prefix(*context));
    hash.is_some_and(|hash| HASH_LENGTHS.contains(&hash.len()))
}

impl SigningKey for HeldKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        if !offered.contains(&self.scheme) {
            return None;
        }
        Some(Box::new(self.clone()))
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        Some(SubjectPublicKeyInfoDer::from(self.public_key.as_ref()))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        match self.scheme {
            SignatureScheme::RSA_PSS_SHA256 => SignatureAlgorithm::RSA,
            _ => SignatureAlgorithm::ECDSA,
        }
    }
}

impl Signer for HeldKey {
    /// Waits for the agent, at most [`SIGNATURE_DEADLINE`].
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        self.ask(message).map(Vec::from).map_err(|error| {
            tracing::warn!(error = &error as &dyn std::error::Error, "a handshake was not signed");
            rustls::Error::Other(OtherError(Arc::new(error)))
        })
    }

    fn scheme(&self) -> SignatureScheme {
        self.scheme
    }
}

impl fmt::Debug for HeldKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeldKey").field("scheme", &self.scheme).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_tls_1_3_certificate_verify_is_ever_sent_to_be_signed() {
        let content =
            |padding: &[u8], context: &str, hash: usize| [padding, context.as_bytes(), &vec![7; hash]].concat();
        let (server, client) = ("TLS 1.3, server CertificateVerify\0", "TLS 1.3, client CertificateVerify\0");
        let cases = [
            (content(&PADDING, server, 32), true),
            (content(&PADDING, client, 48), true),
            (content(&PADDING, client, 0), false),
            (content(&PADDING, client, 31), false),
            (content(&PADDING, client, 33), false),
            (content(&PADDING, client, 64), false),
            (content(&PADDING[1..], server, 32), false),
            (content(&PADDING[1..], server, 33), false),
            (content(&[b' '; 65], server, 32), false),
            (content(&PADDING, "TLS 1.3, server CertificateVerify", 32), false),
            (content(&PADDING, "TLS 1.3, delegated credentials\0", 32), false),
            (vec![7; 130], false), // what TLS 1.2 signs: randoms and parameters
            (vec![], false),
        ];
        for (content, expected) in cases {
            assert_eq!(is_certificate_verify(&content), expected, "{}", String::from_utf8_lossy(&content));
        }
    }

    #[test]
    fn an_agent_that_hangs_lets_go_of_the_thread_that_waits_for_it() {
        let (orders, _never_taken) = mpsc::unbounded_channel();
        let scheme = SignatureScheme::ECDSA_NISTP256_SHA256;
        let key = HeldKey { orders, acts_for: None, name: "k".into(), scheme, public_key: [].into() };
        let content = [&PADDING[..], CONTEXTS[1], &[0; 48]].concat();
        assert!(matches!(key.ask(&content), Err(SignError::Late)));
    }

    #[test]
    fn a_key_whose_source_is_gone_and_a_content_of_another_form_get_an_error_and_no_wait() {
        let (orders, taken) = mpsc::unbounded_channel();
        let scheme = SignatureScheme::ECDSA_NISTP256_SHA256;
        let key = HeldKey { orders, acts_for: None, name: "k".into(), scheme, public_key: [].into() };
        assert!(matches!(key.ask(b"anything"), Err(SignError::NotCertificateVerify)));
        drop(taken);
        let content = [&PADDING[..], CONTEXTS[0], &[0; 32]].concat();
        assert!(matches!(key.ask(&content), Err(SignError::Gone)));
        assert!(key.choose_scheme(&[SignatureScheme::ED25519]).is_none());
        assert!(key.choose_scheme(&[SignatureScheme::ED25519, scheme]).is_some());
    }
}
