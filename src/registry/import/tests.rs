use time::macros::datetime;

use super::*;
use crate::id::TrustDomain;
use crate::registry::parse::parse_entries;

const NOW: OffsetDateTime = datetime!(2026-01-01 0:00 UTC);

fn options(parents: Parents) -> ImportOptions {
    let rules = Rules::new(TrustDomain::parse("example.org").expect("valid"));
    ImportOptions { parents, owner: "team@example.org".into(), rules }
}

fn node(name: &str) -> SpiffeId {
    SpiffeId::parse(&format!("spiffe://example.org/spire/agent/x509pop/{name}")).expect("valid")
}

/// As `spire-server entry show -output json` prints it: every field present, 64-bit numbers as texts.
const GOOD: &str = include_str!("testdata/spire-entries.json");
const REFUSED: &str = include_str!("testdata/spire-entries-refused.json");

#[test]
fn entries_of_the_chosen_parents_become_entries_of_ours_oldest_first() {
    let imported =
        spire_entries(GOOD.as_bytes(), &options(Parents::Only(vec![node("one")])), NOW).expect("no problems");
    assert_eq!(imported.to_toml(), include_str!("testdata/imported.toml"));
    assert_eq!(imported.skipped, 1);
    let expected = [
        "entry `0d4c1c3e-old` expired at 2025-01-01T00:00:00Z and matches nothing",
        "every imported entry may get JWT-SVIDs for any audience, as in SPIRE: narrow `audiences = [\"*\"]` \
         to what each workload needs",
    ];
    assert_eq!(imported.warnings, expected);
    // What is written is what is read.
    let rules = options(Parents::All).rules;
    assert_eq!(parse_entries(&imported.to_toml(), &Source::BuiltIn, &rules).expect("no mistakes").len(), 3);
}

#[test]
fn all_parents_can_be_chosen_and_a_misspelt_one_is_noticed() {
    let all = spire_entries(GOOD.as_bytes(), &options(Parents::All), NOW).expect("no problems");
    assert_eq!((all.entries.len(), all.skipped), (4, 0));
    let error = spire_entries(GOOD.as_bytes(), &options(Parents::Only(vec![node("onne")])), NOW);
    assert_eq!(error, Err(vec![ImportProblem::NoSuchParent(node("onne"))]));
}

#[test]
fn what_cannot_be_taken_over_is_refused_by_name_all_at_once() {
    let problems = spire_entries(REFUSED.as_bytes(), &options(Parents::All), NOW).expect_err("problems");
    let texts: Vec<String> = problems.iter().map(ToString::to_string).collect();
    let expected = [
        "entry `admin`: it is an admin entry: administrators here are groups in `[admin]`",
        "entry `domain`: `spiffe://other.org/a` is not in the trust domain of this agent: \
         begin with `spiffe://example.org/`",
        "entry `downstream`: it is a downstream entry: this agent signs for no further servers",
        "entry `future`: its additional attribute `only_on_tuesdays` is not known",
        "entry `future`: its field `must_use_hardware_key` is not known",
        "entry `long`: the longest lifetime allowed here is `1d`, not `1d1h`",
        "entry `negative`: `jwt_svid_ttl` is negative",
        "entry `none`: `match` is empty, which would match every process: write at least one selector",
        "entry `selectors`: `docker:image-signature:verified` is not a selector this agent knows; \
         the kinds are listed by `tether explain --kinds`",
        "entry `selectors`: `k8s:ns:default` is not a selector this agent knows; \
         the kinds are listed by `tether explain --kinds`",
        "entry `store`: it stores its SVID elsewhere: this agent gives SVIDs to processes only",
        "entry `twice`: its id is there twice",
    ];
    assert_eq!(texts, expected);
}

#[test]
fn a_text_that_is_something_else_or_not_all_is_refused() {
    let import = |json: &str| spire_entries(json.as_bytes(), &options(Parents::All), NOW).map(|i| i.entries.len());
    assert_eq!(import(r#"{"entries":[],"next_page_token":""}"#), Ok(0));
    assert_eq!(import(r#" [{"entries":[],"next_page_token":"x"},{"entries":[],"next_page_token":""}]"#), Ok(0));
    assert_eq!(import(r#"{"entries":[],"next_page_token":"x"}"#), Err(vec![ImportProblem::Incomplete]));
    for other in ["", "Found 1 entry", "{}", "[1]", r#"{"entries":[{}]}"#, r#"{"entries":[{"spiffe_id":"a"}]}"#] {
        let problems = import(other).expect_err(other);
        assert!(matches!(problems.as_slice(), [ImportProblem::Format(_)]), "{other}: {problems:?}");
    }
}
