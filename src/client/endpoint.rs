//! Where the Workload API is (Workload Endpoint, section 4).

use std::fmt::{self, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use thiserror::Error;

/// The environment variable that says where the Workload API is.
pub const ENDPOINT_VARIABLE: &str = "SPIFFE_ENDPOINT_SOCKET";

/// The address of a Workload API: a Unix socket, or TCP where the network itself tells who is calling.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `unix:///run/tether/workload/workload.sock`.
    Unix(PathBuf),
    /// `tcp://127.0.0.1:8000`.
    Tcp(SocketAddr),
}

/// Why a text is not a Workload API endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum EndpointError {
    /// The variable is not set.
    #[error("{ENDPOINT_VARIABLE} is not set; set it to `unix:///path/to/workload.sock`")]
    NotSet,
    /// There is no scheme, or another one than `unix` and `tcp`.
    #[error("`{0}` has neither the scheme `unix` nor `tcp`; write `unix:///path/to/workload.sock`")]
    Scheme(String),
    /// Something stands where a host would, as in `unix://tmp/x`.
    #[error("`{0}` names a host, which a Unix socket does not have; write three slashes: `unix:///path`")]
    UnixAuthority(String),
    /// The path of a Unix socket is empty or relative.
    #[error("`{0}` has no absolute path; write `unix:///path/to/workload.sock`")]
    UnixPath(String),
    /// A percent sign is not followed by two hex digits, or what results is not text.
    #[error("`{0}` has a percent sign that encodes nothing")]
    PercentEncoding(String),
    /// There is a query or a fragment.
    #[error("`{0}` has a query or a fragment, which an endpoint does not have")]
    QueryOrFragment(String),
    /// The host is not an IP address, or the port is missing, or something follows it.
    #[error("`{0}` is not an IP address with a port; write for example `tcp://127.0.0.1:8000`")]
    TcpAddress(String),
}

impl Endpoint {
    /// Parses the URI form by the rules of Workload Endpoint section 4.
    pub fn parse(uri: &str) -> Result<Self, EndpointError> {
        let wrong = |error: fn(String) -> EndpointError| error(uri.to_owned());
        let (scheme, rest) = uri.split_once(':').ok_or_else(|| wrong(EndpointError::Scheme))?;
        if uri.contains(['?', '#']) {
            return Err(wrong(EndpointError::QueryOrFragment));
        }
        match scheme.to_ascii_lowercase().as_str() {
            "unix" => {
                let path = match rest.strip_prefix("//") {
                    Some(path) if !path.is_empty() && !path.starts_with('/') => {
                        return Err(wrong(EndpointError::UnixAuthority));
                    }
                    Some(path) => path,
                    None => rest,
                };
                let path = percent_decode(path).ok_or_else(|| wrong(EndpointError::PercentEncoding))?;
                if path.len() < 2 || !path.starts_with('/') || path.contains('\0') {
                    return Err(wrong(EndpointError::UnixPath));
                }
                Ok(Self::Unix(PathBuf::from(path)))
            }
            "tcp" => {
                let address = rest.strip_prefix("//").and_then(|address| address.parse().ok());
                address.map(Self::Tcp).ok_or_else(|| wrong(EndpointError::TcpAddress))
            }
            _ => Err(wrong(EndpointError::Scheme)),
        }
    }

    /// The endpoint that [`ENDPOINT_VARIABLE`] names, looked up in `env`.
    pub fn from_env(env: impl Fn(&str) -> Option<String>) -> Result<Self, EndpointError> {
        Self::parse(&env(ENDPOINT_VARIABLE).filter(|uri| !uri.is_empty()).ok_or(EndpointError::NotSet)?)
    }

    /// The path, when it is a Unix socket.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Unix(path) => Some(path),
            Self::Tcp(_) => None,
        }
    }
}

fn percent_decode(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        if byte != b'%' {
            out.push(byte);
            rest = tail;
            continue;
        }
        let digits = tail.get(..2).filter(|digits| digits.iter().all(u8::is_ascii_hexdigit))?;
        out.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
        rest = &tail[2..];
    }
    String::from_utf8(out).ok()
}

