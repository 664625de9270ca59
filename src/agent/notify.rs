//! Telling systemd how the agent is (sd_notify(3)). Without systemd nothing is told and nothing fails.

use std::time::Duration;

use sd_notify::NotifyState;

use crate::base::drain;

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "systemd cannot be notified");
    }
}

/// Everything is bound and served.
pub(super) fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// A reload begins; [`ready`] ends it.
pub(super) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!(%error, "systemd cannot be told of the reload"),
    }
}

/// The drain begins.
pub(super) fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("draining")]);
}

/// Keeps the watchdog fed, if there is one, as long as this runtime runs its tasks.
pub(super) async fn feed_watchdog(mut drain: drain::Watcher) {
    let Some(interval) = sd_notify::watchdog_enabled() else { return drain.draining().await };
    let mut ticks = tokio::time::interval((interval / 2).max(Duration::from_millis(1)));
    loop {
        tokio::select! {
            () = drain.draining() => return,
            _ = ticks.tick() => tell(&[NotifyState::Watchdog]),
        }
    }
}
