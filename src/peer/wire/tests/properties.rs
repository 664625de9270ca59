//! What holds for all connections.

use proptest::collection::vec;
use proptest::prelude::*;

use super::super::frame::{flag, kind};
use super::super::fuzz::{self, fuzz_inbound};
use super::encoder::{Encoder, How, frame, hello};
use super::{CHALLENGE, Connection, ILLEGAL, Seen, Server};

/// Something a client does.
#[derive(Debug, Clone)]
enum Act {
    Request {
        fields: Vec<(String, String, How, bool)>,
        end_stream: bool,
        padding: Option<u8>,
        priority: bool,
        cuts: Vec<u8>,
    },
    Resize(usize),
    Frame {
        kind: u8,
        flags: u8,
        stream: u32,
        payload: Vec<u8>,
    },
}

fn act() -> impl Strategy<Value = Act> {
    let how = prop_oneof![3 => Just(How::Indexed), 1 => Just(How::Without), 1 => Just(How::Never)];
    let authority = prop_oneof![
        4 => prop::sample::select(vec!["localhost", "example.com:443"]),
        1 => prop::sample::select(ILLEGAL.to_vec()),
    ];
    let field = prop_oneof![
        authority.prop_map(|value| (":authority".to_owned(), value.to_owned())),
        Just((":path".to_owned(), "/a/b".to_owned())),
        ("[a-z-]{1,12}", "[ -~]{0,60}").prop_filter("host is judged", |(name, _)| name != "host"),
    ];
    let field = (field, how, any::<bool>()).prop_map(|((name, value), how, huffman)| (name, value, how, huffman));
    let padding = prop::option::of(any::<u8>());
    let request = (vec(field, 0..8), any::<bool>(), padding, any::<bool>(), vec(any::<u8>(), 0..4));
    let kinds = prop::sample::select(vec![0x0, 0x2, 0x3, 0x4, 0x6, 0x7, 0x8, 0x42]);
    let other = (kinds, any::<u8>(), 0..8u32, vec(any::<u8>(), 0..100));
    prop_oneof![
        4 => request.prop_map(|(fields, end_stream, padding, priority, cuts)| {
            Act::Request { fields, end_stream, padding, priority, cuts }
        }),
        1 => (0..=4096usize).prop_map(Act::Resize),
        3 => other.prop_map(|(kind, flags, stream, payload)| Act::Frame { kind, flags, stream, payload }),
    ]
}

/// The bytes of a client that does all this, and what a server has to make of them.
fn connection(acts: Vec<Act>) -> (Vec<u8>, Vec<Seen>) {
    let mut encoder = Encoder::new();
    let mut bytes = Vec::new();
    let mut seen = Vec::new();
    let mut block = Vec::new();
    for (nth, act) in acts.into_iter().enumerate() {
        match act {
            Act::Resize(size) => encoder.resize(size, &mut block),
            Act::Frame { kind, flags, stream, payload } => {
                let frame = frame(kind, flags, stream, &payload);
                bytes.extend_from_slice(&frame);
                seen.push(Seen::Frame(frame));
            }
            Act::Request { fields, end_stream, padding, priority, cuts } => {
                for (name, value, how, huffman) in &fields {
                    encoder.field(name.as_bytes(), value.as_bytes(), *how, *huffman, &mut block);
                }
                let stream = 2 * nth as u32 + 1;
                bytes.extend(block_frames(stream, end_stream, padding, priority, &cuts, &block));
                block.clear();
                let fields = fields.into_iter().map(|(name, value, ..)| {
                    let illegal = name == ":authority" && ILLEGAL.contains(&value.as_str());
                    (name.into_bytes(), if illegal { b"localhost".to_vec() } else { value.into_bytes() })
                });
                seen.push(Seen::Headers { stream, end_stream, fields: fields.collect() });
            }
        }
    }
    (bytes, seen)
}

