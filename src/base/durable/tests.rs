use super::*;

#[test]
fn a_replacement_is_whole_has_its_mode_and_leaves_nothing_else_behind() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("svid.pem");
    replace(&path, b"old", 0o600).expect("first");
    replace(&path, b"new", 0o644).expect("second");
    assert_eq!(fs::read(&path).expect("there"), b"new");
    assert_eq!(fs::metadata(&path).expect("there").mode() & 0o7777, 0o644);
    assert_eq!(fs::read_dir(dir.path()).expect("there").count(), 1);
}

#[test]
fn a_file_is_created_where_there_is_none_and_one_that_is_there_stays() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key");
    assert!(create(&path, b"first", 0o600).unwrap());
    assert!(!create(&path, b"second", 0o644).unwrap());
    assert_eq!(fs::read(&path).unwrap(), b"first");
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else is left behind");
    assert!(create(&dir.path().join("none/key"), b"", 0o600).is_err());
}

#[test]
fn a_directory_open_to_others_is_refused_with_its_mode() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("state");
    private_dir(&path).expect("created");
    private_dir(&path).expect("accepted when it is ours");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("chmod");
    let error = private_dir(&path).expect_err("refused").to_string();
    assert!(error.contains("0755"), "{error}");
}

#[test]
fn a_socket_directory_is_made_with_what_is_missing_above_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("run/tether/workload");
    socket_dir(&path).expect("created");
    for made in path.ancestors().take(3) {
        assert_eq!(fs::metadata(made).expect("there").mode() & 0o7777, 0o755, "{}", made.display());
    }
    socket_dir(&path).expect("accepted when it is ours");
}

#[test]
fn a_socket_directory_that_others_could_change_is_refused_with_what_is_wrong() {
    let dir = tempfile::tempdir().expect("a directory");
    let make = |name: &str, mode| {
        let path = dir.path().join(name);
        fs::create_dir(&path).expect("created");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("chmod");
        path
    };
    let (link, file) = (dir.path().join("link"), dir.path().join("file"));
    std::os::unix::fs::symlink(make("target", 0o755), &link).expect("linked");
    fs::write(&file, "").expect("written");
    let cases = [
        (link, "symbolic link"),
        (file, "not a directory"),
        (make("everybody", 0o777), "0777"),
        (make("sticky", 0o1777), "1777"),
        (make("group", 0o775), "0775"),
    ];
    for (path, expected) in cases {
        let error = socket_dir(&path).expect_err("refused").to_string();
        assert!(error.contains(expected) && error.contains("choose another"), "{error}");
    }
    let foreign = make("foreign", 0o755);
    // Only root can give a directory away.
    if std::os::unix::fs::chown(&foreign, Some(12_345), None).is_ok() {
        assert!(socket_dir(&foreign).expect_err("refused").to_string().contains("uid 12345"));
    }
}

#[test]
fn a_link_in_place_of_the_target_is_replaced_and_not_followed() {
    let dir = tempfile::tempdir().expect("a directory");
    let (victim, path) = (dir.path().join("victim"), dir.path().join("key"));
    fs::write(&victim, "keep").expect("written");
    std::os::unix::fs::symlink(&victim, &path).expect("linked");
    replace(&path, b"secret", 0o600).expect("replaced");
    assert_eq!(fs::read(&victim).expect("there"), b"keep");
    assert!(!fs::symlink_metadata(&path).expect("there").is_symlink());
}

#[test]
fn a_file_over_the_limit_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("big");
    fs::write(&path, [0; 11]).expect("written");
    assert_eq!(read(&path, 11).expect("fits").len(), 11);
    assert!(read(&path, 10).is_err());
}

fn pair<'a>(certificate: &'a [u8], key: &'a [u8]) -> [Delivered<'a>; 2] {
    [
        Delivered { name: "tls.crt", content: certificate, mode: 0o644 },
        Delivered { name: "tls.key", content: key, mode: 0o640 },
    ]
}

fn read_pair(dir: &Path) -> Option<(String, String)> {
    let text = |name| fs::read_to_string(dir.join(name)).ok();
    Some((text("tls.crt")?, text("tls.key")?))
}

