//! What the proxies cost, beside a bare proxy on the same libraries and beside nginx, with the same certificates in the
//! same run: `cargo bench --bench proxy -- [--quick | --long] [--json]`. `benches/README.md` says how to read it.

#![allow(clippy::disallowed_methods, reason = "a bench measures real time")]
#![allow(clippy::print_stdout, reason = "figures go to standard output")]

mod bare;
mod driver;
mod scene;

#[path = "../support/mod.rs"]
mod support;

use driver::{Client, Requests};
use scene::{Scene, Served};
use support::Result;
use support::report::{Figure, Report};
use support::stats::{Rounds, median, percentile};

/// Connections at once of the figures of throughput and of handshakes.
const CONNECTIONS: usize = 16;

/// How much is measured: rounds, requests of one connection in a round, requests of all, seconds of handshakes.
#[derive(Clone, Copy, Debug)]
struct Effort {
    rounds: usize,
    in_turn: usize,
    at_once: usize,
    handshakes: usize,
}

const QUICK: Effort = Effort { rounds: 2, in_turn: 50, at_once: 320, handshakes: 64 };
const SHORT: Effort = Effort { rounds: 8, in_turn: 400, at_once: 4_000, handshakes: 800 };
const LONG: Effort = Effort { rounds: 24, ..SHORT };

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if let ["--role", role @ ..] = arguments.as_slice() {
        return match role {
            ["upstream"] => bare::upstream(),
            ["bare", dir, upstream] => bare::proxy(dir.as_ref(), upstream.parse()?),
            _ => Err(format!("no such role: {role:?}").into()),
        };
    }
    let wanted = |flag: &str, variable: &str| arguments.contains(&flag) || std::env::var_os(variable).is_some();
    let effort = match () {
        () if wanted("--quick", "TETHER_BENCH_QUICK") => QUICK,
        () if wanted("--long", "TETHER_BENCH_LONG") => LONG,
        () => SHORT,
    };
    let report = Report::new(arguments.contains(&"--json"));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let scene = Scene::set_up().await?;
        measure(&scene, effort, report).await
    })
}

/// The figures of one way to the tool.
#[derive(Default)]
struct Figures {
    p50: Rounds,
    p99: Rounds,
    throughput: Rounds,
    handshakes: Rounds,
    classical: Rounds,
}

async fn measure(scene: &Scene, effort: Effort, report: Report) -> Result<()> {
    let ways: Vec<&Served> = scene.ways().collect();
    let mut figures: Vec<Figures> = ways.iter().map(|_| Figures::default()).collect();
    for round in 0..=effort.rounds {
        // Each round goes through all of them, so that every ratio is one between neighbours in time.
        for (served, figures) in ways.iter().zip(&mut figures) {
            let taken = one_round(scene, served, effort).await.map_err(|error| format!("{}: {error}", served.name))?;
            // The first one warms up.
            if round > 0 {
                figures.p50.0.push(taken.p50);
                figures.p99.0.push(taken.p99);
                figures.throughput.0.push(taken.throughput);
                figures.handshakes.0.extend(taken.handshakes);
                figures.classical.0.extend(taken.classical);
            }
        }
    }
    let of = |name: &str| ways.iter().position(|served| served.name == name).and_then(|at| figures.get(at));
    let bare = of(scene::BARE).ok_or("there is no bare proxy")?;
    let nginx = of(scene::NGINX);
    if nginx.is_none() {
        eprintln!("nginx is not installed: nothing is compared with it");
    }
    for (served, taken) in ways.iter().zip(&figures) {
        print(served, taken, bare, nginx, report);
    }
    Ok(())
}

/// What one round gave.
struct Taken {
    p50: f64,
    p99: f64,
    throughput: f64,
    handshakes: Option<f64>,
    classical: Option<f64>,
}

