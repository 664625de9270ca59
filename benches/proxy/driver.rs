//! The client of every figure: the same bytes, whoever is asked.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use rustls::ClientConfig;
use tether::client::tls::unnamed;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use crate::bare::NOBODY;
use crate::scene::{Place, Served};
use crate::support::Result;
use crate::support::stats::micros;

/// The headers of each request, made beforehand; most have none of their own.
pub struct Requests {
    host: String,
    headers: Vec<String>,
}

impl Requests {
    pub fn new(host: String, headers: Vec<String>) -> Self {
        Self { host, headers }
    }

    pub fn len(&self) -> usize {
        self.headers.len()
    }

    /// The same, dealt out.
    pub fn parts(self, count: usize) -> Vec<Self> {
        let mut parts: Vec<Self> = (0..count).map(|_| Self::new(self.host.clone(), Vec::new())).collect();
        for (at, headers) in self.headers.into_iter().enumerate() {
            parts[at % count].headers.push(headers);
        }
        parts
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// One connection.
pub struct Client {
    stream: Box<dyn Stream>,
    buffer: Vec<u8>,
}

impl Client {
    /// Connects, with TLS where that is spoken.
    pub async fn connect(served: &Served, tls: &Arc<ClientConfig>) -> Result<Self> {
        let stream: Box<dyn Stream> = match &served.place {
            Place::Socket(path) => Box::new(UnixStream::connect(path).await?),
            Place::Tls(address) => {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                Box::new(TlsConnector::from(tls.clone()).connect(unnamed(), stream).await?)
            }
        };
        Ok(Self { stream, buffer: Vec::with_capacity(8192) })
    }

    /// A refused request, so that what is made once for a connection is made.
    pub async fn warm_up(&mut self, served: &Served) -> Result<()> {
        if served.is_tls() {
            self.ask(NOBODY, "").await?;
        }
        Ok(())
    }

    /// All of them, one after the other, each in microseconds.
    pub async fn ask_all(&mut self, requests: Requests) -> Result<Vec<f64>> {
        let mut times = Vec::with_capacity(requests.len());
        for headers in &requests.headers {
            let begun = Instant::now();
            let status = self.ask(&requests.host, headers).await?;
            times.push(micros(begun.elapsed()));
            if status != 200 {
                return Err(format!("answered {status}: {}", String::from_utf8_lossy(&self.buffer)).into());
            }
        }
        Ok(times)
    }

    /// One request, and its whole answer.
    async fn ask(&mut self, host: &str, headers: &str) -> Result<u16> {
        let request = format!("GET /document HTTP/1.1\r\nHost: {host}\r\n{headers}\r\n");
        self.stream.write_all(request.as_bytes()).await?;
        self.stream.flush().await?;
        self.buffer.clear();
        loop {
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err("the connection was closed before the answer was whole".into());
            }
            let Some(end) = self.buffer.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
            let head = std::str::from_utf8(&self.buffer[..end])?;
            let length = head.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
            });
            if self.buffer.len() >= end + 4 + length.ok_or("an answer without a length")? {
                return Ok(head.split(' ').nth(1).ok_or("an answer without a status")?.parse()?);
            }
        }
    }
}

/// New connections a second, each with a whole handshake, which the answer to a refused request shows.
pub async fn handshakes(served: &Served, tls: &Arc<ClientConfig>, at_once: usize, count: usize) -> Result<f64> {
    let begun = Instant::now();
    let left = Arc::new(AtomicUsize::new(count));
    let connecting: Vec<_> = (0..at_once)
        .map(|_| {
            let (served, tls, left) = (served.clone(), tls.clone(), left.clone());
            tokio::spawn(async move {
                while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
                    Client::connect(&served, &tls).await?.ask(NOBODY, "Connection: close\r\n").await?;
                }
                Result::Ok(())
            })
        })
        .collect();
    for connecting in connecting {
        connecting.await??;
    }
    Ok(count as f64 / begun.elapsed().as_secs_f64())
}
