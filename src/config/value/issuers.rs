//! Setting `sessions.issuers`: a table of tables, one for each issuer.

use super::*;
use crate::jwt::Algorithm;
use crate::user::fetch::Endpoint;
use crate::user::{IssuerSettings, IssuerTable, KeySource};

const FORM: &str = r#"expected a table such as { "https://login.example.com" = { audience = "tether" } }"#;
const KEYS: &str = "audience, jwks_url, jwks_file, algorithms, authorized_parties, max_age, max_ttl, ca_file";

impl Value for IssuerTable {
    /// A table of tables in TOML; elsewhere the same written inline.
    fn set(&mut self, raw: Raw<'_>) -> Result<(), Wrong> {
        *self = match raw {
            Raw::Toml(DeValue::Table(table)) => read(table)?,
            Raw::Toml(other) => return Err(format!("{FORM}, not {}", kind(other)).into()),
            Raw::Text("") => Self::new(),
            Raw::Text(text) => {
                let line = format!("issuers = {text}");
                let table = DeTable::parse(&line).map_err(|error| format!("{FORM}: {}", error.message()))?;
                // The offsets are those of the line above, which nobody has written.
                let nowhere = |wrong: Wrong| Wrong { at: None, ..wrong };
                match (table.get_ref().len(), table.get_ref().get("issuers").map(Spanned::get_ref)) {
                    (1, Some(DeValue::Table(table))) => read(table).map_err(nowhere)?,
                    _ => return Err(FORM.to_owned().into()),
                }
            }
        };
        Ok(())
    }

    fn toml(&self) -> Option<String> {
        let table = self.iter().map(|(url, issuer)| (url.clone(), toml::Value::Table(written(issuer))));
        Some(toml::Value::Table(table.collect()).to_string())
    }
}

fn read(table: &DeTable<'_>) -> Result<IssuerTable, Wrong> {
    let issuer = |(url, settings): (&Spanned<std::borrow::Cow<'_, str>>, &Spanned<DeValue<'_>>)| {
        let misnamed = |error| format!("the issuer `{}`: {error}", url.get_ref());
        let endpoint =
            Endpoint::parse(url.get_ref()).map_err(|error| Wrong::in_item(url)(misnamed(error.to_string())))?;
        if endpoint.as_str().contains('?') {
            return Err(Wrong::in_item(url)(misnamed("an issuer's URL has no query".to_owned())));
        }
        match settings.get_ref() {
            DeValue::Table(table) => Ok((url.get_ref().clone().into_owned(), read_one(settings, table)?)),
            other => Err(Wrong::in_item(settings)(format!("{FORM}, not {}", kind(other)))),
        }
    };
    table.iter().map(issuer).collect()
}

fn read_one(whole: &Spanned<DeValue<'_>>, table: &DeTable<'_>) -> Result<IssuerSettings, Wrong> {
    let mut issuer = IssuerSettings {
        audience: String::new(),
        keys: KeySource::Discovery,
        algorithms: IssuerSettings::ALGORITHMS.to_vec(),
        authorized_parties: Vec::new(),
        max_age: None,
        max_ttl: None,
        ca_file: None,
    };
    let (mut url, mut file) = (None::<Endpoint>, None::<PathBuf>);
    for (key, value) in table {
        let raw = Raw::Toml(value.get_ref());
        let set = match key.get_ref().as_ref() {
            "audience" => issuer.audience.set(raw),
            "jwks_url" => url.set(raw),
            "jwks_file" => file.set(raw),
            "algorithms" => issuer.algorithms.set(raw),
            "authorized_parties" => issuer.authorized_parties.set(raw),
            "max_age" => issuer.max_age.set(raw),
            "max_ttl" => issuer.max_ttl.set(raw),
            "ca_file" => issuer.ca_file.set(raw),
            other => return Err(Wrong::in_item(key)(format!("an issuer has no `{other}`; it has {KEYS}"))),
        };
        let named = |message: String| format!("`{}`: {message}", key.get_ref());
        set.map_err(|wrong| Wrong { message: named(wrong.message), at: wrong.at.or(Some(value.span().start)) })?;
    }
    let wrong = |message: &str| Err(Wrong::in_item(whole)(message.to_owned()));
    if issuer.audience.is_empty() {
        return wrong("an issuer needs `audience`: what its tokens for this agent have in `aud`");
    }
    if issuer.algorithms.is_empty() {
        return wrong("an issuer needs at least one of `algorithms`");
    }
    issuer.keys = match (url, file) {
        (None, None) => KeySource::Discovery,
        (Some(url), None) => KeySource::Url(url),
        (None, Some(file)) => KeySource::File(file),
        (Some(_), Some(_)) => return wrong("an issuer has `jwks_url` or `jwks_file`, not both"),
    };
    Ok(issuer)
}

fn written(issuer: &IssuerSettings) -> toml::Table {
    let text = |text: &str| Some(toml::Value::String(text.to_owned()));
    let list = |items: Vec<String>| toml::Value::Array(items.into_iter().map(toml::Value::String).collect());
    let span = |span: Option<Duration>| span.and_then(|span| text(&span.text()));
    let (url, file) = match &issuer.keys {
        KeySource::Discovery => (None, None),
        KeySource::Url(url) => (text(url.as_str()), None),
        KeySource::File(file) => (None, text(&file.text())),
    };
    let parties = issuer.authorized_parties.clone();
    let members = [
        ("audience", text(&issuer.audience)),
        ("jwks_url", url),
        ("jwks_file", file),
        ("algorithms", Some(list(issuer.algorithms.iter().map(|one| one.name().to_owned()).collect()))),
        ("authorized_parties", (!parties.is_empty()).then(|| list(parties))),
        ("max_age", span(issuer.max_age)),
        ("max_ttl", span(issuer.max_ttl)),
        ("ca_file", issuer.ca_file.as_ref().and_then(|file| text(&file.text()))),
    ];
    members.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
}

impl Text for Endpoint {
    const FORM: &'static str = "a URL such as \"https://login.example.com/keys\"";
    fn parse_text(text: &str) -> Result<Self, String> {
        Self::parse(text).map_err(|error| format!("{error}, not `{text}`"))
    }
    fn text(&self) -> String {
        self.as_str().to_owned()
    }
}

impl Value for Vec<Algorithm> {
    fn set(&mut self, raw: Raw<'_>) -> Result<(), Wrong> {
        let mut names = Vec::<String>::new();
        names.set(raw)?;
        let algorithm = |name: &String| {
            let all = Algorithm::ALL.map(Algorithm::name).join(", ");
            Algorithm::from_name(name).ok_or_else(|| format!("`{name}` is none of {all}"))
        };
        *self = names.iter().map(algorithm).collect::<Result<_, String>>()?;
        Ok(())
    }

    fn toml(&self) -> Option<String> {
        self.iter().map(|algorithm| algorithm.name().to_owned()).collect::<Vec<_>>().toml()
    }
}
