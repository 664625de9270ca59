//! `tether verify`: asks the agent about one request, as a tool would.

use std::collections::HashMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::client::{ClientError, with_header};
use crate::proto::session::verifier_client::VerifierClient;
use crate::proto::session::{CheckRequest, CheckResponse, Effect};

use super::args::{EffectName, VerifyArgs};
use super::failure::{Exit, Failure};
use super::prove::sha256;
use super::{Context, within};

/// What `tether prove` prints, of which the headers count; or the headers alone.
#[derive(Deserialize)]
#[serde(untagged)]
enum Input {
    Printed { version: u32, headers: HashMap<String, String> },
    Bare(HashMap<String, String>),
}

#[derive(Serialize)]
struct Document<'a> {
    active: bool,
    spiffe_id: Option<&'a str>,
    user: Option<&'a str>,
    purpose: Option<&'a str>,
    session: Option<&'a str>,
    binding: Option<u32>,
    reason: Option<&'a str>,
    scopes: &'a [String],
    txn: Option<&'a str>,
    delegated_by: &'a [String],
    expires_at: Option<&'a str>,
    approval: Option<&'a str>,
}

pub(super) async fn run(args: VerifyArgs, context: &mut Context) -> Result<(), Failure> {
    let headers = headers(&context.host.read(Path::new("-"))?)?;
    let digest = |file: &Option<std::path::PathBuf>, context: &mut Context| match file {
        Some(file) if file == Path::new("-") => {
            Err(Failure::new(Exit::Usage, "the headers are read from standard input: give a file"))
        }
        Some(file) => sha256(file, &mut context.host),
        None => Ok(Vec::new()),
    };
    let request = CheckRequest {
        method: args.method,
        uri: args.uri,
        headers,
        body_sha256: digest(&args.body_file, context)?.into(),
        tool: args.tool.unwrap_or_default(),
        arguments_sha256: digest(&args.arguments_file, context)?.into(),
        effect: match args.effect {
            None => Effect::Unspecified,
            Some(EffectName::Read) => Effect::Read,
            Some(EffectName::Write) => Effect::Write,
            Some(EffectName::Irreversible) => Effect::Irreversible,
        }
        .into(),
        scopes: args.scopes,
        min_binding: args.min_binding,
        require_session: args.require_session,
        ..CheckRequest::default()
    };
    let sessions = context.sessions()?;
    let mut verifier = VerifierClient::new(with_header(sessions.channel.clone()));
    let answer = within(verifier.check(request), &sessions.endpoint).await?;
    let answer = answer.map_err(|status| ClientError::from_status(&sessions.endpoint, &status))?.into_inner();
    print(&answer, context)?;
    // Everything was said.
    if answer.active { Ok(()) } else { Err(Failure::silent(Exit::Invalid)) }
}

/// The headers in the input; a header is one text.
fn headers(text: &str) -> Result<HashMap<String, String>, Failure> {
    let wrong =
        |why: String| Failure::new(Exit::Usage, format!("standard input is not what `tether prove` prints: {why}"));
    let value: Value = serde_json::from_str(text).map_err(|error| wrong(error.to_string()))?;
    match serde_json::from_value(value) {
        Ok(Input::Printed { version: 1, headers }) | Ok(Input::Bare(headers)) => Ok(headers),
        Ok(Input::Printed { version, .. }) => Err(wrong(format!("its version is {version}, not 1"))),
        Err(_) => Err(wrong("it has no `headers` that are texts".to_owned())),
    }
}

/// Programs read it, unless a person is looking.
fn print(answer: &CheckResponse, context: &mut Context) -> Result<(), Failure> {
    let unless_empty = |text| Some(text).filter(|text: &&str| !text.is_empty());
    if context.output.is_json() || !context.output.is_terminal() {
        return context.json(&Document {
            active: answer.active,
            spiffe_id: unless_empty(&answer.spiffe_id),
            user: unless_empty(&answer.user),
            purpose: unless_empty(&answer.purpose),
            session: unless_empty(&answer.session),
            binding: answer.active.then_some(answer.binding),
            reason: unless_empty(&answer.reason),
            scopes: &answer.scopes,
            txn: unless_empty(&answer.txn),
            delegated_by: &answer.delegated_by,
            expires_at: unless_empty(&answer.expires_at),
            approval: unless_empty(&answer.approval),
        });
    }
    let mut fields = vec![("active", if answer.active { "yes" } else { "no" }.to_owned())];
    let told = [
        ("reason", &answer.reason),
        ("approval", &answer.approval),
        ("SPIFFE ID", &answer.spiffe_id),
        ("user", &answer.user),
        ("purpose", &answer.purpose),
        ("session", &answer.session),
        ("transaction", &answer.txn),
        ("proof ends", &answer.expires_at),
    ];
    fields.extend(told.into_iter().filter(|(_, text)| !text.is_empty()).map(|(name, text)| (name, text.clone())));
    if !answer.scopes.is_empty() {
        fields.push(("scopes", answer.scopes.join(" ")));
    }
    if !answer.delegated_by.is_empty() {
        fields.push(("delegated by", answer.delegated_by.join(", ")));
    }
    if answer.active {
        fields.push(("binding", answer.binding.to_string()));
    }
    Ok(context.output.fields(&fields)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_prove_prints_is_read_and_so_are_headers_alone() {
        let expected = HashMap::from([("Authorization".to_owned(), "WPT x".to_owned())]);
        for text in [
            r#"{"version":1,"headers":{"Authorization":"WPT x"},"expires_at":"2026-01-01T00:00:00Z","session":null}"#,
            r#"{"Authorization":"WPT x"}"#,
        ] {
            assert_eq!(headers(text).unwrap(), expected, "{text}");
        }
        for text in [
            "",
            "[]",
            "\"x\"",
            r#"{"version":2,"headers":{}}"#,
            r#"{"version":1,"headers":{"Authorization":["a","b"]}}"#,
        ] {
            assert_eq!(headers(text).unwrap_err().exit, Exit::Usage, "{text}");
        }
    }
}
