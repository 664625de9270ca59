//! The journal of systemd, in its own protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL): each field of an event is one of the
//! entry, so that `journalctl TETHER_SPIFFE_ID=spiffe://…` finds it.
//!
//! `MESSAGE` is the line that text would have, fields and all: that is what `journalctl -u` shows. It is the reason why
//! this is written here: the crate for it puts the bare message there. A workload's text in it is quoted, so that it is one
//! line and no field that nobody wrote; the field itself has the very value.

use std::fmt::{self, Write as _};
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use nix::sys::stat::fstat;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::lines::Lines;
use crate::base::text::{one_word, prose};

/// Where the journal takes entries.
pub(super) const SOCKET: &str = "/run/systemd/journal/socket";
/// The longest value of a field. An entry has to fit into a datagram.
const LONGEST: usize = 16 * 1024;
/// The longest name that the journal takes.
const LONGEST_NAME: usize = 64;

/// Whether standard error is the journal (systemd.exec(5), `$JOURNAL_STREAM`): only then would lines written there have
/// come to it, and only then are they taken there instead.
pub(super) fn is_stderr() -> bool {
    let stream = std::env::var("JOURNAL_STREAM").ok();
    stream.is_some_and(|stream| is_stream(&stream, std::io::stderr()))
}

fn is_stream(stream: &str, file: impl std::os::fd::AsFd) -> bool {
    fstat(file.as_fd()).is_ok_and(|meta| stream == format!("{}:{}", meta.st_dev, meta.st_ino))
}

/// Sends entries, from the one thread that does.
pub(super) struct Journal {
    path: PathBuf,
    socket: Option<UnixDatagram>,
}

impl Journal {
    /// Connects; an error when nobody takes entries there.
    pub(super) fn connect(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), socket: Some(connected(path)?) })
    }

    /// Sends an entry, if need be to a journal that was started anew. Otherwise the line is lost, for its reader is gone.
    pub(super) fn send(&mut self, entry: &[u8]) {
        for _ in 0..2 {
            if self.socket.is_none() {
                self.socket = connected(&self.path).ok();
            }
            match self.socket.as_ref().map(|socket| socket.send(entry)) {
                Some(Ok(_)) => return,
                Some(Err(_)) => self.socket = None,
                None => return,
            }
        }
    }
}

fn connected(path: &Path) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.connect(path)?;
    Ok(socket)
}

/// Makes entries of events.
pub(super) struct Entries(pub(super) Lines);

impl<S: Subscriber> Layer<S> for Entries {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let meta = event.metadata();
        self.0.push(fields.entry(*meta.level(), meta.target()));
    }
}

/// The fields of one event.
#[derive(Default)]
struct Fields {
    message: String,
    /// As they are in a line of text.
    line: String,
    entry: Vec<u8>,
}

impl Fields {
    fn entry(self, level: Level, target: &str) -> Vec<u8> {
        let Self { message, line, mut entry } = self;
        put(&mut entry, "MESSAGE", &format!("{target}: {}{line}", prose(&message)));
        put(&mut entry, "PRIORITY", priority(level));
        put(&mut entry, "SYSLOG_IDENTIFIER", "tether");
        put(&mut entry, "TETHER_TARGET", target);
        entry
    }

    fn take(&mut self, field: &Field, value: &dyn fmt::Display) {
        let value = value.to_string();
        if field.name() == "message" {
            self.message = value;
            return;
        }
        let _ = write!(self.line, " {}={}", field.name(), one_word(&value));
        put(&mut self.entry, &name(field.name()), &value);
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.take(field, &value);
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.take(field, &value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.take(field, &format_args!("{value:?}"));
    }
}

/// As syslog(3) has them: informational is what is usual.
fn priority(level: Level) -> &'static str {
    match level {
        Level::ERROR => "3",
        Level::WARN => "4",
        Level::INFO => "6",
        _ => "7",
    }
}

/// The name of a field of ours: capital letters, digits and underscores.
fn name(field: &str) -> String {
    let legal = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
    let mut name: String = "TETHER_".chars().chain(field.chars().map(legal)).collect();
    name.truncate(LONGEST_NAME);
    name
}

