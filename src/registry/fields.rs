//! The rules for single values in an entry: each takes a text and says what is wrong with it.

use std::net::IpAddr;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::entry::{Bind, EntryId, MAX_ENTRY_ID_BYTES};
use crate::id::{SpiffeId, TrustDomain};
use crate::proof::UriPrefix;
use crate::selector::Selector;

/// The longest hint in bytes (SPIFFE Workload API, section 8).
const MAX_HINT_BYTES: usize = 1024;
/// The longest audience or URI prefix in bytes: far above any real one.
const MAX_TEXT_BYTES: usize = 2048;

pub(super) fn id(text: &str) -> Result<EntryId, String> {
    EntryId::parse(text).ok_or_else(|| {
        format!("`{text}` is not an entry id: use 1 to {MAX_ENTRY_ID_BYTES} letters, digits, `.`, `_` and `-`")
    })
}

/// A selector that some process could have. One whose value no attestor ever reports would silently never match.
pub(super) fn selector(text: &str) -> Result<Selector, String> {
    let selector = Selector::parse(text).map_err(|error| error.to_string())?;
    let value = selector.value();
    let wrong = match (selector.kind(), selector.key()) {
        ("unix", "uid" | "gid" | "supplementary_gid") if !is_number(value) => "is not a number as the kernel writes it",
        ("unix", "sha256") | ("launch", "sha256" | "script_sha256" | "dir_sha256") if !is_hex(value, 64) => {
            "is not 64 lower-case hex digits"
        }
        ("systemd", "invocation_id") if !is_hex(value, 32) => "is not 32 lower-case hex digits",
        ("unix" | "cgroup" | "launch", "path") | ("systemd", "fragment_path") | ("launch", "script" | "dir")
            if !value.starts_with('/') =>
        {
            "is not an absolute path"
        }
        ("systemd", "unit" | "user_unit" | "id") if !value.contains('.') => {
            "is not a full unit name, for example `billing.service`"
        }
        ("systemd", "slice") if !value.ends_with(".slice") => "is not a full slice name, for example `system.slice`",
        _ => return Ok(selector),
    };
    Err(format!("`{text}` can never match: `{value}` {wrong}"))
}

fn is_number(value: &str) -> bool {
    value.parse::<u32>().is_ok_and(|number| number.to_string() == value)
}

