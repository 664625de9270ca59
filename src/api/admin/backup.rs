//! A backup: what the agent cannot make again, as of one moment. It holds the keys of the authorities, so a role is not
//! enough to get it.
//!
//! Promises: keys that are wrapped on the disk leave their [`Secret`](crate::base::secret::Secret)s encrypted alone, with the
//! wrapping key or with what the caller made of a passphrase. Does not: wipe that key, or a plain backup of keys that are plain
//! on the disk as well, from the buffers they are sent in.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{Stream, stream};
use serde::{Deserialize, Serialize};
use tonic::{Request, Response, Status};

use super::{Admin, administrator, rfc3339};
use crate::api::status;
use crate::base::archive::{Archive, Sealer};
use crate::base::secret::Secret;
use crate::base::text::chain;
use crate::proto::admin as wire;

/// How much is sent at once.
const CHUNK: usize = 1 << 20;

/// The names of the pieces of a backup.
pub mod piece {
    /// The store ([`Image`](crate::store::Image)).
    pub const STORE: &str = "store";
    /// Before the id of an authority: its key file.
    pub const KEYS: &str = "keys/";
    /// Before the name of a file of the ledger.
    pub const LEDGER: &str = "ledger/";
}

/// What a backup says of itself, as JSON in its title.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// Raised when what is in a backup means something else.
    pub version: u32,
    /// The node.
    pub node: String,
    /// The trust domain.
    pub trust_domain: String,
    /// The version of the agent that made it.
    pub agent_version: String,
    /// When, RFC 3339.
    pub made_at: String,
}

impl About {
    /// The version that is written, and the only one that is read.
    pub const VERSION: u32 = 1;
}

/// What a backup is sent as.
pub(super) type Chunks = std::pin::Pin<Box<dyn Stream<Item = Result<wire::BackupChunk, Status>> + Send>>;

impl Admin {
    /// Makes a backup for root, or for the user the agent runs as.
    pub(super) async fn make_backup(&self, request: Request<wire::BackupRequest>) -> Result<Response<Chunks>, Status> {
        let caller = administrator(&request)?;
        if caller.uid != 0 && caller.uid != nix::unistd::geteuid().as_raw() {
            return Err(Status::permission_denied(
                "a backup holds the keys of the authorities, for which no role is enough: ask as root, or as the user the \
                 agent runs as",
            ));
        }
        let peer = caller.peer.clone();
        let sealer = request.into_inner().sealing.map(|sealing| {
            let sealer = Sealer::from_parts(&sealing.salt, sealing.rounds, &sealing.key);
            sealer.ok_or_else(|| status::bad_field("sealing", "is no salt, rounds and key of a backup"))
        });
        let sealer = sealer.transpose()?;
        let subject = if sealer.is_some() { "sealed, keys without wrapping" } else { "keys as in their files" };
        self.audit_gift(&peer, "agent.backup", subject)?;
        let custody =
            self.parts.authority.custody(sealer.is_some()).await.map_err(|error| status::authority(&error))?;
        let ledger = self.parts.issuer.ledger.clone();
        let ledger = tokio::task::spawn_blocking(move || ledger.snapshot()).await;
        let ledger = ledger.map_err(|_| Status::unavailable("the agent is stopping"))?;
        let ledger = ledger.map_err(|error| Status::unavailable(chain(&error)))?;

        let known = self.parts.status.status();
        let known = |name: &str| known[name].as_str().unwrap_or_default().to_owned();
        let about = About {
            version: About::VERSION,
            node: known("node"),
            trust_domain: known("trust_domain"),
            agent_version: known("agent_version"),
            made_at: rfc3339(self.parts.issuer.clock.now()),
        };
        let title = serde_json::to_string(&about).map_err(|error| Status::internal(error.to_string()))?;
        let mut archive = Archive::new(title);
        archive.add(piece::STORE, custody.store);
        for (id, key) in custody.keys {
            archive.add(format!("{}{id}", piece::KEYS), key);
        }
        for (name, content) in ledger {
            archive.add(format!("{}{name}", piece::LEDGER), content);
        }
        let content = match &sealer {
            Some(sealer) => Secret::new(archive.seal(sealer, &self.parts.issuer.entropy)),
            None => archive.to_bytes(),
        };
        let content = Arc::new(content);
        let chunks = (0..content.expose().len()).step_by(CHUNK).map(move |begin| {
            let bytes = content.expose();
            Ok(wire::BackupChunk { content: Bytes::copy_from_slice(&bytes[begin..bytes.len().min(begin + CHUNK)]) })
        });
        Ok(Response::new(Box::pin(stream::iter(chunks))))
    }
}
