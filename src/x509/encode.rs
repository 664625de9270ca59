//! Writes DER: just enough for the documents of [`super::profile`].

use time::OffsetDateTime;

pub(super) mod tag {
    //! Identifier octets, those for reading and those only ever written.
    pub(in crate::x509) use crate::x509::der::tag::*;
    pub(in crate::x509) const NULL: u8 = 0x05;
    pub(in crate::x509) const ENUMERATED: u8 = 0x0a;
    pub(in crate::x509) const UTF8_STRING: u8 = 0x0c;
    pub(in crate::x509) const PRINTABLE_STRING: u8 = 0x13;
    pub(in crate::x509) const UTC_TIME: u8 = 0x17;
    pub(in crate::x509) const GENERALIZED_TIME: u8 = 0x18;
    pub(in crate::x509) const SET: u8 = 0x31;
}

pub(super) mod oid {
    //! The contents of object identifiers, those for reading and those only ever written.
    pub(in crate::x509) use crate::x509::der::oid::*;
    pub(in crate::x509) const CRL_NUMBER: &[u8] = &[0x55, 0x1d, 20];
    pub(in crate::x509) const CRL_REASON: &[u8] = &[0x55, 0x1d, 21];
    pub(in crate::x509) const COMMON_NAME: &[u8] = &[0x55, 4, 3];
    pub(in crate::x509) const SERIAL_NUMBER: &[u8] = &[0x55, 4, 5];
    pub(in crate::x509) const ORGANIZATION: &[u8] = &[0x55, 4, 10];
    pub(in crate::x509) const SHA256_WITH_RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 11];
    pub(in crate::x509) const ECDSA_WITH_SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2];
    pub(in crate::x509) const ECDSA_WITH_SHA384: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 3];
}

/// One element around `content`.
pub(super) fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(content.len() + 6);
    out.push(tag);
    match content.len() {
        short @ 0..=0x7f => out.push(short as u8),
        long => {
            let octets = long.to_be_bytes();
            let skip = long.leading_zeros() as usize / 8;
            out.push(0x80 | (octets.len() - skip) as u8);
            out.extend_from_slice(&octets[skip..]);
        }
    }
    out.extend_from_slice(content);
    out
}

/// One element around the concatenation of `parts`.
pub(super) fn constructed(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    element(tag, &parts.concat())
}

/// A SEQUENCE of `parts`.
pub(super) fn sequence(parts: &[&[u8]]) -> Vec<u8> {
    constructed(tag::SEQUENCE, parts)
}

/// A non-negative INTEGER from big-endian octets.
pub(super) fn integer(octets: &[u8]) -> Vec<u8> {
    let first = octets.iter().position(|&octet| octet != 0).unwrap_or(octets.len());
    let octets = &octets[first..];
    match octets.first() {
        None => element(tag::INTEGER, &[0]),
        Some(top) if top & 0x80 != 0 => element(tag::INTEGER, &[&[0], octets].concat()),
        Some(_) => element(tag::INTEGER, octets),
    }
}

/// A BIT STRING of whole octets.
pub(super) fn bit_string(octets: &[u8]) -> Vec<u8> {
    element(tag::BIT_STRING, &[&[0], octets].concat())
}

/// A Time as certificates and CRLs write it: UTCTime through 2049, GeneralizedTime after (RFC 5280, section 4.1.2.5).
///
/// Fractions of a second are cut off, as the standard demands.
pub(super) fn time(at: OffsetDateTime) -> Vec<u8> {
    let at = at.to_offset(time::UtcOffset::UTC);
    let (year, month, day) = (at.year(), u8::from(at.month()), at.day());
    let (hour, minute, second) = at.to_hms();
    if (1950..2050).contains(&year) {
        let text = format!("{:02}{month:02}{day:02}{hour:02}{minute:02}{second:02}Z", year % 100);
        element(tag::UTC_TIME, text.as_bytes())
    } else {
        let text = format!("{year:04}{month:02}{day:02}{hour:02}{minute:02}{second:02}Z");
        element(tag::GENERALIZED_TIME, text.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::x509::der::{Reader, unsigned};

    #[test]
    fn what_is_written_is_read_back() {
        for length in [0, 1, 127, 128, 255, 256, 65_535, 65_536] {
            let content = vec![7; length];
            let written = element(tag::OCTET_STRING, &content);
            assert_eq!(Reader::new(&written).only(tag::OCTET_STRING), Some(&content[..]), "{length}");
        }
    }

    #[test]
    fn integers_are_minimal_and_never_negative() {
        let cases: &[(&[u8], &[u8])] =
            &[(&[], &[2, 1, 0]), (&[0, 0], &[2, 1, 0]), (&[0x7f], &[2, 1, 0x7f]), (&[0, 0x80], &[2, 2, 0, 0x80])];
        for (octets, expected) in cases {
            assert_eq!(integer(octets), *expected);
        }
        assert_eq!(unsigned(&[0, 0x80]), Some(&[0x80][..]));
        assert_eq!(unsigned(&[0, 0x7f]), None, "not minimal");
        assert_eq!(unsigned(&[0x80]), None, "negative");
        assert_eq!(unsigned(&[]), None);
        assert_eq!(unsigned(&[0]), Some(&[0][..]));
    }

    #[test]
    fn times_change_form_in_2050() {
        use time::macros::datetime;
        assert_eq!(time(datetime!(2049-12-31 23:59:59.9 UTC)), [&[0x17, 13][..], b"491231235959Z"].concat());
        assert_eq!(time(datetime!(2050-01-01 0:00 UTC)), [&[0x18, 15][..], b"20500101000000Z"].concat());
        assert_eq!(time(datetime!(2026-01-01 1:00 +1)), [&[0x17, 13][..], b"260101000000Z"].concat());
    }
}
