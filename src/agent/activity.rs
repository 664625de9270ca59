//! What goes on in the agent at this moment: for `tether status`, and as metrics that are read when somebody asks.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;

use super::AgentState;
use crate::authority::slot::State;
use crate::metrics::{Described, PREFIX};

/// How far ahead `tether status` looks for renewals.
const SOON: Duration = Duration::from_secs(5 * 60);
/// A renewal that is this late does not come by itself any more.
const OVERDUE: Duration = Duration::from_secs(30);

/// The part of the status document about what goes on.
pub(super) fn document(state: &AgentState) -> Map<String, Value> {
    let now = state.clock.now();
    let (metrics, renewals) = (&state.issuer.metrics, &state.issuer.metrics.renewals);
    let (credentials, _) = state.issuer.ledger.size();
    let overdue = renewals.until(now - OVERDUE);
    let document = json!({
        "connections": state.connections(),
        "connections_limit": state.connections_limit,
        "calls": state.calls(),
        "calls_limit": state.config().limits.calls,
        "streams": metrics.streams(),
        "renewals": {
            "within_seconds": SOON.as_secs(),
            "due": renewals.until(now + SOON) - overdue,
            "overdue": overdue,
        },
        "sessions": state.sessions.by_state(),
        "credentials": credentials,
        "held_keys": state.issuer.held.len(),
        "instances": state.instances.len(),
        "weak_instances": state.instances.weak(),
        "refusals": metrics.refusals(),
        "refused_connections": metrics.refused_connections(),
    });
    match document {
        Value::Object(document) => document,
        _ => Map::new(),
    }
}

/// A number that is read when somebody asks; with a label, one for each of its values.
struct Reading {
    name: &'static str,
    help: &'static str,
    unit: Option<Unit>,
    label: Option<&'static str>,
    read: fn(&AgentState) -> Values,
}

type Values = Vec<(String, i64)>;

const READINGS: &[Reading] = &[
    Reading {
        name: "ready",
        help: "Whether each part of the agent is ready",
        unit: None,
        label: Some("part"),
        read: |state| {
            let parts = state.readiness.parts();
            parts.into_iter().map(|(part, ready)| (part.to_owned(), i64::from(ready.is_ok()))).collect()
        },
    },
    Reading {
        name: "start_time",
        help: "When the agent started",
        unit: Some(Unit::Seconds),
        label: None,
        read: |state| one(state.started_at().unix_timestamp()),
    },
    Reading {
        name: "clock_time",
        help: "What time the agent believes it is",
        unit: Some(Unit::Seconds),
        label: None,
        read: |state| one(state.clock.now().unix_timestamp()),
    },
    Reading {
        name: "authority_not_before_timestamp",
        help: "From when each active authority is valid",
        unit: Some(Unit::Seconds),
        label: Some("kind"),
        read: |state| authorities(state).into_iter().map(|(kind, (not_before, _))| (kind, not_before)).collect(),
    },
    Reading {
        name: "authority_expiration_timestamp",
        help: "When each active authority ends",
        unit: Some(Unit::Seconds),
        label: Some("kind"),
        read: |state| authorities(state).into_iter().map(|(kind, (_, not_after))| (kind, not_after)).collect(),
    },
    Reading {
        name: "workload_connections_limit",
        help: "How many workload connections there may be",
        unit: None,
        label: None,
        read: |state| one(number(state.connections_limit)),
    },
    Reading {
        name: "workload_calls",
        help: "Open workload calls, streams among them",
        unit: None,
        label: None,
        read: |state| one(number(state.calls())),
    },
    Reading {
        name: "workload_calls_limit",
        help: "How many workload calls there may be",
        unit: None,
        label: None,
        read: |state| one(i64::from(state.config().limits.calls)),
    },
    Reading {
        name: "renewals_overdue",
        help: "Streams whose renewal is half a minute late or more",
        unit: None,
        label: None,
        read: |state| one(number(state.issuer.metrics.renewals.until(state.clock.now() - OVERDUE))),
    },
    Reading {
        name: "sessions",
        help: "Sessions that live or ended lately, by state",
        unit: None,
        label: Some("state"),
        read: |state| {
            let mut counts: BTreeMap<_, _> = ["active", "pending_approval", "suspended"].map(|name| (name, 0)).into();
            counts.extend(state.sessions.by_state());
            counts.into_iter().map(|(name, count)| (name.to_owned(), number(count))).collect()
        },
    },
    Reading {
        name: "credentials",
        help: "Credentials in the ledger: those that have not expired",
        unit: None,
        label: None,
        read: |state| one(number(state.issuer.ledger.size().0)),
    },
    Reading {
        name: "held_keys",
        help: "Keys that tether holds for workloads",
        unit: None,
        label: None,
        read: |state| one(number(state.issuer.held.len())),
    },
    Reading {
        name: "instances",
        help: "Processes that somebody asks for or holds something for",
        unit: None,
        label: None,
        read: |state| one(number(state.instances.len())),
    },
    Reading {
        name: "weak_instances",
        help: "Those of them that are known by weaker means",
        unit: None,
        label: None,
        read: |state| one(number(state.instances.weak())),
    },
    Reading {
        name: "weaknesses",
        help: "What is weaker on this host than it should be: tether status says what",
        unit: None,
        label: None,
        read: |state| one(number(state.weaker_for().len())),
    },
];

