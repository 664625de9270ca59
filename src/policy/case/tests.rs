use super::*;
use crate::policy::tests::set;

const CASES: &str = r#"
[[case]]
name = "mail is read"
agent = "spiffe://example.org/agent/mail"
user = { issuer = "https://login.example.com", subject = "alice", acr = "mfa" }
session = { purpose = "mail", targets = ["https://mail.example.com/"], lifetime = "1h" }
action = "call"
tool = { uri = "https://mail.example.com/inbox", method = "GET" }
time = "2026-03-01T09:30:00Z"
expect = "allow"
policies = ["mail"]

[[case]]
agent = "spiffe://example.org/agent/mail"
user = { kind = "local", subject = "bob", node = "0" }
session = { purpose = "mail" }
action = "call"
tool = { uri = "https://mail.example.com/inbox", method = "POST" }
expect = "step_up"

[[case]]
agent = "spiffe://example.org/agent/mail"
action = "issue"
issue = { kind = "x509", binding = 1 }
expect = "allow"
"#;

const POLICIES: &str = r#"
@id("mail")
permit(principal, action == Action::"read", resource) when {
  context.purpose == "mail" && context has user && context.user has acr && context.session.lifetime_seconds == 3600
};
@id("send") @step_up("sends mail")
permit(principal, action == Action::"write", resource) when { context has user && context.user == User::"bob@0" };
"#;

#[test]
fn a_case_asks_what_it_says() {
    let set = set(POLICIES);
    let cases = read_cases(Path::new("c.toml"), CASES).unwrap();
    assert_eq!(cases.iter().map(|case| case.line).collect::<Vec<_>>(), [2, 13, 21]);
    assert_eq!(cases[1].name, "case 2");
    for case in cases {
        let decision = case.ask(OffsetDateTime::UNIX_EPOCH, |question| set.decide(question));
        assert_eq!(Some(Expect::of(&decision)), case.expect, "{}: {decision:?}", case.name);
        assert!(case.policies.is_none_or(|expected| *expected == *decision.policies), "{decision:?}");
    }
}

#[test]
fn a_case_that_cannot_be_asked_says_where_and_why() {
    let agent = "[[case]]\nagent = \"spiffe://td/a\"\n";
    let rows = [
        (String::new(), "c.toml:1:1: missing field `case`"),
        ("case = []".to_owned(), "c.toml: there is no case: write `[[case]]` and what it asks"),
        ("[[case]]\nagent = 7\n".to_owned(), "c.toml:2:9: invalid type: integer `7`, expected a string"),
        (
            "[[case]]\nagent = \"x\"\naction = \"start\"".to_owned(),
            "c.toml:1:1: `agent` is no SPIFFE ID: a SPIFFE ID begins with `spiffe://`",
        ),
        (
            format!("{agent}action = \"go\""),
            "c.toml:1:1: `action` is issue, start, delegate, mint, call, read, write, irreversible, reach or classify, not `go`",
        ),
        (format!("{agent}action = \"start\""), "c.toml:1:1: `start` needs `session = { purpose = .. }`"),
        (format!("{agent}action = \"read\"\nsession = {{}}"), "c.toml:1:1: `read` needs `tool = { uri = .. }`"),
        (
            format!("{agent}action = \"issue\"\nissue = {{ kind = \"x508\" }}"),
            "c.toml:1:1: `issue` needs `issue = { kind = \"x509\", \"jwt\" or \"wit\" }`",
        ),
        (
            format!("{agent}action = \"start\"\nsession = {{}}\neffect = \"read\""),
            "c.toml:1:1: `effect` goes with action = \"call\" or \"reach\" alone",
        ),
        (
            format!("{agent}action = \"start\"\nsession = {{ lifetime = \"long\" }}"),
            "c.toml:1:1: `session.lifetime`: `long` is not a lifetime: write numbers with the units d, h, m and s, for example `15m` or `1h30m`",
        ),
        (
            format!("{agent}action = \"start\"\nsession = {{}}\ntime = \"noon\""),
            "c.toml:1:1: `time` is a text such as \"2026-03-01T09:30:00Z\"",
        ),
        (
            format!("{agent}action = \"start\"\nsession = {{}}\nuser = {{ kind = \"root\" }}"),
            "c.toml:1:1: `user.kind` is local or oidc, not `root`",
        ),
        (
            format!("{agent}action = \"start\"\nsesion = {{}}"),
            "c.toml:4:1: unknown field `sesion`, expected one of `name`, `agent`, `entry`, `owner`, `user`, `session`, `action`, `effect`, `tool`, `issue`, `reach`, `approved`, `time`, `expect`, `policies`",
        ),
    ];
    let mut wrong = Vec::new();
    for (text, expected) in rows {
        let found: Vec<_> =
            read_cases(Path::new("c.toml"), &text).unwrap_err().iter().map(ToString::to_string).collect();
        if found != [expected] {
            wrong.push(format!("{text:?}: {found:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
