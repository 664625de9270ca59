//! Documents that no honest issuer makes: tokens with any header and claims, certificates with any extension.

use std::collections::BTreeSet;

use aws_lc_rs::encoding::{AsDer as _, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{EcdsaKeyPair, EcdsaSigningAlgorithm, KeyPair as _, RsaEncoding, RsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};

/// A key that signs whatever header and claims it is given.
pub enum Forger {
    /// On any of the curves.
    Ec(EcdsaKeyPair),
    /// RSA with any padding.
    Rsa(RsaKeyPair, &'static dyn RsaEncoding),
}

impl Forger {
    /// A new key on a curve.
    pub fn ec(algorithm: &'static EcdsaSigningAlgorithm) -> Self {
        Self::Ec(EcdsaKeyPair::generate(algorithm).unwrap())
    }

    /// A new RSA key for one padding and digest.
    pub fn rsa(encoding: &'static dyn RsaEncoding) -> Self {
        Self::Rsa(RsaKeyPair::generate(KeySize::Rsa2048).unwrap(), encoding)
    }

    /// The public key as the parameters of a JWK.
    pub fn jwk(&self) -> Value {
        let spki: PublicKeyX509Der<'_> = match self {
            Self::Ec(pair) => pair.public_key().as_der().unwrap(),
            Self::Rsa(pair, _) => pair.public_key().as_der().unwrap(),
        };
        Value::Object(tether::jwt::Jwk::from_spki(spki.as_ref()).unwrap().to_json())
    }

    /// The signature over a text.
    pub fn signature(&self, input: &str) -> Vec<u8> {
        match self {
            Self::Ec(pair) => pair.sign(&SystemRandom::new(), input.as_bytes()).unwrap().as_ref().to_vec(),
            Self::Rsa(pair, encoding) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(*encoding, &SystemRandom::new(), input.as_bytes(), &mut signature).unwrap();
                signature
            }
        }
    }

    /// A compact token.
    pub fn sign(&self, header: &Value, claims: &Value) -> String {
        let input =
            format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(claims.to_string()));
        let signature = self.signature(&input);
        format!("{input}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

/// The parts of a token.
pub struct Decoded {
    /// Its header.
    pub header: Value,
    /// Its claims.
    pub claims: Value,
}

/// Takes a token apart without believing it.
pub fn decode(token: &str) -> Decoded {
    let parts: Vec<&str> = token.split('.').collect();
    assert_eq!(parts.len(), 3, "three parts");
    let json = |part: &str| serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap();
    Decoded { header: json(parts[0]), claims: json(parts[1]) }
}

/// A signing authority of any trust domain.
pub struct Ca {
    /// Its certificate.
    pub der: Vec<u8>,
    issuer: rcgen::Issuer<'static, KeyPair>,
}

/// A key usage extension, and others, in their own words.
pub fn extension(oid: &[u64], critical: bool, content: &[u8]) -> CustomExtension {
    let mut extension = CustomExtension::from_oid_content(oid, content.to_vec());
    extension.set_criticality(critical);
    extension
}

/// A URI among the subject alternative names.
pub fn uri(uri: &str) -> SanType {
    SanType::URI(uri.try_into().unwrap())
}

fn authority(name: &str, now: OffsetDateTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    (params.not_before, params.not_after) = (now - Duration::days(1), now + Duration::days(30));
    params.use_authority_key_identifier_extension = true;
    params
}

impl Ca {
    /// A root that follows every rule.
    pub fn root(name: &str, now: OffsetDateTime) -> Self {
        Self::root_with(name, now, |_| ())
    }

    /// A root that differs in something.
    pub fn root_with(name: &str, now: OffsetDateTime, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = authority(name, now);
        params.use_authority_key_identifier_extension = false;
        change(&mut params);
        let certificate = params.self_signed(&key).unwrap();
        Self { der: certificate.der().to_vec(), issuer: rcgen::Issuer::new(params, key) }
    }

    /// An authority below this one.
    pub fn below(&self, name: &str, now: OffsetDateTime, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = authority(name, now);
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Self { der: certificate.der().to_vec(), issuer: rcgen::Issuer::new(params, key) }
    }

    /// A leaf for `id` that follows every rule but those that `change` breaks.
    pub fn leaf(&self, id: &str, now: OffsetDateTime, change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::OrganizationName, "forged");
        params.subject_alt_names = vec![uri(id)];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        (params.not_before, params.not_after) = (now - Duration::hours(1), now + Duration::hours(1));
        params.use_authority_key_identifier_extension = true;
        change(&mut params);
        params.signed_by(&KeyPair::generate().unwrap(), &self.issuer).unwrap().der().to_vec()
    }

    /// This authority as an element of a SPIFFE bundle.
    pub fn jwk(&self) -> Value {
        x509_jwk(&[&self.der])
    }
}

/// An `x509-svid` key of these certificates; its key parameters are the first one's.
pub fn x509_jwk(certificates: &[&[u8]]) -> Value {
    let first = tether::x509::Certificate::from_der(certificates[0]).unwrap();
    let mut key = Value::Object(tether::jwt::Jwk::from_spki(first.public_key()).unwrap().to_json());
    key["use"] = json!("x509-svid");
    key["x5c"] = certificates.iter().map(|der| STANDARD.encode(der)).collect();
    key
}

/// The names of a JSON object's members.
pub fn members(object: &Value) -> BTreeSet<&str> {
    object.as_object().unwrap().keys().map(String::as_str).collect()
}
