//! What systemd asks for, in the address from which it connects (systemd.exec(5), `LoadCredential=`).

use std::fmt::Write as _;

use crate::attest::UnitName;

/// The longest name of a credential (systemd.exec(5)).
const MAX_NAME: usize = 255;
/// `RANDOM` is 64 bits in hex, without leading zeros.
const MAX_RANDOM: usize = 16;

/// The unit and the credential of one request. It is the word of whoever connected: believe it from systemd alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The unit.
    pub unit: UnitName,
    /// The name of the credential.
    pub name: String,
}

impl Asked {
    /// Reads an abstract address, without the zero byte in front: `RANDOM/unit/UNIT/CREDENTIAL`. `None` when it is
    /// anything else.
    pub fn parse(address: &[u8]) -> Option<Self> {
        let mut parts = std::str::from_utf8(address).ok()?.splitn(4, '/');
        let (random, unit, name) = (parts.next()?, (parts.next()?, parts.next()?), parts.next()?);
        let ("unit", unit) = unit else { return None };
        let is_random = (1..=MAX_RANDOM).contains(&random.len())
            && random.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
            && (random == "0" || !random.starts_with('0'));
        let legal = |byte: u8| matches!(byte, b' '..=b'~') && !matches!(byte, b'/' | b':');
        let is_name = (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(legal) && !matches!(name, "." | "..");
        let unit = UnitName::parse(unit).filter(|_| is_random && is_name)?;
        Some(Self { unit, name: name.to_owned() })
    }
}

/// What a credential of this name holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// The certificate and what leads from it to the bundle.
    Chain,
    /// Its private key.
    Key,
    /// Both, for programs that read one file.
    ChainAndKey,
    /// The X.509 authorities of the trust domain.
    Bundle,
    /// The revocation lists of this node.
    Crl,
    /// A JWT-SVID for an audience; for the only one of the entry where none is named.
    Jwt(Option<String>),
}

impl Content {
    /// What is meant by a name; `None` when nothing is.
    pub fn of(name: &str) -> Option<Self> {
        Some(match name {
            "svid.pem" | "tls.crt" => Self::Chain,
            "svid_key.pem" | "tls.key" => Self::Key,
            "svid-with-key.pem" => Self::ChainAndKey,
            "bundle.pem" | "ca.crt" => Self::Bundle,
            "crl.pem" => Self::Crl,
            "jwt" => Self::Jwt(None),
            _ => Self::Jwt(Some(unescape(name.strip_prefix("jwt-")?)?)),
        })
    }
}

/// The audience in a name: `%2F` for each byte that a name cannot have, and no other way to write the same audience.
fn unescape(text: &str) -> Option<String> {
    let mut bytes = text.bytes();
    let mut out = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let digits = [bytes.next()?, bytes.next()?];
        out.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
    }
    let audience = String::from_utf8(out).ok().filter(|audience| !audience.is_empty())?;
    (escape(&audience) == text).then_some(audience)
}

/// The name's part for an audience.
fn escape(audience: &str) -> String {
    let mut out = String::with_capacity(audience.len());
    for byte in audience.bytes() {
        match byte {
            b'/' | b':' | b'%' => drop(write!(out, "%{byte:02X}")),
            b'!'..=b'~' => out.push(char::from(byte)),
            _ => drop(write!(out, "%{byte:02X}")),
        }
    }
    out
}

