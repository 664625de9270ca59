//! Bodies on their way through.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty, Full};

use super::cut::{Cut, CutReason};

/// What goes wrong with a body.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A body of any origin.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;

/// No body.
pub fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// A body that is here already.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// A body that arrives.
pub(super) fn passing<B>(body: B) -> Body
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    body.map_err(Into::into).boxed_unsync()
}

/// Counts what has passed of a body, for whoever waits for something else as long as it goes on.
#[derive(Clone, Debug, Default)]
pub struct Progress(Arc<AtomicU64>);

impl Progress {
    /// `body`, counted.
    pub fn of(&self, body: Body) -> Body {
        if body.is_end_stream() {
            return body;
        }
        Guarded { body, cut: None, progress: self.clone(), _kept: () }.boxed_unsync()
    }

    /// How much has passed.
    pub fn so_far(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A body that fails when it is cut, also while it waits, and keeps `kept` until it has passed.
pub(super) fn guarded<K: Send + 'static>(body: Body, cut: Option<Cut>, kept: K) -> Body {
    let cut = cut
        .map(|mut cut| -> Pin<Box<dyn Future<Output = CutReason> + Send>> { Box::pin(async move { cut.cut().await }) });
    Guarded { body, cut, progress: Progress::default(), _kept: kept }.boxed_unsync()
}

struct Guarded<K> {
    body: Body,
    cut: Option<Pin<Box<dyn Future<Output = CutReason> + Send>>>,
    progress: Progress,
    _kept: K,
}

/// Nothing in it is pinned in place: what must be is in a box.
impl<K> Unpin for Guarded<K> {}

/// `body`, whose trailers pass through `change`.
pub(super) fn with_trailers(body: Body, change: fn(&mut HeaderMap)) -> Body {
    if body.is_end_stream() {
        return body;
    }
    Trailed { body, change }.boxed_unsync()
}

struct Trailed {
    body: Body,
    change: fn(&mut HeaderMap),
}

impl http_body::Body for Trailed {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let mut frame = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &mut frame
            && let Some(trailers) = frame.trailers_mut()
        {
            (self.change)(trailers);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A body was cut.
#[derive(Debug)]
struct WasCut(CutReason);

impl fmt::Display for WasCut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cut: {}", self.0.as_str())
    }
}

impl std::error::Error for WasCut {}

impl<K> http_body::Body for Guarded<K> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        // First, so that a body that never pauses is cut too.
        if let Some(cut) = &mut self.cut
            && let Poll::Ready(reason) = cut.as_mut().poll(cx)
        {
            self.cut = None;
            self.body = empty();
            return Poll::Ready(Some(Err(Box::new(WasCut(reason)))));
        }
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if frame.is_ready() {
            self.progress.0.fetch_add(1, Ordering::Relaxed);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::super::cut::Lifeline;
    use super::*;

    #[tokio::test]
    async fn a_body_that_is_cut_fails_while_it_waits_and_lets_go_of_what_it_kept() {
        let lifeline = Lifeline::default();
        let never = http_body_util::StreamBody::new(futures_util::stream::pending::<Result<Frame<Bytes>, BoxError>>());
        let kept = Arc::new(());
        let mut body = guarded(passing(never), Some(lifeline.watch()), kept.clone());
        assert!(body.frame().now_or_never().is_none());
        lifeline.cut(CutReason::SessionEnded);
        let error = body.frame().await.expect("a frame").unwrap_err();
        assert_eq!(error.to_string(), "cut: session_ended");
        drop(body);
        assert_eq!(Arc::strong_count(&kept), 1);
    }
}