impl FromStr for Endpoint {
    type Err = EndpointError;
    fn from_str(text: &str) -> Result<Self, EndpointError> {
        Self::parse(text)
    }
}

/// The URI form, which [`Endpoint::parse`] reads back.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => {
                f.write_str("unix://")?;
                path.to_string_lossy().chars().try_for_each(|character| match character {
                    '%' | '?' | '#' | ' ' => write!(f, "%{:02X}", u32::from(character)),
                    character if character.is_ascii_control() => write!(f, "%{:02X}", u32::from(character)),
                    character => f.write_char(character),
                })
            }
            Self::Tcp(address) => write!(f, "tcp://{address}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_accepted_or_refused_by_the_rules_of_the_standard() {
        // EP-11, EP-12, EP-13
        let unix = |path: &str| Ok(Endpoint::Unix(PathBuf::from(path)));
        let tcp = |address: &str| Ok(Endpoint::Tcp(address.parse().expect("an address")));
        type Fault = fn(String) -> EndpointError;
        let accepted = [
            ("unix:///a", unix("/a")),
            ("unix:/a", unix("/a")),
            ("UNIX:///a", unix("/a")),
            ("unix:///run/tether/workload/workload.sock", unix("/run/tether/workload/workload.sock")),
            ("unix:///with%20space", unix("/with space")),
            ("tcp://127.0.0.1:8000", tcp("127.0.0.1:8000")),
            ("tcp://[::1]:1", tcp("[::1]:1")),
        ];
        for (uri, expected) in accepted {
            assert_eq!(Endpoint::parse(uri), expected, "{uri}");
        }
        let refused: &[(&str, Fault)] = &[
            ("", EndpointError::Scheme),
            ("/run/workload.sock", EndpointError::Scheme),
            ("http://127.0.0.1:80", EndpointError::Scheme),
            ("npipe:spire", EndpointError::Scheme),
            ("vsock://1:2", EndpointError::Scheme),
            ("unix://tmp/x", EndpointError::UnixAuthority),
            ("unix://host/a", EndpointError::UnixAuthority),
            ("unix://user@/a", EndpointError::UnixAuthority),
            ("unix:a", EndpointError::UnixPath),
            ("unix:", EndpointError::UnixPath),
            ("unix://", EndpointError::UnixPath),
            ("unix:///", EndpointError::UnixPath),
            ("unix:///a%00", EndpointError::UnixPath),
            ("unix:///a%zz", EndpointError::PercentEncoding),
            ("unix:///a%+1", EndpointError::PercentEncoding),
            ("unix:///a%2", EndpointError::PercentEncoding),
            ("unix:///a?x", EndpointError::QueryOrFragment),
            ("unix:///a#x", EndpointError::QueryOrFragment),
            ("tcp://localhost:80", EndpointError::TcpAddress),
            ("tcp://127.0.0.1", EndpointError::TcpAddress),
            ("tcp://127.0.0.1:1/", EndpointError::TcpAddress),
            ("tcp://127.0.0.1:1/foo", EndpointError::TcpAddress),
            ("tcp://user@127.0.0.1:1", EndpointError::TcpAddress),
            ("tcp:127.0.0.1:1", EndpointError::TcpAddress),
            ("tcp://127.0.0.1:1?x", EndpointError::QueryOrFragment),
        ];
        for (uri, fault) in refused {
            assert_eq!(Endpoint::parse(uri), Err(fault((*uri).to_owned())), "{uri}");
        }
    }

    #[test]
    fn the_environment_names_the_endpoint_and_an_empty_variable_names_none() {
        // EP-10
        let named = |name: &str| (name == "SPIFFE_ENDPOINT_SOCKET").then(|| "unix:///a".to_owned());
        assert_eq!(Endpoint::from_env(named), Endpoint::parse("unix:///a"));
        assert_eq!(Endpoint::from_env(|_| None), Err(EndpointError::NotSet));
        assert_eq!(Endpoint::from_env(|_| Some(String::new())), Err(EndpointError::NotSet));
    }
}
