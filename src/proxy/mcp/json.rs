//! JSON (RFC 8259) that every reader reads alike, or not at all.
//!
//! What is judged here is executed by another program with another parser. Where two parsers may see two documents in the
//! same bytes, one of them has been deceived; so whatever is known to divide them is refused: a name that is twice in an
//! object, bytes that are not UTF-8, half a surrogate pair, a byte order mark, anything after the value. Each value keeps
//! the very text it was written as, and numbers are nothing else: nothing is lost by reading.
//!
//! Nesting, and the number of values, are limited: the memory a document takes is a small multiple of its bytes.

#[cfg(test)]
mod tests;

use std::borrow::Cow;

use thiserror::Error;

/// How deep arrays and objects nest.
const MAX_DEPTH: usize = 64;
/// How many values a document has, all levels together.
const MAX_VALUES: usize = 100_000;

/// Why a text is not read. Offsets are in bytes, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum JsonError {
    /// Bytes that are not UTF-8: RFC 8259, section 8.1, has nothing else.
    #[error("at byte {0}: not UTF-8")]
    Encoding(usize),
    /// The grammar has something else there.
    #[error("at byte {0}: not JSON")]
    Syntax(usize),
    /// A string with half a surrogate pair: it is no Unicode text, and readers make different things of it.
    #[error("at byte {0}: a string that is not Unicode")]
    Surrogate(usize),
    /// An object names a member twice: some readers take the first, some the last.
    #[error("in the object at byte {0}: a name is there twice")]
    Twice(usize),
    /// Arrays and objects nest deeper than 64 levels.
    #[error("at byte {0}: nested deeper than {MAX_DEPTH} levels")]
    Deep(usize),
    /// More than 100,000 values.
    #[error("more than {MAX_VALUES} values")]
    Many,
}

/// One value, and the text it was written as.
#[derive(Debug)]
pub(super) struct Value<'a> {
    /// Exactly as it was written.
    pub text: &'a str,
    /// What it is.
    pub kind: Kind<'a>,
}

#[derive(Debug)]
pub(super) enum Kind<'a> {
    /// `null`, `true`, `false`: the text says which.
    Literal,
    /// The text is all there is of it.
    Number,
    String(Cow<'a, str>),
    Array(Vec<Value<'a>>),
    /// In the order they were written; no name is there twice.
    Object(Vec<(Cow<'a, str>, Value<'a>)>),
}

impl<'a> Value<'a> {
    /// The member of this name; `None` where there is none, and where this is no object.
    pub fn member(&self, name: &str) -> Option<&Value<'a>> {
        self.members().iter().find(|(own, _)| own == name).map(|(_, value)| value)
    }

    /// All members; none where this is no object.
    pub fn members(&self) -> &[(Cow<'a, str>, Value<'a>)] {
        if let Kind::Object(members) = &self.kind { members } else { &[] }
    }

    pub fn string(&self) -> Option<&str> {
        if let Kind::String(text) = &self.kind { Some(text) } else { None }
    }

    pub fn is_object(&self) -> bool {
        matches!(self.kind, Kind::Object(_))
    }

    pub fn is_null(&self) -> bool {
        self.text == "null"
    }
}

/// Reads one value and nothing after it but space.
pub(super) fn parse(bytes: &[u8]) -> Result<Value<'_>, JsonError> {
    let text = std::str::from_utf8(bytes).map_err(|error| JsonError::Encoding(error.valid_up_to()))?;
    let mut reader = Reader { text, at: 0, values: 0 };
    reader.space();
    let value = reader.value(0)?;
    reader.space();
    if reader.at == text.len() { Ok(value) } else { Err(reader.syntax()) }
}

struct Reader<'a> {
    text: &'a str,
    /// INVARIANT: on a boundary between characters, as every step is over whole ones.
    at: usize,
    values: usize,
}

