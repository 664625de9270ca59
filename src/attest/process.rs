//! Attesting an instance: once, and again when something about it changed.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use time::OffsetDateTime;
use tokio::sync::Mutex;

use super::evidence::NOT_WANTED;
use super::{Attestors, CgroupPaths, Evidence, ExecutableEvidence, Launches, Subject, Wanted};
use crate::base::clock::Clock;
use crate::base::quota::Turns;
use crate::peer::{Facts, Instance, LookError, Weakness};
use crate::selector::Selector;
use crate::sys::cgroup;

/// How often a process that keeps changing its credentials is looked at before it is told to try again.
const ATTEMPTS: usize = 3;
/// How long evidence with something missing from it is used before the attestors are asked again; each time that
/// finds the same gaps doubles it, because some gaps are there to stay.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(60);

/// Why a process could not be attested.
#[derive(Debug, Error)]
pub enum AttestationError {
    /// It is gone, runs another program, or cannot be seen.
    #[error(transparent)]
    Look(#[from] LookError),
    /// Its credentials or cgroup changed each time it was looked at.
    #[error("the process keeps changing its credentials or its cgroup: try again")]
    Restless,
}

/// What is known of an instance at one moment. Made only by [`Attestation::attest`].
#[derive(Clone, Debug)]
pub struct Attested {
    facts: Facts,
    evidence: Arc<Evidence>,
    executable: Result<(), String>,
}

impl Attested {
    /// The facts and gaps.
    pub fn evidence(&self) -> &Evidence {
        &self.evidence
    }

    /// The effective user id.
    pub fn uid(&self) -> u32 {
        self.facts.uid
    }

    /// The effective group id.
    pub fn gid(&self) -> u32 {
        self.facts.gid
    }

    /// Whether nothing was found out that the other does not know.
    pub fn same_facts(&self, other: &Self) -> bool {
        self.facts == other.facts && Arc::ptr_eq(&self.evidence, &other.evidence)
    }

    /// What is known of a unit that systemd starts by a process of its own: nothing of a program that does not run yet.
    pub(super) fn before_it_runs(facts: Facts, evidence: Evidence) -> Self {
        let executable = Err("no process of the unit runs yet".to_owned());
        Self { facts, evidence: Arc::new(evidence), executable }
    }

    /// The inode number of its cgroup v2 directory; `None` where it cannot be found out.
    pub fn cgroup_id(&self) -> Option<u64> {
        self.facts.cgroup_id
    }

    /// The process for those who ask about it, as it was when this was found out.
    pub fn subject(&self, instance: &Instance) -> Result<Subject, AttestationError> {
        subject(instance, self.facts, None, Err(NOT_WANTED.to_owned()))
    }

    /// Whether a look at the process found what it was attested with.
    pub fn is_of(&self, facts: &Facts) -> bool {
        self.facts == *facts
    }

    /// Adds what the connection says of the executable (peer rule 3): it may be no evidence on this connection
    /// although the selectors hold.
    pub fn require_executable(&mut self, held: Result<(), String>) {
        self.executable = held;
    }

    /// Whether selectors about the executable may be relied on; the reason when not.
    pub fn executable_holds(&self) -> Result<(), String> {
        self.executable.clone()
    }
}

/// What is kept with an instance.
#[derive(Debug, Default)]
struct Memory {
    /// Locked while attesting: callers of one process wait for one attestation.
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    last: Option<Last>,
    /// The path of the executable when it was first attested. The instance ends with another executable, so this
    /// stays true while the file is moved or unlinked under the running program (peer rule 4).
    path: Option<PathBuf>,
}

#[derive(Debug)]
struct Last {
    moment: Moment,
    wanted: Arc<Wanted>,
    evidence: Arc<Evidence>,
    at: OffsetDateTime,
    retry: Duration,
}

/// What evidence was found for: it is none for any other.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Moment {
    facts: Facts,
    /// The supplementary groups, where an entry asks for them: they cost a read of `/proc`.
    groups: Option<Vec<u32>>,
    /// Its place in the hierarchies of version 1, where an entry asks for it and the facts do not tell: so does that.
    places: Option<CgroupPaths>,
    /// What was launched that it belongs to, where an entry asks for it: that begins and ends with sessions.
    launched: Option<Result<Vec<Selector>, String>>,
}

