//! The discovery document and the JWK Set, for a web server that publishes them under the issuer's name.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;

use super::{respond, text};
use crate::bundle::oidc::{DISCOVERY_PATH, IssuerUrl, JWKS_PATH, discovery, jwks};
use crate::trust::Trust;

/// How long caches between us and verifiers may keep an answer: far less than a new key is published before it signs.
const CACHED: &str = "public, max-age=300";

/// Answers verifiers that come from OpenID Connect.
#[derive(Clone, Debug)]
pub struct Oidc {
    issuer: IssuerUrl,
    trust: Arc<Trust>,
}

impl Oidc {
    /// Answers for the keys of our own trust domain, of whose tokens `issuer` is the `iss`.
    pub fn new(issuer: IssuerUrl, trust: Arc<Trust>) -> Self {
        Self { issuer, trust }
    }

    /// `None` when something else is asked for.
    pub(super) fn answer<B>(&self, request: &Request<B>) -> Option<Response<Full<Bytes>>> {
        let path = request.uri().path();
        let below = path.strip_prefix(self.issuer.path()).filter(|rest| rest.starts_with('/')).unwrap_or(path);
        let document: fn(&Self) -> String = match below.strip_prefix('/')? {
            DISCOVERY_PATH => |oidc| discovery(&oidc.issuer, oidc.trust.current().own()),
            JWKS_PATH => |oidc| jwks(oidc.trust.current().own()),
            _ => return None,
        };
        if request.method() != Method::GET && request.method() != Method::HEAD {
            return Some(text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are answered here\n"));
        }
        let mut answer = respond(StatusCode::OK, "application/json", document(self));
        answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static(CACHED));
        Some(answer)
    }
}
