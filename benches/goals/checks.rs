//! P10: what a tool waits for the agent's word on one request.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::time::Instant;

use tether::client::{Endpoint, SecurityHeader, channel, with_header};
use tether::proto::session::verifier_client::VerifierClient;
use tether::proto::session::{CheckRequest, ProveRequest, StartRequest};
use tonic::codegen::InterceptedService;
use tonic::transport::Channel;

use crate::Effort;
use crate::latency::empty_times;
use crate::support::Result;
use crate::support::client::{Sessions, client, sessions};
use crate::support::process::{Agent, EmptyServer, entry_for_me};
use crate::support::report::{Figure, Report};
use crate::support::stats::{Rounds, median, micros, percentile};

const ROUNDS: usize = 15;
const CALLS: usize = 200;
const POLICIES: usize = 50;
const URI: &str = "https://tool.bench.example/charge";

type Verifier = VerifierClient<InterceptedService<Channel, SecurityHeader>>;

/// P10: one check of a request in a session after the other, each of a proof of its own.
pub fn checks(effort: Effort, report: Report) -> Result<()> {
    let policies = tempfile::tempdir()?;
    std::fs::write(policies.path().join("bench.cedar"), set())?;
    let entry = format!("{}serves = [\"*\"]\n", entry_for_me());
    let setting = format!("policies_dir={}", policies.path().display());
    let (empty, agent) = (EmptyServer::start()?, Agent::start(&entry, &[&setting])?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let endpoint = Endpoint::parse(&format!("unix://{}", agent.socket().display()))?;
        let mut verifier = VerifierClient::new(with_header(channel(&endpoint)));
        let (mut agents, mut nobody) = (sessions(&agent.socket())?, client(&empty.socket)?);
        let request = StartRequest {
            purpose: "bench/7".to_owned(),
            targets: vec!["https://tool.bench.example/".to_owned()],
            ..StartRequest::default()
        };
        let session = agents.start(request).await?.into_inner().id;
        // Proofs from before the verifier began to remember are refused: it minds whole seconds.
        tokio::time::sleep(std::time::Duration::from_secs(2)).await;
        times(&mut agents, &mut verifier, &session, CALLS).await?;
        empty_times(&mut nobody, 2 * CALLS).await?;
        let (mut p50, mut p99, mut unary) = <(Rounds, Rounds, Rounds)>::default();
        for _ in 0..effort.of(ROUNDS) {
            let mut times = times(&mut agents, &mut verifier, &session, CALLS).await?;
            p50.0.push(median(&times));
            p99.0.push(percentile(&mut times, 99.0));
            unary.0.push(median(&empty_times(&mut nobody, CALLS).await?));
        }
        let holds = p99.median() <= 500.0;
        let what = format!("Verifier.Check in a session, {POLICIES} policies, p50");
        report.print(&Figure::of_rounds("P10", &what, &p50, "us", "empty unary call", &unary));
        report.print(&Figure::new("P10 p99", "the same, p99", p99.median(), "us").goal("<= 500 us", holds));
        Ok(())
    })
}

/// As many policies as a team has: all are looked at for each call, and one permits it.
fn set() -> String {
    let mut set = "permit (principal, action in [Action::\"start\", Action::\"mint\"], resource);\n".to_owned();
    for number in 1..POLICIES {
        let _ = writeln!(
            set,
            "permit (principal, action in Action::\"call\", resource) when {{ context.purpose == \"bench/{number}\" }};"
        );
    }
    set
}

async fn times(agents: &mut Sessions, verifier: &mut Verifier, session: &str, count: usize) -> Result<Vec<f64>> {
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let headers = prove(agents, session).await?;
        let request =
            CheckRequest { method: "POST".to_owned(), uri: URI.to_owned(), headers, ..CheckRequest::default() };
        let begun = Instant::now();
        let answer = verifier.check(request).await?.into_inner();
        times.push(micros(begun.elapsed()));
        if !answer.active {
            return Err(format!("the request is refused: {}", answer.reason).into());
        }
    }
    Ok(times)
}

async fn prove(agents: &mut Sessions, session: &str) -> Result<HashMap<String, String>> {
    let request = ProveRequest {
        session: session.to_owned(),
        method: "POST".to_owned(),
        uri: URI.to_owned(),
        ..ProveRequest::default()
    };
    Ok(agents.prove(request).await?.into_inner().headers)
}
