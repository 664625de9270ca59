//! From sources to a [`Config`]: defaults, then the file and its drop-ins, the environment, the flags.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use crate::base::mistake;

use super::settings::{Settings, Visitor};
use super::value::{Raw, Value, Wrong, kind};
use super::{Config, check, files};

/// What every environment variable that is a setting begins with.
const ENV_PREFIX: &str = "TETHER_";
/// Between the section and the key in an environment variable.
const ENV_SEPARATOR: &str = "__";

/// Where configuration comes from. It can be loaded again, which is what a reload does.
#[derive(Clone, Debug, Default)]
pub struct Source {
    /// The file, if there is one. Its drop-ins ([`super::drop_in_dir`]) count over it, the last name over those before.
    pub file: Option<PathBuf>,
    /// `--dev`: the directory everything is under. Takes the place of the file.
    pub dev: Option<PathBuf>,
    /// The environment; variables that are not ours are ignored.
    pub env: BTreeMap<String, String>,
    /// `--set` flags: whole name and value. The last one for a name holds.
    pub flags: Vec<(String, String)>,
}

/// A configuration and where each value came from.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What the agent runs with.
    pub config: Config,
    origins: BTreeMap<String, Origin>,
}

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nothing set it.
    Default,
    /// `--dev`.
    Dev,
    /// A line of the file or of a drop-in.
    File(Position),
    /// An environment variable.
    Env(String),
    /// A `--set` flag.
    Flag,
}

/// A place in a file; line and column count from 1, the column in characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    /// The file.
    pub file: PathBuf,
    /// The line.
    pub line: usize,
    /// The column.
    pub column: usize,
}

/// What a mistake is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A place in a file.
    File(Position),
    /// A file as a whole.
    WholeFile(PathBuf),
    /// An environment variable.
    Env(String),
    /// A `--set` flag, by the name it sets.
    Flag(String),
    /// A setting that no source set, by its name.
    Setting(String),
}

/// One thing that is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// Where.
    pub place: Place,
    /// What, and what to write instead.
    pub message: String,
}

/// Everything that is wrong with a configuration; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistakes(pub Vec<Mistake>);

impl Source {
    /// Reads the files and puts the layers on top of each other. Every mistake of every layer is reported, not only
    /// the first.
    pub fn load(&self) -> Result<Loaded, Mistakes> {
        let texts = match &self.file {
            Some(path) => files::read_all(path)?,
            None => Vec::new(),
        };
        let texts: Vec<_> = texts.iter().map(|file| (file.path.as_path(), file.text.as_str())).collect();
        load(self, &texts)
    }
}

/// [`Source::load`] with the files already read, each after those it overrides.
pub(super) fn load(source: &Source, files: &[(&Path, &str)]) -> Result<Loaded, Mistakes> {
    let mut loading = Loading::new(source.dev.as_deref());
    for (path, text) in files {
        loading.apply_file(path, text);
    }
    loading.apply_texts(env_settings(&source.env));
    loading.apply_texts(source.flags.iter().map(|(name, value)| TextSetting {
        path: name.clone(),
        value,
        origin: Origin::Flag,
        place: Place::Flag(name.clone()),
    }));
    loading.finish()
}

/// Entry point for fuzzing: reads arbitrary bytes as a configuration file, and what it shows once more.
#[doc(hidden)]
pub fn fuzz_file(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let path = Path::new("fuzz.toml");
    match load(&Source::default(), &[(path, text)]) {
        Ok(loaded) => {
            let shown = super::show(&loaded, false);
            let again = load(&Source::default(), &[(path, &shown)]).map(|again| again.config);
            assert_eq!(again, Ok(loaded.config), "what is shown reads as what it was");
        }
        Err(Mistakes(mistakes)) => {
            assert!(!mistakes.is_empty());
            for mistake in mistakes {
                if let Place::File(position) = mistake.place {
                    assert!((1..=text.split('\n').count()).contains(&position.line), "a place that is not in the file");
                }
            }
        }
    }
}

/// A setting from the environment or a flag.
struct TextSetting<'a> {
    path: String,
    value: &'a str,
    origin: Origin,
    place: Place,
}

