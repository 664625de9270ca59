//! The references in `docs/reference` say what the code says: they are written by these tests, and compared otherwise.

use std::fmt::Write as _;
use std::path::Path;

use clap::{Arg, Command};

use crate::metrics::Described;
use crate::registry::{FIELDS, SELECTORS};

/// Compares a page with what it should say; with TETHER_WRITE_DOCS set, writes it first.
fn expect_page(name: &str, made_from: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference").join(name);
    let (title, rest) = text.split_once('\n').expect("a title");
    let text = format!("{title}\n\n<!-- Made from {made_from}: change it there. -->\n{}\n", rest.trim_end());
    if std::fs::read_to_string(&path).unwrap_or_default() == text {
        return;
    }
    if std::env::var_os("TETHER_WRITE_DOCS").is_some() {
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("created");
        std::fs::write(&path, text).expect("written");
    }
    panic!("docs/reference/{name} is not what {made_from} says: run this test with TETHER_WRITE_DOCS=1 to write it");
}

/// The command line's descriptions have lost their full stop.
fn sentence(text: &str) -> String {
    if text.is_empty() || text.ends_with(['.', ']']) { text.to_owned() } else { format!("{text}.") }
}

/// Text for a cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

#[test]
fn the_reference_of_commands_is_what_the_command_line_says() {
    let command = crate::cli::manual::command();
    let mut text = "# Commands\n\n".to_owned();
    text.push_str(
        "Every command that prints data takes `--output json`, and every command takes `--socket SOCKET`. `tether COMMAND --help` \
         and `man tether-COMMAND` say the same as this page.\n",
    );
    let after = command.get_after_long_help().expect("exit codes").to_string();
    let _ = write!(text, "\n```\n{}\n```\n", after.trim_end());
    below(&command, "tether", &mut text);
    expect_page("commands.md", "src/cli/args.rs and those below it", &text);
}

/// A chapter for each command that does something, in the order of `--help`.
fn below(command: &Command, name: &str, text: &mut String) {
    for command in command.get_subcommands().filter(|command| !command.is_hide_set()) {
        let name = format!("{name} {}", command.get_name());
        let about = command.get_long_about().or(command.get_about()).expect("every command is described");
        let about = sentence(&about.to_string());
        if command.has_subcommands() {
            let _ = write!(text, "\n## {name}\n\n{about}\n");
            below(command, &name, text);
            continue;
        }
        let level = "#".repeat(name.split(' ').count());
        let _ = write!(text, "\n{level} {name}\n\n{about}\n\n```\n{}\n```\n", usage(command, &name));
        arguments(command, text);
    }
}

fn usage(command: &Command, name: &str) -> String {
    let usage = command.clone().render_usage().to_string();
    let usage = usage.trim_start_matches("Usage: ").replace(" [OPTIONS]", "");
    let rest = usage.split_once(name).map_or(usage.as_str(), |(_, rest)| rest);
    format!("{name} [OPTIONS]{rest}")
}

fn arguments(command: &Command, text: &mut String) {
    let own =
        |arg: &&Arg| !arg.is_global_set() && !arg.is_hide_set() && arg.get_id() != "help" && arg.get_id() != "version";
    let arguments: Vec<_> = command.get_arguments().filter(own).collect();
    if arguments.is_empty() {
        return;
    }
    text.push_str("\n| argument | meaning |\n|---|---|\n");
    for arg in arguments {
        let values = arg.get_value_names().unwrap_or_default();
        let takes_value = arg.get_action().takes_values();
        let value = if takes_value {
            values.iter().map(|v| v.to_string()).collect::<Vec<_>>().join(" ")
        } else {
            String::new()
        };
        let form = match (arg.get_long(), takes_value) {
            (Some(long), true) => format!("--{long} {value}"),
            (Some(long), false) => format!("--{long}"),
            (None, _) => value,
        };
        let mut help = arg.get_long_help().or(arg.get_help()).map(ToString::to_string).unwrap_or_default();
        help = sentence(&help);
        let possible: Vec<_> =
            arg.get_possible_values().iter().map(|value| format!("`{}`", value.get_name())).collect();
        if takes_value && !possible.is_empty() {
            let _ = write!(help, " One of {}.", possible.join(", "));
        }
        let defaults: Vec<_> = arg.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
        if takes_value && !defaults.is_empty() {
            let _ = write!(help, " Default: `{}`.", defaults.join(" "));
        }
        let _ = writeln!(text, "| `{}` | {} |", cell(&form), cell(&help));
    }
}

