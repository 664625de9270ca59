//! `tether restore`.
//!
//! Nothing is put in place before all of it was read, checked and written beside the state; what was there is kept aside. No
//! agent runs meanwhile: the state directory is taken. What was issued is not restored: it is not known what of it was
//! revoked since, so all of it has ended, and another CA signs. Authorities that the audit log knows to be revoked stay so.

mod place;
mod since;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::unistd::{Gid, Uid, User, setgroups, setresgid, setresuid};
use serde::Serialize;
use time::OffsetDateTime;

use self::since::Since;
use super::args::RestoreArgs;
use super::backup::{about, passphrase};
use super::failure::{Exit, Failure};
use super::{Context, config};
use crate::api::admin::{About, piece};
use crate::authority::keys::KeyStore;
use crate::authority::slot::{Kind, Slot, State};
use crate::base::archive::Archive;
use crate::base::secret::Secret;
use crate::base::text::chain;
use crate::base::{durable, ownership};
use crate::config::Config;
use crate::store::{Image, Space};
use crate::sys::harden::Hardening;
use crate::trust;

/// The largest backup that is read.
const LARGEST: u64 = 8 << 30;

#[derive(Serialize)]
struct RestoreDocument<'a> {
    about: &'a About,
    state_dir: &'a Path,
    /// Whose it is, by uid.
    owner: u32,
    /// What was there before; several after a restore that was interrupted.
    former_states: &'a [PathBuf],
    /// The CAs that sign no more.
    retired_authorities: &'a [String],
    /// The authorities that were revoked since, and are not restored.
    revoked_authorities: &'a [Revoked],
    #[serde(flatten)]
    since: &'a Since,
}

pub(super) fn run(args: RestoreArgs, context: &mut Context) -> Result<(), Failure> {
    Hardening::of_command();
    let passphrase = args.passphrase_file.as_deref().map(passphrase).transpose()?;
    let config = config::source(args.config, &context.host)?.load()?.config;
    let content = durable::read(&args.file, LARGEST).map_err(|error| Failure::new(Exit::Usage, chain(&error)))?;
    let content = Secret::new(content);
    let refused = |why: String| Failure::new(Exit::Invalid, format!("`{}`: {why}", args.file.display()));
    let archive = Archive::read(content.expose(), passphrase.as_ref()).map_err(|error| refused(error.to_string()))?;
    let (about, made_at) = about(&archive).map_err(refused)?;
    if about.trust_domain != config.trust_domain.as_str() {
        return Err(refused(format!(
            "it is a backup of trust domain `{}`, and the configuration says `{}`",
            about.trust_domain, config.trust_domain
        )));
    }
    let mut checked = Checked::of(&archive, &about, context.host.now()).map_err(refused)?;

    let (state, owner) = become_owner_of(&config)?;
    let taken = durable::take(&state, true).map_err(|error| failed(chain(&error)))?;
    let _taken = taken.ok_or_else(|| {
        failed(
            "the agent runs: stop it first, and the sockets that would start it again: `systemctl stop tether-agent.socket \
             tether-agent-admin.socket tether-agent.service`"
                .to_owned(),
        )
    })?;
    let log = config.audit_log();
    let since = since::look(&log, made_at).map_err(|error| chain(&error));
    let since = since.unwrap_or_else(Since::unknown);
    checked.leave_out(&since.revoked);
    let since = since.that_are_in(&checked.image);
    let placed = place::put(&state, &log, &archive, &checked, &about);
    let former_states = placed.map_err(|error| failed(chain(&error)))?;

    if context.output.is_json() {
        context.json(&RestoreDocument {
            about: &about,
            state_dir: &state,
            owner: owner.as_raw(),
            former_states: &former_states,
            retired_authorities: &checked.retired,
            revoked_authorities: &checked.revoked,
            since: &since,
        })?;
    } else {
        let (state, owner) = (state.display(), name_of(owner));
        let (node, made_at) = (&about.node, &about.made_at);
        context.output.line(format!("restored to {state} of {owner}: node {node}, as of {made_at}"))?;
        for former in &former_states {
            context.output.line(format!(
                "what was there before: {}, keys and all; remove it when it is of no use",
                former.display()
            ))?;
        }
    }
    for note in notes(&checked, &since, &about, passphrase.is_some()) {
        context.output.note(&note);
    }
    Ok(())
}

