//! A container that an engine described, held against what the kernel says.

use super::Kind;
use super::answer::Answer;
use super::engine::EngineError;
use super::place::Place;
use crate::attest::Findings;
use crate::sys::PidFd;
use crate::sys::procfs::ProcDir;

/// What is known of one run of one container.
pub(super) struct Known {
    findings: Findings,
    /// Its first process, held: with it the container ends.
    first: PidFd,
    /// When that started, in clock ticks after boot.
    started: u64,
}

impl Known {
    /// Believes the answer if its container runs, and the process it names as the first one is in the very control group
    /// in which the process that asks was found. So neither another engine's container with the same id nor one that is
    /// over, nor a number that is another process by now, says anything.
    pub fn of(kind: Kind, answer: &Answer, place: &Place) -> Result<Self, EngineError> {
        let pid = answer.state.pid;
        if !answer.state.running || pid <= 0 {
            return Err(EngineError::NotRunning);
        }
        let unseen = |why: String| EngineError::Unseen { pid, why };
        // Held first: what is read afterwards is about this process, if it still lives then.
        let first = PidFd::open(pid).map_err(|error| unseen(error.to_string()))?;
        let proc_dir = ProcDir::open(pid).map_err(|error| unseen(error.to_string()))?;
        let started = proc_dir.start_time().map_err(|error| unseen(error.to_string()))?;
        let is_there = place.holds(&proc_dir).map_err(|error| unseen(error.words()))?;
        if !first.is_alive() {
            return Err(EngineError::NotRunning);
        }
        if !is_there {
            return Err(EngineError::Elsewhere(pid));
        }
        let mut findings = answer.findings(kind);
        findings.note(format!(
            "the process is in container `{}` ({}), whose first process is {pid}; its control group is `{}`",
            answer.name().unwrap_or("?"),
            place.container.short(),
            place.path()
        ));
        Ok(Self { findings, first, started })
    }

    /// The selectors that everybody in the container has.
    pub fn findings(&self) -> &Findings {
        &self.findings
    }

    /// Whether its first process lives.
    pub fn is_running(&self) -> bool {
        self.first.is_alive()
    }

    /// Whether a process that started then, in clock ticks after boot, can have been started in this run of the
    /// container: nothing in it is older than its first process.
    pub fn may_have_started(&self, ticks: u64) -> bool {
        self.started <= ticks
    }
}
