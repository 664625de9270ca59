//! What attackers ask of the kernel.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::libc;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, UnixCredentials, recvmsg, sendmsg, setsockopt, sockopt,
};
use tether::sys::PidFd;

/// A copy of a descriptor of another process (pidfd_getfd(2)).
pub fn steal(pid: i32, fd: RawFd) -> io::Result<OwnedFd> {
    let process = PidFd::open(pid)?;
    // SAFETY: the call takes three integers and touches no memory of ours.
    let stolen = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), fd, 0) })?;
    // SAFETY: the call succeeded, so this is a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(RawFd::try_from(stolen).unwrap()) })
}

/// Sends bytes together with a descriptor.
pub fn send_with_descriptor(to: &UnixStream, bytes: &[u8], descriptor: BorrowedFd<'_>) -> nix::Result<usize> {
    let descriptors = [descriptor.as_raw_fd()];
    let rights = ControlMessage::ScmRights(&descriptors);
    sendmsg::<()>(to.as_raw_fd(), &[IoSlice::new(bytes)], &[rights], MsgFlags::empty(), None)
}

/// Receives the descriptor that comes with some bytes.
pub fn receive_descriptor(from: &UnixStream) -> OwnedFd {
    let mut space = nix::cmsg_space!([RawFd; 1]);
    let mut byte = [0; 1];
    let mut slices = [IoSliceMut::new(&mut byte)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(from.as_raw_fd(), &mut slices, Some(&mut space), flags).unwrap();
    for control in message.cmsgs().unwrap() {
        if let ControlMessageOwned::ScmRights(descriptors) = control {
            // SAFETY: the kernel has just opened it for us, and nobody else knows it.
            return unsafe { OwnedFd::from_raw_fd(descriptors[0]) };
        }
    }
    panic!("the message carries a descriptor");
}

/// Sends bytes in the name of another process. Needs CAP_SYS_ADMIN over the pid namespace.
pub fn send_as(to: &UnixStream, bytes: &[u8], pid: i32) -> nix::Result<usize> {
    let forged = libc::ucred { pid, uid: nix::unistd::geteuid().as_raw(), gid: nix::unistd::getegid().as_raw() };
    let forged = UnixCredentials::from(forged);
    let credentials = ControlMessage::ScmCredentials(&forged);
    sendmsg::<()>(to.as_raw_fd(), &[IoSlice::new(bytes)], &[credentials], MsgFlags::empty(), None)
}

/// Whether the next program gets this descriptor.
pub fn keep_over_exec(fd: impl AsFd, keep: bool) {
    let flags = if keep { FdFlag::empty() } else { FdFlag::FD_CLOEXEC };
    fcntl(fd, FcntlArg::F_SETFD(flags)).unwrap();
}

/// Sends PINGs without reading the answers until the server does not read any more either: its own answers fill the
/// connection. Whether it came to that is not certain: a server may have been slow only.
pub fn stall(server: &UnixStream, pings: &[u8]) {
    // How long nothing may move before the server counts as stalled; an attacker who guesses wrong tries again.
    const STILL: u16 = 200;
    setsockopt(server, sockopt::SndBuf, &0).unwrap();
    server.set_nonblocking(true).unwrap();
    loop {
        match nix::unistd::write(server, pings) {
            Ok(_) => {}
            Err(Errno::EAGAIN) => {
                let mut fds = [PollFd::new(server.as_fd(), PollFlags::POLLOUT)];
                if poll(&mut fds, STILL).unwrap() == 0 {
                    break;
                }
            }
            Err(error) => panic!("the server takes PINGs: {error}"),
        }
    }
    server.set_nonblocking(false).unwrap();
    setsockopt(server, sockopt::SndBuf, &(1 << 20)).unwrap();
}

/// Waits until every holder of the other end has closed it.
pub fn wait_for_end(pipe: impl Into<OwnedFd>) {
    let mut rest = Vec::new();
    File::from(pipe.into()).read_to_end(&mut rest).unwrap();
}

/// Lets nobody outlive a test that went wrong; also holds for the next program of this process.
pub fn die_in(limit: Duration) {
    nix::unistd::alarm::set(u32::try_from(limit.as_secs()).unwrap());
}
