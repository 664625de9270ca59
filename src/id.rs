//! Trust domains and SPIFFE IDs (SPIFFE-ID, section 2): parsed once, always valid afterwards.
//!
//! Upper-case trust domains are refused rather than folded: the standard says both "lowercase" (section 2.1) and
//! "compare case-insensitively" (section 2.4), and only refusing satisfies every reader of our output.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

/// The longest SPIFFE ID, scheme included, in bytes (SPIFFE-ID, section 2.3).
pub const MAX_ID_BYTES: usize = 2048;
/// The longest trust domain name in bytes (SPIFFE-ID, section 2.3).
pub const MAX_TRUST_DOMAIN_BYTES: usize = 255;
/// The first path segment that belongs to tether itself; no registration entry may use it.
pub const RESERVED_SEGMENT: &str = "tether";

const SCHEME: &str = "spiffe://";

/// Why a text is not a SPIFFE ID or a trust domain.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum IdError {
    /// It does not begin with `spiffe://`.
    #[error("a SPIFFE ID begins with `spiffe://`")]
    Scheme,
    /// There is nothing where the trust domain should be.
    #[error("the trust domain is empty")]
    EmptyTrustDomain,
    /// A character is not one of `a-z 0-9 . - _`.
    #[error("a trust domain has only the characters a-z, 0-9, `.`, `-` and `_`, not `{0}`")]
    TrustDomainCharacter(char),
    /// The trust domain is longer than [`MAX_TRUST_DOMAIN_BYTES`].
    #[error("a trust domain has at most {MAX_TRUST_DOMAIN_BYTES} bytes")]
    TrustDomainTooLong,
    /// Two slashes in a row.
    #[error("a path has no empty segments")]
    EmptySegment,
    /// A segment is `.` or `..`.
    #[error("a path has no `.` or `..` segments")]
    DotSegment,
    /// The path ends with a slash.
    #[error("a path does not end with `/`")]
    TrailingSlash,
    /// A character is not one of `A-Z a-z 0-9 . - _`.
    #[error("a path segment has only the characters A-Z, a-z, 0-9, `.`, `-` and `_`, not `{0}`")]
    PathCharacter(char),
    /// The whole ID is longer than [`MAX_ID_BYTES`].
    #[error("a SPIFFE ID has at most {MAX_ID_BYTES} bytes")]
    TooLong,
}

/// The name of a trust domain, for example `example.org`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// Parses a name (`example.org`), not a URI.
    pub fn parse(name: &str) -> Result<Self, IdError> {
        check_trust_domain(name)?;
        Ok(Self(name.into()))
    }

    /// Parses a name or the domain's own SPIFFE ID: people write both.
    pub fn parse_name_or_id(text: &str) -> Result<Self, IdError> {
        Self::parse(text.strip_prefix(SCHEME).unwrap_or(text))
    }

    /// The bare name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The SPIFFE ID of the trust domain itself, which has no path.
    pub fn id(&self) -> SpiffeId {
        SpiffeId { uri: format!("{SCHEME}{}", self.0).into(), path_start: SCHEME.len() + self.0.len() }
    }
}

/// A SPIFFE ID, for example `spiffe://example.org/unit/billing`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    uri: Arc<str>,
    path_start: usize,
}

impl SpiffeId {
    /// Parses a SPIFFE ID under every rule of SPIFFE-ID section 2.
    pub fn parse(uri: &str) -> Result<Self, IdError> {
        if uri.len() > MAX_ID_BYTES {
            return Err(IdError::TooLong);
        }
        let rest = uri.strip_prefix(SCHEME).ok_or(IdError::Scheme)?;
        let (name, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        check_trust_domain(name)?;
        check_path(path)?;
        Ok(Self { uri: uri.into(), path_start: SCHEME.len() + name.len() })
    }

    /// The whole ID.
    pub fn as_str(&self) -> &str {
        &self.uri
    }

    /// The path with its leading slash, or the empty string.
    pub fn path(&self) -> &str {
        &self.uri[self.path_start..]
    }

    /// The trust domain's name.
    pub fn trust_domain_name(&self) -> &str {
        &self.uri[SCHEME.len()..self.path_start]
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> TrustDomain {
        TrustDomain(self.trust_domain_name().into())
    }

    /// Whether the ID lies in `domain`.
    pub fn is_member_of(&self, domain: &TrustDomain) -> bool {
        self.trust_domain_name() == domain.as_str()
    }

    /// Whether the path is tether's own (`/tether` and everything below).
    pub fn is_reserved(&self) -> bool {
        self.path().split('/').nth(1) == Some(RESERVED_SEGMENT)
    }
}

/// Whether `text` may stand as one path segment (SPIFFE-ID, section 2.2).
pub fn is_path_segment(text: &str) -> bool {
    check_segment(text).is_ok()
}

fn check_trust_domain(name: &str) -> Result<(), IdError> {
    if name.is_empty() {
        return Err(IdError::EmptyTrustDomain);
    }
    if let Some(bad) = name.chars().find(|c| !matches!(c, 'a'..='z' | '0'..='9' | '.' | '-' | '_')) {
        return Err(IdError::TrustDomainCharacter(bad));
    }
    if name.len() > MAX_TRUST_DOMAIN_BYTES {
        return Err(IdError::TrustDomainTooLong);
    }
    Ok(())
}

fn check_path(path: &str) -> Result<(), IdError> {
    let Some(segments) = path.strip_prefix('/') else {
        return Ok(()); // empty: `path` is empty or begins with a slash
    };
    if path.ends_with('/') {
        return Err(IdError::TrailingSlash);
    }
    segments.split('/').try_for_each(check_segment)
}

fn check_segment(segment: &str) -> Result<(), IdError> {
    match segment {
        "" => Err(IdError::EmptySegment),
        "." | ".." => Err(IdError::DotSegment),
        _ => match segment.chars().find(|c| !matches!(c, 'A'..='Z' | 'a'..='z' | '0'..='9' | '.' | '-' | '_')) {
            Some(bad) => Err(IdError::PathCharacter(bad)),
            None => Ok(()),
        },
    }
}

macro_rules! text_type {
    ($type:ty, $parse:path) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl FromStr for $type {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                $parse(text)
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                $parse(&text).map_err(serde::de::Error::custom)
            }
        }
    };
}

