//! One registration entry: which processes get which identity, and how.

use std::borrow::Borrow;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::draft::EntryDraft;
use super::keys::{Key, KeySet};
use super::template::Template;
use crate::id::{SpiffeId, TrustDomain};
use crate::proof::{TargetUri, UriPrefix};
use crate::selector::{self, Selector};

/// The name of an entry: unique over files and store, in ledger and audit. Letters, digits, `.`, `_` and `-`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EntryId(Arc<str>);

/// The longest entry id in bytes.
pub(super) const MAX_ENTRY_ID_BYTES: usize = 255;

impl EntryId {
    /// Parses an id: 1 to 255 of `A-Z a-z 0-9 . _ -`. `None` when it is something else.
    pub fn parse(text: &str) -> Option<Self> {
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        let whole = (1..=MAX_ENTRY_ID_BYTES).contains(&text.len()) && text.bytes().all(legal);
        whole.then(|| Self(text.into()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for EntryId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whose end revokes what was issued.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Bind {
    /// The process.
    #[default]
    Process,
    /// Its cgroup: the systemd unit or container.
    Unit,
    /// The node.
    Node,
}

impl fmt::Display for Bind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Process => "process",
            Self::Unit => "unit",
            Self::Node => "node",
        })
    }
}

/// Where an entry comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A file in the entries directory.
    File {
        /// The file.
        path: Arc<Path>,
        /// The line its table begins at, counted from 1.
        line: u32,
    },
    /// The store: made through the admin API.
    Store {
        /// The store's revision of it.
        revision: u64,
        /// When it was first made.
        created_at: OffsetDateTime,
    },
    /// The agent itself (`--dev`).
    BuiltIn,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line } => write!(f, "file {}:{line}", path.display()),
            Self::Store { .. } => f.write_str("store"),
            Self::BuiltIn => f.write_str("built-in"),
        }
    }
}

/// A registration entry that was checked: it cannot be changed and has no mistakes.
///
/// There may be 100,000 of them, so what many have in common is shared, and what few have is kept apart.
#[derive(Clone, PartialEq, Eq)]
pub struct Entry(Fields);

/// What the parser fills in.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Fields {
    pub(super) id: EntryId,
    pub(super) spiffe_id: Template,
    pub(super) matches: Selectors,
    pub(super) origin: Origin,
    pub(super) common: Arc<Common>,
    pub(super) rare: Option<Box<Rare>>,
}

/// What many entries have in common.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Common {
    pub(super) owner: Option<Box<str>>,
    pub(super) audiences: Box<[Box<str>]>,
    pub(super) x509_ttl: Option<Duration>,
    pub(super) jwt_ttl: Option<Duration>,
    pub(super) bind: Bind,
    pub(super) single_use: bool,
    pub(super) exportable: bool,
    pub(super) disabled: bool,
}

/// A list of selectors that needs no memory of its own when it has two, as most have.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Selectors {
    Two([Selector; 2]),
    Any(Box<[Selector]>),
}

impl From<Vec<Selector>> for Selectors {
    fn from(list: Vec<Selector>) -> Self {
        list.try_into().map_or_else(|list: Vec<_>| Self::Any(list.into()), Self::Two)
    }
}

/// What few entries have.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Rare {
    pub(super) unless: Box<[Selector]>,
    pub(super) hint: Option<Box<str>>,
    pub(super) serves: Box<[Box<str>]>,
    pub(super) may_act_for: Box<[Box<str>]>,
    pub(super) dns_names: Box<[Box<str>]>,
    pub(super) federates_with: Box<[TrustDomain]>,
    pub(super) credential_ttl: Option<Duration>,
    pub(super) expires_at: Option<OffsetDateTime>,
}

impl Entry {
    pub(super) fn new(mut fields: Fields) -> Self {
        if fields.rare.as_deref() == Some(&Rare::default()) {
            fields.rare = None;
        }
        Self(fields)
    }

    /// Its name.
    pub fn id(&self) -> &EntryId {
        &self.0.id
    }

    /// The SPIFFE ID it gives, perhaps with placeholders.
    pub fn spiffe_id(&self) -> &Template {
        &self.0.spiffe_id
    }

    /// The selectors that must all hold; never empty.
    pub fn matches(&self) -> &[Selector] {
        match &self.0.matches {
            Selectors::Two(list) => list,
            Selectors::Any(list) => list,
        }
    }

    /// The selectors of which any one forbids.
    pub fn unless(&self) -> &[Selector] {
        self.0.rare.as_ref().map_or(&[], |rare| &rare.unless)
    }

    /// Who answers for it; present outside `--dev`.
    pub fn owner(&self) -> Option<&str> {
        self.0.common.owner.as_deref()
    }

    /// The hint it asks for. Whether a process gets it is [`super::Identity::hint`]'s answer.
    pub fn hint(&self) -> Option<&str> {
        self.0.rare.as_ref()?.hint.as_deref()
    }

    /// The lifetime of its X.509-SVIDs; `None` for the default.
    pub fn x509_ttl(&self) -> Option<Duration> {
        self.0.common.x509_ttl
    }

    /// The lifetime of its JWT-SVIDs; `None` for the default.
    pub fn jwt_ttl(&self) -> Option<Duration> {
        self.0.common.jwt_ttl
    }

