//! The TLS signer is no oracle, and what is kept over a restart reads back.

use proptest::prelude::*;

use super::*;

const CLIENT: &[u8] = b"TLS 1.3, client CertificateVerify\0";
const SERVER: &[u8] = b"TLS 1.3, server CertificateVerify\0";

fn content(padding: &[u8], context: &[u8], hash: usize) -> Vec<u8> {
    [padding, context, &vec![7; hash]].concat()
}

#[test]
fn a_certificate_verify_of_tls_1_3_is_taken_for_one_with_every_scheme_and_hash() {
    for scheme in [0x0403, 0x0503, 0x0804] {
        for context in [CLIENT, SERVER] {
            for hash in [32, 48] {
                let content = content(&[b' '; 64], context, hash);
                let parsed = CertificateVerify::parse(scheme, &content).unwrap();
                assert_eq!(u32::from(parsed.scheme()), scheme);
                assert_eq!(parsed.bytes(), content);
            }
        }
    }
}

#[test]
fn nothing_else_is() {
    use NotCertificateVerify as Not;
    let spaces = [b' '; 65];
    let rows: Vec<(&str, u32, Vec<u8>, Not)> = vec![
        ("nothing", 0x0403, Vec::new(), Not::Content),
        ("a digest alone", 0x0403, vec![7; 32], Not::Content),
        ("a JWS", 0x0403, b"eyJhbGciOiJFUzI1NiIsInR5cCI6IldQVCJ9.e30".to_vec(), Not::Content),
        ("63 spaces", 0x0403, content(&spaces[..63], CLIENT, 32), Not::Content),
        ("65 spaces", 0x0403, content(&spaces, CLIENT, 32), Not::Content),
        ("zeros for spaces", 0x0403, content(&[0; 64], CLIENT, 32), Not::Content),
        ("one tab", 0x0403, [b"\t", &content(&spaces[..63], CLIENT, 32)[..]].concat(), Not::Content),
        ("a byte before", 0x0403, [b"x", &content(&spaces[..64], CLIENT, 32)[..]].concat(), Not::Content),
        ("no zero byte", 0x0403, content(&spaces[..64], &CLIENT[..CLIENT.len() - 1], 32), Not::Content),
        ("TLS 1.2", 0x0403, content(&spaces[..64], b"TLS 1.2, client CertificateVerify\0", 32), Not::Content),
        ("another context", 0x0403, content(&spaces[..64], b"TLS 1.3, delegated credentials\0", 32), Not::Content),
        ("upper case", 0x0403, content(&spaces[..64], &CLIENT.to_ascii_uppercase(), 32), Not::Content),
        ("no hash", 0x0403, content(&spaces[..64], CLIENT, 0), Not::Hash(0)),
        ("SHA-1", 0x0403, content(&spaces[..64], CLIENT, 20), Not::Hash(20)),
        ("31 bytes", 0x0403, content(&spaces[..64], CLIENT, 31), Not::Hash(31)),
        ("33 bytes", 0x0403, content(&spaces[..64], CLIENT, 33), Not::Hash(33)),
        ("64 bytes", 0x0403, content(&spaces[..64], CLIENT, 64), Not::Hash(64)),
        ("RSA PKCS#1", 0x0401, content(&spaces[..64], CLIENT, 32), Not::Scheme(0x0401)),
        ("ed25519", 0x0807, content(&spaces[..64], CLIENT, 32), Not::Scheme(0x0807)),
        ("no scheme", 0, content(&spaces[..64], CLIENT, 32), Not::Scheme(0)),
        ("more than 16 bits", 0x1_0403, content(&spaces[..64], CLIENT, 32), Not::Scheme(0x1_0403)),
    ];
    for (what, scheme, content, why) in rows {
        assert_eq!(CertificateVerify::parse(scheme, &content), Err(why), "{what}");
    }
}

proptest! {
    #[test]
    fn whatever_is_signed_begins_as_tls_1_3_says(content in proptest::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(CertificateVerify::parse(0x0403, &content).is_err());
    }
}

/// Holding keys takes a process to hold them for: this one.
mod with_an_instance {
    use std::sync::Arc;
    use std::time::Duration;

    use time::OffsetDateTime;

    use super::*;
    use crate::base::clock::{Clock, ManualClock};
    use crate::id::SpiffeId;
    use crate::peer::Instances;
    use crate::registry::EntryId;
    use crate::sys::Kernel;
    use crate::x509::{KeyType, PrivateKey};

    fn held() -> (Held, ManualClock, Arc<Instance>) {
        let (clock, hand) = Clock::manual(OffsetDateTime::UNIX_EPOCH);
        let instances = Instances::new(Kernel::probe()).unwrap();
        let me = instances.of_pid(i32::try_from(std::process::id()).unwrap(), None).unwrap();
        (Held::new(clock, Entropy::system()), hand, me)
    }

