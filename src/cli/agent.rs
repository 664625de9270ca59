//! `tether agent`: run it, check what it would run with, tell it to reload, ask whether it is ready.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::agent::{self, Deps, Reload};
use crate::base::text::chain;
use crate::client::{ClientError, Endpoint, channel, with_header};
use crate::config::{Config, Loaded, Mistake, Mistakes, Place};
use crate::policy;
use crate::proto::admin::ReloadRequest;
use crate::registry;
use crate::sys::inherited::Inherited;
use crate::sys::seccomp;
use crate::telemetry;

use super::args::{AgentCommand, ConfigArgs};
use super::failure::{Exit, Failure};
use super::output::{Text, Tone};
use super::{Context, config, sockets, within};

/// How long work that nobody waits for any more may hold up the end of the process.
const AFTER_THE_DRAIN: Duration = Duration::from_secs(1);

pub(super) fn run(command: AgentCommand, context: &mut Context) -> Result<(), Failure> {
    match command {
        AgentCommand::Run(args) => run_agent(args, context)
            .inspect_err(|failure| agent::failed(&failure.lines().collect::<Vec<_>>().join("\n"))),
        AgentCommand::Check(args) => check(args, context),
        AgentCommand::Reload => context.wait(async |context| reload(context).await),
        AgentCommand::Healthcheck => context.wait(async |context| healthcheck(context).await),
    }
}

/// Builds the agent, says what was bound, and runs it until a signal ends it.
fn run_agent(args: ConfigArgs, context: &mut Context) -> Result<(), Failure> {
    let source = config::source(args, &context.host)?;
    let Loaded { config, .. } = source.load()?;
    let failed = |error: &dyn std::error::Error| Failure::new(Exit::Failure, chain(error));
    // Before the first thread: what the others may do is what this one may.
    let renounced = seccomp::renounce();
    let (log, _last_lines) =
        telemetry::init(config.log.level.as_str(), config.log.format).map_err(|error| failed(&error))?;
    let read_again = move || match source.load() {
        Ok(loaded) => Ok(loaded.config),
        Err(Mistakes(mistakes)) => Err(mistakes.iter().map(ToString::to_string).collect()),
    };
    let weaker = renounced.err().map(|error| not_renounced(&error)).into_iter().collect();
    let credentials = context.host.variable("CREDENTIALS_DIRECTORY").map(PathBuf::from);
    let inherited = Inherited::take().map_err(|error| failed(&error))?;
    let deps = Deps { log, reload: Reload::with(read_again), inherited, credentials, weaker, ..Deps::default() };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| failed(&error))?;
    let ended = runtime.block_on(async {
        // Before anything is bound: a signal that comes early still ends the agent in order.
        let mut terminate = signal(SignalKind::terminate()).map_err(|error| failed(&error))?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(|error| failed(&error))?;
        let mut hang_up = signal(SignalKind::hangup()).map_err(|error| failed(&error))?;
        let bound = agent::build(config.clone(), deps).await.map_err(|error| failed(&error))?;
        let reloader = bound.reloader();
        let shutdown = async move {
            loop {
                tokio::select! {
                    _ = terminate.recv() => return,
                    _ = interrupt.recv() => return,
                    _ = hang_up.recv() => {
                        for source in reloader.reload().await {
                            tracing::info!(ok = source.ok, "reloaded {}: {}", source.source, source.messages.join("; "));
                        }
                    }
                }
            }
        };
        announce(&config, context)?;
        bound.run(shutdown).await.map_err(|error| failed(&error))
    });
    // A thread that reads a file which never comes is no reason to outstay the drain.
    runtime.shutdown_timeout(AFTER_THE_DRAIN);
    ended
}

/// What it means that system calls could not be given up.
fn not_renounced(error: &seccomp::RenounceError) -> String {
    let why = chain(error);
    tracing::warn!("the agent keeps system calls that it has no use for: {why}");
    format!(
        "whoever takes over the agent could execute programs and trace processes: {why}: allow the system call seccomp in \
         the unit (SystemCallFilter=@sandbox)"
    )
}

/// What was bound. The last line is `ready`: from then on calls are answered.
fn announce(config: &Config, context: &mut Context) -> Result<(), Failure> {
    context.output.fields(&[
        ("trust domain", config.trust_domain.to_string()),
        ("workload socket", config.listen.workload.display().to_string()),
        ("admin socket", config.listen.admin.display().to_string()),
    ])?;
    if config.dev {
        context.output.line("")?;
        let endpoint = Endpoint::Unix(config.listen.workload.clone()).to_string();
        context.output.line(format!("export SPIFFE_ENDPOINT_SOCKET={}", quoted(&endpoint)))?;
        context
            .output
            .line(format!("export TETHER_ADMIN_SOCKET={}", quoted(&config.listen.admin.to_string_lossy())))?;
        context.output.line("")?;
    }
    Ok(context.output.line("ready")?)
}

/// `path` as one word of a shell.
fn quoted(path: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/:._-".contains(c);
    if path.chars().all(is_plain) { path.to_owned() } else { format!("'{}'", path.replace('\'', r"'\''")) }
}

#[derive(Serialize)]
struct CheckDocument {
    ok: bool,
    entries: usize,
    policies: usize,
    mistakes: Vec<Found>,
    warnings: Vec<Found>,
}

/// A mistake of the configuration, of an entry or of a policy.
#[derive(Serialize)]
pub(super) struct Found {
    /// The file, the environment variable or the flag.
    place: String,
    line: Option<usize>,
    column: Option<usize>,
    message: String,
}

