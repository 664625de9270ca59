use time::macros::datetime;

use super::*;

fn rules() -> Rules {
    Rules::new(TrustDomain::parse("td").expect("valid"))
}

fn file() -> Source {
    Source::File(Path::new("/e/a.toml").into())
}

fn parse(text: &str) -> Result<Vec<Entry>, Vec<Mistake>> {
    parse_entries(text, &file(), &rules())
}

/// The mistakes of a text as a person reads them, without the path.
fn mistakes(text: &str) -> Vec<String> {
    let mistakes = parse(text).expect_err("a mistake");
    mistakes.iter().map(|m| m.to_string().trim_start_matches("/e/a.toml:").to_owned()).collect()
}

const FULL: &str = r#"
[[entry]]
id = "billing-api"
spiffe_id = "spiffe://td/unit/{systemd.name}"
match = ["systemd:unit:billing.service", "unix:user:billing"]
unless = ["unix:uid:0"]
owner = "team-billing@example.org"
hint = "internal"
x509_ttl = "15m"
jwt_ttl = "5m"
credential_ttl = "12h"
audiences = ["https://api.example.com"]
serves = ["https://tool.example.com/"]
may_act_for = ["spiffe://td/agent/*"]
dns_names = ["billing.example.org"]
federates_with = ["partner.example"]
bind = "unit"
single_use = true
exportable = true
disabled = true
expires_at = "2027-03-01T00:00:00Z"
"#;

#[test]
fn every_field_is_read() {
    let entries = parse(FULL).expect("no mistakes");
    let [entry] = entries.as_slice() else { panic!("one entry") };
    let texts = |list: &[Box<str>]| list.iter().map(|text| text.to_string()).collect::<Vec<_>>();
    assert_eq!(entry.id().as_str(), "billing-api");
    assert_eq!(entry.spiffe_id().as_str(), "spiffe://td/unit/{systemd.name}");
    assert_eq!(format!("{:?}", entry.matches()), "[systemd:unit:billing.service, unix:user:billing]");
    assert_eq!(format!("{:?}", entry.unless()), "[unix:uid:0]");
    assert_eq!(entry.owner(), Some("team-billing@example.org"));
    assert_eq!(entry.hint(), Some("internal"));
    assert_eq!(entry.x509_ttl(), Some(Duration::from_secs(900)));
    assert_eq!(entry.jwt_ttl(), Some(Duration::from_secs(300)));
    assert_eq!(entry.credential_ttl(), Some(Duration::from_secs(12 * 3600)));
    assert_eq!(texts(entry.audiences()), ["https://api.example.com"]);
    assert!(entry.allows_audience("https://api.example.com") && !entry.allows_audience("https://api.example.com/"));
    assert_eq!(texts(entry.serves()), ["https://tool.example.com/"]);
    assert_eq!(texts(entry.may_act_for()), ["spiffe://td/agent/*"]);
    assert_eq!(texts(entry.dns_names()), ["billing.example.org"]);
    assert_eq!(entry.federates_with(), [TrustDomain::parse("partner.example").expect("valid")]);
    assert_eq!(entry.bind(), Bind::Unit);
    assert!(entry.is_single_use() && entry.is_exportable() && entry.is_disabled());
    assert_eq!(entry.expires_at(), Some(datetime!(2027-03-01 0:00 UTC)));
    assert_eq!(entry.origin().to_string(), "file /e/a.toml:2");
}

#[test]
fn what_is_left_out_has_its_default() {
    let text = "entry = [{ spiffe_id = 'spiffe://td/a', match = ['unix:uid:1'], owner = 'o' }]";
    let entries = parse(text).expect("no mistakes");
    let [entry] = entries.as_slice() else { panic!("one entry") };
    assert_eq!((entry.bind(), entry.is_exportable(), entry.is_disabled()), (Bind::Process, false, false));
    assert!(!entry.is_single_use());
    assert_eq!((entry.x509_ttl(), entry.jwt_ttl(), entry.expires_at(), entry.hint()), (None, None, None, None));
    assert!(!entry.allows_audience("a"), "no audiences, no tokens");
    assert!(entry.unless().is_empty() && entry.serves().is_empty() && entry.dns_names().is_empty());
}

