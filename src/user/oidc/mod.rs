//! Persons that a configured OpenID Connect provider vouches for by a token (OpenID Connect Core 1.0, RFC 7519,
//! RFC 9068).
//!
//! Promises: a token is believed only if its `iss` is, byte for byte, an issuer of the configuration, its algorithm one
//! of those allowed for that issuer, its signature made with a key that the issuer published, its audience ours, and its
//! life not over. What a token says about where its keys are is not looked at.
//!
//! Does not: ask the issuer whether the token was revoked, or notice a logout at the issuer before the token's end
//! (back-channel logout and CAEP are not spoken). A token is a bearer token: whoever has it can begin a session for its
//! subject on this node while it lasts, so take short ones, made for an audience that is this node's or this fleet's
//! alone.

mod keys;
mod keyset;
mod token;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use self::keys::Keys;
use super::fetch::{Endpoint, Fetcher, Roots};
use super::{User, UserError};
use crate::base::clock::Clock;
use crate::base::entropy::Entropy;
use crate::jwt::{Algorithm, Jws};

pub use self::keys::KeysError;
pub use self::keyset::{KeySet, KeySetError};

/// What the configuration says of the issuers, by their URL: setting `sessions.issuers`.
pub type IssuerTable = BTreeMap<String, IssuerSettings>;

/// How tokens of one issuer are checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuerSettings {
    /// The audience (`aud`) that stands for us.
    pub audience: String,
    /// Where its keys are.
    pub keys: KeySource,
    /// The algorithms its tokens may be signed with.
    pub algorithms: Vec<Algorithm>,
    /// The clients (`azp`) it may have made the token for; empty for all, while the audience is ours alone.
    pub authorized_parties: Vec<String>,
    /// How long ago the token may have been issued (`iat`), if that is limited.
    pub max_age: Option<Duration>,
    /// The longest that a token proves the user from when it is presented, if that is shorter than its own life.
    pub max_ttl: Option<Duration>,
    /// The roots its certificate is checked with, in PEM, instead of the host's.
    pub ca_file: Option<PathBuf>,
}

/// Where an issuer's keys are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// Where its discovery document says (OpenID Connect Discovery 1.0, section 4).
    Discovery,
    /// At this URL.
    Url(Endpoint),
    /// In this file, which is read again when it changes.
    File(PathBuf),
}

impl IssuerSettings {
    /// The algorithms where nothing is said.
    pub const ALGORITHMS: [Algorithm; 2] = [Algorithm::Es256, Algorithm::Rs256];
}

/// The issuers that are believed.
#[derive(Debug)]
pub(super) struct Issuers {
    by_url: BTreeMap<String, Issuer>,
    clock: Clock,
}

/// One issuer and its keys.
#[derive(Debug)]
struct Issuer {
    url: String,
    settings: IssuerSettings,
    keys: Keys,
}

impl Issuers {
    /// Begins to fetch the keys of every issuer. Must be called inside a runtime.
    pub fn new(table: IssuerTable, clock: &Clock, entropy: &Entropy) -> Self {
        let issuer = |(url, settings): (String, IssuerSettings)| {
            let roots = settings.ca_file.clone().map_or(Roots::Host, Roots::File);
            let keys = Keys::new(&url, &settings.keys, Fetcher::new(roots), clock, entropy);
            (url.clone(), Issuer { url, settings, keys })
        };
        Self { by_url: table.into_iter().map(issuer).collect(), clock: clock.clone() }
    }

    /// The person a token is about.
    ///
    /// # Errors
    /// The first rule that does not hold.
    pub async fn user_of(&self, token: &str) -> Result<User, UserError> {
        if self.by_url.is_empty() {
            return Err(UserError::NoIssuers);
        }
        let jws = Jws::parse(token).map_err(UserError::Malformed)?;
        let claims = jws.claims().map_err(UserError::Malformed)?;
        let issuer = token::issuer(&claims)?;
        let issuer = self.by_url.get(issuer).ok_or_else(|| UserError::unknown_issuer(issuer))?;
        token::check_header(jws.header(), &issuer.settings)?;
        let keys = issuer.keys.find(|keys| keys.has_for(jws.header())).await;
        let keys = keys.map_err(|source| UserError::Keys { issuer: issuer.url.clone(), source })?;
        token::check_signature(&jws, &keys)?;
        token::believe(&claims, &issuer.url, &issuer.settings, self.clock.now())
    }
}

/// Entry point for fuzzing: a token of `issuer` against the keys in a JWK set, both arbitrary text.
#[doc(hidden)]
pub fn fuzz_user(
    token: &str,
    keys: &[u8],
    issuer: &str,
    settings: &IssuerSettings,
    now: time::OffsetDateTime,
) -> Result<User, UserError> {
    let jws = Jws::parse(token).map_err(UserError::Malformed)?;
    let claims = jws.claims().map_err(UserError::Malformed)?;
    if token::issuer(&claims)? != issuer {
        return Err(UserError::unknown_issuer(token::issuer(&claims)?));
    }
    token::check_header(jws.header(), settings)?;
    let keys = KeySet::parse(keys).map_err(|source| UserError::Keys {
        issuer: issuer.to_owned(),
        source: KeysError::Malformed { place: "fuzz".to_owned(), source }.into(),
    })?;
    token::check_signature(&jws, &keys)?;
    token::believe(&claims, issuer, settings, now)
}

#[cfg(test)]
mod tests;
