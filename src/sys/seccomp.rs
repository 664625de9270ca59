//! What an agent gives up for good before it has threads: system calls it never makes, and whoever takes it over would.
//!
//! Promises: from [`renounce`] on no program is executed by this process or its threads, no other process is traced, nothing
//! is mounted, loaded into the kernel or put into another namespace; the calls fail with `EPERM`, by whichever of the
//! processor's interfaces they are made. It cannot be undone, and gaining privileges by a program's mode bits is over as well
//! (`PR_SET_NO_NEW_PRIVS`).
//!
//! Does not: keep `/proc/PID/mem` of others from being written, which looks like any other file here: the kernel asks
//! for more capabilities than the unit gives, and lets root do it. Nor does it keep files and ports from it. Landlock
//! would, but a process in a Landlock domain can look at no process outside of it (`/proc/PID/exe` and its neighbours,
//! whatever its capabilities), which is what an agent is there for; see [`super::landlock`]. For an agent that is the
//! unit's part.

use std::collections::BTreeMap;

use nix::libc;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter,
};
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
    for program in programs().map_err(RenounceError::Processor)? {
        apply_filter(&program).map_err(RenounceError::Refused)?;
    }
    Ok(())
}

/// One for each answer.
fn programs() -> Result<[BpfProgram; 2], seccompiler::BackendError> {
    // Without conditions: whatever the arguments.
    let mut refused: BTreeMap<i64, Vec<_>> = FOREIGN.iter().map(|call| (*call, Vec::new())).collect();
    refused.extend(by_all_interfaces(CALLS).map(|call| (call, Vec::new())));
    for call in by_all_interfaces(&[libc::SYS_clone]) {
        refused.insert(call, NAMESPACES.iter().map(|flag| with_flag(*flag)).collect::<Result<_, _>>()?);
    }
    // Its flags are in memory, where no filter sees them. Who is told that there is no such call makes threads by the other.
    let unknown = by_all_interfaces(&[libc::SYS_clone3]).map(|call| (call, Vec::new())).collect();
    Ok([answering(libc::EPERM, refused)?, answering(libc::ENOSYS, unknown)?])
}

fn answering(errno: i32, calls: BTreeMap<i64, Vec<SeccompRule>>) -> Result<BpfProgram, seccompiler::BackendError> {
    let architecture: TargetArch = std::env::consts::ARCH.try_into()?;
    let answer = SeccompAction::Errno(errno.cast_unsigned());
    SeccompFilter::new(calls, SeccompAction::Allow, answer, architecture)?.try_into()
}

/// The first argument has this flag.
fn with_flag(flag: libc::c_int) -> Result<SeccompRule, seccompiler::BackendError> {
    let flag = u64::from(flag.cast_unsigned());
    let has = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(flag), flag)?;
    SeccompRule::new(vec![has])
}

/// What `clone` takes for a process in namespaces of its own.
const NAMESPACES: &[libc::c_int] = &[
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
];

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

/// What the numbers of the x32 interface have, which a kernel may have beside that of x86-64. That of 32 bits is another
/// architecture, and whoever uses it is killed.
#[cfg(target_arch = "x86_64")]
const X32: libc::c_long = 0x4000_0000;

/// Those of [`CALLS`] that have numbers of their own there: `execve`, `ptrace`, `kexec_load`, `process_vm_readv`,
/// `process_vm_writev`, `execveat`.
#[cfg(target_arch = "x86_64")]
const FOREIGN: &[libc::c_long] = &[X32 + 520, X32 + 521, X32 + 528, X32 + 539, X32 + 540, X32 + 545];
#[cfg(not(target_arch = "x86_64"))]
const FOREIGN: &[libc::c_long] = &[];

/// These calls, by each of their numbers.
fn by_all_interfaces(calls: &'static [libc::c_long]) -> impl Iterator<Item = libc::c_long> {
    #[cfg(target_arch = "x86_64")]
    return calls.iter().flat_map(|call| [*call, X32 + *call]);
    #[cfg(not(target_arch = "x86_64"))]
    return calls.iter().copied();
}

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

    #[test]
    fn who_has_renounced_makes_threads_and_no_namespaces() {
        let (user, unknown, threads) = std::thread::spawn(|| {
            renounce().unwrap();
            // Both make no sense: without a filter the answer is `EINVAL`, and nobody is made.
            let flags = i64::from(libc::CLONE_NEWUSER | libc::CLONE_FS);
            // SAFETY: the flags exclude each other, so the call makes no process, whatever the other arguments.
            let user = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
            let user = Errno::result(user);
            // SAFETY: no arguments of size 0 are read.
            let unknown = Errno::result(unsafe { libc::syscall(libc::SYS_clone3, 0, 0) });
            (user, unknown, std::thread::spawn(|| 7).join().unwrap())
        })
        .join()
        .unwrap();
        assert_eq!((user, unknown, threads), (Err(Errno::EPERM), Err(Errno::ENOSYS), 7));
    }
}
