//! The canonical form of JSON, RFC 8785: what a digest of a tool's arguments is made over, so that the same arguments
//! have the same digest however they were written, and others another one.
//!
//! The second half is where the RFC leaves room: it reads every number as an IEEE 754 double. A reader with
//! big integers or decimals sees more, so that two calls which differ for the tool could have one digest, and an
//! approval for one be good for the other. So a number is taken only if its canonical form has the value that was written:
//! `1e2`, `100` and `100.0` are one number; `9007199254740993`, `1e400` and `0.1000000000000000055` are refused.

#[cfg(test)]
mod tests;

use super::json::{Kind, Value};

/// A number whose value a double does not keep.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Inexact;

/// Writes `value` in its canonical form.
pub(super) fn canonical(value: &Value<'_>) -> Result<String, Inexact> {
    let mut out = String::with_capacity(value.text.len());
    write(value, &mut out)?;
    Ok(out)
}

fn write(value: &Value<'_>, out: &mut String) -> Result<(), Inexact> {
    match &value.kind {
        Kind::Literal => out.push_str(value.text),
        Kind::Number => out.push_str(&number(value.text)?),
        Kind::String(text) => string(text, out),
        Kind::Array(elements) => {
            out.push('[');
            for (at, element) in elements.iter().enumerate() {
                out.push_str(if at == 0 { "" } else { "," });
                write(element, out)?;
            }
            out.push(']');
        }
        Kind::Object(members) => {
            // Section 3.2.3: by UTF-16 code units, which is another order than that of characters.
            let mut members: Vec<_> = members.iter().collect();
            members.sort_by(|(one, _), (other, _)| one.encode_utf16().cmp(other.encode_utf16()));
            out.push('{');
            for (at, (name, value)) in members.into_iter().enumerate() {
                out.push_str(if at == 0 { "" } else { "," });
                string(name, out);
                out.push(':');
                write(value, out)?;
            }
            out.push('}');
        }
    }
    Ok(())
}

/// Section 3.2.2.2.
fn string(text: &str, out: &mut String) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{8}' => out.push_str("\\b"),
            '\t' => out.push_str("\\t"),
            '\n' => out.push_str("\\n"),
            '\u{c}' => out.push_str("\\f"),
            '\r' => out.push_str("\\r"),
            '\0'..='\u{1f}' => out.push_str(&format!("\\u{:04x}", u32::from(character))),
            other => out.push(other),
        }
    }
    out.push('"');
}

/// Section 3.2.2.3: as ECMAScript writes the double that the text names.
fn number(text: &str) -> Result<String, Inexact> {
    let double: f64 = text.parse().map_err(|_| Inexact)?;
    if !double.is_finite() {
        return Err(Inexact);
    }
    let shortest = Decimal::shortest(double);
    if Decimal::read(text) != shortest {
        return Err(Inexact);
    }
    Ok(shortest.ecma_script())
}

/// A decimal number: ± 0.DIGITS × 10^point. Neither end of the digits is a zero; zero has none, and no sign.
#[derive(Debug, PartialEq, Eq)]
struct Decimal {
    negative: bool,
    digits: String,
    point: i64,
}

impl Decimal {
    /// The fewest digits that name this double, of those the nearest to it, and of two that are as near the even one:
    /// what ECMAScript asks for (note 2 of `Number::toString`).
    fn shortest(double: f64) -> Self {
        let shortest = format!("{double:e}");
        let digits = shortest.bytes().take_while(|byte| *byte != b'e').filter(u8::is_ascii_digit).count();
        // Of two that are as near, the standard library's shortest form takes the greater, and its rounding the even one.
        let nearest = format!("{double:.*e}", digits - 1);
        let names_it = nearest.parse() == Ok(double);
        Self::read(if names_it { &nearest } else { &shortest })
    }

    /// Of a number in the grammar of JSON.
    fn read(text: &str) -> Self {
        let (negative, text) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
        let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let all = format!("{whole}{fraction}");
        let digits = all.trim_start_matches('0');
        let zeros = all.len() - digits.len();
        let digits = digits.trim_end_matches('0');
        if digits.is_empty() {
            return Self { negative: false, digits: String::new(), point: 0 };
        }
        // An exponent that has no place here is that of no double either, so the saturated one differs from all of those.
        let end = if exponent.starts_with('-') { i64::MIN } else { i64::MAX };
        let exponent: i64 = exponent.parse().unwrap_or(end);
        let point = exponent.saturating_add(whole.len() as i64 - zeros as i64);
        Self { negative, digits: digits.to_owned(), point }
    }

    /// ECMA-262, `Number::toString`, radix 10.
    fn ecma_script(&self) -> String {
        let sign = if self.negative { "-" } else { "" };
        let (digits, count, point) = (&self.digits, self.digits.len() as i64, self.point);
        let zeros = |count: i64| "0".repeat(usize::try_from(count).unwrap_or_default());
        if digits.is_empty() {
            return "0".to_owned();
        }
        match point {
            1..=21 if count <= point => format!("{sign}{digits}{}", zeros(point - count)),
            1..=21 => {
                let (whole, fraction) = digits.split_at(usize::try_from(point).unwrap_or_default());
                format!("{sign}{whole}.{fraction}")
            }
            -5..=0 => format!("{sign}0.{}{digits}", zeros(-point)),
            _ => {
                let (first, rest) = digits.split_at(1);
                let dot = if rest.is_empty() { "" } else { "." };
                format!("{sign}{first}{dot}{rest}e{:+}", point - 1)
            }
        }
    }
}
