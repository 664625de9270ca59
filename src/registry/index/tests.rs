use proptest::prelude::*;
use time::macros::datetime;

use super::*;
use crate::attest::Gap;
use crate::id::TrustDomain;
use crate::registry::parse::{Rules, Source, parse_entries};

const NOW: OffsetDateTime = datetime!(2026-01-01 0:00 UTC);

fn rules() -> Rules {
    Rules { owner_required: false, ..Rules::new(TrustDomain::parse("td").expect("valid")) }
}

fn entries(text: &str, source: &Source) -> Vec<Arc<Entry>> {
    parse_entries(text, source, &rules()).expect("no mistakes").into_iter().map(Arc::new).collect()
}

fn from_file(name: &str, text: &str) -> Vec<Arc<Entry>> {
    entries(text, &Source::File(std::path::Path::new(name).into()))
}

fn from_store(created_at: OffsetDateTime, text: &str) -> Vec<Arc<Entry>> {
    entries(text, &Source::Store { revision: 1, created_at })
}

fn index(text: &str) -> Index {
    Index::build(1, from_file("/a.toml", text))
}

fn evidence(facts: &[&str]) -> Evidence {
    Evidence { selectors: facts.iter().map(|f| Selector::parse(f).expect("valid")).collect(), ..Evidence::default() }
}

fn ids(matched: &Matched) -> Vec<&str> {
    matched.identities.iter().map(|identity| identity.entry.id().as_str()).collect()
}

fn unavailable(matched: &Matched) -> Vec<&str> {
    matched.unavailable.iter().map(|unavailable| unavailable.entry.id().as_str()).collect()
}

const NO_BUS: Gap = Gap { kind: "systemd", keys: &[], why: String::new() };

#[test]
fn all_of_match_must_hold_and_any_of_unless_forbids() {
    let index = index(
        "[[entry]]\nid = 'both'\nspiffe_id = 'spiffe://td/both'\nmatch = ['unix:uid:1', 'unix:gid:2']\n\
         [[entry]]\nid = 'not'\nspiffe_id = 'spiffe://td/not'\nmatch = ['unix:uid:1']\nunless = ['unix:gid:2', 'unix:gid:3']\n",
    );
    let cases: &[(&[&str], &[&str])] = &[
        (&["unix:uid:1", "unix:gid:2"], &["both"]),
        (&["unix:uid:1", "unix:gid:3"], &[]),
        (&["unix:uid:1", "unix:gid:4"], &["not"]),
        (&["unix:uid:1"], &["not"]),
        (&["unix:uid:2", "unix:gid:2"], &[]),
        (&[], &[]),
    ];
    for (facts, expected) in cases {
        assert_eq!(ids(&index.matching(&evidence(facts), NOW)), *expected, "{facts:?}");
    }
}

#[test]
fn expired_and_disabled_entries_do_not_match_and_the_next_expiry_is_known() {
    let index = index(
        "[[entry]]\nid = 'off'\nspiffe_id = 'spiffe://td/1'\nmatch = ['unix:uid:1']\ndisabled = true\n\
         [[entry]]\nid = 'over'\nspiffe_id = 'spiffe://td/2'\nmatch = ['unix:uid:1']\nexpires_at = 2026-01-01T00:00:00Z\n\
         [[entry]]\nid = 'on'\nspiffe_id = 'spiffe://td/3'\nmatch = ['unix:uid:1']\nexpires_at = 2026-01-01T00:00:01Z\n",
    );
    assert_eq!(ids(&index.matching(&evidence(&["unix:uid:1"]), NOW)), ["on"]);
    let next = index.next_expiry(NOW).expect("one is left");
    assert_eq!(next, datetime!(2026-01-01 0:00:01 UTC));
    assert!(index.matching(&evidence(&["unix:uid:1"]), next).identities.is_empty());
    assert_eq!(index.next_expiry(next), None);
}

#[test]
fn what_could_not_be_found_out_makes_unavailable_unless_a_known_fact_decides() {
    let index = index(
        "[[entry]]\nid = 'match'\nspiffe_id = 'spiffe://td/1'\nmatch = ['systemd:unit:a.service', 'unix:uid:1']\n\
         [[entry]]\nid = 'unless'\nspiffe_id = 'spiffe://td/2'\nmatch = ['unix:uid:1']\nunless = ['systemd:unit:a.service']\n\
         [[entry]]\nid = 'template'\nspiffe_id = 'spiffe://td/{systemd.name}'\nmatch = ['unix:uid:1']\n\
         [[entry]]\nid = 'only'\nspiffe_id = 'spiffe://td/3'\nmatch = ['systemd:unit:a.service']\n\
         [[entry]]\nid = 'other'\nspiffe_id = 'spiffe://td/4'\nmatch = ['unix:uid:1']\n",
    );
    let mut facts = evidence(&["unix:uid:1"]);
    facts.gaps = vec![NO_BUS];
    let matched = index.matching(&facts, NOW);
    assert_eq!(ids(&matched), ["other"]);
    assert_eq!(unavailable(&matched), ["match", "unless", "template", "only"]);
    assert!(!matched.more_unavailable);

    let mut other_user = evidence(&["unix:uid:2"]);
    other_user.gaps = vec![NO_BUS];
    assert_eq!(unavailable(&index.matching(&other_user, NOW)), ["only"], "the uid already says no to the others");
}

