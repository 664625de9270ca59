//! Health and metrics: answered from memory, so a probe costs nothing and cannot be made to.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use prometheus_client::registry::Registry;
use serde_json::json;
use tokio::sync::watch;

use super::{respond, text};

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

/// What probes are answered from.
#[derive(Clone, Debug)]
pub struct Health {
    /// For `/readyz`.
    pub readiness: Readiness,
    /// For `/metrics`.
    pub registry: Arc<Registry>,
}

impl Health {
    pub(super) fn answer<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
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
