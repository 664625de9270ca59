//! Reads DER, and refuses whatever is not distinguished encoding.
//!
//! It exists because general certificate parsers are lenient inside extensions (trailing bytes, defaults
//! written out), and a lenient reading of a security extension is a different certificate than the one our peers see.

pub(crate) mod tag {
    //! Identifier octets.
    pub const BOOLEAN: u8 = 0x01;
    pub const INTEGER: u8 = 0x02;
    pub const BIT_STRING: u8 = 0x03;
    pub const OCTET_STRING: u8 = 0x04;
    pub const OID: u8 = 0x06;
    pub const SEQUENCE: u8 = 0x30;
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

pub(crate) mod oid {
    //! The contents of object identifiers.
    pub const SUBJECT_KEY_ID: &[u8] = &[0x55, 0x1d, 14];
    pub const KEY_USAGE: &[u8] = &[0x55, 0x1d, 15];
    pub const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 17];
    pub const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 19];
    pub const AUTHORITY_KEY_ID: &[u8] = &[0x55, 0x1d, 35];
    pub const EXT_KEY_USAGE: &[u8] = &[0x55, 0x1d, 37];
    pub const KP_SERVER_AUTH: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 1];
    pub const KP_CLIENT_AUTH: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 2];
    pub const RSA_ENCRYPTION: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1];
    pub const EC_PUBLIC_KEY: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1];
    pub const P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7];
    pub const P384: &[u8] = &[0x2b, 0x81, 0x04, 0, 34];
    pub const P521: &[u8] = &[0x2b, 0x81, 0x04, 0, 35];
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
}
