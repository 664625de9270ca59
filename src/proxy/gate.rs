//! What stands between the wire and the parser of HTTP/1.1: it lets through only what every reader reads in the same way.
//!
//! A parser takes some of what the standard lets a recipient repair: a bare line feed, a length beside `chunked`. Whoever
//! stands before or behind may repair it in another way, and then sees other requests (request smuggling). So here it is
//! refused: the byte that makes the difference is replaced by a NUL, which no parser takes, and nothing follows it.
//!
//! It also counts the time a head takes from its first byte.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::limits::Limits;
use super::listener::Io;
use crate::base::clock::Clock;

/// The longest line that says how long a chunk is, its extensions included.
const MAX_CHUNK_LINE: usize = 256;

/// A stream whose first bytes were read already.
pub(super) struct Rewound<I> {
    io: I,
    first: Vec<u8>,
    given: usize,
}

impl<I> Rewound<I> {
    /// `io`, after `first`.
    pub(super) fn new(io: I, first: &[u8]) -> Self {
        Self { io, first: first.to_vec(), given: 0 }
    }
}

impl<I: Io> AsyncRead for Rewound<I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let rest = &self.first[self.given..];
        if rest.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, buffer);
        }
        let length = rest.len().min(buffer.remaining());
        buffer.put_slice(&rest[..length]);
        self.given += length;
        Poll::Ready(Ok(()))
    }
}

/// A stream of requests in HTTP/1.1.
pub(super) struct Gate<I> {
    io: I,
    reader: Reader,
    clock: Clock,
    patience: Duration,
    /// Ends a head that takes too long.
    deadline: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl<I: Io> Gate<I> {
    pub(super) fn new(io: I, limits: &Limits, clock: Clock) -> Self {
        let reader =
            Reader { state: State::Between, line: Vec::new(), most: limits.head_bytes + 1, head: Head::default() };
        Self { io, reader, clock, patience: limits.head, deadline: None }
    }
}

impl<I: Io> AsyncRead for Gate<I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.reader.state == State::Refused {
            return Poll::Ready(Ok(())); // the end, as far as anybody behind is concerned
        }
        let before = buffer.filled().len();
        if let Poll::Ready(read) = Pin::new(&mut this.io).poll_read(cx, buffer) {
            read?;
            let length = this.reader.read(&mut buffer.filled_mut()[before..]);
            buffer.set_filled(before + length);
            if this.reader.state != State::Head {
                this.deadline = None;
            }
            return Poll::Ready(Ok(()));
        }
        if this.reader.state == State::Head {
            let deadline = this.deadline.get_or_insert_with(|| {
                let (clock, patience) = (this.clock.clone(), this.patience);
                Box::pin(async move { clock.pause(patience).await })
            });
            ready!(deadline.as_mut().poll(cx));
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the head of a request took too long")));
        }
        Poll::Pending
    }
}

/// Passes writing on.
macro_rules! writes_to_io {
    ($type:ident) => {
        impl<I: Io> AsyncWrite for $type<I> {
            fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
                Pin::new(&mut self.io).poll_write(cx, bytes)
            }

            fn poll_write_vectored(
                mut self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                slices: &[io::IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                Pin::new(&mut self.io).poll_write_vectored(cx, slices)
            }

            fn is_write_vectored(&self) -> bool {
                self.io.is_write_vectored()
            }

            fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                Pin::new(&mut self.io).poll_flush(cx)
            }

            fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                Pin::new(&mut self.io).poll_shutdown(cx)
            }
        }
    };
}

writes_to_io!(Rewound);
writes_to_io!(Gate);

/// Where in a request the next byte is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Before the first byte of a head.
    Between,
    /// In the head.
    Head,
    /// In a body, with so many bytes to come.
    Body(u64),
    /// In the line that says how long a chunk is.
    ChunkLine,
    /// In a chunk, with so many bytes to come, and the end of its line.
    Chunk(u64),
    /// After a chunk.
    ChunkEnd,
    /// After the last chunk.
    Trailers,
    /// No HTTP any more.
    Switched,
    /// Something was wrong.
    Refused,
}

/// What two readers could read in two ways.
#[derive(Clone, Copy, Debug)]
struct Ambiguous;

/// What the head so far says of how long the body is.
#[derive(Debug, Default)]
struct Head {
    lines: usize,
    is_http10: bool,
    length: Option<u64>,
    chunked: bool,
    switches: bool,
}

struct Reader {
    state: State,
    /// The line so far, without its end.
    line: Vec<u8>,
    /// The longest line that is kept: longer than a whole head may be for the parser, which refuses it in a better way.
    most: usize,
    head: Head,
}