#[test]
fn with_an_attestor_down_a_few_unavailable_entries_are_named_and_all_others_are_known_to_exist() {
    let text: String = (0..100)
        .map(|n| {
            format!("[[entry]]\nid = 'e{n}'\nspiffe_id = 'spiffe://td/{n}'\nmatch = ['systemd:unit:u{n}.service']\n")
        })
        .collect();
    let mut facts = evidence(&["unix:uid:1"]);
    facts.gaps = vec![NO_BUS];
    let matched = index(&text).matching(&facts, NOW);
    assert_eq!(matched.unavailable.len(), Matched::MAX_UNAVAILABLE);
    assert_eq!(unavailable(&matched)[..2], ["e0", "e1"]);
    assert!(matched.more_unavailable);
}

#[test]
fn identities_are_ordered_by_file_and_place_then_by_age_in_the_store_then_built_in() {
    let entry = |id: &str| format!("[[entry]]\nid = '{id}'\nspiffe_id = 'spiffe://td/{id}'\nmatch = ['unix:uid:1']\n");
    let mut all = entries(&entry("built-in"), &Source::BuiltIn);
    all.extend(from_store(datetime!(2025-01-02 0:00 UTC), &entry("store-young")));
    all.extend(from_store(datetime!(2025-01-01 0:00 UTC), &entry("store-old-b")));
    all.extend(from_store(datetime!(2025-01-01 0:00 UTC), &entry("store-old-a")));
    all.extend(from_file("/b.toml", &entry("b")));
    all.extend(from_file("/a.toml", &format!("{}{}", entry("z-first"), entry("a-second"))));
    let index = Index::build(7, all);
    let expected = ["z-first", "a-second", "b", "store-old-a", "store-old-b", "store-young", "built-in"];
    assert_eq!(ids(&index.matching(&evidence(&["unix:uid:1"]), NOW)), expected);
    assert_eq!(index.generation(), 7);
    for id in expected {
        assert_eq!(index.entry(id).map(|entry| entry.id().as_str()), Some(id));
    }
    assert!(index.entry("nobody").is_none());
}

#[test]
fn the_first_entry_keeps_a_spiffe_id_and_a_hint_and_explain_names_it() {
    let index = index(
        "[[entry]]\nid = 'first'\nspiffe_id = 'spiffe://td/u/1'\nmatch = ['unix:uid:1']\nhint = 'h'\n\
         [[entry]]\nid = 'same-id'\nspiffe_id = 'spiffe://td/u/{unix.uid}'\nmatch = ['unix:uid:1']\nhint = 'other'\n\
         [[entry]]\nid = 'same-hint'\nspiffe_id = 'spiffe://td/b'\nmatch = ['unix:uid:1']\nhint = 'h'\n\
         [[entry]]\nid = 'free-hint'\nspiffe_id = 'spiffe://td/c'\nmatch = ['unix:uid:1']\nhint = 'other'\n",
    );
    let facts = evidence(&["unix:uid:1"]);
    let matched = index.matching(&facts, NOW);
    let got: Vec<_> = matched.identities.iter().map(|i| (i.entry.id().as_str(), i.hint())).collect();
    assert_eq!(got, [("first", Some("h")), ("same-hint", None), ("free-hint", Some("other"))]);

    let verdicts: Vec<Verdict> = index.explain(&facts, NOW).into_iter().map(|explained| explained.verdict).collect();
    let no = "entry `first` comes first and already gives `spiffe://td/u/1`";
    assert_eq!(verdicts[1], Verdict::NoMatch { reasons: vec![no.to_owned()] });
    let note = "it is sent without its hint `h`, which entry `first` comes first with";
    assert!(matches!(&verdicts[2], Verdict::Match { notes, .. } if notes == &[note.to_owned()]));
    assert!(matches!(&verdicts[3], Verdict::Match { notes, .. } if notes.is_empty()));
}