#[test]
fn an_id_that_is_left_out_depends_on_what_the_entry_gives_to_whom_and_on_nothing_else() {
    let id = |fields: &str| {
        let text = format!("[[entry]]\nowner = 'o'\n{fields}");
        parse(&text).expect("no mistakes")[0].id().to_string()
    };
    let first = id("spiffe_id = 'spiffe://td/a'\nmatch = ['unix:uid:1', 'unix:gid:1']");
    assert!(first.starts_with("auto-"));
    assert_eq!(first, id("match = ['unix:gid:1', 'unix:uid:1']\nhint = 'h'\nspiffe_id = 'spiffe://td/a'"));
    assert_ne!(first, id("spiffe_id = 'spiffe://td/b'\nmatch = ['unix:uid:1', 'unix:gid:1']"));
    assert_ne!(first, id("spiffe_id = 'spiffe://td/a'\nmatch = ['unix:uid:1']\nunless = ['unix:gid:1']"));
}

#[test]
fn an_entry_written_as_toml_is_read_back_as_the_same_entry() {
    let minimal = "[[entry]]\nspiffe_id = 'spiffe://td/a'\nmatch = ['unix:path:/a \"b\\c']\nowner = 'o'";
    for text in [FULL, minimal] {
        let source = Source::Store { revision: 3, created_at: datetime!(2026-01-01 0:00 UTC) };
        let entry = parse_entry(text, &source, &rules()).expect("no mistakes");
        let again = parse_entry(&entry.to_toml(), &source, &rules()).expect("no mistakes");
        assert!(entry == again, "{}", entry.to_toml());
    }
}

#[test]
fn one_entry_may_be_given_as_a_table_or_as_its_bare_fields_and_must_be_one() {
    let fields = "spiffe_id = 'spiffe://td/a'\nmatch = ['unix:uid:1']\nowner = 'o'\n";
    let one = |text: &str| parse_entry(text, &Source::BuiltIn, &rules());
    let bare = one(fields).expect("bare fields");
    assert!(bare == one(&format!("[[entry]]\n{fields}")).expect("a table"));
    assert_eq!(bare.origin(), &Origin::BuiltIn);
    let texts = |text: &str| one(text).expect_err("refused").iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(texts(""), [" expected exactly one `[[entry]]` table"]);
    let two = format!("[[entry]]\n{fields}[[entry]]\n{fields}");
    assert_eq!(texts(&two), [" expected exactly one `[[entry]]` table"]);
    assert_eq!(
        texts("spiffe_id = 'spiffe://td/a'\nowner = 'o'\nmatch = ['x']"),
        ["3:10: `x` is not a selector: write `type:key:value`, for example `unix:uid:1000`"]
    );
}

