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

use super::{respond, text};
use crate::base::quota::{Quota, Turns};
use crate::peer::{Instances, LoopbackError, LoopbackSocket};
use crate::trust::Trust;
use crate::verify::introspection::{INACTIVE, Introspected, MAX_FORM_BYTES, answer};
use crate::verify::{Asker, NotAsker, Verifier};
use crate::x509::Certificate;

pub(super) const PATH: &str = "/introspect";
const KEYS: &str = "/keys";
const FORM: &str = "application/x-www-form-urlencoded";
/// Searches for the process behind a connection at one time, of all and of one user: each reads the descriptors of every
/// process.
const SEARCHES: (usize, usize) = (4, 2);
/// Questions over loopback at one time, of all and of one user: fewer than there are connections, so that probes find room.
const QUESTIONS: (usize, usize) = (32, 8);

/// Answers questions about requests.
#[derive(Clone, Debug)]
pub struct Introspection {
    verifier: Arc<Verifier>,
    instances: Instances,
    trust: Arc<Trust>,
    questions: Quota,
    searches: Turns,
}

impl Introspection {
    /// Answers from `verifier`.
    pub fn new(verifier: Arc<Verifier>, instances: Instances, trust: Arc<Trust>) -> Self {
        let (questions, searches) = (Quota::new(QUESTIONS.0, QUESTIONS.1), Turns::new(SEARCHES.0, SEARCHES.1));
        Self { verifier, instances, trust, questions, searches }
    }

    /// What answers.
    pub(super) fn verifier(&self) -> &Arc<Verifier> {
        &self.verifier
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
        // Its user is known by one look, and pays before every process is looked through.
        let socket = match LoopbackSocket::find(ours, theirs) {
            Ok(socket) => socket,
            Err(unknown) => return self.not_told(&unknown.into(), None),
        };
        let uid = Some(socket.uid());
        let Ok(_place) = self.questions.take(socket.uid()) else { return self.not_told(&NotAsker::TooMany, uid) };
        let asking = async {
            let instances = self.instances.clone();
            let turn = self.searches.turn(socket.uid()).await;
            let peer = aside(move || socket.peer(&instances)).await?;
            drop(turn);
            let asker = self.verifier.asker_on_loopback(&peer, &asked.call.target.uri).await?;
            Ok((peer, asker))
        };
        let (peer, asker) = match asking.await {
            Ok(found) => found,
            Err(refused) => return self.not_told(&refused, uid),
        };
        let answer = self.answer(&asker, &asked).await;
        // The answer goes to whoever has the connection now.
        let still = aside(move || peer.still()).await;
        match still {
            Ok(()) => answer,
            Err(refused) => self.not_told(&refused.into(), uid),
        }
    }

    /// A question of whoever has the key of this certificate, or the keys of this node.
    pub(super) async fn over_tls(&self, request: Request<Incoming>, leaf: &Certificate) -> Response<Full<Bytes>> {
        match (request.method(), request.uri().path()) {
            (&Method::GET, KEYS) => return self.keys(),
            (_, PATH) => {}
            _ => return text(StatusCode::NOT_FOUND, "there are POST /introspect, POST /changes and GET /keys\n"),
        }
        let asked = match read(request).await {
            Ok(asked) => asked,
            Err(malformed) => return malformed,
        };
        match self.verifier.asker_with_svid(leaf, &asked.call.target.uri).await {
            Ok(asker) => self.answer(&asker, &asked).await,
            Err(refused) => self.not_told(&refused, None),
        }
    }

    async fn answer(&self, asker: &Asker, asked: &Introspected) -> Response<Full<Bytes>> {
        match self.verifier.judge(asker, &asked.call, asked.presented()).await {
            // To whoever cannot be told which of the calls inside may go on, it is a yes only if all of them may.
            Ok(Ok(verified)) if !asker.is_node() && verified.rpcs.iter().any(|rpc| rpc.outcome.is_err()) => inactive(),
            Ok(Ok(verified)) => no_store(answer(&asked.call, &verified, asker.is_node()).to_string()),
            Ok(Err(_)) => inactive(),
            Err(refusal) => self.not_told(&refusal.into(), None),
        }
    }

    fn not_told(&self, refused: &NotAsker, uid: Option<u32>) -> Response<Full<Bytes>> {
        self.verifier.record_not_asker(refused, uid);
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

/// Runs what reads much.
async fn aside<T: Send + 'static>(
    search: impl FnOnce() -> Result<T, LoopbackError> + Send + 'static,
) -> Result<T, LoopbackError> {
    tokio::task::spawn_blocking(search).await.unwrap_or(Err(LoopbackError::Gone))
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
