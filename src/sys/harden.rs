//! Making our own memory hard to look into: by debuggers, core dumps and swap.
//!
//! Nothing here is fatal. What could not be had is reported, and shown by `tether doctor` and `tether status`.

use std::fs;
use std::io;
use std::path::Path;

use nix::sys::mman::{MlockAllFlags, mlockall};
use nix::sys::prctl;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};

/// What was achieved.
#[derive(Debug)]
pub struct Hardening {
    /// Other processes of our user cannot trace us or read our memory (`PR_SET_DUMPABLE` 0).
    pub not_traceable: io::Result<()>,
    /// A crash leaves no memory image (`RLIMIT_CORE` 0).
    pub no_core_dumps: io::Result<()>,
    /// What keeps our memory out of swap.
    pub swap: Swap,
    /// How many descriptors we may have open (`RLIMIT_NOFILE`, raised as far as allowed).
    pub open_files: io::Result<u64>,
}

/// What keeps keys out of swap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Swap {
    /// All our memory is locked.
    Locked,
    /// Our cgroup may not swap (`MemorySwapMax=0`).
    ForbiddenByCgroup,
    /// This host has no swap now. It may get some later.
    NoneOnHost,
    /// Nothing does, for this reason.
    Exposed(String),
}

impl Hardening {
    /// Applies everything that we are allowed to. Call it once, before the first key is read or made.
    pub fn apply() -> Self {
        Self {
            not_traceable: prctl::set_dumpable(false).map_err(io::Error::from),
            no_core_dumps: setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(io::Error::from),
            swap: keep_out_of_swap(),
            open_files: raise_open_files(),
        }
    }

    /// For a command that has keys for a moment: no debugger, no core dump. What it is not allowed it does without.
    pub fn of_command() {
        let _ = prctl::set_dumpable(false);
        let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
    }

    /// What is weaker than it should be, each with what to do about it.
    pub fn weaknesses(&self) -> Vec<String> {
        let mut found = Vec::new();
        if let Err(error) = &self.not_traceable {
            found.push(format!("processes of the same user can read our memory: cannot become non-dumpable: {error}"));
        }
        if let Err(error) = &self.no_core_dumps {
            found.push(format!("a crash may write keys to a core dump: cannot set LimitCORE to 0: {error}"));
        }
        match &self.swap {
            Swap::Locked | Swap::ForbiddenByCgroup => {}
            Swap::NoneOnHost => found.push(format!("if this host gets swap, keys may reach it: {SWAP_HELP}")),
            Swap::Exposed(why) => found.push(format!("keys may reach swap: {why}: {SWAP_HELP}")),
        }
        found
    }
}

const SWAP_HELP: &str = "set MemorySwapMax=0 or LimitMEMLOCK=infinity in the unit";

/// Locks all memory only where no limit applies: under a finite one, locking what is allocated later makes an
/// allocation fail, and with it the agent. Pages are locked when they are first used, so it costs no memory.
fn keep_out_of_swap() -> Swap {
    let lockable = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY).is_ok()
        || getrlimit(Resource::RLIMIT_MEMLOCK).is_ok_and(|(soft, _)| soft == RLIM_INFINITY);
    let on_first_use = MlockAllFlags::from_bits_retain(nix::libc::MCL_ONFAULT);
    let all = MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE | on_first_use;
    let why = match lockable.then(|| mlockall(all)) {
        Some(Ok(())) => return Swap::Locked,
        Some(Err(errno)) => format!("cannot lock memory: {}", errno.desc()),
        None => "the limit on locked memory is too low to lock all of it".to_owned(),
    };
    if cgroup_forbids_swap() {
        Swap::ForbiddenByCgroup
    } else if fs::read_to_string("/proc/swaps").is_ok_and(|table| table.lines().count() == 1) {
        Swap::NoneOnHost
    } else {
        Swap::Exposed(why)
    }
}

/// Whether our cgroup or one above it allows no swap at all.
fn cgroup_forbids_swap() -> bool {
    let Ok(own) = fs::read_to_string("/proc/self/cgroup") else { return false };
    let Some(path) = own.lines().find_map(|line| line.strip_prefix("0::/")) else { return false };
    Path::new(path)
        .ancestors()
        .map(|above| Path::new("/sys/fs/cgroup").join(above).join("memory.swap.max"))
        .any(|limit| fs::read_to_string(limit).is_ok_and(|limit| limit.trim_end() == "0"))
}

/// How many descriptors this process may raise its limit to.
pub fn allowed_open_files() -> io::Result<u64> {
    Ok(getrlimit(Resource::RLIMIT_NOFILE)?.1)
}

fn raise_open_files() -> io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(swap: Swap) -> Hardening {
        Hardening { not_traceable: Ok(()), no_core_dumps: Ok(()), swap, open_files: Ok(1024) }
    }

    #[test]
    fn what_could_not_be_had_is_said_with_what_to_do_about_it() {
        assert!(report(Swap::Locked).weaknesses().is_empty());
        assert!(report(Swap::ForbiddenByCgroup).weaknesses().is_empty());
        let exposed = report(Swap::Exposed("no room".into())).weaknesses();
        assert!(exposed[0].contains("no room") && exposed[0].contains("MemorySwapMax=0"), "{exposed:?}");
        assert_eq!(report(Swap::NoneOnHost).weaknesses().len(), 1);
    }

    #[test]
    fn a_command_with_keys_leaves_no_image_of_its_memory() {
        Hardening::of_command();
        assert_eq!(prctl::get_dumpable(), Ok(false));
        assert_eq!(getrlimit(Resource::RLIMIT_CORE), Ok((0, 0)));
    }
}
