//! The digest of a whole directory.
//!
//! SHA-256 over one record for each file, directory and symbolic link below it, in the order of their paths as bytes:
//!
//! | what | record |
//! |---|---|
//! | file | `f MODE SHA256 PATH` and a zero byte |
//! | directory | `d MODE PATH` and a zero byte |
//! | symbolic link | `l PATH`, a zero byte, its target, a zero byte |
//!
//! MODE is the permissions in four octal digits, SHA256 the digest of the content in lower-case hex digits, PATH relative
//! to the directory, without a leading slash. Owners and times do not count. Anything else in it, and another file system
//! mounted in it, is an error.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, Ordering};

use aws_lc_rs::digest::{Context, SHA256};
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstatat};
use nix::sys::statfs::{FUSE_SUPER_MAGIC, fstatfs};
use thiserror::Error;

use crate::base::entropy::hex;

/// How deep directories may be nested: each level holds a descriptor.
const MAX_DEPTH: usize = 64;
/// The longest path below the directory, in bytes.
const MAX_PATH_BYTES: usize = 4096;
const BUFFER_BYTES: usize = 256 * 1024;

/// How much is looked at, and until when.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits<'a> {
    /// Files, directories and links.
    pub entries: usize,
    /// Bytes in all files.
    pub bytes: u64,
    /// Set when nobody waits any more.
    pub cancelled: &'a AtomicBool,
}

/// Why a directory has no digest.
#[derive(Debug, Error)]
pub(super) enum DirectoryError {
    /// Something in it cannot be read.
    #[error("`{path}` in it cannot be read: {source}")]
    Read {
        path: String,
        #[source]
        source: io::Error,
    },
    /// It has more in it than is looked at.
    #[error("it has more than {0} files, directories and links")]
    Entries(usize),
    /// Its files are larger than what is looked at.
    #[error("its files have more than {0} bytes")]
    Bytes(u64),
    /// Its directories are nested too deep, or a path is too long.
    #[error("`{0}` in it is nested too deep")]
    Depth(String),
    /// A socket, a pipe, a device, or something on another file system.
    #[error("`{0}` in it is neither a file nor a directory nor a link of the same file system")]
    Kind(String),
    /// Somebody wrote to it meanwhile.
    #[error("`{0}` in it was changed while it was measured; try again")]
    Changed(String),
    /// Each reader can be shown another content.
    #[error("it is on a FUSE file system, which can show each reader another content")]
    Fuse,
    /// Nobody waits any more.
    #[error("it took too long")]
    Cancelled,
}

/// The digest of `directory`, in lower-case hex digits.
pub(super) fn directory(directory: OwnedFd, limits: Limits<'_>) -> Result<String, DirectoryError> {
    let at_root = |error: Errno| read_error(b".", error);
    if fstatfs(&directory).map_err(at_root)?.filesystem_type() == FUSE_SUPER_MAGIC {
        return Err(DirectoryError::Fuse);
    }
    let dev = nix::sys::stat::fstat(&directory).map_err(at_root)?.st_dev;
    let mut walk = Walk { limits, dev, bytes_left: limits.bytes, records: Vec::new(), buffer: vec![0; BUFFER_BYTES] };
    walk.enter(directory, &[], 0)?;
    walk.records.sort();
    let mut context = Context::new(&SHA256);
    for (_, record) in &walk.records {
        context.update(record);
    }
    Ok(hex(context.finish().as_ref()))
}

struct Walk<'a> {
    limits: Limits<'a>,
    dev: u64,
    bytes_left: u64,
    /// Path and record.
    records: Vec<(Vec<u8>, Vec<u8>)>,
    buffer: Vec<u8>,
}

