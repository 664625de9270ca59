//! What a proof is for: a method and an absolute URI, parsed once into the form in which they are compared.
//!
//! The normal form of a URI, of which two requests for the same resource have the same and no others do:
//! - scheme `http` or `https` and host in lower case; IPv6 addresses as RFC 5952 writes them; no user information;
//! - the port left out where it is the scheme's own;
//! - an empty path is `/`; escapes of unreserved characters are decoded and all others have capital digits;
//! - query and fragment are left out (draft-ietf-wimse-wpt-02; RFC 9449, section 4.2).
//!
//! What software is known to read in different ways is refused rather than normalised: dot segments, also escaped ones,
//! those with parameters (`..;x`) and those that appear once an escaped slash is decoded; backslashes, control
//! characters, white space and anything outside ASCII.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use thiserror::Error;

/// The longest URI a proof is made for or checked against, in bytes.
const MAX_URI: usize = 4096;
/// The longest method: longer than any registered one.
const MAX_METHOD: usize = 32;

/// Why something is no target of a request.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TargetError {
    /// It is not `http://` or `https://` and a host.
    #[error("a target is an absolute URI with `http` or `https`, such as `https://tool.example.com/path`")]
    NotAbsolute,
    /// It has a user name or password.
    #[error("a target has no user information")]
    UserInfo,
    /// The host is no name and no address.
    #[error("the host is not a name or an address")]
    Host,
    /// The port is no number from 1 to 65535.
    #[error("the port is not a number from 1 to 65535")]
    Port,
    /// The path has dot segments, or characters that must be escaped.
    #[error("the path has `.` or `..` segments, or characters that must be percent-encoded")]
    Path,
    /// It is longer than anything is.
    #[error("a target has at most {MAX_URI} bytes")]
    TooLong,
    /// The method is not a token of HTTP.
    #[error("a method is a token such as `POST`, of at most {MAX_METHOD} characters")]
    Method,
}

/// A request's method (RFC 9110, section 9.1): upper and lower case are different.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Method(String);

impl Method {
    /// Reads a method.
    pub fn parse(text: &str) -> Result<Self, TargetError> {
        let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        let fits = (1..=MAX_METHOD).contains(&text.len()) && text.bytes().all(is_token);
        if fits { Ok(Self(text.to_owned())) } else { Err(TargetError::Method) }
    }

    /// As in the request line.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// An absolute URI without query and fragment, in normal form.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TargetUri {
    text: String,
    /// Where the path begins in `text`.
    path: usize,
}

impl TargetUri {
    /// Reads a URI and brings it into normal form.
    pub fn parse(text: &str) -> Result<Self, TargetError> {
        if text.len() > MAX_URI {
            return Err(TargetError::TooLong);
        }
        let (scheme, rest) = text.split_once("://").ok_or(TargetError::NotAbsolute)?;
        let scheme = [Scheme::Https, Scheme::Http].into_iter().find(|known| known.name().eq_ignore_ascii_case(scheme));
        let scheme = scheme.ok_or(TargetError::NotAbsolute)?;
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, rest) = rest.split_at(end);
        if authority.contains('@') {
            return Err(TargetError::UserInfo);
        }
        let (host, port) = split_port(authority)?;
        let mut text = format!("{}://{}", scheme.name(), host_in_normal_form(host)?);
        if let Some(port) = port.filter(|port| *port != scheme.port()) {
            text.push_str(&format!(":{port}"));
        }
        let path = text.len();
        push_path(&mut text, rest.split(['?', '#']).next().unwrap_or_default())?;
        Ok(Self { text, path })
    }

    /// In normal form.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The scheme, host and port.
    fn origin(&self) -> &str {
        &self.text[..self.path]
    }

    fn path(&self) -> &str {
        &self.text[self.path..]
    }
}

impl fmt::Display for TargetUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The URIs that an entry's `serves` stands for: those with the same origin whose path begins with the same segments,
/// or all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UriPrefix {
    /// `*`.
    Any,
    /// The URI itself and what is below it. `https://a/b` is not a prefix of `https://a/bc`.
    Below(TargetUri),
}

