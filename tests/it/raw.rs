//! HTTP/2 by hand, for clients that no library would be; and HTTP/1 by hand, for probes.

use std::io;
use std::net::SocketAddr;
use std::path::Path;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use crate::harness::within;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// What came of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// What was waited for.
    Heard,
    /// A word why not, so that a client comes again.
    Told,
    /// The end of the connection, and nothing before it.
    Dropped,
}

/// A connection on which anything can be sent.
pub struct Raw(UnixStream);

impl Raw {
    /// Connects and sends nothing.
    pub async fn connect(socket: &Path) -> Self {
        Self(UnixStream::connect(socket).await.expect("the agent listens"))
    }

    /// Connects, speaks as HTTP/2 clients do and answers the challenge.
    pub async fn greeted(socket: &Path) -> Self {
        let mut raw = Self::connect(socket).await;
        raw.send(&[PREFACE, &frame(SETTINGS, 0, 0, b"")].concat()).await.expect("it is taken");
        loop {
            let mut head = [0; 9];
            within(raw.0.read_exact(&mut head)).await.expect("the agent greets");
            let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
            within(raw.0.read_exact(&mut payload)).await.expect("the agent greets");
            if (head[3], head[4] & ACK) == (PING, 0) {
                raw.send(&[frame(SETTINGS, ACK, 0, b""), frame(PING, ACK, 0, &payload)].concat())
                    .await
                    .expect("it is taken");
                return raw;
            }
        }
    }

    /// Connects and sends a call at once, which waits with the connection for somebody who accepts it.
    pub async fn calling(socket: &Path, rpc: &str) -> Self {
        let mut raw = Self::connect(socket).await;
        raw.send(&[PREFACE, &frame(SETTINGS, 0, 0, b""), &call(1, rpc)].concat()).await.expect("it is taken");
        raw
    }

    /// Sends bytes.
    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        within(self.0.write_all(bytes)).await
    }

    /// Sends what the socket takes without waiting; whether it took all.
    pub fn try_send(&mut self, bytes: &[u8]) -> bool {
        self.0.try_write(bytes).is_ok_and(|count| count == bytes.len())
    }

    /// Answers the challenge and reads until this text has come, or the end.
    pub async fn answer(mut self, text: &str) -> Answer {
        let mut told = false;
        loop {
            let mut head = [0; 9];
            let mut read = within(self.0.read_exact(&mut head)).await.map(drop);
            let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
            if read.is_ok() {
                read = within(self.0.read_exact(&mut payload)).await.map(drop);
            }
            if read.is_err() {
                return if told { Answer::Told } else { Answer::Dropped };
            }
            told |= head[3] == GOAWAY || (head[3], head[4] & END_STREAM) == (HEADERS, END_STREAM);
            if (head[3], head[4] & ACK) == (PING, 0) {
                let _ = self.send(&[frame(SETTINGS, ACK, 0, b""), frame(PING, ACK, 0, &payload)].concat()).await;
            }
            if payload.windows(text.len()).any(|window| window == text.as_bytes()) {
                return Answer::Heard;
            }
        }
    }

    /// Everything that comes until the agent closes the connection, as text.
    pub async fn until_closed(mut self) -> String {
        let mut all = Vec::new();
        // A connection that is cut with bytes of ours unread ends with an error instead of an end.
        let _ = within(self.0.read_to_end(&mut all)).await;
        String::from_utf8_lossy(&all).into_owned()
    }
}

/// A call of `rpc` with an empty message.
pub fn call(stream: u32, rpc: &str) -> Vec<u8> {
    [begun(stream, rpc), frame(DATA, END_STREAM, stream, &[0; 5])].concat()
}

/// A call of `rpc` of which no message is there yet.
pub fn begun(stream: u32, rpc: &str) -> Vec<u8> {
    let path = format!("/SpiffeWorkloadAPI/{rpc}");
    let fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path.as_str()),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("workload.spiffe.io", "true"),
    ];
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0); // a literal that stays out of the table
        for text in [name, value] {
            block.push(u8::try_from(text.len()).expect("a short field"));
            block.extend_from_slice(text.as_bytes());
        }
    }
    frame(HEADERS, END_HEADERS, stream, &block)
}

/// Takes a call back.
pub fn reset(stream: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &8u32.to_be_bytes())
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a small frame").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The status and body of a GET.
pub async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.expect("the agent listens");
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("it is taken");
    let mut answer = String::new();
    within(stream.read_to_string(&mut answer)).await.expect("an answer in text");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status line");
    (status, body.to_owned())
}
