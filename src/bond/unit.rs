//! The end of a unit in systemd's own word.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;

use super::{End, Unheld};
use crate::attest::{UnitChanges, UnitManagerError, UnitWatcher};
use crate::base::backoff::Backoff;
use crate::base::entropy::Entropy;
use crate::sys::cgroup::{Population, WatchedGroup};

/// How soon systemd is asked again after it did not answer.
const FIRST_REST: Duration = Duration::from_millis(200);
const LONGEST_REST: Duration = Duration::from_secs(15);

/// Which starts of units are held, each by how many.
type Held = Arc<Mutex<HashMap<Start, usize>>>;

/// One start of one unit.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Start {
    unit: String,
    invocation: String,
}

/// A start of a unit that is not known to be over.
#[derive(Debug)]
pub(super) struct Running {
    start: Start,
    held: Held,
}

impl Running {
    fn new(start: Start, held: &Held) -> Self {
        *lock(held).entry(start.clone()).or_default() += 1;
        Self { start, held: held.clone() }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut held = lock(&self.held);
        // It may have been taken off already: it is over.
        if let Some(count) = held.get_mut(&self.start) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.start);
            }
        }
    }
}

/// Asks systemd about units.
pub(super) struct Units {
    systemd: Arc<dyn UnitWatcher>,
    patience: Duration,
    entropy: Entropy,
    held: Held,
}

impl Units {
    pub fn new(systemd: Arc<dyn UnitWatcher>, patience: Duration, entropy: Entropy) -> Self {
        Self { systemd, patience, entropy, held: Held::default() }
    }

    /// Holds a start of a unit that runs now.
    pub async fn hold(&self, unit: &str, invocation: &str) -> Result<Running, Unheld> {
        let start = Start { unit: unit.to_owned(), invocation: invocation.to_owned() };
        match self.runs(&start).await {
            Ok(true) => Ok(Running::new(start, &self.held)),
            Ok(false) => Err(End::UnitStopped.into()),
            Err(error) => Err(Unheld::Systemd(error)),
        }
    }

    /// Whether any start of the unit runs. Not knowing is not a yes.
    pub async fn is_running(&self, unit: &str) -> bool {
        self.invocation_of(unit).await.is_ok_and(|invocation| invocation.is_some())
    }

    /// Whether somebody holds this start of the unit, and it is not known to be over.
    pub fn is_held(&self, unit: &str, invocation: &str) -> bool {
        let start = Start { unit: unit.to_owned(), invocation: invocation.to_owned() };
        lock(&self.held).contains_key(&start)
    }

    /// Waits for the end of a start. While systemd does not answer nothing is known to have ended.
    pub async fn ended(&self, running: &Running) -> End {
        self.over(&running.start).await;
        lock(&running.held).remove(&running.start);
        End::UnitStopped
    }

    /// Waits until no process is left in the group and systemd does not say that the same start of its unit goes on.
    pub async fn group_ended(&self, unit: &str, group: &WatchedGroup) -> End {
        let mut known = self.invocation_of(unit).await.ok().flatten();
        loop {
            group.emptied().await;
            let start = match self.going_on(unit, known, group).await {
                Ok(start) => start,
                Err(end) => return end,
            };
            tokio::select! {
                () = self.over(&start) => return End::UnitStopped,
                () = group.populated() => known = Some(start.invocation),
            }
        }
    }

    /// The start of the unit that was in the group, which is empty, if systemd says that it goes on. Not knowing is
    /// not a yes: the kernel says that nobody is there.
    async fn going_on(&self, unit: &str, known: Option<String>, group: &WatchedGroup) -> Result<Start, End> {
        let now = self.invocation_of(unit).await.map_err(|_| End::CgroupEmpty)?.ok_or(End::UnitStopped)?;
        let same = match known {
            Some(known) => known == now,
            // While the directory stands it is that of the start that was in it: systemd removes it between two.
            None => group.population().is_ok_and(|population| population != Population::Removed),
        };
        if same { Ok(Start { unit: unit.to_owned(), invocation: now }) } else { Err(End::UnitStopped) }
    }

    async fn over(&self, start: &Start) {
        let mut backoff = Backoff::new(FIRST_REST, LONGEST_REST);
        while let Err(error) = self.follow(start, &mut backoff).await {
            let rest = backoff.delay(&self.entropy);
            tracing::warn!(unit = start.unit, %error, ?rest, "the end of a unit cannot be seen until systemd answers");
            tokio::time::sleep(rest).await;
        }
    }

    /// Returns when the start is over; the error when that cannot be followed.
    async fn follow(&self, start: &Start, backoff: &mut Backoff) -> Result<(), UnitManagerError> {
        let mut changes = self.changes(&start.unit).await?;
        while self.runs(start).await? {
            backoff.reset();
            if changes.next().await.is_none() {
                return Err(UnitManagerError::Unreachable("it is no longer heard".into()));
            }
        }
        Ok(())
    }

    async fn runs(&self, start: &Start) -> Result<bool, UnitManagerError> {
        Ok(self.invocation_of(&start.unit).await?.is_some_and(|now| now == start.invocation))
    }

    async fn invocation_of(&self, unit: &str) -> Result<Option<String>, UnitManagerError> {
        self.in_time(self.systemd.running(unit)).await
    }

    async fn changes(&self, unit: &str) -> Result<UnitChanges, UnitManagerError> {
        self.in_time(self.systemd.changes(unit)).await
    }

    async fn in_time<T>(
        &self,
        answer: impl Future<Output = Result<T, UnitManagerError>>,
    ) -> Result<T, UnitManagerError> {
        let answer = tokio::time::timeout(self.patience, answer).await;
        answer.unwrap_or(Err(UnitManagerError::Late(self.patience)))
    }
}

fn lock(held: &Held) -> MutexGuard<'_, HashMap<Start, usize>> {
    held.lock().unwrap_or_else(PoisonError::into_inner)
}