/// Lines that are added to a good entry, at line 5, and the mistake they make.
#[test]
fn every_kind_of_mistake_is_found_at_its_place() {
    let long = "h".repeat(1025);
    let cases: &[(&str, &str)] = &[
        ("id = 'a b'", "5:6: `a b` is not an entry id: use 1 to 255 letters, digits, `.`, `_` and `-`"),
        ("id = ''", "5:6: `` is not an entry id: use 1 to 255 letters, digits, `.`, `_` and `-`"),
        ("id = 7", "5:6: `id` must be a text in quotes, not an integer"),
        ("hint = ''", "5:8: the hint is empty: leave it out"),
        (&format!("hint = '{long}'"), "5:8: the hint has 1025 bytes; at most 1024 are allowed"),
        ("x509_ttl = 900", "5:12: `x509_ttl` must be a text with a unit, for example `\"15m\"`, not an integer"),
        (
            "x509_ttl = '15'",
            "5:12: `15` is not a lifetime: write numbers with the units d, h, m and s, for example `15m` or `1h30m`",
        ),
        ("x509_ttl = '0s'", "5:12: a lifetime of zero is no lifetime: leave the key out to get the default"),
        ("x509_ttl = '25h'", "5:12: the longest lifetime allowed here is `1d`, not `25h`"),
        ("jwt_ttl = '61m'", "5:11: the longest lifetime allowed here is `1h`, not `61m`"),
        (
            "credential_ttl = '1h'",
            "5:18: a credential of a systemd unit is a key in a file: it needs `exportable = true`",
        ),
        ("audiences = 'a'", "5:13: `audiences` must be a list of texts, for example `[\"a\", \"b\"]`, not a string"),
        ("audiences = ['a', '']", "5:19: an audience is empty: write the audience, or `[\"*\"]` for any"),
        ("audiences = ['a', '*']", "5:13: `*` in `audiences` already stands for all: leave the others out"),
        ("audiences = ['a', 'a']", "5:19: `a` is there twice"),
        ("audiences = [true]", "5:14: `audiences` must be a list of texts, not a boolean"),
        (
            "serves = ['tool']",
            "5:11: `tool` is not a URI prefix: write for example `https://tool.example.com/`, or `*` for any (a target is an absolute URI with `http` or `https`, such as `https://tool.example.com/path`)",
        ),
        ("serves = ['*', 'https://a']", "5:10: `*` in `serves` already stands for all: leave the others out"),
        (
            "may_act_for = ['spiffe://td/a*']",
            "5:16: `spiffe://td/a*` is not a SPIFFE ID, nor one with `/*` at its end for all below: \
             a path segment has only the characters A-Z, a-z, 0-9, `.`, `-` and `_`, not `*`",
        ),
        (
            "may_act_for = ['spiffe://other/*']",
            "5:16: `spiffe://other/*` is not in the trust domain `td`: a process acts for local processes only",
        ),
        ("dns_names = ['a_b']", "5:14: `a_b` is not a DNS name: write for example `billing.example.org`"),
        ("dns_names = ['10.0.0.1']", "5:14: `10.0.0.1` is an address, not a DNS name"),
        (
            "federates_with = ['Partner']",
            "5:19: `Partner` is not a trust domain: \
             a trust domain has only the characters a-z, 0-9, `.`, `-` and `_`, not `P`",
        ),
        (
            "federates_with = ['td']",
            "5:19: `td` is the agent's own trust domain, whose bundle everyone gets: leave it out",
        ),
        ("bind = 'pod'", "5:8: `pod` is not something to bind to: write `process`, `unit` or `node`"),
        ("exportable = 'yes'", "5:14: `exportable` must be `true` or `false`, not a string"),
        (
            "exportable = true",
            "5:14: files outlive a process: an exportable entry needs `bind = \"unit\"` or `bind = \"node\"`",
        ),
        ("single_use = 1", "5:14: `single_use` must be `true` or `false`, not an integer"),
        (
            "single_use = true",
            "5:14: only JWT-SVIDs are used once, and without `audiences` this entry gives none: add them",
        ),
        (
            "single_use = true\naudiences = []",
            "5:14: only JWT-SVIDs are used once, and without `audiences` this entry gives none: add them",
        ),
        ("disabled = 1", "5:12: `disabled` must be `true` or `false`, not an integer"),
        (
            "expires_at = 'tomorrow'",
            "5:14: `tomorrow` is not a time with its offset: write for example `2027-03-01T00:00:00Z`",
        ),
        (
            "expires_at = 2027-03-01",
            "5:14: `2027-03-01` is not a time with its offset: write for example `2027-03-01T00:00:00Z`",
        ),
        ("unless = ['unix:uid:1']", "5:10: `unix:uid:1` is also in `match`: this entry could never match"),
        ("unless = ['unix:uid:x']", "5:11: `unix:uid:x` can never match: `x` is not a number as the kernel writes it"),
        ("hintt = 'x'", "5:1: unknown key `hintt`: did you mean `hint`?"),
        (
            "selectors = []",
            "5:1: unknown key `selectors`: an entry has id, spiffe_id, match, unless, owner, hint, x509_ttl, jwt_ttl, \
             credential_ttl, audiences, serves, may_act_for, dns_names, federates_with, bind, single_use, exportable, \
             disabled, expires_at",
        ),
    ];
    for (line, expected) in cases {
        let text = format!("[[entry]]\nspiffe_id = 'spiffe://td/a'\nmatch = ['unix:uid:1']\nowner = 'o'\n{line}\n");
        assert_eq!(mistakes(&text), [*expected], "{line}");
    }
}

