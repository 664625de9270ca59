//! Control groups: directories held by a descriptor, and of version 2 their emptiness as an event.
//!
//! A directory is named by its path and by its inode number, which the kernel calls the id of the group: one that is
//! made again at the same path has another. Directories of version 2 cannot be renamed.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use nix::fcntl::{OFlag, open, openat};
use nix::libc;
use nix::sys::stat::{Mode, fstat};
use nix::sys::statfs::{CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC, fstatfs};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The id of the root of the whole hierarchy, which every process is in that nobody has put elsewhere.
pub const ROOT_ID: u64 = 1;

/// Where systemd mounts the hierarchy: alone, and beside version 1.
const MOUNT_POINTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
/// Where systemd mounts its own hierarchy of version 1.
const SYSTEMD_MOUNT_POINT: &str = "/sys/fs/cgroup/systemd";
const EVENTS: &str = "cgroup.events";
/// Far longer than the file, which has two short lines.
const EVENTS_LIMIT: usize = 512;

/// A directory of the hierarchy. It stays the same one, also when another is made at its path.
#[derive(Debug)]
pub struct Group(OwnedFd);

/// Where the hierarchy is mounted; `None` where it is not.
pub fn mount_point() -> Option<PathBuf> {
    let is_mounted =
        |path: &str| nix::sys::statfs::statfs(path).is_ok_and(|found| found.filesystem_type() == CGROUP2_SUPER_MAGIC);
    MOUNT_POINTS.iter().find(|path| is_mounted(path)).map(PathBuf::from)
}

/// Whether systemd's own hierarchy of version 1 is there as well, as on hosts that use version 1.
pub fn has_two_hierarchies() -> bool {
    std::path::Path::new(SYSTEMD_MOUNT_POINT).is_dir()
}

impl Group {
    /// The root of the hierarchy, as it is mounted here; `None` where version 2 is not mounted.
    pub fn root() -> io::Result<Option<Self>> {
        for path in MOUNT_POINTS {
            let root = match open(path, directory(), Mode::empty()) {
                Ok(root) => Self(root),
                Err(nix::Error::ENOENT | nix::Error::ENOTDIR) => continue,
                Err(error) => return Err(error.into()),
            };
            if fstatfs(&root.0)?.filesystem_type() == CGROUP2_SUPER_MAGIC {
                return Ok(Some(root));
            }
        }
        Ok(None)
    }

    /// The root of systemd's own hierarchy of version 1 (`name=systemd`), as it is mounted here; `None` on hosts that use
    /// version 2 alone.
    pub fn systemd_root() -> io::Result<Option<Self>> {
        let root = match open(SYSTEMD_MOUNT_POINT, directory(), Mode::empty()) {
            Ok(root) => Self(root),
            Err(nix::Error::ENOENT | nix::Error::ENOTDIR) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        Ok((fstatfs(&root.0)?.filesystem_type() == CGROUP_SUPER_MAGIC).then_some(root))
    }

    /// The directory at `path` below this one, a path as in `/proc/PID/cgroup`: a leading slash stands for this
    /// directory. A component `..` is refused.
    pub fn below(&self, path: &str) -> io::Result<Self> {
        let mut relative = String::with_capacity(path.len());
        for component in path.split('/').filter(|component| !matches!(*component, "" | ".")) {
            if component == ".." {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            relative.push_str(if relative.is_empty() { "" } else { "/" });
            relative.push_str(component);
        }
        let relative = if relative.is_empty() { "." } else { &relative };
        Ok(Self(openat(&self.0, relative, directory(), Mode::empty())?))
    }

    /// Its inode number: the id by which the kernel knows it.
    pub fn id(&self) -> io::Result<u64> {
        Ok(fstat(&self.0)?.st_ino)
    }

    /// Its user and mode: who may write to a directory names others in it.
    pub fn owner_and_mode(&self) -> io::Result<(u32, u32)> {
        let found = fstat(&self.0)?;
        Ok((found.st_uid, found.st_mode & 0o7777))
    }

    /// Watches whether there are processes in it or below. The root of the whole hierarchy has no such file
    /// (`ENOENT`). Must be called inside a runtime.
    pub fn watch(&self) -> io::Result<WatchedGroup> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let events = EventsFile(File::from(openat(&self.0, EVENTS, flags, Mode::empty())?));
        // SAFETY: the descriptor is owned by `events`, which hands it out only to be borrowed: it is open and the same
        // for as long as the registration owns it.
        Ok(WatchedGroup(unsafe { AsyncFd::register_with_interest(events, Interest::PRIORITY) }?))
    }
}

impl AsFd for Group {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn directory() -> OFlag {
    OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC
}

/// The `cgroup.events` file of a group (cgroup-v2, "Core Interface Files").
#[derive(Debug)]
struct EventsFile(File);

impl AsRawFd for EventsFile {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// A group whose emptiness can be waited for by any number of tasks.
#[derive(Debug)]
pub struct WatchedGroup(AsyncFd<EventsFile>);

impl WatchedGroup {
    /// Whether there is a process in the group or below it now.
    pub fn population(&self) -> io::Result<Population> {
        let mut content = [0; EVENTS_LIMIT];
        match self.0.get_ref().0.read_at(&mut content, 0) {
            Ok(count) => parse_population(&content[..count]).ok_or_else(|| io::ErrorKind::InvalidData.into()),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(Population::Removed),
            Err(error) => Err(error),
        }
    }

    /// Returns when no process is left in the group and below, and at once if that is so; also when it cannot be told
    /// any more.
    pub async fn emptied(&self) {
        // Read before waiting, and clear before reading: what changes in between wakes us again.
        while self.population().is_ok_and(|population| population == Population::Some) && self.changed().await {}
    }

    /// Returns when there are processes in the group or below. In one that was removed there never are.
    pub async fn populated(&self) {
        while self.population().is_ok_and(|population| population != Population::Some) && self.changed().await {}
    }

    /// Returns when there may be another answer; `false` when nothing is heard any more, for the runtime shuts down.
    async fn changed(&self) -> bool {
        let ready = self.0.ready(Interest::PRIORITY).await;
        ready.map(|mut ready| ready.clear_ready()).is_ok()
    }
}

/// Whether a group has processes, in it or below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Population {
    /// At least one.
    Some,
    /// None now.
    None,
    /// None ever again: the directory was removed.
    Removed,
}

/// The value of `populated`.
fn parse_population(content: &[u8]) -> Option<Population> {
    let value = content.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"populated "))?;
    match value {
        b"0" => Some(Population::None),
        b"1" => Some(Population::Some),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_zero_and_one_say_whether_a_group_has_processes() {
        assert_eq!(parse_population(b"populated 1\nfrozen 0\n"), Some(Population::Some));
        assert_eq!(parse_population(b"frozen 0\npopulated 0\n"), Some(Population::None));
        for text in ["", "populated", "populated 2\n", "frozen 1\n", "xpopulated 1\n"] {
            assert_eq!(parse_population(text.as_bytes()), None, "{text:?}");
        }
    }

    #[test]
    fn a_path_leads_downwards_only() {
        let Some(root) = Group::root().expect("readable") else { return };
        assert_eq!(root.below("/").expect("itself").id().expect("an id"), root.id().expect("an id"));
        for path in ["..", "/..", "/../x", "/a/../b"] {
            assert_eq!(root.below(path).expect_err("refused").kind(), io::ErrorKind::InvalidInput, "{path}");
        }
        assert_eq!(root.below("/no/such/group").expect_err("absent").kind(), io::ErrorKind::NotFound);
    }
}
