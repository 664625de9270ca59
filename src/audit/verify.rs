//! Every record against the chain: changed, missing, reordered, repeated and cut-off records are found, in whatever file.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use serde::Serialize;

use super::AuditError;
use super::chain::{Link, MAX_RECORD, Sealed};
use super::files::Part;
use super::head::{self, Head};

/// A report names so many problems, and counts the rest.
const MAX_PROBLEMS: usize = 100;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The name of the file.
    pub file: String,
    /// The line in it, from 1; 0 for the file as a whole.
    pub line: u64,
    /// The number of the record, when it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seq: Option<u64>,
    /// `changed`, `missing`, `reordered`, `repeated`, `not_linked`, `unreadable`, `another_node`, `cut_off`, `no_head`.
    pub kind: &'static str,
    /// What is wrong, for a person.
    pub what: String,
}

/// How the records that are there begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Begins {
    /// There is none.
    Nowhere,
    /// With the first record of the chain.
    AtTheFirst,
    /// Later, and a record says that the ones before were removed as configured.
    AfterRetired,
    /// Later, and nothing says why.
    Unexplained,
}

/// What the end of the records was held against.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HeadSays {
    /// The record that the head names is there.
    Found,
    /// There is no head to hold it against: a missing end is not noticed.
    Unknown,
    /// It names a record that is not there, or is another one.
    NotFound,
}

/// A record that must be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// The record.
    pub link: Link,
    /// Who says so, for a person.
    pub by: String,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Whether nothing is wrong.
    pub ok: bool,
    /// How many records were read.
    pub records: u64,
    /// How many files.
    pub files: usize,
    /// The number of the first record.
    pub first: u64,
    /// How the records begin.
    pub begins: Begins,
    /// The last record, as `SEQ:HASH`: who notes it elsewhere can show later that nothing up to it was changed.
    pub last: String,
    /// What the head says.
    pub head: HeadSays,
    /// How many bytes at the very end are no whole record: one that is being written, or a crash in the middle of it.
    pub torn: u64,
    /// What is wrong, in the order it was found.
    pub problems: Vec<Problem>,
    /// How many more problems there are.
    pub more_problems: u64,
}

/// The records that must be there: the one the head file names, and those that somebody noted.
pub fn expected(head: &Path, noted: &[Link]) -> Result<Vec<Expected>, AuditError> {
    let mut expected = Vec::new();
    if let Head::Of(_, link) = head::read(head)? {
        expected.push(Expected { link, by: format!("the head `{}`", head.display()) });
    }
    expected.extend(noted.iter().map(|link| Expected { link: link.clone(), by: "the record you name".to_owned() }));
    Ok(expected)
}

/// Reads every record of these files and holds it against the chain, and against the records that must be there. Blocks.
pub fn verify(parts: &[Part], expected: &[Expected]) -> Result<Report, AuditError> {
    let mut check = Check::default();
    for (index, part) in parts.iter().enumerate() {
        check.file(part, index + 1 == parts.len(), expected)?;
    }
    Ok(check.report(parts.len(), expected))
}

#[derive(Default)]
struct Check {
    file: String,
    line: u64,
    records: u64,
    first: Option<Sealed>,
    last: Option<Link>,
    node: Option<String>,
    /// Numbers that were left out so far: from, to, and where that was noticed.
    missing: BTreeMap<u64, (u64, Problem)>,
    /// The newest record that says what was removed.
    retired: Vec<Link>,
    found: Vec<Link>,
    torn: u64,
    problems: Vec<Problem>,
    more: u64,
}

impl Check {
    fn file(&mut self, part: &Part, is_newest: bool, expected: &[Expected]) -> Result<(), AuditError> {
        self.file = part.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        self.line = 0;
        let failed = |source| AuditError::Read { path: part.path.clone(), source };
        let mut lines = BufReader::new(File::open(&part.path).map_err(failed)?.take(part.bytes));
        let mut line = Vec::new();
        loop {
            line.clear();
            // A line without an end must not fill the memory.
            let limit = MAX_RECORD as u64 + 1;
            let read = (&mut lines).take(limit).read_until(b'\n', &mut line).map_err(failed)?;
            if read == 0 {
                return Ok(());
            }
            self.line += 1;
            if line.pop_if(|last| *last == b'\n').is_none() {
                if read as u64 == limit {
                    self.problem("unreadable", None, "it is longer than a record can be".to_owned());
                    skip_line(&mut lines).map_err(failed)?;
                } else if is_newest {
                    self.torn = read as u64;
                } else {
                    self.problem("unreadable", None, "the file does not end in a whole record".to_owned());
                }
                continue;
            }
            match Sealed::read(&line) {
                Some(record) => self.record(record, part, expected),
                None => self.problem("unreadable", None, "it is not a record".to_owned()),
            }
        }
    }

