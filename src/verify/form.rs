//! `application/x-www-form-urlencoded`, read strictly: what two readers could read in two ways is no form.

use std::collections::BTreeMap;

/// Reads a form whose names are all among `known`; `None` when a name is there twice or is another, an escape is
/// malformed, or a value is not UTF-8.
pub fn decode<'a>(body: &str, known: &[&'a str]) -> Option<BTreeMap<&'a str, String>> {
    let mut fields = BTreeMap::new();
    for pair in body.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=')?;
        let name = unescape(name)?;
        let name = known.iter().find(|known| **known == name)?;
        if fields.insert(*name, unescape(value)?).is_some() {
            return None;
        }
    }
    Some(fields)
}

/// Writes a form.
pub fn encode<'a>(fields: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let mut form = String::new();
    for (name, value) in fields {
        if !form.is_empty() {
            form.push('&');
        }
        escape(&mut form, name);
        form.push('=');
        escape(&mut form, value);
    }
    form
}

fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                let (high, low) = (digit()?, digit()?);
                u8::try_from(high * 16 + low).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

fn escape(out: &mut String, text: &str) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_has_each_name_once_and_no_others() {
        let known = ["a", "b"];
        type Fields<'a> = Option<&'a [(&'a str, &'a str)]>;
        let rows: &[(&str, Fields<'_>)] = &[
            ("", Some(&[])),
            ("a=1&b=2", Some(&[("a", "1"), ("b", "2")])),
            ("a=x+y%20z%C3%A9", Some(&[("a", "x y zé")])),
            ("a=", Some(&[("a", "")])),
            ("%61=1", Some(&[("a", "1")])),
            ("a=1&a=1", None),
            ("a=1&%61=2", None),
            ("c=1", None),
            ("a", None),
            ("a=%4", None),
            ("a=%zz", None),
            ("a=%ff", None),
        ];
        for (body, expected) in rows {
            let expected = expected.map(|pairs| pairs.iter().map(|(k, v)| (*k, (*v).to_owned())).collect());
            assert_eq!(decode(body, &known), expected, "{body}");
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let value = "https://tool.example.com/a?b=c&d e+f%é";
        assert_eq!(decode(&encode([("a", value), ("b", "")]), &["a", "b"]).unwrap()["a"], value);
    }
}
