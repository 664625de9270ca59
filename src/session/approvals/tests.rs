//! The rules of approvals, on a store of their own and a clock that is moved by hand.

use futures_util::FutureExt;
use time::macros::datetime;

use super::*;
use crate::base::clock::ManualClock;
use crate::id::SpiffeId;
use crate::policy::{Action, Effect};
use crate::user::{User, UserProof};

const START: OffsetDateTime = datetime!(2026-11-23 12:00 UTC);
const AGENT: u32 = 1000;
const USER: u32 = 1001;
const APPROVER: u32 = 2000;
const ONCE: Verdict = Verdict::Approve { ttl: Duration::from_secs(60), uses: 1 };

struct Bench {
    approvals: Approvals,
    hand: ManualClock,
    dir: tempfile::TempDir,
}

impl Bench {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (clock, hand) = Clock::manual(START);
        let approvals = open(&dir, clock).await;
        Self { approvals, hand, dir }
    }

    /// The same store under another agent, which begins at the time of the last.
    async fn restart(self) -> Self {
        let now = self.hand.now();
        let Self { approvals, dir, .. } = self;
        let alone = Arc::downgrade(&approvals.0);
        drop(approvals);
        // The task that waits for the next lapse holds it for a moment when it is woken.
        while alone.strong_count() > 0 {
            tokio::task::yield_now().await;
        }
        let (clock, hand) = Clock::manual(now);
        let approvals = open(&dir, clock).await;
        Self { approvals, hand, dir }
    }

    async fn granted(&self, asked: &Asked<'_>, ttl: u64, uses: u32) -> ApprovalId {
        let id = self.approvals.request(asked).await.unwrap().id;
        let verdict = Verdict::Approve { ttl: Duration::from_secs(ttl), uses };
        self.approvals.decide(id.as_str(), APPROVER, verdict, "").await.unwrap();
        id
    }

    fn state(&self, id: &ApprovalId) -> ApprovalState {
        self.approvals.find(id.as_str()).unwrap().state
    }
}

async fn open(dir: &tempfile::TempDir, clock: Clock) -> Approvals {
    let store = Store::open(&dir.path().join("store")).await.unwrap();
    Approvals::open(store, clock, Entropy::system(), Audit::default()).await.unwrap()
}

/// What questions are made of.
struct World {
    sessions: [SessionId; 6],
    agent: SpiffeId,
    user: User,
    policies: Vec<String>,
    scopes: Vec<String>,
}

impl World {
    fn new() -> Self {
        let proof = UserProof::Local { uid: USER, node: "node".to_owned(), login_session: None };
        Self {
            sessions: ["a", "b", "c", "d", "e", "f"].map(|random| SessionId::new("node", random)),
            agent: SpiffeId::parse("spiffe://example.org/agent").unwrap(),
            user: User {
                issuer: "spiffe://example.org/tether/agent/node".to_owned(),
                subject: "alice".to_owned(),
                proof,
            },
            policies: vec!["wants-a-person".to_owned()],
            scopes: vec!["write".to_owned(), "read".to_owned()],
        }
    }

    fn asked(&self) -> Asked<'_> {
        Asked {
            session: &self.sessions[0],
            spiffe_id: &self.agent,
            user: Some(&self.user),
            uid: AGENT,
            purpose: "ticket/triage",
            action: Action::Call(Effect::Write),
            target: "https://tool.example.com/tickets",
            method: "POST",
            tool: "close_ticket",
            arguments_sha256: "00ff",
            kind: "",
            scopes: &[],
            why: "closing is for people to decide",
            policies: &self.policies,
        }
    }
}

