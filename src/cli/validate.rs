//! `tether validate`: the agent's word on a document.

use std::path::Path;

use serde::Serialize;
use serde_json::Value;
use time::OffsetDateTime;

use crate::client::{ClientError, ValidatedJwt};

use super::failure::{Exit, Failure};
use super::output::{relative, time};
use super::{Context, within};

#[derive(Serialize)]
struct Document<'a> {
    spiffe_id: String,
    claims: &'a serde_json::Map<String, Value>,
}

pub(super) async fn jwt(audience: &str, token: &str, context: &mut Context) -> Result<(), Failure> {
    let token = match token {
        "-" => context.host.read(Path::new("-"))?,
        token => token.to_owned(),
    };
    let api = context.workload_api()?;
    let valid = match within(api.validate_jwt(audience, token.trim()), api.endpoint()).await? {
        Err(ClientError::Invalid(why)) => {
            return Err(Failure::new(Exit::Invalid, format!("the token is not valid for `{audience}`: {why}")));
        }
        other => other?,
    };
    if context.output.is_json() {
        return context.json(&Document { spiffe_id: valid.id.to_string(), claims: &valid.claims });
    }
    print(&valid, context)
}

fn print(valid: &ValidatedJwt, context: &mut Context) -> Result<(), Failure> {
    let now = context.host.now();
    let mut fields = vec![("SPIFFE ID", valid.id.to_string())];
    for (name, value) in &valid.claims {
        let at = value.as_i64().and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
        match (name.as_str(), at) {
            ("sub", _) => {}
            ("exp" | "iat" | "nbf", Some(at)) => fields.push((name, format!("{} ({})", time(at), relative(at, now)))),
            _ => fields.push((name, shown(value))),
        }
    }
    Ok(context.output.fields(&fields)?)
}

fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(shown).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}
