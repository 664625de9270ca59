//! P5: an agent that nobody asks anything.

use std::time::Duration;

use crate::Effort;
use crate::support::Result;
use crate::support::process::{Agent, EmptyServer, entry_for_me, tether};
use crate::support::report::{Figure, Report};
use crate::support::stats::Rounds;

const MIB: f64 = 1024.0 * 1024.0;

/// P5: from `exec` to `ready`, memory, and the size of the program.
pub fn idle_agent(effort: Effort, report: Report) -> Result<()> {
    let (mut first, mut again, mut resident) = <(Rounds, Rounds, Rounds)>::default();
    let (mut empty_ready, mut empty_resident) = <(Rounds, Rounds)>::default();
    for _ in 0..effort.of(5) {
        let mut agent = Agent::start(&entry_for_me(), &[])?;
        first.0.push(agent.process.ready_after.as_secs_f64() * 1e3);
        agent.restart()?;
        again.0.push(agent.process.ready_after.as_secs_f64() * 1e3);
        let empty = EmptyServer::start()?;
        empty_ready.0.push(empty.process.ready_after.as_secs_f64() * 1e3);
        // What is done right after the start is over.
        std::thread::sleep(Duration::from_millis(500));
        resident.0.push(agent.process.resident()? as f64 / MIB);
        empty_resident.0.push(empty.process.resident()? as f64 / MIB);
    }
    let beside = "empty server";
    let figure = Figure::of_rounds("P5 memory", "idle agent, resident", &resident, "MiB", beside, &empty_resident);
    report.print(&figure.goal("<= 14 MiB", resident.median() <= 14.0));
    let what = "exec to ready, in a state directory that exists";
    let figure = Figure::of_rounds("P5 start", what, &again, "ms", beside, &empty_ready);
    report.print(&figure.goal("<= 50 ms", again.median() <= 50.0));
    let what = "exec to ready, first start (makes authorities)";
    let figure = Figure::of_rounds("P5 first", what, &first, "ms", beside, &empty_ready);
    report.print(&figure);
    let size = std::fs::metadata(tether())?.len() as f64 / MIB;
    let bench = std::fs::metadata(std::env::current_exe()?)?.len() as f64 / MIB;
    let figure = Figure::new("P5 size", "stripped program", size, "MiB").beside("this bench", bench);
    report.print(&figure.goal("<= 20 MiB", size <= 20.0));
    Ok(())
}
