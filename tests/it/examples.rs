//! The Rust examples as their readers run them: their own code, with a real agent, real sockets and handshakes.
//!
//! The keys are in the program: a handshake with a held key waits for the agent on the thread it runs on, and here that
//! agent runs on the same threads. `tests/it/tls.rs` has handshakes with held keys.
#![allow(clippy::duplicate_mod, reason = "each example has what they share")]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tether::client::Endpoint;
use tether::client::session::{Call, Digest, NewSession, SessionClient};
use tether::client::tls::{Authorize, Custody, X509Source};
use tether::client::verifier::VerifierClient;
use tether::id::SpiffeId;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::harness::{TestAgent, uid, within};

#[path = "../../examples/axum_server.rs"]
#[allow(dead_code, reason = "its main is not run here")]
mod axum_server;
#[path = "../../examples/hyper_server.rs"]
#[allow(dead_code, reason = "its main is not run here")]
mod hyper_server;
#[path = "../../examples/mtls/mod.rs"]
mod mtls;
#[path = "../../examples/tonic_server.rs"]
#[allow(dead_code, reason = "its main is not run here")]
mod tonic_server;

fn id(name: &str) -> SpiffeId {
    SpiffeId::parse(&format!("spiffe://dev.tether.internal/{name}")).unwrap()
}

/// An agent that gives this process `/server`, `/client` and `/other` too.
async fn agent() -> TestAgent {
    let agent = TestAgent::start().await;
    for name in ["server", "client", "other"] {
        let uid = uid();
        let entry = format!(
            "[[entry]]\nid = \"{name}\"\nspiffe_id = \"spiffe://dev.tether.internal/{name}\"\nmatch = [\"unix:uid:{uid}\"]\n"
        );
        agent.write_entries(&format!("{name}.toml"), &entry).await;
    }
    // Proofs from before the agent's start are refused.
    agent.clock().advance(Duration::from_secs(2));
    agent
}

fn endpoint(agent: &TestAgent) -> Endpoint {
    Endpoint::Unix(agent.socket().to_owned())
}

async fn source(agent: &TestAgent, custody: Custody) -> X509Source {
    within(X509Source::connect_by(endpoint(agent), custody, agent.time())).await.unwrap()
}

async fn listener() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

/// An open connection of HTTP/2, and its end.
struct Open {
    sender: SendRequest<Full<Bytes>>,
    end: JoinHandle<hyper::Result<()>>,
}

impl Open {
    async fn to(address: &str, source: &X509Source) -> Result<Self, mtls::AnyError> {
        let stream = within(mtls::connect(source, id("server").into(), address, "h2")).await?;
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        Ok(Self { sender, end: tokio::spawn(connection) })
    }

    async fn post(&mut self, uri: &str, headers: &HeaderMap) -> hyper::Result<(StatusCode, String)> {
        let mut request = Request::post(uri).body(Full::new(Bytes::from_static(b"tether"))).unwrap();
        request.headers_mut().extend(headers.clone());
        let response = within(self.sender.send_request(request)).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 6)]
async fn the_servers_of_the_examples_cut_a_revoked_peer_off_and_serve_the_others() {
    let agent = agent().await;
    let own = source(&agent, Custody::Program).await;
    let (listener, address) = listener().await;
    let server = tokio::spawn(mtls::serve(
        listener,
        own.presenting(id("server")),
        Authorize::Anyone,
        tower::service_fn(hyper_server::greet),
    ));
    let clients = source(&agent, Custody::Program).await;
    let mut victim = Open::to(&address, &clients.presenting(id("client"))).await.unwrap();
    let mut other = Open::to(&address, &clients.presenting(id("other"))).await.unwrap();
    let none = HeaderMap::new();
    let greeted = victim.post("https://tool/", &none).await.unwrap();
    assert_eq!(greeted, (StatusCode::OK, format!("hello, {}\n", id("client"))));

    agent.clock().advance(Duration::from_secs(1));
    agent.remove_entries("client.toml").await;
    let _ = within(victim.end).await.unwrap();
    assert_eq!(other.post("https://tool/", &none).await.unwrap().0, StatusCode::OK, "whom it does not concern goes on");
    server.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 6)]
