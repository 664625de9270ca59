//! The socket of a container engine.
//!
//! Whoever answers at the socket says what containers are. So it is asked only where nobody but root can have put it:
//! the socket and every directory and link on the way to it belong to root, in no directory may others put something
//! else in its place, and the process that listens is root's. All of that is looked at each time, and what is connected
//! to is the socket that was looked at, whatever its path leads to by then.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};
use thiserror::Error;
use tokio::net::UnixStream;

use crate::sys::socket::peer_credentials;

/// More links than this lead nowhere.
const MAX_LINKS: usize = 16;
/// A directory in which only the owner of a thing may remove or rename it.
const STICKY: u32 = 0o1000;
const ROOT: u32 = 0;

/// Why an engine is not connected to.
#[derive(Debug, Error)]
pub(super) enum SocketError {
    /// There is none at the path, or a part of the path is missing.
    #[error("there is no socket at `{path}`: is the engine running?")]
    Absent {
        /// The part that is missing.
        path: PathBuf,
    },
    /// We may not open it.
    #[error(
        "the agent may not open `{path}`: give it the group of the socket, as `SupplementaryGroups=` in a drop-in of its unit \
         does (see containers.conf)"
    )]
    Forbidden {
        /// The socket, or the directory that may not be entered.
        path: PathBuf,
    },
    /// Nobody listens, or its queue is full.
    #[error("nobody answers at `{path}`: is the engine running?")]
    Refused {
        /// The socket.
        path: PathBuf,
        /// What the kernel answered.
        #[source]
        source: io::Error,
    },
    /// Something on the way belongs to somebody else.
    #[error(
        "`{path}` belongs to user {owner}, who could answer in the place of the engine: only what root owns is asked"
    )]
    Owner {
        /// What it is.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
    },
    /// Others may write to a directory on the way.
    #[error("others than root may write to `{path}`, and could put a socket of their own there")]
    Writable {
        /// The directory.
        path: PathBuf,
    },
    /// It is something else.
    #[error("`{path}` is no socket")]
    NotSocket {
        /// The path.
        path: PathBuf,
    },
    /// Its links lead nowhere.
    #[error("`{path}` leads over more than {MAX_LINKS} links")]
    Links {
        /// The path.
        path: PathBuf,
    },
    /// The process that listens is not root's.
    #[error("at `{path}` a process of user {listener} listens: only one of root's is asked")]
    Listener {
        /// The socket.
        path: PathBuf,
        /// Whose process it is.
        listener: u32,
    },
    /// The kernel does not let us look.
    #[error("`{path}` cannot be looked at")]
    Look {
        /// The path.
        path: PathBuf,
        /// What the kernel answered.
        #[source]
        source: io::Error,
    },
}

/// Where an engine is asked.
#[derive(Clone, Debug)]
pub(super) struct EngineSocket {
    path: PathBuf,
    /// Whom we believe beside root: nobody, outside tests.
    also: u32,
}

impl EngineSocket {
    /// The one at this absolute path, as far as it is root's.
    pub fn of_root(path: &Path) -> Self {
        Self { path: path.to_owned(), also: ROOT }
    }

    /// The one of a test.
    #[cfg(test)]
    pub fn of_user(path: &Path, uid: u32) -> Self {
        Self { path: path.to_owned(), also: uid }
    }

    /// The path as it was configured.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A connection to a process of root's.
    pub async fn connect(&self) -> Result<UnixStream, SocketError> {
        let socket = self.find()?;
        let stream = UnixStream::connect(format!("/proc/self/fd/{}", socket.as_raw_fd()));
        let stream = stream.await.map_err(|source| self.not_connected(source))?;
        self.expect_listener(peer_credentials(&stream).map(|peer| peer.uid))?;
        Ok(stream)
    }

    /// The same without waiting, for a look at how things are.
    pub fn try_connect(&self) -> Result<(), SocketError> {
        let socket = self.find()?;
        let stream = std::os::unix::net::UnixStream::connect(format!("/proc/self/fd/{}", socket.as_raw_fd()));
        let stream = stream.map_err(|source| self.not_connected(source))?;
        self.expect_listener(peer_credentials(&stream).map(|peer| peer.uid))
    }

