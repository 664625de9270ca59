//! Records in an append-only file: each is its length (4 bytes, little-endian), a CRC-32 of its payload (likewise) and the
//! payload, so that one that was torn by a crash is told from a whole one.

const HEADER: usize = 8;

/// Why a record cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// The file ends in the middle of it.
    Torn,
    /// It is not what was written.
    Damaged,
}

/// Appends a record to `buffer`, whose payload `fill` appends.
pub fn write(buffer: &mut Vec<u8>, fill: impl FnOnce(Vec<u8>) -> Vec<u8>) {
    let start = buffer.len();
    buffer.extend_from_slice(&[0; HEADER]);
    let mut full = fill(std::mem::take(buffer));
    let payload = &full[start + HEADER..];
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_le_bytes();
    let sum = crc32fast::hash(payload).to_le_bytes();
    full[start..start + 4].copy_from_slice(&length);
    full[start + 4..start + HEADER].copy_from_slice(&sum);
    *buffer = full;
}

/// The payload of the first record of `bytes`, and what follows it.
pub fn read(bytes: &[u8]) -> Result<(&[u8], &[u8]), Unreadable> {
    let (length, rest) = bytes.split_first_chunk().ok_or(Unreadable::Torn)?;
    let (sum, rest) = rest.split_first_chunk().ok_or(Unreadable::Torn)?;
    let (length, sum) = (u32::from_le_bytes(*length) as usize, u32::from_le_bytes(*sum));
    let (payload, rest) = rest.split_at_checked(length).ok_or(Unreadable::Torn)?;
    if crc32fast::hash(payload) == sum { Ok((payload, rest)) } else { Err(Unreadable::Damaged) }
}
