use std::collections::BTreeMap;

use time::macros::datetime;

use super::super::output::Draft;
use super::*;
use crate::base::durable;
use crate::client::X509Svid;
use crate::id::{SpiffeId, TrustDomain};
use crate::jwt::Jwk;
use crate::x509::{Issuer, KeyType, LeafParams, PrivateKey, Serial, Validity, self_signed_root};

const NOW: OffsetDateTime = datetime!(2026-03-01 12:00 UTC);

fn root(domain: &str, hours: i64) -> Issuer {
    let validity = Validity { not_before: NOW - time::Duration::DAY, not_after: NOW + time::Duration::hours(hours) };
    let key = PrivateKey::generate(KeyType::EcP256).expect("made");
    self_signed_root(TrustDomain::parse(domain).expect("a domain"), key, validity, &Serial::from_random([1; 16]))
        .expect("signed")
}

fn authorities(roots: &[&Issuer]) -> X509Authorities {
    let certificates = roots.iter().map(|root| root.certificate().clone());
    X509Authorities::new(roots[0].trust_domain().clone(), certificates).expect("authorities")
}

/// An SVID of example.org below an intermediate, and the bundles of two trust domains. One root of its own has expired.
fn export() -> X509Export {
    let (own, former, other) = (root("example.org", 24), root("example.org", -1), root("partner.example", 24));
    let (ca_key, key) =
        (PrivateKey::generate(KeyType::EcP256).expect("made"), PrivateKey::generate(KeyType::EcP256).expect("made"));
    let validity = || Validity { not_before: NOW, not_after: NOW + time::Duration::HOUR };
    let ca = own.sign_ca(ca_key.public_key(), validity(), &Serial::from_random([2; 16])).expect("signed");
    let ca = Issuer::new(own.trust_domain().clone(), ca, ca_key).expect("an issuer");
    let id = SpiffeId::parse("spiffe://example.org/web").expect("an id");
    let params = LeafParams {
        spiffe_id: &id,
        public_key: key.public_key(),
        dns_names: &[],
        validity: validity(),
        serial: &Serial::from_random([3; 16]),
    };
    let leaf = Certificate::from_der(&ca.sign_leaf(&params).expect("signed")).expect("a certificate");
    let jwk = Jwk::from_spki(key.public_key()).expect("a key");
    let jwt = JwtAuthorities::new(own.trust_domain().clone(), [("one".to_owned(), jwk)]);
    let (bundle, partner) = (authorities(&[&own, &former]), authorities(&[&other]));
    let chain = Chain::new(vec![leaf, ca.certificate().clone()]).expect("a chain");
    X509Export {
        authorities: BTreeMap::from([
            (own.trust_domain().clone(), bundle.clone()),
            (other.trust_domain().clone(), partner),
        ]),
        jwt: BTreeMap::from([(own.trust_domain().clone(), jwt)]),
        crls: Vec::new(),
        svid: X509Svid { id, hint: None, chain, key, bundle },
    }
}

fn output(toml: &str) -> Output {
    let draft: Draft = toml::from_str(&format!("directory = \"/x\"\n{toml}")).expect(toml);
    Output::new(draft).expect(toml)
}

fn of(x509: &X509Export) -> Material<'_> {
    Material { x509: Some(x509), tokens: &[], now: NOW }
}

fn rendered(output: &Output, x509: &X509Export) -> BTreeMap<String, String> {
    let files = render(output, of(x509), &Entropy::system()).expect("rendered").expect("complete");
    let text = |file: &Rendered| String::from_utf8_lossy(file.content.expose()).into_owned();
    files.iter().map(|file| (file.name.clone(), text(file))).collect()
}

fn certificates(text: &str) -> usize {
    text.matches("BEGIN CERTIFICATE").count()
}

#[test]
fn certificates_are_in_the_files_that_the_output_says() {
    let x509 = export();
    for (toml, certificate, bundle) in [
        ("", 2, 2),
        ("omit_expired = true", 2, 1),
        ("federated_in_bundle = true", 2, 3),
        ("intermediates_in_bundle = true", 1, 3),
        ("intermediates_in_bundle = true\nfederated_in_bundle = true\nomit_expired = true", 1, 3),
    ] {
        let files = rendered(&output(toml), &x509);
        let found = (certificates(&files["svid.pem"]), certificates(&files["bundle.pem"]));
        assert_eq!(found, (certificate, bundle), "{toml}");
    }
}

#[test]
fn each_kind_of_file_has_what_its_name_says() {
    let x509 = export();
    let files = rendered(
        &output(
            "oidc_issuer = \"https://id.example.org\"\n[files]\ncombined = \"c\"\nfederated = \"{trust_domain}.pem\"\njwks = \"j\"\n\
             spiffe_bundle = \"s\"\noidc_discovery = \"d\"\noidc_jwks = \"k\"\ncrl = \"l\"",
        ),
        &x509,
    );
    assert!(files["c"].starts_with("-----BEGIN PRIVATE KEY-----") && certificates(&files["c"]) == 2);
    assert_eq!(files["partner.example.pem"], x509.authorities.values().last().expect("two").to_pem());
    assert!(!files.contains_key("example.org.pem"));
    let json = |name: &str| serde_json::from_str::<Value>(&files[name]).expect("JSON");
    assert_eq!(json("j")["keys"][0]["kid"], "one");
    assert_eq!(json("s")["keys"].as_array().expect("keys").len(), 3, "two roots and a key");
    assert_eq!(json("d")["issuer"], "https://id.example.org");
    assert_eq!(json("k")["keys"][0]["alg"], "ES256");
    assert_eq!(files["l"], "", "the agent has no list");
}

#[test]
fn nothing_is_made_while_something_is_missing_and_key_and_certificate_come_last() {
    let tokens = output("names = \"tls\"\njwt = [{ audience = [\"a\"], file = \"token\" }]");
    let x509 = export();
    let missing = Material { tokens: &[None], ..of(&x509) };
    assert!(render(&tokens, missing, &Entropy::system()).expect("no error").is_none());
    let nothing = Material { x509: None, tokens: &[], now: NOW };
    assert!(fingerprint(&output(""), nothing).expect("no error").is_none());
    let files = render(&output("names = \"tls\""), of(&x509), &Entropy::system()).expect("rendered").expect("complete");
    let names: Vec<&str> = files.iter().map(|file| file.name.as_str()).collect();
    assert_eq!(names, ["ca.crt", "tls.key", "tls.crt"]);
}

#[test]
fn the_fingerprint_changes_with_the_content_and_not_with_the_random_numbers_of_pkcs12() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("password");
    durable::replace(&path, b"secret", 0o600).expect("written");
    let output = output(&format!("password_file = \"{}\"\nfiles.pkcs12 = \"svid.p12\"", path.display()));
    let (one, other) = (export(), export());
    let made = |x509: &X509Export| rendered(&output, x509).remove("svid.p12").expect("made");
    assert_ne!(made(&one), made(&one));
    let fingerprint = |x509: &X509Export| fingerprint(&output, of(x509)).expect("no error").expect("complete");
    assert_eq!(fingerprint(&one), fingerprint(&one));
    assert_ne!(fingerprint(&one), fingerprint(&other));
}
