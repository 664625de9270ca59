//! A process that traces another one (ptrace(2)) and makes it do something.

use std::io;
use std::ptr;

use nix::libc;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use super::{BARRED, GOT, say};

/// What an interrupted call returns inside the kernel (`ERESTARTSYS`).
#[cfg(target_arch = "x86_64")]
const RESTART: i64 = -512;

/// Makes a process that waits for its next order carry out one that nobody gave it: stops it in its `read`, puts the
/// order where what is read belongs, and lets `read` say that it came.
pub fn make_act(pid: &str, order: &str) {
    let process: libc::pid_t = pid.parse().unwrap();
    let line = format!("{order}\n");
    match give(process, line.as_bytes()) {
        Ok(()) => say(GOT),
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => say(BARRED),
        Err(error) => panic!("the process can be traced: {error}"),
    }
}

#[cfg(target_arch = "x86_64")]
fn give(process: libc::pid_t, line: &[u8]) -> io::Result<()> {
    trace(libc::PTRACE_SEIZE, process, 0, ptr::null_mut())?;
    // SAFETY: registers are numbers, for which all zero is a value.
    let mut registers: libc::user_regs_struct = unsafe { std::mem::zeroed() };
    loop {
        trace(libc::PTRACE_INTERRUPT, process, 0, ptr::null_mut())?;
        waitpid(Pid::from_raw(process), Some(WaitPidFlag::__WALL))?;
        trace(libc::PTRACE_GETREGS, process, 0, (&raw mut registers).cast())?;
        // It has been waiting in read(0, ..), and would begin that again.
        if (registers.orig_rax, registers.rdi, registers.rax) == (0, 0, RESTART.cast_unsigned()) {
            break;
        }
        trace(libc::PTRACE_CONT, process, 0, ptr::null_mut())?;
        std::thread::yield_now();
    }
    let at = usize::try_from(registers.rsi).unwrap();
    // Whole words; what comes after the line was there before and is not said to have been read.
    for (word, bytes) in line.chunks(8).enumerate() {
        let mut whole = [0; 8];
        whole[..bytes.len()].copy_from_slice(bytes);
        trace(libc::PTRACE_POKEDATA, process, at + word * 8, ptr::without_provenance_mut(usize::from_ne_bytes(whole)))?;
    }
    registers.rax = line.len() as u64;
    // It was interrupted, and is not to begin again.
    registers.orig_rax = u64::MAX;
    trace(libc::PTRACE_SETREGS, process, 0, (&raw mut registers).cast())?;
    trace(libc::PTRACE_DETACH, process, 0, ptr::null_mut())
}

#[cfg(not(target_arch = "x86_64"))]
fn give(_: libc::pid_t, _: &[u8]) -> io::Result<()> {
    unreachable!("the attack needs x86-64, and is ignored elsewhere")
}

fn trace(request: libc::c_uint, process: libc::pid_t, address: usize, data: *mut libc::c_void) -> io::Result<()> {
    let address: *mut libc::c_void = ptr::without_provenance_mut(address);
    // SAFETY: what the requests here read or write in this process is one `user_regs_struct`, where `data` points.
    let done = unsafe { libc::ptrace(request, process, address, data) };
    if done == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
