//! Where the log is, how much of it is kept, and what happens when it cannot be written.

use std::path::PathBuf;
use std::time::Duration;

/// What becomes of an effect whose record cannot be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFailure {
    /// It does not happen: nothing is issued.
    #[default]
    Refuse,
    /// It happens, the agent is not ready and says why, and the records that are lost are counted.
    Alarm,
}

/// Where the log is, how much of it is kept, and what happens when it cannot be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Its directory, which is the agent's alone.
    pub dir: PathBuf,
    /// The file that says which record was the last; not in `dir`.
    pub head: PathBuf,
    /// A file that has so many bytes is left alone, and a new one begun.
    pub rotate: u64,
    /// So many files are kept; at least 2.
    pub keep: usize,
    /// Records are removed at the latest this long after they were written.
    pub keep_for: Option<Duration>,
    /// What becomes of an effect whose record cannot be written.
    pub on_failure: OnFailure,
}
