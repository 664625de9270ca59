//! What the agent counts. Labels are closed sets: never a SPIFFE ID, a path or a process id.

use std::fmt::{self, Write as _};
use std::sync::atomic::AtomicI64;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabelSet, EncodeLabelValue, EncodeMetric, LabelValueEncoder,
};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::base::quota::Quota;

const PREFIX: &str = "tether";

/// Which document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// An X.509-SVID.
    X509,
    /// A JWT-SVID.
    Jwt,
    /// A WIT-SVID.
    Wit,
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Done.
    Ok,
    /// Not done.
    Error,
}

/// The values of a closed set, in lower case.
macro_rules! label_values {
    ($($set:ident { $($value:ident = $text:literal),+ })+) => {$(
        impl EncodeLabelValue for $set {
            fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
                encoder.write_str(match self { $(Self::$value => $text),+ })
            }
        }
    )+};
}

label_values! {
    Kind { X509 = "x509", Jwt = "jwt", Wit = "wit" }
    Outcome { Ok = "ok", Error = "error" }
    FailureReason { Error = "error", Deadline = "deadline" }
}

/// Labels of `tether_svid_issued_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Issued {
    /// The kind of SVID.
    pub r#type: Kind,
    /// Whether it was issued.
    pub result: Outcome,
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

/// Labels of `tether_attestation_failures_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct AttestorFailure {
    /// `unix`, `systemd`, `cgroup`, `lsm`.
    pub attestor: &'static str,
    /// Whether it failed or was late.
    pub reason: FailureReason,
}

/// Why an attestor said nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FailureReason {
    /// It said why.
    Error,
    /// It did not answer in time.
    Deadline,
}

/// Labels of `tether_identity_cert_refreshes_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Refreshed {
    /// Whether there is a new one.
    pub result: Outcome,
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

/// A label with another node's id, of which there are as many as an operator configured.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct NodeLabel {
    /// The node's id.
    pub node: String,
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
    /// Answers of the Secret Discovery Service that Envoy rejected.
    pub sds_rejected: Counter,
    /// Attestors that failed or were late.
    pub attestation_failures: Family<AttestorFailure, Counter>,
    /// Registration entries in force.
    pub entries: Gauge,
    /// 1 when the last load of the entry files succeeded, 0 when it had mistakes.
    pub entries_load_success: Gauge,
    /// 1 when the last load of the policy files succeeded, 0 when it had mistakes.
    pub policies_load_success: Gauge,
    /// 1 when the last reload of the configuration succeeded, 0 when it had mistakes.
    pub config_reload_success: Gauge,
    /// When the agent's own certificate ends.
    pub identity_cert_expiration: Gauge,
    /// When the agent's own certificate was last made anew.
    pub identity_cert_refresh: Gauge,
    /// How often the agent's own certificate was made anew, and attempts that failed.
    pub identity_cert_refreshes: Family<Refreshed, Counter>,
    /// When the last authority of a bundle ends.
    pub bundle_expiration: Family<Domain, Gauge<i64, AtomicI64>>,
    /// Certificates on the revocation lists.
    pub crl_revoked: Gauge,
    /// What the revocation lists have together.
    pub crl_size: Gauge,
    /// 1 while the revocation lists are too large to go with X.509-SVIDs.
    pub crl_left_out: Gauge,
    /// 1 for each configured node that tells what it revokes and ends, 0 for one that is silent.
    pub node_heard: Family<NodeLabel, Gauge>,
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
            sds_rejected: Counter::default(),
            attestation_failures: Family::default(),
            entries: Gauge::default(),
            entries_load_success: Gauge::default(),
            policies_load_success: Gauge::default(),
            config_reload_success: Gauge::default(),
            identity_cert_expiration: Gauge::default(),
            identity_cert_refresh: Gauge::default(),
            identity_cert_refreshes: Family::default(),
            bundle_expiration: Family::default(),
            crl_revoked: Gauge::default(),
            crl_size: Gauge::default(),
            crl_left_out: Gauge::default(),
            node_heard: Family::default(),
        };
        let build = Info::new(vec![("version", env!("CARGO_PKG_VERSION")), ("commit", env!("TETHER_COMMIT"))]);
        let tether = registry.sub_registry_with_prefix(PREFIX);
        tether.register("build", "The running agent", build);
        tether.register("svid_issued", "SVIDs issued", metrics.svid_issued.clone());
        tether.register("refused", "Callers refused an SVID or a bundle", metrics.refused.clone());
        tether.register("connections_refused", "Connections refused or cut", metrics.connections_refused.clone());
        tether.register("sds_rejected", "Answers that Envoy rejected", metrics.sds_rejected.clone());
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
            "policies_load_success",
            "Whether the policy files were last loaded without a mistake",
            metrics.policies_load_success.clone(),
        );
        tether.register(
            "config_reload_success",
            "Whether the configuration was last reloaded without a mistake",
            metrics.config_reload_success.clone(),
        );
        tether.register_with_unit(
            "identity_cert_expiration_timestamp",
            "When the agent's own certificate ends",
            Unit::Seconds,
            metrics.identity_cert_expiration.clone(),
        );
        tether.register_with_unit(
            "identity_cert_refresh_timestamp",
            "When the agent's own certificate was last made anew",
            Unit::Seconds,
            metrics.identity_cert_refresh.clone(),
        );
        tether.register(
            "identity_cert_refreshes",
            "How often the agent's own certificate was made anew",
            metrics.identity_cert_refreshes.clone(),
        );
        tether.register_with_unit(
            "bundle_expiration_timestamp",
            "When the last authority of a bundle ends",
            Unit::Seconds,
            metrics.bundle_expiration.clone(),
        );
        tether.register("crl_revoked", "Certificates on the revocation lists", metrics.crl_revoked.clone());
        tether.register_with_unit("crl_size", "Size of all revocation lists", Unit::Bytes, metrics.crl_size.clone());
        tether.register(
            "crl_left_out",
            "Whether the revocation lists are too large to go with X.509-SVIDs",
            metrics.crl_left_out.clone(),
        );
        tether.register(
            "node_heard",
            "Whether a configured node tells what it revokes and ends",
            metrics.node_heard.clone(),
        );
        metrics
    }
}

/// Shows the connections that are open on the workload socket, which their quota counts.
pub fn register_workload_connections(registry: &mut Registry, open: Quota) {
    registry.sub_registry_with_prefix(PREFIX).register_collector(Box::new(Connections(open)));
}

#[derive(Debug)]
struct Connections(Quota);

impl Collector for Connections {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let open = ConstGauge::new(i64::try_from(self.0.len()).unwrap_or(i64::MAX));
        let name = "workload_connections";
        open.encode(encoder.encode_descriptor(name, "Open workload connections", None, open.metric_type())?)
    }
}

impl Default for Metrics {
    /// Metrics that nobody reads, for tests and one-off commands.
    fn default() -> Self {
        Self::register(&mut Registry::default())
    }
}
