//! From a configuration to an agent that listens.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::registry::Registry as MetricsRegistry;

use super::http::Listeners;
use super::pulse::Pulse;
use super::{AgentState, Bound, Deps, Parts, StartError, notify, observer};
use crate::api::admin::{Admin, Reloadable, Roles, StatusSource};
use crate::api::credentials::{self, Credentials};
use crate::api::gate::RoleLayer;
use crate::attest::{Attestation, Attestors, Launches, StartingUnits};
use crate::audit::{Audit, AuditError, Event};
use crate::authority::Authority;
use crate::authority::keys::{KeyStore, KeyStoreError, Wrapping};
use crate::base::durable;
use crate::base::quota::Quota;
use crate::bond::Bonds;
use crate::config::Config;
use crate::ends::Ends;
use crate::held::Held;
use crate::http::{Introspection, Readiness};
use crate::issue::{Issuer, Missed};
use crate::ledger::{self, Ledger, LedgerError, NewTies};
use crate::metrics::{self, Metrics};
use crate::peer::{Instances, Limits, Listener, ListenerConfig};
use crate::policy::{self, BuiltIn, Lifetimes, Policies, Policy};
use crate::proof;
use crate::registry::{self, Registry, parse_entry};
use crate::session::approvals::Approvals;
use crate::session::{self, Sessions};
use crate::store::{Change, Expect, Space, Store, StoreError};
use crate::sys::Kernel;
use crate::sys::harden::Hardening;
use crate::sys::inherited::Role;
use crate::trust::{Crls, Trust};
use crate::user::Users;
use crate::verify::tls::{OwnSvid, Tls};
use crate::verify::{Nodes, Verifier};

/// The parts of `/readyz`.
const PARTS: &[&str] = &["agent", "audit", "authority", "entries", "policies", "store"];
pub(super) const NODE_ID: &str = "node-id";
/// Who may ask on the admin socket is decided by role; connections to it are few.
const ADMIN_CONNECTIONS: usize = 256;
/// Calls open on the admin socket.
const ADMIN_CALLS: usize = 64;
/// What the admin socket gets of the connections for which there are descriptors, unless that is more than it needs.
const ADMIN_SHARE: usize = 4;

