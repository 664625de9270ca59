//! The keys of sessions: one each, for as long as the session.
//!
//! Whoever keeps sessions decides who may use one and wipes it with the session; here it is by the session's id alone.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::table::Kind;
use super::{Held, HeldError, describe};
use crate::jwt::Jwk;
use crate::policy::{Call, Permit};
use crate::proof::{ProofKey, ProofTarget, SessionClaims, SignedProof};
use crate::wit::Confirmation;
use crate::x509::{KeyError, KeyType, PrivateKey};

/// The key of one session.
pub(super) struct SessionKey {
    key: ProofKey,
}

/// What is public about it, beside it in the table that outlives the agent.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct KeptSession {
    pub(super) session: String,
}

impl SessionKey {
    fn new(key: &PrivateKey) -> Result<Self, HeldError> {
        Ok(Self { key: ProofKey::new(key).map_err(HeldError::Sign)? })
    }
}

impl fmt::Debug for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionKey(redacted)")
    }
}

/// How the key of a session is to prove a request.
#[derive(Clone, Copy, Debug)]
pub enum SessionProof<'a> {
    /// With a WIT that names the key: a Workload Proof Token that says what the session is.
    Wpt {
        /// The WIT.
        wit: &'a str,
        /// The session.
        claims: &'a SessionClaims,
    },
    /// With an access token that is bound to the key: a DPoP proof (RFC 9449).
    Dpop {
        /// The access token.
        access_token: Option<&'a str>,
        /// The server's nonce.
        nonce: Option<&'a str>,
    },
}

impl Held {
    /// Makes the one key of a session.
    ///
    /// # Errors
    /// The crypto library failed.
    pub async fn begin_session(&self, session: &str) -> Result<Confirmation, HeldError> {
        let key = PrivateKey::generate_aside(KeyType::EcP256).await?;
        self.hold_session(session, &key)
    }

    /// Holds the key of a session again that was kept over a restart.
    pub(super) fn hold_session(&self, session: &str, key: &PrivateKey) -> Result<Confirmation, HeldError> {
        let public = Jwk::from_spki(key.public_key()).map_err(|_| KeyError::Unsupported)?;
        let (pkcs8, key) = (key.to_pkcs8()?, Arc::new(SessionKey::new(key)?));
        let described = describe(&KeptSession { session: session.to_owned() })?;
        {
            let mut state = self.0.state();
            state.outlive(session, Kind::Session, None, &described, &pkcs8)?;
            state.sessions.insert(session.to_owned(), key);
        }
        self.0.changed();
        Ok(Confirmation::of(public))
    }

    /// The public half of a session's key, if that is here.
    pub fn session_key(&self, session: &str) -> Option<Confirmation> {
        let key = self.0.state().sessions.get(session).cloned()?;
        Some(Confirmation::of(key.key.public_key().clone()))
    }

    /// Wipes the key of a session. When this returns no use of it begins. Says whether there was one.
    pub fn wipe_session(&self, session: &str) -> bool {
        let wiped = {
            let mut state = self.0.state();
            state.table.as_mut().into_iter().for_each(|table| table.wipe(session));
            state.sessions.remove(session).is_some()
        };
        if wiped {
            self.0.changed();
        }
        wiped
    }

    /// The sessions whose keys are here.
    pub fn sessions(&self) -> Vec<String> {
        self.0.state().sessions.keys().cloned().collect()
    }

    /// Proves one request with the key of a session; the permit is used up.
    ///
    /// # Errors
    /// The key is not here, or the permit is for another session.
    pub fn prove_in_session(
        &self,
        permit: Permit<Call>,
        session: &str,
        proof: SessionProof<'_>,
        target: &ProofTarget,
        now: OffsetDateTime,
    ) -> Result<SignedProof, HeldError> {
        if permit.session() != session {
            return Err(HeldError::OtherIdentity);
        }
        let key = self.0.state().sessions.get(session).cloned().ok_or(HeldError::NotHeld)?;
        let entropy = &self.0.entropy;
        let signed = match proof {
            SessionProof::Wpt { wit, claims } => key.key.wpt(wit, target, Some(claims), entropy, now),
            SessionProof::Dpop { access_token, nonce } => key.key.dpop(target, access_token, nonce, entropy, now),
        };
        signed.map_err(HeldError::Sign)
    }
}
