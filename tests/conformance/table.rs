//! What the table is made of, and what keeps it complete.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::rules;

/// One rule of the checklist.
pub struct Rule {
    /// Its id there.
    pub id: &'static str,
    /// Whom it binds: `iss`uer, `val`idator, `end`point, bundle `pub`lisher, `cli`ent.
    pub binds: &'static str,
    /// What holds, in one sentence.
    pub says: &'static str,
    /// How that is shown.
    pub shown: Shown,
}

/// How a rule is shown.
pub enum Shown {
    /// By a test over the real socket.
    Test(fn()),
    /// By a test of the library, where no socket leads to what the rule is about.
    Library(fn()),
    /// By a test that needs something of the host; where that is missing the test is ignored with the reason.
    TestIf(fn() -> bool, &'static str, fn()),
    /// By a unit test: its file and its name.
    Unit(&'static str, &'static str),
    /// By the test of another rule.
    As(&'static str),
    /// By reading: what to look at, and where.
    Review(&'static str),
    /// Not yet: why, and a test that fails until it is.
    #[allow(dead_code, reason = "the best table has none")]
    Gap(&'static str, fn()),
    /// It binds something that tether is not: what.
    NotOurs(&'static str),
}

/// Every id of the checklist's sections 1 to 8 and 11: prefix, and the highest number.
const SECTIONS: [(&str, &str, usize); 9] = [
    ("What is incubating", "STA", 3),
    ("SPIFFE ID", "ID", 18),
    ("X509-SVID", "X509", 30),
    ("JWT-SVID", "JWT", 22),
    ("WIT-SVID", "WIT", 32),
    ("Workload Endpoint", "EP", 21),
    ("Workload API", "WL", 48),
    ("SPIFFE bundle and bundle map", "BUN", 20),
    ("Where the standard leaves a choice", "AMB", 11),
];

/// All rules, in the order of the checklist.
pub fn rules() -> impl Iterator<Item = &'static Rule> {
    let parts: [&[Rule]; 14] = [
        rules::incubating::RULES,
        rules::id::RULES,
        rules::x509_issuer::RULES,
        rules::x509_validator::RULES,
        rules::jwt_issuer::RULES,
        rules::jwt_validator::RULES,
        rules::wit_issuer::RULES,
        rules::wit_validator::RULES,
        rules::endpoint::RULES,
        rules::workload::RULES,
        rules::stream::RULES,
        rules::client::RULES,
        rules::bundle::RULES,
        rules::choice::RULES,
    ];
    let mut all: Vec<&'static Rule> = parts.into_iter().flatten().collect();
    let ids = expected();
    all.sort_by_key(|rule| ids.iter().position(|id| id == rule.id));
    all.into_iter()
}

fn expected() -> Vec<String> {
    SECTIONS.iter().flat_map(|(_, prefix, last)| (1..=*last).map(move |n| format!("{prefix}-{n:02}"))).collect()
}

/// Every rule is there once, and no other.
pub fn complete() -> Result<(), String> {
    let mut count: BTreeMap<String, usize> = expected().into_iter().map(|id| (id, 0)).collect();
    for rule in rules() {
        match count.get_mut(rule.id) {
            Some(count) => *count += 1,
            None => return Err(format!("the checklist has no rule `{}`", rule.id)),
        }
    }
    for rule in rules() {
        if let Shown::As(other) = rule.shown
            && !rules().any(|rule| rule.id == other && matches!(rule.shown, Shown::Test(_) | Shown::TestIf(..)))
        {
            return Err(format!("`{}` is said to be shown by `{other}`, which is no test", rule.id));
        }
    }
    let wrong: Vec<_> = count.into_iter().filter(|(_, count)| *count != 1).collect();
    if wrong.is_empty() { Ok(()) } else { Err(format!("not in the table exactly once: {wrong:?}")) }
}

/// The README is what [`render`] writes; with `TETHER_WRITE_README=1` it is written.
pub fn readme() -> Result<(), String> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/conformance/README.md");
    let text = render();
    if std::env::var_os("TETHER_WRITE_README").is_some() {
        return std::fs::write(path, text).map_err(|error| error.to_string());
    }
    match std::fs::read_to_string(path) {
        Ok(there) if there == text => Ok(()),
        _ => Err("run `TETHER_WRITE_README=1 cargo test --test conformance` and look at what changed".to_owned()),
    }
}

fn render() -> String {
    let mut out = String::from(HEAD);
    let count = |wanted: fn(&Shown) -> bool| rules().filter(|rule| wanted(&rule.shown)).count();
    let _ = writeln!(
        out,
        "\n{} rules: {} by a test over the socket, {} by a test of the library, {} by a unit test, {} by another rule's test, {} by review, {} gaps, {} that bind something tether is not.",
        rules().count(),
        count(|shown| matches!(shown, Shown::Test(_) | Shown::TestIf(..))),
        count(|shown| matches!(shown, Shown::Library(_))),
        count(|shown| matches!(shown, Shown::Unit(..))),
        count(|shown| matches!(shown, Shown::As(_))),
        count(|shown| matches!(shown, Shown::Review(_))),
        count(|shown| matches!(shown, Shown::Gap(..))),
        count(|shown| matches!(shown, Shown::NotOurs(_))),
    );
    for (title, prefix, _) in SECTIONS {
        let _ = write!(out, "\n## {title}\n\n| rule | binds | what holds | shown by |\n|---|---|---|---|\n");
        let prefix = format!("{prefix}-");
        for rule in rules().filter(|rule| rule.id.starts_with(&prefix)) {
            let shown = match &rule.shown {
                Shown::Test(_) => "test".to_owned(),
                Shown::Library(_) => "test of the library".to_owned(),
                Shown::As(other) => format!("the test of {other}"),
                Shown::TestIf(_, otherwise, _) => format!("test ({otherwise})"),
                Shown::Unit(file, test) => format!("unit test `{test}` in `{file}`"),
                Shown::Review(why) => format!("**review**: {why}"),
                Shown::Gap(reason, _) => format!("**gap**: {reason}"),
                Shown::NotOurs(why) => format!("not ours: {why}"),
            };
            let _ = writeln!(out, "| {} | {} | {} | {shown} |", rule.id, rule.binds, rule.says);
        }
    }
    out
}

const HEAD: &str = "\
# Conformance with SPIFFE

Written from the table in `rules/` by `TETHER_WRITE_README=1 cargo test --test conformance`; a test compares the two.

Tests run the real agent in this process and speak to its real sockets; only the clock is faked. The ids are those of the
checklist this project derives from the SPIFFE specifications (commit 665a28f): `iss` binds an issuer of SVIDs, `val` a
validator, `end` an endpoint, `pub` a publisher of bundles, `cli` a client.

The Workload API has no call that validates an X509-SVID, so those rules are shown on `tether::x509::verify`, the
one function that believes a certificate. Their certificates are made by another implementation (rcgen). Nor has it one
that validates a WIT-SVID: those rules are shown on `tether::wit::validate`, with tokens that the test signs itself.

Client rules run `tether::client` over a socket against a server that says what the test tells it to.

A gap is listed as an ignored test; beside it runs a test that fails as soon as the gap is closed.
";
