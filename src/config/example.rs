//! The configuration as text: the example file, and what an agent would run with.

use std::fmt::Write as _;

use super::settings::{Settings, Visitor};
use super::value::Value;
use super::{Config, Loaded};

/// The text of the shipped `tether.toml`: every setting with its documentation and its default, all commented out.
pub fn example() -> String {
    let mut writer = Example { text: comment(Config::DOC) };
    Config::default().visit("", &mut writer);
    writer.text
}

struct Example {
    text: String,
}

impl Visitor for Example {
    fn section(&mut self, path: &str, doc: &[&str]) {
        let _ = write!(self.text, "\n\n{}[{path}]\n", comment(doc)); // writing to a string cannot fail
    }

    fn setting(&mut self, path: &str, doc: &[&str], value: &mut dyn Value) {
        let key = path.rsplit('.').next().unwrap_or(path);
        let value = match (path, value.toml()) {
            ("trust_domain", _) => "\"example.org\"".to_owned(),
            (_, Some(value)) => value,
            (_, None) => "\"\"".to_owned(),
        };
        let _ = write!(self.text, "\n{}#{key} = {value}\n", comment(doc));
    }
}

fn comment(doc: &[&str]) -> String {
    doc.iter().map(|line| format!("#{line}\n")).collect()
}

/// A section of the configuration, as the reference and the manual page describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SectionDoc {
    /// Its name in the file (`attest.unix`); empty for what stands before the first section.
    pub name: String,
    /// What it is about, in paragraphs.
    pub doc: Vec<String>,
    /// Its settings.
    pub settings: Vec<SettingDoc>,
}

/// One setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettingDoc {
    /// Its whole name: `svid.x509_ttl`.
    pub name: String,
    /// What it means, in paragraphs.
    pub doc: Vec<String>,
    /// Its default in TOML; `None` where it is not set.
    pub default: Option<String>,
}

/// Every section with every setting, in the order of the file.
pub fn reference() -> Vec<SectionDoc> {
    let first = SectionDoc { name: String::new(), doc: paragraphs(Config::DOC), settings: Vec::new() };
    let mut writer = Reference { sections: vec![first] };
    Config::default().visit("", &mut writer);
    writer.sections
}

struct Reference {
    sections: Vec<SectionDoc>,
}

impl Visitor for Reference {
    fn section(&mut self, path: &str, doc: &[&str]) {
        self.sections.push(SectionDoc { name: path.to_owned(), doc: paragraphs(doc), settings: Vec::new() });
    }

    fn setting(&mut self, path: &str, doc: &[&str], value: &mut dyn Value) {
        // What stands there until a source names one is nobody's default.
        let default = value.toml().filter(|_| path != "trust_domain");
        let setting = SettingDoc { name: path.to_owned(), doc: paragraphs(doc), default };
        self.sections.iter_mut().last().into_iter().for_each(|section| section.settings.push(setting.clone()));
    }
}

/// The lines of a doc comment, joined; an empty one begins a paragraph.
fn paragraphs(doc: &[&str]) -> Vec<String> {
    let lines: Vec<_> = doc.iter().map(|line| line.trim()).collect();
    lines.split(|line| line.is_empty()).map(|paragraph| paragraph.join(" ")).collect()
}

/// The configuration in TOML, with `origins` also where each value came from. Settings without a value are comments.
pub fn show(loaded: &Loaded, origins: bool) -> String {
    let mut writer = Show { loaded, origins, text: String::new() };
    loaded.config.clone().visit("", &mut writer);
    writer.text
}

struct Show<'a> {
    loaded: &'a Loaded,
    origins: bool,
    text: String,
}

impl Visitor for Show<'_> {
    fn section(&mut self, path: &str, _doc: &[&str]) {
        let _ = write!(self.text, "\n[{path}]\n");
    }

    fn setting(&mut self, path: &str, _doc: &[&str], value: &mut dyn Value) {
        let key = path.rsplit('.').next().unwrap_or(path);
        let line = match value.toml() {
            Some(value) => format!("{key} = {value}"),
            None => format!("# {key} is not set"),
        };
        let _ = if self.origins {
            writeln!(self.text, "{line:<60} # {}", self.loaded.origin(path))
        } else {
            writeln!(self.text, "{line}")
        };
    }
}

/// One setting as [`Loaded::settings`] lists it.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Shown {
    /// Its whole name: `svid.x509_ttl`.
    pub name: String,
    /// Its value; null when it is not set.
    pub value: serde_json::Value,
    /// Where the value came from, as [`super::Origin`] prints it.
    pub origin: String,
}

impl Loaded {
    /// Every setting with its value and origin, in the order of the file.
    pub fn settings(&self) -> Vec<Shown> {
        let mut list = List { loaded: self, shown: Vec::new() };
        self.config.clone().visit("", &mut list);
        list.shown
    }
}

struct List<'a> {
    loaded: &'a Loaded,
    shown: Vec<Shown>,
}

impl Visitor for List<'_> {
    fn setting(&mut self, path: &str, _doc: &[&str], value: &mut dyn Value) {
        #[derive(serde::Deserialize)]
        struct Line {
            v: serde_json::Value,
        }
        let json = value.toml().and_then(|text| toml::from_str::<Line>(&format!("v = {text}")).ok());
        self.shown.push(Shown {
            name: path.to_owned(),
            value: json.map_or(serde_json::Value::Null, |line| line.v),
            origin: self.loaded.origin(path).to_string(),
        });
    }
}
