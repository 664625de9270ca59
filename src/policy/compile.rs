//! From the text of policies to a set: without a mistake, or not at all.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::thread;

use aws_lc_rs::digest::{Context as Sha256, SHA256};
use cedar_policy::{
    ActionConstraint, EntityUid, Policy as CedarPolicy, PolicyId, PolicySet as CedarSet, ValidationMode,
    ValidationWarning, Validator,
};
use miette::Diagnostic;

use super::facts::never_met;
use super::question::{Action, Obligations};
use super::rule::{PolicyOrigin, Rule, obligations};
use super::scan::{Statement, statements};
use super::set::{PolicySet, names};
use super::words::{ACTION_WORDS, CLASSIFY, REACH, READ_SCHEMA, SCHEMA, index_of};
use crate::base::entropy::hex;
use crate::base::mistake::{Lines, Mistake};

/// The most policies in one set.
pub const MAX_POLICIES: usize = 10_000;
/// What reading a policy of [`super::scan::MAX_OPERATORS`] needs, several times over. Only what is used is ever there.
const STACK_BYTES: usize = 64 << 20;

const ISSUE: &str = include_str!("built_in/00-issue.cedar");
const DEV: &str = include_str!("built_in/dev.cedar");

/// Which policies are there without any file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BuiltIn {
    /// `00-issue`: a process gets the identities that its entries give it.
    Issue,
    /// And `dev`, which permits everything else: for `--dev` alone.
    Dev,
}

impl BuiltIn {
    fn texts(self) -> &'static [&'static str] {
        match self {
            Self::Issue => &[ISSUE],
            Self::Dev => &[ISSUE, DEV],
        }
    }
}

/// The text of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyFile {
    /// Its path; its last part is in the ids of policies without `@id`.
    pub path: Arc<Path>,
    /// What is in it.
    pub text: String,
}

/// A good set, and what is allowed but probably not meant.
#[derive(Debug)]
pub struct Compiled {
    /// The set.
    pub set: PolicySet,
    /// Text that is read in another way than it looks.
    pub warnings: Vec<Mistake>,
}

/// The set of the built-in policies and those of these files; otherwise every mistake. Takes its time on a thread of its
/// own, because it needs much stack: not to be called on an async thread.
pub fn compile(built_in: BuiltIn, files: &[PolicyFile]) -> Result<Compiled, Vec<Mistake>> {
    with_stack(|| compile_here(built_in, files)).unwrap_or_else(|why| Err(vec![Mistake::whole(Path::new(""), why)]))
}

/// Does work on a thread with enough stack for the deepest policy there may be; otherwise says why not.
pub(super) fn with_stack<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, String> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("policies".to_owned()).stack_size(STACK_BYTES);
        let running = thread.spawn_scoped(scope, work);
        let running = running.map_err(|error| format!("no thread to read policies on: {error}"))?;
        running.join().map_err(|_| "BUG: reading the policies failed".to_owned())
    })
}

/// The set of the built-in policies alone.
pub(super) fn built_in(built_in: BuiltIn) -> PolicySet {
    compile_here(built_in, &[]).map(|compiled| compiled.set).expect("the built-in policies are tested")
}

fn compile_here(built_in: BuiltIn, files: &[PolicyFile]) -> Result<Compiled, Vec<Mistake>> {
    let mut reading = Reading::default();
    for text in built_in.texts() {
        reading.text(None, text);
    }
    for file in files {
        reading.text(Some(&file.path), &file.text);
    }
    if reading.rules.len() > MAX_POLICIES {
        let text = format!("{} policies; at most {MAX_POLICIES} are allowed", reading.rules.len());
        reading.mistakes.insert(Mistake::whole(Path::new(""), text));
    }
    reading.distinct();
    reading.validate();
    if !reading.mistakes.is_empty() {
        return Err(reading.mistakes.into_iter().collect());
    }
    let digest = digest(&reading.rules);
    let rules = reading.rules.into_iter().map(|read| read.rule).collect();
    Ok(Compiled { set: PolicySet::new(rules, digest, 0), warnings: reading.warnings.into_iter().collect() })
}

/// A policy that was read, and where.
struct Read<'a> {
    rule: Rule,
    place: Place<'a>,
}

/// Where a policy is.
#[derive(Clone)]
struct Place<'a> {
    path: Arc<Path>,
    lines: Arc<Lines<'a>>,
    start: usize,
}

