//! Who can change a file or a directory, by its owner and mode: what somebody else can change is not believed.
//!
//! Does not look at access control lists, nor at who can write to the disk itself.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Writable by the group.
const GROUP_WRITE: u32 = 0o020;
/// Writable by everyone.
const OTHERS_WRITE: u32 = 0o002;
/// What is in a directory is removed and renamed by its owner alone.
const STICKY: u32 = 0o1000;

/// Somebody else can put another directory in the place of one that is to be used.
#[derive(Debug, Error)]
pub enum AboveError {
    /// It cannot be found out.
    #[error("cannot look at `{}`", path.display())]
    Unknown {
        /// The directory.
        path: PathBuf,
        /// The refusal.
        #[source]
        source: io::Error,
    },
    /// This directory above it can be changed.
    #[error("`{}`, which stands above it, {why}", path.display())]
    Open {
        /// The directory above.
        path: PathBuf,
        /// By whom, and what to do about it.
        why: String,
    },
}

/// Who but root and `uid` can change this, and what to do about it; `None` when nobody can. A group counts as somebody, unless
/// it is root's.
pub fn changeable_by_others(meta: &Metadata, uid: u32) -> Option<String> {
    if meta.uid() != 0 && meta.uid() != uid {
        return Some(format!("belongs to uid {}: run chown root on it, if it is as it should be", meta.uid()));
    }
    let mode = meta.mode();
    if mode & OTHERS_WRITE != 0 || (mode & GROUP_WRITE != 0 && meta.gid() != 0) {
        return Some(format!("can be changed by others (mode {:04o}): run chmod go-w on it", mode & 0o7777));
    }
    None
}

/// Where a directory really is, when nobody but root and `uid` can put another one in its place. In a directory that is sticky
/// everyone may make things, and nobody can take away what is another's.
pub fn unmovable(directory: &Path, uid: u32) -> Result<PathBuf, AboveError> {
    let unknown = |path: &Path| {
        let path = path.to_owned();
        move |source| AboveError::Unknown { path, source }
    };
    let real = directory.canonicalize().map_err(unknown(directory))?;
    for above in real.ancestors().skip(1) {
        let meta = fs::metadata(above).map_err(unknown(above))?;
        let is_sticky = meta.uid() == 0 && meta.mode() & STICKY != 0;
        if let Some(why) = changeable_by_others(&meta, uid).filter(|_| !is_sticky) {
            return Err(AboveError::Open { path: above.to_owned(), why });
        }
    }
    Ok(real)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_others_can_change_is_told_by_owner_and_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "").unwrap();
        let uid = nix::unistd::geteuid().as_raw();
        let is_gid_0 = fs::metadata(&path).unwrap().gid() == 0;
        for (mode, others_can) in [(0o644, false), (0o664, !is_gid_0), (0o646, true), (0o1777, true), (0o400, false)] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let found = changeable_by_others(&fs::metadata(&path).unwrap(), uid);
            assert_eq!(found.is_some(), others_can, "{mode:o}: {found:?}");
        }
        if uid == 0 {
            std::os::unix::fs::chown(&path, Some(65534), None).unwrap();
            let meta = fs::metadata(&path).unwrap();
            assert!(changeable_by_others(&meta, 0).unwrap().contains("belongs to uid 65534"));
            assert_eq!(changeable_by_others(&meta, 65534), None);
        }
    }

    #[test]
    fn a_directory_can_be_put_elsewhere_by_who_can_write_above_it() {
        let top = tempfile::tempdir().unwrap();
        let (above, dir) = (top.path().join("above"), top.path().join("above/dir"));
        fs::create_dir_all(&dir).unwrap();
        let uid = nix::unistd::geteuid().as_raw();
        let is_root = uid == 0;
        for (mode, can_use) in [(0o755, true), (0o777, false), (0o1777, is_root), (0o700, true)] {
            fs::set_permissions(&above, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(unmovable(&dir, uid).is_ok(), can_use, "{mode:o}");
        }
        // A link is followed: what counts is where it leads.
        let link = top.path().join("link");
        std::os::unix::fs::symlink(&dir, &link).unwrap();
        assert_eq!(unmovable(&link, uid).unwrap(), dir.canonicalize().unwrap());
    }
}