impl Walk<'_> {
    fn enter(&mut self, directory: OwnedFd, path: &[u8], depth: usize) -> Result<(), DirectoryError> {
        if depth > MAX_DEPTH {
            return Err(DirectoryError::Depth(shown(path)));
        }
        let failed = |error: Errno| read_error(path, error);
        let stamp = |directory: &OwnedFd| nix::sys::stat::fstat(directory).map(|stat| times(&stat)).map_err(failed);
        let before = stamp(&directory)?;
        let mut listing =
            Dir::openat(&directory, ".", OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
                .map_err(failed)?;
        for entry in listing.iter() {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            if self.limits.cancelled.load(Ordering::Relaxed) {
                return Err(DirectoryError::Cancelled);
            }
            let below = [path, if path.is_empty() { b"" } else { b"/" }, name].concat();
            if below.len() > MAX_PATH_BYTES {
                return Err(DirectoryError::Depth(shown(&below)));
            }
            if self.records.len() == self.limits.entries {
                return Err(DirectoryError::Entries(self.limits.entries));
            }
            self.add(&directory, entry.file_name(), below, depth)?;
        }
        // A name that came or went while we were here changed it.
        if stamp(&directory)? != before { Err(DirectoryError::Changed(shown(path))) } else { Ok(()) }
    }

    fn add(
        &mut self,
        within: &OwnedFd,
        name: &std::ffi::CStr,
        path: Vec<u8>,
        depth: usize,
    ) -> Result<(), DirectoryError> {
        let failed = |error: Errno| read_error(&path, error);
        let found = fstatat(within, name, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(failed)?;
        let kind = SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT;
        let mode = found.st_mode & 0o7777;
        if found.st_dev != self.dev {
            return Err(DirectoryError::Kind(shown(&path)));
        }
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let record = if kind == SFlag::S_IFLNK {
            let target = readlinkat(within, name).map_err(failed)?.into_vec();
            [b"l ", path.as_slice(), b"\0", &target, b"\0"].concat()
        } else if kind == SFlag::S_IFDIR {
            let directory = openat(within, name, flags | OFlag::O_DIRECTORY, Mode::empty()).map_err(failed)?;
            self.is_the_one(&directory, &found, &path)?;
            self.enter(directory, &path, depth + 1)?;
            [format!("d {mode:04o} ").as_bytes(), &path, b"\0"].concat()
        } else if kind == SFlag::S_IFREG {
            let file = openat(within, name, flags, Mode::empty()).map_err(failed)?;
            self.is_the_one(&file, &found, &path)?;
            let digest = self.hash(&File::from(file), &path)?;
            [format!("f {mode:04o} {digest} ").as_bytes(), &path, b"\0"].concat()
        } else {
            return Err(DirectoryError::Kind(shown(&path)));
        };
        self.records.push((path, record));
        Ok(())
    }

    /// What was opened is what was looked at.
    fn is_the_one(&self, opened: impl AsFd, found: &FileStat, path: &[u8]) -> Result<(), DirectoryError> {
        let stat = nix::sys::stat::fstat(opened).map_err(|error| read_error(path, error))?;
        let same = (stat.st_dev, stat.st_ino, stat.st_mode) == (found.st_dev, found.st_ino, found.st_mode);
        if same { Ok(()) } else { Err(DirectoryError::Changed(shown(path))) }
    }

    fn hash(&mut self, mut file: &File, path: &[u8]) -> Result<String, DirectoryError> {
        let failed = |source| DirectoryError::Read { path: shown(path), source };
        let version = |file: &File| {
            let meta = file.metadata().map_err(failed)?;
            Ok((meta.size(), meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()))
        };
        let before = version(file)?;
        let mut context = Context::new(&SHA256);
        loop {
            if self.limits.cancelled.load(Ordering::Relaxed) {
                return Err(DirectoryError::Cancelled);
            }
            let read = match file.read(&mut self.buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(failed(error)),
            };
            let left = self.bytes_left.checked_sub(read as u64);
            self.bytes_left = left.ok_or(DirectoryError::Bytes(self.limits.bytes))?;
            context.update(&self.buffer[..read]);
        }
        if version(file)? != before {
            return Err(DirectoryError::Changed(shown(path)));
        }
        Ok(hex(context.finish().as_ref()))
    }
}

fn times(stat: &FileStat) -> (i64, i64, i64, i64) {
    (stat.st_mtime, stat.st_mtime_nsec, stat.st_ctime, stat.st_ctime_nsec)
}

fn read_error(path: &[u8], error: Errno) -> DirectoryError {
    DirectoryError::Read { path: shown(path), source: error.into() }
}

fn shown(path: &[u8]) -> String {
    if path.is_empty() { ".".to_owned() } else { String::from_utf8_lossy(path).into_owned() }
}
