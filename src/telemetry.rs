//! Logs: text or JSON on stderr, with a level that can be changed while running.

use std::sync::Arc;

use thiserror::Error;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Why a log level was not taken.
#[derive(Debug, Error)]
pub enum LevelError {
    /// The text is neither a level nor a list of directives.
    #[error(
        "`{0}` is not a log level: use error, warn, info, debug or trace, or directives such as `info,tether::peer=debug`"
    )]
    Unknown(String),
    /// Logging was not set up by this agent.
    #[error("this process does not own its log")]
    NotOurs,
}

/// Changes the level of the running log; clones change the same one.
#[derive(Clone, Debug, Default)]
pub struct LogLevel(Option<Arc<reload::Handle<EnvFilter, Registry>>>);

impl LogLevel {
    /// The directives in force.
    pub fn current(&self) -> Result<String, LevelError> {
        let handle = self.0.as_ref().ok_or(LevelError::NotOurs)?;
        handle.with_current(ToString::to_string).map_err(|_| LevelError::NotOurs)
    }

    /// Puts other directives in force.
    pub fn set(&self, directives: &str) -> Result<String, LevelError> {
        let handle = self.0.as_ref().ok_or(LevelError::NotOurs)?;
        handle.reload(parse(directives)?).map_err(|_| LevelError::NotOurs)?;
        self.current()
    }
}

/// Checks directives without using them.
pub fn check_level(directives: &str) -> Result<(), LevelError> {
    parse(directives).map(drop)
}

/// Who turns the log down or off still gets the record of who was given what, unless that is named itself.
fn with_audit(directives: &str) -> String {
    let quiet = !directives.split(',').any(|directive| ["info", "debug", "trace"].contains(&directive));
    if quiet && !directives.contains("tether::audit") {
        format!("{directives},tether::audit=info")
    } else {
        directives.to_owned()
    }
}

fn parse(directives: &str) -> Result<EnvFilter, LevelError> {
    let unknown = || LevelError::Unknown(directives.to_owned());
    let bare_word = !directives.contains(['=', ',']);
    if bare_word && !["off", "error", "warn", "info", "debug", "trace"].contains(&directives) {
        // The filter would take it for a module name and log everything of it.
        return Err(unknown());
    }
    EnvFilter::try_new(with_audit(directives)).map_err(|_| unknown())
}

/// Sets up the log of this process. The second call in one process changes nothing and returns a level that is not
/// its own, so that several agents can run in one test process.
pub fn init(directives: &str, format: Format) -> Result<LogLevel, LevelError> {
    let (filter, handle) = reload::Layer::new(parse(directives)?);
    let lines = fmt::layer().with_writer(std::io::stderr);
    let lines = match format {
        Format::Text => lines.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).boxed(),
        Format::Json => lines.json().flatten_event(true).with_current_span(false).with_span_list(false).boxed(),
    };
    match tracing_subscriber::registry().with(filter).with(lines).try_init() {
        Ok(()) => Ok(LogLevel(Some(Arc::new(handle)))),
        Err(_) => Ok(LogLevel(None)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_is_turned_down_keeps_the_audit_unless_that_is_named() {
        assert_eq!(with_audit("off"), "off,tether::audit=info");
        assert_eq!(with_audit("warn,tether::peer=trace"), "warn,tether::peer=trace,tether::audit=info");
        assert_eq!(with_audit("debug"), "debug");
        assert_eq!(with_audit("error,tether::audit=off"), "error,tether::audit=off");
    }

    #[test]
    fn levels_and_directives_are_taken_and_misspelt_ones_refused() {
        for good in ["info", "off", "warn,tether::peer=trace", "tether=debug"] {
            assert!(check_level(good).is_ok(), "{good}");
        }
        for bad in ["", "inf", "verbose", "tether=loud"] {
            assert!(check_level(bad).is_err(), "{bad}");
        }
    }
}
