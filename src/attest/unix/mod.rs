//! `unix:*`: user, groups and executable of the process.
//!
//! Users and groups are the effective ones in our user namespace, and all supplementary groups. Names come from the
//! host's name service: an id without a name has no name selector, a name service that fails is a gap for names
//! alone. What holds for `unix:path` and `unix:sha256` stands in [`executable`] and [`digest`].

pub(super) mod digest;
pub(super) mod executable;
mod names;

use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, join_all};
use tokio::time::timeout;

use self::digest::Digests;
use self::executable::{Files, PathFinding};
use super::evidence::NOT_WANTED;
use super::memo::Failure;
use super::{AttestError, Attestor, ExecutableEvidence, Findings, Subject, Wanted};
use crate::base::clock::Clock;
use crate::sys::Status;
use crate::sys::procfs::FileId;

pub(crate) use self::names::Names;
pub use self::names::{NameSource, Nss};

/// More supplementary groups than this are not looked at: their names would cost the name service too much.
const MAX_GROUPS: usize = 1024;

type Keys = &'static [&'static str];
const NAME_KEYS: Keys = &["user", "group", "supplementary_group"];
const EXECUTABLE_KEYS: Keys = &["path", "sha256"];

/// Section `[attest.unix]`.
#[derive(Clone, Debug)]
pub struct Config {
    /// The largest executable that is hashed, in bytes. The digest of a larger one is a gap.
    pub max_hash_bytes: u64,
    /// How long users' and groups' names are kept.
    pub name_cache: Duration,
    /// How long to wait for the name service, and for the file system of the executable, before giving up on these
    /// selectors alone. Below the attestor's deadline, which costs all of them.
    pub patience: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self { max_hash_bytes: 1 << 30, name_cache: Duration::from_secs(60), patience: Duration::from_millis(750) }
    }
}

/// Attests `unix:*`.
pub struct Unix {
    names: Names,
    files: Files,
    digests: Digests,
    patience: Duration,
}

impl Unix {
    /// An attestor that takes names from `source`.
    pub fn new(config: &Config, source: impl NameSource + 'static, clock: Clock) -> Self {
        Self {
            names: Names::new(source, clock.clone(), config.name_cache),
            files: Files::new(),
            digests: Digests::new(clock, config.max_hash_bytes),
            patience: config.patience,
        }
    }

    /// How many files were hashed so far: the others came from the cache.
    pub fn hashed(&self) -> u64 {
        self.digests.hashed()
    }

    async fn look(&self, subject: &Subject, wanted: &Wanted) -> Result<Findings, AttestError> {
        let status = subject.proc_dir.status().map_err(|error| AttestError::read("status", error))?;
        expect_same("user", subject.uid, status.uid)?;
        expect_same("group", subject.gid, status.gid)?;

        let mut findings = Findings::of("unix");
        findings.fact("uid", status.uid);
        findings.fact("gid", status.gid);
        let groups = if status.groups.len() <= MAX_GROUPS { status.groups.as_slice() } else { &[] };
        if status.groups.len() > MAX_GROUPS {
            let why = format!("the process is in more than {MAX_GROUPS} groups");
            findings.gap(&["supplementary_gid", "supplementary_group"], why);
        }
        for gid in groups {
            findings.fact("supplementary_gid", gid);
        }
        // Each part gives its own answer: a dead name service does not cost the path, and the reverse.
        let (names, executable) =
            tokio::join!(self.look_up_names(&status, groups, wanted), self.look_at_executable(subject, wanted));
        Ok(findings.and(names).and(executable))
    }

