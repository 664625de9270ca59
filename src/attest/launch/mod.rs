//! `launch:*`: what was launched, for everything that runs in it.
//!
//! An interpreter is one file for all of its scripts, so its executable says nothing of which agent runs. A launcher
//! that is believed (`tether run`) says what it is about to start, and the agent measures that by itself: program,
//! script, a directory. What it found holds for the members of what was launched: one process, a cgroup, or the launcher
//! and its descendants; for as long as the [`Launched`] guard lives, which is the session's life.
//!
//! # What it promises
//! - The files were opened by the agent, through the root directory of the launcher, with no more rights than the
//!   launcher has; a path is a fact only where it leads to the same file in the agent's own root (peer rule 5).
//! - Only the programs of the setting `sessions.launchers` are believed, judged as `unix:path` is, and not while they are
//!   traced, nor while processes of their user could begin to trace them.
//! - Of two launches, one inside the other, the inner one counts.
//!
//! # What it does not
//! - **It tells programs apart that are honest.** Whoever starts the launcher chooses its environment: LD_PRELOAD, or a
//!   tracer that has gone, makes it say one thing and start another. Whatever runs in the tree has the selectors, whatever
//!   that is by then. Beside a `unix:uid` that only the agent has, this is nobody else's doing.
//! - A digest is of the moment of the launch. A file that its own user may write can be another when it is read.

mod digest;
mod error;
mod measure;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};

pub use self::error::LaunchError;
use super::unix::digest::Digests;
use super::unix::executable::Files;
use super::{AttestError, Attestor, CgroupPaths, Findings, Subject, Wanted, is_in_cgroup};
use crate::base::clock::Clock;
use crate::peer::{Instance, LookError};
use crate::selector::Selector;

/// How launches are measured.
#[derive(Clone, Debug)]
pub struct Config {
    /// The programs that are believed: absolute paths in the agent's root.
    pub launchers: Vec<PathBuf>,
    /// The largest program or script that is hashed, in bytes.
    pub max_hash_bytes: u64,
    /// The most files, directories and links in a directory that is measured.
    pub max_entries: usize,
    /// The most bytes in all of its files.
    pub max_directory_bytes: u64,
    /// How long one measurement may take.
    pub deadline: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            launchers: Vec::new(),
            max_hash_bytes: 1 << 30,
            max_entries: 20_000,
            max_directory_bytes: 512 << 20,
            deadline: Duration::from_secs(10),
        }
    }
}

/// What a launcher says that it is about to start; absolute paths in its own root.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LaunchRequest {
    /// The program: the interpreter, where it is a script.
    pub program: String,
    /// The script that the interpreter is to run.
    pub script: Option<String>,
    /// A directory whose whole content counts.
    pub directory: Option<String>,
}

/// What was measured of one launch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch(Vec<String>);

impl Launch {
    /// The facts, as whole selectors: `launch:path:/usr/bin/python3.11`.
    pub fn selectors(&self) -> &[String] {
        &self.0
    }

    /// What was measured before, as it was written down; `None` when it holds anything but `launch:*` selectors.
    pub fn recorded(selectors: &[String]) -> Option<Self> {
        let is_ours = |text: &String| Selector::parse(text).is_ok_and(|selector| selector.kind() == KIND);
        selectors.iter().all(is_ours).then(|| Self(selectors.to_vec()))
    }
}

/// Who belongs to a launch.
#[derive(Clone, Debug)]
pub enum LaunchedBy {
    /// Everything in a cgroup of version 2 and below.
    Cgroup {
        /// Its inode number.
        id: u64,
        /// Its path, as in `/proc/PID/cgroup`.
        path: String,
    },
    /// A process and its descendants.
    Tree(Arc<Instance>),
    /// One program in one process.
    Process(Arc<Instance>),
}

impl LaunchedBy {
    /// Whether both have the same root: what belongs to one belongs to the other.
    fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Cgroup { id, .. }, Self::Cgroup { id: other, .. }) => id == other,
            (Self::Tree(one), Self::Tree(other)) | (Self::Process(one), Self::Process(other)) => one.id() == other.id(),
            _ => false,
        }
    }
}

const KIND: &str = "launch";

