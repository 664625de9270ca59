//! One request on its way to what is behind, and the answer on its way back.

use http::header::{self, HeaderValue};
use http::request::Parts;
use http::{Request, Response, StatusCode, Uri, Version};

use super::body::{Body, guarded, passing};
use super::cut::Cut;
use super::headers::{remove_hop_by_hop, wants_websocket};
use super::upgrade::tunnel;
use super::upstream::{Upstream, UpstreamError};

/// What ends a request from outside.
#[derive(Clone, Debug)]
pub struct Cuts {
    /// The end of the connection it came on, which a WebSocket outlives in HTTP's view alone.
    pub connection: Cut,
    /// The end of the session it was made in, for one.
    pub request: Option<Cut>,
}

/// Sends `request` to `upstream`, under the scheme and authority of `to`, and gives the answer, whose body goes on by
/// itself. Hop-by-hop headers are removed both ways; all others must be as the upstream shall see them. A WebSocket
/// goes on when this has returned.
///
/// Request and answer end with `cuts.request`, a WebSocket with either; `kept` is dropped after them.
///
/// # Errors
/// The upstream gives no answer.
pub async fn forward<K: Clone + Send + 'static>(
    upstream: &Upstream,
    to: &Uri,
    mut request: Request<Body>,
    cuts: Cuts,
    kept: K,
) -> Result<Response<Body>, UpstreamError> {
    let may_switch = request.version() == Version::HTTP_11 && !upstream.is_http2();
    let switches = may_switch && wants_websocket(request.headers());
    let client = switches.then(|| hyper::upgrade::on(&mut request));
    let (mut head, body) = request.into_parts();
    address(&mut head, to);
    head.version = if upstream.is_http2() { Version::HTTP_2 } else { Version::HTTP_11 };
    remove_hop_by_hop(&mut head.headers);
    if switches {
        head.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        head.headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    }

    let mut answer = upstream.send(head, guarded(body, cuts.request.clone(), kept.clone())).await?;
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS && client.is_none() {
        return Err(UpstreamError::Switched);
    }
    if let (StatusCode::SWITCHING_PROTOCOLS, Some(client)) = (answer.status(), client) {
        let server = hyper::upgrade::on(&mut answer);
        tokio::spawn(async move {
            tunnel(client, server, [Some(cuts.connection), cuts.request]).await;
            drop(kept);
        });
        let (mut head, _) = answer.into_parts();
        remove_hop_by_hop(&mut head.headers);
        head.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        head.headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        return Ok(Response::from_parts(head, super::empty()));
    }
    let (mut head, body) = answer.into_parts();
    remove_hop_by_hop(&mut head.headers);
    Ok(Response::from_parts(head, guarded(passing(body), cuts.request, kept)))
}

/// Gives the request's URI the scheme and authority of `to`.
fn address(head: &mut Parts, to: &Uri) {
    let mut uri = std::mem::take(&mut head.uri).into_parts();
    uri.scheme = to.scheme().cloned();
    uri.authority = to.authority().cloned();
    if uri.path_and_query.is_none() {
        uri.path_and_query = Some(http::uri::PathAndQuery::from_static("/"));
    }
    // With scheme, authority and path there is nothing that could be missing.
    head.uri = Uri::from_parts(uri).unwrap_or_default();
}
