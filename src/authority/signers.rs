//! What signs now: an immutable snapshot of the authorities, which turns grants into SVIDs.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;

use super::AuthorityError;
use super::crl::CrlAuthority;
use super::slot::Slot;
use crate::base::entropy::Entropy;
use crate::base::secret::Secret;
use crate::jwt::{Jwk, JwtClaims, JwtSigner};
use crate::policy::{JwtGrant, WitGrant, X509Grant};
use crate::wit::{Confirmation, WitAuthorities, WitClaims, WitSession, WitSigner};
use crate::x509::{Certificate, Issuer, LeafParams, Serial, Validity};

/// Certificates are valid from a little before now, for peers whose clock is behind.
pub(super) const BACKDATE: Duration = Duration::from_secs(30);
/// The shortest lifetime worth signing: less means that the authority or the entry is about to end.
const SHORTEST: Duration = Duration::from_secs(1);

/// A CA that signs X.509-SVIDs.
#[derive(Debug)]
pub(super) struct SigningCa {
    pub(super) id: Arc<str>,
    pub(super) issuer: Arc<Issuer>,
    /// What follows the leaf in the chain: this CA and everything between it and the bundle, in DER.
    pub(super) above_leaf: Vec<u8>,
    pub(super) not_after: OffsetDateTime,
}

/// A key that signs tokens of one type.
#[derive(Debug)]
pub(super) struct TokenAuthority<Signer> {
    pub(super) id: Arc<str>,
    pub(super) signer: Signer,
    pub(super) not_after: OffsetDateTime,
}

/// A signed X.509-SVID, without its key.
#[derive(Debug)]
pub struct SignedX509 {
    /// The certificates in DER, one after the other, the leaf first.
    pub chain: Vec<u8>,
    /// The leaf's serial number in lower-case hex.
    pub serial: String,
    /// Begin of its validity.
    pub not_before: OffsetDateTime,
    /// End of its validity.
    pub not_after: OffsetDateTime,
    /// Which authority signed.
    pub authority: Arc<str>,
}

/// A signed JWT-SVID.
#[derive(Debug)]
pub struct SignedJwt {
    /// The compact token. A bearer token: whoever has it can use it.
    pub token: String,
    /// Its unique id.
    pub jti: String,
    /// End of its validity.
    pub expires_at: OffsetDateTime,
    /// Which authority signed.
    pub authority: Arc<str>,
}

/// A signed WIT-SVID. It is no secret, and of no use without the key it names.
#[derive(Debug)]
pub struct SignedWit {
    /// The compact token.
    pub token: String,
    /// Its unique id.
    pub jti: String,
    /// End of its validity.
    pub expires_at: OffsetDateTime,
    /// Which authority signed.
    pub authority: Arc<str>,
}

/// What an authority can do beyond signing, so that callers need not know which kind it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// It can sign CRLs for what it issued.
    pub crl: bool,
    /// It can put claims of ours into JWT-SVIDs.
    pub claims: bool,
}

/// The certificate of an authority of kind `disk`: kept, and replaced in time, by somebody else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskCertificate {
    /// Changes when the certificate does.
    pub id: String,
    /// From when it is valid.
    pub not_before: OffsetDateTime,
    /// Until when. Nothing below it is valid longer.
    pub not_after: OffsetDateTime,
}

/// The authorities of one moment. Readers hold it in an `Arc` and never lock.
#[derive(Debug)]
pub struct Signers {
    pub(super) generation: u64,
    pub(super) x509: SigningCa,
    pub(super) crl_authorities: Vec<CrlAuthority>,
    pub(super) jwt: TokenAuthority<JwtSigner>,
    pub(super) wit: TokenAuthority<WitSigner>,
    pub(super) node: Arc<str>,
    pub(super) jwt_issuer: Option<String>,
    pub(super) roots: Vec<Certificate>,
    pub(super) jwt_keys: Vec<(String, Jwk)>,
    pub(super) wit_keys: WitAuthorities,
    pub(super) standing: BTreeSet<Arc<str>>,
    pub(super) slots: Vec<Slot>,
    pub(super) disk: Option<DiskCertificate>,
    pub(super) entropy: Entropy,
}

impl Signers {
    /// Whether what these sign now is believed now: none has ended or is about to, and the CA does not begin in the future.
    pub fn are_of(&self, now: OffsetDateTime) -> bool {
        let ends = [self.x509.not_after, self.jwt.not_after, self.wit.not_after];
        ends.iter().all(|end| *end - now >= SHORTEST) && self.x509.issuer.certificate().not_before() <= now
    }

