//! The types a setting can have: how each is read from TOML or from text, and written back.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::id::TrustDomain;
use crate::policy::AudienceCaps;
use crate::telemetry;
use crate::verify::NodeUrls;
use crate::x509::{KeyError, KeyType};

mod issuers;

/// A value as a source has it.
#[derive(Clone, Copy)]
pub(super) enum Raw<'a> {
    /// From the environment or a flag: text whatever the type.
    Text(&'a str),
    /// From the file.
    Toml(&'a DeValue<'a>),
}

impl<'a> Raw<'a> {
    fn text<T: Text>(self) -> Result<&'a str, String> {
        match self {
            Raw::Text(text) => Ok(text),
            Raw::Toml(DeValue::String(text)) => Ok(text),
            Raw::Toml(other) => Err(format!("expected {}, not {}", T::FORM, kind(other))),
        }
    }
}

/// What is wrong with a value, and where in it.
pub(super) struct Wrong {
    pub(super) message: String,
    /// The offset in the file of the item that is wrong; `None` for the value as a whole.
    pub(super) at: Option<usize>,
}

impl From<String> for Wrong {
    fn from(message: String) -> Self {
        Self { message, at: None }
    }
}

impl Wrong {
    fn in_item<T>(item: &Spanned<T>) -> impl FnOnce(String) -> Self {
        let at = Some(item.span().start);
        move |message| Self { message, at }
    }
}

/// A setting's value.
pub(super) trait Value {
    /// Takes the value of a source; the error says what was expected.
    fn set(&mut self, raw: Raw<'_>) -> Result<(), Wrong>;

    /// The value in TOML; `None` when it is not set.
    fn toml(&self) -> Option<String>;
}

/// A value that is one string in TOML and the same text elsewhere.
trait Text: Sized {
    const FORM: &'static str;
    fn parse_text(text: &str) -> Result<Self, String>;
    fn text(&self) -> String;
}

impl<T: Text> Value for T {
    fn set(&mut self, raw: Raw<'_>) -> Result<(), Wrong> {
        *self = T::parse_text(raw.text::<T>()?)?;
        Ok(())
    }

    fn toml(&self) -> Option<String> {
        Some(quoted(&self.text()))
    }
}

impl<T: Text> Value for Option<T> {
    /// An empty text unsets, so that a later source can take back what an earlier one said.
    fn set(&mut self, raw: Raw<'_>) -> Result<(), Wrong> {
        *self = match raw.text::<T>()? {
            "" => None,
            text => Some(T::parse_text(text)?),
        };
        Ok(())
    }

    fn toml(&self) -> Option<String> {
        self.as_ref().and_then(Value::toml)
    }
}

impl Value for bool {
    fn set(&mut self, raw: Raw<'_>) -> Result<(), Wrong> {
        *self = match raw {
            Raw::Toml(DeValue::Boolean(value)) => *value,
            Raw::Text("true") => true,
            Raw::Text("false") => false,
            Raw::Text(other) => return Err(format!("expected true or false, not `{other}`").into()),
            Raw::Toml(other) => return Err(format!("expected true or false, not {}", kind(other)).into()),
        };
        Ok(())
    }

    fn toml(&self) -> Option<String> {
        Some(self.to_string())
    }
}

impl Value for u32 {
    fn set(&mut self, raw: Raw<'_>) -> Result<(), Wrong> {
        let (text, radix) = match raw {
            Raw::Text(text) => (text, 10),
            Raw::Toml(DeValue::Integer(number)) => (number.as_str(), number.radix()),
            Raw::Toml(other) => return Err(format!("expected a whole number, not {}", kind(other)).into()),
        };
        *self = u32::from_str_radix(text, radix)
            .map_err(|_| format!("expected a whole number from 0 to {}, not `{text}`", u32::MAX))?;
        Ok(())
    }

    fn toml(&self) -> Option<String> {
        Some(self.to_string())
    }
}

impl Value for Vec<String> {
    /// A list of strings in TOML; elsewhere the same separated by commas.
    fn set(&mut self, raw: Raw<'_>) -> Result<(), Wrong> {
        *self = match raw {
            Raw::Text(text) => text.split(',').map(str::trim).filter(|s| !s.is_empty()).map(str::to_owned).collect(),
            Raw::Toml(DeValue::Array(items)) => items
                .iter()
                .map(|item| match item.get_ref() {
                    DeValue::String(text) => Ok(text.clone().into_owned()),
                    other => Err(Wrong::in_item(item)(format!("expected a list of strings, not of {}", kind(other)))),
                })
                .collect::<Result<_, _>>()?,
            Raw::Toml(other) => return Err(format!("expected a list of strings, not {}", kind(other)).into()),
        };
        Ok(())
    }

