//! What the agent does without being asked. Each waits for events and ends with the drain.

use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;

use super::AgentState;
use crate::audit::Audit;
use crate::authority::{Authority, X509Svid};
use crate::base::backoff::Backoff;
use crate::base::clock::Clock;
use crate::base::directory::{DirectoryWatch, WatchError};
use crate::base::drain;
use crate::base::text::chain;
use crate::issue::Issuer;
use crate::metrics::{Domain, Metrics, Outcome, Refreshed};
use crate::policy::Policies;
use crate::registry::Registry;
use crate::store::Store;
use crate::trust::Trust;
use crate::x509::PrivateKey;

const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(60);
/// How often files are read that the kernel does not watch for us, and it is asked again to.
pub(super) const READ_UNWATCHED: Duration = Duration::from_secs(10);
const ENTRY_FILES: &str = "entry files";
const POLICY_FILES: &str = "policy files";

/// Prepares, activates and retires authorities when it is time.
pub(super) async fn rotate(
    authority: Arc<Authority>,
    trust: Arc<Trust>,
    state: Arc<AgentState>,
    mut drain: drain::Watcher,
) {
    let mut backoff = Backoff::new(FIRST_RETRY, LAST_RETRY);
    let mut changes = authority.watch();
    loop {
        changes.mark_unchanged();
        let wait = match advance(&authority, &trust).await {
            Ok(next) => {
                backoff.reset();
                state.readiness.set("authority", Ok(()));
                next
            }
            Err(why) => {
                tracing::error!("authorities cannot be rotated, trying again: {why}");
                state.readiness.set("authority", Err(why));
                state.clock.now() + backoff.delay(&state.entropy)
            }
        };
        tokio::select! {
            () = drain.draining() => return,
            () = state.clock.sleep_until_or_set(wait) => {}
            // An operator's rotation has times of its own, and whoever asked for it may be gone before it is published.
            _ = changes.changed() => {}
        }
    }
}

async fn advance(authority: &Authority, trust: &Trust) -> Result<OffsetDateTime, String> {
    let (signers, next) = authority.advance().await.map_err(|error| chain(&error))?;
    trust.authority_changed(signers).await.map_err(|error| chain(&error))?;
    Ok(next)
}

/// Keeps the agent's own SVID, `spiffe://TD/tether/agent/NODE`, fresh.
pub(super) async fn keep_own_svid(issuer: Arc<Issuer>, state: Arc<AgentState>, mut drain: drain::Watcher) {
    let mut backoff = Backoff::new(FIRST_RETRY, LAST_RETRY);
    let mut changes = issuer.trust.watch();
    loop {
        changes.mark_unchanged();
        let standing = state.own_svid().filter(|svid| {
            let signed = &svid.signed;
            half_life(signed.not_before, signed.not_after) > issuer.clock.now()
                && signed.not_before <= issuer.clock.now()
                && issuer.trust.current().signers().stands(&signed.authority)
        });
        let wait = match standing {
            Some(svid) => half_life(svid.signed.not_before, svid.signed.not_after),
            None => match own_svid(&issuer, &state).await {
                Ok(svid) => {
                    backoff.reset();
                    let wait = half_life(svid.signed.not_before, svid.signed.not_after);
                    refreshed(&issuer.metrics, Outcome::Ok);
                    issuer.metrics.identity_cert_expiration.set(svid.signed.not_after.unix_timestamp());
                    issuer.metrics.identity_cert_refresh.set(issuer.clock.now().unix_timestamp());
                    state.set_own_svid(svid);
                    wait
                }
                Err(why) => {
                    refreshed(&issuer.metrics, Outcome::Error);
                    tracing::error!("the agent's own SVID cannot be renewed, trying again: {why}");
                    issuer.clock.now() + backoff.delay(&issuer.entropy)
                }
            },
        };
        tokio::select! {
            () = drain.draining() => return,
            () = issuer.clock.sleep_until_or_set(wait) => {}
            _ = changes.changed() => {}
        }
    }
}

async fn own_svid(issuer: &Issuer, state: &AgentState) -> Result<X509Svid, String> {
    let trust = issuer.trust.current();
    let key = PrivateKey::generate_aside(issuer.key_type).await.map_err(|error| error.to_string())?;
    let grant = issuer.policy.own_x509(trust.domain(), state.node());
    let signed = trust.signers().sign_x509(grant, key.public_key(), issuer.clock.now()).await;
    let signed = signed.map_err(|error| chain(&error))?;
    Ok(X509Svid { signed, key: key.to_pkcs8().map_err(|error| error.to_string())? })
}

fn refreshed(metrics: &Metrics, result: Outcome) {
    metrics.identity_cert_refreshes.get_or_create(&Refreshed { result }).inc();
}

fn half_life(not_before: OffsetDateTime, not_after: OffsetDateTime) -> OffsetDateTime {
    not_before + (not_after - not_before) / 2
}

/// Tries those whom the attestors ask, so that it is known before anybody needs them whether they are there.
pub(super) async fn attend_attestors(issuer: Arc<Issuer>, mut drain: drain::Watcher) {
    tokio::select! {
        () = drain.draining() => {}
        () = issuer.attestation.attend() => {}
    }
}

