//! What the agent knows of itself: for `tether status`, readiness and metrics.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::watch;

use super::duties::READ_UNWATCHED;
use crate::api::admin::StatusSource;
use crate::audit::{Audit, Event};
use crate::authority::X509Svid;
use crate::base::clock::Clock;
use crate::base::entropy::Entropy;
use crate::base::quota::Quota;
use crate::base::text::chain;
use crate::config::Config;
use crate::http::Readiness;
use crate::issue::Issuer;
use crate::metrics::Metrics;
use crate::peer::Instances;
use crate::policy::{Policies, PolicySet};
use crate::registry::{Index, LoadState, Registry};
use crate::session::Sessions;
use crate::store::Store;
use crate::trust::{CrlSet, Crls, Trust};
use crate::verify::HeardNodes;
use crate::verify::tls::OwnSvid;

/// What [`AgentState`] is made of.
pub(super) struct Parts {
    pub(super) node: String,
    pub(super) config: Config,
    pub(super) readiness: Readiness,
    pub(super) registry: Registry,
    pub(super) store: Store,
    pub(super) policies: Policies,
    pub(super) trust: Arc<Trust>,
    pub(super) crls: Crls,
    pub(super) heard: watch::Receiver<HeardNodes>,
    pub(super) instances: Instances,
    pub(super) connections: Quota,
    pub(super) calls: Quota,
    pub(super) weaknesses: Vec<String>,
    pub(super) metrics: Metrics,
    pub(super) audit: Audit,
    pub(super) clock: Clock,
    pub(super) own: OwnSvid,
    pub(super) issuer: Arc<Issuer>,
    pub(super) sessions: Sessions,
    /// How many connections there may be on the workload socket.
    pub(super) connections_limit: usize,
}

/// One agent's view of itself.
pub struct AgentState {
    pub(super) readiness: Readiness,
    pub(super) clock: Clock,
    pub(super) entropy: Entropy,
    node: String,
    config: Config,
    registry: Registry,
    store: Store,
    policies: Policies,
    trust: Arc<Trust>,
    crls: Crls,
    heard: watch::Receiver<HeardNodes>,
    pub(super) instances: Instances,
    connections: Quota,
    calls: Quota,
    metrics: Metrics,
    audit: Audit,
    started_at: OffsetDateTime,
    changing: Mutex<Changing>,
    own: OwnSvid,
    pub(super) issuer: Arc<Issuer>,
    pub(super) sessions: Sessions,
    pub(super) connections_limit: usize,
}

#[derive(Default)]
struct Changing {
    own_svid: Option<Arc<X509Svid>>,
    weaknesses: Vec<String>,
    reported: Option<Arc<LoadState>>,
    reported_policies: Option<Arc<LoadState>>,
    policies: Option<u64>,
    index: Option<u64>,
    /// Entries in the store that cannot be used.
    unusable: Vec<String>,
    /// Why the store cannot be written.
    store_failure: Option<String>,
    /// Files of which the kernel does not tell when they change, and why not.
    unwatched: BTreeMap<&'static str, String>,
}

impl AgentState {
    pub(super) fn new(parts: Parts) -> Self {
        Self {
            started_at: parts.clock.now(),
            entropy: Entropy::system(),
            readiness: parts.readiness,
            clock: parts.clock,
            node: parts.node,
            config: parts.config,
            registry: parts.registry,
            store: parts.store,
            policies: parts.policies,
            trust: parts.trust,
            crls: parts.crls,
            heard: parts.heard,
            instances: parts.instances,
            connections: parts.connections,
            calls: parts.calls,
            metrics: parts.metrics,
            audit: parts.audit,
            own: parts.own,
            issuer: parts.issuer,
            sessions: parts.sessions,
            connections_limit: parts.connections_limit,
            changing: Mutex::new(Changing { weaknesses: parts.weaknesses, ..Changing::default() }),
        }
    }

