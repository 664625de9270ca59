//! The process that connected is gone, is another one with its number, or is another user.

use super::Attack;
use crate::needs;
use crate::stage::{Actor, NOBODY, Stage};
use crate::target::{Rule, Side, Target};

pub const ATTACKS: &[Attack] = &[
    Attack::new("the caller dies before it is accepted and leaves its connection to a child", dead),
    Attack::new("a trusted program gets the number of a caller that died in the queue", reused)
        .needing(needs::pid_max_of_a_namespace),
    Attack::new("the caller asks after it gave up the user it connected as", other_user).needing(needs::root),
];

fn dead(side: Side) {
    let stage = Stage::new();
    let mut target = Target::closed(&stage, side, &Rule::our_user());
    let mut caller = Actor::new(stage.thief(), "leave-behind").arg(target.socket()).arg("answers").start();
    caller.wait_for_exit();
    target.open();
    let verdict = caller.verdict();
    target.judge(&verdict, &["caller_gone"]);
}

/// Takes place in a pid namespace of its own, server and all, so that the host's limit is left alone.
fn reused(side: Side) {
    let stage = Stage::new();
    let namespace = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"];
    let mut inside = Actor::under(&namespace, stage.thief(), "reuse-pid").arg(side.name()).start();
    assert_eq!(inside.line(), "done");
}

fn other_user(side: Side) {
    let stage = Stage::new();
    let mut target = Target::serving(&stage, side, &Rule::our_user());
    let mut caller = Actor::new(stage.thief(), "change-user").arg(target.socket()).arg(NOBODY.to_string()).start();
    let verdict = caller.verdict();
    target.judge(&verdict, &["no_identity"]);
}
