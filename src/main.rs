//! The `tether` command.

use std::process::ExitCode;

use tether::cli::{self, Host, Output};

fn main() -> ExitCode {
    let host = Host::process();
    let output = Output::process(host.env.get("NO_COLOR").is_some_and(|value| !value.is_empty()));
    ExitCode::from(cli::run(std::env::args_os(), host, output).code())
}
