//! `tether fetch`: what a workload would get, printed or written to files.

mod wit;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde::{Serialize, Serializer};
use time::{Duration as Span, OffsetDateTime};

use crate::base::backoff::Backoff;
use crate::base::durable;
use crate::base::entropy::Entropy;
use crate::base::secret::Secret;
use crate::base::text::chain;
use crate::bundle::Bundle;
use crate::client::{ClientError, JwtSvid, Watch, WorkloadApi, X509Bundles, X509Context, X509Svid};
use crate::id::{SpiffeId, TrustDomain};
use crate::jwt::JwtAuthorities;
use crate::wit::WitAuthorities;
use crate::x509::{Crl, KeyError, X509Authorities};

use super::args::{Delivery, FetchCommand};
use super::failure::{Exit, Failure};
use super::output::{relative, time};
use super::{Context, within};

/// Readable by everyone.
const PUBLIC: u32 = 0o644;
/// Readable by its owner.
const PRIVATE: u32 = 0o600;
/// The mode of a directory that is made for the files.
const DIRECTORY: u32 = 0o755;

const FIRST_DELAY: Duration = Duration::from_millis(500);
const LONGEST_DELAY: Duration = Duration::from_secs(30);
/// Tokens that live for seconds do not turn a watch into a busy loop.
const SHORTEST_RENEWAL: Span = Span::SECOND;

pub(super) async fn run(command: FetchCommand, context: &mut Context) -> Result<(), Failure> {
    match command {
        FetchCommand::X509 { spiffe_id, delivery } => x509(spiffe_id.as_ref(), &delivery, context).await,
        FetchCommand::Jwt { audience, spiffe_id, delivery } => {
            jwt(&audience, spiffe_id.as_ref(), &delivery, context).await
        }
        FetchCommand::Wit { spiffe_id, delivery } => wit::run(spiffe_id.as_ref(), &delivery, context).await,
        FetchCommand::Bundle { trust_domain, delivery } => bundle(trust_domain.as_ref(), &delivery, context).await,
    }
}

async fn x509(wanted: Option<&SpiffeId>, delivery: &Delivery, context: &mut Context) -> Result<(), Failure> {
    let api = context.workload_api()?;
    if let (true, Some(dir)) = (delivery.watch, &delivery.write) {
        return keep_x509_files(&api, wanted, delivery, dir, context).await;
    }
    let mut svids = api.watch_x509();
    // People are not shown lists.
    let gives_lists = delivery.write.is_some() || context.output.is_json();
    loop {
        let update = of_wanted(following(&mut svids, &api, delivery, context).await?, wanted)?;
        let crls = match gives_lists {
            true => following(&mut api.watch_x509_bundles(), &api, delivery, context).await?.crls,
            false => Vec::new(),
        };
        deliver_x509(&update, &crls, delivery, context)?;
        if !delivery.watch {
            return Ok(());
        }
    }
}

/// Keeps files fresh: those of the SVID when there is a new one, and revocation lists as soon as they change. Lists come
/// from the stream of bundles, which has all of them; beside SVIDs some may be left out.
async fn keep_x509_files(
    api: &WorkloadApi,
    wanted: Option<&SpiffeId>,
    delivery: &Delivery,
    dir: &Path,
    context: &mut Context,
) -> Result<(), Failure> {
    let (mut svids, mut bundles) = (api.watch_x509(), api.watch_x509_bundles());
    let first = of_wanted(following(&mut svids, api, delivery, context).await?, wanted)?;
    let crls = following(&mut bundles, api, delivery, context).await?.crls;
    write_x509(&first, &crls, dir, context)?;
    loop {
        tokio::select! {
            update = svids.next() => match update {
                Ok(update) => write_x509(&of_wanted(update, wanted)?, &[], dir, context)?,
                Err(error) => retry_or_fail(error, delivery, context)?,
            },
            update = bundles.next() => match update {
                Ok(bundles) => {
                    if !write_crls(&bundles.crls, dir)?.is_empty() {
                        context.output.note(&format!("wrote crl.pem to `{}`", dir.display()));
                    }
                }
                Err(error) => retry_or_fail(error, delivery, context)?,
            },
        }
    }
}

