//! P4: many open streams, and all of them at once.

use std::path::Path;
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tether::client::{Endpoint, channel};
use tether::proto::admin::authorities_client::AuthoritiesClient;
use tether::proto::admin::{RevokeAuthorityRequest, ShowAuthoritiesRequest};
use tether::proto::workload::{X509svidRequest, X509svidResponse};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::sync::mpsc;

use crate::Effort;
use crate::support::Result;
use crate::support::client::client;
use crate::support::process::{Agent, EmptyServer, Process, entry_for_me};
use crate::support::report::{Figure, Report};
use crate::support::stats::Rounds;

const PROCESSES: usize = 64;
const STREAMS: usize = 157;
const STREAMS_IN_ALL: usize = PROCESSES * STREAMS;
const LIMITS: &[&str] = &["limits.calls_per_uid=16384"];

/// P4: 10,048 streams of 64 processes, a connection each: what they cost, and how long until all have new SVIDs.
pub fn open_streams(effort: Effort, report: Report) -> Result<()> {
    let agent = Agent::start(&entry_for_me(), LIMITS)?;
    let (memory, mut times) = measure(&agent.process, &agent.socket(), effort, &|| revoke(&agent.admin_socket()))?;
    // Its holders are gone with its measure, and the baseline's processor is free for it.
    drop(agent);
    let empty = EmptyServer::start()?;
    let pid = Pid::from_raw(i32::try_from(empty.process.id())?);
    let (beside, empty_times) = measure(&empty.process, &empty.socket, effort, &|| Ok(kill(pid, Signal::SIGUSR1)?))?;

    let what = format!("{STREAMS_IN_ALL} streams: resident, each");
    let figure = Figure::new("P4", what, memory, "KiB").beside("empty server", beside);
    report.print(&figure.goal("<= 24 KiB", memory <= 24.0));
    let slowest = times.0.iter().copied().fold(0.0, f64::max);
    times.0.truncate(empty_times.0.len());
    let what = format!("{STREAMS_IN_ALL} streams: root revoked until all have new SVIDs");
    let figure = Figure::of_rounds("P4", what, &times, "ms", "empty server, an empty message on all", &empty_times);
    report.print(&figure.goal("<= 5000 ms", slowest <= 5000.0));
    Ok(())
}

/// Opens all streams to `server`; its resident KiB for each, and the milliseconds from `trigger` to the last delivery.
fn measure(server: &Process, socket: &Path, effort: Effort, trigger: &dyn Fn() -> Result<()>) -> Result<(f64, Rounds)> {
    let before = server.resident()?;
    let (socket, streams) = (socket.display().to_string(), STREAMS.to_string());
    let mut holders = Vec::with_capacity(PROCESSES);
    for _ in 0..PROCESSES {
        holders.push(Process::spawn(&mut Process::role(&["holder", &socket, "1", &streams])?)?);
    }
    for holder in &mut holders {
        expect(holder, "open")?;
    }
    let memory = (server.resident()?.saturating_sub(before)) as f64 / 1024.0 / STREAMS_IN_ALL as f64;

    let mut times = Rounds::default();
    for _ in 0..effort.of(3) {
        for holder in &mut holders {
            holder.tell("again")?;
        }
        for holder in &mut holders {
            expect(holder, "waiting")?;
        }
        let begun = Instant::now();
        trigger()?;
        for holder in &mut holders {
            expect(holder, "all")?;
        }
        times.0.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    Ok((memory, times))
}

fn expect(holder: &mut Process, expected: &str) -> Result<()> {
    let line = holder.line()?;
    if line == expected { Ok(()) } else { Err(format!("a holder says `{line}` instead of `{expected}`").into()) }
}

/// Revokes the signing CA, and with it the root: every SVID and every bundle becomes another.
fn revoke(admin: &Path) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut admin = AuthoritiesClient::new(channel(&Endpoint::parse(&format!("unix://{}", admin.display()))?));
        let shown = admin.show(ShowAuthoritiesRequest {}).await?.into_inner();
        let signing = shown.authorities.into_iter().find(|a| a.kind == "x509-signing" && a.state == "active");
        let id = signing.ok_or("no signing CA")?.id;
        admin.revoke(RevokeAuthorityRequest { id }).await?;
        Ok(())
    })
}

/// A process with open streams. It says `open` when all had their first message. Told `again`, it says `waiting`, and
/// `all` once each stream had one more message, which must not be the one before.
pub fn be_holder(socket: &Path, connections: usize, streams: usize) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (told, mut messages) = mpsc::unbounded_channel();
        for _ in 0..connections {
            let shared = client(socket)?;
            for _ in 0..streams {
                let (mut client, told) = (shared.clone(), told.clone());
                tokio::spawn(async move {
                    if let Err(error) = hold(&mut client, &told).await {
                        let _ = told.send(Err(error));
                    }
                });
            }
            // One connection after the other: a listener's queue is shorter than all of them.
            messages_on_all(&mut messages, streams).await?;
        }
        println!("open");
        let mut commands = BufReader::new(stdin()?).lines();
        while commands.next_line().await?.is_some() {
            println!("waiting");
            messages_on_all(&mut messages, connections * streams).await?;
            println!("all");
        }
        Ok(())
    })
}

/// Waits until each of `count` streams told of a message. None has two: between two rounds all of them wait.
async fn messages_on_all(messages: &mut mpsc::UnboundedReceiver<Result<()>>, count: usize) -> Result<()> {
    for _ in 0..count {
        messages.recv().await.ok_or("every stream ended")??;
    }
    Ok(())
}

async fn hold(client: &mut crate::support::client::Client, told: &mpsc::UnboundedSender<Result<()>>) -> Result<()> {
    let mut stream = client.fetch_x509svid(X509svidRequest {}).await?.into_inner();
    let mut last = X509svidResponse::default();
    while let Some(message) = stream.message().await? {
        if !message.svids.is_empty() && message == last {
            return Err("the same message twice".into());
        }
        last = message;
        told.send(Ok(()))?;
    }
    Err("the stream ended".into())
}

/// Standard input, which the parent made a pipe.
fn stdin() -> Result<tokio::net::unix::pipe::Receiver> {
    let file = std::fs::File::open("/dev/stdin")?;
    Ok(tokio::net::unix::pipe::Receiver::from_file(file)?)
}