pub(super) async fn build(config: Config, deps: Deps) -> Result<Bound, StartError> {
    let _starting = notify::Starting::begin();
    // Before the first key is read or made.
    let hardening = Hardening::apply();
    let kernel = config.kernel();
    let instances = Instances::new(kernel).map_err(StartError::Kernel)?;
    let mut metrics_registry = MetricsRegistry::default();
    let metrics = Metrics::register(&mut metrics_registry);

    prepare_directories(&config)?;
    // A restore takes it alone, for as long as files change places: all that is opened below stays where it is.
    let state_dir = durable::take(&config.state_dir, false)?;
    let state_dir = state_dir.ok_or_else(|| StartError::BeingRestored(config.state_dir.clone()))?;
    let restoring = config.state_dir.join(super::RESTORE_UNFINISHED);
    if restoring.exists() {
        return Err(StartError::Restoring(restoring));
    }
    let wrapping = Wrapping::from_credentials(deps.credentials.as_deref()).map_err(KeyStoreError::from)?;
    let keys = KeyStore::open(config.state_dir.join("keys"), wrapping, deps.entropy.clone())?;
    let custody = keys.weakness();
    let path = config.state_dir.join("store.redb");
    // The store is there before the first key. Without it the keys would look like what a crash left behind, and a new
    // trust domain would begin where one was lost.
    if Store::is_new(&path) && !keys.is_empty()? {
        return Err(StartError::StoreGone(path));
    }
    let store = Store::open(&path).await?;
    let (node, is_first_start) = node_id(&store, &deps).await?;
    let audit = open_audit(&config, &node, &deps).await?;
    let deps = Deps { audit, ..deps };
    super::repairs::of_store(&store, &keys, &deps.audit).await?;
    // Before anything is forgotten that is over by a clock which may have been set while there was no agent.
    if let Some(memory) = ledger::last_clock(&ledger_dir(&config), &node) {
        deps.clock.remember(memory);
    }
    let (authority, signers) = Authority::open(
        config.authority(&node).ok_or(StartError::DiskFiles)?,
        deps.clock.clone(),
        deps.entropy.clone(),
        store.clone(),
        keys,
        deps.audit.clone(),
    )
    .await?;
    let authority = Arc::new(authority);
    let trust = Arc::new(Trust::open(config.trust_domain.clone(), signers, config.wit.enabled, store.clone()).await?);

    let (registry, unusable) = open_registry(&config, &store, &deps).await?;
    let (ledger, new_ties) = open_ledger(&config, &node, &instances, &deps).await?;
    super::repairs::of_ledger(&ledger, &deps.audit).await?;
    let systemd = config.attestation().systemd;
    let bonds = Bonds::of_host(instances.clone(), &systemd, &deps.clock, &deps.entropy).map_err(StartError::Kernel)?;
    let revocations = Arc::new(ledger.clone());
    let crls = Crls::open(&trust, revocations, store.clone(), deps.clock.clone(), metrics.clone()).await?;
    let policies = open_policies(&config, &deps).await?;
    let policy = Policy::new(Lifetimes { x509: config.svid.x509_ttl, jwt: config.svid.jwt_ttl })
        .with_jwt_caps(config.svid.jwt_ttl_caps.clone())
        .with_credential_ttl(config.entry_rules().max_x509_ttl)
        .with_policies(policies.clone());
    // One that never ran before has forgotten no proof: all that can still be shown to it count.
    let remembers = deps.clock.now() - if is_first_start { 2 * proof::LIFETIME } else { Duration::ZERO };
    let issuer = Arc::new(Issuer {
        attestation: Attestation::new(
            Attestors::of_host(&config.attestation(), &deps.clock, &deps.entropy)
                .reporting(metrics.clone(), deps.clock.clone()),
            Launches::new(config.launches(), deps.clock.clone()),
            config.attestation_turns(),
            deps.clock.clone(),
        ),
        registry: registry.subscribe(),
        trust: trust.clone(),
        crls: crls.clone(),
        policy,
        key_type: config.authority.key_type,
        ledger,
        bonds,
        held: Held::new(deps.clock.clone(), deps.entropy.clone()),
        proofs_count_from: proof::ReplayCache::counts_from(remembers),
        instances: instances.clone(),
        sessions: std::sync::OnceLock::new(),
        audit: deps.audit.clone(),
        metrics: metrics.clone(),
        clock: deps.clock.clone(),
        entropy: deps.entropy.clone(),
        missed_rotation: Missed::default(),
    });

    let (kept, not_kept) = super::kept::take_back(&issuer, &deps.inherited).await?;
    // Before anything can be answered: what died while there was no agent no longer stands.
    let ends = Ends::resume(issuer.clone(), instances.clone(), new_ties).await?;
    let sessions = open_sessions(&config, &node, &issuer, &store, &deps).await?;
    let own = OwnSvid::default();
    let tls = Tls { own: own.clone(), trust: trust.clone(), crls: crls.clone(), clock: deps.clock.clone() };
    let nodes = Nodes::new(&config.sessions.nodes, &config.trust_domain, &tls);
    let nodes = nodes.map_err(|(node, source)| StartError::Node { node, source })?;
    let verifier = Arc::new(Verifier::new(sessions.clone(), nodes, crls.clone(), remembers));

    let observer = observer(deps.audit.clone(), metrics.clone());
    let listener = |limits| ListenerConfig {
        instances: instances.clone(),
        limits,
        observer: observer.clone(),
        entropy: deps.entropy.clone(),
    };
    let (limits, admin_limits) = limits(config.connection_limits(), &hardening);
    // Both sockets let everyone connect: who gets what is decided by who it is, never by who could open a file.
    let handed = |role, path| deps.inherited.listener(role, path);
    let path = &config.listen.workload;
    let workload = Listener::open(handed(Role::Workload, path)?, path, 0o666, listener(limits))?;
    let path = &config.listen.admin;
    let admin = Listener::open(handed(Role::Admin, path)?, path, 0o666, listener(admin_limits))?;

    metrics::register_workload_connections(&mut metrics_registry, workload.open_connections());

    let credentials = match &config.listen.credentials {
        Some(path) => {
            let units = StartingUnits::of_host(&config.attestation(), &deps.clock, &deps.entropy);
            let credentials = Arc::new(Credentials::new(issuer.clone(), units));
            let handed = handed(Role::Credentials, path)?;
            Some((credentials::Listener::open(handed, path, &issuer)?, credentials))
        }
        None => None,
    };
    for name in deps.inherited.close_rest() {
        tracing::warn!(name, "what the service manager handed over by this name is not used, and was closed");
    }
    let calls = config.calls();
    let readiness = Readiness::waiting(PARTS);
    let introspection = Introspection::new(verifier.clone(), instances.clone(), trust.clone());
    let state = Arc::new(AgentState::new(super::state::Parts {
        node,
        config: config.clone(),
        readiness: readiness.clone(),
        registry: registry.clone(),
        store: store.clone(),
        policies: policies.clone(),
        trust: trust.clone(),
        crls: crls.clone(),
        heard: verifier.heard_nodes(),
        instances: instances.clone(),
        connections: workload.open_connections(),
        calls: calls.clone(),
        weaknesses: weaknesses(&kernel, &hardening, config.connection_limits(), limits)
            .into_iter()
            .chain(deps.weaker)
            .chain(custody)
            .collect(),
        metrics: metrics.clone(),
        audit: deps.audit.clone(),
        clock: deps.clock.clone(),
        own,
        issuer: issuer.clone(),
        sessions: sessions.clone(),
        connections_limit: limits.connections,
    }));
    not_kept.into_iter().for_each(|why| state.weaker(why));
    super::activity::register(&mut metrics_registry, state.clone());
    let health = super::http::health(readiness.clone(), metrics_registry);
    let http = Listeners::bind(&config, health, introspection, &tls).await?;
    // It was read without a mistake, or we would not be here.
    state.config_reloaded(true);
    readiness.set("authority", Ok(()));
    readiness.set("agent", Ok(()));
    state.entries_loaded(&registry.last_load());
    state.policies_loaded(&policies.last_load());
    state.stored_entries(&unusable);

    let reloader: Arc<dyn Reloadable> = Arc::new(super::reload::Reloader {
        state: state.clone(),
        authority: authority.clone(),
        log: deps.log.clone(),
        source: deps.reload,
    });
    let roles = Roles::new(&config.admin.viewers, &config.admin.operators, &config.admin.approvers)
        .map_err(|(group, source)| StartError::Group { group, source })?;
    let admin_gate = RoleLayer { roles, calls: Quota::new(ADMIN_CALLS, ADMIN_CALLS / 4), audit: deps.audit.clone() };
    let admin_service = Admin::new(crate::api::admin::Parts {
        authority: authority.clone(),
        trust: trust.clone(),
        registry: registry.clone(),
        rules: config.entry_rules(),
        store: store.clone(),
        sessions: sessions.clone(),
        issuer: issuer.clone(),
        instances,
        log: deps.log.clone(),
        status: state.clone(),
        reload: reloader.clone(),
    });

    let (of, open, held) = (state.clone(), calls.clone(), issuer.held.clone());
    let pulse = Pulse {
        look: super::pulse::look(issuer.clone(), store.clone()),
        workload: config.listen.workload.clone(),
        summary: Box::new(move || summary(&of, open.len(), held.len())),
    };

    Ok(Bound {
        workload: config.listen.workload.clone(),
        admin: config.listen.admin.clone(),
        credentials: config.listen.credentials.clone(),
        http: http.address(),
        https: http.tls_address(),
        state,
        parts: Parts {
            authority,
            trust,
            registry,
            policies,
            issuer,
            sessions,
            verifier,
            ends,
            workload,
            admin,
            admin_service,
            admin_gate,
            credentials,
            http,
            limits: config.server_limits(),
            calls,
            drain_deadline: config.limits.drain,
            reloader,
            pulse,
            kept,
            store,
            _state_dir: state_dir,
        },
    })
}