    async fn look_up_names(&self, status: &Status, groups: &[u32], wanted: &Wanted) -> Findings {
        let mut findings = Findings::of("unix");
        if !NAME_KEYS.iter().any(|key| wanted.has("unix", key)) {
            findings.gap(NAME_KEYS, NOT_WANTED);
            return findings;
        }
        let lookups = async {
            tokio::join!(
                self.names.user(status.uid),
                self.names.group(status.uid, status.gid),
                join_all(groups.iter().map(|gid| self.names.group(status.uid, *gid)))
            )
        };
        let Ok((user, group, supplementary)) = timeout(self.patience, lookups).await else {
            findings.gap(NAME_KEYS, format!("the name service did not answer within {:?}", self.patience));
            return findings;
        };
        add_name(&mut findings, "user", &["user"], user);
        add_name(&mut findings, "group", &["group"], group);
        for name in supplementary {
            add_name(&mut findings, "supplementary_group", &["supplementary_group"], name);
        }
        findings
    }

    async fn look_at_executable(&self, subject: &Subject, wanted: &Wanted) -> Findings {
        let mut findings = Findings::of("unix");
        let expected = match &subject.executable {
            ExecutableEvidence::Known(id) => *id,
            ExecutableEvidence::Withheld { why } => {
                findings.gap(EXECUTABLE_KEYS, why);
                return findings;
            }
        };
        let (path, digest) =
            tokio::join!(self.find_path(subject, expected, wanted), self.find_digest(subject, expected, wanted));
        findings.and(path).and(digest)
    }

    async fn find_path(&self, subject: &Subject, expected: FileId, wanted: &Wanted) -> Findings {
        let mut findings = Findings::of("unix");
        if !wanted.has("unix", "path") {
            findings.gap(&["path"], NOT_WANTED);
            return findings;
        }
        match timeout(self.patience, self.files.path(subject, expected)).await {
            Ok(Ok(PathFinding::Is(path))) => match path.to_str() {
                Some(path) => findings.fact("path", path),
                None => findings.note(format!("`{}` is not UTF-8, so it cannot be a selector", path.display())),
            },
            Ok(Ok(PathFinding::None(why))) => findings.note(why),
            Ok(Err(error)) => findings.gap(&["path"], error.words()),
            Err(_) => findings.gap(&["path"], format!("its file system did not answer within {:?}", self.patience)),
        }
        findings
    }

    async fn find_digest(&self, subject: &Subject, expected: FileId, wanted: &Wanted) -> Findings {
        let mut findings = Findings::of("unix");
        if !wanted.has("unix", "sha256") {
            findings.gap(&["sha256"], NOT_WANTED);
            return findings;
        }
        match timeout(self.patience, self.digests.of(&self.files, subject, expected)).await {
            Ok(Ok(digest)) => findings.fact("sha256", digest),
            Ok(Err(why)) => findings.gap(&["sha256"], &*why),
            Err(_) => findings.gap(&["sha256"], "the executable is still being hashed; ask again"),
        }
        findings
    }
}

impl Attestor for Unix {
    fn kind(&self) -> &'static str {
        "unix"
    }

    fn attest<'a>(&'a self, subject: &'a Subject, wanted: &'a Wanted) -> BoxFuture<'a, Result<Findings, AttestError>> {
        self.look(subject, wanted).boxed()
    }
}

/// Adds the name of one user or group, if it has one.
fn add_name(findings: &mut Findings, key: &'static str, keys: Keys, name: Result<Option<String>, Failure>) {
    match name {
        Ok(Some(name)) => findings.fact(key, name),
        Ok(None) => {}
        Err(why) => findings.gap(keys, &*why),
    }
}

/// The instance and the kernel must agree on who the process is, or one of them is about another moment.
fn expect_same(what: &'static str, expected: u32, found: u32) -> Result<(), AttestError> {
    if expected == found {
        return Ok(());
    }
    Err(AttestError::Changed { what, from: expected.to_string(), to: found.to_string() })
}

/// Entry point for fuzzing: reads arbitrary bytes as `/proc/PID/status`.
pub(super) fn fuzz_status(bytes: &[u8]) {
    let _ = Status::parse(bytes);
}

#[cfg(test)]
mod tests;
