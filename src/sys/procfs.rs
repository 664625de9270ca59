//! `/proc/PID` read through one directory handle.
//!
//! The handle refers to the process that had the number when it was opened. Once that process is gone every read
//! fails, also when the number was given to another one: nothing read here can be about somebody else.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat, openat2, readlinkat};
use nix::sys::stat::{FileStat, Mode, fstat};

/// The identity of a file: which inode on which device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileId {
    /// The device number.
    pub dev: u64,
    /// The inode number.
    pub ino: u64,
}

impl From<&FileStat> for FileId {
    fn from(stat: &FileStat) -> Self {
        Self { dev: stat.st_dev, ino: stat.st_ino }
    }
}

/// An open `/proc/PID`.
#[derive(Debug)]
pub struct ProcDir(OwnedFd);

impl ProcDir {
    /// Opens the directory of the process that has `pid` now. The caller checks afterwards, through a pidfd it held
    /// before, that the number still belonged to the process it meant.
    pub fn open(pid: i32) -> io::Result<Self> {
        let flags = OFlag::O_DIRECTORY | OFlag::O_PATH | OFlag::O_CLOEXEC;
        Ok(Self(open(format!("/proc/{pid}").as_str(), flags, Mode::empty())?))
    }

    /// Reads at most `limit` bytes of a file below the directory; a longer one is cut.
    pub fn read(&self, name: &str, limit: u64) -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        self.open_file(name)?.take(limit).read_to_end(&mut content)?;
        Ok(content)
    }

    /// Opens a file below the directory for reading; for `exe` that is the program itself, deleted or not.
    pub fn open_file(&self, name: &str) -> io::Result<File> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        Ok(File::from(openat(&self.0, name, flags, Mode::empty())?))
    }

    /// Opens what a name below the directory refers to without being able to read it; links are followed.
    pub fn open_handle(&self, name: &str) -> io::Result<OwnedFd> {
        Ok(openat(&self.0, name, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?)
    }

    /// Which file a name below the directory refers to; links such as `exe` and `ns/pid` are followed.
    pub fn file_id(&self, name: &str) -> io::Result<FileId> {
        Ok(FileId::from(&nix::sys::stat::fstatat(&self.0, name, nix::fcntl::AtFlags::empty())?))
    }

    /// The user to whom the kernel gives a file below the directory: root for a process that is not dumpable.
    pub fn owner_of(&self, name: &str) -> io::Result<u32> {
        Ok(nix::sys::stat::fstatat(&self.0, name, nix::fcntl::AtFlags::empty())?.st_uid)
    }

    /// The text of a link below the directory.
    pub fn read_link(&self, name: &str) -> io::Result<PathBuf> {
        Ok(PathBuf::from(OsString::from_vec(readlinkat(&self.0, name)?.into_vec())))
    }
}

impl AsFd for ProcDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Opens a path for reading as a process with the root directory `root` would (`openat2`, Linux 5.6): neither `..` nor a
/// link leads out of it.
pub fn open_in(root: impl AsFd, path: &OsStr) -> io::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    Ok(openat2(root, path, OpenHow::new().flags(flags).resolve(resolve))?)
}

/// The identity of an open file.
pub fn file_id(file: impl AsFd) -> io::Result<FileId> {
    Ok(FileId::from(&fstat(file)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_through_a_handle_fail_once_the_process_is_gone() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("sleep starts");
        let dir = ProcDir::open(child.id().cast_signed()).expect("it lives");
        assert!(dir.read("status", 4096).expect("readable").starts_with(b"Name:"));
        child.kill().expect("killed");
        child.wait().expect("reaped");
        assert_eq!(dir.read("status", 4096).expect_err("gone").raw_os_error(), Some(nix::libc::ESRCH));
    }

    #[test]
    fn the_executable_is_the_file_that_runs() {
        let dir = ProcDir::open(std::process::id().cast_signed()).expect("it is us");
        let by_path = std::env::current_exe().and_then(File::open).and_then(file_id).expect("our file");
        assert_eq!(dir.file_id("exe").expect("readable"), by_path);
    }
}
