//! Header compression, RFC 7541: a decoder that follows one client, and the stateless half of an encoder.
//!
//! It promises to accept exactly what the standard calls valid, within [`MAX_LIST_SIZE`] and [`MAX_FIELDS`], and never
//! to panic or to hold more than those bounds on any other input. It does not judge names and values: that is the HTTP
//! server's part. After an error the tables of both sides differ, so the connection cannot go on.

mod huffman;
mod table;
#[cfg(test)]
mod tests;

use table::{DynamicTable, OVERHEAD, STATIC};

use super::recycle;

#[cfg(test)]
pub(crate) use {huffman::code_of, table::STATIC as STATIC_TABLE};

/// The most a header list may come to, counted as in RFC 7541 section 4.1. Above what our HTTP server answers with
/// status 431 (16 KiB), so that only abuse ends here.
pub(super) const MAX_LIST_SIZE: usize = 32 * 1024;
/// The most fields a header list may have.
pub(super) const MAX_FIELDS: usize = 256;

/// Why a header block could not be decoded. Each ends the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HpackError {
    /// The block ends inside a field.
    #[error("header block ends inside a field")]
    Truncated,
    /// An integer has more than four bytes behind its prefix (RFC 7541 section 5.1).
    #[error("integer in a header block is too large")]
    Integer,
    /// An index is 0 or above the end of the dynamic table (RFC 7541 section 2.3.3).
    #[error("header block refers to a table entry that does not exist")]
    Index,
    /// A Huffman-coded string holds EOS or is padded wrongly (RFC 7541 section 5.2).
    #[error("header block holds an invalid Huffman code")]
    Huffman,
    /// A size update asks for more than the 4096 bytes we offer (RFC 7541 section 6.3).
    #[error("header table size is above the limit")]
    TableSize,
    /// A size update stands behind the first field of a block (RFC 7541 section 4.2).
    #[error("header table size update is not at the start of its block")]
    LateTableSize,
    /// The decoded list is larger than we take.
    #[error("header list is too large")]
    ListTooLarge,
    /// The decoded list has more fields than we take.
    #[error("header list has too many fields")]
    TooManyFields,
}

/// How a field was written, as far as a proxy has to keep it (RFC 7541 sections 6.1 and 6.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// The static table entry of this index: the same for every decoder at any time.
    Static(u8),
    /// Anything that may have involved the dynamic table.
    Literal,
    /// Must stay a literal at every hop: a secret, by the sender's word (RFC 7541 section 7.1.3).
    NeverIndexed,
}

/// One decoded field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Field<'a> {
    pub(super) name: &'a [u8],
    pub(super) value: &'a [u8],
    pub(super) form: Form,
}

/// The decoding state of one connection.
#[derive(Debug)]
pub(super) struct Decoder {
    dynamic: DynamicTable,
    list: FieldList,
}

impl Decoder {
    pub(super) fn new() -> Self {
        Self { dynamic: DynamicTable::new(), list: FieldList::default() }
    }

    /// Decodes one whole block. The list is valid until the next call, and its memory is used again by it.
    pub(super) fn decode(&mut self, block: &[u8]) -> Result<&FieldList, HpackError> {
        self.list.clear();
        let mut input = block;
        while let Some(&first) = input.first() {
            if first & 0b1000_0000 != 0 {
                self.indexed(&mut input)?;
            } else if first & 0b1100_0000 == 0b0100_0000 {
                self.literal(&mut input, 6, Form::Literal)?;
                self.index_last_field();
            } else if first & 0b1110_0000 == 0b0010_0000 {
                if !self.list.spans.is_empty() {
                    return Err(HpackError::LateTableSize);
                }
                self.dynamic.resize(integer(&mut input, 5)?)?;
            } else if first & 0b0001_0000 != 0 {
                self.literal(&mut input, 4, Form::NeverIndexed)?;
            } else {
                self.literal(&mut input, 4, Form::Literal)?;
            }
        }
        Ok(&self.list)
    }

    fn indexed(&mut self, input: &mut &[u8]) -> Result<(), HpackError> {
        let index = integer(input, 7)?;
        let (name, value, form) = lookup(&self.dynamic, index)?;
        let start = self.list.bytes.len();
        self.list.bytes.extend_from_slice(name);
        let value_start = self.list.bytes.len();
        self.list.bytes.extend_from_slice(value);
        self.list.close(Span { start, value_start, end: self.list.bytes.len(), form })
    }

    fn literal(&mut self, input: &mut &[u8], prefix: u32, form: Form) -> Result<(), HpackError> {
        let start = self.list.bytes.len();
        match integer(input, prefix)? {
            0 => string(input, &mut self.list.bytes)?,
            index => {
                let (name, ..) = lookup(&self.dynamic, index)?;
                self.list.bytes.extend_from_slice(name);
            }
        }
        let value_start = self.list.bytes.len();
        string(input, &mut self.list.bytes)?;
        self.list.close(Span { start, value_start, end: self.list.bytes.len(), form })
    }

