//! How much of the ledger one user may have.

use super::index::Index;
use super::{Issued, Kind, LedgerError};

/// How much of the ledger one user may have. What has not expired counts, whether it stands or not; and apart from that, up to
/// the same number, what is kept because the clock may be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Credentials.
    pub credentials_per_uid: usize,
    /// Certificates with keys in workloads, which can come to stand on revocation lists.
    pub certificates_per_uid: usize,
}

impl Limits {
    /// Whether a user may have one more.
    pub(super) fn check(&self, index: &Index, issued: &Issued<'_>) -> Result<(), LedgerError> {
        let (uid, share) = (issued.uid, index.share(issued.uid));
        // Tokens that are in doubt never exceed it by themselves.
        if share.all >= self.credentials_per_uid || share.doubtful > self.credentials_per_uid {
            let (limit, what, setting) = (self.credentials_per_uid, "credentials", "credentials_per_uid");
            return Err(LedgerError::Full { uid, limit, what, setting });
        }
        if issued.kind == Kind::X509 && share.certificates >= self.certificates_per_uid {
            let (limit, what, setting) = (self.certificates_per_uid, "certificates", "certificates_per_uid");
            return Err(LedgerError::Full { uid, limit, what, setting });
        }
        Ok(())
    }
}