impl Place<'_> {
    /// A mistake at an offset in the policy.
    fn mistake(&self, offset: usize, message: String) -> Mistake {
        let (line, column) = self.lines.position(self.start + offset);
        Mistake { path: self.path.clone(), line, column, message }
    }

    /// What Cedar says, where it says it, with its hint.
    fn diagnosed(&self, diagnostic: &dyn Diagnostic) -> Mistake {
        let labels: Vec<_> = diagnostic.labels().into_iter().flatten().collect();
        let offset = labels.first().map_or(0, miette::LabeledSpan::offset);
        let mut message = diagnostic.to_string();
        if let Some(expected) = labels.first().and_then(miette::LabeledSpan::label) {
            message = format!("{message}: {expected}");
        }
        if let Some(help) = diagnostic.help() {
            message = format!("{message}; {help}");
        }
        // The place says which policy it is.
        let message = match (message.find("for policy `"), message.find("`, ").or_else(|| message.find("`: "))) {
            (Some(from), Some(to)) if from < to => format!("{}{}", &message[..from], &message[to + 3..]),
            _ => message,
        };
        self.mistake(offset, one_line(&message))
    }
}

#[derive(Default)]
struct Reading<'a> {
    rules: Vec<Read<'a>>,
    mistakes: BTreeSet<Mistake>,
    warnings: BTreeSet<Mistake>,
}

impl<'a> Reading<'a> {
    fn text(&mut self, path: Option<&Arc<Path>>, text: &'a str) {
        let lines = Arc::new(Lines::new(text));
        for statement in statements(text) {
            let path = path.cloned().unwrap_or_else(|| Path::new("").into());
            let place = Place { path, lines: lines.clone(), start: statement.span.start };
            if let Err(mistakes) = self.policy(&place, &statement, text) {
                self.mistakes.extend(mistakes);
            }
        }
    }

    fn policy(&mut self, place: &Place<'a>, statement: &Statement, text: &'a str) -> Result<(), Vec<Mistake>> {
        let text = &text[statement.span.clone()];
        if let Some((at, why)) = statement.too_deep {
            return Err(vec![place.mistake(at - place.start, why.to_owned())]);
        }
        let (line, _) = place.lines.position(place.start);
        let (unnamed, origin) = match place.path.file_name() {
            Some(name) => {
                let origin = PolicyOrigin::File { path: place.path.clone(), line };
                (format!("{}:{line}", name.to_string_lossy()), origin)
            }
            None => ("built-in".to_owned(), PolicyOrigin::BuiltIn),
        };
        let parsed = CedarPolicy::parse(Some(PolicyId::new(&unnamed)), text);
        let parsed =
            parsed.map_err(|errors| -> Vec<Mistake> { errors.iter().map(|e| place.diagnosed(e)).collect() })?;
        let obligations = obligations(&parsed).map_err(|wrong| -> Vec<Mistake> {
            let at = |name: &str| text.find(&format!("@{name}")).unwrap_or(0);
            wrong.into_iter().map(|(name, why)| place.mistake(at(&name), why)).collect()
        })?;
        if obligations.step_up.is_some() && names(&parsed, &ACTION_WORDS[index_of(Action::Issue)]) {
            let message = "nobody can be asked about `issue`: put @step_up on a policy that names its actions, such as \
                           `action in Action::\"call\"`";
            return Err(vec![place.mistake(text.find("@step_up").unwrap_or(0), message.to_owned())]);
        }
        if obligations.step_up.is_some() && names(&parsed, &ACTION_WORDS[REACH]) {
            let message = "nobody can be asked about `reach`, which is outside any session: put @step_up on a policy of \
                           `action in Action::\"call\"`";
            return Err(vec![place.mistake(text.find("@step_up").unwrap_or(0), message.to_owned())]);
        }
        if let Err((name, why)) = classifies(&parsed, &obligations) {
            return Err(vec![place.mistake(text.find(name).unwrap_or(0), why.to_owned())]);
        }
        let never: Vec<Mistake> = parsed
            .entity_literals()
            .iter()
            .filter_map(|uid| Some(place.mistake(offset_of(text, uid), never_met(uid)?)))
            .collect();
        if !never.is_empty() {
            return Err(never);
        }
        let id = parsed.annotation("id").map_or(unnamed, ToOwned::to_owned);
        let cedar = parsed.new_id(PolicyId::new(&id));
        let rule = Rule { id: id.into(), origin, text: text.into(), obligations, cedar };
        self.rules.push(Read { rule, place: place.clone() });
        Ok(())
    }

