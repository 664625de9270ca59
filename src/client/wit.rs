//! The WIT profile of the Workload API (section 7): incubating, and not offered by every agent.
//!
//! Where it is not, each call here ends with [`ClientError::NotOffered`], and a watch stays ended: it is not worth
//! asking that agent again (section 7).

use std::collections::BTreeMap;

use time::OffsetDateTime;

use super::ClientError;
use super::watch::Watch;
use super::workload::{
    Client, WorkloadApi, malformed, no_bundle, read_domain, read_hint, read_id, read_jwks, without_repeated_hints,
};
use crate::base::secret::Secret;
use crate::id::{SpiffeId, TrustDomain};
use crate::jwt::{Jwk, read_private_jwk};
use crate::proto::workload::{self as wire, WitBundlesRequest, WitBundlesResponse, WitsvidRequest, WitsvidResponse};
use crate::wit::{Confirmation, UnverifiedWit, WitAuthorities};
use crate::x509::PrivateKey;

/// WIT-SVIDs as they change.
pub type WitWatch = Watch<WitsvidResponse, Vec<WitSvid>>;
/// WIT bundles as they change.
pub type WitBundleWatch = Watch<WitBundlesResponse, BTreeMap<TrustDomain, WitAuthorities>>;

/// A WIT-SVID with the key it names.
///
/// It is no bearer token: present it with a proof made with the key, and never in an `Authorization` header (WIT-SVID,
/// section 5).
#[derive(Debug)]
pub struct WitSvid {
    /// The SPIFFE ID.
    pub id: SpiffeId,
    /// What the operator says it is for.
    pub hint: Option<String>,
    /// The token in compact form.
    pub token: String,
    /// The key that proofs are made with.
    pub key: PrivateKey,
    /// Its public half, and the one algorithm that proofs may use.
    pub confirmation: Confirmation,
    /// The same key as the agent sent it: a private JWK with `alg`.
    pub key_jwk: Secret<String>,
    /// When the token expires.
    pub expires_at: OffsetDateTime,
}

impl WorkloadApi {
    /// WIT-SVIDs as they are now, the default identity's first; there is at least one (Workload API, section 7.2.1).
    pub async fn fetch_wit(&self) -> Result<Vec<WitSvid>, ClientError> {
        self.watch_wit().next().await
    }

    /// WIT-SVIDs as they change: each is renewed well before it ends.
    pub fn watch_wit(&self) -> WitWatch {
        let open =
            |mut client: Client| Box::pin(async move { client.fetch_witsvid(WitsvidRequest::default()).await }) as _;
        Watch::new(self, open, read_wits)
    }

    /// WIT bundles as they are now (Workload API, section 7.2.2). They authenticate WIT-SVIDs and nothing else.
    pub async fn fetch_wit_bundles(&self) -> Result<BTreeMap<TrustDomain, WitAuthorities>, ClientError> {
        self.watch_wit_bundles().next().await
    }

    /// WIT bundles as they change.
    pub fn watch_wit_bundles(&self) -> WitBundleWatch {
        let open =
            |mut client: Client| Box::pin(async move { client.fetch_wit_bundles(WitBundlesRequest {}).await }) as _;
        Watch::new(self, open, read_wit_bundles)
    }
}

fn read_wits(message: WitsvidResponse) -> Result<Vec<WitSvid>, ClientError> {
    let svids = without_repeated_hints(message.svids, |svid| &svid.hint);
    if svids.is_empty() {
        return Err(ClientError::Malformed("an answer without a WIT-SVID".to_owned()));
    }
    svids.into_iter().map(read_wit).collect()
}

fn read_wit(svid: wire::Witsvid) -> Result<WitSvid, ClientError> {
    let key_jwk = Secret::new(svid.wit_svid_key);
    let id = read_id(&svid.spiffe_id)?;
    let about = |error: &dyn std::fmt::Display| malformed(&format!("the WIT-SVID of `{id}`"), error);
    let wit = UnverifiedWit::read(&svid.wit_svid).map_err(|error| about(&error))?;
    let (key, algorithm) = read_private_jwk(key_jwk.expose()).map_err(|error| about(&error))?;
    if wit.spiffe_id != id {
        return Err(about(&"it is for another SPIFFE ID"));
    }
    let public = Jwk::from_spki(key.public_key()).map_err(|error| about(&error))?;
    if (wit.confirmation.key(), wit.confirmation.algorithm()) != (&public, algorithm) {
        return Err(about(&"it names another key than the one beside it"));
    }
    let UnverifiedWit { confirmation, expires_at, .. } = wit;
    Ok(WitSvid { id, hint: read_hint(svid.hint), token: svid.wit_svid, key, confirmation, key_jwk, expires_at })
}

fn read_wit_bundles(message: WitBundlesResponse) -> Result<BTreeMap<TrustDomain, WitAuthorities>, ClientError> {
    if message.bundles.is_empty() {
        return Err(no_bundle());
    }
    let read = |(id, json): (&String, &String)| {
        let domain = read_domain(id)?;
        let keys =
            read_jwks(json.as_bytes()).map_err(|error| malformed(&format!("the WIT bundle of `{domain}`"), error))?;
        Ok((domain.clone(), WitAuthorities::new(domain, keys)))
    };
    message.bundles.iter().map(read).collect()
}
