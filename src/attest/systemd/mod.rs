//! `systemd:*`: the unit the process is in.
//!
//! The unit is the one systemd names. When systemd cannot be asked it is the one in the control group path (see
//! [`placement`]), and what only systemd knows is a gap. On a host that systemd did not start there are no units, and
//! that is known, so it is not a gap.
//!
//! `systemd:user_unit` is the word of a user's own manager, and the user chooses every name in it. It is found only for
//! processes of that same user, so together with a uid selector it says "that user calls it so", and no more.
//!
//! Names are as systemd writes them, with its escapes: `a\x2db@c.service` has the prefix `a\x2db`. Undoing escapes would
//! let two units share a name; a name with an escape cannot stand in a SPIFFE ID, and `explain` says so.

mod bus;
mod placement;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use thiserror::Error;

use self::placement::Placement;
use super::cgroup::{self, Place};
use super::guard::{Guard, Outage};
use super::{AttestError, Attestor, Findings, Subject, Wanted};
use crate::base::clock::Clock;
use crate::base::entropy::Entropy;

pub use self::bus::Bus;
pub use self::placement::{UnitName, unit_path};

const KIND: &str = "systemd";
const MEANWHILE: &str = "units are taken from control groups until systemd answers";

/// Section `[attest.systemd]`.
#[derive(Clone, Debug)]
pub struct Config {
    /// The D-Bus address of the system bus; by default `DBUS_SYSTEM_BUS_ADDRESS`, else the usual socket.
    pub address: Option<String>,
    /// How long to wait for systemd before the control group has to do. Below the attestor's deadline.
    pub patience: Duration,
    /// The directory that exists when systemd started the host (sd_booted(3)).
    pub booted: PathBuf,
}

impl Default for Config {
    fn default() -> Self {
        Self { address: None, patience: Duration::from_millis(500), booted: "/run/systemd/system".into() }
    }
}

/// What systemd says of the unit a process is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitFacts {
    /// The unit's main name: `billing.service`.
    pub id: String,
    /// The unit file; units made at run time may have none.
    pub fragment_path: Option<String>,
    /// This start of the unit: 32 hex digits.
    pub invocation_id: Option<String>,
}

/// What systemd says of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitAnswer {
    /// The unit the process is in, if any.
    pub unit: Option<UnitFacts>,
    /// Whether systemd was asked by process number, and so may have looked in another pid namespace than ours.
    pub by_number: bool,
}

/// Why systemd did not say which unit a process is in.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum UnitManagerError {
    /// The bus cannot be reached, or systemd is not on it.
    #[error("systemd cannot be asked over D-Bus: {0}")]
    Unreachable(String),
    /// It did not answer in time.
    #[error("systemd did not answer over D-Bus within {0:?}")]
    Late(Duration),
    /// It did not answer a short time ago and is left alone until later.
    #[error("systemd did not answer over D-Bus before, and is asked again soon")]
    Resting,
    /// It answered with an error, or with something else than its interface promises.
    #[error("systemd did not say which unit the process is in: {0}")]
    Refused(String),
    /// The process ended meanwhile.
    #[error("the process has ended")]
    Gone,
}

impl Outage for UnitManagerError {
    fn late(patience: Duration) -> Self {
        Self::Late(patience)
    }

    fn resting() -> Self {
        Self::Resting
    }

    fn is_outage(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::Late(_))
    }
}

/// Who can say which unit a process is in.
pub trait UnitManager: Send + Sync {
    /// The unit of the process. May take for ever: the caller has a deadline.
    fn unit_of<'a>(&'a self, subject: &'a Subject) -> BoxFuture<'a, Result<UnitAnswer, UnitManagerError>>;
}

impl<T: UnitManager + ?Sized> UnitManager for Arc<T> {
    fn unit_of<'a>(&'a self, subject: &'a Subject) -> BoxFuture<'a, Result<UnitAnswer, UnitManagerError>> {
        (**self).unit_of(subject)
    }
}

/// As whom systemd runs a unit, as far as it says. What it does not say is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UnitUser {
    /// The user id: that of `User=` or of `DynamicUser=`, which systemd has looked up, or root where there is neither.
    pub uid: Option<u32>,
    /// The group id.
    pub gid: Option<u32>,
}

/// Who can say as whom a unit runs.
pub trait UnitUsers: Send + Sync {
    /// The user and the group of a unit that is loaded. May take for ever.
    fn user_of<'a>(&'a self, unit: &'a UnitName) -> BoxFuture<'a, Result<UnitUser, UnitManagerError>>;
}

