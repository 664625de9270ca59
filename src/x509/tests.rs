//! The rules of X509-SVID as vectors. Ids in the tables are those of the SPIFFE conformance checklist.

use std::process::Command;
use std::time::Duration;

use proptest::prelude::*;
use time::OffsetDateTime;
use time::macros::datetime;

use super::encode::{self as der, oid, tag};
use super::profile::{CRL_SIGN, DIGITAL_SIGNATURE, KEY_CERT_SIGN, extension, key_usage, name, signed, to_be_signed};
use super::*;
use crate::id::{SpiffeId, TrustDomain};

const NOW: OffsetDateTime = datetime!(2026-03-01 12:00 UTC);
const WORKLOAD: &str = "spiffe://example.org/unit/billing";

fn domain() -> TrustDomain {
    TrustDomain::parse("example.org").unwrap()
}

fn serial(n: u8) -> Serial {
    Serial::from_random([n; 16])
}

fn days(before: i64, after: i64) -> Validity {
    Validity { not_before: NOW - time::Duration::days(before), not_after: NOW + time::Duration::days(after) }
}

fn key() -> PrivateKey {
    PrivateKey::generate(KeyType::EcP256).unwrap()
}

fn root() -> Issuer {
    self_signed_root(domain(), key(), days(1, 365), &serial(1)).unwrap()
}

fn below(issuer: &Issuer, n: u8) -> Issuer {
    let key = key();
    let certificate = issuer.sign_ca(key.public_key(), days(1, 2), &serial(n)).unwrap();
    Issuer::new(issuer.trust_domain().clone(), certificate, key).unwrap()
}

fn leaf(issuer: &Issuer, id: &str, n: u8) -> Certificate {
    let key = key();
    let params = LeafParams {
        spiffe_id: &SpiffeId::parse(id).unwrap(),
        public_key: key.public_key(),
        dns_names: &["billing.example.org".to_owned()],
        validity: days(0, 1),
        serial: &serial(n),
    };
    Certificate::from_der(&issuer.sign_leaf(&params).unwrap()).unwrap()
}

fn authorities(roots: &[&Issuer]) -> X509Authorities {
    X509Authorities::new(domain(), roots.iter().map(|root| root.certificate().clone())).unwrap()
}

fn verify_at(chain: &[&Certificate], roots: &[&Issuer], now: OffsetDateTime) -> Result<VerifiedSvid, X509Error> {
    let chain = Chain::new(chain.iter().map(|&certificate| certificate.clone()).collect()).unwrap();
    verify(&chain, &authorities(roots), now, &[])
}

/// A certificate with exactly these extensions, correctly signed by `issuer`.
fn forge(issuer: &Issuer, extensions: &[Vec<u8>]) -> Vec<u8> {
    let subject = name(&[(oid::ORGANIZATION, tag::UTF8_STRING, "forged")]);
    let key = key();
    forge_with(issuer, &subject, key.public_key(), days(0, 1), extensions)
}

fn forge_with(issuer: &Issuer, subject: &[u8], public: &[u8], validity: Validity, extensions: &[Vec<u8>]) -> Vec<u8> {
    let extensions = der::element(tag::SEQUENCE, &extensions.concat());
    let issuer_name = issuer.certificate().subject();
    let tbs = to_be_signed(issuer.key(), &serial(99), issuer_name, validity, subject, public, &extensions);
    signed(issuer.key(), &tbs).unwrap()
}

fn basic_constraints(parts: &[&[u8]]) -> Vec<u8> {
    extension(oid::BASIC_CONSTRAINTS, true, &der::sequence(parts))
}

fn is_ca() -> Vec<u8> {
    basic_constraints(&[&der::element(tag::BOOLEAN, &[0xff])])
}

fn no_ca() -> Vec<u8> {
    basic_constraints(&[])
}

fn usage(bits: u8, critical: bool) -> Vec<u8> {
    let value = der::element(tag::BIT_STRING, &[bits.trailing_zeros() as u8, bits]);
    extension(oid::KEY_USAGE, critical, &value)
}

