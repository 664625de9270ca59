//! One policy: where it comes from, and what goes with its permission.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cedar_policy::Effect;

use super::question::Obligations;
use crate::audit::Event;

/// The longest id.
const MAX_ID: usize = 128;
/// The longest that a node's last word may be trusted for.
const MAX_STALE: Duration = Duration::from_secs(300);

/// Where a policy comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PolicyOrigin {
    /// It is part of the program.
    BuiltIn,
    /// A file.
    File {
        /// The file.
        path: Arc<Path>,
        /// The line where it begins, counted from 1.
        line: u32,
    },
}

/// `built-in`, or `FILE:LINE`.
impl fmt::Display for PolicyOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BuiltIn => f.write_str("built-in"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
        }
    }
}

/// One policy of a set.
#[derive(Clone, Debug)]
pub struct Rule {
    pub(super) id: Arc<str>,
    pub(super) origin: PolicyOrigin,
    pub(super) text: Arc<str>,
    pub(super) obligations: Obligations,
    pub(super) cedar: cedar_policy::Policy,
}

impl Rule {
    /// Its `@id`, or else its file's name and line.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Where it comes from.
    pub fn origin(&self) -> &PolicyOrigin {
        &self.origin
    }

    /// As it is written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether it forbids.
    pub fn forbids(&self) -> bool {
        self.cedar.effect() == Effect::Forbid
    }

    /// What goes with its permission.
    pub fn obligations(&self) -> &Obligations {
        &self.obligations
    }
}

/// The annotations of a policy, read. Otherwise each that is wrong, with its name and what to do.
///
/// An unknown one is a mistake: `@stepup` for `@step_up` must not open a door.
pub(super) fn obligations(policy: &cedar_policy::Policy) -> Result<Obligations, Vec<(String, String)>> {
    let (mut read, mut wrong) = (Obligations::default(), Vec::new());
    let forbids = policy.effect() == Effect::Forbid;
    for (name, value) in policy.annotations() {
        if let Err(why) = obligation(&mut read, name, value, forbids) {
            wrong.push((name.to_owned(), why));
        }
    }
    if wrong.is_empty() { Ok(read) } else { Err(wrong) }
}

fn obligation(read: &mut Obligations, name: &str, value: &str, forbids: bool) -> Result<(), String> {
    if name == "id" {
        return check_id(value);
    }
    if !matches!(name, "step_up" | "one_use" | "redact" | "stale" | "effect") {
        return Err(format!(
            "unknown annotation `@{name}`: known are @id, @step_up, @one_use, @redact, @stale and @effect; write a \
             comment for anything else"
        ));
    }
    if forbids {
        return Err(format!("`@{name}` goes with a permission: put it on a `permit`"));
    }
    match name {
        "step_up" if value.trim().is_empty() => {
            return Err("`@step_up` tells the approver why: write @step_up(\"sends mail to customers\")".to_owned());
        }
        "step_up" => read.step_up = Some(value.trim().to_owned()),
        "one_use" if !value.is_empty() => return Err("`@one_use` has no value: write @one_use".to_owned()),
        "one_use" => read.one_use = true,
        "effect" => {
            let effect = super::question::Effect::parse(value);
            read.effect = Some(effect.ok_or_else(|| {
                "`@effect` is what a call does: write @effect(\"read\"), (\"write\") or (\"irreversible\")".to_owned()
            })?);
        }
        "redact" => {
            for field in value.split(',').map(str::trim) {
                if !Event::is_redactable(field) {
                    return Err(format!(
                        "`@redact` names fields of audit records, and `{field}` is none that may be left out: \
                         docs/audit.md lists them"
                    ));
                }
                read.redact.insert(field.to_owned());
            }
        }
        _ => {
            let stale = crate::registry::parse_lifetime(value, MAX_STALE);
            read.stale = Some(stale.map_err(|why| format!("`@stale` is how old a node's last word may be: {why}"))?);
        }
    }
    Ok(())
}

fn check_id(id: &str) -> Result<(), String> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"._:/-".contains(&byte);
    if (1..=MAX_ID).contains(&id.len()) && id.bytes().all(legal) {
        return Ok(());
    }
    Err(format!("`@id` is 1 to {MAX_ID} letters, digits and any of . _ : / -, such as @id(\"mail.send\")"))
}

impl Obligations {
    /// Whether they ask for more than the permission alone: to lose them would open what they narrow.
    pub(super) fn narrow(&self) -> bool {
        self.step_up.is_some() || self.one_use || !self.redact.is_empty()
    }

    /// Adds those of another policy that permitted too.
    pub(super) fn also(&mut self, other: &Self) {
        if let Some(why) = &other.step_up {
            match &mut self.step_up {
                Some(known) if known.split("; ").any(|known| known == why) => {}
                Some(known) => {
                    known.push_str("; ");
                    known.push_str(why);
                }
                None => self.step_up = Some(why.clone()),
            }
        }
        self.one_use |= other.one_use;
        self.redact.extend(other.redact.iter().cloned());
        self.stale = [self.stale, other.stale].into_iter().flatten().min();
        self.effect = self.effect.max(other.effect);
    }
}