/// How the agent is, in a line: for `systemctl status`.
fn summary(state: &AgentState, calls: usize, held: usize) -> String {
    let entries = state.registry().index().entries().len();
    let connections = state.connections();
    let serving =
        format!("serving {connections} connections, {calls} calls and streams, {entries} entries, {held} held keys");
    let parts = state.readiness.parts();
    let failing: Vec<&str> = parts.iter().filter(|(_, state)| state.is_err()).map(|(name, _)| *name).collect();
    if failing.is_empty() { serving } else { format!("{serving}; not ready: {}", failing.join(", ")) }
}

fn prepare_directories(config: &Config) -> Result<(), StartError> {
    if let (true, Some(dir)) = (config.dev, config.state_dir.parent()) {
        // Perhaps in a place where others could have made it first: ours and closed to them, or not used.
        durable::private_dir(dir)?;
    }
    durable::private_dir(&config.state_dir)?;
    let credentials = config.listen.credentials.as_ref();
    for socket in [&config.listen.workload, &config.listen.admin].into_iter().chain(credentials) {
        if let Some(dir) = socket.parent() {
            durable::socket_dir(dir)?;
        }
    }
    if config.dev {
        durable::private_dir(&config.entries_dir)?;
        durable::private_dir(&config.policies_dir)?;
    }
    Ok(())
}

