//! Stopping as a design: one trigger, many watchers, and a way to know that all of them are gone.

use tokio::sync::{mpsc, watch};

/// Starts the drain and waits until every [`Watcher`] was dropped.
#[derive(Debug)]
pub struct Trigger {
    draining: watch::Sender<bool>,
    gone: mpsc::Receiver<()>,
}

/// Held by everything that must finish before the agent stops; tells when to begin finishing.
#[derive(Clone, Debug)]
pub struct Watcher {
    draining: watch::Receiver<bool>,
    _alive: mpsc::Sender<()>,
}

/// A trigger and its first watcher.
pub fn channel() -> (Trigger, Watcher) {
    let (draining, seen) = watch::channel(false);
    let (alive, gone) = mpsc::channel(1);
    (Trigger { draining, gone }, Watcher { draining: seen, _alive: alive })
}

impl Trigger {
    /// Tells every watcher to finish, without waiting for them.
    pub fn start(&self) {
        self.draining.send_replace(true);
    }

    /// Tells every watcher to finish and returns when the last one was dropped. Bound it with a deadline.
    pub async fn drain(mut self) {
        self.start();
        // Nothing is ever sent: the channel closes when the last watcher is gone.
        let _ = self.gone.recv().await;
    }
}

impl Watcher {
    /// Whether the drain has begun.
    pub fn is_draining(&self) -> bool {
        *self.draining.borrow()
    }

    /// Returns when the drain begins; also when the trigger itself is gone.
    pub async fn draining(&mut self) {
        let _ = self.draining.wait_for(|draining| *draining).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_drain_ends_when_the_last_watcher_is_gone() {
        let (trigger, mut watcher) = channel();
        let second = watcher.clone();
        let worker = tokio::spawn(async move { watcher.draining().await });
        let drain = tokio::spawn(trigger.drain());
        worker.await.expect("the worker is told");
        assert!(!drain.is_finished());
        assert!(second.is_draining());
        drop(second);
        drain.await.expect("the drain ends");
    }
}
