use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt};
use http::{Method, Request as HttpRequest, Response as HttpResponse, StatusCode};
use http_body_util::{BodyExt, Full};
use rustls::pki_types::CertificateDer;
use tokio::sync::mpsc;
use tonic::service::Routes;
use tonic::{Request, Response, Status};
use tower::{Layer, ServiceExt};

use super::*;
use crate::client::fake::Served;
use crate::proto::session::verifier_server::{Verifier, VerifierServer};

/// A verifier that answers what a test tells it to; without an answer left it refuses the asker.
#[derive(Clone)]
struct FakeVerifier {
    answers: Arc<Mutex<VecDeque<wire::CheckResponse>>>,
    asked: Arc<Mutex<Vec<wire::CheckRequest>>>,
    reports: mpsc::UnboundedSender<wire::ReportRequest>,
}

#[tonic::async_trait]
impl Verifier for FakeVerifier {
    type WatchStream = BoxStream<'static, Result<wire::StatusChange, Status>>;

    async fn check(&self, request: Request<wire::CheckRequest>) -> Result<Response<wire::CheckResponse>, Status> {
        self.asked.lock().expect("unpoisoned").push(request.into_inner());
        let answer = self.answers.lock().expect("unpoisoned").pop_front();
        answer.map(Response::new).ok_or_else(|| {
            let mut status = Status::permission_denied("no entry serves it");
            status.metadata_mut().insert("tether-denial", "not_served".parse().expect("ascii"));
            status
        })
    }

    async fn report(&self, request: Request<wire::ReportRequest>) -> Result<Response<wire::ReportResponse>, Status> {
        self.reports.send(request.into_inner()).expect("somebody reads");
        Ok(Response::new(wire::ReportResponse {}))
    }

    async fn watch(&self, _: Request<wire::WatchCheckedRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let change = |state: wire::State| wire::StatusChange {
            session: "n.1".to_owned(),
            state: state.into(),
            end_reason: "completed".to_owned(),
            at: "2026-11-23T12:00:00Z".to_owned(),
        };
        let changes = [wire::State::Suspended, wire::State::Ended, wire::State::PendingApproval].map(change).map(Ok);
        Ok(Response::new(stream::iter(changes).chain(stream::pending()).boxed()))
    }
}

struct World {
    fake: FakeVerifier,
    _served: Served,
    client: VerifierClient,
    reports: mpsc::UnboundedReceiver<wire::ReportRequest>,
}

impl World {
    fn answering(answers: impl IntoIterator<Item = wire::CheckResponse>) -> Self {
        let (reports, reported) = mpsc::unbounded_channel();
        let answers = Arc::new(Mutex::new(answers.into_iter().collect()));
        let fake = FakeVerifier { answers, asked: Arc::default(), reports };
        let served = Served::routes(Routes::new(VerifierServer::new(fake.clone())));
        let client = VerifierClient::new(served.uri().parse().expect("an endpoint"));
        Self { fake, _served: served, client, reports: reported }
    }

    fn layer(&self) -> VerifyLayer {
        VerifyLayer::new(self.client.clone(), PublicBase::parse("https://tool.example.com/api/").expect("a base"))
    }

    fn asked(&self) -> Vec<wire::CheckRequest> {
        self.fake.asked.lock().expect("unpoisoned").clone()
    }
}

fn active() -> wire::CheckResponse {
    wire::CheckResponse {
        active: true,
        spiffe_id: "spiffe://example.org/agent".to_owned(),
        binding: 3,
        expires_at: "2026-11-23T12:00:00Z".to_owned(),
        session: "n.1".to_owned(),
        user: "alice@n".to_owned(),
        purpose: "billing/refund".to_owned(),
        scopes: vec!["refund:read".to_owned()],
        txn: "t-1".to_owned(),
        proven: true,
        delegated_by: vec!["spiffe://example.org/planner".to_owned()],
        ..wire::CheckResponse::default()
    }
}

fn inactive(reason: &str) -> wire::CheckResponse {
    wire::CheckResponse { reason: reason.to_owned(), ..wire::CheckResponse::default() }
}

fn request(uri: &str) -> http::request::Builder {
    let request = HttpRequest::builder().method(Method::POST).uri(uri);
    request.header("Workload-Identity-Token", "eyJ.w").header("Authorization", "WPT eyJ.p").header("Cookie", "mine")
}

fn with_body(request: http::request::Builder, body: &'static [u8]) -> HttpRequest<Full<Bytes>> {
    request.body(Full::new(Bytes::from_static(body))).expect("a request")
}

