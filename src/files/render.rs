//! What is in the files of an output, from what the agent handed out.

use aws_lc_rs::digest::{Context, SHA256};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};
use thiserror::Error;
use time::OffsetDateTime;

use super::output::{FileSpec, Output, Part, TRUST_DOMAIN};
use crate::base::entropy::Entropy;
use crate::base::secret::Secret;
use crate::bundle::{Bundle, BundleError, oidc};
use crate::client::JwtSvid;
use crate::client::export::X509Export;
use crate::jwt::JwtAuthorities;
use crate::x509::pkcs12::{Pkcs12Error, key_store, trust_store};
use crate::x509::{Certificate, Chain, Crl, KeyError, X509Authorities, X509Error};

/// Why the content of a file cannot be made.
#[derive(Debug, Error)]
pub enum RenderError {
    /// The key cannot be given away.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// PKCS#12 cannot be made.
    #[error(transparent)]
    Pkcs12(#[from] Pkcs12Error),
    /// A bundle cannot be written as SPIFFE writes it.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// Certificates are no chain.
    #[error(transparent)]
    X509(#[from] X509Error),
}

/// A file that is ready to be put in its place.
#[derive(Debug)]
pub(super) struct Rendered {
    pub(super) name: String,
    pub(super) content: Secret<Vec<u8>>,
    pub(super) mode: u32,
}

/// What is the same as long as no file would have anything else in it.
pub(super) type Fingerprint = [u8; 32];

/// What the files of an output are made from: what is there so far.
#[derive(Clone, Copy)]
pub(super) struct Material<'a> {
    pub(super) x509: Option<&'a X509Export>,
    /// In the order of the output's tokens.
    pub(super) tokens: &'a [Option<JwtSvid>],
    pub(super) now: OffsetDateTime,
}

/// All files of an output; `None` while something of them is missing.
pub(super) fn render(
    output: &Output,
    material: Material<'_>,
    entropy: &Entropy,
) -> Result<Option<Vec<Rendered>>, RenderError> {
    files(output, material, Some(entropy))
}

/// What tells whether files differ from those before. (PKCS#12 has other random numbers in it each time.)
pub(super) fn fingerprint(output: &Output, material: Material<'_>) -> Result<Option<Fingerprint>, RenderError> {
    let Some(files) = files(output, material, None)? else { return Ok(None) };
    let mut hash = Context::new(&SHA256);
    for file in &files {
        let content = file.content.expose();
        hash.update(&(file.name.len() as u64).to_be_bytes());
        hash.update(file.name.as_bytes());
        hash.update(&(content.len() as u64).to_be_bytes());
        hash.update(content);
    }
    let mut fingerprint = [0; 32];
    fingerprint.copy_from_slice(hash.finish().as_ref());
    Ok(Some(fingerprint))
}

/// Without entropy, PKCS#12 is what it would be made from.
fn files(
    output: &Output,
    Material { x509, tokens, now }: Material<'_>,
    entropy: Option<&Entropy>,
) -> Result<Option<Vec<Rendered>>, RenderError> {
    let mut rendered = Vec::with_capacity(output.files.len());
    let mut tokens = tokens.iter();
    let view = match x509 {
        Some(x509) => Some(View::of(output, x509, now)?),
        None if output.needs_x509() => return Ok(None),
        None => None,
    };
    for FileSpec { part, name, mode } in &output.files {
        let mut add = |name: String, content| {
            rendered.push(Rendered { name, content: Secret::new(content), mode: *mode });
        };
        match (part, &view) {
            (Part::Jwt(_), _) => match tokens.next() {
                Some(Some(token)) => add(name.clone(), token.token.expose().as_bytes().to_vec()),
                _ => return Ok(None),
            },
            (Part::Federated, Some(view)) => {
                for authorities in federated(view.x509) {
                    let name = name.replace(TRUST_DOMAIN, authorities.trust_domain().as_str());
                    add(name, authorities.to_pem().into_bytes());
                }
            }
            (part, Some(view)) => add(name.clone(), view.content(part, output, entropy)?),
            (_, None) => return Ok(None),
        }
    }
    // Key and certificate last and side by side: where files are replaced one by one, that is the shortest time in which
    // they do not belong together.
    rendered.sort_by_key(|file| {
        let part = output.files.iter().find(|spec| spec.name == file.name).map(|spec| &spec.part);
        matches!(part, Some(Part::Key | Part::Certificate))
    });
    Ok(Some(rendered))
}

/// The authorities of other trust domains than the SVID's.
fn federated(x509: &X509Export) -> impl Iterator<Item = &X509Authorities> {
    x509.authorities.values().filter(|set| !x509.svid.id.is_member_of(set.trust_domain()))
}

/// What is wanted of an export.
struct View<'a> {
    x509: &'a X509Export,
    /// What goes into the certificate's file.
    chain: Chain,
    /// What goes into the bundle's file, in order.
    bundle: Vec<&'a Certificate>,
    omit: Option<OffsetDateTime>,
}