/// The policies: those in the files, beside the built-in ones. With a mistake in them there is no agent.
async fn open_policies(config: &Config, deps: &Deps) -> Result<Policies, StartError> {
    let built_in = if config.dev { BuiltIn::Dev } else { BuiltIn::Issue };
    let (directory, may_be_absent) = (config.policies_dir.clone(), policy::is_default(&config.policies_dir));
    Ok(Policies::open(built_in, directory, may_be_absent, deps.clock.clone()).await?)
}

/// A stable random name of this node, made once, and whether that was just now.
async fn node_id(store: &Store, deps: &Deps) -> Result<(String, bool), StoreError> {
    if let Some(known) = store.get::<String>(Space::Node, NODE_ID).await? {
        return Ok((known.value, false));
    }
    let fresh = deps.entropy.hex::<16>();
    store.apply(vec![Change::put(Space::Node, NODE_ID, &fresh, Expect::Absent)]).await?;
    Ok((fresh, true))
}

/// The audit log, before anything can happen that must be in it.
async fn open_audit(config: &Config, node: &str, deps: &Deps) -> Result<Audit, AuditError> {
    let (settings, node, clock, audit) = (config.audit_log(), node.to_owned(), deps.clock.clone(), deps.audit.clone());
    let opened = tokio::task::spawn_blocking(move || audit.with_log(settings, &node, clock)).await;
    let audit = opened.map_err(|_| AuditError::Stopping)??;
    let (release, trust_domain) = (env!("CARGO_PKG_VERSION").to_owned(), config.trust_domain.to_string());
    audit.before(Event::AgentStarted { release, trust_domain })?;
    Ok(audit)
}

fn ledger_dir(config: &Config) -> PathBuf {
    config.state_dir.join("ledger")
}

/// The ledger, read in whole; what must be watched for it.
async fn open_ledger(
    config: &Config,
    node: &str,
    instances: &Instances,
    deps: &Deps,
) -> Result<(Ledger, NewTies), StartError> {
    let (dir, limits) = (ledger_dir(config), config.ledger_limits());
    let (node, boot, clock) = (node.to_owned(), instances.boot(), deps.clock.clone());
    let opened = tokio::task::spawn_blocking(move || Ledger::open(&dir, &node, boot, clock, limits)).await;
    Ok(opened.map_err(|_| LedgerError::Stopping)??)
}

/// The sessions, with those that go on from before a restart.
async fn open_sessions(
    config: &Config,
    node: &str,
    issuer: &Arc<Issuer>,
    store: &Store,
    deps: &Deps,
) -> Result<Sessions, StartError> {
    let Deps { clock, entropy, audit, .. } = deps.clone();
    let parts = session::Parts {
        issuer: issuer.clone(),
        users: Users::new(config.users(node), &clock, &entropy),
        approvals: Approvals::open(store.clone(), clock, entropy, audit).await?,
        settings: config.session_settings(),
        node: node.to_owned(),
    };
    let dir = config.state_dir.join("sessions");
    let opened = tokio::task::spawn_blocking(move || Sessions::open(parts, &dir)).await;
    let (sessions, interrupted) = opened.map_err(|_| LedgerError::Stopping)??;
    sessions.answer_for_tokens();
    sessions.resume(interrupted).await;
    Ok(sessions)
}

