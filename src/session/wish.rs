//! What somebody wants a session to be, checked before anything is asked or made.

use std::time::Duration;

use super::error::SessionError;
use super::model::{Boundary, Budget};
use crate::attest::LaunchRequest;
use crate::base::secret::Secret;
use crate::base::text::is_hidden;
use crate::id::SpiffeId;
use crate::proof::{TargetUri, UriPrefix};

/// The longest purpose, transaction id and scope.
const MAX_NAME: usize = 128;
/// The longest target.
const MAX_TARGET: usize = 2048;
/// Targets and scopes of one session.
const MAX_LIST: usize = 64;
/// The longest transaction id.
pub const MAX_TXN: usize = 64;

/// Who acts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// One program in one process.
    Process,
    /// Every process in its cgroup and below.
    Cgroup,
    /// It and its descendants.
    Tree,
}

/// A process somebody names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessName {
    /// Its number.
    pub pid: i32,
    /// Its inode on pidfs; `None` where the kernel has none.
    pub pidfs_inode: Option<u64>,
}

/// For whom.
#[derive(Debug, Default)]
pub enum UserWish {
    /// For nobody but itself.
    #[default]
    Nobody,
    /// For who logged in, as the host knows it.
    Local,
    /// For the subject of this token.
    Token(Secret<String>),
}

/// What a session shall be.
#[derive(Debug)]
pub struct Wish {
    /// What for.
    pub purpose: String,
    /// SHA-256 of the task in words, in hex; empty for none.
    pub task_sha256: String,
    /// Where to.
    pub targets: Vec<String>,
    /// What of.
    pub scopes: Vec<String>,
    /// What it is limited to; `None` for the default: a task, or what the parent has.
    pub boundary: Option<Boundary>,
    /// How often.
    pub budget: Budget,
    /// How long; `None` for the default.
    pub ttl: Option<Duration>,
    /// Without a sign of life for so long it ends.
    pub heartbeat: Option<Duration>,
    /// Who acts.
    pub scope: Scope,
    /// Which process; `None` for the caller.
    pub process: Option<ProcessName>,
    /// As whom; `None` for the default identity.
    pub spiffe_id: Option<SpiffeId>,
    /// For whom.
    pub user: UserWish,
    /// What is launched.
    pub launch: Option<LaunchRequest>,
    /// Which ended session it goes on with.
    pub resumes: Option<String>,
}

impl Wish {
    /// Whether every text is one that can be kept, printed and compared.
    pub(super) fn check(&self) -> Result<(), SessionError> {
        if self.purpose.is_empty() {
            return field("purpose", "is empty: say what the session is for");
        }
        if self.purpose.len() > MAX_NAME || !self.purpose.bytes().all(is_name) {
            return field("purpose", "takes letters, digits, `.`, `_`, `-`, `/` and `:`, at most 128 of them");
        }
        if self.targets.is_empty() {
            return field("targets", "is empty: name what the session is to reach");
        }
        if self.targets.len() > MAX_LIST {
            return field("targets", "has more than 64");
        }
        self.targets.iter().try_for_each(|target| check_target("targets", target))?;
        if self.scopes.len() > MAX_LIST {
            return field("scopes", "has more than 64");
        }
        self.scopes.iter().try_for_each(|scope| check_scope(scope))?;
        if self.heartbeat.is_some_and(|within| within < Duration::from_secs(1)) {
            return field("heartbeat_seconds", "is less than a second");
        }
        if self.resumes.as_ref().is_some_and(|id| id.len() > MAX_NAME || !id.bytes().all(is_name)) {
            return field("resumes", "is no session id");
        }
        Ok(())
    }
}

/// Whether a target is a URI prefix in its one form, `*`, or the audience of a bearer token.
pub(super) fn check_target(name: &'static str, target: &str) -> Result<(), SessionError> {
    if target.is_empty() || target.len() > MAX_TARGET || !target.bytes().all(|byte| byte.is_ascii_graphic()) {
        return field(name, "takes visible ASCII without spaces, at most 2048 bytes each");
    }
    let looks_like_uri = target.starts_with("http://") || target.starts_with("https://");
    match TargetUri::parse(target) {
        Err(error) if looks_like_uri => field(name, &format!("has `{target}`, which is refused: {error}")),
        // An origin without its slash is how audiences are written: it stands for the same URIs.
        Ok(uri) if uri.as_str() != target && uri.as_str().strip_suffix('/') != Some(target) => {
            field(name, &format!("has `{target}`: write it as `{}`", uri.as_str()))
        }
        _ => Ok(()),
    }
}

/// Whether an audience is one of a bearer token: compared to the letter, in whatever form its service has it.
pub(super) fn check_audience(audience: &str) -> Result<(), SessionError> {
    if audience.is_empty() || audience.len() > MAX_TARGET || !audience.bytes().all(|byte| byte.is_ascii_graphic()) {
        return field("target", "takes visible ASCII without spaces, at most 2048 bytes");
    }
    Ok(())
}

/// Whether a scope is one (RFC 6749, section 3.3).
pub(super) fn check_scope(scope: &str) -> Result<(), SessionError> {
    let is_scope = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\');
    if scope.is_empty() || scope.len() > MAX_NAME || !scope.bytes().all(is_scope) {
        return field("scopes", "takes names of visible ASCII without spaces, quotes and backslashes, 128 bytes each");
    }
    Ok(())
}

/// Whether a transaction id can be searched for.
pub(super) fn check_txn(txn: &str) -> Result<(), SessionError> {
    let is_txn = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if txn.len() > MAX_TXN || !txn.bytes().all(is_txn) {
        return field("txn", "takes letters, digits, `-`, `_` and `.`, at most 64 of them");
    }
    Ok(())
}

/// Whether a tool's name can be kept and printed.
pub(super) fn check_tool(tool: &str) -> Result<(), SessionError> {
    if tool.len() > MAX_NAME || tool.chars().any(is_hidden) {
        return field("tool", "is longer than 128 bytes, or has characters that do not show");
    }
    Ok(())
}

/// Whether everything that `inner` covers, `outer` covers: of two targets of sessions.
pub(super) fn is_within(inner: &str, outer: &str) -> bool {
    if inner == outer || outer == "*" {
        return true;
    }
    let (Ok(uri), Ok(prefix)) = (TargetUri::parse(inner), UriPrefix::parse(outer)) else { return false };
    prefix.covers(&uri)
}

fn is_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b'/' | b':')
}

fn field<T>(field: &'static str, why: &str) -> Result<T, SessionError> {
    Err(SessionError::Field { field, why: why.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_lies_within_another_by_origin_and_whole_segments() {
        let table = [
            ("https://a/x", "https://a/x", true),
            ("https://a/x/y", "https://a/x", true),
            ("https://a/xy", "https://a/x", false),
            ("https://a/", "https://a/x", false),
            ("https://a/x", "https://b/x", false),
            ("https://a/x", "*", true),
            ("*", "https://a/x", false),
            ("billing", "billing", true),
            ("billing", "bill", false),
            ("*", "*", true),
        ];
        for (inner, outer, expected) in table {
            assert_eq!(is_within(inner, outer), expected, "{inner} in {outer}");
        }
    }

    #[test]
    fn targets_are_written_in_their_one_form() {
        for good in ["https://tool.example.com/api/", "*", "https://a/", "https://a", "billing", "urn:example:aud"] {
            assert!(check_target("targets", good).is_ok(), "{good}");
        }
        for bad in ["", "https://Tool.example.com/", "https://a/?q", "a b", "https://", "https://a/\u{e9}"] {
            assert!(check_target("targets", bad).is_err(), "{bad}");
        }
    }
}
