//! Attacks on the way tether knows its callers, by real processes. Each is also made on a server that believes
//! `SO_PEERCRED`, where it must succeed: a test whose attack does not work proves nothing.
//!
//! README.md has the table. Nothing here sleeps: processes wait for each other's lines and ends.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

#[path = "../harness/mod.rs"]
mod harness;
#[path = "../it/handshake.rs"]
mod handshake;

mod agent_process;
mod cases;
mod engine;
mod http2;
mod kernel;
mod naive;
mod naive_keys;
mod naive_verifier;
mod needs;
mod orders;
mod roles;
mod scene;
mod stage;
mod target;
mod tls;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

use crate::target::Side;

fn main() -> ExitCode {
    let _programs = stage::prepare();
    if roles::play() {
        return ExitCode::SUCCESS;
    }
    let trials = cases::all().flat_map(|attack| {
        let unmet = (attack.needs)().err();
        attack.on.iter().map(move |side| {
            let run = attack.run;
            let side = *side;
            let trial = Trial::test(name(attack, side), move || {
                run(side);
                Ok(())
            });
            match &unmet {
                Some(why) => trial.with_kind(why.clone()).with_ignored_flag(true),
                None => trial,
            }
        })
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit_code()
}

fn name(attack: &cases::Attack, side: Side) -> String {
    let on = match side {
        Side::Naive => "a naive server",
        Side::Tether => "tether",
        Side::OldKernel => "tether on an old kernel",
    };
    format!("{} ({on})", attack.name)
}
