//! P3: how many tokens a second.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};

use crate::Effort;
use crate::support::Result;
use crate::support::client::{Client, client, jwt};
use crate::support::process::{Agent, EmptyServer, entry_for_me};
use crate::support::report::{Figure, Report};
use crate::support::stats::Rounds;

const IN_FLIGHT: usize = 64;
const CONNECTIONS: usize = 8;
const ROUNDS: usize = 6;
const ROUND: Duration = Duration::from_millis(1000);

/// P3: tokens with a signature each, 64 in flight, beside empty calls and signatures alone.
pub fn tokens(effort: Effort, report: Report) -> Result<()> {
    let (empty, agent) = (EmptyServer::start()?, Agent::start(&entry_for_me(), &[])?);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let (mut issued, mut called, mut signed, mut combined) = <(Rounds, Rounds, Rounds, Rounds)>::default();
    for round in 0..=effort.of(ROUNDS) {
        let tokens = runtime.block_on(tokens_a_second(&agent.socket(), 1))?;
        let calls = runtime.block_on(tokens_a_second(&empty.socket, 0))?;
        let signatures = signatures()?;
        // The first round warms up.
        if round > 0 {
            issued.0.push(tokens);
            called.0.push(calls);
            signed.0.push(signatures);
            combined.0.push(1.0 / (1.0 / calls + 1.0 / signatures));
        }
    }
    let what = "FetchJWTSVID, 64 in flight on 8 connections";
    let beside = format!("empty call {:.0}/s and ES256 {:.0}/s, one after the other", called.median(), signed.median());
    let figure = Figure::of_rounds("P3", what, &issued, "/s", beside, &combined);
    let holds = figure.median_ratio() >= 0.7;
    report.print(&figure.goal(">= 0.7 x", holds));
    Ok(())
}

/// Calls a second for tokens, each answered with so many.
pub async fn tokens_a_second(socket: &Path, tokens: usize) -> Result<f64> {
    let call = move |mut client: Client| async move {
        match jwt(&mut client, "https://bench.example").await? == tokens {
            true => Ok(()),
            false => Err("not the tokens that were asked for".into()),
        }
    };
    calls(|| client(socket), call).await
}

/// Calls a second, 64 in flight on 8 connections.
pub async fn calls<C, F>(connect: impl Fn() -> Result<C>, call: impl Fn(C) -> F + Clone + Send + 'static) -> Result<f64>
where
    C: Clone + Send + 'static,
    F: Future<Output = Result<()>> + Send,
{
    let over = Arc::new(AtomicBool::new(false));
    let done = Arc::new(AtomicUsize::new(0));
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..CONNECTIONS {
        let shared = connect()?;
        for _ in 0..IN_FLIGHT / CONNECTIONS {
            let (client, call, over, done) = (shared.clone(), call.clone(), over.clone(), done.clone());
            callers.spawn(async move {
                while !over.load(Ordering::Relaxed) {
                    call(client.clone()).await?;
                    done.fetch_add(1, Ordering::Relaxed);
                }
                Result::Ok(())
            });
        }
    }
    // Connections are made, and the instance is attested.
    tokio::time::sleep(ROUND / 10).await;
    let (begun, before) = (Instant::now(), done.load(Ordering::Relaxed));
    tokio::time::sleep(ROUND).await;
    let rate = (done.load(Ordering::Relaxed) - before) as f64 / begun.elapsed().as_secs_f64();
    over.store(true, Ordering::Relaxed);
    while let Some(caller) = callers.join_next().await {
        caller??;
    }
    Ok(rate)
}

/// Signatures a second on all processors.
pub fn signatures() -> Result<f64> {
    let threads = std::thread::available_parallelism()?.get();
    let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)?;
    // As long as what is signed of a token.
    let message = [b'x'; 350];
    let begun = Instant::now();
    let count = std::thread::scope(|scope| {
        let sign = || {
            let mut count = 0_usize;
            while begun.elapsed() < ROUND / 2 {
                pair.sign(&SystemRandom::new(), &message).map_err(|_| "cannot sign")?;
                count += 1;
            }
            Ok::<_, &str>(count)
        };
        let signers: Vec<_> = (0..threads).map(|_| scope.spawn(sign)).collect();
        let counts = signers.into_iter().map(|signer| signer.join().map_err(|_| "a signer panicked")?);
        counts.sum::<std::result::Result<usize, &str>>()
    })?;
    Ok(count as f64 / begun.elapsed().as_secs_f64())
}
