//! `tether completion` and `tether man`, made from the command definition, the settings and the fields of entries.

mod formats;

use std::path::Path;

use clap::{Command, CommandFactory};

use crate::base::durable;

use super::Context;
use super::args::Cli;
use super::failure::Failure;

/// Readable by everyone.
const PUBLIC: u32 = 0o644;

pub(super) fn completion(shell: clap_complete::Shell, context: &mut Context) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "tether", &mut script);
    Ok(context.output.document(&String::from_utf8_lossy(&script))?)
}

pub(super) fn man(dir: Option<&Path>, context: &mut Context) -> Result<(), Failure> {
    let command = command();
    let Some(dir) = dir else {
        return Ok(context.output.document(&page(command, "tether")?)?);
    };
    durable::shared_dir(dir, 0o755)?;
    for (name, page) in formats::pages() {
        durable::replace(&dir.join(name), page.as_bytes(), PUBLIC)?;
    }
    write_pages(command, "tether", dir)
}

/// The command as its pages describe it.
pub(super) fn command() -> Command {
    let mut command = Cli::command().disable_help_subcommand(true).version(env!("CARGO_PKG_VERSION"));
    command.build();
    command
}

/// A page for the command and for each below it: `tether-fetch-x509.1`.
fn write_pages(command: Command, name: &str, dir: &Path) -> Result<(), Failure> {
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        write_pages(below.clone(), &format!("{name}-{}", below.get_name()), dir)?;
    }
    durable::replace(&dir.join(format!("{name}.1")), page(command, name)?.as_bytes(), PUBLIC)?;
    Ok(())
}

fn page(command: Command, name: &str) -> Result<String, Failure> {
    let mut page = Vec::new();
    clap_mangen::Man::new(command).render(&mut page)?;
    let page = String::from_utf8_lossy(&page);
    // It has no room for an empty date, and breaks lines around empty ones, which formatters complain of.
    let body: Vec<_> = page.lines().filter(|line| !line.starts_with(".TH ")).collect();
    let body = body.join("\n").replace("\n.br\n\n.br\n", "\n.sp\n");
    Ok(format!("{}{body}\n", title(name, 1)))
}

/// The line that every page begins with. The date is that of what it was built from.
fn title(name: &str, section: u8) -> String {
    let (name, date, version) = (name.to_uppercase(), env!("TETHER_DATE"), env!("CARGO_PKG_VERSION"));
    format!(".TH \"{name}\" {section} \"{date}\" \"tether {version}\" \"tether\"\n")
}
