//! Where a tool is reached from outside, and which request is for it.

use std::fmt;

use http::header::{self, HeaderMap};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{Method, StatusCode, Version};
use thiserror::Error;

use super::super::Address;
use crate::proof::{TargetError, TargetUri};

/// The URI a tool is reached at, which proofs and policies name: `https://tool.example.com`, or with a path in front of
/// all of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicUri {
    /// In normal form, without a slash at the end.
    text: String,
    /// Scheme, host and port in normal form, with a slash at the end.
    origin: String,
}

/// Why a text is no public URI.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PublicError {
    /// It is no absolute URI.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// Mutual TLS is `https`.
    #[error("a public URI begins with `https://`")]
    Scheme,
    /// It has a query or a fragment.
    #[error("a public URI has neither query nor fragment")]
    Query,
    /// The listener's own address is none that a client could name.
    #[error("say by --public where clients reach this proxy: `{0}` is nothing that they could name")]
    Unnamed(Address),
}

impl PublicUri {
    /// Reads one.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(text: &str) -> Result<Self, PublicError> {
        if text.contains(['?', '#']) {
            return Err(PublicError::Query);
        }
        let uri = TargetUri::parse(text)?;
        let rest = uri.as_str().strip_prefix("https://").ok_or(PublicError::Scheme)?;
        let authority = rest.split('/').next().unwrap_or_default();
        let origin = format!("https://{authority}/");
        Ok(Self { text: uri.as_str().trim_end_matches('/').to_owned(), origin })
    }

    /// Those of a proxy that listens at `address`: the address, and for one that only this host reaches the names it has
    /// there.
    ///
    /// # Errors
    /// Clients cannot name the address.
    pub fn of_listener(address: &Address) -> Result<Vec<Self>, PublicError> {
        let unnamed = || PublicError::Unnamed(address.clone());
        let Address::Tcp { host, port } = address else { return Err(unnamed()) };
        if host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_unspecified()) {
            return Err(unnamed());
        }
        let mut names = vec![address.clone()];
        if address.is_local() {
            let local = |host: &str| Address::Tcp { host: host.to_owned(), port: *port };
            names.extend(["localhost", "127.0.0.1", "::1"].map(local).into_iter().filter(|name| name != address));
        }
        names.into_iter().map(|name| Self::parse(&format!("https://{name}"))).collect()
    }
}

impl fmt::Display for PublicUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// What a request is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The URI that is decided on.
    pub uri: String,
    /// Host and port, as the client wrote them.
    pub authority: String,
    /// Path and query for the upstream: the path is the one that is decided on.
    pub path: PathAndQuery,
}

/// Why a request is for nothing that is here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misdirected {
    /// There is no host, or there are two.
    Host,
    /// It is another one.
    AnotherHost,
    /// Readers differ in what they take the path for.
    Path,
    /// It is for a proxy of another kind.
    Method,
}

impl Misdirected {
    /// Its stable name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::AnotherHost => "another_host",
            Self::Path => "path",
            Self::Method => "method",
        }
    }

    /// What the client is answered.
    pub fn status(self) -> StatusCode {
        match self {
            Self::Host | Self::Path => StatusCode::BAD_REQUEST,
            Self::AnotherHost => StatusCode::MISDIRECTED_REQUEST,
            Self::Method => StatusCode::NOT_IMPLEMENTED,
        }
    }
}

/// Finds out what a request is for. One of `bases` is picked by its host; everything else of the URI is their word.
///
/// # Errors
/// It is for nothing here, or could be read in two ways.
pub fn target(bases: &[PublicUri], encoded_slashes: bool, head: &Parts) -> Result<Target, Misdirected> {
    if head.method == Method::CONNECT {
        return Err(Misdirected::Method);
    }
    let authority = authority(head)?;
    let path = head.uri.path();
    let slashes = path.to_ascii_uppercase();
    if !path.starts_with('/') || path.contains("//") || (!encoded_slashes && slashes.contains("%2F")) {
        return Err(Misdirected::Path);
    }
    let origin = TargetUri::parse(&format!("https://{authority}/")).map_err(|_| Misdirected::Host)?;
    let base = bases.iter().find(|base| base.origin == origin.as_str()).ok_or(Misdirected::AnotherHost)?;
    let uri = TargetUri::parse(&format!("{}{path}", base.text)).map_err(|_| Misdirected::Path)?;
    // The base is in normal form, so it is how the whole begins.
    let path = uri.as_str().strip_prefix(&base.text).ok_or(Misdirected::Path)?;
    let path = match head.uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    let path = path.try_into().map_err(|_| Misdirected::Path)?;
    Ok(Target { uri: uri.as_str().to_owned(), authority, path })
}

