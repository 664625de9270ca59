//! Drives any SPIFFE Workload API: `SPIFFE_ENDPOINT_SOCKET=unix:///.. cargo bench --bench loadgen -- --help`.
//!
//! It knows nothing of tether, so that other agents can be measured with the same program. Every process it starts is
//! a caller of its own, as the server sees it.

#![allow(clippy::disallowed_methods, reason = "a bench measures real time")]
#![allow(clippy::print_stdout, reason = "figures go to standard output")]

mod histogram;

#[path = "../support/mod.rs"]
mod support;

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use serde_json::json;
use tether::client::Endpoint;
use tether::proto::workload::X509svidRequest;

use histogram::Histogram;
use support::Result;
use support::client::{Client, first_x509, jwt, of_endpoint};
use support::process::{Process, resident};

/// Load for a SPIFFE Workload API socket.
#[derive(Clone, Debug, Parser)]
#[command(args_override_self = true)]
struct Arguments {
    /// The socket; without it, SPIFFE_ENDPOINT_SOCKET.
    #[arg(long)]
    socket: Option<String>,
    /// What is called.
    #[arg(long, value_enum, default_value = "x509")]
    call: Call,
    /// Connections in all.
    #[arg(long, default_value_t = 8)]
    connections: usize,
    /// Processes the connections are spread over.
    #[arg(long, default_value_t = 2)]
    processes: usize,
    /// Calls in flight on each connection. With `--call hold`: open streams.
    #[arg(long, default_value_t = 1)]
    in_flight: usize,
    /// How long, in seconds.
    #[arg(long, default_value_t = 5.0)]
    duration: f64,
    /// Stop after so many calls in all, if that comes first.
    #[arg(long)]
    count: Option<u64>,
    /// The audience of JWT-SVIDs.
    #[arg(long, default_value = "loadgen")]
    audience: String,
    /// The server's process id, whose memory is reported; without it, LOADGEN_SERVER_PID.
    #[arg(long)]
    server_pid: Option<u32>,
    /// One JSON object instead of lines.
    #[arg(long)]
    json: bool,
    /// One of the processes.
    #[arg(long, hide = true)]
    caller: bool,
    /// Cargo says this to every bench.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Call {
    /// FetchX509SVID until its first message.
    X509,
    /// FetchJWTSVID.
    Jwt,
    /// Both in turn.
    Mixed,
    /// FetchX509SVID, kept open; every later message counts as a call of no length.
    Hold,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if arguments.caller { call(arguments) } else { conduct(&arguments) }
}

/// Starts the processes, waits for them and adds up what they measured.
fn conduct(arguments: &Arguments) -> Result<()> {
    let from_env = std::env::var("LOADGEN_SERVER_PID").ok().map(|pid| pid.parse()).transpose()?;
    let server = arguments.server_pid.or(from_env);
    let memory = || server.map(resident).transpose();
    let before = memory()?;
    let processes = arguments.processes.clamp(1, arguments.connections.max(1));
    let mut callers = Vec::with_capacity(processes);
    for number in 0..processes {
        let connections = share(arguments.connections, processes, number);
        let mut command = Command::new(std::env::current_exe()?);
        command.args(std::env::args_os().skip(1)).args(["--caller", "--connections", &connections.to_string()]);
        if let Some(count) = arguments.count {
            let count = share(usize::try_from(count)?, processes, number);
            command.args(["--count", &count.to_string()]);
        }
        callers.push(Process::spawn(&mut command)?);
    }
    for caller in &mut callers {
        expect_ready(caller)?;
    }
    // All are connected; now they begin together.
    for caller in &mut callers {
        caller.tell("go")?;
    }
    std::thread::sleep(Duration::from_secs_f64(arguments.duration / 2.0));
    let during = memory()?;
    let (mut all, mut errors, mut rate) = (Histogram::default(), 0, 0.0);
    for caller in &mut callers {
        let line = caller.line()?;
        let (figures, buckets) = line.split_once('|').ok_or("a caller said nothing")?;
        let (failed, seconds) = figures.split_once(' ').ok_or("a caller said nothing")?;
        let histogram: Histogram = buckets.parse()?;
        errors += failed.parse::<u64>()?;
        rate += histogram.count() as f64 / seconds.parse::<f64>()?;
        all.add(&histogram);
    }
    report(arguments, &all, errors, rate, [before, during, memory()?]);
    Ok(())
}

