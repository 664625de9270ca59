//! The files a configuration is made of: the one that is named, and the drop-ins beside it.

use std::fs;
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;

use crate::base::ownership::changeable_by_others;
use crate::base::{durable, files, mistake};

use super::load::{Mistake, Mistakes, Place};

/// Far above any real configuration file.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// Far above any real number of drop-ins.
const MAX_DROP_INS: usize = 256;

/// One file that was read.
pub(super) struct Text {
    pub(super) path: PathBuf,
    pub(super) text: String,
}

/// Where the drop-ins of a configuration file are: every `*.toml` in `FILE.d` counts, in the order of their names.
pub fn drop_in_dir(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".d");
    PathBuf::from(name)
}

/// Reads `file` and its drop-ins, each after those it overrides. The file itself may be missing where there are drop-ins.
/// Every file that cannot be read is reported, not only the first.
pub(super) fn read_all(file: &Path) -> Result<Vec<Text>, Mistakes> {
    let drop_ins = match drop_ins(&drop_in_dir(file)) {
        Ok(drop_ins) => drop_ins,
        Err(mistake) => return Err(Mistakes(vec![mistake.into()])),
    };
    let own = match file.try_exists() {
        Ok(false) if !drop_ins.is_empty() => None,
        _ => Some(named(file)),
    };
    let (mut texts, mut mistakes) = (Vec::new(), Vec::new());
    for read in own.into_iter().chain(drop_ins.iter().map(|path| drop_in(path))) {
        match read {
            Ok(text) => texts.push(text),
            Err(mistake) => mistakes.push(mistake),
        }
    }
    if mistakes.is_empty() { Ok(texts) } else { Err(Mistakes(mistakes)) }
}

fn drop_ins(directory: &Path) -> Result<Vec<PathBuf>, mistake::Mistake> {
    if let Ok(false) = directory.try_exists() {
        return Ok(Vec::new());
    }
    is_ours(directory)?;
    Ok(files::list(directory, "toml", MAX_DROP_INS)?.files.iter().map(|path| path.to_path_buf()).collect())
}

/// What counts for where it is, whoever put it there, counts only where that was root or whoever runs this.
fn is_ours(path: &Path) -> Result<(), mistake::Mistake> {
    let meta =
        fs::metadata(path).map_err(|error| mistake::Mistake::whole(path, format!("cannot look at it: {error}")))?;
    let Some(why) = changeable_by_others(&meta, geteuid().as_raw()) else { return Ok(()) };
    Err(mistake::Mistake::whole(path, format!("what is here would count as configuration, and it {why}")))
}

/// The file somebody named: whatever it is, it was meant.
fn named(path: &Path) -> Result<Text, Mistake> {
    let whole = |message| Mistake { place: Place::WholeFile(path.to_owned()), message };
    let content = durable::read(path, MAX_FILE_BYTES).map_err(|error| {
        let why = std::error::Error::source(&error).map(|source| format!(": {source}")).unwrap_or_default();
        whole(format!("{error}{why}; write it, or name another one with --config"))
    })?;
    let text = String::from_utf8(content).map_err(|_| whole("the file is not UTF-8 text".to_owned()))?;
    Ok(Text { path: path.to_owned(), text })
}

/// A file that counts for where it is: not if others can have changed it.
fn drop_in(path: &Path) -> Result<Text, Mistake> {
    is_ours(path)?;
    let content = files::read(path, MAX_FILE_BYTES)?;
    let text = files::text(&path.into(), content)?;
    Ok(Text { path: path.to_owned(), text })
}
