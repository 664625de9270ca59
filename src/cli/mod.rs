//! The `tether` command: from arguments to an exit code.
//!
//! Data goes to standard output and everything else to standard error; `--output json` is for programs. Exit codes
//! are those of [`Exit`]. Nothing here decides who may do what: the agent does.

mod agent;
mod approval;
mod args;
mod audit;
mod authority;
mod backup;
mod bundle;
mod config;
mod credential;
mod doctor;
mod entry;
mod explain;
mod failure;
mod fetch;
mod init;
mod manual;
mod output;
mod policy;
mod prove;
mod proxy;
mod restore;
mod run;
mod session;
mod sockets;
mod status;
mod trace;
mod validate;
mod verify;
mod write;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::future::Future;
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Parser;
use clap::error::ErrorKind;
use serde::Serialize;
use time::OffsetDateTime;
use tonic::Status;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;

use crate::base::clock::Clock;
use crate::client::{Endpoint, SecurityHeader, WorkloadApi, channel, with_header};
use crate::proto::session::sessions_client::SessionsClient;

use args::{Cli, Command, ConfigCommand, LogCommand, ValidateCommand};
use failure::Failure;

pub use args::SPIFFE_COMMIT;
pub use failure::Exit;
pub use output::Output;

/// How long a command waits for an answer of the agent.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// The largest answer of the admin API: a list of a hundred thousand entries fits.
const MAX_ANSWER_BYTES: usize = 256 << 20;
/// The largest file or standard input a command reads.
const MAX_INPUT_BYTES: u64 = 64 << 20;

/// Everything a command sees of its surroundings.
pub struct Host {
    /// The environment.
    pub env: BTreeMap<String, String>,
    /// Who runs the command.
    pub uid: u32,
    /// Standard input.
    pub input: Box<dyn Read + Send>,
    /// What time it is.
    pub clock: Clock,
    /// Whether a person reads the questions and types the answers.
    pub interactive: bool,
    /// A directory that stands for `/` where an installed agent is looked for or set up; `None` outside tests.
    pub root: Option<PathBuf>,
}

impl Host {
    /// The surroundings of this process. Variables that are not text are none of ours.
    pub fn process() -> Self {
        let text = |text: OsString| text.into_string().ok();
        Self {
            env: std::env::vars_os().filter_map(|(name, value)| Some((text(name)?, text(value)?))).collect(),
            uid: nix::unistd::geteuid().as_raw(),
            input: Box::new(std::io::stdin()),
            clock: Clock::system(),
            interactive: std::io::stdin().is_terminal() && std::io::stderr().is_terminal(),
            root: None,
        }
    }

    /// A variable of the environment; an empty one counts as not set.
    fn variable(&self, name: &str) -> Option<&str> {
        self.env.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Where something of the installed agent is.
    fn path(&self, installed: &Path) -> PathBuf {
        let below = installed.strip_prefix("/").unwrap_or(installed);
        self.root.as_ref().map_or_else(|| installed.to_owned(), |root| root.join(below))
    }

    fn now(&self) -> OffsetDateTime {
        self.clock.now()
    }

    /// The content of a file, or of standard input for `-`, as text.
    fn read(&mut self, path: &Path) -> Result<String, Failure> {
        let failure =
            |error: std::io::Error| Failure::new(Exit::Usage, format!("cannot read `{}`: {error}", path.display()));
        let mut text = String::new();
        if path == Path::new("-") {
            self.input.by_ref().take(MAX_INPUT_BYTES).read_to_string(&mut text).map_err(failure)?;
        } else {
            let file = std::fs::File::open(path).map_err(failure)?;
            file.take(MAX_INPUT_BYTES).read_to_string(&mut text).map_err(failure)?;
        }
        Ok(text)
    }
}

/// Runs one command. What it has to say is printed when this returns.
pub fn run(arguments: impl IntoIterator<Item = OsString>, host: Host, mut output: Output) -> Exit {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => return usage(&error, &mut output),
    };
    output.set_format(cli.output);
    let mut context = Context { host, output, socket: cli.socket };
    match dispatch(cli.command, &mut context) {
        Ok(()) => Exit::Ok,
        Err(failure) => {
            if !failure.message.is_empty() {
                context.output.error(&failure.message);
                failure.more.iter().for_each(|line| context.output.note(line));
            }
            failure.exit
        }
    }
}

/// Help and version are data; a wrong command line is not.
fn usage(error: &clap::Error, output: &mut Output) -> Exit {
    let text = error.render();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let styled = if output.is_terminal() { text.ansi().to_string() } else { text.to_string() };
            match output.document(&styled) {
                Ok(()) => Exit::Ok,
                Err(error) => Failure::from(error).exit,
            }
        }
        _ => {
            text.to_string().trim_end().lines().for_each(|line| output.note(line));
            Exit::Usage
        }
    }
}