impl UriPrefix {
    /// Reads `*` or a URI.
    pub fn parse(text: &str) -> Result<Self, TargetError> {
        if text == "*" { Ok(Self::Any) } else { TargetUri::parse(text).map(Self::Below) }
    }

    /// Whether `uri` is among them.
    pub fn covers(&self, uri: &TargetUri) -> bool {
        let Self::Below(prefix) = self else { return true };
        prefix.origin() == uri.origin()
            && uri
                .path()
                .strip_prefix(prefix.path())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || prefix.path().ends_with('/'))
    }
}

#[derive(Clone, Copy)]
enum Scheme {
    Http,
    Https,
}

impl Scheme {
    fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    fn port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

/// Host and port of an authority; an empty port is none (RFC 3986, section 3.2.3).
fn split_port(authority: &str) -> Result<(&str, Option<u16>), TargetError> {
    // The colons of an IPv6 address are inside its brackets.
    let after = authority.rfind(']').map_or(0, |bracket| bracket + 1);
    let Some(colon) = authority[after..].find(':').map(|colon| after + colon) else { return Ok((authority, None)) };
    let (host, port) = (&authority[..colon], &authority[colon + 1..]);
    if port.is_empty() {
        return Ok((host, None));
    }
    if !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(TargetError::Port);
    }
    match port.parse::<u16>() {
        Ok(0) | Err(_) => Err(TargetError::Port),
        Ok(port) => Ok((host, Some(port))),
    }
}

fn host_in_normal_form(host: &str) -> Result<String, TargetError> {
    if let Some(address) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        let address: Ipv6Addr = address.parse().map_err(|_| TargetError::Host)?;
        return Ok(format!("[{address}]"));
    }
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if host.is_empty() || !host.bytes().all(is_name) {
        return Err(TargetError::Host);
    }
    let host = host.to_ascii_lowercase();
    // Names that end in a number are read as addresses, and not by everyone in the same way: only the plain form is one.
    let last = host.rsplit('.').find(|label| !label.is_empty()).unwrap_or_default();
    let looks_like_address = last.bytes().all(|byte| byte.is_ascii_digit()) || last.starts_with("0x");
    if looks_like_address && host.parse::<Ipv4Addr>().is_err() {
        return Err(TargetError::Host);
    }
    Ok(host)
}

/// Appends `path` in normal form.
fn push_path(text: &mut String, path: &str) -> Result<(), TargetError> {
    if path.is_empty() {
        text.push('/');
        return Ok(());
    }
    // The first segment is what stands before the first slash: nothing.
    for segment in path.split('/').skip(1) {
        text.push('/');
        let begin = text.len();
        push_segment(text, segment)?;
        if has_dot_segment(&text[begin..]) {
            return Err(TargetError::Path);
        }
    }
    Ok(())
}

/// Whether anyone reads a segment in normal form as `.` or `..`: some drop parameters first, some decode slashes first.
fn has_dot_segment(segment: &str) -> bool {
    segment.split("%2F").any(|part| {
        let end = part.find(';').into_iter().chain(part.find("%3B")).min();
        matches!(&part[..end.unwrap_or(part.len())], "." | "..")
    })
}

fn push_segment(text: &mut String, segment: &str) -> Result<(), TargetError> {
    let mut bytes = segment.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
                let (high, low) = (digit(bytes.next()), digit(bytes.next()));
                let code = high.zip(low).and_then(|(high, low)| u8::try_from(high * 16 + low).ok());
                let code = code.ok_or(TargetError::Path)?;
                if code.is_ascii_control() || code == b'\\' {
                    return Err(TargetError::Path);
                }
                if is_unreserved(code) { text.push(char::from(code)) } else { text.push_str(&format!("%{code:02X}")) }
            }
            byte if is_unreserved(byte) || b"!$&'()*+,;=:@".contains(&byte) => text.push(char::from(byte)),
            _ => return Err(TargetError::Path),
        }
    }
    Ok(())
}

/// Characters that mean the same escaped and plain (RFC 3986, section 2.3).
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}