    fn changing(&self) -> std::sync::MutexGuard<'_, Changing> {
        // Plain assignments under the lock: what a panic elsewhere left behind is whole.
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The node's stable random id.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// The registration entries.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The policies.
    pub fn policies(&self) -> &Policies {
        &self.policies
    }

    /// Bundles and signers.
    pub fn trust(&self) -> &Arc<Trust> {
        &self.trust
    }

    /// The revocation lists.
    pub fn crls(&self) -> &Crls {
        &self.crls
    }

    /// Whether each configured node is heard, as that changes.
    pub fn heard_nodes(&self) -> watch::Receiver<HeardNodes> {
        self.heard.clone()
    }

    /// How many connections are open on the workload socket.
    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    /// The configuration the agent was started with.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The agent's own SVID, once there is one.
    pub fn own_svid(&self) -> Option<Arc<X509Svid>> {
        self.changing().own_svid.clone()
    }

    pub(super) fn set_own_svid(&self, svid: X509Svid) {
        if let Err(error) = self.own.set(&svid) {
            tracing::error!(%error, "BUG: the agent cannot present its own SVID");
        }
        self.changing().own_svid = Some(Arc::new(svid));
    }

    pub(super) fn weaker(&self, why: String) {
        self.changing().weaknesses.push(why);
    }

    /// Changes of these files are noticed by the kernel.
    pub(super) fn watched(&self, files: &'static str) {
        if self.changing().unwatched.remove(files).is_some() {
            tracing::info!("{files} are watched again");
        }
    }

    /// Changes of these files are noticed only by reading them again.
    pub(super) fn unwatched(&self, files: &'static str, error: &dyn std::error::Error) {
        let (why, every) = (chain(error), READ_UNWATCHED.as_secs());
        let text = format!(
            "{files} are not watched, they are read every {every} seconds: {why}: raise fs.inotify.max_user_instances and \
             max_user_watches (sysctl)"
        );
        if self.changing().unwatched.insert(files, text.clone()).is_none() {
            tracing::error!("{text}");
        }
    }

    /// Whether the configuration was reloaded without a mistake.
    pub(super) fn config_reloaded(&self, ok: bool) {
        self.metrics.config_reload_success.set(i64::from(ok));
    }

    /// Reports a load of the entry files everywhere it is looked for; repeated mistakes are reported once.
    pub(super) fn entries_loaded(&self, load: &Arc<LoadState>) {
        let mistakes: Vec<String> = load.mistakes.iter().map(ToString::to_string).collect();
        self.metrics.entries_load_success.set(i64::from(load.ok));
        self.readiness.set("entries", if load.ok { Ok(()) } else { Err(mistakes.join("; ")) });
        let before = self.changing().reported.replace(load.clone());
        if before.is_some_and(|before| before.ok == load.ok && before.mistakes == load.mistakes) {
            return;
        }
        if load.ok {
            tracing::info!(files = load.files, "entry files loaded");
        } else {
            for mistake in &mistakes {
                tracing::error!("entry files not loaded, those before stay in force: {mistake}");
            }
            self.audit.record(Event::EntriesRefused { mistakes });
        }
        for warning in load.warnings.iter() {
            tracing::warn!("{warning}");
        }
    }

    pub(super) fn index_is(&self, index: &Index) {
        let (count, generation) = (index.entries().len(), index.generation());
        self.metrics.entries.set(i64::try_from(count).unwrap_or(i64::MAX));
        if self.changing().index.replace(generation) != Some(generation) {
            self.audit.record(Event::EntriesChanged { count, generation });
        }
    }