#[tokio::test]
async fn an_approval_covers_the_question_it_was_given_for_and_no_other() {
    let (bench, world) = (Bench::new().await, World::new());
    let asked = world.asked();
    assert_eq!(bench.approvals.covering(&asked), None, "nobody was asked");
    let id = bench.approvals.request(&asked).await.unwrap().id;
    assert_eq!(bench.approvals.covering(&asked), None, "nobody has decided");
    bench.approvals.decide(id.as_str(), APPROVER, ONCE, "go ahead").await.unwrap();
    assert_eq!(bench.approvals.covering(&asked), Some(id.clone()));
    let others = [
        ("session", Asked { session: &world.sessions[1], ..asked }),
        ("action", Asked { action: Action::Mint, ..asked }),
        ("effect", Asked { action: Action::Call(Effect::Irreversible), ..asked }),
        ("lesser effect", Asked { action: Action::Call(Effect::Read), ..asked }),
        ("target", Asked { target: "https://tool.example.com/tickets/1", ..asked }),
        ("method", Asked { method: "PUT", ..asked }),
        ("tool", Asked { tool: "delete_ticket", ..asked }),
        ("no tool", Asked { tool: "", ..asked }),
        ("arguments", Asked { arguments_sha256: "00fe", ..asked }),
        ("kind", Asked { kind: "jwt", ..asked }),
        ("scope", Asked { scopes: &world.scopes, ..asked }),
        ("unknown arguments", Asked { arguments_sha256: "", ..asked }),
    ];
    for (what, other) in others {
        assert_eq!(bench.approvals.covering(&other), None, "another {what}");
        assert!(!bench.approvals.allowed(id.as_str(), &other), "another {what}");
        let asked_anew = bench.approvals.request(&other).await.unwrap();
        assert_eq!(asked_anew.state, ApprovalState::Pending, "another {what} is asked for on its own");
    }
    assert!(bench.approvals.allowed(id.as_str(), &asked));
}

#[tokio::test]
async fn asking_again_gives_the_approval_that_waits_or_was_granted_and_after_its_use_a_new_one() {
    let (bench, world) = (Bench::new().await, World::new());
    let first = bench.approvals.request(&world.asked()).await.unwrap();
    let again = bench.approvals.request(&Asked { why: "another reason", ..world.asked() }).await.unwrap();
    assert_eq!(first, again);
    bench.approvals.decide(first.id.as_str(), APPROVER, ONCE, "").await.unwrap();
    let granted = bench.approvals.request(&world.asked()).await.unwrap();
    assert_eq!((granted.id, granted.state), (first.id.clone(), ApprovalState::Granted));
    bench.approvals.use_up(&first.id).await.unwrap();
    let next = bench.approvals.request(&world.asked()).await.unwrap();
    assert_eq!(next.state, ApprovalState::Pending);
    assert_ne!(next.id, first.id);
}

#[tokio::test]
async fn nobody_decides_who_is_a_party_to_the_question() {
    let (bench, world) = (Bench::new().await, World::new());
    let id = bench.approvals.request(&world.asked()).await.unwrap().id;
    for verdict in [ONCE, Verdict::Deny] {
        let by_agent = bench.approvals.decide(id.as_str(), AGENT, verdict, "").await;
        assert!(matches!(by_agent, Err(ApprovalError::OwnAgent(AGENT))), "{by_agent:?}");
        let by_user = bench.approvals.decide(id.as_str(), USER, verdict, "").await;
        assert!(matches!(by_user, Err(ApprovalError::OwnUser(USER))), "{by_user:?}");
    }
    assert_eq!(bench.state(&id), ApprovalState::Pending);
    // That it runs as root does not make root's agent its own judge.
    let of_root = Asked { uid: 0, session: &world.sessions[1], ..world.asked() };
    let id = bench.approvals.request(&of_root).await.unwrap().id;
    let by_root = bench.approvals.decide(id.as_str(), 0, ONCE, "").await;
    assert!(matches!(by_root, Err(ApprovalError::OwnAgent(0))), "{by_root:?}");
}

