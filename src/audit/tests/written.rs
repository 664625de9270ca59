//! What is written, and that whatever is changed in it afterwards is found.

use std::collections::BTreeSet;
use std::fs;

use super::*;

#[test]
fn a_record_is_a_line_whose_hash_is_over_its_own_bytes_and_whose_prev_is_that_of_the_line_before() {
    let world = World::new();
    let audit = world.open();
    audit.record(refused("\"quoted\"\nand \u{1F600}"));
    audit.before(Event::AgentStopped {}).unwrap();
    let content = fs::read_to_string(world.newest()).unwrap();
    let mut prev = "0".repeat(64);
    for (line, seq) in content.lines().zip(1..) {
        let record: serde_json::Value = serde_json::from_str(line).unwrap();
        let (body, seal) = line.split_at(line.rfind(",\"hash\":\"").unwrap());
        let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, format!("{body}}}").as_bytes());
        let hash = crate::base::entropy::hex(hash.as_ref());
        assert_eq!(seal, format!(",\"hash\":\"{hash}\"}}"));
        assert_eq!((&record["version"], &record["seq"]), (&1.into(), &seq.into()));
        assert_eq!((&record["node"], &record["prev"]), (&NODE.into(), &prev.into()));
        assert_eq!(record["time"], "2023-11-14T22:13:20Z");
        prev = hash;
    }
    assert_eq!(world.events(), ["audit_began", "refused", "agent_stopped"]);
    assert_eq!(world.records()[1]["detail"], "\"quoted\"\nand \u{1F600}");
    assert_eq!(world.records()[1]["caller"], serde_json::json!({"instance": "an-instance", "pid": 7, "uid": 1000}));
}

#[test]
fn what_is_empty_is_left_out_and_what_is_too_long_is_cut() {
    let world = World::new();
    let audit = world.open();
    audit.record(Event::CallReported {
        caller: caller(),
        session: "s".to_owned(),
        txn: String::new(),
        outcome: "done",
        note: "é".repeat(5000),
        result_sha256: String::new(),
    });
    audit.record(Event::EntriesRefused { mistakes: vec!["x".repeat(2000); 1000] });
    let records = world.records();
    assert!(records[1].get("txn").is_none() && records[1].get("result_sha256").is_none());
    let note = records[1]["note"].as_str().unwrap();
    assert!(note.len() < 5000 && note.ends_with("é…"), "{note}");
    let mistakes = records[2]["mistakes"].as_array().unwrap();
    assert_eq!(mistakes.len(), 65);
    assert_eq!(mistakes[64], "and 936 more");
    assert!(world.verify().ok);
}

#[test]
fn what_a_policy_redacts_is_in_no_record_and_what_ties_records_together_stays() {
    let world = World::new();
    let audit = world.open();
    let fields = ["session", "note", "result_sha256", "nonsense"].map(str::to_owned);
    let event = Event::CallReported {
        caller: caller(),
        session: "s".to_owned(),
        txn: "t".to_owned(),
        outcome: "done",
        note: "a secret".to_owned(),
        result_sha256: String::new(),
    };
    audit.before(event.redacted(&BTreeSet::from(fields))).unwrap();
    let records = world.records();
    assert_eq!((&records[1]["session"], &records[1]["note"]), (&"s".into(), &"redacted".into()));
    assert!(records[1].get("result_sha256").is_none(), "what was not there is not there");
    assert!(Event::is_redactable("user") && !Event::is_redactable("session") && !Event::is_redactable("hash"));
}

#[tokio::test]
async fn an_untouched_log_is_in_order_over_files_and_restarts() {
    let world = World::rotating(1000, 1000);
    for round in 0..3 {
        let audit = world.open();
        for n in 0..7 {
            audit.record(refused(format!("{round} {n}")));
        }
        audit.stop().await;
    }
    let report = world.verify();
    assert!(report.ok, "{report:#?}");
    assert!(report.files > 5);
    assert_eq!(
        (report.records, report.first, report.begins, report.head),
        (25, 1, Begins::AtTheFirst, HeadSays::Found)
    );
}

#[tokio::test]
async fn files_beyond_the_number_that_is_kept_go_and_the_chain_says_so() {
    let world = World::rotating(1000, 3);
    let audit = world.open();
    for n in 0..40 {
        audit.synced(refused(n.to_string())).await.unwrap();
    }
    audit.stop().await;
    assert_eq!(world.parts().len(), 3);
    let report = world.verify();
    assert!(report.ok, "{report:#?}");
    assert_eq!((report.begins, report.head), (Begins::AfterRetired, HeadSays::Found));
    drop(audit);
    world.open().stop().await;
    assert!(world.verify().ok);

    // One more than was retired.
    fs::remove_file(&world.parts()[0].path).unwrap();
    let report = world.verify();
    assert_eq!((report.ok, report.begins), (false, Begins::Unexplained));
    assert_eq!(report.problems[0].kind, "missing");
}

