//! Two nodes with one root on disk: a tool on one of them is called in sessions of the other.
//!
//! Both agents are on this host, each at a port of the loopback interface; `namespaces.rs` puts a wire between two. Here
//! are the rules: a node that has stopped, one that says nothing, one that is somebody else.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use tether::base::clock::Clock;
use tether::client::Endpoint;
use tether::client::tls::{Authorize, Custody, X509Source, server_config};
use tether::config::{AuthorityKind, Config};
use tether::id::TrustDomain;
use tether::proto::session::{Boundary, CheckRequest, CheckResponse, EndRequest, ProveRequest, Session, StartRequest};
use tether::verify::NodeUrls;
use tether::x509::{KeyType, PrivateKey, Serial, Validity, self_signed_root};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::harness::{Sessions, TestAgent, within};
use crate::sessions::task;

pub const TOOL: &str = "https://tool.example.com/";
const URI: &str = "https://tool.example.com/charge";

/// Writes the root that both nodes sign below.
pub fn write_root(dir: &Path) {
    let now = Clock::system().now();
    let key = PrivateKey::generate(KeyType::EcP256).unwrap();
    let pem = key.to_pem().unwrap().expose().clone();
    let hour = Duration::from_secs(3600);
    let validity = Validity { not_before: now - hour, not_after: now + 24 * 90 * hour };
    let domain = TrustDomain::parse("dev.tether.internal").unwrap();
    let root = self_signed_root(domain, key, validity, &Serial::from_random([7; 16])).unwrap();
    std::fs::write(dir.join("root.pem"), root.certificate().to_pem()).unwrap();
    std::fs::write(dir.join("root_key.pem"), pem).unwrap();
    std::fs::set_permissions(dir.join("root_key.pem"), std::fs::Permissions::from_mode(0o600)).unwrap();
}

/// An address of this host that nobody else listens at, and that no connection goes out from: nodes try again and again
/// to reach one that is gone, and each try takes a port.
pub fn free_address() -> SocketAddr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let [_, _, high, low] = std::process::id().to_be_bytes();
    SocketAddr::from(([127, high, low, NEXT.fetch_add(1, Ordering::Relaxed)], 9466))
}

pub fn named(node: &str, address: SocketAddr) -> NodeUrls {
    [(node.to_owned(), format!("https://{address}"))].into_iter().collect()
}

/// The node where agents run, and the node where the tool is.
pub struct Two {
    pub issuing: TestAgent,
    pub asking: TestAgent,
    issuing_at: SocketAddr,
    pub root: tempfile::TempDir,
}

pub async fn node(root: &Path, at: SocketAddr, configure: impl FnOnce(&mut Config)) -> TestAgent {
    TestAgent::configured(|config| {
        config.authority.kind = AuthorityKind::Disk;
        config.authority.cert_file = Some(root.join("root.pem"));
        config.authority.key_file = Some(root.join("root_key.pem"));
        config.http.tls_address = Some(at);
        configure(config);
    })
    .await
}

impl Two {
    pub async fn start() -> Self {
        let root = tempfile::tempdir().unwrap();
        write_root(root.path());
        let (issuing_at, asking_at) = (free_address(), free_address());
        let url = format!("https://{issuing_at}");
        let mut issuing = node(root.path(), issuing_at, |config| config.sessions.introspect_url = Some(url)).await;
        let knows = named(issuing.state().node(), issuing_at);
        let asking = node(root.path(), asking_at, |config| config.sessions.nodes = knows).await;
        let knows = named(asking.state().node(), asking_at);
        issuing.restart_with(|config| config.sessions.nodes = knows).await;
        for agent in [&issuing, &asking] {
            agent.clock().advance(Duration::from_secs(2));
        }
        Self { issuing, asking, issuing_at, root }
    }

    pub async fn session(&self, request: StartRequest) -> (Sessions, Session) {
        let mut sessions = self.issuing.sessions().await;
        let session = sessions.start(request).await.unwrap().into_inner();
        (sessions, session)
    }