#[tokio::test]
async fn a_decision_is_made_once_and_can_be_taken_back() {
    /// What is done to an approval before.
    type Before = &'static [&'static str];
    let table: [(Before, Verdict, Result<ApprovalState, ApprovalState>); 11] = [
        (&[], ONCE, Ok(ApprovalState::Granted)),
        (&[], Verdict::Deny, Ok(ApprovalState::Denied)),
        (&["approve"], ONCE, Err(ApprovalState::Granted)),
        (&["approve"], Verdict::Deny, Ok(ApprovalState::Withdrawn)),
        (&["approve", "use"], Verdict::Deny, Ok(ApprovalState::Withdrawn)),
        (&["approve", "use"], ONCE, Err(ApprovalState::Used)),
        (&["approve", "deny"], ONCE, Err(ApprovalState::Withdrawn)),
        (&["deny"], ONCE, Err(ApprovalState::Denied)),
        (&["deny"], Verdict::Deny, Err(ApprovalState::Denied)),
        (&["end"], ONCE, Err(ApprovalState::Expired)),
        (&["approve", "end"], Verdict::Deny, Err(ApprovalState::Expired)),
    ];
    for (before, verdict, expected) in table {
        let (bench, world) = (Bench::new().await, World::new());
        let id = bench.approvals.request(&world.asked()).await.unwrap().id;
        for step in before {
            match *step {
                "approve" => drop(bench.approvals.decide(id.as_str(), APPROVER, ONCE, "").await.unwrap()),
                "deny" => drop(bench.approvals.decide(id.as_str(), APPROVER, Verdict::Deny, "").await.unwrap()),
                "use" => bench.approvals.use_up(&id).await.unwrap(),
                _ => bench.approvals.session_ended(&world.sessions[0]).await,
            }
        }
        let decided = bench.approvals.decide(id.as_str(), APPROVER, verdict, "").await;
        let decided = decided.map(|approval| approval.state).map_err(|error| match error {
            ApprovalError::Decided { state, .. } => state,
            other => panic!("after {before:?}: {other}"),
        });
        assert_eq!(decided, expected, "after {before:?}, {verdict:?}");
        let stands = decided == Ok(ApprovalState::Granted);
        if decided.is_ok() {
            assert_eq!(bench.approvals.covering(&world.asked()).is_some(), stands);
            assert_eq!(bench.approvals.allowed(id.as_str(), &world.asked()), stands);
        }
    }
}

#[tokio::test]
async fn what_is_refused_in_a_session_is_not_asked_again_in_it() {
    let (bench, world) = (Bench::new().await, World::new());
    let id = bench.approvals.request(&world.asked()).await.unwrap().id;
    bench.approvals.decide(id.as_str(), APPROVER, Verdict::Deny, "no").await.unwrap();
    let again = bench.approvals.request(&world.asked()).await;
    assert!(matches!(again, Err(ApprovalError::Refused(refused)) if refused == id));
    let elsewhere = Asked { session: &world.sessions[1], ..world.asked() };
    assert_eq!(bench.approvals.request(&elsewhere).await.unwrap().state, ApprovalState::Pending);
}

#[tokio::test]
async fn an_approval_is_used_as_often_as_it_says_however_many_use_it_at_once() {
    let (bench, world) = (Bench::new().await, World::new());
    let id = bench.granted(&world.asked(), 60, 3).await;
    let uses = (0..16).map(|_| bench.approvals.use_up(&id));
    let used = futures_util::future::join_all(uses).await;
    assert_eq!(used.iter().filter(|used| used.is_ok()).count(), 3);
    assert_eq!(bench.state(&id), ApprovalState::Used);
    assert_eq!(bench.approvals.covering(&world.asked()), None);
    assert!(bench.approvals.allowed(id.as_str(), &world.asked()), "what it allowed stands until its time is over");
    let bench = bench.restart().await;
    let late = bench.approvals.use_up(&id).await;
    assert!(matches!(late, Err(ApprovalError::NotUsable { state: ApprovalState::Used, .. })), "{late:?}");
}

#[tokio::test]
async fn a_use_is_taken_although_whoever_wanted_it_has_gone() {
    let (bench, world) = (Bench::new().await, World::new());
    let id = bench.granted(&world.asked(), 60, 2).await;
    let mut changes = bench.approvals.watch();
    changes.borrow_and_update();
    let mut using = Box::pin(bench.approvals.use_up(&id));
    assert!((&mut using).now_or_never().is_none());
    drop(using);
    changes.changed().await.unwrap();
    assert_eq!(bench.approvals.find(id.as_str()).unwrap().uses_left, 1);
    bench.approvals.use_up(&id).await.expect("store and memory say the same");
}

