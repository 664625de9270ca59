//! `tether entry`: registration entries in the agent's store, and a look at all of them.

use serde::Serialize;
use toml::{Table, Value};

use crate::proto::admin::{
    ApplyEntriesRequest, ApplyEntriesResponse, CreateEntryRequest, DeleteEntryRequest, EntryView, GetEntryRequest,
    ListEntriesRequest, UpdateEntryRequest,
};
use crate::registry::{ImportOptions, Parents, Rules, spire_entries};

use super::args::{EntryCommand, EntryFields, EntryInput, ImportArgs, ImportSource};
use super::failure::{Exit, Failure};
use super::{Context, bundle};

pub(super) async fn run(command: EntryCommand, context: &mut Context) -> Result<(), Failure> {
    match command {
        EntryCommand::List => list(context).await,
        EntryCommand::Show { id } => {
            let admin = context.admin()?;
            let view = admin.answer(admin.entries().get(GetEntryRequest { id })).await?;
            show(&view, context)
        }
        EntryCommand::Create(input) => {
            let toml = match &input.file {
                Some(file) => context.host.read(file)?,
                None => entry_file(fields(&input.fields)),
            };
            let admin = context.admin()?;
            let view = admin.answer(admin.entries().create(CreateEntryRequest { toml })).await?;
            context.output.note(&format!("created entry `{}`", view.id));
            show(&view, context)
        }
        EntryCommand::Update { id, input } => update(id, &input, context).await,
        EntryCommand::Delete { id } => {
            let admin = context.admin()?;
            admin.answer(admin.entries().delete(DeleteEntryRequest { id: id.clone() })).await?;
            context.output.note(&format!("deleted entry `{id}`"));
            Ok(())
        }
        EntryCommand::Apply { file, dry_run } => {
            let toml = context.host.read(&file)?;
            apply(toml, dry_run, context).await
        }
        EntryCommand::Import(args) => import(args, context).await,
    }
}

