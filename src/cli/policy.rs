//! `tether policy`: policies checked, tested and explained.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use serde_json::Value as Json;
use toml::{Table, Value};

use crate::policy::{
    BuiltIn, Case, Compiled, DEFAULT_DIRECTORY, Expect, Explanation, PolicySet, SCHEMA, compile, explain, read_cases,
    read_paths,
};
use crate::proto::admin::{ExplainPolicyRequest, ShowPoliciesRequest};
use crate::registry::Mistake;

use super::Context;
use super::agent::Found;
use super::args::{CaseFields, ExplainPolicyArgs, PolicyCommand, PolicySource};
use super::failure::{Exit, Failure};
use super::output::{Text, Tone};

pub(super) fn run(command: PolicyCommand, context: &mut Context) -> Result<(), Failure> {
    match command {
        PolicyCommand::Check { paths, dev } => check(&paths, dev, context),
        PolicyCommand::Test { files, source } => test(&files, &source, context),
        PolicyCommand::Explain(args) => explain_case(*args, context),
        PolicyCommand::Show => context.wait(async |context| show(context).await),
        PolicyCommand::Schema => Ok(context.output.document(SCHEMA)?),
    }
}

#[derive(Serialize)]
struct CheckDocument {
    ok: bool,
    policies: usize,
    mistakes: Vec<Found>,
    warnings: Vec<Found>,
}

fn check(paths: &[PathBuf], dev: bool, context: &mut Context) -> Result<(), Failure> {
    let (policies, mistakes, warnings) = match compiled(paths, dev) {
        Ok(compiled) => (compiled.set.policies().len(), Vec::new(), compiled.warnings),
        Err(mistakes) => (0, mistakes, Vec::new()),
    };
    let found = |mistakes: Vec<Mistake>| mistakes.into_iter().map(Found::from).collect::<Vec<_>>();
    let (ok, count) = (mistakes.is_empty(), mistakes.len());
    let checked = CheckDocument { ok, policies, mistakes: found(mistakes), warnings: found(warnings) };
    if context.output.is_json() {
        context.json(&checked)?;
    } else {
        for mistake in &checked.mistakes {
            context.output.line(&mistake.to_string())?;
        }
        for warning in &checked.warnings {
            context.output.line(&format!("{warning} (warning)"))?;
        }
    }
    if !ok {
        return Err(Failure::new(Exit::Invalid, format!("{count} mistakes; an agent would not take these policies")));
    }
    context.output.note(&format!("{policies} policies are right, the built-in ones among them"));
    Ok(())
}

/// The set of these files and directories.
pub(super) fn compiled(paths: &[PathBuf], dev: bool) -> Result<Compiled, Vec<Mistake>> {
    compile(if dev { BuiltIn::Dev } else { BuiltIn::Issue }, &read_paths(paths)?)
}

/// The set that is asked without an agent.
fn offline(source: &PolicySource, context: &mut Context) -> Result<PolicySet, Failure> {
    let default = [PathBuf::from(DEFAULT_DIRECTORY)];
    let paths: &[PathBuf] = if source.paths.is_empty() && !source.dev { &default } else { &source.paths };
    compiled(paths, source.dev).map(|compiled| compiled.set).map_err(|mistakes| refused(&mistakes, context))
}

/// Shows mistakes and says that nothing was done because of them.
fn refused(mistakes: &[Mistake], context: &mut Context) -> Failure {
    for mistake in mistakes {
        context.output.note(mistake.to_string().trim());
    }
    Failure::new(Exit::Invalid, format!("{} mistakes; nothing was asked", mistakes.len()))
}

#[derive(Serialize)]
struct TestDocument {
    ok: bool,
    passed: usize,
    failed: usize,
    set: String,
    cases: Vec<Tested>,
}

/// One case and its outcome.
#[derive(Serialize)]
struct Tested {
    file: String,
    line: u32,
    name: String,
    ok: bool,
    expected: &'static str,
    decision: &'static str,
    /// The policies it expects to decide, where it says.
    #[serde(skip_serializing_if = "Option::is_none")]
    expected_by: Option<Vec<String>>,
    decided_by: Vec<String>,
    why: String,
}

