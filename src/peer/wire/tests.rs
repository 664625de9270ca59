//! Whole connections through [`Inbound`] and [`Outbound`].

pub(super) mod encoder;
mod outbound;
mod properties;

use super::frame::{FrameHead, HEAD_LEN, PREFACE, flag, kind};
use super::hpack::{Decoder, Form};
use super::*;
use encoder::{Encoder, How, frame, headers, hello, request};

const CHALLENGE: [u8; 8] = *b"\x01\x02\x03\x04\xfb\xfc\xfd\xfe";

const ILLEGAL: [&str; 7] =
    ["tmp%2Fx%2Fworkload.sock", "/tmp/x/workload.sock", "unix:/tmp/x", "", "a b", "[::1", "%2Frun%2Ftether%2Fw.sock"];

/// One connection, whose server takes everything at once.
struct Connection {
    inbound: Inbound,
    output: Vec<u8>,
}

impl Connection {
    fn new() -> Self {
        Self { inbound: Inbound::new(CHALLENGE), output: Vec::new() }
    }

    /// A connection behind preface and SETTINGS.
    fn open() -> Self {
        let mut connection = Self::new();
        assert_eq!(connection.read(&hello()), Ok(ReadOutcome { passed: Passed::AsRead, event: None }));
        connection.output.clear();
        connection
    }

    fn read(&mut self, bytes: &[u8]) -> Result<ReadOutcome, WireError> {
        let read = self.inbound.accept(bytes)?;
        match read.passed {
            Passed::AsRead => self.output.extend_from_slice(bytes),
            Passed::Queued => self.output.extend_from_slice(self.inbound.queued()),
        }
        self.inbound.consume(self.inbound.queued().len());
        Ok(read)
    }

    /// Reads what must be valid.
    fn feed(&mut self, bytes: &[u8]) -> Option<Event> {
        self.read(bytes).expect("valid bytes").event
    }

    fn passes(&mut self, bytes: &[u8]) {
        assert_eq!(self.read(bytes), Ok(ReadOutcome { passed: Passed::AsRead, event: None }));
    }

    fn rewrites(&mut self, bytes: &[u8]) {
        assert_eq!(self.read(bytes), Ok(ReadOutcome { passed: Passed::Queued, event: None }));
    }

    fn output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.output)
    }
}

/// What the server makes of frames.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Headers { stream: u32, end_stream: bool, fields: Vec<(Vec<u8>, Vec<u8>)> },
    Frame(Vec<u8>),
}

/// A server's view of a connection, with a compression state of its own.
struct Server {
    decoder: Decoder,
}

impl Server {
    fn new() -> Self {
        Self { decoder: Decoder::new() }
    }

    /// Reads whole frames; the preface must be gone.
    fn read(&mut self, mut bytes: &[u8]) -> Vec<Seen> {
        let mut seen = Vec::new();
        while !bytes.is_empty() {
            let (mut frame, mut payload) = split_frame(&mut bytes);
            if frame.kind != kind::HEADERS {
                seen.push(Seen::Frame([frame.bytes().as_slice(), &payload].concat()));
                continue;
            }
            let (stream, end_stream) = (frame.stream, frame.has(flag::END_STREAM));
            let mut block = unpad(frame, &payload).to_vec();
            while !frame.has(flag::END_HEADERS) {
                (frame, payload) = split_frame(&mut bytes);
                assert_eq!((frame.kind, frame.stream), (kind::CONTINUATION, stream));
                block.extend(payload);
            }
            let list = self.decoder.decode(&block).expect("a valid block");
            let fields = list.iter().map(|field| (field.name.to_vec(), field.value.to_vec())).collect();
            seen.push(Seen::Headers { stream, end_stream, fields });
        }
        seen
    }
}

fn split_frame(bytes: &mut &[u8]) -> (FrameHead, Vec<u8>) {
    let head = FrameHead::read(bytes).expect("a whole frame header");
    assert!(head.length <= 16_384);
    let (payload, rest) = bytes[HEAD_LEN..].split_at(head.length);
    *bytes = rest;
    (head, payload.to_vec())
}

fn unpad(head: FrameHead, payload: &[u8]) -> &[u8] {
    let start = if head.has(flag::PADDED) { 1 } else { 0 };
    let end = payload.len() - if head.has(flag::PADDED) { usize::from(payload[0]) } else { 0 };
    &payload[start + if head.has(flag::PRIORITY) { 5 } else { 0 }..end]
}

