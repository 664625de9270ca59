//! Login sessions that somebody's session hangs on: held, and known to be over as an event.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::logind::{Changes, LoginError, LoginManager};
use super::{UserEnd, UserError};
use crate::attest::guard::{Guard, Outage as _};
use crate::base::backoff::Backoff;
use crate::base::clock::Clock;
use crate::base::entropy::Entropy;

/// How soon logind is asked again after it did not answer.
const FIRST_REST: Duration = Duration::from_millis(200);
const LONGEST_REST: Duration = Duration::from_secs(15);

/// One login: a session's name, whose it is, and when it began.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Name {
    id: String,
    uid: u32,
    since: u64,
}

/// A login that is not known to be over, shared by everybody who holds it.
#[derive(Debug)]
pub(super) struct Login {
    end: watch::Receiver<Option<UserEnd>>,
    task: AbortHandle,
}

impl Login {
    /// Waits for the end of the login.
    pub async fn ended(&self) -> UserEnd {
        let mut end = self.end.clone();
        let ended = end.wait_for(Option::is_some).await.ok().and_then(|end| *end);
        match ended {
            Some(end) => end,
            // The agent is stopping, and whoever waits with it: that is nobody's logging out.
            None => std::future::pending().await,
        }
    }
}

impl Drop for Login {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Asks logind, and follows the logins that are held.
pub(super) struct Logins {
    logind: Arc<dyn LoginManager>,
    guard: Guard,
    patience: Duration,
    entropy: Entropy,
    held: Mutex<HashMap<Name, Weak<Login>>>,
}

impl Logins {
    pub fn new(logind: Arc<dyn LoginManager>, patience: Duration, clock: Clock, entropy: Entropy) -> Self {
        let meanwhile = "no local user can be proven until systemd-logind answers";
        let guard = Guard::new(patience, meanwhile, clock, entropy.clone());
        Self { logind, guard, patience, entropy, held: Mutex::default() }
    }

    /// The session of that name, if somebody is logged in by it.
    pub async fn open_session(&self, id: &str) -> Result<Option<super::logind::LoginSession>, UserError> {
        let session = self.guard.ask(|| self.logind.session(id)).await.map_err(UserError::Logind)?;
        Ok(session.filter(|session| !session.closing))
    }

    /// The name of the session that stands for a user, if one does.
    pub async fn primary(&self, uid: u32) -> Result<Option<String>, UserError> {
        self.guard.ask(|| self.logind.primary(uid)).await.map_err(UserError::Logind)
    }

    /// Holds the user's login session of that name.
    ///
    /// # Errors
    /// It is over, or logind cannot be asked.
    pub async fn hold(&self, id: &str, uid: u32) -> Result<Arc<Login>, UserError> {
        let session = self.open_session(id).await?.filter(|session| session.uid == uid);
        let since = session.ok_or(UserError::LoggedOut)?.since;
        let name = Name { id: id.to_owned(), uid, since };
        // Whole whenever the lock is free, also after a panic.
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(login) = held.get(&name).and_then(Weak::upgrade) {
            return Ok(login);
        }
        held.retain(|_, login| login.strong_count() > 0);
        let (sender, end) = watch::channel(None);
        let (logind, patience, entropy) = (self.logind.clone(), self.patience, self.entropy.clone());
        let follower = Follower { logind, patience, entropy, name: name.clone() };
        let task = tokio::spawn(async move {
            follower.over().await;
            sender.send_replace(Some(UserEnd::LoggedOut));
            // Whoever looks later still finds the end.
            sender.closed().await;
        });
        let login = Arc::new(Login { end, task: task.abort_handle() });
        held.insert(name, Arc::downgrade(&login));
        Ok(login)
    }
}

/// Waits for the end of one login.
struct Follower {
    logind: Arc<dyn LoginManager>,
    patience: Duration,
    entropy: Entropy,
    name: Name,
}

impl Follower {
    /// Returns when the login is over. While logind does not answer nothing is known to have ended.
    async fn over(&self) {
        let mut backoff = Backoff::new(FIRST_REST, LONGEST_REST);
        while let Err(error) = self.follow(&mut backoff).await {
            let rest = backoff.delay(&self.entropy);
            let session = &self.name.id;
            tracing::warn!(session, %error, ?rest, "the end of a login session cannot be seen until logind answers");
            tokio::time::sleep(rest).await;
        }
    }

    /// Returns when the login is over; the error when that cannot be followed.
    async fn follow(&self, backoff: &mut Backoff) -> Result<(), LoginError> {
        // Listening comes first: what happens after the question is heard.
        let mut changes: Changes = self.in_time(self.logind.changes(&self.name.id)).await?;
        while self.goes_on().await? {
            backoff.reset();
            if changes.next().await.is_none() {
                return Err(LoginError::Unreachable("it is no longer heard".into()));
            }
        }
        Ok(())
    }

    async fn goes_on(&self) -> Result<bool, LoginError> {
        let session = self.in_time(self.logind.session(&self.name.id)).await?;
        let same = |session: super::logind::LoginSession| {
            !session.closing && session.uid == self.name.uid && session.since == self.name.since
        };
        Ok(session.is_some_and(same))
    }

    async fn in_time<T>(&self, answer: impl Future<Output = Result<T, LoginError>>) -> Result<T, LoginError> {
        tokio::time::timeout(self.patience, answer).await.unwrap_or(Err(LoginError::late(self.patience)))
    }
}
