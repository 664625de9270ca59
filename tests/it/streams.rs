//! Open streams: complete state at once, then only changes.

use tether::proto::workload::{X509BundlesRequest, X509svidRequest};
use tonic::Code;

use crate::harness::{TestAgent, next, uid, within};

fn entry(id: &str, path: &str, more: &str) -> String {
    format!(
        "[[entry]]\nid = \"{id}\"\nspiffe_id = \"spiffe://dev.tether.internal/{path}\"\nmatch = [\"unix:uid:{}\"]\n{more}\n",
        uid()
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_tells_the_whole_state_at_once_and_then_each_change_of_entries() {
    let agent = TestAgent::start().await;
    let mut stream = agent.workload().await.fetch_x509svid(X509svidRequest {}).await.unwrap().into_inner();
    let first = next(&mut stream).await.unwrap();
    assert_eq!(first.svids.len(), 1);

    agent.write_entries("more.toml", &entry("more", "more", "")).await;
    let second = next(&mut stream).await.unwrap();
    let ids: Vec<_> = second.svids.iter().map(|svid| svid.spiffe_id.as_str()).collect();
    assert_eq!(ids[0], "spiffe://dev.tether.internal/more");
    assert_eq!(ids.len(), 2);
    assert_eq!(second.svids[1], first.svids[0], "an SVID that is still good is not replaced");

    agent.remove_entries("more.toml").await;
    assert_eq!(next(&mut stream).await.unwrap(), first);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edit_that_changes_nothing_for_a_process_is_not_sent_to_it() {
    let agent = TestAgent::start().await;
    let mut stream = agent.workload().await.fetch_x509svid(X509svidRequest {}).await.unwrap().into_inner();
    next(&mut stream).await.unwrap();
    let other =
        "[[entry]]\nid = \"other\"\nspiffe_id = \"spiffe://dev.tether.internal/other\"\nmatch = [\"unix:uid:4242\"]\n";
    agent.write_entries("other.toml", other).await;
    agent.write_entries("mine.toml", &entry("mine", "mine", "")).await;
    // Streams are ordered: had the first edit been sent, it would come before this.
    assert_eq!(next(&mut stream).await.unwrap().svids[0].spiffe_id, "spiffe://dev.tether.internal/mine");
}

#[tokio::test(flavor = "multi_thread")]
async fn losing_the_last_identity_ends_every_stream_with_permission_denied() {
    let agent = TestAgent::without_entries().await;
    agent
        .write_entries(
            "mine.toml",
            &format!(
                "[[entry]]\nid = \"mine\"\nspiffe_id = \"spiffe://dev.tether.internal/mine\"\nmatch = [\"unix:uid:{}\"]\nowner = \"team\"\n",
                uid()
            ),
        )
        .await;
    let mut client = agent.workload().await;
    let mut svids = client.fetch_x509svid(X509svidRequest {}).await.unwrap().into_inner();
    let mut bundles = client.fetch_x509_bundles(X509BundlesRequest {}).await.unwrap().into_inner();
    next(&mut svids).await.unwrap();
    next(&mut bundles).await.unwrap();
    agent.remove_entries("mine.toml").await;
    assert_eq!(next(&mut svids).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(next(&mut bundles).await.unwrap_err().code(), Code::PermissionDenied);
}

#[tokio::test(flavor = "multi_thread")]
async fn all_connections_of_one_process_get_the_same_svid() {
    let agent = TestAgent::start().await;
    let mut answers = Vec::new();
    let (mut one, mut other) = (agent.workload().await, agent.workload().await);
    for client in [&mut one, &mut other] {
        let mut stream = client.fetch_x509svid(X509svidRequest {}).await.unwrap().into_inner();
        answers.push(next(&mut stream).await.unwrap());
    }
    assert_eq!(answers[0], answers[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_ends_streams_with_unavailable_and_a_restart_serves_the_same_bundle() {
    let mut agent = TestAgent::start().await;
    let mut stream = agent.workload().await.fetch_x509svid(X509svidRequest {}).await.unwrap().into_inner();
    let before = next(&mut stream).await.unwrap();
    let told = tokio::spawn(async move { next(&mut stream).await });
    agent.restart().await;
    assert_eq!(within(told).await.unwrap().unwrap_err().code(), Code::Unavailable);
    let mut stream = agent.workload().await.fetch_x509svid(X509svidRequest {}).await.unwrap().into_inner();
    assert_eq!(next(&mut stream).await.unwrap().svids[0].bundle, before.svids[0].bundle);
}
