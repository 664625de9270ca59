//! The head: which record was the last that is known to be on disk, in a small file outside of the log's directory.
//!
//! The chain alone does not show that its end was cut off, or that all of it was removed. The head does, to whoever did
//! not change it as well. It is never ahead of what survives a loss of power.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::AuditError;
use super::chain::{Link, VERSION};
use crate::base::durable::{self, DurableError};

/// The file is smaller than this.
const MAX_BYTES: u64 = 4096;

/// What the file says.
#[derive(Debug, Serialize, Deserialize)]
struct Document {
    version: u64,
    node: String,
    seq: u64,
    hash: String,
}

/// What was found in place of the head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Head {
    /// Nothing.
    Missing,
    /// Something that is no head.
    Unreadable,
    /// The head of this node's log.
    Of(String, Link),
}

/// Where the head of the log in `dir` is, unless somebody says otherwise: beside the directory.
pub fn head_path(dir: &Path) -> PathBuf {
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    dir.with_file_name(format!("{name}.head"))
}

pub(super) fn read(path: &Path) -> Result<Head, AuditError> {
    let content = match durable::read(path, MAX_BYTES) {
        Ok(content) => content,
        Err(DurableError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            return Ok(Head::Missing);
        }
        Err(error) => return Err(error.into()),
    };
    let read: Option<Document> = serde_json::from_slice(&content).ok();
    let read = read.filter(|document| document.version == VERSION);
    let head = read.and_then(|document| Some(Head::Of(document.node, Link::new(document.seq, &document.hash)?)));
    Ok(head.unwrap_or(Head::Unreadable))
}

pub(super) fn write(path: &Path, node: &str, link: &Link) -> Result<(), DurableError> {
    let document = Document { version: VERSION, node: node.to_owned(), seq: link.seq, hash: link.hash.clone() };
    let mut content = serde_json::to_vec(&document).unwrap_or_default();
    content.push(b'\n');
    durable::replace(path, &content, 0o600)
}
