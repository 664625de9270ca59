//! The least HTTP/2 that makes one call, an X.509-SVID of a Workload API if nothing else is wanted, byte by byte, so
//! that an attacker can choose who sends which byte and when.

use std::io::{self, Read};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0x0;
const HEADERS: u8 = 0x1;
const RST_STREAM: u8 = 0x3;
const SETTINGS: u8 = 0x4;
const PING: u8 = 0x6;
const GOAWAY: u8 = 0x7;
const ACK: u8 = 0x1;
const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;

/// The identity every attack is after.
pub const PRIZE: &str = "spiffe://dev.tether.internal/trusted";
/// What an attacker puts into its own PINGs.
pub const MARK: [u8; 8] = *b"attacker";

/// One frame.
pub struct Frame {
    kind: u8,
    flags: u8,
    payload: Vec<u8>,
}

impl Frame {
    /// Whether it answers a PING of ours.
    pub fn is_our_ping_answered(&self) -> bool {
        self.kind == PING && self.flags & ACK != 0 && self.payload == MARK
    }

    /// What a client answers to it: SETTINGS and PING want to be acknowledged.
    pub fn answer(&self) -> Option<Vec<u8>> {
        match self.kind {
            SETTINGS if self.flags & ACK == 0 => Some(frame(SETTINGS, ACK, 0, &[])),
            PING if self.flags & ACK == 0 => Some(frame(PING, ACK, 0, &self.payload)),
            _ => None,
        }
    }

    fn ends_the_call(&self) -> bool {
        match self.kind {
            HEADERS => self.flags & END_STREAM != 0,
            RST_STREAM | GOAWAY => true,
            _ => false,
        }
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The preface and the client's SETTINGS.
pub fn opening() -> Vec<u8> {
    [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()
}

/// Names the call that a process makes, when it is not [`FETCH`].
pub const CALL: &str = "TETHER_ATTACK_CALL";
/// What attackers ask a Workload API for.
const FETCH: &str = "/SpiffeWorkloadAPI/FetchX509SVID";
/// What they ask the admin API for: the prize is in the answer.
pub const LIST_ENTRIES: &str = "/tether.admin.v1.Entries/List";

/// The call on stream 1.
pub fn request() -> Vec<u8> {
    let mut block = Vec::new();
    let path = std::env::var(CALL).unwrap_or_else(|_| FETCH.to_owned());
    for (name, value) in [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", &path),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("workload.spiffe.io", "true"),
    ] {
        // A literal field with a literal name (RFC 7541 section 6.2.2).
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).unwrap());
            block.extend(text.as_bytes());
        }
    }
    let empty_message = [0; 5];
    [frame(HEADERS, END_HEADERS, 1, &block), frame(DATA, END_STREAM, 1, &empty_message)].concat()
}

/// A PING of the attacker's own.
pub fn ping() -> Vec<u8> {
    frame(PING, 0, 0, &MARK)
}

/// The head of a frame of a type nobody knows, which a server must pass over (RFC 9113 section 5.5): whatever comes
/// next, up to 16384 bytes of it, is no offence.
pub fn head_of_an_unknown_frame() -> Vec<u8> {
    const UNKNOWN: u8 = 0xfe;
    let [_, length @ ..] = 16_384_u32.to_be_bytes();
    [&length[..], &[UNKNOWN, 0, 0, 0, 0, 0]].concat()
}

/// The next frame, without reading a byte beyond it; `None` at the end.
pub fn read_frame(from: &mut impl Read) -> io::Result<Option<Frame>> {
    let mut head = [0; 9];
    if let Err(error) = from.read_exact(&mut head) {
        return if error.kind() == io::ErrorKind::UnexpectedEof { Ok(None) } else { Err(error) };
    }
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
    let mut payload = vec![0; length];
    from.read_exact(&mut payload)?;
    Ok(Some(Frame { kind: head[3], flags: head[4], payload }))
}

/// Reads until the call or the connection is over, handing to `answer` what a client would say meanwhile. Whether the
/// prize was in it.
pub fn reads_the_prize(from: &mut impl Read, mut answer: impl FnMut(&[u8])) -> bool {
    let mut message: Vec<u8> = Vec::new();
    // An error is the end: the connection was cut.
    while let Ok(Some(frame)) = read_frame(from) {
        if let Some(bytes) = frame.answer() {
            answer(&bytes);
        }
        if frame.kind == DATA {
            message.extend_from_slice(&frame.payload);
            if message.windows(PRIZE.len()).any(|window| window == PRIZE.as_bytes()) {
                return true;
            }
        }
        if frame.ends_the_call() {
            return false;
        }
    }
    false
}
