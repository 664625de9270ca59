use std::error::Error as _;

use super::*;
use crate::user::tests::{Answer, Server};

const AMPLE: Duration = Duration::from_secs(60);

fn endpoint(server: &Server, path: &str) -> Endpoint {
    Endpoint::parse(&format!("{}{path}", server.url)).unwrap()
}

#[test]
fn only_https_and_plain_http_to_a_loopback_address_may_be_asked() {
    use EndpointError::{Insecure, Malformed};
    for (url, expected) in [
        ("https://login.example.com", Ok(("login.example.com", 443, "/"))),
        ("https://login.example.com:8443/a/b?c=d", Ok(("login.example.com", 8443, "/a/b?c=d"))),
        ("https://[2001:db8::1]/keys", Ok(("2001:db8::1", 443, "/keys"))),
        ("http://127.0.0.1:8080/keys", Ok(("127.0.0.1", 8080, "/keys"))),
        ("http://[::1]/", Ok(("::1", 80, "/"))),
        ("http://localhost/keys", Err(Insecure)), // a name is whatever the resolver says
        ("http://login.example.com/", Err(Insecure)),
        ("http://127.0.0.1.example.com/", Err(Insecure)),
        ("ftp://login.example.com/", Err(Insecure)),
        ("file:///etc/passwd", Err(Malformed)),
        ("login.example.com", Err(Malformed)),
        ("/keys", Err(Malformed)),
        ("", Err(Malformed)),
        ("https://", Err(Malformed)),
        ("https://user:secret@login.example.com/", Err(Malformed)),
        ("https://127.0.0.1@login.example.com/", Err(Malformed)),
        ("https://login.example.com/#keys", Err(Malformed)),
        ("https://login.example.com:0/", Err(Malformed)),
        ("https://login.example.com:/", Err(Malformed)),
        ("https://login.example.com:65536/", Err(Malformed)),
        ("https://login example.com/", Err(Malformed)),
        ("https://-/", Err(Malformed)),
    ] {
        let parsed = Endpoint::parse(url);
        let parts = parsed.as_ref().map(|e| (e.host.as_str(), e.port, e.target.as_str())).map_err(Clone::clone);
        assert_eq!(parts, expected, "{url}");
    }
    assert_eq!(Endpoint::parse(&format!("https://a.example/{}", "x".repeat(MAX_URL))), Err(Malformed));
}

#[tokio::test]
async fn a_server_with_the_right_certificate_is_asked_and_its_answer_is_whole() {
    let server = Server::tls("127.0.0.1").await;
    server.answer("/keys?v=1", Answer::with("200 OK", "Cache-Control: max-age=60\r\n", "{}"));
    let dir = tempfile::tempdir().unwrap();
    let roots = dir.path().join("roots.pem");
    std::fs::write(&roots, &server.root).unwrap();
    let fetcher = Fetcher::new(Roots::File(roots));
    let answer = fetcher.get(&endpoint(&server, "/keys?v=1"), "application/json").await.unwrap();
    assert_eq!((answer.status.as_u16(), &answer.body[..]), (200, &b"{}"[..]));
    assert_eq!(answer.headers["cache-control"], "max-age=60");
    let request = server.last().to_ascii_lowercase();
    let host = server.url.strip_prefix("https://").unwrap();
    for line in ["get /keys?v=1 http/1.1", &format!("host: {host}"), "accept: application/json"] {
        assert!(request.contains(line), "{line}: {request}");
    }

    let body = Bytes::from_static(b"token=abc");
    let answer = fetcher.post(&endpoint(&server, "/introspect"), "application/x-www-form-urlencoded", body).await;
    assert_eq!(answer.unwrap().status.as_u16(), 404, "what counts as an answer is the caller's business");
    assert!(server.last().starts_with("POST /introspect") && server.last().ends_with("\r\n\r\ntoken=abc"));
}