#[tokio::test]
async fn time_ends_an_approval_and_a_clock_set_back_does_not_bring_it_back() {
    let (bench, world) = (Bench::new().await, World::new());
    let id = bench.granted(&world.asked(), 60, 5).await;
    let waiting = bench.approvals.request(&Asked { tool: "other", ..world.asked() }).await.unwrap();
    let mut changes = bench.approvals.watch();
    bench.hand.advance(Duration::from_secs(59));
    assert_eq!(bench.approvals.covering(&world.asked()), Some(id.clone()));
    changes.borrow_and_update();
    bench.hand.advance(Duration::from_secs(1));
    assert_eq!(bench.approvals.covering(&world.asked()), None, "at its end, whether or not anybody was told");
    assert!(bench.approvals.use_up(&id).await.is_err());
    while bench.approvals.0.rows()[&id].approval.state != ApprovalState::Expired {
        changes.changed().await.unwrap();
    }
    assert_eq!(bench.state(&waiting.id), ApprovalState::Pending);
    bench.hand.set(START);
    assert_eq!(bench.approvals.covering(&world.asked()), None);
    bench.hand.set(START + PENDING_TTL);
    assert_eq!(bench.state(&waiting.id), ApprovalState::Expired);
    let late = bench.approvals.decide(waiting.id.as_str(), APPROVER, ONCE, "").await;
    assert!(matches!(late, Err(ApprovalError::Decided { state: ApprovalState::Expired, .. })), "{late:?}");
}

#[tokio::test]
async fn a_clock_set_back_behind_the_decision_ends_what_it_allowed() {
    let (bench, world) = (Bench::new().await, World::new());
    bench.granted(&world.asked(), 3600, 5).await;
    for (seconds, covered) in [(29, true), (31, false)] {
        bench.hand.set(START - Duration::from_secs(seconds));
        assert_eq!(bench.approvals.covering(&world.asked()).is_some(), covered, "{seconds} s before the decision");
    }
}

#[tokio::test]
async fn a_restart_changes_nothing_about_what_waits_and_what_was_granted() {
    let (bench, world) = (Bench::new().await, World::new());
    let granted = bench.granted(&world.asked(), 60, 5).await;
    bench.approvals.use_up(&granted).await.unwrap();
    let other = Asked { session: &world.sessions[1], ..world.asked() };
    let waiting = bench.approvals.request(&other).await.unwrap();
    let before = bench.approvals.list();
    let bench = bench.restart().await;
    assert_eq!(bench.approvals.list(), before);
    assert_eq!(bench.approvals.covering(&world.asked()), Some(granted.clone()));
    assert_eq!(bench.approvals.request(&other).await.unwrap().id, waiting.id);
    bench.approvals.decide(waiting.id.as_str(), APPROVER, ONCE, "").await.unwrap();
    // What belongs to sessions that did not come back is closed.
    bench.approvals.keep_only(|session| *session == world.sessions[1]).await;
    assert_eq!(bench.state(&granted), ApprovalState::Expired);
    assert_eq!(bench.state(&waiting.id), ApprovalState::Granted);
    bench.hand.advance(Duration::from_secs(61));
    let bench = bench.restart().await;
    assert_eq!(bench.state(&waiting.id), ApprovalState::Expired);
}

#[tokio::test]
async fn an_approval_of_a_token_covers_its_kind_and_its_scopes_in_whatever_order_they_are_named() {
    let (bench, world) = (Bench::new().await, World::new());
    let mint = Asked { action: Action::Mint, kind: "wit", scopes: &world.scopes, ..world.asked() };
    let id = bench.granted(&mint, 60, 5).await;
    let turned: Vec<String> = world.scopes.iter().rev().cloned().collect();
    assert_eq!(bench.approvals.covering(&Asked { scopes: &turned, ..mint }), Some(id.clone()));
    let others = [
        ("a bearer token", Asked { kind: "jwt", ..mint }),
        ("less", Asked { scopes: &world.scopes[..1], ..mint }),
        ("all scopes", Asked { scopes: &[], ..mint }),
    ];
    for (what, other) in others {
        assert_eq!(bench.approvals.covering(&other), None, "{what}");
        assert_ne!(bench.approvals.request(&other).await.unwrap().id, id, "{what}");
    }
    assert_eq!(
        bench.approvals.find(id.as_str()).unwrap().matter.scopes,
        ["read", "write"],
        "as the approver sees them"
    );
}

