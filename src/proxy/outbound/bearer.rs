//! Bearer tokens for an outside service, which the program that they are for never sees.

use http::HeaderValue;
use time::OffsetDateTime;

use super::program::{Program, Task};
use super::refusal::Refusal;
use crate::base::clock::Clock;
use crate::base::secret::Secret;
use crate::client::session::{Token, Within};

/// A token that is good for many requests, used until half of its life is over.
pub(super) struct Bearer {
    token: Secret<String>,
    until: OffsetDateTime,
}

impl Bearer {
    /// `None` for a token that is good once: the next request gets one of its own.
    fn of(token: Token, now: OffsetDateTime) -> Option<Self> {
        if token.one_use {
            return None;
        }
        let until = now + (token.expires_at - now) / 2;
        Some(Self { token: token.token, until })
    }
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
    let header = shown(&token.token);
    *kept = Bearer::of(token, now);
    Ok(header)
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_token_is_kept_for_half_of_its_life_unless_it_is_good_once() {
        let now = OffsetDateTime::UNIX_EPOCH;
        let token = |one_use| Token {
            token: Secret::new("a.b.c".to_owned()),
            id: "1".to_owned(),
            session: None,
            target: "https://api.example.com".to_owned(),
            scopes: Vec::new(),
            expires_at: now + Duration::from_secs(60),
            one_use,
            binding: (0, "bearer".to_owned()),
        };
        let kept = Bearer::of(token(false), now).map(|bearer| bearer.until);
        assert_eq!(kept, Some(now + Duration::from_secs(30)));
        assert!(Bearer::of(token(true), now).is_none());
    }
}
