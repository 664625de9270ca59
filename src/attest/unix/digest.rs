//! `unix:sha256`: the digest of the executable.
//!
//! The file is opened through `/proc/PID/exe`, so it is the program that runs, whatever its name leads to now. Digests
//! are kept by device, inode, size, mtime and ctime; the kernel sets ctime at every change of content, and nobody
//! else can. Three cases are not trusted to that: a file changed within the last seconds is hashed again next time,
//! because its next change may carry the same ctime; a file changed while it was hashed has no digest; and a FUSE
//! file never has one, because the user who serves it may show one content to us and run another.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aws_lc_rs::digest::{Context, SHA256};
use nix::sys::statfs::{FUSE_SUPER_MAGIC, fstatfs};
use thiserror::Error;

use super::executable::{EXE, Files, expect_executable, id_of};
use crate::attest::memo::{Computed, Failure, Memo};
use crate::attest::{AttestError, Subject};
use crate::base::clock::Clock;
use crate::base::entropy::hex;
use crate::base::quota::{Queue, Quota, Turns};
use crate::sys::procfs::FileId;

/// Digests that are kept.
const CAPACITY: usize = 4096;
/// How long a digest is kept. Every hour costs nothing, and bounds what a file system with forged times could gain.
const KEEP: Duration = Duration::from_secs(3600);
/// Files hashed at the same time: reading faster than the disk helps nobody.
const AT_ONCE: usize = 2;
/// Files of one user hashed at the same time, so that users take turns.
const AT_ONCE_PER_USER: usize = 1;
/// Files that are open to be hashed.
const QUEUED: usize = 128;
/// Files of one user that are open to be hashed: no fewer than attestations of one user go on by default.
const QUEUED_PER_USER: usize = 16;
/// A change this recent may be followed by another with the same ctime: kernels before 6.13 count in ticks, and some
/// file systems in seconds.
const RECENT_SECONDS: i64 = 2;
const BUFFER_BYTES: usize = 256 * 1024;

/// Digests by file content.
pub(in crate::attest) struct Digests {
    memo: Memo<Version, Arc<str>>,
    clock: Clock,
    max_bytes: u64,
    queue: Queue,
    hashed: Arc<AtomicU64>,
}

