//! A root or intermediate from files, kept by somebody else and shared by several nodes.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use thiserror::Error;
use time::OffsetDateTime;

use super::AuthorityError;
use super::signers::{BACKDATE, DiskCertificate};
use crate::base::durable::{self, DurableError};
use crate::base::entropy::{Entropy, hex};
use crate::base::secret::Secret;
use crate::id::{SpiffeId, TrustDomain};
use crate::x509::{
    Certificate, Chain, Issuer, KeyError, KeyType, LeafParams, PrivateKey, Serial, Validity, X509Authorities,
    X509Error, verify,
};

/// Larger files are no certificate chains.
const LARGEST_FILE: u64 = 1024 * 1024;

/// Where the files are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskFiles {
    /// The CA certificate in PEM, followed by intermediates above it, if any.
    pub certificate: PathBuf,
    /// Its private key in PEM.
    pub key: PathBuf,
    /// The roots for the bundle in PEM; needed when the certificate is an intermediate.
    pub bundle: Option<PathBuf>,
}

/// Why the files are not usable.
#[derive(Debug, Error)]
pub enum DiskError {
    /// A file cannot be read.
    #[error(transparent)]
    File(#[from] DurableError),
    /// A file does not hold certificates.
    #[error("`{}` does not hold usable certificates", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: X509Error,
    },
    /// A file does not hold a private key.
    #[error("`{}` does not hold a usable private key", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: KeyError,
    },
    /// Others than its owner can read the private key.
    #[error("`{}` holds a private key and its mode is {mode:04o}: run chmod 0600 on it, and replace the key if others had access", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The certificate cannot sign what it must sign.
    #[error("`{}` cannot be used as an authority: {why}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
}

/// The authority in the files.
#[derive(Debug)]
pub(super) struct DiskAuthority {
    id: String,
    certificate: Certificate,
    key_pem: Secret<Vec<u8>>,
    intermediates: Vec<u8>,
    roots: Vec<Certificate>,
}

impl DiskAuthority {
    /// Reads and checks the files.
    pub(super) fn read(
        files: &DiskFiles,
        domain: &TrustDomain,
        now: OffsetDateTime,
        entropy: &Entropy,
    ) -> Result<Self, DiskError> {
        let unusable = |why: String| DiskError::Unusable { path: files.certificate.clone(), why };
        let mut chain = read_certificates(&files.certificate)?.into_iter();
        let certificate = chain.next().ok_or_else(|| unusable("it holds no certificate".to_owned()))?;
        let above: Vec<Certificate> = chain.collect();
        let key_pem = read_key(&files.key)?;
        let key = PrivateKey::from_pem(key_pem.expose())
            .map_err(|source| DiskError::Key { path: files.key.clone(), source })?;

        if !certificate.is_ca() {
            return Err(unusable("it is not a CA certificate".to_owned()));
        }
        if certificate.path_len() == Some(0) {
            return Err(unusable("its pathLenConstraint is 0, and the agent makes a signing CA below it".to_owned()));
        }
        if certificate.public_key() != key.public_key() {
            return Err(unusable(format!("the private key in `{}` is not its own", files.key.display())));
        }
        if certificate.not_before() > now {
            return Err(unusable(format!("it is not valid before {}", certificate.not_before())));
        }
        if certificate.not_after() <= now {
            return Err(unusable(format!("it expired at {}", certificate.not_after())));
        }
        if let Ok(id) = certificate.spiffe_id()
            && !id.is_member_of(domain)
        {
            return Err(unusable(format!("it belongs to `{}`, not to `{domain}`", id.trust_domain())));
        }

        let self_signed = certificate.is_self_signed();
        let roots = match &files.bundle {
            Some(bundle) => read_certificates(bundle)?,
            None if self_signed => vec![certificate.clone()],
            None => return Err(unusable("it is an intermediate: name the roots in `bundle_file`".to_owned())),
        };
        let intermediates = if self_signed {
            Vec::new()
        } else {
            std::iter::once(&certificate).chain(&above).flat_map(|certificate| certificate.der().to_vec()).collect()
        };
        let id = hex(&digest(&SHA256, certificate.der()).as_ref()[..16]);
        let read = Self { id, certificate, key_pem, intermediates, roots };
        read.try_out(domain, key, now, entropy).map_err(|why| {
            let roots = files.bundle.as_ref().unwrap_or(&files.certificate);
            unusable(format!("what it signs is not believed with the roots in `{}`: {why}", roots.display()))
        })?;
        Ok(read)
    }