fn owned(fields: &[(&str, &str)]) -> Vec<(Vec<u8>, Vec<u8>)> {
    fields.iter().map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec())).collect()
}

fn seen_request(stream: u32, authority: &str) -> Vec<Seen> {
    vec![Seen::Headers { stream, end_stream: false, fields: owned(&request(authority)) }]
}

#[test]
fn connections_with_legal_authorities_pass_untouched_and_uncopied() {
    for authority in ["localhost", "localhost:8080", "example.com", "[::1]:50051", "10.0.0.1", "user@host"] {
        for how in [How::Indexed, How::Without, How::Never] {
            let mut encoder = Encoder::new();
            let mut connection = Connection::open();
            for stream in [1, 3, 5] {
                connection.passes(&headers(stream, &encoder.block(&request(authority), how, true)));
                connection.passes(&frame(0, flag::END_STREAM, stream, b"\0\0\0\0\0"));
            }
        }
    }
}

#[test]
fn requests_without_an_authority_and_trailers_pass_untouched() {
    let mut encoder = Encoder::new();
    let mut connection = Connection::open();
    let fields = [(":method", "POST"), (":scheme", "http"), (":path", "/a/b")];
    connection.passes(&headers(1, &encoder.block(&fields, How::Indexed, false)));
    connection.passes(&headers(1, &encoder.block(&[("grpc-status", "0")], How::Indexed, false)));
}

#[test]
fn an_illegal_authority_becomes_localhost_and_all_else_stays() {
    for authority in ILLEGAL {
        for how in [How::Indexed, How::Without, How::Never] {
            for huffman in [false, true] {
                let mut connection = Connection::open();
                connection.rewrites(&headers(1, &Encoder::new().block(&request(authority), how, huffman)));
                let seen = Server::new().read(&connection.output());
                assert_eq!(seen, seen_request(1, "localhost"), "`{authority}` {how:?} {huffman}");
            }
        }
    }
}

#[test]
fn an_illegal_host_field_becomes_localhost_too() {
    let fields = |host| [(":method", "POST"), (":scheme", "http"), (":path", "/a/b"), ("host", host)];
    let mut connection = Connection::open();
    connection.rewrites(&headers(1, &Encoder::new().block(&fields("/tmp/x.sock"), How::Indexed, true)));
    let seen = Server::new().read(&connection.output());
    assert_eq!(seen, [Seen::Headers { stream: 1, end_stream: false, fields: owned(&fields("localhost")) }]);
}

#[test]
fn an_illegal_authority_in_the_dynamic_table_is_replaced_in_later_requests() {
    let mut encoder = Encoder::new();
    let mut connection = Connection::open();
    let mut server = Server::new();
    for stream in [1, 3, 5] {
        let block = encoder.block(&request("tmp%2Fx%2Fworkload.sock"), How::Indexed, true);
        if stream > 1 {
            assert_eq!(block.len(), 8, "every field is an index");
        }
        connection.rewrites(&headers(stream, &block));
        assert_eq!(server.read(&connection.output()), seen_request(stream, "localhost"));
    }
}

#[test]
fn after_the_first_illegal_authority_the_servers_table_is_frozen_and_unused() {
    let mut encoder = Encoder::new();
    let mut connection = Connection::open();
    let mut server = Server::new();
    connection.passes(&headers(1, &encoder.block(&request("localhost"), How::Indexed, true)));
    server.read(&connection.output());

    for (stream, authority) in [(3, "/tmp/x.sock"), (5, "localhost"), (7, "example.com"), (9, "/tmp/x.sock")] {
        let mut block = Vec::new();
        if stream == 7 {
            encoder.resize(300, &mut block);
        }
        block.extend(encoder.block(&request(authority), How::Indexed, true));
        connection.rewrites(&headers(stream, &block));
        let output = connection.output();
        let expected = if authority.starts_with('/') { "localhost" } else { authority };
        // A decoder with an empty table understands the block: it refers to nothing and indexes nothing.
        let mut fresh = Server::new();
        assert_eq!(fresh.read(&output), seen_request(stream, expected));
        assert_eq!(fresh.decoder.decode(&[0xbe]).err(), Some(HpackError::Index));
        assert_eq!(server.read(&output), seen_request(stream, expected));
    }
}