    /// The lifetime of X.509-SVIDs given as credentials of a systemd unit; `None` for the default.
    pub fn credential_ttl(&self) -> Option<Duration> {
        self.0.rare.as_ref()?.credential_ttl
    }

    /// The audiences its JWT-SVIDs may have; `*` alone for any.
    pub fn audiences(&self) -> &[Box<str>] {
        &self.0.common.audiences
    }

    /// Whether its JWT-SVIDs may have this audience.
    pub fn allows_audience(&self, audience: &str) -> bool {
        self.0.common.audiences.iter().any(|allowed| **allowed == *audience || **allowed == *ANY)
    }

    /// The URI prefixes for which the workload may check proofs; `*` alone for any.
    pub fn serves(&self) -> &[Box<str>] {
        self.0.rare.as_ref().map_or(&[], |rare| &rare.serves)
    }

    /// Whether the workload may check proofs for this URI.
    pub fn serves_uri(&self, uri: &TargetUri) -> bool {
        self.serves().iter().any(|prefix| UriPrefix::parse(prefix).is_ok_and(|prefix| prefix.covers(uri)))
    }

    /// The SPIFFE IDs in whose name the workload may ask; one that ends in `/*` stands for all below.
    pub fn may_act_for(&self) -> &[Box<str>] {
        self.0.rare.as_ref().map_or(&[], |rare| &rare.may_act_for)
    }

    /// Whether the workload may ask in the name of this SPIFFE ID.
    pub fn acts_for(&self, id: &SpiffeId) -> bool {
        let id = id.to_string();
        self.may_act_for().iter().any(|pattern| match pattern.strip_suffix("/*") {
            Some(above) => id.strip_prefix(above).is_some_and(|below| below.len() > 1 && below.starts_with('/')),
            None => **pattern == *id,
        })
    }

    /// The DNS names in its X.509-SVIDs.
    pub fn dns_names(&self) -> &[Box<str>] {
        self.0.rare.as_ref().map_or(&[], |rare| &rare.dns_names)
    }

    /// The foreign trust domains whose bundles the workload gets.
    pub fn federates_with(&self) -> &[TrustDomain] {
        self.0.rare.as_ref().map_or(&[], |rare| &rare.federates_with)
    }

    /// Whose end revokes what it gave.
    pub fn bind(&self) -> Bind {
        self.0.common.bind
    }

    /// Whether each of its JWT-SVIDs is valid once: this agent's `ValidateJWTSVID` accepts it the first time only. Its
    /// other documents are what they are without it.
    pub fn is_single_use(&self) -> bool {
        self.0.common.single_use
    }

    /// Whether keys and tokens may be written to files.
    pub fn is_exportable(&self) -> bool {
        self.0.common.exportable
    }

    /// Whether it is switched off.
    pub fn is_disabled(&self) -> bool {
        self.0.common.disabled
    }

    /// When it ends.
    pub fn expires_at(&self) -> Option<OffsetDateTime> {
        self.0.rare.as_ref()?.expires_at
    }

    /// Whether it has ended.
    pub fn is_expired(&self, now: OffsetDateTime) -> bool {
        self.expires_at().is_some_and(|end| end <= now)
    }

    /// Where it comes from.
    pub fn origin(&self) -> &Origin {
        &self.0.origin
    }

    /// Whether its answer depends on which program runs, so that the peer must prove that it is still that program
    /// and holds its connection close-on-exec (peer rule 3).
    pub fn depends_on_executable(&self) -> bool {
        self.all_keys().iter().any(|key| selector::is_about_executable(key.kind(), key.key()))
    }

    /// One `[[entry]]` table that is read back as this entry.
    pub fn to_toml(&self) -> String {
        EntryDraft::from(self).to_toml()
    }

    /// The kinds of selectors in `match`.
    pub(super) fn match_keys(&self) -> KeySet {
        self.matches().iter().map(Key::of).collect()
    }

    /// The kinds of selectors it looks at anywhere.
    pub(super) fn all_keys(&self) -> KeySet {
        let unless: KeySet = self.unless().iter().map(Key::of).collect();
        self.match_keys().union(unless).union(self.spiffe_id().keys())
    }
}

/// Stands for everything in `audiences` and `serves`.
pub(super) const ANY: &str = "*";

/// A time as people and programs read it.
pub(super) fn rfc3339(at: OffsetDateTime) -> String {
    // Only years beyond 9999 cannot be written, and the parser let none in.
    at.format(&Rfc3339).unwrap_or_else(|_| at.to_string())
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Entry({} from {})", self.id(), self.origin())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entry_ids_have_safe_characters_only() {
        for byte in 0..=255u8 {
            let c = char::from(byte);
            let legal = c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
            assert_eq!(EntryId::parse(&format!("x{c}")).is_some(), legal, "{c:?}");
        }
        assert!(EntryId::parse("").is_none());
        assert!(EntryId::parse(&"a".repeat(255)).is_some());
        assert!(EntryId::parse(&"a".repeat(256)).is_none());
    }

    #[test]
    fn an_entry_is_small() {
        assert!(size_of::<Entry>() <= 120, "{}", size_of::<Entry>());
    }
}
