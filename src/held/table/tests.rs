//! The table is whole in whatever moment its writer is killed, and nobody else's is believed.

use std::io::Write as _;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::*;

fn boot() -> BootId {
    BootId::current().unwrap()
}

fn file_of(table: &Table) -> File {
    File::from(table.as_fd().try_clone_to_owned().unwrap())
}

fn add(table: &mut Table, name: &str, uid: u32, length: usize) -> Result<(), TableError> {
    table.add(name, Kind::Process, Some(uid), name.as_bytes(), &vec![7; length])
}

fn names(file: &File) -> Vec<String> {
    let found = read(file, boot()).unwrap();
    let mut names: Vec<_> = found.into_iter().map(|found| String::from_utf8(found.public).unwrap()).collect();
    names.sort();
    names
}

/// What a table begins with, and then these bytes, in a file in memory with these seals.
fn forged(content: &[u8], seals: SealFlag) -> File {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let mut file = File::from(memfd_create("forged", flags).unwrap());
    let mut page = vec![0; SLOTS];
    file_of(&Table::new(boot()).unwrap()).read_exact_at(&mut page, 0).unwrap();
    file.write_all(&page).unwrap();
    file.write_all(content).unwrap();
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).unwrap();
    file
}

/// The head of a slot, and as many zeros as it says.
fn slot(length: u32, code: u32, public: u32, pkcs8: u32) -> Vec<u8> {
    let head: Vec<u8> = [length, code, public, pkcs8].iter().flat_map(|field| field.to_le_bytes()).collect();
    let rest = (length as usize).min(LONGEST).saturating_sub(HEAD);
    [head, vec![0; rest]].concat()
}

#[test]
fn what_was_added_and_not_wiped_is_read_back_and_room_is_used_again() {
    let mut table = Table::new(boot()).unwrap();
    let file = file_of(&table);
    for name in ["a", "b", "c"] {
        add(&mut table, name, 1, 100).unwrap();
    }
    let end = table.end;
    table.wipe("b");
    table.wipe("never");
    assert_eq!(names(&file), ["a", "c"]);
    add(&mut table, "d", 1, 100).unwrap();
    assert_eq!((names(&file), table.end), (vec!["a".to_owned(), "c".to_owned(), "d".to_owned()], end));
    add(&mut table, "d", 1, 1000).unwrap();
    assert_eq!(names(&file), ["a", "c", "d"], "one key of a name");
}

#[test]
fn a_writer_that_is_killed_at_any_byte_leaves_a_key_whole_or_not_at_all() {
    // What a writer does, in its order, stopped after each step: the length, the parts, and what it holds.
    let whole = slot(256, 1, 4, 10);
    let steps = [
        (vec![0; 256], 0),
        (slot(256, EMPTY, 0, 0), 0),
        (slot(256, EMPTY, 4, 0), 0),
        (slot(256, EMPTY, 4, 10), 0),
        (whole.clone(), 1),
        // And wiped: first unwritten.
        (slot(256, EMPTY, 4, 10), 0),
    ];
    for (at, (content, keys)) in steps.into_iter().enumerate() {
        let file = forged(&content, SealFlag::all());
        assert_eq!(read(&file, boot()).unwrap().len(), keys, "step {at}");
        // What comes after it is found all the same, unless the slot was never begun.
        let file = forged(&[content, whole.clone()].concat(), SealFlag::all());
        assert_eq!(read(&file, boot()).unwrap().len(), if at == 0 { 0 } else { keys + 1 }, "step {at}");
    }
}

#[test]
fn a_file_that_the_agent_before_did_not_write_is_refused() {
    let all = SealFlag::all();
    let rows: Vec<(&str, File, &str)> = vec![
        ("not sealed", forged(&slot(256, 1, 4, 10), SealFlag::empty()), "NotSealed"),
        ("to be written by others", forged(&slot(256, 1, 4, 10), SealFlag::F_SEAL_GROW), "NotSealed"),
        ("a file on a disk", tempfile::tempfile().unwrap(), "NotSealed"),
        ("a length that is no step", forged(&slot(100, 1, 4, 10), all), "Damaged"),
        ("a slot beyond the end", forged(&slot(512, 1, 4, 10)[..256], all), "Damaged"),
        ("longer than any", forged(&slot(u32::MAX, 1, 4, 10), all), "Damaged"),
        ("parts longer than their slot", forged(&slot(256, 1, 200, 200), all), "Damaged"),
        ("parts of any length", forged(&slot(256, 1, u32::MAX, u32::MAX), all), "Damaged"),
        ("a kind that is none", forged(&slot(256, 3, 4, 10), all), "Damaged"),
    ];
    for (what, file, why) in rows {
        let error = read(&file, boot()).expect_err(what);
        assert_eq!(format!("{error:?}"), why, "{what}");
    }
}

#[test]
fn another_version_and_another_boot_are_told_apart() {
    let mut other = file_of(&Table::new(boot()).unwrap());
    let mut page = vec![0; SLOTS];
    other.read_exact_at(&mut page, 0).unwrap();
    let sealed = |page: &[u8]| {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let mut file = File::from(memfd_create("other", flags).unwrap());
        file.write_all(page).unwrap();
        fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::all())).unwrap();
        file
    };
    assert!(other.write_all(b"x").is_err());
    assert!(matches!(read(&sealed(&page[..100]), boot()), Err(TableError::Version)));
    let mut older = page.clone();
    older[VERSION.len() - 2] = b'2';
    assert!(matches!(read(&sealed(&older), boot()), Err(TableError::Version)));
    page[BOOT] = if page[BOOT] == b'0' { b'1' } else { b'0' };
    assert!(matches!(read(&sealed(&page), boot()), Err(TableError::Boot)));
}

#[test]
fn one_user_cannot_take_the_room_of_all() {
    let mut table = Table::new(boot()).unwrap();
    // The same room in fewer keys: what is long takes as much as what is many.
    let length = LONGEST - 2 * HEAD;
    let mut of_one = 0;
    while add(&mut table, &of_one.to_string(), 1, length).is_ok() {
        of_one += 1;
    }
    assert_eq!(of_one, SIZE_PER_UID / LONGEST);
    assert!(matches!(add(&mut table, "more", 1, 1), Err(TableError::Full)));
    add(&mut table, "others", 2, length).unwrap();
    table.wipe("0");
    add(&mut table, "again", 1, length).unwrap();
    assert!(matches!(add(&mut table, "long", 3, LONGEST), Err(TableError::Full)), "longer than any key");
}

#[test]
fn a_table_of_which_little_is_used_is_exchanged_for_a_small_one() {
    let mut table = Table::new(boot()).unwrap();
    let count = 2 * LOOSE / LONGEST;
    for n in 0..count {
        add(&mut table, &n.to_string(), 1, LONGEST - 2 * HEAD).unwrap();
    }
    assert!(!table.is_loose());
    (1..count).for_each(|n| table.wipe(&n.to_string()));
    assert!(table.is_loose());
    let mut small = table.compacted(boot()).unwrap();
    assert_eq!((names(&file_of(&small)), small.end), (vec!["0".to_owned()], SLOTS + LONGEST));
    small.wipe("0");
    assert!(names(&file_of(&small)).is_empty() && small.taken.is_empty());
}