fn purposes(oids: &[&[u8]]) -> Vec<u8> {
    let oids: Vec<u8> = oids.iter().flat_map(|oid| der::element(tag::OID, oid)).collect();
    extension(oid::EXT_KEY_USAGE, false, &der::element(tag::SEQUENCE, &oids))
}

fn names(uris: &[&str]) -> Vec<u8> {
    let uris: Vec<u8> = uris.iter().flat_map(|uri| der::element(tag::context(6), uri.as_bytes())).collect();
    extension(oid::SUBJECT_ALT_NAME, false, &der::element(tag::SEQUENCE, &uris))
}

fn signs() -> Vec<u8> {
    usage(DIGITAL_SIGNATURE, true)
}

#[test]
fn a_leaf_is_held_to_every_rule_of_the_standard() {
    const UNKNOWN: &[u8] = &[0x2a, 3, 4];
    let both: &[&[u8]] = &[oid::KP_SERVER_AUTH, oid::KP_CLIENT_AUTH];
    let root = root();
    type Check = fn(&X509Error) -> bool;
    let refused: Vec<(&str, Vec<Vec<u8>>, Check)> = vec![
        ("X509-01 two SPIFFE IDs", vec![no_ca(), signs(), names(&[WORKLOAD, "spiffe://example.org/b"])], |e| {
            matches!(e, X509Error::SeveralUris)
        }),
        ("X509-01 a SPIFFE ID and an https URI", vec![no_ca(), signs(), names(&[WORKLOAD, "https://a/b"])], |e| {
            matches!(e, X509Error::SeveralUris)
        }),
        ("X509-02 no subject alternative name", vec![no_ca(), signs()], |e| matches!(e, X509Error::NoUri)),
        ("X509-03 no path", vec![no_ca(), signs(), names(&["spiffe://example.org"])], |e| {
            matches!(e, X509Error::NoPath)
        }),
        ("X509-09 an authority", vec![is_ca(), signs(), names(&[WORKLOAD])], |e| {
            matches!(e, X509Error::AuthorityAsIdentity)
        }),
        ("X509-11 no key usage", vec![no_ca(), names(&[WORKLOAD])], |e| matches!(e, X509Error::NoKeyUsage)),
        ("X509-11 key usage not critical", vec![no_ca(), usage(DIGITAL_SIGNATURE, false), names(&[WORKLOAD])], |e| {
            matches!(e, X509Error::KeyUsageNotCritical)
        }),
        ("X509-13 no digitalSignature", vec![no_ca(), usage(0x20, true), names(&[WORKLOAD])], |e| {
            matches!(e, X509Error::NoDigitalSignature)
        }),
        ("X509-14 client only", vec![no_ca(), signs(), purposes(&both[1..]), names(&[WORKLOAD])], |e| {
            matches!(e, X509Error::ExtendedKeyUsage)
        }),
        ("X509-14 server only", vec![no_ca(), signs(), purposes(&both[..1]), names(&[WORKLOAD])], |e| {
            matches!(e, X509Error::ExtendedKeyUsage)
        }),
        (
            "X509-17 unknown critical extension",
            { vec![no_ca(), signs(), names(&[WORKLOAD]), extension(UNKNOWN, true, &[5, 0])] },
            |e| matches!(e, X509Error::Path(_)),
        ),
        (
            "X509-18 keyCertSign",
            { vec![no_ca(), usage(DIGITAL_SIGNATURE | KEY_CERT_SIGN, true), names(&[WORKLOAD])] },
            |e| matches!(e, X509Error::SigningKeyUsage),
        ),
        ("X509-18 cRLSign", vec![no_ca(), usage(DIGITAL_SIGNATURE | CRL_SIGN, true), names(&[WORKLOAD])], |e| {
            matches!(e, X509Error::SigningKeyUsage)
        }),
        ("X509-19 an https URI", vec![no_ca(), signs(), names(&["https://example.org/unit/billing"])], |e| {
            matches!(e, X509Error::SpiffeId(_))
        }),
        ("X509-20 another trust domain", vec![no_ca(), signs(), names(&["spiffe://other.example/a"])], |e| {
            matches!(e, X509Error::OtherTrustDomain { .. })
        }),
        ("X509-27 no basicConstraints", vec![signs(), names(&[WORKLOAD])], |e| {
            matches!(e, X509Error::NoBasicConstraints)
        }),
    ];
    for (rule, extensions, check) in refused {
        let certificate = Certificate::from_der(&forge(&root, &extensions)).unwrap();
        let error = verify_at(&[&certificate], &[&root], NOW).expect_err(rule);
        assert!(check(&error), "{rule}: {error:?}");
    }
    let accepted = [
        ("without extended key usage", vec![no_ca(), signs(), names(&[WORKLOAD])]),
        ("with both purposes", vec![no_ca(), signs(), purposes(both), names(&[WORKLOAD])]),
        ("with an unknown extension", vec![no_ca(), signs(), names(&[WORKLOAD]), extension(UNKNOWN, false, &[5, 0])]),
    ];
    for (what, extensions) in accepted {
        let certificate = Certificate::from_der(&forge(&root, &extensions)).unwrap();
        let verified = verify_at(&[&certificate], &[&root], NOW).expect(what);
        assert_eq!(verified.spiffe_id().as_str(), WORKLOAD);
    }
}

