//! The only place that prints: data to standard output, everything else to standard error.
//!
//! Whatever is printed for a person is made safe here and nowhere else: a workload chooses its paths, audiences and names, and
//! what it chooses shows on one line, moves no cursor and colours nothing. Documents, which are for programs, are
//! printed as they are.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use zeroize::Zeroizing;

use super::args::Format;
use crate::base::text::escaped;
pub use crate::base::text::prose;

const RED: &str = "31";
const GREEN: &str = "32";
const YELLOW: &str = "33";
const BOLD: &str = "1";

/// Where a command prints.
pub struct Output {
    data: Box<dyn Write + Send>,
    chatter: Box<dyn Write + Send>,
    format: Format,
    data_style: Style,
    chatter_style: Style,
}

/// How one of the two streams may look.
#[derive(Clone, Copy, Default)]
struct Style {
    terminal: bool,
    colour: bool,
}

/// What a word in the output says about its line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    /// As it should be.
    Good,
    /// Works, with something lost.
    Weak,
    /// Does not work.
    Bad,
    /// Neither.
    Plain,
}

/// Text in pieces, each in the colour of its tone. It shows on one line, whatever is in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Text(Vec<(Tone, String)>);

impl Text {
    /// A word in the colour of its tone.
    pub fn toned(tone: Tone, word: impl Into<String>) -> Self {
        Self(vec![(tone, word.into())])
    }

    /// And then this, in no colour.
    pub fn then(self, text: impl Into<String>) -> Self {
        self.then_toned(Tone::Plain, text)
    }

    /// And then this, in the colour of its tone.
    pub fn then_toned(mut self, tone: Tone, word: impl Into<String>) -> Self {
        self.0.push((tone, word.into()));
        self
    }

    /// Whether there is nothing to show.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|(_, piece)| piece.is_empty())
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        Self::toned(Tone::Plain, text)
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

impl From<&String> for Text {
    fn from(text: &String) -> Self {
        text.as_str().into()
    }
}

impl Output {
    /// The process's own streams. `no_color` is the environment's wish (`NO_COLOR`, any value but the empty one).
    pub fn process(no_color: bool) -> Self {
        let style = |terminal| Style { terminal, colour: terminal && !no_color };
        Self {
            data_style: style(io::stdout().is_terminal()),
            chatter_style: style(io::stderr().is_terminal()),
            data: Box::new(io::stdout()),
            chatter: Box::new(io::stderr()),
            format: Format::Text,
        }
    }

    /// Streams the caller reads, as of no terminal.
    pub fn captured(data: impl Write + Send + 'static, chatter: impl Write + Send + 'static) -> Self {
        Self {
            data: Box::new(data),
            chatter: Box::new(chatter),
            format: Format::Text,
            data_style: Style::default(),
            chatter_style: Style::default(),
        }
    }

    /// Prints data in this format from now on.
    pub fn set_format(&mut self, format: Format) {
        self.format = format;
    }

    /// Whether data is to be JSON.
    pub fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// Whether data goes to a person's screen.
    pub fn is_terminal(&self) -> bool {
        self.data_style.terminal
    }

    /// Prints a document for programs as it is, such as PEM, a token or TOML, with a newline at its end.
    pub fn document(&mut self, text: &str) -> io::Result<()> {
        self.data.write_all(text.as_bytes())?;
        if !text.ends_with('\n') {
            self.data.write_all(b"\n")?;
        }
        self.data.flush()
    }

    /// Prints a line.
    pub fn line(&mut self, text: impl Into<Text>) -> io::Result<()> {
        let line = self.data_style.paint_text(&text.into());
        self.write(&format!("{line}\n"))
    }

    /// What is safe already, to be seen at once.
    fn write(&mut self, text: &str) -> io::Result<()> {
        self.data.write_all(text.as_bytes())?;
        self.data.flush()
    }