fn is_hex(value: &str, digits: usize) -> bool {
    value.len() == digits && value.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

pub(super) fn owner(text: &str) -> Result<Box<str>, String> {
    match text.trim() {
        "" => Err("the owner is empty: name who answers for this entry".to_owned()),
        _ => Ok(text.into()),
    }
}

pub(super) fn hint(text: &str) -> Result<Box<str>, String> {
    match text.len() {
        0 => Err("the hint is empty: leave it out".to_owned()),
        1..=MAX_HINT_BYTES => Ok(text.into()),
        length => Err(format!("the hint has {length} bytes; at most {MAX_HINT_BYTES} are allowed")),
    }
}

pub(super) fn audience(text: &str) -> Result<Box<str>, String> {
    match text.len() {
        0 => Err("an audience is empty: write the audience, or `[\"*\"]` for any".to_owned()),
        1..=MAX_TEXT_BYTES => Ok(text.into()),
        length => Err(format!("an audience has {length} bytes; at most {MAX_TEXT_BYTES} are allowed")),
    }
}

pub(super) fn uri_prefix(text: &str) -> Result<Box<str>, String> {
    let why = match UriPrefix::parse(text) {
        Ok(_) if text.len() <= MAX_TEXT_BYTES && !text.contains(['?', '#']) => return Ok(text.into()),
        Ok(_) => "it has a query or a fragment, which proofs do not cover, or is too long".to_owned(),
        Err(error) => error.to_string(),
    };
    Err(format!("`{text}` is not a URI prefix: write for example `https://tool.example.com/`, or `*` for any ({why})"))
}

pub(super) fn delegator(text: &str, domain: &TrustDomain) -> Result<Box<str>, String> {
    let fixed = text.strip_suffix("/*").unwrap_or(text);
    let id = SpiffeId::parse(fixed)
        .map_err(|error| format!("`{text}` is not a SPIFFE ID, nor one with `/*` at its end for all below: {error}"))?;
    if !id.is_member_of(domain) {
        return Err(format!("`{text}` is not in the trust domain `{domain}`: a process acts for local processes only"));
    }
    Ok(text.into())
}

/// A DNS name of letters, digits and hyphens (RFC 1123, section 2.1); its first label may be `*`.
pub(super) fn dns_name(text: &str) -> Result<Box<str>, String> {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    if text.parse::<IpAddr>().is_ok() {
        return Err(format!("`{text}` is an address, not a DNS name"));
    }
    let fixed = text.strip_prefix("*.").unwrap_or(text);
    let under_wildcard_is_specific = fixed.len() == text.len() || fixed.contains('.');
    if text.len() > 253 || !fixed.split('.').all(is_label) || !under_wildcard_is_specific {
        return Err(format!("`{text}` is not a DNS name: write for example `billing.example.org`"));
    }
    Ok(text.into())
}

pub(super) fn foreign_domain(text: &str, own: &TrustDomain) -> Result<TrustDomain, String> {
    let domain =
        TrustDomain::parse_name_or_id(text).map_err(|error| format!("`{text}` is not a trust domain: {error}"))?;
    if domain == *own {
        return Err(format!("`{text}` is the agent's own trust domain, whose bundle everyone gets: leave it out"));
    }
    Ok(domain)
}

pub(super) fn bind(text: &str) -> Result<Bind, String> {
    match text {
        "process" => Ok(Bind::Process),
        "unit" => Ok(Bind::Unit),
        "node" => Ok(Bind::Node),
        _ => Err(format!("`{text}` is not something to bind to: write `process`, `unit` or `node`")),
    }
}

pub(super) fn time(text: &str) -> Result<OffsetDateTime, String> {
    OffsetDateTime::parse(text, &Rfc3339)
        .map_err(|_| format!("`{text}` is not a time with its offset: write for example `2027-03-01T00:00:00Z`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_that_no_process_can_have_are_refused() {
        let hex = "0123456789abcdef".repeat(4);
        for good in [
            "unix:uid:0",
            "unix:gid:4294967295",
            "unix:user:0x",
            "unix:path:/a",
            &format!("unix:sha256:{hex}"),
            "systemd:unit:billing.service",
            "systemd:slice:system.slice",
            "cgroup:path:/",
            "lsm:label:anything",
            "launch:script:/opt/agent.py",
            &format!("launch:dir_sha256:{hex}"),
        ] {
            assert!(selector(good).is_ok(), "{good}");
        }
        for bad in [
            "unix:uid:root",
            "unix:uid:01",
            "unix:uid:+1",
            "unix:gid:4294967296",
            "unix:path:a",
            "unix:sha256:ABC",
            &format!("unix:sha256:{}", hex.to_uppercase()),
            "systemd:unit:billing",
            "systemd:slice:system",
            "systemd:invocation_id:1",
            "systemd:fragment_path:x",
            "cgroup:path:system.slice",
            "launch:path:python3",
            "launch:dir:agent",
            "launch:script_sha256:ABC",
        ] {
            let error = selector(bad).expect_err(bad);
            assert!(error.contains("can never match"), "{error}");
        }
    }

    #[test]
    fn dns_names_follow_the_host_name_rules() {
        let long = ["a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(61)].join(".");
        for good in ["localhost", "a.b", "A-1.example", "1a", "*.example.org", &long] {
            assert!(dns_name(good).is_ok(), "{good}");
        }
        let too_long = format!("{long}d");
        for bad in
            ["", ".", "a.", ".a", "a..b", "-a", "a-", "a_b", "a b", "*", "*.org", "a.*.b", "1.2.3.4", "::1", &too_long]
        {
            assert!(dns_name(bad).is_err(), "{bad}");
        }
        assert!(dns_name(&"a".repeat(64)).is_err());
    }

    #[test]
    fn uri_prefixes_have_a_scheme_and_a_host() {
        for good in ["*", "https://a", "https://a/b", "http://localhost:80/"] {
            assert!(uri_prefix(good).is_ok(), "{good}");
        }
        for bad in ["", "a", "https://", "https:///x", "ftp://a", "https://a b", "/x", "**"] {
            assert!(uri_prefix(bad).is_err(), "{bad}");
        }
    }
}