/// Entry point for fuzzing: reads arbitrary bytes as the address of a caller.
#[doc(hidden)]
pub fn fuzz_credential_address(bytes: &[u8]) {
    let Some(asked) = Asked::parse(bytes) else { return };
    let tail = format!("/unit/{}/{}", asked.unit.as_str(), asked.name);
    assert!(bytes.ends_with(tail.as_bytes()), "what was read is not what was there");
    if let Some(Content::Jwt(Some(audience))) = Content::of(&asked.name) {
        assert_eq!(asked.name, format!("jwt-{}", escape(&audience)), "two names of one credential");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_as_systemd_makes_it_names_a_unit_and_a_credential() {
        for (address, unit, name) in [
            ("adf9d86b6eda275e/unit/foobar.service/credx", "foobar.service", "credx"),
            ("0/unit/a@b.service/svid.pem", "a@b.service", "svid.pem"),
            (r"1f/unit/a\x2db.socket/jwt-https%3A%2F%2Fx", r"a\x2db.socket", "jwt-https%3A%2F%2Fx"),
            ("1/unit/a.mount/with space", "a.mount", "with space"),
        ] {
            let asked = Asked::parse(address.as_bytes()).expect(address);
            assert_eq!((asked.unit.as_str(), &*asked.name), (unit, name));
        }
    }

    #[test]
    fn any_other_address_names_nothing() {
        let long = format!("1/unit/a.service/{}", "x".repeat(256));
        let zeros = format!("{}/unit/a.service/x", "1".repeat(17));
        for address in [
            "",
            "/",
            "unit/a.service/x",
            "/unit/a.service/x",
            "01/unit/a.service/x",
            "A1/unit/a.service/x",
            "g/unit/a.service/x",
            &zeros,
            "1/Unit/a.service/x",
            "1/unit/a.service",
            "1/unit/a.service/",
            "1/unit/a.service/.",
            "1/unit/a.service/..",
            "1/unit/a.service/x/y",
            "1/unit/a.service/x:y",
            "1/unit/a.service/x\0",
            "1/unit/a.service/x\n",
            "1/unit/a.service/\u{e9}",
            "1/unit//x",
            "1/unit/a/x",
            "1/unit/a.slice/x",
            "1/unit/a.timer/x",
            "1/unit/../x",
            "1/unit/a b.service/x",
            "\u{0}1/unit/a.service/x",
            &long,
        ] {
            assert_eq!(Asked::parse(address.as_bytes()), None, "{address:?}");
        }
        assert_eq!(Asked::parse(b"1/unit/a.service/\xff"), None);
    }

    #[test]
    fn every_byte_in_a_name_is_legal_or_makes_it_none() {
        for byte in 0..=255u8 {
            let address = [b"1/unit/a.service/x".as_slice(), &[byte]].concat();
            let legal = (b' '..=b'~').contains(&byte) && byte != b'/' && byte != b':';
            assert_eq!(Asked::parse(&address).is_some(), legal, "{byte}");
        }
    }

    #[test]
    fn names_mean_one_thing_each_and_others_nothing() {
        for (name, content) in [
            ("svid.pem", Some(Content::Chain)),
            ("tls.crt", Some(Content::Chain)),
            ("svid_key.pem", Some(Content::Key)),
            ("tls.key", Some(Content::Key)),
            ("svid-with-key.pem", Some(Content::ChainAndKey)),
            ("bundle.pem", Some(Content::Bundle)),
            ("ca.crt", Some(Content::Bundle)),
            ("crl.pem", Some(Content::Crl)),
            ("jwt", Some(Content::Jwt(None))),
            ("jwt-sts.example.com", Some(Content::Jwt(Some("sts.example.com".into())))),
            ("jwt-https%3A%2F%2Fa.example%2F%25", Some(Content::Jwt(Some("https://a.example/%".into())))),
            ("jwt-a%20b", Some(Content::Jwt(Some("a b".into())))),
            // A second way to write what can be written in one.
            ("jwt-https%3a%2f%2fa", None),
            ("jwt-%61", None),
            ("jwt-a b", None),
            ("jwt-%", None),
            ("jwt-%2", None),
            ("jwt-%zz", None),
            ("jwt-%+1", None),
            ("jwt-%FF", None),
            ("jwt-", None),
            ("JWT", None),
            ("svid.key", None),
            ("password", None),
            ("", None),
        ] {
            assert_eq!(Content::of(name), content, "{name}");
        }
    }
}
