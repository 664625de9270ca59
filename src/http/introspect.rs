//! Introspection (RFC 7662): `docs/session-profile.md`, section 9, is its definition.
//!
//! Promises: whoever asks is found out first, and whatever is wrong with the request or with whoever asks about it, the
//! answer has the same bytes. Does not: say why; audit does.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::{respond, text};
use crate::peer::{Instances, LoopbackError, LoopbackPeer};
use crate::trust::Trust;
use crate::verify::introspection::{INACTIVE, Introspected, MAX_FORM_BYTES, answer};
use crate::verify::{Asker, NotAsker, Verifier};
use crate::x509::Certificate;

pub(super) const PATH: &str = "/introspect";
const KEYS: &str = "/keys";
const FORM: &str = "application/x-www-form-urlencoded";
/// Searches for the process behind a connection at one time: each reads the descriptors of every process.
const MAX_SEARCHES: usize = 4;

/// Answers questions about requests.
#[derive(Clone, Debug)]
pub struct Introspection {
    verifier: Arc<Verifier>,
    instances: Instances,
    trust: Arc<Trust>,
    searches: Arc<Semaphore>,
}

impl Introspection {
    /// Answers from `verifier`.
    pub fn new(verifier: Arc<Verifier>, instances: Instances, trust: Arc<Trust>) -> Self {
        Self { verifier, instances, trust, searches: Arc::new(Semaphore::new(MAX_SEARCHES)) }
    }

    /// A question of a process of this host.
    pub(super) async fn over_loopback(
        &self,
        request: Request<Incoming>,
        ours: SocketAddr,
        theirs: SocketAddr,
    ) -> Response<Full<Bytes>> {
        let asked = match read(request).await {
            Ok(asked) => asked,
            Err(malformed) => return malformed,
        };
        let asking = async {
            let peer = self.search(move |instances| LoopbackPeer::find(instances, ours, theirs)).await?;
            let asker = self.verifier.asker_on_loopback(&peer, &asked.call.target.uri).await?;
            Ok((peer, asker))
        };
        let (peer, asker) = match asking.await {
            Ok(found) => found,
            Err(refused) => return self.not_told(&refused),
        };
        let answer = self.answer(&asker, &asked).await;
        // The answer goes to whoever has the connection now.
        match self.search(move |_| peer.still()).await {
            Ok(()) => answer,
            Err(refused) => self.not_told(&refused),
        }
    }

    /// A question of whoever has the key of this certificate, or the keys of this node.
    pub(super) async fn over_tls(&self, request: Request<Incoming>, leaf: &Certificate) -> Response<Full<Bytes>> {
        match (request.method(), request.uri().path()) {
            (&Method::GET, KEYS) => return self.keys(),
            (_, PATH) => {}
            _ => return text(StatusCode::NOT_FOUND, "there are POST /introspect and GET /keys\n"),
        }
        let asked = match read(request).await {
            Ok(asked) => asked,
            Err(malformed) => return malformed,
        };
        match self.verifier.asker_with_svid(leaf, &asked.call.target.uri).await {
            Ok(asker) => self.answer(&asker, &asked).await,
            Err(refused) => self.not_told(&refused),
        }
    }

    async fn answer(&self, asker: &Asker, asked: &Introspected) -> Response<Full<Bytes>> {
        match self.verifier.judge(asker, &asked.call, asked.presented()).await {
            Ok(Ok(verified)) => no_store(answer(&asked.call, &verified, asker.is_node()).to_string()),
            Ok(Err(_)) => inactive(),
            Err(refusal) => self.not_told(&refusal.into()),
        }
    }

    /// Runs what reads much, a few at a time.
    async fn search<T: Send + 'static>(
        &self,
        search: impl FnOnce(&Instances) -> Result<T, LoopbackError> + Send + 'static,
    ) -> Result<T, NotAsker> {
        let _turn = self.searches.acquire().await;
        let instances = self.instances.clone();
        let found = tokio::task::spawn_blocking(move || search(&instances)).await;
        Ok(found.unwrap_or(Err(LoopbackError::Gone))?)
    }

    fn not_told(&self, refused: &NotAsker) -> Response<Full<Bytes>> {
        self.verifier.record_not_asker(refused);
        inactive()
    }

    /// The keys that this node signs WITs with, as a JWK set.
    fn keys(&self) -> Response<Full<Bytes>> {
        let trust = self.trust.current();
        let keys = trust.wit(trust.domain()).into_iter().flat_map(|keys| keys.iter());
        let keys: Vec<Value> = keys
            .map(|(id, key)| {
                let mut jwk = key.to_json();
                jwk.insert("use".to_owned(), "wit-svid".into());
                jwk.insert("kid".to_owned(), id.into());
                Value::Object(jwk)
            })
            .collect();
        no_store(json!({ "keys": keys }).to_string())
    }
}

/// The question in a request, or what is wrong with its form.
async fn read(request: Request<Incoming>) -> Result<Introspected, Response<Full<Bytes>>> {
    if request.method() != Method::POST {
        return Err(text(StatusCode::METHOD_NOT_ALLOWED, "only POST is answered here\n"));
    }
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let kind = kind.map(|kind| kind.split(';').next().unwrap_or_default().trim());
    if !kind.is_some_and(|kind| kind.eq_ignore_ascii_case(FORM)) {
        return Err(invalid(StatusCode::UNSUPPORTED_MEDIA_TYPE));
    }
    let body = Limited::new(request.into_body(), MAX_FORM_BYTES).collect().await;
    let body = body.map_err(|error| {
        let too_long = error.is::<LengthLimitError>();
        invalid(if too_long { StatusCode::PAYLOAD_TOO_LARGE } else { StatusCode::BAD_REQUEST })
    })?;
    let body = body.to_bytes();
    let asked = std::str::from_utf8(&body).ok().and_then(Introspected::parse);
    asked.ok_or_else(|| invalid(StatusCode::BAD_REQUEST))
}

/// RFC 6749, section 5.2.
fn invalid(code: StatusCode) -> Response<Full<Bytes>> {
    let mut response = no_store("{\"error\":\"invalid_request\"}".to_owned());
    *response.status_mut() = code;
    response
}

fn inactive() -> Response<Full<Bytes>> {
    no_store(INACTIVE.to_owned())
}

fn no_store(body: String) -> Response<Full<Bytes>> {
    let mut response = respond(StatusCode::OK, "application/json", body);
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
