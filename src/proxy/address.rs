//! Where a proxy listens, and where what is behind it does.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use thiserror::Error;

/// `HOST:PORT`, or `unix:/path`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A name or an IP address (without brackets), and a port; 0 to listen is any that is free.
    Tcp {
        /// The name or the address.
        host: String,
        /// The port.
        port: u16,
    },
    /// The path of a Unix socket.
    Unix(PathBuf),
}

/// Why a text is no address.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AddressError {
    /// It is neither form.
    #[error("`{0}` is not an address: write `127.0.0.1:8443`, `[::1]:8443`, `localhost:8443` or `unix:/path`")]
    Form(String),
    /// The path of the Unix socket is relative.
    #[error("`{0}` has no absolute path: write `unix:/path`")]
    Relative(String),
}

impl Address {
    /// Reads an address.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        let wrong = || AddressError::Form(text.to_owned());
        if let Some(path) = text.strip_prefix("unix:") {
            // Two or three slashes are how others write it.
            let path = path.strip_prefix("//").unwrap_or(path);
            let absolute = path.len() > 1 && path.starts_with('/');
            return if absolute { Ok(Self::Unix(path.into())) } else { Err(AddressError::Relative(text.to_owned())) };
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let port = port.parse().ok().filter(|_| port.bytes().all(|byte| byte.is_ascii_digit())).ok_or_else(wrong)?;
        let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        let host = match bare {
            Some(address) if address.parse::<std::net::Ipv6Addr>().is_ok() => address,
            None if !host.is_empty() && host.bytes().all(is_name) => host,
            _ => return Err(wrong()),
        };
        Ok(Self::Tcp { host: host.to_owned(), port })
    }

    /// Whether only this host reaches it.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Unix(_) => true,
            Self::Tcp { host, .. } => {
                host.eq_ignore_ascii_case("localhost") || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
            }
        }
    }

    /// The path of a Unix socket.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Unix(path) => Some(path),
            Self::Tcp { .. } => None,
        }
    }
}

impl FromStr for Address {
    type Err = AddressError;
    fn from_str(text: &str) -> Result<Self, AddressError> {
        Self::parse(text)
    }
}

/// The form that [`Address::parse`] reads.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written_in_one_form_and_everything_else_is_refused() {
        for text in ["127.0.0.1:8443", "[::1]:8443", "localhost:0", "tool.example.com:443", "unix:/run/tool.sock"] {
            assert_eq!(Address::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(Address::parse("unix:///run/a"), Address::parse("unix:/run/a"));
        let wrong =
            ["", "8443", ":8443", "a:b", "a:70000", "a:+1", "::1:1", "[a]:1", "a b:1", "http://a:1", "unix:", "unix:a"];
        for text in wrong.into_iter().chain(["unix:/", "unix://host/a"]) {
            assert!(Address::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn only_loopback_and_unix_sockets_are_local() {
        for (text, local) in
            [("127.0.0.9:1", true), ("[::1]:1", true), ("LOCALHOST:1", true), ("unix:/a", true), ("10.0.0.1:1", false)]
        {
            assert_eq!(Address::parse(text).unwrap().is_local(), local, "{text}");
        }
    }
}
