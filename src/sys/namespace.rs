//! Who owns the namespaces of a process.
//!
//! Whoever has CAP_SYS_ADMIN over a pid namespace can send messages in the name of every process in it
//! (`SCM_CREDENTIALS`). So what a message says of its sender is evidence only when nobody below us has that power.
//!
//! In a user namespace a process may have any user id that is mapped there, and its owner may have been given many.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;

use super::procfs::{FileId, file_id};

/// How deep the kernel nests user namespaces, and one more.
const MAX_DEPTH: usize = 34;

/// Our own namespaces, for comparison.
#[derive(Clone, Copy, Debug)]
pub struct Own {
    user: FileId,
    pid: FileId,
    pid_is_ours: bool,
}

impl Own {
    /// Reads them from `/proc/self/ns`.
    pub fn read() -> io::Result<Self> {
        let user = file_id(File::open("/proc/self/ns/user")?)?;
        let pid_handle = File::open("/proc/self/ns/pid")?;
        let pid_is_ours = match owner(&pid_handle) {
            Ok(owner) => owner == user,
            // Nobody below us owns it, since we could see them: an ancestor of our user namespace does, who is above us.
            Err(error) => error.raw_os_error() == Some(libc::EPERM),
        };
        Ok(Self { user, pid: file_id(&pid_handle)?, pid_is_ours })
    }

    /// Whether nobody below our own user namespace has power over this pid namespace.
    pub fn controls(&self, pid_namespace: impl AsFd) -> io::Result<bool> {
        if file_id(&pid_namespace)? == self.pid {
            return Ok(self.pid_is_ours);
        }
        match owner(pid_namespace) {
            Ok(owner) => Ok(owner == self.user),
            // It is neither ours nor inside ours, and we are not in it: somebody else's.
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The same question about a process in our own pid namespace, when only that is known of it.
    pub fn controls_its_own_pid_namespace(&self) -> bool {
        self.pid_is_ours
    }

    /// The user namespace right below ours that `user_namespace` is, or is in; none if it is ours, or not below it.
    pub fn topmost_below(&self, user_namespace: OwnedFd) -> io::Result<Option<Below>> {
        if file_id(&user_namespace)? == self.user {
            return Ok(None);
        }
        let mut namespace = user_namespace;
        for _ in 0..MAX_DEPTH {
            let parent = match parent(&namespace) {
                Ok(parent) => parent,
                Err(error) if error.raw_os_error() == Some(libc::EPERM) => return Ok(None),
                Err(error) => return Err(error),
            };
            if file_id(&parent)? == self.user {
                return Below::of(&namespace).map(Some);
            }
            namespace = parent;
        }
        Err(Errno::ELOOP.into())
    }
}

/// A user namespace whose parent is ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Below {
    /// Who made it, in our user namespace.
    pub owner: u32,
    /// The number the kernel gave it. Such numbers begin at 0xF0000000, where no user ids are given out.
    pub id: u32,
}

impl Below {
    fn of(namespace: &OwnedFd) -> io::Result<Self> {
        let mut owner: libc::uid_t = u32::MAX;
        // SAFETY: NS_GET_OWNER_UID writes one `uid_t` to where its argument points, which is ours.
        Errno::result(unsafe { libc::ioctl(namespace.as_raw_fd(), libc::NS_GET_OWNER_UID, &raw mut owner) })?;
        let id = u32::try_from(file_id(namespace)?.ino).map_err(|_| io::Error::from(Errno::ERANGE))?;
        Ok(Self { owner, id })
    }
}

/// The parent of a user namespace; `EPERM` when that is not ours and not inside ours.
fn parent(user_namespace: &OwnedFd) -> io::Result<OwnedFd> {
    // SAFETY: NS_GET_PARENT takes no argument and returns a descriptor or an error.
    let fd = Errno::result(unsafe { libc::ioctl(user_namespace.as_raw_fd(), libc::NS_GET_PARENT) })?;
    // SAFETY: the call succeeded, so `fd` is a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The user namespace that owns a namespace; `EPERM` when it is not ours and not inside ours.
fn owner(namespace: impl AsFd) -> io::Result<FileId> {
    // SAFETY: NS_GET_USERNS takes no argument and returns a descriptor or an error.
    let fd = Errno::result(unsafe { libc::ioctl(namespace.as_fd().as_raw_fd(), libc::NS_GET_USERNS) })?;
    // SAFETY: the call succeeded, so `fd` is a new descriptor that nobody else owns.
    file_id(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_user_namespace_is_not_below_itself() {
        let own = Own::read().expect("readable");
        let namespace = File::open("/proc/self/ns/user").expect("readable").into();
        assert_eq!(own.topmost_below(namespace).expect("known"), None);
    }

    #[test]
    fn our_own_pid_namespace_is_under_our_control() {
        let own = Own::read().expect("readable");
        assert!(own.controls(File::open("/proc/self/ns/pid").expect("readable")).expect("known"));
    }
}