fn test(files: &[PathBuf], source: &PolicySource, context: &mut Context) -> Result<(), Failure> {
    let set = offline(source, context)?;
    let mut cases = Vec::new();
    for file in files {
        for case in cases_in(file, context)? {
            let Some(expected) = case.expect else {
                let text = "`expect` is missing: write \"allow\", \"deny\" or \"step_up\"".to_owned();
                let mistake = Mistake { path: Arc::from(file.as_path()), line: case.line, column: 1, message: text };
                return Err(refused(&[mistake], context));
            };
            cases.push(tested(file, case, expected, &set, context));
        }
    }
    let failed = cases.iter().filter(|case| !case.ok).count();
    let (ok, passed) = (failed == 0, cases.len() - failed);
    if context.output.is_json() {
        context.json(&TestDocument { ok, passed, failed, set: set.digest().to_owned(), cases })?;
    } else {
        for case in &cases {
            let (tone, word) = if case.ok { (Tone::Good, "ok") } else { (Tone::Bad, "FAILED") };
            let word = Text::toned(tone, word);
            let Tested { file, line, name, decision, why, .. } = case;
            if case.ok {
                context.output.line(word.then(format!(" {name}: {decision}, {why}")))?;
                continue;
            }
            context.output.line(word.then(format!(" {name} ({file}:{line})")))?;
            let by = case.expected_by.as_ref().map(|by| format!(" by {}", by.join(", "))).unwrap_or_default();
            context.output.line(&format!("  expected {}{by}", case.expected))?;
            context.output.line(&format!("  decided  {decision}, {why}"))?;
        }
    }
    if !ok {
        return Err(Failure::new(Exit::Failure, format!("{failed} of {} cases failed", passed + failed)));
    }
    context.output.note(&format!("{passed} cases passed"));
    Ok(())
}

fn tested(file: &Path, case: Case, expected: Expect, set: &PolicySet, context: &Context) -> Tested {
    let explanation = case.ask(context.host.now(), |question| explain(set, question));
    let mut expected_by = case.policies;
    if let Some(by) = &mut expected_by {
        by.sort_unstable();
    }
    let as_expected = explanation.decision == expected.as_str()
        && expected_by.as_ref().is_none_or(|by| *by == explanation.decided_by);
    Tested {
        file: file.display().to_string(),
        line: case.line,
        name: case.name,
        ok: as_expected,
        expected: expected.as_str(),
        decision: explanation.decision,
        expected_by,
        decided_by: explanation.decided_by,
        why: explanation.why,
    }
}

fn cases_in(file: &Path, context: &mut Context) -> Result<Vec<Case>, Failure> {
    let text = context.host.read(file)?;
    read_cases(file, &text).map_err(|mistakes| refused(&mistakes, context))
}

fn explain_case(args: ExplainPolicyArgs, context: &mut Context) -> Result<(), Failure> {
    let text = match &args.case {
        Some(file) => context.host.read(file)?,
        None => written(&args.fields)?,
    };
    let path = args.case.as_deref().unwrap_or(Path::new(""));
    // Read here in any case: a mistake is told with the file's name.
    let cases = read_cases(path, &text).map_err(|mistakes| refused(&mistakes, context))?;
    let [case] = cases.as_slice() else {
        return Err(Failure::new(Exit::Invalid, format!("{} cases; one can be explained at a time", cases.len())));
    };
    if args.source.paths.is_empty() && !args.source.dev {
        return context.wait(async |context| explained_by_agent(text, context).await);
    }
    let set = offline(&args.source, context)?;
    let explanation: Explanation = case.ask(context.host.now(), |question| explain(&set, question));
    let unprintable = |error| Failure::new(Exit::Failure, format!("BUG: {error}"));
    explained(&serde_json::to_value(explanation).map_err(unprintable)?, context)
}

async fn explained_by_agent(case: String, context: &mut Context) -> Result<(), Failure> {
    let admin = context.admin()?;
    let json = admin.answer(admin.policies().explain(ExplainPolicyRequest { case })).await?.json;
    let unreadable = |error| Failure::new(Exit::Failure, format!("the agent's answer cannot be read: {error}"));
    explained(&serde_json::from_str(&json).map_err(unreadable)?, context)
}

fn explained(explanation: &Json, context: &mut Context) -> Result<(), Failure> {
    if context.output.is_json() {
        return Ok(context.output.json(explanation)?);
    }
    let text = |value: &Json| value.as_str().unwrap_or_default().to_owned();
    let decision = text(&explanation["decision"]);
    let tone = if decision == "allow" { Tone::Good } else { Tone::Bad };
    context.output.line(Text::toned(tone, decision).then(format!(": {}", text(&explanation["why"]))))?;
    for error in explanation["errors"].as_array().into_iter().flatten() {
        context.output.line(&format!("  {}", text(error)))?;
    }
    let rows: Vec<_> = explanation["policies"].as_array().into_iter().flatten().map(row).collect();
    Ok(context.output.table(&["POLICY", "EFFECT", "FROM", "HOLDS", "BECAUSE"], &rows)?)
}

