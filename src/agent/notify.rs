//! Telling systemd how the agent is (sd_notify(3)). Without systemd nothing is told and nothing fails.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::task::JoinHandle;

/// How much more time a start asks for at once.
const MORE_TIME: Duration = Duration::from_secs(30);
/// How often it asks.
const EVERY: Duration = Duration::from_secs(10);
/// How often at most: a start that takes half an hour hangs.
const TIMES: usize = 180;

/// Whether anybody is told.
pub(super) fn is_heard() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some()
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "systemd cannot be notified");
    }
}

/// Everything is bound and served; also the end of a reload.
pub(super) fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// How it is, for `systemctl status`.
pub(super) fn status(status: &str) {
    tell(&[NotifyState::Status(status)]);
}

/// The agent answers.
pub(super) fn alive(status: &str) {
    tell(&[NotifyState::Watchdog, NotifyState::Status(status)]);
}

/// A reload begins; [`ready`] ends it.
pub(super) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!(%error, "systemd cannot be told of the reload"),
    }
}

/// There is no agent, for this reason. `systemctl status` has no log of the start before while it waits for the next one;
/// this it has.
pub fn failed(why: &str) {
    // A status is one line.
    let line: Vec<_> = why.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    tell(&[NotifyState::Status(&line.join("; "))]);
}

/// The drain begins.
pub(super) fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("draining")]);
}

/// A start that takes long, as with a large ledger, and asks for more time until this is dropped.
pub(super) struct Starting(Option<JoinHandle<()>>);

impl Starting {
    /// Begins to ask, where somebody listens. Call it inside a runtime.
    pub(super) fn begin() -> Self {
        Self(is_heard().then(|| tokio::spawn(ask_for_time())))
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        if let Some(asking) = &self.0 {
            asking.abort();
        }
    }
}

async fn ask_for_time() {
    let more = u32::try_from(MORE_TIME.as_micros()).unwrap_or(u32::MAX);
    for _ in 0..TIMES {
        tokio::time::sleep(EVERY).await;
        tell(&[NotifyState::ExtendTimeoutUsec(more), NotifyState::Status("starting: reading what was issued")]);
    }
}
