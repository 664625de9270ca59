//! What key files are worth to whoever has them, and what becomes of them when the key-wrapping key changes.

use std::fs;

use tempfile::TempDir;

use super::*;
use crate::x509::KeyType;

const ONE: &str = "00112233445566778899aabbccddeeff";
const OTHER: &str = "ffeeddccbbaa99887766554433221100";

struct Bench {
    dir: TempDir,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("credentials")).unwrap();
        Self { dir }
    }

    fn give(&self, name: &str, content: &[u8]) {
        fs::write(self.dir.path().join("credentials").join(name), content).unwrap();
    }

    fn take(&self, name: &str) {
        fs::remove_file(self.dir.path().join("credentials").join(name)).unwrap();
    }

    fn open(&self) -> Result<KeyStore, KeyStoreError> {
        let wrapping = Wrapping::from_credentials(Some(&self.dir.path().join("credentials")))?;
        KeyStore::open(self.dir.path().join("keys"), wrapping, Entropy::system())
    }

    fn file(&self, id: &str) -> PathBuf {
        self.dir.path().join("keys").join(format!("{id}.pk8"))
    }

    fn content(&self, id: &str) -> Vec<u8> {
        fs::read(self.file(id)).unwrap()
    }
}

fn key() -> PrivateKey {
    PrivateKey::generate(KeyType::EcP256).unwrap()
}

fn plain(key: &PrivateKey) -> Vec<u8> {
    key.to_pkcs8().unwrap().expose().clone()
}

fn refusal<T: std::fmt::Debug>(result: Result<T, KeyStoreError>) -> UnwrapError {
    match result {
        Err(KeyStoreError::Wrapped { source, .. }) => source,
        other => panic!("it is refused as a wrapped key: {other:?}"),
    }
}

#[test]
fn a_wrapped_key_comes_back_and_its_file_holds_nothing_of_it() {
    let bench = Bench::new();
    bench.give(CREDENTIAL, &[7; 32]);
    let (keys, key) = (bench.open().unwrap(), key());
    keys.save(ONE, &key).unwrap();
    assert_eq!(bench.open().unwrap().load(ONE).unwrap().public_key(), key.public_key());
    let (document, file) = (plain(&key), bench.content(ONE));
    assert!(file.starts_with(b"tethkey\x01"));
    assert!(document.windows(8).all(|part| !file.windows(8).any(|found| found == part)));
    assert!(keys.weakness().is_none());
    keys.save(ONE, &key).unwrap();
    assert_ne!(file, bench.content(ONE), "each time with a nonce of its own");
}

#[test]
fn without_the_credential_keys_are_plain_files_and_that_is_said() {
    let bench = Bench::new();
    let keys = bench.open().unwrap();
    let key = key();
    keys.save(ONE, &key).unwrap();
    assert_eq!(bench.content(ONE), plain(&key));
    assert!(keys.weakness().unwrap().contains("tether.key-wrapping-key"));
    let without =
        KeyStore::open(bench.dir.path().join("keys"), Wrapping::from_credentials(None).unwrap(), Entropy::system());
    assert!(without.unwrap().load(ONE).is_ok());
}

#[test]
fn plain_keys_are_wrapped_at_the_next_start_and_what_they_were_is_overwritten() {
    use std::io::Read as _;
    let bench = Bench::new();
    let key = key();
    bench.open().unwrap().save(ONE, &key).unwrap();
    // What keeps the old file open sees what becomes of its blocks.
    let mut before = fs::File::open(bench.file(ONE)).unwrap();
    bench.give(CREDENTIAL, &[7; 32]);
    assert_eq!(bench.open().unwrap().load(ONE).unwrap().public_key(), key.public_key());
    assert!(bench.content(ONE).starts_with(b"tethkey"));
    let mut left = Vec::new();
    before.read_to_end(&mut left).unwrap();
    assert_eq!(left, vec![0; plain(&key).len()]);
    assert_eq!(
        fs::metadata(bench.file(ONE)).map(|meta| std::os::unix::fs::MetadataExt::mode(&meta) & 0o777).unwrap(),
        0o600
    );
}

