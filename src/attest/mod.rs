//! Attestation: from a process to what is known of it.
//!
//! Every attestor answers for one kind of selector, reads through the handles in [`Subject`] and never through a bare
//! process number alone, and says what it could not find out. [`Attestors::attest`] asks all of them at once; a slow
//! or failing one costs its own selectors, becomes a [`Gap`] and never a silent no (peer rule 8).
//!
//! What this does not promise: that the process is still the same afterwards. Whoever uses the evidence looks at the
//! instance again before acting on it (peer rule 4).

mod cgroup;
pub mod container;
pub(crate) mod dbus;
mod evidence;
pub(crate) mod guard;
mod launch;
mod lsm;
mod memo;
mod process;
mod starting;
mod subject;
mod systemd;
mod unix;

use std::io;
use std::time::Duration;

use futures_util::future::{BoxFuture, join_all};
use thiserror::Error;
use time::OffsetDateTime;

use self::container::Container;
use crate::base::clock::Clock;
use crate::base::entropy::Entropy;
use crate::metrics::{self, AttestorFailure, FailureReason, Metrics};

pub use cgroup::{Cgroup, CgroupPaths, is_in_cgroup};
pub(crate) use cgroup::{Place, outside, read as place_of};
pub use evidence::{Evidence, Findings, Gap, Note, Wanted};
pub use launch::{
    Config as LaunchConfig, Launch, LaunchError, LaunchRequest, Launched, LaunchedBy, Launches, MemberOfLaunch,
};
pub use lsm::Lsm;
pub use process::{Attestation, AttestationError, Attested};
pub use starting::{StartingError, StartingUnit, StartingUnits};
pub use subject::{ExecutableEvidence, Subject};
pub use systemd::{
    Bus, Config as SystemdConfig, Systemd, UnitAnswer, UnitChanges, UnitFacts, UnitManager, UnitManagerError, UnitName,
    UnitUser, UnitUsers, UnitWatcher, unit_path,
};
pub(crate) use unix::Names;
pub use unix::{Config as UnixConfig, NameSource, Nss, Unix};

/// How attestation behaves; section `[attest]` of the configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// How long each attestor may take; a late one becomes a gap.
    pub deadline: Duration,
    /// How users, groups and executables are looked at.
    pub unix: UnixConfig,
    /// How systemd is asked.
    pub systemd: SystemdConfig,
    /// How docker is asked.
    pub docker: container::Config,
    /// How podman is asked.
    pub podman: container::Config,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(1),
            unix: UnixConfig::default(),
            systemd: SystemdConfig::default(),
            docker: container::Config::usual(container::Kind::Docker),
            podman: container::Config::usual(container::Kind::Podman),
        }
    }
}

/// Why an attestor has nothing to say. All of its selectors are unknown then.
#[derive(Debug, Error)]
pub enum AttestError {
    /// The process ended while it was looked at.
    #[error("the process has ended")]
    Gone,
    /// The process is no longer what the subject says.
    #[error("its {what} changed from {from} to {to} while it was looked at; ask again")]
    Changed {
        /// What changed: `user`.
        what: &'static str,
        /// What the subject says.
        from: String,
        /// What the kernel says now.
        to: String,
    },
    /// The kernel does not let us read a file of the process.
    #[error("`{file}` of the process cannot be read")]
    Read {
        /// The name below `/proc/PID`.
        file: &'static str,
        /// What the kernel answered.
        #[source]
        source: io::Error,
    },
    /// The kernel wrote something this agent does not understand.
    #[error("`{file}` of the process is not in a form this agent understands")]
    Malformed {
        /// The name below `/proc/PID`.
        file: &'static str,
    },
}

impl AttestError {
    /// The error for a failed read of `file`: a process that is gone is told apart from a forbidden file.
    fn read(file: &'static str, source: io::Error) -> Self {
        match source.raw_os_error() {
            Some(nix::libc::ESRCH) => Self::Gone,
            _ => Self::Read { file, source },
        }
    }

    /// The error with its causes, in words for a person.
    fn words(&self) -> String {
        match std::error::Error::source(self) {
            Some(source) => format!("{self}: {source}"),
            None => self.to_string(),
        }
    }
}

/// Finds out facts of one kind about a process.
pub trait Attestor: Send + Sync {
    /// The selector type it answers for: `unix`.
    fn kind(&self) -> &'static str;

    /// Looks at the process. Facts that `wanted` does not name may be left out, as a gap, when they cost something.
    ///
    /// The future must not block: whatever can wait for a file system or another process runs elsewhere.
    fn attest<'a>(&'a self, subject: &'a Subject, wanted: &'a Wanted) -> BoxFuture<'a, Result<Findings, AttestError>>;

    /// What is lost now because somebody whom it asks does not answer, with what to do about it.
    fn weaker(&self) -> Option<String> {
        None
    }

    /// Work that goes on for as long as the agent runs: trying whether whom it asks is there.
    fn attend(&self) -> Option<BoxFuture<'static, ()>> {
        None
    }
}