impl<'a> Reader<'a> {
    fn value(&mut self, depth: usize) -> Result<Value<'a>, JsonError> {
        self.values += 1;
        if self.values > MAX_VALUES {
            return Err(JsonError::Many);
        }
        let start = self.at;
        let kind = match self.peek() {
            Some(b'{') => Kind::Object(self.object(depth)?),
            Some(b'[') => Kind::Array(self.array(depth)?),
            Some(b'"') => Kind::String(self.string()?),
            Some(b'-' | b'0'..=b'9') => self.number()?,
            _ => self.literal()?,
        };
        Ok(Value { text: &self.text[start..self.at], kind })
    }

    fn object(&mut self, depth: usize) -> Result<Vec<(Cow<'a, str>, Value<'a>)>, JsonError> {
        let start = self.at;
        let mut members = Vec::new();
        self.open(depth)?;
        while self.another(b'}', members.is_empty())? {
            let name = self.string()?;
            self.space();
            self.take(b':')?;
            self.space();
            members.push((name, self.value(depth + 1)?));
        }
        let mut names: Vec<&str> = members.iter().map(|(name, _)| name.as_ref()).collect();
        names.sort_unstable();
        if names.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(JsonError::Twice(start));
        }
        Ok(members)
    }

    fn array(&mut self, depth: usize) -> Result<Vec<Value<'a>>, JsonError> {
        let mut elements = Vec::new();
        self.open(depth)?;
        while self.another(b']', elements.is_empty())? {
            elements.push(self.value(depth + 1)?);
        }
        Ok(elements)
    }

    fn open(&mut self, depth: usize) -> Result<(), JsonError> {
        if depth == MAX_DEPTH {
            return Err(JsonError::Deep(self.at));
        }
        self.at += 1;
        Ok(())
    }

    /// Goes on to the next element; `false` after the end of them.
    fn another(&mut self, end: u8, first: bool) -> Result<bool, JsonError> {
        self.space();
        if self.peek() == Some(end) {
            self.at += 1;
            return Ok(false);
        }
        if !first {
            self.take(b',')?;
            self.space();
        }
        Ok(true)
    }

    fn string(&mut self) -> Result<Cow<'a, str>, JsonError> {
        self.take(b'"')?;
        let plain = self.run();
        if self.peek() == Some(b'"') {
            self.at += 1;
            return Ok(Cow::Borrowed(plain));
        }
        let mut text = plain.to_owned();
        loop {
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(Cow::Owned(text));
                }
                Some(b'\\') => text.push(self.escape()?),
                // A control character, or the end.
                _ => return Err(self.syntax()),
            }
            text.push_str(self.run());
        }
    }

    /// What stands for itself.
    fn run(&mut self) -> &'a str {
        let start = self.at;
        while self.peek().is_some_and(|byte| byte >= b' ' && byte != b'"' && byte != b'\\') {
            self.at += 1;
        }
        &self.text[start..self.at]
    }

    fn escape(&mut self) -> Result<char, JsonError> {
        let start = self.at;
        self.take(b'\\')?;
        let escaped = match self.peek() {
            Some(byte @ (b'"' | b'\\' | b'/')) => char::from(byte),
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => return self.unicode(start),
            _ => return Err(self.syntax()),
        };
        self.at += 1;
        Ok(escaped)
    }

    /// After `\`, from `u` on: one code unit, or a pair of them.
    fn unicode(&mut self, start: usize) -> Result<char, JsonError> {
        let unit = self.unit()?;
        let code = match unit {
            0xD800..=0xDBFF if self.text[self.at..].starts_with("\\u") => {
                self.at += 1;
                let low = self.unit()?.checked_sub(0xDC00).filter(|low| *low < 0x400);
                0x1_0000 + ((unit - 0xD800) << 10) + low.ok_or(JsonError::Surrogate(start))?
            }
            unit => unit,
        };
        char::from_u32(code).ok_or(JsonError::Surrogate(start))
    }

    fn unit(&mut self) -> Result<u32, JsonError> {
        self.take(b'u')?;
        let mut unit = 0;
        for _ in 0..4 {
            let digit = self.peek().and_then(|byte| char::from(byte).to_digit(16)).ok_or_else(|| self.syntax())?;
            unit = unit * 16 + digit;
            self.at += 1;
        }
        Ok(unit)
    }

    fn number(&mut self) -> Result<Kind<'a>, JsonError> {
        self.skip(b"-");
        if self.peek() == Some(b'0') {
            self.at += 1;
        } else {
            self.digits()?;
        }
        if self.skip(b".") {
            self.digits()?;
        }
        if self.skip(b"eE") {
            self.skip(b"+-");
            self.digits()?;
        }
        Ok(Kind::Number)
    }

    fn digits(&mut self) -> Result<(), JsonError> {
        if !self.skip(b"0123456789") {
            return Err(self.syntax());
        }
        while self.skip(b"0123456789") {}
        Ok(())
    }

    fn literal(&mut self) -> Result<Kind<'a>, JsonError> {
        let rest = &self.text[self.at..];
        let literal = ["null", "true", "false"].into_iter().find(|literal| rest.starts_with(literal));
        self.at += literal.ok_or_else(|| self.syntax())?.len();
        Ok(Kind::Literal)
    }

    fn space(&mut self) {
        while self.skip(b" \t\n\r") {}
    }

    /// Over one byte of these, which are ASCII.
    fn skip(&mut self, any: &[u8]) -> bool {
        let there = self.peek().is_some_and(|byte| any.contains(&byte));
        self.at += usize::from(there);
        there
    }

    fn take(&mut self, byte: u8) -> Result<(), JsonError> {
        if self.skip(&[byte]) { Ok(()) } else { Err(self.syntax()) }
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn syntax(&self) -> JsonError {
        JsonError::Syntax(self.at)
    }
}
