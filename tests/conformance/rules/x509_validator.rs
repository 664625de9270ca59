//! Believing an X509-SVID. The Workload API has no call for it: these rules are shown on `tether::x509::verify`, with
//! certificates made by another implementation; what an issuer owes too is shown over the socket beside it.

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, SanType};
use tether::id::TrustDomain;
use tether::x509::{Chain, X509Authorities, X509Error, verify};
use time::macros::datetime;
use time::{Duration, OffsetDateTime};
use tonic::Code;

use super::x509_issuer::{parse, split, uris};
use crate::harness::TestAgent;
use crate::support::forge::{Ca, extension, uri};
use crate::support::{DOMAIN_ID, create, entry, entry_with_id, refused, run, x509};
use crate::table::{Rule, Shown};

pub const RULES: &[Rule] = &[
    Rule {
        id: "X509-01",
        binds: "iss,val",
        says: "a leaf has exactly one URI name, whatever DNS names it has beside it",
        shown: Shown::Test(|| run(one_uri())),
    },
    Rule {
        id: "X509-02",
        binds: "val",
        says: "certificates with several URI names, or none, are refused",
        shown: Shown::Library(|| {
            refuse(
                "two SPIFFE IDs",
                |leaf| leaf.subject_alt_names.push(uri("spiffe://example.org/b")),
                "more than one",
            );
            refuse("another URI", |leaf| leaf.subject_alt_names.push(uri("https://example.org")), "more than one");
            refuse("none", |leaf| leaf.subject_alt_names.clear(), "no URI");
            refuse("DNS only", |leaf| leaf.subject_alt_names = vec![dns("example.org")], "no URI");
        }),
    },
    Rule {
        id: "X509-03",
        binds: "iss,val",
        says: "an ID without a path is neither issued nor believed as a workload's",
        shown: Shown::Test(|| run(path())),
    },
    Rule {
        id: "X509-06",
        binds: "iss,val",
        says: "a path length constraint holds for intermediates and for the root in the bundle",
        shown: Shown::Library(path_length),
    },
    Rule {
        id: "X509-09",
        binds: "val",
        says: "a signing certificate is never believed as a peer's identity",
        shown: Shown::Library(signing_certificate),
    },
    Rule {
        id: "X509-10",
        binds: "iss,val",
        says: "a chain through subordinate authorities is believed, and one with a gap is not",
        shown: Shown::Library(chains),
    },
    Rule {
        id: "X509-17",
        binds: "val",
        says: "path validation follows RFC 5280: signature, time, names, CA flags, critical extensions",
        shown: Shown::Library(path_validation),
    },
    Rule {
        id: "X509-18",
        binds: "val",
        says: "a leaf that is a CA, or may sign certificates or revocation lists, is refused",
        shown: Shown::Library(|| {
            refuse("cA", |leaf| leaf.is_ca = IsCa::Ca(BasicConstraints::Unconstrained), "signing certificate");
            let with = |usage: KeyUsagePurpose| {
                move |leaf: &mut CertificateParams| leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature, usage]
            };
            refuse("keyCertSign", with(KeyUsagePurpose::KeyCertSign), "keyCertSign or cRLSign");
            refuse("cRLSign", with(KeyUsagePurpose::CrlSign), "keyCertSign or cRLSign");
            refuse("no key usage", |leaf| leaf.key_usages.clear(), "keyUsage");
        }),
    },
    Rule {
        id: "X509-19",
        binds: "val",
        says: "the one URI name must be a SPIFFE ID",
        shown: Shown::Library(|| {
            let only =
                |name: &'static str| move |leaf: &mut CertificateParams| leaf.subject_alt_names = vec![uri(name)];
            refuse("https", only("https://example.org/a"), "not a SPIFFE ID");
            refuse("upper case", only("SPIFFE://example.org/a"), "not a SPIFFE ID");
            refuse("no scheme", only("example.org/a"), "not a SPIFFE ID");
        }),
    },
    Rule {
        id: "X509-20",
        binds: "val",
        says: "only the bundle of the ID's own trust domain counts, and without one nothing is believed",
        shown: Shown::Library(own_bundle),
    },
    Rule {
        id: "X509-29",
        binds: "val",
        says: "malformed and repeated extensions are refused",
        shown: Shown::Library(malformed),
    },
];

const NOW: OffsetDateTime = datetime!(2026-03-01 12:00 UTC);
const WORKLOAD: &str = "spiffe://example.org/a";

fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().unwrap())
}

fn authorities(domain: &str, roots: &[&Ca]) -> X509Authorities {
    let der: Vec<u8> = roots.iter().flat_map(|root| root.der.clone()).collect();
    X509Authorities::from_der(TrustDomain::parse(domain).unwrap(), &der).unwrap()
}

/// Believes certificates, leaf first, at a time, with these roots of example.org.
fn believe_at(certificates: &[&[u8]], roots: &[&Ca], now: OffsetDateTime) -> Result<(), X509Error> {
    let chain = Chain::from_der(&certificates.concat())?;
    let believed = verify(&chain, &authorities("example.org", roots), now, &[])?;
    assert_eq!(believed.spiffe_id().as_str(), WORKLOAD);
    Ok(())
}

