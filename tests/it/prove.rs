//! Proofs made by the agent and checked by it, for a tool.

use std::collections::HashMap;
use std::time::Duration;

use tether::audit::Event;
use tether::jwt::Jws;
use tether::proof::{Expected, Method, TargetUri, check_dpop};
use tether::proto::admin::credentials_client::CredentialsClient;
use tether::proto::admin::{CredentialFilter, RevokeCredentialsRequest};
use tether::proto::session::prove_request::Scheme;
use tether::proto::session::{CheckRequest, CheckResponse, HoldWitRequest, ProveRequest};
use tether::proto::workload::JwtsvidRequest;
use tonic::{Code, Status};

use crate::another::Another;
use crate::harness::{Sessions, TestAgent, Verifier, channel, event, uid};
use crate::program::{NOBODY, is_root};

const URI: &str = "https://tool.example.com/charge";

/// An agent that has been up for a while: proofs from before its start are refused.
async fn agent() -> TestAgent {
    let agent = TestAgent::start().await;
    agent.clock().advance(Duration::from_secs(2));
    agent
}

async fn prove(sessions: &mut Sessions, method: &str, uri: &str) -> HashMap<String, String> {
    let request = ProveRequest { method: method.to_owned(), uri: uri.to_owned(), ..ProveRequest::default() };
    sessions.prove(request).await.unwrap().into_inner().headers
}

async fn check(
    verifier: &mut Verifier,
    method: &str,
    uri: &str,
    headers: &HashMap<String, String>,
) -> Result<CheckResponse, Status> {
    let (method, uri, headers) = (method.to_owned(), uri.to_owned(), headers.clone());
    let request = CheckRequest { method, uri, headers, ..CheckRequest::default() };
    verifier.check(request).await.map(tonic::Response::into_inner)
}

