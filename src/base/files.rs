//! Files that people write and the agent reads: those of a directory, each as it should be or refused with what to do.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use tokio::task::{JoinError, spawn_blocking};

use super::durable;
use super::mistake::{Lines, Mistake};

/// The files of a directory.
#[derive(Debug)]
pub struct Listed {
    /// In the order of their names.
    pub files: Vec<Arc<Path>>,
    /// Where everyone may add files.
    pub warning: Option<Mistake>,
}

/// The files of a directory that end in `.EXTENSION`, at most `most`. Hidden files are not among them: editors and volume
/// mounts keep their own things in them.
pub fn list(directory: &Path, extension: &str, most: usize) -> Result<Listed, Mistake> {
    let failed = |error: io::Error| Mistake::whole(directory, format!("cannot read the directory: {error}"));
    let mut files: Vec<Arc<Path>> = Vec::new();
    for found in fs::read_dir(directory).map_err(failed)? {
        let name = found.map_err(failed)?.file_name();
        let is_hidden = name.as_encoded_bytes().starts_with(b".");
        if !is_hidden && Path::new(&name).extension().is_some_and(|found| found == extension) {
            files.push(directory.join(name).into());
        }
    }
    if files.len() > most {
        let text = format!("{} files; at most {most} are allowed: put more into each", files.len());
        return Err(Mistake::whole(directory, text));
    }
    files.sort_unstable();
    let open = fs::metadata(directory).map_err(failed)?.mode() & 0o1002 == 0o002;
    let warning = open.then(|| Mistake::whole(directory, "everyone may add files here: run chmod o-w on it"));
    Ok(Listed { files, warning })
}

/// What is in a file that only those who may change it can have changed.
pub fn read(path: &Path, most_bytes: u64) -> Result<Vec<u8>, Mistake> {
    let whole = |message: String| Mistake::whole(path, message);
    let meta = fs::metadata(path).map_err(|error| whole(format!("cannot look at the file: {error}")))?;
    // Opening a pipe would wait for its other end.
    if !meta.is_file() {
        return Err(whole("not a regular file: remove or rename it".to_owned()));
    }
    if meta.mode() & 0o002 != 0 {
        return Err(whole("everyone may change this file: run chmod o-w on it".to_owned()));
    }
    durable::read(path, most_bytes).map_err(|error| {
        let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        whole(format!("cannot read the file: {cause}"))
    })
}

/// The text that these bytes of a file are.
pub fn text(path: &Arc<Path>, content: Vec<u8>) -> Result<String, Mistake> {
    String::from_utf8(content).map_err(|error| {
        let readable = String::from_utf8_lossy(&error.as_bytes()[..error.utf8_error().valid_up_to()]);
        let (line, column) = Lines::new(&readable).position(readable.len());
        let message = "not UTF-8 from here on: save the file as UTF-8".to_owned();
        Mistake { path: path.clone(), line, column, message }
    })
}

/// Does work that takes its time, on the disk or on the processor, where it keeps no async thread.
pub async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match spawn_blocking(work).await.map_err(JoinError::try_into_panic) {
        Ok(done) => done,
        Err(Ok(panic)) => std::panic::resume_unwind(panic),
        // The runtime is shutting down and does not begin the work; nor will it go on with who waits for it.
        Err(Err(_cancelled)) => std::future::pending().await,
    }
}
