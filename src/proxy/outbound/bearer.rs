//! Bearer tokens for an outside service, which the program that they are for never sees.

use std::sync::Arc;

use http::HeaderValue;
use time::OffsetDateTime;

use super::program::{Program, Task};
use super::refusal::Refusal;
use crate::base::clock::Clock;
use crate::base::secret::Secret;
use crate::client::session::Within;

/// A token, used until half of its life is over.
pub(super) struct Bearer {
    token: Arc<Secret<String>>,
    until: OffsetDateTime,
}

/// The header that shows a token of the program's, in its session if it is in one.
pub(super) async fn header(
    program: &Program,
    task: &Task,
    audience: &str,
    clock: &Clock,
) -> Result<HeaderValue, Refusal> {
    // Held while it is asked for: of many requests at once one asks.
    let mut kept = task.bearer.lock().await;
    let now = clock.now();
    if let Some(bearer) = kept.as_ref().filter(|bearer| now < bearer.until) {
        return Ok(shown(&bearer.token));
    }
    let within = task.session.as_deref().map_or(Within::NoSession, |session| Within::Session(Some(session)));
    let token = program.patiently(|| program.sessions().bearer(within, audience)).await?;
    let until = now + (token.expires_at - now) / 2;
    let bearer = kept.insert(Bearer { token: Arc::new(token.token), until });
    Ok(shown(&bearer.token))
}

/// The next request asks for another one.
pub(super) async fn forget(task: &Task) {
    task.bearer.lock().await.take();
}

fn shown(token: &Secret<String>) -> HeaderValue {
    let text = zeroize::Zeroizing::new(format!("Bearer {}", token.expose()));
    let mut value = HeaderValue::from_str(&text).expect("a compact JWT has no characters that a header cannot have");
    value.set_sensitive(true);
    value
}