    pub async fn check(&self, headers: &HashMap<String, String>) -> CheckResponse {
        check(&self.asking, headers).await
    }
}

pub async fn check(agent: &TestAgent, headers: &HashMap<String, String>) -> CheckResponse {
    let request = CheckRequest {
        method: "POST".to_owned(),
        uri: URI.to_owned(),
        headers: headers.clone(),
        ..CheckRequest::default()
    };
    agent.verifier().await.check(request).await.unwrap().into_inner()
}

pub async fn prove(sessions: &mut Sessions, session: &Session) -> HashMap<String, String> {
    let request = ProveRequest {
        session: session.id.clone(),
        method: "POST".to_owned(),
        uri: URI.to_owned(),
        ..ProveRequest::default()
    };
    sessions.prove(request).await.unwrap().into_inner().headers
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tool_on_another_node_learns_the_session_once() {
    let two = Two::start().await;
    let request = StartRequest { scopes: vec!["pay".to_owned()], ..task("billing", &[TOOL]) };
    let (mut sessions, session) = two.session(request).await;
    let headers = prove(&mut sessions, &session).await;
    let answer = two.check(&headers).await;
    assert!(answer.active, "{answer:?}");
    assert_eq!((answer.session, answer.purpose.as_str(), answer.binding), (session.id.clone(), "billing", 3));
    assert_eq!((answer.spiffe_id, answer.scopes), (session.spiffe_id.clone(), vec!["pay".to_owned()]));
    assert_eq!(two.check(&headers).await.reason, "replayed");
    // The node that issued it has not seen it: it remembers for its own askers.
    assert!(check(&two.issuing, &headers).await.active);

    let headers = prove(&mut sessions, &session).await;
    sessions.end(EndRequest { session: session.id }).await.unwrap();
    let reason = two.check(&headers).await.reason;
    // The other node does not say why when it is asked; and perhaps it has told before that.
    assert!(["revoked", "session_ended"].contains(&reason.as_str()), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_for_one_call_is_used_up_over_all_nodes() {
    let two = Two::start().await;
    let request = StartRequest { boundary: Boundary::ToolCall.into(), ..task("billing", &[TOOL]) };
    let (mut sessions, session) = two.session(request).await;
    let headers = prove(&mut sessions, &session).await;
    assert!(two.check(&headers).await.active);
    assert_eq!(check(&two.issuing, &headers).await.reason, "used");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_gone_or_says_nothing_is_a_no() {
    let mut two = Two::start().await;
    let (mut sessions, session) = two.session(task("billing", &[TOOL])).await;
    let (first, second, third) = (
        prove(&mut sessions, &session).await,
        prove(&mut sessions, &session).await,
        prove(&mut sessions, &session).await,
    );
    assert!(two.check(&first).await.active, "keys are known from now on");
    drop(sessions);
    two.issuing.stop().await;
    assert_eq!(two.check(&second).await.reason, "node_unreachable");
    // Somebody listens there, and says nothing.
    let _silent = TcpListener::bind(two.issuing_at).await.unwrap();
    assert_eq!(within(two.check(&third)).await.reason, "node_unreachable", "the asker does not wait for ever");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_goes_on_for_as_long_as_policy_takes_the_last_word_of_a_node_that_is_gone() {
    let mut two = Two::start().await;
    let accepts_reads = r#"@stale("30s") permit (principal, action == Action::"read", resource);"#;
    std::fs::write(two.asking.config().policies_dir.join("stale.cedar"), accepts_reads).unwrap();
    two.asking.restart().await;
    // Proofs from before its new start are refused.
    for agent in [&two.issuing, &two.asking] {
        agent.clock().advance(Duration::from_secs(2));
    }
    let (mut sessions, session) = two.session(task("billing", &[TOOL])).await;
    let mut proofs = Vec::new();
    for method in ["GET", "GET", "POST", "GET"] {
        let request = ProveRequest {
            session: session.id.clone(),
            method: method.to_owned(),
            uri: URI.to_owned(),
            ..ProveRequest::default()
        };
        proofs.push((method, sessions.prove(request).await.unwrap().into_inner().headers));
    }
    let (_, other) = two.session(task("other", &[TOOL])).await;
    let request =
        ProveRequest { session: other.id, method: "GET".to_owned(), uri: URI.to_owned(), ..ProveRequest::default() };
    let never_seen = sessions.prove(request).await.unwrap().into_inner().headers;
    let ask = async |two: &Two, method: &str, headers: &HashMap<String, String>| {
        let (method, uri, headers) = (method.to_owned(), URI.to_owned(), headers.clone());
        let request = CheckRequest { method, uri, headers, ..CheckRequest::default() };
        two.asking.verifier().await.check(request).await.unwrap().into_inner().reason
    };
    assert_eq!(ask(&two, proofs[0].0, &proofs[0].1).await, "");
    drop(sessions);
    two.issuing.stop().await;
    two.asking.clock().advance(Duration::from_secs(25));
    assert_eq!(ask(&two, proofs[1].0, &proofs[1].1).await, "", "a read");
    assert_eq!(ask(&two, proofs[1].0, &proofs[1].1).await, "replayed", "and once");
    assert_eq!(ask(&two, proofs[2].0, &proofs[2].1).await, "node_unreachable", "a write");
    assert_eq!(ask(&two, "GET", &never_seen).await, "node_unreachable", "a token it has never spoken of");
    two.asking.clock().advance(Duration::from_secs(6));
    assert_eq!(ask(&two, proofs[3].0, &proofs[3].1).await, "node_unreachable", "its last word is too old");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_not_configured_is_not_asked() {
    let two = Two::start().await;
    let third = node(two.root.path(), free_address(), |_| ()).await;
    third.clock().advance(Duration::from_secs(2));
    let mut sessions = third.sessions().await;
    let session = sessions.start(task("billing", &[TOOL])).await.unwrap().into_inner();
    let headers = prove(&mut sessions, &session).await;
    assert_eq!(two.check(&headers).await.reason, "node_unknown");
    assert_eq!(check(&third, &headers).await.reason, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workload_with_a_good_svid_at_the_address_of_a_node_is_not_that_node() {
    let mut two = Two::start().await;
    let (mut sessions, session) = two.session(task("billing", &[TOOL])).await;
    let headers = prove(&mut sessions, &session).await;
    drop(sessions);
    let endpoint = Endpoint::Unix(two.asking.socket().to_owned());
    let source = within(X509Source::connect_by(endpoint, Custody::Program, two.asking.time())).await.unwrap();
    two.issuing.stop().await;
    let listener = TcpListener::bind(two.issuing_at).await.unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(server_config(&source, Authorize::Anyone)));
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut request = [0; 1024];
            if stream.read(&mut request).await.is_ok_and(|read| read > 0) {
                let _ = tell.send(());
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{\"active\":true}").await;
            }
        }
    });
    assert_eq!(two.check(&headers).await.reason, "node_unreachable");
    assert!(told.try_recv().is_err(), "it was not told anything");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_a_node_makes_anew_are_fetched_when_they_are_needed() {
    let two = Two::start().await;
    let (mut sessions, session) = two.session(task("billing", &[TOOL])).await;
    assert!(two.check(&prove(&mut sessions, &session).await).await.active);
    let mut authorities = two.issuing.authorities().await;
    let request = tether::proto::admin::RotateAuthorityRequest { kind: "wit".to_owned(), ..Default::default() };
    authorities.rotate(request).await.unwrap();
    for agent in [&two.issuing, &two.asking] {
        agent.clock().advance(Duration::from_secs(15));
    }
    let (mut sessions, session) = two.session(task("billing", &[TOOL])).await;
    let answer = two.check(&prove(&mut sessions, &session).await).await;
    assert!(answer.active, "{answer:?}");
}