    fn record(&mut self, record: Sealed, part: &Part, expected: &[Expected]) {
        self.records += 1;
        let seq = record.link.seq;
        if !record.holds {
            self.problem("changed", Some(seq), "its bytes do not have the hash it says".to_owned());
        }
        if self.node.get_or_insert_with(|| record.node.clone()) != &record.node {
            self.problem("another_node", Some(seq), format!("it is of the node `{}`", record.node));
        }
        if self.line == 1 && part.first != seq {
            let what = format!("the file is named after record {}, and begins with {seq}", part.first);
            self.problem("reordered", Some(seq), what);
        }
        if expected.iter().any(|expected| expected.link == record.link && record.holds) {
            self.found.push(record.link.clone());
        }
        if let Some(retired) = record.retired.clone().filter(|_| record.holds) {
            self.retired.push(retired);
        }
        match &self.last {
            None => self.last = Some(record.link.clone()),
            Some(last) if seq == last.seq + 1 => {
                if record.prev != last.hash {
                    let what = format!("it follows another record {} than the one before it", last.seq);
                    self.problem("not_linked", Some(seq), what);
                }
                self.last = Some(record.link.clone());
            }
            Some(last) if seq > last.seq + 1 => {
                let (from, to) = (last.seq + 1, seq - 1);
                let gap = self.here("missing", Some(seq), format!("{} missing before it", records(from, to)));
                self.missing.insert(from, (to, gap));
                self.last = Some(record.link.clone());
            }
            Some(_) => self.out_of_order(seq),
        }
        if self.first.is_none() {
            self.first = Some(record);
        }
    }

    /// A record with a number that came before, or was missed.
    fn out_of_order(&mut self, seq: u64) {
        let gap = self.missing.range(..=seq).next_back().filter(|(_, (to, _))| *to >= seq);
        let Some((from, (to, noticed))) = gap.map(|(from, gap)| (*from, gap.clone())) else {
            let is_from_before = self.first.as_ref().is_some_and(|first| seq < first.link.seq);
            let kind = if is_from_before { "reordered" } else { "repeated" };
            let what =
                if is_from_before { "it belongs before the first record" } else { "its number is there already" };
            return self.problem(kind, Some(seq), what.to_owned());
        };
        self.missing.remove(&from);
        for (from, to) in [(from, seq - 1), (seq + 1, to)] {
            if from <= to {
                let what = format!("{} missing before it", records(from, to));
                self.missing.insert(from, (to, Problem { what, ..noticed.clone() }));
            }
        }
        self.problem("reordered", Some(seq), "it stands after records that were written later".to_owned());
    }

    fn here(&self, kind: &'static str, seq: Option<u64>, what: String) -> Problem {
        Problem { file: self.file.clone(), line: self.line, seq, kind, what }
    }

    fn problem(&mut self, kind: &'static str, seq: Option<u64>, what: String) {
        let problem = self.here(kind, seq, what);
        self.add(problem);
    }

    fn add(&mut self, problem: Problem) {
        if self.problems.len() < MAX_PROBLEMS { self.problems.push(problem) } else { self.more += 1 }
    }

    fn report(mut self, files: usize, expected: &[Expected]) -> Report {
        for (_, (_, gap)) in std::mem::take(&mut self.missing) {
            self.add(gap);
        }
        let begins = self.begins();
        if begins == Begins::Unexplained
            && let Some(first) = &self.first
        {
            let what = format!("{} missing, and no record says that they were removed", records(1, first.link.seq - 1));
            let (seq, file) = (Some(first.link.seq), String::new());
            self.add(Problem { file, line: 0, seq, kind: "missing", what });
        }
        let head = self.against(expected);
        Report {
            ok: self.problems.is_empty(),
            records: self.records,
            files,
            first: self.first.as_ref().map_or(0, |first| first.link.seq),
            begins,
            last: self.last.map(|last| last.to_string()).unwrap_or_default(),
            head,
            torn: self.torn,
            problems: self.problems,
            more_problems: self.more,
        }
    }

    fn begins(&self) -> Begins {
        let Some(first) = &self.first else { return Begins::Nowhere };
        let removed = |link: &Link| link.seq + 1 == first.link.seq && link.hash == first.prev;
        // Files that a record says are removed may be there still: the agent died in between.
        if first.link.seq == 1 && first.prev == Link::genesis().hash {
            Begins::AtTheFirst
        } else if self.retired.iter().any(removed) {
            Begins::AfterRetired
        } else {
            Begins::Unexplained
        }
    }

    /// Holds what was read against the records that must be there.
    fn against(&mut self, expected: &[Expected]) -> HeadSays {
        let mut says = if expected.is_empty() { HeadSays::Unknown } else { HeadSays::Found };
        for Expected { link, by } in expected {
            let retired = self.first.as_ref().is_some_and(|first| link.seq < first.link.seq);
            // The chain goes on from it: a log whose files are gone, or whose head came from a backup.
            let is_before = |first: &Sealed| link.seq + 1 == first.link.seq && link.hash == first.prev;
            let precedes = self.first.as_ref().is_some_and(is_before);
            if self.found.contains(link) || precedes || (retired && self.begins() == Begins::AfterRetired) {
                continue;
            }
            says = HeadSays::NotFound;
            let last = self.last.as_ref().map_or(0, |last| last.seq);
            let (kind, what) = if link.seq > last {
                ("cut_off", format!("{by} says that record {} was written, and the last one is {last}", link.seq))
            } else {
                ("changed", format!("{by} says that record {} was another one", link.seq))
            };
            self.add(Problem { file: self.file.clone(), line: 0, seq: Some(link.seq), kind, what });
        }
        says
    }
}

/// Reads to the end of a line, whatever is on it.
fn skip_line(lines: &mut impl BufRead) -> std::io::Result<()> {
    loop {
        let bytes = lines.fill_buf()?;
        let newline = bytes.iter().position(|byte| *byte == b'\n');
        let read = newline.map_or(bytes.len(), |at| at + 1);
        lines.consume(read);
        if newline.is_some() || read == 0 {
            return Ok(());
        }
    }
}

fn records(from: u64, to: u64) -> String {
    if from == to { format!("record {from} is") } else { format!("records {from} to {to} are") }
}
