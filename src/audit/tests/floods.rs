//! Floods of refusals: what else is in the log stays there, and every refusal is told of, one by one or as a number.

use super::folding::{BURST, EACH, INTERVAL, MOST_REASONS, MOST_USERS};
use super::*;

const FLOOD: u64 = 5000;

fn refused_of(uid: u32, reason: &'static str) -> Event {
    Event::Refused { caller: Caller { uid, ..caller() }, reason, detail: "it gets nothing".to_owned() }
}

fn issued() -> Event {
    Event::SvidIssued {
        caller: caller(),
        on_behalf_of: None,
        kind: "x509",
        binding: 1,
        spiffe_id: "spiffe://example.org/app".to_owned(),
        entry: "app".to_owned(),
        serial: "01".to_owned(),
        audience: Vec::new(),
        not_after: OffsetDateTime::UNIX_EPOCH,
    }
}

/// How many refusals of this user have a record of their own, and for how many others records stand.
fn told_of(world: &World, uid: u32) -> (u64, u64) {
    let records = world.records();
    let of_user = records.iter().filter(|record| record["caller"]["uid"] == uid);
    let of = |event: &'static str| of_user.clone().filter(move |record| record["event"] == event);
    let counts = of("refusals_folded").map(|record| record["count"].as_u64().unwrap());
    (of("refused").count() as u64, counts.sum())
}

/// The log's keeper at work, and what stops it.
fn keep(audit: &Audit) -> (drain::Trigger, tokio::task::JoinHandle<()>) {
    let (stop, drain) = drain::channel();
    let audit = audit.clone();
    (stop, tokio::spawn(async move { audit.keep(drain).await }))
}

async fn next(events: &mut broadcast::Receiver<Event>) -> Event {
    let next = tokio::time::timeout(Duration::from_secs(20), events.recv());
    next.await.expect("it is told").expect("the log is there")
}

#[tokio::test]
async fn thousands_of_refusals_of_one_user_leave_what_was_issued_before_in_a_small_log() {
    let world = World::rotating(16 * 1024, 3);
    let audit = world.open();
    audit.before(issued()).unwrap();
    for _ in 0..FLOOD {
        audit.record(refused_of(4321, "no_identity"));
    }
    for _ in 0..u64::from(BURST) {
        audit.record(refused_of(5000, "no_identity"));
    }
    audit.record(refused_of(4321, "too_many"));
    audit.before(issued()).unwrap();
    audit.stop().await;
    let events = world.events();
    assert_eq!(events[..2], ["audit_began", "svid_issued"]);
    assert_eq!(events.iter().filter(|event| *event == "svid_issued").count(), 2);
    assert_eq!(events[events.len() - 2..], ["refusals_folded", "agent_stopped"]);
    assert_eq!(told_of(&world, 4321), (u64::from(BURST) + 1, FLOOD - u64::from(BURST)));
    assert_eq!(told_of(&world, 5000), (u64::from(BURST), 0), "others are written one by one");
    let folded = &world.records()[events.len() - 2];
    assert_eq!((&folded["of"], &folded["reason"]), (&"refused".into(), &"no_identity".into()));
    assert_eq!((&folded["caller"]["pid"], &folded["caller"]["instance"]), (&7.into(), &"an-instance".into()));
    let report = world.verify();
    assert!(report.ok, "{report:#?}");
    let mut picker = Picker::new(Filter { events: vec!["refusals_folded".to_owned()], ..Filter::default() });
    let lines = last_lines(&world.parts(), usize::MAX).unwrap();
    assert_eq!(lines.iter().filter(|line| picker.picks(line)).count(), 1);
}

#[tokio::test]
async fn what_was_counted_is_told_a_minute_after_the_first_and_what_comes_then_is_counted_anew() {
    let world = World::new();
    let audit = world.open();
    let (stop, keeper) = keep(&audit);
    let (burst, rounds) = (u64::from(BURST), 3);
    for round in 0..rounds {
        let mut events = audit.subscribe();
        for _ in 0..burst + 40 {
            audit.record(refused_of(4321, "no_identity"));
            assert!(matches!(next(&mut events).await, Event::Refused { .. }), "subscribers get each of them");
        }
        let began = world.clock.now();
        world.hand.advance(INTERVAL - Duration::from_secs(1));
        audit.record(refused_of(1, "another"));
        assert!(matches!(next(&mut events).await, Event::Refused { .. }), "nothing was told before its time");
        world.hand.advance(Duration::from_secs(1));
        let Event::RefusalsFolded { caller: Some(caller), of: "refused", count, since, until, .. } =
            next(&mut events).await
        else {
            panic!("round {round}: it is told")
        };
        // Some were written one by one for the minute that passed.
        let passed = if round == 0 { burst } else { INTERVAL.as_secs() / EACH.unsigned_abs() };
        assert_eq!((caller.uid, count, since, until), (4321, burst + 40 - passed, began, began), "round {round}");
    }
    let (one_by_one, counted) = told_of(&world, 4321);
    assert_eq!(one_by_one + counted, rounds * (burst + 40));
    stop.drain().await;
    keeper.await.unwrap();
}

