//! Cuts what a client sends into units that are passed or judged whole.

use super::WireError;
use super::frame::{FrameHead, HEAD_LEN, MAX_PAYLOAD, PING_LEN, flag, kind};
use super::recycle;

/// The most a header block may take on the wire, frame headers and padding included.
const MAX_BLOCK: usize = 64 * 1024;

/// What stands at the start of the bytes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unit {
    /// Not known before so many bytes of this unit are there.
    Incomplete { needed: usize },
    /// A frame that is none of our business: `length` bytes are there, `rest` more belong to it.
    Pass { length: usize, rest: usize },
    /// The answer to the challenge.
    Answer { length: usize },
    /// A whole header block, `length` bytes in all.
    Block { length: usize, head: BlockHead },
}

/// The HEADERS frame that opened a block, without its padding and priority.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BlockHead {
    pub(super) stream: u32,
    pub(super) end_stream: bool,
}

/// Knows where the next unit starts and how far it has been understood.
#[derive(Debug)]
pub(super) struct Scanner {
    /// The payload whose PING ACK answers the challenge; none once answered.
    challenge: Option<[u8; PING_LEN]>,
    /// The header block being collected, and where in its unit the next frame starts.
    open: Option<(BlockHead, usize)>,
    /// The compressed block so far, put together from its frames.
    fragment: Vec<u8>,
}

impl Scanner {
    pub(super) fn new(challenge: [u8; PING_LEN]) -> Self {
        Self { challenge: Some(challenge), open: None, fragment: Vec::new() }
    }

    /// Understands the unit that starts with `unit`. After [`Unit::Incomplete`] the next call must give the same bytes
    /// and at least as many as were needed.
    pub(super) fn scan(&mut self, unit: &[u8]) -> Result<Unit, WireError> {
        loop {
            let start = self.open.map_or(0, |(_, next)| next);
            let payload_start = start + HEAD_LEN;
            let Some(head) = unit.get(start..).and_then(FrameHead::read) else {
                return Ok(Unit::Incomplete { needed: payload_start });
            };
            let end = payload_start + head.length;
            if head.length > MAX_PAYLOAD {
                return Err(WireError::FrameTooLarge);
            }

            match (self.open, head.kind) {
                (Some((block, _)), kind::CONTINUATION) if head.stream == block.stream => {}
                (Some(_), _) => return Err(WireError::BlockInterrupted),
                (None, kind::CONTINUATION) => return Err(WireError::StrayContinuation),
                // Carries a header block that we would have to follow; clients must not send it anyway.
                (None, kind::PUSH_PROMISE) => return Err(WireError::PushPromise),
                (None, kind::HEADERS) if head.stream == 0 => return Err(WireError::HeadersWithoutStream),
                (None, kind::HEADERS) => {}
                (None, kind::PING) if self.may_answer(head) => return Ok(self.ping(unit)),
                (None, _) => return Ok(Unit::Pass { length: HEAD_LEN, rest: head.length }),
            }

            if end > MAX_BLOCK {
                return Err(WireError::BlockTooLarge);
            }
            let Some(payload) = unit.get(payload_start..end) else {
                return Ok(Unit::Incomplete { needed: end });
            };
            let block = match self.open {
                Some((block, _)) => {
                    self.fragment.extend_from_slice(payload);
                    block
                }
                None => {
                    recycle(&mut self.fragment);
                    self.fragment.extend_from_slice(fragment_of_headers(head, payload)?);
                    BlockHead { stream: head.stream, end_stream: head.has(flag::END_STREAM) }
                }
            };
            if head.has(flag::END_HEADERS) {
                self.open = None;
                return Ok(Unit::Block { length: end, head: block });
            }
            self.open = Some((block, end));
        }
    }

    /// The compressed header block of the last [`Unit::Block`].
    pub(super) fn fragment(&self) -> &[u8] {
        &self.fragment
    }

    fn may_answer(&self, head: FrameHead) -> bool {
        self.challenge.is_some() && head.has(flag::ACK) && head.stream == 0 && head.length == PING_LEN
    }

    fn ping(&mut self, unit: &[u8]) -> Unit {
        const LENGTH: usize = HEAD_LEN + PING_LEN;
        match unit.get(HEAD_LEN..LENGTH) {
            None => Unit::Incomplete { needed: LENGTH },
            Some(payload) if self.challenge.is_some_and(|challenge| challenge == payload) => {
                self.challenge = None;
                Unit::Answer { length: LENGTH }
            }
            Some(_) => Unit::Pass { length: LENGTH, rest: 0 },
        }
    }

    /// Bytes of memory held.
    #[cfg(test)]
    pub(super) fn footprint(&self) -> usize {
        self.fragment.capacity()
    }
}

/// The payload of a HEADERS frame without padding and priority (RFC 9113 section 6.2).
fn fragment_of_headers(head: FrameHead, payload: &[u8]) -> Result<&[u8], WireError> {
    let (padding, payload) = match payload {
        _ if !head.has(flag::PADDED) => (0, payload),
        [padding, rest @ ..] => (usize::from(*padding), rest),
        [] => return Err(WireError::HeadersTooShort),
    };
    let priority = if head.has(flag::PRIORITY) { 5 } else { 0 };
    let payload = payload.get(priority..).ok_or(WireError::HeadersTooShort)?;
    let length = payload.len().checked_sub(padding).ok_or(WireError::Padding)?;
    Ok(&payload[..length])
}