#[test]
fn malformed_and_repeated_extensions_are_refused_at_reading() {
    // X509-29
    let root = root();
    let raw = |oid: &[u8], value: &[u8]| extension(oid, true, value);
    let san = |content: &[u8]| raw(oid::SUBJECT_ALT_NAME, &der::element(tag::SEQUENCE, content));
    let malformed: Vec<(&str, Vec<u8>)> = vec![
        ("basicConstraints is no sequence", raw(oid::BASIC_CONSTRAINTS, &[2, 1, 0])),
        ("basicConstraints has trailing bytes", raw(oid::BASIC_CONSTRAINTS, &[0x30, 0, 0])),
        ("cA is neither true nor false", raw(oid::BASIC_CONSTRAINTS, &[0x30, 3, 1, 1, 1])),
        ("pathLenConstraint is negative", raw(oid::BASIC_CONSTRAINTS, &[0x30, 6, 1, 1, 0xff, 2, 1, 0xff])),
        ("basicConstraints is empty", raw(oid::BASIC_CONSTRAINTS, &[])),
        ("keyUsage is no bit string", raw(oid::KEY_USAGE, &[4, 1, 0x80])),
        ("keyUsage has no bit", raw(oid::KEY_USAGE, &[3, 1, 0])),
        ("keyUsage has unused bits set", raw(oid::KEY_USAGE, &[3, 2, 7, 0xff])),
        ("keyUsage has trailing bytes", raw(oid::KEY_USAGE, &[3, 2, 7, 0x80, 0])),
        ("extended key usage is empty", raw(oid::EXT_KEY_USAGE, &[0x30, 0])),
        ("extended key usage holds no identifier", raw(oid::EXT_KEY_USAGE, &[0x30, 2, 5, 0])),
        ("alternative names are empty", san(&[])),
        ("an alternative name is cut off", san(&[0x86, 5, b's'])),
        ("a URI is not ASCII", san(&[0x86, 2, 0xc3, 0xbc])),
        ("an alternative name has no known form", san(&[0x89, 0])),
        ("alternative names have trailing bytes", raw(oid::SUBJECT_ALT_NAME, &[0x30, 3, 0x86, 1, b'a', 0])),
    ];
    for (what, extension) in malformed {
        let error = Certificate::from_der(&forge(&root, &[extension])).expect_err(what);
        assert!(matches!(error, X509Error::MalformedExtension(_)), "{what}: {error:?}");
    }
    for twice in [no_ca(), signs(), names(&[WORKLOAD])] {
        let error = Certificate::from_der(&forge(&root, &[twice.clone(), twice])).expect_err("twice");
        assert!(matches!(error, X509Error::DuplicateExtension(_)), "{error:?}");
    }
}