/// Whole texts and all of their mistakes.
#[test]
fn mistakes_in_required_fields_and_in_the_whole_are_found_too() {
    let cases: &[(&str, &[&str])] = &[
        (
            "[[entry]]\n",
            &[
                "1:1: `match` is missing: write the selectors that must all hold",
                "1:1: `owner` is missing: name who answers for this entry",
                "1:1: `spiffe_id` is missing: write the SPIFFE ID this entry gives",
            ],
        ),
        (
            "[[entry]]\nspiffe_id = 'spiffe://other/a'\nmatch = []\nowner = ' '\n",
            &[
                "2:13: `spiffe://other/a` is not in the trust domain of this agent: begin with `spiffe://td/`",
                "3:9: `match` is empty, which would match every process: write at least one selector",
                "4:9: the owner is empty: name who answers for this entry",
            ],
        ),
        (
            "[[entry]]\nspiffe_id = 'spiffe://td/tether/x'\nmatch = ['unix:uid:1', 'k8s:ns:a', 'docker:image-signature:x']\n\
             owner = 'o'\n",
            &[
                "2:13: the path `/tether` is reserved for the agent itself: choose another",
                "3:24: `k8s:ns:a` is not a selector this agent knows; \
                 the kinds are listed by `tether explain --kinds`",
                "3:36: `docker:image-signature:x` is not a selector this agent knows; \
                 the kinds are listed by `tether explain --kinds`",
            ],
        ),
        (
            "[[entry]]\nspiffe_id = 'spiffe://td/a b'\nmatch = ['unix:uid:1']\nowner = 'o'\n",
            &["2:13: `spiffe://td/a b` is not a SPIFFE ID: \
               a path segment has only the characters A-Z, a-z, 0-9, `.`, `-` and `_`, not ` `"],
        ),
        (
            "[[entry]]\nspiffe_id = 'spiffe://td/{unix.name}'\nmatch = ['systemd:user_unit:a.service']\nowner = 'o'\n",
            &[
                "2:13: `unix.name` in a placeholder is not a kind of selector: \
                 write `type.key`, for example `{systemd.name}`",
                "3:9: users name their own units: add a `unix:uid` or `unix:user` selector beside `systemd:user_unit`",
            ],
        ),
        (
            "[[entry]]\nspiffe_id = 'spiffe://td/{systemd.user_unit}'\nmatch = ['systemd:slice:a.slice']\nowner = 'o'\n",
            &["3:9: users name their own units: add a `unix:uid` or `unix:user` selector beside `systemd:user_unit`"],
        ),
        ("[entry]\n", &["1:2: `entry` is a list of tables: write `[[entry]]` with two brackets"]),
        ("entry = [1]\n", &["1:10: `entry` is a list of tables: write `[[entry]]`"]),
        ("[[entries]]\n", &["1:3: unknown key `entries`: a file has only `[[entry]]` tables"]),
    ];
    for (text, expected) in cases {
        assert_eq!(mistakes(text), *expected, "{text}");
    }
}

#[test]
fn all_mistakes_of_all_entries_are_reported_in_the_order_of_the_text() {
    let text =
        "[[entry]]\nid = 'a b'\nspiffe_id = 1\n\n[[entry]]\nspiffe_id = 'spiffe://td/a'\nmatch = 'x'\nowner = 'o'\n";
    let expected = [
        "1:1: `match` is missing: write the selectors that must all hold",
        "1:1: `owner` is missing: name who answers for this entry",
        "2:6: `a b` is not an entry id: use 1 to 255 letters, digits, `.`, `_` and `-`",
        "3:13: `spiffe_id` must be a text in quotes, not an integer",
        "7:9: `match` must be a list of texts, for example `[\"a\", \"b\"]`, not a string",
    ];
    assert_eq!(mistakes(text), expected);
}

#[test]
fn broken_toml_is_reported_at_its_places_and_nothing_is_guessed_from_the_rest() {
    let found = mistakes("[[entry]]\nid = \n\n[[entry]]\nid = 'a'\nid = 'b'\nunknown = 1\n");
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].starts_with("2:"), "{found:?}");
    assert!(found[1].starts_with("6:1: duplicate key"), "{found:?}");
}

#[test]
fn owners_are_optional_where_the_rules_say_so() {
    let rules = Rules { owner_required: false, ..rules() };
    let text = "[[entry]]\nspiffe_id = 'spiffe://td/a'\nmatch = ['unix:uid:1']\n";
    let entries = parse_entries(text, &file(), &rules).expect("no mistakes");
    assert_eq!(entries[0].owner(), None);
}

#[test]
fn whether_an_entry_depends_on_the_executable_is_seen_in_match_unless_and_template() {
    let depends = |spiffe_id: &str, matches: &str, unless: &str| {
        let text = format!(
            "[[entry]]\nowner = 'o'\nspiffe_id = 'spiffe://td/{spiffe_id}'\nmatch = ['{matches}']\nunless = [{unless}]"
        );
        parse(&text).expect("no mistakes")[0].depends_on_executable()
    };
    assert!(!depends("a", "unix:uid:1", ""));
    assert!(depends("a", "unix:path:/a", ""));
    assert!(depends("a", "unix:uid:1", "'unix:path:/a'"));
    assert!(depends("{unix.sha256}", "unix:uid:1", ""));
}
