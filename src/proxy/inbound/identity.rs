//! Who calls, as the upstream is told: headers that the proxy alone sets.

use std::fmt::Write as _;
use std::net::SocketAddr;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use rustls::pki_types::CertificateDer;

use crate::base::entropy::hex;
use crate::client::session::Digest;
use crate::client::tls::PeerCertificates;
use crate::client::verifier::Verified;
use crate::id::SpiffeId;
use crate::x509::Certificate;

const XFCC: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
const WIT: HeaderName = HeaderName::from_static("workload-identity-token");
/// Whatever a client sends under a name that begins so is removed.
const OURS: [&str; 3] = ["tether-", "x-forwarded-", "x-envoy-"];
/// And under these names: the last ones make some frameworks act on another path or method than the one that was decided on.
const OURS_TOO: [&str; 10] = [
    "forwarded",
    "client-cert",
    "client-cert-chain",
    "x-real-ip",
    "workload-identity-token",
    "x-original-url",
    "x-rewrite-url",
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
];

/// Removes what a client may not say, from headers and from trailers. Programs behind CGI and WSGI see `Tether_User` and
/// `Tether.User` as `Tether-User`, so they are the same here.
pub(super) fn remove_claims(headers: &mut HeaderMap) {
    let is_ours = |name: &HeaderName| {
        let name = name.as_str().replace(|c: char| !c.is_ascii_alphanumeric(), "-");
        OURS.iter().any(|prefix| name.starts_with(prefix)) || OURS_TOO.contains(&name.as_str())
    };
    let found: Vec<HeaderName> = headers.keys().filter(|name| is_ours(name)).cloned().collect();
    for name in found {
        headers.remove(name);
    }
}

/// Removes the proof: it was for this proxy, and is good for nobody else. Credentials of other schemes are for the tool.
pub(super) fn remove_proof(headers: &mut HeaderMap) {
    headers.remove(WIT);
    let is_wpt = |value: &HeaderValue| value.as_bytes().get(..3).is_some_and(|s| s.eq_ignore_ascii_case(b"wpt"));
    if headers.get_all(header::AUTHORIZATION).iter().any(is_wpt) {
        headers.remove(header::AUTHORIZATION);
    }
}

/// Who is at the other end of a connection, ready to be told.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    id: SpiffeId,
    xfcc: HeaderValue,
    for_address: Option<SocketAddr>,
}

impl Identity {
    /// Of the peer that proved `certificates` to `own`; the whole certificate goes along when `with_certificate`.
    pub(super) fn new(
        id: SpiffeId,
        certificates: &PeerCertificates,
        own: Option<&SpiffeId>,
        with_certificate: bool,
        from: Option<SocketAddr>,
    ) -> Self {
        let xfcc = xfcc(&id, certificates.as_slice(), own, with_certificate);
        Self { id, xfcc, for_address: from }
    }

    /// Tells the upstream of a request to `authority` who calls; `verified` where the agent was asked.
    pub(super) fn tell(&self, headers: &mut HeaderMap, authority: &str, verified: Option<&Verified>) {
        headers.insert(XFCC, self.xfcc.clone());
        set(headers, "tether-spiffe-id", &self.id.to_string());
        set(headers, "x-forwarded-proto", "https");
        set(headers, "x-forwarded-host", authority);
        let mut forwarded = format!("proto=https;host=\"{}\"", authority.replace(['"', '\\'], ""));
        if let Some(from) = self.for_address {
            set(headers, "x-forwarded-for", &from.ip().to_canonical().to_string());
            let _ = write!(forwarded, ";for=\"{from}\"");
        }
        set(headers, "forwarded", &forwarded);
        let Some(verified) = verified else { return };
        let user = verified.user.as_ref().map(|user| user.name.as_str());
        let told = [
            ("tether-session", verified.session.as_deref()),
            ("tether-user", user),
            ("tether-purpose", verified.purpose.as_deref()),
            ("tether-txn", verified.txn.as_deref()),
        ];
        for (name, value) in told {
            if let Some(value) = value {
                set(headers, name, value);
            }
        }
    }
}