impl Moment {
    fn of(instance: &Instance, wanted: &Wanted, launches: &Launches) -> Result<Self, LookError> {
        let asked = ["supplementary_gid", "supplementary_group"].iter().any(|key| wanted.has("unix", key));
        let groups = if asked { Some(instance.status()?.groups) } else { None };
        let launched = if wanted.has_kind("launch") { Some(launched(instance, launches)?) } else { None };
        let moment = Self { facts: instance.look()?, groups, places: None, launched };
        let asks = |kinds: &[&str]| kinds.iter().any(|kind| wanted.has_kind(kind));
        let is_told = moment.facts.cgroup_id.is_some_and(|id| id != cgroup::ROOT_ID);
        // Containers may stand in either hierarchy, where there are two.
        let may_be_elsewhere = asks(&["docker", "podman"]) && cgroup::has_two_hierarchies();
        if !may_be_elsewhere && (is_told || !asks(&["systemd", "cgroup", "docker", "podman"])) {
            return Ok(moment);
        }
        // What cannot be read is for the attestors to say.
        let places = CgroupPaths::read(instance.proc_dir()).ok();
        Ok(Self { facts: instance.look()?, places, ..moment })
    }
}

/// Attests instances, remembering what it found for as long as it holds.
pub struct Attestation {
    attestors: Attestors,
    launches: Launches,
    turns: Turns,
    clock: Clock,
}

impl Attestation {
    /// Attests with `attestors`, of which each user's callers get their turns. `launches` knows what was launched.
    pub fn new(attestors: Attestors, launches: Launches, turns: Turns, clock: Clock) -> Self {
        Self { attestors, launches, turns, clock }
    }

    /// What is lost now because somebody whom the attestors ask does not answer.
    pub fn weaker(&self) -> Vec<String> {
        self.attestors.weaker()
    }

    /// The work of the attestors that goes on for as long as the agent runs. Never ends.
    pub async fn attend(&self) {
        self.attestors.attend().await
    }

    /// What was launched: members of it have `launch:*` selectors.
    pub fn launches(&self) -> &Launches {
        &self.launches
    }

    /// What is known of the instance now, as far as `wanted` asks.
    ///
    /// Attestors are asked only when the instance's credentials or cgroup, or what is wanted, are not what they were;
    /// otherwise this costs one look at the process.
    pub async fn attest(&self, instance: &Arc<Instance>, wanted: &Arc<Wanted>) -> Result<Attested, AttestationError> {
        let memory = instance.remembered::<Memory>();
        let mut known = memory.known.lock().await;
        let mut moment = Moment::of(instance, wanted, &self.launches)?;
        if let Some(last) = known.last.as_ref().filter(|last| self.holds(last, &moment, wanted)) {
            return Ok(attested(moment.facts, last.evidence.clone()));
        }
        let _turn = self.turns.turn(instance.share(moment.facts.uid)).await;
        for _ in 0..ATTEMPTS {
            let evidence = Arc::new(self.ask(instance, &moment, known.path.clone(), wanted).await?);
            // Look again: what was read is about this instance, and about these credentials, only if they still hold.
            let now = Moment::of(instance, wanted, &self.launches)?;
            if now == moment {
                let facts = moment.facts;
                let retry = match &known.last {
                    Some(last) if last.evidence == evidence => (last.retry * 2).min(LAST_RETRY),
                    _ => FIRST_RETRY,
                };
                let path = evidence.selectors.single_value("unix", "path").map(PathBuf::from);
                known.path = known.path.take().or(path);
                let at = self.clock.now();
                known.last = Some(Last { moment, wanted: wanted.clone(), evidence: evidence.clone(), at, retry });
                return Ok(attested(facts, evidence));
            }
            moment = now;
        }
        Err(AttestationError::Restless)
    }