fn dispatch(command: Command, context: &mut Context) -> Result<(), Failure> {
    match command {
        Command::Agent(command) => agent::run(command, context),
        Command::Init(args) => init::run(args, context),
        Command::Status(args) => context.wait(async |context| status::run(args, context).await),
        Command::Doctor => doctor::run(context),
        Command::Config(ConfigCommand::Show { source, origin }) => config::show(source, origin, context),
        Command::Config(ConfigCommand::Example) => config::print_example(context),
        Command::Log(LogCommand::Level { level }) => {
            context.wait(async |context| status::log_level(level, context).await)
        }
        Command::Fetch(command) => context.wait(async |context| fetch::run(command, context).await),
        Command::Validate(ValidateCommand::Jwt { audience, token }) => {
            context.wait(async |context| validate::jwt(&audience, &token, context).await)
        }
        Command::Entry(command) => context.wait(async |context| entry::run(command, context).await),
        Command::Explain(args) => context.wait(async |context| explain::run(args, context).await),
        Command::Credential(command) => context.wait(async |context| credential::run(command, context).await),
        Command::Session(command) => context.wait(async |context| session::run(command, context).await),
        Command::Run(args) => context.wait(async |context| run::run(args, context).await),
        Command::Prove(args) => context.wait(async |context| prove::run(args, context).await),
        Command::Verify(args) => context.wait(async |context| verify::run(args, context).await),
        Command::Write(args) => context.wait(async |context| write::run(*args, context).await),
        Command::Approval(command) => context.wait(async |context| approval::run(command, context).await),
        Command::Policy(command) => policy::run(command, context),
        Command::Audit(command) => context.wait(async |context| audit::run(command, context).await),
        Command::Backup(args) => context.wait(async |context| backup::run(args, context).await),
        Command::Restore(args) => restore::run(args, context),
        Command::Authority(command) => context.wait(async |context| authority::run(command, context).await),
        Command::Bundle(command) => context.wait(async |context| bundle::run(command, context).await),
        Command::Proxy(command) => proxy::run(command, context),
        Command::Completion { shell } => manual::completion(shell, context),
        Command::Man { write } => manual::man(write.as_deref(), context),
    }
}

/// What every command has.
struct Context {
    host: Host,
    output: Output,
    socket: Option<String>,
}

impl Context {
    /// Runs the asynchronous part of a command, on this thread.
    fn wait(&mut self, work: impl AsyncFnOnce(&mut Self) -> Result<(), Failure>) -> Result<(), Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| Failure::new(Exit::Failure, format!("cannot start: {error}")))?;
        runtime.block_on(work(self))
    }

    /// The Workload API this command talks to.
    fn workload_api(&self) -> Result<WorkloadApi, Failure> {
        Ok(WorkloadApi::new(sockets::workload(&self.host, self.socket.as_deref())?))
    }

    /// The session services this command talks to, on the workload socket.
    fn sessions(&self) -> Result<Sessions, Failure> {
        let endpoint = sockets::workload(&self.host, self.socket.as_deref())?;
        Ok(Sessions { channel: channel(&endpoint), endpoint })
    }

    /// The admin API this command talks to.
    fn admin(&self) -> Result<Admin, Failure> {
        let endpoint = sockets::admin(&self.host, self.socket.as_deref())?;
        Ok(Admin { channel: channel(&endpoint), endpoint })
    }

    /// Prints `document` with `"version": 1` before its own fields.
    fn json(&mut self, document: &impl Serialize) -> Result<(), Failure> {
        Ok(self.output.json(&Versioned { version: 1, document })?)
    }
}

/// Every JSON document says which version of our formats it is in.
#[derive(Serialize)]
struct Versioned<'a, T: Serialize> {
    version: u32,
    #[serde(flatten)]
    document: &'a T,
}

/// The admin socket.
struct Admin {
    endpoint: Endpoint,
    channel: Channel,
}

/// Makes a method that gives the client of one admin service.
macro_rules! services {
    ($($method:ident: $module:ident :: $client:ident),+ $(,)?) => {
        impl Admin {
            $(
                fn $method(&self) -> crate::proto::admin::$module::$client<Channel> {
                    crate::proto::admin::$module::$client::new(self.channel.clone())
                        .max_decoding_message_size(MAX_ANSWER_BYTES)
                }
            )+
        }
    };
}

services! {
    agent: agent_client::AgentClient,
    entries: entries_client::EntriesClient,
    authorities: authorities_client::AuthoritiesClient,
    bundles: bundles_client::BundlesClient,
    credentials: credentials_client::CredentialsClient,
    sessions: session_admin_client::SessionAdminClient,
    approvals: approvals_client::ApprovalsClient,
    policies: policies_client::PoliciesClient,
    audit_log: audit_log_client::AuditLogClient,
}

impl Admin {
    /// The answer to one call, or why there is none.
    async fn answer<T>(&self, call: impl Future<Output = Result<tonic::Response<T>, Status>>) -> Result<T, Failure> {
        let answer = within(call, &self.endpoint).await?;
        answer.map(tonic::Response::into_inner).map_err(|status| Failure::from_admin(&self.endpoint, &status))
    }
}

/// The session services on the workload socket.
struct Sessions {
    endpoint: Endpoint,
    channel: Channel,
}

impl Sessions {
    fn client(&self) -> SessionsClient<InterceptedService<Channel, SecurityHeader>> {
        SessionsClient::new(with_header(self.channel.clone())).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    /// The answer to one call, or why there is none.
    async fn answer<T>(&self, call: impl Future<Output = Result<tonic::Response<T>, Status>>) -> Result<T, Failure> {
        let answer = within(call, &self.endpoint).await?;
        answer.map(tonic::Response::into_inner).map_err(|status| self.failure(&status))
    }

    /// What a status of theirs means.
    fn failure(&self, status: &Status) -> Failure {
        Failure::from_session(&self.endpoint, status)
    }
}

/// What `call` gives within the time a person waits.
async fn within<T>(call: impl Future<Output = T>, endpoint: &Endpoint) -> Result<T, Failure> {
    tokio::time::timeout(ANSWER_TIMEOUT, call).await.map_err(|_| {
        let seconds = ANSWER_TIMEOUT.as_secs();
        Failure::new(Exit::Unreachable, format!("the agent at `{endpoint}` gave no answer within {seconds} seconds"))
    })
}
