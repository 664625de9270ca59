//! The screen of `tether status --watch` as lines: from a status document and the size of a terminal, and nothing else.

use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::cli::output::{Size, Tone, identifier, prose, relative};

/// A line, in pieces of one tone each. Never wider than the terminal.
pub(super) type Line = Vec<(Tone, String)>;

/// Where the values of a row begin, on a terminal with room for it.
const LABEL_WIDTH: usize = 13;
/// What is narrower than this has its labels on lines of their own.
const NARROW: usize = 48;
/// A limit is near when this part of it is taken, in percent.
const NEAR_PERCENT: u64 = 80;

/// The lines for `document`, at most as many as there are rows. `missing` is why the agent did not answer just now; then the
/// document is the last there was.
pub(super) fn frame(
    document: &Map<String, Value>,
    missing: Option<&str>,
    now: OffsetDateTime,
    size: Size,
) -> Vec<Line> {
    let mut frame = Frame { lines: Vec::new(), columns: size.columns.max(1), now };
    frame.head(document, missing);
    frame.parts(document);
    frame.numbers(document);
    frame.authorities(document);
    frame.weaker(document);
    let (rows, mut lines) = (size.rows.max(1), frame.lines);
    if lines.len() > rows {
        let hidden = lines.len() - rows + 1;
        lines.truncate(rows - 1);
        lines.push(clip(
            vec![(Tone::Plain, format!("… {hidden} more lines: make the window higher"))],
            size.columns.max(1),
        ));
    }
    lines
}

struct Frame {
    lines: Vec<Line>,
    columns: usize,
    now: OffsetDateTime,
}

impl Frame {
    fn head(&mut self, document: &Map<String, Value>, missing: Option<&str>) {
        let is_ready = document.get("ready").and_then(Value::as_bool).unwrap_or(false);
        let state = match (missing, is_ready) {
            (Some(_), _) => (Tone::Bad, "no answer".to_owned()),
            (None, true) => (Tone::Good, "ready".to_owned()),
            (None, false) => (Tone::Bad, "not ready".to_owned()),
        };
        let mut rest = format!("  {}", text(document, "trust_domain"));
        let node = text(document, "node");
        rest.push_str(&format!("  node {}", node.get(..8).unwrap_or(&node)));
        if let Some(started) = moment(document, "started_at") {
            rest.push_str(&format!("  started {}", relative(started, self.now)));
        }
        rest.push_str(&format!("  {}", text(document, "agent_version")));
        self.push(vec![state, (Tone::Plain, rest)]);
        if let Some(why) = missing {
            self.wrapped("", Tone::Bad, &prose(why));
        }
    }

    fn parts(&mut self, document: &Map<String, Value>) {
        let parts = document.get("parts").and_then(Value::as_object);
        for (name, part) in parts.into_iter().flatten() {
            if part.get("ready").and_then(Value::as_bool) == Some(false) {
                let why = part.get("reason").and_then(Value::as_str).unwrap_or("not ready");
                self.wrapped(&identifier(name), Tone::Bad, &prose(why));
            }
        }
        self.push(Line::new());
    }