#[test]
fn a_path_leads_through_signing_authorities_to_one_of_the_domain() {
    let (root, stranger) = (root(), root());
    let signing = below(&root, 2);
    let svid = leaf(&signing, WORKLOAD, 3);
    let signing = signing.certificate();

    assert!(verify_at(&[&svid, signing], &[&root], NOW).is_ok(), "X509-10");
    type Check = fn(&X509Error) -> bool;
    let refused: Vec<(&str, Result<VerifiedSvid, X509Error>, Check)> = vec![
        ("X509-17 no path", verify_at(&[&svid], &[&root], NOW), |e| matches!(e, X509Error::UnknownAuthority)),
        ("ID-17 another authority", verify_at(&[&svid, signing], &[&stranger], NOW), |e| {
            matches!(e, X509Error::UnknownAuthority)
        }),
        ("BUN-03 no authorities", verify_at(&[&svid, signing], &[], NOW), |e| matches!(e, X509Error::UnknownAuthority)),
        (
            "X509-17 expired",
            verify_at(&[&svid, signing], &[&root], NOW + time::Duration::hours(25)),
            |e| matches!(e, X509Error::Expired(at) if *at == svid_end()),
        ),
        (
            "X509-17 not yet valid",
            verify_at(&[&svid, signing], &[&root], NOW - time::Duration::hours(1)),
            |e| matches!(e, X509Error::NotYetValid(at) if *at == NOW),
        ),
    ];
    for (rule, result, check) in refused {
        let error = result.expect_err(rule);
        assert!(check(&error), "{rule}: {error:?}");
    }
}

fn svid_end() -> OffsetDateTime {
    NOW + time::Duration::days(1)
}

#[test]
fn a_signature_that_does_not_hold_is_refused() {
    // ID-16
    let root = root();
    let mut bytes = leaf(&root, WORKLOAD, 2).der().to_vec();
    let at = bytes.windows(7).position(|window| window == b"billing").unwrap();
    bytes[at..at + 7].copy_from_slice(b"payment");
    let forged = Certificate::from_der(&bytes).unwrap();
    assert!(matches!(verify_at(&[&forged], &[&root], NOW), Err(X509Error::UnknownAuthority)));
}

#[test]
fn limits_of_signing_authorities_hold_for_the_ones_in_bundles_too() {
    let root = root();
    let middle_key = key();
    let middle_name = name(&[(oid::COMMON_NAME, tag::UTF8_STRING, "middle")]);
    let middle = |extensions: &[Vec<u8>], validity| {
        let der = forge_with(&root, &middle_name, middle_key.public_key(), validity, extensions);
        Certificate::from_der(&der).unwrap()
    };
    let issuer = |certificate: &Certificate| {
        let key = PrivateKey::from_pkcs8(middle_key.to_pkcs8().unwrap().expose()).unwrap();
        Issuer::new(domain(), certificate.clone(), key).unwrap()
    };
    let sound = middle(&[is_ca(), key_usage(KEY_CERT_SIGN)], days(1, 3));
    let svid = leaf(&issuer(&sound), WORKLOAD, 3);
    assert!(verify_at(&[&svid, &sound], &[&root], NOW).is_ok());

    // RFC 5280, section 6.1.4 (n)
    let may_not_sign = middle(&[is_ca(), key_usage(CRL_SIGN)], days(1, 3));
    assert!(matches!(verify_at(&[&svid, &may_not_sign], &[&root], NOW), Err(X509Error::Path(_))));
    let no_authority = middle(&[no_ca(), key_usage(KEY_CERT_SIGN)], days(1, 3));
    assert!(matches!(verify_at(&[&svid, &no_authority], &[&root], NOW), Err(X509Error::Path(_))));
    let client_only = middle(&[is_ca(), purposes(&[oid::KP_CLIENT_AUTH])], days(1, 3));
    assert!(matches!(verify_at(&[&svid, &client_only], &[&root], NOW), Err(X509Error::Path(_))));

    // X509-06: pathLenConstraint 0 in the bundle's own certificate, an authority below it.
    let none_below = middle(&[basic_constraints(&[&[1, 1, 0xff], &[2, 1, 0]])], days(1, 3));
    assert_eq!(none_below.path_len(), Some(0));
    let lowest = below(&issuer(&sound), 4);
    let svid_below = leaf(&lowest, WORKLOAD, 5);
    let with = |anchor: &Certificate, chain: &[&Certificate], now| {
        let anchors = X509Authorities::new(domain(), [anchor.clone()]).unwrap();
        verify(&Chain::new(chain.iter().map(|&c| c.clone()).collect()).unwrap(), &anchors, now, &[])
    };
    assert!(with(&sound, &[&svid_below, lowest.certificate()], NOW).is_ok());
    assert!(matches!(
        with(&none_below, &[&svid_below, lowest.certificate()], NOW),
        Err(X509Error::Path(webpki::Error::PathLenConstraintViolated))
    ));
    assert!(with(&none_below, &[&svid], NOW).is_ok());

    // An authority in the bundle that has itself expired.
    let short = middle(&[is_ca(), key_usage(KEY_CERT_SIGN)], days(1, 0));
    assert!(
        matches!(with(&short, &[&svid], NOW + time::Duration::minutes(1)), Err(X509Error::Expired(at)) if at == NOW)
    );
}

