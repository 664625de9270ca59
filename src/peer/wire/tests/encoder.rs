//! An HPACK encoder and HTTP/2 client bytes for tests. Its tables are a plain list, unlike the decoder's.

use super::super::frame::{FrameHead, PREFACE, flag, kind};
use super::super::hpack::{STATIC_TABLE, code_of, put_integer};

/// How to write a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum How {
    /// By index where a table has it, else as [`How::Incremental`].
    Indexed,
    Incremental,
    Without,
    Never,
}

/// A client's compression state.
pub(crate) struct Encoder {
    table: Vec<(Vec<u8>, Vec<u8>)>,
    max_size: usize,
}

impl Encoder {
    pub(crate) fn new() -> Self {
        Self { table: Vec::new(), max_size: 4096 }
    }

    pub(crate) fn resize(&mut self, size: usize, out: &mut Vec<u8>) {
        put_integer(out, 0x20, 5, size);
        self.max_size = size;
        self.evict();
    }

    pub(crate) fn field(&mut self, name: &[u8], value: &[u8], how: How, huffman: bool, out: &mut Vec<u8>) {
        let all = STATIC_TABLE.iter().map(|(n, v)| (n.as_bytes(), v.as_bytes()));
        let mut all = all.chain(self.table.iter().map(|(n, v)| (n.as_slice(), v.as_slice())));
        if how == How::Indexed
            && let Some(position) = all.clone().position(|entry| entry == (name, value))
        {
            return put_integer(out, 0x80, 7, position + 1);
        }
        let name_index = all.position(|(n, _)| n == name).map_or(0, |position| position + 1);
        match how {
            How::Indexed | How::Incremental => put_integer(out, 0x40, 6, name_index),
            How::Without => put_integer(out, 0x00, 4, name_index),
            How::Never => put_integer(out, 0x10, 4, name_index),
        }
        if name_index == 0 {
            put_string(name, huffman, out);
        }
        put_string(value, huffman, out);
        if matches!(how, How::Indexed | How::Incremental) {
            self.table.insert(0, (name.to_vec(), value.to_vec()));
            self.evict();
        }
    }

    /// A block with every field written in the same way.
    pub(crate) fn block(&mut self, fields: &[(&str, &str)], how: How, huffman: bool) -> Vec<u8> {
        let mut out = Vec::new();
        for (name, value) in fields {
            self.field(name.as_bytes(), value.as_bytes(), how, huffman, &mut out);
        }
        out
    }

    fn evict(&mut self) {
        while self.table.iter().map(|(n, v)| n.len() + v.len() + 32).sum::<usize>() > self.max_size {
            self.table.pop();
        }
    }
}

fn put_string(text: &[u8], huffman: bool, out: &mut Vec<u8>) {
    if !huffman {
        put_integer(out, 0, 7, text.len());
        return out.extend_from_slice(text);
    }
    let mut bits = String::new();
    for &byte in text {
        let (code, length) = code_of(usize::from(byte));
        bits.push_str(&format!("{code:0width$b}", width = length as usize));
    }
    while !bits.len().is_multiple_of(8) {
        bits.push('1');
    }
    put_integer(out, 0x80, 7, bits.len() / 8);
    let bytes = bits.as_bytes().chunks(8).map(|bits| bits.iter().fold(0, |byte, bit| byte << 1 | (bit - b'0')));
    out.extend(bytes);
}

/// One frame.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = FrameHead { length: payload.len(), kind, flags, stream }.bytes().to_vec();
    out.extend_from_slice(payload);
    out
}

/// HEADERS with all of a block.
pub(crate) fn headers(stream: u32, block: &[u8]) -> Vec<u8> {
    frame(kind::HEADERS, flag::END_HEADERS, stream, block)
}

/// The preface and an empty SETTINGS frame.
pub(crate) fn hello() -> Vec<u8> {
    [PREFACE.as_slice(), &frame(kind::SETTINGS, 0, 0, &[])].concat()
}

/// A gRPC request for `authority`, as C-core lays it out.
pub(crate) fn request(authority: &str) -> [(&str, &str); 8] {
    [
        (":scheme", "http"),
        (":method", "POST"),
        (":authority", authority),
        (":path", "/SpiffeWorkloadAPI/FetchX509SVID"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        ("user-agent", "grpc-python/1.70.0 grpc-c/45.0.0 (linux; chttp2)"),
        ("workload.spiffe.io", "true"),
    ]
}
