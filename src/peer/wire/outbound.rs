//! From the server to the client.

use super::frame::{FrameHead, HEAD_LEN, MAX_PAYLOAD, PING_LEN, flag, kind};
use super::{ErrorCode, WireError};

/// Setting identifiers and the values this layer relies on (RFC 9113 section 6.5.2).
const RELIED_ON: [(u16, u32); 2] = [(0x1, 4096), (0x5, MAX_PAYLOAD as u32)];
/// The most debug text a GOAWAY frame carries, in bytes.
const MAX_DEBUG: usize = 256;

/// What to do with bytes the server wants to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum WriteAction {
    /// The first so many are taken: tell the server that they are written, and write [`Outbound::pending`] as soon as
    /// there is something.
    Taken(usize),
    /// [`Outbound::pending`] must be written first, and all of it, with one call if the socket takes it.
    FlushFirst,
    /// Write them to the socket as they are, and report what it took to [`Outbound::wrote`].
    Through,
}

/// The writing side of one connection. It holds back the server's first SETTINGS frame until it is whole, adds the
/// challenge, and from then on only counts frames as they pass.
///
/// Knowing the boundaries costs a few operations a frame. It lets GOAWAY be sent only where a frame may start, and is
/// what a second challenge on a running connection would need.
#[derive(Debug)]
pub struct Outbound {
    challenge: [u8; PING_LEN],
    state: State,
    /// Whole frames of ours (and the first SETTINGS) that the socket has not taken yet.
    pending: Vec<u8>,
    taken: usize,
    boundary: Boundary,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Collecting the server's first SETTINGS in `pending`.
    Opening,
    /// `pending` holds SETTINGS and PING.
    Challenging,
    /// The challenge is out.
    Open,
    /// GOAWAY was the last frame.
    Closed { challenged: bool },
}

impl Outbound {
    /// A new connection that will be challenged with `challenge`, eight bytes nobody else can know.
    pub fn new(challenge: [u8; PING_LEN]) -> Self {
        Self { challenge, state: State::Opening, pending: Vec::new(), taken: 0, boundary: Boundary::default() }
    }

    /// Says what to do with the next bytes of the server.
    pub fn accept(&mut self, bytes: &[u8]) -> Result<WriteAction, WireError> {
        match self.state {
            State::Opening => self.open(bytes).map(WriteAction::Taken),
            State::Challenging => Ok(WriteAction::FlushFirst),
            State::Open => Ok(WriteAction::Through),
            State::Closed { .. } => Err(WireError::Closed),
        }
    }

    /// What must be written next, in one call. Empty when there is nothing, also while the first SETTINGS is incomplete.
    pub fn pending(&self) -> &[u8] {
        if self.state == State::Opening { &[] } else { &self.pending[self.taken..] }
    }

    /// Says that the socket took the first `count` pending bytes. The challenge counts as sent once it took all.
    pub fn wrote_pending(&mut self, count: usize) {
        self.taken = (self.taken + count).min(self.pending.len());
        if self.taken < self.pending.len() {
            return;
        }
        self.pending = Vec::new();
        self.taken = 0;
        if self.state == State::Challenging {
            self.state = State::Open;
        }
    }

    /// Says that the socket took exactly `bytes` of what was [`WriteAction::Through`].
    pub fn wrote(&mut self, bytes: &[u8]) {
        self.boundary.advance(bytes);
    }

    /// Whether the socket has taken the whole challenge.
    pub fn challenge_sent(&self) -> bool {
        matches!(self.state, State::Open | State::Closed { challenged: true })
    }

    /// Ends the connection: queues a GOAWAY frame in [`Self::pending`], and refuses whatever the server writes later.
    /// `last_stream` is [`Inbound::last_stream`](super::Inbound::last_stream): requests above it the client may safely
    /// try again elsewhere. `reason` is the debug text and is cut to 256 bytes.
    ///
    /// Returns whether the frame could be queued. It cannot in the middle of a frame of the server: the client would
    /// take our bytes for the rest of a message, so the connection should then just be closed.
    pub fn goaway(&mut self, last_stream: u32, code: ErrorCode, reason: &str) -> bool {
        let challenged = self.challenge_sent();
        match std::mem::replace(&mut self.state, State::Closed { challenged }) {
            // A client expects SETTINGS before anything else; the server's own may be incomplete.
            State::Opening => {
                self.pending.clear();
                self.push_frame(kind::SETTINGS, 0, &[]);
            }
            State::Challenging => {}
            State::Open if self.boundary.is_between_frames() => {}
            State::Open | State::Closed { .. } => return false,
        }
        let reason = &reason[..reason.floor_char_boundary(MAX_DEBUG)];
        let payload = [&last_stream.to_be_bytes(), &(code as u32).to_be_bytes(), reason.as_bytes()].concat();
        self.push_frame(kind::GOAWAY, 0, &payload);
        true
    }

    /// Collects the first SETTINGS frame. Returns how many of `bytes` belong to it.
    fn open(&mut self, bytes: &[u8]) -> Result<usize, WireError> {
        let mut used = 0;
        loop {
            let missing = match FrameHead::read(&self.pending) {
                None => HEAD_LEN - self.pending.len(),
                Some(head) if head.kind != kind::SETTINGS || head.has(flag::ACK) || head.length > MAX_PAYLOAD => {
                    return Err(WireError::ServerPreface);
                }
                Some(head) => HEAD_LEN + head.length - self.pending.len(),
            };
            if missing == 0 {
                break;
            }
            let take = missing.min(bytes.len() - used);
            if take == 0 {
                return Ok(used);
            }
            self.pending.extend_from_slice(&bytes[used..used + take]);
            used += take;
        }
        check_settings(&self.pending[HEAD_LEN..])?;
        self.push_frame(kind::PING, 0, &self.challenge.clone());
        self.state = State::Challenging;
        Ok(used)
    }

    fn push_frame(&mut self, kind: u8, flags: u8, payload: &[u8]) {
        let head = FrameHead { length: payload.len(), kind, flags, stream: 0 };
        self.pending.extend_from_slice(&head.bytes());
        self.pending.extend_from_slice(payload);
    }
}

fn check_settings(payload: &[u8]) -> Result<(), WireError> {
    let (settings, rest) = payload.as_chunks::<6>();
    let as_relied_on = settings.iter().all(|&[i0, i1, v0, v1, v2, v3]| {
        let (id, value) = (u16::from_be_bytes([i0, i1]), u32::from_be_bytes([v0, v1, v2, v3]));
        RELIED_ON.iter().all(|&(relied_id, relied_value)| id != relied_id || value == relied_value)
    });
    if as_relied_on && rest.is_empty() { Ok(()) } else { Err(WireError::ServerSettings) }
}

/// Follows frames from header to header.
#[derive(Debug, Default)]
struct Boundary {
    head: [u8; HEAD_LEN],
    head_seen: usize,
    payload_left: usize,
}

impl Boundary {
    fn is_between_frames(&self) -> bool {
        self.head_seen == 0 && self.payload_left == 0
    }

    fn advance(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.payload_left > 0 {
                let count = self.payload_left.min(bytes.len());
                self.payload_left -= count;
                bytes = &bytes[count..];
                continue;
            }
            let count = (HEAD_LEN - self.head_seen).min(bytes.len());
            self.head[self.head_seen..self.head_seen + count].copy_from_slice(&bytes[..count]);
            self.head_seen += count;
            bytes = &bytes[count..];
            if let (HEAD_LEN, Some(head)) = (self.head_seen, FrameHead::read(&self.head)) {
                self.payload_left = head.length;
                self.head_seen = 0;
            }
        }
    }
}
