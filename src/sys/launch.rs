//! Starting a program that does not outlive us.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getpid, getppid};

/// Starts a program that the kernel kills when the calling thread ends: call it from the first thread. The kernel forgets
/// it when that program gains privileges, as set-user-id ones do.
pub fn spawn_bound(command: &mut Command) -> io::Result<Child> {
    let parent = getpid();
    // SAFETY: what runs between fork and exec makes two system calls, prctl and getppid, and allocates nothing.
    unsafe { command.pre_exec(move || die_with(parent)) };
    command.spawn()
}

fn die_with(parent: Pid) -> io::Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    // It may have ended before that took effect.
    if getppid() == parent { Ok(()) } else { Err(Errno::ESRCH.into()) }
}

/// Whether orphans below this process are given to it from now on, and not to the first process of the host.
pub fn adopt_orphans() -> io::Result<()> {
    Ok(prctl::set_child_subreaper(true)?)
}

/// Keeps other processes of our user from tracing us and reading our memory.
pub fn refuse_tracing() -> io::Result<()> {
    Ok(prctl::set_dumpable(false)?)
}
