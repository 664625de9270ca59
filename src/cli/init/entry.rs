//! The first identity of a host: for the programs of one user, so that there is something to fetch.

use std::path::PathBuf;

use nix::unistd::{Uid, User};

use super::{FILE_NAME, Outcome, PUBLIC, Step, put};
use crate::cli::Host;
use crate::cli::args::InitArgs;
use crate::cli::failure::{Exit, Failure};
use crate::config::Config;
use crate::id::SpiffeId;
use crate::registry::{self, EntryDraft, Mistake};

const HEAD: &str = "\
# Made by `tether init`, which does not touch it again: the first identity of this host, for all that one user runs. Change
# or remove it as you like. For JWT-SVIDs it needs the audiences they may have: audiences = [\"https://api.example.com\"]
";
/// Set by sudo(8): who called it.
const SUDO_UID: &str = "SUDO_UID";

/// What is to be done about the first entry.
pub(super) enum FirstEntry {
    /// Nothing, and why.
    None(Outcome, String),
    /// This text in this file.
    Wanted { path: PathBuf, text: String, spiffe_id: String, user: String },
}

/// Decides about the first entry, and finds out whether it can be.
pub(super) fn plan(args: &InitArgs, config: &Config, host: &Host) -> Result<FirstEntry, Failure> {
    if args.no_entry {
        return Ok(FirstEntry::None(Outcome::LeftOut, "not asked for".to_owned()));
    }
    let dir = host.path(&config.entries_dir);
    let path = dir.join(FILE_NAME);
    if path.exists() {
        let more = if args.user.is_some() { "; `tether entry create` makes more" } else { "" };
        return Ok(FirstEntry::None(Outcome::Kept, format!("{}{more}", path.display())));
    }
    // Where somebody has removed it after making others, it does not come back by itself.
    let is_entries = |name: std::ffi::OsString| name.to_str().is_some_and(|name| name.ends_with(".toml"));
    let has_entries =
        dir.read_dir().is_ok_and(|mut files| files.any(|file| file.is_ok_and(|f| is_entries(f.file_name()))));
    if args.user.is_none() && has_entries {
        let what = format!("there are entries in {}; --user NAME makes one more", dir.display());
        return Ok(FirstEntry::None(Outcome::Kept, what));
    }
    let user = user(args, host)?;
    let by_name = format!("spiffe://{}/user/{}", config.trust_domain, user.name);
    // A name that is no part of a SPIFFE ID is a number there.
    let (spiffe_id, template) = match SpiffeId::parse(&by_name) {
        Ok(_) => (by_name, "{unix.user}"),
        Err(_) => (format!("spiffe://{}/user/{}", config.trust_domain, user.uid), "{unix.uid}"),
    };
    let draft = EntryDraft {
        id: Some("init".to_owned()),
        spiffe_id: format!("spiffe://{}/user/{template}", config.trust_domain),
        matches: vec![format!("unix:uid:{}", user.uid)],
        owner: Some(args.owner.clone().unwrap_or_else(|| user.name.clone())),
        // So that it does not end with the command that fetched it: the unit of a shell is its login.
        bind: Some("unit".to_owned()),
        ..EntryDraft::default()
    };
    let text = format!("{HEAD}{}", draft.to_toml());
    let source = registry::Source::File(path.as_path().into());
    registry::parse_entries(&text, &source, &config.entry_rules()).map_err(refused)?;
    Ok(FirstEntry::Wanted { path, text, spiffe_id, user: user.name })
}

fn refused(mistakes: Vec<Mistake>) -> Failure {
    let mistakes: Vec<_> = mistakes.iter().map(|mistake| mistake.message.as_str()).collect();
    Failure::new(Exit::Usage, format!("the first entry cannot be: {}", mistakes.join("; ")))
}

struct Owner {
    uid: u32,
    name: String,
}

/// Whose programs it is for: who was named, else who called sudo, else root.
fn user(args: &InitArgs, host: &Host) -> Result<Owner, Failure> {
    let caller = host.variable(SUDO_UID).and_then(|uid| uid.parse().ok()).unwrap_or(0);
    let (found, named) = match &args.user {
        Some(name) => (User::from_name(name), format!("`{name}`")),
        None => (User::from_uid(Uid::from_raw(caller)), format!("with the user id {caller}")),
    };
    match found {
        Ok(Some(user)) => Ok(Owner { uid: user.uid.as_raw(), name: user.name }),
        Ok(None) => {
            Err(Failure::new(Exit::Usage, format!("there is no user {named}: name one with --user, or --no-entry")))
        }
        Err(errno) => Err(Failure::new(Exit::Failure, format!("cannot look up the user {named}: {errno}"))),
    }
}

impl FirstEntry {
    /// Puts it in place.
    pub(super) fn put(self) -> Result<Step, Failure> {
        let step = |outcome, what| Step { step: "first entry", outcome, what };
        match self {
            Self::None(outcome, why) => Ok(step(outcome, why)),
            Self::Wanted { path, text, spiffe_id, user } => {
                let is_new = put(&path, text.as_bytes(), PUBLIC, 0o755)?;
                let what = format!("`{spiffe_id}` for `{user}`, in {}", path.display());
                Ok(step(if is_new { Outcome::Made } else { Outcome::Kept }, what))
            }
        }
    }
}
