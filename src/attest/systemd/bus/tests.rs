//! A real message bus with something on it that answers like systemd.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use futures_util::StreamExt;
use nix::sys::socket::{getsockopt, sockopt};
use zbus::{MessageStream, connection, message};

use super::*;
use crate::attest::ExecutableEvidence;
use crate::attest::dbus::tests::{Daemon, address};
use crate::attest::guard::Outage as _;
use crate::attest::systemd::UnitWatcher;
use crate::sys::procfs::ProcDir;

/// How the other side behaves.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// systemd 253 and later.
    Current,
    /// systemd before 253.
    OnlyNumbers,
    /// The same, on a bus that lets users call the methods that are there, and we are not root.
    Forbidden,
    /// The process is in no unit.
    NoUnit,
    /// The unit is started again between the two questions.
    Restarted,
}

const UNIT_PATH: &str = "/org/freedesktop/systemd1/unit/billing_2eservice";

async fn pretend_to_be_systemd(dir: &Path, manner: Manner) -> Connection {
    let connection = connection::Builder::address(&*address(dir)).build().await.expect("connected");
    let mut calls = MessageStream::from(&connection);
    connection.request_name(SERVICE).await.expect("nobody else has the name");
    let answering = connection.clone();
    tokio::spawn(async move {
        while let Some(Ok(call)) = calls.next().await {
            if call.message_type() == message::Type::MethodCall {
                answer(&answering, &call, manner).await.expect("answered");
            }
        }
    });
    connection
}

async fn answer(connection: &Connection, call: &Message, manner: Manner) -> zbus::Result<()> {
    let header = call.header();
    let path = zbus::ObjectPath::try_from(UNIT_PATH)?;
    match (header.member().map(|name| name.as_str()), manner) {
        (Some("GetUnitByPIDFD"), Manner::OnlyNumbers) => {
            connection.reply_error(&header, "org.freedesktop.DBus.Error.UnknownMethod", &("no",)).await
        }
        (Some("GetUnitByPIDFD"), Manner::Forbidden) => {
            connection.reply_error(&header, "org.freedesktop.DBus.Error.AccessDenied", &("no",)).await
        }
        (Some("GetUnitByPIDFD" | "GetUnitByPID"), Manner::NoUnit) => {
            connection.reply_error(&header, NO_UNIT, &("none",)).await
        }
        (Some("GetUnitByPIDFD"), _) => {
            let body = call.body();
            let (pidfd,): (Fd<'_>,) = body.deserialize()?;
            let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))?;
            assert!(info.contains(&format!("\nPid:\t{}\n", std::process::id())), "{info}");
            connection.reply(&header, &(path, "billing.service", vec![0x0f_u8; 16])).await
        }
        (Some("GetUnitByPID"), _) => {
            let body = call.body();
            let (pid,): (u32,) = body.deserialize()?;
            assert_eq!(pid, std::process::id());
            connection.reply(&header, &(path,)).await
        }
        (Some("GetAll"), _) => {
            assert_eq!(header.path().map(|path| path.as_str()), Some(UNIT_PATH));
            let invocation = vec![if manner == Manner::Restarted { 0xee_u8 } else { 0x0f }; 16];
            let properties: HashMap<&str, zbus::Variant<'_>> = HashMap::from([
                ("Id", "billing.service".into()),
                ("FragmentPath", "/etc/systemd/system/billing.service".into()),
                ("InvocationID", invocation.into()),
                ("CanStart", true.into()),
            ]);
            connection.reply(&header, &(properties,)).await
        }
        (member, _) => panic!("nobody should call {member:?}"),
    }
}

/// The process the test runs in, with the pidfd the kernel gives for the other end of a socket pair.
fn ourselves() -> Subject {
    let pid = std::process::id().cast_signed();
    let (ours, _theirs) = UnixStream::pair().expect("made");
    let pidfd = getsockopt(&ours, sockopt::PeerPidfd).ok().map(Arc::new);
    Subject {
        pid,
        uid: nix::unistd::geteuid().as_raw(),
        share: nix::unistd::geteuid().as_raw(),
        gid: nix::unistd::getegid().as_raw(),
        cgroup_id: None,
        proc_dir: Arc::new(ProcDir::open(pid).expect("we live")),
        pidfd,
        executable: ExecutableEvidence::Withheld { why: "not asked for".into() },
        known_path: None,
        launched: Err("it was not looked at".into()),
    }
}

fn billing() -> UnitFacts {
    UnitFacts {
        id: "billing.service".into(),
        fragment_path: Some("/etc/systemd/system/billing.service".into()),
        invocation_id: Some("0f".repeat(16)),
    }
}

#[tokio::test]
async fn the_unit_is_asked_for_by_pidfd_and_by_number_only_where_systemd_is_too_old() {
    let has_pidfd = ourselves().pidfd.is_some();
    let restarted = Err(UnitManagerError::Refused("the unit was started anew meanwhile".into()));
    let cases = [
        (Manner::Current, Ok(UnitAnswer { unit: Some(billing()), by_number: !has_pidfd })),
        (Manner::OnlyNumbers, Ok(UnitAnswer { unit: Some(billing()), by_number: true })),
        (Manner::Forbidden, Ok(UnitAnswer { unit: Some(billing()), by_number: true })),
        (Manner::NoUnit, Ok(UnitAnswer { unit: None, by_number: !has_pidfd })),
        (Manner::Restarted, restarted),
    ];
    // Only an answer to a pidfd says which start of the unit it is about.
    for (manner, expected) in cases.into_iter().filter(|(manner, _)| has_pidfd || *manner != Manner::Restarted) {
        let dir = tempfile::tempdir().expect("temporary");
        let Some(_daemon) = Daemon::start(dir.path()) else { return };
        let _systemd = pretend_to_be_systemd(dir.path(), manner).await;
        let bus = Bus::new(Some(address(dir.path())));
        assert_eq!(bus.unit_of(&ourselves()).await, expected);
        assert_eq!(bus.unit_of(&ourselves()).await, expected, "also the second time");
    }
}