/// What whoever restores must know.
fn notes(checked: &Checked, since: &Since, about: &About, is_sealed: bool) -> Vec<String> {
    let mut notes = Vec::new();
    if !is_sealed {
        notes.push(
            "Nothing shows who made this backup, as it is not sealed: whoever could write the file could put authorities of \
             their own into it. `tether authority show` names those it has."
                .to_owned(),
        );
    }
    notes.push(
        "Everything that was issued before has ended: it is not known what of it was revoked. Workloads get new documents when \
         they ask. Approvals and sessions are gone."
            .to_owned(),
    );
    for Revoked { id, kind } in &checked.revoked {
        notes.push(format!(
            "The {kind} authority {id} was revoked after the backup: it is left out, another takes its place."
        ));
    }
    for (what, command, names) in
        [("entry", "entry delete", &since.deleted_entries), ("bundle of", "bundle delete", &since.deleted_bundles)]
    {
        for name in names {
            notes.push(format!(
                "The {what} `{name}` was deleted after the backup and is back: `tether {command} {name}`."
            ));
        }
    }
    let unknown = since.unknown.as_ref().map(|why| format!(" (the audit log cannot be read: {why})"));
    notes.push(format!(
        "Authorities, entries and bundles are as they were then: what else was revoked or deleted since is back, as far as the \
         audit log here does not show it{}. Look through `tether authority show`, `tether entry list`, `tether bundle show`.",
        unknown.unwrap_or_default()
    ));
    let end = match &checked.root {
        Some(root) => format!("`tether authority revoke {root}` ends them at once, and replaces the root"),
        None => "another root ends them at once".to_owned(),
    };
    notes.push(format!(
        "X.509-SVIDs that were issued after {} are on no revocation list and good until they end: their CAs may be none that \
         this backup knows. {end}.",
        about.made_at
    ));
    notes.push("start the agent: `systemctl start tether-agent.service`".to_owned());
    notes
}

/// An authority of the backup that was revoked after it.
#[derive(Serialize)]
struct Revoked {
    id: String,
    kind: &'static str,
}

/// A backup that was looked through.
struct Checked {
    image: Image,
    /// The root that signs CAs.
    root: Option<String>,
    /// The CAs that signed.
    retired: Vec<String>,
    /// What is not restored.
    revoked: Vec<Revoked>,
}

impl Checked {
    /// Looks through it, and changes what must not come back.
    fn of(archive: &Archive, about: &About, now: OffsetDateTime) -> Result<Self, String> {
        let incomplete = |what: &str| format!("{what}: use another copy of it");
        let store = archive.piece(piece::STORE).ok_or_else(|| incomplete("it holds no store"))?;
        let mut image = Image::read(store).map_err(|error| format!("its store cannot be used: {error}"))?;
        let slots = slots(&image)?;
        let keys: BTreeSet<&str> = archive.below(piece::KEYS).map(|(id, _)| id).collect();
        if let Some(slot) = slots.iter().find(|slot| !keys.contains(slot.id.as_str())) {
            return Err(incomplete(&format!("the key of its authority `{}` is missing", slot.id)));
        }
        for (id, key) in archive.below(piece::KEYS) {
            KeyStore::check(id, key).map_err(|error| incomplete(&chain(&error)))?;
        }
        if let Some((name, _)) = archive.below(piece::LEDGER).find(|(name, _)| !is_file_name(name)) {
            return Err(incomplete(&format!("a file of the ledger cannot be called `{name}`")));
        }
        let mut retired = Vec::new();
        for slot in slots.into_iter().filter(|slot| slot.kind == Kind::X509Signing) {
            retired.push(slot.id.clone());
            let state = State::Retired { keep_until: slot.not_after };
            image.set(Space::Authorities, &slot.id.clone(), &Slot { state, ..slot });
        }
        // What was allowed once may have been used since.
        image.clear(Space::Approvals);
        trust::skip_sequences(&mut image, now).map_err(|error| format!("its store cannot be used: {error}"))?;
        if image.rows(Space::Node).all(|(_, value)| value != format!("\"{}\"", about.node).as_bytes()) {
            return Err(incomplete("its store is that of another node than it says"));
        }
        let root = active_root(&image)?;
        Ok(Self { image, root, retired, revoked: Vec::new() })
    }