/// What a stream has next: waited for as long as it takes by a command that watches, and otherwise for a moment.
async fn following<M, T>(
    watch: &mut Watch<M, T>,
    api: &WorkloadApi,
    delivery: &Delivery,
    context: &mut Context,
) -> Result<T, Failure>
where
    M: prost::Message + Default + 'static,
{
    loop {
        let update = if delivery.watch { watch.next().await } else { within(watch.next(), api.endpoint()).await? };
        match update {
            Ok(update) => return Ok(update),
            Err(error) => retry_or_fail(error, delivery, context)?,
        }
    }
}

fn of_wanted(update: X509Context, wanted: Option<&SpiffeId>) -> Result<X509Context, Failure> {
    let svids = chosen(update.svids, wanted, |svid| &svid.id)?;
    Ok(X509Context { svids, ..update })
}

/// Of all identities the wanted one; all when none is.
fn chosen<S>(svids: Vec<S>, wanted: Option<&SpiffeId>, id: impl Fn(&S) -> &SpiffeId) -> Result<Vec<S>, Failure> {
    let Some(wanted) = wanted else { return Ok(svids) };
    let offered: Vec<_> = svids.iter().map(|svid| format!("`{}`", id(svid))).collect();
    let chosen: Vec<S> = svids.into_iter().filter(|svid| id(svid) == wanted).collect();
    if chosen.is_empty() {
        let message = format!("`{wanted}` is not an identity of this caller; it has {}", offered.join(", "));
        return Err(Failure::new(Exit::NoIdentity, message));
    }
    Ok(chosen)
}

/// One that watches goes on after what may pass; everything else ends the command.
fn retry_or_fail(error: ClientError, delivery: &Delivery, context: &mut Context) -> Result<(), Failure> {
    if !delivery.watch || !error.is_retryable() {
        return Err(error.into());
    }
    context.output.note(&format!("{error}; trying again"));
    Ok(())
}

fn deliver_x509(update: &X509Context, crls: &[Crl], delivery: &Delivery, context: &mut Context) -> Result<(), Failure> {
    let now = context.host.now();
    match &delivery.write {
        Some(dir) => write_x509(update, crls, dir, context),
        None if context.output.is_json() => {
            let document = X509Document::new(update, crls).map_err(|error| unusable_key(&error))?;
            context.json(&document)
        }
        None => print_x509(update, now, context),
    }
}

fn unusable_key(error: &KeyError) -> Failure {
    Failure::new(Exit::Failure, format!("cannot write the key: {}", chain(error)))
}

#[derive(Serialize)]
struct X509Document {
    svids: Vec<X509SvidDocument>,
    federated_bundles: BTreeMap<String, String>,
    crl_pem: Vec<String>,
}

#[derive(Serialize)]
struct X509SvidDocument {
    spiffe_id: String,
    hint: Option<String>,
    x509_svid_pem: String,
    #[serde(serialize_with = "exposed")]
    x509_svid_key_pem: Secret<String>,
    bundle_pem: String,
    serial: String,
    not_before: String,
    not_after: String,
}

/// The one place where a secret becomes output: the caller asked for its own key or token.
fn exposed<S: Serializer>(secret: &Secret<String>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(secret.expose())
}

impl X509Document {
    fn new(update: &X509Context, crls: &[Crl]) -> Result<Self, KeyError> {
        Ok(Self {
            svids: update.svids.iter().map(X509SvidDocument::new).collect::<Result<_, _>>()?,
            federated_bundles: update
                .federated
                .iter()
                .map(|(domain, set)| (domain.to_string(), set.to_pem()))
                .collect(),
            crl_pem: crls.iter().map(Crl::to_pem).collect(),
        })
    }
}

impl X509SvidDocument {
    fn new(svid: &X509Svid) -> Result<Self, KeyError> {
        let leaf = svid.chain.leaf();
        Ok(Self {
            spiffe_id: svid.id.to_string(),
            hint: svid.hint.clone(),
            x509_svid_pem: svid.chain.to_pem(),
            x509_svid_key_pem: svid.key.to_pem()?,
            bundle_pem: svid.bundle.to_pem(),
            serial: leaf.serial().to_string(),
            not_before: time(leaf.not_before()),
            not_after: time(leaf.not_after()),
        })
    }
}

