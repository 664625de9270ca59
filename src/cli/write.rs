//! `tether write`: SVIDs in files, kept fresh.

use std::collections::BTreeSet;
use std::time::Duration;

use sd_notify::NotifyState;
use time::OffsetDateTime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::args::WriteArgs;
use super::failure::{Exit, Failure};
use super::output::time;
use super::{Context, sockets, within};
use crate::base::drain;
use crate::base::entropy::Entropy;
use crate::base::text::chain;
use crate::client::export::Exports;
use crate::files::{self, Draft, JwtDraft, Keeper, Layout, Notice, Output, WriteError};

/// How long programs that were started here have to end.
const DRAIN: Duration = Duration::from_secs(15);

/// What is to be kept.
struct Plan {
    outputs: Vec<Output>,
    once: bool,
    /// The agent's socket, where a file names one.
    socket: Option<String>,
    warnings: Vec<String>,
}

pub(super) async fn run(args: WriteArgs, context: &mut Context) -> Result<(), Failure> {
    let plan = plan(args)?;
    for warning in &plan.warnings {
        context.output.note(&format!("warning: {warning}"));
    }
    let named = context.socket.as_deref().or(plan.socket.as_deref());
    let exports = Exports::new(sockets::workload(&context.host, named)?);
    let open = |(number, output)| {
        let (clock, entropy) = (context.host.clock.clone(), Entropy::system());
        Keeper::open(number, output, exports.clone(), clock, entropy)
    };
    let keepers: Vec<Keeper> = plan.outputs.into_iter().enumerate().map(open).collect::<Result<_, _>>()?;
    if !plan.once {
        return keep(keepers, context).await;
    }
    for keeper in keepers {
        for notice in within(keeper.once(), exports.endpoint()).await?? {
            say(&notice, context);
        }
    }
    Ok(())
}

fn plan(args: WriteArgs) -> Result<Plan, Failure> {
    let wrong = |error: &dyn std::fmt::Display| Failure::new(Exit::Invalid, error.to_string());
    let WriteArgs { config, spiffe_helper, directory, once, layout, one } = args;
    let layout = layout.map(Layout::from);
    if let Some(path) = config {
        let outputs = files::read(&path).map_err(|mistake| wrong(&mistake))?.outputs;
        return Ok(Plan { outputs, once, socket: None, warnings: Vec::new() });
    }
    if let Some(path) = spiffe_helper {
        let read = files::read_helper(&path, layout.unwrap_or_default()).map_err(|mistake| wrong(&mistake))?;
        let (once, outputs) = (once || read.once, vec![read.output]);
        return Ok(Plan { outputs, once, socket: read.socket, warnings: read.warnings });
    }
    let usage = |message: String| Failure::new(Exit::Usage, message);
    let files = one.names_of_files().map_err(usage)?;
    let mut jwt: Vec<JwtDraft> = Vec::new();
    for (file, audience) in one.jwt {
        match jwt.iter_mut().find(|token| token.file == file) {
            Some(token) => token.audience.push(audience),
            None => jwt.push(JwtDraft { audience: vec![audience], file }),
        }
    }
    let exec = one.command.into_iter().map(|word| word.into_string());
    let exec = exec.collect::<Result<_, _>>().map_err(|_| usage("the command is not UTF-8 text".to_owned()))?;
    let draft = Draft {
        directory: directory.unwrap_or_default(),
        spiffe_id: one.spiffe_id,
        hint: one.hint,
        layout: layout.unwrap_or_default(),
        names: one.names.map(Into::into),
        files,
        jwt,
        federated_in_bundle: one.federated_in_bundle,
        mode: one.mode,
        key_mode: one.key_mode,
        world_readable_keys: one.world_readable_keys,
        owner: one.owner,
        group: one.group,
        password_file: one.password_file,
        oidc_issuer: one.oidc_issuer,
        signal: one.signal,
        pid_file: one.pid_file,
        process: one.process,
        exec,
        exec_timeout_seconds: one.exec_timeout,
        systemd_reload: one.systemd_reload,
        ..Draft::default()
    };
    let output = Output::new(draft).map_err(|error| usage(chain(&error)))?;
    Ok(Plan { outputs: vec![output], once, socket: None, warnings: Vec::new() })
}

/// Keeps all outputs until a signal ends it.
async fn keep(keepers: Vec<Keeper>, context: &mut Context) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::new(Exit::Failure, format!("cannot wait for signals: {error}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut hang_up = signal(SignalKind::hangup()).map_err(failed)?;
    let (trigger, watcher) = drain::channel();
    let (again, asked) = watch::channel(0);
    let (notices, mut heard) = mpsc::unbounded_channel();
    let outputs = keepers.len();
    let mut keeping = JoinSet::new();
    for keeper in keepers {
        keeping.spawn(keeper.keep(asked.clone(), notices.clone(), watcher.clone()));
    }
    drop((asked, notices, watcher));

    let mut waiting: BTreeSet<usize> = (0..outputs).collect();
    let mut announced = false;
    let mut watchdog = sd_notify::watchdog_enabled().map(|interval| {
        let mut ticks = tokio::time::interval((interval / 2).max(Duration::from_millis(1)));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        ticks
    });
    loop {
        let tick = async {
            match &mut watchdog {
                Some(ticks) => drop(ticks.tick().await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hang_up.recv() => {
                waiting = (0..outputs).collect();
                reloading();
                again.send_modify(|count| *count += 1);
            }
            () = tick => notify(&[NotifyState::Watchdog]),
            notice = heard.recv() => {
                let Some(notice) = notice else { break };
                let text = say(&notice, context);
                if let Notice::InForce { output, .. } = notice {
                    waiting.remove(&output);
                }
                match waiting.is_empty() {
                    true => notify(&[NotifyState::Ready, NotifyState::Status(&text)]),
                    false => notify(&[NotifyState::Status(&text)]),
                }
                if waiting.is_empty() && !announced {
                    announced = true;
                    context.output.line("ready")?;
                }
            }
            ended = keeping.join_next() => match ended {
                Some(Err(broken)) if broken.is_panic() => std::panic::resume_unwind(broken.into_panic()),
                _ => break,
            },
        }
    }
    notify(&[NotifyState::Stopping]);
    trigger.start();
    let all = async { while keeping.join_next().await.is_some() {} };
    // Whatever does not end by then was told to.
    let _ = tokio::time::timeout(DRAIN, all).await;
    Ok(())
}

/// Says what has happened, with what it is worth.
fn say(notice: &Notice, context: &mut Context) -> String {
    let works = |until: &Option<OffsetDateTime>| {
        until.map_or_else(String::new, |until| format!("; it works for whoever reads it until {}", time(until)))
    };
    let text = match notice {
        Notice::InForce { text, until, .. } => format!("{text}{}", works(until)),
        Notice::Told { text, .. } | Notice::Trouble { text, .. } => text.clone(),
    };
    context.output.note(&text);
    text
}

fn notify(states: &[NotifyState<'_>]) {
    // Without systemd nothing is told and nothing fails.
    let _ = sd_notify::notify(states);
}

fn reloading() {
    if let Ok(now) = NotifyState::monotonic_usec_now() {
        notify(&[NotifyState::Reloading, now]);
    }
}

impl From<WriteError> for Failure {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Client(error) => error.into(),
            error => Self::new(Exit::Failure, chain(&error)),
        }
    }
}
