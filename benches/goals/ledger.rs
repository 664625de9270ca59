//! What the ledger costs: for each token, and for a million of them.
//!
//! There is no agent without a ledger to compare with, and a switch for one would be a switch to turn a promise off. So
//! the ledger is measured alone, in turns with the agent that uses it.

use std::collections::HashMap;
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tether::base::clock::Clock;
use tether::base::entropy::Entropy;
use tether::bond::Tie;
use tether::id::{SpiffeId, TrustDomain};
use tether::ledger::{Issued, Kind, Ledger, Limits, Reason};
use tether::peer::{Instance, Instances};
use tether::registry::{Entry, Rules, Source, parse_entry};
use tether::sys::Kernel;

use crate::support::Result;
use crate::support::process::{Agent, Process, entry, entry_for_me};
use crate::support::report::{Figure, Report};
use crate::support::stats::{Rounds, micros, percentile};
use crate::{Effort, allocations, throughput};

/// No limit is in the way of a million.
const LIMITS: Limits = Limits { credentials_per_uid: usize::MAX, certificates_per_uid: usize::MAX };
const ISSUED: usize = 1_000_000;
const HOLDERS: usize = 64;
const ENTRIES: usize = 100;
const ROUND: Duration = Duration::from_millis(500);
/// All that is issued stands to the end of the bench.
const LIFE: Duration = Duration::from_secs(3600);

/// What records are made of, as those of an agent are.
struct Desk {
    node: String,
    entropy: Entropy,
    instances: Instances,
    holders: Vec<(Arc<Instance>, Tie)>,
    entries: Vec<(Entry, SpiffeId)>,
    audience: Vec<String>,
    _processes: Vec<Process>,
}

impl Desk {
    /// So many processes that hold something. Call it inside a runtime.
    fn new(holders: usize) -> Result<Self> {
        let instances = Instances::new(Kernel::probe())?;
        let (mut processes, mut held) = (Vec::new(), Vec::new());
        for _ in 0..holders {
            let process = Process::spawn(std::process::Command::new("sleep").arg("3600"))?;
            let instance = instances.of_pid(i32::try_from(process.id())?, None)?;
            let tie = Tie::Process { instance: *instance.id(), pid: instance.pid() };
            held.push((instance, tie));
            processes.push(process);
        }
        let rules = Rules::new(TrustDomain::parse("bench.example")?);
        let mut entries = Vec::new();
        for number in 0..ENTRIES {
            let text = entry(&[format!("unix:uid:{number}")], "").replace("bench\"\n", &format!("bench-{number}\"\n"));
            let entry = parse_entry(&text, &Source::BuiltIn, &rules).map_err(|mistakes| format!("{mistakes:?}"))?;
            entries.push((entry, SpiffeId::parse(&format!("spiffe://bench.example/service-{number}"))?));
        }
        let (entropy, audience) = (Entropy::system(), vec!["https://bench.example".to_owned()]);
        Ok(Self {
            node: entropy.hex::<16>(),
            entropy,
            instances,
            holders: held,
            entries,
            audience,
            _processes: processes,
        })
    }

    fn open(&self, dir: &Path) -> Result<Ledger> {
        let (ledger, _) = Ledger::open(dir, &self.node, self.instances.boot(), Clock::system(), LIMITS)?;
        Ok(ledger)
    }

    /// Writes the `number`th token down.
    fn record(&self, ledger: &Ledger, clock: &Clock, number: usize) -> Result<()> {
        let (instance, tie) = &self.holders[number % self.holders.len()];
        let (entry, spiffe_id) = &self.entries[number % self.entries.len()];
        let (id, now) = (format!("{}.{}", self.node, self.entropy.hex::<16>()), clock.now());
        let issued = Issued {
            id: &id,
            kind: Kind::Jwt,
            spiffe_id,
            entry,
            audience: &self.audience,
            authority: "jwt-authority-of-a-bench",
            binding: 0,
            held: false,
            issued_at: now,
            not_after: now + LIFE,
            uid: 1000,
            single_use: false,
            delegate: None,
        };
        Ok(ledger.record(instance, tie, &issued)?)
    }
}

/// P3 ledger: tokens a second beside records a second, each with all processors.
pub fn share_of_a_token(effort: Effort, report: Report) -> Result<()> {
    let agent = Agent::start(&entry_for_me(), &[])?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let _inside = runtime.enter();
    let desk = Desk::new(1)?;
    let (mut tokens, mut records) = (Rounds::default(), Rounds::default());
    for round in 0..=effort.of(6) {
        let issued = runtime.block_on(throughput::tokens_a_second(&agent.socket(), 1))?;
        let dir = tempfile::tempdir()?;
        let recorded = records_a_second(&desk, &desk.open(&dir.path().join("ledger"))?)?;
        // The first round warms up.
        if round > 0 {
            tokens.0.push(issued);
            records.0.push(recorded);
        }
    }
    let what = "FetchJWTSVID as P3, beside its records alone";
    let figure = Figure::of_rounds("P3 ledger", what, &tokens, "/s", "Ledger::record", &records);
    let share = figure.median_ratio();
    report.print(&figure.goal("<= 0.1 x, the ledger's share of a token", share <= 0.1));
    Ok(())
}

