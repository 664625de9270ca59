//! What the names of secrets mean, and what of it a process has.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;

use aws_lc_rs::digest::{Context, SHA256};
use tonic::Status;

use super::secret::{Authorities, Secret};
use super::{SendCrl, Settings, words};
use crate::api::status;
use crate::base::entropy::hex;
use crate::id::{SpiffeId, TrustDomain};
use crate::issue::Bundles;
use crate::issue::named::{NamedX509, WantedSvids};
use crate::policy::Denial;
use crate::trust::CrlSet;

/// The most names one request may have.
const MAX_NAMES: usize = 256;
/// The longest name: that of an identity.
const MAX_NAME_BYTES: usize = 2048;
/// How many names an error repeats or offers.
const SHOWN: usize = 8;
/// A name is shown as far as this.
const SHOWN_CHARS: usize = 120;
/// Octets of the digest that names a version.
const VERSION_BYTES: usize = 12;
/// What Istio's configuration calls files that its own agent serves.
const ISTIO_FILES: [&str; 2] = ["file-cert:", "file-root:"];

/// The names that are neither SPIFFE IDs nor trust domains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    /// The certificate of the default identity.
    pub svid: String,
    /// The authorities of our own trust domain.
    pub bundle: String,
    /// The authorities of every trust domain that the process may know.
    pub all_bundles: String,
}

/// What a name means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    DefaultSvid,
    Svid(SpiffeId),
    OwnBundle,
    AllBundles,
    Bundle(TrustDomain),
    Nothing,
}

impl Names {
    fn meaning(&self, name: &str) -> Meaning {
        match name {
            name if name == self.svid => Meaning::DefaultSvid,
            name if name == self.bundle => Meaning::OwnBundle,
            name if name == self.all_bundles => Meaning::AllBundles,
            name => match (SpiffeId::parse(name), TrustDomain::parse_name_or_id(name)) {
                (_, Ok(domain)) => Meaning::Bundle(domain),
                (Ok(id), Err(_)) => Meaning::Svid(id),
                (Err(_), Err(_)) => Meaning::Nothing,
            },
        }
    }
}

/// What a stream asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// Everything the process has, by the names of identities and trust domains: for who names nothing.
    Everything,
    /// What goes by these names.
    Named(BTreeMap<Arc<str>, Meaning>),
}

impl Wanted {
    /// What a request asks for. Who once named something and now names nothing wants nothing, as Envoy's protocol has it
    /// (`only_names`).
    ///
    /// # Errors
    /// Too many names, or one that is too long to be any.
    pub(super) fn parse(names: &[String], known: &Names, only_names: bool) -> Result<Self, Status> {
        if names.len() > MAX_NAMES {
            return Err(status::bad_field("resource_names", format!("has more than {MAX_NAMES} values")));
        }
        if names.iter().any(|name| name.len() > MAX_NAME_BYTES) {
            let why = format!("has a value of more than {MAX_NAME_BYTES} bytes");
            return Err(status::bad_field("resource_names", why));
        }
        let named: BTreeMap<Arc<str>, Meaning> = names
            .iter()
            .filter(|name| !name.is_empty())
            .map(|name| (name.as_str().into(), known.meaning(name)))
            .collect();
        Ok(if named.is_empty() && !only_names { Self::Everything } else { Self::Named(named) })
    }

    pub(super) fn is_of_names(&self) -> bool {
        matches!(self, Self::Named(_))
    }

    pub(super) fn is_empty(&self) -> bool {
        matches!(self, Self::Named(named) if named.is_empty())
    }

    /// Whether a secret of this name is asked for.
    pub(super) fn has(&self, name: &str) -> bool {
        match self {
            Self::Everything => true,
            Self::Named(named) => named.contains_key(name),
        }
    }

    /// The SVIDs that are needed for it.
    pub(super) fn svids(&self) -> WantedSvids {
        let Self::Named(named) = self else { return WantedSvids { all: true, ..WantedSvids::default() } };
        let mut wanted = WantedSvids::default();
        for meaning in named.values() {
            match meaning {
                Meaning::DefaultSvid => wanted.first = true,
                Meaning::Svid(id) => wanted.ids.push(id.clone()),
                Meaning::OwnBundle | Meaning::AllBundles | Meaning::Bundle(_) | Meaning::Nothing => {}
            }
        }
        wanted
    }

    /// Whether the authorities of our own trust domain may be among it.
    pub(super) fn own_authorities(&self) -> bool {
        let is_bundle =
            |meaning: &Meaning| matches!(meaning, Meaning::OwnBundle | Meaning::AllBundles | Meaning::Bundle(_));
        match self {
            Self::Everything => true,
            Self::Named(named) => named.values().any(is_bundle),
        }
    }

    /// What the process has of it.
    pub(super) fn find(&self, state: &NamedX509, lists: Option<&Arc<CrlSet>>, settings: &Settings) -> Found {
        let look = Look { state, lists, crl: settings.crl };
        let mut found = Found {
            secrets: BTreeMap::new(),
            missing: BTreeSet::new(),
            denied: state.denied.values().next().cloned(),
            identities: state.identities.clone(),
            domains: state.bundles.x509().map(|bundle| bundle.trust_domain().clone()).collect(),
        };
        match self {
            Self::Everything => {
                let ids = state.svids.keys().map(|id| (id.as_str().into(), Meaning::Svid(id.clone())));
                let domains = found.domains.iter().map(|domain| (domain.id().as_str().into(), domain.clone()));
                let all: Vec<(Arc<str>, Meaning)> =
                    ids.chain(domains.map(|(name, domain)| (name, Meaning::Bundle(domain)))).collect();
                all.iter().for_each(|(name, meaning)| found.add(name, look.up(meaning)));
            }
            Self::Named(named) => named.iter().for_each(|(name, meaning)| found.add(name, look.up(meaning))),
        }
        found
    }
}