fn set(headers: &mut HeaderMap, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_str(&header_safe(value)) {
        headers.insert(HeaderName::from_static(name), value);
    }
}

/// `text` as a header's value: what is not visible ASCII, and `%`, is percent-encoded, so nothing is lost and nothing
/// can be added.
fn header_safe(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'%' | 0..=0x20 | 0x7f.. => {
                let _ = write!(safe, "%{byte:02X}");
            }
            _ => safe.push(char::from(byte)),
        }
    }
    safe
}

/// `X-Forwarded-Client-Cert` as Envoy writes it. SPIFFE IDs have no character that would have to be quoted.
fn xfcc(
    id: &SpiffeId,
    certificates: &[CertificateDer<'_>],
    own: Option<&SpiffeId>,
    with_certificate: bool,
) -> HeaderValue {
    let leaf = certificates.first();
    let mut text = String::new();
    if let Some(own) = own {
        let _ = write!(text, "By={own};");
    }
    if let Some(leaf) = leaf {
        let _ = write!(text, "Hash={};", hex(Digest::of(leaf).as_bytes()));
        if with_certificate && let Ok(leaf) = Certificate::from_der(leaf) {
            let _ = write!(text, "Cert=\"{}\";", url_encoded(&leaf.to_pem()));
        }
    }
    let _ = write!(text, "URI={id}");
    HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static(""))
}

/// As in a query: everything but letters, digits and `-_.~`.
fn url_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len() * 3 / 2);
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn what_a_client_says_under_our_names_is_removed_however_it_is_written() {
        let mut headers = HeaderMap::new();
        let claimed = [
            "X-Forwarded-Client-Cert",
            "x_forwarded_client_cert",
            "Tether-User",
            "tether_user",
            "Tether-Anything",
            "X-Forwarded-For",
            "Forwarded",
            "X-Real-IP",
            "Workload-Identity-Token",
            "workload_identity_token",
            "Tether.User",
            "tether!user",
            "X-Original-URL",
            "X-HTTP-Method-Override",
        ];
        for name in claimed.into_iter().chain(["tethered", "accept"]) {
            headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_static("x"));
        }
        remove_claims(&mut headers);
        let left: BTreeSet<&str> = headers.keys().map(HeaderName::as_str).collect();
        assert_eq!(left, BTreeSet::from(["tethered", "accept"]));
    }

    #[test]
    fn a_proof_stays_here_and_other_credentials_go_on() {
        let with = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(WIT, HeaderValue::from_static("wit"));
            headers.insert(header::AUTHORIZATION, HeaderValue::from_str(value).unwrap());
            remove_proof(&mut headers);
            headers.len()
        };
        assert_eq!([with("WPT abc"), with("wpt abc"), with("Bearer abc"), with("x")], [0, 0, 1, 1]);
    }

    #[test]
    fn a_value_cannot_break_out_of_its_header() {
        assert_eq!(
            header_safe("https://idp#ä\r\nTether-User: root%"),
            "https://idp#%C3%A4%0D%0ATether-User:%20root%25"
        );
    }

    #[test]
    fn the_certificate_is_told_in_envoys_form() {
        let id = SpiffeId::parse("spiffe://td/agent").unwrap();
        let own = SpiffeId::parse("spiffe://td/tool").unwrap();
        let certificates = [CertificateDer::from(vec![1, 2, 3])];
        assert_eq!(
            xfcc(&id, &certificates, Some(&own), false),
            "By=spiffe://td/tool;Hash=039058c6f2c0cb492c533b0a4d14ef77cc0f78abccced5287d84a1a2011cfb81;URI=spiffe://td/agent"
        );
        assert_eq!(url_encoded("a b\n=+"), "a%20b%0A%3D%2B");
    }
}
