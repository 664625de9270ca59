//! The keys of one issuer, at hand before anybody needs them.
//!
//! Keys from a URL are fetched by one task: when the agent starts, after three quarters of the time that the answer may
//! be kept, and when a token names a key that is not there, at most every [`ASK_AGAIN`]. So there is never more than
//! one request, and a caller that stops waiting does not stop it. How long an answer is kept is the issuer's word
//! (`Cache-Control: max-age`) within [`SHORTEST`] and [`LONGEST`]. While the issuer cannot be asked, what it said last
//! goes on for [`STALE`] and no longer: a key that it took back must not be believed for ever.
//!
//! Keys from a file are read again when the file is another one, at the next token. A file that cannot be read proves
//! nobody.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::header;
use serde_json::Value;
use thiserror::Error;
use time::OffsetDateTime;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;

use super::KeySource;
use super::keyset::{KeySet, KeySetError};
use crate::base::backoff::Backoff;
use crate::base::clock::Clock;
use crate::base::durable::{self, DurableError};
use crate::base::entropy::Entropy;
use crate::jwt::parse_strict;
use crate::user::fetch::{Endpoint, EndpointError, FetchError, Fetched, Fetcher, words};

/// How long an answer that says nothing about it is kept.
const USUAL: Duration = Duration::from_secs(15 * 60);
/// The shortest that an answer is kept, whatever it says: or everyone who asks here would make us ask there.
const SHORTEST: Duration = Duration::from_secs(60);
/// The longest that an answer is kept, whatever it says: as long a withdrawn key may still be believed.
const LONGEST: Duration = Duration::from_secs(60 * 60);
/// How long beyond that keys are believed while the issuer cannot be asked.
const STALE: Duration = Duration::from_secs(60 * 60);
/// How long after one answer a token with an unknown key makes us ask again.
const ASK_AGAIN: Duration = Duration::from_secs(10);
/// How soon an issuer that did not answer is asked again.
const FIRST_REST: Duration = Duration::from_secs(1);
const LONGEST_REST: Duration = Duration::from_secs(60);
/// The largest file of keys, in bytes.
const MAX_FILE: u64 = 1024 * 1024;
/// Below the issuer's URL (OpenID Connect Discovery 1.0, section 4).
const WELL_KNOWN: &str = "/.well-known/openid-configuration";

