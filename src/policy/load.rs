//! The files of policies: all of them can be read, or none of them counts.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::compile::PolicyFile;
use crate::base::files;
use crate::base::mistake::Mistake;

/// The largest policy file in bytes.
pub const MAX_FILE_BYTES: u64 = 1 << 20;
/// The most bytes in all policy files together.
pub const MAX_BYTES: usize = 4 << 20;
/// The most files.
pub const MAX_FILES: usize = 1024;

/// What one look at files found.
#[derive(Debug, Default)]
pub(super) struct Files {
    pub(super) files: Vec<PolicyFile>,
    pub(super) warnings: Vec<Mistake>,
}

/// Reads the `*.cedar` files of a directory. Blocks on the disk.
pub(super) fn directory(directory: &Path) -> Result<Files, Vec<Mistake>> {
    let listed = files::list(directory, "cedar", MAX_FILES).map_err(|mistake| vec![mistake])?;
    let read = read(&listed.files)?;
    Ok(Files { files: read, warnings: listed.warning.into_iter().collect() })
}

/// Whether there is nothing at all at this path: no directory, and no link that leads nowhere.
pub(super) fn is_absent(directory: &Path) -> bool {
    std::fs::symlink_metadata(directory).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// Reads these files, and the `*.cedar` files of those that are directories. Blocks on the disk.
pub fn read_paths(paths: &[PathBuf]) -> Result<Vec<PolicyFile>, Vec<Mistake>> {
    let (mut found, mut mistakes) = (Vec::new(), Vec::new());
    for path in paths {
        if !path.is_dir() {
            found.push(Arc::from(path.as_path()));
            continue;
        }
        match files::list(path, "cedar", MAX_FILES) {
            Ok(listed) => found.extend(listed.files),
            Err(mistake) => mistakes.push(mistake),
        }
    }
    match read(&found) {
        Ok(read) if mistakes.is_empty() => Ok(read),
        Ok(_) => Err(mistakes),
        Err(more) => Err(mistakes.into_iter().chain(more).collect()),
    }
}

fn read(paths: &[Arc<Path>]) -> Result<Vec<PolicyFile>, Vec<Mistake>> {
    let (mut read, mut mistakes, mut bytes) = (Vec::new(), Vec::new(), 0);
    for path in paths {
        match file(path) {
            Ok(file) => {
                bytes += file.text.len();
                read.push(file);
            }
            Err(mistake) => mistakes.push(mistake),
        }
        if bytes > MAX_BYTES {
            let text = format!("with this file there are more than {MAX_BYTES} bytes of policies: remove some");
            mistakes.push(Mistake::whole(path, text));
            break;
        }
    }
    if mistakes.is_empty() { Ok(read) } else { Err(mistakes) }
}

fn file(path: &Arc<Path>) -> Result<PolicyFile, Mistake> {
    let content = files::read(path, MAX_FILE_BYTES)?;
    let text = files::text(path, content)?;
    Ok(PolicyFile { path: path.clone(), text })
}