    /// Prints a JSON document on one line. It may hold keys, so the buffer is wiped.
    pub fn json(&mut self, document: &impl Serialize) -> io::Result<()> {
        let mut text = Zeroizing::new(serde_json::to_vec(document).map_err(io::Error::other)?);
        text.push(b'\n');
        self.data.write_all(&text)?;
        self.data.flush()
    }

    /// Prints rows in aligned columns under a header.
    pub fn table(&mut self, header: &[&str], rows: &[Vec<String>]) -> io::Result<()> {
        let header: Vec<_> = header.iter().map(|name| prose(name)).collect();
        let rows: Vec<Vec<_>> = rows.iter().map(|row| row.iter().map(|cell| prose(cell)).collect()).collect();
        let widths: Vec<usize> = (0..header.len())
            .map(|column| {
                let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
                cells.chain([header[column].chars().count()]).max().unwrap_or(0)
            })
            .collect();
        let aligned = |cells: &mut dyn Iterator<Item = &str>| {
            let padded: Vec<_> = cells.zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
            padded.join("  ").trim_end().to_owned()
        };
        let header = aligned(&mut header.iter().map(String::as_str));
        let mut text = format!("{}\n", self.data_style.paint(BOLD, &header));
        for row in &rows {
            text.push_str(&aligned(&mut row.iter().map(String::as_str)));
            text.push('\n');
        }
        self.write(&text)
    }

    /// Prints `label  value` lines with the values aligned.
    pub fn fields<V: Clone + Into<Text>>(&mut self, fields: &[(&str, V)]) -> io::Result<()> {
        let fields: Vec<_> = fields.iter().map(|(label, value)| (prose(label), value.clone().into())).collect();
        let width = fields.iter().map(|(label, _)| label.chars().count()).max().unwrap_or(0);
        let mut text = String::new();
        for (label, value) in &fields {
            let label = self.data_style.paint(BOLD, &format!("{label:<width$}"));
            text.push_str(&format!("{label}  {}\n", self.data_style.paint_text(value)));
        }
        self.write(&text)
    }

    /// The whole terminal, until it is dropped.
    pub fn screen(&mut self) -> io::Result<Screen<'_>> {
        let mut screen = Screen { output: self };
        screen.enter()?;
        Ok(screen)
    }

    /// Says something that is not data, on a line. Nobody may be listening, which is no failure.
    pub fn note(&mut self, text: &str) {
        let _ = writeln!(self.chatter, "{}", prose(text));
    }

    /// Asks; the answer is typed behind it.
    pub fn prompt(&mut self, text: &str) {
        let _ = write!(self.chatter, "{}", prose(text));
        let _ = self.chatter.flush();
    }

    /// Says what went wrong, on a line.
    pub fn error(&mut self, text: &str) {
        let label = self.chatter_style.paint(RED, "error:");
        let _ = writeln!(self.chatter, "{label} {}", prose(text));
    }
}

/// The size of a terminal, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// How wide.
    pub columns: usize,
    /// How high.
    pub rows: usize,
}

/// The size of the terminal as it is now; what is usual where it does not say.
pub fn terminal_size() -> Size {
    match terminal_size::terminal_size() {
        Some((width, height)) => Size { columns: usize::from(width.0), rows: usize::from(height.0) },
        None => Size { columns: 80, rows: 24 },
    }
}

/// The terminal's other screen, without a cursor. Whatever ends it, what was there before is there again.
pub struct Screen<'a> {
    output: &'a mut Output,
}