#[test]
fn only_authorities_make_a_set_of_authorities() {
    let root = root();
    let svid = leaf(&root, WORKLOAD, 2);
    assert!(matches!(X509Authorities::new(domain(), [svid]), Err(X509Error::NotAnAuthority(_))));
    let twice = [root.certificate().clone(), root.certificate().clone()];
    assert_eq!(X509Authorities::new(domain(), twice).unwrap().certificates().len(), 1);
}

#[test]
fn what_tether_issues_follows_the_profile() {
    let root = root();
    let signing = below(&root, 2);
    for ca in [root.certificate(), signing.certificate()] {
        assert!(ca.is_ca(), "X509-05");
        assert_eq!(ca.spiffe_id().unwrap().as_str(), "spiffe://example.org", "X509-07, X509-08, AMB-03");
        let usage = ca.key_usage().unwrap();
        assert!(usage.is_critical() && usage.key_cert_sign() && usage.crl_sign(), "X509-11, X509-12");
        assert!(!usage.digital_signature(), "X509-12");
        assert_eq!(ca.extended_key_usage(), None, "X509-15");
        assert!(ca.subject_key_id().is_some(), "X509-28");
    }
    assert!(root.certificate().is_self_issued(), "X509-23");
    assert_eq!((root.certificate().path_len(), signing.certificate().path_len()), (None, Some(0)));
    assert_ne!(root.certificate().subject(), signing.certificate().subject(), "names are of one key");

    let svid = leaf(&signing, WORKLOAD, 3);
    assert_eq!(svid.svid_id().unwrap().as_str(), WORKLOAD);
    assert!(!svid.is_ca(), "X509-05");
    let usage = svid.key_usage().unwrap();
    assert!(usage.is_critical() && usage.digital_signature(), "X509-11, X509-13");
    assert_eq!(svid.extended_key_usage(), Some(ExtendedKeyUsage { server_auth: true, client_auth: true }), "X509-14");
    assert_eq!(svid.authority_key_id(), signing.certificate().subject_key_id(), "X509-28");
    assert_eq!(svid.dns_names(), ["billing.example.org"]);
    assert_eq!(svid.serial(), &serial(3));
    assert_eq!((svid.not_before(), svid.not_after()), (NOW, svid_end()));
    let explicit = [&[6, 3][..], oid::BASIC_CONSTRAINTS, &[1, 1, 0xff, 4, 2, 0x30, 0]].concat();
    assert!(svid.der().windows(explicit.len()).any(|window| window == explicit), "X509-27: empty sequence");
}

