//! Health and metrics over HTTP: `/livez`, `/readyz`, `/readyz/{part}` and `/metrics`. Off by default.
//!
//! It answers from memory and asks nobody, so a probe costs nothing and cannot be made to.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::registry::Registry;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::base::drain;
use crate::base::exhaustion::Exhaustion;

/// A client that has not sent its request by then is cut.
const HEADER_DEADLINE: Duration = Duration::from_secs(5);
/// More connections at once than any probe needs.
const MAX_CONNECTIONS: usize = 64;

/// Which parts of the agent are ready, and why the others are not; clones share it.
#[derive(Clone, Debug)]
pub struct Readiness(Arc<watch::Sender<Parts>>);

/// Each part, and why it is not ready.
pub type Parts = BTreeMap<&'static str, Result<(), String>>;

impl Readiness {
    /// A readiness whose parts are all waiting.
    pub fn waiting(parts: &[&'static str]) -> Self {
        let waiting = parts.iter().map(|&part| (part, Err("starting".to_owned()))).collect();
        Self(Arc::new(watch::Sender::new(waiting)))
    }

    /// Sets one part.
    pub fn set(&self, part: &'static str, state: Result<(), String>) {
        self.0.send_if_modified(|parts| parts.insert(part, state.clone()).as_ref() != Some(&state));
    }

    /// Every part.
    pub fn parts(&self) -> Parts {
        self.0.borrow().clone()
    }

    /// Every part, and the event of the next change.
    pub fn watch(&self) -> watch::Receiver<Parts> {
        self.0.subscribe()
    }
}

/// What the listener answers from.
#[derive(Clone, Debug)]
pub struct Http {
    /// For `/readyz`.
    pub readiness: Readiness,
    /// For `/metrics`.
    pub registry: Arc<Registry>,
}

impl Http {
    /// Serves until the drain begins.
    pub async fn serve(self, listener: TcpListener, mut drain: drain::Watcher) {
        let exhaustion = Exhaustion::default();
        let slots = Arc::new(tokio::sync::Semaphore::new(MAX_CONNECTIONS));
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = drain.draining() => return,
            };
            let (stream, _) = match accepted {
                Ok(accepted) => accepted,
                // TCP also reports what was wrong with a connection that has gone. A pause does no harm then.
                Err(error) => {
                    exhaustion.wait_out("http listener", &error).await;
                    continue;
                }
            };
            exhaustion.over();
            let Ok(slot) = slots.clone().try_acquire_owned() else { continue };
            let http = self.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request| {
                    let http = http.clone();
                    async move { Ok::<_, Infallible>(http.answer(&request)) }
                });
                let mut connection = http1::Builder::new();
                connection.timer(TokioTimer::new()).header_read_timeout(HEADER_DEADLINE).keep_alive(false);
                // A probe that hangs up early is no news.
                let _ = connection.serve_connection(TokioIo::new(stream), service).await;
                drop(slot);
            });
        }
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if request.method() != Method::GET && request.method() != Method::HEAD {
            return text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are answered here\n");
        }
        match request.uri().path() {
            "/livez" => text(StatusCode::OK, "ok\n"),
            "/readyz" => self.ready(|_| true),
            "/metrics" => self.metrics(),
            path => match path.strip_prefix("/readyz/") {
                Some(part) if self.readiness.parts().contains_key(part) => self.ready(|name| name == part),
                _ => text(StatusCode::NOT_FOUND, "there are /livez, /readyz, /readyz/{part} and /metrics\n"),
            },
        }
    }

    fn ready(&self, wanted: impl Fn(&str) -> bool) -> Response<Full<Bytes>> {
        let parts: BTreeMap<_, _> = self.readiness.parts().into_iter().filter(|(name, _)| wanted(name)).collect();
        let ready = parts.values().all(Result::is_ok);
        let described = parts.into_iter().map(|(name, state)| match state {
            Ok(()) => (name, json!({"ready": true})),
            Err(reason) => (name, json!({"ready": false, "reason": reason})),
        });
        let body = json!({"version": 1, "ready": ready, "parts": described.collect::<BTreeMap<_, _>>()});
        let code = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        respond(code, "application/json", format!("{body}\n"))
    }

    fn metrics(&self) -> Response<Full<Bytes>> {
        let mut body = String::new();
        match prometheus_client::encoding::text::encode(&mut body, &self.registry) {
            Ok(()) => respond(StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", body),
            Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "the metrics could not be written\n"),
        }
    }
}

fn text(code: StatusCode, body: &'static str) -> Response<Full<Bytes>> {
    respond(code, "text/plain; charset=utf-8", body.to_owned())
}

fn respond(code: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    response
}
