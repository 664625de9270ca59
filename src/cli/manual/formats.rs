//! The pages of section 5: what stands in the files.

use clap_mangen::roff::{Inline, Roff, bold, roman};

use super::title;
use crate::config;
use crate::registry::{FIELDS, SELECTORS};

/// The pages with their names.
pub(super) fn pages() -> [(&'static str, String); 2] {
    [("tether.toml.5", configuration()), ("tether-entries.5", entries())]
}

fn page(name: &str, about: &str) -> Roff {
    let mut page = Roff::new();
    page.control("SH", ["NAME"]).text([roman(format!("{name} - {about}"))]);
    page
}

fn paragraphs(page: &mut Roff, paragraphs: &[String]) {
    for (number, paragraph) in paragraphs.iter().enumerate() {
        if number > 0 {
            page.control("PP", []);
        }
        page.text(inline(paragraph));
    }
}

/// What stands between backticks is bold.
fn inline(text: &str) -> Vec<Inline> {
    let pieces = text.split('`').enumerate();
    pieces.map(|(number, piece)| if number % 2 == 0 { roman(piece) } else { bold(piece) }).collect()
}

/// A term and what is said about it, further in.
fn term(page: &mut Roff, term: &str, value: Option<&str>, doc: &[String]) {
    page.control("TP", []);
    page.text([bold(term), roman(value.map(|value| format!(" = {value}")).unwrap_or_default())]);
    for (number, paragraph) in doc.iter().enumerate() {
        if number > 0 {
            page.control("IP", []);
        }
        page.text(inline(paragraph));
    }
}

fn verbatim(page: &mut Roff, text: &str) {
    page.control("PP", []).control("nf", []);
    page.text([roman(text.trim_end())]);
    page.control("fi", []);
}

fn see_also(page: &mut Roff, pages: &[(&str, &str)]) {
    page.control("SH", ["SEE ALSO"]);
    for (number, (name, section)) in pages.iter().enumerate() {
        let end = if number + 1 < pages.len() { "," } else { "" };
        page.text([bold(*name), roman(format!("({section}){end}"))]);
    }
}

fn configuration() -> String {
    let mut page = page("tether.toml", "configuration of the tether agent");
    page.control("SH", ["SYNOPSIS"]);
    page.text([roman(config::SYSTEM_FILE)]);
    page.control("br", []);
    page.text([roman(format!("{}.d/*.toml", config::SYSTEM_FILE))]);
    let sections = config::reference();
    for section in &sections {
        let heading = if section.name.is_empty() { "DESCRIPTION".to_owned() } else { format!("[{}]", section.name) };
        page.control("SH", [heading.as_str()]);
        paragraphs(&mut page, &section.doc);
        for setting in &section.settings {
            let key = setting.name.rsplit('.').next().unwrap_or(&setting.name);
            term(&mut page, key, setting.default.as_deref(), &setting.doc);
        }
    }
    see_also(&mut page, &[("tether", "1"), ("tether-init", "1"), ("tether-agent-check", "1"), ("tether-entries", "5")]);
    title("tether.toml", 5) + &page.render()
}

const EXAMPLE: &str = r#"[[entry]]
id        = "billing-api"
spiffe_id = "spiffe://example.org/unit/{systemd.name}"
match     = ["systemd:unit:billing.service", "unix:user:billing"]
owner     = "team-billing@example.org"
audiences = ["https://api.example.com"]
"#;

fn entries() -> String {
    let mut page = page("tether-entries", "registration entries of the tether agent");
    page.control("SH", ["SYNOPSIS"]);
    page.text([roman("/etc/tether/entries.d/*.toml")]);
    page.control("SH", ["DESCRIPTION"]);
    paragraphs(
        &mut page,
        &[
            "An entry says which processes get which identity. Each file in the directory has any number of `[[entry]]` tables. \
             The files are read again when one changes; with a mistake in any of them all stay as they were, and \
             `tether agent reload`, `tether agent check` and the log say where it is."
                .to_owned(),
            "A process that matches several entries gets the identity of each. Entries can also be made with \
             `tether entry create`; those are kept in the agent's store. Other names than the following are mistakes."
                .to_owned(),
        ],
    );
    verbatim(&mut page, EXAMPLE);
    page.control("SH", ["FIELDS"]);
    for field in FIELDS {
        term(&mut page, field.name, Some(field.example), &[format!("{}. {}", capital(field.kind), field.doc)]);
    }
    page.control("SH", ["SELECTORS"]);
    paragraphs(
        &mut page,
        &["A selector is a fact about a process, found out by the agent: `type:key:value`. `tether explain --pid PID` shows those \
           of a process."
            .to_owned()],
    );
    for selector in SELECTORS {
        let (kind, key) = selector.kind;
        term(&mut page, &format!("{kind}:{key}:{}", selector.example), None, &[selector.doc.to_owned()]);
    }
    see_also(
        &mut page,
        &[
            ("tether", "1"),
            ("tether-explain", "1"),
            ("tether-entry", "1"),
            ("tether-agent-check", "1"),
            ("tether.toml", "5"),
        ],
    );
    title("tether-entries", 5) + &page.render()
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}