/// One field. A value of several lines goes by its length.
fn put(entry: &mut Vec<u8>, name: &str, value: &str) {
    let value = &value[..value.floor_char_boundary(LONGEST)];
    entry.extend_from_slice(name.as_bytes());
    if value.contains('\n') {
        entry.push(b'\n');
        entry.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        entry.push(b'=');
    }
    entry.extend_from_slice(value.as_bytes());
    entry.push(b'\n');
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    /// The entry that an event becomes, as the journal receives it.
    fn entry_of(log: impl FnOnce()) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let received = UnixDatagram::bind(&path).unwrap();
        let mut journal = Journal::connect(&path).unwrap();
        let lines = Lines::start(move |entry: &[u8]| journal.send(entry)).unwrap();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(Entries(lines)), log);
        let mut buffer = vec![0; 1 << 17];
        let count = received.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..count]).into_owned()
    }

    #[test]
    fn fields_of_an_event_are_fields_of_the_entry_and_stand_in_its_message() {
        let entry = entry_of(|| {
            let (error, id) = (io::Error::other("gone"), "spiffe://example.org/a");
            tracing::warn!(target: "tether::audit", spiffe_id = id, pid = 7, %error, ?id, "svid_issued");
        });
        let mut fields: Vec<&str> = entry.lines().collect();
        fields.sort_unstable();
        let message = "MESSAGE=tether::audit: svid_issued spiffe_id=spiffe://example.org/a pid=7 error=gone";
        assert!(fields[0].starts_with(message), "{entry}");
        assert_eq!(
            fields[1..],
            [
                "PRIORITY=4",
                "SYSLOG_IDENTIFIER=tether",
                "TETHER_ERROR=gone",
                "TETHER_ID=\"spiffe://example.org/a\"",
                "TETHER_PID=7",
                "TETHER_SPIFFE_ID=spiffe://example.org/a",
                "TETHER_TARGET=tether::audit",
            ]
        );
    }

    #[test]
    fn a_value_of_several_lines_cannot_pass_for_more_fields() {
        let forged = "a\nPRIORITY=0\nTETHER_UID=0";
        let entry = entry_of(|| tracing::info!(detail = forged, "m"));
        let length = String::from_utf8_lossy(&(forged.len() as u64).to_le_bytes()).into_owned();
        assert!(entry.contains(&format!("TETHER_DETAIL\n{length}{forged}\n")), "{entry:?}");
        assert!(entry.contains("\nPRIORITY=6\n"), "{entry:?}");
    }

    #[test]
    fn a_value_cannot_pass_for_more_of_the_message_and_the_field_keeps_it_as_it_is() {
        let forged = "a uid=0 action=entry_deleted\u{1b}[2K\u{202e}";
        let entry = entry_of(|| {
            let error = io::Error::other("no \"x\"\nPRIORITY=0");
            tracing::info!(audience = forged, plain = "spiffe://example.org/a", none = "", %error, "of {}", "a\nb\u{7}");
        });
        let message = entry.lines().find(|line| line.starts_with("MESSAGE=")).unwrap();
        let (_, told) = message.split_once(": ").unwrap();
        assert_eq!(
            told,
            "of a\\u{a}b\\u{7} audience=\"a uid=0 action=entry_deleted\\u{1b}[2K\\u{202e}\" plain=spiffe://example.org/a \
             none=\"\" error=\"no \\\"x\\\"\\nPRIORITY=0\"",
        );
        assert!(entry.contains(&format!("TETHER_AUDIENCE={forged}\n")), "{entry:?}");
    }

    #[test]
    fn levels_are_priorities_and_long_values_are_cut() {
        let rows =
            [(Level::ERROR, "3"), (Level::WARN, "4"), (Level::INFO, "6"), (Level::DEBUG, "7"), (Level::TRACE, "7")];
        for (level, expected) in rows {
            assert_eq!(priority(level), expected, "{level}");
        }
        let mut entry = Vec::new();
        put(&mut entry, "A", &"ä".repeat(LONGEST));
        assert_eq!(entry.len(), LONGEST + 3);
        assert_eq!(name(&format!("a.b-{}", "x".repeat(100))).len(), LONGEST_NAME);
        assert_eq!(name("http.status-code"), "TETHER_HTTP_STATUS_CODE");
    }

    #[test]
    fn a_journal_that_was_started_anew_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let first = UnixDatagram::bind(&path).unwrap();
        let mut journal = Journal::connect(&path).unwrap();
        drop(first);
        journal.send(b"lost");
        std::fs::remove_file(&path).unwrap();
        let second = UnixDatagram::bind(&path).unwrap();
        journal.send(b"found");
        let mut buffer = [0; 16];
        assert_eq!(second.recv(&mut buffer).unwrap(), 5);
    }

    #[test]
    fn stderr_is_the_journal_only_if_it_is_that_very_stream() {
        let file = tempfile::tempfile().unwrap();
        let meta = fstat(&file).unwrap();
        assert!(is_stream(&format!("{}:{}", meta.st_dev, meta.st_ino), &file));
        for other in [format!("{}:{}", meta.st_dev, meta.st_ino + 1), String::new(), "1".to_owned()] {
            assert!(!is_stream(&other, &file), "{other}");
        }
    }
}