/// What holds first.
fn row(policy: &Json) -> Vec<String> {
    let text = |name: &str| policy[name].as_str().unwrap_or_default().to_owned();
    let holds = if text("verdict") == "holds" { "yes" } else { "no" };
    vec![text("id"), text("effect"), text("origin"), holds.to_owned(), text("detail")]
}

/// The flags as a file of one case.
fn written(fields: &CaseFields) -> Result<String, Failure> {
    let missing = |flag: &str| Failure::new(Exit::Usage, format!("say what is asked: give {flag}, or --case FILE"));
    let action = fields.action.clone().ok_or_else(|| missing("--action"))?;
    let agent = fields.agent.as_ref().ok_or_else(|| missing("--agent"))?;
    let set = |table: &mut Table, name: &str, value: &Option<String>| {
        if let Some(value) = value {
            table.insert(name.to_owned(), Value::String(value.clone()));
        }
    };
    let list = |texts: &[String]| Value::Array(texts.iter().cloned().map(Value::String).collect());
    let mut case = Table::new();
    case.insert("agent".to_owned(), Value::String(agent.to_string()));
    set(&mut case, "entry", &fields.entry);
    set(&mut case, "owner", &fields.owner);
    set(&mut case, "time", &fields.time);
    case.insert("approved".to_owned(), Value::Boolean(fields.approved));
    if let Some(user) = &fields.user {
        case.insert("user".to_owned(), Value::Table(user_case(user)?));
    }
    let binding = fields.binding.map(|binding| Value::Integer(binding.into()));
    if action == "issue" {
        let mut issue = Table::new();
        set(&mut issue, "kind", &fields.kind);
        issue.insert("audience".to_owned(), list(&fields.audiences));
        issue.extend(binding.map(|binding| ("binding".to_owned(), binding)));
        case.insert("issue".to_owned(), Value::Table(issue));
    } else {
        let mut session = Table::new();
        set(&mut session, "purpose", &fields.purpose);
        session.insert("targets".to_owned(), list(&fields.targets));
        session.insert("scopes".to_owned(), list(&fields.scopes));
        session.extend(binding.map(|binding| ("binding".to_owned(), binding)));
        case.insert("session".to_owned(), Value::Table(session));
        if fields.uri.is_some() {
            let mut tool = Table::new();
            set(&mut tool, "uri", &fields.uri);
            set(&mut tool, "method", &fields.method);
            set(&mut tool, "name", &fields.tool);
            set(&mut tool, "kind", &fields.kind);
            case.insert("tool".to_owned(), Value::Table(tool));
        }
    }
    case.insert("action".to_owned(), Value::String(action));
    let mut file = Table::new();
    file.insert("case".to_owned(), Value::Array(vec![Value::Table(case)]));
    Ok(file.to_string())
}

/// `ISSUER#SUBJECT` or `NAME@NODE`.
fn user_case(user: &str) -> Result<Table, Failure> {
    let fields = match (user.split_once('#'), user.rsplit_once('@')) {
        (Some((issuer, subject)), _) => [("kind", "oidc"), ("issuer", issuer), ("subject", subject)],
        (None, Some((subject, node))) => [("kind", "local"), ("subject", subject), ("node", node)],
        (None, None) => {
            let text = format!("--user is ISSUER#SUBJECT or NAME@NODE, not `{user}`");
            return Err(Failure::new(Exit::Usage, text));
        }
    };
    Ok(fields.into_iter().map(|(name, value)| (name.to_owned(), Value::String(value.to_owned()))).collect())
}

#[derive(Serialize)]
struct ShowDocument {
    set: String,
    policies: Vec<PolicyDocument>,
}

#[derive(Serialize)]
struct PolicyDocument {
    id: String,
    origin: String,
    text: String,
}

async fn show(context: &mut Context) -> Result<(), Failure> {
    let admin = context.admin()?;
    let shown = admin.answer(admin.policies().show(ShowPoliciesRequest {})).await?;
    if context.output.is_json() {
        let policy = |view: crate::proto::admin::PolicyView| PolicyDocument {
            id: view.id,
            origin: view.origin,
            text: view.text,
        };
        let policies = shown.policies.into_iter().map(policy).collect();
        return context.json(&ShowDocument { set: shown.digest, policies });
    }
    for policy in &shown.policies {
        context.output.line(format!("// {} from {}", policy.id, policy.origin))?;
        context.output.document(&policy.text)?;
        context.output.line("")?;
    }
    context.output.note(&format!("{} policies, set {}", shown.policies.len(), shown.digest));
    Ok(())
}