fn believe(certificates: &[&[u8]], roots: &[&Ca]) -> Result<(), X509Error> {
    believe_at(certificates, roots, NOW)
}

/// A leaf with one thing wrong is refused for that, and the same leaf without it is believed.
#[track_caller]
fn refuse(what: &str, wrong: impl FnOnce(&mut CertificateParams), words: &str) {
    let root = Ca::root("root", NOW);
    believe(&[&root.leaf(WORKLOAD, NOW, |_| ())], &[&root]).expect("nothing is wrong with it");
    let error = believe(&[&root.leaf(WORKLOAD, NOW, wrong)], &[&root]).expect_err(what);
    assert!(error.to_string().contains(words), "{what}: {error}");
}

async fn one_uri() {
    let agent = TestAgent::start().await;
    let names = "dns_names = [\"a.example.org\", \"b.example.org\", \"*.c.example.org\"]";
    agent.write_entries("dns.toml", &entry("dns", "dns", names)).await;
    let svid = x509(&agent).await.svids.remove(0);
    let leaf = &split(&svid.x509_svid)[0];
    let leaf = parse(leaf);
    assert_eq!(uris(&leaf), [svid.spiffe_id.as_str()]);
    assert_eq!(leaf.subject_alternative_name().unwrap().unwrap().value.general_names.len(), 4);

    let root = Ca::root("root", NOW);
    let more = |leaf: &mut CertificateParams| {
        leaf.subject_alt_names.extend(["a.example", "b.example", "c.example"].map(dns));
        leaf.subject_alt_names.push(SanType::IpAddress("192.0.2.1".parse().unwrap()));
    };
    believe(&[&root.leaf(WORKLOAD, NOW, more)], &[&root]).expect("other kinds of names are free");
}

async fn path() {
    let agent = TestAgent::start().await;
    refused(create(&agent, entry_with_id("none", DOMAIN_ID, "")).await, Code::InvalidArgument, "path");
    refuse("no path", |leaf| leaf.subject_alt_names = vec![uri("spiffe://example.org")], "path");
}

fn path_length() {
    let limited = |limit| move |ca: &mut CertificateParams| ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(limit));
    let root = Ca::root("root", NOW);
    let upper = root.below("upper", NOW, limited(0));
    let lower = upper.below("lower", NOW, |_| ());
    believe(&[&upper.leaf(WORKLOAD, NOW, |_| ()), &upper.der], &[&root]).expect("none below it");
    believe(&[&lower.leaf(WORKLOAD, NOW, |_| ()), &lower.der, &upper.der], &[&root]).expect_err("one below 0");

    let root = Ca::root_with("root", NOW, limited(0));
    let below = root.below("below", NOW, |_| ());
    believe(&[&root.leaf(WORKLOAD, NOW, |_| ())], &[&root]).expect("it signs leaves");
    believe(&[&below.leaf(WORKLOAD, NOW, |_| ()), &below.der], &[&root]).expect_err("the root's own limit");
}

fn signing_certificate() {
    let root = Ca::root("root", NOW);
    let named = |ca: &mut CertificateParams| ca.subject_alt_names = vec![uri("spiffe://example.org")];
    let with_path = |ca: &mut CertificateParams| ca.subject_alt_names = vec![uri(WORKLOAD)];
    for ca in [root.below("signing", NOW, named), root.below("signing", NOW, with_path)] {
        let error = believe(&[&ca.der], &[&root]).expect_err("a CA");
        assert!(matches!(error, X509Error::AuthorityAsIdentity), "{error}");
    }
    believe(&[&root.der], &[&root]).expect_err("nor the root itself");
}

fn chains() {
    let root = Ca::root("root", NOW);
    let upper = root.below("upper", NOW, |_| ());
    let lower = upper.below("lower", NOW, |_| ());
    let leaf = lower.leaf(WORKLOAD, NOW, |_| ());
    believe(&[&leaf, &lower.der, &upper.der], &[&root]).expect("leaf, two intermediates, root");
    believe(&[&leaf, &upper.der], &[&root]).expect_err("the lower one is missing");
    believe(&[&leaf, &lower.der], &[&root]).expect_err("the upper one is missing");
    believe(&[&leaf, &lower.der], &[&upper]).expect("an intermediate may itself be the authority");
}

