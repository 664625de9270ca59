//! A process with a number of our choice (clone3(2), `set_tid`), as checkpoints are restored.

use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::libc;

use super::ROLE;

/// Starts a workload that has the number `pid`, which must be free, and waits for its end.
pub fn reborn(pid: &str, socket: &str) {
    let number: libc::pid_t = pid.parse().unwrap();
    // SAFETY: all zero is what the call takes for "nothing special".
    let mut how: libc::clone_args = unsafe { std::mem::zeroed() };
    how.exit_signal = u64::try_from(libc::SIGCHLD).unwrap();
    how.set_tid = (&raw const number).expose_provenance() as u64;
    how.set_tid_size = 1;
    // SAFETY: without CLONE_VM the child has a copy of our memory, and we have one thread, so it goes on like a fork. The
    // kernel reads `how`, which names one number that lives as long.
    let child = unsafe { libc::syscall(libc::SYS_clone3, &raw const how, size_of::<libc::clone_args>()) };
    if child == 0 {
        let error = Command::new(std::env::current_exe().unwrap()).arg(socket).env(ROLE, "workload").exec();
        panic!("this program is there: {error}");
    }
    assert_eq!(child, i64::from(number), "the number is free: {}", std::io::Error::last_os_error());
    nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(number), None).unwrap();
}