    /// Signs a throwaway chain and verifies it as a peer would: signatures, names, validity and constraints up to the
    /// roots. Its keys end with this call.
    fn try_out(
        &self,
        domain: &TrustDomain,
        key: PrivateKey,
        now: OffsetDateTime,
        entropy: &Entropy,
    ) -> Result<(), String> {
        let told = |error: &dyn std::error::Error| error.to_string();
        let serial = || Serial::from_random(entropy.bytes());
        let throwaway = || PrivateKey::generate(KeyType::EcP256).map_err(|error| told(&error));
        // Certificates have whole seconds.
        let now = now.truncate_to_second();
        let not_after = (now + Duration::from_secs(60)).min(self.certificate.not_after());
        let validity = Validity { not_before: now - BACKDATE, not_after };

        let own = Issuer::new(domain.clone(), self.certificate.clone(), key).map_err(|error| told(&error))?;
        let signing_key = throwaway()?;
        let signing = own.sign_ca(signing_key.public_key(), validity, &serial()).map_err(|error| told(&error))?;
        let signing = Issuer::new(domain.clone(), signing, signing_key).map_err(|error| told(&error))?;
        let spiffe_id = SpiffeId::parse(&format!("spiffe://{domain}/tether/probe")).map_err(|error| told(&error))?;
        let leaf = signing.sign_leaf(&LeafParams {
            spiffe_id: &spiffe_id,
            public_key: throwaway()?.public_key(),
            dns_names: &[],
            validity,
            serial: &serial(),
        });
        let mut chain = leaf.map_err(|error| told(&error))?.to_vec();
        chain.extend_from_slice(signing.certificate().der());
        chain.extend_from_slice(&self.intermediates);
        let chain = Chain::from_der(&chain).map_err(|error| told(&error))?;
        let roots = X509Authorities::new(domain.clone(), self.roots.iter().cloned()).map_err(|error| told(&error))?;
        verify(&chain, &roots, now, &[]).map(|_| ()).map_err(|error| told(&error))
    }

    /// Changes when the certificate does.
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// What others are to know of it.
    pub(super) fn certificate(&self) -> DiskCertificate {
        let (not_before, not_after) = (self.certificate.not_before(), self.certificate.not_after());
        DiskCertificate { id: self.id.clone(), not_before, not_after }
    }

    pub(super) fn issuer(&self, domain: &TrustDomain) -> Result<Issuer, AuthorityError> {
        let key = PrivateKey::from_pem(self.key_pem.expose())?;
        Ok(Issuer::new(domain.clone(), self.certificate.clone(), key)?)
    }

    /// What stands between a signing CA and the bundle, in DER, one after the other.
    pub(super) fn intermediates(&self) -> &[u8] {
        &self.intermediates
    }

    pub(super) fn roots(&self) -> &[Certificate] {
        &self.roots
    }
}

fn read_key(path: &Path) -> Result<Secret<Vec<u8>>, DiskError> {
    let meta = std::fs::metadata(path).map_err(|source| DurableError::Io {
        action: "look at",
        path: path.to_owned(),
        source,
    })?;
    let mode = meta.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(DiskError::Exposed { path: path.to_owned(), mode });
    }
    Ok(Secret::new(durable::read(path, LARGEST_FILE)?))
}

fn read_certificates(path: &Path) -> Result<Vec<Certificate>, DiskError> {
    let pem = durable::read(path, LARGEST_FILE)?;
    let chain = Chain::from_pem(&pem).map_err(|source| DiskError::Certificate { path: path.to_owned(), source })?;
    Ok(chain.certificates().to_vec())
}

#[cfg(test)]
mod tests;
