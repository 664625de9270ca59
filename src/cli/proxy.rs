//! `tether proxy`: what both proxies have in common as programs.

mod inbound;
mod outbound;

use std::future::Future;
use std::io;

use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};

use super::Context;
use super::args::{LogArgs, LogFormatName, ProxyCommand};
use super::failure::{Exit, Failure};
use crate::base::text::chain;
use crate::telemetry;

pub(super) fn run(command: ProxyCommand, context: &mut Context) -> Result<(), Failure> {
    match command {
        ProxyCommand::Inbound(args) => inbound::run(args, context),
        ProxyCommand::Outbound(args) => outbound::run(args, context),
    }
}

/// Logs as told, and runs `work` on as many threads as there are processors: a handshake waits for the agent on its own.
fn serve(
    log: &LogArgs,
    context: &mut Context,
    work: impl AsyncFnOnce(&mut Context) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let format = match log.log_format {
        LogFormatName::Text => telemetry::Format::Text,
        LogFormatName::Json => telemetry::Format::Json,
    };
    let logging = telemetry::init(log.log_level.as_str(), format);
    let _logging = logging.map_err(|error| Failure::new(Exit::Failure, chain(&error)))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::new(Exit::Failure, format!("cannot start: {error}")))?;
    runtime.block_on(work(context))
}

/// Returns when the process is told to end. To be made before anything is bound: a signal that comes early counts.
fn told_to_end() -> Result<impl Future<Output = ()>, Failure> {
    let failed = |error: io::Error| Failure::new(Exit::Failure, format!("cannot wait for signals: {error}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tell(&[NotifyState::Stopping, NotifyState::Status("draining")]);
    })
}

/// What was bound. The last line is `ready`: from then on requests are answered.
fn announce(fields: &[(&str, String)], context: &mut Context) -> Result<(), Failure> {
    context.output.fields(fields)?;
    context.output.line("ready")?;
    tell(&[NotifyState::Ready]);
    Ok(())
}

/// Without systemd nothing is told and nothing fails.
fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "systemd cannot be notified");
    }
}
