//! Selectors: facts about a process in the form `type:key:value`, as SPIRE writes them.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

/// The longest selector in bytes: far above any real one, far below what would cost memory.
pub const MAX_SELECTOR_BYTES: usize = 4096 + 64;

/// Every kind of selector there is, as (type, key).
///
/// One list for the attestors, the entry parser and the importer, so that a misspelt selector is an error
/// everywhere and cannot silently never match.
pub const KINDS: &[(&str, &str)] = &[
    ("unix", "uid"),
    ("unix", "gid"),
    ("unix", "user"),
    ("unix", "group"),
    ("unix", "supplementary_gid"),
    ("unix", "supplementary_group"),
    ("unix", "path"),
    ("unix", "sha256"),
    ("systemd", "id"),
    ("systemd", "fragment_path"),
    ("systemd", "unit"),
    ("systemd", "slice"),
    ("systemd", "name"),
    ("systemd", "prefix"),
    ("systemd", "instance"),
    ("systemd", "user_unit"),
    ("systemd", "invocation_id"),
    ("cgroup", "path"),
    ("lsm", "label"),
    ("lsm", "apparmor"),
    ("lsm", "selinux"),
    ("lsm", "smack"),
    ("launch", "path"),
    ("launch", "sha256"),
    ("launch", "script"),
    ("launch", "script_sha256"),
    ("launch", "dir"),
    ("launch", "dir_sha256"),
    ("docker", "label"),
    ("docker", "env"),
    ("docker", "image_id"),
    ("docker", "image_config_digest"),
    ("docker", "name"),
    ("podman", "label"),
    ("podman", "env"),
    ("podman", "image_id"),
    ("podman", "image_config_digest"),
    ("podman", "name"),
];

/// Why a text is not a selector.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SelectorError {
    /// It has no `type:key:value` form.
    #[error("`{0}` is not a selector: write `type:key:value`, for example `unix:uid:1000`")]
    Form(String),
    /// The type and key are not known to this agent.
    #[error("`{0}` is not a selector this agent knows; the kinds are listed by `tether explain --kinds`")]
    Unknown(String),
    /// It is longer than [`MAX_SELECTOR_BYTES`].
    #[error("a selector has at most {MAX_SELECTOR_BYTES} bytes")]
    TooLong,
}

/// Whether selectors `kind:key:*` are about the executable file or follow it.
pub fn is_about_executable(kind: &str, key: &str) -> bool {
    matches!((kind, key), ("unix", "path" | "sha256") | ("lsm", _))
}

/// One fact: `unix:uid:1000`. Ordered and hashed by its text.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Selector {
    text: Arc<str>,
}