#[test]
fn an_issuer_signs_only_what_it_may() {
    let root = root();
    let signing = below(&root, 2);
    let id = |text: &str| SpiffeId::parse(text).unwrap();
    let public = key().public_key().to_vec();
    let with = |id: &SpiffeId, validity, dns: &[String]| {
        signing.sign_leaf(&LeafParams {
            spiffe_id: id,
            public_key: &public,
            dns_names: dns,
            validity,
            serial: &serial(9),
        })
    };
    let workload = id(WORKLOAD);
    assert!(matches!(with(&id("spiffe://example.org"), days(0, 1), &[]), Err(ProfileError::Identity(_))), "X509-03");
    assert!(matches!(with(&id("spiffe://other.example/a"), days(0, 1), &[]), Err(ProfileError::Identity(_))));
    assert!(matches!(with(&workload, days(0, 3), &[]), Err(ProfileError::Validity { .. })), "X509-30");
    assert!(matches!(with(&workload, days(0, 0), &[]), Err(ProfileError::Validity { .. })));
    for bad in ["", "a..b", "-a", "a b", "ü.example", "a/b", "*"] {
        assert!(matches!(with(&workload, days(0, 1), &[bad.to_owned()]), Err(ProfileError::DnsName(_))), "{bad}");
    }
    assert!(matches!(signing.sign_ca(&public, days(0, 1), &serial(9)), Err(ProfileError::PathLength)), "X509-06");
    assert!(matches!(root.sign_ca(b"no key", days(0, 1), &serial(9)), Err(ProfileError::PublicKey)));

    let other = TrustDomain::parse("other.example").unwrap();
    let again = || PrivateKey::from_pkcs8(root.key().to_pkcs8().unwrap().expose()).unwrap();
    let certificate = || root.certificate().clone();
    assert!(Issuer::new(domain(), certificate(), again()).is_ok(), "rebuilt from what is on disk");
    assert!(matches!(Issuer::new(other, certificate(), again()), Err(ProfileError::OtherTrustDomain(_))), "BUN-14");
    assert!(matches!(Issuer::new(domain(), certificate(), key()), Err(ProfileError::OtherKey)));
    let svid = leaf(&root, WORKLOAD, 3);
    assert!(matches!(Issuer::new(domain(), svid, key()), Err(ProfileError::NotAnAuthority)));
}

#[test]
fn a_foreign_issuer_s_name_is_copied_octet_for_octet() {
    let components = &[0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 1, 25]; // domainComponent
    let subject = name(&[(components, 0x16, "example"), (components, 0x16, "org"), (oid::COMMON_NAME, 0x13, "CA")]);
    let root = root();
    let ca_key = key();
    let der = forge_with(&root, &subject, ca_key.public_key(), days(1, 9), &[is_ca(), key_usage(KEY_CERT_SIGN)]);
    let foreign = Issuer::new(domain(), Certificate::from_der(&der).unwrap(), ca_key).unwrap();
    assert!(!foreign.may_sign_crls());
    assert!(matches!(foreign.sign_crl(&[], days(0, 1), 1), Err(ProfileError::MayNotSignCrls)));
    let svid = leaf(&foreign, WORKLOAD, 3);
    assert_eq!(svid.issuer(), subject);
    assert_eq!(svid.authority_key_id(), None, "the issuer has no key identifier to refer to");
    assert!(verify_at(&[&svid, foreign.certificate()], &[&root], NOW).is_ok());
}

#[test]
fn a_revoked_certificate_is_refused_while_its_list_is_fresh_and_everything_is_when_it_is_stale() {
    let root = root();
    let signing = below(&root, 2);
    let (good, bad) = (leaf(&signing, WORKLOAD, 3), leaf(&signing, WORKLOAD, 4));
    let line = Revoked { serial: serial(4), at: NOW, reason: RevocationReason::CessationOfOperation };
    let list = |lines: &[Revoked]| Crl::from_der(&signing.sign_crl(lines, days(0, 1), 7).unwrap()).unwrap();
    let check = |certificate: &Certificate, crl: Crl, now| {
        let chain = Chain::new(vec![certificate.clone(), signing.certificate().clone()]).unwrap();
        verify(&chain, &authorities(&[&root]), now, &[crl])
    };
    assert!(check(&good, list(&[]), NOW).is_ok());
    assert!(check(&good, list(std::slice::from_ref(&line)), NOW).is_ok());
    assert!(matches!(check(&bad, list(std::slice::from_ref(&line)), NOW), Err(X509Error::Revoked)));
    let later = svid_end() + time::Duration::seconds(1);
    let long_key = key();
    let long = LeafParams {
        spiffe_id: &SpiffeId::parse(WORKLOAD).unwrap(),
        public_key: long_key.public_key(),
        dns_names: &[],
        validity: days(0, 2),
        serial: &serial(5),
    };
    let long = Certificate::from_der(&signing.sign_leaf(&long).unwrap()).unwrap();
    assert!(matches!(check(&long, list(&[]), later), Err(X509Error::StaleCrl(_))));

    // A list in the name of the issuer that another key signed.
    let impostor = Issuer::new(domain(), signing.certificate().clone(), key());
    assert!(matches!(impostor, Err(ProfileError::OtherKey)));
    let mut forged = signing.sign_crl(&[], days(0, 1), 8).unwrap().to_vec();
    let last = forged.len() - 1;
    forged[last] ^= 1;
    assert!(matches!(check(&good, Crl::from_der(&forged).unwrap(), NOW), Err(X509Error::Path(_))));
}

