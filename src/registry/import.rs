//! Takes over the registration entries of a SPIRE server: what `spire-server entry show -output json` prints.
//!
//! The output is the protobuf JSON of a list of `spire.api.types.Entry` with its field names as in the proto file,
//! unset fields present, and 64-bit numbers as texts. What an entry asks for that this agent does not do is refused by
//! name, never dropped: a dropped selector or flag would give an identity to more processes than before.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use thiserror::Error;
use time::OffsetDateTime;

use super::draft::EntryDraft;
use super::entry::{ANY, rfc3339};
use super::lifetime;
use super::parse::{Rules, Source, parse_entry};
use crate::id::SpiffeId;

/// Of which parents the entries are taken: a SPIRE server has those of every node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parents {
    /// All of them.
    All,
    /// Those with these parent ids.
    Only(Vec<SpiffeId>),
}

/// How to import.
#[derive(Clone, Debug)]
pub struct ImportOptions {
    /// Which entries.
    pub parents: Parents,
    /// Who answers for them here.
    pub owner: String,
    /// What entries must obey on this agent, its trust domain included.
    pub rules: Rules,
}

/// Entries that can be written to a file, and what the reader should know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// The entries, oldest first: that is the order SPIRE prefers them in.
    pub entries: Vec<EntryDraft>,
    /// What is different from before.
    pub warnings: Vec<String>,
    /// How many entries have other parents.
    pub skipped: usize,
}

impl Imported {
    /// The entries as one file.
    pub fn to_toml(&self) -> String {
        self.entries.iter().map(EntryDraft::to_toml).collect::<Vec<_>>().join("\n")
    }
}

/// Why something cannot be imported. All problems are listed at once; none is imported until there are none.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ImportProblem {
    /// The text is not what the command prints.
    #[error("this is not the output of `spire-server entry show -output json`: {0}")]
    Format(String),
    /// The text is one page of several.
    #[error("the list of entries is not complete: it has a token for a next page")]
    Incomplete,
    /// An entry asks for what this agent does not do, or breaks a rule.
    #[error("entry `{entry}`: {what}")]
    Entry {
        /// Its id in SPIRE, or its number when it has none.
        entry: String,
        /// What it is.
        what: String,
    },
    /// A chosen parent has no entries: most likely it is misspelt.
    #[error("no entry has the parent `{0}`")]
    NoSuchParent(SpiffeId),
}

#[derive(Deserialize)]
struct Page {
    entries: Vec<SpireEntry>,
    #[serde(default)]
    next_page_token: String,
}

#[derive(Deserialize)]
struct SpireEntry {
    #[serde(default)]
    id: String,
    spiffe_id: SpireId,
    parent_id: SpireId,
    #[serde(default)]
    selectors: Vec<SpireSelector>,
    #[serde(default)]
    x509_svid_ttl: Number,
    #[serde(default)]
    jwt_svid_ttl: Number,
    #[serde(default)]
    federates_with: Vec<String>,
    #[serde(default)]
    admin: bool,
    #[serde(default)]
    downstream: bool,
    #[serde(default)]
    store_svid: bool,
    #[serde(default)]
    expires_at: Number,
    #[serde(default)]
    created_at: Number,
    #[serde(default)]
    dns_names: Vec<String>,
    #[serde(default)]
    hint: String,
    /// Everything else.
    #[serde(flatten)]
    others: BTreeMap<String, Value>,
}

#[derive(Deserialize)]
struct SpireId {
    trust_domain: String,
    path: String,
}

impl SpireId {
    fn uri(&self) -> String {
        format!("spiffe://{}{}", self.trust_domain, self.path)
    }
}

#[derive(Deserialize)]
struct SpireSelector {
    #[serde(rename = "type")]
    kind: String,
    value: String,
}

/// Protobuf JSON writes 64-bit numbers as texts and 32-bit ones as numbers, and lets readers accept either.
#[derive(Clone, Copy, Default, Deserialize)]
#[serde(try_from = "Value")]
struct Number(i64);