#[tokio::test]
async fn whoever_is_refused_less_often_is_written_one_by_one_again() {
    let world = World::new();
    let audit = world.open();
    for _ in 0..BURST + 1 {
        audit.record(refused_of(4321, "no_identity"));
    }
    for _ in 0..100 {
        world.hand.advance(Duration::from_secs(EACH.unsigned_abs()));
        audit.record(refused_of(4321, "no_identity"));
    }
    assert_eq!(told_of(&world, 4321), (u64::from(BURST) + 100, 0));
    // As long as the clock is wrong nothing is forgotten, and nothing is given.
    world.hand.set(world.clock.now() - Duration::from_secs(24 * 3600));
    audit.record(refused_of(4321, "no_identity"));
    audit.stop().await;
    assert_eq!(told_of(&world, 4321), (u64::from(BURST) + 100, 2));
}

#[tokio::test]
async fn only_so_many_users_and_reasons_are_told_apart_and_the_count_of_the_others_adds_up() {
    let world = World::new();
    let audit = world.open();
    let (users, more) = (u32::try_from(MOST_USERS).unwrap(), 100);
    let mut told = 0_u64;
    for uid in 0..users + more {
        audit.record(refused_of(uid, "no_identity"));
        told += 1;
    }
    let reasons: Vec<&'static str> = (0..MOST_REASONS + 10).map(|n| &*n.to_string().leak()).collect();
    for reason in &reasons {
        audit.record(refused_of(0, reason));
        told += 1;
    }
    audit.stop().await;
    let records = world.records();
    let folded: Vec<_> = records.iter().filter(|record| record["event"] == "refusals_folded").collect();
    let [folded] = folded[..] else { panic!("one for all: {folded:?}") };
    assert!(folded.get("caller").is_none() && folded.get("of").is_none() && folded.get("reason").is_none());
    let one_by_one = records.iter().filter(|record| record["event"] == "refused").count() as u64;
    assert_eq!(one_by_one + folded["count"].as_u64().unwrap(), told);
    assert_eq!(told_of(&world, users - 1), (1, 0), "who has a place");

    let world = World::new();
    let audit = world.open();
    for uid in 0..users {
        (0..BURST + 1).for_each(|_| audit.record(refused_of(uid, "no_identity")));
    }
    world.hand.advance(Duration::from_secs(3600));
    let _told = audit.sink.as_ref().unwrap().folding.take();
    for uid in [7000, 7001] {
        (0..BURST + 1).for_each(|_| audit.record(refused_of(uid, "no_identity")));
    }
    audit.stop().await;
    assert_eq!(told_of(&world, 7000), (u64::from(BURST), 1), "who was not refused for long leaves its place");
    assert_eq!(told_of(&world, 7001), (u64::from(BURST), 1));
}

#[tokio::test]
async fn every_kind_of_refusal_is_counted_and_nothing_else() {
    let (reason, detail, request) = ("r", String::new(), String::new());
    let caller = caller();
    let decided = |allowed, approval: Option<&str>| Event::Decided {
        caller: Some(caller.clone()),
        session: None,
        txn: String::new(),
        action: "call",
        spiffe_id: String::new(),
        user: None,
        target: String::new(),
        tool: String::new(),
        arguments_sha256: String::new(),
        effect: None,
        allowed,
        reason: reason.to_owned(),
        user_ok: None,
        agent_ok: None,
        policy_ok: None,
        approval: approval.map(str::to_owned),
        policies: Vec::new(),
        errors: Vec::new(),
        set: String::new(),
    };
    let cases = [
        (refused("one"), true),
        (Event::ConnectionRefused { caller: caller.clone(), reason, detail: detail.clone() }, true),
        (Event::ProofRefused { caller: caller.clone(), reason, detail: detail.clone(), request }, true),
        (Event::TokenRefused { caller: caller.clone(), spiffe_id: String::new(), serial: String::new(), reason }, true),
        (Event::SuspiciousUse { caller: caller.clone(), session: None, txn: String::new(), what: "w", detail }, true),
        (decided(false, None), true),
        (decided(false, Some("an approval")), false),
        (decided(true, None), false),
        (issued(), false),
        (Event::CredentialsEnded { what: "process".to_owned(), reason, count: 1 }, false),
        (Event::EntriesRefused { mistakes: vec!["a mistake".to_owned()] }, false),
        (Event::Admin { caller: caller.clone(), action: "RevokeCredential", subject: "s".to_owned() }, false),
    ];
    for (event, counted) in cases {
        let world = World::new();
        let audit = world.open();
        for _ in 0..BURST * 2 {
            audit.record(event.clone());
        }
        audit.stop().await;
        let name = event.name();
        let written = world.events().iter().filter(|written| *written == name).count();
        let expected = if counted { BURST } else { BURST * 2 };
        assert_eq!(written, expected as usize, "{event:?}");
        assert_eq!(world.events().contains(&"refusals_folded".to_owned()), counted, "{event:?}");
    }
}

#[tokio::test]
async fn what_was_counted_while_the_disk_was_full_is_counted_as_lost() {
    let (world, disk) = (World::new(), FullDisk::default());
    let audit = world.open_on(&disk);
    for _ in 0..BURST + 10 {
        audit.record(refused("no_identity"));
    }
    disk.fills(true);
    let folded = audit.sink.as_ref().unwrap().folding.take();
    folded.into_iter().for_each(|event| audit.record(event));
    disk.fills(false);
    audit.stop().await;
    let lost = world.records().into_iter().find(|record| record["event"] == "audit_interrupted").unwrap();
    assert_eq!(lost["lost"], 10);
}
