//! An entry as it is written down, before anyone checked it.

use serde::Serialize;

use super::entry::{Bind, Entry};
use super::lifetime;

/// The fields of one `[[entry]]` table. Writing is all it can do: what it holds becomes an [`Entry`] only through the
/// one parser, [`super::parse_entry`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct EntryDraft {
    /// The id; generated from the content when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The SPIFFE ID, perhaps with placeholders.
    pub spiffe_id: String,
    /// Selectors that must all hold.
    #[serde(rename = "match")]
    pub matches: Vec<String>,
    /// Selectors of which none may hold.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unless: Vec<String>,
    /// Who answers for the entry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// The hint sent to the workload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// The lifetime of X.509-SVIDs, as `15m`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x509_ttl: Option<String>,
    /// The lifetime of JWT-SVIDs, as `5m`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jwt_ttl: Option<String>,
    /// The lifetime of X.509-SVIDs given as credentials of a systemd unit, as `12h`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credential_ttl: Option<String>,
    /// The audiences JWT-SVIDs may have.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub audiences: Vec<String>,
    /// URI prefixes this workload checks proofs for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub serves: Vec<String>,
    /// SPIFFE IDs in whose name this workload may ask.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub may_act_for: Vec<String>,
    /// DNS names in X.509-SVIDs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dns_names: Vec<String>,
    /// Trust domains whose bundles the workload gets.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub federates_with: Vec<String>,
    /// `process`, `unit` or `node`; absent for the default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bind: Option<String>,
    /// Whether each JWT-SVID is accepted once.
    #[serde(skip_serializing_if = "is_false")]
    pub single_use: bool,
    /// Whether keys and tokens may be written to files.
    #[serde(skip_serializing_if = "is_false")]
    pub exportable: bool,
    /// Whether the entry is switched off.
    #[serde(skip_serializing_if = "is_false")]
    pub disabled: bool,
    /// When the entry ends, in RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature serde asks for")]
fn is_false(value: &bool) -> bool {
    !value
}

impl EntryDraft {
    /// One `[[entry]]` table.
    pub fn to_toml(&self) -> String {
        #[derive(Serialize)]
        struct File<'a> {
            entry: [&'a EntryDraft; 1],
        }
        // Only texts, lists of texts and booleans: nothing that TOML cannot say.
        toml::to_string(&File { entry: [self] }).expect("an entry of texts and booleans is always TOML")
    }
}

impl From<&Entry> for EntryDraft {
    fn from(entry: &Entry) -> Self {
        let texts = |list: &[Box<str>]| list.iter().map(|text| text.to_string()).collect();
        let selectors = |list: &[crate::selector::Selector]| list.iter().map(ToString::to_string).collect();
        Self {
            id: Some(entry.id().to_string()),
            spiffe_id: entry.spiffe_id().to_string(),
            matches: selectors(entry.matches()),
            unless: selectors(entry.unless()),
            owner: entry.owner().map(str::to_owned),
            hint: entry.hint().map(str::to_owned),
            x509_ttl: entry.x509_ttl().map(lifetime::show),
            jwt_ttl: entry.jwt_ttl().map(lifetime::show),
            credential_ttl: entry.credential_ttl().map(lifetime::show),
            audiences: texts(entry.audiences()),
            serves: texts(entry.serves()),
            may_act_for: texts(entry.may_act_for()),
            dns_names: texts(entry.dns_names()),
            federates_with: entry.federates_with().iter().map(ToString::to_string).collect(),
            bind: (entry.bind() != Bind::Process).then(|| entry.bind().to_string()),
            single_use: entry.is_single_use(),
            exportable: entry.is_exportable(),
            disabled: entry.is_disabled(),
            expires_at: entry.expires_at().map(crate::registry::entry::rfc3339),
        }
    }
}
