//! The records of the ledger's files, and how one is told from a torn one.
//!
//! Each is one of [`crate::base::frames`]. Every file begins with [`Record::Begin`] and declares what its
//! records refer to by number, so a file needs no other one to be read.

use serde::{Deserialize, Serialize};

use super::index::{Grant, Row};
use super::{Key, Reason};
use crate::base::frames::{self, Unreadable};
use crate::bond::Tie;
use crate::peer::InstanceId;

/// The format that is written and the only one that is read.
pub(super) const VERSION: u8 = 1;

/// One record.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum Record {
    /// The first of each file.
    Begin { version: u8, node: String, boot: String },
    /// Declares who holds credentials.
    Holder { number: u32, instance: InstanceId },
    /// Declares whose end revokes.
    Tie { number: u32, tie: Tie },
    /// Declares what credentials were issued by.
    Grant { number: u32, grant: Grant },
    /// Declares an authority.
    Authority { number: u32, id: String },
    /// Declares a list of words: the audiences of a token, or the name of a delegate.
    Words { number: u32, words: Vec<String> },
    /// A credential was issued, or is carried over from an older file with what became of it since.
    Issued { key: Key, row: Row },
    /// Credentials ended.
    Ended { keys: Vec<Key>, reason: Reason, at: i64 },
    /// Everything tied to this so far ended.
    TieEnded { tie: u32, reason: Reason, at: i64 },
    /// A single-use credential was used.
    Used { key: Key },
}

impl Record {
    /// Appends the record's bytes to `buffer`.
    pub(super) fn write(&self, buffer: &mut Vec<u8>) {
        frames::write(buffer, |to| postcard::to_extend(self, to).expect("records have no unsized parts"));
    }

    /// The first record of `bytes` and what follows it.
    pub(super) fn read(bytes: &[u8]) -> Result<(Self, &[u8]), Unreadable> {
        let (payload, rest) = frames::read(bytes)?;
        Ok((postcard::from_bytes(payload).map_err(|_| Unreadable::Damaged)?, rest))
    }
}
