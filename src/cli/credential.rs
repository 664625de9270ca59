//! `tether credential`: the ledger, for whoever answers an incident.

use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::proto::admin::{
    BlastRadius, CredentialFilter, CredentialView, ListCredentialsRequest, ListCredentialsResponse,
    RevokeCredentialsRequest, RevokeCredentialsResponse, ShowCredentialRequest,
};

use super::Context;
use super::args::{CredentialCommand, RevokeArgs};
use super::failure::{Exit, Failure};
use super::output::{Text, Tone, relative};

/// So much of an id is shown in a list: 40 bits of a random number. Two that begin alike are told apart by more of it.
const SHORT_ID: usize = 10;
/// The custody of what was handed out to be written to files.
const IN_FILES: &str = "file";

pub(super) async fn run(command: CredentialCommand, context: &mut Context) -> Result<(), Failure> {
    match command {
        CredentialCommand::List { holder, all, limit } => {
            let admin = context.admin()?;
            let request = ListCredentialsRequest { filter: Some(holder.filter()), all, limit };
            let listed = admin.answer(admin.credentials().list(request)).await?;
            list(&listed, context)
        }
        CredentialCommand::Show { id } => {
            let admin = context.admin()?;
            let view = admin.answer(admin.credentials().show(ShowCredentialRequest { id })).await?;
            show(&view, context)
        }
        CredentialCommand::Revoke(args) => revoke(args, context).await,
    }
}

fn list(listed: &ListCredentialsResponse, context: &mut Context) -> Result<(), Failure> {
    let shown = listed.credentials.len();
    if context.output.is_json() {
        let credentials = listed.credentials.iter().map(CredentialDocument::from).collect();
        context.json(&ListDocument { credentials, total: listed.total })?;
    } else {
        table(&listed.credentials, context)?;
    }
    if u64::try_from(shown).unwrap_or(u64::MAX) < listed.total {
        let text = format!("only the newest {shown} of {}: narrow the search, or raise --limit", listed.total);
        context.output.note(&text);
    }
    Ok(())
}

async fn revoke(args: RevokeArgs, context: &mut Context) -> Result<(), Failure> {
    let RevokeArgs { id, serial, jti, holder, reason, dry_run } = args;
    let text = |text: Option<String>| text.unwrap_or_default();
    let filter = CredentialFilter { id: text(id), serial: text(serial), jti: text(jti), ..holder.filter() };
    let admin = context.admin()?;
    let request = RevokeCredentialsRequest { filter: Some(filter), reason, dry_run };
    let answer = admin.answer(admin.credentials().revoke(request)).await?;
    let RevokeCredentialsResponse { revoked, total, already_ended } = &answer;
    if (*total, *already_ended) == (0, 0) {
        let advice = "`tether credential list --all` shows what the ledger has";
        return Err(Failure::new(Exit::Failure, format!("no credential is like that, nothing was revoked: {advice}")));
    }
    if context.output.is_json() {
        let revoked = revoked.iter().map(CredentialDocument::from).collect();
        context.json(&RevokedDocument { dry_run, revoked, total: *total, already_ended: *already_ended })?;
    } else if *total > 0 {
        table(revoked, context)?;
    }
    let verb = if dry_run { "would revoke" } else { "revoked" };
    let before = if *already_ended > 0 { format!("; {already_ended} had ended before") } else { String::new() };
    context.output.note(&format!("{verb} {total} {}{before}", plural(*total)));
    if *total > 0 {
        context.output.note(
            "a process that still matches its entry is issued anew; to stop that, end the process, or switch the entry off: \
             `disabled = true` in its file, or `tether entry update ID --disabled true`",
        );
    }
    Ok(())
}

fn plural(count: u64) -> &'static str {
    if count == 1 { "credential" } else { "credentials" }
}

fn table(views: &[CredentialView], context: &mut Context) -> Result<(), Failure> {
    let now = context.host.now();
    let row = |view: &CredentialView| {
        vec![
            short(&view.id).to_owned(),
            if view.custody == IN_FILES { format!("{} in files", view.kind) } else { view.kind.clone() },
            view.spiffe_id.clone(),
            view.pid.to_string(),
            view.entry.clone(),
            standing(view, now),
        ]
    };
    let rows: Vec<_> = views.iter().map(row).collect();
    Ok(context.output.table(&["ID", "KIND", "SPIFFE ID", "PID", "ENTRY", "STANDING"], &rows)?)
}

/// The beginning of an id, without the node in front of it: all that are listed are of the same node.
fn short(id: &str) -> &str {
    let own = id.rsplit_once('.').map_or(id, |(_, own)| own);
    own.get(..SHORT_ID).unwrap_or(own)
}

/// Whether it is worth anything, in a few words.
fn standing(view: &CredentialView, now: OffsetDateTime) -> String {
    let ago = |text: &str| at(text).map(|at| relative(at, now)).unwrap_or_default();
    match view.standing.as_str() {
        "stands" => ago(&view.not_after),
        "ended" if view.reason == "operator" => format!("revoked {}", ago(&view.ended_at)),
        "ended" => format!("{} {}", view.reason, ago(&view.ended_at)),
        other => other.to_owned(),
    }
}

fn at(text: &str) -> Option<OffsetDateTime> {
    OffsetDateTime::parse(text, &Rfc3339).ok()
}

