//! What a store keeps over restarts, damage, and disks that fail.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::fs;

use super::*;

async fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("store")).await.unwrap();
    (dir, store)
}

#[tokio::test]
async fn what_was_written_is_there_after_a_restart_with_its_revision() {
    let (dir, store) = store().await;
    let put = |key: &str, value: &str| Change::put(Space::Entries, key, &value, Expect::Any);
    assert_eq!(store.apply(vec![put("a", "1"), put("b", "2")]).await.unwrap(), 1);
    assert_eq!(store.apply(vec![put("b", "3")]).await.unwrap(), 2);
    drop(store);
    let store = Store::open(&dir.path().join("store")).await.unwrap();
    let all: Vec<(String, Versioned<String>)> = store.list(Space::Entries).await.unwrap();
    let expected = [("a", "1", 1), ("b", "3", 2)]
        .map(|(key, value, revision)| (key.to_owned(), Versioned { value: value.to_owned(), revision }));
    assert_eq!(all, expected);
    assert_eq!(store.apply(vec![put("c", "4")]).await.unwrap(), 3, "revisions go on where they were");
}

#[tokio::test]
async fn a_transaction_with_one_conflict_changes_nothing() {
    let (_dir, store) = store().await;
    let put = |key: &str, expect| Change::put(Space::Entries, key, &"x", expect);
    store.apply(vec![put("a", Expect::Absent)]).await.unwrap();
    for wrong in [Expect::Absent, Expect::Revision(7)] {
        let refused = store.apply(vec![put("b", Expect::Any), put("a", wrong)]).await;
        assert!(matches!(refused, Err(StoreError::Conflict { key }) if key == "a"));
    }
    assert_eq!(store.get::<String>(Space::Entries, "b").await.unwrap(), None);
    store.apply(vec![put("a", Expect::Revision(1))]).await.unwrap();
}

#[tokio::test]
async fn a_second_agent_on_the_same_store_is_told_who_is_in_the_way() {
    let (dir, _store) = store().await;
    let refused = Store::open(&dir.path().join("store")).await;
    assert!(matches!(refused, Err(StoreError::InUse(_))), "{refused:?}");
}

/// Some of everything a store is used for.
async fn filled(dir: &Path) -> Store {
    let store = Store::open(&dir.join("store")).await.unwrap();
    store.apply(vec![put("kept", "1"), put("deleted", "2"), put("changed", "3")]).await.unwrap();
    store.apply(vec![Change::delete(Space::Entries, "deleted", Expect::Any), put("changed", "4")]).await.unwrap();
    store.apply(vec![Change::put(Space::Node, "node-id", &"n", Expect::Absent)]).await.unwrap();
    store
}

fn put(key: &str, value: &str) -> Change {
    Change::put(Space::Entries, key, &value, Expect::Any)
}

async fn entries(store: &Store) -> Vec<(String, String, u64)> {
    let rows = store.list::<String>(Space::Entries).await.unwrap();
    rows.into_iter().map(|(key, row)| (key, row.value, row.revision)).collect()
}

fn as_filled() -> Vec<(String, String, u64)> {
    [("changed", "4", 2), ("kept", "1", 1)].map(|(key, value, at)| (key.to_owned(), value.to_owned(), at)).to_vec()
}

/// Ways in which a file is damaged.
fn damages(whole: &[u8]) -> Vec<(&'static str, Option<Vec<u8>>)> {
    let mut torn = whole.to_vec();
    let middle = whole.len() / 2;
    torn[4096.min(middle)..].fill(0xa5);
    vec![
        ("missing", None),
        ("nothing", Some(Vec::new())),
        ("rubbish", Some(vec![0x5a; whole.len()])),
        ("text", Some(b"hello".to_vec())),
        ("half", Some(whole[..middle].to_vec())),
        ("overwritten", Some(torn)),
    ]
}

fn put_file(path: &Path, content: Option<&[u8]>) {
    match content {
        Some(content) => fs::write(path, content).unwrap(),
        None => fs::remove_file(path).unwrap(),
    }
}

