//! S: very many sessions that live at once.

use std::path::Path;
use std::time::Instant;

use tether::client::{Endpoint, channel};
use tether::proto::admin::session_admin_client::SessionAdminClient;
use tether::proto::admin::{EndSessionsRequest, ListSessionsRequest};
use tether::proto::session::StartRequest;
use tokio::task::JoinSet;

use crate::Effort;
use crate::support::Result;
use crate::support::client::{Sessions, sessions};
use crate::support::process::{Agent, Process, entry_for_me};
use crate::support::report::{Figure, Report};

/// In all, of so many processes.
const SESSIONS: usize = 10_000;
const PROCESSES: usize = 20;
/// Started at a time by one process.
const AT_ONCE: usize = 16;
const PERMIT: &str = "permit (principal, action == Action::\"start\", resource);\n";

/// Sessions started, held, ended by an operator, and ended by the end of their processes.
pub fn ten_thousand(effort: Effort, report: Report) -> Result<()> {
    let count = if matches!(effort, Effort::Quick) { SESSIONS / 10 } else { SESSIONS };
    let policies = tempfile::tempdir()?;
    std::fs::write(policies.path().join("bench.cedar"), PERMIT)?;
    let policies = format!("policies_dir={}", policies.path().display());
    let agent = Agent::start(&entry_for_me(), &[&policies, "sessions.per_uid=20000"])?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let admin = |path: &Path| {
        let endpoint = Endpoint::parse(&format!("unix://{}", path.display()))?;
        Result::Ok(SessionAdminClient::new(channel(&endpoint)))
    };
    let living = || {
        runtime.block_on(async {
            let list =
                admin(&agent.admin_socket())?.list(ListSessionsRequest { limit: 1, ..Default::default() }).await?;
            Result::Ok(list.into_inner().total)
        })
    };
    let before = agent.process.resident()?;
    let begun = Instant::now();
    let started = start_all(&agent, count)?;
    let rate = count as f64 / begun.elapsed().as_secs_f64();
    if living()? != count as u64 {
        return Err(format!("{} sessions live, not {count}", living()?).into());
    }
    report.print(&Figure::new("S start", format!("{count} sessions of {PROCESSES} processes, started"), rate, "/s"));
    let each = agent.process.resident()?.saturating_sub(before) as f64 / count as f64 / 1024.0;
    report.print(&Figure::new("S memory", "resident memory of the agent for each", each, "KiB"));

    let begun = Instant::now();
    runtime.block_on(async {
        let all = EndSessionsRequest { spiffe_id: "spiffe://bench.example/bench".to_owned(), ..Default::default() };
        admin(&agent.admin_socket())?.end(all).await?;
        Result::Ok(())
    })?;
    let took = begun.elapsed().as_secs_f64() * 1e3;
    if living()? != 0 {
        return Err("sessions live on after the operator ended them".into());
    }
    report.print(&Figure::new("S end", "all ended by an operator: keys wiped, revoked, audited, synced", took, "ms"));
    drop(started);

    let started = start_all(&agent, count)?;
    let begun = Instant::now();
    drop(started);
    while living()? != 0 {}
    let took = begun.elapsed().as_secs_f64() * 1e3;
    report.print(&Figure::new("S exit", "all ended by the exit of their processes", took, "ms"));
    Ok(())
}

/// Processes that have so many sessions together.
fn start_all(agent: &Agent, count: usize) -> Result<Vec<Process>> {
    let each = (count / PROCESSES).to_string();
    let socket = agent.socket().display().to_string();
    let start = |_| Process::spawn(&mut Process::role(&["tasks", &socket, &each])?);
    let mut processes = (0..PROCESSES).map(start).collect::<Result<Vec<_>>>()?;
    for process in &mut processes {
        while process.line()? != "ready" {}
    }
    Ok(processes)
}

/// A process that starts sessions, and says when it has them.
pub fn be_tasks(socket: &Path, count: usize) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = sessions(socket)?;
        let mut starting: JoinSet<std::result::Result<(), tonic::Status>> = JoinSet::new();
        for _ in 0..count {
            if starting.len() >= AT_ONCE {
                starting.join_next().await.ok_or("nothing is started")???;
            }
            let mut client: Sessions = client.clone();
            starting.spawn(async move {
                let request = StartRequest {
                    purpose: "bench".to_owned(),
                    targets: vec!["https://tool.bench.example/".to_owned()],
                    ..StartRequest::default()
                };
                client.start(request).await.map(drop)
            });
        }
        while let Some(started) = starting.join_next().await {
            started??;
        }
        println!("ready");
        std::future::pending().await
    })
}
