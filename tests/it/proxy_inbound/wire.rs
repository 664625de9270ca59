//! Bad input: what must not pass, byte by byte.

use std::time::Duration;

use http::{Method, Request};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};
use rustls::AlertDescription as Alert;
use rustls::pki_types::PrivatePkcs8KeyDer;
use tether::proxy::empty;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::stage::{Stage, id};
use crate::handshake::Credentials;
use crate::harness::within;

/// What a client with this TLS is told.
async fn told(stage: &Stage, tls: rustls::ClientConfig) -> Option<rustls::Error> {
    let mut stream = match stage.connect(tls, b"http/1.1").await {
        Ok(stream) => stream,
        Err(error) => return error.into_inner()?.downcast().ok().map(|error| *error),
    };
    let error = match within(stream.read_u8()).await {
        Ok(byte) => panic!("it was let in: {byte}"),
        Err(error) => error,
    };
    error.into_inner()?.downcast().ok().map(|error| *error)
}

/// Credentials from an authority that is not the agent's.
fn forged(spiffe_id: &str) -> Credentials {
    let (ca_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let mut leaf = CertificateParams::default();
    leaf.subject_alt_names = vec![SanType::URI(spiffe_id.try_into().unwrap())];
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    leaf.is_ca = IsCa::ExplicitNoCa;
    let leaf = leaf.signed_by(&key, &Issuer::from_params(&ca, &ca_key)).unwrap();
    Credentials { chain: vec![leaf.der().clone()], key: PrivatePkcs8KeyDer::from(key.serialize_der()) }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_let_in_learns_it_in_the_handshake_and_the_tool_sees_nothing() {
    let stage = Stage::with(|proxy| proxy.allow = vec![id("client")]).await;
    let refused = |alert| Some(rustls::Error::AlertReceived(alert));
    assert_eq!(told(&stage, stage.tls("stranger")).await, refused(Alert::AccessDenied), "another identity");
    let ours = forged("spiffe://dev.tether.internal/client");
    assert_eq!(told(&stage, stage.tls_stolen(&ours)).await, refused(Alert::UnknownCA), "a forged one");
    let theirs = forged("spiffe://elsewhere.example/client");
    assert_eq!(told(&stage, stage.tls_stolen(&theirs)).await, refused(Alert::UnknownCA), "another trust domain");
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let nobody = rustls::ClientConfig::builder_with_provider(provider.into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(std::sync::Arc::new(tether::client::tls::PeerVerifier::new(
            &stage.source,
            tether::client::tls::Authorize::Anyone,
        )))
        .with_no_client_auth();
    assert_eq!(told(&stage, nobody).await, refused(Alert::CertificateRequired), "no certificate");
    assert!(stage.tool.seen().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_certificate_is_refused_in_the_handshake() {
    let stage = Stage::start().await;
    let victim = crate::revocation::Victim::of(&stage.agent).await;
    let stolen = victim.stolen();
    stage.renewed().await;
    stage.agent.clock().advance(Duration::from_secs(6 * 60));
    let refused = told(&stage, stage.tls_stolen(&stolen)).await;
    assert_eq!(refused, Some(rustls::Error::AlertReceived(Alert::CertificateExpired)));
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_http_on_the_port_of_tls_is_answered_by_an_alert_alone() {
    let stage = Stage::start().await;
    let mut stream = stage.plain().await;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = within(stream.read_to_end(&mut answer)).await;
    assert_eq!(answer.first(), Some(&21), "an alert (RFC 8446, section 5.1): {answer:?}");
    assert!(stage.tool.seen().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_two_readers_could_read_in_two_ways_is_answered_by_400_and_goes_nowhere() {
    let stage = Stage::start().await;
    let host = stage.host();
    let smuggled = "0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n";
    let cases = [
        (
            "both lengths",
            format!(
                "POST /a HTTP/1.1\r\nHost: {host}\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n{smuggled}"
            ),
        ),
        (
            "both lengths, turned round",
            format!(
                "POST /a HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n{smuggled}"
            ),
        ),
        (
            "two lengths",
            format!("POST /a HTTP/1.1\r\nHost: {host}\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\n{smuggled}"),
        ),
        (
            "a length twice",
            format!("POST /a HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n"),
        ),
        ("a list of lengths", format!("POST /a HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0, 0\r\n\r\n")),
        (
            "another coding",
            format!("POST /a HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: gzip, chunked\r\n\r\n{smuggled}"),
        ),
        ("identity", format!("POST /a HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: identity\r\n\r\n{smuggled}")),
        ("chunked in 1.0", format!("POST /a HTTP/1.0\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n{smuggled}")),
        ("a folded line", format!("GET /a HTTP/1.1\r\nHost: {host}\r\nX: a\r\n b\r\n\r\n")),
        ("a bare line feed", format!("GET /a HTTP/1.1\nHost: {host}\n\n")),
        ("a bare line feed in a value", format!("GET /a HTTP/1.1\r\nHost: {host}\r\nX: a\nTether-User: root\r\n\r\n")),
        ("a bare carriage return", format!("GET /a HTTP/1.1\r\nHost: {host}\r\nX: a\rY: b\r\n\r\n")),
        ("a space before the colon", format!("GET /a HTTP/1.1\r\nHost : {host}\r\n\r\n")),
        ("a NUL", format!("GET /a HTTP/1.1\r\nHost: {host}\r\nX: a\0b\r\n\r\n")),
        ("no host", "GET /a HTTP/1.1\r\nConnection: close\r\n\r\n".to_owned()),
        ("two hosts", format!("GET /a HTTP/1.1\r\nHost: {host}\r\nHost: {host}\r\nConnection: close\r\n\r\n")),
        (
            "another host in the URI",
            format!("GET https://other/a HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"),
        ),
        ("a dot segment", format!("GET /a/%2e%2e/b HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")),
        ("an escaped slash", format!("GET /a%2Fb HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")),
        ("a double slash", format!("GET /a//b HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")),
        (
            "half a header of a chunk",
            format!("POST /never HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n0x1\r\n"),
        ),
    ];
    for (what, request) in cases {
        let answer = stage.raw(request.as_bytes()).await;
        let refused = answer.starts_with("HTTP/1.1 400") || (what.starts_with("half") && !answer.contains(" 200 "));
        assert!(refused, "{what}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1").count(), usize::from(!answer.is_empty()), "{what}: {answer}");
    }
    let seen = stage.tool.seen();
    assert!(seen.iter().all(|line| line == "POST /never"), "{seen:?}");
    let other = format!("CONNECT other:443 HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    assert!(stage.raw(other.as_bytes()).await.starts_with("HTTP/1.1 501"));
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_one_after_the_other_on_one_connection_stay_the_requests_they_were() {
    let stage = Stage::start().await;
    let host = stage.host();
    let inner = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n";
    let requests = format!(
        "POST /a HTTP/1.1\r\nHost: {host}\r\nContent-Length: {}\r\n\r\n{inner}\
         POST /b HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n{:x};x=1\r\n{inner}\r\n0\r\n\r\n\
         GET /c HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n",
        inner.len(),
        inner.len(),
    );
    let answer = stage.raw(requests.as_bytes()).await;
    assert_eq!(answer.matches("HTTP/1.1 200").count(), 3, "{answer}");
    assert_eq!(stage.tool.seen(), ["POST /a", "POST /b", "GET /c"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_switch_that_does_not_happen_lets_nothing_past_the_gate() {
    // A line feed alone, which the parser would take.
    let smuggled = "GET /smuggled HTTP/1.1\nHost: HOST\nConnection: close\n\n";
    for (what, first, seen) in [
        (
            "in 1.0",
            "GET /a HTTP/1.0\r\nHost: HOST\r\nConnection: keep-alive\r\nUpgrade: websocket\r\n\r\n",
            &["GET /a"][..],
        ),
        ("CONNECT", "CONNECT other:443 HTTP/1.1\r\nHost: HOST\r\n\r\n", &[]),
        ("CONNECT in 1.0", "CONNECT other:443 HTTP/1.0\r\nHost: HOST\r\nConnection: keep-alive\r\n\r\n", &[]),
    ] {
        let stage = Stage::start().await;
        let requests = format!("{first}{smuggled}").replace("HOST", &stage.host());
        stage.raw(requests.as_bytes()).await;
        assert_eq!(stage.tool.seen(), seen, "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_brings_no_header_of_a_connection_and_no_second_host() {
    let stage = Stage::start().await;
    for (name, value) in [("connection", "x"), ("transfer-encoding", "chunked"), ("upgrade", "h2c"), ("te", "gzip")] {
        // h2 of our own client would not send it: so it goes out as another name of the same length, and is put right in
        // no frame. What our client refuses to send the server's side of the same library refuses to read.
        let mut client = stage.client(true).await;
        let request = stage.request(Method::GET, "/a").header(name, value).body(empty()).unwrap();
        match client.try_send(request).await {
            Err(_) => {}
            Ok(answer) => {
                let seen = super::stage::read(answer).await;
                assert!(!seen.contains(&format!("{name}: {value}")), "{seen}");
            }
        }
    }
    let mut client = stage.client(true).await;
    let two = stage.request(Method::GET, "/a").header("host", "other").body(empty()).unwrap();
    assert_eq!(client.send(two).await.status(), 400);
    let other = Request::builder().uri("https://other/a").body(empty()).unwrap();
    assert_eq!(client.send(other).await.status(), 421);
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_that_are_too_large_or_too_slow_end_the_connection_and_nobody_elses() {
    let stage = Stage::start().await;
    let host = stage.host();
    let large = format!("GET /a HTTP/1.1\r\nHost: {host}\r\nX: {}\r\n\r\n", "x".repeat(40 << 10));
    let answer = stage.raw(large.as_bytes()).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    let many = format!("GET /a HTTP/1.1\r\nHost: {host}\r\n{}\r\n", "X: x\r\n".repeat(200));
    assert!(stage.raw(many.as_bytes()).await.starts_with("HTTP/1.1 431"));
    let mut client = stage.client(true).await;
    let large = stage.request(Method::GET, "/a").header("x", "x".repeat(40 << 10)).body(empty()).unwrap();
    assert!(client.try_send(large).await.is_err() || stage.tool.seen().is_empty());

    let mut slow = stage.connect(stage.tls("client"), b"http/1.1").await.unwrap();
    slow.write_all(b"GET /a HTTP/1.1\r\nHost: ").await.unwrap();
    let mut answer = Vec::new();
    let ended = stage.while_time_passes(Duration::from_secs(10), slow.read_to_end(&mut answer)).await;
    assert!(ended.is_err() || answer.is_empty(), "{answer:?}");

    let mut silent = stage.plain().await;
    let ended = stage.while_time_passes(Duration::from_secs(10), silent.read_to_end(&mut answer)).await;
    assert_eq!(ended.unwrap(), 0, "no handshake");
    assert!(stage.tool.seen().is_empty());
    let mut client = stage.client(false).await;
    assert_eq!(client.send(stage.request(Method::GET, "/a").body(empty()).unwrap()).await.status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_connection_is_closed_and_one_with_an_open_stream_is_not() {
    let stage = Stage::start().await;
    let mut client = stage.client(true).await;
    let mut events = client.send(stage.request(Method::GET, "/events").body(empty()).unwrap()).await.into_body();
    let mut idle = stage.connect(stage.tls("client"), b"http/1.1").await.unwrap();
    let mut answer = Vec::new();
    stage.while_time_passes(Duration::from_secs(120), idle.read_to_end(&mut answer)).await.unwrap();
    stage.tool.event("still");
    let frame = within(http_body_util::BodyExt::frame(&mut events)).await.expect("an event").unwrap();
    assert_eq!(frame.into_data().unwrap(), "still");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_beyond_the_limit_are_closed_before_tls_and_places_come_free_again() {
    let stage = Stage::with(|proxy| proxy.limits.connections_per_address = 2).await;
    let (first, _second) = (stage.client(false).await, stage.client(false).await);
    let mut third = stage.plain().await;
    assert_eq!(within(third.read(&mut [0; 1])).await.unwrap_or_default(), 0);
    drop(first);
    within(async {
        loop {
            let Ok(stream) = stage.connect(stage.tls("client"), b"h2").await else { continue };
            let mut client = super::stage::Client::over(stream, true).await;
            let request = stage.request(Method::GET, "/a").body(empty()).unwrap();
            if client.try_send(request).await.is_ok_and(|answer| answer.status() == 200) {
                return;
            }
        }
    })
    .await;
}
