//! `tether prove`: the headers of one request, made by the agent from its method and URI.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{Context as Digest, SHA256};
use serde::Serialize;

use crate::proto::session::prove_request::Scheme;
use crate::proto::session::{Effect, ProveRequest};

use super::args::{EffectName, ProveArgs, SchemeName};
use super::failure::{Exit, Failure};
use super::{Context, Host, session};

/// Files are read in pieces of this size: a body may be larger than memory.
const PIECE: usize = 64 << 10;

#[derive(Serialize)]
struct Document<'a> {
    headers: BTreeMap<&'a str, &'a str>,
    expires_at: &'a str,
    session: Option<&'a str>,
    txn: Option<&'a str>,
}

pub(super) async fn run(args: ProveArgs, context: &mut Context) -> Result<(), Failure> {
    let inputs = [&args.arguments_file, &args.body_file, &args.access_token_file];
    if inputs.into_iter().flatten().filter(|file| file.as_path() == Path::new("-")).count() > 1 {
        return Err(Failure::new(Exit::Usage, "standard input can be read once: give a file for the others"));
    }
    let digest = |file: &Option<PathBuf>, host: &mut Host| match file {
        Some(file) => sha256(file, host),
        None => Ok(Vec::new()),
    };
    let arguments_sha256 = digest(&args.arguments_file, &mut context.host)?;
    let body_sha256 = digest(&args.body_file, &mut context.host)?;
    let access_token = match &args.access_token_file {
        Some(file) => context.host.read(file)?.trim().to_owned(),
        None => String::new(),
    };
    let scheme = match args.scheme {
        SchemeName::Wpt => Scheme::Wpt,
        SchemeName::Dpop => Scheme::Dpop,
    };
    let effect = match args.effect {
        None => Effect::Unspecified,
        Some(EffectName::Read) => Effect::Read,
        Some(EffectName::Write) => Effect::Write,
        Some(EffectName::Irreversible) => Effect::Irreversible,
    };
    let sessions = context.sessions()?;
    let session =
        if args.no_session { String::new() } else { session::named(args.session, &sessions, context).await? };
    let request = ProveRequest {
        scheme: scheme.into(),
        method: args.method,
        uri: args.uri,
        body_sha256: body_sha256.into(),
        access_token,
        nonce: args.nonce.unwrap_or_default(),
        session,
        without_session: args.no_session,
        tool: args.tool.unwrap_or_default(),
        arguments_sha256: arguments_sha256.into(),
        effect: effect.into(),
        txn: args.txn.unwrap_or_default(),
        ..ProveRequest::default()
    };
    let proven = sessions.answer(sessions.client().prove(request)).await?;
    let unless_empty = |text| Some(text).filter(|text: &&str| !text.is_empty());
    context.json(&Document {
        headers: proven.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect(),
        expires_at: &proven.expires_at,
        session: unless_empty(&proven.session),
        txn: unless_empty(&proven.txn),
    })
}

/// The digest of a file, or of standard input for `-`, as bytes.
pub(super) fn sha256(path: &Path, host: &mut Host) -> Result<Vec<u8>, Failure> {
    let failure =
        |error: std::io::Error| Failure::new(Exit::Usage, format!("cannot read `{}`: {error}", path.display()));
    let mut file;
    let input: &mut dyn Read = if path == Path::new("-") {
        &mut host.input
    } else {
        file = std::fs::File::open(path).map_err(failure)?;
        &mut file
    };
    let (mut digest, mut piece) = (Digest::new(&SHA256), vec![0; PIECE]);
    loop {
        match input.read(&mut piece) {
            Ok(0) => return Ok(digest.finish().as_ref().to_vec()),
            Ok(read) => digest.update(&piece[..read]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failure(error)),
        }
    }
}