fn print_x509(update: &X509Context, now: OffsetDateTime, context: &mut Context) -> Result<(), Failure> {
    for (i, svid) in update.svids.iter().enumerate() {
        if i > 0 {
            context.output.line("")?;
        }
        let leaf = svid.chain.leaf();
        let expiry = format!("{} ({})", time(leaf.not_after()), relative(leaf.not_after(), now));
        let mut fields = vec![("SPIFFE ID", svid.id.to_string())];
        fields.extend(svid.hint.iter().map(|hint| ("hint", hint.clone())));
        fields.extend([
            ("expires", expiry),
            ("serial", leaf.serial().to_string()),
            ("bundle", authorities(&svid.bundle)),
        ]);
        fields.extend(update.federated.values().map(|set| ("federated", authorities(set))));
        context.output.fields(&fields)?;
    }
    context.output.note("to use them: `tether fetch x509 --write DIR` for files, `--output json` for programs");
    Ok(())
}

fn authorities(set: &X509Authorities) -> String {
    let count = set.certificates().len();
    let noun = if count == 1 { "authority" } else { "authorities" };
    format!("{} ({count} {noun})", set.trust_domain())
}

/// Writes the default identity, the first one, and the revocation lists if there are any: those first, so that nobody
/// finds a certificate without them.
fn write_x509(update: &X509Context, crls: &[Crl], dir: &Path, context: &mut Context) -> Result<(), Failure> {
    let Some(svid) = update.svids.first() else { return Ok(()) };
    let key = svid.key.to_pem().map_err(|error| unusable_key(&error))?;
    durable::shared_dir(dir, DIRECTORY)?;
    let lists = write_crls(crls, dir)?;
    durable::replace(&dir.join("svid_key.pem"), key.expose().as_bytes(), PRIVATE)?;
    durable::replace(&dir.join("svid.pem"), svid.chain.to_pem().as_bytes(), PUBLIC)?;
    durable::replace(&dir.join("bundle.pem"), svid.bundle.to_pem().as_bytes(), PUBLIC)?;
    let until = time(svid.chain.leaf().not_after());
    context.output.note(&format!(
        "wrote svid.pem, svid_key.pem and bundle.pem of `{}`{lists} to `{}`; they work for whoever reads them until {until}",
        svid.id,
        dir.display(),
    ));
    note_others(update.svids.len(), context);
    Ok(())
}

/// Writes the revocation lists, if there are any, and says so. Without any an older file stays: it goes stale, and
/// whoever enforces it then refuses, which is better than to believe what it revoked.
fn write_crls(crls: &[Crl], dir: &Path) -> Result<&'static str, Failure> {
    if crls.is_empty() {
        return Ok("");
    }
    let lists: String = crls.iter().map(Crl::to_pem).collect();
    durable::replace(&dir.join("crl.pem"), lists.as_bytes(), PUBLIC)?;
    Ok(", and crl.pem,")
}

fn note_others(identities: usize, context: &mut Context) {
    let more = match identities {
        0 | 1 => return,
        2 => "one more identity".to_owned(),
        count => format!("{} more identities", count - 1),
    };
    context.output.note(&format!("this caller has {more}; choose one with --spiffe-id, see all with --output json"));
}

async fn jwt(
    audiences: &[String],
    wanted: Option<&SpiffeId>,
    delivery: &Delivery,
    context: &mut Context,
) -> Result<(), Failure> {
    let api = context.workload_api()?;
    let mut retry_delay = Backoff::new(FIRST_DELAY, LONGEST_DELAY);
    let entropy = Entropy::system();
    loop {
        match within(api.fetch_jwt(audiences, wanted), api.endpoint()).await? {
            Ok(svids) => {
                retry_delay.reset();
                deliver_jwt(&svids, delivery, context)?;
                if !delivery.watch {
                    return Ok(());
                }
                let now = context.host.now();
                let first_end = svids.iter().map(|svid| svid.expires_at).min().unwrap_or(now);
                // Half of what is left, so that the next one is there well before this one ends.
                let half: Span = (first_end - now) / 2;
                let next = now + half.max(SHORTEST_RENEWAL);
                context.host.clock.sleep_until(next).await;
            }
            Err(error) => {
                retry_or_fail(error, delivery, context)?;
                tokio::time::sleep(retry_delay.delay(&entropy)).await;
            }
        }
    }
}

