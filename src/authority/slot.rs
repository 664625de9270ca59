//! Which authority signs, which is getting ready, which is on its way out: pure transitions, no I/O, no clock.
//!
//! A slot is prepared (published, so that verifiers learn it), active (it signs), retired (published until the last
//! thing it signed is out), and then gone.
//!
//! INVARIANT: what signs is published before it signs, and stays published until its last signature is out.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::signers::BACKDATE;

/// What an authority signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The self-signed root: in the bundle, signs signing CAs only.
    X509Root,
    /// The CA under the root that signs X.509-SVIDs; travels in each chain, not in the bundle.
    X509Signing,
    /// The key that signs JWT-SVIDs; in the bundle.
    Jwt,
    /// The key that signs WIT-SVIDs; in the bundle when the WIT profile is on.
    Wit,
}

impl Kind {
    /// The name in the admin API and the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::X509Root => "x509-root",
            Self::X509Signing => "x509-signing",
            Self::Jwt => "jwt",
            Self::Wit => "wit",
        }
    }

    /// The kind with this name.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::X509Root, Self::X509Signing, Self::Jwt, Self::Wit].into_iter().find(|kind| kind.as_str() == name)
    }
}

/// Where a slot stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum State {
    /// Published; signs from `activates_at` on.
    Prepared {
        /// When it begins to sign.
        #[serde(with = "time::serde::rfc3339")]
        activates_at: OffsetDateTime,
    },
    /// Signs.
    Active,
    /// Signs no more; published until `keep_until`.
    Retired {
        /// When the last thing it signed is out.
        #[serde(with = "time::serde::rfc3339")]
        keep_until: OffsetDateTime,
    },
}

impl State {
    /// The name in the admin API.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Prepared { .. } => "prepared",
            Self::Active => "active",
            Self::Retired { .. } => "retired",
        }
    }
}

/// One authority as the journal keeps it. Its private key is in the key store under the same id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    /// Unique among all authorities of this node; the `kid` of a JWT or WIT key.
    pub id: String,
    /// What it signs.
    pub kind: Kind,
    /// Where it stands.
    #[serde(flatten)]
    pub state: State,
    /// Nothing it signs is valid before this.
    #[serde(with = "time::serde::rfc3339")]
    pub not_before: OffsetDateTime,
    /// Nothing it signs is valid after this.
    #[serde(with = "time::serde::rfc3339")]
    pub not_after: OffsetDateTime,
    /// The CA certificate in DER; empty for a JWT or WIT key.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub certificate: Vec<u8>,
    /// The id of the root that signed it, for a signing CA.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
}

impl Slot {
    fn is_active(&self) -> bool {
        self.state == State::Active
    }

    fn is_prepared(&self) -> bool {
        matches!(self.state, State::Prepared { .. })
    }

    /// Whether it was made in what is the future now: the clock was set back since, by more than certificates are
    /// backdated.
    fn begins_after(&self, now: OffsetDateTime) -> bool {
        self.not_before - BACKDATE > now
    }

    /// At a third of its life the successor is prepared.
    fn prepare_next_at(&self) -> OffsetDateTime {
        self.not_before + (self.not_after - self.not_before) / 3
    }

    /// At half of its life the successor takes over: what may live as long as that fits into what is left.
    fn hand_over_at(&self) -> OffsetDateTime {
        self.not_before + (self.not_after - self.not_before) / 2
    }
}

/// The next thing to do. Carried out one at a time: each step changes what the next one is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Make a new authority that signs from the given time on.
    Prepare(Kind, OffsetDateTime),
    /// Let the prepared authority with this id sign, and retire the active one of its kind.
    Activate(String),
    /// Forget the authority with this id.
    Remove(String),
}

/// What is to be done at `now`, and otherwise when to look again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Do this and plan again.
    Now(Step),
    /// Nothing until then.
    At(OffsetDateTime),
}

