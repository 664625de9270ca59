//! P7: what a process had is refused when it has ended.

use std::path::Path;
use std::time::{Duration, Instant};

use tether::proto::workload::{ValidateJwtsvidRequest, X509BundlesRequest};
use tether::x509::{Chain, Crl, Serial};

use crate::Effort;
use crate::support::Result;
use crate::support::client::{Client, client, first_x509, jwt_svid};
use crate::support::process::{Agent, Process, entry_for_me};
use crate::support::report::{Figure, Report};
use crate::support::stats::{median, percentile};

const AUDIENCE: &str = "bench";
/// Longer than any of this takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// From the end of a process until its token is refused and its certificate is on the list that a new caller gets.
pub fn process_exit(effort: Effort, report: Report) -> Result<()> {
    let agent = Agent::start(&entry_for_me(), &[])?;
    let socket = agent.socket().display().to_string();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut verifier = client(&agent.socket())?;
        let (mut tokens, mut lists, mut asking) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..effort.of(200) {
            let mut victim = Process::start(&mut Process::role(&["victim", &socket])?)?;
            let (token, serial) = (victim.line()?, victim.line()?);
            let serial = Serial::from_hex(&serial).ok_or("not a serial number")?;
            let begun = Instant::now();
            if !is_active(&mut verifier, &token).await? || is_revoked(&mut verifier, &serial).await? {
                return Err("refused while its process lives".into());
            }
            asking.push(begun.elapsed().as_secs_f64() * 1e3);
            victim.kill()?;
            let begun = Instant::now();
            while is_active(&mut verifier, &token).await? {
                in_time(begun, "token")?;
            }
            tokens.push(begun.elapsed().as_secs_f64() * 1e3);
            while !is_revoked(&mut verifier, &serial).await? {
                in_time(begun, "certificate")?;
            }
            lists.push(begun.elapsed().as_secs_f64() * 1e3);
        }
        let p99 = percentile(&mut lists, 99.0);
        let figure = Figure::new("P7", "process exit until its token and its serial are refused, p99", p99, "ms");
        let figure = figure.beside("the same two questions while it lives, p99", percentile(&mut asking, 99.0));
        report.print(&figure.goal("<= 5 ms", p99 <= 5.0));
        let figure = Figure::new("P7 p50", "the same, p50", median(&lists), "ms");
        report.print(&figure.beside("the same two questions, p50", median(&asking)));
        report.print(&Figure::new("P7 token", "of that the token, p50", median(&tokens), "ms"));
        Ok(())
    })
}

fn in_time(begun: Instant, what: &str) -> Result<()> {
    if begun.elapsed() < PATIENCE { Ok(()) } else { Err(format!("the {what} is still good").into()) }
}

async fn is_active(client: &mut Client, token: &str) -> Result<bool> {
    let request = ValidateJwtsvidRequest { audience: AUDIENCE.to_owned(), svid: token.to_owned() };
    match client.validate_jwtsvid(request).await {
        Ok(_) => Ok(true),
        Err(status) if status.code() == tonic::Code::InvalidArgument => Ok(false),
        Err(status) => Err(status.into()),
    }
}

async fn is_revoked(client: &mut Client, serial: &Serial) -> Result<bool> {
    let mut stream = client.fetch_x509_bundles(X509BundlesRequest {}).await?.into_inner();
    let answer = stream.message().await?.ok_or("the stream ended before its first message")?;
    for der in answer.crl {
        if Crl::from_der(&der)?.revokes(serial) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A process that has a token and a certificate, and says so.
pub fn be_victim(socket: &Path) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut client = client(socket)?;
        let token = jwt_svid(&mut client, AUDIENCE).await?;
        let answer = first_x509(&mut client).await?;
        let chain = Chain::from_der(&answer.svids.first().ok_or("no SVID")?.x509_svid)?;
        println!("ready\n{token}\n{}", chain.leaf().serial());
        std::future::pending().await
    })
}