#[tokio::test]
async fn no_record_is_kept_for_longer_than_it_may_be_though_nobody_writes() {
    let mut world = World::new();
    let day = Duration::from_secs(24 * 60 * 60);
    world.settings.keep_for = Some(day * 8);
    let audit = world.open();
    for n in 0..20 {
        audit.synced(refused(n.to_string())).await.unwrap();
        world.hand.advance(day);
        let oldest = &world.records()[0]["time"];
        let oldest = OffsetDateTime::parse(oldest.as_str().unwrap(), &time::format_description::well_known::Rfc3339);
        assert!(world.clock.now() - oldest.unwrap() <= day * 9);
    }
    let (stop, drain) = drain::channel();
    let keeper = tokio::spawn(async move { audit.keep(drain).await });
    world.hand.advance(day * 30);
    let all_gone = async {
        while world.events().iter().any(|event| event == "refused") {
            world.hand.advance(day);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), all_gone).await.expect("old records go");
    stop.drain().await;
    keeper.await.unwrap();
    let report = world.verify();
    assert!(report.ok, "{report:#?}");
}

/// Changes the lines of all files as one list, and puts each back where it was, as far as there are as many.
fn tamper(world: &World, change: impl FnOnce(&mut Vec<String>)) {
    let parts = world.parts();
    let counts: Vec<_> = parts.iter().map(|part| fs::read_to_string(&part.path).unwrap().lines().count()).collect();
    let mut lines = last_lines(&parts, usize::MAX).unwrap();
    change(&mut lines);
    let mut rest = lines.into_iter();
    for (index, (part, count)) in parts.iter().zip(counts).enumerate() {
        let take = if index + 1 == parts.len() { usize::MAX } else { count };
        let content: String = rest.by_ref().take(take).map(|line| line + "\n").collect();
        fs::write(&part.path, content).unwrap();
    }
}

/// Writes a line's hash anew, as somebody does who knows how.
fn reseal(line: &mut String) {
    let body = line[..line.rfind(",\"hash\":").unwrap()].to_owned();
    let hash = chain::sha256(&[body.as_bytes(), b"}"]);
    *line = format!("{body},\"hash\":\"{hash}\"}}");
}

#[tokio::test]
async fn every_manipulation_is_found_and_named() {
    type Change = fn(&mut Vec<String>);
    let cases: &[(&str, &[&str], Change)] = &[
        ("a changed text", &["changed"], |lines| lines[9] = lines[9].replace("refused 8", "refused 9")),
        ("a changed number", &["changed"], |lines| lines[9] = lines[9].replace("\"pid\":7", "\"pid\":8")),
        ("a space", &["changed"], |lines| lines[9] = lines[9].replace("\"pid\":7", "\"pid\": 7")),
        ("a changed text, sealed anew", &["not_linked"], |lines| {
            lines[9] = lines[9].replace("refused 8", "refused 9");
            reseal(&mut lines[9]);
        }),
        ("a record left out", &["missing"], |lines| drop(lines.remove(9))),
        ("several left out", &["missing"], |lines| drop(lines.drain(9..14))),
        ("two exchanged", &["reordered"], |lines| lines.swap(9, 10)),
        ("one moved far back", &["reordered"], |lines| {
            let line = lines.remove(9);
            lines.insert(18, line);
        }),
        ("one repeated", &["repeated"], |lines| lines.insert(9, lines[5].clone())),
        ("not a record", &["unreadable"], |lines| lines.insert(9, "{}".to_owned())),
        ("an empty line", &["unreadable"], |lines| lines.insert(9, String::new())),
        ("the end cut off", &["cut_off"], |lines| lines.truncate(20)),
        ("the beginning cut off", &["missing", "reordered"], |lines| drop(lines.drain(..3))),
        ("the last one changed and sealed anew", &["changed"], |lines| {
            let last = lines.last_mut().unwrap();
            *last = last.replace("agent_stopped", "agent_started");
            reseal(last);
        }),
        ("all of it", &["cut_off"], Vec::clear),
    ];
    for (name, kinds, change) in cases {
        for rotate in [1 << 20, 1500] {
            let world = World::rotating(rotate, 1000);
            let audit = world.open();
            for n in 0..25 {
                audit.record(refused(format!("refused {n}")));
            }
            audit.stop().await;
            assert!(world.verify().ok);
            tamper(&world, change);
            let report = world.verify();
            let found: Vec<_> = report.problems.iter().map(|problem| problem.kind).collect();
            assert!(!report.ok, "{name}: {report:#?}");
            // In several files, lines that moved also stand in files of other names.
            let also = |kind: &&&str| rotate == 1500 && ["reordered", "missing"].contains(*kind);
            let others: Vec<_> = found.iter().filter(|kind| !kinds.contains(kind)).filter(|kind| !also(kind)).collect();
            assert!(kinds.iter().all(|kind| found.contains(kind)) && others.is_empty(), "{name}: {report:#?}");
        }
    }
}

#[tokio::test]
async fn a_whole_file_that_is_gone_or_put_elsewhere_is_found() {
    for gone in [0, 2, usize::MAX] {
        let world = World::rotating(1500, 1000);
        let audit = world.open();
        for n in 0..25 {
            audit.record(refused(format!("refused {n}")));
        }
        audit.stop().await;
        let parts = world.parts();
        fs::remove_file(&parts[gone.min(parts.len() - 1)].path).unwrap();
        let report = world.verify();
        let kind = if gone == usize::MAX { "cut_off" } else { "missing" };
        assert_eq!(report.problems.iter().map(|problem| problem.kind).collect::<Vec<_>>(), [kind], "{report:#?}");
    }
}

