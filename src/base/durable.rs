//! The only file writer. What it has written is whole, on disk and visible in that order, whatever dies meanwhile.
//!
//! A replacement is written to a temporary file in the same directory, synced, renamed over the target, and the
//! directory is synced: a reader sees the old or the new content, never a mixture. Links are not followed.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt as _, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag, openat, readlinkat, renameat};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, symlinkat, unlinkat};
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
    /// A directory that files for others cannot be put into.
    #[error("no files are put into `{}`: {what}", path.display())]
    NotForFiles {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it, and what to do.
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

/// Puts a whole file in place where there is none, durably; whether there was none. One that is there stays as it is, also one
/// that somebody else puts there at the same moment.
pub fn create(path: &Path, content: &[u8], mode: u32) -> Result<bool, DurableError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.{}.tmp", std::process::id()));
    let created = write_new(&temporary, content, mode).and_then(|()| match fs::hard_link(&temporary, path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(io_error("create", path)(error)),
    });
    let _ = fs::remove_file(&temporary);
    let created = created?;
    sync_parent(path)?;
    Ok(created)
}

/// [`replace`], and then overwrites what was in the file before, which nothing names any more. A crash in between leaves the
/// old content in blocks that are free; so do file systems and disks that do not write in place.
pub fn replace_and_wipe(path: &Path, content: &[u8], mode: u32) -> Result<(), DurableError> {
    let mut options = OpenOptions::new();
    let old = options.write(true).custom_flags(nix::libc::O_NOFOLLOW).open(path).map_err(io_error("open", path))?;
    let length = old.metadata().map_err(io_error("look at", path))?.len();
    replace(path, content, mode)?;
    let zeros = io::repeat(0).take(length);
    let wiped = io::copy(&mut { zeros }, &mut &old).and_then(|_| old.sync_all());
    wiped.map_err(io_error("overwrite the former content of", path))
}

/// Gives a file another name in the same directory, durably; what has that name is replaced.
pub fn rename(from: &Path, to: &Path) -> Result<(), DurableError> {
    fs::rename(from, to).map_err(io_error("rename", from))?;
    sync_parent(to)
}

/// Makes sure that there is a file of ours alone (mode 0600), empty if there was none, for those who write in place.
pub fn make_private(path: &Path) -> Result<(), DurableError> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).custom_flags(nix::libc::O_NOFOLLOW).mode(0o600);
    let file = options.open(path).map_err(io_error("open", path))?;
    file.set_permissions(fs::Permissions::from_mode(0o600)).map_err(io_error("set the mode of", path))
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

/// A few bytes in a file, written in place as often as is wanted. They survive the death of the process; after a loss of power
/// they may be older ones.
#[derive(Debug)]
pub struct Mark {
    file: File,
    path: PathBuf,
}

impl Mark {
    /// The file, of mode 0600; made if it is not there.
    pub fn open(path: &Path) -> Result<Self, DurableError> {
        make_private(path)?;
        let mut options = OpenOptions::new();
        let file =
            options.write(true).custom_flags(nix::libc::O_NOFOLLOW).open(path).map_err(io_error("open", path))?;
        Ok(Self { file, path: path.to_owned() })
    }

    /// Writes them.
    pub fn set(&mut self, content: &[u8]) -> Result<(), DurableError> {
        let written = self.file.write_all_at(content, 0).and_then(|()| self.file.set_len(content.len() as u64));
        written.map_err(io_error("write", &self.path))
    }

    /// Returns when they are on disk.
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

/// Removes a directory and all that is in it, durably; one that is not there is fine.
pub fn remove_all(path: &Path) -> Result<(), DurableError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(io_error("remove", path)(error)),
        Ok(()) => sync_parent(path),
    }
}

/// Takes a directory for as long as what is returned is kept, `alone` or together with others that do not take it alone.
/// `None` when that is not possible now. A process that dies gives it back.
pub fn take(dir: &Path, alone: bool) -> Result<Option<Taken>, DurableError> {
    let how = if alone { FlockArg::LockExclusiveNonblock } else { FlockArg::LockSharedNonblock };
    let file = File::open(dir).map_err(io_error("open", dir))?;
    match Flock::lock(file, how) {
        Ok(lock) => Ok(Some(Taken { _lock: lock })),
        Err((_, Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, errno)) => Err(io_error("lock", dir)(errno.into())),
    }
}

/// A directory that was taken ([`take`]).
#[derive(Debug)]
pub struct Taken {
    _lock: Flock<File>,
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
    let mut content = Vec::new();
    let file = File::open(path).map_err(io_error("open", path))?;
    file.take(limit + 1).read_to_end(&mut content).map_err(io_error("read", path))?;
    if content.len() as u64 > limit {
        let too_big = io::Error::new(io::ErrorKind::FileTooLarge, format!("it is larger than {limit} bytes"));
        return Err(io_error("read", path)(too_big));
    }
    Ok(content)
}

