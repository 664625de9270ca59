//! P1 and P2: how long one caller waits.

use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use time::OffsetDateTime;

use tether::id::{SpiffeId, TrustDomain};
use tether::x509::{Issuer, KeyType, LeafParams, PrivateKey, Serial, Validity, self_signed_root};

use crate::Effort;
use crate::support::client::{Client, client, first_x509, jwt};
use crate::support::process::{Agent, EmptyServer, Process, entry_for_me, entry_for_this_program};
use crate::support::report::{Figure, Report};
use crate::support::stats::{Rounds, median, micros};
use crate::support::{Result, stats};

const ROUNDS: usize = 15;
const CALLS: usize = 200;

/// P1: on a connection and for an instance that the agent knows, until the first message is there.
pub fn first_message(effort: Effort, report: Report) -> Result<()> {
    let (empty, agent) = (EmptyServer::start()?, Agent::start(&entry_for_this_program()?, &[])?);
    runtime()?.block_on(async {
        let (mut known, mut nobody) = (client(&agent.socket())?, client(&empty.socket)?);
        x509_times(&mut known, 2 * CALLS).await?;
        empty_times(&mut nobody, 2 * CALLS).await?;
        x509_times(&mut nobody, CALLS).await?;

        let (mut issued, mut unary, mut streaming, mut p99) = <(Rounds, Rounds, Rounds, Rounds)>::default();
        for _ in 0..effort.of(ROUNDS) {
            let mut times = x509_times(&mut known, CALLS).await?;
            issued.0.push(median(&times));
            p99.0.push(stats::percentile(&mut times, 99.0));
            unary.0.push(median(&empty_times(&mut nobody, CALLS).await?));
            streaming.0.push(median(&x509_times(&mut nobody, CALLS).await?));
        }
        let what = "FetchX509SVID, first message, known instance, p50";
        let figure = Figure::of_rounds("P1", what, &issued, "us", "empty unary call", &unary);
        let holds = figure.median_ratio() <= 2.0;
        report.print(&figure.goal("<= 2 x", holds));
        report.print(&Figure::of_rounds("P1 stream", what, &issued, "us", "empty stream's first message", &streaming));
        report.print(&Figure::new("P1 p99", "the same, p99", p99.median(), "us"));
        Ok(())
    })
}

/// P2: from `connect` of a process that the agent has never seen until it has a new key and certificate.
pub fn new_instance(effort: Effort, report: Report) -> Result<()> {
    let by_digest = entry_for_this_program()?;
    let cases = [
        ("P2", "connect, attest (uid, path, digest cached), key, leaf, p50", by_digest.as_str()),
        ("P2 uid", "the same for an entry with a uid only, p50", &entry_for_me()),
    ];
    for (name, what, entry) in cases {
        let (empty, agent) = (EmptyServer::start()?, Agent::start(entry, &[])?);
        let sockets = [agent.socket(), empty.socket.clone()].map(|path| path.display().to_string());
        let (mut issued, mut baseline) = <(Rounds, Rounds)>::default();
        for turn in 0..effort.of(80) {
            let order = if turn % 2 == 0 { "agent-first" } else { "empty-first" };
            let mut newcomer = Process::spawn(&mut Process::role(&["newcomer", &sockets[0], &sockets[1], order])?)?;
            let line = newcomer.line()?;
            let times: Vec<f64> = line.split(' ').map(str::parse).collect::<std::result::Result<_, _>>()?;
            let [of_agent, of_empty] = times.as_slice() else {
                return Err(format!("not two figures: {line}").into());
            };
            // The first of all hashes the program.
            if turn > 0 {
                issued.0.push(*of_agent);
                baseline.0.push(*of_empty);
            }
        }
        let beside = "new connection with an empty call + raw keygen and leaf";
        let figure = Figure::of_rounds(name, what, &issued, "us", beside, &baseline);
        let holds = figure.median_ratio() <= 2.5;
        report.print(&if name == "P2" { figure.goal("<= 2.5 x", holds) } else { figure });
    }
    Ok(())
}

/// A process that asks once. It warms up on the baseline's server, so that its own page faults are not measured, and
/// prints how long the agent and the baseline took, in microseconds.
pub fn be_newcomer(agent: &Path, empty: &Path, order: &str) -> Result<()> {
    let crypto = Crypto::new()?;
    runtime()?.block_on(async {
        for _ in 0..5 {
            first_x509(&mut client(empty)?).await?;
            jwt(&mut client(empty)?, "").await?;
            crypto.key_and_leaf()?;
        }
        let from_agent = async || {
            let begun = Instant::now();
            let answer = first_x509(&mut client(agent)?).await?;
            let time = micros(begun.elapsed());
            if answer.svids.is_empty() { Err("no SVID".into()) } else { Result::Ok(time) }
        };
        let from_baseline = async || {
            let begun = Instant::now();
            jwt(&mut client(empty)?, "").await?;
            crypto.key_and_leaf()?;
            Result::Ok(micros(begun.elapsed()))
        };
        let (of_agent, of_empty) = match order {
            "agent-first" => (from_agent().await?, from_baseline().await?),
            _ => {
                let of_empty = from_baseline().await?;
                (from_agent().await?, of_empty)
            }
        };
        println!("{of_agent} {of_empty}");
        Ok(())
    })
}

/// Making a key and a certificate, and nothing else.
struct Crypto {
    issuer: Issuer,
    id: SpiffeId,
    validity: Validity,
}

impl Crypto {
    fn new() -> Result<Self> {
        let now = OffsetDateTime::now_utc();
        let until = |minutes: u64| Validity { not_before: now, not_after: now + Duration::from_secs(60 * minutes) };
        let (domain, key) = (TrustDomain::parse("bench.example")?, PrivateKey::generate(KeyType::EcP256)?);
        let issuer = self_signed_root(domain, key, until(60), &Serial::from_random([1; 16]))?;
        let validity = until(15);
        Ok(Self { issuer, id: SpiffeId::parse("spiffe://bench.example/bench")?, validity })
    }

    fn key_and_leaf(&self) -> Result<()> {
        let key = PrivateKey::generate(KeyType::EcP256)?;
        let serial = Serial::from_random([2; 16]);
        black_box(self.issuer.sign_leaf(&LeafParams {
            spiffe_id: &self.id,
            public_key: key.public_key(),
            dns_names: &[],
            validity: self.validity,
            serial: &serial,
        })?);
        Ok(())
    }
}

async fn x509_times(client: &mut Client, calls: usize) -> Result<Vec<f64>> {
    let mut times = Vec::with_capacity(calls);
    for _ in 0..calls {
        let begun = Instant::now();
        first_x509(client).await?;
        times.push(micros(begun.elapsed()));
    }
    Ok(times)
}

/// How long each of `calls` empty calls takes, in microseconds.
pub async fn empty_times(client: &mut Client, calls: usize) -> Result<Vec<f64>> {
    let mut times = Vec::with_capacity(calls);
    for _ in 0..calls {
        let begun = Instant::now();
        jwt(client, "").await?;
        times.push(micros(begun.elapsed()));
    }
    Ok(times)
}

/// A runtime of one thread.
pub fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}
