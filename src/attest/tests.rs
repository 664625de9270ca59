use std::future::pending;
use std::process::{Child, Command};
use std::sync::Arc;

use futures_util::FutureExt;

use super::*;
use crate::selector::Selector;
use crate::sys::procfs::ProcDir;

/// A child process that waits until it is killed.
pub(super) struct Sleeper(pub Child);

impl Sleeper {
    pub fn start() -> Self {
        Self::run("/bin/sleep")
    }

    pub fn run(program: impl AsRef<std::ffi::OsStr>) -> Self {
        let mut command = Command::new(program);
        command.arg("600");
        loop {
            match command.spawn() {
                // A child of another test, between fork and exec, still holds the file we have just written open.
                Err(error) if error.kind() == std::io::ErrorKind::ExecutableFileBusy => std::thread::yield_now(),
                started => return Self(started.expect("it starts")),
            }
        }
    }

    pub fn subject(&self) -> Subject {
        let pid = self.0.id().cast_signed();
        let proc_dir = ProcDir::open(pid).expect("it lives");
        let executable = ExecutableEvidence::Known(proc_dir.file_id("exe").expect("readable"));
        let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        let proc_dir = Arc::new(proc_dir);
        Subject {
            pid,
            uid,
            share: uid,
            gid,
            cgroup_id: None,
            proc_dir,
            pidfd: None,
            executable,
            known_path: None,
            launched: Err("it was not looked at".into()),
        }
    }

    pub fn stop(&mut self) {
        self.0.kill().expect("it was ours");
        self.0.wait().expect("it was ours");
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What the findings come to, for comparisons in tests.
pub(super) fn evidence(findings: Findings) -> Evidence {
    let mut evidence = Evidence::default();
    evidence.add(findings);
    evidence
}

struct Fake(&'static str, fn() -> BoxFuture<'static, Result<Findings, AttestError>>);

impl Attestor for Fake {
    fn kind(&self) -> &'static str {
        self.0
    }

    fn attest<'a>(&'a self, _: &'a Subject, _: &'a Wanted) -> BoxFuture<'a, Result<Findings, AttestError>> {
        self.1()
    }
}

fn label() -> BoxFuture<'static, Result<Findings, AttestError>> {
    let mut findings = Findings::of("lsm");
    findings.fact("label", "a");
    async { Ok(findings) }.boxed()
}

const AMPLE: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn a_failing_and_a_hung_attestor_become_gaps_and_cost_nobody_elses_selectors() {
    let attestors = Attestors::default()
        .with(Fake("unix", || async { Err(AttestError::Malformed { file: "status" }) }.boxed()), AMPLE)
        .with(Fake("systemd", || pending().boxed()), Duration::from_millis(1))
        .with(Fake("lsm", label), AMPLE);
    let sleeper = Sleeper::start();
    let evidence = attestors.attest(&sleeper.subject(), &Wanted::everything()).await;
    assert!(evidence.selectors.contains(&Selector::parse("lsm:label:a").expect("valid")));
    assert!(evidence.gap("unix", "uid").is_some_and(|gap| gap.why.contains("`status`")));
    assert!(evidence.gap("systemd", "unit").is_some_and(|gap| gap.why.contains("within 1ms")));
    assert_eq!(evidence.gap("lsm", "label"), None);
}

#[tokio::test]
async fn an_attestor_nobody_wants_is_not_asked_and_says_so() {
    let attestors = Attestors::default().with(Fake("systemd", || pending().boxed()), AMPLE);
    let attestors = attestors.with(Fake("lsm", label), AMPLE);
    let wanted = Wanted::keys([("lsm", "label"), ("k8s", "ns")]);
    let evidence = attestors.attest(&Sleeper::start().subject(), &wanted).await;
    assert_eq!(evidence.selectors.len(), 1);
    assert!(evidence.gap("systemd", "unit").is_some_and(|gap| gap.why == super::evidence::NOT_WANTED));
}

#[tokio::test]
async fn every_kind_is_a_gap_for_a_process_that_has_ended() {
    let (clock, _hand) = Clock::manual(time::OffsetDateTime::UNIX_EPOCH);
    let booted = tempfile::tempdir().expect("temporary");
    let mut config = Config { deadline: AMPLE, ..Config::default() };
    config.systemd.booted = booted.path().into();
    config.systemd.address = Some("unix:path=/nonexistent/bus".into());
    let attestors = Attestors::of_host(&config, &clock, &Entropy::system());
    let mut sleeper = Sleeper::start();
    let subject = sleeper.subject();
    sleeper.stop();
    let evidence = attestors.attest(&subject, &Wanted::everything()).await;
    assert_eq!(evidence.selectors.len(), 0);
    for (kind, key) in crate::selector::KINDS.iter().filter(|(kind, _)| *kind != "lsm") {
        assert!(evidence.gap(kind, key).is_some(), "{kind}:{key}");
    }
}
