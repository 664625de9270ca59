//! The one place a proxy sends requests to, and whether a request is meant for it.

use http::header::HOST;
use http::request::Parts;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Uri};
use thiserror::Error;

use super::super::Address;
use crate::proof::TargetUri;

/// Where requests go: `https://HOST:PORT`, and the names under which programs may ask for it.
#[derive(Clone, Debug)]
pub struct Target {
    authority: Authority,
    host: String,
    port: u16,
    /// Host and port, in lower case, of this proxy's own address.
    also: Vec<(String, Option<u16>)>,
}

/// Why a text names no target.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("`{0}` is no target: write `https://HOST` or `https://HOST:PORT`, without a path")]
pub struct TargetError(String);

/// Why a request is not for the target.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Misdirected {
    /// It names another place: in an absolute URI, in `:authority` or in `Host`.
    #[error("this proxy leads to `{target}` alone, and the request is for `{asked}`")]
    Elsewhere {
        /// Where it leads.
        target: String,
        /// What was asked for.
        asked: String,
    },
    /// It names no place, or several, or names one in a form that is not read in one way.
    #[error("the request does not say in one way what host it is for")]
    Unclear,
    /// The path is not of a form that every reader takes for the same.
    #[error("the path of the request cannot be proven: {0}")]
    Path(#[source] crate::proof::TargetError),
}

impl Target {
    /// Reads `https://HOST[:PORT]`.
    ///
    /// # Errors
    /// It is something else.
    pub fn parse(text: &str) -> Result<Self, TargetError> {
        let wrong = || TargetError(text.to_owned());
        let normal = TargetUri::parse(text).map_err(|_| wrong())?;
        let uri: Uri = normal.as_str().parse().map_err(|_| wrong())?;
        // The normal form has a path of its own; what was written must not, nor a query that the form leaves out.
        let written = text.trim_end_matches('/');
        let bare = uri.path() == "/" && !text.contains(['?', '#']) && written.matches('/').count() == 2;
        let authority = uri.authority().cloned().ok_or_else(wrong)?;
        if uri.scheme() != Some(&Scheme::HTTPS) || !bare {
            return Err(wrong());
        }
        let host = unbracketed(authority.host()).to_owned();
        let port = authority.port_u16().unwrap_or(443);
        Ok(Self { authority, host, port, also: Vec::new() })
    }

    /// The same target for programs that reach the proxy at `listen`, and may call it by that name.
    #[must_use]
    pub fn reached_at(mut self, listen: &Address) -> Self {
        self.also = match listen {
            Address::Unix(_) => vec![("localhost".to_owned(), None)],
            Address::Tcp { host, port } => {
                [host.to_ascii_lowercase(), "localhost".to_owned()].map(|host| (host, Some(*port))).to_vec()
            }
        };
        self
    }

    /// Its name or IP address, without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The `Host` of every request that is sent there.
    pub(super) fn host_header(&self) -> HeaderValue {
        HeaderValue::from_str(self.authority.as_str())
            .expect("an authority has no characters that a header cannot have")
    }

    /// What the URI of a request that came here is at the target.
    ///
    /// # Errors
    /// It is meant for another place, or it is not clear for which.
    pub(super) fn locate(&self, request: &Parts) -> Result<Uri, Misdirected> {
        let mut named = false;
        let hosts = request.headers.get_all(HOST).iter();
        let hosts = hosts.map(|host| host.to_str().ok().and_then(|host| host.parse::<Authority>().ok()));
        for asked in request.uri.authority().cloned().map(Some).into_iter().chain(hosts) {
            let asked = asked.ok_or(Misdirected::Unclear)?;
            self.is_meant_by(&asked)?;
            named = true;
        }
        if !named || request.headers.get_all(HOST).iter().count() > 1 {
            return Err(Misdirected::Unclear);
        }
        let path = request.uri.path_and_query().filter(|path| path.as_str().starts_with('/'));
        let path = match (path, request.uri.authority()) {
            (Some(path), _) => path.clone(),
            (None, Some(_)) if request.uri.path().is_empty() => PathAndQuery::from_static("/"),
            (None, _) => return Err(Misdirected::Unclear),
        };
        let located = Uri::builder().scheme(Scheme::HTTPS).authority(self.authority.clone()).path_and_query(path);
        located.build().map_err(|_| Misdirected::Unclear)
    }