/// A file for a [`Delivery`].
#[derive(Debug)]
pub struct Delivered<'a> {
    /// Its name in the directory: one component that does not begin with `..`.
    pub name: &'a str,
    /// All that is in it.
    pub content: &'a [u8],
    /// Its mode, whatever the umask is.
    pub mode: u32,
}

/// A directory into which files are put for others to read, by one writer at a time.
///
/// All is done through a handle of the directory: whoever may change it cannot lead what is written elsewhere.
#[derive(Debug)]
pub struct Delivery {
    dir: Flock<File>,
    path: PathBuf,
    uid: Option<Uid>,
    gid: Option<Gid>,
}

/// What points to the set of files that is in force.
const CURRENT: &str = "..data";
/// What the directories of sets begin with; a number follows.
const SET: &str = "..set-";

impl Delivery {
    /// Takes the directory, for files that are given to `uid` and `gid`; the last part of its path is made when it is
    /// missing. Nobody but us, root and `uid` may be able to change what is in it.
    pub fn open(path: &Path, uid: Option<u32>, gid: Option<u32>) -> Result<Self, DurableError> {
        match DirBuilder::new().mode(0o755).create(path) {
            Ok(()) => sync_parent(path)?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(io_error("create the directory", path)(error)),
        }
        let refused = |what: String| DurableError::NotForFiles { path: path.to_owned(), what };
        let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let dir = match nix::fcntl::open(path, flags, Mode::empty()) {
            Ok(dir) => File::from(dir),
            Err(Errno::ENOTDIR | Errno::ELOOP) => {
                return Err(refused("it is a symbolic link or no directory: name the directory itself".to_owned()));
            }
            Err(error) => return Err(io_error("open", path)(error.into())),
        };
        let meta = dir.metadata().map_err(io_error("look at", path))?;
        let ours = [nix::unistd::geteuid().as_raw(), 0];
        if !ours.contains(&meta.uid()) && uid != Some(meta.uid()) {
            let whose = meta.uid();
            return Err(refused(format!(
                "it belongs to uid {whose}, which is neither ours nor the one the files are for"
            )));
        }
        if meta.mode() & 0o022 != 0 && meta.mode() & 0o1000 == 0 {
            let mode = meta.mode() & 0o7777;
            return Err(refused(format!("others may change what is in it (mode {mode:04o}): run chmod go-w on it")));
        }
        let dir = Flock::lock(dir, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| match error {
            Errno::EWOULDBLOCK => refused("another writer has it: two would take each other's files away".to_owned()),
            error => io_error("lock", path)(error.into()),
        })?;
        Ok(Self { dir, path: path.to_owned(), uid: uid.map(Uid::from_raw), gid: gid.map(Gid::from_raw) })
    }