#[test]
fn chains_and_bundles_read_back_as_they_were_written() {
    let root = root();
    let signing = below(&root, 2);
    let chain = Chain::new(vec![leaf(&signing, WORKLOAD, 3), signing.certificate().clone()]).unwrap();
    assert_eq!(Chain::from_der(&chain.to_der()).unwrap(), chain, "WL-19");
    assert_eq!(Chain::from_pem(chain.to_pem().as_bytes()).unwrap(), chain);
    assert_eq!(chain.intermediates(), [signing.certificate().clone()]);
    let set = authorities(&[&root, &signing]);
    assert_eq!(X509Authorities::from_der(domain(), &set.to_der()).unwrap(), set, "WL-21");
    assert_eq!(X509Authorities::from_pem(domain(), set.to_pem().as_bytes()).unwrap(), set);
    assert!(X509Authorities::from_der(domain(), &[]).unwrap().is_empty());

    let der = chain.leaf().der();
    assert!(matches!(Chain::from_der(&[]), Err(X509Error::NoCertificate)));
    assert!(matches!(Chain::from_pem(b"nothing"), Err(X509Error::NoCertificate)));
    assert!(matches!(Chain::from_der(&der[..der.len() - 1]), Err(X509Error::Malformed)));
    assert!(matches!(Certificate::from_der(&chain.to_der()), Err(X509Error::TrailingData)));
    assert!(matches!(Chain::from_der(&der.repeat(MAX_CHAIN + 1)), Err(X509Error::TooManyCertificates)));
}

#[test]
fn every_kind_of_key_issues_certificates_that_verify() {
    for kind in [KeyType::EcP256, KeyType::EcP384, KeyType::Rsa2048] {
        let root = self_signed_root(domain(), PrivateKey::generate(kind).unwrap(), days(1, 9), &serial(1)).unwrap();
        let workload_key = PrivateKey::generate(kind).unwrap();
        let params = LeafParams {
            spiffe_id: &SpiffeId::parse(WORKLOAD).unwrap(),
            public_key: workload_key.public_key(),
            dns_names: &[],
            validity: days(0, 1),
            serial: &serial(2),
        };
        let svid = Certificate::from_der(&root.sign_leaf(&params).unwrap()).unwrap();
        assert!(verify_at(&[&svid], &[&root], NOW).is_ok(), "{kind}");
        let again = PrivateKey::from_pem(workload_key.to_pem().unwrap().expose().as_bytes()).unwrap();
        assert_eq!(again.public_key(), svid.public_key(), "{kind}");
        assert_eq!(kind.to_string().parse::<KeyType>().unwrap(), kind);
    }
}

#[test]
fn serial_numbers_are_positive_and_of_fixed_length() {
    for octets in [[0; 16], [0xff; 16], [0x80; 16]] {
        let serial = Serial::from_random(octets);
        assert_eq!(serial.as_bytes().len(), 16);
        assert!((0x40..0x80).contains(&serial.as_bytes()[0]));
        assert_eq!(Serial::from_hex(&serial.to_string()), Some(serial));
    }
    for bad in ["", "0", "00", "0001", "AB", "abc", "é"] {
        assert_eq!(Serial::from_hex(bad), None, "{bad}");
    }
}

/// Runs the `openssl` tool, which these tests need.
fn openssl(args: &[&str]) -> std::process::Output {
    Command::new("openssl").args(args).output().expect("these tests need the `openssl` command on the PATH")
}