fn block_frames(stream: u32, end: bool, padding: Option<u8>, priority: bool, cuts: &[u8], block: &[u8]) -> Vec<u8> {
    let mut pieces = Vec::new();
    let mut rest = block;
    for cut in cuts {
        let (piece, later) = rest.split_at(rest.len().min(usize::from(*cut)));
        pieces.push(piece);
        rest = later;
    }
    pieces.push(rest);
    let last = pieces.len() - 1;
    let mut out = Vec::new();
    for (nth, piece) in pieces.into_iter().enumerate() {
        let end_headers = if nth == last { flag::END_HEADERS } else { 0 };
        if nth > 0 {
            out.extend(frame(kind::CONTINUATION, end_headers, stream, piece));
            continue;
        }
        let mut flags = end_headers | if end { flag::END_STREAM } else { 0 };
        let mut payload = Vec::new();
        if let Some(padding) = padding {
            flags |= flag::PADDED;
            payload.push(padding);
        }
        if priority {
            flags |= flag::PRIORITY;
            payload.extend([0, 0, 0, 0, 15]);
        }
        payload.extend_from_slice(piece);
        payload.resize(payload.len() + usize::from(padding.unwrap_or(0)), 0);
        out.extend(frame(kind::HEADERS, flags, stream, &payload));
    }
    out
}

/// `bytes` in pieces of the sizes given, over and over.
fn pieces<'a>(mut bytes: &'a [u8], sizes: &[usize]) -> Vec<&'a [u8]> {
    let mut pieces = Vec::new();
    for size in sizes.iter().cycle() {
        if bytes.is_empty() {
            break;
        }
        let (piece, rest) = bytes.split_at(bytes.len().min(*size));
        pieces.push(piece);
        bytes = rest;
    }
    pieces
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_server_sees_what_the_client_said_but_for_illegal_authorities(
        acts in vec(act(), 0..20),
        sizes in vec(1..300usize, 1..10),
    ) {
        let (bytes, seen) = connection(acts);
        let mut connection = Connection::open();
        for piece in pieces(&bytes, &sizes) {
            connection.feed(piece);
        }
        prop_assert_eq!(Server::new().read(&connection.output()), seen);
    }

    #[test]
    fn the_result_does_not_depend_on_how_the_bytes_are_cut(
        acts in vec(act(), 0..12),
        sizes in vec(1..60usize, 1..10),
        answer_after in 0..12usize,
    ) {
        let after = answer_after.min(acts.len());
        let answer = frame(kind::PING, flag::ACK, 0, &CHALLENGE);
        let (head, tail) = acts.split_at(after);
        // Both halves have tables of their own: what is compared is bytes, not meaning, so only the first counts.
        let (head, _) = connection(head.to_vec());
        let tail: Vec<Act> = tail.iter().filter(|act| matches!(act, Act::Frame { .. })).cloned().collect();
        let (tail, _) = connection(tail);
        let bytes = [hello(), head, answer, tail].concat();
        let mut outputs = Vec::new();
        for sizes in [&sizes[..], &[1], &[bytes.len()]] {
            let mut connection = Connection::new();
            let mut events = 0;
            for piece in pieces(&bytes, sizes) {
                events += usize::from(connection.feed(piece).is_some());
            }
            prop_assert_eq!(events, 1);
            outputs.push(connection.output());
        }
        prop_assert_eq!(&outputs[0], &outputs[1]);
        prop_assert_eq!(&outputs[0], &outputs[2]);
    }

    #[test]
    fn any_bytes_keep_the_promises(data in vec(any::<u8>(), 0..600)) {
        fuzz_inbound(&data);
    }

    #[test]
    fn damaged_connections_keep_the_promises(
        acts in vec(act(), 0..12),
        control in any::<u8>(),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
    ) {
        let (mut bytes, _) = connection(acts);
        for (index, byte) in damage {
            if !bytes.is_empty() {
                let position = index.index(bytes.len());
                bytes[position] = byte;
            }
        }
        bytes.insert(0, control | 1);
        fuzz_inbound(&bytes);
    }
}

#[test]
fn the_fuzz_entry_reaches_what_it_is_for() {
    let block = Encoder::new().block(&super::request("/tmp/x.sock"), How::Indexed, true);
    let answer = frame(kind::PING, flag::ACK, 0, &[0; 8]);
    let bytes = [hello(), super::headers(1, &block), answer].concat();
    let outcome = fuzz::run(&bytes, 5);
    assert_eq!((outcome.answered, outcome.error), (true, None));
    assert_ne!(outcome.output, bytes);
    fuzz_inbound(&[b"\x0b".as_slice(), &bytes[24..]].concat());
}
