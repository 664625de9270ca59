//! Mistakes in files, each with its place.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// One mistake: where it is and what to do about it.
///
/// Displayed as `path:line:column: message`; a mistake of a whole file as `path: message`, and one in a text that is
/// no file as `line:column: message`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mistake {
    /// The file; empty when the text was no file.
    pub path: Arc<Path>,
    /// The line, counted from 1; 0 when the file as a whole is meant.
    pub line: u32,
    /// The column in characters, counted from 1; 0 when the file as a whole is meant.
    pub column: u32,
    /// What is wrong and what to do.
    pub message: String,
}

impl Mistake {
    /// A mistake of a file as a whole.
    pub fn whole(path: &Path, message: impl Into<String>) -> Self {
        Self { path: path.into(), line: 0, column: 0, message: message.into() }
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.as_os_str().is_empty() {
            write!(f, "{}:", self.path.display())?;
        }
        if self.line > 0 {
            write!(f, "{}:{}:", self.line, self.column)?;
        }
        write!(f, " {}", self.message)
    }
}

/// Turns byte offsets into lines and columns.
pub(crate) struct Lines<'a> {
    text: &'a str,
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    pub(crate) fn new(text: &'a str) -> Self {
        let after_breaks = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at + 1);
        Self { text, starts: std::iter::once(0).chain(after_breaks).collect() }
    }

    /// The line of a byte offset, counted from 1.
    pub(crate) fn line(&self, offset: usize) -> u32 {
        u32::try_from(self.starts.partition_point(|start| *start <= offset)).unwrap_or(u32::MAX)
    }

    /// The line and the column in characters of a byte offset, both counted from 1.
    pub(crate) fn position(&self, offset: usize) -> (u32, u32) {
        let offset = offset.min(self.text.len());
        let line = self.line(offset);
        let start = self.starts[line as usize - 1];
        let before = self.text.as_bytes()[start..offset].iter();
        // Characters are counted by their first bytes, so an offset inside a character is no trap.
        let column = before.filter(|byte| (**byte & 0xc0) != 0x80).count() + 1;
        (line, u32::try_from(column).unwrap_or(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_become_lines_and_columns_in_characters() {
        let lines = Lines::new("añb\n\nx");
        let cases = [(0, (1, 1)), (1, (1, 2)), (3, (1, 3)), (4, (1, 4)), (5, (2, 1)), (6, (3, 1)), (99, (3, 2))];
        for (offset, expected) in cases {
            assert_eq!(lines.position(offset), expected, "offset {offset}");
        }
    }

    #[test]
    fn a_mistake_reads_like_a_compilers() {
        let mistake = Mistake { path: Path::new("/e/a.toml").into(), line: 3, column: 9, message: "no".into() };
        assert_eq!(mistake.to_string(), "/e/a.toml:3:9: no");
        assert_eq!(Mistake::whole(Path::new("/e/a.toml"), "no").to_string(), "/e/a.toml: no");
    }
}