/// What is measured so, as the reference lists it.
pub(super) fn described() -> Vec<Described> {
    let described = |reading: &Reading| {
        let labels = reading.label.into_iter().collect();
        Described::new((PREFIX, reading.name), reading.unit.as_ref(), MetricType::Gauge, labels, reading.help)
    };
    READINGS.iter().map(described).collect()
}

/// Adds these metrics to those of the agent.
pub(super) fn register(registry: &mut Registry, state: Arc<AgentState>) {
    registry.sub_registry_with_prefix(PREFIX).register_collector(Box::new(Readings(state)));
}

struct Readings(Arc<AgentState>);

impl fmt::Debug for Readings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Readings")
    }
}

impl Collector for Readings {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for reading in READINGS {
            let mut metric =
                encoder.encode_descriptor(reading.name, reading.help, reading.unit.as_ref(), MetricType::Gauge)?;
            for (value, count) in (reading.read)(&self.0) {
                match reading.label {
                    Some(label) => ConstGauge::new(count).encode(metric.encode_family(&[(label, value)])?)?,
                    None => ConstGauge::new(count).encode(metric.encode_family(&NO_LABELS)?)?,
                }
            }
        }
        Ok(())
    }
}

const NO_LABELS: [(&str, &str); 0] = [];

fn one(value: i64) -> Values {
    vec![(String::new(), value)]
}

fn number(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// Of each kind of authority, from when to when the active one is valid; of several that which ends last.
fn authorities(state: &AgentState) -> BTreeMap<String, (i64, i64)> {
    let trust = state.trust().current();
    let mut ends: BTreeMap<String, (OffsetDateTime, OffsetDateTime)> = BTreeMap::new();
    for slot in trust.signers().slots().iter().filter(|slot| slot.state == State::Active) {
        let end = ends.entry(slot.kind.as_str().to_owned()).or_insert((slot.not_before, slot.not_after));
        if slot.not_after > end.1 {
            *end = (slot.not_before, slot.not_after);
        }
    }
    if let Some(disk) = trust.signers().disk() {
        ends.insert("x509-disk".to_owned(), (disk.not_before, disk.not_after));
    }
    let seconds = |(kind, (from, to)): (String, (OffsetDateTime, OffsetDateTime))| {
        (kind, (from.unix_timestamp(), to.unix_timestamp()))
    };
    ends.into_iter().map(seconds).collect()
}
