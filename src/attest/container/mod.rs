//! `docker:*` and `podman:*`: the container the process is in.
//!
//! The kernel says which container it is ([`place`]): the control group of the process, where root alone can have made it.
//! The engine says what that container is ([`engine`]), over a socket that root alone can have put there ([`socket`]), and
//! is believed if the kernel agrees ([`known`]): the container's first process is in that same control group.
//!
//! A process in no container of the engine has no such selectors, and that is known. One in a container that the engine
//! does not describe, for whatever reason, has a gap: entries that need these selectors are unavailable to it.
//!
//! What it does not promise: labels, environment, names and images are the choice of whoever may start containers, labels
//! and environment also of who made the image. Whoever reaches the engine's socket is root. A container's name can be
//! changed while it runs, and is what it was within the last minute before a process was first attested. Containers of
//! users' own engines (rootless) are not known: their engines say what their users want.

mod answer;
mod engine;
mod known;
mod place;
mod socket;

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use self::engine::Engine;
use self::place::{Located, locate};
use self::socket::EngineSocket;
use super::{AttestError, Attestor, Findings, Subject, Wanted};
use crate::base::clock::Clock;
use crate::base::entropy::Entropy;

pub use self::place::{InvalidParent, Parent};

/// Which engine, and so which type of selectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Docker.
    Docker,
    /// Podman, as root runs it.
    Podman,
}

impl Kind {
    /// The selector type, and the section below `[attest]`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Podman => "podman",
        }
    }

    /// Where the engine puts containers by itself.
    pub const fn usual_parents(self) -> &'static [&'static str] {
        match self {
            // With its drivers `cgroupfs` and `systemd`.
            Self::Docker => &["/docker", "/system.slice"],
            // The same, alone and in pods; and with `--cgroups=split` in the service that started it.
            Self::Podman => &[
                "/machine.slice",
                "/machine.slice/machine-libpod_pod_*.slice",
                "/libpod_parent",
                "/libpod_parent/*",
                "/system.slice/*.service",
                "/system.slice/*.slice/*.service",
            ],
        }
    }

    /// Where its socket is by itself.
    pub const fn usual_socket(self) -> &'static str {
        match self {
            Self::Docker => "/run/docker.sock",
            Self::Podman => "/run/podman/podman.sock",
        }
    }

    /// What is the matter while the engine does not answer.
    const fn meanwhile(self) -> &'static str {
        match self {
            Self::Docker => {
                "entries that need docker:* are unavailable to processes in containers until docker answers"
            }
            Self::Podman => {
                "entries that need podman:* are unavailable to processes in containers until podman answers"
            }
        }
    }
}

/// Section `[attest.docker]` or `[attest.podman]`.
#[derive(Clone, Debug)]
pub struct Config {
    /// The engine's socket; absent, the engine is not asked.
    pub socket: Option<PathBuf>,
    /// Directly below which directories of control groups its containers are.
    pub parents: Vec<Parent>,
    /// How long to wait for the engine. Below the attestor's deadline.
    pub patience: Duration,
}

impl Config {
    /// An engine that is not asked, with containers where it puts them by itself.
    pub fn usual(kind: Kind) -> Self {
        let parents = kind.usual_parents().iter().filter_map(|parent| parent.parse().ok()).collect();
        Self { socket: None, parents, patience: Duration::from_millis(750) }
    }
}

/// Attests `docker:*` or `podman:*`.
pub struct Container {
    kind: Kind,
    parents: Vec<Parent>,
    engine: Option<Engine>,
}

impl Container {
    /// An attestor that asks root's engine at the configured socket.
    pub fn new(kind: Kind, config: &Config, clock: Clock, entropy: Entropy) -> Self {
        let socket = config.socket.as_deref().map(EngineSocket::of_root);
        Self::asking(kind, socket, config, clock, entropy)
    }

    fn asking(kind: Kind, socket: Option<EngineSocket>, config: &Config, clock: Clock, entropy: Entropy) -> Self {
        let engine = socket.map(|socket| Engine::new(kind, socket, config, clock, entropy));
        Self { kind, parents: config.parents.clone(), engine }
    }

    async fn look(&self, subject: &Subject) -> Result<Findings, AttestError> {
        let kind = self.kind.as_str();
        let place = match locate(self.kind, &self.parents, subject)? {
            Located::In(place) => place,
            Located::Outside(remark) => {
                let mut findings = Findings::of(kind);
                remark.into_iter().for_each(|remark| findings.note(remark));
                return Ok(findings);
            }
            Located::Unknown(why) => return Ok(Findings::none(kind, why)),
        };
        let container = place.container.short();
        let Some(engine) = &self.engine else {
            let why =
                format!("the process is in container {container}, and {kind} is not asked: set attest.{kind}.socket");
            return Ok(Findings::none(kind, why));
        };
        let known = match engine.container(&place).await {
            Ok(known) => known,
            Err(why) => {
                return Ok(Findings::none(kind, format!("the process is in container {container}, but {why}")));
            }
        };
        let started = subject.proc_dir.start_time().map_err(|error| AttestError::read("stat", error))?;
        if !known.may_have_started(started) {
            let why =
                format!("the process is older than the first process that {kind} names for container {container}");
            return Ok(Findings::none(kind, why));
        }
        // Last: all of it was about a process that was in this very container all the time.
        if !place.holds(&subject.proc_dir)? {
            let (from, to) = (place.path().to_owned(), "another one".to_owned());
            return Err(AttestError::Changed { what: "control group", from, to });
        }
        Ok(known.findings().clone())
    }
}

impl Attestor for Container {
    fn kind(&self) -> &'static str {
        self.kind.as_str()
    }

    fn attest<'a>(&'a self, subject: &'a Subject, _wanted: &'a Wanted) -> BoxFuture<'a, Result<Findings, AttestError>> {
        self.look(subject).boxed()
    }

    fn weaker(&self) -> Option<String> {
        self.engine.as_ref().and_then(Engine::weaker)
    }

    fn attend(&self) -> Option<BoxFuture<'static, ()>> {
        let engine = self.engine.clone()?;
        Some(async move { engine.attend().await }.boxed())
    }
}

/// Whether the engine's socket can be trusted and opened by whoever calls this: for a look at how things are. May block.
///
/// # Errors
/// Why not, and what to do about it.
pub fn examine_socket(socket: &Path) -> Result<(), String> {
    EngineSocket::of_root(socket).try_connect().map_err(|error| match std::error::Error::source(&error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    })
}

#[cfg(test)]
mod tests;
