//! Somebody else speaks on the connection of a trusted process, which is alive and well.

use super::Attack;
use crate::needs;
use crate::roles::{BARRED, GOT};
use crate::stage::{Actor, Stage};
use crate::target::{Rule, Side, Target};

pub const ATTACKS: &[Attack] = &[
    Attack::new("a child speaks on the connection it inherited", inherited),
    Attack::new("a child speaks on the connection it inherited after its parent was proven", inherited_proven),
    Attack::new("a process speaks on a connection that was sent to it", passed),
    Attack::new("a process speaks on a connection that it took with pidfd_getfd", stolen).needing(needs::tracing),
    Attack::new("a descriptor is sent along with a request", descriptor_sent),
];

fn inherited(side: Side) {
    handed_down(side, "at-once");
}

fn inherited_proven(side: Side) {
    handed_down(side, "when-proven");
}

fn handed_down(side: Side, when: &str) {
    let stage = Stage::new();
    let mut target = Target::serving(&stage, side, &Rule::path(&stage.trusted()));
    let mut parent = Actor::new(stage.trusted(), "hand-down").arg(target.socket()).arg(stage.thief()).arg(when).start();
    let verdict = parent.verdict();
    target.judge(&verdict, &["sender_changed"]);
}

fn passed(side: Side) {
    let stage = Stage::new();
    let mut target = Target::serving(&stage, side, &Rule::path(&stage.trusted()));
    let meeting = stage.path("meeting");
    let mut thief = Actor::new(stage.thief(), "receive").arg(&meeting).start();
    assert_eq!(thief.line(), "listening");
    let mut victim = Actor::new(stage.trusted(), "pass-on").arg(target.socket()).arg(&meeting).start();
    assert_eq!(victim.line(), "passed");
    let verdict = thief.verdict();
    target.judge(&verdict, &["sender_changed"]);
}

fn stolen(side: Side) {
    let stage = Stage::new();
    let mut target = Target::serving(&stage, side, &Rule::path(&stage.trusted()));
    let mut victim = Actor::new(stage.trusted(), "hold").arg(target.socket()).start();
    let descriptor = victim.line();
    let mut thief = Actor::new(stage.thief(), "steal").arg(victim.pid().to_string()).arg(descriptor).start();
    let verdict = thief.verdict();
    target.judge(&verdict, &["sender_changed"]);
}

/// No prize is at stake: the naive server takes in what it did not ask for.
fn descriptor_sent(side: Side) {
    let stage = Stage::new();
    let mut target = Target::serving(&stage, side, &Rule::our_user());
    let verdict = Actor::new(stage.thief(), "send-descriptor").arg(target.socket()).start().verdict();
    match side {
        Side::Naive => assert_eq!(verdict, GOT),
        // Newer kernels do not let them through to us: nothing arrives that could be recorded.
        Side::Tether if tether::sys::Kernel::probe().pass_rights => assert_eq!(verdict, BARRED),
        Side::Tether | Side::OldKernel => target.judge(&verdict, &["descriptors_passed"]),
    }
}
