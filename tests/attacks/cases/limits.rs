//! What no rule about sockets closes. These tests say so, and fail on the day it is no longer true.

use std::io::Write;

use super::Attack;
use crate::roles::GOT;
use crate::stage::{Actor, Stage};
use crate::target::{Rule, Side, Target};
use crate::{http2, needs};

const CLOSED: &str = "if this is closed now, README.md must say so";

pub const LIMITS: &[Attack] = &[
    Attack::new("KNOWN LIMIT: a trusted program that connects for whoever starts it is whoever starts it", steered),
    Attack::new("KNOWN LIMIT: who may execute a file can have it named as the executable (PR_SET_MM_MAP)", masquerade)
        .needing(needs::user_namespaces),
];

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