/// The variables that are settings. One with a section is ours whether it exists or not, so that a misspelt one is
/// an error; of those without, the others (`TETHER_ADMIN_SOCKET`) are not settings and mean something else.
fn env_settings(env: &BTreeMap<String, String>) -> impl Iterator<Item = TextSetting<'_>> {
    env.iter().filter_map(|(variable, value)| {
        let name = variable.strip_prefix(ENV_PREFIX)?;
        let path = name.to_lowercase().replace(ENV_SEPARATOR, ".");
        let is_setting = name.contains(ENV_SEPARATOR) || known_paths().contains(&path);
        is_setting.then(|| TextSetting {
            path,
            value,
            origin: Origin::Env(variable.clone()),
            place: Place::Env(variable.clone()),
        })
    })
}

/// The layers on top of each other so far.
struct Loading {
    config: Config,
    origins: BTreeMap<String, Origin>,
    places: BTreeMap<String, Place>,
    mistakes: Vec<Mistake>,
}

impl Loading {
    fn new(dev: Option<&Path>) -> Self {
        let config = dev.map_or_else(Config::default, Config::for_dev);
        let defaults = values(&Config::default());
        let origin = |path: &String, value| if defaults[path] == value { Origin::Default } else { Origin::Dev };
        let origins = values(&config).into_iter().map(|(path, value)| (path.clone(), origin(&path, value))).collect();
        Self { config, origins, places: BTreeMap::new(), mistakes: Vec::new() }
    }

    fn apply_file(&mut self, path: &Path, text: &str) {
        let (table, errors) = DeTable::parse_recoverable(text);
        let position = |offset: usize| position(path, text, offset);
        for error in errors {
            let place = match error.span() {
                Some(span) => Place::File(position(span.start)),
                None => Place::WholeFile(path.to_owned()),
            };
            self.mistakes.push(Mistake { place, message: error.message().to_owned() });
        }
        self.apply_table("", table.get_ref(), &position);
    }

    fn apply_table(&mut self, prefix: &str, table: &DeTable<'_>, position: &dyn Fn(usize) -> Position) {
        for (key, value) in table {
            let path = super::settings::join(prefix, key.get_ref());
            if is_section(&path) {
                match value.get_ref() {
                    DeValue::Table(section) => self.apply_table(&path, section, position),
                    other => {
                        let message = format!("`{path}` is a section, not {}: write `[{path}]`", kind(other));
                        self.mistakes.push(Mistake { place: Place::File(position(key.span().start)), message });
                    }
                }
                continue;
            }
            let at_key = position(key.span().start);
            let place = if known_paths().contains(&path) { position(value.span().start) } else { at_key.clone() };
            let raw = Raw::Toml(value.get_ref());
            self.apply(&path, raw, Origin::File(at_key), Place::File(place), Some(position));
        }
    }

    fn apply_texts<'a>(&mut self, settings: impl Iterator<Item = TextSetting<'a>>) {
        for TextSetting { path, value, origin, place } in settings {
            self.apply(&path, Raw::Text(value), origin, place, None);
        }
    }

    /// Gives a setting its value. `position` is where an offset is, when the value comes from a file.
    fn apply(
        &mut self,
        path: &str,
        raw: Raw<'_>,
        origin: Origin,
        place: Place,
        position: Option<&dyn Fn(usize) -> Position>,
    ) {
        let mut setter = Setter { path, raw, outcome: None };
        self.config.visit("", &mut setter);
        match setter.outcome {
            Some(Ok(())) => {
                self.origins.insert(path.to_owned(), origin);
                self.places.insert(path.to_owned(), place);
            }
            Some(Err(Wrong { message, at })) => {
                let item = position.zip(at).map(|(position, offset)| Place::File(position(offset)));
                let message = format!("`{path}`: {message}");
                self.mistakes.push(Mistake { place: item.unwrap_or(place), message });
            }
            None => self.mistakes.push(Mistake { place, message: unknown(path) }),
        }
    }

    fn finish(mut self) -> Result<Loaded, Mistakes> {
        // What does not fit together is only worth saying of values that were understood.
        if self.mistakes.is_empty() {
            let is_set = |path: &str| self.origins[path] != Origin::Default;
            let found = check::mistakes(&self.config, &is_set);
            self.mistakes.extend(found.into_iter().map(|(path, message)| Mistake {
                place: self.places.get(path).cloned().unwrap_or_else(|| Place::Setting(path.to_owned())),
                message: format!("`{path}`: {message}"),
            }));
        }
        if !self.mistakes.is_empty() {
            return Err(Mistakes(self.mistakes));
        }
        Ok(Loaded { config: self.config, origins: self.origins })
    }
}