    fn toml(&self) -> Option<String> {
        Some(format!("[{}]", self.iter().map(|item| quoted(item)).collect::<Vec<_>>().join(", ")))
    }
}

impl Value for AudienceCaps {
    /// A table of durations in TOML; elsewhere `AUDIENCE=DURATION`, separated by commas.
    fn set(&mut self, raw: Raw<'_>) -> Result<(), Wrong> {
        *self = match raw {
            Raw::Text(text) => {
                let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
                items
                    .map(|item| {
                        let (audience, cap) = item.rsplit_once('=').ok_or_else(|| {
                            format!("expected AUDIENCE=DURATION such as https://pay.example.com=30s, not `{item}`")
                        })?;
                        audience_cap(audience, cap)
                    })
                    .collect::<Result<_, String>>()?
            }
            Raw::Toml(DeValue::Table(table)) => {
                let items = table.iter().map(|(audience, value)| {
                    let text = Raw::Toml(value.get_ref()).text::<Duration>().map_err(Wrong::in_item(value))?;
                    audience_cap(audience.get_ref(), text).map_err(Wrong::in_item(value))
                });
                items.collect::<Result<_, Wrong>>()?
            }
            Raw::Toml(other) => {
                let form = r#"expected a table such as { "https://pay.example.com" = "30s" }"#;
                return Err(format!("{form}, not {}", kind(other)).into());
            }
        };
        Ok(())
    }

    fn toml(&self) -> Option<String> {
        let text = |(audience, cap): (&str, Duration)| (audience.to_owned(), toml::Value::String(cap.text()));
        Some(toml::Value::Table(self.iter().map(text).collect()).to_string())
    }
}

impl Value for NodeUrls {
    /// A table of URLs in TOML; elsewhere `NODE=URL`, separated by commas.
    fn set(&mut self, raw: Raw<'_>) -> Result<(), Wrong> {
        *self = match raw {
            Raw::Text(text) => {
                let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
                items
                    .map(|item| {
                        let named = item.split_once('=');
                        let form =
                            || format!("expected NODE=URL such as 0123..=https://node.example.org:9466, not `{item}`");
                        let (node, url) = named.ok_or_else(form)?;
                        node_url(node, url)
                    })
                    .collect::<Result<_, String>>()?
            }
            Raw::Toml(DeValue::Table(table)) => {
                let items = table.iter().map(|(node, value)| {
                    let text = Raw::Toml(value.get_ref()).text::<String>().map_err(Wrong::in_item(value))?;
                    node_url(node.get_ref(), text).map_err(Wrong::in_item(value))
                });
                items.collect::<Result<_, Wrong>>()?
            }
            Raw::Toml(other) => {
                let form = r#"expected a table such as { "NODE" = "https://node.example.org:9466" }"#;
                return Err(format!("{form}, not {}", kind(other)).into());
            }
        };
        Ok(())
    }

