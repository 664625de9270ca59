//! X509-SVIDs as they come from the socket, and what may be configured about them; read by x509-parser, and once by
//! OpenSSL.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;
use tether::proto::workload::X509svid;
use time::OffsetDateTime;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::harness::TestAgent;
use crate::support::forge::{members, x509_jwk};
use crate::support::{DOMAIN_ID, has_openssl, published, run, x509};
use crate::table::{Rule, Shown};

pub const RULES: &[Rule] = &[
    Rule {
        id: "X509-04",
        binds: "iss",
        says: "a leaf has a subject, or else a critical subject alternative name",
        shown: Shown::Test(|| run(subject())),
    },
    Rule {
        id: "X509-05",
        binds: "iss",
        says: "every signing certificate is a CA and no leaf is",
        shown: Shown::Test(|| run(basic_constraints())),
    },
    Rule {
        id: "X509-07",
        binds: "iss",
        says: "signing certificates are SVIDs of the leaves' trust domain",
        shown: Shown::Test(|| run(signing_ids())),
    },
    Rule {
        id: "X509-08",
        binds: "iss",
        says: "the SPIFFE ID of a signing certificate has no path and no slash",
        shown: Shown::Test(|| run(signing_ids())),
    },
    Rule {
        id: "X509-11",
        binds: "iss",
        says: "key usage is there and critical in every certificate",
        shown: Shown::Test(|| run(key_usage())),
    },
    Rule {
        id: "X509-12",
        binds: "iss",
        says: "signing certificates have keyCertSign and cRLSign and nothing else",
        shown: Shown::Test(|| run(key_usage())),
    },
    Rule {
        id: "X509-13",
        binds: "iss",
        says: "a leaf has digitalSignature, and keyEncipherment only with RSA",
        shown: Shown::Test(|| run(key_usage())),
    },
    Rule {
        id: "X509-14",
        binds: "iss",
        says: "a leaf is for server and client authentication, both",
        shown: Shown::Test(|| run(extended_key_usage())),
    },
    Rule {
        id: "X509-15",
        binds: "iss",
        says: "signing certificates have no extended key usage",
        shown: Shown::Test(|| run(extended_key_usage())),
    },
    Rule {
        id: "X509-16",
        binds: "iss",
        says: "signing certificates have no name constraints",
        shown: Shown::Test(|| run(no_name_constraints())),
    },
    Rule {
        id: "X509-21",
        binds: "pub",
        says: "the published bundle has one JWK for each CA certificate, with that certificate's key",
        shown: Shown::Test(|| run(published_keys())),
    },
    Rule {
        id: "X509-22",
        binds: "pub",
        says: "an X.509 key of the bundle has use x509-svid, one padded base64 certificate and no kid",
        shown: Shown::Test(|| run(published_keys())),
    },
    Rule {
        id: "X509-23",
        binds: "pub",
        says: "published CA certificates are self-signed",
        shown: Shown::Test(|| run(self_signed())),
    },
    Rule {
        id: "X509-27",
        binds: "iss",
        says: "a leaf states its basic constraints",
        shown: Shown::Test(|| run(basic_constraints())),
    },
    Rule {
        id: "X509-28",
        binds: "iss",
        says: "names, key identifiers, serials and dates satisfy `openssl verify -x509_strict`",
        shown: Shown::TestIf(has_openssl, "needs the command openssl", || run(strict())),
    },
    Rule {
        id: "X509-30",
        binds: "iss",
        says: "a leaf never outlives the authority that signed it",
        shown: Shown::Test(|| run(capped())),
    },
];

/// The certificates of one message: those of the chain, leaf first, and those of the bundle.
struct Certificates {
    chain: Vec<Vec<u8>>,
    bundle: Vec<Vec<u8>>,
}

/// Splits concatenated DER by what x509-parser says a certificate is.
pub fn split(mut der: &[u8]) -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    while !der.is_empty() {
        let (rest, _) = X509Certificate::from_der(der).expect("a certificate and nothing before it");
        out.push(der[..der.len() - rest.len()].to_vec());
        der = rest;
    }
    out
}

