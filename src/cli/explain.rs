//! `tether explain`: why a process gets what it gets.

use serde::Serialize;

use crate::proto::admin::{EntryVerdict, ExplainRequest, ExplainResponse};
use crate::selector::KINDS;

use super::Context;
use super::args::ExplainArgs;
use super::failure::Failure;
use super::output::{Text, Tone};

pub(super) async fn run(args: ExplainArgs, context: &mut Context) -> Result<(), Failure> {
    if args.kinds {
        return kinds(context);
    }
    let admin = context.admin()?;
    let pid = args.pid.unwrap_or_default();
    let explained = admin.answer(admin.agent().explain(ExplainRequest { pid })).await?;
    if context.output.is_json() {
        return context.json(&Document::from(&explained));
    }
    print(&explained, context)?;
    if args.pid.is_none() {
        context.output.note("this is about the `tether` command itself; for your program: tether explain --pid PID");
    }
    Ok(())
}

#[derive(Serialize)]
struct KindsDocument {
    kinds: Vec<String>,
}

fn kinds(context: &mut Context) -> Result<(), Failure> {
    let kinds: Vec<_> = KINDS.iter().map(|(kind, key)| format!("{kind}:{key}")).collect();
    if context.output.is_json() {
        return context.json(&KindsDocument { kinds });
    }
    Ok(kinds.iter().try_for_each(|kind| context.output.line(kind))?)
}

#[derive(Serialize)]
struct Document<'a> {
    pid: i32,
    instance: &'a str,
    weak: Option<&'a str>,
    selectors: &'a [String],
    gaps: &'a [String],
    entries: Vec<VerdictDocument<'a>>,
    notes: &'a [String],
}

#[derive(Serialize)]
struct VerdictDocument<'a> {
    id: &'a str,
    spiffe_id: &'a str,
    verdict: &'a str,
    reasons: &'a [String],
    origin: &'a str,
}

impl<'a> From<&'a ExplainResponse> for Document<'a> {
    fn from(explained: &'a ExplainResponse) -> Self {
        let verdict = |entry: &'a EntryVerdict| VerdictDocument {
            id: &entry.entry_id,
            spiffe_id: &entry.spiffe_id,
            verdict: &entry.verdict,
            reasons: &entry.reasons,
            origin: &entry.origin,
        };
        Self {
            pid: explained.pid,
            instance: &explained.instance,
            weak: Some(explained.weak.as_str()).filter(|why| !why.is_empty()),
            selectors: &explained.selectors,
            gaps: &explained.gaps,
            entries: explained.entries.iter().map(verdict).collect(),
            notes: &explained.notes,
        }
    }
}

fn print(explained: &ExplainResponse, context: &mut Context) -> Result<(), Failure> {
    let output = &mut context.output;
    output.line(format!("process {}, instance {}", explained.pid, explained.instance))?;
    if !explained.weak.is_empty() {
        output.line(Text::toned(Tone::Weak, "weak:").then(format!(" {}", explained.weak)))?;
    }
    for note in &explained.notes {
        output.line(format!("note: {note}"))?;
    }
    output.line("")?;
    output.line("selectors")?;
    for selector in &explained.selectors {
        output.line(format!("  {selector}"))?;
    }
    if explained.selectors.is_empty() {
        output.line("  none")?;
    }
    for gap in &explained.gaps {
        output.line(Text::from("  ").then_toned(Tone::Weak, "not known:").then(format!(" {gap}")))?;
    }
    output.line("")?;
    output.line("entries")?;
    for entry in &explained.entries {
        let tone = match entry.verdict.as_str() {
            "match" => Tone::Good,
            "unavailable" => Tone::Weak,
            _ => Tone::Plain,
        };
        let gives = format!(": {} gives {} ({})", entry.entry_id, entry.spiffe_id, entry.origin);
        output.line(Text::from("  ").then_toned(tone, &entry.verdict).then(gives))?;
        for reason in &entry.reasons {
            output.line(format!("      {reason}"))?;
        }
    }
    if explained.entries.is_empty() {
        output.line("  none: write one into entries.d, or use `tether entry create`")?;
    }
    Ok(())
}
