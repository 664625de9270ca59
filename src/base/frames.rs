//! Records in an append-only file: each is its length (4 bytes, little-endian), a CRC-32 of its payload (likewise) and the
//! payload, so that one that was torn by a crash is told from a whole one.

const HEADER: usize = 8;
/// In a record that was torn off few places look like the begin of another.
const MOST_PASSES: usize = 16;

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

/// Whether a whole record begins somewhere after the first byte. What a crash tore off is the begin of one record: where
/// another follows, it is no crash that made the first one unreadable.
///
/// What no crash leaves behind need not be looked through: where it would take more than a few passes over the bytes, one does.
pub fn one_follows(bytes: &[u8]) -> bool {
    let mut hashed = 0;
    for at in 1..bytes.len() {
        let Some(length) = bytes[at..].first_chunk().map(|length| u32::from_le_bytes(*length) as usize) else { break };
        // What a file was lengthened by before it was written is zeros, which would pass for empty records. And one that
        // is longer than what is left is not hashed.
        if length == 0 || length > bytes.len() - at {
            continue;
        }
        hashed += length;
        if hashed > MOST_PASSES * bytes.len() || read(&bytes[at..]).is_ok() {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_that_a_crash_tore_off_is_told_from_one_with_others_behind_it() {
        let mut bytes = Vec::new();
        for payload in [b"one".as_slice(), b"two", b"three"] {
            write(&mut bytes, |mut to| {
                to.extend_from_slice(payload);
                to
            });
        }
        for cut in 1..bytes.len() {
            let (mut rest, mut whole) = (&bytes[..cut], 0);
            while let Ok((_, after)) = read(rest) {
                (rest, whole) = (after, whole + 1);
            }
            assert!(whole < 3 && !one_follows(rest), "cut at {cut}");
        }
        let mut flipped = bytes.clone();
        flipped[1] = 0xff;
        assert_eq!(read(&flipped), Err(Unreadable::Torn), "its length says more than there is");
        assert!(one_follows(&flipped));
        assert!(!one_follows(&[&bytes[..5], &[0; 4096]].concat()));
    }

    #[test]
    fn bytes_that_look_like_records_everywhere_do_not_take_the_square_of_their_length() {
        // At every fourth byte begins what could be a record of 16 KiB.
        let hostile = [0_u8, 0x40, 0, 0].repeat(16 * 1024);
        assert_eq!(read(&hostile), Err(Unreadable::Damaged));
        assert!(one_follows(&hostile), "no crash leaves that behind");
    }
}