#[test]
fn the_reference_of_the_configuration_is_what_the_settings_say() {
    let mut text = "# Configuration\n".to_owned();
    for section in crate::config::reference() {
        let heading = if section.name.is_empty() { String::new() } else { format!("## [{}]\n\n", section.name) };
        let _ = write!(text, "\n{heading}{}\n", section.doc.join("\n\n"));
        for setting in section.settings {
            let default =
                setting.default.map_or("Not set by default.".to_owned(), |value| format!("Default: `{value}`"));
            let _ = write!(text, "\n### {}\n\n{}\n\n{default}\n", setting.name, setting.doc.join("\n\n"));
        }
    }
    expect_page("configuration.md", "src/config/mod.rs", &text);
}

#[test]
fn the_reference_of_entries_is_what_the_fields_say() {
    let mut text = "# Entries\n\n".to_owned();
    text.push_str(
        "Files in `/etc/tether/entries.d` that end in `.toml` have any number of `[[entry]]` tables. [Entries](../entries.md) says \
         how to write them; `man tether-entries` has this page.\n\n| field | | meaning | example |\n|---|---|---|---|\n",
    );
    for field in FIELDS {
        let _ =
            writeln!(text, "| `{}` | {} | {} | `{}` |", field.name, field.kind, cell(field.doc), cell(field.example));
    }
    expect_page("entries.md", "src/registry/reference.rs", &text);
}

#[test]
fn the_reference_of_selectors_is_what_their_list_says() {
    let mut text = "# Selectors\n\n".to_owned();
    text.push_str(
        "A selector is a fact about a process, `type:key:value`, found out by the agent. [Entries](../entries.md) says which are \
         evidence of what. `tether explain --pid PID` shows those of a process, `tether explain --kinds` those there are.\n\n\
         | selector | meaning |\n|---|---|\n",
    );
    for selector in SELECTORS {
        let (kind, key) = selector.kind;
        let _ = writeln!(text, "| `{kind}:{key}:{}` | {} |", selector.example, cell(selector.doc));
    }
    expect_page("selectors.md", "src/registry/reference.rs", &text);
}

#[test]
fn the_reference_of_metrics_is_what_is_registered() {
    let mut text = "# Metrics\n\n".to_owned();
    text.push_str(
        "In the OpenMetrics format, at `/metrics` of `[http] address`, and for the proxies where their `--metrics` says. Labels are closed sets: never \
         a SPIFFE ID, a path or a process id. `packaging/prometheus/tether.rules.yml` has alert rules on them.\n\n## The agent\n",
    );
    table(crate::agent::metrics(), &mut text);
    text.push_str("\n## The proxies\n");
    table(crate::proxy::metrics::Metrics::described(), &mut text);
    expect_page("metrics.md", "src/metrics.rs, src/agent/activity.rs and src/proxy/metrics.rs", &text);
}

fn table(metrics: Vec<Described>, text: &mut String) {
    text.push_str("\n| metric | kind | labels | meaning |\n|---|---|---|---|\n");
    for metric in metrics {
        let labels: Vec<_> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
        let _ =
            writeln!(text, "| `{}` | {} | {} | {} |", metric.name, metric.kind, labels.join(" "), cell(metric.help));
    }
}

#[test]
fn what_the_alert_rules_name_is_measured() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let rules = std::fs::read_to_string(root.join("packaging/prometheus/tether.rules.yml")).expect("there");
    let known: Vec<_> =
        crate::agent::metrics().into_iter().chain(crate::proxy::metrics::Metrics::described()).collect();
    let expressions: String =
        rules.lines().filter(|line| !line.trim_start().starts_with('#')).fold(String::new(), |all, line| {
            all + line.split("summary:").next().unwrap_or_default().split("description:").next().unwrap_or_default()
                + "\n"
        });
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let named = expressions.split(|c| !is_name(c)).filter(|word| word.starts_with("tether_"));
    let mut count = 0;
    for name in named {
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
        assert!(known.iter().any(|metric| metric.name == name || metric.name == base), "no metric is called `{name}`");
        count += 1;
    }
    assert!(count >= 15, "the rules were read: {count}");
}

#[test]
fn every_alert_has_a_chapter_in_the_operations_guide() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let rules = std::fs::read_to_string(root.join("packaging/prometheus/tether.rules.yml")).expect("there");
    let guide = std::fs::read_to_string(root.join("docs/operations.md")).expect("there");
    let anchor = |line: &str| {
        line.trim_start_matches('#').trim().to_lowercase().replace([' ', '.'], "-").replace(['`', ','], "")
    };
    let chapters: Vec<_> = guide.lines().filter(|line| line.starts_with('#')).map(anchor).collect();
    let (alerts, books) = (rules.matches("- alert:").count(), rules.matches("runbook_url:").count());
    assert!(alerts >= 15 && alerts == books, "{alerts} alerts, {books} runbooks");
    for link in rules.lines().filter_map(|line| line.split_once("operations.md#")) {
        let wanted = link.1.trim().trim_matches('"');
        assert!(chapters.iter().any(|chapter| chapter == wanted), "docs/operations.md has no chapter `{wanted}`");
    }
}