/// Sends a request to a tool behind `layer` that answers with its caller's name and the body it got, and `status`.
async fn send(layer: &VerifyLayer, status: StatusCode, request: HttpRequest<Full<Bytes>>) -> HttpResponse<String> {
    let tool = tower::service_fn(move |request: HttpRequest<_>| async move {
        let (parts, body): (_, http_body_util::Either<Full<Bytes>, Full<Bytes>>) = request.into_parts();
        let verified = parts.extensions.get::<Verified>().expect("only checked requests come here");
        assert_eq!(parts.headers["cookie"], "mine", "headers stay as they are");
        let body = body.collect().await.expect("a body").to_bytes();
        let text = format!("{} {}", verified.spiffe_id, String::from_utf8_lossy(&body));
        let response = HttpResponse::builder().status(status).body(Full::new(Bytes::from(text)));
        Ok::<_, Infallible>(response.expect("a response"))
    });
    let response = layer.layer(tool).oneshot(request).await.expect("infallible");
    let (parts, body) = response.into_parts();
    let body = body.collect().await.expect("a body").to_bytes();
    HttpResponse::from_parts(parts, String::from_utf8(body.to_vec()).expect("text"))
}

#[tokio::test]
async fn a_good_request_reaches_the_tool_with_who_calls_and_is_checked_at_the_configured_place() {
    let world = World::answering([active()]);
    let layer = world.layer().describe(|parts| Described {
        tool: parts.uri.path().trim_start_matches('/').to_owned(),
        effect: Effect::Read,
        scopes: vec!["refund:read".to_owned()],
        ..Described::default()
    });
    let request = with_body(request("http://evil.example/refund?x=1").header("Host", "evil.example"), b"hello");
    let response = send(&layer, StatusCode::OK, request).await;
    assert_eq!((response.status(), response.body().as_str()), (StatusCode::OK, "spiffe://example.org/agent hello"));
    let asked = &world.asked()[0];
    assert_eq!((asked.method.as_str(), asked.uri.as_str()), ("POST", "https://tool.example.com/api/refund"));
    assert_eq!((asked.tool.as_str(), asked.effect), ("refund", i32::from(wire::Effect::Read)));
    assert_eq!((asked.min_binding, asked.require_session, asked.body_sha256.len()), (2, true, 0));
    let mut names: Vec<_> = asked.headers.keys().cloned().collect();
    names.sort();
    assert_eq!(names, ["authorization", "workload-identity-token"], "no other header leaves the tool");
}

#[tokio::test]
async fn a_request_without_one_proof_is_challenged_and_the_agent_is_not_asked() {
    let world = World::answering([]);
    let bare = || HttpRequest::builder().uri("/x").header("Cookie", "mine");
    let requests = [
        ("nothing", bare()),
        ("a WIT alone", bare().header("Workload-Identity-Token", "eyJ.w")),
        ("a proof alone", bare().header("Authorization", "WPT eyJ.p")),
        ("a bearer", bare().header("Workload-Identity-Token", "eyJ.w").header("Authorization", "Bearer eyJ")),
        ("two proofs", request("/x").header("Authorization", "WPT eyJ.q")),
        ("two WITs", request("/x").header("Workload-Identity-Token", "eyJ.v")),
        ("not a path of anything", request("/a/../b")),
    ];
    for (what, request) in requests {
        let response = send(&world.layer(), StatusCode::OK, with_body(request, b"")).await;
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED, "{what}");
        assert_eq!(response.headers()["www-authenticate"], "WPT", "{what}");
        assert_eq!(response.body(), r#"{"error":"unproven"}"#, "{what}");
    }
    assert!(world.asked().is_empty());
}