impl<'a> View<'a> {
    fn of(output: &Output, x509: &'a X509Export, now: OffsetDateTime) -> Result<Self, RenderError> {
        let omit = output.omit_expired.then_some(now);
        let stands = |certificate: &&Certificate| omit.is_none_or(|now| certificate.not_after() >= now);
        let svid = &x509.svid;
        let certificates = svid.chain.certificates();
        let mut bundle: Vec<&Certificate> = svid.bundle.certificates().iter().collect();
        let mut chain = certificates.to_vec();
        if output.intermediates_in_bundle {
            bundle.extend(&certificates[1..]);
            chain.truncate(1);
        }
        if output.federated_in_bundle {
            bundle.extend(federated(x509).flat_map(X509Authorities::certificates));
        }
        bundle.retain(stands);
        Ok(Self { x509, chain: Chain::new(chain)?, bundle, omit })
    }

    fn content(&self, part: &Part, output: &Output, entropy: Option<&Entropy>) -> Result<Vec<u8>, RenderError> {
        let svid = &self.x509.svid;
        let combined = || -> Result<Vec<u8>, RenderError> {
            let key = svid.key.to_pem()?;
            // In one allocation: nothing of the key is left behind.
            let chain = svid.chain.to_pem();
            let mut both = Vec::with_capacity(key.expose().len() + chain.len());
            both.extend_from_slice(key.expose().as_bytes());
            both.extend_from_slice(chain.as_bytes());
            Ok(both)
        };
        Ok(match part {
            Part::Certificate => self.chain.to_pem().into_bytes(),
            Part::Key => svid.key.to_pem()?.expose().as_bytes().to_vec(),
            Part::Bundle => self.bundle_pem()?,
            Part::Combined => combined()?,
            Part::KeyDer => svid.key.to_pkcs8()?.expose().clone(),
            Part::Pkcs12 => match (entropy, &output.password) {
                (Some(entropy), Some(password)) => {
                    key_store(&svid.chain, &svid.key, password, entropy)?.expose().clone()
                }
                _ => combined()?,
            },
            Part::TrustStore => match (entropy, &output.password) {
                (Some(entropy), Some(password)) => trust_store(&self.bundle, password, entropy)?.expose().clone(),
                _ => self.bundle_pem()?,
            },
            Part::Crl => self.x509.crls.iter().map(Crl::to_pem).collect::<String>().into_bytes(),
            Part::Jwks => self.own()?.jwt_jwks().into_bytes(),
            Part::SpiffeBundle => self.own()?.to_json()?.into_bytes(),
            Part::OidcJwks => oidc::jwks(&self.own()?).into_bytes(),
            Part::OidcDiscovery => match &output.issuer {
                Some(issuer) => oidc::discovery(issuer, &self.own()?).into_bytes(),
                None => Vec::new(),
            },
            Part::JwtBundles => self.jwt_bundles().into_bytes(),
            Part::Federated | Part::Jwt(_) => Vec::new(),
        })
    }

    fn bundle_pem(&self) -> Result<Vec<u8>, RenderError> {
        let mut text = String::new();
        for certificate in &self.bundle {
            text.push_str(&Chain::new(vec![(*certificate).clone()])?.to_pem());
        }
        Ok(text.into_bytes())
    }

    /// The bundle of the SVID's own trust domain.
    fn own(&self) -> Result<Bundle, RenderError> {
        let domain = self.x509.svid.id.trust_domain();
        let jwt = self.x509.jwt.get(&domain).cloned();
        let jwt = jwt.unwrap_or_else(|| JwtAuthorities::new(domain.clone(), []));
        let certificates = self.x509.svid.bundle.certificates().iter();
        let stands = |certificate: &&Certificate| self.omit.is_none_or(|now| certificate.not_after() >= now);
        let x509 = X509Authorities::new(domain, certificates.filter(stands).cloned())?;
        Ok(Bundle::new(x509, jwt))
    }

    /// A JSON object of trust domains and their JWK Sets in base64.
    fn jwt_bundles(&self) -> String {
        let encoded = self.x509.jwt.values().filter_map(|keys| {
            let domain = keys.trust_domain().clone();
            let none = X509Authorities::new(domain.clone(), []).ok()?;
            let jwks = Bundle::new(none, keys.clone()).jwt_jwks();
            Some((domain.to_string(), Value::from(STANDARD.encode(jwks))))
        });
        Value::from(encoded.collect::<Map<_, _>>()).to_string()
    }
}

#[cfg(test)]
mod tests;