#[tokio::test]
async fn whoever_follows_changes_learns_whose_they_are_until_there_were_too_many() {
    let (bench, world) = (Bench::new().await, World::new());
    let mut changes = bench.approvals.watch();
    let seen = *changes.borrow_and_update();
    bench.approvals.request(&world.asked()).await.unwrap();
    let between = *changes.borrow_and_update();
    let id = bench.granted(&Asked { session: &world.sessions[1], ..world.asked() }, 60, 1000).await;
    let both = [&world.sessions[0], &world.sessions[1]].map(Clone::clone);
    assert_eq!(bench.approvals.changed_since(seen), Some(both.into()));
    assert_eq!(bench.approvals.changed_since(between), Some([world.sessions[1].clone()].into()));
    assert_eq!(bench.approvals.changed_since(*changes.borrow_and_update()), Some([].into()));
    let row = bench.approvals.find(id.as_str()).unwrap();
    for _ in 0..MAX_RECENT {
        bench.approvals.0.show(vec![row.clone()], None, &[]);
    }
    assert_eq!(bench.approvals.changed_since(seen), None, "it may have been anybody");
    assert_eq!(bench.approvals.changed_since(*changes.borrow_and_update()), Some([].into()));
}

#[tokio::test]
async fn whoever_waits_is_told_of_every_decision() {
    let (bench, world) = (Bench::new().await, World::new());
    let mut changes = bench.approvals.watch();
    let id = bench.approvals.request(&world.asked()).await.unwrap().id;
    assert!(changes.has_changed().unwrap());
    for verdict in [ONCE, Verdict::Deny] {
        changes.borrow_and_update();
        bench.approvals.decide(id.as_str(), APPROVER, verdict, "").await.unwrap();
        assert!(changes.has_changed().unwrap(), "{verdict:?}");
    }
    changes.borrow_and_update();
    let _ = bench.approvals.decide(id.as_str(), APPROVER, ONCE, "").await;
    assert!(!changes.has_changed().unwrap(), "a refusal changes nothing");
}

#[tokio::test]
async fn a_session_that_ends_closes_what_waited_for_it_and_what_it_had_left() {
    let (bench, world) = (Bench::new().await, World::new());
    let granted = bench.granted(&world.asked(), 60, 5).await;
    let waiting = bench.approvals.request(&Asked { tool: "other", ..world.asked() }).await.unwrap().id;
    let elsewhere = Asked { session: &world.sessions[1], ..world.asked() };
    let other = bench.approvals.request(&elsewhere).await.unwrap().id;
    bench.approvals.session_ended(&world.sessions[0]).await;
    assert_eq!([&granted, &waiting, &other].map(|id| bench.state(id)), {
        [ApprovalState::Expired, ApprovalState::Expired, ApprovalState::Pending]
    });
    assert_eq!(bench.approvals.covering(&world.asked()), None);
}

#[tokio::test]
async fn a_session_and_a_user_id_can_have_so_many_waiting_and_others_are_not_kept_out() {
    let (bench, world) = (Bench::new().await, World::new());
    for session in &world.sessions[..4] {
        for tool in 0..MAX_PENDING.session {
            let tool = tool.to_string();
            bench.approvals.request(&Asked { session, tool: &tool, ..world.asked() }).await.unwrap();
        }
    }
    let known = Asked { tool: "0", ..world.asked() };
    bench.approvals.request(&known).await.expect("what waits already needs no room");
    let of_session = bench.approvals.request(&Asked { tool: "more", ..world.asked() }).await;
    assert!(matches!(of_session, Err(ApprovalError::TooManyOfSession(16))), "{of_session:?}");
    let fifth = Asked { session: &world.sessions[4], ..world.asked() };
    let of_uid = bench.approvals.request(&fifth).await;
    assert!(matches!(of_uid, Err(ApprovalError::TooManyOfUid { uid: AGENT, limit: 64 })), "{of_uid:?}");
    bench.approvals.request(&Asked { uid: 3000, ..fifth }).await.expect("another user has room");
    bench.approvals.session_ended(&world.sessions[0]).await;
    bench.approvals.request(&fifth).await.expect("there is room again");
}