impl Screen<'_> {
    /// To the other screen, and no cursor.
    const ENTER: &'static str = "\x1b[?1049h\x1b[?25l";
    /// The cursor again, and back to what was there before.
    const LEAVE: &'static str = "\x1b[?25h\x1b[?1049l";
    /// The cursor goes to the first place.
    const HOME: &'static str = "\x1b[H";
    /// What is right of the cursor goes; what is below it goes.
    const CLEAR_LINE: &'static str = "\x1b[K";
    const CLEAR_BELOW: &'static str = "\x1b[J";

    /// Shows these lines, none wider than the terminal, and nothing else. Written at once, so that it does not flicker.
    pub fn draw(&mut self, lines: &[Vec<(Tone, String)>]) -> io::Result<()> {
        let painted = lines.iter().map(|line| {
            let pieces = line.iter().map(|(tone, piece)| self.output.data_style.paint_piece(*tone, piece));
            pieces.collect::<String>() + Self::CLEAR_LINE
        });
        let painted: Vec<_> = painted.collect();
        self.output.write(&format!("{}{}{}", Self::HOME, painted.join("\r\n"), Self::CLEAR_BELOW))
    }

    /// Stops this process as the terminal asked for, with the terminal as it was, until it goes on.
    pub fn pause(&mut self) -> io::Result<()> {
        self.output.write(Self::LEAVE)?;
        nix::sys::signal::raise(nix::sys::signal::Signal::SIGSTOP)?;
        self.enter()
    }

    fn enter(&mut self) -> io::Result<()> {
        self.output.write(Self::ENTER)
    }
}

impl Drop for Screen<'_> {
    fn drop(&mut self) {
        // A terminal that is gone needs no restoring.
        let _ = self.output.write(Self::LEAVE);
    }
}

