//! A unit that systemd is starting: what is known of it before any program of it runs.
//!
//! What systemd says of the unit are selectors: `systemd:*`, and `unix:` user and group where it says as whom the unit
//! runs. Everything else is about a process that does not exist yet, and is not known: an entry that needs it is
//! unavailable, and says why.

use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use super::process::{AttestationError, Attested};
use super::systemd::UnitUser;
use super::{Bus, Config, Evidence, Findings, Names, Nss, Systemd, UnitManagerError, UnitName, UnitUsers};
use crate::base::clock::Clock;
use crate::base::entropy::Entropy;
use crate::peer::SystemdCaller;
use crate::selector::KINDS;

/// Why nothing is known of what must be known.
const NOT_YET: &str = "systemd is only starting the unit, so no process of it can be looked at";
const FROM_PROCESS: &[&str] = &["path", "sha256", "supplementary_gid", "supplementary_group"];

/// Why it is not known which unit is being started.
#[derive(Debug, Error)]
pub enum StartingError {
    /// The process that asks is gone, or changed meanwhile.
    #[error(transparent)]
    Attestation(#[from] AttestationError),
    /// systemd did not say, or not in time.
    #[error(transparent)]
    Systemd(#[from] UnitManagerError),
    /// systemd knows of another unit than the one that is asked for, or of none.
    #[error("systemd says that the process that asks for `{asked}` is in {}", found.as_deref().unwrap_or("no unit"))]
    OtherUnit {
        /// The unit in the request.
        asked: String,
        /// The one systemd names.
        found: Option<String>,
    },
    /// systemd does not tell the starts of the unit apart.
    #[error("systemd has no invocation id for `{0}`, so that the end of what it gets could not be told")]
    NoInvocation(String),
}

/// A unit that systemd is starting, by its own word. Made only by [`StartingUnits::attest`].
#[derive(Clone, Debug)]
pub struct StartingUnit {
    caller: SystemdCaller,
    name: UnitName,
    invocation: String,
    user: UnitUser,
    attested: Attested,
}

impl StartingUnit {
    /// The process of systemd's that asks.
    pub fn caller(&self) -> &SystemdCaller {
        &self.caller
    }

    /// Its name.
    pub fn name(&self) -> &UnitName {
        &self.name
    }

    /// Which start of it: 32 hex digits.
    pub fn invocation(&self) -> &str {
        &self.invocation
    }

    /// The user it will run as, if systemd says.
    pub fn uid(&self) -> Option<u32> {
        self.user.uid
    }

    /// What is known of it.
    pub fn attested(&self) -> &Attested {
        &self.attested
    }
}

/// Asks systemd about units that it is starting.
pub struct StartingUnits {
    systemd: Systemd,
    users: Arc<dyn UnitUsers>,
    names: Names,
    patience: Duration,
}

impl StartingUnits {
    /// Of this host.
    pub fn of_host(config: &Config, clock: &Clock, entropy: &Entropy) -> Self {
        let bus = Arc::new(Bus::new(config.systemd.address.clone()));
        Self {
            systemd: Systemd::new(&config.systemd, bus.clone(), clock.clone(), entropy.clone()),
            users: bus,
            names: Names::new(Nss, clock.clone(), config.unix.name_cache),
            patience: config.systemd.patience,
        }
    }

    /// What systemd says of the unit `asked` that it is starting by the process `caller`, which must be in that unit.
    pub async fn attest(&self, caller: &SystemdCaller, asked: &UnitName) -> Result<StartingUnit, StartingError> {
        let instance = caller.instance();
        let facts = instance.look().map_err(AttestationError::from)?;
        let subject = super::process::subject_before_it_runs(instance, facts)?;
        let other = |found| StartingError::OtherUnit { asked: asked.as_str().to_owned(), found };
        let (unit, systemd) = self.systemd.findings_of_unit(&subject).await?.ok_or_else(|| other(None))?;
        if unit.id != asked.as_str() {
            return Err(other(Some(format!("`{}`", unit.id))));
        }
        let invocation = unit.invocation_id.ok_or(StartingError::NoInvocation(unit.id))?;
        let user = self.user_of(asked).await;
        let known = user.as_ref().copied().unwrap_or_default();

        let mut evidence = Evidence::default();
        evidence.add(systemd);
        evidence.add(self.unix(user).await);
        let mut others: Vec<_> = KINDS.iter().map(|(kind, _)| *kind).collect();
        others.dedup();
        for kind in others.into_iter().filter(|kind| !matches!(*kind, "systemd" | "unix")) {
            evidence.add(Findings::none(kind, NOT_YET));
        }
        // What was asked is about this start of the unit only if its process is still the one it was.
        if instance.look().map_err(AttestationError::from)? != facts {
            return Err(AttestationError::Restless.into());
        }
        let attested = Attested::before_it_runs(facts, evidence);
        Ok(StartingUnit { caller: caller.clone(), name: asked.clone(), invocation, user: known, attested })
    }

    async fn user_of(&self, unit: &UnitName) -> Result<UnitUser, UnitManagerError> {
        let answer = tokio::time::timeout(self.patience, self.users.user_of(unit)).await;
        answer.unwrap_or(Err(UnitManagerError::Late(self.patience)))
    }

    async fn unix(&self, user: Result<UnitUser, UnitManagerError>) -> Findings {
        let mut findings = Findings::of("unix");
        findings.gap(FROM_PROCESS, NOT_YET);
        let (user, why) = match user {
            Ok(user) => (user, "systemd does not say as whom it starts the unit".to_owned()),
            Err(error) => (UnitUser::default(), error.to_string()),
        };
        match user.uid {
            None => findings.gap(&["uid", "user"], &*why),
            Some(uid) => {
                findings.fact("uid", uid);
                match self.in_time(self.names.user(uid)).await {
                    Ok(Some(name)) => findings.fact("user", name),
                    Ok(None) => {}
                    Err(why) => findings.gap(&["user"], why),
                }
            }
        }
        match user.gid {
            None => findings.gap(&["gid", "group"], why),
            Some(gid) => {
                findings.fact("gid", gid);
                match self.in_time(self.names.group(user.uid.unwrap_or_default(), gid)).await {
                    Ok(Some(name)) => findings.fact("group", name),
                    Ok(None) => {}
                    Err(why) => findings.gap(&["group"], why),
                }
            }
        }
        findings
    }

    /// A name, or why there is none now.
    async fn in_time<E: ToString>(
        &self,
        look_up: impl Future<Output = Result<Option<String>, E>>,
    ) -> Result<Option<String>, String> {
        match tokio::time::timeout(self.patience, look_up).await {
            Ok(answer) => answer.map_err(|error| error.to_string()),
            Err(_) => Err(format!("the name service did not answer within {:?}", self.patience)),
        }
    }
}

#[cfg(test)]
mod tests;

impl std::fmt::Debug for StartingUnits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StartingUnits")
    }
}
