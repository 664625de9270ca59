//! What is handed out to be written to files: by entries that say `exportable = true` alone, bound to a unit or to the
//! node, and in the ledger as what may be in files.
//!
//! What is in a file works for whoever reads it. Nothing here makes it worth more than that.

use time::OffsetDateTime;

use super::kept::{Document, Kept};
use super::tries::again;
use super::{BEARER, Bundles, Entitled, Issuer, Refusal, bundles};
use crate::attest::Attested;
use crate::authority::{SignedJwt, Signers, X509Svid};
use crate::bond::Tie;
use crate::id::SpiffeId;
use crate::ledger;
use crate::metrics::Kind;
use crate::peer::PeerConn;
use crate::policy::{Denial, Policy, X509Grant};
use crate::registry::{Bind, Entry, Identity, Origin};

/// Which identity of a caller is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The first one whose entry is exportable.
    Default,
    /// This one.
    Id(SpiffeId),
    /// The one with this hint.
    Hint(String),
}

/// An X.509-SVID whose key may be written to files.
#[derive(Debug)]
pub struct ExportedX509(pub X509Svid);

/// One X.509-SVID for files and all that peers are judged by, as one complete state.
#[derive(Clone, Debug)]
pub struct ExportState {
    /// The SVID and its hint.
    pub svid: Kept<ExportedX509>,
    /// What peers are judged by.
    pub bundles: Bundles,
    /// When this state must be made anew.
    pub renew_at: OffsetDateTime,
}

impl PartialEq for ExportState {
    /// Whether a client would see no difference.
    fn eq(&self, other: &Self) -> bool {
        let same_svid = super::kept::same(std::slice::from_ref(&self.svid), std::slice::from_ref(&other.svid));
        same_svid && self.bundles.same_x509(&other.bundles) && self.bundles.same_jwt(&other.bundles)
    }
}

impl Document for ExportedX509 {
    const KIND: ledger::Kind = X509Svid::KIND;
    type Grant = X509Grant;

    fn decide(policy: &Policy, attested: &Attested, of: &Identity, now: OffsetDateTime) -> Result<X509Grant, Denial> {
        X509Svid::decide(policy, attested, of, now)
    }

    async fn make(issuer: &Issuer, signers: &Signers, grant: X509Grant, now: OffsetDateTime) -> Result<Self, Refusal> {
        X509Svid::make(issuer, signers, grant, now).await.map(Self)
    }

    fn id(&self) -> &str {
        self.0.id()
    }

    fn authority(&self) -> &str {
        self.0.authority()
    }

    fn not_after(&self) -> OffsetDateTime {
        self.0.not_after()
    }

    fn same_terms(a: &Entry, b: &Entry) -> bool {
        X509Svid::same_terms(a, b)
    }

    fn given_by(entry: &Entry) -> bool {
        exportable(entry).is_ok()
    }

    fn tied_to(tie: Tie) -> Tie {
        tie.exported()
    }
}

impl Issuer {
    /// An X.509-SVID of a caller for files, and its bundles.
    pub async fn export_x509(&self, peer: &PeerConn, choice: &Choice) -> Result<ExportState, Refusal> {
        let made = again(|| self.export_x509_inner(peer, choice)).await;
        self.recorded(peer, Some(Kind::X509), made)
    }

    async fn export_x509_inner(&self, peer: &PeerConn, choice: &Choice) -> Result<ExportState, Refusal> {
        let mut entitled = self.entitled(peer).await?;
        let chosen = chosen(&entitled, choice)?.clone();
        let (svids, renew_at) = self.kept(peer, &mut entitled, Some(&chosen.spiffe_id)).await?;
        let svid = svids.into_iter().next().ok_or(Refusal::NotGranted(chosen.spiffe_id))?;
        Ok(ExportState { svid, bundles: bundles(&entitled), renew_at })
    }

    /// A JWT-SVID of a caller for files, for exactly these audiences.
    pub async fn export_jwt(
        &self,
        peer: &PeerConn,
        audience: &[String],
        choice: &Choice,
    ) -> Result<(SpiffeId, SignedJwt), Refusal> {
        let made = again(|| self.export_jwt_inner(peer, audience, choice)).await;
        self.recorded(peer, Some(Kind::Jwt), made)
    }

    async fn export_jwt_inner(
        &self,
        peer: &PeerConn,
        audience: &[String],
        choice: &Choice,
    ) -> Result<(SpiffeId, SignedJwt), Refusal> {
        let entitled = self.entitled(peer).await?;
        let identity = chosen(&entitled, choice)?;
        let grant = self.policy.issue_jwt(&entitled.attested, identity, audience, entitled.now)?;
        let signed = entitled.trust.signers().sign_jwt(grant, entitled.now).await?;
        let tie = self.tie(peer, &entitled, identity).await?.exported();
        let issued = ledger::Issued {
            id: &signed.jti,
            kind: ledger::Kind::Jwt,
            audience,
            authority: &signed.authority,
            binding: BEARER,
            not_after: signed.expires_at,
            single_use: identity.entry.is_single_use(),
            ..entitled.issued(identity)
        };
        self.record(peer, &entitled, &tie, &issued)?;
        Ok((identity.spiffe_id.clone(), signed))
    }
}

/// The identity that is wanted, if its entry gives anything to files.
fn chosen<'a>(entitled: &'a Entitled, choice: &Choice) -> Result<&'a Identity, Refusal> {
    let is_wanted = |identity: &&Identity| match choice {
        Choice::Default => true,
        Choice::Id(id) => identity.spiffe_id == *id,
        Choice::Hint(hint) => identity.hint() == Some(hint),
    };
    let mut refused = None;
    for identity in entitled.identities.iter().filter(is_wanted) {
        match exportable(&identity.entry) {
            Ok(()) => return Ok(identity),
            Err(refusal) => drop(refused.get_or_insert(refusal)),
        }
    }
    Err(refused.unwrap_or_else(|| match choice {
        Choice::Id(id) => Refusal::NotGranted(id.clone()),
        Choice::Hint(hint) => Refusal::NoSuchHint(hint.clone()),
        Choice::Default => Refusal::Changed,
    }))
}

/// Whether an entry gives keys and tokens to files. One that does not says where to change it.
pub(super) fn exportable(entry: &Entry) -> Result<(), Refusal> {
    if entry.is_exportable() && entry.bind() != Bind::Process {
        return Ok(());
    }
    let id = entry.id();
    let remedy = match entry.origin() {
        Origin::File { path, line } => {
            let bind = if entry.bind() == Bind::Process { " and `bind = \"unit\"` (or `\"node\"`)" } else { "" };
            format!("write `exportable = true`{bind} under its `[[entry]]` at {}:{line}", path.display())
        }
        Origin::Store { .. } => {
            let bind = if entry.bind() == Bind::Process { " --bind unit" } else { "" };
            format!("`tether entry update {id} --exportable true{bind}` changes that")
        }
        Origin::BuiltIn => "it is built in: write an entry of your own".to_owned(),
    };
    Err(Refusal::NotExportable { entry: id.clone(), remedy })
}
