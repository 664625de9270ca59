//! `tether backup`.
//!
//! With a passphrase the agent seals what it sends: what comes out of it, and what is in this process, is encrypted.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::Context;
use super::args::BackupArgs;
use super::failure::{Exit, Failure};
use crate::api::admin::{About, piece};
use crate::authority::keys::KeyStore;
use crate::base::archive::{Archive, Sealer};
use crate::base::durable;
use crate::base::entropy::Entropy;
use crate::base::secret::Secret;
use crate::base::text::chain;
use crate::proto::admin::{BackupRequest, BackupSealing};
use crate::sys::harden::Hardening;

/// The largest passphrase.
const LONGEST_PASSPHRASE: u64 = 4096;
/// What nobody should be able to guess has at least so many characters.
const SHORTEST_PASSPHRASE: usize = 16;

#[derive(Serialize)]
struct BackupDocument {
    file: PathBuf,
    bytes: usize,
    #[serde(flatten)]
    about: About,
}

pub(super) async fn run(args: BackupArgs, context: &mut Context) -> Result<(), Failure> {
    Hardening::of_command();
    must_be_for_a_file(&args.file)?;
    let passphrase = args.passphrase_file.as_deref().map(passphrase).transpose()?;
    let sealer = passphrase.map(|passphrase| Sealer::of_passphrase(&passphrase, &Entropy::system()));
    let sealing = sealer.as_ref().map(|sealer| BackupSealing {
        salt: sealer.salt().to_vec().into(),
        rounds: sealer.rounds(),
        key: sealer.key().expose().to_vec().into(),
    });
    let admin = context.admin()?;
    let mut chunks = admin.answer(admin.agent().backup(BackupRequest { sealing })).await?;
    let mut content = Vec::new();
    while let Some(chunk) = admin.answer(async { chunks.message().await.map(tonic::Response::new) }).await? {
        content.extend_from_slice(&chunk.content);
    }
    let content = Secret::new(content);
    let archive = match &sealer {
        Some(sealer) => Archive::unseal(content.expose(), sealer),
        None => Archive::read(content.expose(), None),
    };
    let damaged = |why: String| Failure::new(Exit::Failure, format!("what the agent sent is not a backup: {why}"));
    let archive = archive.map_err(|error| damaged(error.to_string()))?;
    let (about, _) = about(&archive).map_err(damaged)?;
    let written = durable::replace(&args.file, content.expose(), 0o600);
    written.map_err(|error| Failure::new(Exit::Failure, chain(&error)))?;
    let bytes = content.expose().len();
    if context.output.is_json() {
        return context.json(&BackupDocument { file: args.file, bytes, about });
    }
    context.output.line(format!(
        "{}: {bytes} bytes, node {}, {}",
        args.file.display(),
        about.node,
        about.trust_domain
    ))?;
    if sealer.is_none() {
        let unwrapped = archive.below(piece::KEYS).any(|(_, key)| !KeyStore::is_wrapped(key));
        context.output.note(if unwrapped {
            "it holds the private keys of the authorities as they are: whoever reads it can sign for the trust domain"
        } else {
            "its keys need the key-wrapping key of this host: keep /etc/credstore.encrypted and what it is sealed to, or use \
             --passphrase-file for a backup that another host can read"
        });
    }
    Ok(())
}

/// A backup takes the place of what is there. That must not be a device or a pipe, which everybody else uses too.
fn must_be_for_a_file(path: &Path) -> Result<(), Failure> {
    if fs::symlink_metadata(path).is_ok_and(|meta| !meta.is_file()) {
        let path = path.display();
        let why = format!(
            "`{path}` is there and is no regular file, and a backup is written into a file alone: name one; with \
             --passphrase-file it is encrypted before it is written"
        );
        return Err(Failure::new(Exit::Usage, why));
    }
    Ok(())
}

/// What a backup says of itself, and when it was made; or why that cannot be used. What is printed of it later is what it
/// should be.
pub(super) fn about(archive: &Archive) -> Result<(About, OffsetDateTime), String> {
    let about: About =
        serde_json::from_str(archive.title()).map_err(|error| format!("it does not say what it is of: {error}"))?;
    if about.version != About::VERSION {
        let (version, made_by) = (about.version, about.agent_version);
        return Err(format!(
            "it was made by agent {made_by} in a form (version {version}) that this one does not know"
        ));
    }
    let made_at = OffsetDateTime::parse(&about.made_at, &Rfc3339);
    let made_at = made_at.map_err(|_| "it does not say when it was made".to_owned())?;
    let is_node = about.node.len() == 32 && about.node.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if is_node { Ok((about, made_at)) } else { Err("it does not say of which node it is".to_owned()) }
}

/// The content of a file, without the newline an editor leaves at its end.
pub(super) fn passphrase(path: &Path) -> Result<Secret<Vec<u8>>, Failure> {
    let usage = |why: String| Failure::new(Exit::Usage, why);
    // A pipe is between those who have it.
    let open = fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.mode() & 0o077 != 0);
    if open {
        let path = path.display();
        return Err(usage(format!(
            "others than its owner may open `{path}`: run chmod 0600 on it, and use another passphrase if they did"
        )));
    }
    let mut content = durable::read(path, LONGEST_PASSPHRASE).map_err(|error| usage(chain(&error)))?;
    while content.last().is_some_and(|byte| matches!(byte, b'\n' | b'\r')) {
        content.pop();
    }
    let content = Secret::new(content);
    if content.expose().len() < SHORTEST_PASSPHRASE {
        return Err(usage(format!(
            "the passphrase has fewer than {SHORTEST_PASSPHRASE} characters: whoever has the backup can \
            guess as often as they like"
        )));
    }
    Ok(content)
}
