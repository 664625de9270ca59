//! The goals in numbers, each as a ratio to a baseline of the same run: `cargo bench --bench goals -- [--long] [--json]
//! [P1 P4 ..]`. `benches/README.md` says how to read it.

#![allow(clippy::disallowed_methods, reason = "a bench measures real time")]
#![allow(clippy::print_stdout, reason = "figures go to standard output")]

mod allocations;
mod entries;
mod idle;
mod latency;
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
pub struct Effort {
    long: bool,
}

impl Effort {
    /// `short` of something, or four times as much in a long run.
    fn of(self, short: usize) -> usize {
        if self.long { 4 * short } else { short }
    }
}

type Goal = fn(Effort, Report) -> Result<()>;

const GOALS: &[(&str, Goal)] = &[
    ("P1", latency::first_message),
    ("P2", latency::new_instance),
    ("P3", throughput::tokens),
    ("P4", streams::open_streams),
    ("P5", idle::idle_agent),
    ("P6", entries::matching),
    ("P8", entries::saved_entry),
];

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if let ["--role", role @ ..] = arguments.as_slice() {
        return play(role);
    }
    let asked_for = |flag: &str| arguments.contains(&flag);
    let effort = Effort { long: asked_for("--long") || std::env::var_os("TETHER_BENCH_LONG").is_some() };
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
        ["holder", socket, connections, streams] => {
            streams::be_holder(Path::new(socket), connections.parse()?, streams.parse()?)
        }
        _ => Err(format!("no such role: {role:?}").into()),
    }
}