    /// A program names the target, with its port or without any, or the proxy's own address.
    fn is_meant_by(&self, asked: &Authority) -> Result<(), Misdirected> {
        // User information has no business here, and hides what the host is.
        if asked.as_str().contains('@') || asked.as_str().ends_with(':') {
            return Err(Misdirected::Unclear);
        }
        let (host, port) = (unbracketed(asked.host()).to_ascii_lowercase(), asked.port_u16());
        let is_target = host == self.host && port.is_none_or(|port| port == self.port);
        let is_own = self.also.iter().any(|(own, at)| *own == host && (port.is_none() && at.is_none() || port == *at));
        if is_target || is_own {
            return Ok(());
        }
        Err(Misdirected::Elsewhere { target: self.authority.to_string(), asked: asked.to_string() })
    }
}

/// An IPv6 address as it is resolved.
fn unbracketed(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "https://{}", self.authority)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    fn located(target: &Target, uri: &str, hosts: &[&str]) -> Result<String, Misdirected> {
        let mut request = Request::builder().uri(uri);
        for host in hosts {
            request = request.header(HOST, *host);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        target.locate(&parts).map(|uri| uri.to_string())
    }

    #[test]
    fn a_target_is_https_and_a_host_and_nothing_else() {
        for (text, host, port) in [
            ("https://tool.example.com", "tool.example.com", 443),
            ("https://Tool.example.com:8443/", "tool.example.com", 8443),
            ("https://[::1]:9", "::1", 9),
        ] {
            let target = Target::parse(text).unwrap();
            assert_eq!((target.host(), target.port()), (host, port), "{text}");
        }
        for text in
            ["http://a", "a:1", "https://", "https://a/b", "https://a?b", "https://u@a", "https://a//", "https://a:0"]
        {
            assert!(Target::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_request_for_the_target_goes_there_by_whatever_name_it_is_known_here() {
        let unix = Target::parse("https://tool.example.com:8443").unwrap().reached_at(&Address::Unix("/s".into()));
        let there = "https://tool.example.com:8443/a?b=c";
        for host in ["tool.example.com", "TOOL.example.com:8443", "localhost"] {
            assert_eq!(located(&unix, "/a?b=c", &[host]).as_deref(), Ok(there), "{host}");
            assert_eq!(located(&unix, &format!("http://{host}/a?b=c"), &[host]).as_deref(), Ok(there), "{host}");
        }
        assert_eq!(located(&unix, "http://tool.example.com", &[]).as_deref(), Ok("https://tool.example.com:8443/"));
        let listen = Address::parse("127.0.0.1:9000").unwrap();
        let tcp = Target::parse("https://tool.example.com").unwrap().reached_at(&listen);
        for host in ["tool.example.com", "tool.example.com:443", "127.0.0.1:9000", "localhost:9000"] {
            assert_eq!(located(&tcp, "/", &[host]).as_deref(), Ok("https://tool.example.com/"), "{host}");
        }
    }

    #[test]
    fn a_request_for_another_place_is_misdirected_wherever_it_says_so() {
        let listen = Address::parse("127.0.0.1:9000").unwrap();
        let target = Target::parse("https://tool.example.com").unwrap().reached_at(&listen);
        let elsewhere: [(&str, &[&str]); 8] = [
            ("/", &["other.example.com"]),
            ("/", &["tool.example.com:8443"]),
            ("/", &["tool.example.com.evil.example"]),
            ("/", &["localhost"]),
            ("/", &["127.0.0.1"]),
            ("http://other.example.com/", &["tool.example.com"]),
            ("http://tool.example.com/", &["other.example.com"]),
            ("/", &["localhost:9001"]),
        ];
        for (uri, hosts) in elsewhere {
            assert!(matches!(located(&target, uri, hosts), Err(Misdirected::Elsewhere { .. })), "{uri} {hosts:?}");
        }
        let unclear: [(&str, &[&str]); 6] = [
            ("/", &[]),
            ("/", &["tool.example.com", "tool.example.com"]),
            ("/", &["tool.example.com:"]),
            ("/", &["tool.example.com@other.example.com"]),
            ("/", &["a b"]),
            ("*", &["tool.example.com"]),
        ];
        for (uri, hosts) in unclear {
            assert_eq!(located(&target, uri, hosts), Err(Misdirected::Unclear), "{uri} {hosts:?}");
        }
    }
}