#[test]
fn explain_says_that_an_entry_about_the_executable_also_needs_a_connection_held_close_on_exec() {
    let index = index("[[entry]]\nid = 'a'\nspiffe_id = 'spiffe://td/a'\nmatch = ['unix:path:/bin/a']\n");
    let explained = index.explain(&evidence(&["unix:path:/bin/a"]), NOW);
    let Verdict::Match { notes, .. } = &explained[0].verdict else { panic!("{:?}", explained[0].verdict) };
    assert!(notes[0].contains("close-on-exec"), "{notes:?}");
}

#[test]
fn where_the_executable_is_no_evidence_an_entry_about_it_takes_nothing_from_another() {
    let index = index(
        "[[entry]]\nid = 'path'\nspiffe_id = 'spiffe://td/a'\nmatch = ['unix:path:/bin/a']\nhint = 'h'\n\
         [[entry]]\nid = 'user'\nspiffe_id = 'spiffe://td/a'\nmatch = ['unix:uid:1']\nhint = 'h'\n\
         [[entry]]\nid = 'other'\nspiffe_id = 'spiffe://td/b'\nmatch = ['unix:path:/bin/a']\nhint = 'h'\n",
    );
    let facts = evidence(&["unix:path:/bin/a", "unix:uid:1"]);
    let given = |matched: Matched| -> Vec<_> {
        matched.identities.iter().map(|i| (i.entry.id().to_string(), i.hint().map(str::to_owned))).collect()
    };
    let expect = |all: [(&str, Option<&str>); 2]| all.map(|(id, hint)| (id.to_owned(), hint.map(str::to_owned)));
    assert_eq!(given(index.matching(&facts, NOW)), expect([("path", Some("h")), ("other", None)]));
    assert_eq!(given(index.matching_executable_last(&facts, NOW)), expect([("user", Some("h")), ("other", None)]));
}

#[test]
fn explain_gives_every_reason_that_decides() {
    let index = index(
        "[[entry]]\nid = 'no'\nspiffe_id = 'spiffe://td/a'\nmatch = ['unix:uid:1', 'unix:gid:1', 'systemd:slice:a.slice']\n\
         unless = ['unix:uid:2']\ndisabled = true\nexpires_at = 2025-01-01T00:00:00Z\n\
         [[entry]]\nid = 'unknown'\nspiffe_id = 'spiffe://td/b'\nmatch = ['unix:uid:2', 'systemd:slice:a.slice']\n\
         [[entry]]\nid = 'template'\nspiffe_id = 'spiffe://td/{unix.user}'\nmatch = ['unix:uid:2']\n",
    );
    let mut facts = evidence(&["unix:uid:2"]);
    facts.gaps = vec![Gap { kind: "systemd", keys: &[], why: "no bus".into() }];
    let reasons: Vec<Vec<String>> = index
        .explain(&facts, NOW)
        .into_iter()
        .map(|explained| match explained.verdict {
            Verdict::Match { .. } => panic!("nothing matches"),
            Verdict::NoMatch { reasons } | Verdict::Unavailable { reasons } => reasons,
        })
        .collect();
    let expected: [&[&str]; 3] = [
        &[
            "the entry is disabled",
            "the entry expired at 2025-01-01T00:00:00Z",
            "`unix:uid:1` does not hold; the process has `unix:uid:2`",
            "`unix:gid:1` does not hold; the process has no `unix:gid`",
            "`unix:uid:2` holds and `unless` forbids it",
        ],
        &["whether `systemd:slice:a.slice` holds could not be found out: no bus"],
        &["`{unix.user}` has no value to put into the SPIFFE ID: there is no `unix.user`"],
    ];
    assert_eq!(reasons, expected);
}

#[test]
fn the_index_knows_which_selectors_any_entry_looks_at() {
    let index = index(
        "[[entry]]\nspiffe_id = 'spiffe://td/{unix.user|systemd.name}'\nmatch = ['unix:uid:1']\nunless = ['unix:path:/a']\n",
    );
    for (kind, key, used) in [
        ("unix", "uid", true),
        ("unix", "path", true),
        ("unix", "user", true),
        ("systemd", "name", true),
        ("unix", "sha256", false),
        ("unix", "nonsense", false),
    ] {
        assert_eq!(index.uses(kind, key), used, "{kind}:{key}");
    }
}

