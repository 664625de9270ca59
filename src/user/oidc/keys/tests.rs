//! A provider on a real socket, with a clock that is moved by hand.

use std::error::Error as _;

use aws_lc_rs::signature::ECDSA_P256_SHA256_FIXED_SIGNING;
use serde_json::json;

use super::super::tests::{NOW, claims, public, settings};
use super::super::{IssuerSettings, IssuerTable, Issuers};
use super::*;
use crate::base::clock::ManualClock;
use crate::jwt::tests::Forger;
use crate::user::fetch::Roots;
use crate::user::tests::{Answer, Server};
use crate::user::{User, UserError};

const DISCOVERY: &str = WELL_KNOWN;
const KEYS: &str = "/keys";

struct Provider {
    server: Server,
    issuers: Issuers,
    hand: ManualClock,
}

impl Provider {
    /// A provider that publishes `keys` and is found by discovery.
    async fn start(keys: &[(&Forger, &str)]) -> Self {
        let server = Server::plain().await;
        let document = json!({ "issuer": server.url, "jwks_uri": format!("{}{KEYS}", server.url), "other": [1] });
        server.answer(DISCOVERY, Answer::json(&document));
        Self::serving(server, keys, KeySource::Discovery)
    }

    fn serving(server: Server, keys: &[(&Forger, &str)], source: KeySource) -> Self {
        publish(&server, keys, "");
        Self::with(server, settings(source))
    }

    fn with(server: Server, settings: IssuerSettings) -> Self {
        let (clock, hand) = Clock::manual(NOW);
        let table = IssuerTable::from([(server.url.clone(), settings)]);
        Self { issuers: Issuers::new(table, &clock, &Entropy::system()), server, hand }
    }

    async fn check(&self, key: &Forger, id: &str) -> Result<User, UserError> {
        let header = json!({ "alg": "ES256", "kid": id }).to_string();
        let mut claims = claims(&self.server.url);
        claims["exp"] = (NOW.unix_timestamp() + 365 * 24 * 3600).into();
        self.issuers.user_of(&key.sign(&header, &claims.to_string())).await
    }

    async fn label(&self, key: &Forger, id: &str) -> &'static str {
        self.check(key, id).await.map_or_else(|error| error.as_str(), |_| "proven")
    }

    async fn asked(&self, times: usize) {
        while self.server.asked() < times {
            tokio::task::yield_now().await;
        }
        assert_eq!(self.server.asked(), times);
    }
}

fn publish(server: &Server, keys: &[(&Forger, &str)], headers: &str) {
    let keys: Vec<_> = keys.iter().map(|(key, id)| public(key, id)).collect();
    server.answer(KEYS, Answer::with("200 OK", headers, &json!({ "keys": keys }).to_string()));
}

fn key() -> Forger {
    Forger::ec(&ECDSA_P256_SHA256_FIXED_SIGNING)
}

#[tokio::test]
async fn keys_are_there_before_the_first_token_and_many_tokens_ask_once() {
    let a = key();
    let provider = Provider::start(&[(&a, "a")]).await;
    provider.asked(2).await;
    let all = futures_util::future::join_all((0..20).map(|_| provider.label(&a, "a"))).await;
    assert!(all.iter().all(|label| *label == "proven"), "{all:?}");
    assert_eq!(provider.server.asked(), 2, "the discovery document and the keys, once");
}

#[tokio::test]
async fn a_new_key_is_found_at_its_first_token_and_a_withdrawn_one_is_refused() {
    let (a, b) = (key(), key());
    let provider = Provider::start(&[(&a, "a")]).await;
    assert_eq!(provider.label(&a, "a").await, "proven");
    publish(&provider.server, &[(&b, "b")], "");
    assert_eq!(provider.label(&b, "b").await, "token_key", "it was asked just now");
    provider.hand.advance(ASK_AGAIN);
    let all = futures_util::future::join_all((0..20).map(|_| provider.label(&b, "b"))).await;
    assert!(all.iter().all(|label| *label == "proven"), "{all:?}");
    assert_eq!(provider.label(&a, "a").await, "token_key");
    assert_eq!(provider.server.asked(), 4, "once more for twenty tokens");
    for _ in 0..20 {
        assert_eq!(provider.label(&a, "made-up").await, "token_key");
    }
    assert_eq!(provider.server.asked(), 4, "made-up key IDs do not make us ask");
}