#[test]
fn never_indexed_fields_stay_never_indexed() {
    let mut block = Encoder::new().block(&[(":authority", "/x"), ("a", "b")], How::Indexed, false);
    block.extend(Encoder::new().block(&[(":authority", "/x"), ("authorization", "secret")], How::Never, false));
    let mut connection = Connection::open();
    connection.rewrites(&headers(1, &block));
    let mut decoder = Decoder::new();
    let forms: Vec<_> = decoder.decode(&connection.output[HEAD_LEN..]).expect("valid").iter().map(|f| f.form).collect();
    assert_eq!(forms, [Form::Literal, Form::Literal, Form::NeverIndexed, Form::NeverIndexed]);
}

#[test]
fn padding_priority_and_continuations_are_understood_and_end_stream_is_kept() {
    let block = Encoder::new().block(&request("/tmp/x.sock"), How::Indexed, true);
    let (first, rest) = block.split_at(10);
    let (second, third) = rest.split_at(1);
    let padded = [&[3], [0, 0, 0, 0, 15].as_slice(), first, &[0; 3]].concat();
    let flags = flag::END_STREAM | flag::PADDED | flag::PRIORITY;
    let bytes = [
        frame(kind::HEADERS, flags, 1, &padded),
        frame(kind::CONTINUATION, 0, 1, second),
        frame(kind::CONTINUATION, 0, 1, &[]),
        frame(kind::CONTINUATION, flag::END_HEADERS, 1, third),
    ]
    .concat();
    let mut connection = Connection::open();
    connection.rewrites(&bytes);
    let output = connection.output();
    let head = FrameHead::read(&output).expect("a frame");
    assert_eq!(head.flags, flag::END_STREAM | flag::END_HEADERS);
    let fields = owned(&request("localhost"));
    assert_eq!(Server::new().read(&output), [Seen::Headers { stream: 1, end_stream: true, fields }]);

    let legal = Encoder::new().block(&request("localhost"), How::Indexed, true);
    let padded = [&[2], [0, 0, 0, 0, 15].as_slice(), &legal, &[0; 2]].concat();
    Connection::open().passes(&frame(kind::HEADERS, flags | flag::END_HEADERS, 1, &padded));
}

#[test]
fn a_large_rewritten_block_is_split_into_frames_of_legal_size() {
    let large = "x".repeat(20_000);
    let fields = [(":authority", "/tmp/x.sock"), ("a", large.as_str())];
    let block = Encoder::new().block(&fields, How::Without, false);
    let (first, rest) = block.split_at(9000);
    let bytes = [
        frame(kind::HEADERS, 0, 1, first),
        frame(kind::CONTINUATION, flag::END_HEADERS, 1, rest),
        frame(0, flag::END_STREAM, 1, b"data"),
    ];
    let mut connection = Connection::open();
    connection.rewrites(&bytes.concat());
    let seen = Server::new().read(&connection.output());
    let fields = owned(&[(":authority", "localhost"), ("a", large.as_str())]);
    assert_eq!(seen[0], Seen::Headers { stream: 1, end_stream: false, fields });
    assert_eq!(seen[1], Seen::Frame(bytes[2].clone()));
}

#[test]
fn payloads_of_other_frames_stream_through_without_being_collected() {
    let mut connection = Connection::open();
    let data = frame(0, 0, 1, &[7; 16_384]);
    connection.passes(&data[..9]);
    for piece in data[9..].chunks(1000) {
        connection.passes(piece);
    }
    for kind in [0x2, 0x3, 0x4, 0x6, 0x7, 0x8, 0xa, 0x10, 0xff] {
        connection.passes(&frame(kind, 0xff, 0x7fff_ffff, b"whatever it is"));
    }
}

#[test]
fn the_answer_is_reported_with_the_read_of_its_last_byte_and_kept_from_the_server() {
    let answer = frame(kind::PING, flag::ACK, 0, &CHALLENGE);
    for cut in 0..answer.len() {
        let mut connection = Connection::open();
        let before = frame(0, 0, 1, b"before");
        let after = frame(0, 0, 1, b"after");
        assert_eq!(connection.feed(&[&before, &answer[..cut]].concat()), None, "cut at {cut}");
        let event = connection.feed(&[&answer[cut..], &after].concat());
        assert_eq!(event, Some(Event::ChallengeAnswered), "cut at {cut}");
        assert_eq!(connection.output(), [before, after].concat(), "cut at {cut}");
    }
}