text_type!(TrustDomain, TrustDomain::parse);
text_type!(SpiffeId, SpiffeId::parse);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_judged_by_the_character_rules_of_its_place() {
        for byte in 0..=255u8 {
            let c = char::from(byte);
            let in_domain = matches!(c, 'a'..='z' | '0'..='9' | '.' | '-' | '_');
            assert_eq!(TrustDomain::parse(&format!("x{c}x")).is_ok(), in_domain, "trust domain with {c:?}");
            let in_path = in_domain || c.is_ascii_uppercase();
            // A slash makes two segments, which is fine in a path.
            let uri = format!("spiffe://td/x{c}x");
            assert_eq!(SpiffeId::parse(&uri).is_ok(), in_path || c == '/', "path with {c:?}");
        }
    }

    #[test]
    fn texts_are_accepted_or_refused_for_the_right_reason() {
        let cases: &[(&str, Result<(), IdError>)] = &[
            ("spiffe://td", Ok(())),
            ("spiffe://td/a/b", Ok(())),
            ("spiffe://1.2.3.4/x", Ok(())),
            ("spiffe://a..b/x", Ok(())),
            ("spiffe://-_./x", Ok(())),
            ("spiffe://td/...", Ok(())),
            ("spiffe://td/.a", Ok(())),
            ("", Err(IdError::Scheme)),
            ("spiffe:td/x", Err(IdError::Scheme)),
            ("http://td/x", Err(IdError::Scheme)),
            ("SPIFFE://td/x", Err(IdError::Scheme)),
            ("spiffe:///x", Err(IdError::EmptyTrustDomain)),
            ("spiffe://", Err(IdError::EmptyTrustDomain)),
            ("spiffe://td/", Err(IdError::TrailingSlash)),
            ("spiffe://td/a/", Err(IdError::TrailingSlash)),
            ("spiffe://td//a", Err(IdError::EmptySegment)),
            ("spiffe://td/a//b", Err(IdError::EmptySegment)),
            ("spiffe://td/./a", Err(IdError::DotSegment)),
            ("spiffe://td/a/..", Err(IdError::DotSegment)),
            ("spiffe://td/a?q", Err(IdError::PathCharacter('?'))),
            ("spiffe://td/a#f", Err(IdError::PathCharacter('#'))),
            ("spiffe://td?", Err(IdError::TrustDomainCharacter('?'))),
            ("spiffe://u@td/a", Err(IdError::TrustDomainCharacter('@'))),
            ("spiffe://td:80/a", Err(IdError::TrustDomainCharacter(':'))),
            ("spiffe://td:/a", Err(IdError::TrustDomainCharacter(':'))),
            ("spiffe://TD/a", Err(IdError::TrustDomainCharacter('T'))),
            ("spiffe://td/a%62", Err(IdError::PathCharacter('%'))),
            ("spiffe://td/ü", Err(IdError::PathCharacter('ü'))),
        ];
        for (text, expected) in cases {
            assert_eq!(SpiffeId::parse(text).map(drop), *expected, "{text}");
        }
    }

    #[test]
    fn lengths_are_limited_to_2048_and_255_bytes() {
        let prefix = "spiffe://td/";
        let longest = format!("{prefix}{}", "a".repeat(MAX_ID_BYTES - prefix.len()));
        assert!(SpiffeId::parse(&longest).is_ok());
        assert_eq!(SpiffeId::parse(&format!("{longest}a")), Err(IdError::TooLong));
        assert!(TrustDomain::parse(&"a".repeat(255)).is_ok());
        assert_eq!(TrustDomain::parse(&"a".repeat(256)), Err(IdError::TrustDomainTooLong));
    }

    #[test]
    fn parts_of_an_id_are_what_was_written() {
        let id = SpiffeId::parse("spiffe://td/a/B").expect("valid");
        assert_eq!((id.trust_domain_name(), id.path()), ("td", "/a/B"));
        assert_ne!(id, SpiffeId::parse("spiffe://td/a/b").expect("valid"));
        assert!(id.is_member_of(&id.trust_domain()));
        assert_eq!(id.trust_domain().id().as_str(), "spiffe://td");
        assert!(SpiffeId::parse("spiffe://td/tether/agent/1").expect("valid").is_reserved());
        assert!(!SpiffeId::parse("spiffe://td/tethered").expect("valid").is_reserved());
    }
}
