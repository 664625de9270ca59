//! The only file writer. What it has written is whole, on disk and visible in that order, whatever dies meanwhile.
//!
//! A replacement is written to a temporary file in the same directory, synced, renamed over the target, and the
//! directory is synced: a reader sees the old or the new content, never a mixture. Links are not followed.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;

/// A file operation that failed, with the path and what to do about it.
#[derive(Debug, Error)]
pub enum DurableError {
    /// The operating system refused.
    #[error("cannot {action} `{}`", path.display())]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The refusal.
        #[source]
        source: io::Error,
    },
    /// A directory that must be private is not ours or is open to others.
    #[error("`{}` must be a directory owned by uid {uid} with no access for others; it is not: {what}", path.display())]
    NotPrivate {
        /// The directory.
        path: PathBuf,
        /// The owner it must have.
        uid: u32,
        /// What is wrong with it.
        what: String,
    },
    /// Whoever can write to the directory of a socket can put another one in its place.
    #[error("`{}` cannot hold a socket: {what}; only root and uid {uid} may write to it: remove it, or choose another", path.display())]
    NotForSockets {
        /// The directory.
        path: PathBuf,
        /// Who else may write to it: the agent.
        uid: u32,
        /// What is wrong with it.
        what: String,
    },
}

fn io_error<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> DurableError + 'a {
    move |source| DurableError::Io { action, path: path.to_owned(), source }
}

/// Replaces the content of `path` atomically and durably; the file has exactly `mode` whatever the umask is.
pub fn replace(path: &Path, content: &[u8], mode: u32) -> Result<(), DurableError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.{}.tmp", std::process::id()));
    let written = write_new(&temporary, content, mode)
        .and_then(|()| fs::rename(&temporary, path).map_err(io_error("rename into place", path)));
    if written.is_err() {
        // The target is untouched; a left-over temporary file would only confuse.
        let _ = fs::remove_file(&temporary);
    }
    written?;
    sync_parent(path)
}

fn write_new(path: &Path, content: &[u8], mode: u32) -> Result<(), DurableError> {
    let _ = fs::remove_file(path);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .mode(0o600)
        .open(path)
        .map_err(io_error("create", path))?;
    file.write_all(content).map_err(io_error("write", path))?;
    file.set_permissions(fs::Permissions::from_mode(mode)).map_err(io_error("set the mode of", path))?;
    file.sync_all().map_err(io_error("sync", path))
}

/// A file that only grows. What was appended survives the death of the process at once, and that of the machine once
/// it is synced.
#[derive(Debug)]
pub struct Appender {
    file: Arc<File>,
    path: PathBuf,
    length: u64,
    /// A failed write left something behind that could not be cut off yet.
    torn: bool,
}

/// Syncs what was appended so far, from any thread.
#[derive(Clone, Debug)]
pub struct Syncer {
    file: Arc<File>,
    path: PathBuf,
}

impl Appender {
    /// A new file of mode 0600; one that is there already is refused.
    pub fn create(path: &Path) -> Result<Self, DurableError> {
        let mut options = OpenOptions::new();
        options.append(true).create_new(true).custom_flags(nix::libc::O_NOFOLLOW).mode(0o600);
        let file = Arc::new(options.open(path).map_err(io_error("create", path))?);
        sync_parent(path)?;
        Ok(Self { file, path: path.to_owned(), length: 0, torn: false })
    }

    /// A file that is there, of which the first `length` bytes are whole: what follows them is cut off.
    pub fn resume(path: &Path, length: u64) -> Result<Self, DurableError> {
        let mut options = OpenOptions::new();
        options.append(true).custom_flags(nix::libc::O_NOFOLLOW);
        let file = Arc::new(options.open(path).map_err(io_error("open", path))?);
        let mut appender = Self { file, path: path.to_owned(), length, torn: true };
        appender.cut()?;
        Ok(appender)
    }

