//! What no rule about sockets closes. These tests say so, and fail on the day it is no longer true.

use std::io::Write;

use super::Attack;
use crate::http2;
use crate::stage::{Actor, Stage};
use crate::target::{Rule, Side, Target};

pub const LIMITS: &[Attack] =
    &[Attack::new("KNOWN LIMIT: a trusted program that connects for whoever starts it is whoever starts it", steered)
        .on(&[Side::Naive, Side::Tether, Side::OldKernel])];

/// An executable selector says which file runs and not who steers it: pair it with a user the attacker does not have.
fn steered(side: Side) {
    let stage = Stage::new();
    let target = Target::serving(&stage, side, &Rule::path(&stage.trusted()));
    let mut relay = Actor::new(stage.trusted(), "relay").arg(target.socket()).start();
    let (mut to_server, from_server) = relay.pipes();
    to_server.write_all(&[http2::opening(), http2::request()].concat()).unwrap();
    let prize = http2::reads_the_prize(from_server, |answer| to_server.write_all(answer).unwrap());
    assert!(prize, "if this is closed now, the documentation must say so");
}
