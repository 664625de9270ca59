//! A whole attack inside a pid namespace with few numbers, where a server can be made to meet a number twice.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::say;
use crate::stage::{Actor, Stage};
use crate::target::{Rule, Side, Target};

/// When numbers come round the kernel leaves out those up to here.
const RESERVED: u32 = 300;
/// The limit of numbers in the namespace: enough above the reserved ones for everybody who takes part.
const PID_MAX: u32 = 400;

/// The caller leaves its connection to a thief and dies; then trusted programs are started until one has its number;
/// then the server accepts.
pub fn reuse_pid(side: &str) {
    let side = Side::named(side);
    std::fs::write("/proc/sys/kernel/pid_max", PID_MAX.to_string()).unwrap();
    let stage = Stage::new();
    let trusted = stage.trusted_cat();
    let mut target = Target::closed(&stage, side, &Rule::path(&trusted));
    start_until(&trusted, |number| number > RESERVED).end();

    let mut caller = Actor::new(stage.thief(), "leave-behind").arg(target.socket()).arg("listens").start();
    let number = caller.pid();
    caller.wait_for_exit();
    let holder = start_until(&trusted, |candidate| candidate == number);

    target.open();
    let verdict = caller.verdict();
    let reason = if side == Side::OldKernel { "challenge_timeout" } else { "caller_gone" };
    target.judge(&verdict, &[reason]);
    holder.end();
    say("done");
}

/// Starts one process after the other until one has a number that is `wanted`.
fn start_until(program: &Path, wanted: impl Fn(u32) -> bool) -> Holder {
    for _ in 0..2 * PID_MAX {
        let candidate = Command::new(program).stdin(Stdio::piped()).stdout(Stdio::null()).spawn();
        let candidate = Holder(candidate.expect("cat starts"));
        if wanted(candidate.0.id()) {
            return candidate;
        }
        candidate.end();
    }
    panic!("numbers come round");
}

/// A process that lives until it is told to end.
struct Holder(Child);

impl Holder {
    fn end(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}
