//! `tether backup` and `tether restore`.
//!
//! A restore puts nothing in place before all of it was read, checked and written beside the state; what was there is kept
//! aside. While files change places there is a directory [`UNFINISHED`], with which no agent starts. What was issued is
//! not restored: it is not known what of it was revoked since, so all of it has ended, and another CA signs.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use serde::Serialize;

use super::args::{BackupArgs, RestoreArgs};
use super::failure::{Exit, Failure, chain};
use super::{Context, config};
use crate::agent::RESTORE_UNFINISHED as UNFINISHED;
use crate::api::admin::{About, piece};
use crate::audit;
use crate::authority::keys::KeyStore;
use crate::authority::slot::{Kind, Slot, State};
use crate::base::archive::Archive;
use crate::base::durable;
use crate::base::entropy::Entropy;
use crate::base::secret::Secret;
use crate::ledger;
use crate::proto::admin::BackupRequest;
use crate::store::{self, Image, Space};
use crate::trust;

/// The largest backup that is read.
const LARGEST: u64 = 8 << 30;
/// The largest passphrase.
const LONGEST_PASSPHRASE: u64 = 4096;
/// What nobody should be able to guess has at least so many characters.
const SHORTEST_PASSPHRASE: usize = 16;
/// What takes the place of what.
const REPLACED: &[&str] =
    &["store.redb", "store.copy", "store.unfinished", "keys", "ledger", "ledger.head", "sessions"];

#[derive(Serialize)]
struct BackupDocument {
    file: PathBuf,
    bytes: usize,
    #[serde(flatten)]
    about: About,
}

pub(super) async fn backup(args: BackupArgs, context: &mut Context) -> Result<(), Failure> {
    let passphrase = args.passphrase_file.as_deref().map(passphrase).transpose()?;
    let admin = context.admin()?;
    let request = BackupRequest { plain_keys: passphrase.is_some() };
    let mut chunks = admin.answer(admin.agent().backup(request)).await?;
    let mut content = Vec::new();
    while let Some(chunk) = admin.answer(async { chunks.message().await.map(tonic::Response::new) }).await? {
        content.extend_from_slice(&chunk.content);
    }
    let content = Secret::new(content);
    let damaged = |error| failed(format!("what the agent sent is not a backup: {}", chain(&error)));
    let archive = Archive::read(content.expose(), None).map_err(damaged)?;
    let about = about(&archive)?;
    let sealed = passphrase.map(|passphrase| Secret::new(archive.seal(&passphrase, &Entropy::system())));
    let content = sealed.unwrap_or(content);
    durable::replace(&args.file, content.expose(), 0o600).map_err(|error| failed(chain(&error)))?;
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
    if args.passphrase_file.is_none() {
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

#[derive(Serialize)]
struct RestoreDocument {
    about: About,
    state_dir: PathBuf,
    former_state: Option<PathBuf>,
    retired_authorities: Vec<String>,
}

pub(super) fn restore(args: RestoreArgs, context: &mut Context) -> Result<(), Failure> {
    let passphrase = args.passphrase_file.as_deref().map(passphrase).transpose()?;
    let config = config::source(args.config, &context.host)?.load()?.config;
    let content = durable::read(&args.file, LARGEST).map_err(|error| Failure::new(Exit::Usage, chain(&error)))?;
    let content = Secret::new(content);
    let refused = |why: String| Failure::new(Exit::Invalid, format!("`{}`: {why}", args.file.display()));
    let archive = Archive::read(content.expose(), passphrase.as_ref()).map_err(|error| refused(error.to_string()))?;
    let about = about(&archive)?;
    if about.trust_domain != config.trust_domain.as_str() {
        return Err(refused(format!(
            "it is a backup of trust domain `{}`, and the configuration says `{}`",
            about.trust_domain, config.trust_domain
        )));
    }
    let checked = Checked::of(&archive, &about).map_err(refused)?;

    let state = &config.state_dir;
    become_owner_of(state)?;
    if store::is_in_use(&state.join("store.redb")) {
        return Err(failed("the agent runs: stop it first (`systemctl stop tether-agent.service`)".to_owned()));
    }
    let placed = put_in_place(state, &config.audit_log(), &archive, &checked, &about);
    let former = placed.map_err(|error| failed(chain(error.as_ref())))?;

    if context.output.is_json() {
        let retired_authorities = checked.retired;
        let state_dir = state.clone();
        return context.json(&RestoreDocument { about, state_dir, former_state: former, retired_authorities });
    }
    context.output.line(format!("restored to {}: node {}, as of {}", state.display(), about.node, about.made_at))?;
    if let Some(former) = &former {
        context.output.line(format!(
            "what was there before: {}, keys and all; remove it when it is of no use",
            former.display()
        ))?;
    }
    context.output.note(
        "Everything that was issued before has ended: it is not known what of it was revoked. Workloads get new documents \
         when they ask. Entries, bundles and authorities are as they were then; approvals and sessions are gone.",
    );
    for id in &checked.retired {
        context.output.note(&format!(
            "CA {id} signs no more. Its certificates that are younger than the backup are on no revocation list and good \
             until they end: `tether authority revoke {id}` ends them at once, and replaces the root"
        ));
    }
    context.output.note("start the agent: `systemctl start tether-agent.service`");
    Ok(())
}

/// A backup that was looked through.
struct Checked {
    image: Image,
    /// The CAs that signed.
    retired: Vec<String>,
}

impl Checked {
    /// Looks through it, and changes what must not come back.
    fn of(archive: &Archive, about: &About) -> Result<Self, String> {
        let incomplete = |what: &str| format!("{what}: use another copy of it");
        let store = archive.piece(piece::STORE).ok_or_else(|| incomplete("it holds no store"))?;
        let mut image = Image::read(store).map_err(|error| format!("its store cannot be used: {error}"))?;
        let slot = |(id, row): (&str, &[u8])| {
            let slot: Result<Slot, _> = serde_json::from_slice(row);
            slot.map_err(|error| format!("its authority `{id}` cannot be read: {error}"))
        };
        let slots = image.rows(Space::Authorities).map(slot).collect::<Result<Vec<Slot>, _>>()?;
        let keys: BTreeSet<&str> = archive.below(piece::KEYS).map(|(id, _)| id).collect();
        if let Some(slot) = slots.iter().find(|slot| !keys.contains(slot.id.as_str())) {
            return Err(incomplete(&format!("the key of its authority `{}` is missing", slot.id)));
        }
        for (id, key) in archive.below(piece::KEYS) {
            KeyStore::check(id, key).map_err(|error| incomplete(&chain(&error)))?;
        }
        let mut retired = Vec::new();
        for slot in slots.into_iter().filter(|slot| slot.kind == Kind::X509Signing) {
            retired.push(slot.id.clone());
            let state = State::Retired { keep_until: slot.not_after };
            image.set(Space::Authorities, &slot.id.clone(), &Slot { state, ..slot });
        }
        // What was allowed once may have been used since.
        image.clear(Space::Approvals);
        trust::skip_sequences(&mut image).map_err(|error| format!("its store cannot be used: {error}"))?;
        if image.rows(Space::Node).all(|(_, value)| value != format!("\"{}\"", about.node).as_bytes()) {
            return Err(incomplete("its store is that of another node than it says"));
        }
        Ok(Self { image, retired })
    }
}

/// Writes the state beside the one that is there, and lets the two change places.
fn put_in_place(
    state: &Path,
    audit_log: &audit::Settings,
    archive: &Archive,
    checked: &Checked,
    about: &About,
) -> Result<Option<PathBuf>, Box<dyn std::error::Error>> {
    let unfinished = state.join(UNFINISHED);
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished)?;
    }
    durable::private_dir(state)?;
    durable::private_dir(&unfinished)?;
    store::restore(&unfinished.join("store.redb"), &checked.image)?;
    durable::private_dir(&unfinished.join("keys"))?;
    for (id, key) in archive.below(piece::KEYS) {
        durable::replace(&unfinished.join("keys").join(KeyStore::file_name(id)), key, 0o600)?;
    }
    let ledger = unfinished.join("ledger");
    durable::private_dir(&ledger)?;
    for (name, content) in archive.below(piece::LEDGER) {
        if name.contains('/') {
            return Err(format!("a file of the ledger cannot be called `{name}`").into());
        }
        durable::replace(&ledger.join(name), content, 0o600)?;
    }
    ledger::mark_restored(&ledger, &about.node)?;

    let aside = (1..).map(|number| state.join(format!("before-restore-{number}"))).find(|path| !path.exists());
    let aside = aside.unwrap_or_else(|| state.join("before-restore"));
    let replaced: Vec<&&str> = REPLACED.iter().filter(|name| state.join(name).exists()).collect();
    if !replaced.is_empty() {
        durable::private_dir(&aside)?;
    }
    for name in &replaced {
        durable::rename(&state.join(name), &aside.join(name))?;
    }
    for name in REPLACED.iter().filter(|name| unfinished.join(name).exists()) {
        durable::rename(&unfinished.join(name), &state.join(name))?;
    }
    // The log of this node goes on where it is; without one, after the last record there was.
    audit::set_aside_of_others(audit_log, &about.node, &aside)?;
    if let Some(content) = archive.piece(piece::AUDIT_HEAD).filter(|_| !audit_log.head.exists()) {
        durable::replace(&audit_log.head, content, 0o600)?;
    }
    fs::remove_dir_all(&unfinished)?;
    Ok(aside.exists().then_some(aside))
}