/// Why there are no keys of an issuer.
#[derive(Debug, Error)]
pub enum KeysError {
    /// The server cannot be asked.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The server says no, or points elsewhere.
    #[error("`{url}` answered with status {status}; redirects are not followed")]
    Status {
        /// What was asked.
        url: String,
        /// The status.
        status: u16,
    },
    /// What is there is no JWK set.
    #[error("what is at `{place}` is no JWK set")]
    Malformed {
        /// The URL or file.
        place: String,
        /// What is wrong with it.
        #[source]
        source: KeySetError,
    },
    /// What is there is no discovery document.
    #[error("what is at `{0}` is no OpenID Connect discovery document with `issuer` and `jwks_uri`")]
    NoDiscovery(String),
    /// The discovery document is that of another issuer.
    #[error("the discovery document is that of the issuer `{0}`: configure it by that very name")]
    OtherIssuer(String),
    /// The discovery document names keys at a place that may not be asked.
    #[error("the discovery document's `jwks_uri` cannot be used")]
    JwksUri(#[source] EndpointError),
    /// The file cannot be read.
    #[error(transparent)]
    File(#[from] DurableError),
    /// The agent is stopping.
    #[error("the agent is stopping")]
    Stopping,
}

/// Where the keys of one issuer come from, and which there are.
#[derive(Debug)]
pub(super) enum Keys {
    Remote(Remote),
    File(FileKeys),
}

impl Keys {
    /// Must be called inside a runtime.
    pub fn new(issuer: &str, source: &KeySource, fetcher: Fetcher, clock: &Clock, entropy: &Entropy) -> Self {
        let place = match source {
            KeySource::File(path) => return Self::File(FileKeys { path: path.clone(), read: Arc::default() }),
            KeySource::Url(url) => Published::At(url.clone()),
            KeySource::Discovery => Published::Discovered,
        };
        Self::Remote(Remote::start(Provider { issuer: issuer.to_owned(), place, fetcher }, clock, entropy))
    }

    /// Keys that may be believed now, if possible such that `wanted` holds.
    ///
    /// # Errors
    /// There are none that may be believed, for this reason.
    pub async fn find(&self, wanted: impl Fn(&KeySet) -> bool) -> Result<Arc<KeySet>, Arc<KeysError>> {
        match self {
            Self::Remote(remote) => remote.find(wanted).await,
            Self::File(file) => file.keys().await,
        }
    }
}

/// Keys that one task fetches.
#[derive(Debug)]
pub(super) struct Remote {
    known: watch::Receiver<Known>,
    ask: Arc<Notify>,
    clock: Clock,
    task: AbortHandle,
}

impl Drop for Remote {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What was learnt from the issuer so far.
#[derive(Clone, Debug)]
struct Known {
    held: Option<Held>,
    /// Why the last attempt failed, if it did.
    failure: Option<Arc<KeysError>>,
    attempts: u64,
    /// When the last attempt ended.
    asked_at: OffsetDateTime,
    /// Nobody makes the task ask before.
    ask_again: OffsetDateTime,
}

#[derive(Clone, Debug)]
struct Held {
    keys: Arc<KeySet>,
    since: OffsetDateTime,
    fresh: Duration,
}

impl Known {
    fn fresh(&self, now: OffsetDateTime) -> Option<&Arc<KeySet>> {
        self.held.as_ref().filter(|held| held.within(held.fresh, now)).map(|held| &held.keys)
    }

    fn usable(&self, now: OffsetDateTime) -> Option<&Arc<KeySet>> {
        self.held.as_ref().filter(|held| held.within(held.fresh + STALE, now)).map(|held| &held.keys)
    }

    /// A time of asking that lies ahead means that the clock was set back.
    fn may_ask(&self, now: OffsetDateTime) -> bool {
        now >= self.ask_again || now < self.asked_at
    }
}

impl Held {
    /// What came from the future was fetched before the clock was set back, and its age is not known.
    fn within(&self, span: Duration, now: OffsetDateTime) -> bool {
        self.since <= now && now < self.since + span
    }
}

impl Remote {
    fn start(provider: Provider, clock: &Clock, entropy: &Entropy) -> Self {
        let never = OffsetDateTime::UNIX_EPOCH;
        let nothing = Known { held: None, failure: None, attempts: 0, asked_at: never, ask_again: never };
        let (sender, known) = watch::channel(nothing);
        let ask = Arc::new(Notify::new());
        let keeper =
            Keeper { provider, known: sender, ask: ask.clone(), clock: clock.clone(), entropy: entropy.clone() };
        Self { known, ask, clock: clock.clone(), task: tokio::spawn(keeper.run()).abort_handle() }
    }

    async fn find(&self, wanted: impl Fn(&KeySet) -> bool) -> Result<Arc<KeySet>, Arc<KeysError>> {
        let mut known = self.known.clone();
        let (attempts, may_ask) = {
            let known = known.borrow();
            let now = self.clock.now();
            if let Some(keys) = known.fresh(now).filter(|keys| wanted(keys)) {
                return Ok(keys.clone());
            }
            (known.attempts, known.may_ask(now))
        };
        if may_ask {
            self.ask.notify_one();
            // The attempt has a deadline, so that this one ends.
            let waited = known.wait_for(|known| known.attempts != attempts).await;
            waited.map_err(|_| Arc::new(KeysError::Stopping))?;
        }
        let known = known.borrow();
        match known.usable(self.clock.now()) {
            Some(keys) => Ok(keys.clone()),
            None => Err(known.failure.clone().unwrap_or_else(|| Arc::new(KeysError::Stopping))),
        }
    }
}

/// The task that fetches.
struct Keeper {
    provider: Provider,
    known: watch::Sender<Known>,
    ask: Arc<Notify>,
    clock: Clock,
    entropy: Entropy,
}

impl Keeper {
    async fn run(self) {
        let mut backoff = Backoff::new(FIRST_REST, LONGEST_REST);
        loop {
            let next = self.attempt(&mut backoff).await;
            tokio::select! {
                () = self.clock.sleep_until(next) => {}
                () = self.asked() => {}
            }
        }
    }

    /// Somebody wants keys that are not there, and we may ask.
    async fn asked(&self) {
        loop {
            self.ask.notified().await;
            if self.known.borrow().may_ask(self.clock.now()) {
                return;
            }
        }
    }

    /// Asks once, and says when the next time is, unless somebody asks before.
    async fn attempt(&self, backoff: &mut Backoff) -> OffsetDateTime {
        let answer = self.provider.fetch().await;
        let now = self.clock.now();
        let (held, failure, rest, next) = match answer {
            Ok((keys, fresh)) => {
                backoff.reset();
                (Some(Held { keys: Arc::new(keys), since: now, fresh }), None, ASK_AGAIN, fresh * 3 / 4)
            }
            Err(error) => {
                let rest = backoff.delay(&self.entropy);
                let issuer = &self.provider.issuer;
                tracing::warn!(issuer, error = %words(&error), ?rest, "the keys of an issuer cannot be fetched");
                (None, Some(Arc::new(error)), rest, rest)
            }
        };
        self.known.send_modify(|known| {
            known.held = held.or_else(|| known.held.take());
            known.failure = failure;
            known.attempts += 1;
            known.asked_at = now;
            known.ask_again = now + rest;
        });
        now + next
    }
}

/// Where an issuer publishes its keys.
#[derive(Debug)]
struct Provider {
    issuer: String,
    place: Published,
    fetcher: Fetcher,
}

#[derive(Debug)]
enum Published {
    Discovered,
    At(Endpoint),
}

impl Provider {
    /// The keys, and how long they may be kept.
    async fn fetch(&self) -> Result<(KeySet, Duration), KeysError> {
        let place = match &self.place {
            Published::At(url) => url.clone(),
            Published::Discovered => self.discover().await?,
        };
        let answer = self.document(&place, "application/jwk-set+json, application/json").await?;
        let malformed = |source| KeysError::Malformed { place: place.as_str().to_owned(), source };
        Ok((KeySet::parse(&answer.body).map_err(malformed)?, kept_for(&answer)))
    }

    /// Where the issuer's own document says that the keys are. It must be that issuer's, to the letter (OpenID Connect
    /// Discovery 1.0, section 4.3).
    async fn discover(&self) -> Result<Endpoint, KeysError> {
        let url = format!("{}{WELL_KNOWN}", self.issuer.trim_end_matches('/'));
        let document = Endpoint::parse(&url).map_err(KeysError::JwksUri)?;
        let answer = self.document(&document, "application/json").await?;
        let members = parse_strict(&answer.body).map_err(|_| KeysError::NoDiscovery(url.clone()))?;
        let text = |name| members.get(name).and_then(Value::as_str);
        let (Some(issuer), Some(keys)) = (text("issuer"), text("jwks_uri")) else {
            return Err(KeysError::NoDiscovery(url));
        };
        if issuer != self.issuer {
            return Err(KeysError::OtherIssuer(issuer.escape_debug().take(MAX_SHOWN).collect()));
        }
        let keys = Endpoint::parse(keys).map_err(KeysError::JwksUri)?;
        // Whoever may not be asked in the clear does not send us where it would be.
        if document.is_secure() && !keys.is_secure() {
            return Err(KeysError::JwksUri(EndpointError::Insecure));
        }
        Ok(keys)
    }

    async fn document(&self, url: &Endpoint, accept: &str) -> Result<Fetched, KeysError> {
        let answer = self.fetcher.get(url, accept).await?;
        if answer.status != http::StatusCode::OK {
            return Err(KeysError::Status { url: url.as_str().to_owned(), status: answer.status.as_u16() });
        }
        Ok(answer)
    }
}

/// The most of a stranger's text that is shown.
const MAX_SHOWN: usize = 200;

/// How long an answer may be kept (RFC 9111, section 5.2.2.1).
fn kept_for(answer: &Fetched) -> Duration {
    let lines = answer.headers.get_all(header::CACHE_CONTROL).iter().filter_map(|line| line.to_str().ok());
    let mut kept = USUAL;
    for directive in lines.flat_map(|line| line.split(',')).map(str::trim) {
        let (name, value) = directive.split_once('=').unwrap_or((directive, ""));
        match name.to_ascii_lowercase().as_str() {
            "no-store" | "no-cache" => return SHORTEST,
            "max-age" => kept = value.trim_matches('"').parse().map_or(SHORTEST, Duration::from_secs),
            _ => {}
        }
    }
    kept.clamp(SHORTEST, LONGEST)
}

/// Keys in a file.
#[derive(Debug)]
pub(super) struct FileKeys {
    path: PathBuf,
    read: Arc<Mutex<Option<Read>>>,
}

/// The keys of a file as it was.
#[derive(Debug)]
struct Read {
    stamp: Stamp,
    keys: Arc<KeySet>,
}

/// What changes when a file does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    /// Seconds and nanoseconds of the last change, which nobody sets.
    changed: (i64, i64),
    size: u64,
    inode: u64,
}

impl FileKeys {
    async fn keys(&self) -> Result<Arc<KeySet>, Arc<KeysError>> {
        let (path, read) = (self.path.clone(), self.read.clone());
        let keys = tokio::task::spawn_blocking(move || current(&path, &read)).await;
        keys.unwrap_or(Err(KeysError::Stopping)).map_err(Arc::new)
    }
}

fn current(path: &Path, read: &Mutex<Option<Read>>) -> Result<Arc<KeySet>, KeysError> {
    // Whole whenever the lock is free, also after a panic.
    let mut known = read.lock().unwrap_or_else(PoisonError::into_inner);
    // Taken before reading: a file that changes in between is read again at the next token.
    let stamp = stamp(path);
    if let Some(read) = known.as_ref()
        && Some(read.stamp) == stamp
    {
        return Ok(read.keys.clone());
    }
    *known = None;
    let content = durable::read(path, MAX_FILE)?;
    let malformed = |source| KeysError::Malformed { place: path.display().to_string(), source };
    let keys = Arc::new(KeySet::parse(&content).map_err(malformed)?);
    *known = stamp.map(|stamp| Read { stamp, keys: keys.clone() });
    Ok(keys)
}

fn stamp(path: &Path) -> Option<Stamp> {
    use std::os::unix::fs::MetadataExt as _;
    let meta = std::fs::metadata(path).ok()?;
    Some(Stamp { changed: (meta.ctime(), meta.ctime_nsec()), size: meta.len(), inode: meta.ino() })
}

#[cfg(test)]
mod tests;