/// The one host a request names. HTTP/2 has it in `:authority`, HTTP/1.1 in `Host`; where both are there, or a URI in
/// absolute form, they say the same.
fn authority(head: &Parts) -> Result<String, Misdirected> {
    let host = single(&head.headers)?;
    let of_uri = head.uri.authority().map(http::uri::Authority::as_str);
    if host.is_none() && head.version == Version::HTTP_11 {
        return Err(Misdirected::Host);
    }
    match (of_uri, host) {
        (Some(uri), Some(host)) if !uri.eq_ignore_ascii_case(host) => Err(Misdirected::Host),
        (Some(authority), _) | (None, Some(authority)) if !authority.contains(['@', '/', '?', '#']) => {
            Ok(authority.to_owned())
        }
        _ => Err(Misdirected::Host),
    }
}

fn single(headers: &HeaderMap) -> Result<Option<&str>, Misdirected> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let Some(host) = hosts.next() else { return Ok(None) };
    let host = host.to_str().ok().filter(|host| !host.is_empty() && hosts.next().is_none());
    host.map(Some).ok_or(Misdirected::Host)
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn head(version: Version, uri: &str, hosts: &[&str]) -> Parts {
        let mut request = Request::builder().version(version).uri(uri);
        for host in hosts {
            request = request.header("host", *host);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn found(version: Version, uri: &str, hosts: &[&str]) -> Result<(String, String), Misdirected> {
        let bases = ["https://tool.example.com", "https://[::1]:8443/api/"].map(|base| PublicUri::parse(base).unwrap());
        target(&bases, false, &head(version, uri, hosts)).map(|found| (found.uri, found.path.to_string()))
    }

    const V1: Version = Version::HTTP_11;
    const V2: Version = Version::HTTP_2;

    #[test]
    fn the_host_picks_among_the_public_uris_and_the_path_goes_on_as_it_was_decided_on() {
        let cases = [
            (V1, "/a?b=%2e", "TOOL.example.com:443", "https://tool.example.com/a", "/a?b=%2e"),
            (V1, "/%61/b%3a/", "tool.example.com", "https://tool.example.com/a/b%3A/", "/a/b%3A/"),
            (V1, "/a", "[0::1]:8443", "https://[::1]:8443/api/a", "/a"),
            (V1, "https://tool.example.com/x", "tool.example.com", "https://tool.example.com/x", "/x"),
        ];
        for (version, uri, host, target, path) in cases {
            assert_eq!(found(version, uri, &[host]), Ok((target.to_owned(), path.to_owned())), "{uri} {host}");
        }
        assert!(found(V2, "https://tool.example.com/", &[]).is_ok());
        assert!(found(V2, "https://tool.example.com/", &["tool.example.com"]).is_ok());
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_for_nothing_here() {
        use Misdirected as M;
        let cases: [(Version, &str, &[&str], M); 17] = [
            (V1, "/", &[], M::Host),
            (V1, "/", &["tool.example.com", "tool.example.com"], M::Host),
            (V1, "/", &["user@tool.example.com"], M::Host),
            (V1, "/", &["tool.example.com/x"], M::Host),
            (V1, "https://other.example.com/", &["tool.example.com"], M::Host),
            (V1, "https://tool.example.com/", &["other.example.com"], M::Host),
            (V2, "https://tool.example.com/", &["other.example.com"], M::Host),
            (V2, "/", &[], M::Host),
            (V1, "/", &["other.example.com"], M::AnotherHost),
            (V1, "/", &["tool.example.com:8443"], M::AnotherHost),
            (V1, "/", &["[::1]:8444"], M::AnotherHost),
            (V1, "/a/../b", &["tool.example.com"], M::Path),
            (V1, "/a/%2E%2e/b", &["tool.example.com"], M::Path),
            (V1, "/a/..;x/b", &["tool.example.com"], M::Path),
            (V1, "/a%2fb", &["tool.example.com"], M::Path),
            (V1, "/a//b", &["tool.example.com"], M::Path),
            (V1, "/a%5c..%5cb", &["tool.example.com"], M::Path),
        ];
        for (version, uri, hosts, expected) in cases {
            assert_eq!(found(version, uri, hosts), Err(expected), "{uri} {hosts:?}");
        }
        let mut star = head(V1, "*", &["tool.example.com"]);
        star.method = Method::OPTIONS;
        let bases = [PublicUri::parse("https://tool.example.com").unwrap()];
        assert_eq!(target(&bases, false, &star), Err(M::Path));
    }

    #[test]
    fn a_proxy_on_loopback_is_reached_by_each_of_its_names_and_one_without_a_name_says_what_is_missing() {
        let of = |address: &str| PublicUri::of_listener(&Address::parse(address).unwrap());
        let names: Vec<String> = of("127.0.0.1:8443").unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(names, ["https://127.0.0.1:8443", "https://localhost:8443", "https://[::1]:8443"]);
        assert_eq!(of("tool.example.com:443").unwrap(), [PublicUri::parse("https://tool.example.com").unwrap()]);
        for address in ["0.0.0.0:443", "[::]:443", "unix:/run/tool.sock"] {
            assert!(matches!(of(address), Err(PublicError::Unnamed(_))), "{address}");
        }
        for wrong in ["http://a", "https://a?b", "tool.example.com", "https://u@a"] {
            assert!(PublicUri::parse(wrong).is_err(), "{wrong}");
        }
    }
}
