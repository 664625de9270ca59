//! What a command and everything it starts is kept together by, and how it is taken down.
//!
//! A cgroup of version 2, where this process may make one: then nothing leaves it, and `cgroup.kill` ends all of it at
//! once. Else this process is the one that orphans are given to (`PR_SET_CHILD_SUBREAPER`), so that everything below it
//! stays below it; that is killed one by one, again and again until nothing is left, and something that forks faster
//! than it is killed is given up in the end.

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::base::durable;
use crate::sys::PidFd;
use crate::sys::cgroup;
use crate::sys::procfs::ProcDir;

/// How often what is left is looked for while it ends.
const BETWEEN_LOOKS: Duration = Duration::from_millis(20);
/// How often what forks is killed again.
const MAX_ROUNDS: usize = 250;

/// What everything that was started stays in.
pub(super) enum Tree {
    /// A cgroup made for it.
    Cgroup(OwnGroup),
    /// All descendants of this process.
    Descendants,
}

/// A cgroup that this process has made, inside of the one it was started in.
pub(super) struct OwnGroup {
    dir: PathBuf,
    home: PathBuf,
}

impl OwnGroup {
    /// Makes one and moves this process into it, so that a session can be begun for it. `Err` says why there is none.
    pub(super) fn enter() -> Result<Self, String> {
        let mount = cgroup::mount_point().ok_or("cgroups of version 2 are not mounted here")?;
        let own = std::fs::read_to_string("/proc/self/cgroup").map_err(|error| error.to_string())?;
        let own = own.lines().find_map(|line| line.strip_prefix("0::/")).ok_or("this process is in no cgroup")?;
        let home = mount.join(own);
        let uid = nix::unistd::geteuid().as_raw();
        // Root could anywhere, but a manager does not expect others in its directories. Beside version 1 nobody manages
        // the root of this hierarchy.
        let may = if uid == 0 {
            own.is_empty() && mount.ends_with("unified")
        } else {
            std::fs::metadata(&home).is_ok_and(|found| found.uid() == uid)
        };
        if !may {
            return Err("this cgroup was not delegated to you".to_owned());
        }
        let dir = home.join(format!("tether-run-{}", std::process::id()));
        // One that a launcher with this number has left behind; in use it stays, and is not taken.
        let _ = std::fs::remove_dir(&dir);
        std::fs::create_dir(&dir).map_err(|error| format!("a cgroup cannot be made: {error}"))?;
        let made = Self { dir, home };
        if !made.dir.join("cgroup.kill").exists() {
            return Err("this kernel cannot kill a cgroup: Linux 5.14 can".to_owned());
        }
        made.move_to(&made.dir).map_err(|error| format!("a cgroup cannot be entered: {error}"))?;
        Ok(made)
    }

    /// Moves this process out again: what it has started stays.
    pub(super) fn leave(&self) -> io::Result<()> {
        self.move_to(&self.home)
    }

    fn move_to(&self, dir: &Path) -> io::Result<()> {
        durable::control(&dir.join("cgroup.procs"), &std::process::id().to_string())
    }

    /// Its processes, with those of the groups below.
    fn members(dir: &Path) -> Vec<i32> {
        let text = std::fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
        let mut members: Vec<i32> = text.lines().filter_map(|line| line.parse().ok()).collect();
        for below in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            if below.file_type().is_ok_and(|kind| kind.is_dir()) {
                members.extend(Self::members(&below.path()));
            }
        }
        members
    }

    fn remove(dir: &Path) {
        for below in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            if below.file_type().is_ok_and(|kind| kind.is_dir()) {
                Self::remove(&below.path());
            }
        }
        let _ = std::fs::remove_dir(dir);
    }
}

impl Drop for OwnGroup {
    fn drop(&mut self) {
        let _ = self.leave();
        Self::remove(&self.dir);
    }
}

impl Tree {
    /// How many processes it has now.
    pub(super) fn len(&self) -> usize {
        self.members().len()
    }