    /// Reports a load of the policy files everywhere it is looked for; repeated mistakes are reported once.
    pub(super) fn policies_loaded(&self, load: &Arc<LoadState>) {
        let mistakes: Vec<String> = load.mistakes.iter().map(ToString::to_string).collect();
        self.metrics.policies_load_success.set(i64::from(load.ok));
        self.readiness.set("policies", if load.ok { Ok(()) } else { Err(mistakes.join("; ")) });
        let before = self.changing().reported_policies.replace(load.clone());
        if before.is_some_and(|before| before.ok == load.ok && before.mistakes == load.mistakes) {
            return;
        }
        if load.ok {
            tracing::info!(files = load.files, "policy files loaded");
        } else {
            for mistake in &mistakes {
                tracing::error!("policy files not loaded, those before stay in force: {mistake}");
            }
            self.audit.record(Event::PolicyRefused { mistakes });
        }
        for warning in load.warnings.iter() {
            tracing::warn!("{warning}");
        }
    }

    /// Whether changes can be written to the store.
    pub(super) fn store_is(&self, health: Result<(), String>) {
        match &health {
            Ok(()) => tracing::info!("the store is written again"),
            Err(why) => tracing::error!(%why, "the store cannot be written"),
        }
        self.changing().store_failure = health.err();
        self.tell_of_store();
    }

    fn tell_of_store(&self) {
        let changing = self.changing();
        let failure = changing.store_failure.iter().map(|why| format!("it cannot be written: {why}"));
        let reasons: Vec<String> = failure.chain(changing.unusable.iter().cloned()).collect();
        drop(changing);
        self.readiness.set("store", if reasons.is_empty() { Ok(()) } else { Err(reasons.join("; ")) });
    }

    pub(super) fn policies_are(&self, set: &PolicySet) {
        if self.changing().policies.replace(set.generation()) != Some(set.generation()) {
            self.audit.record(Event::PolicyChanged { set: set.digest().to_owned(), count: set.policies().len() });
        }
    }

    /// When the agent started.
    pub(super) fn started_at(&self) -> OffsetDateTime {
        self.started_at
    }

    /// How many calls are open on the workload socket.
    pub(super) fn calls(&self) -> usize {
        self.calls.len()
    }

    /// What is weaker on this host than it should be, and why.
    pub(super) fn weaker_for(&self) -> Vec<String> {
        let (crls, heard) = (self.crls.latest(), self.heard.borrow().clone());
        let changing = self.changing();
        let standing: Vec<String> = changing.weaknesses.iter().chain(changing.unwatched.values()).cloned().collect();
        drop(changing);
        let repaired = self.store.weaknesses().into_iter().chain(self.issuer.ledger.weaknesses());
        let weaker = standing
            .into_iter()
            .chain(repaired)
            .chain(crls_left_out(&crls))
            .chain(kept_entries(&self.registry.last_load()));
        weaker.chain(silent_nodes(&heard)).chain(self.issuer.attestation.weaker()).collect()
    }

    fn authorities(&self) -> Vec<Value> {
        let trust = self.trust.current();
        let now = self.clock.now();
        let slots = trust.signers().slots().iter().map(|slot| {
            json!({
                "id": slot.id,
                "kind": slot.kind.as_str(),
                "state": slot.state.as_str(),
                "not_before": rfc3339(slot.not_before),
                "not_after": rfc3339(slot.not_after),
                "age_seconds": (now - slot.not_before).whole_seconds(),
            })
        });
        let disk = trust.signers().disk().map(|disk| {
            json!({
                "id": disk.id,
                "kind": "x509-disk",
                "state": "active",
                "not_before": rfc3339(disk.not_before),
                "not_after": rfc3339(disk.not_after),
                "age_seconds": (now - disk.not_before).whole_seconds(),
            })
        });
        disk.into_iter().chain(slots).collect()
    }
}

impl StatusSource for AgentState {
    fn stored_entries(&self, unusable: &[String]) {
        for entry in unusable {
            tracing::error!("not in force, delete it or change the settings back: {entry}");
        }
        self.changing().unusable = unusable.to_vec();
        self.tell_of_store();
    }