#[test]
fn only_the_first_ack_with_the_very_payload_is_the_answer() {
    let other = [
        frame(kind::PING, flag::ACK, 0, b"\x01\x02\x03\x04\xfb\xfc\xfd\xff"),
        frame(kind::PING, 0, 0, &CHALLENGE),
        frame(kind::PING, flag::ACK, 1, &CHALLENGE),
        frame(kind::PING, flag::ACK, 0, &CHALLENGE[..7]),
        frame(0, flag::ACK, 0, &CHALLENGE),
    ];
    let mut connection = Connection::open();
    for frame in &other {
        connection.passes(frame);
    }
    for byte in &other[0] {
        assert_eq!(connection.feed(&[*byte]), None);
    }
    assert!(connection.output().ends_with(&other[0]));

    let answer = frame(kind::PING, flag::ACK, 0, &CHALLENGE);
    let read = connection.read(&answer);
    assert_eq!(read, Ok(ReadOutcome { passed: Passed::Queued, event: Some(Event::ChallengeAnswered) }));
    assert_eq!(connection.output(), b"");
    connection.passes(&answer);
}

#[test]
fn the_last_stream_is_the_highest_one_let_through() {
    let mut encoder = Encoder::new();
    let mut connection = Connection::open();
    assert_eq!(connection.inbound.last_stream(), 0);
    for (stream, last) in [(1, 1), (5, 5), (3, 5)] {
        let bytes = headers(stream, &encoder.block(&request("localhost"), How::Indexed, true));
        connection.feed(&bytes[..15]);
        connection.feed(&bytes[15..]);
        assert_eq!(connection.inbound.last_stream(), last);
    }
}

#[test]
fn what_is_no_http2_is_refused_at_its_first_wrong_byte() {
    for position in 0..PREFACE.len() {
        let mut wrong = *PREFACE;
        wrong[position] ^= 1;
        let mut connection = Connection::new();
        connection.passes(&wrong[..position]);
        assert_eq!(connection.read(&wrong[position..=position]), Err(WireError::Preface));
    }
}

#[test]
fn malformed_frames_are_refused() {
    use WireError::*;
    let block = Encoder::new().block(&request("localhost"), How::Without, false);
    let open = frame(kind::HEADERS, 0, 1, &block);
    let then = |next: Vec<u8>| [open.clone(), next].concat();
    let headers = |flags: u8, payload: &[u8]| frame(kind::HEADERS, flag::END_HEADERS | flags, 1, payload);
    let rows = [
        ("a frame above the limit", vec![0, 0x40, 1, 0, 0, 0, 0, 0, 1], FrameTooLarge),
        ("HEADERS above the limit", vec![0, 0x40, 1, 1, 4, 0, 0, 0, 1], FrameTooLarge),
        ("a frame far above the limit", vec![0xff, 0xff, 0xff, 0xfe, 0, 0, 0, 0, 0], FrameTooLarge),
        ("DATA inside a block", then(frame(0, 0, 1, b"")), BlockInterrupted),
        ("PING inside a block", then(frame(kind::PING, flag::ACK, 0, &CHALLENGE)), BlockInterrupted),
        ("an unknown frame inside a block", then(frame(0x42, 0, 1, b"")), BlockInterrupted),
        ("HEADERS inside a block", then(open.clone()), BlockInterrupted),
        ("CONTINUATION of another stream", then(frame(kind::CONTINUATION, 4, 3, b"")), BlockInterrupted),
        ("CONTINUATION alone", frame(kind::CONTINUATION, 4, 1, b""), StrayContinuation),
        ("CONTINUATION behind a whole block", [headers(0, &block), frame(9, 4, 1, b"")].concat(), StrayContinuation),
        ("PUSH_PROMISE", frame(kind::PUSH_PROMISE, 4, 1, b"\0\0\0\x02"), PushPromise),
        ("HEADERS on stream 0", frame(kind::HEADERS, 4, 0, &block), HeadersWithoutStream),
        ("padding without its length", headers(flag::PADDED, b""), HeadersTooShort),
        ("priority cut off", headers(flag::PRIORITY, b"\0\0\0\0"), HeadersTooShort),
        ("priority cut off behind padding", headers(flag::PRIORITY | flag::PADDED, b"\0\0\0\0\0"), HeadersTooShort),
        ("more padding than payload", headers(flag::PADDED, b"\x02\x82"), Padding),
        ("padding over the priority", headers(flag::PRIORITY | flag::PADDED, b"\x01\0\0\0\0\0"), Padding),
        ("a block that does not decode", headers(0, b"\x80"), Hpack(HpackError::Index)),
        ("a block that ends early", headers(0, &block[..block.len() - 1]), Hpack(HpackError::Truncated)),
    ];
    for (what, bytes, error) in rows {
        assert_eq!(Connection::open().read(&bytes), Err(error), "{what}");
        let mut slow = Connection::open();
        assert_eq!(bytes.iter().find_map(|byte| slow.read(&[*byte]).err()), Some(error), "{what}, byte by byte");
        assert_eq!(slow.read(&frame(0, 0, 1, b"")), Err(error), "{what}: an error is final");
    }
}

