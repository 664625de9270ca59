//! TLS over a Unix socket, with rustls as other programs use it: such a socket leads to a server from every network
//! namespace, as the network would.

use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use rustls::{ServerConfig, ServerConnection, Stream};

use crate::handshake::{Credentials, client};

/// Connects with a certificate. A client of TLS 1.3 learns with the server's first byte whether that believes it.
pub fn connect(at: &Path, chain: &str, key: &str) -> io::Result<()> {
    let mut socket = UnixStream::connect(at)?;
    let mut connection = client(&Credentials::from_pem(chain, key));
    let mut stream = Stream::new(&mut connection, &mut socket);
    stream.write_all(b"?")?;
    stream.read_exact(&mut [0])
}

/// Serves one connection; why it was refused.
pub fn serve_one(listener: &UnixListener, config: ServerConfig) -> io::Result<()> {
    let (mut socket, _) = listener.accept()?;
    let mut connection = ServerConnection::new(config.into()).expect("the configuration is whole");
    let mut stream = Stream::new(&mut connection, &mut socket);
    stream.read_exact(&mut [0])?;
    stream.write_all(b"!")
}
