//! Whom this host believes and who signs for it: one immutable snapshot of both.
//!
//! Bundles and signers change together. A reader that takes one snapshot never sees an SVID whose root is not yet,
//! or no longer, in the bundle beside it.
//!
//! The own bundle is what this node's authority publishes plus the further authorities an operator set (other nodes
//! of the trust domain). Foreign bundles are kept apart by trust domain and never merged (SPIFFE Federation 4.2).

mod crl;

use std::collections::BTreeMap;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use time::OffsetDateTime;
use tokio::sync::{Mutex, watch};

use crate::authority::Signers;
use crate::base::entropy::hex;
use crate::bundle::{Bundle, BundleError, DEFAULT_REFRESH_HINT};
use crate::id::{IdError, TrustDomain};
use crate::jwt::{Jwk, JwtAuthorities};
use crate::store::{Change, Expect, Image, Space, Store, StoreError};
use crate::wit::WitAuthorities;
use crate::x509::{X509Authorities, X509Error};

pub use self::crl::{CrlError, CrlFeed, CrlSet, Crls, Handed, HandedError, Revocations};

const SEQUENCE: &str = "bundle-sequence";

/// Why a bundle could not be changed.
#[derive(Debug, Error)]
pub enum TrustError {
    /// The content is neither PEM certificates nor a SPIFFE bundle.
    #[error("the content is not a usable bundle")]
    Bundle(#[from] BundleError),
    /// Authorities of our own cannot stand in a bundle.
    #[error("the authorities of this trust domain cannot be published together")]
    Own(#[from] X509Error),
    /// A name in the store is not a trust domain.
    #[error("the store names `{0}` as a trust domain")]
    Name(String, #[source] IdError),
    /// The store refused; nothing has changed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is nothing to delete.
    #[error("no bundle was set for `{0}`: `tether bundle show` lists them")]
    Unknown(TrustDomain),
}

/// The bundles and signers of one moment.
#[derive(Debug)]
pub struct Snapshot {
    domain: TrustDomain,
    signers: Arc<Signers>,
    own: Arc<Bundle>,
    /// WIT keys of our own trust domain, whether or not `own` has them.
    own_wit: WitAuthorities,
    foreign: BTreeMap<TrustDomain, Arc<Bundle>>,
}

impl Snapshot {
    /// Our own trust domain.
    pub fn domain(&self) -> &TrustDomain {
        &self.domain
    }

    /// What signs.
    pub fn signers(&self) -> &Arc<Signers> {
        &self.signers
    }

    /// The bundle of our own trust domain.
    pub fn own(&self) -> &Arc<Bundle> {
        &self.own
    }

    /// The bundle of one trust domain, ours or a foreign one.
    pub fn bundle(&self, domain: &TrustDomain) -> Option<&Arc<Bundle>> {
        if *domain == self.domain { Some(&self.own) } else { self.foreign.get(domain) }
    }

    /// The keys that WIT-SVIDs of one trust domain are believed by. Our own are known here whether or not they are
    /// published, so that this agent can check what it issued to sessions.
    pub fn wit(&self, domain: &TrustDomain) -> Option<&WitAuthorities> {
        if *domain == self.domain { Some(&self.own_wit) } else { self.foreign.get(domain).map(|bundle| bundle.wit()) }
    }

    /// The foreign trust domains, in order.
    pub fn foreign(&self) -> impl Iterator<Item = (&TrustDomain, &Arc<Bundle>)> {
        self.foreign.iter()
    }
}

/// The sequence number of the published bundle, and what it was given for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Sequence {
    number: u64,
    content: String,
}

/// Keeps the bundles; the only place that publishes a new snapshot.
#[derive(Debug)]
pub struct Trust {
    store: Store,
    /// Whether the own bundle has WIT keys.
    publish_wit: bool,
    current: watch::Sender<Arc<Snapshot>>,
    /// What an operator set, by trust domain; held across every change, so changes happen one after the other.
    set: Mutex<BTreeMap<TrustDomain, Bundle>>,
}

impl Trust {
    /// Reads what an operator set and publishes the first snapshot. WIT keys are in the own bundle only with `publish_wit`:
    /// whoever reads bundles strictly may not know them.
    pub async fn open(
        domain: TrustDomain,
        signers: Arc<Signers>,
        publish_wit: bool,
        store: Store,
    ) -> Result<Self, TrustError> {
        let mut set = BTreeMap::new();
        for (name, row) in store.list::<String>(Space::Bundles).await? {
            let domain = TrustDomain::parse(&name).map_err(|error| TrustError::Name(name, error))?;
            let bundle = parse(&domain, row.value.as_bytes())?;
            set.insert(domain, bundle);
        }
        let snapshot = compose(&store, domain, signers, publish_wit, &set).await?;
        Ok(Self { store, publish_wit, current: watch::Sender::new(Arc::new(snapshot)), set: Mutex::new(set) })
    }

    /// The snapshot now.
    pub fn current(&self) -> Arc<Snapshot> {
        self.current.borrow().clone()
    }

    /// The snapshot now, and the event of the next.
    pub fn watch(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.current.subscribe()
    }

    /// Publishes what the authority made of itself.
    ///
    /// Whoever changes the authority publishes afterwards, so two changes may arrive here in either order: what is
    /// older than what is published is left out.
    pub async fn authority_changed(&self, signers: Arc<Signers>) -> Result<(), TrustError> {
        let set = self.set.lock().await;
        if signers.generation() <= self.current().signers.generation() {
            return Ok(());
        }
        self.publish(signers, &set).await
    }

    /// Sets a foreign bundle, or further authorities of our own trust domain, from PEM or a SPIFFE bundle.
    pub async fn set(&self, domain: TrustDomain, content: &[u8]) -> Result<Bundle, TrustError> {
        let mut set = self.set.lock().await;
        let bundle = parse(&domain, content)?;
        let text = bundle.to_json()?;
        self.store.apply(vec![Change::put(Space::Bundles, domain.as_str(), &text, Expect::Any)]).await?;
        set.insert(domain, bundle.clone());
        self.publish(self.current().signers.clone(), &set).await?;
        Ok(bundle)
    }

    /// Drops what was set for a trust domain.
    pub async fn delete(&self, domain: &TrustDomain) -> Result<(), TrustError> {
        let mut set = self.set.lock().await;
        if !set.contains_key(domain) {
            return Err(TrustError::Unknown(domain.clone()));
        }
        self.store.apply(vec![Change::delete(Space::Bundles, domain.as_str(), Expect::Any)]).await?;
        set.remove(domain);
        self.publish(self.current().signers.clone(), &set).await
    }

    async fn publish(&self, signers: Arc<Signers>, set: &BTreeMap<TrustDomain, Bundle>) -> Result<(), TrustError> {
        let domain = self.current().domain.clone();
        let next = compose(&self.store, domain, signers, self.publish_wit, set).await?;
        self.current.send_replace(Arc::new(next));
        Ok(())
    }
}

/// The snapshot of these parts. The sequence number grows, durably, whenever the own bundle's content is not what it
/// was last given for (SPIFFE Trust Domain and Bundle, 4.1.1).
async fn compose(
    store: &Store,
    domain: TrustDomain,
    signers: Arc<Signers>,
    publish_wit: bool,
    set: &BTreeMap<TrustDomain, Bundle>,
) -> Result<Snapshot, TrustError> {
    let further = set.get(&domain);
    let certificates =
        signers.roots().iter().chain(further.into_iter().flat_map(|bundle| bundle.x509().certificates()));
    let x509 = X509Authorities::new(domain.clone(), certificates.cloned())?;
    // A key ID of our own is that of our own key and no other, whatever it is for.
    let is_ours = |key_id: &str| {
        signers.jwt_keys().iter().any(|(own, _)| own == key_id) || signers.wit_keys().find(key_id).is_some()
    };
    let owned = |(key_id, key): (&str, &Jwk)| (key_id.to_owned(), key.clone());
    let further_jwt = further.into_iter().flat_map(|bundle| bundle.jwt().iter()).filter(|(key_id, _)| !is_ours(key_id));
    let further_wit = further.into_iter().flat_map(|bundle| bundle.wit().iter()).filter(|(key_id, _)| !is_ours(key_id));
    let jwt = JwtAuthorities::new(domain.clone(), further_jwt.map(owned).chain(signers.jwt_keys().iter().cloned()));
    let own_wit = WitAuthorities::new(domain.clone(), further_wit.chain(signers.wit_keys().iter()).map(owned));
    let mut own = Bundle::new(x509, jwt);
    if publish_wit {
        own = own.with_wit(own_wit.clone());
    }

    let content = hex(digest(&SHA256, own.to_json()?.as_bytes()).as_ref());
    let stored = store.get::<Sequence>(Space::Node, SEQUENCE).await?.map(|row| row.value).unwrap_or_default();
    let mut number = stored.number;
    if stored.content != content {
        number += 1;
        let next = Sequence { number, content };
        store.apply(vec![Change::put(Space::Node, SEQUENCE, &next, Expect::Any)]).await?;
    }
    let own = own.with_sequence(number).with_refresh_hint(DEFAULT_REFRESH_HINT);

    let foreign = set.iter().filter(|(other, _)| **other != domain);
    let foreign = foreign.map(|(other, bundle)| (other.clone(), Arc::new(bundle.clone()))).collect();
    Ok(Snapshot { domain, signers, own: Arc::new(own), own_wit, foreign })
}

/// Of a store that goes back in time: what is published from now on has greater numbers than whatever was published before, by
/// this store or by another that went back to the same time. The milliseconds since 1970 do: bundles change less often. A
/// clock that is set back takes that away.
///
/// # Errors
/// The number in it cannot be read.
pub fn skip_sequences(image: &mut Image, now: OffsetDateTime) -> Result<(), serde_json::Error> {
    let Some(stored) = image.get(Space::Node, SEQUENCE) else { return Ok(()) };
    let stored: Sequence = serde_json::from_slice(stored)?;
    let of_now = u64::try_from(now.unix_timestamp_nanos() / 1_000_000).unwrap_or_default();
    let next = Sequence { number: of_now.max(stored.number.saturating_add(1)), ..stored };
    image.set(Space::Node, SEQUENCE, &next);
    Ok(())
}

/// A bundle as people have it: a SPIFFE bundle, or certificates in PEM.
fn parse(domain: &TrustDomain, content: &[u8]) -> Result<Bundle, TrustError> {
    if !content.trim_ascii_start().starts_with(b"{") {
        return Ok(Bundle::from_pem(domain, content)?);
    }
    let parsed = Bundle::parse(domain, content)?;
    for skipped in &parsed.skipped {
        tracing::warn!(trust_domain = %domain, key = skipped.index, reason = %skipped.reason, "a key of a bundle is not used");
    }
    Ok(parsed.bundle)
}

#[cfg(test)]
mod tests;