/// Plans for the kinds this authority manages itself; others only end. Verifiers learn what is published within the
/// `propagation` of its kind. What has signed is forgotten once its end has `surely` come ([`Clock::surely`]): should the
/// clock be set back, what it revoked must still be on a list.
///
/// [`Clock::surely`]: crate::base::clock::Clock::surely
pub fn plan(
    slots: &[Slot],
    managed: &[Kind],
    now: OffsetDateTime,
    surely: OffsetDateTime,
    propagation: impl Fn(Kind) -> Duration,
) -> Plan {
    let mut wake = now + Duration::from_secs(3600);
    for slot in slots {
        let (end, by) = match slot.state {
            State::Retired { keep_until } => (keep_until.min(slot.not_after), surely),
            State::Active => (slot.not_after, surely),
            State::Prepared { .. } => (slot.not_after, now),
        };
        if end <= by {
            return Plan::Now(Step::Remove(slot.id.clone()));
        }
        if end > now {
            wake = wake.min(end);
        }
    }
    for &kind in managed {
        let of_kind = || slots.iter().filter(move |slot| slot.kind == kind);
        let active = of_kind().find(|slot| slot.is_active() && slot.not_after > now);
        let prepared = of_kind().find(|slot| slot.is_prepared());
        if let Some(early) = prepared.filter(|slot| slot.begins_after(now)) {
            return Plan::Now(Step::Remove(early.id.clone()));
        }
        let due = match (active, prepared) {
            // Nothing signs and nobody can have learnt otherwise: begin at once.
            (None, None) => return Plan::Now(Step::Prepare(kind, now)),
            (None, Some(prepared)) => return Plan::Now(Step::Activate(prepared.id.clone())),
            (Some(active), None) if kind == Kind::X509Signing && outlived_its_root(active, slots) => {
                return Plan::Now(Step::Prepare(kind, now));
            }
            // The clock was set back: nobody believes what it signs. A key for tokens is believed all the same, and
            // replaced in time: by the clock it would sign for longer than it may.
            (Some(active), None) if active.begins_after(now) => {
                let learnt = if active.certificate.is_empty() { propagation(kind) } else { Duration::ZERO };
                return Plan::Now(Step::Prepare(kind, now + learnt));
            }
            (Some(active), None) => {
                if active.prepare_next_at() <= now {
                    // A host that slept past the hand-over gives verifiers their time too, as far as there is any.
                    let learnt = now + propagation(kind);
                    return Plan::Now(Step::Prepare(kind, active.hand_over_at().max(learnt).min(active.not_after)));
                }
                active.prepare_next_at()
            }
            (Some(_), Some(prepared)) => {
                let State::Prepared { activates_at } = prepared.state else { continue };
                if activates_at <= now {
                    return Plan::Now(Step::Activate(prepared.id.clone()));
                }
                activates_at
            }
        };
        wake = wake.min(due);
    }
    Plan::At(wake)
}

/// Whether the root above a signing CA no longer signs: its successor is the root that chains should end in.
fn outlived_its_root(signing: &Slot, slots: &[Slot]) -> bool {
    slots.iter().any(|root| Some(&root.id) == signing.issuer.as_ref() && matches!(root.state, State::Retired { .. }))
}

/// Lets the prepared slot sign. The active one of its kind is retired until everything it signed is out, which is
/// at most `longest` from now.
pub fn activate(slots: &mut [Slot], id: &str, now: OffsetDateTime, longest: Duration) {
    let Some(kind) = slots.iter().find(|slot| slot.id == id).map(|slot| slot.kind) else { return };
    for slot in slots.iter_mut().filter(|slot| slot.kind == kind) {
        if slot.id == id {
            slot.state = State::Active;
        } else if slot.is_active() {
            slot.state = State::Retired { keep_until: slot.not_after.min(now + longest) };
        }
    }
}

