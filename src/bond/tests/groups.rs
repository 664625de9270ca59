//! Cgroups of version 2, made for each test.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;

/// A directory of our own in the hierarchy, removed with all below.
pub(super) struct Made {
    pub(super) dir: PathBuf,
    path: String,
}

static NEXT: AtomicU32 = AtomicU32::new(0);

impl Made {
    /// `None` where this host has no cgroups of version 2, or we may not make any.
    pub(super) fn new(name: &str) -> Option<Self> {
        let mount = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]
            .into_iter()
            .map(PathBuf::from)
            .find(|mount| mount.join("cgroup.procs").is_file())?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = format!("/tether-test-{}-{number}{name}", std::process::id());
        let dir = mount.join(&path[1..]);
        let made = std::fs::create_dir_all(&dir).is_ok() && std::fs::metadata(dir.join("cgroup.procs")).is_ok();
        if !made {
            eprintln!("skipped: cgroups of version 2 cannot be made here");
            return None;
        }
        Some(Self { dir, path })
    }

    pub(super) fn take(&self, workload: &Workload) {
        put(&self.dir, workload);
    }

    pub(super) fn child(&self, name: &str) -> PathBuf {
        let dir = self.dir.join(name);
        std::fs::create_dir_all(&dir).expect("made");
        dir
    }

    pub(super) fn id(&self) -> u64 {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(&self.dir).expect("it is there").ino()
    }
}

pub(super) fn put(dir: &std::path::Path, workload: &Workload) {
    std::fs::write(dir.join("cgroup.procs"), workload.pid().to_string()).expect("moved");
}

impl Drop for Made {
    fn drop(&mut self) {
        // From the bottom up; what is in use by a process that has not been reaped stays.
        let mut all = vec![self.dir.clone()];
        let mut at = 0;
        while let Some(dir) = all.get(at).cloned() {
            let children = std::fs::read_dir(&dir).into_iter().flatten().flatten();
            all.extend(children.map(|entry| entry.path()).filter(|path| path.is_dir()));
            at += 1;
        }
        for dir in all.into_iter().rev() {
            let _ = std::fs::remove_dir(dir);
        }
        if let Some(parent) = self.dir.parent().filter(|parent| parent.join("cgroup.events").is_file()) {
            let _ = std::fs::remove_dir(parent);
        }
    }
}

#[tokio::test]
async fn what_is_tied_to_a_cgroup_ends_when_its_last_process_is_gone() {
    for kernel in all_kernels() {
        let Some(group) = Made::new("") else { return };
        let bonds = plain(kernel);
        let (mut caller, mut other) = (Workload::start(), Workload::start());
        group.take(&caller);
        group.take(&other);
        let tie = bonds.tie_now(&bonds.instance(caller.pid()), Bind::Unit).await.expect("tied");
        let path = CgroupPath::parse(&group.path).expect("a path");
        assert!(matches!(&tie, Tie::Cgroup { id, path: at, .. } if *id == group.id() && *at == path), "{tie}");
        let hold = bonds.hold(&tie).await.expect("in use");
        caller.end();
        assert!(hold.ended().now_or_never().is_none(), "the process that asked is not what counts");
        assert_eq!(plain(kernel).end_of(&tie).await, None);
        let ended = tokio::spawn(async move { hold.ended().await });
        other.end();
        assert_eq!(ended.await.expect("it returns"), End::CgroupEmpty);
        assert_eq!(plain(kernel).end_of(&tie).await, Some(End::CgroupEmpty), "it is there, and empty");
    }
}

#[tokio::test]
async fn a_cgroup_that_is_made_again_at_the_same_path_is_another_one() {
    let Some(group) = Made::new("") else { return };
    let bonds = plain(Kernel::probe());
    let mut first = Workload::start();
    group.take(&first);
    let tie = bonds.tie_now(&bonds.instance(first.pid()), Bind::Unit).await.expect("tied");
    first.end();
    std::fs::remove_dir(&group.dir).expect("removed");
    assert_eq!(bonds.end_of(&tie).await, Some(End::CgroupEmpty), "it is gone");
    std::fs::create_dir(&group.dir).expect("made again");
    let second = Workload::start();
    group.take(&second);
    assert_eq!(bonds.end_of(&tie).await, Some(End::CgroupEmpty), "it is another one");
    let new = bonds.tie_now(&bonds.instance(second.pid()), Bind::Unit).await.expect("tied");
    assert_ne!(new, tie);
    assert_eq!(bonds.end_of(&new).await, None);
}

#[tokio::test]
async fn a_directory_that_a_process_made_below_its_unit_neither_shortens_nor_lengthens_its_tie() {
    // As in the root of the hierarchy: what is not a slice and not a unit ends the search, so the test needs the root.
    let Some(unit) = Made::new(".service") else { return };
    let bonds = plain(Kernel::probe());
    let own_choice = unit.child("worker/other.service");
    let (mut caller, main) = (Workload::start(), Workload::start());
    put(&own_choice, &caller);
    unit.take(&main);
    let tie = bonds.tie_now(&bonds.instance(caller.pid()), Bind::Unit).await.expect("tied");
    assert!(matches!(&tie, Tie::Cgroup { id, .. } if *id == unit.id()), "{tie}");
    let hold = bonds.hold(&tie).await.expect("in use");
    caller.end();
    assert!(hold.ended().now_or_never().is_none(), "the unit goes on");
    drop(main);
    assert_eq!(hold.ended().await, End::CgroupEmpty);
}