    /// Everything that can be found out of the instance, asked anew: for explaining. It costs the turn of the user
    /// who asks, not of the process.
    pub async fn explain(&self, instance: &Arc<Instance>, asker: u32) -> Result<Attested, AttestationError> {
        let facts = instance.look()?;
        let path = instance.remembered::<Memory>().known.lock().await.path.clone();
        let _turn = self.turns.turn(asker).await;
        let launched = Some(launched(instance, &self.launches)?);
        let moment = Moment { facts, groups: None, places: None, launched };
        let evidence = self.ask(instance, &moment, path, &Wanted::everything()).await?;
        Ok(attested(instance.look()?, Arc::new(evidence)))
    }

    async fn ask(
        &self,
        instance: &Instance,
        moment: &Moment,
        path: Option<PathBuf>,
        wanted: &Wanted,
    ) -> Result<Evidence, AttestationError> {
        let launched = moment.launched.clone().unwrap_or_else(|| Err(NOT_WANTED.to_owned()));
        let subject = subject(instance, moment.facts, path, launched)?;
        let mut evidence = self.attestors.attest(&subject, wanted).await;
        if let Some(weak) = instance.weak().filter(Weakness::bars_executable) {
            // Labels follow the executable; like it they say nothing where somebody else can send in its name.
            evidence.withhold("lsm", weak.to_string());
        }
        Ok(evidence)
    }

    fn holds(&self, last: &Last, moment: &Moment, wanted: &Arc<Wanted>) -> bool {
        let fresh = !last.evidence.has_failures() || (self.clock.now() - last.at).unsigned_abs() < last.retry;
        last.moment == *moment && (Arc::ptr_eq(&last.wanted, wanted) || last.wanted == *wanted) && fresh
    }
}

impl std::fmt::Debug for Attestation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Attestation")
    }
}

fn attested(facts: Facts, evidence: Arc<Evidence>) -> Attested {
    Attested { facts, evidence, executable: Ok(()) }
}

/// What was launched that the process belongs to; that it cannot be told now costs these selectors alone.
fn launched(instance: &Instance, launches: &Launches) -> Result<Result<Vec<Selector>, String>, LookError> {
    match launches.of(instance) {
        Ok(selectors) => Ok(Ok(selectors)),
        Err(LookError::Ended(end)) => Err(end.into()),
        Err(LookError::Unseen(error)) => Ok(Err(format!("it cannot be told now what launched the process: {error}"))),
    }
}

/// A process of systemd's that starts a unit, for asking systemd about it.
pub(super) fn subject_before_it_runs(instance: &Instance, facts: Facts) -> Result<Subject, AttestationError> {
    subject(instance, facts, None, Err(NOT_WANTED.to_owned()))
}

fn subject(
    instance: &Instance,
    facts: Facts,
    known_path: Option<PathBuf>,
    launched: Result<Vec<Selector>, String>,
) -> Result<Subject, AttestationError> {
    let pidfd = instance.pidfd().as_fd().try_clone_to_owned().map_err(LookError::Unseen)?;
    let executable = match instance.executable_evidence() {
        Ok(file) => ExecutableEvidence::Known(file),
        Err(why) => ExecutableEvidence::Withheld { why },
    };
    Ok(Subject {
        pid: instance.pid(),
        uid: facts.uid,
        share: instance.share(facts.uid),
        gid: facts.gid,
        cgroup_id: facts.cgroup_id,
        proc_dir: instance.proc_dir().clone(),
        pidfd: Some(Arc::new(pidfd)),
        executable,
        known_path,
        launched,
    })
}

#[cfg(test)]
mod tests;
