//! P9: proofs made with a key that tether holds.

use std::time::Instant;

use tether::proto::session::ProveRequest;

use crate::Effort;
use crate::latency::empty_times;
use crate::support::Result;
use crate::support::client::{Sessions, client, sessions};
use crate::support::process::{Agent, EmptyServer, entry_for_me};
use crate::support::report::{Figure, Report};
use crate::support::stats::{Rounds, median, micros, percentile};
use crate::throughput::{calls, signatures, tokens_a_second};

const ROUNDS: usize = 15;
const CALLS: usize = 200;

/// P9: one proof of a request after the other, and 64 in flight.
pub fn proofs(effort: Effort, report: Report) -> Result<()> {
    let (empty, agent) = (EmptyServer::start()?, Agent::start(&entry_for_me(), &[])?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (mut known, mut nobody) = (sessions(&agent.socket())?, client(&empty.socket)?);
        // The first makes the key.
        times(&mut known, 2 * CALLS).await?;
        empty_times(&mut nobody, 2 * CALLS).await?;
        let (mut proved, mut unary, mut p99) = <(Rounds, Rounds, Rounds)>::default();
        for _ in 0..effort.of(ROUNDS) {
            let mut times = times(&mut known, CALLS).await?;
            proved.0.push(median(&times));
            p99.0.push(percentile(&mut times, 99.0));
            unary.0.push(median(&empty_times(&mut nobody, CALLS).await?));
        }
        let figure = Figure::of_rounds("P9", "Sessions.Prove (WPT), p50", &proved, "us", "empty unary call", &unary);
        let holds = figure.median_ratio() <= 3.0;
        report.print(&figure.goal("<= 3 x", holds));
        report.print(&Figure::new("P9 p99", "the same, p99", p99.median(), "us"));
        Result::Ok(())
    })?;

    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let (mut proved, mut called, mut signed, mut combined) = <(Rounds, Rounds, Rounds, Rounds)>::default();
    for round in 0..=effort.of(6) {
        let call = |mut client: Sessions| async move { prove(&mut client).await };
        let proofs = runtime.block_on(calls(|| sessions(&agent.socket()), call))?;
        let calls = runtime.block_on(tokens_a_second(&empty.socket, 0))?;
        let signatures = signatures()?;
        // The first round warms up.
        if round > 0 {
            proved.0.push(proofs);
            called.0.push(calls);
            signed.0.push(signatures);
            combined.0.push(1.0 / (1.0 / calls + 1.0 / signatures));
        }
    }
    let beside = format!("empty call {:.0}/s and ES256 {:.0}/s, one after the other", called.median(), signed.median());
    let what = "the same, 64 in flight on 8 connections";
    let figure = Figure::of_rounds("P9 rate", what, &proved, "/s", beside, &combined);
    let holds = figure.median_ratio() >= 0.7;
    report.print(&figure.goal(">= 0.7 x", holds));
    Ok(())
}

async fn times(client: &mut Sessions, count: usize) -> Result<Vec<f64>> {
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let begun = Instant::now();
        prove(client).await?;
        times.push(micros(begun.elapsed()));
    }
    Ok(times)
}

async fn prove(client: &mut Sessions) -> Result<()> {
    let request = ProveRequest {
        method: "POST".to_owned(),
        uri: "https://tool.bench.example/charge".to_owned(),
        ..ProveRequest::default()
    };
    match client.prove(request).await?.into_inner().headers.len() {
        2 => Ok(()),
        others => Err(format!("{others} headers instead of a WIT and a proof").into()),
    }
}