    fn numbers(&mut self, document: &Map<String, Value>) {
        self.limited("connections", document, "connections");
        self.limited("calls", document, "calls");
        self.counts("streams", document, "streams", |_| Tone::Plain);
        if let Some(renewals) = document.get("renewals").and_then(Value::as_object) {
            let (due, overdue) = (number(renewals, "due"), number(renewals, "overdue"));
            let minutes = number(renewals, "within_seconds") / 60;
            let tone = if overdue > 0 { Tone::Bad } else { Tone::Plain };
            self.wrapped("renewals", tone, &format!("{due} in the next {minutes} minutes · {overdue} overdue"));
        }
        self.counts("sessions", document, "sessions", |state| match state {
            "pending_approval" | "suspended" => Tone::Weak,
            _ => Tone::Plain,
        });
        if document.contains_key("instances") {
            let (all, weak) = (number(document, "instances"), number(document, "weak_instances"));
            let tone = if weak > 0 { Tone::Weak } else { Tone::Plain };
            self.wrapped("instances", tone, &format!("{all} · weak {weak}"));
        }
        if document.contains_key("credentials") {
            let (all, held) = (number(document, "credentials"), number(document, "held_keys"));
            let revoked = document.get("crl").and_then(Value::as_object).map_or(0, |crl| number(crl, "revoked"));
            self.wrapped("credentials", Tone::Plain, &format!("{all} · keys held {held} · revoked {revoked}"));
        }
        self.counts("refused", document, "refusals", |_| Tone::Weak);
        self.counts("cut", document, "refused_connections", |_| Tone::Weak);
        let of = |name: &str| document.get(name).and_then(Value::as_object).map(|part| number(part, "count"));
        if let (Some(entries), Some(policies)) = (of("entries"), of("policies")) {
            self.wrapped("entries", Tone::Plain, &format!("{entries} · policies {policies}"));
        }
        for node in document.get("nodes").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_object) {
            let is_heard = node.get("heard").and_then(Value::as_bool).unwrap_or(false);
            let (tone, word) = if is_heard { (Tone::Plain, "heard") } else { (Tone::Bad, "silent") };
            let since = moment(node, "since").map(|since| format!(", since {}", relative(since, self.now)));
            self.wrapped("node", tone, &format!("{} {word}{}", text(node, "node"), since.unwrap_or_default()));
        }
    }

    /// A number with its limit.
    fn limited(&mut self, label: &str, document: &Map<String, Value>, name: &str) {
        let Some(open) = document.get(name).and_then(Value::as_u64) else { return };
        let limit = number(document, &format!("{name}_limit"));
        let is_near = limit > 0 && open.saturating_mul(100) >= limit.saturating_mul(NEAR_PERCENT);
        let of = if limit > 0 { format!(" of {limit}") } else { String::new() };
        self.wrapped(label, if is_near { Tone::Bad } else { Tone::Plain }, &format!("{open}{of}"));
    }

    /// Numbers by name, such as streams by call.
    fn counts(&mut self, label: &str, document: &Map<String, Value>, name: &str, tone: fn(&str) -> Tone) {
        let Some(counts) = document.get(name).and_then(Value::as_object) else { return };
        let named: Vec<_> = counts.iter().map(|(name, count)| format!("{} {count}", spaced(name))).collect();
        let tones: Vec<_> = counts.keys().map(|name| tone(name)).collect();
        let tone = tones.into_iter().find(|tone| *tone != Tone::Plain).unwrap_or(Tone::Plain);
        if named.is_empty() {
            self.wrapped(label, Tone::Plain, "none");
        } else {
            self.wrapped(label, tone, &named.join(" · "));
        }
    }

    fn authorities(&mut self, document: &Map<String, Value>) {
        let Some(authorities) = document.get("authorities").and_then(Value::as_array) else { return };
        self.heading("AUTHORITIES");
        for authority in authorities.iter().filter_map(Value::as_object) {
            let state = text(authority, "state");
            let age = authority.get("age_seconds").and_then(Value::as_i64).unwrap_or(0);
            let (begun, ends) = (moment(authority, "not_before"), moment(authority, "not_after"));
            let left = ends.map(|ends| relative(ends, self.now)).unwrap_or_default();
            // One that signs in the last fifth of its life should have been replaced at the half of it.
            let is_late =
                begun.zip(ends).is_some_and(|(begun, ends)| state == "active" && self.now > ends - (ends - begun) / 5);
            let tone = if is_late { Tone::Bad } else { Tone::Plain };
            let old = relative(self.now - time::Duration::seconds(age.max(0)), self.now);
            let id = text(authority, "id");
            let id = id.get(..12).unwrap_or(&id);
            let kind = text(authority, "kind");
            self.push(vec![(tone, format!("{kind:<12}  {state:<8}  {left:<12}  made {old:<10}  {id}"))]);
        }
    }

    fn weaker(&mut self, document: &Map<String, Value>) {
        let weaker = document.get("weaker").and_then(Value::as_array);
        let weaker: Vec<_> = weaker.into_iter().flatten().filter_map(Value::as_str).collect();
        if !weaker.is_empty() {
            self.heading("WEAKER");
        }
        for why in weaker {
            for (number, line) in wrap(&prose(why), self.columns.saturating_sub(2).max(1)).into_iter().enumerate() {
                let bullet = if number == 0 { "- " } else { "  " };
                self.push(vec![(Tone::Weak, format!("{bullet}{line}"))]);
            }
        }
    }

    fn heading(&mut self, text: &str) {
        self.push(Line::new());
        self.push(vec![(Tone::Plain, text.to_owned())]);
    }

    /// A label and what belongs to it, on as many lines as it takes.
    fn wrapped(&mut self, label: &str, tone: Tone, value: &str) {
        let indent = if self.columns < NARROW { 2 } else { LABEL_WIDTH };
        let mut lines = wrap(value, self.columns.saturating_sub(indent).max(1)).into_iter();
        if indent < label.chars().count() + 1 {
            self.push(vec![(Tone::Plain, label.to_owned())]);
        } else if let Some(first) = lines.next() {
            self.push(vec![(Tone::Plain, format!("{label:<indent$}")), (tone, first)]);
        }
        for line in lines {
            self.push(vec![(Tone::Plain, " ".repeat(indent)), (tone, line)]);
        }
    }

    fn push(&mut self, line: Line) {
        self.lines.push(clip(line, self.columns));
    }
}