struct Setter<'a> {
    path: &'a str,
    raw: Raw<'a>,
    outcome: Option<Result<(), Wrong>>,
}

impl Visitor for Setter<'_> {
    fn setting(&mut self, path: &str, _doc: &[&str], value: &mut dyn Value) {
        if path == self.path {
            self.outcome = Some(value.set(self.raw));
        }
    }
}

impl Loaded {
    /// Where the setting with this whole name (`svid.x509_ttl`) came from.
    pub fn origin(&self, path: &str) -> &Origin {
        self.origins.get(path).unwrap_or(&Origin::Default)
    }
}

#[derive(Default)]
struct Names {
    settings: Vec<String>,
    sections: Vec<String>,
}

impl Visitor for Names {
    fn section(&mut self, path: &str, _doc: &[&str]) {
        self.sections.push(path.to_owned());
    }

    fn setting(&mut self, path: &str, _doc: &[&str], _value: &mut dyn Value) {
        self.settings.push(path.to_owned());
    }
}

fn names() -> Names {
    let mut names = Names::default();
    Config::default().visit("", &mut names);
    names
}

fn known_paths() -> Vec<String> {
    names().settings
}

fn is_section(path: &str) -> bool {
    names().sections.iter().any(|section| section == path)
}

/// Why `path` is not a setting, with what its section has.
fn unknown(path: &str) -> String {
    let (section, _) = path.rsplit_once('.').unwrap_or(("", path));
    let Names { settings, sections } = names();
    if !section.is_empty() && !sections.iter().any(|known| known == section) {
        return format!("there is no section `{section}`; there are {}", sections.join(", "));
    }
    let siblings = settings.iter().filter_map(|known| match (known.rsplit_once('.'), section) {
        (None, "") => Some(known.as_str()),
        (Some((of, key)), _) if of == section => Some(key),
        _ => None,
    });
    let place = if section.is_empty() { "before the first section".to_owned() } else { format!("in [{section}]") };
    format!("there is no setting `{path}`; {place} there are {}", siblings.collect::<Vec<_>>().join(", "))
}

/// Every setting's name and value.
pub(super) fn values(config: &Config) -> BTreeMap<String, Option<String>> {
    #[derive(Default)]
    struct Values(BTreeMap<String, Option<String>>);
    impl Visitor for Values {
        fn setting(&mut self, path: &str, _doc: &[&str], value: &mut dyn Value) {
            self.0.insert(path.to_owned(), value.toml());
        }
    }
    let mut values = Values::default();
    config.clone().visit("", &mut values);
    values.0
}

fn position(file: &Path, text: &str, offset: usize) -> Position {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    Position {
        file: file.to_owned(),
        line: before.matches('\n').count() + 1,
        column: before[line_start..].chars().count() + 1,
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file.display(), self.line, self.column)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(position) => position.fmt(f),
            Self::WholeFile(path) => path.display().fmt(f),
            Self::Env(variable) => write!(f, "environment variable {variable}"),
            Self::Flag(name) => write!(f, "--set {name}"),
            Self::Setting(name) => write!(f, "setting {name}"),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Dev => f.write_str("--dev"),
            Self::File(position) => write!(f, "{}:{}", position.file.display(), position.line),
            Self::Env(variable) => write!(f, "env {variable}"),
            Self::Flag => f.write_str("--set"),
        }
    }
}

impl From<mistake::Mistake> for Mistake {
    fn from(found: mistake::Mistake) -> Self {
        let file = found.path.to_path_buf();
        let number = |count: u32| usize::try_from(count).unwrap_or(usize::MAX);
        let place = match found.line {
            0 => Place::WholeFile(file),
            line => Place::File(Position { file, line: number(line), column: number(found.column) }),
        };
        Self { place, message: found.message }
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<_> = self.0.iter().map(Mistake::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl std::error::Error for Mistakes {}
