//! What the agent counts. Labels are closed sets: never a SPIFFE ID, a path or a process id.

pub(crate) mod described;
mod due;

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::sync::atomic::AtomicI64;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabelSet, EncodeLabelValue, EncodeMetric, LabelValueEncoder,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Metric, Registry, Unit};

use crate::base::quota::Quota;
use described::{Book, label_names};

pub use described::Described;
pub use due::{Due, DueAt};

/// What the name of every metric of the agent begins with.
pub const PREFIX: &str = "tether";
const CONNECTIONS: (&str, &str) = ("workload_connections", "Open workload connections");

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

label_names! {
    Issued: ["type", "result"];
    Reason: ["reason"];
    Attestor: ["attestor"];
    AttestorFailure: ["attestor", "reason"];
    Refreshed: ["result"];
    Rpc: ["rpc"];
    Domain: ["trust_domain"];
    NodeLabel: ["node"];
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
    /// When open streams look again.
    pub renewals: Due,
}

impl Metrics {
    /// Registers every metric.
    pub fn register(registry: &mut Registry) -> Self {
        Self::register_in(&mut Book::new(registry, PREFIX))
    }

    /// Every metric that [`Self::register`] and [`register_workload_connections`] register.
    pub fn described() -> Vec<Described> {
        let mut registry = Registry::default();
        let mut book = Book::new(&mut registry, PREFIX);
        Self::register_in(&mut book);
        let (name, help) = CONNECTIONS;
        let connections = Described::new((PREFIX, name), None, MetricType::Gauge, Vec::new(), help);
        book.described().into_iter().chain([connections]).collect()
    }

    /// What streams are open, by their call.
    pub fn streams(&self) -> BTreeMap<String, u64> {
        by_label(self.workload_streams.clone())
    }

    /// How many callers were refused since the start, by the reason.
    pub fn refusals(&self) -> BTreeMap<String, u64> {
        by_label(self.refused.clone())
    }

    /// How many connections were refused or cut since the start, by the reason.
    pub fn refused_connections(&self) -> BTreeMap<String, u64> {
        by_label(self.connections_refused.clone())
    }

    fn register_in(tether: &mut Book<'_>) -> Self {
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
            renewals: Due::default(),
        };
        let build = Info::new(vec![("version", env!("CARGO_PKG_VERSION")), ("commit", env!("TETHER_COMMIT"))]);
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
        let (name, help) = CONNECTIONS;
        open.encode(encoder.encode_descriptor(name, help, None, open.metric_type())?)
    }
}

impl Default for Metrics {
    /// Metrics that nobody reads, for tests and one-off commands.
    fn default() -> Self {
        Self::register(&mut Registry::default())
    }
}

/// What a family with one label has counted. Families cannot be walked through, so it is read off what they expose.
fn by_label(family: impl Metric) -> BTreeMap<String, u64> {
    let mut registry = Registry::default();
    registry.register("x", "", family);
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
    let counted = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
        let (labels, count) = line.rsplit_once(' ')?;
        Some((labels.split('"').nth(1)?.to_owned(), count.parse().ok()?))
    });
    counted.filter(|(_, count)| *count > 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_counted_is_read_by_its_label() {
        let metrics = Metrics::default();
        assert!(metrics.refusals().is_empty());
        for reason in ["no_identity", "audit", "no_identity"] {
            metrics.refused.get_or_create(&Reason { reason }).inc();
        }
        assert_eq!(metrics.refusals(), [("audit".to_owned(), 1), ("no_identity".to_owned(), 2)].into());
        let streams = metrics.workload_streams.get_or_create(&Rpc { rpc: "FetchX509SVID" }).clone();
        streams.inc();
        assert_eq!(metrics.streams(), [("FetchX509SVID".to_owned(), 1)].into());
        streams.dec();
        assert!(metrics.streams().is_empty(), "what there is none of is left out");
    }

    #[test]
    fn metrics_are_described_by_the_names_they_are_exposed_by() {
        let described = Metrics::described();
        let of = |name: &str| described.iter().find(|described| described.name == name).expect(name);
        assert_eq!(
            (of("tether_svid_issued_total").kind, &of("tether_svid_issued_total").labels[..]),
            ("counter", &["type", "result"][..])
        );
        assert_eq!(of("tether_crl_size_bytes").kind, "gauge");
        assert_eq!(of("tether_attestation_duration_seconds").kind, "histogram");
        assert_eq!(of("tether_build_info").kind, "info");
    }
}
