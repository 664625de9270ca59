//! A root or intermediate from files, kept by somebody else and shared by several nodes.

use std::path::{Path, PathBuf};

use thiserror::Error;
use time::OffsetDateTime;

use super::AuthorityError;
use crate::base::durable::{self, DurableError};
use crate::base::secret::Secret;
use crate::id::TrustDomain;
use crate::x509::{Certificate, Chain, Issuer, KeyError, PrivateKey, X509Error};

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
    pub(super) fn read(files: &DiskFiles, domain: &TrustDomain, now: OffsetDateTime) -> Result<Self, DiskError> {
        let unusable = |why: String| DiskError::Unusable { path: files.certificate.clone(), why };
        let mut chain = read_certificates(&files.certificate)?.into_iter();
        let certificate = chain.next().ok_or_else(|| unusable("it holds no certificate".to_owned()))?;
        let above: Vec<Certificate> = chain.collect();
        let key_pem = Secret::new(durable::read(&files.key, LARGEST_FILE)?);
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
        if certificate.not_after() <= now {
            return Err(unusable(format!("it expired at {}", certificate.not_after())));
        }
        if let Ok(id) = certificate.spiffe_id()
            && !id.is_member_of(domain)
        {
            return Err(unusable(format!("it belongs to `{}`, not to `{domain}`", id.trust_domain())));
        }

        let self_signed = certificate.is_self_issued();
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
        let id = certificate.serial().to_string();
        Ok(Self { id, certificate, key_pem, intermediates, roots })
    }

    /// Changes when the certificate does.
    pub(super) fn id(&self) -> &str {
        &self.id
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

fn read_certificates(path: &Path) -> Result<Vec<Certificate>, DiskError> {
    let pem = durable::read(path, LARGEST_FILE)?;
    let chain = Chain::from_pem(&pem).map_err(|source| DiskError::Certificate { path: path.to_owned(), source })?;
    Ok(chain.certificates().to_vec())
}