    /// Signs an X.509-SVID for a public key (SubjectPublicKeyInfo in DER); the grant is used up.
    ///
    /// Fails when the grant or the authority ends within a second. Asynchronous because an authority may be remote.
    pub async fn sign_x509(
        &self,
        grant: X509Grant,
        public_key: &[u8],
        now: OffsetDateTime,
    ) -> Result<SignedX509, AuthorityError> {
        let not_after = lifetime(now, grant.not_after(now), self.x509.not_after)?;
        let not_before = now - BACKDATE;
        let serial = Serial::from_random(self.entropy.bytes());
        let leaf = self.x509.issuer.sign_leaf(&LeafParams {
            spiffe_id: grant.spiffe_id(),
            public_key,
            dns_names: grant.dns_names(),
            validity: Validity { not_before, not_after },
            serial: &serial,
        })?;
        let mut chain = Vec::with_capacity(leaf.len() + self.x509.above_leaf.len());
        chain.extend_from_slice(&leaf);
        chain.extend_from_slice(&self.x509.above_leaf);
        let serial = serial.to_string();
        Ok(SignedX509 { chain, serial, not_before, not_after, authority: self.x509.id.clone() })
    }

    /// Signs a JWT-SVID; the grant is used up.
    ///
    /// Fails when the grant or the authority ends within a second. Asynchronous because an authority may be remote.
    pub async fn sign_jwt(&self, grant: JwtGrant, now: OffsetDateTime) -> Result<SignedJwt, AuthorityError> {
        let expires_at = lifetime(now, grant.not_after(now), self.jwt.not_after)?;
        let jti = self.token_id();
        let token = self.jwt.signer.sign(&JwtClaims {
            sub: grant.spiffe_id(),
            aud: grant.audience(),
            exp: expires_at,
            iat: now,
            jti: &jti,
            iss: self.jwt_issuer.as_deref(),
        })?;
        Ok(SignedJwt { token, jti, expires_at, authority: self.jwt.id.clone() })
    }

    /// Signs a WIT-SVID that names the holder of `confirmation`, and the session it belongs to; the grant is used up.
    ///
    /// Fails when the grant or the authority ends within a second. Asynchronous because an authority may be remote.
    pub async fn sign_wit(
        &self,
        grant: WitGrant,
        confirmation: &Confirmation,
        session: Option<&WitSession>,
        now: OffsetDateTime,
    ) -> Result<SignedWit, AuthorityError> {
        let expires_at = lifetime(now, grant.not_after(now), self.wit.not_after)?;
        let jti = self.token_id();
        let token = self.wit.signer.sign(&WitClaims {
            sub: grant.spiffe_id(),
            exp: expires_at,
            iat: now,
            jti: &jti,
            cnf: confirmation,
            session,
        })?;
        Ok(SignedWit { token, jti, expires_at, authority: self.wit.id.clone() })
    }

    /// A new `jti`: the node in front, so that a verifier elsewhere knows whom to ask about it.
    pub(super) fn token_id(&self) -> String {
        format!("{}.{}", self.node, self.entropy.hex::<16>())
    }

    /// Every CA of this node that has not ended, whether it still signs certificates or not: each has a revocation
    /// list, so that a verifier may take "no list" for "not known".
    pub fn crl_authorities(&self, now: OffsetDateTime) -> impl Iterator<Item = &CrlAuthority> {
        self.crl_authorities.iter().filter(move |authority| authority.not_after > now)
    }

    /// Which change of the authorities made it: what has a smaller number is out of date.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// What this authority can do beyond signing.
    pub fn capabilities(&self) -> Capabilities {
        Capabilities { crl: true, claims: true }
    }

    /// Whether what the authority `id` signed is still good: it was not revoked and has not ended.
    pub fn stands(&self, id: &str) -> bool {
        self.standing.contains(id)
    }

    /// Root certificates for the bundle.
    pub fn roots(&self) -> &[Certificate] {
        &self.roots
    }

    /// JWT keys for the bundle, by key id.
    pub fn jwt_keys(&self) -> &[(String, Jwk)] {
        &self.jwt_keys
    }

    /// The `iss` of JWT-SVIDs.
    pub fn jwt_issuer(&self) -> Option<&str> {
        self.jwt_issuer.as_deref()
    }

    /// The keys of this node's own WIT-SVIDs. They are here whether or not the bundle has them: this node believes its
    /// own.
    pub fn wit_keys(&self) -> &WitAuthorities {
        &self.wit_keys
    }

    /// Every authority that is in use and where it stands: by kind, the oldest first.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// The certificate that all of these stand below, when it comes from a file.
    pub fn disk(&self) -> Option<&DiskCertificate> {
        self.disk.as_ref()
    }
}

/// The end of an SVID: what the grant allows, cut to the life of the authority.
fn lifetime(
    now: OffsetDateTime,
    granted: OffsetDateTime,
    authority: OffsetDateTime,
) -> Result<OffsetDateTime, AuthorityError> {
    let not_after = granted.min(authority);
    if not_after - now < SHORTEST { Err(AuthorityError::NoLifetime) } else { Ok(not_after) }
}

/// A signed X.509-SVID together with its private key, as one workload gets it.
#[derive(Debug)]
pub struct X509Svid {
    /// The certificate chain.
    pub signed: SignedX509,
    /// Its private key as PKCS#8, as the Workload API carries it.
    pub key: Secret<Vec<u8>>,
}