    /// Takes out what was revoked: it stays revoked.
    fn leave_out(&mut self, revoked: &BTreeSet<String>) {
        for slot in slots(&self.image).unwrap_or_default().into_iter().filter(|slot| revoked.contains(&slot.id)) {
            self.image.remove(Space::Authorities, &slot.id);
            self.retired.retain(|id| *id != slot.id);
            self.root = self.root.take().filter(|root| *root != slot.id);
            self.revoked.push(Revoked { id: slot.id, kind: slot.kind.as_str() });
        }
    }

    /// Whether the key of this authority is restored.
    fn has_key(&self, id: &str) -> bool {
        self.revoked.iter().all(|revoked| revoked.id != id)
    }
}

fn slots(image: &Image) -> Result<Vec<Slot>, String> {
    let slot = |(id, row): (&str, &[u8])| {
        let slot: Result<Slot, _> = serde_json::from_slice(row);
        let slot = slot.map_err(|error| format!("its authority `{id}` cannot be read: {error}"))?;
        if slot.id == id { Ok(slot) } else { Err(format!("its authority `{id}` has another id in itself")) }
    };
    image.rows(Space::Authorities).map(slot).collect()
}

fn active_root(image: &Image) -> Result<Option<String>, String> {
    let roots = slots(image)?.into_iter().filter(|slot| slot.kind == Kind::X509Root && slot.state == State::Active);
    Ok(roots.map(|root| root.id).next())
}

/// One that stays in the directory it is put into.
fn is_file_name(name: &str) -> bool {
    Path::new(name).file_name().is_some_and(|last| last == name)
}

/// From here on the process is the user whose state it is: what it makes is that user's, and the agent can use it. Says where
/// the state is, and who that is.
fn become_owner_of(config: &Config) -> Result<(PathBuf, Uid), Failure> {
    let shown = config.state_dir.display();
    let meta = fs::symlink_metadata(&config.state_dir).map_err(|error| {
        failed(format!(
            "cannot look at the state directory `{shown}`: {error}; make it first: install -d -m 0700 -o tether -g tether {shown}"
        ))
    })?;
    if !meta.is_dir() {
        return Err(failed(format!("`{shown}` is no directory, and the state of an agent is in one: remove it")));
    }
    let (uid, gid, ours) = (Uid::from_raw(meta.uid()), Gid::from_raw(meta.gid()), Uid::effective());
    // Where an agent of one's own is, others may have been first.
    if uid != ours && config.dev {
        return Err(failed(format!(
            "`{shown}` belongs to uid {uid}, who would get the keys in the backup: name a directory of your own with --dir"
        )));
    }
    if uid != ours && !ours.is_root() {
        return Err(failed(format!("`{shown}` belongs to uid {uid}: run this as root")));
    }
    let real = ownership::unmovable(&config.state_dir, meta.uid());
    let real = real.map_err(|error| failed(format!("no keys are put into `{shown}`: {}", chain(&error))))?;
    if uid != ours {
        let became = setgroups(&[gid]).and_then(|()| setresgid(gid, gid, gid)).and_then(|()| setresuid(uid, uid, uid));
        became.map_err(|errno| failed(format!("cannot become uid {uid}, whose state it is: {errno}")))?;
        // Another user, another process: by default that is open to its user again.
        Hardening::of_command();
    }
    Ok((real, uid))
}

fn name_of(uid: Uid) -> String {
    let known = User::from_uid(uid).ok().flatten();
    known.map_or_else(|| format!("uid {uid}"), |user| user.name)
}

fn failed(why: String) -> Failure {
    Failure::new(Exit::Failure, why)
}
