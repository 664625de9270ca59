//! A handle of a process that no later process can be mistaken for.
//!
//! The handle pins the kernel's record of the process, not its number: when the process is gone the handle says so,
//! whoever has the number by then. It says nothing about `execve`: the process stays the same, its program does not.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt};
use nix::sys::stat::fstat;
use nix::sys::statfs::fstatfs;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The magic number of pidfs, whose inode numbers are never used twice in one boot (Linux 6.9).
const PIDFS_MAGIC: i64 = 0x5049_4446;

/// A pidfd: one process, for as long as the handle is held.
#[derive(Debug)]
pub struct PidFd(OwnedFd);

/// What the kernel says about the process of a [`PidFd`] in one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Info {
    /// The process number in our pid namespace.
    pub pid: i32,
    /// The number of its parent in our pid namespace; 0 where the parent is not in it.
    pub parent: i32,
    /// The effective user id, in our user namespace.
    pub uid: u32,
    /// The effective group id, in our user namespace.
    pub gid: u32,
    /// The inode number of its cgroup v2 directory; the root's where only v1 controllers are used.
    pub cgroup_id: Option<u64>,
}

impl PidFd {
    /// The process that has `pid` now. Whoever got the number from elsewhere checks afterwards that it still meant
    /// that process.
    pub fn open(pid: i32) -> io::Result<Self> {
        // SAFETY: pidfd_open takes two integers and touches no memory of ours.
        let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
        let fd = RawFd::try_from(fd).map_err(|_| io::Error::from(Errno::EBADF))?;
        // SAFETY: the call succeeded, so `fd` is a new descriptor that nobody else owns.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// The process that connected this Unix socket, also when it is gone already (`SO_PEERPIDFD`, Linux 6.5).
    pub fn of_peer(socket: impl AsFd) -> io::Result<Self> {
        Ok(Self(getsockopt(&socket, sockopt::PeerPidfd)?))
    }

    /// Whether the process has not exited. A zombie has.
    pub fn is_alive(&self) -> bool {
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        // Anything but "nothing happened" counts as gone: not knowing is not a yes.
        loop {
            match poll(&mut fds, PollTimeout::ZERO) {
                Ok(events) => return events == 0,
                Err(Errno::EINTR) => {}
                Err(_) => return false,
            }
        }
    }

    /// The number that no other process of this boot has or will have; `None` before Linux 6.9.
    pub fn unique_inode(&self) -> io::Result<Option<u64>> {
        if fstatfs(&self.0)?.filesystem_type().0 as i64 != PIDFS_MAGIC {
            return Ok(None);
        }
        self.inode().map(Some)
    }

    /// The inode number of the handle, which is [unique](Self::unique_inode) only on pidfs.
    pub fn inode(&self) -> io::Result<u64> {
        Ok(fstat(&self.0)?.st_ino)
    }

    /// Number, credentials and cgroup of the process in one call (`PIDFD_GET_INFO`, Linux 6.13).
    ///
    /// `ESRCH` once the process was reaped; a zombie still has all of them.
    pub fn info(&self) -> io::Result<Info> {
        // SAFETY: all fields are integers, for which zero is a value.
        let mut raw: libc::pidfd_info = unsafe { std::mem::zeroed() };
        let needed = u64::from(libc::PIDFD_INFO_PID | libc::PIDFD_INFO_CREDS);
        raw.mask = needed | u64::from(libc::PIDFD_INFO_CGROUPID);
        // SAFETY: the request number carries the size of `pidfd_info`, and the kernel writes no more than that.
        Errno::result(unsafe { libc::ioctl(self.0.as_raw_fd(), libc::PIDFD_GET_INFO, &mut raw) })?;
        if raw.mask & needed != needed {
            return Err(Errno::ESRCH.into());
        }
        let has_cgroup = raw.mask & u64::from(libc::PIDFD_INFO_CGROUPID) != 0;
        Ok(Info {
            pid: raw.tgid.cast_signed(),
            parent: raw.ppid.cast_signed(),
            uid: raw.euid,
            gid: raw.egid,
            cgroup_id: has_cgroup.then_some(raw.cgroupid),
        })
    }

    /// Sends a signal to the process, and to no later one with its number.
    pub fn signal(&self, signal: nix::sys::signal::Signal) -> io::Result<()> {
        let info = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: a null info is allowed, and the other arguments are integers; the call touches no memory of ours.
        Errno::result(unsafe {
            libc::syscall(libc::SYS_pidfd_send_signal, self.0.as_raw_fd(), signal as libc::c_int, info, 0)
        })?;
        Ok(())
    }

    /// The pid namespace the process lives in (`PIDFD_GET_PID_NAMESPACE`, Linux 6.11); `ESRCH` once it is gone.
    pub fn pid_namespace(&self) -> io::Result<OwnedFd> {
        self.namespace(libc::PIDFD_GET_PID_NAMESPACE)
    }

    /// The user namespace the process lives in (`PIDFD_GET_USER_NAMESPACE`, Linux 6.11); `ESRCH` once it is gone.
    pub fn user_namespace(&self) -> io::Result<OwnedFd> {
        self.namespace(libc::PIDFD_GET_USER_NAMESPACE)
    }

    fn namespace(&self, request: libc::Ioctl) -> io::Result<OwnedFd> {
        // SAFETY: these requests take no argument; the third one must be zero and is ignored otherwise.
        let fd = Errno::result(unsafe { libc::ioctl(self.0.as_raw_fd(), request, 0) })?;
        // SAFETY: the call succeeded, so `fd` is a new descriptor that nobody else owns.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

/// A [`PidFd`] whose exit can be waited for by any number of tasks.
#[derive(Debug)]
pub struct WatchedPidFd(AsyncFd<PidFd>);

impl WatchedPidFd {
    /// Registers the handle with the runtime it is called in.
    pub fn new(pidfd: PidFd) -> io::Result<Self> {
        // SAFETY: the descriptor is owned by `pidfd`, which hands it out only to be borrowed: it is open and the same
        // for as long as the registration owns it.
        Ok(Self(unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }?))
    }

    /// The handle.
    pub fn pidfd(&self) -> &PidFd {
        self.0.get_ref()
    }

    /// Returns when the process has exited, and at once if it had; also when the runtime shuts down.
    pub async fn exited(&self) {
        while let Ok(mut ready) = self.0.readable().await {
            if !self.pidfd().is_alive() {
                return;
            }
            ready.clear_ready();
        }
    }
}

impl AsFd for PidFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for PidFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_handle_says_that_its_process_is_gone_before_it_is_reaped_and_after() {
        let mut child = Command::new("sleep").arg("60").spawn().expect("sleep starts");
        let pidfd = PidFd::open(child.id().cast_signed()).expect("it lives");
        assert!(pidfd.is_alive());
        child.kill().expect("killed");
        let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::NONE).expect("it exits");
        assert!(!pidfd.is_alive());
        child.wait().expect("reaped");
        assert!(!pidfd.is_alive());
    }

    #[test]
    fn two_handles_of_one_process_have_one_inode_and_another_process_has_another() {
        let pid = std::process::id().cast_signed();
        let (a, b) = (PidFd::open(pid).expect("us"), PidFd::open(pid).expect("us"));
        let Some(inode) = a.unique_inode().expect("readable") else { return };
        assert_eq!(b.unique_inode().expect("readable"), Some(inode));
        let parent = PidFd::open(nix::unistd::getppid().as_raw()).expect("our parent");
        assert_ne!(parent.unique_inode().expect("readable"), Some(inode));
    }

    #[test]
    fn the_info_of_a_handle_is_about_its_process() {
        let pid = std::process::id().cast_signed();
        let pidfd = PidFd::open(pid).expect("us");
        if !crate::sys::Kernel::probe().pidfd_info {
            return;
        }
        let info = pidfd.info().expect("readable");
        assert_eq!((info.pid, info.uid), (pid, nix::unistd::geteuid().as_raw()));
        assert_eq!(info.parent, nix::unistd::getppid().as_raw());
        assert!(info.cgroup_id.is_some());
    }
}
