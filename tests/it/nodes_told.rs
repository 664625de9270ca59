//! What nodes of one trust domain tell each other without being asked: what they revoke, and which sessions end.

use std::time::Duration;

use tether::proto::admin::session_admin_client::SessionAdminClient;
use tether::proto::admin::{ResumeSessionRequest, StatusRequest, SuspendSessionRequest};
use tether::proto::session::{EndRequest, State, StatusChange, WatchCheckedRequest};
use tether::proto::workload::{X509BundlesRequest, X509BundlesResponse};
use tether::verify::{Heard, HeardNodes};
use tether::x509::{Crl, X509Error, verify};
use tonic::Streaming;

use crate::handshake::client_config;
use crate::harness::{TestAgent, channel, next, within};
use crate::http::ask_tls;
use crate::nodes::{TOOL, Two, free_address, named, node, prove};
use crate::revocation::{Victim, victims};
use crate::sessions::task;

const SECOND: Duration = Duration::from_secs(1);

/// Waits until what `agent` knows of all other nodes is as wanted.
async fn until(agent: &TestAgent, wanted: impl Fn(&Heard) -> bool) -> HeardNodes {
    let mut heard = agent.state().heard_nodes();
    within(heard.wait_for(|heard| heard.values().all(&wanted))).await.unwrap().clone()
}

async fn heard(agent: &TestAgent) {
    until(agent, |node| node.silent.is_none()).await;
}

async fn start() -> Two {
    let two = Two::start().await;
    heard(&two.asking).await;
    heard(&two.issuing).await;
    two
}

async fn watch(agent: &TestAgent) -> Streaming<StatusChange> {
    agent.verifier().await.watch(WatchCheckedRequest {}).await.unwrap().into_inner()
}

async fn bundles(agent: &TestAgent) -> Streaming<X509BundlesResponse> {
    agent.workload().await.fetch_x509_bundles(X509BundlesRequest {}).await.unwrap().into_inner()
}

