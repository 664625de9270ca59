//! A place that the attacker made: a namespace it is root of, a control group it may name.

use std::path::{Path, PathBuf};

use super::Attack;
use crate::needs::{self, cgroup_root};
use crate::roles::GOT;
use crate::stage::{Actor, NOBODY, Stage};
use crate::target::{Rule, Side, Target};

pub const ATTACKS: &[Attack] = &[
    Attack::new("root of a user namespace sends in the name of a trusted process in it", forged)
        .needing(needs::user_namespaces),
    Attack::new("what a whole user namespace shares is still evidence there", forged_but_shared)
        .needing(needs::user_namespaces)
        .on(&[Side::Tether, Side::OldKernel]),
    Attack::new("a delegated control group is named like a unit", named_like_a_unit).needing(needs::cgroups),
];

const NAMESPACE: [&str; 5] = ["unshare", "--map-root-user", "--pid", "--fork", "--kill-child"];

/// Every byte comes, as far as the kernel tells, from the trusted process that connected. Only that the attacker rules
/// the namespace gives it away.
fn forged(side: Side) {
    let stage = Stage::new();
    let mut target = Target::serving(&stage, side, &Rule::path(&stage.trusted()));
    let verdict = forge(&stage, &target);
    target.judge(&verdict, &["unavailable"]);
}

fn forged_but_shared(side: Side) {
    let stage = Stage::new();
    let user = if needs::root().is_ok() { Rule::Uid(NOBODY) } else { Rule::our_user() };
    let target = Target::serving(&stage, side, &user);
    assert_eq!(forge(&stage, &target), GOT, "the user is the same for all processes of the namespace");
}

fn forge(stage: &Stage, target: &Target) -> String {
    let attacker = Actor::under(&NAMESPACE, stage.thief(), "forge").arg(target.socket()).arg(stage.trusted());
    attacker.unprivileged().start().verdict()
}

fn named_like_a_unit(side: Side) {
    let stage = Stage::new();
    let unit = format!("tether-attack-{}-{}.service", std::process::id(), side.name());
    let mut target = Target::serving(&stage, side, &Rule::Unit(unit.clone()));
    let delegated = Delegated::new(&format!("ci-{unit}"));
    let script =
        "echo 0 > \"$1/cgroup.procs\" && shift && exec setpriv --reuid=65534 --regid=65534 --clear-groups \"$@\"";
    let mut attacker = Actor::new("sh", "enter-cgroup")
        .arg("-c")
        .arg(script)
        .arg("sh")
        .arg(&delegated.0)
        .arg(stage.thief())
        .arg(delegated.0.join(&unit))
        .arg(target.socket())
        .start();
    let verdict = attacker.verdict();
    target.judge(&verdict, &["no_identity"]);
    attacker.wait_for_exit();
}

/// The control group of a service that was given to a user, as `Delegate=yes` does.
struct Delegated(PathBuf);

impl Delegated {
    fn new(service: &str) -> Self {
        let slice = cgroup_root().unwrap().join("system.slice");
        let _ = std::fs::create_dir(&slice); // there already on a host with systemd
        let service = slice.join(service);
        std::fs::create_dir(&service).unwrap();
        for owned in [service.clone(), service.join("cgroup.procs"), service.join("cgroup.subtree_control")] {
            std::os::unix::fs::chown(&owned, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        Self(service)
    }
}

impl Drop for Delegated {
    fn drop(&mut self) {
        let inner = std::fs::read_dir(&self.0).into_iter().flatten().flatten().map(|entry| entry.path());
        for directory in inner.filter(|path| path.is_dir()) {
            let _ = std::fs::remove_dir(directory);
        }
        let _ = std::fs::remove_dir(&self.0);
        // Fails where others use it.
        let _ = self.0.parent().map(Path::to_owned).map(std::fs::remove_dir);
    }
}
