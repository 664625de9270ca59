//! The one answer to "does this entry apply to this process?", for matching and for explaining.
//!
//! Three answers, in the logic of Kleene: a fact that is known to be missing makes it a no whatever else is unknown;
//! otherwise one thing that is not known makes the whole unknown.

use std::fmt;

use time::OffsetDateTime;

use super::entry::{Entry, rfc3339};
use super::keys::Key;
use super::template::Unexpanded;
use crate::attest::{Evidence, Gap};
use crate::id::SpiffeId;
use crate::selector::Selector;

/// Whether an entry applies to a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Judgement {
    /// It gives this identity.
    Match(SpiffeId),
    /// It does not apply.
    No,
    /// It cannot be said, and must not be taken for a no (peer rule 8).
    Unknown,
}

/// One reason for a judgement.
pub(super) enum Reason<'a> {
    Disabled,
    Expired(OffsetDateTime),
    Missing(&'a Selector, &'a Evidence),
    Forbidden(&'a Selector),
    Unknown(&'a Selector, &'a Gap),
    Template(Unexpanded),
}

impl Reason<'_> {
    /// Whether it makes the judgement a no rather than unknown.
    fn is_no(&self) -> bool {
        !matches!(self, Self::Unknown(..) | Self::Template(Unexpanded::Unknown { .. }))
    }
}

/// Judges one entry, and tells every reason why it does not match.
pub(super) fn judge<'a>(
    entry: &'a Entry,
    evidence: &'a Evidence,
    now: OffsetDateTime,
    mut because: impl FnMut(Reason<'a>),
) -> Judgement {
    let (mut no, mut unknown) = (false, false);
    let mut note = |reason: Reason<'a>| {
        if reason.is_no() {
            no = true
        } else {
            unknown = true
        }
        because(reason);
    };

    if entry.is_disabled() {
        note(Reason::Disabled);
    }
    if let Some(end) = entry.expires_at().filter(|end| *end <= now) {
        note(Reason::Expired(end));
    }
    for required in entry.matches() {
        if evidence.selectors.contains(required) {
            continue;
        }
        match evidence.gap_for(required) {
            Some(gap) => note(Reason::Unknown(required, gap)),
            None => note(Reason::Missing(required, evidence)),
        }
    }
    for forbidden in entry.unless() {
        if evidence.selectors.contains(forbidden) {
            note(Reason::Forbidden(forbidden));
        } else if let Some(gap) = evidence.gap_for(forbidden) {
            note(Reason::Unknown(forbidden, gap));
        }
    }
    if no {
        return Judgement::No;
    }
    if unknown {
        return Judgement::Unknown;
    }
    match entry.spiffe_id().expand(evidence) {
        Ok(id) => Judgement::Match(id),
        Err(unexpanded) => {
            let reason = Reason::Template(unexpanded);
            let judgement = if reason.is_no() { Judgement::No } else { Judgement::Unknown };
            because(reason);
            judgement
        }
    }
}

/// The judgement together with the reasons that decided it, for a person.
pub(super) fn explain(entry: &Entry, evidence: &Evidence, now: OffsetDateTime) -> (Judgement, Vec<String>) {
    let mut reasons = Vec::new();
    let judgement = judge(entry, evidence, now, |reason| reasons.push(reason));
    let decided_by_no = judgement == Judgement::No;
    reasons.retain(|reason| reason.is_no() == decided_by_no);
    (judgement, reasons.iter().map(Reason::to_string).collect())
}

impl fmt::Display for Reason<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disabled => f.write_str("the entry is disabled"),
            Self::Expired(end) => write!(f, "the entry expired at {}", rfc3339(*end)),
            Self::Missing(required, evidence) => missing(f, required, evidence),
            Self::Forbidden(forbidden) => write!(f, "`{forbidden}` holds and `unless` forbids it"),
            Self::Unknown(selector, gap) => write!(f, "whether `{selector}` holds could not be found out: {}", gap.why),
            Self::Template(unexpanded) => write!(f, "{unexpanded}"),
        }
    }
}

/// What is missing, beside what there is of the same kind: most often the reader sees the mistake at once.
fn missing(f: &mut fmt::Formatter<'_>, required: &Selector, evidence: &Evidence) -> fmt::Result {
    const SHOWN: usize = 4;
    let key = Key::of(required);
    let same_kind: Vec<&Selector> = evidence.selectors.iter().filter(|fact| Key::of(fact) == key).collect();
    write!(f, "`{required}` does not hold; ")?;
    if same_kind.is_empty() {
        return write!(f, "the process has no `{}:{}`", key.kind(), key.key());
    }
    let shown: Vec<String> = same_kind.iter().take(SHOWN).map(|fact| format!("`{}`", fact.shown())).collect();
    let more = if same_kind.len() > SHOWN { " and more" } else { "" };
    write!(f, "the process has {}{more}", shown.join(", "))
}
