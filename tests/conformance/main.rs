//! The SPIFFE conformance checklist, rule by rule, against the real agent on its real socket.
//!
//! [`table::rules`] has every rule of the sections that bind an issuer, a validator, an endpoint, a bundle publisher or
//! a client, each exactly once. A rule is shown by a test whose name begins with its id, by a unit test elsewhere that
//! must exist, or by review; or it is a gap. A gap is an ignored test with its reason, and the run fails when what it
//! lacks starts to work. `README.md` beside this file is written from the table.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on says where")]

#[path = "../harness/mod.rs"]
mod harness;
mod rules;
mod support;
mod table;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Completion, Failed, Trial};

use crate::table::{Rule, Shown};

fn main() -> ExitCode {
    // This binary is also the workload that another user runs.
    if let Some(socket) = std::env::var_os(support::other_user::SOCKET_VARIABLE) {
        return support::other_user::fetch(socket.as_ref());
    }
    let arguments = Arguments::from_args();
    let rules = table::rules();
    let mut trials = vec![
        Trial::test("every rule of the sections is in the table exactly once", || checked(table::complete())),
        Trial::test("the README says what the table says", || checked(table::readme())),
        Trial::test("a gap that closes fails the run", a_closed_gap_fails),
    ];
    for rule in rules {
        trials.extend(trials_of(rule));
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn trials_of(rule: &'static Rule) -> Vec<Trial> {
    let name = format!("{} {}", rule.id, rule.says);
    match rule.shown {
        Shown::Test(test) => vec![Trial::test(name, move || {
            test();
            Ok(())
        })],
        Shown::Library(test) => vec![Trial::test(format!("{name} (library)"), move || {
            test();
            Ok(())
        })],
        Shown::TestIf(possible, otherwise, test) => vec![Trial::ignorable_test(name, move || {
            if !possible() {
                return Ok(Completion::ignored_with(otherwise));
            }
            test();
            Ok(Completion::Completed)
        })],
        Shown::Unit(file, test) => vec![Trial::test(format!("{name} (unit test)"), move || unit_test(file, test))],
        // As an ignored test it is seen in every run; beside it runs what notices that the gap is closed.
        Shown::Gap(reason, test) => vec![
            Trial::test(format!("{name} (gap: {reason})"), || Ok(())).with_ignored_flag(true),
            Trial::test(format!("{} is still a gap", rule.id), move || still_a_gap(reason, test)),
        ],
        Shown::As(_) | Shown::Review(_) | Shown::NotOurs(_) => Vec::new(),
    }
}

/// The unit test that shows a rule is there under its name.
fn unit_test(file: &str, test: &str) -> Result<(), Failed> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    let text = std::fs::read_to_string(&path).map_err(|error| format!("`{file}`: {error}"))?;
    if text.contains(&format!("fn {test}(")) { Ok(()) } else { Err(format!("`{file}` has no test `{test}`").into()) }
}

fn still_a_gap(reason: &str, test: fn()) -> Result<(), Failed> {
    match std::panic::catch_unwind(test) {
        Err(_) => Ok(()),
        Ok(()) => Err(format!("this works now and is no longer a gap: make it a test (it was: {reason})").into()),
    }
}

fn a_closed_gap_fails() -> Result<(), Failed> {
    still_a_gap("the test cannot succeed", || std::panic::resume_unwind(Box::new("it lacks something")))?;
    still_a_gap("the test succeeds", || ()).err().map(drop).ok_or_else(|| "a closed gap went unnoticed".into())
}

fn checked(result: Result<(), String>) -> Result<(), Failed> {
    result.map_err(Failed::from)
}
