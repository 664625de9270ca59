//! What no rule about sockets closes. These tests say so, and fail on the day it is no longer true.

use std::io::Write;

use super::Attack;
use crate::orders::{Headers, Order};
use crate::roles::{BARRED, GOT};
use crate::scene::{Process, Scene, URI};
use crate::stage::{Actor, Stage};
use crate::target::{Rule, Side, Target};
use crate::{http2, needs};

const CLOSED: &str = "if this is closed now, README.md must say so";

pub const LIMITS: &[Attack] = &[
    Attack::new("KNOWN LIMIT: a trusted program that connects for whoever starts it is whoever starts it", steered),
    Attack::new("KNOWN LIMIT: who may execute a file can have it named as the executable (PR_SET_MM_MAP)", masquerade)
        .needing(needs::user_namespaces),
    Attack::new("KNOWN LIMIT: who may trace a process makes it act, and the process itself asks (ptrace)", traced)
        .needing(needs::tracing_on_this_processor)
        .on(&[Side::Tether]),
    Attack::new("a process that is not dumpable is not traced by its own user", not_dumpable)
        .needing(needs::tracing_on_this_processor)
        .on(&[Side::Tether]),
];

/// Every rule holds: the right program in the right process asks. An own user, a process that is not dumpable, or Yama
/// keep others from making it do so.
fn traced(side: Side) {
    let scene = Scene::on(side);
    let mut victim = scene.victim();
    let key = victim.hold_wit().key;
    let verdict = make_act(&scene, &victim, &key).start().verdict();
    assert_eq!(verdict, GOT, "{CLOSED}");
    let proven = victim.told::<Headers>().expect("the real process asked");
    assert!(scene.tool().check(&proven).active, "{CLOSED}");
}

fn not_dumpable(side: Side) {
    let scene = Scene::on(side);
    let mut victim = scene.other_user();
    let key = victim.hold_wit().key;
    victim.order::<String>(&Order::ForbidTracing).unwrap();
    assert_eq!(make_act(&scene, &victim, &key).unprivileged().start().verdict(), BARRED);
}

/// A thief that has the victim prove a request that nobody asked it for.
fn make_act(scene: &Scene, victim: &Process, key: &str) -> Actor {
    let (key, method, uri) = (key.to_owned(), "POST".to_owned(), URI.to_owned());
    let order = serde_json::to_string(&Order::Prove { key, method, uri, on_behalf_of: None }).unwrap();
    Actor::new(scene.stage().thief(), "make-act").arg(victim.pid().to_string()).arg(order)
}

/// An executable selector says which file runs and not who steers it: pair it with a user the attacker does not have.
fn steered(side: Side) {
    let stage = Stage::new();
    let target = Target::serving(&stage, side, &Rule::path(&stage.trusted()));
    let mut relay = Actor::new(stage.trusted(), "relay").arg(target.socket()).start();
    let (mut to_server, from_server) = relay.pipes();
    to_server.write_all(&[http2::opening(), http2::request()].concat()).unwrap();
    let prize = http2::reads_the_prize(from_server, |answer| to_server.write_all(answer).unwrap());
    assert!(prize, "{CLOSED}");
}

/// The process ends up in a user namespace of its own here; a child that shares its memory could go there instead, so a
/// rule about the namespaces of the caller would not help.
fn masquerade(side: Side) {
    let stage = Stage::new();
    let trusted = stage.trusted_cat();
    let target = Target::serving(&stage, side, &Rule::path(&trusted));
    let thief = Actor::new(stage.thief(), "masquerade").arg(target.socket()).arg(&trusted);
    assert_eq!(thief.unprivileged().start().verdict(), GOT, "{CLOSED}");
}