#[test]
fn a_set_of_files_is_put_in_force_as_one_whatever_step_is_the_last_that_is_taken() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("tls");
    let delivery = Delivery::open(&path, None, None).expect("ours");
    delivery.swap(&pair(b"0", b"0")).expect("the first");
    for last in 0.. {
        let before = read_pair(&path).expect("a pair");
        let fresh = format!("{}", last + 1);
        let mut steps = 0;
        let interrupted = delivery.swap_in_steps(&pair(fresh.as_bytes(), fresh.as_bytes()), || {
            steps += 1;
            if steps > last { Err(io_error("go on with", &path)(io::Error::other("interrupted"))) } else { Ok(()) }
        });
        let (certificate, key) = read_pair(&path).expect("a pair");
        assert_eq!(certificate, key, "after {last} steps");
        assert!([before.0, fresh].contains(&certificate));
        if interrupted.is_ok() {
            assert!(last > 5, "it has steps");
            return;
        }
    }
}

#[test]
fn of_the_sets_before_only_the_last_stays_and_each_file_has_its_mode_whatever_was_there() {
    let dir = tempfile::tempdir().expect("a directory");
    fs::write(dir.path().join("tls.key"), "of another tool").expect("written");
    let delivery = Delivery::open(dir.path(), None, None).expect("ours");
    for content in [b"1", b"2", b"3", b"4"] {
        delivery.swap(&pair(content, content)).expect("swapped");
    }
    assert_eq!(read_pair(dir.path()), Some(("4".into(), "4".into())));
    let mode = |name: &str| fs::metadata(dir.path().join(name)).expect("there").mode() & 0o7777;
    assert_eq!((mode("tls.crt"), mode("tls.key")), (0o644, 0o640));
    let mut names: Vec<_> =
        fs::read_dir(dir.path()).expect("there").map(|e| e.expect("an entry").file_name()).collect();
    names.sort();
    assert_eq!(names, ["..data", "..set-3", "..set-4", "tls.crt", "tls.key"]);

    // A name that is no longer wanted goes, and so do the links when files are written plainly.
    delivery.swap(&pair(b"5", b"5")[..1]).expect("swapped");
    assert!(fs::symlink_metadata(dir.path().join("tls.key")).is_err());
    delivery.replace_each(&pair(b"6", b"6")).expect("replaced");
    assert_eq!(read_pair(dir.path()), Some(("6".into(), "6".into())));
    assert_eq!(fs::read_dir(dir.path()).expect("there").count(), 2);
    assert!(fs::symlink_metadata(dir.path().join("tls.crt")).expect("there").is_file());
}

#[test]
fn files_are_not_put_where_others_could_change_them_or_where_another_writer_does() {
    let dir = tempfile::tempdir().expect("a directory");
    let make = |name: &str, mode| {
        let path = dir.path().join(name);
        fs::create_dir(&path).expect("created");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("chmod");
        path
    };
    let (link, file) = (dir.path().join("link"), dir.path().join("file"));
    std::os::unix::fs::symlink(make("target", 0o755), &link).expect("linked");
    fs::write(&file, "").expect("written");
    let busy = make("busy", 0o755);
    let _held = Delivery::open(&busy, None, None).expect("ours");
    let cases = [
        (link, "symbolic link"),
        (file, "no directory"),
        (make("everybody", 0o777), "0777"),
        (make("group", 0o775), "0775"),
        (busy, "another writer"),
    ];
    for (path, expected) in cases {
        let error = Delivery::open(&path, None, None).expect_err("refused").to_string();
        assert!(error.contains(expected), "{error}");
    }
    Delivery::open(&make("sticky", 0o1777), None, None).expect("nobody else can replace what is ours");
    let foreign = make("foreign", 0o755);
    // Only root can give a directory away.
    if std::os::unix::fs::chown(&foreign, Some(12_345), None).is_ok() {
        let error = Delivery::open(&foreign, None, None).expect_err("refused").to_string();
        assert!(error.contains("uid 12345"), "{error}");
        let delivery = Delivery::open(&foreign, Some(12_345), Some(12_346)).expect("the files are for its owner");
        delivery.swap(&pair(b"1", b"1")).expect("swapped");
        let meta = fs::metadata(foreign.join("tls.key")).expect("there");
        assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (12_345, 12_346, 0o640));
    }
}