impl TryFrom<Value> for Number {
    type Error = String;
    fn try_from(value: Value) -> Result<Self, String> {
        let number = match &value {
            Value::Null => Some(0),
            Value::Number(number) => number.as_i64(),
            Value::String(text) => text.parse().ok(),
            _ => None,
        };
        number.map(Self).ok_or_else(|| format!("expected a number, found {value}"))
    }
}

/// Fields that have no counterpart here because this agent always, or never, does what they say.
const WITHOUT_COUNTERPART: &[&str] = &["revision_number", "additional_attributes"];
/// What is known of `additional_attributes`: nothing is prefetched, and tokens always have a `jti`.
const KNOWN_ATTRIBUTES: &[&str] = &["disable_x509_svid_prefetch", "jwt_svid_include_jti"];

/// Turns the JSON into entries. `now` tells which of them are over already.
pub fn spire_entries(
    json: &[u8],
    options: &ImportOptions,
    now: OffsetDateTime,
) -> Result<Imported, Vec<ImportProblem>> {
    let entries = pages(json).map_err(|problem| vec![problem])?;
    let mut import = Import { options, now, problems: Vec::new(), warnings: Vec::new(), ids: HashSet::new() };
    import.parents_exist(&entries);

    let total = entries.len();
    let mut chosen: Vec<(usize, SpireEntry)> =
        entries.into_iter().enumerate().filter(|(_, entry)| is_chosen(&options.parents, entry)).collect();
    chosen.sort_by(|(_, a), (_, b)| (a.created_at.0, &a.id).cmp(&(b.created_at.0, &b.id)));
    let skipped = total - chosen.len();
    let drafts: Vec<EntryDraft> = chosen.iter().map(|(number, entry)| import.entry(*number, entry)).collect();
    if !import.problems.is_empty() {
        return Err(import.problems);
    }
    if !drafts.is_empty() {
        import.warnings.push(
            "every imported entry may get JWT-SVIDs for any audience, as in SPIRE: narrow `audiences = [\"*\"]` \
             to what each workload needs"
                .to_owned(),
        );
    }
    Ok(Imported { entries: drafts, warnings: import.warnings, skipped })
}

/// The command prints one page, or a list of pages when it asked for several.
fn pages(json: &[u8]) -> Result<Vec<SpireEntry>, ImportProblem> {
    let format = |error: serde_json::Error| ImportProblem::Format(error.to_string());
    let is_list = json.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[');
    let pages: Vec<Page> = match is_list {
        true => serde_json::from_slice(json).map_err(format)?,
        false => vec![serde_json::from_slice(json).map_err(format)?],
    };
    if pages.last().is_some_and(|last| !last.next_page_token.is_empty()) {
        return Err(ImportProblem::Incomplete);
    }
    Ok(pages.into_iter().flat_map(|page| page.entries).collect())
}

fn is_chosen(parents: &Parents, entry: &SpireEntry) -> bool {
    match parents {
        Parents::All => true,
        Parents::Only(parents) => parents.iter().any(|parent| parent.as_str() == entry.parent_id.uri()),
    }
}

struct Import<'a> {
    options: &'a ImportOptions,
    now: OffsetDateTime,
    problems: Vec<ImportProblem>,
    warnings: Vec<String>,
    ids: HashSet<String>,
}

