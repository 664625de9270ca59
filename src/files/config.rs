//! The file with several outputs: `[[output]]` tables in TOML, strict, with line and column of what is wrong.

use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;

use super::output::{Draft, Output};
use crate::base::durable;
use crate::base::mistake::{Lines, Mistake};

/// Far above any real file.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// What is kept fresh.
#[derive(Debug)]
pub struct Config {
    /// The outputs; at least one.
    pub outputs: Vec<Output>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    output: Vec<toml::Spanned<Draft>>,
}

/// Reads the outputs of a file.
///
/// # Errors
/// The first thing that is wrong with it, and where.
pub fn read(path: &Path) -> Result<Config, Mistake> {
    let text = text(path)?;
    let place = |offset: usize, message: String| {
        let (line, column) = Lines::new(&text).position(offset);
        Mistake { path: Arc::from(path), line, column, message }
    };
    let file: File = toml::from_str(&text)
        .map_err(|error| place(error.span().map_or(0, |span| span.start), error.message().to_owned()))?;
    let mut outputs: Vec<Output> = Vec::new();
    for draft in file.output {
        let at = draft.span().start;
        let output = Output::new(draft.into_inner()).map_err(|error| place(at, with_cause(&error)))?;
        if outputs.iter().any(|other| other.directory() == output.directory()) {
            let text =
                format!("`{}` is the directory of two outputs: put their files into one", output.directory().display());
            return Err(place(at, text));
        }
        outputs.push(output);
    }
    if outputs.is_empty() {
        return Err(Mistake::whole(path, "there is no `[[output]]`"));
    }
    Ok(Config { outputs })
}

/// A file of configuration as text.
pub(super) fn text(path: &Path) -> Result<String, Mistake> {
    let content = durable::read(path, MAX_FILE_BYTES).map_err(|error| {
        let why = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        Mistake::whole(path, format!("cannot read the file: {why}"))
    })?;
    String::from_utf8(content).map_err(|_| Mistake::whole(path, "the file is not UTF-8 text"))
}

/// An error and what caused it, on one line.
pub(super) fn with_cause(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", with_cause(source)),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Result<Config, String> {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("write.toml");
        std::fs::write(&path, text).expect("written");
        read(&path).map_err(|mistake| mistake.to_string().replace(&format!("{}/", dir.path().display()), ""))
    }

    #[test]
    fn an_output_has_the_files_its_table_says_and_those_of_spiffe_where_it_says_none() {
        let cases = [
            ("", vec!["svid_key.pem", "svid.pem", "bundle.pem"]),
            ("names = \"tls\"", vec!["tls.key", "tls.crt", "ca.crt"]),
            ("names = \"tls\"\nfiles.key = \"own.key\"", vec!["tls.crt", "ca.crt", "own.key"]),
            ("files.combined = \"all.pem\"\nfiles.crl = \"crl.pem\"", vec!["all.pem", "crl.pem"]),
            ("jwt = [{ audience = [\"a\", \"b\"], file = \"token\" }]", vec!["token"]),
        ];
        for (text, expected) in cases {
            let config = read_text(&format!("[[output]]\ndirectory = \"/x\"\n{text}\n")).expect(text);
            let names: Vec<&str> = config.outputs[0].files.iter().map(|file| file.name.as_str()).collect();
            assert_eq!(names, expected, "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line_and_column() {
        let cases = [
            ("directroy = \"/y\"", "write.toml:3:1: unknown field `directroy`"),
            ("files.certificat = \"x\"", "write.toml:3:7: unknown field `certificat`"),
            ("key_mode = \"0644\"", "write.toml:1:1: `svid_key.pem` would be readable by everybody (mode 0644)"),
            ("mode = \"9\"", "write.toml:3:8: `9` is no mode of a file"),
            ("layout = \"both\"", "write.toml:3:10: unknown variant `both`"),
            ("signal = \"HUPP\"", "write.toml:3:10: `HUPP` is no signal"),
            ("signal = \"HUP\"", "write.toml:1:1: `signal` says nothing without `pid_file`"),
            ("pid_file = \"/p\"", "write.toml:1:1: `pid_file` says nothing without `signal`"),
            ("exec_timeout_seconds = 3", "write.toml:1:1: `exec_timeout_seconds` says nothing without `exec`"),
            ("owner = \"nobody here\"", "write.toml:1:1: there is no user `nobody here`"),
            ("spiffe_id = \"x\"", "write.toml:3:13: `x` is not a SPIFFE ID"),
            ("files.key = \"../x\"", "write.toml:1:1: `../x` is no name of a file"),
            ("files.key = \"..data\"", "write.toml:1:1: `..data` is no name of a file"),
            ("files = { key = \"x\", crl = \"x\" }", "write.toml:1:1: two files are called `x`"),
            ("files.federated = \"x\"", "write.toml:1:1: the name of federated bundles needs `{trust_domain}`"),
            ("files.pkcs12 = \"x\"", "write.toml:1:1: PKCS#12 needs a password"),
            ("files.oidc_discovery = \"x\"", "write.toml:1:1: a discovery document needs the issuer"),
            ("oidc_issuer = \"http://x\"", "write.toml:3:15: `http://x` is not an issuer's URL"),
            ("password_file = \"/nowhere\"", "write.toml:1:1: the password cannot be read: cannot open `/nowhere`"),
            ("jwt = [{ audience = [], file = \"t\" }]", "write.toml:1:1: the token `t` has no audience"),
            ("[[output]]\ndirectory = \"/x\"", "write.toml:3:1: `/x` is the directory of two outputs"),
            ("x = ", "write.toml:3:5: "),
        ];
        for (text, expected) in cases {
            let error = read_text(&format!("[[output]]\ndirectory = \"/x\"\n{text}\n")).expect_err(text);
            assert!(error.starts_with(expected), "{text}: {error}");
        }
        assert_eq!(
            read_text("[[output]]\n").expect_err("refused"),
            "write.toml:1:1: `directory` is missing: name where the files go"
        );
        assert_eq!(read_text("output = []").expect_err("refused"), "write.toml: there is no `[[output]]`");
    }

    #[test]
    fn keys_are_readable_by_everybody_only_where_that_is_said() {
        let text = "[[output]]\ndirectory = \"/x\"\nkey_mode = \"0444\"\nworld_readable_keys = true\n";
        assert!(read_text(text).is_ok());
    }
}