/// The rule as a person would write it down, entry by entry: what the index must answer.
fn naive(entries: &[Arc<Entry>], evidence: &Evidence, now: OffsetDateTime) -> (Vec<(String, String)>, Vec<String>) {
    let (mut given, mut unavailable): (Vec<(String, String)>, Vec<String>) = (Vec::new(), Vec::new());
    for entry in entries {
        let holds = |selector: &Selector| match evidence.selectors.contains(selector) {
            true => Some(true),
            false => {
                if evidence.gap_for(selector).is_some() {
                    None
                } else {
                    Some(false)
                }
            }
        };
        let required = entry.matches().iter().map(holds);
        let allowed = entry.unless().iter().map(|selector| holds(selector).map(|holds| !holds));
        let conditions: Vec<Option<bool>> = required.chain(allowed).collect();
        if entry.is_disabled() || entry.is_expired(now) || conditions.contains(&Some(false)) {
            continue;
        }
        let expanded = entry.spiffe_id().expand(evidence);
        if conditions.contains(&None) || matches!(expanded, Err(crate::registry::Unexpanded::Unknown { .. })) {
            unavailable.push(entry.id().to_string());
        } else if let Ok(id) = expanded
            && !given.iter().any(|(_, earlier)| *earlier == id.to_string())
        {
            given.push((entry.id().to_string(), id.to_string()));
        }
    }
    (given, unavailable)
}

fn selector() -> impl Strategy<Value = String> {
    prop_oneof![
        (0..4u32).prop_map(|n| format!("unix:uid:{n}")),
        (0..3u32).prop_map(|n| format!("unix:user:u{n}")),
        (0..4u32).prop_map(|n| format!("unix:supplementary_gid:{n}")),
        (0..2u32).prop_map(|n| format!("unix:path:/p{n}")),
        (0..3u32).prop_map(|n| format!("systemd:unit:u{n}.service")),
        (0..2u32).prop_map(|n| format!("systemd:slice:s{n}.slice")),
    ]
}

fn entry() -> impl Strategy<Value = (Vec<String>, Vec<String>, usize, bool, bool)> {
    let matches = proptest::collection::btree_set(selector(), 1..4).prop_map(|set| set.into_iter().collect());
    let unless = proptest::collection::btree_set(selector(), 0..2).prop_map(|set| set.into_iter().collect());
    (matches, unless, 0..4usize, proptest::bool::weighted(0.05), proptest::bool::weighted(0.05))
}

fn gap() -> impl Strategy<Value = Gap> {
    let keys: Vec<(&'static str, &'static [&'static str])> =
        vec![("systemd", &[]), ("systemd", &["slice"]), ("unix", &["path"]), ("unix", &["user", "supplementary_gid"])];
    proptest::sample::select(keys).prop_map(|(kind, keys)| Gap { kind, keys, why: "down".into() })
}

proptest! {
    #[test]
    fn the_index_answers_what_judging_every_entry_would_with_and_without_gaps(
        made in proptest::collection::vec(entry(), 0..60),
        facts in proptest::collection::btree_set(selector(), 0..8),
        gaps in proptest::collection::vec(gap(), 0..3),
    ) {
        let mut text = String::new();
        for (n, (matches, unless, template, disabled, expired)) in made.iter().enumerate() {
            let unless: Vec<_> = unless.iter().filter(|selector| !matches.contains(selector)).collect();
            let template = ["a", "{unix.uid}", "{systemd.slice|unix.user}", "b"][*template];
            text.push_str(&format!(
                "[[entry]]\nid = 'e{n}'\nspiffe_id = 'spiffe://td/{template}{}'\nmatch = {matches:?}\nunless = {unless:?}\n\
                 disabled = {disabled}\n{}",
                n % 40,
                if *expired { "expires_at = 2020-01-01T00:00:00Z\n" } else { "" },
            ));
        }
        let entries = from_file("/a.toml", &text);
        let evidence = Evidence { selectors: facts.iter().map(|f| Selector::parse(f).expect("valid")).collect(), gaps, ..Evidence::default() };
        let (given, unsure) = naive(&entries, &evidence, NOW);
        let matched = Index::build(1, entries.clone()).matching(&evidence, NOW);
        let got: Vec<_> =
            matched.identities.iter().map(|i| (i.entry.id().to_string(), i.spiffe_id.to_string())).collect();
        prop_assert_eq!(&got, &given);
        prop_assert_eq!(matched.more_unavailable, unsure.len() > Matched::MAX_UNAVAILABLE);
        let named: Vec<_> = unavailable(&matched).into_iter().map(str::to_owned).collect();
        prop_assert_eq!(&named[..], &unsure[..unsure.len().min(Matched::MAX_UNAVAILABLE)]);

        // Explaining says the same, entry by entry.
        for explained in Index::build(1, entries).explain(&evidence, NOW) {
            let id = explained.entry.id().to_string();
            let expected = (given.iter().any(|(given, _)| *given == id), unsure.contains(&id));
            let said = (
                matches!(explained.verdict, Verdict::Match { .. }),
                matches!(explained.verdict, Verdict::Unavailable { .. }),
            );
            prop_assert_eq!(said, expected);
        }
    }
}
