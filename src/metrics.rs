//! What the agent counts. Labels are closed sets: never a SPIFFE ID, a path or a process id.

use std::sync::atomic::AtomicI64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

/// Labels of `tether_svid_issued_total`: `x509` or `jwt`, and `ok` or `error`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Issued {
    r#type: &'static str,
    result: &'static str,
}

impl Issued {
    /// An SVID of this kind that was issued, or was not.
    pub fn new(kind: Kind, issued: bool) -> Self {
        Self { r#type: kind.as_str(), result: if issued { "ok" } else { "error" } }
    }
}

/// A kind of SVID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An X.509-SVID.
    X509,
    /// A JWT-SVID.
    Jwt,
}

impl Kind {
    /// Its name in labels and in audit events.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::X509 => "x509",
            Self::Jwt => "jwt",
        }
    }
}

/// A label with a reason from a closed set of the module that counts.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Reason {
    /// The stable name of the reason.
    pub reason: &'static str,
}

/// A label with an attestor's type.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Attestor {
    /// `unix`, `systemd`, `cgroup`, `lsm`.
    pub attestor: &'static str,
}

/// A label with an RPC's name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Rpc {
    /// `FetchX509SVID` and so on.
    pub rpc: &'static str,
}

/// A label with a trust domain, of which there are as many as an operator configured.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Domain {
    /// The trust domain's name.
    pub trust_domain: String,
}

/// Every metric of the agent.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// SVIDs issued, and attempts that failed.
    pub svid_issued: Family<Issued, Counter>,
    /// Callers refused an SVID or a bundle.
    pub refused: Family<Reason, Counter>,
    /// Connections refused or cut.
    pub connections_refused: Family<Reason, Counter>,
    /// Streams open on the workload socket.
    pub workload_streams: Family<Rpc, Gauge>,
    /// How long attestation took.
    pub attestation_duration: Family<Attestor, Histogram, fn() -> Histogram>,
    /// Attestors that failed or were late.
    pub attestation_failures: Family<Attestor, Counter>,
    /// Registration entries in force.
    pub entries: Gauge,
    /// 1 when the last load of the entry files succeeded, 0 when it had mistakes.
    pub entries_load_success: Gauge,
    /// 1 when the last reload of the configuration succeeded, 0 when it had mistakes.
    pub config_reload_success: Gauge,
    /// When the last authority of a bundle ends.
    pub bundle_expiration: Family<Domain, Gauge<i64, AtomicI64>>,
}

impl Metrics {
    /// Registers every metric.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            svid_issued: Family::default(),
            refused: Family::default(),
            connections_refused: Family::default(),
            workload_streams: Family::default(),
            attestation_duration: Family::new_with_constructor(|| Histogram::new(exponential_buckets(1e-5, 4.0, 9))),
            attestation_failures: Family::default(),
            entries: Gauge::default(),
            entries_load_success: Gauge::default(),
            config_reload_success: Gauge::default(),
            bundle_expiration: Family::default(),
        };
        let build = Info::new(vec![("version", env!("CARGO_PKG_VERSION")), ("commit", env!("TETHER_COMMIT"))]);
        let tether = registry.sub_registry_with_prefix("tether");
        tether.register("build", "The running agent", build);
        tether.register("svid_issued", "SVIDs issued", metrics.svid_issued.clone());
        tether.register("refused", "Callers refused an SVID or a bundle", metrics.refused.clone());
        tether.register("connections_refused", "Connections refused or cut", metrics.connections_refused.clone());
        tether.register("workload_streams", "Open workload streams", metrics.workload_streams.clone());
        tether.register_with_unit(
            "attestation_duration",
            "Time an attestor took",
            Unit::Seconds,
            metrics.attestation_duration.clone(),
        );
        tether.register("attestation_failures", "Attestors that failed", metrics.attestation_failures.clone());
        tether.register("entries", "Registration entries in force", metrics.entries.clone());
        tether.register(
            "entries_load_success",
            "Whether the entry files were last loaded without a mistake",
            metrics.entries_load_success.clone(),
        );
        tether.register(
            "config_reload_success",
            "Whether the configuration was last reloaded without a mistake",
            metrics.config_reload_success.clone(),
        );
        tether.register_with_unit(
            "bundle_expiration_timestamp",
            "When the last authority of a bundle ends",
            Unit::Seconds,
            metrics.bundle_expiration.clone(),
        );
        metrics
    }
}

impl Default for Metrics {
    /// Metrics that nobody reads, for tests and one-off commands.
    fn default() -> Self {
        Self::register(&mut Registry::default())
    }
}