/// Signals of systemd after which a unit may stand differently. It ends when systemd is no longer heard.
pub type UnitChanges = BoxStream<'static, ()>;

/// Who can say when a unit is over.
pub trait UnitWatcher: Send + Sync {
    /// Which start of the unit runs now, by its invocation id; `None` when it does not. May take for ever.
    fn running<'a>(&'a self, unit: &'a str) -> BoxFuture<'a, Result<Option<String>, UnitManagerError>>;

    /// Every signal about the unit from now on. May take for ever.
    fn changes<'a>(&'a self, unit: &'a str) -> BoxFuture<'a, Result<UnitChanges, UnitManagerError>>;
}

/// Attests `systemd:*`.
pub struct Systemd {
    manager: Box<dyn UnitManager>,
    guard: Guard,
    booted: PathBuf,
}

impl Systemd {
    /// An attestor that asks `manager`.
    pub fn new(config: &Config, manager: impl UnitManager + 'static, clock: Clock, entropy: Entropy) -> Self {
        let guard = Guard::new(config.patience, MEANWHILE, clock, entropy);
        Self { manager: Box::new(manager), guard, booted: config.booted.clone() }
    }

    /// The unit of the process in systemd's own word; `None` when it is in none, or when systemd did not start the host.
    pub async fn unit_of(&self, subject: &Subject) -> Result<Option<UnitFacts>, UnitManagerError> {
        if !self.has_booted() {
            return Ok(None);
        }
        let answer = self.guard.ask(|| self.manager.unit_of(subject)).await?;
        if answer.by_number {
            let placement = match cgroup::read(&subject.proc_dir) {
                Ok(Place::At(path)) => Ok(Placement::of(&path)),
                Ok(Place::Outside(_) | Place::Nowhere) => Err(ELSEWHERE.to_owned()),
                Err(AttestError::Gone) => return Err(UnitManagerError::Gone),
                Err(error) => Err(error.words()),
            };
            if !agree(&answer, &placement) {
                return Err(UnitManagerError::Refused(placement.err().unwrap_or_else(|| ELSEWHERE.to_owned())));
            }
        }
        // A slice has no processes of its own: whoever is found in one is in no unit.
        Ok(answer.unit.filter(|facts| UnitName::parse(&facts.id).is_some()))
    }

    /// The unit of the process in systemd's own word, with everything that makes it a selector; `None` as in
    /// [`Self::unit_of`]. The word of a user's own manager is not asked for.
    pub(super) async fn findings_of_unit(
        &self,
        subject: &Subject,
    ) -> Result<Option<(UnitFacts, Findings)>, UnitManagerError> {
        let Some(facts) = self.unit_of(subject).await? else { return Ok(None) };
        let placement = match cgroup::read(&subject.proc_dir) {
            Ok(Place::At(path)) => Ok(Placement::of(&path)),
            Ok(Place::Outside(path)) => Err(cgroup::outside(&path)),
            Ok(Place::Nowhere) => Err("the process is in no cgroup hierarchy that systemd uses".to_owned()),
            Err(AttestError::Gone) => return Err(UnitManagerError::Gone),
            Err(error) => Err(error.words()),
        };
        // (uid_t)-1 stands for no user.
        let findings = from_systemd(&facts, placement, u32::MAX);
        Ok(Some((facts, findings)))
    }

    /// Whether systemd started the host (sd_booted(3)).
    pub fn has_booted(&self) -> bool {
        self.booted.is_dir()
    }

    async fn look(&self, subject: &Subject) -> Result<Findings, AttestError> {
        if !self.has_booted() {
            let mut findings = Findings::of(KIND);
            findings.note("systemd did not start this host, so the process is in no unit");
            return Ok(findings);
        }
        let placement = match cgroup::read(&subject.proc_dir) {
            Ok(Place::At(path)) => Ok(Placement::of(&path)),
            Ok(Place::Outside(path)) => Err(cgroup::outside(&path)),
            Ok(Place::Nowhere) => Err("the process is in no cgroup hierarchy that systemd uses".to_owned()),
            Err(AttestError::Gone) => return Err(AttestError::Gone),
            Err(error) => Err(error.words()),
        };
        let answer = match self.guard.ask(|| self.manager.unit_of(subject)).await {
            Ok(answer) => answer,
            Err(UnitManagerError::Gone) => return Err(AttestError::Gone),
            Err(error) => return Ok(from_placement(placement, &error.to_string(), subject.uid)),
        };
        if answer.by_number && !agree(&answer, &placement) {
            return Ok(from_placement(placement, ELSEWHERE, subject.uid));
        }
        match answer.unit {
            Some(facts) => Ok(from_systemd(&facts, placement, subject.uid)),
            None => Ok(no_unit()),
        }
    }
}

