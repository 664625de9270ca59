//! `tether status --watch`: a screen on a terminal, and elsewhere the document again whenever something changed.
//!
//! An agent that is restarted meanwhile is waited for: what was known of it stays on the screen until it answers again.

use std::time::Duration;

use serde_json::{Map, Value};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Interval, MissedTickBehavior, interval, timeout};

use super::frame::frame;
use super::{fetch, print};
use crate::cli::failure::{Exit, Failure};
use crate::cli::output::terminal_size;
use crate::cli::{Admin, Context};

/// How often the agent is asked.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long it may take to answer before the screen says that it does not.
const PATIENCE: Duration = Duration::from_secs(5);

pub(super) async fn run(admin: &Admin, context: &mut Context) -> Result<(), Failure> {
    let document = fetch(admin).await?;
    let is_dumb = context.host.variable("TERM").is_none_or(|kind| kind == "dumb");
    if context.output.is_terminal() && !context.output.is_json() && !is_dumb {
        on_screen(document, admin, context).await
    } else {
        as_it_changes(document, admin, context).await
    }
}

fn ticks() -> Interval {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// A document each time that something in it changed.
async fn as_it_changes(mut document: Map<String, Value>, admin: &Admin, context: &mut Context) -> Result<(), Failure> {
    let (mut ticks, mut is_missing) = (ticks(), false);
    let mut printed = None;
    loop {
        if printed.as_ref() != Some(&lasting(&document)) {
            if context.output.is_json() {
                context.output.json(&document)?;
            } else {
                if printed.is_some() {
                    context.output.line("")?;
                }
                print(&document, context)?;
            }
            printed = Some(lasting(&document));
        }
        ticks.tick().await;
        match fetch(admin).await {
            Ok(next) => (document, is_missing) = (next, false),
            Err(failure) if failure.exit != Exit::Unreachable => return Err(failure),
            Err(failure) if !is_missing => {
                context.output.note(&format!("{}; waiting for it", failure.message));
                is_missing = true;
            }
            Err(_) => {}
        }
    }
}

/// The document without what changes by itself all the time.
fn lasting(document: &Map<String, Value>) -> Map<String, Value> {
    let mut lasting = document.clone();
    let authorities = lasting.get_mut("authorities").and_then(Value::as_array_mut);
    for authority in authorities.into_iter().flatten().filter_map(Value::as_object_mut) {
        authority.remove("age_seconds");
    }
    lasting
}

/// What ends the screen, or changes it.
struct Signals {
    resized: Signal,
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
    stop: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            resized: signal(SignalKind::window_change())?,
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
            stop: signal(SignalKind::from_raw(nix::libc::SIGTSTP))?,
        })
    }
}

async fn on_screen(mut document: Map<String, Value>, admin: &Admin, context: &mut Context) -> Result<(), Failure> {
    let (mut ticks, mut missing) = (ticks(), None);
    let mut signals = Signals::new()?;
    let clock = context.host.clock.clone();
    // Left when this is dropped: on every way out, a panic among them.
    let mut screen = context.output.screen()?;
    loop {
        // Asking goes on while the terminal is looked after: an agent that hangs keeps nobody here.
        let asked = async {
            ticks.tick().await;
            timeout(PATIENCE, fetch(admin)).await
        };
        tokio::pin!(asked);
        let answer = loop {
            screen.draw(&frame(&document, missing.as_deref(), clock.now(), terminal_size()))?;
            tokio::select! {
                _ = signals.resized.recv() => {}
                _ = signals.interrupt.recv() => return Ok(()),
                _ = signals.terminate.recv() => return Ok(()),
                _ = signals.hang_up.recv() => return Ok(()),
                _ = signals.stop.recv() => screen.pause()?,
                answer = &mut asked => break answer,
            }
        };
        match answer {
            Ok(Ok(next)) => (document, missing) = (next, None),
            Ok(Err(failure)) if failure.exit == Exit::Unreachable => missing = Some(failure.message),
            Ok(Err(failure)) => return Err(failure),
            Err(_) => missing = Some(format!("the agent gave no answer within {} seconds", PATIENCE.as_secs())),
        }
    }
}
