//! Reads the entries again when their directory changes.

use crate::base::directory::DirectoryWatch;
use crate::base::drain;

use super::service::Registry;

/// Watches the entries directory for a [`Registry`] while [`Self::run`] runs.
#[derive(Debug)]
pub struct EntriesWatch {
    pub(super) registry: Registry,
    pub(super) directory: DirectoryWatch,
}

impl EntriesWatch {
    /// Reloads the registry after every change until the drain begins.
    pub async fn run(self, mut drain: drain::Watcher) {
        let Self { registry, mut directory } = self;
        loop {
            tokio::select! {
                changed = directory.changed() => if changed.is_none() { return },
                () = drain.draining() => return,
            }
            registry.reload().await;
        }
    }
}

#[cfg(test)]
mod tests;