fn believed(two: &Two, victim: &Victim, lists: &[Vec<u8>]) -> Result<(), X509Error> {
    let lists: Vec<Crl> = lists.iter().map(|der| Crl::from_der(der).unwrap()).collect();
    let trust = two.asking.state().trust().current();
    verify(&victim.chain(), trust.own().x509(), two.asking.clock().now(), &lists).map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_node_revokes_is_on_the_lists_of_another_and_refused_there() {
    let two = start().await;
    victims(&two.issuing).await;
    let mut victim = Victim::of(&two.issuing).await;
    let thief = client_config(&victim.stolen());
    let keys = "GET /keys HTTP/1.1\r\nHost: agent\r\n\r\n";
    assert_eq!(ask_tls(two.asking.https(), &thief, keys).await.unwrap().status, 200);
    let mut stream = bundles(&two.asking).await;
    let lists: Vec<Vec<u8>> = next(&mut stream).await.unwrap().crl.iter().map(|der| der.to_vec()).collect();
    believed(&two, &victim, &lists).unwrap();

    victim.die(&two.issuing).await;
    let lists = within(async {
        loop {
            // Each announces at most once a second.
            two.issuing.clock().advance(SECOND);
            two.asking.clock().advance(SECOND);
            let Ok(message) = tokio::time::timeout(SECOND, next(&mut stream)).await else { continue };
            let lists: Vec<Vec<u8>> = message.unwrap().crl.iter().map(|der| der.to_vec()).collect();
            if lists.iter().any(|der| Crl::from_der(der).unwrap().revokes(&victim.serial())) {
                return lists;
            }
        }
    })
    .await;
    assert!(matches!(believed(&two, &victim, &lists), Err(X509Error::Revoked)));
    let refused =
        tokio::spawn(async move { ask_tls(two.asking.https(), &thief, keys).await.map(|answer| answer.status) });
    assert!(!refused.await.is_ok_and(|answer| answer.is_ok()), "and at the agent's own listener");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_checked_a_session_of_another_node_hears_of_its_end_and_it_is_refused_from_then_on() {
    let two = start().await;
    let (mut sessions, session) = two.session(task("billing", &[TOOL])).await;
    let (mut others, other) = two.session(task("other", &[TOOL])).await;
    let (first, second) = (prove(&mut sessions, &session).await, prove(&mut sessions, &session).await);
    assert!(two.check(&first).await.active);
    let mut changes = watch(&two.asking).await;
    others.end(EndRequest { session: other.id }).await.unwrap();
    sessions.end(EndRequest { session: session.id.clone() }).await.unwrap();
    let change = next(&mut changes).await.unwrap();
    assert_eq!(change.end_reason, "completed");
    assert_eq!((change.state(), change.session), (State::Ended, session.id), "of what was checked, and nothing else");
    assert_eq!(two.check(&second).await.reason, "session_ended");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_is_suspended_at_its_node_is_refused_at_another_until_it_is_resumed() {
    let two = start().await;
    let (mut sessions, session) = two.session(task("billing", &[TOOL])).await;
    let (first, second) = (prove(&mut sessions, &session).await, prove(&mut sessions, &session).await);
    assert!(two.check(&first).await.active);
    let mut changes = watch(&two.asking).await;
    let mut admin = SessionAdminClient::new(channel(two.issuing.admin_socket()).await);
    admin.suspend(SuspendSessionRequest { session: session.id.clone() }).await.unwrap();
    assert_eq!(next(&mut changes).await.unwrap().state(), State::Suspended);
    assert_eq!(two.check(&second).await.reason, "session_suspended");
    admin.resume(ResumeSessionRequest { session: session.id.clone() }).await.unwrap();
    assert_eq!(next(&mut changes).await.unwrap().state(), State::Active);
    let answer = two.check(&prove(&mut sessions, &session).await).await;
    assert!(answer.active, "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_that_nobody_could_tell_is_told_when_the_node_is_heard_again() {
    let mut two = start().await;
    let (mut sessions, session) = two.session(task("billing", &[TOOL])).await;
    assert!(two.check(&prove(&mut sessions, &session).await).await.active);
    let mut changes = watch(&two.asking).await;
    drop(sessions);
    two.issuing.stop().await;
    until(&two.asking, |node| node.silent.is_some()).await;
    // Its keys went with the process.
    two.issuing.restart().await;
    let change = next(&mut changes).await.unwrap();
    assert_eq!((change.state(), change.session), (State::Ended, session.id));
    heard(&two.asking).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_node_is_reported_with_since_when_and_its_lists_stay() {
    let mut two = start().await;
    let node_id = two.issuing.state().node().to_owned();
    two.issuing.stop().await;
    until(&two.asking, |node| node.silent.is_some()).await;
    let status = two.asking.agent().await.status(StatusRequest {}).await.unwrap().into_inner().json;
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert_eq!((&status["nodes"][0]["node"], &status["nodes"][0]["heard"]), (&node_id.into(), &false.into()));
    assert_eq!(status["crl"]["of_other_nodes"], 1);
    let weaker = status["weaker"].to_string();
    assert!(weaker.contains("is silent since"), "{weaker}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_not_configured_and_a_workload_are_told_nothing() {
    let two = start().await;
    let knows = named(two.issuing.state().node(), two.issuing.https());
    let third = node(two.root.path(), free_address(), |config| config.sessions.nodes = knows).await;
    let refused = until(&third, |node| node.silent.as_ref().is_some_and(|why| why.contains("sessions.nodes"))).await;
    assert_eq!(refused.len(), 1);

    victims(&two.issuing).await;
    let workload = client_config(&Victim::of(&two.issuing).await.stolen());
    let question = "POST /changes HTTP/1.1\r\nHost: agent\r\nContent-Length: 15\r\n\r\n{\"sessions\":[]}";
    let answer = ask_tls(two.issuing.https(), &workload, question).await.unwrap();
    assert_eq!(answer.status, 403, "{answer:?}");
    let rows = [("GET /changes HTTP/1.1\r\nHost: a\r\n\r\n", 405), ("POST /changes HTTP/1.1\r\nHost: a\r\n\r\n", 400)];
    for (question, status) in rows {
        assert_eq!(ask_tls(two.issuing.https(), &workload, question).await.unwrap().status, status);
    }
}
