use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use time::OffsetDateTime;

use super::*;
use crate::attest::Evidence;
use crate::attest::tests::{Sleeper, evidence};
use crate::base::clock::ManualClock;

const AMPLE: Duration = Duration::from_secs(3600);

fn placed(path: &str) -> Result<Placement, String> {
    Ok(Placement::of(path))
}

fn billing() -> UnitFacts {
    UnitFacts {
        id: "billing@eu.service".into(),
        fragment_path: Some("/etc/systemd/system/billing@.service".into()),
        invocation_id: Some("0f".repeat(16)),
    }
}

fn facts(evidence: &Evidence) -> Vec<&str> {
    evidence.selectors.iter().map(crate::selector::Selector::as_str).collect()
}

#[test]
fn all_that_systemd_says_becomes_selectors() {
    let path = "/prod.slice/prod-pay.slice/billing@eu.service/worker";
    let evidence = evidence(from_systemd(&billing(), placed(path), 0));
    assert_eq!(
        facts(&evidence),
        [
            "systemd:fragment_path:/etc/systemd/system/billing@.service",
            "systemd:id:billing@eu.service",
            "systemd:instance:eu",
            "systemd:invocation_id:0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f",
            "systemd:name:billing@eu",
            "systemd:prefix:billing",
            "systemd:slice:prod-pay.slice",
            "systemd:unit:billing@eu.service",
        ]
    );
    assert_eq!(evidence.gaps, []);
}

#[test]
fn systemds_word_for_the_unit_counts_above_the_control_group_which_then_says_nothing() {
    for placement in [placed("/system.slice/other.service"), placed("/"), Err("unseen".into())] {
        let evidence = evidence(from_systemd(&billing(), placement, 0));
        assert_eq!(evidence.selectors.single_value("systemd", "unit"), Some("billing@eu.service"));
        assert!(evidence.gap("systemd", "slice").is_some() && evidence.gap("systemd", "user_unit").is_some());
        assert_eq!(evidence.gap("systemd", "unit"), None);
    }
}

#[test]
fn a_process_directly_in_a_slice_is_in_no_unit() {
    let facts = UnitFacts { id: "system.slice".into(), ..billing() };
    let evidence = evidence(from_systemd(&facts, placed("/system.slice/x"), 0));
    assert!(evidence.selectors.is_empty() && evidence.gaps.is_empty());
    assert!(evidence.notes[0].text.contains("bound to the node"));
}

#[test]
fn without_systemd_the_control_group_gives_the_unit_and_the_rest_is_a_gap() {
    let evidence = evidence(from_placement(placed("/system.slice/a.service"), "it hangs", 0));
    assert_eq!(
        facts(&evidence),
        ["systemd:id:a.service", "systemd:name:a", "systemd:slice:system.slice", "systemd:unit:a.service"]
    );
    for key in ["fragment_path", "invocation_id"] {
        assert!(evidence.gap("systemd", key).is_some_and(|gap| gap.why == "it hangs"), "{key}");
    }
    assert_eq!(evidence.gap("systemd", "unit"), None);
}

#[test]
fn without_systemd_and_without_a_unit_in_the_control_group_nothing_is_known() {
    for placement in [placed("/"), placed("/docker/x/system.slice/a.service"), Err("unseen".into())] {
        let evidence = evidence(from_placement(placement, "it hangs", 0));
        assert!(evidence.selectors.is_empty());
        assert!(evidence.gap("systemd", "unit").is_some_and(|gap| gap.why.starts_with("it hangs; and ")));
    }
}

#[test]
fn a_user_unit_counts_only_for_processes_of_that_user() {
    let path = "/user.slice/user-1000.slice/user@1000.service/app.slice/trusted.service";
    let own = evidence(from_placement(placed(path), "it hangs", 1000));
    assert_eq!(own.selectors.single_value("systemd", "user_unit"), Some("trusted.service"));
    let lent = evidence(from_placement(placed(path), "it hangs", 0));
    assert_eq!(lent.selectors.single_value("systemd", "user_unit"), None);
    assert_eq!(lent.selectors.single_value("systemd", "unit"), Some("user@1000.service"));
    assert!(lent.notes[0].text.contains("does not count"));
}