async fn one_round(scene: &Scene, served: &Served, effort: Effort) -> Result<Taken> {
    let requests = scene.requests(served, effort.in_turn).await?;
    let mut times = in_turn(scene, served, requests).await?;
    let requests = scene.requests(served, effort.at_once).await?;
    let throughput = at_once(scene, served, requests).await?;
    let (mut handshakes, mut classical) = (None, None);
    if served.is_tls() {
        handshakes = Some(driver::handshakes(served, &scene.hybrid, CONNECTIONS, effort.handshakes).await?);
        classical = Some(driver::handshakes(served, &scene.classical, CONNECTIONS, effort.handshakes).await?);
    }
    Ok(Taken { p50: median(&times), p99: percentile(&mut times, 99.0), throughput, handshakes, classical })
}

/// One request after the other on one connection, in microseconds.
async fn in_turn(scene: &Scene, served: &Served, requests: Requests) -> Result<Vec<f64>> {
    let mut client = Client::connect(served, &scene.hybrid).await?;
    client.warm_up(served).await?;
    client.ask_all(requests).await
}

/// Requests a second, on many connections.
async fn at_once(scene: &Scene, served: &Served, requests: Requests) -> Result<f64> {
    let count = requests.len();
    let mut clients = Vec::with_capacity(CONNECTIONS);
    for part in requests.parts(CONNECTIONS) {
        let mut client = Client::connect(served, &scene.hybrid).await?;
        client.warm_up(served).await?;
        clients.push((client, part));
    }
    let begun = std::time::Instant::now();
    let asking: Vec<_> = clients
        .into_iter()
        .map(|(mut client, part)| tokio::spawn(async move { client.ask_all(part).await.map(drop) }))
        .collect();
    for asking in asking {
        asking.await??;
    }
    Ok(count as f64 / begun.elapsed().as_secs_f64())
}

fn print(served: &Served, taken: &Figures, bare: &Figures, nginx: Option<&Figures>, report: Report) {
    let name = served.name;
    let is_the_goal = served.has_goal;
    let beside = |figure: &Rounds, of_bare: &Rounds, what: &str, unit| {
        if name == scene::BARE {
            return Figure::new(name, what, figure.median(), unit);
        }
        Figure::of_rounds(name, what, figure, unit, "bare proxy", of_bare)
    };
    let p50 = beside(&taken.p50, &bare.p50, "a request, p50", "us");
    let (added, ratio) = (taken.p50.median() - bare.p50.median(), p50.median_ratio());
    report.print(&if is_the_goal { p50.goal("<= 1.5 x", ratio <= 1.5) } else { p50 });
    if name != scene::BARE {
        report.print(&Figure::new(name, "added to the bare proxy, p50", added, "us"));
    }
    report.print(&beside(&taken.p99, &bare.p99, "a request, p99", "us"));
    let throughput = beside(&taken.throughput, &bare.throughput, "requests, on 16 connections", "/s");
    let ratio = throughput.median_ratio();
    report.print(&if is_the_goal { throughput.goal(">= 0.8 x", ratio >= 0.8) } else { throughput });
    if taken.handshakes.0.is_empty() {
        return;
    }
    let what = "TLS handshakes, X25519MLKEM768";
    let handshakes = beside(&taken.handshakes, &bare.handshakes, what, "/s");
    let ratio = handshakes.median_ratio();
    report.print(&if is_the_goal { handshakes.goal(">= 0.8 x", ratio >= 0.8) } else { handshakes });
    let what = "TLS handshakes, X25519";
    match nginx.filter(|_| name != scene::NGINX) {
        None => report.print(&beside(&taken.classical, &bare.classical, what, "/s")),
        Some(nginx) => {
            let figure = Figure::of_rounds(name, what, &taken.classical, "/s", "nginx", &nginx.classical);
            let ratio = figure.median_ratio();
            report.print(&if is_the_goal { figure.goal("> 1 x", ratio > 1.0) } else { figure });
        }
    }
}
