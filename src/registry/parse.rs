//! Entries from TOML: the one way an [`Entry`] comes to be.
//!
//! Every mistake in a text is reported, not only the first. When the text is not TOML at all only that is reported:
//! what the rest of it means would be a guess.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use time::OffsetDateTime;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::entry::{ANY, Bind, Common, Entry, EntryId, Fields, Origin, Rare};
use super::keys::{Key, KeySet};
use super::reference::FIELDS;
use super::template::Template;
use super::{fields, lifetime};
use crate::base::entropy::hex;
use crate::base::mistake::{Lines, Mistake};
use crate::id::TrustDomain;
use crate::selector::Selector;

/// What entries must obey on this agent.
#[derive(Clone, Debug)]
pub struct Rules {
    /// The trust domain of every SPIFFE ID.
    pub trust_domain: TrustDomain,
    /// Whether every entry needs an owner; not in `--dev`.
    pub owner_required: bool,
    /// The longest `x509_ttl` and `credential_ttl`.
    pub max_x509_ttl: Duration,
    /// The longest `jwt_ttl`.
    pub max_jwt_ttl: Duration,
}

impl Rules {
    /// The rules outside `--dev`: owners are required; X.509-SVIDs live a day at most, because their CA lives no
    /// longer, and JWT-SVIDs, which whoever holds them can use, an hour.
    pub fn new(trust_domain: TrustDomain) -> Self {
        Self {
            trust_domain,
            owner_required: true,
            max_x509_ttl: Duration::from_secs(86_400),
            max_jwt_ttl: Duration::from_secs(3_600),
        }
    }
}

/// Where a text comes from, for the origin of its entries.
#[derive(Clone, Debug)]
pub enum Source {
    /// A file.
    File(Arc<Path>),
    /// The store.
    Store {
        /// The store's revision of the entry.
        revision: u64,
        /// When it was first made.
        created_at: OffsetDateTime,
    },
    /// The agent itself.
    BuiltIn,
}

/// Parses a text of any number of `[[entry]]` tables. On failure: every mistake, in the order of the text.
pub fn parse_entries(text: &str, source: &Source, rules: &Rules) -> Result<Vec<Entry>, Vec<Mistake>> {
    parse_interned(text, source, rules, &mut Interner::default())
}

/// Parses a text of exactly one `[[entry]]` table; its fields may also stand at the top level.
pub fn parse_entry(text: &str, source: &Source, rules: &Rules) -> Result<Entry, Vec<Mistake>> {
    let mut interner = Interner::default();
    let mut parser = Parser::new(text, source, rules, &mut interner);
    let table = parser.toml(text)?;
    let entries = match table.keys().all(|key| key.get_ref() == ENTRY) {
        true => parser.file(&table),
        false => parser.entry(&table, 0..0).into_iter().collect(),
    };
    let mut entries = parser.finish(entries)?.into_iter();
    match (entries.next(), entries.next()) {
        (Some(entry), None) => Ok(entry),
        _ => Err(vec![Mistake::whole(source.path(), "expected exactly one `[[entry]]` table")]),
    }
}

pub(super) fn parse_interned(
    text: &str,
    source: &Source,
    rules: &Rules,
    interner: &mut Interner,
) -> Result<Vec<Entry>, Vec<Mistake>> {
    let mut parser = Parser::new(text, source, rules, interner);
    let table = parser.toml(text)?;
    let entries = parser.file(&table);
    parser.finish(entries)
}

impl Source {
    fn path(&self) -> &Path {
        match self {
            Self::File(path) => path,
            Self::Store { .. } | Self::BuiltIn => Path::new(""),
        }
    }

    fn origin(&self, line: u32) -> Origin {
        match self {
            Self::File(path) => Origin::File { path: path.clone(), line },
            Self::Store { revision, created_at } => Origin::Store { revision: *revision, created_at: *created_at },
            Self::BuiltIn => Origin::BuiltIn,
        }
    }
}

/// Shares what is equal among entries: thousands of them have the same owner and audiences, and often the same uid.
#[derive(Default)]
pub(super) struct Interner {
    selectors: HashMap<Box<str>, Selector>,
    common: HashSet<Arc<Common>>,
}

impl Interner {
    fn selector(&mut self, text: &str) -> Result<Selector, String> {
        if let Some(known) = self.selectors.get(text) {
            return Ok(known.clone());
        }
        let selector = fields::selector(text)?;
        self.selectors.insert(text.into(), selector.clone());
        Ok(selector)
    }

    fn common(&mut self, common: Common) -> Arc<Common> {
        if let Some(known) = self.common.get(&common) {
            return known.clone();
        }
        let shared = Arc::new(common);
        self.common.insert(shared.clone());
        shared
    }
}

