//! What tools are told of requests that were made in a session, on the socket and over HTTP.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tether::audit::Event;
use tether::client::Endpoint;
use tether::client::tls::{Authorize, Custody, X509Source, client_config};
use tether::proto::session::report_request::Outcome;
use tether::proto::session::{
    Boundary, CheckRequest, CheckResponse, Effect, EndRequest, ProveRequest, ReportRequest, Session, StartRequest,
    State, WatchCheckedRequest,
};
use tonic::Code;

use crate::another::Another;
use crate::harness::{Sessions, TestAgent, Verifier, event, next, uid, within};
use crate::http::{ask, ask_tls, post, question};
use crate::program::{NOBODY, is_root};
use crate::sessions::task;

const TOOL: &str = "https://tool.example.com/";
const URI: &str = "https://tool.example.com/charge";
const INACTIVE: &str = "{\"active\":false}";

async fn agent() -> TestAgent {
    let agent = TestAgent::configured(|config| {
        config.http.address = Some("127.0.0.1:0".parse().unwrap());
        config.http.tls_address = Some("127.0.0.1:0".parse().unwrap());
    })
    .await;
    agent.clock().advance(Duration::from_secs(2));
    agent
}

async fn start(sessions: &mut Sessions, request: StartRequest) -> Session {
    sessions.start(request).await.unwrap().into_inner()
}

fn proving(session: &Session) -> ProveRequest {
    ProveRequest {
        session: session.id.clone(),
        method: "POST".to_owned(),
        uri: URI.to_owned(),
        ..ProveRequest::default()
    }
}

async fn prove(sessions: &mut Sessions, request: ProveRequest) -> HashMap<String, String> {
    sessions.prove(request).await.unwrap().into_inner().headers
}

fn about(headers: &HashMap<String, String>) -> CheckRequest {
    CheckRequest { method: "POST".to_owned(), uri: URI.to_owned(), headers: headers.clone(), ..CheckRequest::default() }
}

