//! The process that connected is gone, is another one with its number, or is another user.

use std::path::Path;

use super::Attack;
use crate::roles::GOT;
use crate::stage::{Actor, NOBODY, Stage};
use crate::target::{Rule, Side, Target};
use crate::{http2, needs};

pub const ATTACKS: &[Attack] = &[
    Attack::new("the caller dies before it is accepted and leaves its connection to a child", dead),
    Attack::new("a trusted program gets the number of a caller that died in the queue", reused)
        .needing(needs::pid_max_of_a_namespace),
    Attack::new("the caller asks after it gave up the user it connected as", other_user).needing(needs::root),
    Attack::new("the caller asks again after it left a supplementary group", left_group)
        .needing(needs::root)
        .on(&[Side::Tether, Side::OldKernel]),
    Attack::new("a caller that gave up the user it connected as has what the new one has", new_user)
        .needing(needs::root)
        .on(&[Side::Tether, Side::OldKernel]),
    Attack::new("write, fork, exec a setuid program that copies what the child says", setuid)
        .needing(needs::setuid_files),
    Attack::new("write, fork, exec a setuid program that copies what the child says to the admin API", setuid_admin)
        .needing(needs::setuid_files),
    Attack::new("an instance is weak where less is known of it", weak).on(&[Side::Tether, Side::OldKernel]),
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
    inside.wait_for_exit();
}

/// Somebody else may have opened the connection. Since no entry is about the new user, nobody searches for who did.
fn other_user(side: Side) {
    let stage = Stage::new();
    let mut target = Target::serving(&stage, side, &Rule::our_user());
    let mut caller =
        Actor::new(stage.thief(), "change-user-openly").arg(target.socket()).arg(NOBODY.to_string()).start();
    let verdict = caller.verdict();
    target.judge(&verdict, &["no_identity"]);
}

/// Its user and group are the same all the time.
fn left_group(side: Side) {
    const GROUP: u32 = 54_321;
    let stage = Stage::new();
    let mut target = Target::serving(&stage, side, &Rule::Group(GROUP));
    let mut caller = Actor::new(stage.thief(), "leave-group").arg(target.socket()).arg(GROUP.to_string()).start();
    assert_eq!(caller.verdict(), GOT, "a member has what members have");
    let verdict = caller.verdict();
    target.judge(&verdict, &["no_identity"]);
}

fn new_user(side: Side) {
    let stage = Stage::new();
    let target = Target::serving(&stage, side, &Rule::UidNow(NOBODY));
    let mut caller = Actor::new(stage.thief(), "change-user").arg(target.socket()).arg(NOBODY.to_string()).start();
    assert_eq!(caller.verdict(), GOT);
}

/// The entry is about a user and says nothing of the executable. An old kernel cannot even tell that the process is
/// the one that connected, since its user is another.
fn setuid(side: Side) {
    copied_by_root(side, Target::socket, |actor| actor);
}

/// Root may do everything there, and the copying program is root.
fn setuid_admin(side: Side) {
    copied_by_root(side, Target::admin_socket, |actor| actor.calling(http2::LIST_ENTRIES));
}

fn copied_by_root(side: Side, socket: fn(&Target) -> &Path, how: fn(Actor) -> Actor) {
    let stage = Stage::new();
    let copier = stage.trusted_cat();
    std::fs::set_permissions(&copier, std::os::unix::fs::PermissionsExt::from_mode(0o4755)).unwrap();
    let mut target = Target::closed(&stage, side, &Rule::UidNow(0));
    let caller = Actor::new(stage.thief(), "swap-copying").arg(socket(&target)).arg(stage.thief()).arg(copier);
    let mut caller = how(caller).unprivileged().start();
    caller.wait_for_swap();
    target.open();
    let verdict = caller.verdict();
    target.judge(&verdict, &[if side == Side::OldKernel { "caller_gone" } else { "not_close_on_exec" }]);
}

fn weak(side: Side) {
    let stage = Stage::new();
    let target = Target::serving(&stage, side, &Rule::our_user());
    let mut caller = Actor::new(stage.thief(), "hold").arg(target.socket()).start();
    caller.line();
    let weakness = target.weakness(caller.pid());
    assert_eq!(weakness.contains("by number and start time only"), side == Side::OldKernel, "{weakness}");
}
