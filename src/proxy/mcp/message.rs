//! What a `POST` carries: one message, or a batch of them (2025-03-26 alone has batches).

use bytes::Bytes;
use http::{HeaderMap, StatusCode};

use super::answer::{Answer, Fault, Malformed, refusal, status};
use super::canonical::canonical;
use super::json::{self, Kind, Value};
use super::merge::Merge;
use super::{MAX_BODY, mirror};
use crate::base::text::is_hidden;
use crate::client::session::{Digest, Effect};
use crate::client::verifier::{Class, Refused, Rpc, RpcVerdict};

/// What policy is told of a response of the client, which has no method of its own.
const RESPONSE: &str = "response";
const TOOLS_CALL: &str = "tools/call";
/// Of a batch: as many as an agent decides at once.
const MAX_MESSAGES: usize = 64;
/// Of the names that policy is told.
const MAX_NAME: usize = 128;
/// Names that readers of messages go by, in the message and among its parameters.
const MESSAGE_NAMES: &[&str] = &["jsonrpc", "id", "method", "params", "result", "error"];
const PARAMETER_NAMES: &[&str] = &["name", "arguments", "uri", "_meta"];

/// What one `POST` carries, judged to be readable in one way only. At least one call, at most 64.
#[derive(Debug)]
pub struct Message {
    body: Bytes,
    batch: bool,
    calls: Vec<Call>,
}

/// One message: a request, a notification, or a response to what the server asked.
#[derive(Debug)]
struct Call {
    /// Exactly as it was written.
    text: Bytes,
    /// Of a request, as it was written: somebody waits for an answer.
    id: Option<String>,
    method: String,
    /// Of `tools/call`: the tool and the digest of its arguments.
    tool: Option<(String, Digest)>,
}

/// What becomes of a message when all its calls are decided.
#[derive(Debug)]
pub enum Next {
    /// These bytes go on, and the answer comes back as it is.
    Forward(Bytes),
    /// These bytes go on, which are a part of the batch, without `Accept-Encoding`; and the refusals come into the answer.
    Part(Bytes, Merge),
    /// Nothing goes on.
    Answer(Answer),
}

impl Message {
    /// Reads the body of a `POST` and the headers that speak of it.
    ///
    /// # Errors
    /// It is no message of MCP, or could be another one for another reader.
    pub fn read(headers: &HeaderMap, body: Bytes) -> Result<Self, Malformed> {
        let without_id = |fault| Malformed { id: None, fault };
        if body.len() > MAX_BODY {
            return Err(without_id(Fault::Large));
        }
        mirror::check_content(headers).map_err(without_id)?;
        let value = json::parse(&body).map_err(|error| without_id(Fault::Json(error)))?;
        let batch = match &value.kind {
            Kind::Array(elements) => Some(elements.as_slice()),
            _ => None,
        };
        let one = if batch.is_none() { Some(&value) } else { None };
        let with_id = |fault| Malformed { id: one.and_then(id), fault };
        let messages = batch.unwrap_or(std::slice::from_ref(&value));
        if messages.is_empty() || messages.len() > MAX_MESSAGES {
            return Err(without_id(Fault::Message("a batch has 1 to 64 messages")));
        }
        let calls = messages.iter().map(|message| Call::read(message, &body)).collect::<Result<Vec<_>, _>>();
        let calls = calls.map_err(with_id)?;
        let mut ids: Vec<&str> = calls.iter().filter_map(|call| call.id.as_deref()).collect();
        ids.sort_unstable();
        if ids.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(without_id(Fault::Message("two requests have the same id")));
        }
        mirror::check_mirrors(headers, one).map_err(with_id)?;
        let batch = batch.is_some();
        drop(value);
        Ok(Self { batch, calls, body })
    }

    /// What the agent is asked to decide, in the order of the message.
    pub fn rpcs(&self) -> Vec<Rpc> {
        self.calls.iter().map(Call::rpc).collect()
    }

    /// The call, where the message is one alone: what its proof is made for.
    pub fn only(&self) -> Option<Rpc> {
        let [call] = &self.calls[..] else { return None };
        Some(call.rpc())
    }

    /// What becomes of it, by one verdict for each of [`Self::rpcs`], in their order. Without a verdict nothing is allowed.
    pub fn after(&self, verdicts: &[RpcVerdict]) -> Next {
        if verdicts.len() != self.calls.len() {
            let reason = "unavailable".to_owned();
            return Next::Answer(self.refused(&Refused { class: Class::Unavailable, reason, approval: None }));
        }
        let (mut allowed, mut refused) = (Vec::new(), Vec::new());
        for (call, verdict) in self.calls.iter().zip(verdicts) {
            match verdict.refused() {
                None => allowed.push(&call.text[..]),
                Some(why) => refused.push((call, why)),
            }
        }
        let errors: Vec<String> = refused.iter().filter_map(|(call, why)| call.error(why)).collect();
        let Some((_, first)) = refused.first() else { return Next::Forward(self.body.clone()) };
        if allowed.is_empty() {
            return Next::Answer(self.answer(&errors, first));
        }
        let part = Bytes::from([b"[", &allowed.join(&b","[..])[..], b"]"].concat());
        if errors.is_empty() { Next::Forward(part) } else { Next::Part(part, Merge::new(&errors)) }
    }

    /// The answer when all of it is refused: because of who asks, or because it cannot be decided now; or a delegate may
    /// not prove it. Every request in it gets an error.
    pub fn refused(&self, why: &Refused) -> Answer {
        let errors: Vec<String> = self.calls.iter().filter_map(|call| call.error(why)).collect();
        self.answer(&errors, why)
    }

    fn answer(&self, errors: &[String], why: &Refused) -> Answer {
        let status = match why.class {
            // The call failed, and not the connection.
            Class::Forbidden | Class::StepUp if !errors.is_empty() => StatusCode::OK,
            _ => status(why),
        };
        let body = match errors {
            // Nobody waits for an answer: one that is for nobody, as MCP has it.
            [] => refusal(why, None, "the message"),
            [error] if !self.batch => error.clone(),
            errors => format!("[{}]", errors.join(",")),
        };
        Answer { status, body: body.into() }
    }
}

