//! What an engine says of a container, and what follows from it.
//!
//! The answer is that of `GET /containers/ID/json` of Docker's API, which podman answers too. Of what it says, only what is
//! used is read. Labels and environment are whatever those chose who made the image or started the container.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::Kind;
use crate::attest::Findings;

/// A container with more labels has none that count.
const MAX_LABELS: usize = 256;
/// The same for the variables of its environment.
const MAX_VARIABLES: usize = 1024;

/// A container as its engine describes it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Answer {
    /// 64 digits.
    pub id: String,
    #[serde(default)]
    name: String,
    /// The id of its image.
    #[serde(default)]
    image: String,
    /// There when the engine keeps images in containerd, and calls them by the digest of their manifest.
    #[serde(default)]
    image_manifest_descriptor: Option<IgnoredAny>,
    /// How it is.
    pub state: State,
    config: Config,
}

/// Whether it runs, and as what.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct State {
    /// Whether it has processes.
    pub running: bool,
    /// The first of them, as the engine counts them; 0 when there is none.
    pub pid: i32,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Config {
    /// The image as it was named when the container was made.
    #[serde(default)]
    image: Option<String>,
    #[serde(default)]
    labels: Option<BTreeMap<String, String>>,
    #[serde(default)]
    env: Option<Vec<String>>,
}

impl Answer {
    /// The selectors of the container.
    pub fn findings(&self, kind: Kind) -> Findings {
        let mut findings = Findings::of(kind.as_str());
        self.add_labels(&mut findings);
        self.add_variables(&mut findings);
        if let Some(image) = self.config.image.as_deref().filter(|image| !image.is_empty()) {
            findings.fact("image_id", image); // SPIRE's name for the image's name
        }
        match self.image_digest() {
            Ok(digest) => findings.fact("image_config_digest", digest),
            Err(why) => findings.gap(&["image_config_digest"], why),
        }
        match self.name() {
            Some(name) => findings.fact("name", name),
            None => findings.gap(&["name"], "the engine gives the container a name that is none"),
        }
        findings
    }

    /// Its name without the slash that the API puts before it.
    pub fn name(&self) -> Option<&str> {
        let name = self.name.strip_prefix('/').unwrap_or(&self.name);
        let is_legal = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
        (!name.is_empty() && name.len() <= 255 && name.bytes().all(is_legal)).then_some(name)
    }

    fn add_labels(&self, findings: &mut Findings) {
        let labels = self.config.labels.iter().flatten();
        if labels.clone().count() > MAX_LABELS {
            return findings.gap(&["label"], format!("the container has more than {MAX_LABELS} labels"));
        }
        for (key, value) in labels {
            // `label:a:b:c` would be two labels: `a` with the value `b:c`, and `a:b` with `c`.
            match key.is_empty() || key.contains(':') {
                true => {
                    findings.note(format!("the label `{}` has no selector: there is a colon in its key", brief(key)))
                }
                false => add(findings, "label", key, &format!("{key}:{value}")),
            }
        }
    }

    fn add_variables(&self, findings: &mut Findings) {
        let variables = self.config.env.iter().flatten();
        if variables.clone().count() > MAX_VARIABLES {
            return findings.gap(&["env"], format!("the container has more than {MAX_VARIABLES} variables"));
        }
        for variable in variables {
            let name = variable.split('=').next().unwrap_or_default();
            add(findings, "env", name, variable);
        }
    }

    /// The digest of the configuration of its image, `sha256:` and 64 digits.
    fn image_digest(&self) -> Result<String, &'static str> {
        if self.image_manifest_descriptor.is_some() {
            return Err(
                "the engine keeps images in containerd and names them by their manifest, not their configuration",
            );
        }
        let digits = self.image.strip_prefix("sha256:").unwrap_or(&self.image);
        let is_digest = super::place::ContainerId::parse(digits).is_some();
        if is_digest {
            Ok(format!("sha256:{digits}"))
        } else {
            Err("the engine does not say which image the container has")
        }
    }
}

/// Adds a fact, or says that what is called `name` cannot be written as a selector.
fn add(findings: &mut Findings, key: &'static str, name: &str, value: &str) {
    if !findings.try_fact(key, value) {
        let name = brief(name);
        findings.note(format!("the {key} `{name}` has no selector: its value is too long, or has more than one line"));
    }
}

/// A name for a person, who needs no more than this of it.
fn brief(name: &str) -> String {
    const SHOWN: usize = 64;
    name.chars().filter(|letter| !letter.is_control()).take(SHOWN).collect()
}

#[cfg(test)]
mod tests;