/// Notices that the clock was set, for all who sleep until a time.
pub(super) async fn watch_clock(clock: Clock, mut drain: drain::Watcher) {
    tokio::select! {
        () = drain.draining() => {}
        () = clock.keep_watch() => {}
    }
}

/// Reads entries again when their files change.
pub(super) async fn watch_entries(registry: Registry, state: Arc<AgentState>, drain: drain::Watcher) {
    keep_reading(ENTRY_FILES, &state, drain, || registry.watch_directory(), || registry.reload()).await;
}

/// Reads policies again when their files change.
pub(super) async fn watch_policies(policies: Policies, state: Arc<AgentState>, drain: drain::Watcher) {
    keep_reading(POLICY_FILES, &state, drain, || policies.watch_directory(), || policies.reload()).await;
}

/// Reads files again when their directory changes. Where that cannot be watched, says so and reads them once in a while.
async fn keep_reading<T, F: Future<Output = T>>(
    files: &'static str,
    state: &AgentState,
    mut drain: drain::Watcher,
    watch: impl Fn() -> Result<Option<DirectoryWatch>, WatchError>,
    read: impl Fn() -> F,
) {
    loop {
        match watch() {
            Ok(Some(directory)) => {
                state.watched(files);
                // What was saved between the last time and the watch is seen by this one.
                read().await;
                directory.read_again(drain.clone(), &read).await;
            }
            Ok(None) => return drain.draining().await,
            Err(error) => {
                state.unwatched(files, &error);
                read().await;
            }
        }
        tokio::select! {
            () = drain.draining() => return,
            () = tokio::time::sleep(READ_UNWATCHED) => {}
        }
    }
}

/// Tells metrics, readiness, log and audit what became of each load.
pub(super) async fn report_entries(registry: Registry, state: Arc<AgentState>, mut drain: drain::Watcher) {
    let mut loads = registry.loads();
    let mut index = registry.subscribe();
    index.mark_unchanged();
    state.index_is(&index.borrow_and_update().clone());
    loop {
        tokio::select! {
            () = drain.draining() => return,
            changed = loads.changed() => {
                if changed.is_err() { return }
                let load = loads.borrow_and_update().clone();
                state.entries_loaded(&load);
            }
            changed = index.changed() => {
                if changed.is_err() { return }
                let index = index.borrow_and_update().clone();
                state.index_is(&index);
            }
        }
    }
}

/// Keeps the audit log, and tells readiness how it is.
pub(super) async fn keep_audit(audit: Audit, state: Arc<AgentState>, drain: drain::Watcher) {
    let mut healthy = audit.healthy();
    let report = async {
        loop {
            let health = healthy.borrow_and_update().clone();
            state.readiness.set("audit", health.map_err(|why| format!("the audit log cannot be written: {why}")));
            if healthy.changed().await.is_err() {
                // Nobody writes any more; the last word stands.
                std::future::pending::<()>().await;
            }
        }
    };
    tokio::select! {
        () = audit.keep(drain) => {}
        () = report => {}
    }
}

/// Tells readiness how the store is, and after a failure tries until it can be written.
pub(super) async fn keep_store(store: Store, state: Arc<AgentState>, mut drain: drain::Watcher) {
    let mut health = store.healthy();
    let mut backoff = Backoff::new(FIRST_RETRY, LAST_RETRY);
    loop {
        let due = health.borrow_and_update().is_err().then(|| backoff.delay(&state.entropy));
        let again = async {
            match due {
                Some(due) => tokio::time::sleep(due).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = drain.draining() => return,
            changed = health.changed() => {
                if changed.is_err() { return }
                let health = health.borrow_and_update().clone();
                if health.is_ok() {
                    backoff.reset();
                }
                state.store_is(health);
            }
            // What it finds is told as any other news.
            () = again => drop(store.try_again().await),
        }
    }
}

/// Tells metrics, readiness, log and audit what became of each load, and which policies are in force.
pub(super) async fn report_policies(policies: Policies, state: Arc<AgentState>, mut drain: drain::Watcher) {
    let (mut loads, mut sets) = (policies.loads(), policies.watch());
    state.policies_are(&sets.borrow_and_update().clone());
    loop {
        tokio::select! {
            () = drain.draining() => return,
            changed = loads.changed() => {
                if changed.is_err() { return }
                let load = loads.borrow_and_update().clone();
                state.policies_loaded(&load);
            }
            changed = sets.changed() => {
                if changed.is_err() { return }
                let set = sets.borrow_and_update().clone();
                state.policies_are(&set);
            }
        }
    }
}

/// Keeps the metric of when each bundle ends.
pub(super) async fn report_bundles(trust: Arc<Trust>, metrics: Metrics, mut drain: drain::Watcher) {
    let mut changes = trust.watch();
    loop {
        let snapshot = changes.borrow_and_update().clone();
        metrics.bundle_expiration.clear();
        let all = std::iter::once(snapshot.own()).chain(snapshot.foreign().map(|(_, bundle)| bundle));
        for bundle in all {
            let last = bundle.x509().certificates().iter().map(|certificate| certificate.not_after()).max();
            if let Some(last) = last {
                let domain = Domain { trust_domain: bundle.trust_domain().to_string() };
                metrics.bundle_expiration.get_or_create(&domain).set(last.unix_timestamp());
            }
        }
        tokio::select! {
            () = drain.draining() => return,
            changed = changes.changed() => if changed.is_err() { return },
        }
    }
}