#[derive(Serialize)]
struct JwtDocument<'a> {
    svids: Vec<JwtSvidDocument<'a>>,
}

#[derive(Serialize)]
struct JwtSvidDocument<'a> {
    spiffe_id: String,
    hint: Option<&'a str>,
    #[serde(serialize_with = "exposed")]
    token: &'a Secret<String>,
    expires_at: String,
}

impl<'a> JwtSvidDocument<'a> {
    fn new(svid: &'a JwtSvid) -> Self {
        Self {
            spiffe_id: svid.id.to_string(),
            hint: svid.hint.as_deref(),
            token: &svid.token,
            expires_at: time(svid.expires_at),
        }
    }
}

fn deliver_jwt(svids: &[JwtSvid], delivery: &Delivery, context: &mut Context) -> Result<(), Failure> {
    if let Some(dir) = &delivery.write {
        let Some(svid) = svids.first() else { return Ok(()) };
        durable::shared_dir(dir, DIRECTORY)?;
        durable::replace(&dir.join("jwt_svid.token"), svid.token.expose().as_bytes(), PRIVATE)?;
        context.output.note(&format!(
            "wrote jwt_svid.token of `{}` to `{}`; it works for whoever reads it until {}",
            svid.id,
            dir.display(),
            time(svid.expires_at),
        ));
        note_others(svids.len(), context);
        return Ok(());
    }
    if context.output.is_json() {
        return context.json(&JwtDocument { svids: svids.iter().map(JwtSvidDocument::new).collect() });
    }
    if let Some(svid) = svids.first() {
        context.output.document(svid.token.expose())?;
        // A person may copy it from the screen; a script that reads it knows what it does.
        if context.output.is_terminal() {
            let end = time(svid.expires_at);
            context.output.note(&format!("a bearer token: whoever has it can use it at its audience until {end}"));
        }
        note_others(svids.len(), context);
    }
    Ok(())
}

async fn bundle(wanted: Option<&TrustDomain>, delivery: &Delivery, context: &mut Context) -> Result<(), Failure> {
    let api = context.workload_api()?;
    let (mut x509_watch, mut jwt_watch) = (api.watch_x509_bundles(), api.watch_jwt_bundles());
    let mut wit_watch = api.watch_wit_bundles();
    let mut bundles = Bundles::fetch(&api).await?;
    let offers_wit = bundles.wit.is_some();
    loop {
        deliver_bundles(&bundles, wanted, delivery, context)?;
        if !delivery.watch {
            return Ok(());
        }
        let before = bundles.clone();
        while bundles == before {
            let changed = tokio::select! {
                x509 = x509_watch.next() => x509.map(|x509| bundles.x509 = x509),
                jwt = jwt_watch.next() => jwt.map(|jwt| bundles.jwt = jwt),
                wit = wit_watch.next(), if offers_wit => wit.map(|wit| bundles.wit = Some(wit)),
            };
            if let Err(error) = changed {
                retry_or_fail(error, delivery, context)?;
            }
        }
    }
}

#[derive(Clone, PartialEq)]
struct Bundles {
    x509: X509Bundles,
    jwt: BTreeMap<TrustDomain, JwtAuthorities>,
    /// `None` when the agent does not offer WITs.
    wit: Option<BTreeMap<TrustDomain, WitAuthorities>>,
}

impl Bundles {
    async fn fetch(api: &WorkloadApi) -> Result<Self, Failure> {
        let both = async { tokio::try_join!(api.fetch_x509_bundles(), api.fetch_jwt_bundles()) };
        let (x509, jwt) = within(both, api.endpoint()).await??;
        let wit = match within(api.fetch_wit_bundles(), api.endpoint()).await? {
            Err(ClientError::NotOffered(_)) => None,
            wit => Some(wit?),
        };
        Ok(Self { x509, jwt, wit })
    }

