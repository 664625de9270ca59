//! What a listener does when the system has no descriptor or memory for one more connection.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::libc;

/// How long no connection is accepted. The connection stays in the queue, so trying at once would fail at once.
const PAUSE: Duration = Duration::from_millis(100);

/// Waits exhaustion out, and tells of each episode once.
#[derive(Debug, Default)]
pub struct Exhaustion {
    goes_on: AtomicBool,
}

impl Exhaustion {
    /// Whether the error means that the system lacks descriptors or memory now.
    pub fn is_meant(error: &io::Error) -> bool {
        matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
    }

    /// Pauses after `accept` failed on the listener called `name`.
    pub async fn wait_out(&self, name: &str, error: &io::Error) {
        if self.begins() {
            tracing::warn!(%error, "no connection can be accepted on the {name} for now; raise LimitNOFILE if this recurs");
        }
        tokio::time::sleep(PAUSE).await;
    }

    /// Notes that `accept` has succeeded.
    pub fn over(&self) {
        self.goes_on.store(false, Ordering::Relaxed);
    }

    fn begins(&self) -> bool {
        !self.goes_on.swap(true, Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn an_episode_begins_once_however_often_accept_fails() {
        let exhaustion = Exhaustion::default();
        assert_eq!([exhaustion.begins(), exhaustion.begins(), exhaustion.begins()], [true, false, false]);
        exhaustion.over();
        assert!(exhaustion.begins());
    }

    #[tokio::test]
    async fn a_listener_that_lacks_descriptors_pauses_instead_of_spinning() {
        let exhaustion = Exhaustion::default();
        let error = io::Error::from_raw_os_error(libc::EMFILE);
        assert!(exhaustion.wait_out("test listener", &error).now_or_never().is_none());
    }
}