fn path_validation() {
    let root = Ca::root("root", NOW);
    let leaf = root.leaf(WORKLOAD, NOW, |_| ());
    for (seconds, good) in [(-3601, false), (-3599, true), (0, true), (3599, true), (3601, false)] {
        let at = NOW + Duration::seconds(seconds);
        assert_eq!(believe_at(&[&leaf], &[&root], at).is_ok(), good, "{seconds} seconds from now");
    }
    // A root of the same name with another key, and a signature that was changed.
    believe(&[&leaf], &[&Ca::root("root", NOW)]).expect_err("another key");
    believe(&[&leaf], &[&Ca::root("other", NOW)]).expect_err("another name");
    let mut broken = leaf.clone();
    *broken.last_mut().unwrap() ^= 1;
    believe(&[&broken], &[&root]).expect_err("the signature is wrong");
    // Not a CA, or not for signing certificates.
    let not_ca = root.below("not a CA", NOW, |ca| ca.is_ca = IsCa::ExplicitNoCa);
    believe(&[&not_ca.leaf(WORKLOAD, NOW, |_| ()), &not_ca.der], &[&root]).expect_err("its issuer is no CA");
    let usage = |ca: &mut CertificateParams| ca.key_usages = vec![KeyUsagePurpose::CrlSign];
    let may_not = root.below("may not sign", NOW, usage);
    believe(&[&may_not.leaf(WORKLOAD, NOW, |_| ()), &may_not.der], &[&root]).expect_err("no keyCertSign");
    let expired = |ca: &mut CertificateParams| ca.not_after = NOW - Duration::seconds(1);
    let expired = root.below("expired", NOW, expired);
    believe(&[&expired.leaf(WORKLOAD, NOW, |_| ()), &expired.der], &[&root]).expect_err("an expired intermediate");
    // Extensions that nobody knows.
    let unknown = [1, 3, 6, 1, 4, 1, 99999, 1];
    let add = |critical| {
        move |leaf: &mut CertificateParams| {
            leaf.custom_extensions.push(extension(&unknown, critical, &[5, 0]));
        }
    };
    believe(&[&root.leaf(WORKLOAD, NOW, add(false))], &[&root]).expect("not critical");
    believe(&[&root.leaf(WORKLOAD, NOW, add(true))], &[&root]).expect_err("critical");
    // Purposes: both or the extension is absent.
    for (purposes, good) in [
        (vec![], true),
        (vec![ExtendedKeyUsagePurpose::ServerAuth], false),
        (vec![ExtendedKeyUsagePurpose::ClientAuth], false),
        (vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth], true),
    ] {
        let leaf = root.leaf(WORKLOAD, NOW, |leaf| leaf.extended_key_usages = purposes);
        assert_eq!(believe(&[&leaf], &[&root]).is_ok(), good);
    }
}

fn own_bundle() {
    let (ours, theirs) = (Ca::root("ours", NOW), Ca::root("theirs", NOW));
    let chain = Chain::from_der(&theirs.leaf(WORKLOAD, NOW, |_| ())).unwrap();
    verify(&chain, &authorities("example.org", &[&ours]), NOW, &[]).expect_err("signed by another domain's root");
    let error =
        verify(&chain, &authorities("partner.example", &[&theirs]), NOW, &[]).expect_err("another domain's bundle");
    assert!(matches!(error, X509Error::OtherTrustDomain { .. }), "{error}");
    verify(&chain, &authorities("example.org", &[]), NOW, &[]).expect_err("an empty bundle believes nothing");
}

fn malformed() {
    const BASIC_CONSTRAINTS: &[u64] = &[2, 5, 29, 19];
    const KEY_USAGE: &[u64] = &[2, 5, 29, 15];
    const ALT_NAME: &[u64] = &[2, 5, 29, 17];
    let root = Ca::root("root", NOW);
    let cases: [(&str, &[u64], &[u8]); 9] = [
        ("basic constraints cut short", BASIC_CONSTRAINTS, &[0x30, 5, 1, 1]),
        ("basic constraints not a sequence", BASIC_CONSTRAINTS, &[4, 0]),
        ("basic constraints with a sloppy boolean", BASIC_CONSTRAINTS, &[0x30, 3, 1, 1, 1]),
        ("basic constraints and more", BASIC_CONSTRAINTS, &[0x30, 0, 5, 0]),
        ("key usage not bits", KEY_USAGE, &[4, 1, 0x80]),
        ("key usage of no bits", KEY_USAGE, &[3, 1, 0]),
        ("key usage and more", KEY_USAGE, &[3, 2, 7, 0x80, 0]),
        ("names not a sequence", ALT_NAME, &[4, 0]),
        ("no names", ALT_NAME, &[0x30, 0]),
    ];
    for (what, oid, content) in cases {
        let instead = root.leaf(WORKLOAD, NOW, |leaf| {
            match oid {
                BASIC_CONSTRAINTS => leaf.is_ca = IsCa::NoCa,
                KEY_USAGE => leaf.key_usages.clear(),
                _ => leaf.subject_alt_names.clear(),
            }
            leaf.custom_extensions.push(extension(oid, true, content));
        });
        believe(&[&instead], &[&root]).expect_err(what);
    }
    let name = [&[0x30, 24, 0x86, 22], WORKLOAD.as_bytes()].concat();
    for (what, oid, content) in [
        ("basic constraints twice", BASIC_CONSTRAINTS, &[0x30, 0][..]),
        ("key usage twice", KEY_USAGE, &[3, 2, 7, 0x80]),
        ("names twice", ALT_NAME, &name),
    ] {
        let twice = root.leaf(WORKLOAD, NOW, |leaf| leaf.custom_extensions.push(extension(oid, true, content)));
        believe(&[&twice], &[&root]).expect_err(what);
    }
}