#[tokio::test]
async fn a_request_of_a_proven_peer_may_come_without_a_proof_where_the_tool_takes_calls_outside_a_session() {
    let peer = || PeerCertificates::proven([CertificateDer::from(vec![1, 2]), CertificateDer::from(vec![3])]);
    let bare = || HttpRequest::builder().uri("/x").header("Cookie", "mine").extension(peer());
    let sessionless = || wire::CheckResponse { session: String::new(), proven: false, ..active() };
    let world = World::answering([sessionless(), active(), sessionless()]);
    let layer = world.layer().without_session();
    let with_bearer = || bare().header("Authorization", "Bearer eyJ");
    for request in [bare(), request("/x").extension(peer()), with_bearer()] {
        assert_eq!(send(&layer, StatusCode::OK, with_body(request, b"")).await.status(), StatusCode::OK);
    }
    let asked = world.asked();
    let certificates = [Bytes::from_static(&[1, 2]), Bytes::from_static(&[3])];
    assert!(asked.iter().all(|asked| asked.peer_certificates == certificates && !asked.require_session));
    assert_eq!([0, 1, 2].map(|nth: usize| asked[nth].headers.len()), [0, 2, 0], "another credential is not sent along");

    let half = [
        bare().header("Workload-Identity-Token", "eyJ.w"),
        bare().header("Authorization", "WPT eyJ.p"),
        with_bearer().header("Workload-Identity-Token", "eyJ.w"),
        with_bearer().header("Authorization", "Bearer eyJ"),
    ];
    for request in half {
        let response = send(&layer, StatusCode::OK, with_body(request, b"")).await;
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED, "half a proof is no proof, and not none");
    }
    let response = send(&world.layer(), StatusCode::OK, with_body(bare(), b"")).await;
    assert_eq!(response.status(), StatusCode::UNAUTHORIZED, "a call in a session comes with a proof");
    assert_eq!(world.asked().len(), 3, "and the agent is not asked");
}

#[tokio::test]
async fn each_call_inside_a_request_has_its_own_verdict_and_none_is_missing() {
    let verdicts = || {
        vec![
            wire::RpcVerdict { allowed: true, effect: wire::Effect::Read.into(), ..wire::RpcVerdict::default() },
            wire::RpcVerdict {
                reason: "step_up".to_owned(),
                approval: "ap-7".to_owned(),
                effect: wire::Effect::Irreversible.into(),
                ..wire::RpcVerdict::default()
            },
        ]
    };
    let short = wire::CheckResponse { rpcs: verdicts().split_off(1), ..active() };
    let world = World::answering([wire::CheckResponse { rpcs: verdicts(), ..active() }, short]);
    let (parts, ()) = request("/mcp").body(()).expect("a request").into_parts();
    let mut check = Check::new(&parts.method, "https://tool.example.com/mcp", &parts.headers).expect("proven");
    check.rpcs = ["list", "call"].map(|method| Rpc { method: format!("tools/{method}"), ..Rpc::default() }).into();
    let verified = world.client.check(&check).await.expect("active");
    assert_eq!((verified.rpcs[0].refused(), verified.rpcs[0].effect), (None, Effect::Read));
    let refused = verified.rpcs[1].refused().expect("a person has to agree");
    assert_eq!((refused.class, refused.approval.as_deref()), (Class::StepUp, Some("ap-7")));
    assert_eq!(world.asked()[0].rpcs[1].method, "tools/call");
    let error = world.client.check(&check).await.expect_err("a verdict is missing");
    assert!(matches!(error, CheckError::Agent(ClientError::Malformed(_))), "{error}");
}

#[tokio::test]
async fn a_refusal_tells_the_caller_its_class_and_never_the_reason() {
    let reasons = [
        ("replayed", StatusCode::UNAUTHORIZED, "unproven"),
        ("session_ended", StatusCode::UNAUTHORIZED, "unproven"),
        ("used", StatusCode::UNAUTHORIZED, "unproven"),
        ("a reason from the future", StatusCode::UNAUTHORIZED, "unproven"),
        ("policy", StatusCode::FORBIDDEN, "forbidden"),
        ("scope", StatusCode::FORBIDDEN, "forbidden"),
        ("no_session", StatusCode::FORBIDDEN, "forbidden"),
        ("node_unreachable", StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
    ];
    for (reason, status, class) in reasons {
        let world = World::answering([inactive(reason)]);
        let response = send(&world.layer(), StatusCode::OK, with_body(request("/x"), b"")).await;
        assert_eq!(response.status(), status, "{reason}");
        assert_eq!(*response.body(), format!(r#"{{"error":"{class}"}}"#), "{reason}");
    }
    let waiting = wire::CheckResponse { approval: "ap-7".to_owned(), ..inactive("step_up") };
    let world = World::answering([waiting]);
    let response = send(&world.layer(), StatusCode::OK, with_body(request("/x"), b"")).await;
    assert_eq!(response.status(), StatusCode::FORBIDDEN);
    let told: serde_json::Value = serde_json::from_str(response.body()).expect("JSON");
    assert_eq!(told, serde_json::json!({ "error": "step_up", "approval": "ap-7" }));
}

#[tokio::test]
async fn nothing_is_served_unchecked() {
    let unasked = World::answering([]);
    let response = send(&unasked.layer(), StatusCode::OK, with_body(request("/x"), b"")).await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE, "the asker's entry does not serve it");
    let away = VerifierClient::new("unix:///nonexistent/socket".parse().expect("an endpoint"));
    let layer = VerifyLayer::new(away, PublicBase::parse("https://tool.example.com").expect("a base"));
    let response = send(&layer, StatusCode::OK, with_body(request("/x"), b"")).await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE, "the agent is away");
    let sessionless = wire::CheckResponse { session: String::new(), ..active() };
    let world = World::answering([sessionless.clone(), sessionless]);
    let response = send(&world.layer(), StatusCode::OK, with_body(request("/x"), b"")).await;
    assert_eq!(response.status(), StatusCode::FORBIDDEN, "a session was asked for");
    let response = send(&world.layer().without_session(), StatusCode::OK, with_body(request("/x"), b"")).await;
    assert_eq!(response.status(), StatusCode::OK);
    let garbled = World::answering([wire::CheckResponse { spiffe_id: "nobody".to_owned(), ..active() }]);
    let response = send(&garbled.layer(), StatusCode::OK, with_body(request("/x"), b"")).await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE, "an answer that cannot be read is none");
}

