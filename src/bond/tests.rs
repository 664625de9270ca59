//! Real processes and, where the host lets us make them, real cgroups; systemd is played.

mod groups;
mod members;
mod units;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::FutureExt;
use time::OffsetDateTime;

use super::*;
use crate::attest::{Attestation, Attestors, LaunchConfig, Launches, UnitAnswer, UnitManager, Wanted};
use crate::base::quota::Turns;
use crate::sys::{BootId, Kernel, cgroup};

/// A process that lives until it is ended: a shell that reads lines, and becomes `cat` with the line `cat`.
struct Workload(Child);

impl Workload {
    fn start() -> Self {
        let script = "while read line; do case $line in cat) exec cat;; *) echo done;; esac; done";
        let child = Command::new("sh").args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        Self(child.expect("sh starts"))
    }

    fn pid(&self) -> i32 {
        self.0.id().cast_signed()
    }

    /// Writes a line and returns once there is an answer.
    fn say(&mut self, lines: &str) {
        let (stdin, stdout) = (self.0.stdin.as_mut().expect("piped"), self.0.stdout.as_mut().expect("piped"));
        stdin.write_all(lines.as_bytes()).expect("written");
        BufReader::new(stdout).read_line(&mut String::new()).expect("an answer");
    }

    fn end(&mut self) {
        self.0.kill().expect("it was ours");
        self.0.wait().expect("it was ours");
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What systemd is made to say about any process, and how often it was asked.
struct Played(UnitAnswer, Arc<AtomicUsize>);

impl UnitManager for Played {
    fn unit_of<'a>(
        &'a self,
        _: &'a crate::attest::Subject,
    ) -> futures_util::future::BoxFuture<'a, Result<UnitAnswer, UnitManagerError>> {
        self.1.fetch_add(1, Ordering::SeqCst);
        futures_util::future::ready(Ok(self.0.clone())).boxed()
    }
}

/// Bonds of a host that systemd did not start.
fn plain(kernel: Kernel) -> Bonds {
    let booted = "/nonexistent/run/systemd/system".into();
    bonds(kernel, booted, UnitAnswer { unit: None, by_number: false }, Arc::new(units::NoUnits))
}

fn bonds(kernel: Kernel, booted: std::path::PathBuf, answer: UnitAnswer, units: Arc<dyn UnitWatcher>) -> Bonds {
    counting(kernel, booted, Played(answer, Arc::default()), units)
}

fn counting(kernel: Kernel, booted: std::path::PathBuf, played: Played, units: Arc<dyn UnitWatcher>) -> Bonds {
    let config = SystemdConfig { booted, patience: std::time::Duration::from_secs(600), ..SystemdConfig::default() };
    let (clock, _hand) = Clock::manual(OffsetDateTime::UNIX_EPOCH);
    let systemd = Systemd::new(&config, played, clock, Entropy::system());
    let instances = Instances::new(kernel).expect("proc is mounted");
    Bonds::new(instances, systemd, units, &config, Entropy::system()).expect("cgroups can be looked at")
}

async fn attested(instance: &Arc<Instance>) -> Attested {
    let (clock, _hand) = Clock::manual(OffsetDateTime::UNIX_EPOCH);
    let launches = Launches::new(LaunchConfig::default(), clock.clone());
    let attestation = Attestation::new(Attestors::default(), launches, Turns::new(8, 8), clock);
    attestation.attest(instance, &Arc::new(Wanted::keys([]))).await.expect("it lives")
}

impl Bonds {
    fn instance(&self, pid: i32) -> Arc<Instance> {
        self.0.instances.of_pid(pid, None).expect("it lives")
    }

    async fn tie_now(&self, instance: &Arc<Instance>, bind: Bind) -> Result<Tie, BondError> {
        self.tie(instance, &attested(instance).await, bind).await
    }

    async fn end_of(&self, tie: &Tie) -> Option<End> {
        match self.hold(tie).await {
            Ok(_) => None,
            Err(Unheld::Ended(end)) => Some(end),
            Err(error) => panic!("it can be told: {error}"),
        }
    }
}

fn all_kernels() -> [Kernel; 2] {
    [Kernel::probe(), Kernel::baseline()]
}

fn another_boot() -> BootId {
    "8f3c2a10-0001-4e6b-9d55-00c0ffee0000".parse().expect("a boot id")
}

#[tokio::test]
async fn what_is_tied_to_a_process_ends_with_the_process_also_for_who_reads_the_tie_later() {
    for kernel in all_kernels() {
        let bonds = plain(kernel);
        let mut workload = Workload::start();
        let tie = bonds.tie_now(&bonds.instance(workload.pid()), Bind::Process).await.expect("tied");
        let hold = bonds.hold(&tie).await.expect("it lives");
        assert_eq!(hold.instance().map(|instance| instance.pid()), Some(workload.pid()));
        // As after a restart of the agent: nothing but the text is left.
        let later = plain(kernel);
        let read: Tie = tie.to_string().parse().expect("a tie");
        let held_later = later.hold(&read).await.expect("it lives");
        assert!(hold.ended().now_or_never().is_none());
        workload.end();
        assert_eq!((hold.ended().await, held_later.ended().await), (End::ProcessExited, End::ProcessExited));
        assert_eq!(plain(kernel).end_of(&read).await, Some(End::ProcessExited));
    }
}

#[tokio::test]
async fn another_program_in_the_process_ends_what_was_tied_to_the_first_when_somebody_looks() {
    for kernel in all_kernels() {
        let bonds = plain(kernel);
        let mut workload = Workload::start();
        workload.say("hello\n");
        let tie = bonds.tie_now(&bonds.instance(workload.pid()), Bind::Process).await.expect("tied");
        let hold = bonds.hold(&tie).await.expect("it lives");
        workload.say("cat\nhello\n");
        assert!(hold.ended().now_or_never().is_none(), "exec is no event");
        assert!(hold.instance().expect("a process").look().is_err());
        assert_eq!(hold.ended().await, End::ExecutableChanged);
        assert_eq!(plain(kernel).end_of(&tie).await, Some(End::ExecutableChanged));
    }
}

#[tokio::test]
async fn a_process_that_has_the_number_of_another_is_not_taken_for_it() {
    for kernel in all_kernels() {
        let bonds = plain(kernel);
        let (first, second) = (Workload::start(), Workload::start());
        let instance = *bonds.instance(first.pid()).id();
        let tie = Tie::Process { instance, pid: second.pid() };
        assert_eq!(plain(kernel).end_of(&tie).await, Some(End::ProcessExited));
    }
}

#[tokio::test]
async fn a_reboot_ends_everything_but_what_is_bound_to_the_node() {
    let bonds = plain(Kernel::probe());
    let boot = another_boot();
    let instance = format!("{boot}/pidfd-4242/exe-64769-5551").parse().expect("an instance");
    let path = CgroupPath::parse("/").expect("a path");
    for tie in [
        Tie::Process { instance, pid: std::process::id().cast_signed() },
        Tie::Cgroup { boot, id: 1, path },
        Tie::Unit { boot, name: "a.service".into(), invocation: "0f".repeat(16) },
    ] {
        assert_eq!(bonds.end_of(&tie).await, Some(End::Rebooted), "{tie}");
    }
    let node = bonds.hold(&Tie::Node).await.expect("it is never over");
    assert!(node.ended().now_or_never().is_none());
}