    fn not_connected(&self, source: io::Error) -> SocketError {
        let path = self.path.clone();
        match source.kind() {
            io::ErrorKind::PermissionDenied => SocketError::Forbidden { path },
            _ => SocketError::Refused { path, source },
        }
    }

    fn expect_listener(&self, uid: io::Result<u32>) -> Result<(), SocketError> {
        let path = self.path.clone();
        match uid {
            Ok(uid) if self.is_trusted(uid) => Ok(()),
            Ok(listener) => Err(SocketError::Listener { path, listener }),
            Err(source) => Err(SocketError::Look { path, source }),
        }
    }

    fn is_trusted(&self, uid: u32) -> bool {
        uid == ROOT || uid == self.also
    }

    /// The socket itself, held, with nothing on the way to it that others than root could have put there.
    fn find(&self) -> Result<OwnedFd, SocketError> {
        let mut rest: VecDeque<OsString> = names(self.path.as_os_str());
        let mut walked = PathBuf::from("/");
        let mut directory = self.open_root()?;
        let mut links = 0;
        while let Some(name) = rest.pop_front() {
            let path = walked.join(&name);
            let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let found = openat(&directory, name.as_os_str(), flags, Mode::empty());
            let found = found.map_err(|error| unopened(path.clone(), error))?;
            let stat = self.expect_owner(&found, &path)?;
            match SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) {
                SFlag::S_IFDIR => {
                    expect_closed(&stat, &path)?;
                    (directory, walked) = (found, path);
                }
                SFlag::S_IFLNK => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(SocketError::Links { path: self.path.clone() });
                    }
                    let target = readlinkat(&found, "").map_err(|error| unopened(path, error))?;
                    for name in names(&target).into_iter().rev() {
                        rest.push_front(name);
                    }
                    if target.as_bytes().starts_with(b"/") {
                        (directory, walked) = (self.open_root()?, PathBuf::from("/"));
                    }
                }
                SFlag::S_IFSOCK if rest.is_empty() => return Ok(found),
                _ => return Err(SocketError::NotSocket { path }),
            }
        }
        Err(SocketError::NotSocket { path: self.path.clone() })
    }

    fn open_root(&self) -> Result<OwnedFd, SocketError> {
        let path = PathBuf::from("/");
        let root = open("/", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty());
        let root = root.map_err(|error| unopened(path.clone(), error))?;
        let stat = self.expect_owner(&root, &path)?;
        expect_closed(&stat, &path)?;
        Ok(root)
    }

    fn expect_owner(&self, found: &OwnedFd, path: &Path) -> Result<FileStat, SocketError> {
        let stat = fstat(found).map_err(|error| unopened(path.to_owned(), error))?;
        match self.is_trusted(stat.st_uid) {
            true => Ok(stat),
            false => Err(SocketError::Owner { path: path.to_owned(), owner: stat.st_uid }),
        }
    }
}

/// Whether others may replace what is in a directory.
fn expect_closed(stat: &FileStat, path: &Path) -> Result<(), SocketError> {
    let by_group = stat.st_mode & 0o020 != 0 && stat.st_gid != ROOT;
    let by_others = stat.st_mode & 0o002 != 0;
    // What is taken from a sticky directory belongs to root, and so nobody else can take it away.
    match (by_group || by_others) && stat.st_mode & STICKY == 0 {
        true => Err(SocketError::Writable { path: path.to_owned() }),
        false => Ok(()),
    }
}

fn unopened(path: PathBuf, error: Errno) -> SocketError {
    match error {
        Errno::ENOENT => SocketError::Absent { path },
        Errno::EACCES => SocketError::Forbidden { path },
        error => SocketError::Look { path, source: error.into() },
    }
}

/// The names in a path.
fn names(path: &OsStr) -> VecDeque<OsString> {
    let names = path.as_bytes().split(|byte| *byte == b'/').filter(|name| !matches!(*name, b"" | b"."));
    names.map(|name| OsStr::from_bytes(name).to_owned()).collect()
}

#[cfg(test)]
mod tests;