#[tokio::test]
async fn what_was_decided_is_kept_for_a_day() {
    let (bench, world) = (Bench::new().await, World::new());
    let id = bench.approvals.request(&world.asked()).await.unwrap().id;
    bench.approvals.decide(id.as_str(), APPROVER, Verdict::Deny, "").await.unwrap();
    bench.hand.advance(KEPT_FOR - Duration::from_secs(1));
    let other = Asked { session: &world.sessions[1], ..world.asked() };
    bench.approvals.request(&other).await.unwrap();
    assert_eq!(bench.state(&id), ApprovalState::Denied);
    bench.hand.advance(Duration::from_secs(1));
    bench.approvals.session_ended(&world.sessions[1]).await;
    assert_eq!(bench.approvals.find(id.as_str()), None);
    let bench = bench.restart().await;
    assert_eq!(bench.approvals.find(id.as_str()), None, "not on disk either");
}

#[test]
fn of_what_is_closed_the_undecided_goes_first_and_nobody_pushes_out_what_is_anothers() {
    let world = World::new();
    let row = |n: usize, uid: u32, state: ApprovalState, by: Option<u32>| {
        let asked = Asked { uid, ..world.asked() };
        let id = ApprovalId::new(format!("{uid}-{n:04}"));
        let at = START + Duration::from_secs(n as u64);
        let pending = Approval::pending(id.clone(), Matter::of(&asked).unwrap(), &asked, at, at + PENDING_TTL);
        let closed_at = (state != ApprovalState::Pending).then_some(at);
        (id, Row { approval: Approval { state, decided_by: by, closed_at, ..pending }, revision: None })
    };
    let refused = row(0, AGENT, ApprovalState::Denied, Some(APPROVER));
    let of_another = row(0, 3000, ApprovalState::Expired, None);
    let waiting = row(1, AGENT, ApprovalState::Pending, None);
    let kept = [refused.0.clone(), of_another.0.clone(), waiting.0.clone()];
    let flood = (2..MAX_KEPT.uid + 10).map(|n| row(n, AGENT, ApprovalState::Expired, None));
    let rows: Rows = [refused, of_another, waiting].into_iter().chain(flood).collect();
    let old = too_old(&rows, START + Duration::from_secs(1000));
    assert_eq!(old.len(), 9);
    assert!(kept.iter().all(|id| !old.contains(id)), "{old:?}");
}

#[tokio::test]
async fn a_question_that_would_not_show_as_it_is_is_refused_and_a_reason_is_put_on_one_line() {
    let (bench, world) = (Bench::new().await, World::new());
    let long = "x".repeat(20_000);
    let hidden = "list\x1b[2K\rdelete";
    let table = [
        Asked { tool: hidden, ..world.asked() },
        Asked { target: hidden, ..world.asked() },
        Asked { tool: "list\u{202e}eteled", ..world.asked() },
        Asked { tool: "d\u{435}lete", ..world.asked() },
        Asked { tool: "close\u{200b}", ..world.asked() },
        Asked { method: "PO\nST", ..world.asked() },
        Asked { tool: &long, ..world.asked() },
        Asked { target: &long, ..world.asked() },
    ];
    for asked in table {
        let refused = bench.approvals.request(&asked).await;
        assert!(matches!(refused, Err(ApprovalError::Text { .. })), "{refused:?}");
    }
    let why = format!("first\nsecond\x07{long}");
    let approval = bench.approvals.request(&Asked { why: &why, ..world.asked() }).await.unwrap();
    assert!(approval.why.starts_with("first second xxx") && approval.why.len() == 1024, "{}", approval.why);
    let note = "é".repeat(200);
    let decided = bench.approvals.decide(approval.id.as_str(), APPROVER, Verdict::Deny, &note).await.unwrap();
    assert_eq!(decided.note, "é".repeat(128));
}

#[tokio::test]
async fn an_approval_without_end_or_without_use_is_none() {
    let (bench, world) = (Bench::new().await, World::new());
    let id = bench.approvals.request(&world.asked()).await.unwrap().id;
    let second = Duration::from_secs(1);
    for (ttl, uses) in [(Duration::ZERO, 1), (MAX_TTL + second, 1), (second, 0), (second, MAX_USES + 1)] {
        let refused = bench.approvals.decide(id.as_str(), APPROVER, Verdict::Approve { ttl, uses }, "").await;
        assert!(matches!(refused, Err(ApprovalError::Terms)), "{ttl:?}, {uses}");
    }
}
