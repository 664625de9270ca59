//! Lifetimes as people write them: `15m`, `1h30m`.

use std::time::Duration;

use thiserror::Error;

/// Why a text is not a lifetime.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum LifetimeError {
    /// It is not a row of numbers with units.
    #[error("`{0}` is not a lifetime: write numbers with the units d, h, m and s, for example `15m` or `1h30m`")]
    Form(String),
    /// It is no time at all.
    #[error("a lifetime of zero is no lifetime: leave the key out to get the default")]
    Zero,
    /// It is longer than allowed.
    #[error("the longest lifetime allowed here is `{}`, not `{written}`", show(*most))]
    TooLong {
        /// What was written.
        written: String,
        /// The most that is allowed.
        most: Duration,
    },
}

const UNITS: [(char, u64); 4] = [('d', 86_400), ('h', 3_600), ('m', 60), ('s', 1)];

/// Parses a lifetime of at least a second and at most `most`. Units come in falling order, each once.
pub(crate) fn parse(text: &str, most: Duration) -> Result<Duration, LifetimeError> {
    let form = || LifetimeError::Form(text.to_owned());
    let too_long = || LifetimeError::TooLong { written: text.to_owned(), most };
    if text.is_empty() {
        return Err(form());
    }
    let (mut rest, mut units, mut seconds) = (text, UNITS.as_slice(), 0u64);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).filter(|at| *at > 0).ok_or_else(form)?;
        let (number, after) = rest.split_at(digits);
        let unit = after.chars().next().and_then(|c| units.iter().position(|(unit, _)| *unit == c)).ok_or_else(form)?;
        // Only digits: what does not fit is too much.
        let number: u64 = number.parse().map_err(|_| too_long())?;
        seconds = number.checked_mul(units[unit].1).and_then(|s| s.checked_add(seconds)).ok_or_else(too_long)?;
        units = &units[unit + 1..];
        rest = &after[1..];
    }
    match Duration::from_secs(seconds) {
        Duration::ZERO => Err(LifetimeError::Zero),
        lifetime if lifetime > most => Err(too_long()),
        lifetime => Ok(lifetime),
    }
}

/// The shortest way to write a lifetime of whole seconds.
pub(super) fn show(lifetime: Duration) -> String {
    let mut seconds = lifetime.as_secs();
    let mut out = String::new();
    for (unit, length) in UNITS {
        if seconds >= length {
            out.push_str(&format!("{}{unit}", seconds / length));
            seconds %= length;
        }
    }
    if out.is_empty() { "0s".to_owned() } else { out }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifetimes_are_numbers_with_units() {
        let day = Duration::from_secs(86_400);
        for (text, seconds) in [("1s", 1), ("15m", 900), ("1h30m", 5_400), ("1d", 86_400), ("0h90s", 90), ("090s", 90)]
        {
            assert_eq!(parse(text, day), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "15", "m", "15 m", "1h 30m", "-1s", "1.5h", "1w", "15M", "1m1h", "1m1m", "1ms", "ü", "1ü"] {
            assert_eq!(parse(text, day), Err(LifetimeError::Form(text.to_owned())), "{text}");
        }
        for text in ["0s", "0d0s"] {
            assert_eq!(parse(text, day), Err(LifetimeError::Zero), "{text}");
        }
        for text in ["1d1s", "25h", "99999999999999999999s", "18446744073709551615d"] {
            assert_eq!(parse(text, day), Err(LifetimeError::TooLong { written: text.into(), most: day }), "{text}");
        }
    }

    #[test]
    fn what_is_shown_is_read_back() {
        for (seconds, text) in [(0, "0s"), (59, "59s"), (900, "15m"), (5_400, "1h30m"), (90_061, "1d1h1m1s")] {
            assert_eq!(show(Duration::from_secs(seconds)), text);
        }
    }
}