impl Attestor for Systemd {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn attest<'a>(&'a self, subject: &'a Subject, _wanted: &'a Wanted) -> BoxFuture<'a, Result<Findings, AttestError>> {
        self.look(subject).boxed()
    }
}

/// Why an answer by number does not count.
const ELSEWHERE: &str = "the unit systemd names for the process number is not that of the process's control group";

fn no_unit() -> Findings {
    let mut findings = Findings::of(KIND);
    findings.note("the process is in no unit: it is bound to the node");
    findings
}

/// Whether systemd and the control group mean the same unit, or both none.
fn agree(answer: &UnitAnswer, placement: &Result<Placement, String>) -> bool {
    let said = answer.unit.as_ref().and_then(|facts| UnitName::parse(&facts.id));
    placement.as_ref().is_ok_and(|placement| placement.unit.as_ref().map(|(unit, _)| unit) == said.as_ref())
}

/// What holds when systemd has spoken. Slice and user unit are in the control group path alone, and count if it is
/// that of the same unit.
fn from_systemd(facts: &UnitFacts, placement: Result<Placement, String>, uid: u32) -> Findings {
    let Some(unit) = UnitName::parse(&facts.id) else {
        // A slice has no processes of its own: this one was put there by somebody else.
        let mut findings = no_unit();
        findings.note(format!("systemd finds it directly in `{}`", facts.id));
        return findings;
    };
    let mut findings = Findings::of(KIND);
    add_unit(&mut findings, &unit);
    if let Some(path) = &facts.fragment_path {
        findings.fact("fragment_path", path);
    }
    if let Some(id) = &facts.invocation_id {
        findings.fact("invocation_id", id);
    }
    match placement {
        Ok(placement) if placement.unit.as_ref().is_some_and(|(placed, _)| *placed == unit) => {
            add_surroundings(&mut findings, &placement, uid);
        }
        Ok(_) => {
            findings.gap(SURROUNDINGS, format!("the control group of the process is not below that of `{}`", facts.id))
        }
        Err(why) => findings.gap(SURROUNDINGS, why),
    }
    findings
}

/// What holds when systemd cannot say, which is `why`.
fn from_placement(placement: Result<Placement, String>, why: &str, uid: u32) -> Findings {
    let placement = match placement {
        Ok(placement) => placement,
        Err(unplaced) => return Findings::none(KIND, format!("{why}; and {unplaced}")),
    };
    let Some((unit, _)) = &placement.unit else {
        // A path without a unit is no proof that systemd knows of none: it may keep units in another hierarchy.
        return Findings::none(KIND, format!("{why}; and no unit is in the control group path"));
    };
    let mut findings = Findings::of(KIND);
    add_unit(&mut findings, unit);
    add_surroundings(&mut findings, &placement, uid);
    findings.gap(&["fragment_path", "invocation_id"], why);
    findings
}

const SURROUNDINGS: &[&str] = &["slice", "user_unit"];

fn add_unit(findings: &mut Findings, unit: &UnitName) {
    findings.fact("id", unit.as_str()); // SPIRE's name for it
    findings.fact("unit", unit.as_str());
    findings.fact("name", unit.stem());
    if let Some((prefix, instance)) = unit.template() {
        findings.fact("prefix", prefix);
        findings.fact("instance", instance);
    }
}

fn add_surroundings(findings: &mut Findings, placement: &Placement, uid: u32) {
    if let Some((_, slice)) = &placement.unit {
        findings.fact("slice", slice);
    }
    match &placement.user_unit {
        Some(user) if user.uid == uid => findings.fact("user_unit", user.unit.as_str()),
        // The manager's user could put a process of somebody else, started with sudo, below any name.
        Some(user) => findings.note(format!(
            "the process runs as user {uid} below the manager of user {}, whose word for `{}` does not count",
            user.uid,
            user.unit.as_str()
        )),
        None => {}
    }
}

/// Entry point for fuzzing: reads arbitrary text as a cgroup's path.
pub(super) fn fuzz_placement(path: &str) {
    if let Some((unit, _)) = Placement::of(path).unit {
        assert!(path.split('/').any(|component| component.ends_with(unit.as_str())), "the unit is not in the path");
    }
}

#[cfg(test)]
mod tests;
