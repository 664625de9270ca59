//! A crash at any byte, and what was done to the files while there was no agent.

use std::fs;

use super::*;

#[tokio::test]
async fn a_record_torn_at_any_byte_is_cut_off_and_the_next_record_says_so() {
    for rotate in [1 << 20, 10] {
        let world = World::rotating(rotate, 1000);
        let audit = world.open();
        audit.synced(refused("whole")).await.unwrap();
        audit.sink.as_ref().unwrap().sync().await;
        audit.record(refused("torn"));
        drop(audit);
        let (newest, whole) = (world.newest(), fs::read(world.newest()).unwrap());
        let begin = whole[..whole.len() - 1].iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
        for end in begin..whole.len() {
            fs::write(&newest, &whole[..end]).unwrap();
            drop(world.open());
            let (records, report) = (world.records(), world.verify());
            assert!(report.ok, "cut at {end}: {report:#?}");
            assert_eq!(records[1]["detail"], "whole");
            let repaired = (end > begin).then_some("audit_repaired");
            assert_eq!(records.get(2).map(|record| record["event"].as_str().unwrap()), repaired, "cut at {end}");
            if let Some(repaired) = records.get(2) {
                assert_eq!(repaired["cut"], end - begin);
                assert_eq!(repaired["cut_sha256"], chain::sha256(&[&whole[begin..end]]));
            }
            // As it was, for the next one.
            for part in world.parts().iter().filter(|part| part.path > newest) {
                fs::remove_file(&part.path).unwrap();
            }
        }
    }
}

#[test]
fn a_crash_while_the_very_first_record_is_written_begins_anew() {
    let world = World::new();
    drop(world.open());
    fs::remove_file(&world.settings.head).ok();
    let whole = fs::read(world.newest()).unwrap();
    for end in 0..whole.len() {
        fs::write(world.newest(), &whole[..end]).unwrap();
        drop(world.open());
        let report = world.verify();
        assert!(report.ok && report.begins == Begins::AtTheFirst, "{report:#?}");
        assert_eq!(world.events(), ["audit_began"]);
    }
}

#[tokio::test]
async fn what_was_done_while_there_was_no_agent_is_said_and_stays_visible() {
    type Harm = fn(&World);
    let cases: &[(&str, &str, Harm)] = &[
        ("cut off", "missing", |world| {
            let content = fs::read_to_string(world.newest()).unwrap();
            let end = content.rfind("{\"version\"").unwrap();
            fs::write(world.newest(), &content[..end]).unwrap();
        }),
        ("a file removed", "missing", |world| fs::remove_file(world.newest()).unwrap()),
        ("all removed", "missing", |world| fs::remove_dir_all(&world.settings.dir).unwrap()),
        ("garbage at the end", "unreadable", |world| {
            let content = fs::read_to_string(world.newest()).unwrap();
            fs::write(world.newest(), content + "garbage\n").unwrap();
        }),
        ("the last record changed", "changed", |world| {
            let content = fs::read_to_string(world.newest()).unwrap();
            fs::write(world.newest(), content.replace("agent_stopped", "agent_started")).unwrap();
        }),
    ];
    for (name, kind, harm) in cases {
        let world = World::rotating(1500, 1000);
        let audit = world.open();
        for n in 0..10 {
            audit.record(refused(n.to_string()));
        }
        audit.stop().await;
        drop(audit);
        harm(&world);
        let audit = world.open();
        audit.record(refused("and it goes on"));
        audit.stop().await;
        let lines = last_lines(&world.parts(), 3).unwrap().join("\n");
        assert!(lines.contains("audit_repaired") && lines.contains("and it goes on"), "{name}: {lines}");
        let report = world.verify();
        assert!(!report.ok && report.problems.iter().any(|problem| problem.kind == *kind), "{name}: {report:#?}");
        // What was said once is not said again.
        drop(audit);
        world.open().stop().await;
        let last = last_lines(&world.parts(), 1).unwrap().join("\n");
        assert!(last.contains("agent_stopped"), "{name}: {last}");
    }
}

#[tokio::test]
async fn after_damage_beyond_what_the_head_knows_no_number_is_used_twice() {
    let world = World::new();
    let audit = world.open();
    audit.record(refused("the head knows it"));
    audit.sink.as_ref().unwrap().sync().await;
    (0..10).for_each(|n| audit.record(refused(n.to_string())));
    // It is killed, and the last record is another one.
    drop(audit);
    let content = fs::read_to_string(world.newest()).unwrap();
    fs::write(world.newest(), content.replace("\"9\"", "\"8\"")).unwrap();
    let audit = world.open();
    audit.record(refused("and it goes on"));
    audit.stop().await;
    let report = world.verify();
    let kinds: Vec<&str> = report.problems.iter().map(|problem| problem.kind).collect();
    assert_eq!(kinds, ["changed", "not_linked"], "{report:#?}");
    assert_eq!(world.records().last().unwrap()["seq"], report.records);
}

#[tokio::test]
async fn a_missing_or_unreadable_head_is_said_and_made_anew() {
    for content in [None, Some("{}"), Some("garbage")] {
        let world = World::new();
        world.open().stop().await;
        match content {
            Some(content) => fs::write(&world.settings.head, content).unwrap(),
            None => fs::remove_file(&world.settings.head).unwrap(),
        }
        assert_eq!(world.verify().head, HeadSays::Unknown);
        world.open().stop().await;
        assert_eq!(world.events(), ["audit_began", "agent_stopped", "audit_repaired", "agent_stopped"]);
        let report = world.verify();
        assert!(report.ok && report.head == HeadSays::Found, "{report:#?}");
    }
}

#[tokio::test]
async fn the_head_is_never_ahead_of_the_records_and_follows_them_at_a_stop() {
    let world = World::new();
    let audit = world.open();
    audit.record(refused("one"));
    assert_eq!(world.verify().head, HeadSays::Unknown);
    audit.stop().await;
    audit.record(refused("after the head"));
    let report = world.verify();
    assert!(report.ok && report.head == HeadSays::Found, "{report:#?}");
}

#[tokio::test]
async fn a_log_that_goes_on_where_its_files_are_gone_follows_the_record_its_head_names() {
    let world = World::new();
    world.open().stop().await;
    for part in world.parts() {
        fs::remove_file(&part.path).unwrap();
    }
    // The head is the one of before until the first records are on disk.
    let _audit = world.open();
    let report = world.verify();
    let kinds: Vec<&str> = report.problems.iter().map(|problem| problem.kind).collect();
    assert_eq!((report.head, &kinds[..]), (HeadSays::Found, &["missing"][..]), "{:#?}", report.problems);
    assert_eq!(world.events(), ["audit_repaired"]);
}
