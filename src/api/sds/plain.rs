//! Error texts as people read them in Envoy's log.
//!
//! Envoy logs the text of a status as it is on the wire. gRPC wants only what is not printable ASCII, and `%`, encoded there
//! (gRPC over HTTP/2, `Percent-Encoded`); our gRPC library encodes spaces and quotation marks too, which nobody can read.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use http_body_util::BodyExt as _;
use tonic::body::Body;
use tonic::server::NamedService;
use tower::Service;

const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// A service whose error texts are encoded no more than they have to be.
#[derive(Clone, Debug)]
pub struct Plain<S>(pub S);

impl<S: NamedService> NamedService for Plain<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for Plain<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let answering = self.0.call(request);
        Box::pin(async move {
            let (mut head, body) = answering.await?.into_parts();
            make_plain(&mut head.headers);
            let body = body.map_frame(|mut frame| {
                frame.trailers_mut().into_iter().for_each(make_plain);
                frame
            });
            Ok(Response::from_parts(head, Body::new(body)))
        })
    }
}

fn make_plain(headers: &mut HeaderMap) {
    let Some(message) = headers.get_mut(MESSAGE) else { return };
    if let Ok(plain) = HeaderValue::from_bytes(&encode(&decode(message.as_bytes()))) {
        *message = plain;
    }
}

fn decode(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((octet, after)) = rest.split_first() {
        let code = (*octet == b'%').then(|| after.get(..2)).flatten();
        let code =
            code.and_then(|code| std::str::from_utf8(code).ok()).and_then(|code| u8::from_str_radix(code, 16).ok());
        out.push(code.unwrap_or(*octet));
        rest = if code.is_some() { &after[2..] } else { after };
    }
    out
}

fn encode(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    for octet in text {
        match octet {
            b'%' | 0..=0x1f | 0x7f..=0xff => out.extend_from_slice(format!("%{octet:02X}").as_bytes()),
            printable => out.push(*printable),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_encoded_only_where_grpc_wants_it() {
        let mut headers = HeaderMap::new();
        headers.insert(MESSAGE, HeaderValue::from_static("process%201%20has%20no%20%60a%25b%0A%C3%A9%60%2"));
        make_plain(&mut headers);
        assert_eq!(headers[MESSAGE], "process 1 has no `a%25b%0A%C3%A9`%252");
    }

    #[test]
    fn every_octet_survives() {
        for octet in 0..=u8::MAX {
            let encoded = encode(&[octet, b'4', b'1']);
            assert_eq!(decode(&encoded), [octet, b'4', b'1']);
            assert!(HeaderValue::from_bytes(&encoded).is_ok_and(|value| value.to_str().is_ok()), "{octet}");
        }
    }
}