/// Finds secrets in what a process has.
struct Look<'a> {
    state: &'a NamedX509,
    lists: Option<&'a Arc<CrlSet>>,
    crl: SendCrl,
}

impl Look<'_> {
    fn up(&self, meaning: &Meaning) -> Option<Secret> {
        let Bundles { own, federated } = &self.state.bundles;
        match meaning {
            Meaning::DefaultSvid => self.svid(self.state.identities.first()?),
            Meaning::Svid(id) => self.svid(id),
            Meaning::OwnBundle => self.own(),
            Meaning::Bundle(domain) if domain == own.trust_domain() => self.own(),
            Meaning::Bundle(domain) => {
                let bundle = federated.get(domain).filter(|bundle| !bundle.x509().is_empty())?;
                Some(Secret::Authorities(Authorities::foreign(bundle.clone())))
            }
            Meaning::AllBundles => {
                let usable = self.state.bundles.all().filter(|bundle| !bundle.x509().is_empty());
                // Envoy's SPIFFE validator wants the list of the root too.
                let lists = self.lists.filter(|_| self.state.only_our_roots);
                Some(Secret::Authorities(Authorities::all(own.trust_domain(), usable.cloned().collect(), lists)))
            }
            Meaning::Nothing => None,
        }
    }

    fn svid(&self, id: &SpiffeId) -> Option<Secret> {
        self.state.svids.get(id).map(|(svid, _)| Secret::Svid(svid.clone()))
    }

    fn own(&self) -> Option<Secret> {
        let own = Some(&self.state.bundles.own).filter(|own| !own.x509().is_empty())?;
        let has_all = self.crl == SendCrl::Always || self.state.only_our_roots;
        Some(Secret::Authorities(Authorities::own(own.clone(), self.lists.filter(|_| has_all))))
    }
}

/// What a process has of what it asked for.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Found {
    secrets: BTreeMap<Arc<str>, Secret>,
    missing: BTreeSet<Arc<str>>,
    denied: Option<Denial>,
    identities: Vec<SpiffeId>,
    domains: Vec<TrustDomain>,
}

impl Found {
    fn add(&mut self, name: &Arc<str>, secret: Option<Secret>) {
        match secret {
            Some(secret) => drop(self.secrets.insert(name.clone(), secret)),
            None => drop(self.missing.insert(name.clone())),
        }
    }

    pub(super) fn secrets(&self) -> &BTreeMap<Arc<str>, Secret> {
        &self.secrets
    }

    /// The names that nothing goes by.
    pub(super) fn missing(&self) -> impl Iterator<Item = &Arc<str>> {
        self.missing.iter()
    }

    /// Why policy does not allow what was asked for.
    pub(super) fn denial(&self) -> Option<Denial> {
        self.denied.clone()
    }

    /// The serial numbers of the certificates.
    pub(super) fn serials(&self) -> impl Iterator<Item = &str> {
        self.secrets.values().filter_map(|secret| match secret {
            Secret::Svid(svid) => Some(svid.svid.signed.serial.as_str()),
            Secret::Authorities(_) => None,
        })
    }

    /// Names the state: the same for the same certificates, authorities and lists.
    pub(super) fn version(&self) -> String {
        let mut digest = Context::new(&SHA256);
        for (name, secret) in &self.secrets {
            // No name has a zero in it, or it would be none.
            digest.update(name.as_bytes());
            digest.update(&[0]);
            secret.digest_into(&mut digest);
        }
        hex(&digest.finish().as_ref()[..VERSION_BYTES])
    }

    /// What is wrong with the names that nothing goes by, and which there are, for a person.
    pub(super) fn explain(&self, pid: i32, names: &Names) -> String {
        let missing = list(self.missing.iter().map(|name| &**name));
        let own = [names.svid.as_str(), names.bundle.as_str(), names.all_bundles.as_str()];
        let ids = self.identities.iter().map(SpiffeId::as_str);
        let domains: Vec<SpiffeId> = self.domains.iter().map(TrustDomain::id).collect();
        let all = own.into_iter().chain(ids).chain(domains.iter().map(SpiffeId::as_str));
        let there = list(all.filter(|name| !self.missing.contains(*name)));
        let mut text =
            format!("process {pid} has no secret {missing}, but {there}: `tether explain --pid {pid}` says why");
        if let Some(denial) = &self.denied {
            let _ = write!(text, "; {denial}");
        }
        if self.missing.iter().any(|name| ISTIO_FILES.iter().any(|prefix| name.starts_with(prefix))) {
            text.push_str("; names of files are served by Istio's own agent alone: let Envoy read the file itself");
        }
        text
    }
}

/// Names in backticks, the first few.
fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.collect();
    let shown = names.iter().take(SHOWN).map(|name| {
        let short: String = name.chars().take(SHOWN_CHARS).collect();
        format!("`{}`", words(&short))
    });
    let mut text = shown.collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        let _ = write!(text, " and {} more", names.len() - SHOWN);
    }
    text
}
