//! Just enough DER: a reader that refuses whatever is not distinguished encoding, and a writer for our own documents.
//!
//! The reader exists because general certificate parsers are lenient inside extensions (trailing bytes, defaults
//! written out), and a lenient reading of a security extension is a different certificate than the one our peers see.

use time::OffsetDateTime;

pub(crate) mod tag {
    //! Identifier octets.
    pub const BOOLEAN: u8 = 0x01;
    pub const INTEGER: u8 = 0x02;
    pub const BIT_STRING: u8 = 0x03;
    pub const OCTET_STRING: u8 = 0x04;
    pub const NULL: u8 = 0x05;
    pub const OID: u8 = 0x06;
    pub const ENUMERATED: u8 = 0x0a;
    pub const UTF8_STRING: u8 = 0x0c;
    pub const PRINTABLE_STRING: u8 = 0x13;
    pub const UTC_TIME: u8 = 0x17;
    pub const GENERALIZED_TIME: u8 = 0x18;
    pub const SEQUENCE: u8 = 0x30;
    pub const SET: u8 = 0x31;
    /// `[n]`, primitive: an implicitly tagged string.
    pub const fn context(n: u8) -> u8 {
        0x80 | n
    }
    /// `[n]`, constructed: an explicit tag or an implicitly tagged sequence.
    pub const fn context_constructed(n: u8) -> u8 {
        0xa0 | n
    }
}

/// Reads elements one after the other. `None` from any method means: this is not DER of that shape.
#[derive(Clone, Copy)]
pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next element: its tag and its content.
    pub(crate) fn element(&mut self) -> Option<(u8, &'a [u8])> {
        let (&tag, rest) = self.0.split_first()?;
        let (&first, mut rest) = rest.split_first()?;
        let length = match first {
            0..=0x7f => usize::from(first),
            // Definite long form only, at most four octets, and as short as the length allows.
            0x81..=0x84 => {
                let (octets, after) = rest.split_at_checked(usize::from(first & 0x7f))?;
                rest = after;
                let length = octets.iter().fold(0usize, |acc, &octet| (acc << 8) | usize::from(octet));
                let minimal = octets[0] != 0 && (octets.len() > 1 || length > 0x7f);
                minimal.then_some(length)?
            }
            _ => return None,
        };
        let (content, rest) = rest.split_at_checked(length)?;
        // A tag number of 31 would continue in the next octet; nothing we read has one.
        (tag & 0x1f != 0x1f).then_some(())?;
        self.0 = rest;
        Some((tag, content))
    }

    /// The content of the next element if it has this tag; otherwise nothing is consumed.
    pub(crate) fn take(&mut self, tag: u8) -> Option<&'a [u8]> {
        let mut ahead = *self;
        match ahead.element()? {
            (found, content) if found == tag => {
                *self = ahead;
                Some(content)
            }
            _ => None,
        }
    }

    /// The content of the only element left, which has this tag.
    pub(crate) fn only(mut self, tag: u8) -> Option<&'a [u8]> {
        let content = self.take(tag)?;
        self.is_empty().then_some(content)
    }
}

/// An unsigned INTEGER's content without its sign octet, if it is minimal and not negative.
pub(crate) fn unsigned(content: &[u8]) -> Option<&[u8]> {
    match content {
        [] => None,
        [0, rest @ ..] if !rest.is_empty() => (rest[0] & 0x80 != 0).then_some(rest),
        [first, ..] => (first & 0x80 == 0).then_some(content),
    }
}

/// A SubjectPublicKeyInfo, taken apart (RFC 5280, section 4.1.2.7).
pub(crate) struct Spki<'a> {
    /// The content of the algorithm's OBJECT IDENTIFIER.
    pub(crate) algorithm: &'a [u8],
    /// The content of the parameters' OBJECT IDENTIFIER: the named curve.
    pub(crate) curve: Option<&'a [u8]>,
    /// The subject public key.
    pub(crate) key: &'a [u8],
}

impl<'a> Spki<'a> {
    pub(crate) fn parse(der: &'a [u8]) -> Option<Self> {
        let mut spki = Reader::new(Reader::new(der).only(tag::SEQUENCE)?);
        let mut algorithm = Reader::new(spki.take(tag::SEQUENCE)?);
        let key = spki.only(tag::BIT_STRING)?;
        let algorithm_oid = algorithm.take(tag::OID)?;
        let curve = algorithm.take(tag::OID);
        let (unused_bits, key) = key.split_first()?;
        (*unused_bits == 0).then_some(Self { algorithm: algorithm_oid, curve, key })
    }
}

/// One element around `content`.
pub(crate) fn element(tag: u8, content: &[u8]) -> Vec<u8> {
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
pub(crate) fn constructed(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    element(tag, &parts.concat())
}

/// A SEQUENCE of `parts`.
pub(crate) fn sequence(parts: &[&[u8]]) -> Vec<u8> {
    constructed(tag::SEQUENCE, parts)
}

/// A non-negative INTEGER from big-endian octets.
pub(crate) fn integer(octets: &[u8]) -> Vec<u8> {
    let first = octets.iter().position(|&octet| octet != 0).unwrap_or(octets.len());
    let octets = &octets[first..];
    match octets.first() {
        None => element(tag::INTEGER, &[0]),
        Some(top) if top & 0x80 != 0 => element(tag::INTEGER, &[&[0], octets].concat()),
        Some(_) => element(tag::INTEGER, octets),
    }
}

/// A BIT STRING of whole octets.
pub(crate) fn bit_string(octets: &[u8]) -> Vec<u8> {
    element(tag::BIT_STRING, &[&[0], octets].concat())
}

/// A Time as certificates and CRLs write it: UTCTime through 2049, GeneralizedTime after (RFC 5280, section 4.1.2.5).
///
/// Fractions of a second are cut off, as the standard demands.
pub(crate) fn time(at: OffsetDateTime) -> Vec<u8> {
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

    #[test]
    fn lengths_are_read_only_in_their_shortest_form() {
        let cases: &[(&[u8], bool)] = &[
            (&[0x04, 0x00], true),
            (&[0x04, 0x01, 0xff], true),
            (&[0x04, 0x80, 0x00, 0x00], false),       // indefinite
            (&[0x04, 0x81, 0x01, 0xff], false),       // long form for a short length
            (&[0x04, 0x82, 0x00, 0x81, 0xff], false), // leading zero
            (&[0x04, 0x02, 0xff], false),             // too short
            (&[0x1f, 0x01, 0x00], false),             // long tag
            (&[0x04], false),
            (&[], false),
        ];
        for (bytes, ok) in cases {
            assert_eq!(Reader::new(bytes).element().is_some(), *ok, "{bytes:02x?}");
        }
    }

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