impl Import<'_> {
    fn parents_exist(&mut self, entries: &[SpireEntry]) {
        let Parents::Only(parents) = &self.options.parents else { return };
        let known: HashSet<String> = entries.iter().map(|entry| entry.parent_id.uri()).collect();
        let missing = parents.iter().filter(|parent| !known.contains(parent.as_str()));
        self.problems.extend(missing.cloned().map(ImportProblem::NoSuchParent));
    }

    fn entry(&mut self, number: usize, entry: &SpireEntry) -> EntryDraft {
        let name = if entry.id.is_empty() { format!("number {}", number + 1) } else { entry.id.clone() };
        let mut problems = refusals(entry);
        if !entry.id.is_empty() && !self.ids.insert(entry.id.clone()) {
            problems.push("its id is there twice".to_owned());
        }
        let mut ttl = |field: &str, Number(seconds)| match u64::try_from(seconds) {
            Ok(0) => None,
            Ok(seconds) => Some(lifetime::show(Duration::from_secs(seconds))),
            Err(_) => {
                problems.push(format!("`{field}` is negative"));
                None
            }
        };
        let x509_ttl = ttl("x509_svid_ttl", entry.x509_svid_ttl);
        let jwt_ttl = ttl("jwt_svid_ttl", entry.jwt_svid_ttl);
        let expires_at = match entry.expires_at.0 {
            0 => None,
            seconds => match OffsetDateTime::from_unix_timestamp(seconds) {
                Ok(end) => {
                    if end <= self.now {
                        self.warnings.push(format!("entry `{name}` expired at {} and matches nothing", rfc3339(end)));
                    }
                    Some(rfc3339(end))
                }
                Err(_) => {
                    problems.push(format!("`expires_at` is not a time: {seconds}"));
                    None
                }
            },
        };
        let draft = EntryDraft {
            id: Some(entry.id.clone()).filter(|id| !id.is_empty()),
            spiffe_id: entry.spiffe_id.uri(),
            matches: once(entry.selectors.iter().map(|s| format!("{}:{}", s.kind, s.value))),
            owner: Some(self.options.owner.clone()),
            hint: Some(entry.hint.clone()).filter(|hint| !hint.is_empty()),
            x509_ttl,
            jwt_ttl,
            audiences: vec![ANY.to_owned()],
            dns_names: once(entry.dns_names.iter().cloned()),
            federates_with: once(
                entry.federates_with.iter().map(|name| name.strip_prefix("spiffe://").unwrap_or(name).to_owned()),
            ),
            expires_at,
            ..EntryDraft::default()
        };
        // The one parser has the last word, on selectors too.
        if let Err(mistakes) = parse_entry(&draft.to_toml(), &Source::BuiltIn, &self.options.rules) {
            problems.extend(mistakes.into_iter().map(|mistake| mistake.message));
        }
        self.problems.extend(problems.into_iter().map(|what| ImportProblem::Entry { entry: name.clone(), what }));
        draft
    }
}

/// What an entry asks for that cannot be taken over.
fn refusals(entry: &SpireEntry) -> Vec<String> {
    let mut refusals = Vec::new();
    let flags = [
        (entry.admin, "it is an admin entry: administrators here are groups in `[admin]`"),
        (entry.downstream, "it is a downstream entry: this agent signs for no further servers"),
        (entry.store_svid, "it stores its SVID elsewhere: this agent gives SVIDs to processes only"),
    ];
    refusals.extend(flags.iter().filter(|(set, _)| *set).map(|(_, what)| (*what).to_owned()));
    for (field, value) in &entry.others {
        if field == "additional_attributes" {
            let attributes = value.as_object().into_iter().flatten();
            let unknown =
                attributes.filter(|(name, value)| is_set(value) && !KNOWN_ATTRIBUTES.contains(&name.as_str()));
            refusals.extend(unknown.map(|(name, _)| format!("its additional attribute `{name}` is not known")));
        } else if is_set(value) && !WITHOUT_COUNTERPART.contains(&field.as_str()) {
            refusals.push(format!("its field `{field}` is not known"));
        }
    }
    refusals
}

/// Whether a field has another value than protobuf's default.
fn is_set(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(set) => *set,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty() && text != "0",
        Value::Array(list) => !list.is_empty(),
        Value::Object(fields) => fields.values().any(is_set),
    }
}

/// Each text once, in its first place.
fn once(texts: impl Iterator<Item = String>) -> Vec<String> {
    let mut seen = HashSet::new();
    texts.filter(|text| seen.insert(text.clone())).collect()
}

#[cfg(test)]
mod tests;
