//! SPIFFE IDs with placeholders: `spiffe://example.org/unit/{systemd.name}`.
//!
//! `{type.key}` stands for the one attested value; `{a|b}` for the first alternative that has exactly one value which
//! is legal as a path segment. Placeholders stand in the path only, so attested values never choose a trust domain,
//! a value never adds a path segment, and the agent's own path is never reached.

use std::fmt;

use thiserror::Error;

use super::keys::{Key, KeySet};
use crate::attest::Evidence;
use crate::id::{IdError, RESERVED_SEGMENT, SpiffeId, TrustDomain, is_path_segment};

/// Why a text is not a template.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TemplateError {
    /// The text around the placeholders breaks a rule of SPIFFE IDs.
    #[error("`{id}` is not a SPIFFE ID")]
    Id {
        /// What was written.
        id: String,
        /// The broken rule.
        #[source]
        source: IdError,
    },
    /// The ID is of another trust domain than the agent's.
    #[error("`{id}` is not in the trust domain of this agent: begin with `spiffe://{domain}/`")]
    OtherTrustDomain {
        /// What was written.
        id: String,
        /// The agent's trust domain.
        domain: TrustDomain,
    },
    /// The ID names the trust domain itself, which no workload is (X509-SVID, sections 3.1 and 5.2).
    #[error("`{0}` has no path: write a path that names the workload")]
    NoPath(String),
    /// The path belongs to tether itself.
    #[error("the path `/{RESERVED_SEGMENT}` is reserved for the agent itself: choose another")]
    Reserved,
    /// A brace has no partner.
    #[error("`{0}` has a brace without its partner: write placeholders as `{{type.key}}`")]
    Brace(String),
    /// A placeholder stands before the path.
    #[error("`{0}` has a placeholder in the trust domain: only the path may have them")]
    NotInPath(String),
    /// A placeholder names no kind of selector.
    #[error("`{0}` in a placeholder is not a kind of selector: write `type.key`, for example `{{systemd.name}}`")]
    UnknownKey(String),
}

/// Why a template gives no SPIFFE ID for a process.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Unexpanded {
    /// No alternative of a placeholder has exactly one value that is legal in a path.
    #[error("`{{{placeholder}}}` has no value to put into the SPIFFE ID: {found}")]
    NoValue {
        /// The placeholder without its braces.
        placeholder: String,
        /// What was found instead, alternative by alternative.
        found: String,
    },
    /// The value could not be found out; peer rule 8 makes that no answer rather than a no.
    #[error("`{{{placeholder}}}` could not be found out: {why}")]
    Unknown {
        /// The placeholder without its braces.
        placeholder: String,
        /// Why, from the attestor.
        why: String,
    },
    /// The values make an ID that breaks a rule, for example its length.
    #[error("the values make `{id}`, which is not a SPIFFE ID")]
    Invalid {
        /// What they make.
        id: String,
        /// The broken rule.
        #[source]
        source: IdError,
    },
    /// The values make an ID in the agent's own path.
    #[error("the values make `{0}`, which is reserved for the agent itself")]
    Reserved(SpiffeId),
}

/// A SPIFFE ID, perhaps with placeholders in its path.
#[derive(Clone, PartialEq, Eq)]
pub struct Template(Form);

#[derive(Clone, PartialEq, Eq)]
enum Form {
    Literal(SpiffeId),
    Pattern(Box<Pattern>),
}

#[derive(Clone, PartialEq, Eq)]
struct Pattern {
    text: Box<str>,
    pieces: Box<[Piece]>,
}

#[derive(Clone, PartialEq, Eq)]
enum Piece {
    Text(Box<str>),
    /// The alternatives in the order of preference.
    Value(Box<[Key]>),
}

impl Template {
    /// Parses a template whose SPIFFE IDs all lie in `domain`.
    pub fn parse(text: &str, domain: &TrustDomain) -> Result<Self, TemplateError> {
        let pieces = pieces(text)?;
        // Values are legal segments, so what holds for this stand-in holds for every expansion except its length and
        // whether it is reserved; those are checked when it is expanded.
        let stand_in: String = pieces.iter().map(Piece::stand_in).collect();
        let id = SpiffeId::parse(&stand_in).map_err(|source| TemplateError::Id { id: text.to_owned(), source })?;
        if !id.is_member_of(domain) {
            return Err(TemplateError::OtherTrustDomain { id: text.to_owned(), domain: domain.clone() });
        }
        if id.path().is_empty() {
            return Err(TemplateError::NoPath(text.to_owned()));
        }
        if id.is_reserved() {
            return Err(TemplateError::Reserved);
        }
        if pieces.iter().all(|piece| matches!(piece, Piece::Text(_))) {
            return Ok(Self(Form::Literal(id)));
        }
        Ok(Self(Form::Pattern(Box::new(Pattern { text: text.into(), pieces: pieces.into() }))))
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        match &self.0 {
            Form::Literal(id) => id.as_str(),
            Form::Pattern(pattern) => &pattern.text,
        }
    }