#[tokio::test]
async fn keys_are_fetched_again_before_they_are_old_without_anybody_asking() {
    let a = key();
    let provider = Provider::start(&[(&a, "a")]).await;
    assert_eq!(provider.label(&a, "a").await, "proven");
    provider.hand.advance(USUAL * 3 / 4);
    provider.asked(4).await;
}

#[tokio::test]
async fn an_issuer_that_is_gone_is_believed_for_a_while_and_no_longer_and_again_when_it_is_back() {
    let (a, b) = (key(), key());
    let provider = Provider::start(&[(&a, "a")]).await;
    assert_eq!(provider.label(&a, "a").await, "proven");
    provider.server.answer(KEYS, Answer::with("503 Service Unavailable", "", ""));
    provider.hand.advance(USUAL + STALE - Duration::from_secs(1));
    assert_eq!(provider.label(&a, "a").await, "proven");
    provider.hand.advance(Duration::from_secs(1));
    let error = provider.check(&a, "a").await.unwrap_err();
    assert!(error.is_temporary() && error.as_str() == "keys_unavailable", "{error:?}");
    let why = error.source().unwrap().to_string();
    assert!(why.contains("status 503"), "{why}");
    publish(&provider.server, &[(&b, "b")], "");
    provider.hand.advance(LONGEST_REST);
    assert_eq!(provider.label(&b, "b").await, "proven");
    assert_eq!(provider.label(&a, "a").await, "token_key");
}

#[tokio::test]
async fn after_the_clock_was_set_back_keys_are_fetched_anew() {
    let a = key();
    let provider = Provider::start(&[(&a, "a")]).await;
    assert_eq!(provider.label(&a, "a").await, "proven");
    provider.hand.set(NOW - Duration::from_secs(120));
    assert_eq!(provider.label(&a, "a").await, "token_not_yet_valid");
    assert_eq!(provider.server.asked(), 4);
}

