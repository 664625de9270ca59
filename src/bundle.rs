//! SPIFFE bundles: what one trust domain is believed by (SPIFFE Trust Domain and Bundle, section 4).
//!
//! Promises: a document that is no bundle is refused whole; a single key that is unknown, incomplete or of a kind this
//! software does not know is skipped and named; keys of two trust domains never meet in one value; what is published
//! has no members beyond those the standard names, and only public parts; a key ID is that of one key of one purpose.
//!
//! Does not: fetch, store or schedule anything, and does not read bundle maps (section 5).

pub mod oidc;
#[cfg(test)]
#[cfg(feature = "agent")]
mod tests;

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};
use thiserror::Error;

use crate::id::TrustDomain;
use crate::jwt::{Jwk, JwkError, JwtAuthorities, StrictJsonError, parse_strict};
use crate::wit::WitAuthorities;
use crate::x509::{Certificate, X509Authorities, X509Error};

/// How soon to look for a newer bundle when it does not say (section 6.1: at most a few minutes).
pub const DEFAULT_REFRESH_HINT: Duration = Duration::from_secs(300);
/// The longest document that is looked at.
pub const MAX_BUNDLE_BYTES: usize = 4 * 1024 * 1024;

/// Why a document is not a bundle, or a bundle cannot be published.
#[derive(Debug, Error)]
pub enum BundleError {
    /// Longer than [`MAX_BUNDLE_BYTES`].
    #[error("the bundle is longer than {MAX_BUNDLE_BYTES} bytes")]
    TooLong,
    /// Not one JSON object with each name once.
    #[error("the bundle is not a JSON object")]
    Json(#[source] StrictJsonError),
    /// `keys` is absent or not an array (section 4.1.3).
    #[error("the bundle has no array `keys`")]
    NoKeys,
    /// A member of the document is of the wrong type.
    #[error("`{0}` is not a whole number")]
    Member(&'static str),
    /// The certificates cannot be used.
    #[error("the certificates are not authorities")]
    X509(#[source] X509Error),
    /// An authority has a key that a JWK cannot carry here.
    #[error("an authority's key cannot be published")]
    Key(#[source] JwkError),
}

/// The keys by which one trust domain is believed. Replace it whole; an empty one means: believe nothing of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    x509: X509Authorities,
    jwt: JwtAuthorities,
    /// INVARIANT: no key ID of these is also one of `jwt` (WIT-SVID, section 6.1).
    wit: WitAuthorities,
    sequence: Option<u64>,
    refresh_hint: Option<Duration>,
}

/// A bundle and what of its document could not be used.
#[derive(Debug)]
pub struct ParsedBundle {
    /// What could be used.
    pub bundle: Bundle,
    /// What was skipped, for the log.
    pub skipped: Vec<SkippedKey>,
}

/// A key that was skipped. The rest of the bundle is as good as without it.
#[derive(Debug, PartialEq, Eq)]
pub struct SkippedKey {
    /// Its place in `keys`, from 0.
    pub index: usize,
    /// Why.
    pub reason: String,
}

/// What a key is for (`use`; section 4.2.2).
enum Purpose {
    X509(Certificate),
    Jwt(String, Jwk),
    Wit(String, Jwk),
}

impl Bundle {
    /// A bundle of authorities of the same domain, without any for WIT-SVIDs.
    ///
    /// # Panics
    /// The two sets are of different trust domains, which is a mistake in the program.
    pub fn new(x509: X509Authorities, jwt: JwtAuthorities) -> Self {
        assert_eq!(x509.trust_domain(), jwt.trust_domain(), "a bundle is of one trust domain");
        let wit = WitAuthorities::new(jwt.trust_domain().clone(), []);
        Self { x509, jwt, wit, sequence: None, refresh_hint: None }
    }

    /// Sets the keys of WIT-SVIDs, without those whose key ID is that of a JWT-SVID key: key IDs are unique in the whole
    /// bundle (WIT-SVID, section 6.1).
    ///
    /// # Panics
    /// They are of another trust domain, which is a mistake in the program.
    #[must_use]
    pub fn with_wit(mut self, wit: WitAuthorities) -> Self {
        assert_eq!(self.trust_domain(), wit.trust_domain(), "a bundle is of one trust domain");
        let unique = wit.iter().filter(|(key_id, _)| self.jwt.find(key_id).is_none());
        let unique: Vec<(String, Jwk)> = unique.map(|(key_id, key)| (key_id.to_owned(), key.clone())).collect();
        self.wit = WitAuthorities::new(self.trust_domain().clone(), unique);
        self
    }

    /// Sets the sequence number, which grows with every change of the content (section 4.1.1).
    #[must_use]
    pub fn with_sequence(mut self, sequence: u64) -> Self {
        self.sequence = Some(sequence);
        self
    }

    /// Sets how soon a reader should look again, in whole seconds (section 4.1.2).
    #[must_use]
    pub fn with_refresh_hint(mut self, hint: Duration) -> Self {
        self.refresh_hint = Some(hint);
        self
    }

    /// Reads the bundle of `domain` from its JWK Set. The document itself does not say whose it is (section 3).
    ///
    /// # Errors
    /// The document as a whole is no bundle. Keys that cannot be used are skipped instead.
    pub fn parse(domain: &TrustDomain, json: &[u8]) -> Result<ParsedBundle, BundleError> {
        if json.len() > MAX_BUNDLE_BYTES {
            return Err(BundleError::TooLong);
        }
        let document = parse_strict(json).map_err(BundleError::Json)?;
        let keys = document.get("keys").and_then(Value::as_array).ok_or(BundleError::NoKeys)?;
        let (mut x509, mut jwt, mut wit, mut skipped) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (index, key) in keys.iter().enumerate() {
            match read_key(domain, key) {
                Ok(Purpose::X509(certificate)) => x509.push(certificate),
                Ok(Purpose::Jwt(key_id, key)) => jwt.push((key_id, key)),
                Ok(Purpose::Wit(key_id, key)) => wit.push((index, key_id, key)),
                Err(reason) => skipped.push(SkippedKey { index, reason }),
            }
        }
        let jwt = JwtAuthorities::new(domain.clone(), jwt);
        for (index, ..) in wit.extract_if(.., |(_, key_id, _)| jwt.find(key_id).is_some()) {
            skipped.push(SkippedKey { index, reason: "its `kid` is that of a JWT-SVID key".to_owned() });
        }
        let bundle = Self {
            x509: X509Authorities::new(domain.clone(), x509).map_err(BundleError::X509)?,
            jwt,
            wit: WitAuthorities::new(domain.clone(), wit.into_iter().map(|(_, key_id, key)| (key_id, key))),
            sequence: whole_number(&document, "spiffe_sequence")?,
            refresh_hint: whole_number(&document, "spiffe_refresh_hint")?.map(Duration::from_secs),
        };
        Ok(ParsedBundle { bundle, skipped })
    }

    /// The X.509 part of a bundle from `CERTIFICATE` blocks.
    pub fn from_pem(domain: &TrustDomain, text: &[u8]) -> Result<Self, BundleError> {
        let x509 = X509Authorities::from_pem(domain.clone(), text).map_err(BundleError::X509)?;
        Ok(Self::new(x509, JwtAuthorities::new(domain.clone(), [])))
    }

    /// Whose bundle it is.
    pub fn trust_domain(&self) -> &TrustDomain {
        self.x509.trust_domain()
    }

    /// The authorities of X509-SVIDs.
    pub fn x509(&self) -> &X509Authorities {
        &self.x509
    }

    /// The authorities of JWT-SVIDs.
    pub fn jwt(&self) -> &JwtAuthorities {
        &self.jwt
    }

    /// The authorities of WIT-SVIDs.
    pub fn wit(&self) -> &WitAuthorities {
        &self.wit
    }

    /// The sequence number, if it has one. One beyond 64 bits reads as the largest that fits.
    pub fn sequence(&self) -> Option<u64> {
        self.sequence
    }

    /// How soon to look again; see [`DEFAULT_REFRESH_HINT`] for when it does not say.
    pub fn refresh_hint(&self) -> Option<Duration> {
        self.refresh_hint
    }

    /// Whether nothing of the domain is to be believed (section 4.1.3).
    pub fn is_empty(&self) -> bool {
        self.x509.is_empty() && self.jwt.is_empty() && self.wit.is_empty()
    }

    /// The document to publish.
    ///
    /// # Errors
    /// An authority's key is neither EC (P-256, P-384, P-521) nor RSA.
    pub fn to_json(&self) -> Result<String, BundleError> {
        let mut keys = Vec::new();
        for certificate in self.x509.certificates() {
            let mut key = Jwk::from_spki(certificate.public_key()).map_err(BundleError::Key)?.to_json();
            key.insert("use".to_owned(), X509_SVID.into());
            key.insert("x5c".to_owned(), json!([STANDARD.encode(certificate.der())]));
            keys.push(key);
        }
        let jwt = jwks(self.jwt.iter()).map(|key| (key, JWT_SVID));
        for (mut key, purpose) in jwt.chain(jwks(self.wit.iter()).map(|key| (key, WIT_SVID))) {
            key.insert("use".to_owned(), purpose.into());
            keys.push(key);
        }
        let mut document = json!({ "keys": keys });
        if let Some(sequence) = self.sequence {
            document["spiffe_sequence"] = sequence.into();
        }
        if let Some(hint) = self.refresh_hint {
            document["spiffe_refresh_hint"] = hint.as_secs().into();
        }
        Ok(document.to_string())
    }

    /// The JWK Set of `FetchJWTBundles`: JWT keys only (Workload API, section 6.2.2).
    ///
    /// It has neither `use` nor the `spiffe_` members: it is a plain JWK Set whose purpose the call says, and so every
    /// client library reads it, those included that know no `use` but `sig` and `enc`. SPIRE writes it the same way.
    pub fn jwt_jwks(&self) -> String {
        json!({ "keys": jwks(self.jwt.iter()).collect::<Vec<_>>() }).to_string()
    }

    /// The JWK Set of `FetchWITBundles`: WIT keys only (Workload API, section 7.2.2), as plain as that of the JWT keys.
    pub fn wit_jwks(&self) -> String {
        json!({ "keys": jwks(self.wit.iter()).collect::<Vec<_>>() }).to_string()
    }
}

/// Each key with its `kid`.
fn jwks<'a>(keys: impl Iterator<Item = (&'a str, &'a Jwk)>) -> impl Iterator<Item = Map<String, Value>> {
    keys.map(|(key_id, key)| {
        let mut members = key.to_json();
        members.insert("kid".to_owned(), key_id.into());
        members
    })
}

/// One element of `keys`, or why it is skipped (section 4.2; X509-SVID, section 6.2; JWT-SVID, section 6.2; WIT-SVID,
/// section 6.1).
fn read_key(domain: &TrustDomain, key: &Value) -> Result<Purpose, String> {
    let members = key.as_object().ok_or("it is not an object")?;
    if !matches!(members.get("kty").and_then(Value::as_str), Some("EC" | "RSA")) {
        return Err("its `kty` is unknown".to_owned());
    }
    let purpose = members.get("use").and_then(Value::as_str).ok_or("it has no `use`")?;
    match purpose {
        X509_SVID => {
            // Of several certificates the first is the authority (X509-SVID, section 6.2).
            let x5c = members.get("x5c").and_then(Value::as_array).and_then(|x5c| x5c.first());
            let x5c = x5c.and_then(Value::as_str).ok_or("its `x5c` has no certificate")?;
            let der = STANDARD.decode(x5c).map_err(|_| "its `x5c` is not base64")?;
            let certificate = Certificate::from_der(&der).map_err(|error| error.to_string())?;
            // Alone in a set, so that one that is no authority is skipped without the others.
            X509Authorities::new(domain.clone(), [certificate.clone()]).map_err(|error| error.to_string())?;
            Ok(Purpose::X509(certificate))
        }
        JWT_SVID | WIT_SVID => {
            let key_id = members.get("kid").and_then(Value::as_str).filter(|kid| !kid.is_empty());
            let key_id = key_id.ok_or("it has no `kid`")?;
            let key = Jwk::from_json(members).map_err(|error| error.to_string())?;
            let purpose = if purpose == JWT_SVID { Purpose::Jwt } else { Purpose::Wit };
            Ok(purpose(key_id.to_owned(), key))
        }
        _ => Err("its `use` is unknown".to_owned()),
    }
}

fn whole_number(document: &Map<String, Value>, name: &'static str) -> Result<Option<u64>, BundleError> {
    match document.get(name) {
        None => Ok(None),
        Some(Value::Number(number)) => match (number.as_u64(), number.as_f64()) {
            (Some(whole), _) => Ok(Some(whole)),
            // What 64 bits cannot hold arrives as a float.
            (None, Some(huge)) if huge >= u64::MAX as f64 => Ok(Some(u64::MAX)),
            _ => Err(BundleError::Member(name)),
        },
        Some(_) => Err(BundleError::Member(name)),
    }
}

/// Entry point for fuzzing: reads arbitrary bytes as a bundle, and what it publishes once more.
#[doc(hidden)]
pub fn fuzz_bundle(bytes: &[u8]) {
    let Ok(domain) = TrustDomain::parse("fuzz.test") else { return };
    if let Ok(parsed) = Bundle::parse(&domain, bytes)
        && let Ok(published) = parsed.bundle.to_json()
    {
        let again = Bundle::parse(&domain, published.as_bytes()).map(|again| again.bundle).ok();
        assert_eq!(again, Some(parsed.bundle), "what is published reads as what it was");
    }
}

const X509_SVID: &str = "x509-svid";
const JWT_SVID: &str = "jwt-svid";
const WIT_SVID: &str = "wit-svid";