impl Reader {
    /// Reads what has come; how much of it may be passed on.
    fn read(&mut self, bytes: &mut [u8]) -> usize {
        let mut at = 0;
        while at < bytes.len() {
            match self.state {
                State::Body(left) => {
                    let passed = skip(left, bytes.len() - at);
                    at += passed;
                    let left = left - passed as u64;
                    self.state = if left == 0 { State::Between } else { State::Body(left) };
                }
                State::Chunk(left) => {
                    let passed = skip(left, bytes.len() - at);
                    at += passed;
                    let left = left - passed as u64;
                    self.state = if left == 0 { State::ChunkEnd } else { State::Chunk(left) };
                }
                State::Switched => return bytes.len(),
                State::Refused => return at,
                State::Between | State::Head | State::ChunkLine | State::ChunkEnd | State::Trailers => {
                    if self.byte(bytes[at]).is_err() {
                        self.state = State::Refused;
                        bytes[at] = 0;
                        return at + 1;
                    }
                    at += 1;
                }
            }
        }
        at
    }

    /// Reads a byte of a line.
    fn byte(&mut self, byte: u8) -> Result<(), Ambiguous> {
        if self.state == State::Between {
            // An empty line before a request is taken by some and not by others.
            if matches!(byte, b'\r' | b'\n') {
                return Err(Ambiguous);
            }
            self.state = State::Head;
        }
        match (self.line.last(), byte) {
            (Some(b'\r'), b'\n') => {
                self.line.pop();
                let ended = self.end_of_line();
                self.line.clear();
                ended
            }
            // A line feed alone, or a carriage return alone.
            (_, b'\n') | (Some(b'\r'), _) | (_, 0) => Err(Ambiguous),
            _ => {
                self.line.push(byte);
                let most = if self.state == State::ChunkLine { MAX_CHUNK_LINE } else { self.most };
                if self.line.len() > most { Err(Ambiguous) } else { Ok(()) }
            }
        }
    }

    fn end_of_line(&mut self) -> Result<(), Ambiguous> {
        match self.state {
            State::ChunkLine => {
                let size = chunk_size(&self.line)?;
                self.state = if size == 0 { State::Trailers } else { State::Chunk(size) };
            }
            State::ChunkEnd if self.line.is_empty() => self.state = State::ChunkLine,
            State::ChunkEnd => return Err(Ambiguous),
            State::Trailers if self.line.is_empty() => self.state = State::Between,
            State::Trailers => {
                let (name, _) = field(&self.line)?;
                // What decides where the message ends cannot be said after it.
                if is(name, "content-length") || is(name, "transfer-encoding") {
                    return Err(Ambiguous);
                }
            }
            _ if self.line.is_empty() => {
                self.state = std::mem::take(&mut self.head).body()?;
            }
            _ => self.head.line(&self.line)?,
        }
        Ok(())
    }
}

/// How much of `left` is there.
fn skip(left: u64, there: usize) -> usize {
    usize::try_from(left).unwrap_or(usize::MAX).min(there)
}

impl Head {
    fn line(&mut self, line: &[u8]) -> Result<(), Ambiguous> {
        self.lines += 1;
        if self.lines == 1 {
            self.is_http10 = line.ends_with(b" HTTP/1.0");
            self.switches = line.starts_with(b"CONNECT ");
            return Ok(());
        }
        let (name, value) = field(line)?;
        if is(name, "content-length") {
            let again = self.length.is_some();
            let length = Some(value).filter(|value| !value.is_empty() && value.iter().all(u8::is_ascii_digit));
            let length = length.and_then(|value| std::str::from_utf8(value).ok()?.parse::<u64>().ok());
            self.length = Some(length.filter(|length| *length < u64::MAX / 2 && !again).ok_or(Ambiguous)?);
        } else if is(name, "transfer-encoding") {
            if self.chunked || self.is_http10 || !value.eq_ignore_ascii_case(b"chunked") {
                return Err(Ambiguous);
            }
            self.chunked = true;
        } else if is(name, "upgrade") && !self.is_http10 {
            // In HTTP/1.0 it means nothing (RFC 9110, section 7.8), and what follows is the next request.
            self.switches = true;
        }
        Ok(())
    }

    /// How the request goes on after its head.
    fn body(self) -> Result<State, Ambiguous> {
        match (self.length, self.chunked, self.switches) {
            (Some(_), true, _) => Err(Ambiguous),
            // What of it would be the body and what the other protocol?
            (Some(1..), _, true) | (_, true, true) => Err(Ambiguous),
            (_, _, true) => Ok(State::Switched),
            (_, true, _) => Ok(State::ChunkLine),
            (Some(length @ 1..), _, _) => Ok(State::Body(length)),
            _ => Ok(State::Between),
        }
    }
}

/// Name and value of a header. A line that goes on with the one before begins with white space, which is no name.
fn field(line: &[u8]) -> Result<(&[u8], &[u8]), Ambiguous> {
    let colon = line.iter().position(|byte| *byte == b':').ok_or(Ambiguous)?;
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    let is_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    if name.is_empty() || !name.iter().all(is_token) {
        return Err(Ambiguous);
    }
    Ok((name, value.trim_ascii()))
}

fn is(name: &[u8], wanted: &str) -> bool {
    name.eq_ignore_ascii_case(wanted.as_bytes())
}