/// `line` without what is beyond the edge.
fn clip(line: Line, columns: usize) -> Line {
    let mut left = columns;
    let mut clipped = Line::new();
    for (tone, text) in line {
        let count = text.chars().count();
        if count <= left {
            left -= count;
            clipped.push((tone, text));
            continue;
        }
        if left > 0 {
            clipped.push((tone, text.chars().take(left - 1).chain(['…']).collect()));
        }
        break;
    }
    clipped
}

/// `text` in lines of at most `width` characters, between words where that is possible.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let mut word: Vec<char> = word.chars().collect();
        let taken = lines.last().map_or(0, |line| line.chars().count());
        if taken > 0 && taken + 1 + word.len() <= width {
            lines.iter_mut().last().into_iter().for_each(|line| line.push(' '));
        } else if taken > 0 {
            lines.push(String::new());
        }
        while word.len() > width {
            let rest = word.split_off(width);
            lines.iter_mut().last().into_iter().for_each(|line| line.extend(word.iter()));
            lines.push(String::new());
            word = rest;
        }
        lines.iter_mut().last().into_iter().for_each(|line| line.extend(word.iter()));
    }
    lines
}

fn text(document: &Map<String, Value>, name: &str) -> String {
    document.get(name).and_then(Value::as_str).map(identifier).unwrap_or_default()
}

fn number(document: &Map<String, Value>, name: &str) -> u64 {
    document.get(name).and_then(Value::as_u64).unwrap_or(0)
}

fn moment(document: &Map<String, Value>, name: &str) -> Option<OffsetDateTime> {
    OffsetDateTime::parse(document.get(name)?.as_str()?, &Rfc3339).ok()
}

