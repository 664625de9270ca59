//! A secret, as Envoy takes it.

use std::sync::Arc;

use aws_lc_rs::digest::Context;
use bytes::Bytes;
use prost::Message as _;
use prost_types::Any;

use crate::bundle::Bundle;
use crate::id::TrustDomain;
use crate::issue::InstanceSvid;
use crate::proto::envoy::config::core::v3::data_source::Specifier;
use crate::proto::envoy::config::core::v3::{DataSource, TypedExtensionConfig};
use crate::proto::envoy::extensions::transport_sockets::tls::v3 as wire;
use crate::proto::envoy::extensions::transport_sockets::tls::v3::secret::Type;
use crate::proto::envoy::extensions::transport_sockets::tls::v3::spiffe_cert_validator_config as spiffe;
use crate::trust::CrlSet;
use crate::x509::{Chain, pkcs8_to_pem};

/// The type of every resource.
pub(super) const SECRET_TYPE: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
const SPIFFE_CONFIG_TYPE: &str =
    "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig";
/// The extension that judges a certificate by the authorities of its own trust domain.
const SPIFFE_VALIDATOR: &str = "envoy.tls.cert_validator.spiffe";

/// One secret; the same while Envoy would see no difference.
#[derive(Clone, Debug)]
pub(super) enum Secret {
    /// A certificate and its key.
    Svid(Arc<InstanceSvid>),
    /// Whom to believe.
    Authorities(Authorities),
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Svid(a), Self::Svid(b)) => Arc::ptr_eq(a, b),
            (Self::Authorities(a), Self::Authorities(b)) => a == b,
            _ => false,
        }
    }
}

/// Who validates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Validator {
    /// Envoy's usual one: one set of authorities, and lists for leaves.
    Usual,
    /// Its SPIFFE validator: authorities by trust domain, and lists for every step of a path or for none.
    Spiffe,
}

/// The authorities of one or more trust domains.
#[derive(Clone, Debug)]
pub(super) struct Authorities {
    validator: Validator,
    bundles: Vec<Arc<Bundle>>,
    /// The trust domain whose certificates are on the lists, and the lists.
    lists: Option<(TrustDomain, Arc<CrlSet>)>,
}

impl PartialEq for Authorities {
    fn eq(&self, other: &Self) -> bool {
        let same = |a: &Arc<Bundle>, b: &Arc<Bundle>| Arc::ptr_eq(a, b) || a.x509() == b.x509();
        let same_lists = match (&self.lists, &other.lists) {
            (None, None) => true,
            (Some((a_domain, a)), Some((b_domain, b))) => {
                a_domain == b_domain && (Arc::ptr_eq(a, b) || a.der() == b.der())
            }
            _ => false,
        };
        self.validator == other.validator
            && same_lists
            && self.bundles.len() == other.bundles.len()
            && self.bundles.iter().zip(&other.bundles).all(|(a, b)| same(a, b))
    }
}

impl Authorities {
    /// Those of our own trust domain. Their lists are enforced for leaves, whatever is known of the CAs above.
    pub(super) fn own(bundle: Arc<Bundle>, lists: Option<&Arc<CrlSet>>) -> Self {
        let lists = lists.map(|lists| (bundle.trust_domain().clone(), lists.clone()));
        Self { validator: Validator::Usual, bundles: vec![bundle], lists }
    }

    /// Those of another trust domain: for certificates of that trust domain alone, or it could speak for ours.
    pub(super) fn foreign(bundle: Arc<Bundle>) -> Self {
        Self { validator: Validator::Spiffe, bundles: vec![bundle], lists: None }
    }

    /// Those of several trust domains, each for its own certificates.
    pub(super) fn all(own: &TrustDomain, bundles: Vec<Arc<Bundle>>, lists: Option<&Arc<CrlSet>>) -> Self {
        Self { validator: Validator::Spiffe, bundles, lists: lists.map(|lists| (own.clone(), lists.clone())) }
    }

    fn context(&self) -> wire::CertificateValidationContext {
        match self.validator {
            Validator::Usual => wire::CertificateValidationContext {
                trusted_ca: Some(inline(self.bundles.iter().map(|bundle| bundle.x509().to_pem()).collect())),
                crl: self.lists.as_ref().map(|(_, lists)| inline(lists.to_pem().concat())),
                // A root from files has no list, and needs none: who revokes a CA takes it out of the bundle.
                only_verify_leaf_cert_crl: self.lists.is_some(),
                custom_validator_config: None,
            },
            Validator::Spiffe => {
                let config = wire::SpiffeCertValidatorConfig {
                    trust_domains: self.bundles.iter().map(|bundle| self.trust_domain(bundle)).collect(),
                };
                let typed_config = Any { type_url: SPIFFE_CONFIG_TYPE.to_owned(), value: config.encode_to_vec() };
                wire::CertificateValidationContext {
                    custom_validator_config: Some(TypedExtensionConfig {
                        name: SPIFFE_VALIDATOR.to_owned(),
                        typed_config: Some(typed_config),
                    }),
                    ..wire::CertificateValidationContext::default()
                }
            }
        }
    }

    /// One trust domain for the SPIFFE validator, which reads lists from among the authorities.
    fn trust_domain(&self, bundle: &Bundle) -> spiffe::TrustDomain {
        let lists = self.lists.as_ref().filter(|(domain, _)| domain == bundle.trust_domain());
        let lists = lists.map(|(_, lists)| lists.to_pem().concat()).unwrap_or_default();
        spiffe::TrustDomain {
            name: bundle.trust_domain().as_str().to_owned(),
            trust_bundle: Some(inline(bundle.x509().to_pem() + &lists)),
        }
    }
}

impl Secret {
    /// The resource of this name.
    pub(super) fn resource(&self, name: &str) -> Any {
        let kind = match self {
            Self::Svid(svid) => Type::TlsCertificate(certificate(svid)),
            Self::Authorities(authorities) => Type::ValidationContext(authorities.context()),
        };
        let secret = wire::Secret { name: name.to_owned(), r#type: Some(kind) };
        Any { type_url: SECRET_TYPE.to_owned(), value: secret.encode_to_vec() }
    }

    /// Adds what may be known of it to a digest: never a key.
    pub(super) fn digest_into(&self, digest: &mut Context) {
        match self {
            Self::Svid(svid) => digest.update(svid.svid.signed.serial.as_bytes()),
            Self::Authorities(authorities) => {
                let certificates = authorities.bundles.iter().flat_map(|bundle| bundle.x509().certificates());
                certificates.for_each(|certificate| digest.update(certificate.der()));
                let lists = authorities.lists.iter().flat_map(|(_, lists)| lists.der());
                lists.for_each(|list| digest.update(list));
            }
        }
    }
}

fn certificate(svid: &InstanceSvid) -> wire::TlsCertificate {
    let chain = Chain::from_der(&svid.svid.signed.chain).map(|chain| chain.to_pem());
    let key = pkcs8_to_pem(svid.svid.key.expose());
    wire::TlsCertificate {
        certificate_chain: Some(inline(chain.expect("the chain was signed by our own authority"))),
        private_key: Some(inline(key.expose().clone())),
    }
}

fn inline(pem: String) -> DataSource {
    DataSource { specifier: Some(Specifier::InlineBytes(Bytes::from(pem))) }
}