#[test]
fn wrapped_keys_without_their_credential_stop_the_start_and_say_what_to_restore() {
    let bench = Bench::new();
    bench.give(CREDENTIAL, &[7; 32]);
    bench.open().unwrap().save(ONE, &key()).unwrap();
    let file = bench.content(ONE);
    bench.take(CREDENTIAL);
    let error = bench.open().unwrap_err();
    let said = crate::base::text::chain(&error);
    assert!(said.contains("/etc/credstore.encrypted/tether.key-wrapping-key"), "{said}");
    assert_eq!(refusal(Err::<(), _>(error)), UnwrapError::NoKey);
    bench.give(CREDENTIAL, &[8; 32]);
    assert_eq!(refusal(bench.open()), UnwrapError::OtherKey);
    assert_eq!(bench.content(ONE), file, "nothing is made in its place");
}

#[test]
fn with_the_former_key_beside_the_new_one_keys_are_wrapped_anew() {
    let bench = Bench::new();
    bench.give(CREDENTIAL, &[7; 32]);
    let key = key();
    bench.open().unwrap().save(ONE, &key).unwrap();
    bench.give(CREDENTIAL, &[8; 32]);
    bench.give(FORMER_CREDENTIAL, &[7; 32]);
    bench.open().unwrap();
    bench.take(FORMER_CREDENTIAL);
    assert_eq!(bench.open().unwrap().load(ONE).unwrap().public_key(), key.public_key());
    bench.give(CREDENTIAL, &[7; 32]);
    assert_eq!(refusal(bench.open()), UnwrapError::OtherKey, "the former key opens nothing any more");
}

#[test]
fn a_wrapped_key_does_not_open_under_the_name_of_another_authority() {
    let bench = Bench::new();
    bench.give(CREDENTIAL, &[7; 32]);
    let keys = bench.open().unwrap();
    keys.save(ONE, &key()).unwrap();
    keys.save(OTHER, &key()).unwrap();
    fs::copy(bench.file(OTHER), bench.file(ONE)).unwrap();
    assert_eq!(refusal(keys.load(ONE)), UnwrapError::Damaged);
    assert!(keys.load(OTHER).is_ok());
}

#[test]
fn a_wrapped_key_that_was_cut_or_changed_anywhere_does_not_open() {
    let bench = Bench::new();
    bench.give(CREDENTIAL, &[7; 32]);
    let keys = bench.open().unwrap();
    keys.save(ONE, &key()).unwrap();
    let whole = bench.content(ONE);
    let changed = (0..whole.len()).map(|at| {
        let mut changed = whole.clone();
        changed[at] ^= 1;
        changed
    });
    let cut = (0..whole.len()).map(|length| whole[..length].to_vec());
    let longer = [&whole[..], &[0]].concat();
    for content in changed.chain(cut).chain([longer]) {
        fs::write(bench.file(ONE), &content).unwrap();
        assert!(keys.load(ONE).is_err(), "{} bytes", content.len());
    }
    fs::write(bench.file(ONE), &whole).unwrap();
    assert!(keys.load(ONE).is_ok());
    let mut newer = whole;
    newer[7] = 2;
    fs::write(bench.file(ONE), &newer).unwrap();
    assert_eq!(refusal(keys.load(ONE)), UnwrapError::Newer(2));
}

#[test]
fn a_credential_that_is_no_key_of_32_bytes_is_refused_with_what_to_do() {
    let bench = Bench::new();
    for length in [0, 31, 33, 1000] {
        bench.give(CREDENTIAL, &vec![7; length]);
        let error = bench.open().unwrap_err().to_string();
        assert!(error.contains("tether.key-wrapping-key") && error.contains("systemd-creds"), "{length}: {error}");
    }
    let shown = format!("{:?}", {
        bench.give(CREDENTIAL, &[7; 32]);
        bench.open().unwrap()
    });
    assert!(!shown.contains("0707") && !shown.contains("7, 7"), "{shown}");
}
