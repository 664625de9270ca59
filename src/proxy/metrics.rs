//! What a proxy counts. Labels are closed sets.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use super::cut::CutReason;
use crate::metrics::described::{Book, label_names};
use crate::metrics::{Described, Reason};

const PREFIX: &str = "tether_proxy";

/// A label with how something ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Outcome {
    /// A stable name.
    pub outcome: &'static str,
}

label_names! {
    Outcome: ["outcome"];
}

/// The metrics of one proxy.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Requests, by how they were answered: `passed`, a refusal's class, or what was wrong with the upstream.
    pub requests: Family<Outcome, Counter>,
    /// TLS handshakes, by how they ended.
    pub handshakes: Family<Outcome, Counter>,
    /// Connections that are open.
    pub connections: Gauge,
    /// Connections that were refused before TLS: too many.
    pub connections_refused: Counter,
    /// What was open and was cut.
    pub cut: Family<Reason, Counter>,
    /// From a request's head to the first byte of the answer's.
    pub request_duration: Histogram,
    /// What the agent's word on a request took.
    pub check_duration: Histogram,
}

impl Metrics {
    /// Registers every metric.
    pub fn register(registry: &mut Registry) -> Self {
        Self::register_in(&mut Book::new(registry, PREFIX))
    }

    /// Every metric of a proxy: what its `/metrics` shows.
    pub fn described() -> Vec<Described> {
        let mut registry = Registry::default();
        let mut book = Book::new(&mut registry, PREFIX);
        Self::register_in(&mut book);
        book.described()
    }

    fn register_in(proxy: &mut Book<'_>) -> Self {
        let times = || Histogram::new(exponential_buckets(1e-4, 2.0, 16));
        let metrics = Self {
            requests: Family::default(),
            handshakes: Family::default(),
            connections: Gauge::default(),
            connections_refused: Counter::default(),
            cut: Family::default(),
            request_duration: times(),
            check_duration: times(),
        };
        proxy.register("requests", "Requests by how they were answered", metrics.requests.clone());
        proxy.register("handshakes", "TLS handshakes by how they ended", metrics.handshakes.clone());
        proxy.register("connections", "Open connections", metrics.connections.clone());
        proxy.register(
            "connections_refused",
            "Connections refused because there were too many",
            metrics.connections_refused.clone(),
        );
        proxy.register("cut", "Connections, requests and streams that were cut", metrics.cut.clone());
        proxy.register_with_unit(
            "request_duration",
            "Time from a request to the begin of its answer",
            Unit::Seconds,
            metrics.request_duration.clone(),
        );
        proxy.register_with_unit(
            "check_duration",
            "Time the agent took to decide on a request",
            Unit::Seconds,
            metrics.check_duration.clone(),
        );
        metrics
    }

    /// Counts a request.
    pub fn request(&self, outcome: &'static str) {
        self.requests.get_or_create(&Outcome { outcome }).inc();
    }

    /// Counts a handshake.
    pub fn handshake(&self, outcome: &'static str) {
        self.handshakes.get_or_create(&Outcome { outcome }).inc();
    }

    /// Counts what was cut.
    pub fn cut(&self, reason: CutReason, how_many: usize) {
        self.cut.get_or_create(&Reason { reason: reason.as_str() }).inc_by(how_many as u64);
    }
}

impl Default for Metrics {
    /// Metrics that nobody reads.
    fn default() -> Self {
        Self::register(&mut Registry::default())
    }
}
