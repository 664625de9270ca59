use std::path::PathBuf;

use super::*;
use crate::attest::tests::Sleeper;
use crate::peer::Instances;
use crate::sys::Kernel;

#[tokio::test]
async fn what_was_found_out_does_not_hold_for_a_process_that_was_moved_where_only_version_1_tells() {
    let dir = PathBuf::from(format!("/sys/fs/cgroup/systemd/tether-test-{}", std::process::id()));
    if std::fs::create_dir(&dir).is_err() || !dir.join("cgroup.procs").is_file() {
        eprintln!("skipped: cgroups of version 1 cannot be made here");
        return;
    }
    let instances = Instances::new(Kernel::probe()).expect("proc is mounted");
    let mut sleeper = Sleeper::start();
    // Where version 2 tells, nobody reads version 1.
    let root = PathBuf::from("/sys/fs/cgroup/unified/cgroup.procs");
    if root.is_file() {
        std::fs::write(root, sleeper.0.id().to_string()).expect("moved to the root");
    }
    let instance = instances.of_pid(sleeper.0.id().cast_signed(), None).expect("it lives");
    let (clock, _hand) = Clock::manual(OffsetDateTime::UNIX_EPOCH);
    let launches = Launches::new(crate::attest::LaunchConfig::default(), clock);
    let moments = || {
        let wanted = [("systemd", "unit"), ("cgroup", "path"), ("unix", "uid")];
        wanted.map(|wanted| Moment::of(&instance, &Wanted::keys([wanted]), &launches).expect("it lives"))
    };
    let before = moments();
    assert_eq!(moments(), before);
    std::fs::write(dir.join("cgroup.procs"), sleeper.0.id().to_string()).expect("moved");
    let after = moments();
    sleeper.stop();
    std::fs::remove_dir(&dir).expect("empty");
    let same: Vec<_> = before.iter().zip(&after).map(|(before, after)| before == after).collect();
    assert_eq!(same, [false, false, true], "who does not ask for it does not pay for it");
}