/// From here on the process is the user whose state it is: what it makes is that user's, and the agent can use it.
fn become_owner_of(state: &Path) -> Result<(), Failure> {
    let meta = fs::symlink_metadata(state).map_err(|error| {
        let state = state.display();
        failed(format!(
            "cannot look at the state directory `{state}`: {error}; make it first: install -d -m 0700 -o tether -g tether {state}"
        ))
    })?;
    let ours = Uid::effective();
    if meta.uid() == ours.as_raw() {
        return Ok(());
    }
    if !ours.is_root() {
        return Err(failed(format!("`{}` belongs to uid {}: run this as root", state.display(), meta.uid())));
    }
    let (uid, gid) = (Uid::from_raw(meta.uid()), Gid::from_raw(meta.gid()));
    let became = setgroups(&[gid]).and_then(|()| setresgid(gid, gid, gid)).and_then(|()| setresuid(uid, uid, uid));
    became.map_err(|errno| failed(format!("cannot become uid {uid}, whose state it is: {errno}")))
}

fn about(archive: &Archive) -> Result<About, Failure> {
    let about: About = serde_json::from_str(archive.title())
        .map_err(|error| Failure::new(Exit::Invalid, format!("the backup does not say what it is of: {error}")))?;
    if about.version != About::VERSION {
        let (version, made_by) = (about.version, about.agent_version);
        let why =
            format!("the backup was made by agent {made_by} in a form (version {version}) that this one does not know");
        return Err(Failure::new(Exit::Invalid, why));
    }
    Ok(about)
}

/// The content of a file, without the newline an editor leaves at its end.
fn passphrase(path: &Path) -> Result<Secret<Vec<u8>>, Failure> {
    let usage = |why: String| Failure::new(Exit::Usage, why);
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

fn failed(why: String) -> Failure {
    Failure::new(Exit::Failure, why)
}