    /// All kinds of authorities by trust domain; a kind that is absent is empty.
    fn by_domain(&self) -> BTreeMap<&TrustDomain, Bundle> {
        let domains = self.x509.authorities.keys().chain(self.jwt.keys());
        let bundle = |domain: &TrustDomain| {
            let x509 = self.x509.authorities.get(domain).cloned();
            let x509 = x509.or_else(|| X509Authorities::new(domain.clone(), []).ok())?;
            let jwt = self.jwt.get(domain).cloned().unwrap_or_else(|| JwtAuthorities::new(domain.clone(), []));
            let wit = self.wit.as_ref().and_then(|wit| wit.get(domain)).cloned();
            let wit = wit.unwrap_or_else(|| WitAuthorities::new(domain.clone(), []));
            Some(Bundle::new(x509, jwt).with_wit(wit))
        };
        domains.filter_map(|domain| Some((domain, bundle(domain)?))).collect()
    }
}

#[derive(Serialize)]
struct BundlesDocument {
    bundles: BTreeMap<String, BundleDocument>,
    crl_pem: Vec<String>,
}

#[derive(Serialize)]
struct BundleDocument {
    x509_pem: String,
    jwks: serde_json::Value,
    /// Absent when the agent does not offer WITs.
    #[serde(skip_serializing_if = "Option::is_none")]
    wit_jwks: Option<serde_json::Value>,
}

fn deliver_bundles(
    bundles: &Bundles,
    wanted: Option<&TrustDomain>,
    delivery: &Delivery,
    context: &mut Context,
) -> Result<(), Failure> {
    let mut by_domain = bundles.by_domain();
    let crls = &bundles.x509.crls;
    if let Some(wanted) = wanted {
        by_domain.retain(|domain, _| *domain == wanted);
        if by_domain.is_empty() {
            let offered: Vec<_> = bundles.by_domain().keys().map(|domain| format!("`{domain}`")).collect();
            let message = format!("no bundle of `{wanted}` for this caller; it may have {}", offered.join(", "));
            return Err(Failure::new(Exit::NoIdentity, message));
        }
    }
    if let Some(dir) = &delivery.write {
        return write_bundle(&by_domain, bundles, dir, context);
    }
    if context.output.is_json() {
        let document = |bundle: &Bundle| BundleDocument {
            x509_pem: bundle.x509().to_pem(),
            jwks: serde_json::from_str(&bundle.jwt_jwks()).unwrap_or_default(),
            wit_jwks: bundles.wit.as_ref().and_then(|_| serde_json::from_str(&bundle.wit_jwks()).ok()),
        };
        let bundles = by_domain.iter().map(|(domain, bundle)| (domain.to_string(), document(bundle))).collect();
        let crl_pem = crls.iter().map(Crl::to_pem).collect();
        return context.json(&BundlesDocument { bundles, crl_pem });
    }
    for (domain, bundle) in &by_domain {
        // Readers of PEM skip what is between the blocks.
        context.output.document(&format!("# {domain}\n{}", bundle.x509().to_pem()))?;
    }
    Ok(())
}

fn write_bundle(
    by_domain: &BTreeMap<&TrustDomain, Bundle>,
    bundles: &Bundles,
    dir: &Path,
    context: &mut Context,
) -> Result<(), Failure> {
    let mut only = by_domain.iter();
    let (Some((domain, bundle)), None) = (only.next(), only.next()) else {
        let domains: Vec<_> = by_domain.keys().map(|domain| format!("`{domain}`")).collect();
        let message = format!("choose one with --trust-domain, a directory for each: {}", domains.join(", "));
        return Err(Failure::new(Exit::Usage, message));
    };
    durable::shared_dir(dir, DIRECTORY)?;
    durable::replace(&dir.join("bundle.pem"), bundle.x509().to_pem().as_bytes(), PUBLIC)?;
    durable::replace(&dir.join("jwt_bundle.json"), bundle.jwt_jwks().as_bytes(), PUBLIC)?;
    let mut files = vec!["bundle.pem", "jwt_bundle.json"];
    if bundles.wit.is_some() {
        durable::replace(&dir.join("wit_bundle.json"), bundle.wit_jwks().as_bytes(), PUBLIC)?;
        files.push("wit_bundle.json");
    }
    let (files, lists) = (files.join(", "), write_crls(&bundles.x509.crls, dir)?);
    context.output.note(&format!("wrote {files} of `{domain}`{lists} to `{}`", dir.display()));
    Ok(())
}
