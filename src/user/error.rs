//! Why a person is not proven.

use std::sync::Arc;

use thiserror::Error;
use time::OffsetDateTime;

use super::logind::LoginError;
use super::oidc::KeysError;
use crate::jwt::JwtError;
use crate::peer::LookError;

/// The most of a stranger's text that is shown.
const MAX_SHOWN: usize = 200;

/// Why a person is not proven, or the proof has ended.
#[derive(Debug, Error)]
pub enum UserError {
    /// The kernel has no login uid for the process: it descends from no login.
    #[error(
        "the process was not started from a login (its login uid is unset), so nobody is proven to stand behind it: \
         start it from a login shell, or give a subject token of a configured issuer"
    )]
    NoLogin,
    /// The kernel was built without audit and knows no login uids.
    #[error(
        "this kernel keeps no login uids (it was built without CONFIG_AUDIT), so no local user can be proven: give a \
         subject token of a configured issuer"
    )]
    NoAudit,
    /// The process is in no login session, or in one in which nobody is at work: a job of cron, a lingering manager.
    #[error(
        "the process is in no login session of user {uid} ({why}): start it from a login shell, or give a subject token \
         of a configured issuer"
    )]
    NoSession {
        /// The login uid.
        uid: u32,
        /// Where it is instead.
        why: String,
    },
    /// The login session is one of another user than the kernel's login uid.
    #[error("the kernel says that user {uid} logged in, and logind that the session is one of user {session}")]
    OtherUser {
        /// The login uid.
        uid: u32,
        /// Whose the session is.
        session: u32,
    },
    /// There is no logind, and the process is not one of which the login uid alone says enough.
    #[error(
        "the login uid {uid} is no proof for this process, because {why}: without systemd-logind a local user is proven \
         only for processes that run as that user outside of containers; give a subject token of a configured issuer"
    )]
    Unproven {
        /// The login uid.
        uid: u32,
        /// What is missing.
        why: String,
    },
    /// logind cannot be asked. It may be later.
    #[error("whether the user is logged in cannot be found out now")]
    Logind(#[source] LoginError),
    /// The name service failed. It may not later.
    #[error("the name of user {uid} cannot be found out now: {why}")]
    Name {
        /// The login uid.
        uid: u32,
        /// What went wrong.
        why: String,
    },
    /// The process has ended, or cannot be looked at.
    #[error("the process cannot be looked at")]
    Process(#[from] LookError),
    /// The process's files in `/proc` are not in the form this agent knows.
    #[error("`{0}` of the process cannot be read")]
    Unreadable(&'static str),
    /// A proof of another node.
    #[error("the user is a local user of the node `{0}`")]
    OtherNode(String),
    /// The login session is over.
    #[error("the user has logged out: log in again, and start another session")]
    LoggedOut,

    /// No issuer is configured.
    #[error("subject tokens are not accepted here: no issuer is configured under `sessions.issuers`")]
    NoIssuers,
    /// No signed token in compact form, or too long.
    #[error("the subject token is malformed")]
    Malformed(#[source] JwtError),
    /// It is not from an issuer that is configured.
    #[error("the subject token is from `{0}`, which is no issuer configured under `sessions.issuers`")]
    Issuer(String),
    /// It is signed with an algorithm that its issuer may not use.
    #[error("the subject token is signed with {0}, which is not among the issuer's `algorithms`")]
    Algorithm(&'static str),
    /// It is a token of another kind: one of ours, a logout token, a security event.
    #[error("the subject token is of a type that proves no user: take an ID token or an access token")]
    Type,
    /// There are no keys to check it with. There may be later.
    #[error("the keys of the issuer `{issuer}` cannot be had now")]
    Keys {
        /// The issuer.
        issuer: String,
        /// Why.
        #[source]
        source: Arc<KeysError>,
    },
    /// The issuer publishes no key with its key ID, for its algorithm.
    #[error("the issuer publishes no key for the subject token's `kid` and `alg`")]
    UnknownKey,
    /// The signature is wrong.
    #[error("the signature of the subject token is wrong")]
    Signature,
    /// It is meant for others.
    #[error("the subject token is not meant for us: its `aud` does not have the issuer's configured `audience`")]
    Audience,
    /// It is meant for others too, or was made for a client that is not listed.
    #[error(
        "the subject token is meant for others as well, or was made for a client (`azp`) that is not among the issuer's \
         `authorized_parties`"
    )]
    AuthorizedParty,
    /// A claim is absent, of the wrong type, too long, or has characters that do not belong there.
    #[error("the claim `{0}` of the subject token is absent or malformed")]
    Claim(&'static str),
    /// It speaks of a workload.
    #[error("the subject of the token is a SPIFFE ID, and so no user")]
    Workload,
    /// It is over.
    #[error("the subject token expired at {0}: get a new one, and start another session")]
    Expired(OffsetDateTime),
    /// It is not valid yet, or its issuer's clock is ahead.
    #[error("the subject token is valid only from {0}: is this host's clock right?")]
    NotYetValid(OffsetDateTime),
    /// It was issued longer ago than is accepted of its issuer.
    #[error("the subject token was issued at {0}, longer ago than the issuer's `max_age`: get a new one")]
    TooOld(OffsetDateTime),
}

impl UserError {
    /// The refusal of a stranger's issuer, with as much of its name as is good to show.
    pub(super) fn unknown_issuer(issuer: &str) -> Self {
        Self::Issuer(issuer.escape_debug().take(MAX_SHOWN).collect())
    }

    /// A label of a small fixed set, for answers, metrics and audit.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::NoLogin => "no_login",
            Self::NoAudit => "no_audit",
            Self::NoSession { .. } => "no_login_session",
            Self::OtherUser { .. } => "other_user",
            Self::Unproven { .. } => "unproven_login",
            Self::Logind(_) => "logind_unavailable",
            Self::Name { .. } => "name_unavailable",
            Self::Process(_) => "process_gone",
            Self::Unreadable(_) => "process_unreadable",
            Self::OtherNode(_) => "other_node",
            Self::LoggedOut => "logged_out",
            Self::NoIssuers => "no_issuers",
            Self::Malformed(_) => "token_malformed",
            Self::Issuer(_) => "token_issuer",
            Self::Algorithm(_) => "token_algorithm",
            Self::Type => "token_type",
            Self::Keys { .. } => "keys_unavailable",
            Self::UnknownKey => "token_key",
            Self::Signature => "token_signature",
            Self::Audience => "token_audience",
            Self::AuthorizedParty => "token_authorized_party",
            Self::Claim(_) => "token_claim",
            Self::Workload => "token_workload",
            Self::Expired(_) => "token_expired",
            Self::NotYetValid(_) => "token_not_yet_valid",
            Self::TooOld(_) => "token_too_old",
        }
    }

    /// Whether the same question may be answered otherwise soon: what was needed to decide could not be had.
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Logind(_) | Self::Name { .. } | Self::Keys { .. } => true,
            Self::Process(error) => matches!(error, LookError::Unseen(_)),
            _ => false,
        }
    }
}