async fn at_the_end_of_its_certificate_a_client_is_asked_to_come_again_and_comes_with_the_next() {
    let agent = agent().await;
    let own = source(&agent, Custody::Program).await;
    let (listener, address) = listener().await;
    let service = tower::service_fn(hyper_server::greet);
    let server = tokio::spawn(mtls::serve(listener, own.presenting(id("server")), Authorize::Anyone, service));
    let client = own.presenting(id("client"));
    for _ in 0..3 {
        let mut open = Open::to(&address, &client).await.unwrap();
        assert_eq!(open.post("https://tool/", &HeaderMap::new()).await.unwrap().0, StatusCode::OK);
        // The half life, for a new certificate, and then the end of this one.
        let mut changes = own.changes();
        agent.clock().advance(Duration::from_secs(14 * 60));
        let soon = agent.time().now() + Duration::from_secs(120);
        within(async {
            while own.state().identities().iter().any(|identity| identity.not_after() < soon) {
                changes.next().await.expect("the source is there");
            }
        })
        .await;
        agent.clock().advance(Duration::from_secs(60));
        within(open.end).await.unwrap().expect("in good order");
    }
    server.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 6)]
async fn the_tool_on_axum_serves_who_proves_each_request_by_the_identity_of_its_connection() {
    let agent = agent().await;
    let own = source(&agent, Custody::Program).await;
    let (listener, address) = listener().await;
    let base = format!("https://{address}");
    let tool = axum_server::tool(VerifierClient::new(endpoint(&agent)), &base).unwrap();
    let server = tokio::spawn(mtls::serve(listener, own.presenting(id("server")), Authorize::Anyone, tool));

    let sessions = SessionClient::new(endpoint(&agent));
    let uri = format!("{base}/search");
    let wish = NewSession {
        scopes: vec!["tool:search".to_owned()],
        spiffe_id: Some(id("client")),
        ..NewSession::new("demo/search", uri.as_str())
    };
    let session = sessions.start(&wish).await.unwrap();
    let body = Some(Digest::of(b"tether"));
    let call = Call { tool: "search".to_owned(), body, ..Call::new("POST", uri.as_str()) };
    let proof = async || sessions.prove(Some(&session.id), &call).await.unwrap().headers;

    let mut open = Open::to(&address, &own.presenting(id("client"))).await.unwrap();
    let (status, said) = open.post(&uri, &proof().await).await.unwrap();
    let expected = format!("nothing found for \"tether\", asked by {} for nobody, demo/search\n", id("client"));
    assert_eq!((status, said), (StatusCode::OK, expected));
    let unproven = (StatusCode::UNAUTHORIZED, r#"{"error":"unproven"}"#.to_owned());
    assert_eq!(open.post(&uri, &HeaderMap::new()).await.unwrap(), unproven);
    let mut another = Open::to(&address, &own.presenting(id("other"))).await.unwrap();
    assert_eq!(another.post(&uri, &proof().await).await.unwrap(), unproven, "a proof of another identity");
    server.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 6)]
async fn the_service_on_tonic_answers_who_proves_the_call_and_is_unauthenticated_for_others() {
    use tonic::metadata::MetadataMap;
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_client::HealthClient;

    let agent = agent().await;
    let own = source(&agent, Custody::Program).await;
    let (listener, address) = listener().await;
    let base = format!("https://{address}");
    let service = tonic_server::service(VerifierClient::new(endpoint(&agent)), &base).unwrap();
    let server = tokio::spawn(mtls::serve(listener, own.presenting(id("server")), Authorize::Anyone, service));

    let (client, target) = (Arc::new(own.presenting(id("client"))), address.clone());
    let connect = tower::service_fn(move |_| {
        let (client, target) = (client.clone(), target.clone());
        async move { mtls::connect(&client, id("server").into(), &target, "h2").await.map(TokioIo::new) }
    });
    let plain = tonic::transport::Endpoint::from_shared(format!("http://{address}")).unwrap();
    let mut health = HealthClient::new(plain.connect_with_connector_lazy(connect));
    let bare = within(health.check(HealthCheckRequest::default())).await.unwrap_err();
    assert_eq!(bare.code(), tonic::Code::Unauthenticated, "{bare}");

    let sessions = SessionClient::new(endpoint(&agent));
    let wish = NewSession { spiffe_id: Some(id("client")), ..NewSession::new("demo/health", format!("{base}/")) };
    let session = sessions.start(&wish).await.unwrap();
    let call = Call { tool: "Check".to_owned(), ..Call::new("POST", format!("{base}/grpc.health.v1.Health/Check")) };
    let proof = sessions.prove(Some(&session.id), &call).await.unwrap();
    let mut request = tonic::Request::new(HealthCheckRequest::default());
    *request.metadata_mut() = MetadataMap::from_headers(proof.headers);
    within(health.check(request)).await.unwrap();
    server.abort();
}
