//! Whether a launcher is believed, and what it is about to start.

use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::statfs::{FUSE_SUPER_MAGIC, fstatfs};

use super::digest::{self, Limits};
use super::{KIND, Launch, LaunchError, LaunchRequest, Launches};
use crate::attest::unix::digest::Version;
use crate::attest::unix::executable::id_of;
use crate::peer::{Instance, LookError, Weakness};
use crate::selector::{MAX_SELECTOR_BYTES, Selector};
use crate::sys::procfs::{FileId, ProcDir};
use crate::sys::{FileAccess, Status};

/// A file that the launcher named, opened as it could have opened it.
struct Opened {
    file: File,
    meta: Metadata,
    /// What the path is in our own root, where it leads to the same file.
    path: Option<PathBuf>,
    is_fuse: bool,
}

impl Launches {
    /// Measures what `launcher` is about to start, if it is believed. What is found holds for the moment.
    ///
    /// # Errors
    /// Whatever keeps it from being known whole: there is no launch with a part of what was asked for.
    pub async fn measure(&self, launcher: &Arc<Instance>, what: &LaunchRequest) -> Result<Launch, LaunchError> {
        let deadline = self.0.config.deadline;
        let cancelled = Arc::new(AtomicBool::new(false));
        let _no_longer = Cancel(cancelled.clone());
        match tokio::time::timeout(deadline, self.measure_all(launcher, what, &cancelled)).await {
            Ok(measured) => measured,
            Err(_) => Err(LaunchError::Late(deadline)),
        }
    }

    async fn measure_all(
        &self,
        launcher: &Arc<Instance>,
        what: &LaunchRequest,
        cancelled: &Arc<AtomicBool>,
    ) -> Result<Launch, LaunchError> {
        let status = self.believe(launcher).await?;
        let mut facts = self.file(launcher, &status, &what.program, ["path", "sha256"]).await?;
        if let Some(script) = &what.script {
            facts.extend(self.file(launcher, &status, script, ["script", "script_sha256"]).await?);
        }
        if let Some(directory) = &what.directory {
            facts.extend(self.directory(launcher, &status, directory, cancelled).await?);
        }
        // It said so before, and is still the one that was judged.
        self.believe(launcher).await?;
        Ok(Launch(facts))
    }

    /// The launcher as it is now: one of the programs that are believed, and nobody else's puppet as far as can be seen.
    async fn believe(&self, launcher: &Arc<Instance>) -> Result<Status, LaunchError> {
        if let Some(weakness) = launcher.weak().filter(Weakness::bars_executable) {
            return Err(LaunchError::Weak(weakness));
        }
        let program = launcher.executable_evidence().map_err(LaunchError::Hidden)?;
        let status = launcher.status()?;
        if status.is_traced {
            return Err(LaunchError::Traced);
        }
        // Root, and the agent's own user, need no launcher to be believed: they have power over the agent itself.
        let own = nix::unistd::geteuid().as_raw();
        if status.uid != 0 && status.uid != own && is_traceable(launcher.proc_dir(), status.uid)? {
            return Err(LaunchError::Traceable);
        }
        let launchers = self.0.config.launchers.clone();
        let named = launchers.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ");
        let found = self.look(status.uid, move || {
            Ok(launchers.iter().any(|path| std::fs::metadata(path).is_ok_and(|found| id_of(&found) == program)))
        });
        if found.await? { Ok(status) } else { Err(LaunchError::NotALauncher(named)) }
    }

