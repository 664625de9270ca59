//! The entries directory as a whole: all of its files are good, or none of them counts.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::entry::{Entry, Origin, rfc3339};
use super::parse::{Interner, Rules, Source, parse_interned};
use crate::base::files;
use crate::base::mistake::Mistake;

/// The largest entries file in bytes.
pub const MAX_FILE_BYTES: u64 = 16 << 20;
/// The most files in the entries directory.
pub const MAX_FILES: usize = 4096;

/// What one look at the directory found.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    /// The entries of all files in order; worth something only when there are no mistakes.
    pub entries: Vec<Arc<Entry>>,
    /// Every mistake, by file and place.
    pub mistakes: Vec<Mistake>,
    /// What is allowed but probably not meant: entries that are over already, a directory open to everyone.
    pub warnings: Vec<Mistake>,
    /// How many files were read.
    pub files: usize,
    /// What was in them, where every one could be read.
    pub texts: Vec<(Arc<Path>, String)>,
}

/// A file of entries: where it was, and what was in it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct FileText<'a> {
    /// Where.
    #[serde(borrow)]
    pub path: Cow<'a, str>,
    /// What.
    #[serde(borrow)]
    pub text: Cow<'a, str>,
}

/// Reads the `*.toml` files of one directory. Hidden files are not entries: editors and volume mounts keep their own
/// things in them. A file that has not changed since the last time is not parsed again.
#[derive(Debug)]
pub struct Loader {
    directory: PathBuf,
    rules: Rules,
    parsed: HashMap<Arc<Path>, Parsed>,
}

#[derive(Debug)]
struct Parsed {
    digest: [u8; 32],
    entries: Box<[Arc<Entry>]>,
}

impl Loader {
    /// A loader that has read nothing yet.
    pub fn new(directory: PathBuf, rules: Rules) -> Self {
        Self { directory, rules, parsed: HashMap::new() }
    }

    /// What entries must obey.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Reads the directory. `others` are the entries from elsewhere, whose ids files must not use. Blocks on the disk.
    pub fn load(&mut self, others: &[Arc<Entry>], now: OffsetDateTime) -> Loaded {
        let mut loaded = Loaded::default();
        let files = match files::list(&self.directory, "toml", MAX_FILES) {
            Ok(listed) => {
                loaded.warnings.extend(listed.warning);
                listed.files
            }
            Err(mistake) => {
                loaded.mistakes.push(mistake);
                return loaded;
            }
        };
        loaded.files = files.len();
        let mut interner = Interner::default();
        // What is gone from the directory is forgotten.
        let mut before = std::mem::take(&mut self.parsed);
        for path in files {
            match self.file(&path, before.remove(&path), &mut interner) {
                Ok((parsed, text)) => {
                    loaded.texts.push((path.clone(), text));
                    loaded.entries.extend(parsed.entries.iter().cloned());
                    self.parsed.insert(path, parsed);
                }
                Err(mistakes) => loaded.mistakes.extend(mistakes),
            }
        }
        loaded.mistakes.extend(clashes(&loaded.entries, others));
        loaded.warnings.extend(loaded.entries.iter().filter(|entry| entry.is_expired(now)).filter_map(over));
        loaded
    }

    fn file(
        &self,
        path: &Arc<Path>,
        before: Option<Parsed>,
        interner: &mut Interner,
    ) -> Result<(Parsed, String), Vec<Mistake>> {
        let content = files::read(path, MAX_FILE_BYTES).map_err(|mistake| vec![mistake])?;
        let mut sha256 = [0; 32];
        sha256.copy_from_slice(digest(&SHA256, &content).as_ref());
        let text = files::text(path, content).map_err(|mistake| vec![mistake])?;
        if let Some(before) = before.filter(|before| before.digest == sha256) {
            return Ok((before, text));
        }
        let entries = parse_interned(&text, &Source::File(path.clone()), &self.rules, interner)?;
        Ok((Parsed { digest: sha256, entries: entries.into_iter().map(Arc::new).collect() }, text))
    }
}

/// Every id that is used twice, at its second place with the first one named.
pub(super) fn clashes(entries: &[Arc<Entry>], others: &[Arc<Entry>]) -> Vec<Mistake> {
    let mut first: HashMap<&str, &Arc<Entry>> = others.iter().map(|entry| (entry.id().as_str(), entry)).collect();
    let mut mistakes = Vec::new();
    for entry in entries {
        let Some(earlier) = first.get(entry.id().as_str()) else {
            first.insert(entry.id().as_str(), entry);
            continue;
        };
        let (id, origin) = (entry.id(), earlier.origin());
        let message = format!("the id `{id}` is already used by the entry from {origin}: choose another");
        mistakes.extend(at(entry, message));
    }
    mistakes
}

fn over(entry: &Arc<Entry>) -> Option<Mistake> {
    let end = rfc3339(entry.expires_at()?);
    at(entry, format!("the entry `{}` expired at {end} and matches nothing: remove it", entry.id()))
}

fn at(entry: &Entry, message: String) -> Option<Mistake> {
    match entry.origin() {
        Origin::File { path, line } => Some(Mistake { path: path.clone(), line: *line, column: 1, message }),
        Origin::Store { .. } | Origin::BuiltIn => None,
    }
}

#[cfg(test)]
mod tests;
