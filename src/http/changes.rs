//! `POST /changes`: what another node is told without asking again. What that is, `verify` says.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream;
use http::header::{self, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use rustls::pki_types::CertificateDer;
use tokio::sync::watch;

use super::{Answer, text};
use crate::verify::tls::Tls;
use crate::verify::{Interest, MAX_INTEREST_BYTES, Verifier};

pub(super) const PATH: &str = "/changes";

/// Opens the stream of whoever proved to be `presented`, leaf first.
pub(super) async fn answer(
    verifier: &Arc<Verifier>,
    request: Request<Incoming>,
    presented: Vec<CertificateDer<'static>>,
    tls: Tls,
    ended: watch::Receiver<()>,
) -> Response<Answer> {
    let refused = |code, why| text(code, why).map(BodyExt::boxed_unsync);
    if request.method() != Method::POST {
        return refused(StatusCode::METHOD_NOT_ALLOWED, "only POST is answered here\n");
    }
    let Ok(body) = Limited::new(request.into_body(), MAX_INTEREST_BYTES).collect().await else {
        return refused(StatusCode::PAYLOAD_TOO_LARGE, "there are too many sessions\n");
    };
    let Ok(interest) = serde_json::from_slice::<Interest>(&body.to_bytes()) else {
        return refused(StatusCode::BAD_REQUEST, "the body is no JSON with `sessions`\n");
    };
    let Some(feed) = verifier.feed(presented, &interest, tls, ended) else {
        return refused(StatusCode::FORBIDDEN, "only the agents of configured nodes are told\n");
    };
    let lines = stream::unfold(feed, |mut feed| async move {
        let line: Bytes = feed.next().await?;
        Some((Ok::<_, Infallible>(Frame::data(line)), feed))
    });
    let mut response = Response::new(StreamBody::new(lines).boxed_unsync());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/jsonl"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
