//! Whether the agent answers: what goes before `READY=1`, and what systemd's watchdog is fed by.
//!
//! A beat goes where an answer goes. It shows that tasks get their turn, that the locks of ledger, held keys and entries
//! can be had, that the store answers, be it that the disk refuses, and that the workload socket accepts a caller and says
//! the first bytes to it. An agent of which one of these hangs is not fed, and systemd starts it anew, which loses nothing.
//!
//! It does not go where callers can stand in line: the threads on which descriptors are searched and files are hashed
//! are all busy when callers have enough to do for them, and an agent that is killed for that is killed by its callers.
//! What may block has a thread of its own here.
//!
//! It does not show that something can be issued: a disk that is full or was made read-only, a bad policy or an expired
//! authority are no better after a restart, and the next agent could not even begin. `/readyz` and `tether status` tell of
//! those. Nor does it show that callers find the socket: that it cannot be asked, as when it was removed or has more
//! callers waiting than it holds, is no beat missed.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use thiserror::Error;
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;
use tokio::sync::oneshot;

use super::notify;
use crate::base::drain;
use crate::base::text::chain;
use crate::issue::Issuer;
use crate::store::{Space, Store};

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
    /// The thread that looks at locks and store has not come back from the looks before this one.
    #[error("a lock, or the store, is held and not let go of")]
    Stuck,
    /// That thread is gone.
    #[error("the thread that looks at locks and store has ended")]
    Gone,
    /// A caller was let in and hung up on.
    #[error("the workload socket hangs up on its callers")]
    Socket(#[source] io::Error),
}

/// A look at what may be stuck. It blocks when it is.
type Look = dyn Fn() + Send;

/// The look of an agent.
pub(super) fn look(issuer: Arc<Issuer>, store: Store) -> Box<Look> {
    Box::new(move || {
        let _ = (issuer.ledger.size(), issuer.held.len(), issuer.registry.borrow().generation());
        // An error is an answer too.
        let _ = store.read_blocking(Space::Node, super::build::NODE_ID);
    })
}

/// What a beat goes through.
pub(super) struct Pulse {
    /// Looks at the locks and reads from the store.
    pub(super) look: Box<Look>,
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

    async fn tell(self, watchdog: Option<Duration>) {
        let Self { look, workload, summary } = self;
        let looker = match Looker::start(look) {
            Ok(looker) => looker,
            Err(error) => {
                // Nobody says `READY=1`: systemd starts the agent anew, when there may be room for a thread.
                tracing::error!(%error, "there is no thread for the watchdog");
                return std::future::pending().await;
            }
        };
        let pause = watchdog.map_or(SLOWLY, |bites| (bites / BEATS).max(Duration::from_millis(1)));
        let (mut is_ready, mut last) = (false, String::new());
        let mut ticks = tokio::time::interval(pause);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if let Err(silent) = within(pause, answers(&looker, &workload)).await {
                let why = chain(&silent);
                tracing::error!(%why, "the agent does not answer itself: unless it does soon, systemd starts it anew");
                continue;
            }
            let status = summary();
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
}

async fn within(deadline: Duration, beat: impl Future<Output = Result<(), Silent>>) -> Result<(), Silent> {
    tokio::time::timeout(deadline, beat).await.unwrap_or(Err(Silent::Late(deadline)))
}

async fn answers(looker: &Looker, workload: &Path) -> Result<(), Silent> {
    looker.look().await?;
    let Ok(mut caller) = UnixStream::connect(workload).await else { return Ok(()) };
    // Whoever comes is greeted or told why not, before it says anything.
    caller.read_u8().await.map(drop).map_err(Silent::Socket)
}

/// A thread for what may block. It ends with this, unless it is stuck.
struct Looker(SyncSender<oneshot::Sender<()>>);

impl Looker {
    fn start(look: Box<Look>) -> io::Result<Self> {
        let (ask, asked) = sync_channel::<oneshot::Sender<_>>(1);
        std::thread::Builder::new().name("pulse".to_owned()).spawn(move || {
            for answer in asked {
                // Whoever asked may have lost patience meanwhile.
                if !answer.is_closed() {
                    look();
                    let _ = answer.send(());
                }
            }
        })?;
        Ok(Self(ask))
    }

    async fn look(&self) -> Result<(), Silent> {
        let (answer, answered) = oneshot::channel();
        self.0.try_send(answer).map_err(|refused| match refused {
            TrySendError::Full(_) => Silent::Stuck,
            TrySendError::Disconnected(_) => Silent::Gone,
        })?;
        answered.await.map_err(|_| Silent::Gone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Longer than anything takes.
    const PATIENCE: Duration = Duration::from_secs(20);

    /// A runtime with one thread for long work, which is taken until the sender is dropped.
    fn with_a_full_pool(test: impl AsyncFnOnce(Store, PathBuf)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build();
        let runtime = runtime.expect("a runtime");
        let dir = tempfile::tempdir().expect("a directory");
        runtime.block_on(async {
            let store = Store::open(&dir.path().join("store")).await.expect("a store");
            let (done, wait) = std::sync::mpsc::channel::<()>();
            tokio::task::spawn_blocking(move || wait.recv());
            test(store, dir.path().join("socket")).await;
            drop(done);
        });
    }

    #[test]
    fn it_beats_while_callers_keep_all_threads_for_long_work_busy() {
        with_a_full_pool(async |store, socket| {
            let looker = Looker::start(Box::new(move || drop(store.read_blocking(Space::Node, "any"))));
            let looker = looker.expect("a thread");
            let listener = tokio::net::UnixListener::bind(&socket).expect("listening");
            let greeting = async {
                let (caller, _) = listener.accept().await.expect("it comes");
                caller.writable().await.expect("open");
                caller.try_write(b"x").expect("greeted");
                std::future::pending::<()>().await;
            };
            tokio::select! {
                beat = within(PATIENCE, answers(&looker, &socket)) => beat.expect("it answers"),
                () = greeting => {}
            }
        });
    }

    #[tokio::test]
    async fn it_does_not_beat_while_a_lock_is_held_and_says_so() {
        let (let_go, held) = std::sync::mpsc::channel::<()>();
        let (here, looking) = std::sync::mpsc::channel();
        let looker = Looker::start(Box::new(move || {
            here.send(()).expect("the test waits");
            let _ = held.recv();
        }));
        let looker = looker.expect("a thread");
        assert!(matches!(within(Duration::ZERO, looker.look()).await, Err(Silent::Late(_))));
        looking.recv().expect("it looks, and hangs");
        assert!(matches!(within(Duration::ZERO, looker.look()).await, Err(Silent::Late(_))), "behind the first");
        assert!(matches!(looker.look().await, Err(Silent::Stuck)));
        drop((let_go, looker));
        looking.recv().expect_err("nobody waits for an answer to the second, so nobody looks");
    }
}
