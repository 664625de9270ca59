//! P6 and P8: many entries, and one that is edited.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::hint::black_box;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use notify::{RecursiveMode, Watcher as _};
use tether::attest::Evidence;
use tether::base::clock::Clock;
use tether::id::TrustDomain;
use tether::proto::workload::X509svidRequest;
use tether::registry::{Index, Registry, Rules};
use tether::selector::Selector;

use crate::support::Result;
use crate::support::client::client;
use crate::support::process::{Agent, entry};
use crate::support::report::{Figure, Report};
use crate::support::stats::{Rounds, median, micros, percentile};
use crate::{Effort, allocations};

const ENTRIES: usize = 100_000;
const FILES: usize = 10;

/// P6: what 100,000 entries cost, loaded as an agent loads them, and how long it takes to find one's own.
pub fn matching(effort: Effort, report: Report) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut strings = 0;
    let mut texts = Vec::new();
    for file in 0..FILES {
        let mut text = String::new();
        for number in (0..ENTRIES / FILES).map(|number| file * ENTRIES / FILES + number) {
            strings += write_entry(&mut text, number)?;
        }
        std::fs::write(dir.path().join(format!("{file}.toml")), &text)?;
        texts.push(text);
    }

    let runtime = tokio::runtime::Builder::new_multi_thread().build()?;
    let (mut loads, mut parses, mut index) = (Rounds::default(), Rounds::default(), None);
    let mut beyond = 0.0;
    for _ in 0..effort.of(3) {
        drop(index.take());
        let rules = Rules::new(TrustDomain::parse("bench.example")?);
        let before = allocations::live();
        let registry = Registry::new(Some(dir.path().to_owned()), rules, Vec::new(), Clock::system());
        let begun = Instant::now();
        let load = runtime.block_on(registry.reload());
        loads.0.push(begun.elapsed().as_secs_f64() * 1e3);
        if !load.ok || registry.index().entries().len() != ENTRIES {
            return Err(format!("not loaded: {:?}", load.mistakes.first()).into());
        }
        beyond = (allocations::live() - before).saturating_sub(strings) as f64 / ENTRIES as f64;
        let begun = Instant::now();
        for text in &texts {
            black_box(text.parse::<toml::Table>()?);
        }
        parses.0.push(begun.elapsed().as_secs_f64() * 1e3);
        index = Some(registry);
    }
    let registry = index.ok_or("nothing was loaded")?;

    let what = "100,000 entries in 10 files, loaded";
    let figure = Figure::of_rounds("P6 load", what, &loads, "ms", "the same text as toml::Table", &parses);
    report.print(&figure.goal("<= 1000 ms", loads.median() <= 1000.0));
    let strings = strings as f64 / ENTRIES as f64;
    let figure = Figure::new("P6 memory", "100,000 entries, each beyond its strings", beyond, "B");
    report.print(&figure.beside("its strings", strings).goal("<= 300 B", beyond <= 300.0));
    match_times(&registry.index(), effort, report)
}

/// One entry as fleets have them: a unit of its own, a user, and for each tenth an executable. The bytes of its strings.
fn write_entry(text: &mut String, number: usize) -> Result<usize> {
    let id = format!("service-{number:06}");
    let spiffe_id = format!("spiffe://bench.example/unit/service-{number:06}");
    let owner = format!("team-{}@bench.example", number % 500);
    let mut selectors =
        vec![format!("systemd:unit:service-{number:06}.service"), format!("unix:uid:{}", 10_000 + number % 2000)];
    if number.is_multiple_of(10) {
        selectors.push(format!("unix:path:/opt/services/{number:06}/bin/server"));
    }
    writeln!(text, "[[entry]]\nid = {id:?}\nspiffe_id = {spiffe_id:?}\nmatch = {selectors:?}\nowner = {owner:?}\n")?;
    let lengths = selectors.iter().map(String::len).sum::<usize>();
    Ok(id.len() + spiffe_id.len() + owner.len() + lengths)
}

