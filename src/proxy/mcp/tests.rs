use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::client::session::{Digest, Effect};
use crate::client::verifier::{Class, Refused, RpcVerdict};

const CALL: &str =
    r#"{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"read","arguments":{"b":1,"a":"x"}}}"#;

fn headers(more: &[(&str, &str)]) -> HeaderMap {
    let mut headers =
        HeaderMap::from_iter([(http::header::CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
    for (name, value) in more {
        headers.append(HeaderName::try_from(*name).unwrap(), HeaderValue::try_from(*value).unwrap());
    }
    headers
}

fn read(body: &str) -> Result<Message, Malformed> {
    Message::read(&headers(&[]), Bytes::copy_from_slice(body.as_bytes()))
}

fn fault(body: &str) -> Fault {
    read(body).map(|read| panic!("{body} is read as {read:?}")).unwrap_err().fault
}

fn verdict(reason: &str) -> RpcVerdict {
    RpcVerdict {
        allowed: reason.is_empty(),
        reason: reason.to_owned(),
        approval: (reason == "step_up").then(|| "a1".to_owned()),
        effect: Effect::Write,
        redact: Vec::new(),
    }
}

fn answered(next: Next) -> (StatusCode, Value) {
    match next {
        Next::Answer(answer) => (answer.status, serde_json::from_slice(&answer.body).unwrap()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_tools_call_names_its_tool_and_the_digest_of_its_canonical_arguments() {
    let message = read(CALL).unwrap();
    let [rpc] = &message.rpcs()[..] else { panic!("{message:?}") };
    assert_eq!((rpc.method.as_str(), rpc.tool.as_str(), rpc.effect), ("tools/call", "read", Effect::ByMethod));
    let digest = Digest::of(br#"{"a":"x","b":1}"#);
    assert_eq!(rpc.arguments, Some(digest));
    assert_eq!(message.only().as_ref(), Some(rpc));
}

#[test]
fn no_arguments_have_one_digest_however_that_is_written() {
    for arguments in ["", r#","arguments":{}"#, r#","arguments":null"#, r#","arguments": { }"#] {
        let call = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"t"{arguments}}}}}"#);
        let only = read(&call).unwrap().only().unwrap();
        assert_eq!((only.tool.as_str(), only.arguments), ("t", Some(Digest::of(b"{}"))), "{call}");
    }
}

#[test]
fn what_reads_is_known_and_what_is_not_known_writes() {
    let reads = [
        "initialize",
        "ping",
        "server/discover",
        "tools/list",
        "resources/list",
        "resources/templates/list",
        "prompts/list",
        "roots/list",
        "resources/read",
        "resources/subscribe",
        "resources/unsubscribe",
        "prompts/get",
        "completion/complete",
        "subscriptions/listen",
        "tasks/get",
        "tasks/result",
        "notifications/cancelled",
    ];
    let writes = ["logging/setLevel", "tasks/cancel", "tasks/update", "x", "Tools/List", "tools/listx"];
    for (methods, effect) in [(&reads[..], Effect::Read), (&writes[..], Effect::Write)] {
        for method in methods {
            let message = read(&format!(r#"{{"jsonrpc":"2.0","id":"a","method":"{method}"}}"#)).unwrap();
            assert_eq!(message.rpcs()[0].effect, effect, "{method}");
            assert_eq!(message.only(), message.rpcs().pop(), "{method}");
        }
    }
    for response in [r#""result":{}"#, r#""error":{"code":1,"message":"m"}"#] {
        let message = read(&format!(r#"{{"jsonrpc":"2.0","id":3,{response}}}"#)).unwrap();
        assert_eq!((message.rpcs()[0].method.as_str(), message.rpcs()[0].effect), ("response", Effect::Read));
    }
}

#[test]
fn what_two_readers_could_read_in_two_ways_is_no_message() {
    let call = |with: &str| format!(r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call",{with}}}"#);
    let envelope = [
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/list","method":"tools/call"}"#.to_owned(),
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/list","m\u0065thod":"tools/call"}"#.to_owned(),
        call(r#""params":{"name":"read","name":"delete"}"#),
        call(r#""params":{"name":"read","arguments":{"a":1,"a":2}}"#),
        call(r#""params":{"name":"read","arguments":{"a":[{"b":1,"b":1}]}}"#),
        call(r#""params":{"name":"read","_meta":{"x":1,"x":1}}"#),
    ];
    for body in &envelope {
        assert!(matches!(fault(body), Fault::Json(JsonError::Twice(_))), "{body}");
    }
    let alike = [
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/list","Method":"tools/call"}"#.to_owned(),
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/list","PARAMS":{}}"#.to_owned(),
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/list","paramſ":{}}"#.to_owned(),
        r#"{"jsonrpc":"2.0","ID":1,"method":"tools/list"}"#.to_owned(),
        call(r#""params":{"name":"read","Name":"delete"}"#),
        call(r#""params":{"name":"read","argumentſ":{}}"#),
        r#"{"jsonrpc":"2.0","id":1,"method":"Tools/Call","params":{"name":"x"}}"#.to_owned(),
    ];
    for body in &alike {
        assert!(matches!(fault(body), Fault::Message(_)), "{body}");
    }
    // In what the tool gets such names are its own, and all of them are in the digest.
    read(&call(r#""params":{"name":"read","arguments":{"path":1,"PATH":2,"Name":3}}"#)).unwrap();
}

#[test]
fn what_is_not_json_rpc_is_no_message() {
    let rows = [
        "1",
        "null",
        "\"x\"",
        "{}",
        "[]",
        "[1]",
        "[[]]",
        r#"{"id":1,"method":"ping"}"#,
        r#"{"jsonrpc":2.0,"id":1,"method":"ping"}"#,
        r#"{"jsonrpc":"1.0","id":1,"method":"ping"}"#,
        r#"{"jsonrpc":"2.0","id":null,"method":"ping"}"#,
        r#"{"jsonrpc":"2.0","id":1.5,"method":"ping"}"#,
        r#"{"jsonrpc":"2.0","id":1e2,"method":"ping"}"#,
        r#"{"jsonrpc":"2.0","id":[],"method":"ping"}"#,
        r#"{"jsonrpc":"2.0","id":true,"method":"ping"}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":1}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":""}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/call "}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"tools\u0000call"}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"ping","params":[]}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"ping","params":"x"}"#,
        r#"{"jsonrpc":"2.0","id":1}"#,
        r#"{"jsonrpc":"2.0","id":1,"result":{},"error":{}}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"ping","result":{}}"#,
        r#"[{"jsonrpc":"2.0","id":1,"method":"ping"},{"jsonrpc":"2.0","id":1,"method":"ping"}]"#,
    ];
    for body in rows {
        assert!(matches!(fault(body), Fault::Message(_)), "{body}: {:?}", fault(body));
    }
    let one = r#"{"jsonrpc":"2.0","method":"x"}"#;
    assert!(read(&format!("[{}]", vec![one; 64].join(","))).is_ok());
    assert!(matches!(fault(&format!("[{}]", vec![one; 65].join(","))), Fault::Message(_)));
}

#[test]
fn a_tool_that_cannot_be_named_is_not_called() {
    let long = format!(r#"{{"name":"{}"}}"#, "x".repeat(129));
    let rows = [
        "null",
        "{}",
        r#"{"name":1}"#,
        r#"{"name":""}"#,
        r#"{"name":"a\nb"}"#,
        r#"{"name":"a\u202eb"}"#,
        &long,
        r#"{"name":"t","arguments":[]}"#,
        r#"{"name":"t","arguments":"{}"}"#,
        r#"{"name":"t","arguments":{"n":9007199254740993}}"#,
        r#"{"name":"t","arguments":{"n":[1e400]}}"#,
    ];
    for params in rows {
        let body = format!(r#"{{"jsonrpc":"2.0","id":"i","method":"tools/call","params":{params}}}"#);
        let malformed = read(&body).unwrap_err();
        assert!(matches!(malformed.fault, Fault::Call(_)), "{body}: {malformed:?}");
        let answer = malformed.answer();
        let said: Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!((answer.status.as_u16(), &said["id"], &said["error"]["code"]), (400, &json!("i"), &json!(-32602)));
    }
}

#[test]
fn only_json_in_utf_8_as_it_is_is_read() {
    let with = |content_type: &str| {
        let headers = HeaderMap::from_iter([(http::header::CONTENT_TYPE, content_type.try_into().unwrap())]);
        Message::read(&headers, CALL.into()).map(drop).map_err(|malformed| malformed.fault)
    };
    for good in [
        "application/json",
        "Application/JSON",
        "application/json; charset=utf-8",
        "application/json;charset=\"UTF-8\"",
    ] {
        assert_eq!(with(good), Ok(()), "{good}");
    }
    for bad in [
        "text/plain",
        "application/json-rpc",
        "application/json; charset=utf-16",
        "application/json; charset=utf-8; x=y",
        "application/json; boundary=x",
        "application/json, text/plain",
        "",
    ] {
        assert_eq!(with(bad), Err(Fault::MediaType), "{bad}");
    }
    let fault = |headers: HeaderMap| Message::read(&headers, CALL.into()).unwrap_err().fault;
    assert_eq!(fault(HeaderMap::new()), Fault::MediaType);
    assert_eq!(fault(headers(&[("content-type", "application/json")])), Fault::MediaType);
    for encoding in ["gzip", "identity", ""] {
        assert_eq!(fault(headers(&[("content-encoding", encoding)])), Fault::Encoded);
    }
    let large = Message::read(&headers(&[]), Bytes::from(vec![b' '; MAX_BODY + 1])).unwrap_err();
    assert_eq!((&large.fault, large.answer().status), (&Fault::Large, StatusCode::PAYLOAD_TOO_LARGE));
    let utf_16: Vec<u8> = CALL.encode_utf16().flat_map(u16::to_le_bytes).collect();
    assert!(Message::read(&headers(&[]), utf_16.into()).is_err());
}

#[test]
fn headers_that_repeat_the_body_say_what_it_says() {
    let meta = r#""_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}"#;
    let of = |method: &str, params: &str| {
        format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{method}","params":{{{params}{meta}}}}}"#)
    };
    let call = of("tools/call", r#""name":"café","#);
    let resource = of("resources/read", r#""uri":"file:///a","#);
    let list = of("tools/list", "");
    let encoded = "=?base64?Y2Fmw6k=?=";
    type Row<'a> = (&'a str, &'a [(&'a str, &'a str)], Option<&'a str>);
    let rows: &[Row<'_>] = &[
        (&call, &[], None),
        (&call, &[("mcp-method", "tools/call"), ("mcp-name", encoded), ("mcp-protocol-version", "2026-07-28")], None),
        (&call, &[("mcp-method", "tools/list")], Some("mcp-method")),
        (&call, &[("mcp-method", "Tools/call")], Some("mcp-method")),
        (&call, &[("mcp-method", "tools/call"), ("mcp-method", "tools/call")], Some("mcp-method")),
        (&call, &[("mcp-name", "read")], Some("mcp-name")),
        (&call, &[("mcp-name", "=?base64?cmVhZA==?=")], Some("mcp-name")),
        (&call, &[("mcp-name", "=?base64?%?=")], Some("mcp-name")),
        (&call, &[("mcp-name", encoded), ("mcp-name", encoded)], Some("mcp-name")),
        (&call, &[("mcp-protocol-version", "2025-11-25")], Some("mcp-protocol-version")),
        (&resource, &[("mcp-name", "file:///a")], None),
        (&resource, &[("mcp-name", "file:///b")], Some("mcp-name")),
        (&list, &[("mcp-name", "whatever an extension says")], None),
        (
            &list,
            &[("mcp-protocol-version", "2026-07-28"), ("mcp-protocol-version", "2026-07-28")],
            Some("mcp-protocol-version"),
        ),
        (CALL, &[("mcp-protocol-version", "2025-11-25"), ("mcp-session-id", "s")], None),
        // Several messages, and what is no request, have nothing that these headers could repeat.
        (r#"[{"jsonrpc":"2.0","id":1,"method":"ping"}]"#, &[("mcp-method", "ping")], Some("mcp-method")),
        (r#"{"jsonrpc":"2.0","id":1,"result":{}}"#, &[("mcp-method", "response")], Some("mcp-method")),
        (r#"{"jsonrpc":"2.0","id":1,"result":{}}"#, &[("mcp-name", "x")], Some("mcp-name")),
    ];
    for (body, more, expected) in rows {
        let read = Message::read(&headers(more), Bytes::copy_from_slice(body.as_bytes()));
        match expected {
            None => drop(read.unwrap()),
            Some(name) => {
                let malformed = read.unwrap_err();
                assert_eq!(malformed.fault, Fault::Header(HeaderName::try_from(*name).unwrap()), "{body} {more:?}");
                let said: Value = serde_json::from_slice(&malformed.answer().body).unwrap();
                assert_eq!(said["error"]["code"], -32020);
            }
        }
    }
}

#[test]
fn an_allowed_message_is_forwarded_byte_for_byte() {
    let odd = " {\"jsonrpc\" : \"2.0\",\"x\":1.50, \"id\":007e0,\"method\":\"ping\"}\n".replace("007e0", "\"\\u0041\"");
    for body in [CALL, &odd, "[ {\"jsonrpc\":\"2.0\",\"method\":\"ping\"} ]"] {
        let message = read(body).unwrap();
        let Next::Forward(bytes) = message.after(&[verdict("")]) else { panic!("{body}") };
        assert_eq!(bytes, body);
    }
}

#[test]
fn a_refused_request_is_answered_by_an_error_that_says_what_to_do() {
    let message = read(CALL).unwrap();
    let (status, body) = answered(message.after(&[verdict("policy")]));
    assert_eq!(status, StatusCode::OK);
    let expected = json!({ "jsonrpc": "2.0", "id": 7, "error": {
        "code": 403, "message": "the tool `read` was refused: policy does not allow it; another try changes nothing",
        "data": { "reason": "policy" },
    }});
    assert_eq!(body, expected);
    let (status, body) = answered(message.after(&[verdict("step_up")]));
    assert_eq!(status, StatusCode::OK);
    let expected = json!({ "jsonrpc": "2.0", "id": 7, "error": {
        "code": 428,
        "message": "the tool `read` was refused: a person has to approve it (`tether approval approve a1`); then make the same call again",
        "data": { "reason": "step_up", "approval": "a1", "how": "tether approval approve a1" },
    }});
    assert_eq!(body, expected);
}

#[test]
fn what_to_do_follows_from_why_it_was_refused() {
    let said = |class, reason: &str, approval: Option<&str>| {
        let why = Refused { class, reason: reason.to_owned(), approval: approval.map(str::to_owned) };
        let body: Value = serde_json::from_slice(&read(CALL).unwrap().refused(&why).body).unwrap();
        (body["error"]["message"].as_str().unwrap().to_owned(), body["error"]["data"]["how"].clone())
    };
    let rows = [
        (Class::StepUp, "step_up", Some("a1"), "`tether approval approve a1`"),
        (Class::StepUp, "step_up", None, "`tether proxy outbound --mcp`"),
        (Class::Forbidden, "policy", None, "policy does not allow it"),
        (Class::Forbidden, "policy_denied", None, "policy does not allow it"),
        (Class::Forbidden, "no_session", None, "`tether run`"),
        (Class::Forbidden, "target", None, "(`target`)"),
        (Class::Unproven, "unproven", None, "not proven"),
        (Class::Unavailable, "busy", None, "try again"),
    ];
    for (class, reason, approval, expected) in rows {
        let (message, how) = said(class, reason, approval);
        assert!(message.starts_with("the tool `read` was refused: ") && message.contains(expected), "{message}");
        assert_eq!(how.is_string(), approval.is_some(), "{message}");
    }
}

#[test]
fn the_id_in_an_error_is_the_one_that_was_sent() {
    for id in ["0", "-1", "9007199254740993", r#""""#, r#""a\"\u0041\ud83d\ude00""#, r#""7""#] {
        let message = read(&format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"ping"}}"#)).unwrap();
        let Next::Answer(answer) = message.after(&[verdict("policy")]) else { panic!("{id}") };
        assert!(answer.body.starts_with(format!(r#"{{"jsonrpc":"2.0","id":{id},"error":"#).as_bytes()), "{answer:?}");
    }
}

#[test]
fn a_refused_message_that_nobody_waits_on_is_not_forwarded_and_says_403() {
    for body in [r#"{"jsonrpc":"2.0","method":"notifications/x"}"#, r#"{"jsonrpc":"2.0","id":1,"result":{}}"#] {
        let (status, body) = answered(read(body).unwrap().after(&[verdict("policy")]));
        assert_eq!((status, &body["id"]), (StatusCode::FORBIDDEN, &Value::Null));
    }
}

#[test]
fn without_a_verdict_for_each_call_nothing_goes_on() {
    for verdicts in [&[][..], &[verdict(""), verdict("")]] {
        let (status, body) = answered(read(CALL).unwrap().after(verdicts));
        assert_eq!((status, &body["error"]["code"]), (StatusCode::SERVICE_UNAVAILABLE, &json!(503)));
    }
}

#[test]
fn a_request_that_is_refused_as_a_whole_is_answered_by_what_its_refusal_is() {
    let batch = format!(
        r#"[{CALL},{{"jsonrpc":"2.0","method":"notifications/x"}},{{"jsonrpc":"2.0","id":"b","method":"ping"}}]"#
    );
    let rows = [
        (Class::Unproven, "unproven", 401, 401),
        (Class::Forbidden, "policy", 200, 403),
        (Class::StepUp, "step_up", 200, 428),
        (Class::Unavailable, "busy", 503, 503),
    ];
    for (class, reason, status, code) in rows {
        let why = Refused { class, reason: reason.to_owned(), approval: None };
        let answer = read(CALL).unwrap().refused(&why);
        let body: Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!((answer.status.as_u16(), &body["id"], &body["error"]["code"]), (status, &json!(7), &json!(code)));
        let answer = read(&batch).unwrap().refused(&why);
        let body: Value = serde_json::from_slice(&answer.body).unwrap();
        let ids: Vec<_> = body.as_array().unwrap().iter().map(|error| error["id"].clone()).collect();
        assert_eq!((answer.status.as_u16(), ids), (status, vec![json!(7), json!("b")]));
    }
}

const BATCH: &str = r#"[ {"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"read"}} ,
 {"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"delete"}},{"jsonrpc":"2.0","method":"notifications/x"},
 {"jsonrpc":"2.0","id":3,"result":{}} ]"#;

#[test]
fn of_a_batch_what_is_allowed_goes_on_as_it_was_written() {
    let message = read(BATCH).unwrap();
    let tools: Vec<_> = message.rpcs().into_iter().map(|rpc| (rpc.method, rpc.tool)).collect();
    let expected = [("tools/call", "read"), ("tools/call", "delete"), ("notifications/x", ""), ("response", "")];
    assert_eq!(tools, expected.map(|(method, tool)| (method.to_owned(), tool.to_owned())));
    assert_eq!(message.only(), None);

    let decide = |reasons: [&str; 4]| message.after(&reasons.map(verdict));
    assert!(matches!(decide(["", "", "", ""]), Next::Forward(bytes) if bytes == BATCH));
    let Next::Part(part, _) = decide(["", "policy", "policy", ""]) else { panic!() };
    let expected = r#"[{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"read"}},{"jsonrpc":"2.0","id":3,"result":{}}]"#;
    assert_eq!(part, expected);
    // Nobody waits on the one that is missing.
    let Next::Forward(part) = decide(["", "", "policy", ""]) else { panic!() };
    assert_eq!(serde_json::from_slice::<Value>(&part).unwrap().as_array().unwrap().len(), 3);
    let (status, body) = answered(decide(["policy", "step_up", "policy", "policy"]));
    let codes: Vec<_> = body.as_array().unwrap().iter().map(|one| (&one["id"], &one["error"]["code"])).collect();
    assert_eq!((status, codes), (StatusCode::OK, vec![(&json!(1), &json!(403)), (&json!(2), &json!(428))]));
}

/// What a client gets when the batch's second call is refused and the server answers `body` to the rest, in these pieces.
async fn merged(status: u16, content_type: &str, pieces: &[&'static str]) -> (u16, String, String) {
    let Next::Part(_, merge) = read(BATCH).unwrap().after(&["", "policy", "", ""].map(verdict)) else { panic!() };
    let frames: Vec<_> = pieces
        .iter()
        .map(|piece| Ok::<_, std::convert::Infallible>(http_body::Frame::data(Bytes::from_static(piece.as_bytes()))))
        .collect();
    let mut response = Response::new(StreamBody::new(futures_util::stream::iter(frames)));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    if !content_type.is_empty() {
        response.headers_mut().insert("content-type", content_type.try_into().unwrap());
    }
    response.headers_mut().insert("content-length", HeaderValue::from_static("10"));
    let response = merge.into(response);
    let content_type = response.headers().get("content-type").map(|value| value.to_str().unwrap().to_owned());
    let length = response.headers().contains_key("content-length");
    let status = response.status().as_u16();
    assert_eq!(length, status >= 400 && status != 502, "the length is that of the server's answer");
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, content_type.unwrap_or_default(), String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn the_errors_of_refused_calls_come_into_the_servers_answer() {
    let ids = |body: &str| {
        let body: Vec<Value> = serde_json::from_str(body).unwrap_or_else(|error| panic!("{body}: {error}"));
        body.iter().map(|one| one["id"].as_i64().unwrap()).collect::<Vec<_>>()
    };
    let rows: &[(&[&'static str], &[i64])] = &[
        (&[r#"[{"id":1}]"#], &[2, 1]),
        (&[" \r\n", "[", " ", r#"{"id":"#, "1}", r#",{"id":9}"#, "]", " "], &[2, 1, 9]),
        (&["[", "]"], &[2]),
        (&["[]"], &[2]),
        (&[r#"{"id":1}"#], &[2, 1]),
        (&["\n", "{", r#""id":1}"#, "\n"], &[2, 1]),
        (&[], &[2]),
        (&[""], &[2]),
    ];
    for (pieces, expected) in rows {
        let (status, content_type, body) = merged(200, "application/json; charset=utf-8", pieces).await;
        assert_eq!(
            (status, content_type.as_str(), &ids(&body)[..]),
            (200, "application/json; charset=utf-8", *expected)
        );
    }
    for status in [202, 204] {
        let (status, content_type, body) = merged(status, "", &[]).await;
        assert_eq!((status, content_type.as_str(), ids(&body)), (200, "application/json", vec![2]));
    }
    let (_, _, body) = merged(200, "text/event-stream", &["id: 1\nda", "ta: {\"id\":1}\n\n"]).await;
    let (first, rest) = body.split_once("\n\n").unwrap();
    assert!(first.starts_with("event: message\ndata: {\"jsonrpc\":\"2.0\",\"id\":2,"), "{body}");
    assert_eq!(rest, "id: 1\ndata: {\"id\":1}\n\n");
}

#[tokio::test]
async fn an_answer_that_is_an_error_of_http_stays_as_it_is_and_one_that_cannot_be_added_to_is_none() {
    let (status, content_type, body) = merged(404, "application/json", &["[1]"]).await;
    assert_eq!((status, content_type.as_str(), body.as_str()), (404, "application/json", "[1]"));
    let (status, _, body) = merged(200, "text/html", &["<p>"]).await;
    assert_eq!((status, body.as_str()), (502, ""));
    let Next::Part(_, merge) = read(BATCH).unwrap().after(&["", "policy", "", ""].map(verdict)) else { panic!() };
    let encoded = Response::builder().header("content-type", "application/json").header("content-encoding", "gzip");
    assert_eq!(merge.into(encoded.body(Full::new(Bytes::new())).unwrap()).status(), StatusCode::BAD_GATEWAY);
}

proptest! {
    #[test]
    fn whatever_arrives_is_read_or_answered(body in ".{0,200}") {
        if let Err(malformed) = read(&body) {
            let said: Value = serde_json::from_slice(&malformed.answer().body).unwrap();
            prop_assert!(said["error"]["code"].is_i64());
        }
    }

    #[test]
    fn of_any_batch_exactly_the_allowed_goes_on_and_exactly_the_refused_is_answered(
        calls in prop::collection::vec((any::<bool>(), any::<bool>()), 1..12)
    ) {
        let call = |(at, (waits, _)): (usize, &(bool, bool))| {
            let id = if *waits { format!(r#""id":{at},"#) } else { String::new() };
            format!(r#"{{"jsonrpc":"2.0",{id}"method":"m{at}"}}"#)
        };
        let texts: Vec<String> = calls.iter().enumerate().map(call).collect();
        let message = read(&format!("[{}]", texts.join(" , "))).unwrap();
        let verdicts: Vec<_> = calls.iter().map(|(_, allowed)| verdict(if *allowed { "" } else { "policy" })).collect();
        let allowed: Vec<_> = texts.iter().zip(&calls).filter(|(_, (_, allowed))| *allowed).map(|(text, _)| text.clone()).collect();
        let errors = calls.iter().filter(|(waits, allowed)| *waits && !allowed).count();
        match message.after(&verdicts) {
            Next::Answer(answer) => {
                prop_assert!(allowed.is_empty());
                let said: Value = serde_json::from_slice(&answer.body).unwrap();
                prop_assert_eq!(said.as_array().map_or(0, Vec::len), errors);
            }
            Next::Forward(part) if allowed.len() == calls.len() => prop_assert_eq!(part, format!("[{}]", texts.join(" , "))),
            Next::Forward(part) => {
                prop_assert_eq!(errors, 0);
                prop_assert_eq!(part, format!("[{}]", allowed.join(",")));
            }
            Next::Part(part, _) => {
                prop_assert!(errors > 0);
                prop_assert_eq!(part, format!("[{}]", allowed.join(",")));
            }
        }
    }
}