const ENTRY: &str = "entry";

type Value<'a> = Spanned<DeValue<'a>>;

struct Parser<'a> {
    lines: Lines<'a>,
    path: Arc<Path>,
    source: &'a Source,
    rules: &'a Rules,
    interner: &'a mut Interner,
    mistakes: Vec<Mistake>,
}

impl<'a> Parser<'a> {
    fn new(text: &'a str, source: &'a Source, rules: &'a Rules, interner: &'a mut Interner) -> Self {
        let path = match source {
            Source::File(path) => path.clone(),
            Source::Store { .. } | Source::BuiltIn => Path::new("").into(),
        };
        Self { lines: Lines::new(text), path, source, rules, interner, mistakes: Vec::new() }
    }

    fn finish(mut self, entries: Vec<Entry>) -> Result<Vec<Entry>, Vec<Mistake>> {
        if self.mistakes.is_empty() {
            return Ok(entries);
        }
        self.mistakes.sort();
        Err(self.mistakes)
    }

    fn mistake(&mut self, at: &Range<usize>, message: impl Into<String>) {
        let (line, column) = self.lines.position(at.start);
        self.mistakes.push(Mistake { path: self.path.clone(), line, column, message: message.into() });
    }

    fn toml(&mut self, text: &'a str) -> Result<DeTable<'a>, Vec<Mistake>> {
        let (table, errors) = DeTable::parse_recoverable(text);
        for error in errors {
            self.mistake(&error.span().unwrap_or(0..0), error.message());
        }
        if self.mistakes.is_empty() { Ok(table.into_inner()) } else { Err(std::mem::take(&mut self.mistakes)) }
    }

    fn file(&mut self, table: &DeTable<'a>) -> Vec<Entry> {
        let mut entries = Vec::new();
        for (key, value) in table {
            if key.get_ref() != ENTRY {
                let text = format!("unknown key `{}`: a file has only `[[entry]]` tables", key.get_ref());
                self.mistake(&key.span(), text);
                continue;
            }
            let Some(tables) = value.get_ref().as_array() else {
                self.mistake(&key.span(), "`entry` is a list of tables: write `[[entry]]` with two brackets");
                continue;
            };
            for table in tables.iter() {
                match table.get_ref().as_table() {
                    Some(fields) => entries.extend(self.entry(fields, table.span())),
                    None => self.mistake(&table.span(), "`entry` is a list of tables: write `[[entry]]`"),
                }
            }
        }
        entries
    }

    fn entry(&mut self, table: &DeTable<'a>, at: Range<usize>) -> Option<Entry> {
        let before = self.mistakes.len();
        let rules = self.rules;
        let domain = &rules.trust_domain;

        let (mut id, mut spiffe_id, mut owner, mut matches) = (None, None, None, None);
        let (mut x509_ttl, mut jwt_ttl, mut single_use, mut exportable) = (None, None, None, None);
        let (mut audiences, mut bind, mut disabled) = (Vec::new(), None, None);
        let mut rare = Rare::default();
        let mut unless: Vec<Selector> = Vec::new();
        for (key, value) in table {
            match key.get_ref().as_ref() {
                "id" => id = self.one(key, value, fields::id),
                "spiffe_id" => {
                    let parsed = self.one(key, value, |text| Template::parse(text, domain).map_err(|e| with_cause(&e)));
                    spiffe_id = Some(parsed);
                }
                "match" => matches = Some(self.selectors(key, value)),
                "unless" => unless = self.selectors(key, value),
                "owner" => owner = Some(self.one(key, value, fields::owner)),
                "hint" => rare.hint = self.one(key, value, fields::hint),
                "x509_ttl" => x509_ttl = self.lifetime(key, value, rules.max_x509_ttl),
                "jwt_ttl" => jwt_ttl = self.lifetime(key, value, rules.max_jwt_ttl),
                "credential_ttl" => rare.credential_ttl = self.lifetime(key, value, rules.max_x509_ttl),
                "audiences" => {
                    audiences = self.several(key, value, fields::audience);
                    self.any_stands_alone(key, value, &audiences);
                }
                "serves" => {
                    let prefixes = self.several(key, value, fields::uri_prefix);
                    self.any_stands_alone(key, value, &prefixes);
                    rare.serves = prefixes.into();
                }
                "may_act_for" => {
                    rare.may_act_for = self.several(key, value, |text| fields::delegator(text, domain)).into();
                }
                "dns_names" => rare.dns_names = self.several(key, value, fields::dns_name).into(),
                "federates_with" => {
                    rare.federates_with = self.several(key, value, |text| fields::foreign_domain(text, domain)).into();
                }
                "bind" => bind = self.one(key, value, fields::bind),
                "single_use" => single_use = self.boolean(key, value),
                "exportable" => exportable = self.boolean(key, value),
                "disabled" => disabled = self.boolean(key, value),
                "expires_at" => rare.expires_at = self.time(key, value),
                unknown => {
                    let text = unknown_field(unknown);
                    self.mistake(&key.span(), text);
                }
            }
        }
        let bind = bind.unwrap_or_default();

        if spiffe_id.is_none() {
            self.mistake(&at, "`spiffe_id` is missing: write the SPIFFE ID this entry gives");
        }
        match &matches {
            None => self.mistake(&at, "`match` is missing: write the selectors that must all hold"),
            Some(matches) => {
                self.selectors_make_sense(table, matches, &unless, spiffe_id.as_ref().and_then(Option::as_ref))
            }
        }
        if owner.is_none() && rules.owner_required {
            self.mistake(&at, "`owner` is missing: name who answers for this entry");
        }
        if exportable == Some(true) && bind == Bind::Process {
            let at = span_of(table, "exportable").unwrap_or(at.clone());
            self.mistake(
                &at,
                "files outlive a process: an exportable entry needs `bind = \"unit\"` or `bind = \"node\"`",
            );
        }
        if exportable != Some(true)
            && let Some(at) = span_of(table, "credential_ttl")
        {
            self.mistake(&at, "a credential of a systemd unit is a key in a file: it needs `exportable = true`");
        }
        let is_empty_list = |value: &Value<'a>| value.get_ref().as_array().is_some_and(|list| list.is_empty());
        if single_use == Some(true) && table.get("audiences").is_none_or(is_empty_list) {
            let at = span_of(table, "single_use").unwrap_or(at.clone());
            self.mistake(&at, "only JWT-SVIDs are used once, and without `audiences` this entry gives none: add them");
        }
        if self.mistakes.len() > before {
            return None;
        }

        let (spiffe_id, matches) = (spiffe_id??, matches?);
        rare.unless = unless.into();
        Some(Entry::new(Fields {
            id: id.unwrap_or_else(|| id_of_content(&spiffe_id, &matches, &rare.unless)),
            spiffe_id,
            matches: matches.into(),
            origin: self.source.origin(self.lines.line(at.start)),
            common: self.interner.common(Common {
                owner: owner.flatten(),
                audiences: audiences.into(),
                x509_ttl,
                jwt_ttl,
                bind,
                single_use: single_use.unwrap_or(false),
                exportable: exportable.unwrap_or(false),
                disabled: disabled.unwrap_or(false),
            }),
            rare: Some(Box::new(rare)),
        }))
    }

    /// Rules between selectors, and between them and the template.
    fn selectors_make_sense(
        &mut self,
        table: &DeTable<'a>,
        matches: &[Selector],
        unless: &[Selector],
        spiffe_id: Option<&Template>,
    ) {
        let at = span_of(table, "match").unwrap_or(0..0);
        let is_empty_list = table.get("match").is_some_and(|v| v.get_ref().as_array().is_some_and(|a| a.is_empty()));
        if is_empty_list {
            self.mistake(&at, "`match` is empty, which would match every process: write at least one selector");
        }
        if let Some(both) = unless.iter().find(|selector| matches.contains(selector)) {
            let at = span_of(table, "unless").unwrap_or(at.clone());
            self.mistake(&at, format!("`{both}` is also in `match`: this entry could never match"));
        }
        // Every user names their own units: the name says something only beside who the user is (peer rule 5).
        let keys: KeySet = matches.iter().map(Key::of).collect();
        let named: KeySet = [Key::find("systemd", "user_unit")].into_iter().flatten().collect();
        let users: KeySet = [Key::find("unix", "uid"), Key::find("unix", "user")].into_iter().flatten().collect();
        let uses_named = |keys: KeySet| keys.without(named) != keys;
        let in_template = spiffe_id.is_some_and(|template| uses_named(template.keys()));
        if (uses_named(keys) || in_template) && keys.without(users) == keys {
            self.mistake(
                &at,
                "users name their own units: add a `unix:uid` or `unix:user` selector beside `systemd:user_unit`",
            );
        }
    }

    /// A field of one text.
    fn one<T>(
        &mut self,
        key: &Spanned<toml::de::DeString<'a>>,
        value: &Value<'a>,
        check: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let Some(text) = value.get_ref().as_str() else {
            self.wrong_type(key.get_ref(), value, "a text in quotes");
            return None;
        };
        check(text).map_err(|message| self.mistake(&value.span(), message)).ok()
    }

    /// A field of several texts, each once. What is wrong with one does not hide what is wrong with the next.
    fn several<T>(
        &mut self,
        key: &Spanned<toml::de::DeString<'a>>,
        value: &Value<'a>,
        mut check: impl FnMut(&str) -> Result<T, String>,
    ) -> Vec<T> {
        let Some(list) = value.get_ref().as_array() else {
            self.wrong_type(key.get_ref(), value, "a list of texts, for example `[\"a\", \"b\"]`");
            return Vec::new();
        };
        let mut checked = Vec::with_capacity(list.len());
        let mut seen: Vec<&str> = Vec::new();
        for item in list.iter() {
            match item.get_ref().as_str() {
                None => self.wrong_type(key.get_ref(), item, "a list of texts"),
                Some(text) if seen.contains(&text) => self.mistake(&item.span(), format!("`{text}` is there twice")),
                Some(text) => {
                    seen.push(text);
                    match check(text) {
                        Ok(good) => checked.push(good),
                        Err(message) => self.mistake(&item.span(), message),
                    }
                }
            }
        }
        checked
    }

    fn selectors(&mut self, key: &Spanned<toml::de::DeString<'a>>, value: &Value<'a>) -> Vec<Selector> {
        let mut interner = std::mem::take(self.interner);
        let selectors = self.several(key, value, |text| interner.selector(text));
        *self.interner = interner;
        selectors
    }

    fn any_stands_alone(&mut self, key: &Spanned<toml::de::DeString<'a>>, value: &Value<'a>, list: &[Box<str>]) {
        if list.len() > 1 && list.iter().any(|text| **text == *ANY) {
            let text = format!("`*` in `{}` already stands for all: leave the others out", key.get_ref());
            self.mistake(&value.span(), text);
        }
    }

    fn lifetime(
        &mut self,
        key: &Spanned<toml::de::DeString<'a>>,
        value: &Value<'a>,
        most: Duration,
    ) -> Option<Duration> {
        if value.get_ref().is_integer() {
            self.wrong_type(key.get_ref(), value, "a text with a unit, for example `\"15m\"`");
            return None;
        }
        self.one(key, value, |text| lifetime::parse(text, most).map_err(|error| error.to_string()))
    }

    fn boolean(&mut self, key: &Spanned<toml::de::DeString<'a>>, value: &Value<'a>) -> Option<bool> {
        let known = value.get_ref().as_bool();
        if known.is_none() {
            self.wrong_type(key.get_ref(), value, "`true` or `false`");
        }
        known
    }

    /// A text in RFC 3339, or the same as TOML writes it without quotes.
    fn time(&mut self, key: &Spanned<toml::de::DeString<'a>>, value: &Value<'a>) -> Option<OffsetDateTime> {
        match value.get_ref().as_datetime() {
            Some(time) => {
                let parsed = fields::time(&time.to_string());
                parsed.map_err(|message| self.mistake(&value.span(), message)).ok()
            }
            None => self.one(key, value, fields::time),
        }
    }

    fn wrong_type(&mut self, key: &str, value: &Value<'a>, expected: &str) {
        let found = value.get_ref().type_str();
        self.mistake(&value.span(), format!("`{key}` must be {expected}, not {} {found}", article(found)));
    }
}

fn article(noun: &str) -> &'static str {
    if noun.starts_with(['a', 'i']) { "an" } else { "a" }
}

