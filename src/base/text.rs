//! Text that is put before a person: from outside, and what went wrong.

use std::borrow::Cow;

/// An error and what caused it, on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// Whether a character moves the cursor, does not show, or turns the direction of writing: whatever makes a text look like
/// another one (Unicode general categories Cc, Cf, Zl, Zp, Co and unassigned tags).
pub fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{890}'..='\u{891}' | '\u{8e2}'
            | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}' | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{e000}'..='\u{f8ff}'
            | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{110bd}' | '\u{110cd}'
            | '\u{13430}'..='\u{1343f}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{e0fff}' | '\u{f0000}'..='\u{10ffff}')
}

/// Prose from outside on one line: what would move the cursor, does not show, or turns the direction of writing is escaped.
/// What was escaped once is not escaped again.
pub fn prose(text: &str) -> String {
    escaped(text, |c| !is_hidden(c))
}

/// A value as one word of a line: in quotes where it could pass for more than itself, or does not show.
pub fn one_word(value: &str) -> Cow<'_, str> {
    let is_plain = |c: char| c.is_ascii_graphic() && c != '"';
    if !value.is_empty() && value.chars().all(is_plain) { value.into() } else { format!("{value:?}").into() }
}

/// `text` with everything that does not show by this rule as `\u{...}`.
pub fn escaped(text: &str, shows: impl Fn(char) -> bool) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if shows(c) {
            out.push(c);
        } else {
            out.extend(c.escape_unicode());
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_shows_is_told_from_what_does_not() {
        for shown in ['a', ' ', '~', 'é', '—', '日', '\u{301}'] {
            assert!(!is_hidden(shown), "{shown:?}");
        }
        for hidden in
            ['\n', '\x1b', '\u{7f}', '\u{ad}', '\u{200b}', '\u{202e}', '\u{2028}', '\u{2066}', '\u{feff}', '\u{e0041}']
        {
            assert!(is_hidden(hidden), "{hidden:?}");
        }
    }
}
