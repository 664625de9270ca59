//! What verifiers that come from OpenID Connect want of a trust domain: a discovery document and a JWK Set, below the
//! `iss` of its JWT-SVIDs (OpenID Connect Discovery 1.0, sections 3 and 4; RFC 7517).
//!
//! Promises: the `issuer` in the document is the `iss` of the tokens byte for byte; the keys are those of JWT-SVIDs and
//! no others, with `kid`, `use` and `alg`, and without certificates; only what signs JWT-SVIDs is named as an algorithm.
//!
//! Does not: say that tokens are ID tokens. There is nobody to log in, and so no authorization endpoint.

use std::fmt;

use serde_json::{Value, json};
use thiserror::Error;

use super::{Bundle, jwks as with_key_ids};
use crate::jwt::{Algorithm, Jwk};

/// Where the discovery document is, below the issuer (OpenID Connect Discovery 1.0, section 4).
pub const DISCOVERY_PATH: &str = ".well-known/openid-configuration";
/// Where the JWK Set is, below the issuer.
pub const JWKS_PATH: &str = "jwks.json";

/// Far above any real one.
const MAX_ISSUER_BYTES: usize = 512;
/// What signs JWT-SVIDs, one for each kind of key.
const SIGNING: [Algorithm; 4] = [Algorithm::Es256, Algorithm::Es384, Algorithm::Es512, Algorithm::Rs256];

/// Why a text cannot be the issuer of tokens.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("`{text}` is not an issuer's URL such as https://oidc.example.org: {why}")]
pub struct InvalidIssuer {
    text: String,
    why: &'static str,
}

/// The `iss` of tokens: an `https://` URL without query or fragment, and without a slash at its end, since verifiers
/// compare it byte for byte and put the path of the discovery document behind it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct IssuerUrl(Box<str>);

impl IssuerUrl {
    /// Checks a URL.
    pub fn parse(text: &str) -> Result<Self, InvalidIssuer> {
        let wrong = |why| Err(InvalidIssuer { text: text.to_owned(), why });
        let Some(rest) = text.strip_prefix("https://") else { return wrong("verifiers take `https://` alone") };
        if text.len() > MAX_ISSUER_BYTES {
            return wrong("it is too long");
        }
        if text.ends_with('/') {
            return wrong("leave out the slash at its end, which verifiers treat in different ways");
        }
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (host, port) = authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port)));
        let is_label = |label: &str| {
            !label.is_empty() && label.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
        };
        if !host.split('.').all(is_label) {
            return wrong("its host is a name in lower case");
        }
        if port.is_some_and(|port| !port.parse::<u16>().is_ok_and(|number| number > 0 && number.to_string() == port)) {
            return wrong("its port is not a number");
        }
        let is_segment = |segment: &str| {
            let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
            !matches!(segment, "" | "." | "..") && segment.bytes().all(legal)
        };
        if rest.contains('/') && !path.split('/').all(is_segment) {
            return wrong("its path has letters, digits, `-`, `.`, `_` and `~` between single slashes");
        }
        Ok(Self(text.into()))
    }

    /// The URL.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its path: empty, or with a slash in front and none at its end.
    pub fn path(&self) -> &str {
        let rest = self.0.strip_prefix("https://").unwrap_or_default();
        rest.find('/').map_or("", |at| &rest[at..])
    }

    /// The URL of the JWK Set.
    pub fn jwks_uri(&self) -> String {
        format!("{self}/{JWKS_PATH}")
    }
}

impl fmt::Display for IssuerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The discovery document. It names the algorithms of the keys that the bundle has now: all that may sign soon, and all
/// whose tokens are still out.
pub fn discovery(issuer: &IssuerUrl, bundle: &Bundle) -> String {
    let mut algorithms: Vec<&str> = bundle.jwt().iter().filter_map(|(_, key)| signed_by(key)).collect();
    algorithms.sort_unstable();
    algorithms.dedup();
    let document = json!({
        "issuer": issuer.as_str(),
        "jwks_uri": issuer.jwks_uri(),
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": algorithms,
        "claims_supported": ["iss", "sub", "aud", "exp", "iat", "jti"],
    });
    document.to_string()
}

/// The JWK Set: each key that signs JWT-SVIDs, is about to, or did until its last token is out.
pub fn jwks(bundle: &Bundle) -> String {
    let algorithms = bundle.jwt().iter().map(|(_, key)| signed_by(key));
    let keys = with_key_ids(bundle.jwt().iter()).zip(algorithms).filter_map(|(mut members, algorithm)| {
        members.insert("use".to_owned(), "sig".into());
        members.insert("alg".to_owned(), algorithm?.into());
        Some(Value::Object(members))
    });
    json!({ "keys": keys.collect::<Vec<_>>() }).to_string()
}