    /// The SPIFFE ID for a process, or why there is none.
    pub fn expand(&self, evidence: &Evidence) -> Result<SpiffeId, Unexpanded> {
        let pattern = match &self.0 {
            Form::Literal(id) => return Ok(id.clone()),
            Form::Pattern(pattern) => pattern,
        };
        let mut id = String::new();
        for piece in &pattern.pieces {
            match piece {
                Piece::Text(text) => id.push_str(text),
                Piece::Value(alternatives) => id.push_str(value(alternatives, evidence)?),
            }
        }
        let id = SpiffeId::parse(&id).map_err(|source| Unexpanded::Invalid { id, source })?;
        if id.is_reserved() {
            return Err(Unexpanded::Reserved(id));
        }
        Ok(id)
    }

    /// The kinds of selectors its placeholders name.
    pub(super) fn keys(&self) -> KeySet {
        let Form::Pattern(pattern) = &self.0 else { return KeySet::default() };
        let values = pattern.pieces.iter().filter_map(|piece| match piece {
            Piece::Value(alternatives) => Some(alternatives.iter().copied()),
            Piece::Text(_) => None,
        });
        values.flatten().collect()
    }
}

impl Piece {
    fn stand_in(&self) -> &str {
        match self {
            Self::Text(text) => text,
            Self::Value(_) => "x",
        }
    }
}

/// The value of the first alternative that has one. An alternative nobody can tell of ends the search: what comes
/// after it would be another name than the process has on a good day.
fn value<'a>(alternatives: &[Key], evidence: &'a Evidence) -> Result<&'a str, Unexpanded> {
    for key in alternatives {
        if let Some(gap) = evidence.gap(key.kind(), key.key()) {
            return Err(Unexpanded::Unknown { placeholder: placeholder(alternatives), why: gap.why.clone() });
        }
        if let Some(value) = evidence.selectors.single_value(key.kind(), key.key()).filter(|v| is_path_segment(v)) {
            return Ok(value);
        }
    }
    let found: Vec<String> = alternatives.iter().map(|key| no_value(*key, evidence)).collect();
    Err(Unexpanded::NoValue { placeholder: placeholder(alternatives), found: found.join(", ") })
}

fn no_value(key: Key, evidence: &Evidence) -> String {
    let values = evidence.selectors.iter().filter(|s| Key::of(s) == key).map(|s| s.value());
    match values.collect::<Vec<_>>().as_slice() {
        [] => format!("there is no `{key}`"),
        [illegal] => format!("`{illegal}` is not legal in a path"),
        several => format!("`{key}` has {} values", several.len()),
    }
}

fn placeholder(alternatives: &[Key]) -> String {
    alternatives.iter().map(Key::to_string).collect::<Vec<_>>().join("|")
}

fn pieces(text: &str) -> Result<Vec<Piece>, TemplateError> {
    let brace = || TemplateError::Brace(text.to_owned());
    let (mut pieces, mut rest) = (Vec::new(), text);
    while let Some(open) = rest.find(['{', '}']) {
        let (before, after) = rest.split_at(open);
        let inner = after.strip_prefix('{').ok_or_else(brace)?;
        let close = inner.find(['{', '}']).ok_or_else(brace)?;
        if !before.is_empty() {
            pieces.push(Piece::Text(before.into()));
        }
        let (names, tail) = inner.split_at(close);
        rest = tail.strip_prefix('}').ok_or_else(brace)?;
        // `spiffe://` has two slashes; the path begins with the third.
        if text[..text.len() - rest.len()].matches('/').count() < 3 {
            return Err(TemplateError::NotInPath(text.to_owned()));
        }
        pieces.push(Piece::Value(names.split('|').map(key).collect::<Result<_, _>>()?));
    }
    if !rest.is_empty() {
        pieces.push(Piece::Text(rest.into()));
    }
    Ok(pieces)
}

