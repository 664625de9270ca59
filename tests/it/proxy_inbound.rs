//! The inbound proxy: a real agent, real TLS on real sockets, and a tool behind that knows nothing of either.

mod cuts;
mod stage;
mod wire;

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt as _;
use tether::client::Endpoint;
use tether::client::tls::Custody;
use tether::proxy::inbound::{Demands, Inbound, PublicUri, StartError, build};
use tether::proxy::{Address, empty, full};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use self::stage::{Stage, body, id, read};
use crate::harness::{TestAgent, within};

const SPOOFED: [(&str, &str); 7] = [
    ("x-forwarded-client-cert", "URI=spiffe://dev.tether.internal/admin"),
    ("tether-user", "root"),
    ("Tether_Session", "x"),
    ("x-forwarded-for", "10.0.0.1"),
    ("forwarded", "for=10.0.0.1"),
    ("workload_identity_token", "x"),
    ("tether-anything", "x"),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_request_reaches_the_tool_with_the_callers_identity_and_nothing_that_the_caller_claims() {
    let stage = Stage::start().await;
    for http2 in [false, true] {
        let mut client = stage.client(http2).await;
        let mut request = stage.request(Method::GET, "/a?q=1").header("x-hop", "1");
        // Named there, what the proxy says would be removed with what the client says.
        let named = "x-hop, tether-spiffe-id, x-forwarded-client-cert, x-forwarded-for, forwarded, host";
        request = request.header("connection", named);
        if http2 {
            request = stage.request(Method::GET, "/a?q=1");
        }
        for (name, value) in SPOOFED {
            request = request.header(name, value);
        }
        let answer = client.send(request.header("authorization", "Bearer mine").body(empty()).unwrap()).await;
        assert_eq!(answer.status(), StatusCode::OK);
        let seen = read(answer).await;
        let says = |line: &str| seen.lines().any(|seen| seen == line);
        assert!(says("GET /a?q=1"), "{seen}");
        assert!(says("tether-spiffe-id: spiffe://dev.tether.internal/client"), "{seen}");
        assert!(says("authorization: Bearer mine"), "credentials of other schemes are the tool's: {seen}");
        assert!(says(&format!("host: {}", stage.host())), "{seen}");
        assert!(says("x-forwarded-for: 127.0.0.1") && says("x-forwarded-proto: https"), "{seen}");
        let xfcc = seen.lines().find_map(|line| line.strip_prefix("x-forwarded-client-cert: ")).expect("it is there");
        assert!(xfcc.starts_with("By=spiffe://dev.tether.internal/server;Hash="), "{xfcc}");
        assert!(xfcc.ends_with(";URI=spiffe://dev.tether.internal/client"), "{xfcc}");
        for gone in ["root", "tether_session", "10.0.0.1", "workload_identity_token", "tether-anything", "x-hop"] {
            assert!(!seen.contains(gone), "{gone}: {seen}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_in_a_session_tells_the_tool_session_and_purpose_and_its_proof_is_good_once() {
    let stage = Stage::start().await;
    let session = stage.session("billing").await;
    let proof = stage.prove(&session, Method::POST, "/pay").await;
    let mut client = stage.client(true).await;
    let request = || {
        let mut request = stage.request(Method::POST, "/pay").body(full("now")).unwrap();
        request.headers_mut().extend(proof.clone());
        request
    };
    let seen = read(client.send(request()).await).await;
    assert!(seen.contains(&format!("tether-session: {session}\n")), "{seen}");
    assert!(seen.contains("tether-purpose: billing\n") && seen.contains("tether-txn: "), "{seen}");
    assert!(!seen.contains("workload-identity-token") && !seen.contains("authorization"), "{seen}");
    assert!(seen.ends_with("\nnow"), "{seen}");
    let again = client.send(request()).await;
    assert_eq!(again.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(read(again).await, r#"{"error":"unproven","reason":"replayed"}"#);
}

#[tokio::test(flavor = "multi_thread")]
async fn policy_decides_on_each_request_and_the_client_learns_by_a_code_what_is_missing() {
    let stage = Stage::start().await;
    let no = "@id(\"no-delete\") forbid (principal, action == Action::\"reach\", resource) \
              when { context.method == \"DELETE\" };";
    stage.agent.write_policies("no.cedar", no).await;
    let mut client = stage.client(false).await;
    let denied = client.send(stage.request(Method::DELETE, "/a").body(empty()).unwrap()).await;
    assert_eq!(denied.status(), StatusCode::FORBIDDEN);
    assert_eq!(read(denied).await, r#"{"error":"forbidden","reason":"policy"}"#);
    let allowed = client.send(stage.request(Method::GET, "/a").body(empty()).unwrap()).await;
    assert_eq!(allowed.status(), StatusCode::OK);
    assert_eq!(stage.tool.seen(), ["GET /a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_proxy_demands_of_every_request_holds_whatever_policy_says() {
    let proof = Demands { proof: true, ..Demands::default() };
    let session = Demands { session: true, ..Demands::default() };
    let binding = Demands { min_binding: 4, ..Demands::default() };
    let covered = Demands { covered_body: Some(8), ..Demands::default() };
    for (demands, status, reason) in
        [(proof, 401, "no_proof"), (session, 401, "no_proof"), (binding, 403, "binding"), (covered, 401, "no_proof")]
    {
        let stage = Stage::with(|proxy| proxy.demands = demands).await;
        let mut client = stage.client(false).await;
        let refused = client.send(stage.request(Method::GET, "/a").body(empty()).unwrap()).await;
        assert_eq!(refused.status(), status, "{demands:?}");
        assert!(read(refused).await.contains(reason), "{demands:?}");
        assert!(stage.tool.seen().is_empty());
    }
    let stage = Stage::with(|proxy| proxy.demands = covered).await;
    let session = stage.session("billing").await;
    let mut client = stage.client(true).await;
    let covering = stage.prove_body(&session, Method::POST, "/pay", b"12345678").await;
    for (sent, status) in [("12345679", 401), ("123456789", 413), ("12345678", 200)] {
        let mut request = stage.request(Method::POST, "/pay").body(full(sent)).unwrap();
        request.headers_mut().extend(covering.clone());
        assert_eq!(client.send(request).await.status(), status, "{sent}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_trailers_and_events_pass_as_they_come_in_both_versions() {
    for http2_behind in [false, true] {
        let stage = Stage::behind(http2_behind, |_| ()).await;
        let mut client = stage.client(true).await;
        // Each piece comes back before the next one is sent.
        let (mut send, sent) = body();
        let request = stage.request(Method::POST, "/echo").header("te", "trailers").header("trailer", "x-sum");
        let mut answer = client.send(request.body(sent).unwrap()).await.into_body();
        for piece in ["one", "two", "three"] {
            send.send_data(Bytes::from(piece)).await;
            let frame = within(answer.frame()).await.expect("a piece").unwrap();
            assert_eq!(frame.into_data().unwrap(), piece);
        }
        let trailers = [("x-sum", "3"), ("tether-user", "root")];
        send.send_trailers(&trailers).await;
        let last = within(answer.frame()).await.expect("trailers").unwrap().into_trailers().unwrap();
        assert_eq!(last.get("x-sum").unwrap(), "3");
        assert!(!last.contains_key("tether-user"), "what clients may not say they may not say at the end either");

        let mut events = client.send(stage.request(Method::GET, "/events").body(empty()).unwrap()).await.into_body();
        for event in ["a", "b"] {
            stage.tool.event(event);
            let frame = within(events.frame()).await.expect("an event").unwrap();
            assert_eq!(frame.into_data().unwrap(), event);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_passes_both_ways_and_no_other_protocol_is_switched_to() {
    let stage = Stage::start().await;
    let mut stream = stage.websocket("websocket").await;
    stream.write_all(b"ping").await.unwrap();
    let mut echoed = [0; 4];
    within(stream.read_exact(&mut echoed)).await.unwrap();
    assert_eq!(&echoed, b"ping");
    let head = format!("GET /ws HTTP/1.1\r\nHost: {}\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n", stage.host());
    let answer = stage.raw(head.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("connection: close"), "{answer}");
    assert!(!answer.contains("h2c"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tool_that_is_down_or_slow_is_told_apart_and_a_unix_socket_is_as_good_as_a_port() {
    let stage = Stage::with(|proxy| proxy.limits.upstream = Duration::from_secs(30)).await;
    let mut client = stage.client(true).await;
    let slow = tokio::spawn(client.begin(stage.request(Method::GET, "/never").body(empty()).unwrap()));
    within(async {
        while stage.tool.seen().is_empty() {
            tokio::task::yield_now().await
        }
    })
    .await;
    let slow = stage.while_time_passes(Duration::from_secs(30), slow).await.unwrap();
    assert_eq!(slow.status(), StatusCode::GATEWAY_TIMEOUT);
    assert!(read(slow).await.contains("upstream_slow"));
    stage.tool.stop();
    let down = client.send(stage.request(Method::GET, "/a").body(empty()).unwrap()).await;
    assert_eq!(down.status(), StatusCode::BAD_GATEWAY);
    assert_eq!(read(down).await, r#"{"error":"upstream_unreachable","reason":"upstream_unreachable"}"#);

    let stage = Stage::on_unix_socket().await;
    let mut client = stage.client(false).await;
    assert_eq!(client.send(stage.request(Method::GET, "/a").body(empty()).unwrap()).await.status(), StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_policy_the_handshake_decides_alone_and_somebody_must_be_named() {
    let stage = Stage::with(|proxy| {
        proxy.policy = false;
        proxy.allow = vec![id("client")];
    })
    .await;
    let mut client = stage.client(false).await;
    let seen = read(client.send(stage.request(Method::GET, "/a").body(empty()).unwrap()).await).await;
    assert!(seen.contains("tether-spiffe-id: spiffe://dev.tether.internal/client"), "{seen}");

    let agent = TestAgent::start().await;
    let here = |text: &str| Address::parse(text).unwrap();
    let settings = || Inbound::new(Endpoint::Unix(agent.socket().to_owned()), here("127.0.0.1:0"), here("127.0.0.1:9"));
    let refused = async |settings: Inbound| within(build(settings)).await.err().expect("it is refused");
    assert!(matches!(refused(Inbound { policy: false, ..settings() }).await, StartError::NobodyDecides));
    let remote = Inbound { upstream: here("10.0.0.1:80"), ..settings() };
    assert!(matches!(refused(remote).await, StartError::RemoteUpstream(_)));
    let open = Inbound { metrics: Some("0.0.0.0:0".parse().unwrap()), ..settings() };
    assert!(matches!(refused(open).await, StartError::OpenMetrics(_)));
    let unnamed = Inbound { listen: here("0.0.0.0:0"), ..settings() };
    assert!(matches!(refused(unnamed).await, StartError::Public(_)));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_without_sessions_is_told_apart_at_the_start() {
    let agent = TestAgent::configured(|config| config.sessions.enabled = false).await;
    let here = |text: &str| Address::parse(text).unwrap();
    let settings = Inbound::new(Endpoint::Unix(agent.socket().to_owned()), here("127.0.0.1:0"), here("127.0.0.1:9"));
    let refused = within(build(settings)).await.err().expect("there is nobody to ask");
    assert!(matches!(refused, StartError::NoVerifier), "{refused}");
    assert!(refused.to_string().contains("--no-policy"), "it says what to do");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_for_a_host_that_is_not_this_tools_is_misdirected_whatever_its_proof_says() {
    let stage = Stage::with(|proxy| proxy.public = vec![PublicUri::parse("https://tool.example.com").unwrap()]).await;
    let mut client = stage.client(false).await;
    for (host, status) in [("tool.example.com", 200), ("TOOL.example.com:443", 200), ("other.example.com", 421)] {
        let request = Request::builder().uri("/a").header("host", host).body(empty()).unwrap();
        assert_eq!(client.send(request).await.status(), status, "{host}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_agent_restarts_requests_wait_and_none_is_lost() {
    let mut stage = Stage::with(|proxy| proxy.custody = Custody::Program).await;
    let mut client = stage.client(true).await;
    assert_eq!(client.send(stage.request(Method::GET, "/a").body(empty()).unwrap()).await.status(), 200);
    let mut events = client.send(stage.request(Method::GET, "/events").body(empty()).unwrap()).await.into_body();
    stage.agent.stop().await;
    let waiting: Vec<_> = (0..20)
        .map(|number| {
            let request = stage.request(Method::POST, &format!("/w{number}")).body(full("x")).unwrap();
            tokio::spawn(client.begin(request))
        })
        .collect();
    stage.tool.event("on it goes");
    let frame = within(events.frame()).await.expect("an event").unwrap();
    assert_eq!(frame.into_data().unwrap(), "on it goes", "what is open outside a session goes on");
    stage.agent.restart().await;
    for answer in waiting {
        assert_eq!(within(answer).await.unwrap().status(), 200);
    }
    // A while later new clients come in as before.
    let mut client = stage.client_when_ready().await;
    assert_eq!(client.send(stage.request(Method::GET, "/a").body(empty()).unwrap()).await.status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_agent_is_away_nothing_passes_unchecked() {
    let mut stage = Stage::with(|proxy| proxy.custody = Custody::Program).await;
    let client = stage.client(true).await;
    stage.agent.stop().await;
    let refused = client.begin(stage.request(Method::GET, "/a").body(empty()).unwrap());
    let refused = stage.while_time_passes(Duration::from_secs(5), refused).await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refused.headers()["retry-after"], "1");
    assert_eq!(read(refused).await, r#"{"error":"unavailable","reason":"agent_away"}"#);
    assert!(stage.tool.seen().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_is_told_to_stop_finishes_what_is_open_and_takes_nothing_new() {
    let mut stage = Stage::start().await;
    let mut client = stage.client(true).await;
    let mut events = client.send(stage.request(Method::GET, "/events").body(empty()).unwrap()).await.into_body();
    stage.stop_proxy();
    within(client.closing(|| stage.request(Method::GET, "/a").body(empty()).unwrap())).await;
    assert!(stage.refuses_connections().await);
    stage.tool.event("last");
    stage.tool.end_events();
    let frame = within(events.frame()).await.expect("an event").unwrap();
    assert_eq!(frame.into_data().unwrap(), "last");
    let rest = within(events.collect()).await.expect("the stream ends in order").to_bytes();
    assert!(rest.is_empty(), "{rest:?}");
    within(stage.proxy_ended()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_and_readiness_tell_what_came_of_requests_and_whether_the_agent_is_there() {
    let mut stage = Stage::with(|proxy| proxy.metrics = Some("127.0.0.1:0".parse().unwrap())).await;
    let mut client = stage.client(false).await;
    client.send(stage.request(Method::GET, "/a").body(empty()).unwrap()).await;
    let other = Request::builder().uri("/a").header("host", "other").body(empty()).unwrap();
    client.send(other).await;
    let metrics = stage.probe("/metrics").await;
    for line in [
        "tether_proxy_requests_total{outcome=\"passed\"} 1",
        "tether_proxy_requests_total{outcome=\"misdirected\"} 1",
        "tether_proxy_handshakes_total{outcome=\"ok\"} 1",
        "tether_proxy_connections 1",
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
    assert!(stage.probe("/readyz").await.starts_with("HTTP/1.1 200"));
    stage.agent.stop().await;
    within(async { while stage.probe("/readyz").await.starts_with("HTTP/1.1 200") {} }).await;
    assert!(stage.probe("/livez").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test(flavor = "multi_thread")]
async fn in_front_of_an_mcp_server_each_call_inside_a_request_is_decided() {
    let stage = Stage::with(|proxy| proxy.mcp = true).await;
    let no = "@id(\"no-wire\") forbid (principal, action == Action::\"reach\", resource) \
              when { context.tool == \"wire\" };";
    stage.agent.write_policies("no.cedar", no).await;
    let mut client = stage.client(true).await;
    let call = |tool: &str| {
        let body = format!(
            r#"{{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{{"name":"{tool}","arguments":{{}}}}}}"#
        );
        let request = stage.request(Method::POST, "/mcp").header("content-type", "application/json");
        request.header("accept", "application/json, text/event-stream").body(full(body)).unwrap()
    };
    let refused = client.send(call("wire")).await;
    let refused: serde_json::Value = serde_json::from_str(&read(refused).await).unwrap();
    assert_eq!((refused["id"].as_i64(), refused["error"].is_object()), (Some(7), true), "{refused}");
    assert!(stage.tool.seen().is_empty());
    let passed = read(client.send(call("look")).await).await;
    assert!(passed.contains("POST /mcp") && passed.contains(r#""name":"look""#), "{passed}");
    let wrong = stage.request(Method::POST, "/mcp").header("content-type", "application/json");
    assert_eq!(client.send(wrong.body(full("[")).unwrap()).await.status(), 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_becomes_of_a_call_is_written_into_the_audit_log() {
    let stage = Stage::start().await;
    let session = stage.session("billing").await;
    let mut events = stage.agent.audit();
    let mut client = stage.client(true).await;
    let mut request = stage.request(Method::POST, "/fails").body(full("x")).unwrap();
    request.headers_mut().extend(stage.prove(&session, Method::POST, "/fails").await);
    assert_eq!(client.send(request).await.status(), 500);
    let reported = |event: &tether::audit::Event| matches!(event, tether::audit::Event::CallReported { .. });
    let event = crate::harness::event(&mut events, reported).await;
    assert!(matches!(&event, tether::audit::Event::CallReported { outcome, .. } if *outcome == "failed"), "{event:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_runs_out_of_descriptors_pauses_and_goes_on_when_there_are_some() {
    // As a process of its own, so that nobody else runs out.
    let stage = Stage::start().await;
    let mut proxy = stage::Process::start(&stage, "ulimit -n 48").await;
    let mut held = Vec::new();
    for _ in 0..80 {
        // The kernel takes them; the proxy cannot.
        held.push(within(TcpStream::connect(proxy.address)).await.unwrap());
    }
    proxy.logs("no connection can be accepted on the proxy for now").await;
    drop(held);
    within(async {
        loop {
            let Ok(stream) = stage.connect_to(proxy.address, stage.tls("client"), b"h2").await else { continue };
            let mut client = stage::Client::over(stream, true).await;
            let request = Request::builder().uri(format!("https://localhost:{}/a", proxy.address.port()));
            if client.try_send(request.body(empty()).unwrap()).await.is_ok_and(|answer| answer.status() == 200) {
                return;
            }
        }
    })
    .await;
    assert!(proxy.ends_in_order().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_confines_itself_as_far_as_the_kernel_can_and_says_how_far_that_is() {
    use tether::sys::landlock::{Allowed, Confined, confine};
    let stage = Stage::start().await;
    let proxy = stage::Process::start(&stage, ":").await;
    let here = std::thread::spawn(|| confine(&Allowed::default()).unwrap()).join().unwrap();
    let expected = match here {
        Confined::Fully => "by Landlock, to the files and ports it needs",
        Confined::Partly => "by Landlock, as far as this kernel knows it",
        Confined::Not => "not: this kernel has no Landlock",
    };
    assert_eq!(proxy.confined, expected);
}
