//! `tether fetch wit`.

use std::path::Path;

use serde::Serialize;
use time::OffsetDateTime;

use super::{DIRECTORY, PRIVATE, PUBLIC, chosen, exposed, note_others, retry_or_fail};
use crate::base::durable;
use crate::base::secret::Secret;
use crate::cli::args::Delivery;
use crate::cli::failure::Failure;
use crate::cli::output::{relative, time};
use crate::cli::{Context, within};
use crate::client::WitSvid;
use crate::id::SpiffeId;
use crate::wit::Confirmation;

pub(super) async fn run(wanted: Option<&SpiffeId>, delivery: &Delivery, context: &mut Context) -> Result<(), Failure> {
    let api = context.workload_api()?;
    let mut watch = api.watch_wit();
    loop {
        let update = if delivery.watch { watch.next().await } else { within(watch.next(), api.endpoint()).await? };
        match update {
            Ok(svids) => deliver(&chosen(svids, wanted, |svid| &svid.id)?, delivery, context)?,
            Err(error) => retry_or_fail(error, delivery, context)?,
        }
        if !delivery.watch {
            return Ok(());
        }
    }
}

fn deliver(svids: &[WitSvid], delivery: &Delivery, context: &mut Context) -> Result<(), Failure> {
    let now = context.host.now();
    match &delivery.write {
        Some(dir) => write(svids, dir, context),
        None if context.output.is_json() => {
            context.json(&Document { svids: svids.iter().map(SvidDocument::new).collect() })
        }
        None => print(svids, now, context),
    }
}

#[derive(Serialize)]
struct Document<'a> {
    svids: Vec<SvidDocument<'a>>,
}

#[derive(Serialize)]
struct SvidDocument<'a> {
    spiffe_id: String,
    hint: Option<&'a str>,
    wit_svid: &'a str,
    #[serde(serialize_with = "exposed")]
    wit_svid_key: &'a Secret<String>,
    expires_at: String,
}

impl<'a> SvidDocument<'a> {
    fn new(svid: &'a WitSvid) -> Self {
        Self {
            spiffe_id: svid.id.to_string(),
            hint: svid.hint.as_deref(),
            wit_svid: &svid.token,
            wit_svid_key: &svid.key_jwk,
            expires_at: time(svid.expires_at),
        }
    }
}

fn print(svids: &[WitSvid], now: OffsetDateTime, context: &mut Context) -> Result<(), Failure> {
    for (i, svid) in svids.iter().enumerate() {
        if i > 0 {
            context.output.line("")?;
        }
        let mut fields = vec![("SPIFFE ID", svid.id.to_string())];
        fields.extend(svid.hint.iter().map(|hint| ("hint", hint.clone())));
        fields.extend([
            ("expires", format!("{} ({})", time(svid.expires_at), relative(svid.expires_at, now))),
            ("key", key(&svid.confirmation)),
        ]);
        context.output.fields(&fields)?;
    }
    context.output.note("to use them: `tether fetch wit --write DIR` for files, `--output json` for programs");
    Ok(())
}

/// Algorithm and thumbprint (RFC 7638).
fn key(confirmation: &Confirmation) -> String {
    format!("{} {}", confirmation.algorithm().name(), confirmation.key().thumbprint())
}

/// Writes the default identity: the first one.
fn write(svids: &[WitSvid], dir: &Path, context: &mut Context) -> Result<(), Failure> {
    let Some(svid) = svids.first() else { return Ok(()) };
    durable::shared_dir(dir, DIRECTORY)?;
    durable::replace(&dir.join("wit_svid_key.json"), svid.key_jwk.expose().as_bytes(), PRIVATE)?;
    durable::replace(&dir.join("wit_svid.token"), svid.token.as_bytes(), PUBLIC)?;
    context.output.note(&format!(
        "wrote wit_svid.token and wit_svid_key.json of `{}` to `{}`; together they work for whoever reads them until {}",
        svid.id,
        dir.display(),
        time(svid.expires_at),
    ));
    note_others(svids.len(), context);
    Ok(())
}
