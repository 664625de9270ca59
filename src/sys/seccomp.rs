//! What an agent gives up for good before it has threads: system calls it never makes, and whoever takes it over would.
//!
//! Promises: from [`renounce`] on no program is executed by this process or its threads, no other process is traced or
//! written to, nothing is mounted, loaded into the kernel or put into another namespace; the calls fail with `EPERM`. It
//! cannot be undone, and gaining privileges by a program's mode bits is over as well (`PR_SET_NO_NEW_PRIVS`).
//!
//! Does not: keep files and ports from it. Landlock would, but a process in a Landlock domain can look at no process outside
//! of it (`/proc/PID/exe` and its neighbours, whatever its capabilities), which is what an agent is there for; see
//! [`super::landlock`]. For an agent that is the unit's part.

use std::collections::BTreeMap;

use nix::libc;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch, apply_filter};
use thiserror::Error;

/// The system calls cannot be given up.
#[derive(Debug, Error)]
pub enum RenounceError {
    /// There is no filter for this processor.
    #[error("there is no filter for this processor")]
    Processor(#[source] seccompiler::BackendError),
    /// The kernel refused it.
    #[error("the kernel takes no filter of system calls")]
    Refused(#[source] seccompiler::Error),
}

/// Gives the calls up, for the calling thread and those it makes: call it while there is no other.
pub fn renounce() -> Result<(), RenounceError> {
    apply_filter(&program().map_err(RenounceError::Processor)?).map_err(RenounceError::Refused)
}

fn program() -> Result<BpfProgram, seccompiler::BackendError> {
    let architecture: TargetArch = std::env::consts::ARCH.try_into()?;
    let refused = SeccompAction::Errno(libc::EPERM.cast_unsigned());
    // Without conditions: whatever the arguments.
    let calls: BTreeMap<i64, Vec<_>> = CALLS.iter().chain(FOREIGN).map(|call| (*call, Vec::new())).collect();
    SeccompFilter::new(calls, SeccompAction::Allow, refused, architecture)?.try_into()
}

const CALLS: &[libc::c_long] = &[
    // Programs.
    libc::SYS_execve,
    libc::SYS_execveat,
    // Other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    // Namespaces and mounts.
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_chroot,
    libc::SYS_pivot_root,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    // The kernel itself.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
];

/// The same by the numbers of the x32 interface, which a kernel may have beside that of x86-64.
#[cfg(target_arch = "x86_64")]
const FOREIGN: &[libc::c_long] = &[0x4000_0000 + 520, 0x4000_0000 + 521, 0x4000_0000 + 545];
#[cfg(not(target_arch = "x86_64"))]
const FOREIGN: &[libc::c_long] = &[];

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::process::Command;

    use nix::errno::Errno;

    use super::*;

    #[test]
    fn who_has_renounced_executes_traces_and_mounts_nothing_and_looks_at_processes_as_before() {
        // A filter is a thread's, and its children's.
        let renounced = std::thread::spawn(|| {
            let before = std::fs::read_link("/proc/1/exe").map_err(|error| error.kind());
            renounce().unwrap();
            let spawned = Command::new("true").spawn().map(|_| ()).map_err(|error| error.kind());
            let traced = nix::sys::ptrace::traceme().unwrap_err();
            let moved = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap_err();
            let own = std::fs::read_to_string("/proc/thread-self/status").unwrap();
            (spawned, traced, moved, own, before == std::fs::read_link("/proc/1/exe").map_err(|error| error.kind()))
        });
        let (spawned, traced, moved, own, looks) = renounced.join().unwrap();
        assert_eq!(spawned, Err(ErrorKind::PermissionDenied));
        assert_eq!((traced, moved), (Errno::EPERM, Errno::EPERM));
        assert!(own.contains("NoNewPrivs:\t1") && own.contains("Seccomp:\t2"), "{own}");
        assert!(looks, "an agent that sees no executables is none");
        assert!(Command::new("true").status().unwrap().success(), "other threads are as they were");
    }
}