fn match_times(index: &Index, effort: Effort, report: Report) -> Result<()> {
    let mut table: HashMap<&str, Vec<usize>> = HashMap::new();
    for (rank, entry) in index.entries().iter().enumerate() {
        for selector in entry.matches() {
            table.entry(selector.as_str()).or_default().push(rank);
        }
    }
    let now = Clock::system().now();
    let samples = effort.of(20_000);
    let (mut times, mut lookups) = (Vec::with_capacity(samples), Vec::with_capacity(samples));
    for sample in 0..samples {
        // A stride that visits entries far apart, so that caches are as cold as in an agent with many callers.
        let number = sample * 7919 % ENTRIES;
        let evidence = evidence(number)?;
        let begun = Instant::now();
        let matched = black_box(index.matching(&evidence, now));
        times.push(micros(begun.elapsed()));
        if matched.identities.len() != 1 {
            return Err(format!("service {number} matches {} entries", matched.identities.len()).into());
        }
        let begun = Instant::now();
        for selector in evidence.selectors.iter() {
            black_box(table.get(selector.as_str()).map(Vec::len));
        }
        lookups.push(micros(begun.elapsed()));
    }
    let (p99, beside) = (percentile(&mut times, 99.0), percentile(&mut lookups, 99.0));
    let figure = Figure::new("P6 match", "one process among 100,000 entries, p99", p99, "us");
    let figure = figure.beside("a HashMap lookup for each of its selectors", beside);
    report.print(&figure.goal("<= 20 us", p99 <= 20.0));
    report.print(&Figure::new("P6 p50", "the same, p50", median(&times), "us").beside("the same", median(&lookups)));
    Ok(())
}

/// What is known of a process like those the entries are for.
fn evidence(number: usize) -> Result<Evidence> {
    let facts = [
        format!("unix:uid:{}", 10_000 + number % 2000),
        format!("unix:user:user-{}", number % 2000),
        "unix:gid:100".to_owned(),
        "unix:group:users".to_owned(),
        "unix:supplementary_gid:100".to_owned(),
        format!("unix:path:/opt/services/{number:06}/bin/server"),
        format!("systemd:unit:service-{number:06}.service"),
        format!("systemd:name:service-{number:06}"),
        "systemd:slice:system.slice".to_owned(),
        format!("cgroup:path:/system.slice/service-{number:06}.service"),
    ];
    let selectors = facts.iter().map(|fact| Selector::parse(fact)).collect::<std::result::Result<_, _>>()?;
    Ok(Evidence { selectors, ..Evidence::default() })
}

/// P8: from an entry file that is saved to the SVID that shows it.
pub fn saved_entry(effort: Effort, report: Report) -> Result<()> {
    let uid = nix::unistd::geteuid();
    let edited =
        |edit: usize| entry(&[format!("unix:uid:{uid}")], &format!("dns_names = [\"edit-{edit}.bench.example\"]"));
    let agent = Agent::start(&edited(0), &[])?;
    let (file, hidden) = (agent.entries_dir().join("bench.toml"), agent.entries_dir().join(".bench.toml.new"));
    let (noticed, notices) = mpsc::channel();
    let mut watcher = notify::recommended_watcher(move |_| {
        let _ = noticed.send(Instant::now());
    })?;
    watcher.watch(&agent.entries_dir(), RecursiveMode::NonRecursive)?;

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut client = client(&agent.socket())?;
        let mut stream = client.fetch_x509svid(X509svidRequest {}).await?.into_inner();
        stream.message().await?.ok_or("no first message")?;
        let (mut times, mut notices_after) = (Vec::new(), Vec::new());
        for edit in 1..=effort.of(100) {
            std::fs::write(&hidden, edited(edit))?;
            // What the hidden file caused is over.
            tokio::time::sleep(Duration::from_millis(60)).await;
            while notices.try_recv().is_ok() {}
            let begun = Instant::now();
            std::fs::rename(&hidden, &file)?;
            let message = stream.message().await?.ok_or("the stream ended")?;
            times.push(begun.elapsed().as_secs_f64() * 1e3);
            let leaf = &message.svids.first().ok_or("no SVID")?.x509_svid;
            let name = format!("edit-{edit}.bench.example");
            if !leaf.windows(name.len()).any(|window| window == name.as_bytes()) {
                return Err(format!("the SVID after edit {edit} does not show it").into());
            }
            let first = notices.recv_timeout(Duration::from_secs(20))?;
            notices_after.push(first.duration_since(begun).as_secs_f64() * 1e3);
        }
        let p99 = percentile(&mut times, 99.0);
        let beside = percentile(&mut notices_after, 99.0);
        let figure = Figure::new("P8", "entry file saved until the SVID is on the open stream, p99", p99, "ms");
        let figure = figure.beside("the kernel's notice of the same save", beside);
        report.print(&figure.goal("<= 100 ms", p99 <= 100.0));
        report.print(&Figure::new("P8 p50", "the same, p50", median(&times), "ms"));
        Ok(())
    })
}
