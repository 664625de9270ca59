//! What there is to measure, as the reference lists it and the alert rules name it: read off what is registered.

use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry, Unit};

/// One metric.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    /// Its name as it is exposed: with its prefix, its unit, and `_total` of a counter.
    pub name: String,
    /// `counter`, `gauge`, `histogram` or `info`.
    pub kind: &'static str,
    /// The names of its labels.
    pub labels: Vec<&'static str>,
    /// What it says.
    pub help: &'static str,
}

impl Described {
    /// A metric of ours, registered below `prefix`.
    pub fn new(
        (prefix, name): (&str, &str),
        unit: Option<&Unit>,
        kind: MetricType,
        labels: Vec<&'static str>,
        help: &'static str,
    ) -> Self {
        let unit = unit.map(|unit| format!("_{}", unit.as_str())).unwrap_or_default();
        let (kind, end) = match kind {
            MetricType::Counter => ("counter", "_total"),
            MetricType::Gauge => ("gauge", ""),
            MetricType::Histogram => ("histogram", ""),
            MetricType::Info => ("info", "_info"),
            _ => ("unknown", ""),
        };
        Self { name: format!("{prefix}_{name}{unit}{end}"), kind, labels, help }
    }
}

/// A registry below a prefix that keeps what it was told.
pub(crate) struct Book<'a> {
    registry: &'a mut Registry,
    prefix: &'static str,
    described: Vec<Described>,
}

impl<'a> Book<'a> {
    pub(crate) fn new(registry: &'a mut Registry, prefix: &'static str) -> Self {
        Self { registry: registry.sub_registry_with_prefix(prefix), prefix, described: Vec::new() }
    }

    pub(crate) fn register(&mut self, name: &'static str, help: &'static str, metric: impl Metric + Labelled) {
        self.describe(name, None, help, &metric);
        self.registry.register(name, help, metric);
    }

    pub(crate) fn register_with_unit(
        &mut self,
        name: &'static str,
        help: &'static str,
        unit: Unit,
        metric: impl Metric + Labelled,
    ) {
        self.describe(name, Some(&unit), help, &metric);
        self.registry.register_with_unit(name, help, unit, metric);
    }

    fn describe<M: EncodeMetric + Labelled>(
        &mut self,
        name: &str,
        unit: Option<&Unit>,
        help: &'static str,
        metric: &M,
    ) {
        let labels = metric.labels();
        self.described.push(Described::new((self.prefix, name), unit, metric.metric_type(), labels, help));
    }

    pub(crate) fn described(self) -> Vec<Described> {
        self.described
    }
}

/// What the labels of a metric are called.
pub(crate) trait Labelled {
    fn labels(&self) -> Vec<&'static str>;
}

/// What the labels of a family are called.
pub(crate) trait LabelNames {
    const NAMES: &'static [&'static str];
}

impl<L: LabelNames + EncodeLabelSet, M, C> Labelled for Family<L, M, C> {
    fn labels(&self) -> Vec<&'static str> {
        L::NAMES.to_vec()
    }
}

macro_rules! without_labels {
    ($($metric:ty),+) => {$(
        impl Labelled for $metric {
            fn labels(&self) -> Vec<&'static str> {
                Vec::new()
            }
        }
    )+};
}

without_labels!(Counter, Gauge, Histogram);

/// Names the labels of a family.
macro_rules! label_names {
    ($($set:ty: [$($name:literal),+];)+) => {$(
        impl $crate::metrics::described::LabelNames for $set {
            const NAMES: &'static [&'static str] = &[$($name),+];
        }
    )+};
}

pub(crate) use label_names;

impl<S: EncodeLabelSet> Labelled for prometheus_client::metrics::info::Info<S> {
    /// Those of the one `Info` there is.
    fn labels(&self) -> Vec<&'static str> {
        vec!["version", "commit"]
    }
}
