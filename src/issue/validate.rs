//! Validating JWT-SVIDs for whoever asks: by their signature, and those that this node issued also by whether they still
//! stand. A bearer token is good for whoever has it; this is where a stolen one ends with the process it was issued to.

use thiserror::Error;

use super::{Issuer, LEEWAY, Refusal, caller};
use crate::audit::Event;
use crate::bond::{End, Tie, Unheld};
use crate::id::{SpiffeId, TrustDomain};
use crate::jwt::{JwtError, JwtSvid};
use crate::ledger::{Credential, Kind, Reason, Standing};
use crate::peer::{LookError, PeerConn};

/// Why a token is not valid.
#[derive(Debug, Error)]
pub enum Invalid {
    /// By itself, or by the keys of its trust domain.
    #[error(transparent)]
    Token(#[from] JwtError),
    /// This node issued it, and it has ended before its time.
    #[error("it has been revoked ({})", .0.as_str())]
    Ended(Reason),
    /// It belongs to a session that has ended or is suspended.
    #[error("the session it belongs to has ended or is suspended")]
    Session,
    /// Its entry allows one use, and that was before.
    #[error("it is good for one use and has been used")]
    Used,
    /// It bears the name of this node, whose ledger does not have it.
    #[error("this node has no record of it")]
    Unknown,
}

impl Invalid {
    /// A stable name for audit.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Token(_) => "token",
            Self::Ended(reason) => reason.as_str(),
            Self::Session => "session",
            Self::Used => "used",
            Self::Unknown => "unknown",
        }
    }
}

/// Whether sessions may be used, for whoever is shown a token that hangs on one. The sessions are a row below this one.
#[tonic::async_trait]
pub trait LooksAtSessions: std::fmt::Debug + Send + Sync {
    /// Looks at whoever acts in it; what is gone ends it.
    async fn may_be_used(&self, session: &str) -> bool;
}

impl Issuer {
    /// Validates a token for one audience, with the bundles its caller may see. One that this node issued must also
    /// stand, and one for a single use is used by this.
    pub async fn validate(
        &self,
        peer: &PeerConn,
        token: &str,
        audience: &str,
    ) -> Result<Result<JwtSvid, Invalid>, Refusal> {
        let (bundles, _) = self.bundles(peer).await?;
        let find = |domain: &TrustDomain| bundles.all().find(|bundle| bundle.trust_domain() == domain);
        let valid = crate::jwt::validate(token, audience, |domain| Some(find(domain)?.jwt()), self.clock.now(), LEEWAY);
        let svid = match valid {
            Ok(svid) => svid,
            Err(error) => return Ok(Err(error.into())),
        };
        let Some(jti) = self.own_jti(&svid) else { return Ok(Ok(svid)) };
        let stands = self.recorded(peer, None, self.stands(&svid, jti).await)?;
        let Err(invalid) = stands else { return Ok(Ok(svid)) };
        self.audit.record(Event::TokenRefused {
            caller: caller(peer),
            spiffe_id: svid.spiffe_id().to_string(),
            serial: jti.to_owned(),
            reason: invalid.as_str(),
        });
        Ok(Err(invalid))
    }

    /// The `jti` of a token that this node issued, going by its name. What others issue is theirs to judge.
    fn own_jti<'a>(&self, svid: &'a JwtSvid) -> Option<&'a str> {
        let own_domain = svid.spiffe_id().trust_domain() == *self.trust.current().domain();
        svid.token_id().filter(|jti| own_domain && self.ledger.is_of_this_node(jti))
    }

    /// Whether a token of this node stands; if it is for one use, that was it.
    async fn stands(&self, svid: &JwtSvid, jti: &str) -> Result<Result<(), Invalid>, Refusal> {
        let Some(recorded) = self.issued_as(jti, Kind::Jwt, svid.spiffe_id()) else { return Ok(Err(Invalid::Unknown)) };
        if recorded.standing == Standing::Stands {
            if let Tie::Session(session) = &recorded.tie {
                let sessions = self.sessions.get();
                let may_be_used = match sessions {
                    Some(sessions) => sessions.may_be_used(session).await,
                    None => false,
                };
                if !may_be_used {
                    return Ok(Err(Invalid::Session));
                }
            } else {
                self.look_at_holder(&recorded).await?;
            }
        }
        Ok(match self.ledger.use_once(jti)? {
            Standing::Stands => Ok(()),
            Standing::Used => Err(Invalid::Used),
            Standing::Ended { reason, .. } => Err(Invalid::Ended(reason)),
            Standing::Unknown => Err(Invalid::Unknown),
        })
    }

    /// What the ledger has of the credential that somebody shows: of this kind and for this identity, or nothing.
    pub(crate) fn issued_as(&self, id: &str, kind: Kind, spiffe_id: &SpiffeId) -> Option<Credential> {
        self.ledger.credential(id).filter(|known| is_record_of((known.kind, &known.spiffe_id), (kind, spiffe_id)))
    }

    /// Makes the ledger know what has become of the process that a credential was issued to. Its exit is an event;
    /// another program, user, group and cgroup are not, so whoever asks must look and judge what is seen.
    pub(crate) async fn look_at_holder(&self, credential: &Credential) -> Result<(), Refusal> {
        let process = Tie::Process { instance: credential.instance, pid: credential.pid };
        // What is tied to more than the process does not end with it.
        let ended = |end: End| {
            let count = self.ledger.tie_ended(&process, end.into())?;
            self.record_ended(process.to_string(), end.into(), count);
            Ok(())
        };
        let hold = match self.bonds.hold(&process).await {
            Ok(hold) => hold,
            Err(Unheld::Ended(end)) => return ended(end),
            Err(unseen) => return Err(Refusal::Holder(unseen.into())),
        };
        let Some(instance) = hold.instance() else { return Ok(()) };
        // Begins and ends with a look, and costs little else where nothing is new.
        match self.judge_again(instance).await {
            Ok(()) => Ok(()),
            Err(Refusal::Look(LookError::Ended(end))) => ended(end.into()),
            Err(Refusal::Ledger(error)) => Err(error.into()),
            // Not the fault of whoever asks, which may do so again.
            Err(unseen) => Err(Refusal::Holder(unseen.into())),
        }
    }
}

/// Whether a row of the ledger is about what is shown with its id. Whoever shares our keys, as nodes with the same files
/// do, cannot speak for what this node issued to another, or as another kind.
fn is_record_of(known: (Kind, &str), shown: (Kind, &SpiffeId)) -> bool {
    known == (shown.0, shown.1.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_about_one_kind_of_credential_and_one_identity() {
        let a: SpiffeId = "spiffe://example.org/a".parse().unwrap();
        let rows = [
            (Kind::Wit, "spiffe://example.org/a", true),
            (Kind::Wit, "spiffe://example.org/b", false),
            (Kind::Wit, "spiffe://example.com/a", false),
            (Kind::Jwt, "spiffe://example.org/a", false),
            (Kind::X509, "spiffe://example.org/a", false),
        ];
        for (kind, id, expected) in rows {
            assert_eq!(is_record_of((kind, id), (Kind::Wit, &a)), expected, "{kind:?} {id}");
        }
    }
}
