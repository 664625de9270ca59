//! `tether bundle`: what the agent believes each trust domain by.

use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use crate::base::durable;
use crate::base::text::chain;
use crate::bundle::Bundle;
use crate::bundle::oidc::{self, IssuerUrl};
use crate::id::TrustDomain;
use crate::proto::admin::{BundleView, DeleteBundleRequest, SetBundleRequest, ShowBundlesRequest};

use super::args::{BundleCommand, BundleFormat};
use super::failure::{Exit, Failure};
use super::{Admin, Context};

/// The modes of what is published.
const DIRECTORY: u32 = 0o755;
const PUBLIC: u32 = 0o644;

pub(super) async fn run(command: BundleCommand, context: &mut Context) -> Result<(), Failure> {
    let admin = context.admin()?;
    match command {
        BundleCommand::Show { trust_domain } => {
            let bundles = fetch(&admin, trust_domain.as_ref()).await?;
            show(&bundles, context)
        }
        BundleCommand::Set { trust_domain, file } => {
            let content = context.host.read(&file)?;
            let request = SetBundleRequest { trust_domain: trust_domain.to_string(), content };
            let set = admin.answer(admin.bundles().set(request)).await?;
            show(&[set], context)
        }
        BundleCommand::Delete { trust_domain } => {
            let request = DeleteBundleRequest { trust_domain: trust_domain.to_string() };
            admin.answer(admin.bundles().delete(request)).await?;
            context.output.note(&format!("deleted what was set for `{trust_domain}`"));
            Ok(())
        }
        BundleCommand::Export { oidc: Some(dir), .. } => {
            let own = fetch(&admin, None).await?.into_iter().find(|view| view.own);
            let own = own.ok_or_else(|| Failure::new(Exit::Failure, "the agent has no bundle of its own"))?;
            write_oidc(&own, &dir, context)
        }
        BundleCommand::Export { trust_domain, format, oidc: None } => {
            let bundles = fetch(&admin, trust_domain.as_ref()).await?;
            let wanted =
                |view: &&BundleView| trust_domain.as_ref().map_or(view.own, |of| of.as_str() == view.trust_domain);
            let view = bundles.iter().find(wanted);
            let view = view.ok_or_else(|| Failure::new(Exit::Failure, "the agent has no such bundle"))?;
            let text = match format {
                BundleFormat::Pem => &view.pem,
                BundleFormat::Spiffe => &view.jwks,
                BundleFormat::Crl if view.crl_pem.is_empty() => {
                    let message =
                        format!("the agent has no revocation lists of `{}`: they are its own", view.trust_domain);
                    return Err(Failure::new(Exit::Failure, message));
                }
                BundleFormat::Crl => &view.crl_pem.concat(),
            };
            Ok(context.output.document(text.trim_end())?)
        }
    }
}

/// Writes the keys, and then the document that names them. What is published below the issuer's URL is never without
/// the keys, nor half written.
fn write_oidc(own: &BundleView, dir: &Path, context: &mut Context) -> Result<(), Failure> {
    if own.jwt_issuer.is_empty() {
        let message = "the agent's JWT-SVIDs have no issuer: set authority.jwt_issuer to the URL under which these files \
                       will be published";
        return Err(Failure::new(Exit::Failure, message));
    }
    let issuer = IssuerUrl::parse(&own.jwt_issuer)
        .map_err(|invalid| Failure::new(Exit::Failure, format!("the agent's jwt_issuer: {invalid}")))?;
    let bundle = parsed(own)?;
    let (keys, document) = (dir.join(oidc::JWKS_PATH), dir.join(oidc::DISCOVERY_PATH));
    durable::shared_dir(dir, DIRECTORY)?;
    if let Some(directory) = document.parent() {
        durable::shared_dir(directory, DIRECTORY)?;
    }
    durable::replace(&keys, oidc::jwks(&bundle).as_bytes(), PUBLIC)?;
    durable::replace(&document, oidc::discovery(&issuer, &bundle).as_bytes(), PUBLIC)?;
    context.output.note(&format!(
        "wrote {} and {}: publish them as {}/{} and {}, and write them again whenever keys change",
        oidc::DISCOVERY_PATH,
        oidc::JWKS_PATH,
        issuer,
        oidc::DISCOVERY_PATH,
        issuer.jwks_uri(),
    ));
    Ok(())
}

/// The bundles the agent has: of one trust domain, or all.
pub(super) async fn fetch(admin: &Admin, of: Option<&TrustDomain>) -> Result<Vec<BundleView>, Failure> {
    let trust_domain = of.map(ToString::to_string).unwrap_or_default();
    Ok(admin.answer(admin.bundles().show(ShowBundlesRequest { trust_domain })).await?.bundles)
}

/// The trust domain of the agent.
pub(super) async fn own_trust_domain(admin: &Admin) -> Result<TrustDomain, Failure> {
    let own = fetch(admin, None).await?.into_iter().find(|view| view.own);
    own.and_then(|view| TrustDomain::parse(&view.trust_domain).ok())
        .ok_or_else(|| Failure::new(Exit::Failure, "the agent does not say which trust domain it serves"))
}

#[derive(Serialize)]
struct Document<'a> {
    bundles: Vec<BundleDocument<'a>>,
}

#[derive(Serialize)]
struct BundleDocument<'a> {
    trust_domain: &'a str,
    own: bool,
    x509_pem: &'a str,
    bundle: Value,
    crl_pem: &'a [String],
}

fn show(bundles: &[BundleView], context: &mut Context) -> Result<(), Failure> {
    if context.output.is_json() {
        let document = |view: &BundleView| -> Result<Value, Failure> {
            serde_json::from_str(&view.jwks)
                .map_err(|error| Failure::new(Exit::Failure, format!("the agent's bundle is not JSON: {error}")))
        };
        let mut documents = Vec::new();
        for view in bundles {
            let BundleView { trust_domain, own, pem, crl_pem, .. } = view;
            documents.push(BundleDocument { trust_domain, own: *own, x509_pem: pem, bundle: document(view)?, crl_pem });
        }
        return context.json(&Document { bundles: documents });
    }
    let rows = bundles.iter().map(row).collect::<Result<Vec<_>, _>>()?;
    Ok(context.output.table(&["TRUST DOMAIN", "", "X.509 AUTHORITIES", "JWT AUTHORITIES", "WIT AUTHORITIES"], &rows)?)
}

fn parsed(view: &BundleView) -> Result<Bundle, Failure> {
    let unusable = |error: &dyn std::error::Error| {
        Failure::new(Exit::Failure, format!("the agent's bundle of `{}`: {}", view.trust_domain, chain(error)))
    };
    let domain = TrustDomain::parse(&view.trust_domain).map_err(|error| unusable(&error))?;
    Ok(Bundle::parse(&domain, view.jwks.as_bytes()).map_err(|error| unusable(&error))?.bundle)
}

fn row(view: &BundleView) -> Result<Vec<String>, Failure> {
    let bundle = parsed(view)?;
    let domain = bundle.trust_domain().clone();
    let whose = if view.own { "own" } else { "foreign" };
    let x509 = bundle.x509().certificates().len().to_string();
    let (jwt, wit) = (bundle.jwt().iter().count().to_string(), bundle.wit().iter().count().to_string());
    Ok(vec![domain.to_string(), whose.to_owned(), x509, jwt, wit])
}
