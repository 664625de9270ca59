//! The process that connected becomes a trusted program, while somebody else reads.
//!
//! Where the server has not accepted yet the swap is certain: it happens while the caller waits in the queue.

use super::Attack;
use crate::roles::{GOT, NOTHING};
use crate::stage::{Actor, Running, Stage};
use crate::target::{Rule, Side, Target};

pub const ATTACKS: &[Attack] = &[
    Attack::new("write, fork, exec a trusted program: nobody answers the server", unanswered),
    Attack::new("write, fork, exec a trusted program: the child answers the server", answered),
    Attack::new("write, fork, exec a trusted program that prints the request itself", printing),
    Attack::new("write, fork, exec a trusted program whose loader prints on the connection", debugging),
    Attack::new("write, fork, exec a trusted program that copies what the child says", copying),
    Attack::new("answer, stall the server, write, fork, exec a trusted program", stalled),
    Attack::new("exec another program while a stream is open", streaming),
];

/// Makes the swap before the server accepts; what the child got.
fn swap(stage: &Stage, target: &mut Target, role: &str, swapped: fn(&mut Running)) -> String {
    let mut caller =
        Actor::new(stage.thief(), role).arg(target.socket()).arg(stage.thief()).arg(stage.trusted_cat()).start();
    swapped(&mut caller);
    target.open();
    caller.verdict()
}

fn swap_and_judge(side: Side, role: &str, reasons: &[&str]) {
    let stage = Stage::new();
    let mut target = Target::closed(&stage, side, &Rule::path(&stage.trusted_cat()));
    let verdict = swap(&stage, &mut target, role, Running::wait_for_swap);
    target.judge(&verdict, reasons);
}

fn unanswered(side: Side) {
    swap_and_judge(side, "swap", &["challenge_timeout"]);
}

fn answered(side: Side) {
    swap_and_judge(side, "swap-answering", &["sender_changed"]);
}

fn printing(side: Side) {
    swap_and_judge(side, "swap-printing", &["challenge_timeout"]);
}

/// The bytes come from the right process and answer everything. Only that the program did not open the connection
/// gives it away.
fn copying(side: Side) {
    swap_and_judge(side, "swap-copying", &["not_close_on_exec", "executable"]);
}

/// Bytes do come from the trusted program after the swap, only not those that were asked for.
fn debugging(side: Side) {
    let stage = Stage::new();
    let mut target = Target::closed(&stage, side, &Rule::path(&stage.trusted_cat()));
    let announced = |caller: &mut Running| assert_eq!(caller.line(), "trusted-cat");
    let verdict = swap(&stage, &mut target, "swap-debugging", announced);
    target.judge(&verdict, &["challenge_timeout"]);
}

/// The caller was proven as what it was, and its request is read when it is something else.
fn stalled(side: Side) {
    until_it_works(side, || {
        let stage = Stage::new();
        let trusted = stage.trusted_cat();
        let mut target = Target::serving(&stage, side, &Rule::path(&trusted));
        let mut caller =
            Actor::new(stage.thief(), "swap-stalled").arg(target.socket()).arg(stage.thief()).arg(&trusted).start();
        let verdict = caller.verdict();
        if side != Side::Naive {
            target.judge(&verdict, &["executable_changed"]);
        }
        verdict
    });
}

/// An attack that depends on luck. tether must withstand each attempt; the naive server, one of some.
fn until_it_works(side: Side, mut attempt: impl FnMut() -> String) {
    const ATTEMPTS: usize = 10;
    match side {
        Side::Naive => assert!((0..ATTEMPTS).any(|_| attempt() == GOT), "the attack works at least once"),
        Side::Tether | Side::OldKernel => assert_eq!(attempt(), NOTHING),
    }
}

/// The identity is one of the user, which both programs have: but it was issued to an instance that is over.
fn streaming(side: Side) {
    let stage = Stage::new();
    let mut target = Target::serving(&stage, side, &Rule::our_user());
    let mut caller = Actor::new(stage.thief(), "swap-streaming")
        .arg(target.socket())
        .arg(stage.thief())
        .arg(stage.trusted_cat())
        .start();
    assert_eq!(caller.verdict(), GOT, "the caller is entitled as long as it is what it was");
    caller.wait_for_swap();
    target.stir();
    let verdict = caller.verdict();
    target.judge(&verdict, &["executable_changed"]);
}