    fn key(id: &str, minutes: u64) -> NewKey {
        let now = OffsetDateTime::UNIX_EPOCH;
        NewKey {
            key: PrivateKey::generate(KeyType::EcP256).unwrap(),
            spiffe_id: SpiffeId::parse("spiffe://example.org/a").unwrap(),
            entry: EntryId::parse("a").unwrap(),
            shape: Shape { ttl: None, dns_names: Vec::new(), ends: None },
            holds: Holds::Wit("wit".to_owned()),
            id: id.to_owned(),
            authority: "authority".into(),
            delegate: None,
            binding: 3,
            issued_at: now,
            renew_at: now + Duration::from_secs(60),
            not_after: now + Duration::from_secs(60 * minutes),
        }
    }

    #[tokio::test]
    async fn a_key_is_found_by_its_instance_until_it_expires_and_is_wiped_then() {
        let (held, hand, me) = held();
        let short = held.keep(&me, 0, key("short", 5)).unwrap();
        let long = held.keep(&me, 0, key("long", 10)).unwrap();
        assert_eq!(held.find(short.handle(), me.id(), me.id()).unwrap(), short);
        assert!(matches!(held.find("0", me.id(), me.id()), Err(HeldError::NotHeld)));
        let mut changes = held.changes();
        changes.mark_unchanged();
        hand.advance(Duration::from_secs(5 * 60));
        assert!(matches!(held.find(short.handle(), me.id(), me.id()), Err(HeldError::NotHeld)), "at once");
        changes.changed().await.unwrap();
        assert!(!held.holds("short") && held.holds("long"));
        assert_eq!(held.wipe(|_| true), [long]);
        assert!(held.is_empty());
    }

    #[tokio::test]
    async fn a_process_cannot_make_the_agent_hold_keys_without_end() {
        let (held, _hand, me) = held();
        for n in 0..KEYS_PER_INSTANCE {
            held.keep(&me, 0, key(&n.to_string(), 5)).unwrap();
        }
        assert!(matches!(held.keep(&me, 0, key("more", 5)), Err(HeldError::Keys)));
        assert_eq!(held.len(), KEYS_PER_INSTANCE);
    }

    /// Keys held in a table, and the file that a service manager would keep of it.
    fn outliving() -> (Held, Arc<Instance>, std::fs::File) {
        let (held, _hand, me) = held();
        let table = Table::new(me.id().boot()).unwrap();
        let file = std::os::fd::AsFd::as_fd(&table).try_clone_to_owned().unwrap().into();
        held.outlive_in(table);
        (held, me, file)
    }

    #[tokio::test]
    async fn what_is_kept_comes_back_for_the_same_instance_and_nobody_else() {
        let (before, me, file) = outliving();
        let mine = before.keep(&me, 0, key("a", 5)).unwrap();
        let revoked = before.keep(&me, 0, key("b", 5)).unwrap();
        let wiped = before.keep(&me, 0, key("c", 5)).unwrap();
        before.wipe(|key| key.id() == wiped.id());
        let confirmation = before.begin_session("session").await.unwrap();
        before.begin_session("over").await.unwrap();
        before.wipe_session("over");
        let back = |find: &dyn Fn() -> Option<Arc<Instance>>| {
            let (after, ..) = held();
            let kept = Kept::read(&file, me.id().boot()).unwrap();
            assert_eq!(kept.len(), 3);
            after.take_back(kept, |_, _| find(), |key| key.id() != revoked.id());
            after
        };
        let after = back(&|| Some(me.clone()));
        assert_eq!(after.find(mine.handle(), me.id(), me.id()).unwrap(), mine);
        assert_eq!(after.len(), 2, "what was revoked meanwhile is not taken back");
        assert_eq!(after.sessions(), ["session"]);
        assert_eq!(after.session_key("session").unwrap().key(), confirmation.key());
        assert_eq!(back(&|| None).len(), 1, "the process is gone, and sessions are for others to judge");
    }

    #[tokio::test]
    async fn a_key_that_is_wiped_is_nowhere_in_the_table_any_more() {
        use std::os::unix::fs::FileExt as _;
        let (held, me, file) = outliving();
        let new = key("a", 5);
        let pkcs8 = new.key.to_pkcs8().unwrap();
        held.keep(&me, 0, new).unwrap();
        let is_there = || {
            let mut all = vec![0; 1 << 16];
            file.read_exact_at(&mut all, 0).unwrap();
            all.windows(pkcs8.expose().len()).any(|window| window == pkcs8.expose())
        };
        assert!(is_there(), "in the moment it is held");
        held.wipe(|_| true);
        assert!(!is_there(), "in the moment it is wiped");
    }
}