    fn index_last_field(&mut self) {
        if let Some(field) = self.list.iter().next_back() {
            self.dynamic.insert(field.name, field.value);
        }
    }

    /// Bytes of memory held.
    #[cfg(test)]
    pub(super) fn footprint(&self) -> usize {
        self.dynamic.footprint() + self.list.bytes.capacity() + self.list.spans.capacity() * size_of::<Span>()
    }
}

/// The fields of one block in their order.
#[derive(Debug, Default)]
pub(super) struct FieldList {
    bytes: Vec<u8>,
    spans: Vec<Span>,
    size: usize,
}

/// Where one field lies in [`FieldList::bytes`].
#[derive(Debug, Clone, Copy)]
struct Span {
    start: usize,
    value_start: usize,
    end: usize,
    form: Form,
}

impl FieldList {
    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = Field<'_>> {
        self.spans.iter().map(|span| Field {
            name: &self.bytes[span.start..span.value_start],
            value: &self.bytes[span.value_start..span.end],
            form: span.form,
        })
    }

    fn clear(&mut self) {
        recycle(&mut self.bytes);
        self.spans.clear();
        self.size = 0;
    }

    fn close(&mut self, span: Span) -> Result<(), HpackError> {
        self.size += span.end - span.start + OVERHEAD;
        if self.size > MAX_LIST_SIZE {
            return Err(HpackError::ListTooLarge);
        }
        if self.spans.len() == MAX_FIELDS {
            return Err(HpackError::TooManyFields);
        }
        self.spans.push(span);
        Ok(())
    }
}

/// Appends `field` in a form that neither reads nor changes a dynamic table.
pub(super) fn encode_without_indexing(field: Field<'_>, out: &mut Vec<u8>) {
    match field.form {
        Form::Static(index) => return put_integer(out, 0b1000_0000, 7, usize::from(index)),
        Form::Literal => out.push(0b0000_0000),
        Form::NeverIndexed => out.push(0b0001_0000),
    }
    for text in [field.name, field.value] {
        put_integer(out, 0, 7, text.len());
        out.extend_from_slice(text);
    }
}

/// The entry of both tables at `index` (RFC 7541 section 2.3.3), and how to write the whole of it.
fn lookup(dynamic: &DynamicTable, index: usize) -> Result<(&[u8], &[u8], Form), HpackError> {
    let position = index.checked_sub(1).ok_or(HpackError::Index)?;
    match STATIC.get(position) {
        Some((name, value)) => Ok((name.as_bytes(), value.as_bytes(), Form::Static(index as u8))),
        None => {
            let (name, value) = dynamic.entry(position - STATIC.len()).ok_or(HpackError::Index)?;
            Ok((name, value, Form::Literal))
        }
    }
}

/// Reads an integer with a prefix of so many bits (RFC 7541 section 5.1).
fn integer(input: &mut &[u8], prefix: u32) -> Result<usize, HpackError> {
    let mask = (1 << prefix) - 1;
    let mut value = usize::from(next(input)?) & mask;
    if value < mask {
        return Ok(value);
    }
    // Four bytes behind the prefix reach 2^28, far above every limit here.
    for shift in [0, 7, 14, 21] {
        let byte = usize::from(next(input)?);
        value += (byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(HpackError::Integer)
}

/// Writes an integer with a prefix of so many bits, below the bits of `pattern` (RFC 7541 section 5.1).
pub(super) fn put_integer(out: &mut Vec<u8>, pattern: u8, prefix: u32, value: usize) {
    let mask = (1 << prefix) - 1;
    if value < mask {
        return out.push(pattern | value as u8);
    }
    out.push(pattern | mask as u8);
    let mut rest = value - mask;
    while rest >= 0x80 {
        out.push(0x80 | (rest & 0x7f) as u8);
        rest >>= 7;
    }
    out.push(rest as u8);
}

/// Reads a string literal (RFC 7541 section 5.2) and appends it to `out`.
fn string(input: &mut &[u8], out: &mut Vec<u8>) -> Result<(), HpackError> {
    let huffman_coded = input.first().is_some_and(|first| first & 0x80 != 0);
    let length = integer(input, 7)?;
    let (text, rest) = input.split_at_checked(length).ok_or(HpackError::Truncated)?;
    *input = rest;
    if huffman_coded {
        return huffman::decode(text, out);
    }
    out.extend_from_slice(text);
    Ok(())
}

fn next(input: &mut &[u8]) -> Result<u8, HpackError> {
    let (&byte, rest) = input.split_first().ok_or(HpackError::Truncated)?;
    *input = rest;
    Ok(byte)
}
