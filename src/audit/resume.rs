//! Where a log goes on after a stop, a crash, or worse.
//!
//! A record that was not written whole is cut off: what it was about did not happen. Everything else that is not as it
//! was left stays as it is, for whoever looks into it; the chain goes on in a new file, from what the head says, so that
//! the gap is there to be seen. Either way the first new record says what was found.

use std::collections::VecDeque;
use std::path::Path;

use time::OffsetDateTime;

use super::chain::{self, Link, Sealed};
use super::files::{self, Disk, Part, Tail};
use super::head::{self, Head};
use super::log::{Kept, Log, Resumed};
use super::{AuditError, Event, Settings};
use crate::base::durable;

/// Opens the log. Blocks.
pub(super) fn open(
    settings: Settings,
    node: &str,
    disk: Box<dyn Disk>,
    now: OffsetDateTime,
) -> Result<Log, AuditError> {
    durable::private_dir(&settings.dir)?;
    let parts = files::parts(&settings.dir)?;
    let head = head::read(&settings.head)?;
    let head = match head {
        Head::Of(of, _) if of != node => return Err(AuditError::Foreign(settings.head)),
        head => head,
    };
    let (resumed, found) = look(&parts, head, node, now)?;
    let mut log = Log::go_on(settings, node, disk, resumed, now)?;
    if let Some(event) = found {
        log.write(now, &event.into())?;
    }
    log.retire(now)?;
    Ok(log)
}

/// Puts a log that is another node's out of the way of this node's: its head into `aside`, its files into a directory of
/// that name where they are. Says whether there was one. Blocks.
pub fn set_aside_of_others(settings: &Settings, node: &str, aside: &Path) -> Result<bool, AuditError> {
    let is_there = settings.dir.exists();
    let parts = if is_there { files::parts(&settings.dir)? } else { Vec::new() };
    let head = head::read(&settings.head)?;
    let mut is_of_another = matches!(&head, Head::Of(of, _) if of != node);
    for part in &parts {
        is_of_another |= first_record(part)?.is_some_and(|record| record.node != node);
    }
    if !is_of_another {
        return Ok(false);
    }
    if head != Head::Missing {
        durable::private_dir(aside)?;
        durable::rename(&settings.head, &aside.join("audit.head"))?;
    }
    if !parts.is_empty() {
        let beside = settings.dir.join(aside.file_name().unwrap_or_default());
        durable::private_dir(&beside)?;
        for part in &parts {
            durable::rename(&part.path, &beside.join(part.path.file_name().unwrap_or_default()))?;
        }
    }
    Ok(true)
}

/// Where to go on, and what to say of what was found.
fn look(parts: &[Part], head: Head, node: &str, now: OffsetDateTime) -> Result<(Resumed, Option<Event>), AuditError> {
    let Some(newest) = parts.last() else { return Ok(without_files(head)) };
    let end = files::tail(newest)?;
    let name = || newest.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut kept = keep(parts, node, now)?;
    let newest_record = match &end.line {
        Some(line) => Sealed::read(line).filter(|sealed| sealed.holds),
        // Nothing was written into it whole: the end of the chain is in the file before.
        None if end.whole == 0 => last_record(parts.len().checked_sub(2).and_then(|before| parts.get(before)))?,
        None => None,
    };
    let damaged = |what: String| Event::AuditRepaired { file: name(), what, cut: 0, cut_sha256: String::new() };
    let head_link = match &head {
        Head::Of(_, link) => Some(link.clone()),
        Head::Missing | Head::Unreadable => None,
    };
    if newest_record.is_none() && end.whole == 0 && parts.len() == 1 && newest.first == 1 && head_link.is_none() {
        // It died while it wrote its very first record.
        let why = "the first record was not written whole".to_owned();
        return Ok((Resumed { files: kept, last: Link::genesis(), whole: Some(0) }, Some(Event::AuditBegan { why })));
    }
    let Some(record) = newest_record else {
        // Where nothing is certain, the numbers at least go on: the head may not know of the last second's records, and each
        // of them is a line, whatever became of it.
        let numbered = newest.first + files::lines(newest)?.saturating_sub(1);
        let seq = head_link.as_ref().map_or(0, |link| link.seq).max(numbered);
        let hash = head_link.map_or_else(|| Link::genesis().hash, |link| link.hash);
        let what = "it does not end in a record: it is left as it is, and the chain goes on in a new file".to_owned();
        return Ok((Resumed { files: kept, last: Link { seq, hash }, whole: None }, Some(damaged(what))));
    };
    if record.node != node {
        return Err(AuditError::Foreign(newest.path.clone()));
    }
    let last = record.link;
    match head_link {
        Some(link) if link.seq > last.seq => {
            let what = format!("records {} to {} were written and are missing", last.seq + 1, link.seq);
            Ok((Resumed { files: kept, last: link, whole: None }, Some(damaged(what))))
        }
        Some(link) if link.seq == last.seq && link.hash != last.hash => {
            let what = format!("record {} is not the one that was written", last.seq);
            // Never a file of a name that is there.
            let seq = last.seq.max(newest.first);
            Ok((Resumed { files: kept, last: Link { seq, ..link }, whole: None }, Some(damaged(what))))
        }
        Some(_) | None => {
            let found = repaired(&end, head, name());
            if newest.bytes == 0 || end.whole == 0 {
                // It goes on with a file in which there is nothing yet: that is the record it must begin with.
                if newest.first != last.seq + 1 {
                    let what = format!("it is empty, and the chain ends in record {}", last.seq);
                    let last = Link { seq: last.seq.max(newest.first), ..last };
                    return Ok((Resumed { files: kept, last, whole: None }, Some(damaged(what))));
                }
                if let Some(newest) = kept.back_mut() {
                    newest.since = now;
                }
            }
            Ok((Resumed { files: kept, last, whole: Some(end.whole) }, found))
        }
    }
}

