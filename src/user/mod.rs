//! The person an agent acts for: from what can be proven, and until that ends.
//!
//! Two kinds: whoever logged in on this host, as the kernel (login uid) and logind know it for a process, and the subject
//! of an OpenID Connect token of a configured issuer. Nothing an agent says about its user is believed.

use std::fmt;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

/// A proven person.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct User {
    /// Who vouches: the URL of an OpenID Connect issuer, or for local users the SPIFFE ID of the node's agent.
    pub issuer: String,
    /// Whom it vouches for: `sub`, or for local users the account's name, or its number if it has none.
    pub subject: String,
    /// How it was proven.
    pub proof: UserProof,
}

/// How a person was proven, and what ends that.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum UserProof {
    /// By the kernel's login uid.
    Local {
        /// The login uid.
        uid: u32,
        /// The node it is a user of.
        node: String,
        /// The logind session, where logind knows one: its end is the user's end.
        login_session: Option<String>,
    },
    /// By a token.
    Token {
        /// When the token ends, and the user with it.
        #[serde(with = "time::serde::timestamp")]
        expires_at: OffsetDateTime,
        /// The issuer's session (`sid`), where the token says so.
        session: Option<String>,
        /// The authentication context (`acr`), where the token says so.
        context: Option<String>,
    },
}

impl User {
    /// When the proof ends by the clock; `None` when only an event ends it.
    pub fn expires_at(&self) -> Option<OffsetDateTime> {
        match &self.proof {
            UserProof::Local { .. } => None,
            UserProof::Token { expires_at, .. } => Some(*expires_at),
        }
    }
}

/// `alice@NODE` for local users, `ISSUER#SUBJECT` for others: for people, and the entity id in policies.
impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.proof {
            UserProof::Local { node, .. } => write!(f, "{}@{node}", self.subject),
            UserProof::Token { .. } => write!(f, "{}#{}", self.issuer, self.subject),
        }
    }
}

/// Proves people.
#[derive(Clone, Debug, Default)]
pub struct Users;

/// Why a person cannot be proven.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// The kernel knows no login.
    #[error("the kernel knows no login of the process")]
    NoLogin,
}

impl UserError {
    /// A stable label.
    pub fn as_str(&self) -> &'static str {
        "no_login"
    }
}

/// A person that is held.
#[derive(Debug)]
pub struct UserHold;

impl UserHold {
    /// Waits for the end.
    pub async fn ended(&self) {
        std::future::pending().await
    }
}

impl Users {
    /// Who logged in.
    pub async fn local(&self, _: &crate::peer::Instance) -> Result<User, UserError> {
        Err(UserError::NoLogin)
    }

    /// Whom a token names.
    pub async fn of_token(&self, _: &str) -> Result<User, UserError> {
        Err(UserError::NoLogin)
    }

    /// Until it ends.
    pub async fn hold(&self, _: &User) -> Result<UserHold, UserError> {
        Ok(UserHold)
    }
}
