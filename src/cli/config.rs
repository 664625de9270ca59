//! `tether config`, and where the agent's configuration comes from.

use std::path::PathBuf;

use serde::Serialize;

use crate::config::{self, Source};

use super::args::ConfigArgs;
use super::failure::{Exit, Failure};
use super::{Context, Host};

/// The sources that the flags name.
pub(super) fn source(args: ConfigArgs, host: &Host) -> Result<Source, Failure> {
    let dev = match (args.dev, args.dir) {
        (false, _) => None,
        (true, None) => config::dev_directories(&host.env, host.uid).into_iter().next(),
        (true, Some(dir)) => Some(std::path::absolute(&dir).map_err(|error| {
            Failure::new(Exit::Usage, format!("cannot use the directory `{}`: {error}", dir.display()))
        })?),
    };
    let file = match dev {
        Some(_) => None,
        None => Some(args.config.unwrap_or_else(|| PathBuf::from(config::SYSTEM_FILE))),
    };
    Ok(Source { file, dev, env: host.env.clone(), flags: args.set })
}

#[derive(Serialize)]
struct Document {
    settings: Vec<config::Shown>,
}

pub(super) fn show(args: ConfigArgs, origin: bool, context: &mut Context) -> Result<(), Failure> {
    let loaded = source(args, &context.host)?.load()?;
    if context.output.is_json() {
        return context.json(&Document { settings: loaded.settings() });
    }
    Ok(context.output.document(&config::show(&loaded, origin))?)
}

pub(super) fn print_example(context: &mut Context) -> Result<(), Failure> {
    Ok(context.output.document(&config::example())?)
}
