use std::path::Path;
use std::process::Command;

use time::macros::datetime;

use super::*;
use crate::id::{SpiffeId, TrustDomain};
use crate::x509::{Issuer, KeyType, LeafParams, Serial, Validity, X509Authorities, self_signed_root};

const PASSWORD: &str = "correct horse";

fn validity() -> Validity {
    let now = datetime!(2026-03-01 12:00 UTC);
    Validity { not_before: now, not_after: now + time::Duration::days(30) }
}

/// A chain of a leaf and a signing CA, its key, and the root.
fn svid(kind: KeyType) -> (Chain, PrivateKey, X509Authorities) {
    let domain = TrustDomain::parse("example.org").expect("a domain");
    let (root_key, ca_key, key) =
        (PrivateKey::generate(KeyType::EcP256), PrivateKey::generate(KeyType::EcP256), PrivateKey::generate(kind));
    let (root_key, ca_key, key) = (root_key.expect("made"), ca_key.expect("made"), key.expect("made"));
    let root = self_signed_root(domain.clone(), root_key, validity(), &Serial::from_random([1; 16])).expect("signed");
    let ca = root.sign_ca(ca_key.public_key(), validity(), &Serial::from_random([2; 16])).expect("signed");
    let ca = Issuer::new(domain.clone(), ca, ca_key).expect("an issuer");
    let params = LeafParams {
        spiffe_id: &SpiffeId::parse("spiffe://example.org/web").expect("an id"),
        public_key: key.public_key(),
        dns_names: &[],
        validity: validity(),
        serial: &Serial::from_random([3; 16]),
    };
    let leaf = Certificate::from_der(&ca.sign_leaf(&params).expect("signed")).expect("a certificate");
    let authorities = X509Authorities::new(domain, [root.certificate().clone()]).expect("authorities");
    (Chain::new(vec![leaf, ca.certificate().clone()]).expect("a chain"), key, authorities)
}

fn password(text: &str) -> Result<Password, Pkcs12Error> {
    Password::new(Secret::new(text.to_owned()))
}

/// What a program says about a file; `None` where it is not installed.
fn said(program: &str, arguments: &[&str], file: &Path) -> Option<(bool, String)> {
    let output = match Command::new(program).args(arguments).arg(file).output() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
        output => output.expect("it runs"),
    };
    let text = [output.stdout, output.stderr].concat();
    Some((output.status.success(), String::from_utf8_lossy(&text).into_owned()))
}

#[test]
fn openssl_finds_the_key_and_the_chain_and_nobody_does_with_another_password() {
    let dir = tempfile::tempdir().expect("a directory");
    for kind in [KeyType::EcP256, KeyType::EcP384, KeyType::Rsa2048] {
        let (chain, key, _) = svid(kind);
        let made = key_store(&chain, &key, &password(PASSWORD).expect("one"), &Entropy::system()).expect("made");
        let path = dir.path().join(kind.to_string());
        std::fs::write(&path, made.expose()).expect("written");
        let read = |pass: &str| {
            let pass = format!("pass:{pass}");
            said("openssl", &["pkcs12", "-nodes", "-passin", &pass, "-in"], &path)
        };
        let Some((ok, text)) = read(PASSWORD) else { return };
        assert!(ok, "{text}");
        for certificate in chain.certificates() {
            let pem = Chain::new(vec![certificate.clone()]).expect("one").to_pem();
            assert!(text.contains(&pem), "{kind}: {text}");
        }
        assert!(PrivateKey::from_pem(text.as_bytes()).expect("a key").public_key() == key.public_key());
        let (ok, text) = read("wrong").expect("installed");
        assert!(!ok && text.contains("invalid password"), "{text}");
    }
}

#[test]
fn java_finds_an_entry_with_a_key_and_a_chain_and_entries_it_believes() {
    let dir = tempfile::tempdir().expect("a directory");
    let (chain, key, authorities) = svid(KeyType::EcP256);
    let (password, entropy) = (password(PASSWORD).expect("one"), Entropy::system());
    let list = |name: &str, made: Secret<Vec<u8>>| {
        let path = dir.path().join(name);
        std::fs::write(&path, made.expose()).expect("written");
        said("keytool", &["-list", "-v", "-storetype", "PKCS12", "-storepass", PASSWORD, "-keystore"], &path)
    };
    let keys = key_store(&chain, &key, &password, &entropy).expect("made");
    let Some((ok, text)) = list("keys.p12", keys) else { return };
    let has_key = text.contains("Alias name: svid") && text.contains("Entry type: PrivateKeyEntry");
    assert!(ok && has_key && text.contains("Certificate chain length: 2"), "{text}");
    let trust = trust_store(&authorities.certificates().iter().collect::<Vec<_>>(), &password, &entropy).expect("made");
    let (ok, text) = list("trust.p12", trust).expect("installed");
    let believed = text.contains("Alias name: authority-1") && text.contains("Entry type: trustedCertEntry");
    assert!(ok && believed, "{text}");
}

#[test]
fn a_password_that_readers_could_take_for_different_ones_is_refused() {
    for bad in ["", "pässword", "tab\there", "line\n", &"x".repeat(MAX_PASSWORD + 1)] {
        assert!(password(bad).is_err(), "{bad:?}");
    }
    assert!(password(&"x".repeat(MAX_PASSWORD)).is_ok());
}

#[test]
fn two_files_of_the_same_have_other_salts() {
    let (chain, key, _) = svid(KeyType::EcP256);
    let made = || key_store(&chain, &key, &password(PASSWORD).expect("one"), &Entropy::system()).expect("made");
    assert_ne!(made().expose(), made().expose());
}
