//! What the audit log of this host says was ended since a backup was made.
//!
//! It is not what is restored, so it knows more. Does not know: what was ended while it lay elsewhere, or in files that were
//! removed.

use std::borrow::Cow;
use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::audit::{self, AuditError, Cursor};
use crate::store::{Image, Space};

/// What was ended.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Since {
    /// Authorities, whenever it was: their ids are given once.
    #[serde(skip)]
    pub(super) revoked: BTreeSet<String>,
    /// Stored entries, by id.
    pub(super) deleted_entries: BTreeSet<String>,
    /// Bundles of other trust domains.
    pub(super) deleted_bundles: BTreeSet<String>,
    /// Why that is not known.
    #[serde(rename = "audit_log_unreadable", skip_serializing_if = "Option::is_none")]
    pub(super) unknown: Option<String>,
}

#[derive(Deserialize)]
struct Fields<'a> {
    #[serde(borrow)]
    time: Cow<'a, str>,
    #[serde(borrow)]
    event: Cow<'a, str>,
    #[serde(borrow, default)]
    id: Cow<'a, str>,
    #[serde(borrow, default)]
    change: Cow<'a, str>,
    #[serde(borrow, default)]
    action: Cow<'a, str>,
    #[serde(borrow, default)]
    subject: Cow<'a, str>,
}

/// Looks through the log; where there is none, nothing is known to have ended.
pub(super) fn look(log: &audit::Settings, made_at: OffsetDateTime) -> Result<Since, AuditError> {
    let mut since = Since::default();
    if !log.dir.exists() {
        return Ok(since);
    }
    let (parts, mut cursor) = (audit::parts(&log.dir)?, Cursor::at_the_first());
    loop {
        let lines = cursor.read(&parts)?;
        if lines.is_empty() {
            return Ok(since);
        }
        lines.iter().for_each(|line| since.take(line, made_at));
    }
}

impl Since {
    /// Nothing is known.
    pub(super) fn unknown(why: String) -> Self {
        Self { unknown: Some(why), ..Self::default() }
    }

    fn take(&mut self, line: &str, made_at: OffsetDateTime) {
        // Most lines are about something else, and need not be understood.
        if !["\"revoked\"", "entry.", "bundle."].iter().any(|text| line.contains(text)) {
            return;
        }
        let Ok(fields) = serde_json::from_str::<Fields<'_>>(line) else { return };
        if fields.event == "authority_changed" && fields.change == "revoked" {
            self.revoked.insert(fields.id.into_owned());
            return;
        }
        let is_since = OffsetDateTime::parse(&fields.time, &Rfc3339).is_ok_and(|time| time >= made_at);
        if fields.event != "admin" || !is_since {
            return;
        }
        let subject = fields.subject.as_ref();
        match fields.action.as_ref() {
            "entry.delete" => drop(self.deleted_entries.insert(subject.to_owned())),
            "entry.create" => drop(self.deleted_entries.remove(subject)),
            "bundle.delete" => drop(self.deleted_bundles.insert(subject.to_owned())),
            "bundle.set" => drop(self.deleted_bundles.remove(subject)),
            _ => {}
        }
    }

    /// Of what was deleted, that which comes back with this.
    pub(super) fn that_are_in(mut self, image: &Image) -> Self {
        self.deleted_entries.retain(|id| image.get(Space::Entries, id).is_some());
        self.deleted_bundles.retain(|domain| image.get(Space::Bundles, domain).is_some());
        self
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn of_the_log_counts_what_was_ended_and_not_made_again() {
        let line = |time: &str, rest: &str| format!(r#"{{"seq":1,"time":"2026-01-0{time}T00:00:00Z",{rest}}}"#);
        let admin = |action: &str, subject: &str| {
            format!(r#""event":"admin","caller":{{"uid":0}},"action":"{action}","subject":"{subject}""#)
        };
        let changed = |id: &str, change: &str| {
            format!(r#""event":"authority_changed","id":"{id}","kind":"jwt","change":"{change}""#)
        };
        let mut since = Since::default();
        for line in [
            line("1", &changed("before", "revoked")),
            line("3", &changed("after", "revoked")),
            line("3", &changed("over", "removed")),
            line("1", &admin("entry.delete", "early")),
            line("3", &admin("entry.delete", "gone")),
            line("3", &admin("entry.delete", "again")),
            line("4", &admin("entry.create", "again")),
            line("4", &admin("bundle.delete", "other.example")),
            // Somebody who may choose a text cannot choose what a record says.
            line("4", r#""event":"refused","detail":"entry.delete \"revoked\"","id":"x","change":"revoked""#),
            "entry.delete, and no record".to_owned(),
        ] {
            since.take(&line, datetime!(2026-01-02 00:00 UTC));
        }
        let set = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect::<BTreeSet<_>>();
        assert_eq!(since.revoked, set(&["after", "before"]));
        assert_eq!((since.deleted_entries, since.deleted_bundles), (set(&["gone"]), set(&["other.example"])));
    }
}