    /// Puts all of `files` in force in one step, as directories of ConfigMaps do: each name is a link to `..data/NAME`, and
    /// `..data` is a link to a directory that has all of them, pointed elsewhere by one rename. Whatever dies meanwhile,
    /// what is in force are files of one set. The set before this one stays, for those who are reading it.
    pub fn swap(&self, files: &[Delivered<'_>]) -> Result<(), DurableError> {
        self.swap_in_steps(files, || Ok(()))
    }

    /// `step` is called before each step, and may fail as that could.
    fn swap_in_steps(
        &self,
        files: &[Delivered<'_>],
        mut step: impl FnMut() -> Result<(), DurableError>,
    ) -> Result<(), DurableError> {
        let current = readlinkat(&*self.dir, CURRENT).ok().and_then(|target| set_number(target.to_str()?));
        let number = current.map_or(1, |number| number.wrapping_add(1));
        let set = format!("{SET}{number}");
        self.remove_set(&set)?;
        step()?;
        mkdirat(&*self.dir, set.as_str(), Mode::S_IRWXU).map_err(self.failed("create", &set))?;
        let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let inside = openat(&*self.dir, set.as_str(), flags, Mode::empty()).map_err(self.failed("open", &set))?;
        let inside = File::from(inside);
        for file in files {
            step()?;
            self.write_at(&inside, file.name, file)?;
        }
        step()?;
        self.give(&inside, 0o755, &set)?;
        inside.sync_all().map_err(io_error("sync", &self.path.join(&set)))?;
        step()?;
        self.link(&set, CURRENT)?;
        for file in files {
            step()?;
            self.link(&format!("{CURRENT}/{}", file.name), file.name)?;
        }
        step()?;
        self.tidy(&|name| files.iter().any(|file| file.name == name), &[Some(number), current])?;
        self.sync()
    }

    /// Replaces each of `files` by itself, in this order, all of them written before the first is replaced. Whoever reads
    /// two of them in between may find one from before and one from after; so may whoever comes after a crash there.
    pub fn replace_each(&self, files: &[Delivered<'_>]) -> Result<(), DurableError> {
        let temporary = |file: &Delivered<'_>| format!(".{}.{}.tmp", file.name, std::process::id());
        let written = files.iter().try_for_each(|file| {
            self.unlink(&temporary(file))?;
            self.write_at(&self.dir, &temporary(file), file)
        });
        let replaced = written.and_then(|()| {
            let replace = |file: &Delivered<'_>| renameat(&*self.dir, &*temporary(file), &*self.dir, file.name);
            files.iter().try_for_each(|file| replace(file).map_err(self.failed("rename into place", file.name)))
        });
        if replaced.is_err() {
            // What was not put in its place would only confuse.
            files.iter().for_each(|file| drop(self.unlink(&temporary(file))));
        }
        replaced?;
        self.tidy(&|_| false, &[])?;
        self.sync()
    }

    fn write_at(&self, dir: &File, name: &str, file: &Delivered<'_>) -> Result<(), DurableError> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let opened = openat(dir, name, flags, Mode::S_IRUSR | Mode::S_IWUSR).map_err(self.failed("create", name))?;
        let mut opened = File::from(opened);
        opened.write_all(file.content).map_err(io_error("write", &self.path.join(name)))?;
        self.give(&opened, file.mode, name)?;
        opened.sync_all().map_err(io_error("sync", &self.path.join(name)))
    }

    /// Owner first: giving a file away may take bits of its mode.
    fn give(&self, file: &File, mode: u32, name: &str) -> Result<(), DurableError> {
        if self.uid.is_some() || self.gid.is_some() {
            fchown(file, self.uid, self.gid).map_err(self.failed("give to its owner", name))?;
        }
        let mode = fs::Permissions::from_mode(mode);
        file.set_permissions(mode).map_err(io_error("set the mode of", &self.path.join(name)))
    }

    /// Makes `name` a link to `target`, in one step where it is something else.
    fn link(&self, target: &str, name: &str) -> Result<(), DurableError> {
        if readlinkat(&*self.dir, name).is_ok_and(|found| found == target) {
            return Ok(());
        }
        let temporary = format!("{name}.tmp");
        self.unlink(&temporary)?;
        symlinkat(target, &*self.dir, &*temporary).map_err(self.failed("create", &temporary))?;
        renameat(&*self.dir, &*temporary, &*self.dir, name).map_err(self.failed("rename into place", name))?;
        self.sync()
    }

    /// Removes our links that are not `wanted`, and sets that are not `kept`.
    fn tidy(&self, wanted: &dyn Fn(&str) -> bool, kept: &[Option<u64>]) -> Result<(), DurableError> {
        let handle = self.dir.try_clone().map_err(io_error("open", &self.path))?;
        let listed = Dir::from_fd(handle.into()).and_then(|mut dir| dir.iter().collect::<nix::Result<Vec<_>>>());
        for entry in listed.map_err(self.failed("list", "."))? {
            let Ok(name) = entry.file_name().to_str() else { continue };
            if let Some(number) = set_number(name) {
                if !kept.contains(&Some(number)) {
                    self.remove_set(name)?;
                }
                continue;
            }
            let is_ours = readlinkat(&*self.dir, name).is_ok_and(|target| {
                let target = target.to_string_lossy();
                target == format!("{CURRENT}/{name}") || (name == CURRENT && set_number(&target).is_some())
            });
            if is_ours && !wanted(name) && (name != CURRENT || kept.is_empty()) {
                self.unlink(name)?;
            }
        }
        Ok(())
    }

    fn remove_set(&self, set: &str) -> Result<(), DurableError> {
        let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut inside = match Dir::openat(&*self.dir, set, flags, Mode::empty()) {
            Ok(inside) => inside,
            Err(Errno::ENOENT) => return Ok(()),
            Err(error) => return Err(self.failed("open", set)(error)),
        };
        let names: Vec<_> = inside.iter().filter_map(Result::ok).map(|entry| entry.file_name().to_owned()).collect();
        for name in names.iter().filter(|name| !matches!(name.to_bytes(), b"." | b"..")) {
            unlinkat(&inside, name.as_c_str(), UnlinkatFlags::NoRemoveDir).map_err(self.failed("empty", set))?;
        }
        unlinkat(&*self.dir, set, UnlinkatFlags::RemoveDir).map_err(self.failed("remove", set))
    }

    fn unlink(&self, name: &str) -> Result<(), DurableError> {
        match unlinkat(&*self.dir, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(error) => Err(self.failed("remove", name)(error)),
        }
    }

    fn sync(&self) -> Result<(), DurableError> {
        self.dir.sync_all().map_err(io_error("sync", &self.path))
    }

    fn failed(&self, action: &'static str, name: &str) -> impl FnOnce(Errno) -> DurableError {
        let path = self.path.join(name);
        move |error| DurableError::Io { action, path, source: error.into() }
    }
}

fn set_number(name: &str) -> Option<u64> {
    name.strip_prefix(SET)?.parse().ok()
}

#[cfg(test)]
mod tests;
