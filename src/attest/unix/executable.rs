//! `unix:path`: the file the process runs, by the name it has for us.
//!
//! The link `/proc/PID/exe` holds the name the file has for the process, and a process can arrange its mount namespace
//! so that any file has any name. So the name counts only if in our own root it is the same file, by device and
//! inode (peer rule 5). A file that was unlinked has no name any more, but what it was called when this instance
//! was first attested still says which program runs.

use std::fs::Metadata;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::attest::{AttestError, Subject};
use crate::base::quota::Turns;
use crate::sys::procfs::{FileId, ProcDir};

/// The link below `/proc/PID`.
pub(super) const EXE: &str = "exe";
/// Threads that files may keep busy: half of those the runtime has for what may block.
const AT_ONCE: usize = 256;
/// Threads that one user's files may keep busy. Whoever mounts a file system chooses how long it takes to answer.
const AT_ONCE_PER_USER: usize = 2;

/// What the path of the executable came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum PathFinding {
    /// It is this.
    Is(PathBuf),
    /// It has no path that is evidence; why, in words for a person.
    None(String),
}

/// Looks at executables off the async threads, a few at a time for each user.
pub(in crate::attest) struct Files(Turns);

impl Files {
    pub fn new() -> Self {
        Self(Turns::new(AT_ONCE, AT_ONCE_PER_USER))
    }

    /// The path of the subject's executable, which must still be `expected`.
    pub(super) async fn path(&self, subject: &Subject, expected: FileId) -> Result<PathFinding, AttestError> {
        let (proc_dir, known) = (subject.proc_dir.clone(), subject.known_path.clone());
        self.look(subject.share, move || path(&proc_dir, expected, known)).await
    }

    /// Runs `look` where it may block, in one of the user's turns.
    pub async fn look<T: Send + 'static>(
        &self,
        uid: u32,
        look: impl FnOnce() -> Result<T, AttestError> + Send + 'static,
    ) -> Result<T, AttestError> {
        let turn = self.0.turn(uid).await;
        let looked = tokio::task::spawn_blocking(move || {
            let _turn = turn; // held by the thread, which may outlast everybody's patience
            look()
        });
        looked.await.map_err(|error| AttestError::Read { file: EXE, source: io::Error::other(error) })?
    }
}

fn path(proc_dir: &ProcDir, expected: FileId, known: Option<PathBuf>) -> Result<PathFinding, AttestError> {
    let link = proc_dir.read_link(EXE).map_err(|error| AttestError::read(EXE, error))?;
    // Read after the link: a link of another program, before or after an exec, then fails the comparison below.
    expect_executable(proc_dir.file_id(EXE).map_err(|error| AttestError::read(EXE, error))?, expected)?;
    if let Some(known) = known {
        return Ok(PathFinding::Is(known));
    }
    Ok(judge(link, expected, |path| std::fs::metadata(path).map(|found| id_of(&found))))
}

/// Which file `found` is about.
pub(in crate::attest) fn id_of(found: &Metadata) -> FileId {
    FileId { dev: found.dev(), ino: found.ino() }
}

/// The executable must be the one that the instance was recognised by.
pub(super) fn expect_executable(found: FileId, expected: FileId) -> Result<(), AttestError> {
    if found == expected {
        return Ok(());
    }
    let words = |id: FileId| format!("inode {} on device {}", id.ino, id.dev);
    Err(AttestError::Changed { what: "executable", from: words(expected), to: words(found) })
}

/// Rule 5: the name holds if it leads us to the same file.
fn judge(link: PathBuf, expected: FileId, find: impl Fn(&Path) -> io::Result<FileId>) -> PathFinding {
    let shown = link.display();
    match find(&link) {
        Ok(found) if found == expected => PathFinding::Is(link),
        Ok(_) => PathFinding::None(format!(
            "`{shown}` is another file for the agent: the process has a mount namespace of its own, or the file was \
             replaced before the process was first attested"
        )),
        Err(_) if link.as_os_str().as_bytes().ends_with(b" (deleted)") => PathFinding::None(format!(
            "`{shown}` was removed or replaced before the process was first attested; restart the process"
        )),
        Err(error) => PathFinding::None(format!(
            "`{shown}` cannot be found by the agent ({error}): the process has a root or mount namespace of its own, \
             or the agent does (`ProtectHome=`, `PrivateTmp=`)"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: FileId = FileId { dev: 1, ino: 2 };
    const OTHER: FileId = FileId { dev: 1, ino: 3 };

    #[test]
    fn a_path_holds_only_if_it_leads_us_to_the_very_file() {
        type Case = (&'static str, Result<FileId, io::ErrorKind>, Result<(), &'static str>);
        let cases: &[Case] = &[
            ("/usr/bin/a", Ok(OURS), Ok(())),
            ("/usr/bin/a", Ok(OTHER), Err("another file")),
            ("/usr/bin/a", Err(io::ErrorKind::NotFound), Err("cannot be found")),
            ("/usr/bin/a (deleted)", Err(io::ErrorKind::NotFound), Err("restart the process")),
            ("/usr/bin/a (deleted)", Ok(OTHER), Err("another file")),
            ("/usr/bin/a (deleted)", Ok(OURS), Ok(())), // a file may be called so
        ];
        for (link, found, expected) in cases {
            let finding = judge(PathBuf::from(link), OURS, |_| found.map_err(io::Error::from));
            match (finding, expected) {
                (PathFinding::Is(path), Ok(())) => assert_eq!(path, Path::new(link)),
                (PathFinding::None(why), Err(words)) => assert!(why.contains(words), "{why}"),
                (finding, _) => panic!("{link} with {found:?} gave {finding:?}"),
            }
        }
    }

    #[tokio::test]
    async fn a_user_whose_files_hang_does_not_hold_up_another() {
        let files = Files::new();
        let _first = files.0.turn(1).await;
        let _second = files.0.turn(1).await;
        assert!(futures_util::FutureExt::now_or_never(files.look(1, || Ok(()))).is_none());
        assert!(files.look(2, || Ok(())).await.is_ok());
    }
}