/// What was launched and still goes on. Cheap to clone.
#[derive(Clone)]
pub struct Launches(Arc<Shared>);

struct Shared {
    config: Config,
    files: Files,
    digests: Digests,
    known: Arc<Mutex<Known>>,
}

/// In the order in which they began.
#[derive(Default)]
struct Known {
    next: u64,
    all: BTreeMap<u64, (LaunchedBy, Arc<[Selector]>)>,
}

/// A launch that goes on: its members have its selectors until this is dropped.
pub struct Launched {
    known: Arc<Mutex<Known>>,
    number: u64,
}

impl Drop for Launched {
    fn drop(&mut self) {
        // Dropped outside of the lock: an instance goes with its last holder.
        let _gone = lock(&self.known).all.remove(&self.number);
    }
}

impl fmt::Debug for Launched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Launched({})", self.number)
    }
}

impl fmt::Debug for Launches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Launches").field("config", &self.0.config).finish_non_exhaustive()
    }
}

impl Launches {
    /// None yet; `config` says who is believed.
    pub fn new(config: Config, clock: Clock) -> Self {
        let digests = Digests::new(clock, config.max_hash_bytes);
        Self(Arc::new(Shared { config, files: Files::new(), digests, known: Arc::default() }))
    }

    /// Gives what was measured to the members, until the guard is dropped.
    ///
    /// # Errors
    /// [`LaunchError::Again`] when something was launched for exactly these members, and goes on: it could not be told
    /// which of them is which.
    pub fn add(&self, members: LaunchedBy, launch: &Launch) -> Result<Launched, LaunchError> {
        let selectors = launch.selectors().iter().filter_map(|text| Selector::parse(text).ok()).collect();
        let mut known = lock(&self.0.known);
        if known.all.values().any(|(other, _)| other.is_same(&members)) {
            return Err(LaunchError::Again);
        }
        let number = known.next;
        known.next += 1;
        known.all.insert(number, (members, selectors));
        Ok(Launched { known: self.0.known.clone(), number })
    }

    /// The facts that hold for this process: those of the launch it belongs to, the last one begun of several, which is
    /// the inner one. None when it belongs to none.
    ///
    /// # Errors
    /// [`LookError::Ended`] when the process is over; [`LookError::Unseen`] when the system cannot answer now.
    pub fn of(&self, instance: &Instance) -> Result<Vec<Selector>, LookError> {
        let all: Vec<_> = lock(&self.0.known).all.values().cloned().collect();
        if all.is_empty() {
            return Ok(Vec::new());
        }
        // What is cheap rules out most; what is left is asked for proof.
        let lineage = instance.lineage()?;
        let place = CgroupPaths::read(instance.proc_dir()).ok().and_then(|paths| paths.unified);
        for (members, selectors) in all.into_iter().rev() {
            let belongs = match &members {
                LaunchedBy::Cgroup { id, path } => {
                    place.as_deref().is_none_or(|place| place.starts_with(path.as_str()))
                        && is_in_cgroup(instance, *id, path)?
                }
                LaunchedBy::Tree(root) => lineage.contains(&root.pid()) && instance.descends_from(root)?,
                LaunchedBy::Process(process) => instance.id() == process.id() && instance.look().is_ok(),
            };
            if belongs {
                return Ok(selectors.to_vec());
            }
        }
        Ok(Vec::new())
    }
}

fn lock(known: &Mutex<Known>) -> MutexGuard<'_, Known> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Attests `launch:*`, as [`Launches`] found it for the instance.
#[derive(Debug)]
pub struct MemberOfLaunch;

impl Attestor for MemberOfLaunch {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn attest<'a>(&'a self, subject: &'a Subject, _wanted: &'a Wanted) -> BoxFuture<'a, Result<Findings, AttestError>> {
        let mut findings = Findings::of(KIND);
        match &subject.launched {
            Ok(selectors) if selectors.is_empty() => findings.note("it was not started by `tether run`"),
            Ok(selectors) => selectors.iter().for_each(|selector| findings.found(selector.clone())),
            Err(why) => findings.gap(&[], why),
        }
        ready(Ok(findings)).boxed()
    }
}

#[cfg(test)]
mod tests;