/// Why a request is refused.
async fn reason(verifier: &mut Verifier, method: &str, uri: &str, headers: &HashMap<String, String>) -> String {
    let response = check(verifier, method, uri, headers).await.unwrap();
    assert!(!response.active && response.spiffe_id.is_empty() && response.key_thumbprint.is_empty(), "{response:?}");
    response.reason
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proof_says_who_sent_the_one_request_it_is_for_and_once() {
    let agent = agent().await;
    let (mut sessions, mut verifier) = (agent.sessions().await, agent.verifier().await);
    let headers = prove(&mut sessions, "POST", "https://tool.example.com/charge?amount=1").await;
    assert_eq!(headers.len(), 2);
    let answer = check(&mut verifier, "POST", URI, &headers).await.unwrap();
    assert!(answer.active && answer.reason.is_empty(), "{answer:?}");
    assert!(answer.spiffe_id.starts_with("spiffe://dev.tether.internal/user/"), "{answer:?}");
    assert_eq!(answer.binding, 3);
    assert_eq!(answer.key_thumbprint.len(), 43);

    let mut audit = agent.audit();
    assert_eq!(reason(&mut verifier, "POST", URI, &headers).await, "replayed");
    let named = event(&mut audit, |event| matches!(event, Event::ProofRefused { .. })).await;
    assert!(matches!(named, Event::ProofRefused { reason: "replayed", .. }), "{named:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proof_for_another_request_is_refused_with_the_reason() {
    let agent = agent().await;
    let (mut sessions, mut verifier) = (agent.sessions().await, agent.verifier().await);
    let headers = prove(&mut sessions, "POST", URI).await;
    assert_eq!(reason(&mut verifier, "GET", URI, &headers).await, "another_method");
    assert_eq!(reason(&mut verifier, "POST", "https://tool.example.com/refund", &headers).await, "another_uri");
    assert_eq!(reason(&mut verifier, "POST", "https://other.example.com/charge", &headers).await, "another_uri");
    let with_body = CheckRequest {
        method: "POST".to_owned(),
        uri: URI.to_owned(),
        headers: headers.clone(),
        body_sha256: vec![7; 32].into(),
        ..CheckRequest::default()
    };
    assert_eq!(verifier.check(with_body).await.unwrap().into_inner().reason, "another_body");
    agent.clock().advance(Duration::from_secs(41));
    assert_eq!(reason(&mut verifier, "POST", URI, &headers).await, "proof_expired");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proof_covers_the_body_where_both_sides_say_so() {
    let agent = agent().await;
    let (mut sessions, mut verifier) = (agent.sessions().await, agent.verifier().await);
    let mut request = ProveRequest { method: "POST".to_owned(), uri: URI.to_owned(), ..ProveRequest::default() };
    request.body_sha256 = vec![7; 32].into();
    let headers = sessions.prove(request.clone()).await.unwrap().into_inner().headers;
    let checked = CheckRequest {
        method: "POST".to_owned(),
        uri: URI.to_owned(),
        headers,
        body_sha256: request.body_sha256.clone(),
        ..CheckRequest::default()
    };
    assert!(verifier.check(checked).await.unwrap().into_inner().active);
    request.body_sha256 = vec![7; 31].into();
    assert_eq!(sessions.prove(request).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wit_without_a_proof_is_nobodys_and_so_is_any_other_token() {
    let agent = agent().await;
    let (mut sessions, mut verifier) = (agent.sessions().await, agent.verifier().await);
    let headers = prove(&mut sessions, "POST", URI).await;
    let wit = headers["Workload-Identity-Token"].clone();
    let (proof, other) = (headers["Authorization"].clone(), prove(&mut sessions, "POST", URI).await);
    let request = JwtsvidRequest { audience: vec![URI.to_owned()], ..JwtsvidRequest::default() };
    let jwt = agent.workload().await.fetch_jwtsvid(request).await.unwrap().into_inner().svids.remove(0).svid;
    let with = |pairs: &[(&str, &str)]| -> HashMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    };
    let rows = [
        ("nothing", with(&[]), "no_proof"),
        ("a WIT alone", with(&[("Workload-Identity-Token", &wit)]), "no_proof"),
        ("a proof alone", with(&[("Authorization", &proof)]), "no_proof"),
        ("a WIT as bearer", with(&[("Authorization", &format!("Bearer {wit}"))]), "no_proof"),
        (
            "a WIT in both places",
            with(&[("Workload-Identity-Token", &wit), ("Authorization", &format!("WPT {wit}"))]),
            "proof_invalid",
        ),
        ("a JWT-SVID for a WIT", with(&[("Workload-Identity-Token", &jwt), ("Authorization", &proof)]), "wit_invalid"),
        (
            "two proofs",
            with(&[
                ("Workload-Identity-Token", &wit),
                ("Authorization", &proof),
                ("authorization", &other["Authorization"]),
            ]),
            "no_proof",
        ),
        (
            "two proofs in one line",
            with(&[
                ("Workload-Identity-Token", &wit),
                ("Authorization", &format!("{proof}, {}", other["Authorization"])),
            ]),
            "proof_invalid",
        ),
        (
            "a transaction token that the proof does not cover",
            with(&[("Workload-Identity-Token", &wit), ("Authorization", &proof), ("Txn-Token", "x")]),
            "proof_of_another_token",
        ),
    ];
    for (what, headers, expected) in rows {
        assert_eq!(reason(&mut verifier, "POST", URI, &headers).await, expected, "{what}");
    }
    let in_lower_case = with(&[("workload-identity-token", &wit), ("authorization", &proof.replace("WPT", "wpt"))]);
    assert!(check(&mut verifier, "POST", URI, &in_lower_case).await.unwrap().active);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_who_serves_a_uri_may_ask_about_it() {
    let agent = TestAgent::without_entries().await;
    agent.clock().advance(Duration::from_secs(2));
    let entry = format!(
        "[[entry]]\nid = \"tool\"\nspiffe_id = \"spiffe://dev.tether.internal/tool\"\nmatch = [\"unix:uid:{}\"]\nowner = \"team\"\nserves = [\"https://tool.example.com/charge\"]\n",
        uid()
    );
    agent.write_entries("tool.toml", &entry).await;
    let (mut sessions, mut verifier) = (agent.sessions().await, agent.verifier().await);
    for served in [URI, "https://tool.example.com/charge/now"] {
        let headers = prove(&mut sessions, "POST", served).await;
        assert!(check(&mut verifier, "POST", served, &headers).await.unwrap().active, "{served}");
    }
    for other in
        ["https://tool.example.com/", "https://tool.example.com/chargeback", "https://other.example.com/charge"]
    {
        let headers = prove(&mut sessions, "POST", other).await;
        let refused = check(&mut verifier, "POST", other, &headers).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{other}");
        assert!(refused.message().contains("serves"), "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proof_of_a_process_that_has_ended_is_refused() {
    let agent = agent().await;
    let mut verifier = agent.verifier().await;
    let mut another = Another::start(agent.socket());
    let headers = |another: &mut Another| -> HashMap<String, String> {
        serde_json::from_str(&another.ask(&format!("prove - POST {URI}"))).unwrap()
    };
    let first = headers(&mut another);
    assert!(check(&mut verifier, "POST", URI, &first).await.unwrap().active);
    let unused = headers(&mut another);
    another.end();
    let why = reason(&mut verifier, "POST", URI, &unused).await;
    assert!(["ended", "revoked"].contains(&why.as_str()), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proof_of_a_process_that_runs_another_program_is_refused() {
    let agent = agent().await;
    let mut verifier = agent.verifier().await;
    let mut another = Another::start(agent.socket());
    let unused: HashMap<String, String> = serde_json::from_str(&another.ask(&format!("prove - POST {URI}"))).unwrap();
    another.become_another_program();
    let why = reason(&mut verifier, "POST", URI, &unused).await;
    assert!(["ended", "revoked"].contains(&why.as_str()), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proof_of_a_process_that_left_the_group_its_entry_is_about_is_refused() {
    if !is_root() {
        eprintln!("skipped: leaving a group takes root");
        return;
    }
    let agent = TestAgent::without_entries().await;
    agent.clock().advance(Duration::from_secs(2));
    let entry = format!(
        "[[entry]]\nid = \"group\"\nspiffe_id = \"spiffe://dev.tether.internal/group\"\nmatch = [\"unix:gid:{}\"]\nowner = \"team\"\nserves = [\"*\"]\n",
        nix::unistd::getgid()
    );
    agent.write_entries("group.toml", &entry).await;
    let mut verifier = agent.verifier().await;
    let mut another = Another::start(agent.socket());
    let mut headers =
        || -> HashMap<String, String> { serde_json::from_str(&another.ask(&format!("prove - POST {URI}"))).unwrap() };
    let (used, unused) = (headers(), headers());
    assert!(check(&mut verifier, "POST", URI, &used).await.unwrap().active);
    assert_eq!(another.ask(&format!("group {NOBODY}")), "done");
    assert_eq!(reason(&mut verifier, "POST", URI, &unused).await, "revoked");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_operator_revokes_is_refused_at_once_and_its_key_signs_no_more() {
    let agent = agent().await;
    let (mut sessions, mut verifier) = (agent.sessions().await, agent.verifier().await);
    let held = sessions.hold_wit(HoldWitRequest::default()).await.unwrap().into_inner();
    let unused = prove(&mut sessions, "POST", URI).await;
    let claims = Jws::parse(&held.wit_svid).unwrap().claims().unwrap();
    let jti = claims["jti"].as_str().unwrap().to_owned();
    let mut operator = CredentialsClient::new(channel(agent.admin_socket()).await);
    let filter = Some(CredentialFilter { jti, ..CredentialFilter::default() });
    let request = RevokeCredentialsRequest { filter, reason: "a test".to_owned(), dry_run: false };
    assert_eq!(operator.revoke(request).await.unwrap().into_inner().total, 1);
    assert_eq!(reason(&mut verifier, "POST", URI, &unused).await, "revoked");
    let again =
        ProveRequest { key: held.key, method: "GET".to_owned(), uri: URI.to_owned(), ..ProveRequest::default() };
    assert_eq!(sessions.prove(again).await.unwrap_err().code(), Code::PermissionDenied);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dpop_proof_is_for_its_access_token_and_carries_the_nonce() {
    let agent = agent().await;
    let mut sessions = agent.sessions().await;
    let request = ProveRequest {
        scheme: Scheme::Dpop.into(),
        method: "GET".to_owned(),
        uri: format!("{URI}?x=1"),
        access_token: "token".to_owned(),
        nonce: "nonce".to_owned(),
        ..ProveRequest::default()
    };
    let proven = sessions.prove(request.clone()).await.unwrap().into_inner();
    let held = sessions.hold_wit(HoldWitRequest::default()).await.unwrap().into_inner();
    let claims = Jws::parse(&held.wit_svid).unwrap().claims().unwrap();
    let jwk = claims["cnf"]["jwk"].as_object().unwrap();
    let thumbprint = tether::jwt::Jwk::from_json(jwk).unwrap().thumbprint();
    let (method, uri) = (Method::parse("GET").unwrap(), TargetUri::parse(URI).unwrap());
    let expected = Expected { method: &method, uri: &uri, body: None };
    let now = agent.clock().now();
    let checked =
        check_dpop(&proven.headers["DPoP"], expected, "token", &thumbprint, Some("nonce"), now, Duration::ZERO);
    assert_eq!(checked.unwrap().nonce.as_deref(), Some("nonce"));
    let for_wpt = ProveRequest { scheme: Scheme::Wpt.into(), ..request };
    assert_eq!(sessions.prove(for_wpt).await.unwrap_err().code(), Code::InvalidArgument);
}