#[tokio::test]
async fn a_body_is_covered_up_to_the_limit_and_read_only_then() {
    let world = World::answering([active()]);
    let layer = world.layer().cover_body(5);
    let response = send(&layer, StatusCode::OK, with_body(request("/x"), b"hello")).await;
    assert_eq!(response.body(), "spiffe://example.org/agent hello");
    assert_eq!(world.asked()[0].body_sha256.as_ref(), Digest::of(b"hello").as_bytes());
    let response = send(&layer, StatusCode::OK, with_body(request("/x"), b"hello!")).await;
    assert_eq!((response.status(), world.asked().len()), (StatusCode::PAYLOAD_TOO_LARGE, 1));
}

#[tokio::test]
async fn what_became_of_a_call_is_reported_by_its_status() {
    use wire::report_request::Outcome;
    let outcomes = [
        (StatusCode::OK, Outcome::Done),
        (StatusCode::NOT_FOUND, Outcome::Refused),
        (StatusCode::BAD_GATEWAY, Outcome::Failed),
    ];
    let mut world = World::answering(outcomes.map(|_| active()));
    for (status, outcome) in outcomes {
        let response = send(&world.layer().report(), status, with_body(request("/x"), b"")).await;
        assert_eq!(response.status(), status);
        let report = world.reports.recv().await.expect("a report");
        assert_eq!((report.session.as_str(), report.txn.as_str()), ("n.1", "t-1"));
        assert_eq!(report.outcome(), outcome, "{status}");
    }
}

#[tokio::test]
async fn a_call_whose_service_never_answered_is_reported_as_failed() {
    let mut world = World::answering([active()]);
    let reached = Arc::new(tokio::sync::Notify::new());
    let entered = reached.clone();
    let stuck = tower::service_fn(move |_: HttpRequest<_>| {
        let entered = entered.clone();
        async move {
            entered.notify_one();
            std::future::pending::<Result<HttpResponse<Full<Bytes>>, Infallible>>().await
        }
    });
    let call = world.layer().report().layer(stuck).oneshot(with_body(request("/x"), b""));
    tokio::select! {
        _ = call => panic!("it never answers"),
        () = reached.notified() => {}
    }
    assert_eq!(world.reports.recv().await.expect("a report").outcome(), wire::report_request::Outcome::Failed);
}

#[tokio::test]
async fn a_tool_hears_of_the_sessions_it_has_checked() {
    let world = World::answering([]);
    let mut watch = world.client.watch();
    assert_eq!(watch.next().await.expect("a change").state, State::Suspended);
    let ended = watch.next().await.expect("a change");
    assert_eq!((ended.session.as_str(), ended.state), ("n.1", State::Ended { reason: "completed".to_owned() }));
    assert!(matches!(watch.next().await, Err(ClientError::Malformed(_))), "nothing that was checked waits to begin");
}

#[test]
fn a_public_base_is_a_place_and_not_a_query() {
    for wrong in ["tool.example.com", "https://", "https://a/?q", "https://a/#f", "ftp://a/", "https://u@a/"] {
        assert!(PublicBase::parse(wrong).is_err(), "{wrong}");
    }
    assert_eq!(PublicBase::parse("https://A:443/"), PublicBase::parse("https://a"));
}
