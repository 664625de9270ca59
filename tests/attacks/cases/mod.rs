//! The attacks, by what the attacker holds on to.

mod certificate;
mod connection;
mod container;
mod delegate;
mod ends;
mod exec;
mod files;
mod held;
mod limits;
mod oracle;
mod placement;
mod process;
mod proof;
mod sessions;
mod tokens;

use crate::needs::{self, Need};
use crate::target::Side;

/// One attack, to be made on some servers.
pub struct Attack {
    /// A sentence about what the attacker does.
    pub name: &'static str,
    pub needs: Need,
    pub on: &'static [Side],
    /// Makes the attack and judges what came of it.
    pub run: fn(Side),
}

impl Attack {
    const fn new(name: &'static str, run: fn(Side)) -> Self {
        Self { name, needs: needs::nothing, on: &[Side::Naive, Side::Tether, Side::OldKernel], run }
    }

    const fn needing(mut self, needs: Need) -> Self {
        self.needs = needs;
        self
    }

    const fn on(mut self, sides: &'static [Side]) -> Self {
        self.on = sides;
        self
    }
}

/// Every attack.
pub fn all() -> impl Iterator<Item = &'static Attack> {
    let all = [
        connection::ATTACKS,
        exec::ATTACKS,
        process::ATTACKS,
        files::ATTACKS,
        placement::ATTACKS,
        container::ATTACKS,
        limits::LIMITS,
        held::ATTACKS,
        tokens::ATTACKS,
        tokens::LIMITS,
        proof::ATTACKS,
        proof::LIMITS,
        certificate::ATTACKS,
        certificate::LIMITS,
        oracle::ATTACKS,
        delegate::ATTACKS,
        ends::ATTACKS,
        sessions::ATTACKS,
        sessions::LIMITS,
    ];
    all.into_iter().flatten()
}
