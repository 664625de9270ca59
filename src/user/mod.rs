//! The person an agent acts for: from what can be proven, and until that ends.
//!
//! Two kinds: whoever logged in on this host, as the kernel (login uid) and logind know it for a process ([`local`]), and
//! the subject of an OpenID Connect token of a configured issuer ([`oidc`]). Nothing an agent says about its user is
//! believed.
//!
//! What ends a user: of a local one the end of the login session, as logind says it (an event, also when something that
//! was started in it runs on); of one proven by a token the token's expiry. A local user of a host without logind has no
//! end of its own: it ends with the process. While logind cannot be asked nobody new is proven, and nobody who was is
//! known to have ended.

mod error;
pub mod fetch;
mod local;
mod logind;
mod logins;
mod oidc;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use self::local::Local;
use self::logind::Logind;
use self::logins::{Login, Logins};
use self::oidc::Issuers;
use crate::attest::{NameSource, Names, Nss};
use crate::base::clock::Clock;
use crate::base::entropy::Entropy;
use crate::id::TrustDomain;
use crate::peer::Instance;

pub use self::error::UserError;
pub use self::logind::LoginError;
pub use self::oidc::{IssuerSettings, IssuerTable, KeySet, KeySetError, KeySource, KeysError, fuzz_user};

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

/// How users are proven.
#[derive(Clone, Debug)]
pub struct Config {
    /// The SPIFFE ID of this node's agent, which vouches for local users.
    pub agent: String,
    /// This node.
    pub node: String,
    /// The issuers whose tokens are believed: setting `sessions.issuers`.
    pub issuers: IssuerTable,
    /// The D-Bus address logind is asked at; by default `DBUS_SYSTEM_BUS_ADDRESS`, else the system bus.
    pub bus: Option<String>,
    /// How long to wait for logind, and for the name service.
    pub patience: Duration,
    /// How long the names of users are remembered.
    pub name_cache: Duration,
    /// The directory that exists when systemd started the host (sd_booted(3)).
    pub booted: PathBuf,
    /// Where logind keeps a file of every session (sd_login_monitor(3)).
    pub login_sessions: PathBuf,
}

impl Config {
    /// The users of this node, and no issuers.
    pub fn of_node(domain: &TrustDomain, node: &str) -> Self {
        Self {
            agent: format!("spiffe://{domain}/tether/agent/{node}"),
            node: node.to_owned(),
            issuers: IssuerTable::new(),
            bus: None,
            patience: Duration::from_millis(500),
            name_cache: Duration::from_secs(60),
            booted: PathBuf::from("/run/systemd/system"),
            login_sessions: PathBuf::from("/run/systemd/sessions"),
        }
    }
}

/// Proves users, and knows when they have ended. Clones are the same.
#[derive(Clone)]
pub struct Users(Arc<Parts>);

struct Parts {
    local: Local,
    issuers: Issuers,
    node: String,
    clock: Clock,
}

impl Users {
    /// Users with names from the host's name service. Begins to fetch the keys of every issuer; must be called inside a
    /// runtime.
    pub fn new(config: Config, clock: &Clock, entropy: &Entropy) -> Self {
        Self::with_names(config, Nss, clock, entropy)
    }

    /// Users with names from `names`.
    pub fn with_names(config: Config, names: impl NameSource + 'static, clock: &Clock, entropy: &Entropy) -> Self {
        let logind = Arc::new(Logind::new(config.bus, config.login_sessions));
        let local = Local {
            agent: config.agent,
            node: config.node.clone(),
            names: Names::new(names, clock.clone(), config.name_cache),
            patience: config.patience,
            logins: Logins::new(logind, config.patience, clock.clone(), entropy.clone()),
            booted: config.booted,
        };
        let issuers = Issuers::new(config.issuers, clock, entropy);
        Self(Arc::new(Parts { local, issuers, node: config.node, clock: clock.clone() }))
    }

    /// Who logged in, of whom the process is one.
    ///
    /// # Errors
    /// The process descends from no login, or that cannot be proven.
    pub async fn local(&self, instance: &Instance) -> Result<User, UserError> {
        self.0.local.user_of(instance).await
    }

    /// Whom a subject token is about.
    ///
    /// # Errors
    /// The first rule that does not hold of it.
    pub async fn of_token(&self, token: &str) -> Result<User, UserError> {
        self.0.issuers.user_of(token).await
    }

    /// Holds a user who was proven, also before the agent was started: from now on the end is an event.
    ///
    /// # Errors
    /// The proof has ended already, is that of another node, or cannot be looked at.
    pub async fn hold(&self, user: &User) -> Result<UserHold, UserError> {
        let clock = self.0.clock.clone();
        let hold = match &user.proof {
            UserProof::Token { expires_at, .. } if clock.now() >= *expires_at => {
                return Err(UserError::Expired(*expires_at));
            }
            UserProof::Token { expires_at, .. } => Hold::Until(clock, *expires_at),
            UserProof::Local { node, .. } if *node != self.0.node => return Err(UserError::OtherNode(node.clone())),
            UserProof::Local { login_session: None, .. } => Hold::Open,
            UserProof::Local { uid, login_session: Some(session), .. } => {
                Hold::Login(self.0.local.hold(*uid, session).await?)
            }
        };
        Ok(UserHold(hold))
    }
}

impl fmt::Debug for Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Users").field("issuers", &self.0.issuers).finish_non_exhaustive()
    }
}

/// A user who is not known to have ended. Holding costs nothing that others who hold the same login do not share.
#[derive(Clone, Debug)]
#[must_use = "without it the end of the user is not seen"]
pub struct UserHold(Hold);

#[derive(Clone, Debug)]
enum Hold {
    Until(Clock, OffsetDateTime),
    Login(Arc<Login>),
    /// There is nothing whose end could be seen.
    Open,
}

/// Why a user has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum UserEnd {
    /// The login session is over.
    LoggedOut,
    /// The token is.
    Expired,
}

impl UserEnd {
    /// A label of a small fixed set, for audit.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::LoggedOut => "logged_out",
            Self::Expired => "expired",
        }
    }
}

impl UserHold {
    /// Waits for the end of the user. For ever, for a local user of a host without logind.
    pub async fn ended(&self) -> UserEnd {
        match &self.0 {
            Hold::Until(clock, end) => {
                clock.sleep_until(*end).await;
                UserEnd::Expired
            }
            Hold::Login(login) => login.ended().await,
            Hold::Open => std::future::pending().await,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