fn signed_by(key: &Jwk) -> Option<&'static str> {
    SIGNING.into_iter().find(|algorithm| key.fits(*algorithm)).map(|algorithm| algorithm.name())
}

#[cfg(test)]
#[cfg(feature = "agent")]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::id::TrustDomain;
    use crate::jwt::{JwtAuthorities, JwtSigner};
    use crate::x509::{KeyType, PrivateKey, X509Authorities};

    fn bundle(kinds: &[KeyType]) -> Bundle {
        let domain = TrustDomain::parse("example.org").unwrap();
        let signers = kinds.iter().map(|kind| JwtSigner::new(&PrivateKey::generate(*kind).unwrap()).unwrap());
        let keys: Vec<_> = signers.map(|signer| (signer.key_id().to_owned(), signer.public_key().clone())).collect();
        Bundle::new(X509Authorities::new(domain.clone(), []).unwrap(), JwtAuthorities::new(domain, keys))
    }

    fn read(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn an_issuer_is_written_in_one_way() {
        for good in [
            "https://oidc.example.org",
            "https://localhost",
            "https://example.org:8443",
            "https://example.org/tether/prod-1",
            "https://192.0.2.1/a",
        ] {
            let issuer = IssuerUrl::parse(good).unwrap();
            assert_eq!(issuer.as_str(), good);
            assert_eq!(issuer.jwks_uri(), format!("{good}/jwks.json"));
        }
        for bad in [
            "",
            "oidc.example.org",
            "http://oidc.example.org",
            "HTTPS://oidc.example.org",
            "https://",
            "https://oidc.example.org/",
            "https://oidc.example.org/a/",
            "https://oidc.example.org//a",
            "https://oidc.example.org/../a",
            "https://oidc.example.org/a?b",
            "https://oidc.example.org?b",
            "https://oidc.example.org#b",
            "https://oidc.example.org/%61",
            "https://OIDC.example.org",
            "https://user@oidc.example.org",
            "https://oidc..org",
            "https://oidc.example.org:",
            "https://oidc.example.org:0443",
            "https://oidc.example.org:99999",
            "https://oidc.example.org ",
            &format!("https://example.org/{}", "x".repeat(512)),
        ] {
            assert!(IssuerUrl::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_path_of_an_issuer_is_what_comes_after_its_host() {
        for (issuer, path) in
            [("https://a.b", ""), ("https://a.b:1/x", "/x"), ("https://a.b/x/y", "/x/y"), ("https://a.b:8443", "")]
        {
            assert_eq!(IssuerUrl::parse(issuer).unwrap().path(), path, "{issuer}");
        }
    }

    #[test]
    fn keys_have_what_strict_verifiers_want_and_no_private_or_foreign_members() {
        let document = read(&jwks(&bundle(&[KeyType::EcP256, KeyType::EcP384, KeyType::Rsa2048])));
        let keys = document["keys"].as_array().unwrap();
        assert_eq!(keys.len(), 3);
        for key in keys {
            let (alg, members) = match key["kty"].as_str().unwrap() {
                "EC" if key["crv"] == "P-256" => ("ES256", &["alg", "crv", "kid", "kty", "use", "x", "y"][..]),
                "EC" => ("ES384", &["alg", "crv", "kid", "kty", "use", "x", "y"][..]),
                _ => ("RS256", &["alg", "e", "kid", "kty", "n", "use"][..]),
            };
            assert_eq!((key["alg"].as_str(), key["use"].as_str()), (Some(alg), Some("sig")));
            let found: BTreeSet<_> = key.as_object().unwrap().keys().map(String::as_str).collect();
            assert_eq!(found, members.iter().copied().collect());
        }
    }

    #[test]
    fn the_document_names_the_issuer_exactly_its_keys_below_it_and_the_algorithms_of_its_keys() {
        let issuer = IssuerUrl::parse("https://example.org/tether").unwrap();
        let document = read(&discovery(&issuer, &bundle(&[KeyType::Rsa2048, KeyType::EcP256, KeyType::EcP256])));
        assert_eq!(document["issuer"], "https://example.org/tether");
        assert_eq!(document["jwks_uri"], "https://example.org/tether/jwks.json");
        assert_eq!(document["id_token_signing_alg_values_supported"], json!(["ES256", "RS256"]));
        assert_eq!(document["subject_types_supported"], json!(["public"]));
        assert_eq!(document["response_types_supported"], json!(["id_token"]));
    }
}