#[tokio::test]
async fn a_damaged_store_is_built_anew_from_its_copy_and_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    drop(filled(dir.path()).await);
    let path = dir.path().join("store");
    let whole = fs::read(&path).unwrap();
    for (name, damaged) in damages(&whole) {
        put_file(&path, damaged.as_deref());
        let store = Store::open(&path).await.unwrap();
        let recovered = store.recovered().expect(name).clone();
        assert_eq!((recovered.revision, recovered.torn), (3, false), "{name}");
        assert_eq!(entries(&store).await, as_filled(), "{name}: nothing is lost, and nothing comes back");
        assert_eq!(store.apply(vec![put("new", "5")]).await.unwrap(), 4, "{name}: revisions go on");
        assert_eq!(recovered.aside.is_some(), damaged.is_some(), "{name}");
        drop(store);
        let again = Store::open(&path).await.unwrap();
        assert!(again.recovered().is_none(), "{name}");
        if let Some(aside) = recovered.aside {
            assert_eq!(fs::read(&aside).unwrap(), damaged.unwrap(), "{name}: evidence, and perhaps repairable");
            assert!(again.weaknesses()[0].contains("damaged-1"), "{name}: said until somebody looked into it");
            fs::remove_file(aside).unwrap();
        }
        assert!(again.weaknesses().is_empty(), "{name}");
        drop(again);
        fs::remove_file(&path).unwrap();
        fs::remove_file(path.with_extension("copy")).unwrap();
        drop(filled(dir.path()).await);
    }
}

#[tokio::test]
async fn every_flipped_bit_of_a_store_is_noticed_or_without_effect() {
    let dir = tempfile::tempdir().unwrap();
    drop(filled(dir.path()).await);
    let (path, copy) = (dir.path().join("store"), dir.path().join("store.copy"));
    let (whole, whole_copy) = (fs::read(&path).unwrap(), fs::read(&copy).unwrap());
    for at in (0..whole.len()).step_by(whole.len() / 60) {
        let mut flipped = whole.clone();
        flipped[at] ^= 0x10;
        fs::write(&path, flipped).unwrap();
        fs::write(&copy, &whole_copy).unwrap();
        let store = Store::open(&path).await.unwrap_or_else(|error| panic!("byte {at}: {}", chain(&error)));
        assert_eq!(entries(&store).await, as_filled(), "byte {at}");
    }
}

#[tokio::test]
async fn a_store_that_went_back_in_time_is_not_believed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let store = Store::open(&path).await.unwrap();
    store.apply(vec![put("deleted", "1")]).await.unwrap();
    drop(store);
    let old = fs::read(&path).unwrap();
    let store = Store::open(&path).await.unwrap();
    store.apply(vec![Change::delete(Space::Entries, "deleted", Expect::Any)]).await.unwrap();
    drop(store);
    fs::write(&path, old).unwrap();
    let store = Store::open(&path).await.unwrap();
    assert!(store.recovered().unwrap().why.contains("up to 1"), "{:?}", store.recovered());
    assert!(entries(&store).await.is_empty(), "what was deleted stays deleted");
}

#[tokio::test]
async fn a_copy_that_is_damaged_too_or_missing_builds_nothing() {
    let dir = tempfile::tempdir().unwrap();
    drop(filled(dir.path()).await);
    let (path, copy) = (dir.path().join("store"), dir.path().join("store.copy"));
    let rubbish = vec![0x5a; 8192];
    let whole = fs::read(&copy).unwrap();
    let mut cases = vec![None, Some(Vec::new()), Some(rubbish.clone())];
    for at in 0..whole.len() {
        let mut flipped = whole.clone();
        flipped[at] ^= 0x40;
        cases.push(Some(flipped));
    }
    for content in cases {
        fs::write(&path, &rubbish).unwrap();
        fs::write(&copy, &whole).unwrap();
        put_file(&copy, content.as_deref());
        match Store::open(&path).await {
            Err(StoreError::Damaged { .. }) => {
                assert_eq!(fs::read(&path).unwrap(), rubbish, "it is left as it is");
            }
            Err(other) => panic!("{other:?}"),
            // Of the last change alone it cannot be told whether it was written whole.
            Ok(store) => assert!(store.recovered().is_some_and(|recovered| recovered.torn), "{:?}", store.recovered()),
        }
        for left in copy::set_aside(&path) {
            fs::remove_file(left).unwrap();
        }
    }
}

#[tokio::test]
async fn a_copy_whose_last_change_was_not_written_whole_serves_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let store = filled(dir.path()).await;
    let (path, copy) = (dir.path().join("store"), dir.path().join("store.copy"));
    let before = fs::read(&copy).unwrap().len();
    store.apply(vec![put("last", "9")]).await.unwrap();
    drop(store);
    let whole = fs::read(&copy).unwrap();
    for cut in before + 1..whole.len() {
        fs::write(&path, [0x5a; 4096]).unwrap();
        fs::write(&copy, &whole[..cut]).unwrap();
        let store = Store::open(&path).await.unwrap();
        assert!(store.recovered().unwrap().torn, "cut at {cut}");
        assert_eq!(entries(&store).await, as_filled());
        store.apply(vec![put("after", "9")]).await.unwrap();
        drop(store);
        for left in copy::set_aside(&path) {
            fs::remove_file(left).unwrap();
        }
    }
}