#[tokio::test]
async fn a_process_that_was_moved_is_tied_to_where_it_is_and_the_former_tie_ends_without_it() {
    let (Some(first), Some(second)) = (Made::new(".service"), Made::new(".scope")) else { return };
    let bonds = plain(Kernel::probe());
    let workload = Workload::start();
    first.take(&workload);
    let instance = bonds.instance(workload.pid());
    let before = bonds.tie_now(&instance, Bind::Unit).await.expect("tied");
    let hold = bonds.hold(&before).await.expect("in use");
    second.take(&workload);
    assert_eq!(hold.ended().await, End::CgroupEmpty);
    let after = bonds.tie_now(&instance, Bind::Unit).await.expect("tied");
    assert!(matches!(&after, Tie::Cgroup { id, .. } if *id == second.id()), "{after}");
}

#[tokio::test]
async fn a_process_that_is_moved_after_it_was_attested_is_tied_to_nothing() {
    let (Some(first), Some(second)) = (Made::new(".service"), Made::new(".scope")) else { return };
    let bonds = plain(Kernel::probe());
    let root = first.dir.parent().expect("it has one");
    for place in [second.dir.as_path(), root] {
        let workload = Workload::start();
        first.take(&workload);
        let instance = bonds.instance(workload.pid());
        let attested = attested(&instance).await;
        put(place, &workload);
        let late = bonds.tie(&instance, &attested, Bind::Unit).await;
        assert!(matches!(late, Err(BondError::Moved)), "what was attested is no longer so: {late:?}");
    }
}

#[tokio::test]
async fn a_process_in_the_root_cgroup_of_a_host_without_systemd_is_bound_to_the_node() {
    for kernel in all_kernels() {
        let bonds = plain(kernel);
        let workload = Workload::start();
        let instance = bonds.instance(workload.pid());
        let in_root = instance.look().expect("it lives").cgroup_id.is_none_or(|id| id == cgroup::ROOT_ID);
        if !in_root {
            eprintln!("skipped: this test does not run in the root cgroup");
            return;
        }
        assert_eq!(bonds.tie_now(&instance, Bind::Unit).await.expect("tied"), Tie::Node);
    }
}

#[tokio::test]
async fn between_two_commands_of_one_start_of_a_unit_nothing_ends() {
    let Some(group) = Made::new(".service") else { return };
    let booted = tempfile::tempdir().expect("a directory");
    let units = Arc::new(units::Units::default());
    let answer = UnitAnswer { unit: None, by_number: false };
    let bonds = bonds(Kernel::probe(), booted.path().into(), answer, units.clone());
    let first = "0f".repeat(16);
    units.set(Some(&first));
    let mut prepare = Workload::start();
    group.take(&prepare);
    let tie = bonds.tie_now(&bonds.instance(prepare.pid()), Bind::Unit).await.expect("tied");
    assert!(matches!(tie, Tie::Cgroup { .. }), "the kernel says which unit");
    let hold = bonds.hold(&tie).await.expect("in use");
    let mut ended = Box::pin(hold.ended());
    assert!(ended.as_mut().now_or_never().is_none());
    prepare.end();
    units.listened(|| ended.as_mut().now_or_never().map(|end| panic!("{end:?}"))).await;
    let mut main = Workload::start();
    group.take(&main);
    assert_eq!(bonds.end_of(&tie).await, None);
    main.end();
    assert!(ended.as_mut().now_or_never().is_none());
    assert_eq!(bonds.end_of(&tie).await, None, "it is active with nothing to run, as some units are");
    units.set(None);
    assert_eq!(ended.await, End::UnitStopped);
}

#[tokio::test]
async fn an_empty_cgroup_whose_unit_was_started_anew_or_of_which_nothing_can_be_heard_has_ended() {
    for (answer, expected) in
        [(Ok(Some("ee".repeat(16))), End::UnitStopped), (Ok(None), End::UnitStopped), (Err(()), End::CgroupEmpty)]
    {
        let Some(group) = Made::new(".service") else { return };
        let booted = tempfile::tempdir().expect("a directory");
        let units = Arc::new(units::Units::default());
        let no_answer = UnitAnswer { unit: None, by_number: false };
        let bonds = bonds(Kernel::probe(), booted.path().into(), no_answer, units.clone());
        units.set(Some(&"0f".repeat(16)));
        let mut workload = Workload::start();
        group.take(&workload);
        let tie = bonds.tie_now(&bonds.instance(workload.pid()), Bind::Unit).await.expect("tied");
        let hold = bonds.hold(&tie).await.expect("in use");
        let mut ended = Box::pin(hold.ended());
        assert!(ended.as_mut().now_or_never().is_none());
        match &answer {
            Ok(now) => units.set(now.as_deref()),
            Err(()) => units.fall_silent(),
        }
        workload.end();
        assert_eq!(ended.await, expected, "{answer:?}");
    }
}