#[tokio::test]
async fn whatever_else_a_provider_answers_proves_nobody() {
    let a = key();
    let large = format!(r#"{{"keys":[],"pad":"{}"}}"#, "x".repeat(1024 * 1024));
    let elsewhere = Server::plain().await;
    publish(&elsewhere, &[(&a, "a")], "");
    let redirect = format!("Location: {}{KEYS}\r\n", elsewhere.url);
    for (answer, expected) in [
        (Answer::with("302 Found", &redirect, ""), "answered with status 302; redirects are not followed"),
        (Answer::with("404 Not Found", "", ""), "answered with status 404"),
        (Answer::with("204 No Content", "", ""), "answered with status 204"),
        (Answer::with("200 OK", "Content-Type: text/html\r\n", "<html>"), "is no JWK set"),
        (Answer::json(&json!({})), "is no JWK set"),
        (Answer::json(&json!({ "keys": [] })), "is no JWK set"),
        (Answer::with("200 OK", "", &large), "larger than 1048576 bytes"),
        (Answer::Raw(b"SSH-2.0-OpenSSH_9.2\r\n".to_vec()), "did not answer as HTTP"),
    ] {
        let server = Server::plain().await;
        server.answer(KEYS, answer);
        let keys = KeySource::Url(Endpoint::parse(&format!("{}{KEYS}", server.url)).unwrap());
        let provider = Provider::with(server, settings(keys));
        let error = provider.check(&a, "a").await.unwrap_err();
        let why = words(&error);
        assert!(error.as_str() == "keys_unavailable" && why.contains(expected), "{expected}: {why}");
    }
    assert_eq!(elsewhere.asked(), 0);
}

#[tokio::test]
async fn a_discovery_document_must_be_that_of_the_very_issuer() {
    let a = key();
    for (document, expected) in [
        (
            json!({ "issuer": "https://login.example.com", "jwks_uri": "URL/keys" }),
            "is that of the issuer `https://login",
        ),
        (json!({ "issuer": "URL/", "jwks_uri": "URL/keys" }), "configure it by that very name"),
        (json!({ "issuer": "URL" }), "is no OpenID Connect discovery document"),
        (json!({ "jwks_uri": "URL/keys" }), "is no OpenID Connect discovery document"),
        (json!({ "issuer": "URL", "jwks_uri": 1 }), "is no OpenID Connect discovery document"),
        (json!([]), "is no OpenID Connect discovery document"),
        (json!({ "issuer": "URL", "jwks_uri": "http://keys.example.com/" }), "`jwks_uri` cannot be used"),
        (json!({ "issuer": "URL", "jwks_uri": "file:///etc/keys" }), "`jwks_uri` cannot be used"),
        (json!({ "issuer": "URL", "jwks_uri": "keys" }), "`jwks_uri` cannot be used"),
    ] {
        let server = Server::plain().await;
        let text = document.to_string().replace("URL", &server.url);
        server.answer(DISCOVERY, Answer::with("200 OK", "", &text));
        let provider = Provider::serving(server, &[(&a, "a")], KeySource::Discovery);
        let why = words(&provider.check(&a, "a").await.unwrap_err());
        assert!(why.contains(expected), "{expected}: {why}");
    }
}

#[tokio::test]
async fn an_issuer_is_asked_over_tls_with_its_own_roots() {
    let a = key();
    let server = Server::tls("127.0.0.1").await;
    let dir = tempfile::tempdir().unwrap();
    let ca_file = dir.path().join("ca.pem");
    std::fs::write(&ca_file, &server.root).unwrap();
    let document = json!({ "issuer": server.url, "jwks_uri": format!("{}{KEYS}", server.url) });
    server.answer(DISCOVERY, Answer::json(&document));
    publish(&server, &[(&a, "a")], "");
    let own = Some(ca_file);
    let provider = Provider::with(server, IssuerSettings { ca_file: own, ..settings(KeySource::Discovery) });
    assert_eq!(provider.label(&a, "a").await, "proven");
    // Who is asked over TLS cannot send us where anybody of this host could answer.
    let plain = Server::plain().await;
    publish(&plain, &[(&a, "a")], "");
    let document = json!({ "issuer": provider.server.url, "jwks_uri": format!("{}{KEYS}", plain.url) });
    provider.server.answer(DISCOVERY, Answer::json(&document));
    provider.hand.advance(USUAL + STALE);
    let why = words(&provider.check(&a, "a").await.unwrap_err());
    assert!(why.contains("`jwks_uri` cannot be used") && plain.asked() == 0, "{why}");
}

#[tokio::test]
async fn a_provider_that_never_answers_costs_the_deadline_once_and_nobody_who_stops_waiting_starts_another() {
    let a = key();
    let server = Server::plain().await;
    server.answer(KEYS, Answer::Nothing);
    let url = Endpoint::parse(&format!("{}{KEYS}", server.url)).unwrap();
    let (clock, _hand) = Clock::manual(NOW);
    let fetcher = Fetcher::new(Roots::Host).within(Duration::from_secs(1));
    let keys = Keys::new(&server.url, &KeySource::Url(url), fetcher, &clock, &Entropy::system());
    for _ in 0..20 {
        let impatient = tokio::time::timeout(Duration::ZERO, keys.find(|_| true)).await;
        assert!(impatient.is_err());
    }
    let answers = futures_util::future::join_all((0..20).map(|_| keys.find(|_| true))).await;
    for answer in answers {
        assert!(matches!(&*answer.unwrap_err(), KeysError::Fetch(FetchError::Late { .. })));
    }
    assert_eq!(server.asked(), 1);
    drop(a);
}

#[test]
fn an_answer_is_kept_as_long_as_it_says_within_bounds() {
    let kept = |value: &str| {
        let mut headers = http::HeaderMap::new();
        headers.insert(header::CACHE_CONTROL, value.parse().unwrap());
        kept_for(&Fetched { status: http::StatusCode::OK, headers, body: bytes::Bytes::new() }).as_secs()
    };
    for (value, expected) in [
        ("", 900),
        ("public", 900),
        ("public, max-age=600, must-revalidate", 600),
        ("Max-Age=\"300\"", 300),
        ("max-age=1", 60),
        ("max-age=0", 60),
        ("max-age=99999999999", 3600),
        ("max-age=99999999999999999999999", 60),
        ("max-age=soon", 60),
        ("max-age=600, no-cache", 60),
        ("no-store", 60),
    ] {
        assert_eq!(kept(value), expected, "{value}");
    }
}
