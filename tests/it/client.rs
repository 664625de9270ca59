//! The library's clients for agents and tools, against a real agent.

use std::convert::Infallible;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use tether::client::Endpoint;
use tether::client::session::{Call, Digest, NewSession, SessionClient, SessionError, State};
use tether::client::tls::{Custody, PeerCertificates, X509Source};
use tether::client::verifier::{
    Check, CheckError, Class, Described, PublicBase, Verified, VerifierClient, VerifyLayer,
};
use tower::{Layer, ServiceExt};

use crate::harness::{TestAgent, within};

const TOOL: &str = "https://tool.example.com";
const PUBLISH: &str = r#"
@id("publishing") @step_up("everybody will see it")
permit (principal, action in Action::"call", resource) when { context.tool == "publish" };
"#;

/// An agent that has been up for a while, and wants a person's word before `publish` is called.
async fn agent() -> TestAgent {
    let agent = TestAgent::configured(|config| {
        // As the agent makes it: a directory that is open to others is refused.
        DirBuilder::new().recursive(true).mode(0o700).create(&config.policies_dir).unwrap();
        std::fs::write(config.policies_dir.join("publish.cedar"), PUBLISH).unwrap();
    });
    let agent = agent.await;
    agent.clock().advance(Duration::from_secs(2));
    agent
}

fn clients(agent: &TestAgent) -> (SessionClient, VerifierClient) {
    let endpoint = Endpoint::Unix(agent.socket().to_owned());
    (SessionClient::new(endpoint.clone()), VerifierClient::new(endpoint))
}

/// A call of the tool with this name, by its path.
fn call(tool: &str) -> Call {
    let body = Some(Digest::of(b"hello"));
    Call { tool: tool.to_owned(), body, ..Call::new("POST", format!("{TOOL}/{tool}")) }
}

/// Sends `hello` to a tool behind the layer, which says for what purpose it was called.
async fn send(verifier: &VerifierClient, path: &str, headers: &HeaderMap) -> (StatusCode, String) {
    let layer =
        VerifyLayer::new(verifier.clone(), PublicBase::parse(TOOL).unwrap()).cover_body(64).describe(|request| {
            let tool = request.uri.path().trim_start_matches('/').to_owned();
            Described { tool, ..Described::default() }
        });
    let tool = layer.layer(tower::service_fn(async |request: Request<_>| {
        let purpose = request.extensions().get::<Verified>().unwrap().purpose.clone().unwrap();
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::from(purpose)))
    }));
    let mut request = Request::builder().method(Method::POST).uri(path).body(Full::<Bytes>::from("hello")).unwrap();
    request.headers_mut().extend(headers.clone());
    let (parts, body) = within(tool.oneshot(request)).await.unwrap().into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    (parts.status, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_agent_proves_a_tool_serves_once_and_not_after_the_end() {
    let agent = agent().await;
    let (sessions, verifier) = clients(&agent);
    let session = sessions.start(&NewSession::new("notes/tidy", format!("{TOOL}/"))).await.unwrap();
    assert_eq!(session.state, State::Active);

    let proof = sessions.prove(None, &call("read")).await.unwrap();
    assert_eq!(proof.session.as_ref(), Some(&session.id), "the one this process is in");
    let unproven = (StatusCode::UNAUTHORIZED, r#"{"error":"unproven"}"#.to_owned());
    let forbidden = (StatusCode::FORBIDDEN, r#"{"error":"forbidden"}"#.to_owned());
    assert_eq!(send(&verifier, "/delete", &proof.headers).await, unproven, "of another URI");
    assert_eq!(send(&verifier, "/read", &proof.headers).await, (StatusCode::OK, "notes/tidy".to_owned()));
    assert_eq!(send(&verifier, "/read", &proof.headers).await, unproven, "again");
    let said = Call { tool: "read".to_owned(), ..call("delete") };
    let said = sessions.prove(None, &said).await.unwrap();
    assert_eq!(send(&verifier, "/delete", &said.headers).await, forbidden, "the tool is another than the agent said");

    let unused = sessions.prove(None, &call("read")).await.unwrap();
    let receipt = sessions.end(Some(&session.id)).await.unwrap();
    assert_eq!((receipt.reason.as_str(), receipt.keys_wiped), ("completed", 1));
    assert_eq!(send(&verifier, "/read", &unused.headers).await, unproven, "never used, and over");
    let after = sessions.prove(Some(&session.id), &call("read")).await.unwrap_err();
    assert!(matches!(&after, SessionError::Ended { reason, .. } if reason == "completed"), "{after}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_waits_for_a_person_says_for_which_approval_and_the_same_again() {
    let agent = agent().await;
    let (sessions, _) = clients(&agent);
    sessions.start(&NewSession::new("notes/tidy", format!("{TOOL}/"))).await.unwrap();
    let waits = async || match sessions.prove(None, &call("publish")).await {
        Err(SessionError::WaitingForApproval { approval, .. }) => approval,
        other => panic!("it waits: {other:?}"),
    };
    assert_eq!(waits().await, waits().await, "one question, one approval");
    assert!(sessions.prove(None, &call("read")).await.is_ok(), "and nothing else waits");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_in_no_session_proves_nothing_by_the_session_client() {
    let agent = agent().await;
    let (sessions, _) = clients(&agent);
    let outside = sessions.prove(None, &call("read")).await.unwrap_err();
    assert!(matches!(outside, SessionError::NotFound(_)), "{outside}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_tls_has_proven_is_served_without_a_proof_as_far_as_policy_goes_and_its_certificate() {
    let agent = agent().await;
    let (_, verifier) = clients(&agent);
    let endpoint = Endpoint::Unix(agent.socket().to_owned());
    let source = within(X509Source::connect_by(endpoint, Custody::Tether, agent.time())).await.unwrap();
    let state = source.state();
    let identity = &state.identities()[0];
    let peer = PeerCertificates::proven(identity.chain().certificates().iter().map(|it| it.der().clone()));
    let mut check = Check::from_peer(&Method::POST, format!("{TOOL}/read"), &HeaderMap::new(), &peer).unwrap();
    assert!(!check.has_proof());
    let refused = async |check: &Check| match verifier.check(check).await {
        Err(CheckError::Refused(refused)) => (refused.class, refused.reason),
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(&check).await, (Class::Forbidden, "no_session".to_owned()));

    check.require_session = false;
    let verified = verifier.check(&check).await.unwrap();
    assert_eq!((&verified.spiffe_id, verified.proven, verified.session), (identity.id(), false, None));
    assert_eq!((verified.binding, verified.expires_at), (3, identity.not_after()));

    let forbid = r#"forbid (principal, action == Action::"reach", resource) unless { context.proof };"#;
    agent.write_policies("proof.cedar", forbid).await;
    assert_eq!(refused(&check).await, (Class::Forbidden, "policy".to_owned()));
    agent.remove_policies("proof.cedar").await;
    agent.clock().advance(Duration::from_secs(16 * 60));
    assert_eq!(refused(&check).await, (Class::Unproven, "peer_expired".to_owned()));
}
