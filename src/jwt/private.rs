//! Private keys as JSON (RFC 7518, sections 6.2.2 and 6.3.2): what the Workload API hands out beside a WIT-SVID.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};
use zeroize::{Zeroize as _, Zeroizing};

use super::jwk::{Jwk, JwkError};
use super::jws::Algorithm;
use super::strict::parse_strict;
use crate::base::secret::Secret;
use crate::x509::PrivateKey;
use crate::x509::der::{Reader, tag, unsigned};

/// The private members of an RSA key in the order of RFC 8017, appendix A.1.2, after its modulus and exponent.
const RSA_PRIVATE: [&str; 6] = ["d", "p", "q", "dp", "dq", "qi"];
/// Room for the JSON of a 4096-bit RSA key, so that the text is not left behind by growing.
const CAPACITY: usize = 4096;

/// `key` as the JSON text of a private JWK, with `alg`: the algorithm such a key signs with here (see
/// [`Jwk::algorithm`]).
///
/// # Errors
/// The crypto library cannot write the key.
pub fn private_jwk(key: &PrivateKey) -> Result<Secret<String>, JwkError> {
    let public = Jwk::from_spki(key.public_key())?;
    let pkcs8 = key.to_pkcs8().map_err(|_| JwkError::Malformed)?;
    let inner = private_part(pkcs8.expose()).ok_or(JwkError::Malformed)?;

    let mut json = String::with_capacity(CAPACITY);
    json.push_str(r#"{"alg":""#);
    json.push_str(public.algorithm().name());
    for (name, value) in public.required() {
        json.push_str(&format!(r#"","{name}":"{value}"#));
    }
    match public.curve() {
        Some(curve) => member(&mut json, "d", &ec_scalar(inner, curve.width()).ok_or(JwkError::Malformed)?),
        None => {
            let mut numbers = rsa_numbers(inner).ok_or(JwkError::Malformed)?;
            for name in RSA_PRIVATE {
                let number = numbers.take(tag::INTEGER).and_then(unsigned).ok_or(JwkError::Malformed)?;
                member(&mut json, name, number);
            }
        }
    }
    json.push_str(r#""}"#);
    Ok(Secret::new(json))
}

/// Reads a private JWK whose `alg` is there and fits, and whose public and private parts belong together.
///
/// # Errors
/// It is not such a key, or of a kind that cannot sign here (P-521).
pub fn read_private_jwk(json: &str) -> Result<(PrivateKey, Algorithm), JwkError> {
    let mut members = parse_strict(json.as_bytes()).map_err(|_| JwkError::Malformed)?;
    let read = read_members(&members);
    for (_, value) in &mut members {
        if let Value::String(text) = value {
            text.zeroize();
        }
    }
    read
}

fn read_members(members: &Map<String, Value>) -> Result<(PrivateKey, Algorithm), JwkError> {
    let public = Jwk::from_json(members)?;
    let algorithm = members.get("alg").and_then(Value::as_str).and_then(Algorithm::from_name);
    let algorithm = algorithm.filter(|algorithm| public.fits(*algorithm)).ok_or(JwkError::Parameter("alg"))?;
    let octets = |name| {
        let text = members.get(name).and_then(Value::as_str).ok_or(JwkError::Parameter(name))?;
        URL_SAFE_NO_PAD.decode(text).map(Zeroizing::new).map_err(|_| JwkError::Parameter(name))
    };
    let key = match public.curve() {
        Some(curve) => {
            let d = octets("d")?;
            if d.len() != curve.width() {
                return Err(JwkError::Parameter("d"));
            }
            let curve = der(tag::context_constructed(0), &[&der(tag::OID, &[curve.oid()])]);
            let sec1 = der(tag::SEQUENCE, &[&der(tag::INTEGER, &[&[1]]), &der(tag::OCTET_STRING, &[&d]), &curve]);
            PrivateKey::from_sec1(&sec1)
        }
        None => {
            let mut numbers = Zeroizing::new(der(tag::INTEGER, &[&[0]]).to_vec());
            for name in ["n", "e"].into_iter().chain(RSA_PRIVATE) {
                let number = octets(name)?;
                // A sign octet, where the first bit would otherwise say that the number is negative.
                let sign: &[u8] = if number.first().is_some_and(|first| first & 0x80 != 0) { &[0] } else { &[] };
                numbers.extend_from_slice(&der(tag::INTEGER, &[sign, &number]));
            }
            PrivateKey::from_pkcs1(&der(tag::SEQUENCE, &[&numbers]))
        }
    };
    // P-521 ends here: it can be checked with, not signed with.
    let key = key.map_err(|_| JwkError::Parameter("d"))?;
    if Jwk::from_spki(key.public_key())? != public {
        return Err(JwkError::Parameter("d"));
    }
    Ok((key, algorithm))
}

fn member(json: &mut String, name: &str, octets: &[u8]) {
    json.push_str(r#"",""#);
    json.push_str(name);
    json.push_str(r#"":""#);
    URL_SAFE_NO_PAD.encode_string(octets, json);
}

/// `privateKey` of a PKCS#8 PrivateKeyInfo (RFC 5208, section 5).
fn private_part(pkcs8: &[u8]) -> Option<&[u8]> {
    let mut info = Reader::new(Reader::new(pkcs8).only(tag::SEQUENCE)?);
    info.take(tag::INTEGER)?;
    info.take(tag::SEQUENCE)?;
    info.take(tag::OCTET_STRING)
}

/// The private scalar of an ECPrivateKey (RFC 5915, section 3), as long as a coordinate of its curve.
fn ec_scalar(der: &[u8], octets: usize) -> Option<Zeroizing<Vec<u8>>> {
    let mut key = Reader::new(Reader::new(der).only(tag::SEQUENCE)?);
    key.take(tag::INTEGER)?;
    let scalar = key.take(tag::OCTET_STRING)?;
    let mut padded = Zeroizing::new(vec![0; octets.checked_sub(scalar.len())?]);
    padded.extend_from_slice(scalar);
    Some(padded)
}

/// What follows version, modulus and public exponent in an RSAPrivateKey (RFC 8017, appendix A.1.2).
fn rsa_numbers(der: &[u8]) -> Option<Reader<'_>> {
    let mut key = Reader::new(Reader::new(der).only(tag::SEQUENCE)?);
    for _ in ["version", "n", "e"] {
        key.take(tag::INTEGER)?;
    }
    Some(key)
}

/// One DER element; wiped, because it may hold a private part.
fn der(tag: u8, parts: &[&[u8]]) -> Zeroizing<Vec<u8>> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut out = Zeroizing::new(Vec::with_capacity(length + 6));
    out.push(tag);
    match u8::try_from(length) {
        Ok(short @ 0..=0x7f) => out.push(short),
        _ => {
            let octets = length.to_be_bytes();
            let octets = &octets[octets.iter().take_while(|octet| **octet == 0).count()..];
            out.push(0x80 | octets.len() as u8);
            out.extend_from_slice(octets);
        }
    }
    for part in parts {
        out.extend_from_slice(part);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jwt::{Jws, JwtSigner};
    use crate::x509::KeyType;

    #[test]
    fn a_private_key_written_as_json_reads_as_the_same_key_and_signs_for_its_public_half() {
        for kind in [KeyType::EcP256, KeyType::EcP384, KeyType::Rsa2048] {
            let key = PrivateKey::generate(kind).unwrap();
            let json = private_jwk(&key).unwrap();
            let members = parse_strict(json.expose().as_bytes()).unwrap();
            let public = Jwk::from_spki(key.public_key()).unwrap();
            assert_eq!(Jwk::from_json(&members).unwrap(), public);
            assert_eq!(members["alg"], public.algorithm().name());
            assert!(members["d"].is_string());

            let (read, algorithm) = read_private_jwk(json.expose()).unwrap();
            assert_eq!((read.public_key(), algorithm), (key.public_key(), public.algorithm()));
            let token = JwtSigner::new(&read).unwrap().sign(&serde_json::json!({})).unwrap();
            Jws::parse(&token).unwrap().verify(&public).unwrap();
        }
    }

    #[test]
    fn a_private_scalar_that_begins_with_zeros_keeps_its_width() {
        // RFC 7518, section 6.2.2.1: as many octets as the order of the curve has.
        let scalar = der(tag::SEQUENCE, &[&der(tag::INTEGER, &[&[1]]), &der(tag::OCTET_STRING, &[&[7; 31]])]);
        let padded = ec_scalar(&scalar, 32).unwrap();
        assert_eq!((padded.len(), padded[0], padded[1]), (32, 0, 7));
    }

    #[test]
    fn what_is_not_a_whole_private_key_is_refused() {
        let json = private_jwk(&PrivateKey::generate(KeyType::EcP256).unwrap()).unwrap();
        let good = parse_strict(json.expose().as_bytes()).unwrap();
        let other = private_jwk(&PrivateKey::generate(KeyType::EcP256).unwrap()).unwrap();
        let other = parse_strict(other.expose().as_bytes()).unwrap();
        let refused = |change: &dyn Fn(&mut Map<String, Value>)| {
            let mut members = good.clone();
            change(&mut members);
            read_private_jwk(&Value::Object(members).to_string()).is_err()
        };
        assert!(!refused(&|_| {}));
        for name in ["d", "alg", "kty", "crv", "x", "y"] {
            assert!(refused(&|members| drop(members.remove(name))), "{name}");
        }
        assert!(refused(&|members| drop(members.insert("alg".to_owned(), "ES384".into()))));
        assert!(refused(&|members| drop(members.insert("d".to_owned(), other["d"].clone()))), "another key's");
        assert!(refused(&|members| drop(members.insert("d".to_owned(), "AQ".into()))), "too short");
        assert!(read_private_jwk("[]").is_err());
    }
}
