//! Cuts a policy file into its policies before Cedar reads them, and refuses what is nested too deep for anybody's stack.
//!
//! Cedar reads, checks, evaluates and drops an expression by walking down into it, and a chain such as `a || b || c` is
//! as deep as it has operators. So each policy may have only so many. What is cut wrong, because it is not Cedar, is
//! refused by Cedar itself: every piece is read as exactly one policy.

use std::ops::Range;

/// How many operators, accesses and conditions one policy may have. Cedar refuses to evaluate what a thread has no stack
/// for, and then a `forbid` refuses and a `permit` permits nothing.
pub(super) const MAX_OPERATORS: usize = 100;
/// How deep brackets may be nested.
pub(super) const MAX_NESTING: usize = 30;

/// One policy's place in its file: from its first token up to and with its semicolon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Statement {
    pub(super) span: Range<usize>,
    /// Where it is too much, and why.
    pub(super) too_deep: Option<(usize, &'static str)>,
}

const TOO_MANY: &str = "more than 100 operators in one policy: use `in [..]` or `.contains(..)` instead of chains, or \
                        write several policies";
const TOO_NESTED: &str = "more than 30 brackets inside one another: write several policies";

/// The policies of a text, in order. What follows the last semicolon, if it is more than white space and comments, is
/// one more.
pub(super) fn statements(text: &str) -> Vec<Statement> {
    let mut found = Vec::new();
    let mut current: Option<Open> = None;
    let mut tokens = Tokens { text, at: 0 };
    while let Some((at, token)) = tokens.next() {
        let open = current.get_or_insert_with(|| Open::new(at));
        open.token(at, token);
        if token == ";" && open.nesting == 0 {
            let end = at + token.len();
            found.extend(current.take().map(|open| open.close(end)));
        }
    }
    found.extend(current.map(|open| open.close(text.len())));
    found
}

/// The conditions of one policy, each alone and as it is written: `when { a && b }` is two.
pub(super) fn conditions(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let (mut tokens, mut nesting, mut keyword) = (Tokens { text, at: 0 }, 0_usize, "");
    // Where the parts of the block begin and end, and whether it is more than parts that must all hold.
    let (mut parts, mut is_one) = (Vec::new(), false);
    while let Some((at, token)) = tokens.next() {
        match token {
            "when" | "unless" if nesting == 0 => keyword = token,
            "(" | "[" | "{" => {
                nesting += 1;
                if nesting == 1 && token == "{" {
                    (parts, is_one) = (vec![at + 1], keyword == "unless");
                }
            }
            ")" | "]" | "}" => {
                nesting = nesting.saturating_sub(1);
                if nesting == 0 && token == "}" && !parts.is_empty() {
                    let begin = std::mem::take(&mut parts);
                    let begin = if is_one { begin[..1].to_vec() } else { begin };
                    let ends = begin[1..].iter().map(|next| next - "&&".len()).chain([at]);
                    let part = |(from, to): (&usize, usize)| format!("{keyword} {{ {} }}", text[*from..to].trim());
                    found.extend(begin.iter().zip(ends).map(part));
                }
            }
            "&&" if nesting == 1 => parts.push(at + token.len()),
            "||" | "if" if nesting == 1 => is_one = true,
            _ => {}
        }
    }
    found
}

struct Open {
    start: usize,
    nesting: usize,
    operators: usize,
    too_deep: Option<(usize, &'static str)>,
}

impl Open {
    fn new(start: usize) -> Self {
        Self { start, nesting: 0, operators: 0, too_deep: None }
    }

    fn token(&mut self, at: usize, token: &str) {
        match token {
            "(" | "{" => self.nesting += 1,
            // A list, or one more step of a chain of accesses.
            "[" => (self.nesting, self.operators) = (self.nesting + 1, self.operators + 1),
            ")" | "]" | "}" => self.nesting = self.nesting.saturating_sub(1),
            "," | ":" | ";" | "@" => return,
            name if name.starts_with(|c: char| c.is_alphanumeric() || c == '_' || c == '"') => {
                if matches!(name, "if" | "in" | "has" | "like" | "is" | "when" | "unless") {
                    self.operators += 1;
                }
            }
            _ => self.operators += 1,
        }
        if self.too_deep.is_none() && self.operators > MAX_OPERATORS {
            self.too_deep = Some((at, TOO_MANY));
        }
        if self.too_deep.is_none() && self.nesting > MAX_NESTING {
            self.too_deep = Some((at, TOO_NESTED));
        }
    }

