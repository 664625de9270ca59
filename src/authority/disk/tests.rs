//! Which files of others become an authority, and why not.

use std::os::unix::fs::PermissionsExt as _;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose};
use tempfile::TempDir;
use time::Duration;
use time::macros::datetime;

use super::*;

const NOW: OffsetDateTime = datetime!(2026-01-01 00:00:00.75 UTC);

/// An authority made by another implementation.
struct Ca {
    pem: String,
    key_pem: String,
    issuer: rcgen::Issuer<'static, KeyPair>,
}

fn ca(name: &str, above: Option<&Ca>, change: impl FnOnce(&mut CertificateParams)) -> Ca {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    (params.not_before, params.not_after) = (NOW - Duration::days(1), NOW + Duration::days(30));
    change(&mut params);
    let key = KeyPair::generate().unwrap();
    let certificate = match above {
        Some(above) => params.signed_by(&key, &above.issuer).unwrap(),
        None => params.self_signed(&key).unwrap(),
    };
    let (pem, key_pem) = (certificate.pem(), key.serialize_pem());
    Ca { pem, key_pem, issuer: rcgen::Issuer::new(params, key) }
}

fn plain(_: &mut CertificateParams) {}

struct Files {
    dir: TempDir,
    files: DiskFiles,
}

impl Files {
    fn new(chain: &[&Ca], bundle: Option<&Ca>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let certificates: String = chain.iter().map(|ca| ca.pem.as_str()).collect();
        std::fs::write(at("ca.pem"), certificates).unwrap();
        std::fs::write(at("ca.key"), &chain[0].key_pem).unwrap();
        if let Some(bundle) = bundle {
            std::fs::write(at("roots.pem"), &bundle.pem).unwrap();
        }
        let bundle = bundle.map(|_| at("roots.pem"));
        let files = Self { files: DiskFiles { certificate: at("ca.pem"), key: at("ca.key"), bundle }, dir };
        files.set_mode(0o600);
        files
    }

    fn set_mode(&self, mode: u32) {
        let key = self.dir.path().join("ca.key");
        std::fs::set_permissions(key, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    fn read(&self) -> Result<DiskAuthority, DiskError> {
        let domain = TrustDomain::parse("example.org").unwrap();
        DiskAuthority::read(&self.files, &domain, NOW, &Entropy::system())
    }

    fn refusal(&self) -> String {
        self.read().map(|_| ()).unwrap_err().to_string()
    }
}

#[test]
fn a_root_and_an_intermediate_that_leads_to_the_given_roots_are_taken() {
    let root = ca("root", None, plain);
    let middle = ca("middle", Some(&root), plain);
    let lower = ca("lower", Some(&middle), plain);
    let alone = Files::new(&[&root], None).read().unwrap();
    assert!(alone.intermediates().is_empty());
    Files::new(&[&root], Some(&root)).read().unwrap();
    Files::new(&[&middle], Some(&root)).read().unwrap();
    let two = Files::new(&[&lower, &middle], Some(&root)).read().unwrap();
    assert!(!two.intermediates().is_empty());
}

#[test]
fn a_key_that_others_can_read_is_refused_with_its_mode_and_what_to_do() {
    let files = Files::new(&[&ca("root", None, plain)], None);
    for mode in [0o640, 0o604, 0o620, 0o644] {
        files.set_mode(mode);
        let refusal = files.refusal();
        assert!(refusal.contains(&format!("{mode:04o}")) && refusal.contains("chmod 0600"), "{refusal}");
    }
    files.set_mode(0o400);
    files.read().unwrap();
}

#[test]
fn an_intermediate_is_refused_when_no_path_leads_to_the_roots() {
    let root = ca("root", None, plain);
    let middle = ca("middle", Some(&root), plain);
    let lower = ca("lower", Some(&middle), plain);
    let namesake = ca("root", None, plain);
    let short = ca("short", None, |params| params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1)));
    let below_short = ca("middle", Some(&short), plain);
    let ended = ca("ended", None, |params| params.not_after = NOW - Duration::hours(1));
    let below_ended = ca("middle", Some(&ended), plain);
    for (what, chain, roots) in [
        ("another key under the same name", vec![&middle], &namesake),
        ("a link is missing", vec![&lower], &root),
        ("the root allows one authority below it, not two", vec![&below_short], &short),
        ("the root has ended", vec![&below_ended], &ended),
        ("a root that is not among the roots", vec![&root], &namesake),
    ] {
        let refusal = Files::new(&chain, Some(roots)).refusal();
        assert!(refusal.contains("not believed") && refusal.contains("roots.pem"), "{what}: {refusal}");
    }
}

#[test]
fn a_certificate_with_equal_names_that_another_key_signed_is_no_root() {
    let root = ca("root", None, plain);
    let rollover = ca("root", Some(&root), plain);
    let refusal = Files::new(&[&rollover], None).refusal();
    assert!(refusal.contains("it is an intermediate"), "{refusal}");
}

#[test]
fn a_certificate_before_or_after_its_time_is_refused() {
    let future = ca("root", None, |params| params.not_before = NOW + Duration::hours(1));
    let past = ca("root", None, |params| params.not_after = NOW - Duration::hours(1));
    assert!(Files::new(&[&future], None).refusal().contains("not valid before"));
    assert!(Files::new(&[&past], None).refusal().contains("expired"));
}
