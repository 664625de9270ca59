//! Who is in the cgroup of a session.

use super::groups::{Made, put};
use super::*;
use crate::peer::{InstanceEnd, LookError};

#[tokio::test]
async fn a_process_is_in_its_cgroup_and_in_those_above_and_in_no_other() {
    for kernel in all_kernels() {
        let Some(group) = Made::new("/task.service/own") else { return };
        let bonds = plain(kernel);
        let (top, below, beside) = (Workload::start(), Workload::start(), Workload::start());
        group.take(&top);
        put(&group.child("tool"), &below);
        put(&group.child("tool2"), &beside);
        let [top, below, beside] = [&top, &below, &beside].map(|workload| bonds.instance(workload.pid()));
        // Exactly its own, also within a unit.
        let own = bonds.cgroup_tie(&top).expect("tied");
        assert!(matches!(&own, Tie::Cgroup { id, path, .. } if *id == group.id() && path.as_str().ends_with("/own")));
        let tool = bonds.cgroup_tie(&below).expect("tied");
        let cases = [
            (&top, &own, true),
            (&below, &own, true),
            (&below, &tool, true),
            (&top, &tool, false),
            (&beside, &tool, false),
            (&bonds.instance(std::process::id().cast_signed()), &own, false),
            (&top, &Tie::Node, false),
        ];
        for (at, (instance, tie, expected)) in cases.into_iter().enumerate() {
            assert_eq!(bonds.in_cgroup(instance, tie).expect("answered"), expected, "case {at}");
        }
    }
}

#[tokio::test]
async fn whoever_is_moved_out_is_no_member_and_a_cgroup_made_again_has_none_of_the_old() {
    for kernel in all_kernels() {
        let Some(group) = Made::new("") else { return };
        let bonds = plain(kernel);
        let workload = Workload::start();
        let task = group.child("task");
        put(&task, &workload);
        let instance = bonds.instance(workload.pid());
        let tie = bonds.cgroup_tie(&instance).expect("tied");
        assert!(bonds.in_cgroup(&instance, &tie).expect("answered"));
        put(&group.child("elsewhere"), &workload);
        assert!(!bonds.in_cgroup(&instance, &tie).expect("answered"));
        std::fs::remove_dir(&task).expect("removed");
        put(&group.child("task"), &workload);
        assert!(!bonds.in_cgroup(&instance, &tie).expect("answered"), "another directory at the same path");
        put(&group.child("task/below"), &workload);
        assert!(!bonds.in_cgroup(&instance, &tie).expect("answered"), "and below it");
    }
}

#[tokio::test]
async fn a_cgroup_of_another_boot_has_no_members_and_who_is_gone_is_in_none() {
    for kernel in all_kernels() {
        let Some(group) = Made::new("") else { return };
        let bonds = plain(kernel);
        let mut workload = Workload::start();
        group.take(&workload);
        let instance = bonds.instance(workload.pid());
        let tie = bonds.cgroup_tie(&instance).expect("tied");
        let Tie::Cgroup { id, path, .. } = tie.clone() else { panic!("a cgroup") };
        let before = Tie::Cgroup { boot: another_boot(), id, path };
        assert!(!bonds.in_cgroup(&instance, &before).expect("answered"));
        workload.end();
        assert!(matches!(bonds.in_cgroup(&instance, &tie), Err(LookError::Ended(InstanceEnd::Exited))));
        assert!(matches!(bonds.cgroup_tie(&instance), Err(BondError::Place(AttestError::Gone))));
    }
}

#[tokio::test]
async fn the_root_is_nobodys_own() {
    for kernel in all_kernels() {
        let bonds = plain(kernel);
        let ourselves = bonds.instance(std::process::id().cast_signed());
        if ourselves.look().expect("we live").cgroup_id == Some(cgroup::ROOT_ID) {
            let error = bonds.cgroup_tie(&ourselves).expect_err("refused");
            assert!(matches!(error, BondError::RootCgroup) && error.to_string().contains("`tree`"), "{error}");
        }
    }
}