fn show(view: &CredentialView, context: &mut Context) -> Result<(), Failure> {
    if context.output.is_json() {
        return context.json(&CredentialDocument::from(view));
    }
    let now = context.host.now();
    let when = |text: &str| at(text).map_or_else(|| text.to_owned(), |at| format!("{text} ({})", relative(at, now)));
    let standing = match view.standing.as_str() {
        "stands" => Text::toned(Tone::Good, "stands").then(format!(" until {}", when(&view.not_after))),
        "ended" => Text::toned(Tone::Bad, "ended").then(format!(" at {}: {}", when(&view.ended_at), view.reason)),
        other => Text::toned(Tone::Bad, other).then(format!("; it was valid until {}", when(&view.not_after))),
    };
    let (level, meaning) = view.binding.as_ref().map_or((0, ""), |binding| (binding.level, binding.meaning.as_str()));
    let custody = if view.exportable && view.custody != IN_FILES {
        format!("{}, perhaps in files", view.custody)
    } else {
        view.custody.clone()
    };
    let once = if view.single_use { ", once" } else { "" };
    let none = BlastRadius::default();
    let radius = view.blast_radius.as_ref().unwrap_or(&none);
    let mut fields = vec![
        ("id", view.id.clone().into()),
        ("kind", view.kind.clone().into()),
        ("SPIFFE ID", view.spiffe_id.clone().into()),
        ("standing", standing),
        ("issued", when(&view.issued_at).into()),
        ("last asked", (if view.last_asked.is_empty() { "never".to_owned() } else { when(&view.last_asked) }).into()),
        ("entry", view.entry.clone().into()),
        ("owner", view.owner.clone().into()),
        ("process", format!("{} of uid {}", view.pid, view.uid).into()),
        ("instance", view.instance.clone().into()),
        ("asked by", view.delegate.clone().into()),
        ("bound to", view.tie.clone().into()),
        ("binding", format!("{level}: {meaning}").into()),
        ("custody", custody.into()),
        ("authority", view.authority.clone().into()),
        ("accepted by", with(&radius.audiences, once).into()),
        ("trusted by", with(&radius.trusted_by, "").into()),
        ("perhaps by", with(&radius.may_be_trusted_by, "").into()),
    ];
    fields.retain(|(_, value)| !value.is_empty());
    Ok(context.output.fields(&fields)?)
}

/// A list in one line; nothing for none.
fn with(list: &[String], after: &str) -> String {
    if list.is_empty() { String::new() } else { format!("{}{after}", list.join(" ")) }
}

#[derive(Serialize)]
struct ListDocument<'a> {
    credentials: Vec<CredentialDocument<'a>>,
    total: u64,
}

#[derive(Serialize)]
struct RevokedDocument<'a> {
    dry_run: bool,
    revoked: Vec<CredentialDocument<'a>>,
    total: u64,
    already_ended: u64,
}

#[derive(Serialize)]
struct CredentialDocument<'a> {
    id: &'a str,
    kind: &'a str,
    spiffe_id: &'a str,
    entry: &'a str,
    owner: Option<&'a str>,
    instance: &'a str,
    pid: i32,
    uid: u32,
    delegate: Option<&'a str>,
    bind: &'a str,
    tie: &'a str,
    binding: BindingDocument<'a>,
    custody: &'a str,
    exportable: bool,
    single_use: bool,
    authority: &'a str,
    issued_at: &'a str,
    not_after: &'a str,
    standing: &'a str,
    reason: Option<&'a str>,
    ended_at: Option<&'a str>,
    last_asked: Option<&'a str>,
    blast_radius: RadiusDocument<'a>,
}

#[derive(Default, Serialize)]
struct BindingDocument<'a> {
    level: u32,
    meaning: &'a str,
}

#[derive(Default, Serialize)]
struct RadiusDocument<'a> {
    audiences: &'a [String],
    trusted_by: &'a [String],
    may_be_trusted_by: &'a [String],
}

impl<'a> From<&'a CredentialView> for CredentialDocument<'a> {
    fn from(view: &'a CredentialView) -> Self {
        let unless_empty = |text: &'a str| Some(text).filter(|text| !text.is_empty());
        let binding = view.binding.as_ref();
        let radius = view.blast_radius.as_ref();
        Self {
            id: &view.id,
            kind: &view.kind,
            spiffe_id: &view.spiffe_id,
            entry: &view.entry,
            owner: unless_empty(&view.owner),
            instance: &view.instance,
            pid: view.pid,
            uid: view.uid,
            delegate: unless_empty(&view.delegate),
            bind: &view.bind,
            tie: &view.tie,
            binding: binding.map_or_else(BindingDocument::default, |binding| BindingDocument {
                level: binding.level,
                meaning: &binding.meaning,
            }),
            custody: &view.custody,
            exportable: view.exportable,
            single_use: view.single_use,
            authority: &view.authority,
            issued_at: &view.issued_at,
            not_after: &view.not_after,
            standing: &view.standing,
            reason: unless_empty(&view.reason),
            ended_at: unless_empty(&view.ended_at),
            last_asked: unless_empty(&view.last_asked),
            blast_radius: radius.map_or_else(RadiusDocument::default, |radius| RadiusDocument {
                audiences: &radius.audiences,
                trusted_by: &radius.trusted_by,
                may_be_trusted_by: &radius.may_be_trusted_by,
            }),
        }
    }
}