fn check(args: ConfigArgs, context: &mut Context) -> Result<(), Failure> {
    let checked = match config::source(args, &context.host)?.load() {
        Ok(loaded) => check_files(&loaded.config, context),
        Err(Mistakes(mistakes)) => {
            let mistakes = mistakes.into_iter().map(Found::from).collect();
            CheckDocument { ok: false, entries: 0, policies: 0, mistakes, warnings: Vec::new() }
        }
    };
    if context.output.is_json() {
        context.json(&checked)?;
    } else {
        for found in &checked.mistakes {
            context.output.line(found.to_string())?;
        }
        for found in &checked.warnings {
            context.output.line(format!("{found} (warning)"))?;
        }
    }
    if !checked.ok {
        return Err(Failure::new(
            Exit::Invalid,
            format!("{} mistakes; the agent would not take this", checked.mistakes.len()),
        ));
    }
    let CheckDocument { entries, policies, .. } = checked;
    context.output.note(&format!("the configuration, {entries} entries and {policies} policies are right"));
    Ok(())
}

fn check_files(config: &Config, context: &Context) -> CheckDocument {
    // What is missing in a directory of --dev the agent makes at its first start.
    let is_there = |directory: &Path| !config.dev || directory.exists();
    let (mut entries, mut mistakes, mut warnings) = (0, Vec::new(), Vec::new());
    if is_there(&config.entries_dir) {
        let mut loader = registry::Loader::new(config.entries_dir.clone(), config.entry_rules());
        let loaded = loader.load(&[], context.host.now());
        entries = loaded.entries.len();
        mistakes.extend(loaded.mistakes);
        warnings.extend(loaded.warnings);
    }
    let policies_dir = Some(&config.policies_dir).filter(|directory| is_there(directory));
    let policies_dir = policies_dir.filter(|directory| directory.exists() || !policy::is_default(directory));
    let policies = match super::policy::compiled(policies_dir.map(std::slice::from_ref).unwrap_or_default(), config.dev)
    {
        Ok(compiled) => {
            warnings.extend(compiled.warnings);
            compiled.set.policies().len()
        }
        Err(found) => {
            mistakes.extend(found);
            0
        }
    };
    CheckDocument {
        ok: mistakes.is_empty(),
        entries,
        policies,
        mistakes: mistakes.into_iter().map(Found::from).collect(),
        warnings: warnings.into_iter().map(Found::from).collect(),
    }
}

impl From<Mistake> for Found {
    fn from(mistake: Mistake) -> Self {
        let (line, column) = match &mistake.place {
            Place::File(position) => (Some(position.line), Some(position.column)),
            _ => (None, None),
        };
        let place = match mistake.place {
            Place::File(position) => position.file.display().to_string(),
            other => other.to_string(),
        };
        Self { place, line, column, message: mistake.message }
    }
}

impl From<registry::Mistake> for Found {
    fn from(mistake: registry::Mistake) -> Self {
        let position = |count: u32| usize::try_from(count).ok().filter(|count| *count > 0);
        Self {
            place: PathBuf::from(&*mistake.path).display().to_string(),
            line: position(mistake.line),
            column: position(mistake.column),
            message: mistake.message,
        }
    }
}

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let numbers: Vec<_> = self.line.iter().chain(&self.column).map(|number| format!(":{number}")).collect();
        write!(f, "{}{}: {}", self.place, numbers.concat(), self.message)
    }
}

#[derive(Serialize)]
struct ReloadDocument {
    ok: bool,
    sources: Vec<ReloadedDocument>,
}

#[derive(Serialize)]
struct ReloadedDocument {
    source: String,
    ok: bool,
    messages: Vec<String>,
}

async fn reload(context: &mut Context) -> Result<(), Failure> {
    let admin = context.admin()?;
    let sources = admin.answer(admin.agent().reload(ReloadRequest {})).await?.sources;
    let ok = sources.iter().all(|source| source.ok);
    if context.output.is_json() {
        let document = |source: crate::proto::admin::ReloadedSource| ReloadedDocument {
            source: source.source,
            ok: source.ok,
            messages: source.messages,
        };
        context.json(&ReloadDocument { ok, sources: sources.into_iter().map(document).collect() })?;
    } else {
        for source in &sources {
            let (tone, word) = if source.ok { (Tone::Good, "ok") } else { (Tone::Bad, "refused") };
            context.output.line(Text::from(format!("{}: ", source.source)).then_toned(tone, word))?;
            for message in &source.messages {
                context.output.line(format!("  {message}"))?;
            }
        }
    }
    if !ok {
        return Err(Failure::new(Exit::Invalid, "not everything was taken; what was refused stays as it was"));
    }
    Ok(())
}

#[derive(Serialize)]
struct HealthDocument {
    ready: bool,
}

/// Asks the health service on the workload socket, which anybody may.
async fn healthcheck(context: &mut Context) -> Result<(), Failure> {
    let endpoint = sockets::workload(&context.host, context.socket.as_deref())?;
    let mut client = HealthClient::new(with_header(channel(&endpoint)));
    let answer = within(client.check(HealthCheckRequest::default()), &endpoint).await?;
    let answer = answer.map_err(|status| ClientError::from_status(&endpoint, &status))?;
    let ready = answer.into_inner().status() == ServingStatus::Serving;
    if context.output.is_json() {
        context.json(&HealthDocument { ready })?;
    }
    if !ready {
        return Err(Failure::new(Exit::Failure, "the agent is not ready; `tether status` says which part is not"));
    }
    context.output.note("ready");
    Ok(())
}