fn key(name: &str) -> Result<Key, TemplateError> {
    let key = name.split_once('.').and_then(|(kind, key)| Key::find(kind, key));
    key.ok_or_else(|| TemplateError::UnknownKey(name.to_owned()))
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attest::Gap;
    use crate::selector::Selector;

    fn domain() -> TrustDomain {
        TrustDomain::parse("td").expect("valid")
    }

    fn evidence(facts: &[&str]) -> Evidence {
        Evidence {
            selectors: facts.iter().map(|f| Selector::parse(f).expect("valid")).collect(),
            ..Evidence::default()
        }
    }

    fn expand(template: &str, evidence: &Evidence) -> Result<String, Unexpanded> {
        Template::parse(template, &domain()).expect("valid").expand(evidence).map(|id| id.to_string())
    }

    #[test]
    fn placeholders_take_the_one_attested_value() {
        let evidence = evidence(&["systemd:name:billing", "unix:uid:7", "unix:user:a b", "unix:supplementary_gid:1"]);
        let cases = [
            ("spiffe://td/a", "spiffe://td/a"),
            ("spiffe://td/unit/{systemd.name}", "spiffe://td/unit/billing"),
            ("spiffe://td/u-{unix.uid}.x/y", "spiffe://td/u-7.x/y"),
            ("spiffe://td/{unix.user|unix.uid}", "spiffe://td/7"),
            ("spiffe://td/{systemd.name}{unix.uid}", "spiffe://td/billing7"),
            ("spiffe://td/{unix.group|unix.supplementary_gid}", "spiffe://td/1"),
        ];
        for (template, expected) in cases {
            assert_eq!(expand(template, &evidence).as_deref(), Ok(expected), "{template}");
        }
    }

    #[test]
    fn without_a_legal_single_value_there_is_no_id_and_the_reason_names_what_was_found() {
        let evidence = evidence(&["unix:user:a b", "unix:supplementary_gid:1", "unix:supplementary_gid:2"]);
        let error = expand("spiffe://td/{unix.user|unix.supplementary_gid|unix.uid}", &evidence).expect_err("no value");
        assert_eq!(
            error.to_string(),
            "`{unix.user|unix.supplementary_gid|unix.uid}` has no value to put into the SPIFFE ID: \
             `a b` is not legal in a path, `unix.supplementary_gid` has 2 values, there is no `unix.uid`"
        );
    }

    #[test]
    fn attested_values_cannot_leave_their_segment_or_reach_the_agents_own_path() {
        for name in ["..", ".", "a/b", "a%2fb", "tether/agent", "ü"] {
            let evidence = evidence(&[&format!("systemd:name:{name}")]);
            assert!(expand("spiffe://td/{systemd.name}/x", &evidence).is_err(), "{name}");
        }
        let own = evidence(&["systemd:name:tether", "systemd:prefix:ether"]);
        for template in
            ["spiffe://td/{systemd.name}/agent", "spiffe://td/{systemd.name}", "spiffe://td/t{systemd.prefix}"]
        {
            assert!(matches!(expand(template, &own), Err(Unexpanded::Reserved(_))), "{template}");
        }
    }

    #[test]
    fn an_expansion_over_2048_bytes_is_refused() {
        let evidence = evidence(&[&format!("unix:user:{}", "a".repeat(2040))]);
        let error = expand("spiffe://td/{unix.user}", &evidence).expect_err("too long");
        assert!(matches!(error, Unexpanded::Invalid { source: IdError::TooLong, .. }));
    }

    #[test]
    fn a_gap_before_the_first_value_makes_the_id_unknown_and_one_after_it_does_not_matter() {
        let mut evidence = evidence(&["unix:uid:7", "unix:user:u"]);
        evidence.gaps = vec![Gap { kind: "systemd", keys: &[], why: "no bus".into() }];
        assert_eq!(expand("spiffe://td/{unix.uid|systemd.name}", &evidence).as_deref(), Ok("spiffe://td/7"));
        let unknown = expand("spiffe://td/{systemd.name|unix.uid}", &evidence).expect_err("unknown");
        assert!(matches!(&unknown, Unexpanded::Unknown { why, .. } if why == "no bus"));
        // A value is there, but whether it is the only one is not known.
        evidence.gaps = vec![Gap { kind: "unix", keys: &["user"], why: "nss".into() }];
        assert!(matches!(expand("spiffe://td/{unix.user}", &evidence), Err(Unexpanded::Unknown { .. })));
    }

    #[test]
    fn mistakes_in_templates_are_found_when_they_are_read() {
        let parse = |text: &str| Template::parse(text, &domain()).map(drop);
        let own = String::from;
        let id = |text: &str, source| Err(TemplateError::Id { id: text.to_owned(), source });
        assert_eq!(parse("td/a"), id("td/a", IdError::Scheme));
        assert_eq!(parse("spiffe://td/a//b"), id("spiffe://td/a//b", IdError::EmptySegment));
        assert_eq!(parse("spiffe://td/{unix.uid}/"), id("spiffe://td/{unix.uid}/", IdError::TrailingSlash));
        assert_eq!(
            parse("spiffe://other/a"),
            Err(TemplateError::OtherTrustDomain { id: own("spiffe://other/a"), domain: domain() })
        );
        assert_eq!(parse("spiffe://td"), Err(TemplateError::NoPath(own("spiffe://td"))));
        assert_eq!(parse("spiffe://td/tether/x"), Err(TemplateError::Reserved));
        for text in ["spiffe://td/{unix.uid", "spiffe://td/a}", "spiffe://td/{{unix.uid}}", "spiffe://td/}{"] {
            assert_eq!(parse(text), Err(TemplateError::Brace(own(text))), "{text}");
        }
        for text in ["spiffe://{unix.user}/a", "{unix.user}", "spiffe://td{unix.uid}"] {
            assert_eq!(parse(text), Err(TemplateError::NotInPath(own(text))), "{text}");
        }
        for (text, name) in [("{}", ""), ("{uid}", "uid"), ("{unix.uuid}", "unix.uuid"), ("{unix.uid|}", "")] {
            let text = format!("spiffe://td/{text}");
            assert_eq!(parse(&text), Err(TemplateError::UnknownKey(own(name))), "{text}");
        }
    }
}