impl Selector {
    /// Parses `type:key:value`; the value may contain colons. The type and key must be in [`KINDS`].
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        if text.len() > MAX_SELECTOR_BYTES {
            return Err(SelectorError::TooLong);
        }
        let mut parts = text.splitn(3, ':');
        let (Some(kind), Some(key), Some(value)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(SelectorError::Form(text.to_owned()));
        };
        if kind.is_empty() || key.is_empty() || value.is_empty() || value.contains(['\0', '\n']) {
            return Err(SelectorError::Form(text.to_owned()));
        }
        if !KINDS.contains(&(kind, key)) {
            return Err(SelectorError::Unknown(text.to_owned()));
        }
        Ok(Self { text: text.into() })
    }

    /// A selector an attestor found. `None` when the value cannot stand in a selector (it is empty or has a newline).
    pub fn new(kind: &str, key: &str, value: impl fmt::Display) -> Option<Self> {
        Self::parse(&format!("{kind}:{key}:{value}")).ok()
    }

    /// The whole text.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The type, which names the attestor: `unix`.
    pub fn kind(&self) -> &str {
        self.text.split(':').next().unwrap_or_default()
    }

    /// The key: `uid`.
    pub fn key(&self) -> &str {
        self.text.split(':').nth(1).unwrap_or_default()
    }

    /// The value: `1000`.
    pub fn value(&self) -> &str {
        self.text.splitn(3, ':').nth(2).unwrap_or_default()
    }

    /// The fact for people who look at a process: without what may be a secret, which the value of a variable of a
    /// container's environment often is.
    pub fn shown(&self) -> String {
        match (self.kind(), self.key()) {
            ("docker" | "podman", "env") => {
                let name = self.value().split('=').next().unwrap_or_default();
                format!("{}:env:{name}=(not shown)", self.kind())
            }
            _ => self.to_string(),
        }
    }

    /// Whether the fact is about the executable file, or follows it as security labels do, so that a swapped program
    /// would forge it (peer rule 3).
    pub fn is_about_executable(&self) -> bool {
        is_about_executable(self.kind(), self.key())
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Selector {
    type Err = SelectorError;
    fn from_str(text: &str) -> Result<Self, SelectorError> {
        Self::parse(text)
    }
}

impl Serialize for Selector {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Selector {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

/// What is known of one process: sorted, without repeats.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SelectorSet(BTreeSet<Selector>);

impl SelectorSet {
    /// Whether the fact holds.
    pub fn contains(&self, selector: &Selector) -> bool {
        self.0.contains(selector)
    }

    /// All facts in order.
    pub fn iter(&self) -> impl Iterator<Item = &Selector> {
        self.0.iter()
    }

    /// How many facts there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds facts.
    pub fn extend(&mut self, more: impl IntoIterator<Item = Selector>) {
        self.0.extend(more);
    }

    /// Keeps only the facts that `keep` wants.
    pub fn retain(&mut self, keep: impl FnMut(&Selector) -> bool) {
        self.0.retain(keep);
    }

    /// The value of `kind.key` when exactly one fact has it: what `{kind.key}` in a template stands for.
    pub fn single_value(&self, kind: &str, key: &str) -> Option<&str> {
        let mut values = self.0.iter().filter(|s| s.kind() == kind && s.key() == key);
        match (values.next(), values.next()) {
            (Some(only), None) => Some(only.value()),
            _ => None,
        }
    }
}

impl FromIterator<Selector> for SelectorSet {
    fn from_iter<I: IntoIterator<Item = Selector>>(iter: I) -> Self {
        Self(iter.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selector_is_parsed_into_type_key_and_a_value_that_may_have_colons() {
        let selector = Selector::parse("unix:path:/opt/a:b").expect("valid");
        assert_eq!((selector.kind(), selector.key(), selector.value()), ("unix", "path", "/opt/a:b"));
        assert!(selector.is_about_executable());
    }

    #[test]
    fn the_value_of_an_environment_variable_is_not_shown() {
        let shown = |text: &str| Selector::parse(text).expect("valid").shown();
        assert_eq!(shown("docker:env:PASSWORD=a=b"), "docker:env:PASSWORD=(not shown)");
        assert_eq!(shown("podman:env:PASSWORD=a"), "podman:env:PASSWORD=(not shown)");
        assert_eq!(shown("docker:label:app:web"), "docker:label:app:web");
    }

    #[test]
    fn misspelt_and_incomplete_selectors_are_errors_rather_than_never_matching() {
        for text in ["", "unix", "unix:uid", "unix:uid:", ":uid:1", "unix::1", "unix:path:/a\nb"] {
            assert_eq!(Selector::parse(text), Err(SelectorError::Form(text.to_owned())), "{text}");
        }
        for text in ["unix:uuid:1", "Unix:uid:1", "k8s:ns:default"] {
            assert_eq!(Selector::parse(text), Err(SelectorError::Unknown(text.to_owned())), "{text}");
        }
        assert_eq!(Selector::parse(&format!("unix:path:/{}", "a".repeat(5000))), Err(SelectorError::TooLong));
    }

    #[test]
    fn a_template_value_is_taken_only_when_it_is_the_only_one() {
        let set: SelectorSet = ["unix:uid:1", "unix:supplementary_gid:2", "unix:supplementary_gid:3"]
            .iter()
            .map(|text| Selector::parse(text).expect("valid"))
            .collect();
        assert_eq!(set.single_value("unix", "uid"), Some("1"));
        assert_eq!(set.single_value("unix", "supplementary_gid"), None);
        assert_eq!(set.single_value("unix", "gid"), None);
    }
}
