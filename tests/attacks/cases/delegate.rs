//! Acting for another process: who may, and for which.

use super::Attack;
use crate::needs;
use crate::orders::{Headers, Held, Named, Order, Refused};
use crate::scene::{Process, Scene, Setup, URI};
use crate::stage::Actor;
use crate::target::Side;

const BOTH: &[Side] = &[Side::Naive, Side::Tether];

pub const ATTACKS: &[Attack] = &[
    Attack::new("a process without may_act_for names another process", without_permission).on(BOTH),
    Attack::new("a delegate names a process whose identity is outside its may_act_for", outside).on(BOTH),
    Attack::new("a delegate names a number that another process has by now", recycled)
        .needing(needs::choosing_numbers)
        .on(BOTH),
    Attack::new("a delegate names a process by number alone", by_number).on(BOTH),
    Attack::new("a delegate names a process that has just died", dead).on(BOTH),
    Attack::new("a key that a delegate holds for a process is used by others", key_of_a_delegate).on(BOTH),
    Attack::new("a delegate names a process where numbers are all there is", old_kernel).on(&[Side::OldKernel]),
];

/// The tool is the delegate, for the victim alone.
const DELEGATE: Setup<'static> =
    Setup { victim: "", tool: "may_act_for = [\"spiffe://dev.tether.internal/victim\"]", policies: "", root: None };

fn hold(delegate: &mut Process, other: Named) -> Result<Held, Refused> {
    delegate.order(&Order::HoldWit(Some(other)))
}

fn prove(process: &mut Process, key: &str, other: Option<Named>) -> Result<Headers, Refused> {
    let (key, method, uri) = (key.to_owned(), "POST".to_owned(), URI.to_owned());
    process.order(&Order::Prove { key, method, uri, on_behalf_of: other })
}

fn without_permission(side: Side) {
    let mut scene = Scene::with(side, DELEGATE);
    let victim = scene.victim();
    let mut thief = scene.thief();
    scene.judge(hold(&mut thief, victim.named()), "PermissionDenied", "not_delegate");
    let mut sibling = scene.victim();
    scene.judge(hold(&mut sibling, victim.named()), "PermissionDenied", "not_delegate");
}

fn outside(side: Side) {
    let mut scene = Scene::with(side, DELEGATE);
    let mut tool = scene.tool();
    hold(&mut tool, scene.victim().named()).expect("it may act for the victim");
    let thief = scene.thief();
    scene.judge(hold(&mut tool, thief.named()), "PermissionDenied", "not_delegate");
    let itself = tool.named();
    scene.judge(hold(&mut tool, itself), "PermissionDenied", "not_delegate");
}

/// The process that has the number now is even of the same program and user: it is not the one that was meant.
fn recycled(side: Side) {
    let mut scene = Scene::with(side, DELEGATE);
    let mut victim = scene.victim();
    let meant = victim.named();
    victim.end();
    let reborn = Actor::new(scene.stage().trusted(), "reborn").arg(meant.pid.to_string());
    let _reborn = Process::start(reborn, scene.socket());
    let mut tool = scene.tool();
    scene.judge(hold(&mut tool, meant), "NotFound", "target");
}

fn by_number(side: Side) {
    let mut scene = Scene::with(side, DELEGATE);
    let victim = scene.victim();
    let mut tool = scene.tool();
    let by_number = Named { inode: 0, ..victim.named() };
    scene.judge(hold(&mut tool, by_number), "InvalidArgument", "target");
    let guessed = Named { inode: victim.named().inode + 1, ..victim.named() };
    scene.judge(hold(&mut tool, guessed), "NotFound", "target");
}

fn dead(side: Side) {
    let mut scene = Scene::with(side, DELEGATE);
    let mut victim = scene.victim();
    let (mut tool, named) = (scene.tool(), victim.named());
    let held = hold(&mut tool, named).unwrap();
    prove(&mut tool, &held.key, Some(named)).expect("as long as the victim lives");
    victim.end();
    scene.judge(hold(&mut tool, named), "NotFound", "target");
    scene.judge(prove(&mut tool, &held.key, Some(named)), "NotFound", "target");
}

fn key_of_a_delegate(side: Side) {
    let mut scene = Scene::with(side, DELEGATE);
    let victim = scene.victim();
    let (mut tool, named) = (scene.tool(), victim.named());
    let held = hold(&mut tool, named).unwrap();
    prove(&mut tool, &held.key, Some(named)).expect("its own delegate");
    let mut thief = scene.thief();
    scene.judge(prove(&mut thief, &held.key, Some(named)), "PermissionDenied", "not_delegate");
    scene.judge(prove(&mut thief, &held.key, None), "PermissionDenied", "held");
    // Another process of the delegate's program, which may act for the victim too, has not asked for this key.
    let mut other = scene.tool();
    scene.judge(prove(&mut other, &held.key, Some(named)), "PermissionDenied", "held");
    tool.exec(scene.stage().thief());
    scene.judge(prove(&mut tool, &held.key, Some(named)), "PermissionDenied", "not_delegate");
}

/// Nothing can be meant by a number that somebody else may have tomorrow.
fn old_kernel(side: Side) {
    let mut scene = Scene::with(side, DELEGATE);
    let victim = scene.victim();
    let mut tool = scene.tool();
    scene.judge(hold(&mut tool, victim.named()), "FailedPrecondition", "target");
}