fn report(arguments: &Arguments, all: &Histogram, errors: u64, rate: f64, memory: [Option<u64>; 3]) {
    let [before, during, after] = memory.map(|bytes| bytes.map(|bytes| bytes as f64 / 1024.0));
    let [p50, p90, p99, most] = [50.0, 90.0, 99.0, 100.0].map(|percent| all.percentile(percent));
    if arguments.json {
        let report = json!({
            "calls": all.count(), "errors": errors, "per_second": rate,
            "p50_us": p50, "p90_us": p90, "p99_us": p99, "max_us": most,
            "server_resident_kib": { "before": before, "during": during, "after": after },
        });
        println!("{report}");
        return;
    }
    println!("{} calls, {errors} errors, {rate:.0} calls/s", all.count());
    println!("p50 {p50:.0} us, p90 {p90:.0} us, p99 {p99:.0} us, max {most:.0} us");
    if let (Some(before), Some(during), Some(after)) = (before, during, after) {
        let places = arguments.connections * arguments.in_flight;
        let each = (during - before) / places.max(1) as f64;
        println!("server resident: {before:.0} KiB before, {during:.0} during ({each:.1} a place), {after:.0} after");
    }
}

/// The part of `all` that the process `number` of `processes` takes.
fn share(all: usize, processes: usize, number: usize) -> usize {
    all / processes + usize::from(number < all % processes)
}

fn expect_ready(caller: &mut Process) -> Result<()> {
    match caller.line()?.as_str() {
        "ready" => Ok(()),
        line => Err(format!("a caller says: {line}").into()),
    }
}

/// One of the processes: connects, says `ready`, waits for a line, calls, and prints what it measured.
fn call(arguments: Arguments) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let endpoint = match &arguments.socket {
            Some(socket) => Endpoint::parse(socket)?,
            None => Endpoint::from_env(|name| std::env::var(name).ok())?,
        };
        let clients: Vec<Client> = (0..arguments.connections).map(|_| of_endpoint(&endpoint)).collect();
        let mut connected = tokio::task::JoinSet::new();
        for client in &clients {
            let (mut client, arguments) = (client.clone(), arguments.clone());
            connected.spawn(async move { one(&mut client, &arguments, 0).await });
        }
        while let Some(first) = connected.join_next().await {
            if let Err(error) = first? {
                println!("the first call failed: {error}");
                return Ok(());
            }
        }
        println!("ready");
        std::io::stdin().read_line(&mut String::new())?;
        let begun = Instant::now();
        let run = Arc::new(Run {
            until: begun + Duration::from_secs_f64(arguments.duration),
            left: AtomicU64::new(arguments.count.unwrap_or(u64::MAX)),
            arguments,
        });
        let mut callers = tokio::task::JoinSet::new();
        for client in clients {
            for _ in 0..run.arguments.in_flight {
                callers.spawn(keep_calling(client.clone(), run.clone()));
            }
        }
        let (mut all, mut errors) = (Histogram::default(), 0);
        while let Some(measured) = callers.join_next().await {
            let (histogram, failed) = measured?;
            all.add(&histogram);
            errors += failed;
        }
        println!("{errors} {}|{all}", begun.elapsed().as_secs_f64());
        Ok(())
    })
}

struct Run {
    until: Instant,
    left: AtomicU64,
    arguments: Arguments,
}

async fn keep_calling(mut client: Client, run: Arc<Run>) -> (Histogram, u64) {
    let (mut times, mut errors) = (Histogram::default(), 0);
    if run.arguments.call == Call::Hold {
        let held = tokio::time::timeout_at(run.until.into(), hold(&mut client, &mut times));
        return match held.await {
            Ok(_ended) => (times, 1),
            Err(_over) => (times, 0),
        };
    }
    let mut turn = 0;
    while Instant::now() < run.until && take_one(&run.left) {
        let begun = Instant::now();
        match one(&mut client, &run.arguments, turn).await {
            Ok(()) => times.record(begun.elapsed()),
            Err(_) => errors += 1,
        }
        turn += 1;
    }
    (times, errors)
}

fn take_one(left: &AtomicU64) -> bool {
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
}

async fn hold(client: &mut Client, times: &mut Histogram) -> Result<()> {
    let begun = Instant::now();
    let mut stream = client.fetch_x509svid(X509svidRequest {}).await?.into_inner();
    let mut first = true;
    while stream.message().await?.is_some() {
        times.record(if std::mem::take(&mut first) { begun.elapsed() } else { Duration::ZERO });
    }
    Ok(())
}

async fn one(client: &mut Client, arguments: &Arguments, turn: usize) -> Result<()> {
    match arguments.call {
        Call::X509 | Call::Hold => first_x509(client).await.map(drop),
        Call::Jwt => jwt(client, &arguments.audience).await.map(drop),
        Call::Mixed if turn.is_multiple_of(2) => first_x509(client).await.map(drop),
        Call::Mixed => jwt(client, &arguments.audience).await.map(drop),
    }
}