fn span_of(table: &DeTable<'_>, field: &str) -> Option<Range<usize>> {
    table.get(field).map(Spanned::span)
}

/// An error and what caused it, in one line.
fn with_cause(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

fn unknown_field(field: &str) -> String {
    let names: Vec<_> = FIELDS.iter().map(|known| known.name).collect();
    let nearest = names.iter().map(|known| (distance(field, known), known)).min();
    match nearest {
        Some((steps, known)) if steps <= 2 => format!("unknown key `{field}`: did you mean `{known}`?"),
        _ => format!("unknown key `{field}`: an entry has {}", names.join(", ")),
    }
}

/// How many letters must be added, removed or replaced (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, cb) in b.chars().enumerate() {
            let replaced = diagonal + usize::from(ca != cb);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.chars().count()]
}

/// The id of an entry that names none: the same as long as it gives the same identity to the same processes, wherever
/// its table stands. Two such entries that are equal collide, as they should.
fn id_of_content(spiffe_id: &Template, matches: &[Selector], unless: &[Selector]) -> EntryId {
    let mut parts = vec![spiffe_id.as_str()];
    for list in [matches, unless] {
        let mut texts: Vec<&str> = list.iter().map(Selector::as_str).collect();
        texts.sort_unstable();
        parts.push("");
        parts.extend(texts);
    }
    let digest = digest(&SHA256, parts.join("\n").as_bytes());
    EntryId::parse(&format!("auto-{}", hex(&digest.as_ref()[..8]))).expect("letters, digits and a hyphen")
}

#[cfg(test)]
mod tests;