#[tokio::test]
async fn a_missing_or_damaged_copy_of_a_whole_store_is_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    drop(filled(dir.path()).await);
    let (path, copy) = (dir.path().join("store"), dir.path().join("store.copy"));
    for content in [None, Some(b"rubbish".as_slice()), Some(&[])] {
        put_file(&copy, content);
        let store = Store::open(&path).await.unwrap();
        assert!(store.recovered().is_none() && store.weaknesses().is_empty());
        drop(store);
        fs::write(&path, [0x5a; 4096]).unwrap();
        assert_eq!(entries(&Store::open(&path).await.unwrap()).await, as_filled());
        fs::remove_file(dir.path().join("store.damaged-1")).unwrap();
    }
}

#[tokio::test]
async fn the_copy_is_written_anew_when_what_was_appended_outgrows_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = filled(dir.path()).await;
    let long = "x".repeat(16 * 1024);
    for _ in 0..40 {
        store.apply(vec![put("long", &long)]).await.unwrap();
    }
    let copy = dir.path().join("store.copy");
    assert!(fs::metadata(&copy).unwrap().len() < 400 * 1024);
    drop(store);
    fs::remove_file(dir.path().join("store")).unwrap();
    let store = Store::open(&dir.path().join("store")).await.unwrap();
    assert_eq!(store.get::<String>(Space::Entries, "long").await.unwrap().unwrap().revision, 43);
}

#[tokio::test]
async fn a_crash_while_the_store_is_built_anew_leaves_one_that_is_built_at_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    drop(filled(dir.path()).await);
    let path = dir.path().join("store");
    // It died between the two renames, and the time before it had half of the new one.
    fs::rename(&path, dir.path().join("store.damaged-1")).unwrap();
    fs::write(copy::unfinished(&path), b"half").unwrap();
    let store = Store::open(&path).await.unwrap();
    assert_eq!(entries(&store).await, as_filled());
    assert!(store.weaknesses()[0].contains("store.damaged-1"));
}

#[tokio::test]
async fn its_files_are_for_nobody_else() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    drop(filled(dir.path()).await);
    fs::set_permissions(dir.path().join("store"), fs::Permissions::from_mode(0o644)).unwrap();
    drop(Store::open(&dir.path().join("store")).await.unwrap());
    for name in ["store", "store.copy"] {
        let mode = fs::metadata(dir.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
}

#[tokio::test]
async fn after_a_disk_failed_the_store_is_used_again_without_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let store = filled(dir.path()).await;
    let mut health = store.healthy();
    // What redb has open is not what it was: every later use of it fails until it is opened anew.
    let failed = store.with(|_, _| Err::<(), _>(StoreError::io(std::io::Error::from_raw_os_error(28)))).await;
    assert!(store.reported(failed).is_err());
    assert!(health.borrow_and_update().is_err());
    store.try_again().await.unwrap();
    assert!(health.borrow_and_update().is_ok());
    assert_eq!(store.apply(vec![put("new", "5")]).await.unwrap(), 4);
}

#[tokio::test]
async fn where_the_copy_cannot_be_written_there_is_none_until_it_can() {
    let dir = tempfile::tempdir().unwrap();
    let store = filled(dir.path()).await;
    let copy = dir.path().join("store.copy");
    // In the way of a new one, and no file to append to.
    store.0.lock().copy = None;
    fs::remove_file(&copy).unwrap();
    fs::create_dir_all(copy.join("in the way")).unwrap();
    store.apply(vec![put("new", "5")]).await.unwrap();
    assert!(store.weaknesses()[0].contains("no copy"), "{:?}", store.weaknesses());
    fs::remove_dir_all(&copy).unwrap();
    store.try_again().await.unwrap();
    assert!(store.weaknesses().is_empty());
    drop(store);
    fs::remove_file(dir.path().join("store")).unwrap();
    assert_eq!(entries(&Store::open(&dir.path().join("store")).await.unwrap()).await.len(), 3);
}

#[tokio::test]
async fn an_image_makes_another_store_with_the_same_rows_and_revisions() {
    let dir = tempfile::tempdir().unwrap();
    let store = filled(dir.path()).await;
    let bytes = store.image().await.unwrap();
    let image = Image::read(&bytes).unwrap();
    assert_eq!(image.to_bytes(), bytes);
    restore(&dir.path().join("other"), &image).unwrap();
    let other = Store::open(&dir.path().join("other")).await.unwrap();
    assert_eq!(entries(&other).await, as_filled());
    assert_eq!(other.apply(vec![put("new", "5")]).await.unwrap(), 4);
    for cut in 0..bytes.len() {
        assert!(Image::read(&bytes[..cut]).is_err(), "cut at {cut}");
    }
}