    /// Appends all of `record` or nothing: what a failed write left behind is cut off again, at the latest before
    /// anything follows it.
    pub fn append(&mut self, record: &[u8]) -> Result<(), DurableError> {
        self.cut()?;
        if let Err(error) = (&*self.file).write_all(record) {
            self.torn = true;
            self.cut()?;
            return Err(io_error("append to", &self.path)(error));
        }
        self.length += record.len() as u64;
        Ok(())
    }

    fn cut(&mut self) -> Result<(), DurableError> {
        if self.torn {
            self.file.set_len(self.length).map_err(io_error("cut a half-written record off", &self.path))?;
            self.torn = false;
        }
        Ok(())
    }

    /// How many bytes it has.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// What syncs it.
    pub fn syncer(&self) -> Syncer {
        Syncer { file: self.file.clone(), path: self.path.clone() }
    }
}

impl Syncer {
    /// Returns when everything appended before is on disk.
    pub fn sync(&self) -> Result<(), DurableError> {
        self.file.sync_data().map_err(io_error("sync", &self.path))
    }
}

/// Removes a file durably; a file that is not there is fine.
pub fn remove(path: &Path) -> Result<(), DurableError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(io_error("remove", path)(error)),
        Ok(()) => sync_parent(path),
    }
}

fn sync_parent(path: &Path) -> Result<(), DurableError> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent).and_then(|dir| dir.sync_all()).map_err(io_error("sync", parent))
}

/// Makes sure that `path` is a directory of ours that nobody else can enter, creating it with mode 0700.
///
/// An existing directory is checked, never repaired: in a shared place somebody else may have made it.
pub fn private_dir(path: &Path) -> Result<(), DurableError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => return sync_parent(path),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(io_error("create the directory", path)(error)),
    }
    let uid = nix::unistd::geteuid().as_raw();
    let meta = fs::symlink_metadata(path).map_err(io_error("look at", path))?;
    let what = if !meta.is_dir() {
        "it is not a directory".to_owned()
    } else if meta.uid() != uid {
        format!("it is owned by uid {}", meta.uid())
    } else if meta.mode() & 0o077 != 0 {
        format!("its mode is {:04o}; run chmod 0700 on it if it is yours", meta.mode() & 0o7777)
    } else {
        return Ok(());
    };
    Err(DurableError::NotPrivate { path: path.to_owned(), uid, what })
}

/// Makes sure that `path` is a directory, and no link to one, that everybody can enter and nobody but root and us can
/// write to; it and what is missing above it are created with mode 0755.
///
/// Containers mount the directory, and what is in it is one socket. An existing one is checked, never repaired. What
/// stands above it is not judged: who may write there is the administrator's choice.
pub fn socket_dir(path: &Path) -> Result<(), DurableError> {
    let is_missing = |dir: &&Path| !dir.as_os_str().is_empty() && fs::symlink_metadata(dir).is_err();
    let missing: Vec<_> = path.ancestors().take_while(is_missing).collect();
    for dir in missing.into_iter().rev() {
        shared_dir(dir, 0o755)?;
    }
    let uid = nix::unistd::geteuid().as_raw();
    let meta = fs::symlink_metadata(path).map_err(io_error("look at", path))?;
    let what = if meta.is_symlink() {
        "it is a symbolic link".to_owned()
    } else if !meta.is_dir() {
        "it is not a directory".to_owned()
    } else if meta.uid() != uid && meta.uid() != 0 {
        format!("it is owned by uid {}", meta.uid())
    } else if meta.mode() & 0o022 != 0 {
        format!("its mode is {:04o}", meta.mode() & 0o7777)
    } else {
        return Ok(());
    };
    Err(DurableError::NotForSockets { path: path.to_owned(), uid, what })
}

/// Makes sure that `path` is a directory with `mode`, creating it when it is missing.
pub fn shared_dir(path: &Path, mode: u32) -> Result<(), DurableError> {
    match DirBuilder::new().mode(mode).create(path) {
        Ok(()) => {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(io_error("set the mode of", path))
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => Err(io_error("create the directory", path)(error)),
    }
}

/// Writes to a control file of the kernel, which is there already and keeps nothing.
pub fn control(path: &Path, text: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes())
}

