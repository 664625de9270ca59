use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use time::OffsetDateTime;

use super::*;
use crate::attest::Evidence;
use crate::attest::tests::{Sleeper, evidence};
use crate::base::clock::ManualClock;

const AMPLE: Duration = Duration::from_secs(3600);

/// An attestor that never loses patience, whose clock stands so late that every file is an old one.
fn unix(source: impl NameSource + 'static) -> (Unix, ManualClock) {
    let (clock, hand) = Clock::manual(OffsetDateTime::from_unix_timestamp(1 << 36).expect("in range"));
    (Unix::new(&Config { patience: AMPLE, ..Config::default() }, source, clock), hand)
}

async fn attest(unix: &Unix, subject: &Subject) -> Evidence {
    evidence(unix.attest(subject, &Wanted::everything()).await.expect("attested"))
}

fn copy_of_sleep(dir: &Path, name: &str) -> PathBuf {
    let path = dir.canonicalize().expect("it exists").join(name);
    std::fs::copy("/bin/sleep", &path).expect("copied");
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).expect("allowed");
    path
}

/// Every user is called `u`, every group `g`, and somebody counts.
#[derive(Clone, Default)]
struct Counted(Arc<AtomicUsize>);

impl NameSource for Counted {
    fn user(&self, _: u32) -> io::Result<Option<String>> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Ok(Some("u".into()))
    }

    fn group(&self, _: u32) -> io::Result<Option<String>> {
        Ok(Some("g".into()))
    }
}

/// Users have no names, and groups cannot be looked up.
struct Broken;

impl NameSource for Broken {
    fn user(&self, _: u32) -> io::Result<Option<String>> {
        Ok(None)
    }

    fn group(&self, _: u32) -> io::Result<Option<String>> {
        Err(io::Error::from(io::ErrorKind::ConnectionRefused))
    }
}

/// Answers once the other side of the channel is gone.
struct Hung(std::sync::Mutex<std::sync::mpsc::Receiver<()>>);

impl NameSource for Hung {
    fn user(&self, _: u32) -> io::Result<Option<String>> {
        let _ = crate::attest::memo::lock(&self.0).recv();
        Ok(None)
    }

    fn group(&self, uid: u32) -> io::Result<Option<String>> {
        self.user(uid)
    }
}

#[tokio::test]
async fn a_child_process_has_its_ids_names_path_and_digest() {
    let dir = tempfile::tempdir().expect("temporary");
    let path = copy_of_sleep(dir.path(), "program");
    let sleeper = Sleeper::run(&path);
    let (unix, _hand) = unix(Counted::default());
    let subject = sleeper.subject();
    let evidence = attest(&unix, &subject).await;
    let value = |key| evidence.selectors.single_value("unix", key).map(str::to_owned);
    assert_eq!(value("uid"), Some(subject.uid.to_string()));
    assert_eq!(value("gid"), Some(subject.gid.to_string()));
    assert_eq!((value("user"), value("group")), (Some("u".into()), Some("g".into())));
    assert_eq!(value("path").as_deref(), path.to_str());
    let content = std::fs::read(&path).expect("readable");
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &content);
    assert_eq!(value("sha256"), Some(crate::base::entropy::hex(digest.as_ref())));
    assert_eq!(evidence.gaps, []);
}

#[tokio::test]
async fn the_hosts_name_service_knows_root_and_leaves_unknown_users_nameless() {
    assert_eq!(Nss.user(0).expect("answers").as_deref(), Some("root"));
    assert_eq!(Nss.group(0).expect("answers").as_deref(), Some("root"));
    assert_eq!(Nss.user(3_999_999_999).expect("answers"), None);
}