async fn list(context: &mut Context) -> Result<(), Failure> {
    let admin = context.admin()?;
    let entries = admin.answer(admin.entries().list(ListEntriesRequest {})).await?.entries;
    if context.output.is_json() {
        let entries = entries.iter().map(EntryDocument::from).collect();
        return context.json(&EntriesDocument { entries });
    }
    let row =
        |view: &EntryView| vec![view.id.clone(), view.spiffe_id.clone(), view.r#match.join(" "), view.origin.clone()];
    let rows: Vec<_> = entries.iter().map(row).collect();
    Ok(context.output.table(&["ID", "SPIFFE ID", "MATCH", "FROM"], &rows)?)
}

fn show(view: &EntryView, context: &mut Context) -> Result<(), Failure> {
    if context.output.is_json() {
        return context.json(&EntryDocument::from(view));
    }
    context.output.document(view.toml.trim_end())?;
    let created = if view.created_at.is_empty() { String::new() } else { format!(", created {}", view.created_at) };
    context.output.note(&format!("from {}{created}", view.origin));
    Ok(())
}

/// Changes fields of the entry as it is now. The revision that was read is sent along, so that a change somebody else
/// made meanwhile is not undone.
async fn update(id: String, input: &EntryInput, context: &mut Context) -> Result<(), Failure> {
    let admin = context.admin()?;
    let before = admin.answer(admin.entries().get(GetEntryRequest { id })).await?;
    let toml = match &input.file {
        Some(file) => context.host.read(file)?,
        None => {
            let changes = fields(&input.fields);
            if changes.is_empty() {
                return Err(Failure::new(
                    Exit::Usage,
                    "nothing to change: give a field, or the whole entry with --file",
                ));
            }
            let mut entry = only_entry(&before)?;
            entry.extend(changes);
            entry_file(entry)
        }
    };
    let request = UpdateEntryRequest { toml, revision: before.revision };
    let view = admin.answer(admin.entries().update(request)).await?;
    context.output.note(&format!("updated entry `{}`", view.id));
    show(&view, context)
}

/// The fields of an entry as the agent wrote it: one `[[entry]]` table.
fn only_entry(view: &EntryView) -> Result<Table, Failure> {
    let unusable = || Failure::new(Exit::Failure, format!("the agent's entry `{}` cannot be read", view.id));
    let mut file: Table = view.toml.parse().map_err(|_| unusable())?;
    match file.remove("entry") {
        Some(Value::Array(entries)) => match entries.into_iter().next() {
            Some(Value::Table(entry)) => Ok(entry),
            _ => Err(unusable()),
        },
        _ => Err(unusable()),
    }
}

/// One `[[entry]]` table.
fn entry_file(entry: Table) -> String {
    let mut file = Table::new();
    file.insert("entry".to_owned(), Value::Array(vec![Value::Table(entry)]));
    file.to_string()
}

/// The fields that were given. What they mean is judged by the agent, which has the one parser.
fn fields(given: &EntryFields) -> Table {
    let texts = [
        ("id", &given.id),
        ("spiffe_id", &given.spiffe_id),
        ("owner", &given.owner),
        ("hint", &given.hint),
        ("x509_ttl", &given.x509_ttl),
        ("jwt_ttl", &given.jwt_ttl),
        ("credential_ttl", &given.credential_ttl),
        ("bind", &given.bind),
        ("expires_at", &given.expires_at),
    ];
    let lists = [
        ("match", &given.matches),
        ("unless", &given.unless),
        ("audiences", &given.audiences),
        ("serves", &given.serves),
        ("may_act_for", &given.may_act_for),
        ("dns_names", &given.dns_names),
        ("federates_with", &given.federates_with),
    ];
    let flags = [("single_use", given.single_use), ("exportable", given.exportable), ("disabled", given.disabled)];
    let mut entry = Table::new();
    for (name, text) in texts {
        if let Some(text) = text {
            entry.insert(name.to_owned(), Value::String(text.clone()));
        }
    }
    for (name, list) in lists.iter().filter(|(_, list)| !list.is_empty()) {
        let items = list.iter().cloned().map(Value::String).collect();
        entry.insert((*name).to_owned(), Value::Array(items));
    }
    for (name, flag) in flags {
        if let Some(flag) = flag {
            entry.insert(name.to_owned(), Value::Boolean(flag));
        }
    }
    entry
}

async fn apply(toml: String, dry_run: bool, context: &mut Context) -> Result<(), Failure> {
    let admin = context.admin()?;
    let applied = admin.answer(admin.entries().apply(ApplyEntriesRequest { toml, dry_run })).await?;
    let ApplyEntriesResponse { created, updated, unchanged } = applied;
    if context.output.is_json() {
        return context.json(&AppliedDocument { created, updated, unchanged, dry_run });
    }
    let tense = if dry_run { "would be " } else { "" };
    let text = format!("{created} {tense}created, {updated} {tense}updated, {unchanged} unchanged");
    Ok(context.output.line(&text)?)
}

/// Turns another system's entries into ours; all or none.
async fn import(args: ImportArgs, context: &mut Context) -> Result<(), Failure> {
    let ImportSource::Spire = args.from;
    let json = context.host.read(&args.file)?;
    let trust_domain = match args.trust_domain {
        Some(trust_domain) => trust_domain,
        None => bundle::own_trust_domain(&context.admin()?).await?,
    };
    let parents = if args.all_parents { Parents::All } else { Parents::Only(args.parent_id) };
    let options = ImportOptions { parents, owner: args.owner, rules: Rules::new(trust_domain) };
    let imported = spire_entries(json.as_bytes(), &options, context.host.now()).map_err(|problems| {
        Failure::new(Exit::Invalid, "nothing was imported").and(problems.iter().map(ToString::to_string))
    })?;
    for warning in &imported.warnings {
        context.output.note(&format!("warning: {warning}"));
    }
    if imported.skipped > 0 {
        context.output.note(&format!("{} entries of other parents were left out", imported.skipped));
    }
    if args.print {
        return Ok(context.output.document(&imported.to_toml())?);
    }
    apply(imported.to_toml(), args.dry_run, context).await
}

#[derive(Serialize)]
struct EntriesDocument<'a> {
    entries: Vec<EntryDocument<'a>>,
}

#[derive(Serialize)]
struct EntryDocument<'a> {
    id: &'a str,
    spiffe_id: &'a str,
    r#match: &'a [String],
    unless: &'a [String],
    owner: Option<&'a str>,
    hint: Option<&'a str>,
    origin: &'a str,
    revision: Option<u64>,
    created_at: Option<&'a str>,
    toml: &'a str,
}

impl<'a> From<&'a EntryView> for EntryDocument<'a> {
    fn from(view: &'a EntryView) -> Self {
        let unless_empty = |text: &'a str| Some(text).filter(|text| !text.is_empty());
        Self {
            id: &view.id,
            spiffe_id: &view.spiffe_id,
            r#match: &view.r#match,
            unless: &view.unless,
            owner: unless_empty(&view.owner),
            hint: unless_empty(&view.hint),
            origin: &view.origin,
            revision: Some(view.revision).filter(|revision| *revision > 0),
            created_at: unless_empty(&view.created_at),
            toml: &view.toml,
        }
    }
}

#[derive(Serialize)]
struct AppliedDocument {
    created: u32,
    updated: u32,
    unchanged: u32,
    dry_run: bool,
}
