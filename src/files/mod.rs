//! SVIDs as files, for programs that read files: written as sets, kept fresh, and the program told.
//!
//! # What it promises
//! - Everything comes from the agent's service for exports: only entries with `exportable = true` and bound to more than a
//!   process give anything, so that a restart of this revokes nothing before its replacement is in place.
//! - A set of files is put in force as one ([`Layout::Swap`]), with owner and mode applied before anybody sees it, and
//!   only when something in it has changed. Whatever dies meanwhile, what is in force are files of one set.
//! - The program is told after that, and again with growing delays until it could be told. Files stay whatever becomes of
//!   that.
//!
//! # What it does not
//! A key in a file works for whoever reads it, until it expires or is on a list that is enforced; that is what files are.
//! Who opens two files of a set one after the other, at any time it likes, may open one before and one after a change: a
//! program that reads when it is told does not, and one that cannot be told needs [`Part::Combined`].

mod config;
mod hcl;
mod helper;
mod keeper;
mod output;
mod reload;
mod render;
mod systemd;

pub use config::{Config, read};
pub use helper::{Migrated, read as read_helper};
pub use keeper::{Keeper, Notice, WriteError};
pub use output::{Draft, FileNames, JwtDraft, Layout, Mode, Names, Output, OutputError, Part, signal};
pub use reload::{Reload, ReloadError};