/// Reads one certificate.
pub fn parse(der: &[u8]) -> X509Certificate<'_> {
    X509Certificate::from_der(der).unwrap().1
}

impl Certificates {
    fn of(svid: &X509svid) -> Self {
        Self { chain: split(&svid.x509_svid), bundle: split(&svid.bundle) }
    }

    fn leaf(&self) -> X509Certificate<'_> {
        parse(&self.chain[0])
    }

    fn signing(&self) -> impl Iterator<Item = X509Certificate<'_>> {
        self.chain[1..].iter().chain(&self.bundle).map(|der| parse(der))
    }
}

async fn issued() -> Certificates {
    let agent = TestAgent::start().await;
    Certificates::of(&x509(&agent).await.svids[0])
}

/// The URIs among a certificate's names.
pub fn uris(certificate: &X509Certificate<'_>) -> Vec<String> {
    let names = certificate.subject_alternative_name().unwrap().map(|names| names.value.general_names.clone());
    let uri = |name: GeneralName<'_>| match name {
        GeneralName::URI(uri) => Some(uri.to_owned()),
        _ => None,
    };
    names.unwrap_or_default().into_iter().filter_map(uri).collect()
}

async fn subject() {
    let issued = issued().await;
    let leaf = issued.leaf();
    let critical = leaf.subject_alternative_name().unwrap().unwrap().critical;
    assert!(leaf.subject().iter().next().is_some() || critical);
}

async fn basic_constraints() {
    let issued = issued().await;
    let leaf = issued.leaf();
    assert!(!leaf.basic_constraints().unwrap().expect("it is stated").value.ca);
    assert!(issued.signing().count() >= 2, "the signing authority and the root");
    for signing in issued.signing() {
        let constraints = signing.basic_constraints().unwrap().unwrap();
        assert!(constraints.value.ca && constraints.critical);
    }
}

async fn signing_ids() {
    for signing in issued().await.signing() {
        assert_eq!(uris(&signing), [DOMAIN_ID]);
    }
}

async fn key_usage() {
    for (key_type, leaf_bits) in [("ec-p256", 0b1), ("ec-p384", 0b1), ("rsa-2048", 0b101)] {
        let agent = TestAgent::configured(|config| {
            config.authority.key_type = match key_type {
                "ec-p256" => tether::x509::KeyType::EcP256,
                "ec-p384" => tether::x509::KeyType::EcP384,
                _ => tether::x509::KeyType::Rsa2048,
            };
        })
        .await;
        let issued = Certificates::of(&x509(&agent).await.svids[0]);
        let bits = |certificate: &X509Certificate<'_>| {
            let usage = certificate.key_usage().unwrap().expect("it is there");
            assert!(usage.critical);
            usage.value.flags
        };
        assert_eq!(bits(&issued.leaf()), leaf_bits, "{key_type}");
        for signing in issued.signing() {
            assert_eq!(bits(&signing), 1 << 5 | 1 << 6, "{key_type}");
        }
    }
}

async fn extended_key_usage() {
    let issued = issued().await;
    let leaf = issued.leaf();
    let usage = leaf.extended_key_usage().unwrap().expect("it is there").value;
    assert!(usage.server_auth && usage.client_auth && !usage.any);
    assert!(usage.other.is_empty() && !usage.code_signing && !usage.email_protection);
    for signing in issued.signing() {
        assert!(signing.extended_key_usage().unwrap().is_none());
    }
}

async fn no_name_constraints() {
    for signing in issued().await.signing() {
        assert!(signing.name_constraints().unwrap().is_none());
    }
}

/// The X.509 keys of the published bundle.
fn x509_keys(bundle: &Value) -> Vec<&Value> {
    bundle["keys"].as_array().unwrap().iter().filter(|key| key["use"] == "x509-svid").collect()
}