/// Reads a whole file of at most `limit` bytes.
pub fn read(path: &Path, limit: u64) -> Result<Vec<u8>, DurableError> {
    use io::Read;
    let mut content = Vec::new();
    let file = File::open(path).map_err(io_error("open", path))?;
    file.take(limit + 1).read_to_end(&mut content).map_err(io_error("read", path))?;
    if content.len() as u64 > limit {
        let too_big = io::Error::new(io::ErrorKind::FileTooLarge, format!("it is larger than {limit} bytes"));
        return Err(io_error("read", path)(too_big));
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replacement_is_whole_has_its_mode_and_leaves_nothing_else_behind() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("svid.pem");
        replace(&path, b"old", 0o600).expect("first");
        replace(&path, b"new", 0o644).expect("second");
        assert_eq!(fs::read(&path).expect("there"), b"new");
        assert_eq!(fs::metadata(&path).expect("there").mode() & 0o7777, 0o644);
        assert_eq!(fs::read_dir(dir.path()).expect("there").count(), 1);
    }

    #[test]
    fn a_directory_open_to_others_is_refused_with_its_mode() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("state");
        private_dir(&path).expect("created");
        private_dir(&path).expect("accepted when it is ours");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("chmod");
        let error = private_dir(&path).expect_err("refused").to_string();
        assert!(error.contains("0755"), "{error}");
    }

    #[test]
    fn a_socket_directory_is_made_with_what_is_missing_above_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("run/tether/workload");
        socket_dir(&path).expect("created");
        for made in path.ancestors().take(3) {
            assert_eq!(fs::metadata(made).expect("there").mode() & 0o7777, 0o755, "{}", made.display());
        }
        socket_dir(&path).expect("accepted when it is ours");
    }

    #[test]
    fn a_socket_directory_that_others_could_change_is_refused_with_what_is_wrong() {
        let dir = tempfile::tempdir().expect("a directory");
        let make = |name: &str, mode| {
            let path = dir.path().join(name);
            fs::create_dir(&path).expect("created");
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("chmod");
            path
        };
        let (link, file) = (dir.path().join("link"), dir.path().join("file"));
        std::os::unix::fs::symlink(make("target", 0o755), &link).expect("linked");
        fs::write(&file, "").expect("written");
        let cases = [
            (link, "symbolic link"),
            (file, "not a directory"),
            (make("everybody", 0o777), "0777"),
            (make("sticky", 0o1777), "1777"),
            (make("group", 0o775), "0775"),
        ];
        for (path, expected) in cases {
            let error = socket_dir(&path).expect_err("refused").to_string();
            assert!(error.contains(expected) && error.contains("choose another"), "{error}");
        }
        let foreign = make("foreign", 0o755);
        // Only root can give a directory away.
        if std::os::unix::fs::chown(&foreign, Some(12_345), None).is_ok() {
            assert!(socket_dir(&foreign).expect_err("refused").to_string().contains("uid 12345"));
        }
    }

    #[test]
    fn a_link_in_place_of_the_target_is_replaced_and_not_followed() {
        let dir = tempfile::tempdir().expect("a directory");
        let (victim, path) = (dir.path().join("victim"), dir.path().join("key"));
        fs::write(&victim, "keep").expect("written");
        std::os::unix::fs::symlink(&victim, &path).expect("linked");
        replace(&path, b"secret", 0o600).expect("replaced");
        assert_eq!(fs::read(&victim).expect("there"), b"keep");
        assert!(!fs::symlink_metadata(&path).expect("there").is_symlink());
    }

    #[test]
    fn a_file_over_the_limit_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("big");
        fs::write(&path, [0; 11]).expect("written");
        assert_eq!(read(&path, 11).expect("fits").len(), 11);
        assert!(read(&path, 10).is_err());
    }
}
