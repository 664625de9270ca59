//! The goals in numbers, each as a ratio to a baseline of the same run: `cargo bench --bench goals -- [--quick | --long]
//! [--json] [P1 P4 ..]`. `benches/README.md` says how to read it.

#![allow(clippy::disallowed_methods, reason = "a bench measures real time")]
#![allow(clippy::print_stdout, reason = "figures go to standard output")]

mod allocations;
mod checks;
mod ends;
mod entries;
mod handshake;
mod idle;
mod latency;
mod ledger;
mod proofs;
mod sessions;
mod streams;
mod throughput;

#[path = "../support/mod.rs"]
mod support;

use std::path::Path;

use support::report::Report;
use support::{Result, empty};

#[global_allocator]
static ALLOCATOR: allocations::Counting = allocations::Counting;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub enum Effort {
    /// Enough to see that everything runs; the figures mean little.
    Quick,
    /// Enough for the goals on a machine that does nothing else.
    Short,
    /// Enough for narrow spreads.
    Long,
}

impl Effort {
    /// `short` of something, or as much less or more as there is time for.
    fn of(self, short: usize) -> usize {
        match self {
            Self::Quick => (short / 8).max(2),
            Self::Short => short,
            Self::Long => 4 * short,
        }
    }
}

type Goal = fn(Effort, Report) -> Result<()>;

const GOALS: &[(&str, Goal)] = &[
    ("P1", latency::first_message),
    ("P2", latency::new_instance),
    ("P3", throughput::tokens),
    ("P3-ledger", ledger::share_of_a_token),
    ("ledger", ledger::a_million),
    ("P4", streams::open_streams),
    ("P5", idle::idle_agent),
    ("P6", entries::matching),
    ("P7", ends::process_exit),
    ("P8", entries::saved_entry),
    ("P9", proofs::proofs),
    ("P10", checks::checks),
    ("S", sessions::ten_thousand),
    ("TLS", handshake::mutual),
];

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if let ["--role", role @ ..] = arguments.as_slice() {
        return play(role);
    }
    let asked_for = |flag: &str| arguments.contains(&flag);
    let wanted = |flag: &str, variable: &str| asked_for(flag) || std::env::var_os(variable).is_some();
    let effort = match () {
        () if wanted("--quick", "TETHER_BENCH_QUICK") => Effort::Quick,
        () if wanted("--long", "TETHER_BENCH_LONG") => Effort::Long,
        () => Effort::Short,
    };
    let report = Report::new(asked_for("--json"));
    let named: Vec<&&str> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    for (name, measure) in GOALS {
        if named.is_empty() || named.iter().any(|named| named.eq_ignore_ascii_case(name)) {
            measure(effort, report).map_err(|error| format!("{name}: {error}"))?;
        }
    }
    Ok(())
}

/// What this program does when it was started by itself.
fn play(role: &[&str]) -> Result<()> {
    match role {
        ["empty", socket] => empty::serve(Path::new(socket)),
        ["newcomer", agent, empty, order] => latency::be_newcomer(Path::new(agent), Path::new(empty), order),
        ["victim", socket] => ends::be_victim(Path::new(socket)),
        ["tasks", socket, count] => sessions::be_tasks(Path::new(socket), count.parse()?),
        ["holder", socket, connections, streams] => {
            streams::be_holder(Path::new(socket), connections.parse()?, streams.parse()?)
        }
        _ => Err(format!("no such role: {role:?}").into()),
    }
}