/// One content of one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::attest) struct Version {
    id: FileId,
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl From<&Metadata> for Version {
    fn from(found: &Metadata) -> Self {
        Self {
            id: id_of(found),
            bytes: found.size(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        }
    }
}

impl Digests {
    pub fn new(clock: Clock, max_bytes: u64) -> Self {
        let memo = Memo::new(clock.clone(), KEEP, CAPACITY);
        let queue = Queue::new(Turns::new(AT_ONCE, AT_ONCE_PER_USER), Quota::new(QUEUED, QUEUED_PER_USER));
        Self { memo, clock, max_bytes, queue, hashed: Arc::default() }
    }

    /// How many files were hashed so far.
    pub fn hashed(&self) -> u64 {
        self.hashed.load(Ordering::Relaxed)
    }
    /// The digest of the subject's executable, which must still be `expected`, in lower-case hex digits.
    pub async fn of(&self, files: &Files, subject: &Subject, expected: FileId) -> Result<Arc<str>, Failure> {
        let proc_dir = subject.proc_dir.clone();
        let opened = files.look(subject.share, move || {
            let unreadable = |error| AttestError::read(EXE, error);
            let file = proc_dir.open_file(EXE).map_err(unreadable)?;
            let version = Version::from(&file.metadata().map_err(unreadable)?);
            expect_executable(version.id, expected)?;
            let is_fuse =
                fstatfs(&file).map_err(|error| unreadable(error.into()))?.filesystem_type() == FUSE_SUPER_MAGIC;
            Ok((file, version, is_fuse))
        });
        let (file, version, is_fuse) = opened.await.map_err(|error| Failure::from(error.words()))?;
        self.of_content(subject.share, file, version, is_fuse).await
    }

    /// The digest of a file that was opened for a process of `share`, which is `version` and perhaps on FUSE.
    pub(in crate::attest) async fn of_content(
        &self,
        uid: u32,
        file: File,
        version: Version,
        is_fuse: bool,
    ) -> Result<Arc<str>, Failure> {
        if is_fuse {
            return Err("the file is on a FUSE file system, which can show each reader another content".into());
        }
        if version.bytes > self.max_bytes {
            let (size, limit) = (version.bytes, self.max_bytes);
            return Err(format!("the file has {size} bytes; at most {limit} are hashed").into());
        }
        let (queue, hashed, clock) = (self.queue.clone(), self.hashed.clone(), self.clock.clone());
        let compute = async move {
            // In the job and not before it: a caller's patience may be shorter than the queue, and the next one to
            // ask then finds the digest made.
            let Ok(turn) = queue.turn(uid).await else {
                return Err("too many executables of its user wait to be hashed; ask again".into());
            };
            let hashing = tokio::task::spawn_blocking(move || {
                let _turn = turn;
                hashed.fetch_add(1, Ordering::Relaxed);
                hash(&file, version)
            });
            match hashing.await {
                Ok(Ok(value)) => Ok(Computed { value, keep: version.is_settled(&clock) }),
                Ok(Err(error)) => Err(error.to_string().into()),
                Err(_) => Err("hashing the executable failed unexpectedly".into()),
            }
        };
        self.memo.get(uid, version, compute).await
    }
}

impl Version {
    /// Whether every later change of the file must carry another ctime.
    fn is_settled(&self, clock: &Clock) -> bool {
        clock.now().unix_timestamp() - self.changed.0 > RECENT_SECONDS
    }
}

/// Why a file has no digest.
#[derive(Debug, Error)]
enum HashError {
    /// Reading failed half way.
    #[error("the file cannot be read: {0}")]
    Read(#[from] io::Error),
    /// Somebody wrote to it meanwhile.
    #[error("the file was changed while it was hashed; ask again")]
    Changed,
}

fn hash(mut file: &File, version: Version) -> Result<Arc<str>, HashError> {
    let mut context = Context::new(&SHA256);
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut left = version.bytes;
    loop {
        let read = match file.read(&mut buffer) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error.into()),
        };
        if read == 0 {
            break;
        }
        // A file that grows for ever must not keep the thread.
        left = left.checked_sub(read as u64).ok_or(HashError::Changed)?;
        context.update(&buffer[..read]);
    }
    if Version::from(&file.metadata()?) != version {
        return Err(HashError::Changed);
    }
    Ok(hex(context.finish().as_ref()).into())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use futures_util::FutureExt;
    use time::OffsetDateTime;

    use super::*;

    fn version(file: &File) -> Version {
        Version::from(&file.metadata().expect("it is open"))
    }

    #[tokio::test]
    async fn a_user_with_too_many_files_to_hash_is_refused_and_does_not_hold_up_another() {
        let sleeper = crate::attest::tests::Sleeper::start();
        let mut subject = sleeper.subject();
        let crate::attest::ExecutableEvidence::Known(id) = subject.executable else { panic!("it is our own") };
        let (digests, files) = (Digests::new(Clock::system(), u64::MAX), Files::new());
        let jobs = (0..QUEUED_PER_USER).map(|_| digests.queue.turn(subject.share));
        let mut jobs = Box::pin(futures_util::future::join_all(jobs));
        assert!((&mut jobs).now_or_never().is_none());
        let refused = digests.of(&files, &subject, id).await.expect_err("refused");
        assert!(refused.contains("too many"), "{refused}");
        subject.share += 1;
        assert_eq!(digests.of(&files, &subject, id).await.expect("hashed").len(), 64);
    }

    #[test]
    fn the_digest_is_that_of_the_content() {
        let mut file = tempfile::tempfile().expect("temporary");
        file.write_all(b"abc").expect("written");
        std::io::Seek::rewind(&mut file).expect("rewound");
        let digest = hash(&file, version(&file)).expect("hashed");
        assert_eq!(&*digest, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn a_file_that_is_changed_while_it_is_hashed_has_no_digest() {
        let mut file = tempfile::tempfile().expect("temporary");
        let before = version(&file);
        file.write_all(b"abc").expect("written");
        assert!(matches!(hash(&file, before), Err(HashError::Changed)), "nothing was read, but the size differs");
        std::io::Seek::rewind(&mut file).expect("rewound");
        assert!(matches!(hash(&file, before), Err(HashError::Changed)), "there is more to read than there was");
    }

    #[test]
    fn a_file_counts_as_settled_only_some_time_after_its_last_change() {
        let file = tempfile::tempfile().expect("temporary");
        let changed = version(&file);
        let at = |seconds: i64| {
            let now = OffsetDateTime::from_unix_timestamp(changed.changed.0 + seconds).expect("in range");
            Clock::manual(now).0
        };
        assert!(changed.is_settled(&at(3)));
        assert!(!changed.is_settled(&at(2)));
        assert!(!changed.is_settled(&at(-100)), "the clock was set back");
    }
}