fn spaced(name: &str) -> String {
    identifier(&name.replace('_', " "))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::client::fake::NOW;

    fn document() -> Map<String, Value> {
        let document = json!({
            "trust_domain": "example.org", "node": "0123456789abcdef0123456789abcdef", "agent_version": "0.1.0",
            "started_at": "2026-11-22T09:00:00Z", "ready": false,
            "parts": {
                "agent": {"ready": true, "reason": null},
                "audit": {"ready": false, "reason": "the audit log cannot be written: no space left on device"},
            },
            "connections": 14, "connections_limit": 16384, "calls": 80, "calls_limit": 100,
            "streams": {"FetchJWTBundles": 2, "FetchX509SVID": 10},
            "renewals": {"within_seconds": 300, "due": 3, "overdue": 1},
            "sessions": {"active": 2, "pending_approval": 1},
            "instances": 14, "weak_instances": 2, "credentials": 120, "held_keys": 5, "crl": {"revoked": 7},
            "refusals": {"no_identity": 12}, "refused_connections": {},
            "entries": {"count": 5}, "policies": {"count": 1},
            "nodes": [{"node": "fedc", "heard": false, "since": "2026-11-22T11:59:00Z"}],
            "authorities": [
                {"id": "a1b2c3d4e5f60718", "kind": "x509-signing", "state": "active", "age_seconds": 75600,
                 "not_before": "2026-11-21T15:00:00Z", "not_after": "2026-11-22T15:00:00Z"},
                {"id": "b1", "kind": "jwt", "state": "prepared", "age_seconds": 60,
                 "not_before": "2026-11-22T11:59:00Z", "not_after": "2026-12-22T11:59:00Z"},
            ],
            "weaker": ["the kernel has no PIDFD_GET_INFO: \u{1b}[2J instances are held by weaker means"],
        });
        document.as_object().expect("an object").clone()
    }

    fn plain(lines: &[Line]) -> Vec<String> {
        lines.iter().map(|line| line.iter().map(|(_, text)| text.as_str()).collect()).collect()
    }

    #[test]
    fn everything_an_operator_looks_for_is_on_one_screen() {
        let lines = frame(&document(), None, NOW, Size { columns: 80, rows: 40 });
        let text = plain(&lines).join("\n");
        for expected in [
            "not ready  example.org  node 01234567  started 3h ago  0.1.0",
            "audit        the audit log cannot be written: no space left on device",
            "connections  14 of 16384",
            "streams      FetchJWTBundles 2 · FetchX509SVID 10",
            "renewals     3 in the next 5 minutes · 1 overdue",
            "sessions     active 2 · pending approval 1",
            "instances    14 · weak 2",
            "credentials  120 · keys held 5 · revoked 7",
            "refused      no identity 12",
            "cut          none",
            "node         fedc silent, since 1m ago",
            "x509-signing  active    3h left       made 21h ago     a1b2c3d4e5f6",
            "- the kernel has no PIDFD_GET_INFO: \\u{1b}[2J instances are held by weaker",
        ] {
            assert!(text.contains(expected), "{expected}\n{text}");
        }
        let tone = |start: &str| {
            let line = lines.iter().find(|line| plain(std::slice::from_ref(line))[0].starts_with(start));
            line.expect(start).iter().map(|(tone, _)| *tone).find(|tone| *tone != Tone::Plain).unwrap_or(Tone::Plain)
        };
        let expected = [
            ("not ready", Tone::Bad),
            ("connections", Tone::Plain),
            ("calls", Tone::Bad),
            ("renewals", Tone::Bad),
            ("sessions", Tone::Weak),
            ("x509-signing", Tone::Bad),
            ("jwt", Tone::Plain),
        ];
        for (start, expected) in expected {
            assert_eq!(tone(start), expected, "{start}");
        }
    }

    #[test]
    fn no_line_is_wider_and_no_screen_higher_than_the_terminal() {
        for columns in [1, 2, 10, 20, 47, 48, 80, 300] {
            for rows in [1, 2, 10, 50] {
                let lines = frame(&document(), Some("cannot reach the agent"), NOW, Size { columns, rows });
                assert!(lines.len() <= rows && !lines.is_empty(), "{columns}x{rows}: {} lines", lines.len());
                for line in plain(&lines) {
                    assert!(line.chars().count() <= columns, "{columns}x{rows}: {line}");
                }
            }
        }
        let cut = plain(&frame(&document(), None, NOW, Size { columns: 80, rows: 5 }));
        assert!(cut[4].starts_with("… ") && cut[4].contains("more lines"), "{cut:?}");
    }

    #[test]
    fn an_agent_that_does_not_answer_is_said_over_what_was_known_of_it() {
        let lines = plain(&frame(&document(), Some("cannot reach the agent"), NOW, Size { columns: 80, rows: 40 }));
        assert!(lines[0].starts_with("no answer  example.org") && lines[1].contains("cannot reach"), "{lines:?}");
    }

    #[test]
    fn an_older_agents_document_is_shown_as_far_as_it_goes() {
        let older = json!({"trust_domain": "example.org", "ready": true, "connections": 3});
        let lines = plain(&frame(older.as_object().expect("an object"), None, NOW, Size { columns: 80, rows: 40 }));
        assert!(lines.contains(&"connections  3".to_owned()), "{lines:?}");
    }
}
