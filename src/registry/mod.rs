//! Registration: which process gets which identity.
//!
//! Entries come from files (`entries.d/*.toml`), from the store (made through the admin API) and from the agent itself
//! (`--dev`). They become one immutable [`Index`]; a change builds the next index and flips a watch, so a reader never
//! locks and never sees half a change.
//!
//! What holds:
//! - a set of files with any mistake in it changes nothing, also over a restart of the agent, and every mistake is
//!   reported with its place;
//! - not knowing is never taken for a no: an entry whose selectors could not be established is unavailable;
//! - the order of identities is the order of entries: files by path and position, then the store by age, then built-in
//!   ones. Who may only use the admin API cannot displace an identity or a hint that a file gives.
//!
//! What does not: a file that a link in the directory points to is watched through the link's own directory only; after
//! an edit elsewhere, reload.

mod draft;
mod entry;
mod fields;
mod import;
mod index;
mod judge;
mod kept;
mod keys;
mod lifetime;
mod load;
mod parse;
mod reference;
mod service;
mod template;

pub use crate::base::mistake::Mistake;
pub use draft::EntryDraft;
pub use entry::{Bind, Entry, EntryId, Origin};
pub use import::{ImportOptions, ImportProblem, Imported, Parents, spire_entries};
pub use index::{Explained, Identity, Index, Matched, Unavailable, Verdict};
pub(crate) use lifetime::parse as parse_lifetime;
pub use load::{Loaded, Loader};
pub use parse::{Rules, Source, parse_entries, parse_entry};
pub use reference::{FIELDS, FieldDoc, SELECTORS, SelectorDoc};
pub use service::{LoadState, Registry, RegistryError};
pub use template::{Template, TemplateError, Unexpanded};
