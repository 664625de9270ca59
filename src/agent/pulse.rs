//! Whether the agent answers: what goes before `READY=1`, and what systemd's watchdog is fed by.
//!
//! A beat goes where an answer goes. It shows that tasks get their turn, that the threads on which keys are made and
//! files are hashed are not all stuck, that the locks of ledger, held keys and entries can be had, that the store
//! answers, and that the workload socket accepts a caller and says the first bytes to it. An agent of which one of these
//! hangs is not fed, and systemd starts it anew, which loses nothing.
//!
//! It does not show that something can be issued: a full disk, a bad policy or an expired authority are no better after
//! a restart. `/readyz` and `tether status` tell of those. Nor does it show that callers find the socket: that it cannot
//! be asked, as when it was removed or has more callers waiting than it holds, is no beat missed.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;

use super::notify;
use crate::base::drain;
use crate::issue::Issuer;
use crate::store::{Space, Store, StoreError};

/// How often it beats where there is no watchdog: for the line in `systemctl status`.
const SLOWLY: Duration = Duration::from_secs(30);
/// Beats within the time after which the watchdog bites: one that is late because the host is busy does no harm.
const BEATS: u32 = 4;

/// What does not answer.
#[derive(Debug, Error)]
enum Silent {
    /// Nothing came in time.
    #[error("there is no answer within {0:?}")]
    Late(Duration),
    /// A thread died.
    #[error("a thread for long work died")]
    Thread(#[source] tokio::task::JoinError),
    /// The store cannot be read.
    #[error("the store cannot be read")]
    Store(#[from] StoreError),
    /// A caller was let in and hung up on.
    #[error("the workload socket hangs up on its callers")]
    Socket(#[source] io::Error),
}

/// What a beat goes through.
pub(super) struct Pulse {
    pub(super) issuer: Arc<Issuer>,
    pub(super) store: Store,
    pub(super) workload: PathBuf,
    /// How the agent is, in a line.
    pub(super) summary: Box<dyn Fn() -> String + Send + Sync>,
}

impl Pulse {
    /// Tells systemd that the agent is ready once it has answered, and from then on that it still does.
    pub(super) async fn beat(self, mut drain: drain::Watcher) {
        if !notify::is_heard() {
            return drain.draining().await;
        }
        let watchdog = sd_notify::watchdog_enabled();
        tokio::select! {
            () = drain.draining() => {}
            () = self.tell(watchdog) => {}
        }
    }

    async fn tell(&self, watchdog: Option<Duration>) {
        let pause = watchdog.map_or(SLOWLY, |bites| (bites / BEATS).max(Duration::from_millis(1)));
        let (mut is_ready, mut last) = (false, String::new());
        let mut ticks = tokio::time::interval(pause);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if let Err(silent) = self.answers_within(pause).await {
                let why = crate::api::status::chain(&silent);
                tracing::error!(%why, "the agent does not answer itself: unless it does soon, systemd starts it anew");
                continue;
            }
            let status = (self.summary)();
            if !is_ready {
                is_ready = true;
                notify::ready(&status);
            } else if watchdog.is_some() {
                notify::alive(&status);
            } else if status != last {
                notify::status(&status);
            }
            last = status;
        }
    }

    async fn answers_within(&self, deadline: Duration) -> Result<(), Silent> {
        tokio::time::timeout(deadline, self.answers()).await.unwrap_or(Err(Silent::Late(deadline)))
    }

    async fn answers(&self) -> Result<(), Silent> {
        let issuer = self.issuer.clone();
        // On a thread for long work, and not here: a lock that nobody lets go of must not stop whoever notices.
        let locks = tokio::task::spawn_blocking(move || {
            let _ = (issuer.ledger.standing(""), issuer.held.len(), issuer.registry.borrow().generation());
        });
        locks.await.map_err(Silent::Thread)?;
        self.store.get::<String>(Space::Node, super::build::NODE_ID).await?;
        let Ok(mut caller) = UnixStream::connect(&self.workload).await else { return Ok(()) };
        // Whoever comes is greeted or told why not, before it says anything.
        caller.read_u8().await.map(drop).map_err(Silent::Socket)
    }
}
