//! Headers of a request that say something about its body. Where they could say something else than what is judged, the
//! request is refused: some servers go by the header (2026-07-28, Streamable HTTP, "Server Validation").

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, HeaderName};

use super::answer::Fault;
use super::json::Value;

const METHOD: HeaderName = HeaderName::from_static("mcp-method");
const NAME: HeaderName = HeaderName::from_static("mcp-name");
const VERSION: HeaderName = HeaderName::from_static("mcp-protocol-version");
const VERSION_MEMBER: &str = "io.modelcontextprotocol/protocolVersion";

/// That the body is JSON in UTF-8, and as it is.
pub(super) fn check_content(headers: &HeaderMap) -> Result<(), Fault> {
    if headers.contains_key(CONTENT_ENCODING) {
        return Err(Fault::Encoded);
    }
    let content_type = one(headers, &CONTENT_TYPE).map_err(|_| Fault::MediaType)?.ok_or(Fault::MediaType)?;
    let (kind, parameters) = content_type.split_once(';').unwrap_or((content_type, ""));
    let utf_8 = match parameters.trim() {
        "" => true,
        parameter => parameter.split_once('=').is_some_and(|(name, value)| {
            name.eq_ignore_ascii_case("charset") && value.trim_matches('"').eq_ignore_ascii_case("utf-8")
        }),
    };
    if kind.trim().eq_ignore_ascii_case("application/json") && utf_8 { Ok(()) } else { Err(Fault::MediaType) }
}

/// That the headers which repeat the body repeat this one: `message` is the only one of the body, or there are several
/// and the headers must be absent.
pub(super) fn check_mirrors(headers: &HeaderMap, message: Option<&Value<'_>>) -> Result<(), Fault> {
    let member = |name| message.and_then(|message| message.member(name));
    let params = |name| member("params").and_then(|params| params.member(name));
    let method = member("method").and_then(Value::string);

    if let Some(said) = one(headers, &METHOD)?
        && Some(said) != method
    {
        return Err(Fault::Header(METHOD));
    }
    let named = match method {
        Some("tools/call" | "prompts/get") => params("name"),
        Some("resources/read") => params("uri"),
        // Nothing is named; what extensions make of the header for methods of their own is theirs.
        Some(_) => return check_version(headers, params("_meta")),
        None => None,
    };
    if let Some(said) = one(headers, &NAME)?
        && (named.is_none() || plain(said).as_deref() != named.and_then(Value::string))
    {
        return Err(Fault::Header(NAME));
    }
    check_version(headers, params("_meta"))
}

/// Older versions say theirs in the header alone, and to others than `POST`s of one message nothing but it applies.
fn check_version(headers: &HeaderMap, meta: Option<&Value<'_>>) -> Result<(), Fault> {
    let header = one(headers, &VERSION)?;
    let body = meta.and_then(|meta| meta.member(VERSION_MEMBER));
    match (header, body) {
        (Some(header), Some(body)) if body.string() != Some(header) => Err(Fault::Header(VERSION)),
        _ => Ok(()),
    }
}

/// The value of a header that is there once at most.
fn one<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, Fault> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(Fault::Header(name.clone()));
    }
    value.to_str().map(Some).map_err(|_| Fault::Header(name.clone()))
}

/// What a header's value stands for: itself, or what is in it in Base64. `None` if it should be that and is not.
fn plain(value: &str) -> Option<String> {
    let Some(encoded) = value.strip_prefix("=?base64?").and_then(|rest| rest.strip_suffix("?=")) else {
        return Some(value.to_owned());
    };
    String::from_utf8(STANDARD.decode(encoded).ok()?).ok()
}
