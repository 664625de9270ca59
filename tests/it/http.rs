//! Asking over HTTP, as a tool without gRPC does: one request for each connection, written and read as bytes.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use rustls::ClientConfig;
use tether::client::tls::unnamed;
use tether::verify::form;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::harness::within;

/// What came back.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

/// The form that asks about a request with these headers.
pub fn question(method: &str, uri: &str, headers: &HashMap<String, String>, more: &[(&str, &str)]) -> String {
    let proof = headers["Authorization"].strip_prefix("WPT ").unwrap();
    let fields =
        [("token", headers["Workload-Identity-Token"].as_str()), ("proof", proof), ("method", method), ("uri", uri)];
    form::encode(fields.into_iter().chain(more.iter().copied()))
}

/// A request as it is written.
pub fn post(form: &str) -> String {
    format!(
        "POST /introspect HTTP/1.1\r\nHost: agent\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n{form}",
        form.len()
    )
}

async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> Answer {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // Whoever closes without a goodbye has said everything too.
    let _ = within(stream.read_to_end(&mut answer)).await;
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    // What differs each time.
    let head = head.lines().filter(|line| !line.starts_with("date:")).collect::<Vec<_>>().join("\n");
    Answer { status, head, body: body.to_owned() }
}

/// Asks without TLS.
pub async fn ask(address: SocketAddr, request: &str) -> Answer {
    exchange(TcpStream::connect(address).await.unwrap(), request).await
}

/// Asks with TLS; the error of the handshake.
pub async fn ask_tls(address: SocketAddr, config: &Arc<ClientConfig>, request: &str) -> std::io::Result<Answer> {
    let stream = TcpStream::connect(address).await?;
    let mut stream = within(TlsConnector::from(config.clone()).connect(unnamed(), stream)).await?;
    // With TLS 1.3 the server's refusal of our certificate comes after our side of the handshake.
    let mut first = [0; 0];
    stream.read_exact(&mut first).await?;
    Ok(exchange(stream, request).await)
}