/// The registry, and the stored entries that cannot be used: they must not keep the agent from starting.
async fn open_registry(config: &Config, store: &Store, deps: &Deps) -> Result<(Registry, Vec<String>), StartError> {
    let rules = config.entry_rules();
    let unreadable = |mistakes: Vec<registry::Mistake>| {
        StartError::BuiltInEntry(mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
    };
    let mut built_in = Vec::new();
    if config.dev {
        built_in.push(parse_entry(&dev_entry(config), &registry::Source::BuiltIn, &rules).map_err(unreadable)?);
    }
    let stored = crate::api::admin::stored_entries(store, &rules).await?;
    let registry = Registry::new(Some(config.entries_dir.clone()), rules, built_in, deps.clock.clone())
        .keeping(config.state_dir.join("entries.kept"));
    registry.set_store_entries(stored.usable).await?;
    registry.reload().await;
    Ok((registry, stored.unusable))
}

/// The one entry an agent started with `--dev` has from the start.
fn dev_entry(config: &Config) -> String {
    format!(
        r#"
        id = "dev"
        spiffe_id = "spiffe://{domain}/user/{{unix.user|unix.uid}}"
        match = ["unix:uid:{uid}"]
        audiences = ["*"]
        serves = ["*"]
        may_act_for = ["spiffe://{domain}/user/*"]
        exportable = true
        bind = "unit"
        "#,
        domain = config.trust_domain,
        uid = nix::unistd::geteuid(),
    )
}

/// The limits of the workload and the admin socket: those of the configuration, as far as there are descriptors.
fn limits(configured: Limits, hardening: &Hardening) -> (Limits, Limits) {
    let fitting = hardening.open_files.as_ref().map_or(usize::MAX, |open_files| Limits::fitting(*open_files));
    let admin = ADMIN_CONNECTIONS.min((fitting / ADMIN_SHARE).max(1));
    let of_admin = Limits { connections: admin, connections_per_uid: (admin / 4).max(1), ..configured };
    (configured.within((fitting - admin).max(1)), of_admin)
}

/// What is weaker on this host than it should be, and why.
fn weaknesses(kernel: &Kernel, hardening: &Hardening, configured: Limits, limits: Limits) -> Vec<String> {
    let missing = kernel.features().into_iter().filter(|(_, there)| !there);
    let missing = missing.map(|(name, _)| format!("the kernel has no {name}: instances are held by weaker means"));
    let lowered = (limits != configured).then(|| {
        format!(
            "there are descriptors for {} connections, {} of one user, and not for the {} that `limits.connections` \
             allows: raise LimitNOFILE in the unit, or lower `limits.connections`",
            limits.connections, limits.connections_per_uid, configured.connections
        )
    });
    missing.chain(hardening.weaknesses()).chain(lowered).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn limits_that_do_not_fit_into_the_descriptors_are_lowered_and_reported() {
        let with = |open_files| Hardening {
            not_traceable: Ok(()),
            no_core_dumps: Ok(()),
            swap: crate::sys::harden::Swap::Locked,
            open_files,
        };
        let configured = Limits::default();
        let lowered = |hardening: &Hardening| {
            let (workload, admin) = limits(configured, hardening);
            let weaknesses = weaknesses(&Kernel::probe(), hardening, configured, workload);
            let reported = weaknesses.iter().any(|weakness| weakness.contains("LimitNOFILE"));
            (workload.connections, workload.connections_per_uid, admin.connections, reported)
        };
        assert_eq!(lowered(&with(Ok(524_288))), (16_384, 4_096, 256, false));
        assert_eq!(lowered(&with(Ok(256))), (32, 8, 10, true));
        assert_eq!(lowered(&with(Ok(1))), (1, 1, 1, true));
        assert_eq!(lowered(&with(Err(std::io::ErrorKind::PermissionDenied.into()))), (16_384, 4_096, 256, false));
    }

    #[test]
    fn an_address_that_the_unit_forbids_is_refused_with_the_drop_in_that_allows_it() {
        let refused = |errno: nix::errno::Errno| {
            let address = "127.0.0.1:8080".parse().unwrap();
            StartError::Http { address, source: errno.into() }.to_string()
        };
        assert!(refused(nix::errno::Errno::EAFNOSUPPORT).contains("tether-agent.service.d/http.conf"));
        assert_eq!(refused(nix::errno::Errno::EADDRINUSE), "cannot listen on http address 127.0.0.1:8080");
    }

    #[test]
    fn the_entry_of_a_dev_agent_obeys_its_own_rules() {
        let config = Config::for_dev(Path::new("/nowhere"));
        let entry = parse_entry(&dev_entry(&config), &registry::Source::BuiltIn, &config.entry_rules()).unwrap();
        assert_eq!(entry.id().as_str(), "dev");
        assert!(entry.allows_audience("anything"));
    }
}