    async fn file(
        &self,
        launcher: &Arc<Instance>,
        status: &Status,
        path: &str,
        keys: [&'static str; 2],
    ) -> Result<Vec<String>, LaunchError> {
        let opened = self.open(launcher, status, path, "file").await?;
        let version = Version::from(&opened.meta);
        let digest = self.0.digests.of_content(status.uid, opened.file, version, opened.is_fuse);
        let digest = digest.await.map_err(|why| LaunchError::Digest { path: path.to_owned(), why })?;
        facts(path, keys, opened.path.as_deref(), &digest)
    }

    async fn directory(
        &self,
        launcher: &Arc<Instance>,
        status: &Status,
        path: &str,
        cancelled: &Arc<AtomicBool>,
    ) -> Result<Vec<String>, LaunchError> {
        let opened = self.open(launcher, status, path, "directory").await?;
        let (entries, bytes) = (self.0.config.max_entries, self.0.config.max_directory_bytes);
        let (cancelled, access) = (cancelled.clone(), FileAccess::of(status));
        let measured = self.look(status.uid, move || {
            let _as_launcher = access.assume();
            let limits = Limits { entries, bytes, cancelled: &cancelled };
            Ok(digest::directory(OwnedFd::from(opened.file), limits))
        });
        let unmeasured = |error: digest::DirectoryError| LaunchError::Digest {
            path: path.to_owned(),
            why: error.to_string().into(),
        };
        let digest = measured.await?.map_err(unmeasured)?;
        facts(path, ["dir", "dir_sha256"], opened.path.as_deref(), &digest)
    }

    async fn open(
        &self,
        launcher: &Arc<Instance>,
        status: &Status,
        path: &str,
        wanted: &'static str,
    ) -> Result<Opened, LaunchError> {
        if !path.starts_with('/') || path.contains(['\0', '\n']) || path.len() > MAX_SELECTOR_BYTES / 2 {
            return Err(LaunchError::Path(path.escape_debug().to_string()));
        }
        let (proc_dir, name, access) = (launcher.proc_dir().clone(), path.to_owned(), FileAccess::of(status));
        let opened = self.look(status.uid, move || Ok(open(&proc_dir, &name, &access))).await?;
        let opened = opened.map_err(|source| LaunchError::Open { path: path.to_owned(), source })?;
        let is_wanted = if wanted == "file" { opened.meta.is_file() } else { opened.meta.is_dir() };
        if is_wanted { Ok(opened) } else { Err(LaunchError::Kind { path: path.to_owned(), wanted }) }
    }

    /// Runs `look` where it may block, in one of the user's turns.
    async fn look<T: Send + 'static>(
        &self,
        uid: u32,
        look: impl FnOnce() -> Result<T, super::AttestError> + Send + 'static,
    ) -> Result<T, LaunchError> {
        let unseen = |error| LaunchError::Look(LookError::Unseen(io::Error::other(error)));
        self.0.files.look(uid, look).await.map_err(unseen)
    }
}

/// Opens a path of the launcher with no more rights than it has, so that a digest tells nobody of a file that is closed to
/// them.
fn open(proc_dir: &ProcDir, path: &str, access: &FileAccess) -> io::Result<Opened> {
    // The kernel lets us see the root of a process by our own rights, not by the launcher's.
    let root = proc_dir.open_handle("root")?;
    let _as_launcher = access.assume();
    let file = File::from(crate::sys::procfs::open_in(&root, OsStr::from_bytes(path.as_bytes()))?);
    let meta = file.metadata()?;
    if !(meta.is_file() || meta.is_dir()) || !access.may_read(meta.uid(), meta.gid(), meta.permissions().mode()) {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let is_fuse = fstatfs(&file).map_err(io::Error::from)?.filesystem_type() == FUSE_SUPER_MAGIC;
    let path = in_our_root(path, id_of(&meta));
    Ok(Opened { file, meta, path, is_fuse })
}

/// The path without links, if it leads to the same file in our own root: then it is no name that the launcher has chosen.
fn in_our_root(path: &str, file: FileId) -> Option<PathBuf> {
    let path = std::fs::canonicalize(Path::new(path)).ok()?;
    let found = std::fs::metadata(&path).ok()?;
    (id_of(&found) == file).then_some(path)
}

/// Whether every process of its user may trace it: the kernel gives the files of a process that is not dumpable to root.
fn is_traceable(proc_dir: &ProcDir, uid: u32) -> Result<bool, LookError> {
    Ok(proc_dir.owner_of("stat").map_err(LookError::Unseen)? == uid)
}

fn facts(named: &str, keys: [&str; 2], path: Option<&Path>, digest: &str) -> Result<Vec<String>, LaunchError> {
    let [path_key, digest_key] = keys;
    let unfit = || LaunchError::Path(named.escape_debug().to_string());
    let mut facts = vec![Selector::new(KIND, digest_key, digest).ok_or_else(unfit)?];
    if let Some(path) = path.and_then(Path::to_str) {
        facts.insert(0, Selector::new(KIND, path_key, path).ok_or_else(unfit)?);
    }
    Ok(facts.iter().map(|fact| fact.as_str().to_owned()).collect())
}

/// Tells the thread that measures when nobody waits any more.
struct Cancel(Arc<AtomicBool>);

impl Drop for Cancel {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
