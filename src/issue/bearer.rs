//! Bearer tokens that a delegate asks for: a proxy sends them, and the program it acts for never sees them.

use time::OffsetDateTime;

use super::{Acting, Asking, BEARER, Issuer, Refusal, again};
use crate::audit::Event;
use crate::id::SpiffeId;
use crate::ledger;
use crate::metrics::{Issued, Kind, Outcome};
use crate::registry::Bind;

/// A bearer token. Whoever has it can use it until it ends.
pub struct Bearer {
    /// The JWT-SVID.
    pub token: String,
    /// Its `jti`.
    pub id: String,
    /// When it ends.
    pub expires_at: OffsetDateTime,
    /// Whether it is good for one validation.
    pub one_use: bool,
}

impl std::fmt::Debug for Bearer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bearer").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Issuer {
    /// A JWT-SVID for one audience, of the process that the caller asks for: of the first of its identities that may have
    /// one. It is tied to that process, whatever its entry binds to.
    pub async fn mint_jwt_for(
        &self,
        asking: Asking<'_>,
        audience: &str,
        wanted: Option<&SpiffeId>,
    ) -> Result<Bearer, Refusal> {
        let minted = again(|| self.mint_jwt_inner(asking, audience, wanted)).await;
        self.recorded(asking.peer, Some(Kind::Jwt), minted)
    }

    async fn mint_jwt_inner(
        &self,
        asking: Asking<'_>,
        audience: &str,
        wanted: Option<&SpiffeId>,
    ) -> Result<Bearer, Refusal> {
        let mut acting = self.acting(asking).await?;
        acting.entitled.narrow_to(wanted)?;
        let Acting { instance, entitled, .. } = &acting;
        let audience = [audience.to_owned()];
        let mut denied = None;
        for identity in &entitled.identities {
            let grant = match self.policy.issue_jwt(&entitled.attested, identity, &audience, entitled.now) {
                Ok(grant) => grant,
                Err(denial) => {
                    denied.get_or_insert(denial);
                    continue;
                }
            };
            let signed = entitled.trust.signers().sign_jwt(grant, entitled.now).await?;
            let tie = self.bonds.tie(instance, &entitled.attested, Bind::Process).await?;
            // Nothing waits after this.
            acting.look()?;
            let one_use = identity.entry.is_single_use();
            let issued = ledger::Issued {
                id: &signed.jti,
                kind: ledger::Kind::Jwt,
                audience: &audience,
                authority: &signed.authority,
                binding: BEARER,
                not_after: signed.expires_at,
                single_use: one_use,
                delegate: acting.delegate().copied(),
                ..entitled.issued(identity)
            };
            self.write_down(instance, entitled, &tie, &issued)?;
            let event = Event::SvidIssued {
                caller: super::caller(asking.peer),
                on_behalf_of: acting.holder(),
                kind: issued.kind.as_str(),
                binding: issued.binding,
                spiffe_id: issued.spiffe_id.to_string(),
                entry: issued.entry.id().to_string(),
                serial: issued.id.to_owned(),
                audience: audience.to_vec(),
                not_after: issued.not_after,
            };
            self.before(issued.id, event)?;
            self.metrics.svid_issued.get_or_create(&Issued { r#type: issued.kind.into(), result: Outcome::Ok }).inc();
            return Ok(Bearer { id: signed.jti, token: signed.token, expires_at: signed.expires_at, one_use });
        }
        // There is at least one identity, and it was denied.
        Err(denied.map_or(Refusal::Stopping, Refusal::Denied))
    }
}