/// Records a second on all processors.
fn records_a_second(desk: &Desk, ledger: &Ledger) -> Result<f64> {
    let threads = std::thread::available_parallelism()?.get();
    let (over, done) = (AtomicBool::new(false), AtomicUsize::new(0));
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let record = || {
            let clock = Clock::system();
            while !over.load(Ordering::Relaxed) {
                let number = done.fetch_add(1, Ordering::Relaxed);
                desk.record(ledger, &clock, number).map_err(|error| error.to_string())?;
            }
            Ok::<_, String>(())
        };
        let recorders: Vec<_> = (0..threads).map(|_| scope.spawn(record)).collect();
        std::thread::sleep(ROUND);
        over.store(true, Ordering::Relaxed);
        recorders.into_iter().try_for_each(|recorder| recorder.join().map_err(|_| "a recorder panicked")?)
    })?;
    Ok(done.load(Ordering::Relaxed) as f64 / begun.elapsed().as_secs_f64())
}

/// A million tokens that stand: on disk, in memory, read at a start, and what a responder's questions take.
pub fn a_million(effort: Effort, report: Report) -> Result<()> {
    let issued = match effort {
        Effort::Quick => ISSUED / 20,
        Effort::Short | Effort::Long => ISSUED,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let _inside = runtime.enter();
    let desk = Desk::new(HOLDERS)?;
    let (dir, clock) = (tempfile::tempdir()?, Clock::system());
    let before = allocations::live();
    let ledger = desk.open(&dir.path().join("ledger"))?;
    let begun = Instant::now();
    for number in 0..issued {
        desk.record(&ledger, &clock, number)?;
    }
    let recording = begun.elapsed();
    let memory = (allocations::live().saturating_sub(before)) as f64 / issued as f64;
    let (known, on_disk) = ledger.size();
    if known != issued {
        return Err(format!("{known} of {issued} are known").into());
    }
    let (before, begun) = (allocations::live(), Instant::now());
    let table: HashMap<[u8; 16], i64> = (0..issued).map(|_| (desk.entropy.bytes(), 0)).collect();
    let inserting = begun.elapsed();
    let bare = (allocations::live().saturating_sub(before)) as f64 / issued as f64;
    drop(black_box(table));

    let each = |whole: Duration| micros(whole) / issued as f64;
    let figure = Figure::new("L record", format!("{issued} tokens recorded, each"), each(recording), "us");
    report.print(&figure.beside("its id into a HashMap", each(inserting)));
    report.print(&Figure::new("L disk", "the same on disk, each", on_disk as f64 / issued as f64, "B"));
    report.print(&Figure::new("L memory", "the same in memory, each", memory, "B").beside("that HashMap", bare));

    let mut latest = Vec::new();
    let listed = questions(&ledger, &desk, &mut latest)?;
    let what = format!("all {issued} looked through for one process");
    report.print(&Figure::new("L search", what, listed, "ms"));
    let what = "a record made meanwhile, the slowest";
    report.print(&Figure::new("L stall", what, percentile(&mut latest, 100.0) / 1e3, "ms"));
    let begun = Instant::now();
    let wanted = desk.holders[0].0.pid();
    let ended = runtime.block_on(ledger.revoke(|credential| credential.pid == wanted, Reason::Operator))?.len();
    let what = format!("{ended} of them revoked and synced");
    report.print(&Figure::new("L revoke", what, begun.elapsed().as_secs_f64() * 1e3, "ms"));
    let (known, _) = ledger.size();
    drop(ledger);

    let begun = Instant::now();
    let read = desk.open(&dir.path().join("ledger"))?;
    let loaded = begun.elapsed().as_secs_f64() * 1e3;
    if read.size().0 != known {
        return Err(format!("{} of {known} were read back", read.size().0).into());
    }
    drop(read);
    let begun = Instant::now();
    let mut bytes = 0;
    for file in std::fs::read_dir(dir.path().join("ledger"))? {
        bytes += black_box(std::fs::read(file?.path())?).len();
    }
    let reading = begun.elapsed().as_secs_f64() * 1e3;
    let what = format!("{known} read at a start ({:.0} MB)", bytes as f64 / 1e6);
    report.print(&Figure::new("L load", what, loaded, "ms").beside("its files read", reading));
    Ok(())
}

/// Milliseconds to look for what one process holds. Into `latest`: what records made at the same time took, in us.
fn questions(ledger: &Ledger, desk: &Desk, latest: &mut Vec<f64>) -> Result<f64> {
    let wanted = desk.holders[0].0.pid();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let recorder = scope.spawn(|| {
            let (clock, mut took) = (Clock::system(), Vec::new());
            // It is issued to somebody else, so that what is counted stays the same.
            while !over.load(Ordering::Relaxed) {
                let begun = Instant::now();
                desk.record(ledger, &clock, 1).map_err(|error| error.to_string())?;
                took.push(micros(begun.elapsed()));
                std::thread::sleep(Duration::from_millis(1));
            }
            Ok::<_, String>(took)
        });
        std::thread::sleep(Duration::from_millis(20));
        let begun = Instant::now();
        let mut found = 0;
        ledger.each(|credential| found += usize::from(credential.pid == wanted));
        let listed = begun.elapsed().as_secs_f64() * 1e3;
        over.store(true, Ordering::Relaxed);
        latest.extend(recorder.join().map_err(|_| "the recorder panicked")??);
        if found == 0 { Err("nothing was found".into()) } else { Ok(listed) }
    })
}
