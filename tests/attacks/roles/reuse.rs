//! A whole attack inside a pid namespace with few numbers, where a server can be made to meet a number twice.

use std::process::{Command, Stdio};

use super::say;
use crate::stage::{Actor, Stage};
use crate::target::{Rule, Side, Target};

/// The caller leaves its connection to a thief and dies; then trusted programs are started until one has its number;
/// then the server accepts.
pub fn reuse_pid(side: &str, pid_max: &str) {
    let side = Side::named(side);
    std::fs::write("/proc/sys/kernel/pid_max", pid_max).unwrap();
    let stage = Stage::new();
    let trusted = stage.trusted_cat();
    let mut target = Target::closed(&stage, side, &Rule::path(&trusted));

    let mut caller = Actor::new(stage.thief(), "leave-behind").arg(target.socket()).arg("listens").start();
    let number = caller.pid();
    caller.wait_for_exit();

    let numbers: u32 = pid_max.parse().unwrap();
    let holder = (0..2 * numbers).find_map(|_| {
        let mut candidate =
            Command::new(&trusted).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("cat starts");
        if candidate.id() == number {
            return Some(candidate);
        }
        candidate.kill().unwrap();
        candidate.wait().unwrap();
        None
    });
    let mut holder = holder.expect("numbers come round");

    target.open();
    let prize = caller.verdict();
    let reasons: &[&str] = if side == Side::OldKernel { &["challenge_timeout"] } else { &["caller_gone"] };
    target.judge(&prize, reasons);
    holder.kill().unwrap();
    holder.wait().unwrap();
    say("done");
}
