//! What goes on in the agent, as `tether status` and `/metrics` say it.

use std::time::Duration;

use serde_json::{Value, json};
use tether::proto::admin::StatusRequest;
use tether::proto::workload::X509svidRequest;

use crate::harness::{TestAgent, next};
use crate::raw::get;

async fn status(agent: &TestAgent) -> Value {
    let json = agent.agent().await.status(StatusRequest {}).await.unwrap().into_inner().json;
    serde_json::from_str(&json).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn open_streams_and_when_they_are_renewed_are_counted() {
    let agent = TestAgent::start().await;
    let before = status(&agent).await;
    assert_eq!((&before["streams"], &before["renewals"]["due"]), (&json!({}), &json!(0)));

    let mut workload = agent.workload().await;
    let mut stream = workload.fetch_x509svid(X509svidRequest {}).await.unwrap().into_inner();
    next(&mut stream).await.unwrap();
    let open = status(&agent).await;
    assert_eq!(open["streams"], json!({ "FetchX509SVID": 1 }));
    assert_eq!((&open["renewals"]["due"], &open["renewals"]["overdue"]), (&json!(0), &json!(0)), "half of 15 minutes");
    assert!(open["credentials"].as_u64().unwrap() >= 1 && open["connections"].as_u64().unwrap() >= 1, "{open}");

    agent.clock().advance(Duration::from_secs(4 * 60));
    assert_eq!(status(&agent).await["renewals"]["due"], 1);

    drop(stream);
    // The end of a stream is seen by the server when it is.
    while status(&agent).await["streams"] != json!({}) {
        tokio::task::yield_now().await;
    }
    assert_eq!(status(&agent).await["renewals"]["due"], 0, "nobody waits for it any more");
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_counted_by_their_reason() {
    let agent = TestAgent::without_entries().await;
    for _ in 0..2 {
        let mut stream = agent.workload().await.fetch_x509svid(X509svidRequest {}).await.unwrap().into_inner();
        next(&mut stream).await.unwrap_err();
    }
    assert_eq!(status(&agent).await["refusals"], json!({ "no_identity": 2 }));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_that_is_shown_is_described_as_what_it_is() {
    let agent = TestAgent::configured(|config| config.http.address = Some("127.0.0.1:0".parse().unwrap())).await;
    let mut stream = agent.workload().await.fetch_x509svid(X509svidRequest {}).await.unwrap().into_inner();
    next(&mut stream).await.unwrap();
    let (code, text) = get(agent.http(), "/metrics").await;
    assert_eq!(code, 200);
    let described = tether::agent::metrics();
    let mut shown = Vec::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').unwrap();
        let end = match kind {
            "counter" => "_total",
            "info" => "_info",
            _ => "",
        };
        let name = format!("{name}{end}");
        let found = described.iter().find(|described| described.name == name);
        assert_eq!(found.map(|described| described.kind), Some(kind), "{name}");
        shown.push(name);
    }
    // Families without a value are not shown; what is read when somebody asks always is.
    for name in ["tether_ready", "tether_start_time_seconds", "tether_workload_calls_limit", "tether_renewals_overdue"]
    {
        assert!(shown.iter().any(|shown| shown == name), "{name}\n{text}");
    }
    assert!(text.contains("tether_ready{part=\"audit\"} 1\n"), "{text}");
    assert!(text.contains("tether_authority_expiration_timestamp_seconds{kind=\"x509-signing\"}"), "{text}");
}