#[test]
fn openssl_accepts_what_tether_issues_under_its_strict_rules() {
    // X509-28
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    for kind in [KeyType::EcP256, KeyType::EcP384, KeyType::Rsa2048] {
        let root = self_signed_root(domain(), PrivateKey::generate(kind).unwrap(), days(1, 9), &serial(1)).unwrap();
        let signing_key = PrivateKey::generate(kind).unwrap();
        let signing = root.sign_ca(signing_key.public_key(), days(1, 2), &serial(2)).unwrap();
        let signing = Issuer::new(domain(), signing, signing_key).unwrap();
        let (good, bad) = (leaf(&signing, WORKLOAD, 3), leaf(&signing, WORKLOAD, 4));
        let line = Revoked { serial: serial(4), at: NOW, reason: RevocationReason::KeyCompromise };
        let crl = Crl::from_der(&signing.sign_crl(&[line], days(0, 1), 300).unwrap()).unwrap();
        let root = file("root.pem", &root.certificate().to_pem());
        let signing = file("signing.pem", &signing.certificate().to_pem());
        let crl = file("crl.pem", &crl.to_pem());
        let at = NOW.unix_timestamp().to_string();
        let check = |leaf: &Certificate| {
            let leaf = file("leaf.pem", &leaf.to_pem());
            let mut args = vec!["verify", "-x509_strict", "-crl_check", "-attime", &at, "-CRLfile", &crl];
            args.extend(["-CAfile", &root, "-untrusted", &signing, "-purpose", "sslserver", &leaf]);
            let output = openssl(&args);
            (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
        };
        let (ok, complaint) = check(&good);
        assert!(ok, "{kind}: {complaint}");
        let (ok, complaint) = check(&bad);
        assert!(!ok && complaint.contains("revoked"), "{kind}: {complaint}");
    }
}

#[test]
fn keys_that_openssl_wrote_in_older_forms_are_read() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let (sec1, pkcs1, small) = (path("sec1.pem"), path("pkcs1.pem"), path("small.pem"));
    assert!(openssl(&["ecparam", "-name", "secp384r1", "-genkey", "-noout", "-out", &sec1]).status.success());
    assert!(openssl(&["genrsa", "-traditional", "-out", &pkcs1, "2048"]).status.success());
    assert!(openssl(&["genrsa", "-out", &small, "1024"]).status.success());
    let read = |path: &str| PrivateKey::from_pem(&std::fs::read(path).unwrap());
    for path in [&sec1, &pkcs1] {
        let key = read(path).unwrap();
        let pkcs8 = key.to_pkcs8().unwrap();
        assert_eq!(PrivateKey::from_pkcs8(pkcs8.expose()).unwrap().public_key(), key.public_key());
    }
    assert!(matches!(read(&small), Err(KeyError::Unsupported)));
    assert!(matches!(PrivateKey::from_pem(b"nothing"), Err(KeyError::Pem(_))));
}

#[test]
fn a_private_key_never_shows_in_debug_output() {
    assert_eq!(format!("{:?}", key()), "PrivateKey(EcdsaP256Sha256, redacted)");
}

#[test]
fn times_beyond_2049_and_before_1970_do_not_confuse() {
    let far = datetime!(2061-01-01 0:00 UTC);
    let validity = Validity { not_before: NOW, not_after: far };
    let root = self_signed_root(domain(), key(), validity, &serial(1)).unwrap();
    assert_eq!(root.certificate().not_after(), far);
    let svid = leaf(&root, WORKLOAD, 2);
    let before = OffsetDateTime::UNIX_EPOCH - Duration::from_secs(1);
    assert!(matches!(verify_at(&[&svid], &[&root], before), Err(X509Error::NotYetValid(_))));
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_make_the_readers_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        fuzz_chain(&bytes);
    }

    #[test]
    fn a_certificate_with_a_changed_byte_is_read_or_refused(at in 0usize..600, xor in 1u8..) {
        let root = root();
        let mut bytes = leaf(&root, WORKLOAD, 2).der().to_vec();
        let at = at % bytes.len();
        bytes[at] ^= xor;
        fuzz_chain(&bytes);
        if let Ok(certificate) = Certificate::from_der(&bytes) {
            prop_assert!(verify_at(&[&certificate], &[&root], NOW).is_err());
        }
    }
}