#[tokio::test]
async fn names_are_looked_up_once_for_many_callers_until_they_are_old() {
    let counted = Counted::default();
    let (unix, hand) = unix(counted.clone());
    let sleeper = Sleeper::start();
    let subject = sleeper.subject();
    join_all((0..20).map(|_| attest(&unix, &subject))).await;
    assert_eq!(counted.0.load(Ordering::SeqCst), 1);
    hand.advance(Duration::from_secs(61));
    attest(&unix, &subject).await;
    assert_eq!(counted.0.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_name_service_that_fails_is_a_gap_for_names_and_a_nameless_user_is_none() {
    let (unix, _hand) = unix(Broken);
    let sleeper = Sleeper::start();
    let subject = sleeper.subject();
    let evidence = attest(&unix, &subject).await;
    assert_eq!(evidence.selectors.single_value("unix", "uid"), Some(&*subject.uid.to_string()));
    assert!(evidence.selectors.single_value("unix", "path").is_some());
    assert!(evidence.gap("unix", "group").is_some());
    assert_eq!((evidence.gap("unix", "user"), evidence.gap("unix", "uid")), (None, None));
    assert_eq!(evidence.selectors.single_value("unix", "user"), None);
}

#[tokio::test]
async fn a_name_service_that_hangs_costs_the_names_alone() {
    let (release, hang) = std::sync::mpsc::channel();
    let (clock, _hand) = Clock::manual(OffsetDateTime::UNIX_EPOCH);
    let config = Config { patience: Duration::from_millis(1), ..Config::default() };
    let unix = Unix::new(&config, Hung(std::sync::Mutex::new(hang)), clock);
    let sleeper = Sleeper::start();
    let wanted = Wanted::keys([("unix", "uid"), ("unix", "user")]);
    let evidence = evidence(unix.attest(&sleeper.subject(), &wanted).await.expect("attested"));
    assert!(evidence.selectors.single_value("unix", "uid").is_some());
    assert!(NAME_KEYS.iter().all(|key| evidence.gap("unix", key).is_some()));
    assert_eq!(evidence.gap("unix", "uid"), None);
    drop(release);
}

#[tokio::test]
async fn an_executable_is_hashed_once_for_many_callers_and_processes() {
    let (unix, _hand) = unix(Counted::default());
    let sleepers = [Sleeper::start(), Sleeper::start()];
    let subjects: Vec<_> = sleepers.iter().map(Sleeper::subject).collect();
    join_all((0..40).map(|n| attest(&unix, &subjects[n % 2]))).await;
    assert_eq!(unix.hashed(), 1);
}

#[tokio::test]
async fn an_executable_is_not_hashed_unless_an_entry_wants_its_digest() {
    let (unix, _hand) = unix(Counted::default());
    let sleeper = Sleeper::start();
    let wanted = Wanted::keys([("unix", "path")]);
    let evidence = evidence(unix.attest(&sleeper.subject(), &wanted).await.expect("attested"));
    assert_eq!(unix.hashed(), 0);
    assert!(evidence.gap("unix", "sha256").is_some_and(|gap| gap.why == NOT_WANTED));
    assert!(evidence.selectors.single_value("unix", "path").is_some());
}

#[tokio::test]
async fn a_just_changed_executable_is_hashed_every_time() {
    let dir = tempfile::tempdir().expect("temporary");
    let path = copy_of_sleep(dir.path(), "program");
    let changed = std::os::unix::fs::MetadataExt::ctime(&path.metadata().expect("it exists"));
    let (clock, hand) = Clock::manual(OffsetDateTime::from_unix_timestamp(changed).expect("in range"));
    let unix = Unix::new(&Config { patience: AMPLE, ..Config::default() }, Counted::default(), clock);
    let sleeper = Sleeper::run(path);
    let subject = sleeper.subject();
    attest(&unix, &subject).await;
    attest(&unix, &subject).await;
    assert_eq!(unix.hashed(), 2);
    hand.advance(Duration::from_secs(3));
    attest(&unix, &subject).await;
    attest(&unix, &subject).await;
    assert_eq!(unix.hashed(), 3);
}

#[tokio::test]
async fn an_executable_above_the_limit_has_a_gap_for_a_digest() {
    let (clock, _hand) = Clock::manual(OffsetDateTime::UNIX_EPOCH);
    let config = Config { patience: AMPLE, max_hash_bytes: 10, ..Config::default() };
    let unix = Unix::new(&config, Counted::default(), clock);
    let sleeper = Sleeper::start();
    let evidence = attest(&unix, &sleeper.subject()).await;
    assert!(evidence.gap("unix", "sha256").is_some_and(|gap| gap.why.contains("at most 10 are hashed")));
    assert_eq!(unix.hashed(), 0);
}

#[tokio::test]
async fn a_deleted_executable_keeps_the_path_it_was_first_attested_with_and_its_digest() {
    let dir = tempfile::tempdir().expect("temporary");
    let path = copy_of_sleep(dir.path(), "program");
    let sleeper = Sleeper::run(&path);
    let mut subject = sleeper.subject();
    let (unix, _hand) = unix(Counted::default());
    let before = attest(&unix, &subject).await;
    // As a package upgrade does it: a new file under the old name.
    let new = copy_of_sleep(dir.path(), "new");
    std::fs::rename(new, &path).expect("renamed");

    let unknown = attest(&unix, &subject).await;
    assert_eq!(unknown.selectors.single_value("unix", "path"), None);
    assert!(unknown.notes.iter().any(|note| note.text.contains("restart the process")), "{:?}", unknown.notes);

    subject.known_path = Some(path);
    assert_eq!(attest(&unix, &subject).await.selectors, before.selectors);
}

#[tokio::test]
async fn another_executable_than_the_instances_has_neither_path_nor_digest() {
    let (unix, _hand) = unix(Counted::default());
    let sleeper = Sleeper::start();
    let mut subject = sleeper.subject();
    subject.executable = ExecutableEvidence::Known(FileId { dev: 0, ino: 0 });
    subject.known_path = Some("/usr/bin/trusted".into());
    let evidence = attest(&unix, &subject).await;
    for key in EXECUTABLE_KEYS {
        assert!(evidence.gap("unix", key).is_some_and(|gap| gap.why.contains("changed")), "{key}");
        assert_eq!(evidence.selectors.single_value("unix", key), None);
    }
}

#[tokio::test]
async fn nothing_is_said_about_the_executable_of_a_weak_peer() {
    let (unix, _hand) = unix(Counted::default());
    let sleeper = Sleeper::start();
    let mut subject = sleeper.subject();
    subject.executable = ExecutableEvidence::Withheld { why: "its credentials can be forged".into() };
    let evidence = attest(&unix, &subject).await;
    assert!(evidence.selectors.single_value("unix", "uid").is_some());
    for key in EXECUTABLE_KEYS {
        assert!(evidence.gap("unix", key).is_some_and(|gap| gap.why == "its credentials can be forged"), "{key}");
    }
    assert!(evidence.selectors.iter().all(|selector| !selector.is_about_executable()));
}

#[tokio::test]
async fn a_process_that_changed_its_user_is_not_attested_as_the_old_one() {
    let (unix, _hand) = unix(Counted::default());
    let sleeper = Sleeper::start();
    let mut subject = sleeper.subject();
    subject.uid += 1;
    let error = unix.attest(&subject, &Wanted::everything()).await.expect_err("refused");
    assert!(matches!(error, AttestError::Changed { what: "user", .. }));
}

#[tokio::test]
async fn a_file_mounted_over_a_trusted_path_in_a_private_mount_namespace_does_not_get_that_path() {
    let dir = tempfile::tempdir().expect("temporary");
    let (trusted, evil) = (copy_of_sleep(dir.path(), "trusted"), copy_of_sleep(dir.path(), "evil"));
    let script = "mount --bind \"$1\" \"$2\" && exec \"$2\" 600";
    let mut command = std::process::Command::new("unshare");
    command.args(["--mount", "sh", "-c", script, "sh"]).args([&evil, &trusted]).stderr(std::process::Stdio::null());
    let Ok(child) = command.spawn() else { return }; // no tool to make a namespace with
    let mut sleeper = Sleeper(child);
    let subject = loop {
        if sleeper.0.try_wait().expect("it is ours").is_some() {
            return; // this user may not make mount namespaces
        }
        let subject = sleeper.subject();
        if subject.proc_dir.read_link("exe").is_ok_and(|link| link == trusted) {
            break sleeper.subject();
        }
        std::thread::yield_now();
    };
    let (unix, _hand) = unix(Counted::default());
    let evidence = attest(&unix, &subject).await;
    assert_eq!(evidence.selectors.single_value("unix", "path"), None);
    assert!(evidence.notes.iter().any(|note| note.text.contains("mount namespace of its own")), "{:?}", evidence.notes);
    assert!(evidence.selectors.single_value("unix", "sha256").is_some(), "what runs can be said all the same");
}