fn without_files(head: Head) -> (Resumed, Option<Event>) {
    let go_on = |last| Resumed { files: VecDeque::new(), last, whole: None };
    match head {
        Head::Of(_, link) => {
            let what = format!("records up to {} were written, and there is no file", link.seq);
            let event = Event::AuditRepaired { file: String::new(), what, cut: 0, cut_sha256: String::new() };
            (go_on(link), Some(event))
        }
        Head::Unreadable | Head::Missing => {
            let why =
                if head == Head::Missing { "there was none" } else { "there was none, and the head is unreadable" };
            (go_on(Link::genesis()), Some(Event::AuditBegan { why: why.to_owned() }))
        }
    }
}

/// What to say when the end of the chain is what it must be, or was not written whole.
fn repaired(end: &Tail, head: Head, file: String) -> Option<Event> {
    let without_head = match head {
        Head::Of(..) => None,
        Head::Missing => Some("the head was missing: whether records are missing at the end is not known"),
        Head::Unreadable => Some("the head was unreadable: whether records are missing at the end is not known"),
    };
    let torn = (!end.torn.is_empty()).then_some("a record that was not written whole was cut off");
    let what: Vec<&str> = torn.into_iter().chain(without_head).collect();
    let cut_sha256 = torn.map(|_| chain::sha256(&[&end.torn])).unwrap_or_default();
    let cut = end.torn.len() as u64;
    (!what.is_empty()).then(|| Event::AuditRepaired { file, what: what.join("; "), cut, cut_sha256 })
}

/// The files with what must be known of them: when each began, and what each but the newest ended in.
fn keep(parts: &[Part], node: &str, now: OffsetDateTime) -> Result<VecDeque<Kept>, AuditError> {
    let mut kept = VecDeque::new();
    for (index, part) in parts.iter().enumerate() {
        let first = first_record(part)?;
        if first.as_ref().is_some_and(|record| record.node != node) {
            return Err(AuditError::Foreign(part.path.clone()));
        }
        let is_newest = index + 1 == parts.len();
        let last = if is_newest { None } else { last_record(Some(part))?.map(|record| record.link) };
        // Nothing is known of a damaged file; it is as old as those around it.
        let since = first.map_or(now, |record| record.time);
        let (path, first, bytes) = (part.path.clone(), part.first, part.bytes);
        let last = last.or((!is_newest).then(|| Link { seq: first, hash: Link::genesis().hash }));
        kept.push_back(Kept { path, first, since, bytes, last });
    }
    Ok(kept)
}

fn first_record(part: &Part) -> Result<Option<Sealed>, AuditError> {
    Ok(files::first_line(part)?.as_deref().and_then(Sealed::read))
}

fn last_record(part: Option<&Part>) -> Result<Option<Sealed>, AuditError> {
    let Some(part) = part else { return Ok(None) };
    Ok(files::tail(part)?.line.as_deref().and_then(Sealed::read).filter(|sealed| sealed.holds))
}