#[tokio::test]
async fn a_chain_that_was_written_anew_from_some_record_on_is_found_by_whoever_noted_a_head() {
    let (world, other) = (World::new(), World::new());
    for (world, text) in [(&world, "true"), (&other, "false")] {
        let audit = world.open();
        audit.record(refused(text));
        audit.stop().await;
    }
    let noted = Link::parse(&world.verify().last).unwrap();
    let held_against = |noted: &Link| {
        let expected = expected(&other.settings.head, std::slice::from_ref(noted)).unwrap();
        verify(&other.parts(), &expected).unwrap()
    };
    assert!(other.verify().ok, "by itself it is in order");
    let report = held_against(&noted);
    assert_eq!((report.ok, report.head, report.problems[0].kind), (false, HeadSays::NotFound, "changed"));
    assert!(held_against(&Link::parse(&other.verify().last).unwrap()).ok);
}

#[test]
fn records_of_another_node_are_not_gone_on_with() {
    let world = World::new();
    drop(world.open());
    let other = Audit::open(world.settings.clone(), "another", world.clock.clone());
    assert!(matches!(other, Err(AuditError::Foreign(_))));
}

#[test]
fn a_filter_picks_by_every_field_and_learns_which_sessions_are_below() {
    let record = |session: &str, parent: &str, event: &str, more: &str| {
        format!(
            r#"{{"version":1,"seq":1,"time":"2026-11-23T10:00:00.5Z","event":"{event}","session":"{session}","parent":"{parent}"{more}}}"#
        )
    };
    let lines = [
        record("node.aaaaaaaa11", "", "session_started", r#","user":"alice@node","spiffe_id":"spiffe://td/a/b""#),
        record("node.bbbbbbbb22", "node.aaaaaaaa11", "session_started", ""),
        record("node.cccccccc33", "node.bbbbbbbb22", "session_started", ""),
        record("node.bbbbbbbb22", "", "proof_made", r#","txn":"t1""#),
        record("node.dddddddd44", "", "session_started", ""),
        r#"{"version":1,"seq":1,"time":"2026-11-24T10:00:00Z","event":"agent_stopped"}"#.to_owned(),
    ];
    let picked = |filter: Filter| -> Vec<usize> {
        let mut picker = Picker::new(filter);
        (0..lines.len()).filter(|n| picker.picks(&lines[*n])).collect()
    };
    let at = |text| OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339).ok();
    let session = |name: &str, below| Filter { session: Some(name.to_owned()), below, ..Filter::default() };
    let cases = [
        (Filter::default(), vec![0, 1, 2, 3, 4, 5]),
        (session("node.bbbbbbbb22", false), vec![1, 3]),
        (session("bbbbbb", false), vec![1, 3]),
        (session("node.bbbbbb", true), vec![1, 2, 3]),
        (session("bbbbb", true), vec![]),
        (session("aaaaaaaa11", true), vec![0, 1, 2, 3]),
        (Filter { events: vec!["proof_made".to_owned()], ..session("aaaaaaaa11", true) }, vec![3]),
        (Filter { txn: Some("t1".to_owned()), ..Filter::default() }, vec![3]),
        (Filter { user: Some("alice@node".to_owned()), ..Filter::default() }, vec![0]),
        (Filter { spiffe_id: Some("spiffe://td/a/*".to_owned()), ..Filter::default() }, vec![0]),
        (Filter { spiffe_id: Some("spiffe://td/a".to_owned()), ..Filter::default() }, vec![]),
        (Filter { since: at("2026-11-24T00:00:00Z"), ..Filter::default() }, vec![5]),
        (Filter { until: at("2026-11-23T10:00:00.5Z"), ..Filter::default() }, vec![]),
    ];
    for (filter, expected) in cases {
        assert_eq!(picked(filter.clone()), expected, "{filter:?}");
    }
}

#[test]
fn a_cursor_reads_each_line_once_over_files_and_goes_on_with_what_is_written_later() {
    let world = World::rotating(1000, 1000);
    let audit = world.open();
    let mut cursor = Cursor::at_the_first();
    let mut seen = 0;
    for round in 0..5 {
        for n in 0..10 {
            audit.record(refused(format!("{round} {n}")));
        }
        loop {
            let lines = cursor.read(&audit.parts().unwrap()).unwrap();
            if lines.is_empty() {
                break;
            }
            for line in lines {
                seen += 1;
                assert!(line.contains(&format!("\"seq\":{seen},")), "{line}");
            }
        }
    }
    assert_eq!(seen, 51);
    assert_eq!(cursor, Cursor::at_the_end(&audit.parts().unwrap()));
    for count in [0, 1, 7, 51, 1000] {
        assert_eq!(last_lines(&world.parts(), count).unwrap().len(), count.min(51));
    }
}