    /// Asks all of it to end, and kills what is left after `grace`. Returns whether nothing is left. The code of `child`,
    /// if it ends meanwhile, is in `code` then.
    pub(super) async fn take_down(&self, grace: Duration, child: i32, code: &mut Option<u8>) -> bool {
        if self.len() == 0 {
            return true;
        }
        if !grace.is_zero() {
            self.signal(Signal::SIGTERM);
            // What is stopped cannot end.
            self.signal(Signal::SIGCONT);
            if tokio::time::timeout(grace, self.emptied(child, code)).await.is_ok() {
                return true;
            }
        }
        for _ in 0..MAX_ROUNDS {
            self.kill();
            if tokio::time::timeout(BETWEEN_LOOKS * 2, self.emptied(child, code)).await.is_ok() {
                return true;
            }
        }
        false
    }

    /// Waits until nothing is left, collecting what ends.
    async fn emptied(&self, child: i32, code: &mut Option<u8>) {
        loop {
            *code = code.or(reap_for(child));
            if self.len() == 0 {
                return;
            }
            tokio::time::sleep(BETWEEN_LOOKS).await;
        }
    }

    fn kill(&self) {
        match self {
            // Not before this process is out of it: until then the group is in use, and the session ends by our word.
            Self::Cgroup(group) if group.leave().is_ok() => {
                let _ = durable::control(&group.dir.join("cgroup.kill"), "1");
            }
            Self::Cgroup(_) => self.signal(Signal::SIGKILL),
            Self::Descendants => self.signal(Signal::SIGKILL),
        }
    }

    fn signal(&self, signal: Signal) {
        let parents = parents();
        for pid in self.members() {
            let Ok(process) = PidFd::open(pid) else { continue };
            // The number may have gone to another process since it was listed: it is meant only if it is still a member.
            let is_meant = match self {
                Self::Cgroup(_) => self.members().contains(&pid),
                Self::Descendants => ProcDir::open(pid).and_then(|dir| dir.parent()).ok() == parents.get(&pid).copied(),
            };
            if is_meant {
                let _ = process.signal(signal);
            }
        }
    }

    fn members(&self) -> Vec<i32> {
        match self {
            Self::Cgroup(group) => {
                let own = std::process::id().cast_signed();
                OwnGroup::members(&group.dir).into_iter().filter(|pid| *pid != own).collect()
            }
            Self::Descendants => descendants(std::process::id().cast_signed(), &parents()),
        }
    }
}

/// Collects everything that has ended; the code of `child`, if that was among it.
pub(super) fn reap_for(child: i32) -> Option<u8> {
    use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
    let mut code = None;
    loop {
        match waitpid(None::<nix::unistd::Pid>, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, status)) if pid.as_raw() == child => code = u8::try_from(status & 0xff).ok(),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid.as_raw() == child => {
                code = u8::try_from(128 + signal as i32).ok();
            }
            Ok(WaitStatus::StillAlive) | Err(_) => return code,
            Ok(_) => {}
        }
    }
}

/// Who is the parent of whom, of all processes that are shown to us and have not ended.
fn parents() -> HashMap<i32, i32> {
    let mut parents = HashMap::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if let Ok(parent) = ProcDir::open(pid).and_then(|dir| dir.parent()) {
            parents.insert(pid, parent);
        }
    }
    parents
}

fn descendants(root: i32, parents: &HashMap<i32, i32>) -> Vec<i32> {
    let is_below = |pid: i32| {
        let mut above = parents.get(&pid);
        let mut steps = 0;
        while let Some(parent) = above.filter(|_| steps < parents.len()) {
            if *parent == root {
                return true;
            }
            above = parents.get(parent);
            steps += 1;
        }
        false
    };
    parents.keys().copied().filter(|pid| is_below(*pid)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descendants_are_all_below_and_nobody_else() {
        let parents = HashMap::from([(10, 1), (20, 10), (21, 10), (30, 20), (40, 1), (50, 51), (51, 50)]);
        let mut found = descendants(10, &parents);
        found.sort_unstable();
        assert_eq!(found, [20, 21, 30]);
    }
}