/// All attestors of this agent, each with its deadline.
#[derive(Default)]
pub struct Attestors {
    all: Vec<(Box<dyn Attestor>, Duration)>,
    report: Option<(Metrics, Clock)>,
}

impl Attestors {
    /// The attestors of a Linux host: unix, cgroup, systemd, lsm, launch, docker, podman.
    pub fn of_host(config: &Config, clock: &Clock, entropy: &Entropy) -> Self {
        let bus = Bus::new(config.systemd.address.clone());
        let engine = |kind, config| Container::new(kind, config, clock.clone(), entropy.clone());
        Self::default()
            .with(Unix::new(&config.unix, Nss, clock.clone()), config.deadline)
            .with(Cgroup, config.deadline)
            .with(Systemd::new(&config.systemd, bus, clock.clone(), entropy.clone()), config.deadline)
            .with(Lsm::of_host(), config.deadline)
            .with(MemberOfLaunch, config.deadline)
            .with(engine(container::Kind::Docker, &config.docker), config.deadline)
            .with(engine(container::Kind::Podman, &config.podman), config.deadline)
    }

    /// Adds an attestor, which may take at most `deadline`.
    #[must_use]
    pub fn with(mut self, attestor: impl Attestor + 'static, deadline: Duration) -> Self {
        self.all.push((Box::new(attestor), deadline));
        self
    }

    /// Counts failures, and how long each attestor takes, into `metrics`.
    #[must_use]
    pub fn reporting(mut self, metrics: Metrics, clock: Clock) -> Self {
        self.report = Some((metrics, clock));
        self
    }

    /// Everything that is known of the process, within the longest of the deadlines.
    ///
    /// Evidence is only good for selectors in `wanted`: the others may be gaps, so whoever changes the set of entries
    /// attests again.
    pub async fn attest(&self, subject: &Subject, wanted: &Wanted) -> Evidence {
        let all = self.all.iter().map(|(attestor, deadline)| self.one(attestor.as_ref(), *deadline, subject, wanted));
        let mut evidence = Evidence::default();
        for findings in join_all(all).await {
            evidence.add(findings);
        }
        evidence
    }

    /// What is lost now because somebody does not answer.
    pub fn weaker(&self) -> Vec<String> {
        self.all.iter().filter_map(|(attestor, _)| attestor.weaker()).collect()
    }

    /// The work that goes on for as long as the agent runs. Never ends.
    pub async fn attend(&self) {
        join_all(self.all.iter().filter_map(|(attestor, _)| attestor.attend())).await;
        std::future::pending().await
    }

    async fn one(&self, attestor: &dyn Attestor, deadline: Duration, subject: &Subject, wanted: &Wanted) -> Findings {
        let kind = attestor.kind();
        if !wanted.has_kind(kind) {
            return Findings::none(kind, evidence::NOT_WANTED);
        }
        let began = self.report.as_ref().map(|(_, clock)| clock.now());
        let answer = tokio::time::timeout(deadline, attestor.attest(subject, wanted)).await;
        let failure = match &answer {
            Ok(Ok(_)) => None,
            Ok(Err(_)) => Some(FailureReason::Error),
            Err(_) => Some(FailureReason::Deadline),
        };
        self.report(kind, began, failure);
        match answer {
            Ok(Ok(findings)) => findings,
            Ok(Err(error)) => Findings::none(kind, error.words()),
            Err(_) => Findings::none(kind, format!("there was no answer within {deadline:?}")),
        }
    }

    fn report(&self, attestor: &'static str, began: Option<OffsetDateTime>, failure: Option<FailureReason>) {
        let (Some((metrics, clock)), Some(began)) = (&self.report, began) else { return };
        let took = (clock.now() - began).as_seconds_f64().max(0.0); // the clock may have been set meanwhile
        metrics.attestation_duration.get_or_create(&metrics::Attestor { attestor }).observe(took);
        if let Some(reason) = failure {
            metrics.attestation_failures.get_or_create(&AttestorFailure { attestor, reason }).inc();
        }
    }
}

/// Entry point for fuzzing: reads arbitrary bytes as each file of `/proc/PID` that attestors read.
#[doc(hidden)]
pub fn fuzz_proc_file(bytes: &[u8]) {
    unix::fuzz_status(bytes);
    if let Ok(text) = std::str::from_utf8(bytes) {
        if let Some(cgroup::Place::At(path)) = cgroup::parse(text) {
            assert!(
                path.starts_with('/') && !path.starts_with("/../"),
                "a path outside our namespace is taken for one in it"
            );
            systemd::fuzz_placement(&path);
        }
        systemd::fuzz_placement(text);
    }
}

#[cfg(test)]
mod tests;
