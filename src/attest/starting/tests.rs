use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use time::OffsetDateTime;

use super::*;
use crate::attest::{Subject, SystemdConfig, UnitAnswer, UnitFacts, UnitManager};
use crate::peer::Instances;
use crate::selector::Selector;
use crate::sys::Kernel;

/// A systemd that says this of whatever it is asked.
struct Says {
    unit: Option<&'static str>,
    invocation: Option<&'static str>,
    user: Result<UnitUser, UnitManagerError>,
}

impl UnitManager for Says {
    fn unit_of<'a>(&'a self, _: &'a Subject) -> BoxFuture<'a, Result<UnitAnswer, UnitManagerError>> {
        let facts = self.unit.map(|unit| UnitFacts {
            id: unit.to_owned(),
            fragment_path: Some("/etc/systemd/system/billing.service".to_owned()),
            invocation_id: self.invocation.map(str::to_owned),
        });
        async move { Ok(UnitAnswer { unit: facts, by_number: false }) }.boxed()
    }
}

impl UnitUsers for Says {
    fn user_of<'a>(&'a self, _: &'a UnitName) -> BoxFuture<'a, Result<UnitUser, UnitManagerError>> {
        async { self.user.clone() }.boxed()
    }
}

const INVOCATION: &str = "0123456789abcdef0123456789abcdef";

async fn asked(says: Says) -> Result<StartingUnit, StartingError> {
    let booted = tempfile::tempdir().unwrap();
    let config = SystemdConfig { booted: booted.path().into(), ..SystemdConfig::default() };
    let (clock, _hand) = Clock::manual(OffsetDateTime::UNIX_EPOCH);
    let says = Arc::new(says);
    let units = StartingUnits {
        systemd: Systemd::new(&config, says.clone(), clock.clone(), Entropy::system()),
        users: says,
        names: Names::new(Nss, clock, Duration::from_secs(1)),
        patience: Duration::from_secs(60),
    };
    let instances = Instances::new(Kernel::probe()).unwrap();
    let us = instances.of_pid(std::process::id().cast_signed(), None).unwrap();
    units.attest(&SystemdCaller::believed(us), &UnitName::parse("billing.service").unwrap()).await
}

fn billing(user: Result<UnitUser, UnitManagerError>) -> Says {
    Says { unit: Some("billing.service"), invocation: Some(INVOCATION), user }
}

fn has(unit: &StartingUnit, selector: &str) -> bool {
    unit.attested().evidence().selectors.contains(&Selector::parse(selector).unwrap())
}

#[tokio::test]
async fn what_systemd_says_of_the_unit_and_its_user_are_selectors_and_what_is_seen_of_its_own_process_is_none() {
    let unit = asked(billing(Ok(UnitUser { uid: Some(4711), gid: Some(4712) }))).await.unwrap();
    assert_eq!((unit.invocation(), unit.uid()), (INVOCATION, Some(4711)));
    for selector in [
        "systemd:unit:billing.service",
        "systemd:id:billing.service",
        "systemd:name:billing",
        "systemd:fragment_path:/etc/systemd/system/billing.service",
        &format!("systemd:invocation_id:{INVOCATION}"),
        "unix:uid:4711",
        "unix:gid:4712",
    ] {
        assert!(has(&unit, selector), "{selector}");
    }
    let own = nix::unistd::geteuid();
    assert!(!has(&unit, &format!("unix:uid:{own}")), "the process that asks is taken for the unit");
    let evidence = unit.attested().evidence();
    for (kind, key) in KINDS {
        let known = evidence.selectors.iter().any(|found| (found.kind(), found.key()) == (*kind, *key));
        let silent = matches!((*kind, *key), ("unix", "user" | "group") | ("systemd", "prefix" | "instance"));
        assert!(known || silent || evidence.gap(kind, key).is_some(), "{kind}:{key} passes for known");
    }
    assert!(unit.attested().executable_holds().is_err());
}

#[tokio::test]
async fn a_user_that_systemd_does_not_say_is_a_gap_and_never_no_user() {
    for user in [Ok(UnitUser::default()), Err(UnitManagerError::Resting)] {
        let unit = asked(billing(user)).await.unwrap();
        assert_eq!(unit.uid(), None);
        for key in ["uid", "user", "gid", "group"] {
            assert!(unit.attested().evidence().gap("unix", key).is_some(), "{key}");
        }
        assert!(has(&unit, "systemd:unit:billing.service"));
    }
}

#[tokio::test]
async fn a_process_in_another_unit_or_in_none_does_not_ask_for_this_one() {
    let known = || Ok(UnitUser { uid: Some(1), gid: Some(1) });
    for unit in [Some("other.service"), Some("system.slice"), None] {
        let refused = asked(Says { unit, invocation: Some(INVOCATION), user: known() }).await;
        assert!(matches!(refused, Err(StartingError::OtherUnit { .. })), "{unit:?}: {refused:?}");
    }
    let refused = asked(Says { unit: Some("billing.service"), invocation: None, user: known() }).await;
    assert!(matches!(refused, Err(StartingError::NoInvocation(_))), "{refused:?}");
}