impl Style {
    fn paint(self, colour: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// The colour comes last: none that is in the text counts.
    fn paint_piece(self, tone: Tone, piece: &str) -> String {
        let shown = prose(piece);
        match tone {
            Tone::Good => self.paint(GREEN, &shown),
            Tone::Weak => self.paint(YELLOW, &shown),
            Tone::Bad => self.paint(RED, &shown),
            Tone::Plain => shown,
        }
    }

    fn paint_text(self, text: &Text) -> String {
        text.0.iter().map(|(tone, piece)| self.paint_piece(*tone, piece)).collect()
    }
}

/// A name from outside as it is, where every character shows and has no double: anything beyond printable ASCII is escaped,
/// so that what is read is what is meant.
pub fn identifier(text: &str) -> String {
    escaped(text, |c| c == ' ' || c.is_ascii_graphic())
}

/// RFC 3339 in UTC, to the second.
pub fn time(at: OffsetDateTime) -> String {
    let at = at.to_offset(time::UtcOffset::UTC);
    let to_the_second = at.replace_nanosecond(0).unwrap_or(at);
    // Years beyond 9999 have no RFC 3339 form.
    to_the_second.format(&Rfc3339).unwrap_or_else(|_| at.to_string())
}

/// How far `at` is from `now`, for people: `14m59s left`, `3h2m ago`.
pub fn relative(at: OffsetDateTime, now: OffsetDateTime) -> String {
    let distance = (at - now).unsigned_abs();
    if at > now { format!("{} left", span(distance)) } else { format!("{} ago", span(distance)) }
}

/// The two largest units of a duration.
fn span(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let units = [("d", seconds / 86_400), ("h", seconds / 3_600 % 24), ("m", seconds / 60 % 60), ("s", seconds % 60)];
    let first = units.iter().position(|(_, count)| *count > 0).unwrap_or(units.len() - 1);
    let shown = units.iter().skip(first).take(2);
    let parts: Vec<_> =
        shown.enumerate().filter(|(i, (_, count))| *i == 0 || *count > 0).map(|(_, unit)| unit).collect();
    parts.iter().map(|(unit, count)| format!("{count}{unit}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_outside_shows_as_it_is_or_escaped() {
        for (text, as_name, as_prose) in [
            ("close_ticket", "close_ticket", "close_ticket"),
            ("del\u{435}te", "del\\u{435}te", "del\u{435}te"),
            ("a\u{202e}b", "a\\u{202e}b", "a\\u{202e}b"),
            ("a\x1b[2Kb\n", "a\\u{1b}[2Kb\\u{a}", "a\\u{1b}[2Kb\\u{a}"),
            ("naïve — yes", "na\\u{ef}ve \\u{2014} yes", "naïve — yes"),
        ] {
            assert_eq!((identifier(text).as_str(), prose(text).as_str()), (as_name, as_prose));
        }
    }

    #[derive(Clone, Default)]
    struct Kept(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("unbroken").write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What is printed, as on a terminal with colours: data and chatter.
    fn printed(print: impl FnOnce(&mut Output)) -> (String, String) {
        let (data, chatter) = (Kept::default(), Kept::default());
        let mut output = Output::captured(data.clone(), chatter.clone());
        (output.data_style.colour, output.chatter_style.colour) = (true, true);
        print(&mut output);
        let text = |kept: Kept| String::from_utf8(kept.0.lock().expect("unbroken").clone()).expect("text");
        (text(data), text(chatter))
    }

    const NASTY: &str = "a\x1b]0;pwned\x07\r\nb\u{202e}c\u{9b}31m";
    const SHOWN: &str = "a\\u{1b}]0;pwned\\u{7}\\u{d}\\u{a}b\\u{202e}c\\u{9b}31m";

    #[test]
    fn whatever_is_printed_for_a_person_is_made_safe_and_its_own_colours_stay() {
        let (data, chatter) = printed(|output| {
            output.line(NASTY).expect("printed");
            output.line(Text::toned(Tone::Bad, NASTY).then(NASTY)).expect("printed");
            output.fields(&[(NASTY, NASTY.to_owned())]).expect("printed");
            output.table(&[NASTY], &[vec![NASTY.to_owned()]]).expect("printed");
            output.line(prose(NASTY)).expect("printed");
            output.note(NASTY);
            output.error(NASTY);
            output.prompt(NASTY);
        });
        let bold = format!("\x1b[1m{SHOWN}\x1b[0m");
        let lines =
            [SHOWN, &format!("\x1b[31m{SHOWN}\x1b[0m{SHOWN}"), &format!("{bold}  {SHOWN}"), &bold, SHOWN, SHOWN, ""];
        assert_eq!(data, lines.join("\n"));
        assert_eq!(chatter, format!("{SHOWN}\n\x1b[31merror:\x1b[0m {SHOWN}\n{SHOWN}"));
    }

    #[test]
    fn documents_are_printed_byte_for_byte() {
        let (data, _) = printed(|output| {
            output.document("-----BEGIN\r\n\tx\x1b\n").expect("printed");
            output.document("a.token").expect("printed");
            output.json(&serde_json::json!({ "path": "\x1b" })).expect("printed");
        });
        assert_eq!(data, "-----BEGIN\r\n\tx\x1b\na.token\n{\"path\":\"\\u001b\"}\n");
    }

    #[test]
    fn a_screen_is_left_however_it_ends() {
        let kept = Kept::default();
        let mut output = Output::captured(kept.clone(), io::sink());
        let died = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let mut screen = output.screen().expect("entered");
            screen.draw(&[vec![(Tone::Plain, "one".to_owned())], Vec::new()]).expect("drawn");
            panic!("something broke");
        }));
        assert!(died.is_err());
        let text = String::from_utf8(kept.0.lock().expect("unbroken").clone()).expect("text");
        let expected = "\x1b[?1049h\x1b[?25l\x1b[Hone\x1b[K\r\n\x1b[K\x1b[J\x1b[?25h\x1b[?1049l";
        assert_eq!(text, expected);
    }

    #[test]
    fn distances_in_time_are_given_in_their_two_largest_units() {
        let now = OffsetDateTime::UNIX_EPOCH;
        let cases = [(0, "0s ago"), (59, "59s left"), (899, "14m59s left"), (3600, "1h left"), (90_061, "1d1h left")];
        for (seconds, expected) in cases {
            assert_eq!(relative(now + Duration::from_secs(seconds), now), expected);
        }
        assert_eq!(relative(now, now + Duration::from_secs(61)), "1m1s ago");
        assert_eq!(time(now + Duration::from_millis(1500)), "1970-01-01T00:00:01Z");
    }
}