/// The size of a chunk: hexadecimal digits, and extensions that nobody has a use for.
fn chunk_size(line: &[u8]) -> Result<u64, Ambiguous> {
    let digits = line.split(|byte| *byte == b';').next().unwrap_or_default();
    let sane = (1..=15).contains(&digits.len()) && digits.iter().all(u8::is_ascii_hexdigit);
    let text = std::str::from_utf8(digits).ok().filter(|_| sane).ok_or(Ambiguous)?;
    u64::from_str_radix(text, 16).map_err(|_| Ambiguous)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reader() -> Reader {
        Reader { state: State::Between, line: Vec::new(), most: 1 << 10, head: Head::default() }
    }

    /// Whether `text` passes, however it is cut into pieces.
    fn passes(text: &str) -> bool {
        let results = [1, 2, 7, text.len()].map(|size| {
            let mut reader = reader();
            text.as_bytes().chunks(size).all(|chunk| {
                let mut bytes = chunk.to_vec();
                reader.read(&mut bytes) == chunk.len() && bytes == chunk
            }) && reader.state != State::Refused
        });
        assert!(results.iter().all(|result| *result == results[0]), "{text:?}: {results:?}");
        results[0]
    }

    #[test]
    fn requests_that_everybody_reads_in_one_way_pass_one_after_the_other() {
        let requests = [
            "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n\n\r\0",
            "POST / HTTP/1.1\r\nTransfer-Encoding: Chunked\r\n\r\n3\r\na\nb\r\n1;ext=1\r\nx\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding:chunked \r\n\r\n0\r\nDigest: x\r\n\r\n",
            "POST / HTTP/1.0\r\nContent-Length: 0\r\n\r\n",
        ];
        assert!(passes(&requests.concat()));
        assert!(passes(
            &[requests.concat().as_str(), "GET /ws HTTP/1.1\r\nUpgrade: websocket\r\n\r\n\0\n\r\n"].concat()
        ));
    }

    #[test]
    fn what_two_readers_could_read_in_two_ways_does_not_pass() {
        let heads = [
            ("both lengths", "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n"),
            ("both, the other way round", "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n"),
            ("two lengths", "Content-Length: 3\r\nContent-Length: 4\r\n"),
            ("the same length twice", "Content-Length: 3\r\nContent-Length: 3\r\n"),
            ("a list of lengths", "Content-Length: 3, 3\r\n"),
            ("a sign", "Content-Length: +3\r\n"),
            ("no length", "Content-Length: \r\n"),
            ("too long", "Content-Length: 18446744073709551615\r\n"),
            ("another coding", "Transfer-Encoding: gzip, chunked\r\n"),
            ("chunked twice", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"),
            ("not quite chunked", "Transfer-Encoding: xchunked\r\n"),
            ("a folded line", "X: a\r\n b\r\n"),
            ("a folded length", "Transfer-Encoding:\r\n chunked\r\n"),
            ("a space before the colon", "Transfer-Encoding : chunked\r\n"),
            ("no colon", "Transfer-Encoding\r\n"),
            ("a bare line feed", "X: a\nY: b\r\n"),
            ("a bare carriage return", "X: a\rY: b\r\n"),
            ("a NUL", "X: a\0b\r\n"),
            ("a body before the other protocol", "Upgrade: websocket\r\nContent-Length: 3\r\n"),
        ];
        for (what, lines) in heads {
            assert!(!passes(&format!("POST / HTTP/1.1\r\nHost: a\r\n{lines}\r\n")), "{what}");
        }
        assert!(!passes("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"), "chunked in 1.0");
        let kept = "GET / HTTP/1.0\r\nConnection: keep-alive\r\nUpgrade: websocket\r\n\r\n";
        assert!(passes(&format!("{kept}GET / HTTP/1.1\r\nHost: a\r\n\r\n")));
        assert!(!passes(&format!("{kept}GET / HTTP/1.1\nHost: a\n\n")), "after what is no switch in 1.0");
        assert!(!passes("\r\nGET / HTTP/1.1\r\n\r\n"), "an empty line first");
        let bodies = [
            ("a size with a sign", "+3\r\nabc\r\n0\r\n\r\n"),
            ("a size with a prefix", "0x3\r\nabc\r\n0\r\n\r\n"),
            ("no size", "\r\n0\r\n\r\n"),
            ("too large", "fffffffffffffffff\r\n"),
            ("a bare line feed after a size", "3\nabc\r\n0\r\n\r\n"),
            ("more than the size", "3\r\nabcd\r\n0\r\n\r\n"),
            ("a bare line feed after a chunk", "3\r\nabc\n0\r\n\r\n"),
            ("a bare line feed in an extension", "3;a\nb\r\nabc\r\n0\r\n\r\n"),
            ("a length among the trailers", "0\r\nContent-Length: 3\r\n\r\n"),
        ];
        for (what, body) in bodies {
            assert!(!passes(&format!("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{body}")), "{what}");
        }
    }
}