async fn published_keys() {
    let agent = TestAgent::start().await;
    let bundle = published(&agent).await;
    let keys = x509_keys(&bundle);
    let roots = split(&x509(&agent).await.svids[0].bundle);
    assert_eq!(keys.len(), roots.len());
    for (key, root) in keys.into_iter().zip(&roots) {
        assert_eq!(*key, x509_jwk(&[root]), "key parameters, use and x5c are the certificate's");
        assert_eq!(members(key), BTreeSet::from(["crv", "kty", "use", "x", "x5c", "y"]));
        let [encoded] = &key["x5c"].as_array().unwrap()[..] else { panic!("one certificate") };
        let encoded = encoded.as_str().unwrap();
        let standard = base64::engine::general_purpose::STANDARD;
        assert_eq!(&base64::Engine::decode(&standard, encoded).expect("standard and padded"), root);
    }
}

async fn self_signed() {
    for root in issued().await.bundle {
        let root = parse(&root);
        assert_eq!(root.issuer().as_raw(), root.subject().as_raw());
        root.verify_signature(None).expect("by its own key");
    }
}

async fn strict() {
    let agent = TestAgent::start().await;
    let svid = x509(&agent).await.svids.remove(0);
    let issued = Certificates::of(&svid);
    let mut key_ids = Vec::new();
    for certificate in std::iter::once(issued.leaf()).chain(issued.signing()) {
        assert!(certificate.issuer().iter().next().is_some(), "an issuer has a name");
        let serial = certificate.raw_serial();
        assert!((1..=20).contains(&serial.len()) && serial[0] & 0x80 == 0 && serial.iter().any(|&octet| octet != 0));
        assert!(certificate.validity().not_before.to_datetime() <= agent.clock().now());
        let of = |certificate: &X509Certificate<'_>, authority: bool| {
            certificate.extensions().iter().find_map(|extension| match (extension.parsed_extension(), authority) {
                (ParsedExtension::SubjectKeyIdentifier(id), false) => Some(id.0.to_vec()),
                (ParsedExtension::AuthorityKeyIdentifier(id), true) => {
                    id.key_identifier.as_ref().map(|id| id.0.to_vec())
                }
                _ => None,
            })
        };
        key_ids.push((of(&certificate, false), of(&certificate, true)));
    }
    assert!(issued.leaf().validity().not_before.to_datetime() < agent.clock().now(), "backdated a little");
    // Leaf, signing authority, root: each names the key of the next.
    for pair in key_ids.windows(2) {
        assert!(pair[0].1.is_some() && pair[0].1 == pair[1].0);
    }

    let pem = |der: &[Vec<u8>]| -> String {
        der.iter().map(|der| tether::x509::Certificate::from_der(der).unwrap().to_pem()).collect()
    };
    let write = |name: &str, text: String| {
        let path = agent.dir().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let (leaf, between, roots) = (
        write("leaf.pem", pem(&issued.chain[..1])),
        write("between.pem", pem(&issued.chain[1..])),
        write("roots.pem", pem(&issued.bundle)),
    );
    for purpose in ["sslclient", "sslserver"] {
        let mut openssl = std::process::Command::new("openssl");
        openssl.args(["verify", "-x509_strict", "-purpose", purpose, "-CAfile"]).arg(&roots);
        let output = openssl.arg("-untrusted").arg(&between).arg(&leaf).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

async fn capped() {
    // A configuration file cannot say this: SVIDs live at most half as long as what signs them.
    let agent = TestAgent::configured(|config| {
        config.authority.ca_ttl = Duration::from_secs(3600);
        config.svid.x509_ttl = Duration::from_secs(3000);
    })
    .await;
    agent.clock().advance(Duration::from_secs(1200));
    let chain = split(&x509(&agent).await.svids[0].x509_svid);
    let ends: Vec<OffsetDateTime> = chain.iter().map(|der| parse(der).validity().not_after.to_datetime()).collect();
    assert_eq!(ends[0], ends[1], "cut to the signing authority's end");
    let left = ends[0] - agent.clock().now();
    assert!(left > Duration::from_secs(2300) && left < Duration::from_secs(2500), "{left}");
}