    fn toml(&self) -> Option<String> {
        let text = |(node, url): (&str, &str)| (node.to_owned(), toml::Value::String(url.to_owned()));
        Some(toml::Value::Table(self.iter().map(text).collect()).to_string())
    }
}

/// A node is named by its id, which `tether status` shows: 32 hex digits.
fn node_url(node: &str, url: &str) -> Result<(String, String), String> {
    let is_id = node.len() == 32 && node.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if !is_id {
        return Err(format!("`{node}` is no node id: `tether status` on that node shows it"));
    }
    Ok((node.to_owned(), url.to_owned()))
}

fn audience_cap(audience: &str, cap: &str) -> Result<(String, Duration), String> {
    if audience.is_empty() {
        return Err("an audience is empty: name it, or write \"*\" for all others".to_owned());
    }
    match Duration::parse_text(cap)? {
        short if short < Duration::from_secs(1) => Err(format!("the cap of `{audience}` is at least 1s, not `{cap}`")),
        cap => Ok((audience.to_owned(), cap)),
    }
}

impl Text for String {
    const FORM: &'static str = "text";
    fn parse_text(text: &str) -> Result<Self, String> {
        Ok(text.to_owned())
    }
    fn text(&self) -> String {
        self.clone()
    }
}

impl Text for KeyType {
    const FORM: &'static str = "one of \"ec-p256\" \"ec-p384\" \"rsa-2048\"";
    fn parse_text(text: &str) -> Result<Self, String> {
        text.parse().map_err(|error: KeyError| error.to_string())
    }
    fn text(&self) -> String {
        self.to_string()
    }
}

impl Text for telemetry::Format {
    const FORM: &'static str = "one of \"auto\" \"text\" \"json\"";
    fn parse_text(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(format!("expected {}, not `{other}`", <Self as Text>::FORM)),
        }
    }
    fn text(&self) -> String {
        match self {
            Self::Auto => "auto".to_owned(),
            Self::Text => "text".to_owned(),
            Self::Json => "json".to_owned(),
        }
    }
}

impl Text for TrustDomain {
    const FORM: &'static str = "a trust domain such as \"example.org\"";
    fn parse_text(text: &str) -> Result<Self, String> {
        TrustDomain::parse(text).map_err(|error| error.to_string())
    }
    fn text(&self) -> String {
        self.to_string()
    }
}

impl Text for PathBuf {
    const FORM: &'static str = "an absolute path";
    fn parse_text(text: &str) -> Result<Self, String> {
        if !text.starts_with('/') {
            return Err(format!("`{text}` is not an absolute path; the agent's working directory is not yours"));
        }
        Ok(PathBuf::from(text))
    }
    fn text(&self) -> String {
        self.display().to_string()
    }
}

impl Text for SocketAddr {
    const FORM: &'static str = "an address such as \"127.0.0.1:9465\"";
    fn parse_text(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| format!("expected {}, not `{text}`", Self::FORM))
    }
    fn text(&self) -> String {
        self.to_string()
    }
}

impl Text for Duration {
    const FORM: &'static str = "a duration such as \"15m\"";
    fn parse_text(text: &str) -> Result<Self, String> {
        parse_duration(text).ok_or_else(|| {
            format!("expected a duration such as \"15m\", \"1h30m\" or \"500ms\" (units d, h, m, s, ms), not `{text}`")
        })
    }
    fn text(&self) -> String {
        format_duration(*self)
    }
}

const UNITS: [(&str, u64); 5] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// Reads a time span as settings are written, for the command line: `15m`, `1h30m`.
///
/// # Errors
/// What it should have been, for a person.
pub fn duration(text: &str) -> Result<Duration, String> {
    Duration::parse_text(text)
}

/// Reads `1h30m`: numbers with units, nothing between them, the larger units first.
fn parse_duration(text: &str) -> Option<Duration> {
    let (mut rest, mut total, mut previous) = (text, 0u64, u64::MAX);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let (number, tail) = rest.split_at(digits);
        let letters = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (name, tail) = tail.split_at(letters);
        let (_, unit) = UNITS.iter().find(|(known, _)| *known == name)?;
        if *unit >= previous {
            return None;
        }
        previous = *unit;
        total = total.checked_add(number.parse::<u64>().ok()?.checked_mul(*unit)?)?;
        rest = tail;
    }
    (previous != u64::MAX).then(|| Duration::from_millis(total))
}

/// Writes a duration in one unit, the largest that shows it whole; a day as `24h`, more as days.
fn format_duration(duration: Duration) -> String {
    let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let fits = |unit: u64| millis.is_multiple_of(unit) && (unit < 86_400_000 || millis > unit);
    match UNITS.iter().rev().find(|(_, unit)| millis > 0 && fits(*unit)) {
        Some((name, unit)) => format!("{}{name}", millis / unit),
        None => "0s".to_owned(),
    }
}

/// A number of bytes, written `64KiB`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(u64);

impl ByteSize {
    /// So many times 1024 bytes.
    pub const fn kib(count: u64) -> Self {
        Self(count << 10)
    }

    /// So many times 1024 KiB.
    pub const fn mib(count: u64) -> Self {
        Self(count << 20)
    }