#[tokio::test]
async fn a_server_with_another_root_or_name_or_without_tls_is_not_believed() {
    let right = Server::tls("127.0.0.1").await;
    let other_name = Server::tls("login.example.com").await;
    let plain = Server::plain().await;
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, pem: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, pem).unwrap();
        Roots::File(path)
    };
    let not_tls = plain.url.replace("http://", "https://");
    for (url, roots) in [
        (right.url.as_str(), write("a", &other_name.root)),
        (other_name.url.as_str(), write("b", &other_name.root)),
        (not_tls.as_str(), write("c", &right.root)),
    ] {
        let answer = Fetcher::new(roots).get(&Endpoint::parse(url).unwrap(), "*/*").await;
        assert!(matches!(answer, Err(FetchError::Tls { .. })), "{url}: {answer:?}");
    }
    assert_eq!((right.asked(), other_name.asked(), plain.asked()), (0, 0, 0), "nothing was said to them");

    for roots in [write("d", ""), write("e", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")] {
        let answer = Fetcher::new(roots).get(&endpoint(&right, "/"), "*/*").await;
        assert!(matches!(answer, Err(FetchError::Roots { .. })), "{answer:?}");
    }
    let answer = Fetcher::new(Roots::File(dir.path().join("absent"))).get(&endpoint(&right, "/"), "*/*").await;
    assert!(answer.unwrap_err().to_string().contains("set `ca_file`"));
}

#[tokio::test]
async fn an_answer_that_is_too_large_or_no_http_or_cut_is_refused() {
    let server = Server::plain().await;
    let large = "x".repeat(1025);
    server.answer("/large", Answer::with("200 OK", "", &large));
    server.answer("/fits", Answer::with("200 OK", "", &large[..1024]));
    let endless = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{large}\r\n", large.len());
    server.answer("/chunked", Answer::Raw(endless.into_bytes()));
    server.answer("/cut", Answer::Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf".to_vec()));
    server.answer("/other", Answer::Raw(b"220 mail.example.com ESMTP\r\n".to_vec()));
    server.answer("/empty", Answer::Raw(Vec::new()));
    let fetcher = Fetcher::new(Roots::Host).at_most(1024).within(AMPLE);
    let ask = async |path| fetcher.get(&endpoint(&server, path), "*/*").await;
    assert_eq!(ask("/fits").await.unwrap().body.len(), 1024);
    for path in ["/large", "/chunked"] {
        assert!(matches!(ask(path).await, Err(FetchError::TooLarge { limit: 1024, .. })), "{path}");
    }
    for path in ["/cut", "/other", "/empty"] {
        let error = ask(path).await.unwrap_err();
        assert!(matches!(error, FetchError::Http { .. }) && error.source().is_some(), "{path}: {error:?}");
    }
}

#[tokio::test]
async fn redirects_are_answers_and_not_followed() {
    let server = Server::plain().await;
    server.answer("/old", Answer::with("302 Found", "Location: /new\r\n", ""));
    server.answer("/new", Answer::with("200 OK", "", "secret"));
    let answer = Fetcher::new(Roots::Host).get(&endpoint(&server, "/old"), "*/*").await.unwrap();
    assert_eq!((answer.status.as_u16(), server.asked()), (302, 1));
}

#[tokio::test]
async fn nobody_listening_and_nobody_answering_are_errors_in_time() {
    let server = Server::plain().await;
    server.answer("/", Answer::Nothing);
    let at_once = Fetcher::new(Roots::Host).within(Duration::from_millis(50));
    let answer = at_once.get(&endpoint(&server, "/"), "*/*").await;
    assert!(matches!(answer, Err(FetchError::Late { .. })), "{answer:?}");
    let gone = endpoint(&server, "/");
    drop(server);
    let answer = Fetcher::new(Roots::Host).within(AMPLE).get(&gone, "*/*").await;
    // The listener goes with its task, which may not have noticed yet.
    assert!(matches!(answer, Err(FetchError::Connect { .. } | FetchError::Http { .. })), "{answer:?}");
}
