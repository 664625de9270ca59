//! The file at a trusted path, or what looks like it.

use std::path::Path;
use std::process::Command;

use super::Attack;
use crate::needs;
use crate::roles::{GOT, NOTHING};
use crate::stage::{Actor, Stage, copy};
use crate::target::{Rule, Side, Target};

pub const ATTACKS: &[Attack] = &[
    Attack::new("another program is mounted over the trusted one in a private mount namespace", mounted_over)
        .needing(needs::mount_namespaces),
    Attack::new("another program is put in the place of the trusted one", replaced),
    Attack::new("the trusted program is replaced while it runs, and stays what it is", replaced_while_running)
        .on(&[Side::Tether, Side::OldKernel]),
    Attack::new("the trusted program is deleted while it runs, and stays what it is", deleted_while_running)
        .on(&[Side::Tether, Side::OldKernel]),
    Attack::new("a program whose file was deleted before it first asked has no path", deleted_before)
        .on(&[Side::Tether, Side::OldKernel]),
];

fn mounted_over(side: Side) {
    let stage = Stage::new();
    let trusted = stage.trusted_cat();
    let mut target = Target::serving(&stage, side, &Rule::path(&trusted));
    let script = "mount --bind \"$0\" \"$1\" && exec \"$1\" \"$2\"";
    let namespace = ["unshare", "--map-root-user", "--mount", "sh", "-c", script];
    let mut thief = Actor::under(&namespace, stage.thief(), "fetch").arg(&trusted).arg(target.socket()).start();
    let verdict = thief.verdict();
    target.judge(&verdict, &["no_identity"]);
}

/// A path alone says no more than who may write there. What must be this very program is named by its content.
fn replaced(side: Side) {
    let stage = Stage::new();
    let path = stage.path("workload");
    copy(&stage.trusted(), &path);
    let rule = Rule::Program { path: path.clone(), sha256: sha256(&path) };
    let mut target = Target::serving(&stage, side, &rule);
    let honest = Actor::new(&path, "fetch").arg(target.socket()).start().verdict();
    assert_eq!(honest, GOT, "the program that is meant gets what it asks for");
    put_another_program_at(&stage, &path);
    let verdict = Actor::new(&path, "fetch").arg(target.socket()).start().verdict();
    target.judge(&verdict, &["no_identity"]);
}

fn replaced_while_running(side: Side) {
    goes_on_after(side, put_another_program_at);
}

fn deleted_while_running(side: Side) {
    goes_on_after(side, |_, path| std::fs::remove_file(path).unwrap());
}

/// Packages are upgraded under running programs, which lose nothing by it.
fn goes_on_after(side: Side, change: fn(&Stage, &Path)) {
    let stage = Stage::new();
    let path = stage.path("workload");
    copy(&stage.trusted(), &path);
    let target = Target::serving(&stage, side, &Rule::path(&path));
    let mut workload = Actor::new(&path, "fetch-twice").arg(target.socket()).start();
    assert_eq!(workload.verdict(), GOT);
    change(&stage, &path);
    workload.go_on();
    assert_eq!(workload.verdict(), GOT);
}

fn deleted_before(side: Side) {
    let stage = Stage::new();
    let path = stage.path("workload");
    copy(&stage.trusted(), &path);
    let mut target = Target::serving(&stage, side, &Rule::path(&path));
    let mut workload = Actor::new(&path, "fetch-when-told").arg(target.socket()).start();
    assert_eq!(workload.line(), "running");
    std::fs::remove_file(&path).unwrap();
    workload.go_on();
    assert_eq!(workload.verdict(), NOTHING);
    target.recorded(&["no_identity"]);
}

/// As a package manager does: by a new file with the old name.
fn put_another_program_at(stage: &Stage, path: &Path) {
    let new = stage.path("new");
    copy(&stage.thief(), &new);
    // A byte more makes it another program, which does the same.
    assert!(Command::new("truncate").arg("--size=+1").arg(&new).status().unwrap().success());
    std::fs::rename(&new, path).unwrap();
}

fn sha256(path: &Path) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &std::fs::read(path).unwrap());
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}
