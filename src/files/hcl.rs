//! The configuration language HCL in its version 1, as far as spiffe-helper's files use it.
//!
//! Readers of version 2 read these files wrong: there `0644` is six hundred and forty-four, and a block cannot end on the
//! line of its last attribute. Here it is an octal number, as in version 1. No expressions and no documents in place
//! (`<<`): nothing that these files have.

use std::fmt;

use thiserror::Error;

/// The deepest nesting: far beyond these files.
const MAX_DEPTH: usize = 16;

/// An attribute or block: its name, where that is, and what it is.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Item {
    pub(super) name: String,
    /// In bytes from the beginning.
    pub(super) at: usize,
    pub(super) value: Value,
}

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Text(String),
    Number(i64),
    Bool(bool),
    List(Vec<Value>),
    Object(Vec<Item>),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text(_) => "a text",
            Self::Number(_) => "a number",
            Self::Bool(_) => "true or false",
            Self::List(_) => "a list",
            Self::Object(_) => "an object",
        })
    }
}

/// The text is not what this reads.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{what}")]
pub(super) struct HclError {
    /// In bytes from the beginning.
    pub(super) at: usize,
    what: String,
}

/// Reads a whole file.
pub(super) fn parse(text: &str) -> Result<Vec<Item>, HclError> {
    let mut reader = Reader { text, at: 0 };
    let items = reader.items(None, 0)?;
    Ok(items)
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Reader<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn next(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn error<T>(&self, what: impl Into<String>) -> Result<T, HclError> {
        Err(HclError { at: self.at, what: what.into() })
    }

    fn take(&mut self, text: &str) -> bool {
        let found = self.rest().starts_with(text);
        self.at += if found { text.len() } else { 0 };
        found
    }

    /// Blanks, line ends and comments.
    fn skip(&mut self) -> Result<(), HclError> {
        loop {
            let rest = self.rest();
            let blank = rest.len() - rest.trim_start().len();
            self.at += blank;
            if self.rest().starts_with('#') || self.rest().starts_with("//") {
                self.at += self.rest().find('\n').unwrap_or(self.rest().len());
            } else if self.rest().starts_with("/*") {
                let Some(end) = self.rest().find("*/") else { return self.error("a comment that does not end") };
                self.at += end + 2;
            } else if blank == 0 {
                return Ok(());
            }
        }
    }

    /// Attributes and blocks up to `end`, or to the end of the text.
    fn items(&mut self, end: Option<char>, depth: usize) -> Result<Vec<Item>, HclError> {
        if depth > MAX_DEPTH {
            return self.error("too deep");
        }
        let mut items: Vec<Item> = Vec::new();
        loop {
            self.skip()?;
            match (self.next(), end) {
                (None, None) => return Ok(items),
                (None, Some(end)) => return self.error(format!("`{end}` is missing")),
                (Some(found), Some(end)) if found == end => {
                    self.at += end.len_utf8();
                    return Ok(items);
                }
                (Some(_), _) => {}
            }
            let at = self.at;
            let name = if self.next() == Some('"') { self.quoted()? } else { self.word()?.to_owned() };
            self.skip()?;
            let is_block = self.next() == Some('{');
            if !is_block && !self.take("=") {
                return self.error(format!("`=` is missing after `{name}`"));
            }
            self.skip()?;
            let value = self.value(depth)?;
            if items.iter().any(|item| item.name == name) {
                return Err(HclError { at, what: format!("`{name}` is there twice") });
            }
            items.push(Item { name, at, value });
            self.skip()?;
            self.take(",");
        }
    }

    fn value(&mut self, depth: usize) -> Result<Value, HclError> {
        match self.next() {
            Some('"') => self.quoted().map(Value::Text),
            Some('{') => {
                self.at += 1;
                self.items(Some('}'), depth + 1).map(Value::Object)
            }
            Some('[') => self.list(depth + 1),
            Some('<') => self.error("a document in place (`<<`) is not read: write a text in quotes"),
            Some('-' | '0'..='9') => self.number(),
            _ => match self.word()? {
                "true" => Ok(Value::Bool(true)),
                "false" => Ok(Value::Bool(false)),
                word => {
                    self.at -= word.len();
                    self.error(format!("`{word}` is no value: a text stands in quotes"))
                }
            },
        }
    }

    fn list(&mut self, depth: usize) -> Result<Value, HclError> {
        if depth > MAX_DEPTH {
            return self.error("too deep");
        }
        self.at += 1;
        let mut values = Vec::new();
        loop {
            self.skip()?;
            if self.take("]") {
                return Ok(Value::List(values));
            }
            if self.next().is_none() {
                return self.error("`]` is missing");
            }
            values.push(self.value(depth)?);
            self.skip()?;
            if !self.take(",") && self.next() != Some(']') {
                return self.error("`,` or `]` is missing");
            }
        }
    }

    fn word(&mut self) -> Result<&'a str, HclError> {
        let legal = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.');
        let rest = self.rest();
        let length = rest.find(|c| !legal(c)).unwrap_or(rest.len());
        if length == 0 {
            let found: String = rest.chars().take(1).collect();
            return self.error(format!("`{found}` is not expected here"));
        }
        self.at += length;
        Ok(&rest[..length])
    }

    fn number(&mut self) -> Result<Value, HclError> {
        let at = self.at;
        let word = self.word()?;
        let (sign, digits) = word.strip_prefix('-').map_or((1, word), |digits| (-1, digits));
        let value = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
            Some(hex) => i64::from_str_radix(hex, 16),
            None if digits.len() > 1 && digits.starts_with('0') => i64::from_str_radix(&digits[1..], 8),
            None => digits.parse(),
        };
        match value {
            Ok(value) if !digits.starts_with('+') => Ok(Value::Number(sign * value)),
            _ => Err(HclError { at, what: format!("`{word}` is no whole number") }),
        }
    }

    fn quoted(&mut self) -> Result<String, HclError> {
        let start = self.at;
        self.at += 1;
        let mut out = String::new();
        loop {
            let Some(c) = self.next().filter(|c| *c != '\n') else {
                return Err(HclError { at: start, what: "a text that does not end".to_owned() });
            };
            self.at += c.len_utf8();
            match c {
                '"' => return Ok(out),
                '\\' => out.push(self.escaped()?),
                c => out.push(c),
            }
        }
    }

    fn escaped(&mut self) -> Result<char, HclError> {
        let Some(c) = self.next() else { return self.error("a text that does not end") };
        self.at += c.len_utf8();
        let digits = match c {
            'n' => return Ok('\n'),
            't' => return Ok('\t'),
            'r' => return Ok('\r'),
            '"' | '\\' => return Ok(c),
            'u' => 4,
            'U' => 8,
            _ => {
                self.at -= c.len_utf8();
                return self.error(format!("`\\{c}` is no escape"));
            }
        };
        let code = self.rest().get(..digits).and_then(|digits| u32::from_str_radix(digits, 16).ok());
        match code.and_then(char::from_u32) {
            Some(c) => {
                self.at += digits;
                Ok(c)
            }
            None => self.error("no character has this number"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> Value {
        parse(&format!("x = {text}")).expect(text).remove(0).value
    }

    #[test]
    fn values_are_what_version_1_says_they_are() {
        let text = |text: &str| Value::Text(text.to_owned());
        let item = |name: &str, at, value| Item { name: name.to_owned(), at, value };
        let cases = [
            ("\"a b\"", text("a b")),
            (r#""\"\\\n\u00e9 ${x}""#, text("\"\\\né ${x}")),
            ("0644", Value::Number(0o644)),
            ("644", Value::Number(644)),
            ("0x1F", Value::Number(31)),
            ("-1", Value::Number(-1)),
            ("0", Value::Number(0)),
            ("true", Value::Bool(true)),
            ("[]", Value::List(vec![])),
            ("[\"a\", \"b\",]", Value::List(vec![text("a"), text("b")])),
            ("{ a = 1, b = 2 }", Value::Object(vec![item("a", 6, Value::Number(1)), item("b", 13, Value::Number(2))])),
            ("{ a = 1\n b = 2 }", Value::Object(vec![item("a", 6, Value::Number(1)), item("b", 13, Value::Number(2))])),
        ];
        for (text, expected) in cases {
            assert_eq!(value(text), expected, "{text}");
        }
    }

    #[test]
    fn comments_blocks_and_quoted_names_are_read() {
        let text = "# one\n\"a\" = 1 // two\n/* three\n */ b {\n c = true }\n";
        let items = parse(text).expect("read");
        let names: Vec<&str> = items.iter().map(|item| item.name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        assert!(matches!(&items[1].value, Value::Object(inner) if inner[0].value == Value::Bool(true)));
    }

    #[test]
    fn what_is_not_this_language_is_refused_where_it_is() {
        let deep = "[".repeat(100_000);
        for (text, at, what) in [
            ("a", 1, "`=` is missing after `a`"),
            ("a = b", 4, "`b` is no value"),
            ("a = \"x", 4, "does not end"),
            ("a = \"x\ny\"", 4, "does not end"),
            ("a = 089", 4, "no whole number"),
            ("a = 1.5", 4, "no whole number"),
            ("a = [1 2]", 7, "`,` or `]` is missing"),
            ("a = { b = 1", 11, "`}` is missing"),
            ("a = <<E\nx\nE\n", 4, "document in place"),
            ("a = 1\na = 2", 6, "there twice"),
            ("/* x", 0, "comment that does not end"),
            ("a = \"\\q\"", 6, "no escape"),
            ("a = \"\\ud800\"", 7, "no character"),
            (&format!("a = {deep}"), 20, "too deep"),
            ("= 1", 0, "not expected"),
        ] {
            let error = parse(text).expect_err(what);
            assert!(error.to_string().contains(what), "{error}");
            assert_eq!(error.at, at, "{what}");
        }
    }
}