/// Moves the start of the prepared slot with this id, for a rotation an operator asked for.
pub fn reschedule(slots: &mut [Slot], id: &str, activates_at: OffsetDateTime) {
    for slot in slots.iter_mut().filter(|slot| slot.id == id && slot.is_prepared()) {
        slot.state = State::Prepared { activates_at };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    const START: OffsetDateTime = datetime!(2026-01-01 00:00 UTC);
    const LIFE: Duration = Duration::from_secs(24 * 3600);
    const HOUR: Duration = Duration::from_secs(3600);
    const PROPAGATION: Duration = Duration::from_secs(60);

    /// Carries out every step that is due at `now`, as the authority does.
    fn run(slots: &mut Vec<Slot>, now: OffsetDateTime) -> OffsetDateTime {
        for _ in 0..20 {
            match plan(slots, &[Kind::Jwt], now, now, |_| PROPAGATION) {
                Plan::At(next) => return next,
                Plan::Now(Step::Prepare(kind, activates_at)) => slots.push(Slot {
                    id: format!("{}", now.unix_timestamp()),
                    kind,
                    state: State::Prepared { activates_at },
                    not_before: now,
                    not_after: now + LIFE,
                    certificate: Vec::new(),
                    issuer: None,
                }),
                Plan::Now(Step::Activate(id)) => activate(slots, &id, now, HOUR),
                Plan::Now(Step::Remove(id)) => slots.retain(|slot| slot.id != id),
            }
        }
        panic!("the plan does not come to rest: {slots:?}");
    }

    fn states(slots: &[Slot]) -> Vec<&'static str> {
        slots.iter().map(|slot| slot.state.as_str()).collect()
    }

    #[test]
    fn over_its_life_an_authority_is_followed_by_a_prepared_one_that_was_published_first() {
        let mut slots = Vec::new();
        run(&mut slots, START);
        assert_eq!(states(&slots), ["active"]);
        run(&mut slots, START + HOUR * 7);
        assert_eq!(states(&slots), ["active"]);
        run(&mut slots, START + HOUR * 8);
        assert_eq!(states(&slots), ["active", "prepared"]);
        run(&mut slots, START + HOUR * 11);
        assert_eq!(states(&slots), ["active", "prepared"]);
        run(&mut slots, START + HOUR * 12);
        assert_eq!(states(&slots), ["retired", "active"]);
        run(&mut slots, START + HOUR * 13);
        assert_eq!(states(&slots), ["active"], "the retired one goes when its last signature is out");
    }

    #[test]
    fn what_signs_has_half_of_its_life_left_so_what_it_may_sign_always_fits() {
        let mut slots = Vec::new();
        for minute in 0..60 * 24 * 10 {
            let now = START + Duration::from_secs(60) * minute;
            run(&mut slots, now);
            let active = slots.iter().find(|slot| slot.is_active()).unwrap();
            assert!(active.not_after - now >= LIFE / 2, "{now}: {active:?}");
        }
    }

    #[test]
    fn a_host_that_slept_past_the_hand_over_publishes_the_successor_before_it_signs() {
        let mut slots = Vec::new();
        run(&mut slots, START);
        let next = run(&mut slots, START + HOUR * 20);
        assert_eq!(states(&slots), ["active", "prepared"]);
        assert_eq!(next, START + HOUR * 20 + PROPAGATION);
        run(&mut slots, next);
        assert_eq!(states(&slots), ["retired", "active"]);
    }

    #[test]
    fn after_the_clock_was_set_back_behind_the_beginning_of_what_signs_a_new_authority_signs() {
        let mut slots = Vec::new();
        run(&mut slots, START);
        run(&mut slots, START + HOUR * 8);
        assert_eq!(states(&slots), ["active", "prepared"]);
        let now = START - HOUR * 24;
        let next = run(&mut slots, now);
        assert_eq!(states(&slots), ["active", "prepared"], "tokens: verifiers learn the new key first");
        assert_eq!((slots[1].not_before, next), (now, now + PROPAGATION));
        run(&mut slots, next);
        assert_eq!(states(&slots), ["retired", "active"]);
    }

    #[test]
    fn a_clock_that_is_set_back_by_a_little_changes_nothing() {
        let mut slots = Vec::new();
        run(&mut slots, START);
        let before = slots.clone();
        run(&mut slots, START - BACKDATE);
        assert_eq!(slots, before);
    }

    #[test]
    fn at_every_hour_of_a_year_exactly_one_authority_signs() {
        let mut slots = Vec::new();
        for hour in 0..24 * 365 {
            run(&mut slots, START + HOUR * hour);
            let active = slots.iter().filter(|slot| slot.is_active()).count();
            assert_eq!(active, 1, "at hour {hour}: {slots:?}");
        }
    }

    #[test]
    fn after_a_long_sleep_of_the_host_a_new_authority_signs_at_once() {
        let mut slots = Vec::new();
        run(&mut slots, START);
        run(&mut slots, START + LIFE * 30);
        assert_eq!(states(&slots), ["active"]);
        assert_eq!(slots[0].not_before, START + LIFE * 30);
    }

    #[test]
    fn the_next_look_is_never_in_the_past() {
        let mut slots = Vec::new();
        let mut now = START;
        for _ in 0..1000 {
            let next = run(&mut slots, now);
            assert!(next > now);
            now = next;
        }
    }
}
