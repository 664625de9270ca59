//! Two answers to one batch: the server's to what it was sent, and the errors of what it was not sent.
//!
//! Nothing of the server's answer is kept back: the errors come first, and the rest passes as it comes.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use http::{Response, StatusCode};
use http_body::{Body, Frame};

use super::answer::JSON;

/// The errors of the refused requests of a batch.
#[derive(Debug)]
pub struct Merge {
    /// One or more, with commas between.
    errors: String,
    /// Each as an event.
    events: String,
}

impl Merge {
    pub(super) fn new(errors: &[String]) -> Self {
        let event = |error: &String| format!("event: message\ndata: {error}\n\n");
        Self { errors: errors.join(","), events: errors.iter().map(event).collect() }
    }

    /// The server's answer, with the errors in it. An answer that is an error of HTTP is for the whole and stays as it is; one
    /// that cannot be added to (of another type, or encoded although that was not asked for) becomes 502.
    pub fn into<B>(self, response: Response<B>) -> Response<Merged<B>> {
        let (mut parts, body) = response.into_parts();
        if !parts.status.is_success() {
            return Response::from_parts(parts, Merged { state: Way::Through, inner: Some(body) });
        }
        let media_type = parts.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let media_type = media_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        let encoded = parts.headers.contains_key(CONTENT_ENCODING);
        let whole = |text: String| Merged { state: Way::First(text.into()), inner: None };
        parts.headers.remove(CONTENT_LENGTH);
        let body = match (parts.status, media_type.as_str()) {
            // Nobody waits for an answer to what it was sent.
            (StatusCode::ACCEPTED | StatusCode::NO_CONTENT, _) => {
                parts.status = StatusCode::OK;
                parts.headers.insert(CONTENT_TYPE, JSON);
                whole(format!("[{}]", self.errors))
            }
            (_, "text/event-stream") if !encoded => Merged { state: Way::First(self.events.into()), inner: Some(body) },
            (_, "application/json") if !encoded => Merged { state: Way::Json(self.errors.into()), inner: Some(body) },
            _ => {
                parts.status = StatusCode::BAD_GATEWAY;
                parts.headers.remove(CONTENT_ENCODING);
                parts.headers.remove(CONTENT_TYPE);
                whole(String::new())
            }
        };
        Response::from_parts(parts, body)
    }
}

/// A body with errors before what the server says.
#[derive(Debug)]
pub struct Merged<B> {
    state: Way,
    /// What comes from the server; nothing once it has ended.
    inner: Option<B>,
}

#[derive(Debug)]
enum Way {
    /// These first, and then what comes.
    First(Bytes),
    /// What comes begins with an array of answers, or one.
    Json(Bytes),
    /// The array has begun, with the errors, and has more if something else follows than its end.
    Begun,
    /// One answer comes, which becomes the last of an array.
    Closing,
    /// All that comes passes.
    Through,
}

impl Way {
    /// What to send of what came.
    fn pass(&mut self, data: Bytes) -> Bytes {
        let start = data.iter().position(|byte| !b" \t\r\n".contains(byte));
        let (Some(start), Self::Json(_) | Self::Begun) = (start, &*self) else { return data };
        let (first, rest) = (data[start], data.slice(start..));
        match std::mem::replace(self, Self::Through) {
            Self::Json(errors) if first == b'[' => {
                *self = Self::Begun;
                let after = self.pass(rest.slice(1..));
                joined(&[b"[", &errors, &after])
            }
            Self::Json(errors) => {
                *self = Self::Closing;
                joined(&[b"[", &errors, b",", &rest])
            }
            _ if first == b']' => rest,
            _ => joined(&[b",", &rest]),
        }
    }
}

fn joined(pieces: &[&[u8]]) -> Bytes {
    let mut all = BytesMut::new();
    pieces.iter().for_each(|piece| all.extend_from_slice(piece));
    all.freeze()
}

impl<B: Body<Data = Bytes> + Unpin> Body for Merged<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.get_mut();
        if let Way::First(first) = &mut this.state {
            let first = std::mem::take(first);
            this.state = Way::Through;
            if !first.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(first))));
            }
        }
        let Some(inner) = &mut this.inner else { return Poll::Ready(None) };
        let frame = std::task::ready!(Pin::new(inner).poll_frame(cx));
        Poll::Ready(match frame {
            Some(Ok(frame)) => Some(Ok(match frame.into_data() {
                Ok(data) => Frame::data(this.state.pass(data)),
                Err(trailers) => trailers,
            })),
            Some(Err(error)) => Some(Err(error)),
            None => {
                this.inner = None;
                let last = match std::mem::replace(&mut this.state, Way::Through) {
                    Way::Closing => Some(Bytes::from_static(b"]")),
                    // The server's answer is empty: there are only ours.
                    Way::Json(errors) => Some(joined(&[b"[", &errors, b"]"])),
                    _ => None,
                };
                last.map(|last| Ok(Frame::data(last)))
            }
        })
    }
}