    /// The number.
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// The number as an index; on a machine too small for it, as large as an index gets.
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

const SIZES: [(&str, u32); 4] = [("GiB", 30), ("MiB", 20), ("KiB", 10), ("B", 0)];

impl Text for ByteSize {
    const FORM: &'static str = "a size such as \"64KiB\"";
    fn parse_text(text: &str) -> Result<Self, String> {
        let parse = || {
            let (name, shift) = SIZES.iter().find(|(name, _)| text.ends_with(name))?;
            let number: u64 = text.strip_suffix(name)?.parse().ok()?;
            number.checked_mul(1 << shift).map(Self)
        };
        parse().ok_or_else(|| format!("expected a size such as \"64KiB\" (units B, KiB, MiB, GiB), not `{text}`"))
    }
    fn text(&self) -> String {
        let fits = |shift: u32| self.0 != 0 && self.0.trailing_zeros() >= shift;
        let (name, shift) = SIZES.iter().find(|(_, shift)| fits(*shift)).unwrap_or(&("B", 0));
        format!("{}{name}", self.0 >> shift)
    }
}

/// The log's level, or one for each part, in the syntax of `tracing` directives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFilter(String);

impl LogFilter {
    /// Everything from `info` up.
    pub fn info() -> Self {
        Self("info".to_owned())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for LogFilter {
    type Err = String;

    /// Accepts what the log can be set to, and nothing else: a misspelt level is an error, not silence.
    fn from_str(text: &str) -> Result<Self, String> {
        let level_of = |directive: &str| directive.rsplit_once('=').map_or(directive, |(_, level)| level).to_owned();
        let known = ["off", "error", "warn", "info", "debug", "trace"];
        let misspelt = text.split(',').map(level_of).find(|level| !known.contains(&level.as_str()));
        if let Some(level) = misspelt {
            return Err(format!(
                "`{level}` is not a log level: use {}, or \"info,tether::peer=debug\"",
                known.join(", ")
            ));
        }
        telemetry::check_level(text).map_err(|error| error.to_string())?;
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for LogFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Text for LogFilter {
    const FORM: &'static str = "a log level such as \"info\"";
    fn parse_text(text: &str) -> Result<Self, String> {
        text.parse()
    }
    fn text(&self) -> String {
        self.0.clone()
    }
}

/// A setting that is one of a few words.
macro_rules! words {
    ($(#[doc = $doc:literal])+ pub enum $name:ident { $( $(#[$meta:meta])+ $variant:ident = $word:literal, )+ }) => {
        $(#[doc = $doc])+
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub enum $name { $( $(#[$meta])+ $variant, )+ }

        impl $name {
            /// The word in the file.
            pub fn as_str(self) -> &'static str {
                match self { $( Self::$variant => $word, )+ }
            }
        }

        impl Text for $name {
            const FORM: &'static str = concat!("one of", $( " \"", $word, "\"", )+);
            fn parse_text(text: &str) -> Result<Self, String> {
                match text {
                    $( $word => Ok(Self::$variant), )+
                    other => Err(format!("expected {}, not `{other}`", Self::FORM)),
                }
            }
            fn text(&self) -> String {
                self.as_str().to_owned()
            }
        }
    };
}

words! {
    /// What signs.
    pub enum AuthorityKind {
        /// A root made and kept by this agent.
        #[default]
        Embedded = "embedded",
        /// A root or intermediate from files.
        Disk = "disk",
    }
}

words! {
    /// Which kernel interfaces hold the process behind a connection.
    pub enum KernelInterfaces {
        /// The best there are.
        #[default]
        Auto = "auto",
        /// Those of kernels before 6.5.
        Baseline = "baseline",
    }
}

words! {
    /// What becomes of something whose audit record cannot be written.
    pub enum OnAuditFailure {
        /// It does not happen.
        #[default]
        Refuse = "refuse",
        /// It happens, and the agent says what is wrong.
        Alarm = "alarm",
    }
}

words! {
    /// When revocation lists go to Envoy.
    pub enum SdsCrl {
        /// When this agent has the list of every CA of the trust domain.
        #[default]
        Auto = "auto",
        /// Always.
        Always = "always",
        /// Never.
        Never = "never",
    }
}

/// What a TOML value is, for errors.
pub(super) fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a section",
    }
}

/// `text` as a TOML string.
fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}
