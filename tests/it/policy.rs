//! Policies in a directory: what is saved there is in force at once, for what stands and what is asked; what has a
//! mistake changes nothing.

use tether::api::admin::StatusSource as _;
use tether::audit::Event;
use tether::proto::DENIAL_METADATA;
use tether::proto::admin::{ExplainPolicyRequest, ReloadRequest, ShowPoliciesRequest};
use tether::proto::session::{EndRequest, GetRequest, ProveRequest, StartRequest, State};
use tether::proto::workload::{JwtsvidRequest, X509svidRequest};
use tonic::{Code, Status};

use crate::harness::{TestAgent, event, next, within};

const NO_X509: &str = r#"@id("no-x509") forbid(principal, action == Action::"issue", resource == Credential::"x509");"#;
const NO_MAIL: &str = r#"
@id("no-mail")
forbid(principal, action in Action::"call", resource in Host::"mail.example.com");
"#;
const BROKEN: &str = "permit(principal, action, resource)\n";

fn label(status: &Status) -> &str {
    status.metadata().get(DENIAL_METADATA).map(|label| label.to_str().unwrap()).unwrap_or_default()
}

/// Waits until the part of readiness is so.
async fn is_ready(agent: &TestAgent, ready: bool) {
    within(async {
        while agent.state().status()["parts"]["policies"]["ready"] != ready {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forbid_that_is_saved_ends_an_open_stream_and_puts_its_certificate_on_the_list() {
    let agent = TestAgent::start().await;
    let mut workload = agent.workload().await;
    let mut stream = workload.fetch_x509svid(X509svidRequest {}).await.unwrap().into_inner();
    next(&mut stream).await.unwrap();
    assert_eq!(agent.state().crls().current().await.revoked(), 0);
    let mut events = agent.audit();
    agent.write_policies("narrow.cedar", NO_X509).await;
    let refused = next(&mut stream).await.unwrap_err();
    assert_eq!((refused.code(), label(&refused)), (Code::PermissionDenied, "policy_denied"), "{refused:?}");
    assert!(refused.message().contains("policy `no-x509` forbids `issue`"), "{refused:?}");
    let ended = event(&mut events, |event| matches!(event, Event::CredentialsEnded { .. })).await;
    let Event::CredentialsEnded { reason, count, .. } = ended else { panic!("{ended:?}") };
    assert_eq!((reason, count), ("policy_denied", 1));
    within(async {
        while agent.state().crls().current().await.revoked() == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    // Nothing else is forbidden, and what is removed from the directory no longer is.
    let request = JwtsvidRequest { audience: vec!["a".to_owned()], spiffe_id: String::new() };
    workload.fetch_jwtsvid(request).await.unwrap();
    agent.remove_policies("narrow.cedar").await;
    let mut stream = workload.fetch_x509svid(X509svidRequest {}).await.unwrap().into_inner();
    next(&mut stream).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_file_leaves_what_was_in_force_and_everybody_is_told() {
    let agent = TestAgent::start().await;
    agent.write_policies("a.cedar", NO_X509).await;
    let before = agent.state().policies().set();
    let mut events = agent.audit();
    agent.write_policies("b.cedar", BROKEN).await;
    let refused = event(&mut events, |event| matches!(event, Event::PolicyRefused { .. })).await;
    let Event::PolicyRefused { mistakes } = refused else { panic!("{refused:?}") };
    assert!(mistakes.len() == 1 && mistakes[0].contains("b.cedar:"), "{mistakes:?}");
    is_ready(&agent, false).await;
    assert_eq!(agent.state().policies().set().digest(), before.digest());
    let mut stream = agent.workload().await.fetch_x509svid(X509svidRequest {}).await.unwrap().into_inner();
    assert_eq!(next(&mut stream).await.unwrap_err().code(), Code::PermissionDenied);
    let sources = agent.agent().await.reload(ReloadRequest {}).await.unwrap().into_inner().sources;
    let policies = sources.iter().find(|source| source.source == "policies").unwrap();
    assert!(!policies.ok && policies.messages.join("\n").contains("b.cedar:"), "{policies:?}");
    agent.remove_policies("b.cedar").await;
    is_ready(&agent, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_judged_by_the_policies_of_its_moment() {
    let agent = TestAgent::start().await;
    let mut sessions = agent.sessions().await;
    let targets = vec!["https://mail.example.com/".to_owned(), "https://files.example.com/".to_owned()];
    let request = StartRequest { purpose: "mail".to_owned(), targets, ..StartRequest::default() };
    let session = sessions.start(request).await.unwrap().into_inner().id;
    let call = |uri: &str| ProveRequest {
        session: session.clone(),
        method: "GET".to_owned(),
        uri: uri.to_owned(),
        ..ProveRequest::default()
    };
    sessions.prove(call("https://mail.example.com/inbox")).await.unwrap();
    agent.write_policies("a.cedar", NO_MAIL).await;
    let refused = sessions.prove(call("https://mail.example.com/inbox")).await.unwrap_err();
    assert_eq!(label(&refused), "policy_denied", "{refused:?}");
    sessions.prove(call("https://files.example.com/a")).await.unwrap();
    // Who may not begin any more has ended.
    agent.write_policies("a.cedar", "forbid(principal, action == Action::\"start\", resource);").await;
    within(async {
        loop {
            let seen =
                sessions.get(GetRequest { session: session.clone(), ..Default::default() }).await.unwrap().into_inner();
            if seen.state() == State::Ended {
                assert_eq!(seen.end_reason, "policy_denied");
                break;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    sessions.end(EndRequest { session }).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_may_look_is_shown_the_policies_and_why_they_say_what_they_say() {
    let agent = TestAgent::start().await;
    agent.write_policies("a.cedar", NO_MAIL).await;
    let mut policies = agent.policies().await;
    let shown = policies.show(ShowPoliciesRequest {}).await.unwrap().into_inner();
    assert_eq!(shown.digest, agent.state().policies().set().digest());
    let named: Vec<_> = shown.policies.iter().map(|policy| (policy.id.as_str(), policy.origin.as_str())).collect();
    let place = format!("{}:2", agent.config().policies_dir.join("a.cedar").display());
    assert_eq!(named, [("00-issue", "built-in"), ("dev", "built-in"), ("no-mail", &*place)]);
    let case = r#"
        [[case]]
        agent = "spiffe://dev.tether.internal/user/a"
        action = "call"
        session = { purpose = "mail" }
        tool = { uri = "https://mail.example.com/inbox", method = "GET" }
    "#;
    let ask = |case: &str| ExplainPolicyRequest { case: case.to_owned() };
    let json = policies.explain(ask(case)).await.unwrap().into_inner().json;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["decision"], &json["why"]), (&"deny".into(), &"forbidden by `no-mail`".into()));
    for wrong in ["", "[[case]]\nagent = 1", &case.repeat(2)] {
        assert_eq!(policies.explain(ask(wrong)).await.unwrap_err().code(), Code::InvalidArgument);
    }
    let huge = "#".repeat(100_000);
    assert_eq!(policies.explain(ask(&huge)).await.unwrap_err().code(), Code::OutOfRange);
}
