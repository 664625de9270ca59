//! docs/audit.md says what the code says.

use super::*;

const DOCUMENT: &str = include_str!("../../../docs/audit.md");
const BEGIN: &str = "<!-- The events: made from src/audit/event.rs. -->\n";

/// The part of the document that is made from the code.
fn events() -> String {
    let line = |lines: &[&str]| lines.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ");
    let mut text = BEGIN.to_owned();
    for schema in Event::SCHEMA {
        text.push_str(&format!("\n### {}\n\n{}\n", schema.event, line(schema.doc)));
        if !schema.fields.is_empty() {
            text.push_str("\n| field | | meaning |\n|---|---|---|\n");
        }
        for field in schema.fields {
            text.push_str(&format!("| `{}` | {} | {} |\n", field.name, field.kind, line(field.doc)));
        }
    }
    text
}

#[test]
fn the_document_lists_every_event_with_every_field() {
    let expected = events();
    let at = DOCUMENT.find(BEGIN).expect("the document has a place for the events");
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/audit.md");
    if DOCUMENT[at..] != expected {
        if std::env::var_os("TETHER_WRITE_DOCS").is_some() {
            std::fs::write(path, format!("{}{expected}", &DOCUMENT[..at])).unwrap();
        }
        panic!("docs/audit.md is not what src/audit/event.rs says: run this test with TETHER_WRITE_DOCS=1 to write it");
    }
}

#[test]
fn no_event_has_a_field_of_the_chains_and_no_two_have_one_name() {
    let mut names = std::collections::BTreeSet::new();
    for schema in Event::SCHEMA {
        assert!(names.insert(schema.event), "{}", schema.event);
        for field in schema.fields {
            assert!(!chain::OF_THE_CHAIN.contains(&field.name), "{} {}", schema.event, field.name);
        }
    }
}
