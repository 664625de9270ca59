//! Which headers go from one connection to the next.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

/// Of one connection alone (RFC 9110, section 7.6.1), whether `Connection` names them or not. `Expect` is answered here.
const HOP_BY_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("http2-settings"),
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::EXPECT,
];

/// Removes what is of one connection alone. `TE: trailers` stays: it says something of the client, and gRPC wants it.
pub fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let takes_trailers = tokens(headers, &header::TE).any(|token| token.eq_ignore_ascii_case("trailers"));
    let named: Vec<HeaderName> = tokens(headers, &header::CONNECTION)
        .filter_map(|token| HeaderName::from_bytes(token.as_bytes()).ok())
        // What decides where a message ends is no matter of a client's choice.
        .filter(|name| *name != header::CONTENT_LENGTH && *name != header::HOST)
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
    if takes_trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
}

/// Removes what `Connection` names, and leaves of it what a WebSocket needs. A proxy does this before it says anything of
/// its own: whoever sends a request could name the proxy's words there, and they would be removed after they were said.
pub fn forget_named(headers: &mut HeaderMap) {
    let upgrade = wants_websocket(headers).then(|| headers.remove(header::UPGRADE)).flatten();
    remove_hop_by_hop(headers);
    if let Some(upgrade) = upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, upgrade);
    }
}

/// The elements of a list header, of all its lines (RFC 9110, section 5.6.1).
pub fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let lines = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(str::trim).filter(|token| !token.is_empty())
}

/// Whether a request asks to go on as a WebSocket (RFC 6455, section 4.1). Other protocols are not switched to: with some
/// of them, such as `h2c`, the requests inside would not be seen.
pub fn wants_websocket(headers: &HeaderMap) -> bool {
    tokens(headers, &header::CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade"))
        && headers.get_all(header::UPGRADE).iter().count() == 1
        && headers.get(header::UPGRADE).is_some_and(|to| to.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        let parse = |(name, value): &(&str, &str)| {
            (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap())
        };
        lines.iter().map(parse).collect()
    }

    #[test]
    fn what_is_of_one_connection_alone_stays_behind_and_the_rest_goes_on() {
        let mut seen = headers(&[
            ("connection", "close, X-Secret"),
            ("connection", "content-length, host"),
            ("x-secret", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "gzip, trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("http2-settings", "AAMAAABk"),
            ("expect", "100-continue"),
            ("content-length", "3"),
            ("host", "tool"),
            ("accept", "*/*"),
        ]);
        remove_hop_by_hop(&mut seen);
        assert_eq!(seen, headers(&[("content-length", "3"), ("host", "tool"), ("accept", "*/*"), ("te", "trailers")]));
    }

    #[test]
    fn of_a_websocket_stays_what_it_needs_and_nothing_that_was_named_with_it() {
        let mut seen = headers(&[("connection", "upgrade, x"), ("upgrade", "websocket"), ("x", "1"), ("y", "2")]);
        forget_named(&mut seen);
        assert_eq!(seen, headers(&[("connection", "upgrade"), ("upgrade", "websocket"), ("y", "2")]));
        let mut seen = headers(&[("connection", "upgrade, x"), ("upgrade", "h2c"), ("x", "1"), ("y", "2")]);
        forget_named(&mut seen);
        assert_eq!(seen, headers(&[("y", "2")]));
    }

    #[test]
    fn only_a_websocket_is_switched_to() {
        let cases = [
            (&[("connection", "keep-alive, Upgrade"), ("upgrade", "WebSocket")][..], true),
            (&[("connection", "upgrade"), ("upgrade", "h2c")], false),
            (&[("connection", "upgrade"), ("upgrade", "websocket"), ("upgrade", "h2c")], false),
            (&[("connection", "upgrade"), ("upgrade", "websocket, h2c")], false),
            (&[("upgrade", "websocket")], false),
        ];
        for (lines, wanted) in cases {
            assert_eq!(wants_websocket(&headers(lines)), wanted, "{lines:?}");
        }
    }
}
