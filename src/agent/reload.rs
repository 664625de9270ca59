//! Reading configuration, entries and policies again. What is wrong changes nothing, and the answer says what is.

use std::fmt;
use std::sync::Arc;

use super::AgentState;
use crate::api::admin::{ReloadSource, Reloadable};
use crate::authority::Authority;
use crate::base::text::chain;
use crate::config::Config;
use crate::telemetry::LogLevel;

/// What became of one source.
pub type Reloaded = ReloadSource;

type Read = dyn Fn() -> Result<Config, Vec<String>> + Send + Sync;

/// How the configuration is read again: the same sources as at the start.
#[derive(Clone)]
pub struct Reload(Option<Arc<Read>>);

impl Reload {
    /// There is nothing to read again.
    pub fn never() -> Self {
        Self(None)
    }

    /// Reads with `read`, which returns every mistake with its place.
    pub fn with(read: impl Fn() -> Result<Config, Vec<String>> + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(read)))
    }
}

impl fmt::Debug for Reload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reload")
    }
}

/// Reloads a running agent.
pub(super) struct Reloader {
    pub(super) state: Arc<AgentState>,
    pub(super) authority: Arc<Authority>,
    pub(super) log: LogLevel,
    pub(super) source: Reload,
}

impl Reloader {
    /// The log level takes effect; any other difference waits for a restart, and is named.
    fn configuration(&self) -> Option<ReloadSource> {
        let read = self.source.0.as_ref()?;
        let source = "configuration".to_owned();
        let config = match read() {
            Ok(config) => config,
            Err(mistakes) => {
                self.state.config_reloaded(false);
                return Some(ReloadSource { source, ok: false, messages: mistakes });
            }
        };
        self.state.config_reloaded(true);
        let mut messages = vec!["read without a mistake".to_owned()];
        let old = self.state.config();
        if config.log.level != old.log.level {
            match self.log.set(config.log.level.as_str()) {
                Ok(level) => messages.push(format!("the log level is now `{level}`")),
                Err(error) => messages.push(format!("the log level stays: {error}")),
            }
        }
        let same_log = Config { log: old.log.clone(), ..config };
        if same_log != *old {
            messages.push("other settings changed too: they take effect when the agent is restarted".to_owned());
        }
        Some(ReloadSource { source, ok: true, messages })
    }
}

impl Reloader {
    /// The files of a `disk` authority; nothing to say of the embedded one.
    async fn authority_files(&self) -> Option<ReloadSource> {
        let source = "authority files".to_owned();
        let published = match self.authority.reload_files().await {
            Ok(None) => return None,
            Ok(Some(signers)) => self.state.trust().authority_changed(signers).await.map_err(|error| chain(&error)),
            Err(error) => Err(chain(&error)),
        };
        Some(match published {
            Ok(()) => ReloadSource { source, ok: true, messages: vec!["in force".to_owned()] },
            Err(why) => ReloadSource { source, ok: false, messages: vec![why] },
        })
    }
}

#[tonic::async_trait]
impl Reloadable for Reloader {
    async fn reload(&self) -> Vec<ReloadSource> {
        super::notify::reloading();
        let mut sources: Vec<ReloadSource> = self.configuration().into_iter().collect();
        sources.extend(self.authority_files().await);
        let load = self.state.registry().reload().await;
        let messages = if load.ok {
            let count = self.state.registry().index().entries().len();
            vec![format!("{} files loaded, {count} entries in force", load.files)]
        } else {
            load.mistakes.iter().map(ToString::to_string).collect()
        };
        sources.push(ReloadSource { source: "entries".to_owned(), ok: load.ok, messages });
        let policies = self.state.policies();
        let load = policies.reload().await;
        let messages = if load.ok {
            vec![format!("{} files loaded, {} policies in force", load.files, policies.set().policies().len())]
        } else {
            load.mistakes.iter().map(ToString::to_string).collect()
        };
        sources.push(ReloadSource { source: "policies".to_owned(), ok: load.ok, messages });
        let refused = sources.iter().filter(|source| !source.ok).map(|source| source.source.as_str());
        let refused: Vec<&str> = refused.collect();
        match refused.as_slice() {
            [] => super::notify::ready("serving"),
            refused => super::notify::ready(&format!("serving; not reloaded: {}", refused.join(", "))),
        }
        sources
    }
}
