//! From the client to the server.

use super::WireError;
use super::authority::{AuthorityGuard, Verdict};
use super::frame::{PING_LEN, PREFACE};
use super::recycle;
use super::scan::{Scanner, Unit};

/// The most that may wait for the server. Reads are small, so only rewritten header blocks can get here.
const MAX_QUEUE: usize = 1024 * 1024;

/// What one read came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub struct ReadOutcome {
    /// Where the bytes for the server are.
    pub passed: Passed,
    /// What this read completed.
    pub event: Option<Event>,
}

/// Where the bytes for the server are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passed {
    /// They are the read, all of it and unchanged.
    AsRead,
    /// They are in [`Inbound::queued`], perhaps none yet. Nothing of the read itself may reach the server.
    Queued,
}

/// Something the I/O type has to act on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The answer to the challenge ended in this read. What it proves is about the sender of these bytes, provided
    /// that all bytes of this connection have the same sender, which the I/O type enforces.
    ChallengeAnswered,
}

/// The reading side of one connection. See the [module](super) for what it promises.
#[derive(Debug)]
pub struct Inbound {
    /// How much of the preface has been seen.
    preface: usize,
    /// How much of the current frame still passes unseen.
    passing: usize,
    scanner: Scanner,
    guard: AuthorityGuard,
    /// The start of a unit that did not end with its read, held back until `needed` bytes of it are there.
    held: Vec<u8>,
    needed: usize,
    queue: Queue,
    last_stream: u32,
    failed: Option<WireError>,
}

impl Inbound {
    /// A new connection, to which a PING with the payload `challenge` will be sent by an [`Outbound`](super::Outbound).
    pub fn new(challenge: [u8; PING_LEN]) -> Self {
        Self {
            preface: 0,
            passing: 0,
            scanner: Scanner::new(challenge),
            guard: AuthorityGuard::new(),
            held: Vec::new(),
            needed: 0,
            queue: Queue::default(),
            last_stream: 0,
            failed: None,
        }
    }

    /// Takes the next bytes of the client, however they are cut, and says what the server gets for them.
    ///
    /// The server must first be given everything in [`Self::queued`] before the socket is read again; that is also what
    /// bounds the queue. An error is final: the same one comes back for every later read, and nothing that is still
    /// queued needs to reach the server.
    pub fn accept(&mut self, read: &[u8]) -> Result<ReadOutcome, WireError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        self.advance(read).inspect_err(|error| self.failed = Some(*error))
    }

    /// The bytes that wait for the server.
    pub fn queued(&self) -> &[u8] {
        self.queue.waiting()
    }

    /// Says that the server was given the first `count` queued bytes.
    pub fn consume(&mut self, count: usize) {
        self.queue.consume(count);
    }

    /// The highest stream whose headers were let through to the server; 0 before the first. For GOAWAY.
    pub fn last_stream(&self) -> u32 {
        self.last_stream
    }

    fn advance(&mut self, read: &[u8]) -> Result<ReadOutcome, WireError> {
        let mut event = None;
        // As long as the server gets exactly `read[..at]` nothing is copied. The first byte that is held back, dropped
        // or replaced ends that: what came before it is queued, and all that follows.
        let mut as_read = self.held.is_empty() && self.queue.waiting().is_empty();
        let mut at = 0;

        while let Some(rest) = read.get(at..).filter(|rest| !rest.is_empty()) {
            let bytes_pass = self.skip(rest)?;
            if bytes_pass > 0 {
                self.queue.pass(&rest[..bytes_pass], as_read);
                at += bytes_pass;
                continue;
            }

            if !self.held.is_empty() {
                let (more, _) = rest.split_at(rest.len().min(self.needed - self.held.len()));
                self.held.extend_from_slice(more);
                at += more.len();
                if self.held.len() < self.needed {
                    break;
                }
            }
            let unit = if self.held.is_empty() { rest } else { &self.held };
            let length = match self.scanner.scan(unit)? {
                Unit::Incomplete { needed } => {
                    self.needed = needed;
                    if self.held.is_empty() {
                        self.queue.divert(&read[..at], &mut as_read);
                        self.held.extend_from_slice(rest);
                        at = read.len();
                    }
                    continue;
                }
                Unit::Pass { length, rest } => {
                    self.passing = rest;
                    self.queue.pass(&unit[..length], as_read);
                    length
                }
                Unit::Answer { length } => {
                    self.queue.divert(&read[..at], &mut as_read);
                    event = Some(Event::ChallengeAnswered);
                    length
                }
                Unit::Block { length, head } => {
                    match self.guard.judge(self.scanner.fragment())? {
                        Verdict::Pass => self.queue.pass(&unit[..length], as_read),
                        Verdict::Rewritten => {
                            self.queue.divert(&read[..at], &mut as_read);
                            self.guard.write_block(head, &mut self.queue.bytes);
                        }
                    }
                    self.last_stream = self.last_stream.max(head.stream);
                    length
                }
            };
            if self.held.is_empty() {
                at += length;
            } else {
                recycle(&mut self.held);
            }
            if self.queue.waiting().len() > MAX_QUEUE {
                return Err(WireError::Expansion);
            }
        }
        Ok(ReadOutcome { passed: if as_read { Passed::AsRead } else { Passed::Queued }, event })
    }

    /// How many of the next bytes are preface or the payload of a passing frame.
    fn skip(&mut self, bytes: &[u8]) -> Result<usize, WireError> {
        if self.preface < PREFACE.len() {
            let expected = &PREFACE[self.preface..];
            let count = bytes.len().min(expected.len());
            if bytes[..count] != expected[..count] {
                return Err(WireError::Preface);
            }
            self.preface += count;
            return Ok(count);
        }
        let count = bytes.len().min(self.passing);
        self.passing -= count;
        Ok(count)
    }

    /// Bytes of memory held.
    #[cfg(test)]
    pub(super) fn footprint(&self) -> usize {
        self.scanner.footprint() + self.guard.footprint() + self.held.capacity() + self.queue.bytes.capacity()
    }
}

/// Bytes that wait for the server.
#[derive(Debug, Default)]
struct Queue {
    bytes: Vec<u8>,
    consumed: usize,
}

impl Queue {
    fn waiting(&self) -> &[u8] {
        &self.bytes[self.consumed..]
    }

    fn consume(&mut self, count: usize) {
        self.consumed = (self.consumed + count).min(self.bytes.len());
        if self.consumed == self.bytes.len() {
            recycle(&mut self.bytes);
            self.consumed = 0;
        }
    }

    /// Lets `bytes` through, which takes no copy while all of the read so far went through.
    fn pass(&mut self, bytes: &[u8], as_read: bool) {
        if !as_read {
            self.bytes.extend_from_slice(bytes);
        }
    }

    /// From here on the server does not get the read itself: queues what of it had gone through.
    fn divert(&mut self, gone_through: &[u8], as_read: &mut bool) {
        if std::mem::replace(as_read, false) {
            self.bytes.extend_from_slice(gone_through);
        }
    }
}