async fn check(verifier: &mut Verifier, request: CheckRequest) -> CheckResponse {
    verifier.check(request).await.unwrap().into_inner()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tool_learns_agent_session_purpose_and_scopes_of_a_call_once() {
    let agent = agent().await;
    let (mut sessions, mut verifier) = (agent.sessions().await, agent.verifier().await);
    let session =
        start(&mut sessions, StartRequest { scopes: vec!["pay".to_owned()], ..task("billing", &[TOOL]) }).await;
    let headers = prove(&mut sessions, ProveRequest { txn: "case-7".to_owned(), ..proving(&session) }).await;
    let mut audit = agent.audit();
    let answer = check(&mut verifier, about(&headers)).await;
    assert!(answer.active, "{answer:?}");
    assert_eq!((answer.session.as_str(), answer.purpose.as_str()), (session.id.as_str(), "billing"));
    assert_eq!((answer.scopes.as_slice(), answer.txn.as_str()), (&["pay".to_owned()][..], "case-7"));
    assert_eq!((answer.spiffe_id, answer.user.as_str(), answer.binding), (session.spiffe_id, "", 3));
    assert!(!answer.policies.is_empty(), "the policies that decided are named");
    let written = event(&mut audit, |event| matches!(event, Event::CallChecked { .. })).await;
    let Event::CallChecked { session: of, txn, active, agent_ok, policy_ok, .. } = written else { unreachable!() };
    assert_eq!((of, txn.as_str()), (Some(session.id.clone()), "case-7"));
    assert_eq!((active, agent_ok, policy_ok), (true, Some(true), Some(true)));

    let again = check(&mut verifier, about(&headers)).await;
    assert_eq!((again.active, again.reason.as_str()), (false, "replayed"));
    assert!(again.session.is_empty() && again.txn.is_empty() && again.spiffe_id.is_empty(), "{again:?}");
    let written = event(&mut audit, |event| matches!(event, Event::CallChecked { active: false, .. })).await;
    assert!(matches!(&written, Event::CallChecked { reason, .. } if reason == "replayed"), "{written:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_refused_where_asker_and_proof_do_not_see_the_same_and_that_uses_nothing_up() {
    let agent = agent().await;
    let (mut sessions, mut verifier) = (agent.sessions().await, agent.verifier().await);
    let session =
        start(&mut sessions, StartRequest { scopes: vec!["pay".to_owned()], ..task("billing", &[TOOL]) }).await;
    let said = ProveRequest { tool: "charge".to_owned(), arguments_sha256: vec![1; 32].into(), ..proving(&session) };
    let headers = prove(&mut sessions, said).await;
    let base = about(&headers);
    let rows: Vec<(CheckRequest, &str)> = vec![
        (CheckRequest { tool: "refund".to_owned(), ..base.clone() }, "tool"),
        (CheckRequest { arguments_sha256: vec![2; 32].into(), ..base.clone() }, "arguments"),
        (CheckRequest { scopes: vec!["admin".to_owned()], ..base.clone() }, "scope"),
        (CheckRequest { min_binding: 4, ..base.clone() }, "binding"),
        (CheckRequest { method: "PUT".to_owned(), ..base.clone() }, "another_method"),
        (CheckRequest { body_sha256: vec![7; 32].into(), ..base.clone() }, "another_body"),
    ];
    for (request, reason) in rows {
        let answer = check(&mut verifier, request).await;
        assert_eq!((answer.active, answer.reason.as_str()), (false, reason));
    }
    let seen = CheckRequest {
        tool: "charge".to_owned(),
        arguments_sha256: vec![1; 32].into(),
        scopes: vec!["pay".to_owned()],
        effect: Effect::Irreversible.into(),
        min_binding: 3,
        require_session: true,
        ..base
    };
    let answer = check(&mut verifier, seen).await;
    assert!(answer.active, "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tool_that_wants_a_session_does_not_take_a_process_alone() {
    let agent = agent().await;
    let (mut sessions, mut verifier) = (agent.sessions().await, agent.verifier().await);
    let request = ProveRequest { method: "POST".to_owned(), uri: URI.to_owned(), ..ProveRequest::default() };
    let headers = prove(&mut sessions, request).await;
    let wants = CheckRequest { require_session: true, ..about(&headers) };
    assert_eq!(check(&mut verifier, wants).await.reason, "no_session");
    let wants = CheckRequest { scopes: vec!["pay".to_owned()], ..about(&headers) };
    assert_eq!(check(&mut verifier, wants).await.reason, "scope");
    assert!(check(&mut verifier, about(&headers)).await.active);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_proven_before_the_end_of_its_session_is_refused_after_it() {
    let agent = agent().await;
    let (mut sessions, mut verifier) = (agent.sessions().await, agent.verifier().await);
    let session = start(&mut sessions, task("billing", &[TOOL])).await;
    let headers = prove(&mut sessions, proving(&session)).await;
    sessions.end(EndRequest { session: session.id }).await.unwrap();
    assert_eq!(check(&mut verifier, about(&headers)).await.reason, "session_ended");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_ends_by_the_clock_for_verifiers_too() {
    let agent = agent().await;
    let (mut sessions, mut verifier) = (agent.sessions().await, agent.verifier().await);
    let session = start(&mut sessions, StartRequest { ttl_seconds: 20, ..task("billing", &[TOOL]) }).await;
    let headers = prove(&mut sessions, proving(&session)).await;
    agent.clock().advance(Duration::from_secs(21));
    assert_eq!(check(&mut verifier, about(&headers)).await.reason, "session_ended");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_for_one_call_is_used_up_by_the_first_check_and_not_by_one_that_fails() {
    let agent = agent().await;
    let (mut sessions, mut verifier) = (agent.sessions().await, agent.verifier().await);
    let request = StartRequest { boundary: Boundary::ToolCall.into(), ..task("billing", &[TOOL]) };
    let session = start(&mut sessions, request).await;
    let headers = prove(&mut sessions, proving(&session)).await;
    let wants_more = CheckRequest { min_binding: 9, ..about(&headers) };
    assert_eq!(check(&mut verifier, wants_more).await.reason, "binding");
    assert!(check(&mut verifier, about(&headers)).await.active);
    // That it is the same proof is seen before anything else is touched.
    assert_eq!(check(&mut verifier, about(&headers)).await.reason, "replayed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tool_reports_what_it_asked_about_and_nothing_else() {
    let agent = agent().await;
    let (mut sessions, mut verifier) = (agent.sessions().await, agent.verifier().await);
    let session = start(&mut sessions, task("billing", &[TOOL])).await;
    let headers = prove(&mut sessions, proving(&session)).await;
    let answer = check(&mut verifier, about(&headers)).await;
    let report = ReportRequest {
        session: session.id.clone(),
        txn: answer.txn,
        outcome: Outcome::Done.into(),
        note: "charged".to_owned(),
        result_sha256: vec![9; 32].into(),
    };
    let mut audit = agent.audit();
    verifier.report(report.clone()).await.unwrap();
    let written = event(&mut audit, |event| matches!(event, Event::CallReported { .. })).await;
    assert!(matches!(&written, Event::CallReported { outcome: "done", note, .. } if note == "charged"), "{written:?}");

    let rows = [
        (ReportRequest { txn: "another".to_owned(), ..report.clone() }, Code::NotFound),
        (ReportRequest { session: format!("{}0", session.id), ..report.clone() }, Code::NotFound),
        (ReportRequest { outcome: 0, ..report.clone() }, Code::InvalidArgument),
        (ReportRequest { note: "two\nlines".to_owned(), ..report.clone() }, Code::InvalidArgument),
        (ReportRequest { note: "x".repeat(257), ..report.clone() }, Code::InvalidArgument),
        (ReportRequest { result_sha256: vec![9; 31].into(), ..report.clone() }, Code::InvalidArgument),
    ];
    for (report, code) in rows {
        assert_eq!(verifier.report(report.clone()).await.unwrap_err().code(), code, "{report:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tool_hears_of_the_end_of_the_sessions_it_asked_about_and_of_no_others() {
    let agent = agent().await;
    let (mut sessions, mut verifier) = (agent.sessions().await, agent.verifier().await);
    let mut changes = verifier.watch(WatchCheckedRequest {}).await.unwrap().into_inner();
    let unseen = start(&mut sessions, task("unseen", &[TOOL])).await;
    let session = start(&mut sessions, task("billing", &[TOOL])).await;
    let headers = prove(&mut sessions, proving(&session)).await;
    assert!(check(&mut verifier, about(&headers)).await.active);
    sessions.end(EndRequest { session: unseen.id }).await.unwrap();
    sessions.end(EndRequest { session: session.id.clone() }).await.unwrap();
    let change = next(&mut changes).await.unwrap();
    assert_eq!((change.session, change.state), (session.id, State::Ended.into()));
    assert_eq!(change.end_reason, "completed");
    assert!(!change.at.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn introspection_over_loopback_says_what_the_socket_says() {
    let agent = agent().await;
    let mut sessions = agent.sessions().await;
    let session =
        start(&mut sessions, StartRequest { scopes: vec!["pay".to_owned()], ..task("billing", &[TOOL]) }).await;
    let headers = prove(&mut sessions, ProveRequest { txn: "case-7".to_owned(), ..proving(&session) }).await;
    let form = question("POST", URI, &headers, &[("scope", "pay"), ("min_binding", "3"), ("require_session", "true")]);
    let answer = ask(agent.http(), &post(&form)).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(answer.head.contains("cache-control: no-store") && answer.head.contains("content-type: application/json"));
    let body: Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!(body["active"], true, "{body}");
    for (member, expected) in [
        ("client_id", session.spiffe_id.as_str()),
        ("sub", &session.spiffe_id),
        ("aud", URI),
        ("session", &session.id),
        ("purpose", "billing"),
        ("scope", "pay"),
        ("txn", "case-7"),
        ("effect", "write"),
    ] {
        assert_eq!(body[member], expected, "{member}: {body}");
    }
    assert_eq!(body["cnf"]["jkt"], session.key_thumbprint);
    assert_eq!(body["binding"], 3);
    assert!(body["jti"].as_str().unwrap().starts_with(agent.state().node()));
    assert_eq!(body["exp"].as_i64().unwrap() - body["iat"].as_i64().unwrap(), 30);
    assert!(body.get("tether").is_none(), "facts for policy are for nodes alone");
    // The socket remembers what was asked over HTTP: one asker, one memory.
    assert_eq!(check(&mut agent.verifier().await, about(&headers)).await.reason, "replayed");
}

#[tokio::test(flavor = "multi_thread")]
async fn introspection_gives_the_same_bytes_whatever_is_wrong() {
    let agent = agent().await;
    let mut sessions = agent.sessions().await;
    let session = start(&mut sessions, task("billing", &[TOOL])).await;
    let used = prove(&mut sessions, proving(&session)).await;
    assert!(ask(agent.http(), &post(&question("POST", URI, &used, &[]))).await.body.contains("true"));
    let fresh = prove(&mut sessions, proving(&session)).await;
    let mut forged = fresh.clone();
    forged.insert("Authorization".to_owned(), "WPT a.b.c".to_owned());
    let rows = [
        ("replayed", question("POST", URI, &used, &[])),
        ("another method", question("PUT", URI, &fresh, &[])),
        ("another URI", question("POST", "https://other.example.com/", &fresh, &[])),
        ("a scope", question("POST", URI, &fresh, &[("scope", "admin")])),
        ("a binding level", question("POST", URI, &fresh, &[("min_binding", "9")])),
        ("forged", question("POST", URI, &forged, &[])),
        ("no proof", format!("token={}&method=POST&uri=https%3A%2F%2Ftool", fresh["Workload-Identity-Token"])),
        ("no token at all", "token=x&proof=y&method=POST&uri=https%3A%2F%2Ftool".to_owned()),
    ];
    let first = ask(agent.http(), &post(&rows[0].1)).await;
    assert_eq!((first.status, first.body.as_str()), (200, INACTIVE));
    for (what, form) in &rows {
        assert_eq!(ask(agent.http(), &post(form)).await, first, "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn over_http_a_request_with_calls_inside_is_good_if_all_of_them_may_go_on() {
    let agent = agent().await;
    let no_shell = r#"forbid(principal, action in Action::"call", resource) when { context.tool == "shell" };"#;
    agent.write_policies("shell.cedar", no_shell).await;
    let mut sessions = agent.sessions().await;
    let session = sessions.start(task("t", &[URI])).await.unwrap().into_inner().id;
    let request = ProveRequest { session, method: "POST".to_owned(), uri: URI.to_owned(), ..ProveRequest::default() };
    let search = r#"{"method":"tools/call","tool":"search"}"#;
    let shell = r#"{"method":"tools/call","tool":"shell"}"#;
    for (rpcs, good) in [(format!("[{search}]"), true), (format!("[{search},{shell}]"), false)] {
        let headers = prove(&mut sessions, request.clone()).await;
        let answer = ask(agent.http(), &post(&question("POST", URI, &headers, &[("rpcs", &rpcs)]))).await;
        assert_eq!((answer.status, answer.body != INACTIVE), (200, good), "{rpcs}: {answer:?}");
    }
    let headers = prove(&mut sessions, request).await;
    let garbled = ask(agent.http(), &post(&question("POST", URI, &headers, &[("rpcs", "[{}]")]))).await;
    assert_eq!(garbled.status, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_serve_the_uri_is_not_told_even_that_over_http() {
    let agent = TestAgent::without_entries_and(|config| {
        config.http.address = Some("127.0.0.1:0".parse().unwrap());
        config.http.tls_address = Some("127.0.0.1:0".parse().unwrap());
    })
    .await;
    agent.clock().advance(Duration::from_secs(2));
    let entry = format!(
        "[[entry]]\nid = \"tool\"\nspiffe_id = \"spiffe://dev.tether.internal/tool\"\nmatch = [\"unix:uid:{}\"]\nowner = \"team\"\nserves = [\"{URI}\"]\n",
        uid()
    );
    agent.write_entries("tool.toml", &entry).await;
    let config = tls(&agent).await;
    let mut sessions = agent.sessions().await;
    for (uri, told) in [(URI, true), ("https://tool.example.com/other", false)] {
        for over_tls in [false, true] {
            let request = ProveRequest { method: "POST".to_owned(), uri: uri.to_owned(), ..ProveRequest::default() };
            let request = post(&question("POST", uri, &prove(&mut sessions, request).await, &[]));
            let answer = match over_tls {
                false => ask(agent.http(), &request).await,
                true => ask_tls(agent.https(), &config, &request).await.unwrap(),
            };
            assert_eq!((answer.status, answer.body != INACTIVE), (200, told), "{uri} {over_tls}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_that_is_none_is_an_error_and_not_an_answer() {
    let agent = agent().await;
    let form = "token=a&proof=b&method=GET&uri=https%3A%2F%2Ftool";
    let typed = |kind: &str| post(form).replace("application/x-www-form-urlencoded", kind);
    let rows = [
        ("JSON", typed("application/json"), 415),
        ("twice", post(&format!("{form}&token=c")), 400),
        ("unknown", post(&format!("{form}&more=c")), 400),
        ("nothing", post(""), 400),
        ("no UTF-8", post("token=%ff"), 400),
        ("too much", post(&format!("token={}", "a".repeat(97 * 1024))), 413),
        ("GET", "GET /introspect HTTP/1.1\r\nHost: agent\r\n\r\n".to_owned(), 405),
    ];
    for (what, request, status) in rows {
        let answer = ask(agent.http(), &request).await;
        assert_eq!(answer.status, status, "{what}: {answer:?}");
        assert!(!answer.body.contains("active"), "{what}: {answer:?}");
    }
    assert_eq!(ask(agent.http(), "GET /livez HTTP/1.1\r\nHost: agent\r\n\r\n").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_that_match_on_the_executable_do_not_count_over_loopback() {
    let agent = TestAgent::without_entries_and(|config| {
        config.http.address = Some("127.0.0.1:0".parse().unwrap());
    })
    .await;
    agent.clock().advance(Duration::from_secs(2));
    let entry = |matches: &str| {
        format!(
            "[[entry]]\nid = \"tool\"\nspiffe_id = \"spiffe://dev.tether.internal/tool\"\nmatch = [{matches}]\nowner = \"team\"\nserves = [\"*\"]\n"
        )
    };
    let exe = std::fs::read_link("/proc/self/exe").unwrap();
    let request = ProveRequest { method: "POST".to_owned(), uri: URI.to_owned(), ..ProveRequest::default() };
    let by_user = format!("\"unix:uid:{}\"", uid());
    for (matches, told) in [(by_user.clone(), true), (format!("{by_user}, \"unix:path:{}\"", exe.display()), false)] {
        agent.write_entries("tool.toml", &entry(&matches)).await;
        let headers = prove(&mut agent.sessions().await, request.clone()).await;
        let answer = ask(agent.http(), &post(&question("POST", URI, &headers, &[]))).await;
        assert_eq!(answer.body != INACTIVE, told, "{matches}: {answer:?}");
        // On the socket the kernel vouches for the program.
        let expected = if told { "replayed" } else { "" };
        assert_eq!(check(&mut agent.verifier().await, about(&headers)).await.reason, expected, "{matches}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_without_an_entry_is_told_nothing_over_loopback_and_uses_nothing_up() {
    if !is_root() {
        eprintln!("skipped: another user takes root");
        return;
    }
    let agent = agent().await;
    let mut sessions = agent.sessions().await;
    let session = start(&mut sessions, task("billing", &[TOOL])).await;
    let headers = prove(&mut sessions, proving(&session)).await;
    let question = format!("introspect {} {}", agent.http(), question("POST", URI, &headers, &[]));
    let mut another = Another::start(agent.socket());
    assert_eq!(another.ask(&format!("user {NOBODY}")), "done");
    assert_eq!(another.ask(&question), INACTIVE);
    assert!(ask(agent.http(), &post(question.rsplit(' ').next().unwrap())).await.body.contains("true"));
}

async fn tls(agent: &TestAgent) -> Arc<rustls::ClientConfig> {
    let endpoint = Endpoint::Unix(agent.socket().to_owned());
    let source = within(X509Source::connect_by(endpoint, Custody::Program, agent.time())).await.unwrap();
    let domain = tether::id::TrustDomain::parse("dev.tether.internal").unwrap();
    Arc::new(client_config(&source, Authorize::MemberOf(domain)))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tool_with_an_svid_asks_over_tls_and_sees_the_keys_of_the_node() {
    let agent = agent().await;
    let mut sessions = agent.sessions().await;
    let session = start(&mut sessions, task("billing", &[TOOL])).await;
    let headers = prove(&mut sessions, proving(&session)).await;
    let config = tls(&agent).await;
    let request = post(&question("POST", URI, &headers, &[]));
    let answer = ask_tls(agent.https(), &config, &request).await.unwrap();
    let body: Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!((&body["active"], &body["session"]), (&Value::Bool(true), &Value::from(session.id)));
    assert_eq!(ask_tls(agent.https(), &config, &request).await.unwrap().body, INACTIVE, "replayed");

    let keys = ask_tls(agent.https(), &config, "GET /keys HTTP/1.1\r\nHost: agent\r\n\r\n").await.unwrap();
    let keys: Value = serde_json::from_str(&keys.body).unwrap();
    let wit = tether::jwt::Jws::parse(&headers["Workload-Identity-Token"]).unwrap().header().key_id.clone();
    let found = keys["keys"].as_array().unwrap().iter().find(|key| key["kid"].as_str() == wit.as_deref());
    assert_eq!(found.unwrap()["use"], "wit-svid");
    assert!(!keys.to_string().contains("\"d\""));
    assert_eq!(ask_tls(agent.https(), &config, "GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap().status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_certificate_of_the_trust_domain_nobody_asks_over_tls() {
    let (agent, stranger) = (agent().await, agent().await);
    let config = tls(&stranger).await;
    let asked = ask_tls(agent.https(), &config, "GET /keys HTTP/1.1\r\nHost: agent\r\n\r\n").await;
    assert!(asked.is_err(), "{asked:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tether_verify_prints_the_verdict_and_says_it_by_its_exit_code() {
    let agent = agent().await;
    let mut sessions = agent.sessions().await;
    let session =
        start(&mut sessions, StartRequest { scopes: vec!["pay".to_owned()], ..task("billing", &[TOOL]) }).await;
    let headers = prove(&mut sessions, proving(&session)).await;
    let verify = |input: String, more: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_tether"));
        command.args(["verify", "--method", "POST", "--uri", URI]).args(more);
        command.env("SPIFFE_ENDPOINT_SOCKET", format!("unix://{}", agent.socket().display()));
        let pipe = std::process::Stdio::piped;
        let mut child = command.stdin(pipe()).stdout(pipe()).stderr(pipe()).spawn().unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let verdict: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        (output.status.code(), verdict)
    };
    let printed = serde_json::json!({ "version": 1, "headers": headers }).to_string();
    let (code, verdict) =
        within(async { tokio::task::block_in_place(|| verify(printed.clone(), &["--scope", "admin"])) }).await;
    assert_eq!((code, &verdict["active"], &verdict["reason"]), (Some(5), &Value::Bool(false), &Value::from("scope")));
    assert_eq!((&verdict["spiffe_id"], &verdict["session"]), (&Value::Null, &Value::Null));
    let (code, verdict) = tokio::task::block_in_place(|| verify(printed, &["--scope", "pay", "--require-session"]));
    assert_eq!((code, &verdict["version"], &verdict["active"]), (Some(0), &Value::from(1), &Value::Bool(true)));
    for (member, expected) in
        [("spiffe_id", session.spiffe_id.as_str()), ("session", &session.id), ("purpose", "billing")]
    {
        assert_eq!(verdict[member], expected, "{verdict}");
    }
    assert_eq!(
        (&verdict["user"], &verdict["binding"], &verdict["reason"]),
        (&Value::Null, &Value::from(3), &Value::Null)
    );
    let bare = serde_json::to_string(&headers).unwrap();
    let (code, verdict) = tokio::task::block_in_place(|| verify(bare, &[]));
    assert_eq!((code, &verdict["reason"]), (Some(5), &Value::from("replayed")));
    let (code, _) = tokio::task::block_in_place(|| verify("nothing".to_owned(), &[]));
    assert_eq!(code, Some(2));
}
