//! The records of the ledger's files, and how one is told from a torn one.
//!
//! A record is its length (4 bytes, little-endian), a CRC-32 of its payload (likewise) and the payload. Every file begins
//! with [`Record::Begin`] and declares what its records refer to by number, so a file needs no other one to be read.

use serde::{Deserialize, Serialize};

use super::index::{Grant, Row};
use super::{Key, Reason};
use crate::bond::Tie;
use crate::peer::InstanceId;

/// The format that is written and the only one that is read.
pub(super) const VERSION: u8 = 1;
const HEADER: usize = 8;

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

/// Why a record cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unreadable {
    /// The file ends in the middle of it.
    Torn,
    /// It is not what was written.
    Damaged,
}

impl Record {
    /// Appends the record's bytes to `buffer`.
    pub(super) fn write(&self, buffer: &mut Vec<u8>) {
        let start = buffer.len();
        buffer.extend_from_slice(&[0; HEADER]);
        let mut full = postcard::to_extend(self, std::mem::take(buffer)).expect("records have no unsized parts");
        let payload = &full[start + HEADER..];
        let length = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_le_bytes();
        let sum = crc32fast::hash(payload).to_le_bytes();
        full[start..start + 4].copy_from_slice(&length);
        full[start + 4..start + HEADER].copy_from_slice(&sum);
        *buffer = full;
    }

    /// The first record of `bytes` and what follows it.
    pub(super) fn read(bytes: &[u8]) -> Result<(Self, &[u8]), Unreadable> {
        let (length, rest) = bytes.split_first_chunk().ok_or(Unreadable::Torn)?;
        let (sum, rest) = rest.split_first_chunk().ok_or(Unreadable::Torn)?;
        let (length, sum) = (u32::from_le_bytes(*length) as usize, u32::from_le_bytes(*sum));
        let (payload, rest) = rest.split_at_checked(length).ok_or(Unreadable::Torn)?;
        if crc32fast::hash(payload) != sum {
            return Err(Unreadable::Damaged);
        }
        Ok((postcard::from_bytes(payload).map_err(|_| Unreadable::Damaged)?, rest))
    }
}