#[tokio::test]
async fn an_absent_bus_and_an_absent_systemd_are_outages_and_a_bus_that_is_back_is_used_again() {
    let dir = tempfile::tempdir().expect("temporary");
    let bus = Bus::new(Some(address(dir.path())));
    let is_outage = |answer: Result<UnitAnswer, UnitManagerError>| answer.is_err_and(|error| error.is_outage());
    assert!(is_outage(bus.unit_of(&ourselves()).await), "no bus");
    for round in 0..2 {
        let Some(_daemon) = Daemon::start(dir.path()) else { return };
        let systemd = pretend_to_be_systemd(dir.path(), Manner::OnlyNumbers).await;
        // The first question may still find out that the connection of the round before is broken.
        if bus.unit_of(&ourselves()).await.is_err() {
            assert_eq!(round, 1);
        }
        assert_eq!(bus.unit_of(&ourselves()).await.map(|answer| answer.unit), Ok(Some(billing())));
        systemd.close().await.expect("closed");
        assert!(is_outage(bus.unit_of(&ourselves()).await), "a bus without systemd");
    }
}

/// A systemd with one unit, which sends what systemd sends once it was asked to, and shows `state` at that moment.
struct Unit {
    connection: Connection,
    state: Arc<std::sync::Mutex<(&'static str, [u8; 16])>>,
    subscribed: Arc<tokio::sync::Notify>,
}

impl Unit {
    async fn start(dir: &Path) -> Self {
        let connection = connection::Builder::address(&*address(dir)).build().await.expect("connected");
        let mut calls = MessageStream::from(&connection);
        connection.request_name(SERVICE).await.expect("nobody else has the name");
        let state = Arc::new(std::sync::Mutex::new(("active", [0x0f; 16])));
        let subscribed = Arc::new(tokio::sync::Notify::new());
        let (answering, shown, told) = (connection.clone(), state.clone(), subscribed.clone());
        tokio::spawn(async move {
            let mut known = false;
            while let Some(Ok(call)) = calls.next().await {
                if call.message_type() != message::Type::MethodCall {
                    continue;
                }
                let header = call.header();
                let answered = match header.member().map(|name| name.as_str()) {
                    Some("Subscribe") if known => {
                        answering.reply_error(&header, watch::ALREADY_SUBSCRIBED, &("again",)).await
                    }
                    Some("Subscribe") => {
                        known = true;
                        told.notify_one();
                        answering.reply(&header, &()).await
                    }
                    Some("GetAll") => {
                        assert_eq!(header.path().map(|path| path.as_str()), Some(UNIT_PATH));
                        let (active, invocation) = *shown.lock().expect("unpoisoned");
                        let properties: HashMap<&str, zbus::Variant<'_>> = HashMap::from([
                            ("ActiveState", active.into()),
                            ("SubState", "running".into()),
                            ("InvocationID", invocation.to_vec().into()),
                        ]);
                        answering.reply(&header, &(properties,)).await
                    }
                    member => panic!("nobody should call {member:?}"),
                };
                answered.expect("answered");
            }
        });
        Self { connection, state, subscribed }
    }

    async fn becomes(&self, active: &'static str, invocation: [u8; 16]) {
        *self.state.lock().expect("unpoisoned") = (active, invocation);
        let changed: HashMap<&str, zbus::Variant<'_>> = HashMap::from([("ActiveState", active.into())]);
        let body = (UNIT, changed, Vec::<&str>::new());
        let signal = self.connection.emit_signal(None::<&str>, UNIT_PATH, PROPERTIES, "PropertiesChanged", &body);
        signal.await.expect("sent");
    }

    async fn is_removed(&self) {
        let path = zbus::ObjectPath::try_from(UNIT_PATH).expect("a path");
        let body = ("billing.service", path);
        let signal = self.connection.emit_signal(None::<&str>, MANAGER_PATH, MANAGER, "UnitRemoved", &body);
        signal.await.expect("sent");
    }
}

#[tokio::test]
async fn a_change_of_a_unit_is_heard_and_asking_again_says_which_start_of_it_runs() {
    let dir = tempfile::tempdir().expect("temporary");
    let Some(_daemon) = Daemon::start(dir.path()) else { return };
    let systemd = Unit::start(dir.path()).await;
    let bus = Bus::new(Some(address(dir.path())));
    let mut changes = bus.changes("billing.service").await.expect("listening");
    systemd.subscribed.notified().await;
    assert_eq!(bus.running("billing.service").await, Ok(Some("0f".repeat(16))));
    for (active, invocation, expected) in [
        ("deactivating", [0x0f; 16], Some("0f".repeat(16))),
        ("inactive", [0x0f; 16], None),
        ("activating", [0xee; 16], Some("ee".repeat(16))),
        ("failed", [0xee; 16], None),
    ] {
        systemd.becomes(active, invocation).await;
        assert_eq!(changes.next().await, Some(()));
        assert_eq!(bus.running("billing.service").await, Ok(expected), "{active}");
    }
    systemd.is_removed().await;
    assert_eq!(changes.next().await, Some(()));
    let mut again = bus.changes("billing.service").await.expect("subscribed already");
    systemd.connection.close().await.expect("closed");
    assert_eq!((changes.next().await, again.next().await), (None, None), "it is no longer heard");
    assert!(bus.running("billing.service").await.is_err_and(|error| error.is_outage()));
    assert!(bus.changes("billing.service").await.is_err_and(|error| error.is_outage()));
}