/// Gives one answer, or none at all, and counts the questions.
struct Manager(Option<Result<UnitAnswer, UnitManagerError>>, Arc<AtomicUsize>);

impl UnitManager for Manager {
    fn unit_of<'a>(&'a self, _: &'a Subject) -> BoxFuture<'a, Result<UnitAnswer, UnitManagerError>> {
        self.1.fetch_add(1, Ordering::SeqCst);
        match self.0.clone() {
            Some(answer) => async { answer }.boxed(),
            None => pending().boxed(),
        }
    }
}

struct Scene {
    systemd: Systemd,
    asked: Arc<AtomicUsize>,
    hand: ManualClock,
    sleeper: Sleeper,
    _booted: tempfile::TempDir,
}

impl Scene {
    fn new(answer: Option<Result<UnitAnswer, UnitManagerError>>, patience: Duration) -> Self {
        let (clock, hand) = Clock::manual(OffsetDateTime::UNIX_EPOCH);
        let booted = tempfile::tempdir().expect("temporary");
        let config = Config { patience, booted: booted.path().into(), ..Config::default() };
        let asked = Arc::new(AtomicUsize::new(0));
        let systemd = Systemd::new(&config, Manager(answer, asked.clone()), clock, Entropy::system());
        Self { systemd, asked, hand, sleeper: Sleeper::start(), _booted: booted }
    }

    async fn attest(&self) -> Evidence {
        evidence(self.systemd.look(&self.sleeper.subject()).await.expect("attested"))
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

#[tokio::test]
async fn a_systemd_that_never_answers_is_a_gap_in_time_and_is_then_left_alone_for_a_while() {
    let scene = Scene::new(None, Duration::from_millis(1));
    let evidence = scene.attest().await;
    assert!(evidence.gap("systemd", "fragment_path").is_some_and(|gap| gap.why.contains("within 1ms")));
    let evidence = scene.attest().await;
    assert!(evidence.gap("systemd", "fragment_path").is_some_and(|gap| gap.why.contains("asked again soon")));
    assert_eq!(scene.asked(), 1);
    scene.hand.advance(Duration::from_secs(1));
    scene.attest().await;
    assert_eq!(scene.asked(), 2);
}

#[tokio::test]
async fn a_refusal_about_one_process_is_no_outage() {
    let scene = Scene::new(Some(Err(UnitManagerError::Refused("not allowed".into()))), AMPLE);
    for question in 1..4 {
        scene.attest().await;
        assert_eq!(scene.asked(), question);
    }
}

#[tokio::test]
async fn systemd_saying_that_there_is_no_unit_is_knowledge_and_not_a_gap() {
    let scene = Scene::new(Some(Ok(UnitAnswer { unit: None, by_number: false })), AMPLE);
    let evidence = scene.attest().await;
    assert_eq!((evidence.selectors.len(), evidence.gaps.len(), evidence.notes.len()), (0, 0, 1));
}

#[tokio::test]
async fn an_answer_by_number_counts_only_if_the_control_group_agrees() {
    let answer = UnitAnswer { unit: Some(billing()), by_number: true };
    assert!(agree(&answer, &placed("/system.slice/billing@eu.service/x")));
    assert!(!agree(&answer, &placed("/system.slice/other.service")));
    assert!(!agree(&answer, &placed("/")));
    assert!(!agree(&answer, &Err("unseen".into())));
    assert!(agree(&UnitAnswer { unit: None, by_number: true }, &placed("/docker/x")));
    // Our own control group is not that of the unit.
    let evidence = Scene::new(Some(Ok(answer)), AMPLE).attest().await;
    assert_ne!(evidence.selectors.single_value("systemd", "unit"), Some("billing@eu.service"));
    assert!(evidence.gap("systemd", "fragment_path").is_some());
}

#[tokio::test]
async fn a_host_without_systemd_has_no_units_and_no_gaps_and_nobody_is_asked() {
    let mut scene = Scene::new(None, AMPLE);
    scene.systemd.booted = "/nonexistent/run/systemd/system".into();
    let evidence = scene.attest().await;
    assert!(evidence.selectors.is_empty() && evidence.gaps.is_empty());
    assert!(evidence.notes[0].text.contains("did not start this host"));
    assert_eq!(scene.asked(), 0);
}