#[test]
fn a_block_that_never_ends_is_refused_before_it_takes_much_memory() {
    for payload in [b"".as_slice(), &[0x82; 100], &[0x82; 16_384]] {
        let mut connection = Connection::open();
        let mut result = connection.read(&frame(kind::HEADERS, 0, 1, payload));
        let mut sent = 0;
        while result.is_ok() {
            sent += HEAD_LEN + payload.len();
            assert!(sent <= 64 * 1024 + 16_393);
            assert!(connection.inbound.footprint() < 400 * 1024);
            result = connection.read(&frame(kind::CONTINUATION, 0, 1, payload));
        }
        assert_eq!(result, Err(WireError::BlockTooLarge));
    }
}

#[test]
fn rewritten_blocks_cannot_outgrow_their_read_without_bound() {
    let large = "x".repeat(4000);
    let mut encoder = Encoder::new();
    let mut connection = Connection::open();
    let fields = [(":authority", "/tmp/x.sock"), ("a", large.as_str())];
    connection.rewrites(&headers(1, &encoder.block(&fields, How::Indexed, false)));
    let bomb: Vec<u8> = (1..600).flat_map(|nth| headers(2 * nth + 1, &[0xbe; 7])).collect();
    assert_eq!(connection.read(&bomb), Err(WireError::Expansion));
}

#[test]
fn memory_does_not_grow_with_the_number_of_requests() {
    for authority in ["localhost", "tmp%2Fx%2Fworkload.sock"] {
        let mut encoder = Encoder::new();
        let mut connection = Connection::open();
        let mut warm = 0;
        for nth in 0..2000 {
            let timeout = format!("{nth}m");
            let mut block = encoder.block(&request(authority), How::Indexed, true);
            block.extend(encoder.block(&[("grpc-timeout", &timeout)], How::Indexed, true));
            let bytes = [headers(2 * nth + 1, &block), frame(0, 1, 2 * nth + 1, &[0; 5])].concat();
            let (first, second) = bytes.split_at(bytes.len() / 2);
            connection.feed(first);
            connection.feed(second);
            connection.output.clear();
            if nth == 1000 {
                warm = connection.inbound.footprint();
            }
        }
        assert_eq!(connection.inbound.footprint(), warm);
        assert!(warm < 24 * 1024, "{warm} bytes");
    }
}

#[test]
fn labels_are_few_and_reasons_name_nothing_the_peer_sent() {
    let errors = [
        (WireError::Preface, "preface", ErrorCode::ProtocolError),
        (WireError::FrameTooLarge, "frame_too_large", ErrorCode::FrameSizeError),
        (WireError::Hpack(HpackError::Huffman), "compression", ErrorCode::CompressionError),
        (WireError::Hpack(HpackError::ListTooLarge), "list_too_large", ErrorCode::EnhanceYourCalm),
        (WireError::BlockTooLarge, "block_too_large", ErrorCode::EnhanceYourCalm),
        (WireError::ServerSettings, "server_settings", ErrorCode::InternalError),
    ];
    for (error, label, code) in errors {
        assert_eq!((error.as_str(), error.code()), (label, code));
        assert!(error.to_string().len() < 80);
    }
}