    /// Every id that is used twice, at its second place with the first one named. Only the first stays.
    fn distinct(&mut self) {
        let mut first: HashMap<Arc<str>, PolicyOrigin> = HashMap::new();
        let mistakes = &mut self.mistakes;
        self.rules.retain(|read| {
            let Some(earlier) = first.get(&read.rule.id) else {
                first.insert(read.rule.id.clone(), read.rule.origin.clone());
                return true;
            };
            let id = &read.rule.id;
            let message = if read.rule.cedar.annotation("id").is_some() {
                format!("the id `{id}` is already used by the policy from {earlier}: give it another @id")
            } else {
                format!("the policy from {earlier} is called `{id}` too: give one of them an @id")
            };
            mistakes.insert(read.place.mistake(0, message));
            false
        });
    }

    /// Checks the policies against the schema.
    fn validate(&mut self) {
        let places: HashMap<&str, &Place<'_>> = self.rules.iter().map(|read| (&*read.rule.id, &read.place)).collect();
        let place = |id: &PolicyId| places.get(id.as_ref() as &str).copied();
        let set = match CedarSet::from_policies(self.rules.iter().map(|read| read.rule.cedar.clone())) {
            Ok(set) => set,
            Err(error) => {
                self.mistakes.insert(Mistake::whole(Path::new(""), one_line(&error.to_string())));
                return;
            }
        };
        let checked = Validator::new(READ_SCHEMA.clone()).validate(&set, ValidationMode::Strict);
        let mut wrong = HashSet::new();
        for error in checked.validation_errors() {
            wrong.insert(error.policy_id().clone());
            self.mistakes.extend(place(error.policy_id()).map(|place| place.diagnosed(error)));
        }
        for warning in checked.validation_warnings() {
            // What is wrong already need not be called impossible too.
            let Some(place) = place(warning.policy_id()).filter(|_| !wrong.contains(warning.policy_id())) else {
                continue;
            };
            match warning {
                ValidationWarning::ImpossiblePolicy(_) | ValidationWarning::InvalidActionApplication(_) => {
                    self.mistakes.insert(place.mistake(0, NEVER_APPLIES.to_owned()));
                }
                unusual => drop(self.warnings.insert(place.diagnosed(unusual))),
            }
        }
    }
}

/// `@effect` and `classify` go together, and with nothing else; otherwise where to look, and what to do.
fn classifies(policy: &CedarPolicy, obligations: &Obligations) -> Result<(), (&'static str, &'static str)> {
    let classify = &ACTION_WORDS[CLASSIFY].uid;
    let (named, alone) = match policy.action_constraint() {
        ActionConstraint::Any => (false, false),
        ActionConstraint::Eq(uid) => (uid == *classify, true),
        ActionConstraint::In(uids) => (uids.contains(classify), uids.len() == 1),
    };
    if named != obligations.effect.is_some() || named && !alone {
        let why = "says what a call does and permits nothing: write @effect(\"read\") permit (principal, action == \
                   Action::\"classify\", resource), and permit the call by a policy of its own";
        return Err((if obligations.effect.is_some() { "@effect" } else { "classify" }, why));
    }
    if named && (obligations.step_up.is_some() || obligations.one_use || !obligations.redact.is_empty()) {
        return Err(("@effect", "stands alone: other annotations go with the policies that permit the call"));
    }
    Ok(())
}

/// A policy that cannot apply was meant to do something, and does not: a `forbid` like that is an open door.
const NEVER_APPLIES: &str = "this policy never applies, whatever is asked: its condition cannot hold, or none of its \
                             actions is asked of such a principal and resource (`tether policy schema` shows which are; \
                             for calls write `action in Action::\"call\"`)";

/// Where a policy names an entity; its beginning if that cannot be found.
fn offset_of(text: &str, uid: &EntityUid) -> usize {
    let quoted = format!("\"{}\"", uid.id().as_ref() as &str);
    text.find(&quoted).unwrap_or(0)
}

fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// In the order of ids: the same policies have the same digest, however they are spread over files.
fn digest(rules: &[Read<'_>]) -> String {
    let mut sorted: Vec<&Rule> = rules.iter().map(|read| &read.rule).collect();
    sorted.sort_unstable_by(|a, b| a.id.cmp(&b.id));
    let mut sha256 = Sha256::new(&SHA256);
    let fields = sorted.iter().flat_map(|rule| [&*rule.id, &*rule.text]);
    for field in std::iter::once(SCHEMA).chain(fields) {
        // With its length, so that no two sets read the same.
        sha256.update(&(field.len() as u64).to_be_bytes());
        sha256.update(field.as_bytes());
    }
    hex(sha256.finish().as_ref())
}

#[cfg(test)]
mod tests;
