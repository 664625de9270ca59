//! Logs: text or JSON on stderr, or entries of the journal, with a level that can be changed while running.

mod journal;
mod lines;

use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

use self::journal::{Entries, Journal};
use self::lines::Lines;

/// How long the last lines may take.
const LAST_LINES: Duration = Duration::from_secs(1);

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// Entries of the journal with fields where stderr is the journal, else text.
    #[default]
    Auto,
    /// For people.
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
    /// The thread that writes the log cannot be started.
    #[error("the thread that writes the log cannot be started")]
    Thread(#[source] std::io::Error),
}

/// Changes the level of the running log; clones change the same one.
#[derive(Clone, Debug, Default)]
pub struct LogLevel(Option<Arc<reload::Handle<EnvFilter, Registry>>>);

/// Writes what is left of the log when it is dropped: at the end of the process.
#[derive(Debug)]
#[must_use = "dropped at once, it writes the first lines and not the last"]
pub struct LastLines(Lines);

impl Drop for LastLines {
    fn drop(&mut self) {
        self.0.flush(LAST_LINES);
    }
}

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
pub fn init(directives: &str, format: Format) -> Result<(LogLevel, LastLines), LevelError> {
    let (filter, handle) = reload::Layer::new(parse(directives)?);
    let journal =
        (format == Format::Auto && journal::is_stderr()).then(|| Journal::connect(Path::new(journal::SOCKET)));
    let (lines, layer) = match journal {
        Some(Ok(mut journal)) => {
            let lines = Lines::start(move |entry| journal.send(entry)).map_err(LevelError::Thread)?;
            (lines.clone(), Entries(lines).boxed())
        }
        Some(Err(_)) | None => {
            // A reader that is gone is no reason to stop.
            let lines = Lines::start(|line| drop(std::io::stderr().write_all(line))).map_err(LevelError::Thread)?;
            (lines.clone(), on_stderr(lines, format))
        }
    };
    let level = match tracing_subscriber::registry().with(filter).with(layer).try_init() {
        Ok(()) => LogLevel(Some(Arc::new(handle))),
        Err(_) => LogLevel(None),
    };
    Ok((level, LastLines(lines)))
}

type Filtered = tracing_subscriber::layer::Layered<reload::Layer<EnvFilter, Registry>, Registry>;

fn on_stderr(lines: Lines, format: Format) -> Box<dyn Layer<Filtered> + Send + Sync> {
    // Its own errors it would print, and fail where that cannot be written either.
    let layer = fmt::layer().with_writer(lines).log_internal_errors(false);
    match format {
        Format::Auto | Format::Text => layer.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).boxed(),
        Format::Json => layer.json().flatten_event(true).with_current_span(false).with_span_list(false).boxed(),
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