    fn status(&self) -> Value {
        let trust = self.trust.current();
        let load = self.registry.last_load();
        let index = self.registry.index();
        let (policies, policies_load) = (self.policies.set(), self.policies.last_load());
        let parts = self.readiness.parts();
        let own = self.own_svid();
        let crls = self.crls.latest();
        let heard = self.heard.borrow().clone();
        let mut document = json!({
            "version": 1,
            "agent_version": env!("CARGO_PKG_VERSION"),
            "commit": env!("TETHER_COMMIT"),
            "pid": std::process::id(),
            "started_at": rfc3339(self.started_at),
            "trust_domain": trust.domain(),
            "node": self.node,
            "agent_id": format!("spiffe://{}/tether/agent/{}", trust.domain(), self.node),
            "agent_svid_not_after": own.map(|svid| rfc3339(svid.signed.not_after)),
            "ready": parts.values().all(Result::is_ok),
            "parts": parts.iter().map(|(name, state)| {
                (name.to_string(), json!({"ready": state.is_ok(), "reason": state.as_ref().err()}))
            }).collect::<serde_json::Map<_, _>>(),
            "workload_socket": self.config.listen.workload,
            "admin_socket": self.config.listen.admin,
            "authorities": self.authorities(),
            "bundle_sequence": trust.own().sequence(),
            "crl": {
                "lists": crls.der().len(),
                "of_other_nodes": crls.of_others(),
                "revoked": crls.revoked(),
                "bytes": crls.bytes(),
            },
            "nodes": heard.iter().map(|(node, heard)| json!({
                "node": node,
                "heard": heard.silent.is_none(),
                "since": rfc3339(heard.since),
                "reason": heard.silent,
            })).collect::<Vec<_>>(),
            "federated": trust.foreign().map(|(domain, _)| domain.to_string()).collect::<Vec<_>>(),
            "entries": {
                "count": index.entries().len(),
                "generation": index.generation(),
                "loaded_at": rfc3339(load.at),
                "ok": load.ok,
                "files": load.files,
                "mistakes": load.mistakes.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "warnings": load.warnings.iter().map(ToString::to_string).collect::<Vec<_>>(),
            },
            "policies": {
                "count": policies.policies().len(),
                "digest": policies.digest(),
                "generation": policies.generation(),
                "loaded_at": rfc3339(policies_load.at),
                "ok": policies_load.ok,
                "files": policies_load.files,
                "mistakes": policies_load.mistakes.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "warnings": policies_load.warnings.iter().map(ToString::to_string).collect::<Vec<_>>(),
            },
        });
        if let Value::Object(document) = &mut document {
            document.extend(super::activity::document(self));
            document.insert("weaker".to_owned(), json!(self.weaker_for()));
        }
        document
    }
}

/// What it means that lists are too large for X.509-SVIDs.
fn crls_left_out(crls: &CrlSet) -> Option<String> {
    crls.is_left_out().then(|| {
        format!(
            "the revocation lists have {} bytes, too many to go with X.509-SVIDs: processes that do not ask for \
             FetchX509Bundles do not learn what is revoked; shorter svid.x509_ttl makes the lists shorter",
            crls.bytes()
        )
    })
}

/// What it means that entries are served from before the start.
fn kept_entries(load: &LoadState) -> Option<String> {
    load.kept_from.map(|at| {
        format!(
            "the entry files have mistakes since before the agent was started, so those of {} are in force: see \
             `tether agent check`",
            rfc3339(at)
        )
    })
}

/// What it means that nodes are silent.
fn silent_nodes(heard: &HeardNodes) -> impl Iterator<Item = String> {
    heard.iter().filter_map(|(node, heard)| {
        let why = heard.silent.as_ref()?;
        let since = rfc3339(heard.since);
        Some(format!("node `{node}` is silent since {since}, so what it revokes and ends is not known here: {why}"))
    })
}

fn rfc3339(time: OffsetDateTime) -> String {
    time.truncate_to_second().format(&Rfc3339).unwrap_or_default()
}