impl Call {
    fn read(message: &Value<'_>, body: &Bytes) -> Result<Self, Fault> {
        if !message.is_object() {
            return Err(Fault::Message("not an object"));
        }
        only_exact(message, MESSAGE_NAMES)?;
        if message.member("jsonrpc").and_then(Value::string) != Some("2.0") {
            return Err(Fault::Message("`jsonrpc` is not \"2.0\""));
        }
        let text = body.slice_ref(message.text.as_bytes());
        let has = |name| message.member(name).is_some();
        let Some(method) = message.member("method") else {
            return match (has("result"), has("error")) {
                (true, false) | (false, true) => Ok(Self { text, id: None, method: RESPONSE.to_owned(), tool: None }),
                _ => Err(Fault::Message("neither a request nor a response")),
            };
        };
        if has("result") || has("error") {
            return Err(Fault::Message("both a request and a response"));
        }
        let id = match message.member("id") {
            Some(_) => Some(id(message).ok_or(Fault::Message("`id` is neither a string nor an integer"))?),
            None => None,
        };
        let method = read_method(method)?;
        let params = message.member("params").filter(|params| !params.is_null());
        if params.is_some_and(|params| !params.is_object()) {
            return Err(Fault::Message("`params` is not an object"));
        }
        if let Some(params) = params {
            only_exact(params, PARAMETER_NAMES)?;
        }
        let tool = if method == TOOLS_CALL { Some(read_tool(params)?) } else { None };
        Ok(Self { text, id, method, tool })
    }

    fn rpc(&self) -> Rpc {
        let (tool, arguments) = self.tool.clone().unzip();
        Rpc { method: self.method.clone(), tool: tool.unwrap_or_default(), arguments, effect: self.effect() }
    }

    /// The error that whoever waits for an answer gets.
    fn error(&self, why: &Refused) -> Option<String> {
        let id = self.id.as_deref()?;
        let what = match &self.tool {
            Some((tool, _)) => format!("the tool `{tool}`"),
            None => format!("`{}`", self.method),
        };
        Some(refusal(why, Some(id), &what))
    }

    /// What is known without policy. A response answers what a call that was allowed has asked.
    fn effect(&self) -> Effect {
        match self.method.as_str() {
            TOOLS_CALL => Effect::ByMethod,
            "initialize"
            | "ping"
            | "server/discover"
            | "resources/read"
            | "prompts/get"
            | "completion/complete"
            | "subscriptions/listen"
            | "resources/subscribe"
            | "resources/unsubscribe"
            | "tasks/get"
            | "tasks/result"
            | RESPONSE => Effect::Read,
            other if other.ends_with("/list") || other.starts_with("notifications/") => Effect::Read,
            _ => Effect::Write,
        }
    }
}

/// The id of a request, as it was written. JSON-RPC discourages fractions, and MCP has neither them nor `null`.
fn id(message: &Value<'_>) -> Option<String> {
    let id = message.member("id")?;
    let good = match id.kind {
        Kind::String(_) => true,
        Kind::Number => id.text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-'),
        _ => false,
    };
    good.then(|| id.text.to_owned())
}

fn read_method(method: &Value<'_>) -> Result<String, Fault> {
    let method = method.string().ok_or(Fault::Message("`method` is not a string"))?;
    if method.is_empty() || method.len() > MAX_NAME || !method.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Fault::Message("`method` is not 1 to 128 printable characters of ASCII without spaces"));
    }
    if method != TOOLS_CALL && method.eq_ignore_ascii_case(TOOLS_CALL) {
        return Err(Fault::Message("`method` looks like `tools/call`, and is not"));
    }
    Ok(method.to_owned())
}

fn read_tool(params: Option<&Value<'_>>) -> Result<(String, Digest), Fault> {
    let name = params.and_then(|params| params.member("name")).and_then(Value::string);
    let name = name.ok_or(Fault::Call("`name` is not a string"))?;
    if name.is_empty() || name.len() > MAX_NAME || name.chars().any(is_hidden) {
        return Err(Fault::Call("`name` is not 1 to 128 bytes of characters that show"));
    }
    let arguments = params.and_then(|params| params.member("arguments")).filter(|arguments| !arguments.is_null());
    let canonical = match arguments {
        // No arguments are no arguments, however a client writes that.
        None => "{}".to_owned(),
        Some(arguments) if arguments.is_object() => canonical(arguments)
            .map_err(|_| Fault::Call("`arguments` has a number that a double does not keep: send it as a string"))?,
        Some(_) => return Err(Fault::Call("`arguments` is not an object")),
    };
    Ok((name.to_owned(), Digest::of(canonical.as_bytes())))
}

/// That no member's name is one of these but for upper and lower case: some readers would take it for that.
fn only_exact(object: &Value<'_>, names: &[&str]) -> Result<(), Fault> {
    let folded = |c| match c {
        // The two letters beyond ASCII that fold to one of it, as those readers do it.
        'ſ' => 's',
        '\u{212a}' => 'k',
        other => other.to_ascii_lowercase(),
    };
    let looks_alike =
        |name: &str| names.iter().any(|known| name != *known && name.chars().map(folded).eq(known.chars()));
    if object.members().iter().any(|(name, _)| looks_alike(name)) {
        return Err(Fault::Message("a name differs from one of the protocol's by upper and lower case alone"));
    }
    Ok(())
}