    fn close(self, end: usize) -> Statement {
        Statement { span: self.start..end, too_deep: self.too_deep }
    }
}

/// Operators of two characters; those of one are any other character.
const PAIRS: [&str; 6] = ["&&", "||", "==", "!=", "<=", ">="];

/// Names, strings, operators and other characters, without white space and comments.
struct Tokens<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Tokens<'a> {
    fn next(&mut self) -> Option<(usize, &'a str)> {
        loop {
            let rest = &self.text[self.at..];
            let first = rest.chars().next()?;
            let length = if rest.starts_with("//") {
                self.at += rest.find(['\n', '\r']).unwrap_or(rest.len());
                continue;
            } else if first.is_whitespace() {
                self.at += first.len_utf8();
                continue;
            } else if first == '"' {
                string_length(rest)
            } else if first.is_alphanumeric() || first == '_' {
                rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len())
            } else {
                PAIRS.iter().find(|pair| rest.starts_with(**pair)).map_or(first.len_utf8(), |pair| pair.len())
            };
            let at = self.at;
            self.at += length;
            return Some((at, &rest[..length]));
        }
    }
}

/// The length of the string that `text` begins with, with both quotes; to the end where it is not closed.
fn string_length(text: &str) -> usize {
    let mut escaped = false;
    for (at, character) in text.char_indices().skip(1) {
        match character {
            '"' if !escaped => return at + 1,
            _ => escaped = character == '\\' && !escaped,
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_cut_at_the_semicolons_that_end_policies() {
        let rows: &[(&str, &[&str])] = &[
            ("", &[]),
            ("// nothing; here\n", &[]),
            ("permit(a);", &["permit(a);"]),
            ("  @id(\"a;b\")\npermit(a); // x;\n forbid(b);", &["@id(\"a;b\")\npermit(a);", "forbid(b);"]),
            ("permit(a) when { \"\\\";\" == \"//\" }; x", &["permit(a) when { \"\\\";\" == \"//\" };", "x"]),
            ("permit(a // );\n);", &["permit(a // );\n);"]),
            ("permit(\"open;", &["permit(\"open;"]),
            ("permit(;);", &["permit(;);"]),
        ];
        for (text, expected) in rows {
            let found: Vec<&str> = statements(text).into_iter().map(|one| &text[one.span]).collect();
            assert_eq!(found, *expected, "{text}");
        }
    }

    #[test]
    fn what_is_too_deep_is_found_where_it_becomes_so() {
        let chain = |operator: &str, times: usize| format!("permit(p,a,r) when {{ x{} }};", operator.repeat(times));
        for operator in ["||x", ".x", "+1", "==x", " in x", " has x", "[0]", "!"] {
            assert_eq!(statements(&chain(operator, 80))[0].too_deep, None, "{operator}");
            assert!(statements(&chain(operator, 101))[0].too_deep.is_some(), "{operator}");
        }
        let nested = |depth: usize| format!("permit(p,a,r) when {{ {}1{} }};", "(".repeat(depth), ")".repeat(depth));
        assert_eq!(statements(&nested(25))[0].too_deep, None);
        assert_eq!(statements(&nested(40))[0].too_deep.map(|(at, _)| at), Some(21 + 29));
        let list = format!("permit(p,a,r) when {{ x in [{}] }};", "A::\"x\",".repeat(100));
        assert_eq!(statements(&list)[0].too_deep, None);
    }

    #[test]
    fn conditions_are_taken_apart_where_all_of_them_must_hold() {
        let rows: &[(&str, &[&str])] = &[
            ("permit(p,a,r);", &[]),
            (
                "permit(p,a,r) when { a && (b || c && d) && f([1, 2]) };",
                &["when { a }", "when { (b || c && d) }", "when { f([1, 2]) }"],
            ),
            ("permit(p,a,r) when { a && b || c };", &["when { a && b || c }"]),
            ("permit(p,a,r) when { if a then b else c && d };", &["when { if a then b else c && d }"]),
            ("permit(p,a,r) when { \"}\" == a } unless { b && c };", &["when { \"}\" == a }", "unless { b && c }"]),
            ("@a(\"when {\") permit(p,a,r) when { {x: 1}.x == 1 && b };", &["when { {x: 1}.x == 1 }", "when { b }"]),
            ("permit(p,a,r) when { a", &[]),
        ];
        for (text, expected) in rows {
            assert_eq!(conditions(text), *expected, "{text}");
        }
    }
}
