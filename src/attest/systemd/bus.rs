//! Asks systemd over the system bus (org.freedesktop.systemd1(5)).
//!
//! By pidfd where systemd and kernel have it (systemd 253), so that the answer is about our very process. By number
//! otherwise: then the process must still live after the answer, and [`super::Systemd`] takes the answer only if
//! the control group agrees, because systemd could live in another pid namespace.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use zbus::{Connection, DynamicType, Fd, Message, OwnedObjectPath, OwnedVariant};

use super::{UnitAnswer, UnitFacts, UnitManager, UnitManagerError};
use crate::attest::Subject;
use crate::attest::dbus::{self, Link, decode};
use crate::base::entropy::hex;

mod users;
mod watch;

const SERVICE: &str = "org.freedesktop.systemd1";
const MANAGER_PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const UNIT: &str = "org.freedesktop.systemd1.Unit";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";
const NO_UNIT: &str = "org.freedesktop.systemd1.NoUnitForPID";
const NO_SUCH_UNIT: &str = "org.freedesktop.systemd1.NoSuchUnit";
const NO_PROCESS: &str = "org.freedesktop.systemd1.NoSuchProcess";

/// The system bus, over one connection that is made when needed and made again when it broke.
#[derive(Debug)]
pub struct Bus {
    address: Option<String>,
    questions: Link,
    signals: Link,
    /// This systemd does not know `GetUnitByPIDFD`, or the bus does not let us ask.
    only_numbers: AtomicBool,
}

impl Bus {
    /// The bus at `address`, or the one in `DBUS_SYSTEM_BUS_ADDRESS`, or at the usual socket.
    pub fn new(address: Option<String>) -> Self {
        let (questions, signals) = (Link::default(), Link::default());
        Self { address, questions, signals, only_numbers: AtomicBool::new(false) }
    }

    async fn ask(&self, subject: &Subject) -> Result<UnitAnswer, UnitManagerError> {
        let connection = self.connect().await?;
        let found = self.find(&connection, subject).await?;
        let unit = match found.unit {
            Some((path, invocation)) => Some(describe(&connection, &path, invocation).await?),
            None => None,
        };
        // A number that is still that of our process was so all the time: it is only given away at the end.
        if found.by_number && subject.proc_dir.read("stat", 16).is_err() {
            return Err(UnitManagerError::Gone);
        }
        Ok(UnitAnswer { unit, by_number: found.by_number })
    }

    async fn connect(&self) -> Result<Connection, UnitManagerError> {
        let fresh = || self.only_numbers.store(false, Ordering::Relaxed);
        Ok(self.questions.connect_and(self.address.as_deref(), fresh).await?)
    }

    async fn find(&self, connection: &Connection, subject: &Subject) -> Result<Found, UnitManagerError> {
        if let Some(pidfd) = subject.pidfd.as_ref().filter(|_| !self.only_numbers.load(Ordering::Relaxed)) {
            let body = (Fd::from(pidfd.as_fd()),);
            match call(connection, MANAGER_PATH, MANAGER, "GetUnitByPIDFD", &body).await {
                Ok(reply) => {
                    let (path, _id, invocation): (OwnedObjectPath, String, Vec<u8>) = decode(&reply)?;
                    return Ok(Found { unit: Some((path, Some(invocation))), by_number: false });
                }
                Err(CallError::NoUnit) => return Ok(Found { unit: None, by_number: false }),
                Err(CallError::UnknownMethod | CallError::Forbidden(_)) => {
                    self.only_numbers.store(true, Ordering::Relaxed)
                }
                Err(error) => return Err(error.into()),
            }
        }
        let body = (subject.pid.cast_unsigned(),);
        match call(connection, MANAGER_PATH, MANAGER, "GetUnitByPID", &body).await {
            Ok(reply) => Ok(Found { unit: Some((decode(&reply)?, None)), by_number: true }),
            Err(CallError::NoUnit) => Ok(Found { unit: None, by_number: true }),
            Err(error) => Err(error.into()),
        }
    }
}

impl UnitManager for Bus {
    fn unit_of<'a>(&'a self, subject: &'a Subject) -> BoxFuture<'a, Result<UnitAnswer, UnitManagerError>> {
        self.ask(subject).boxed()
    }
}

/// The unit systemd named.
struct Found {
    /// The unit's object, and which start of it when systemd said so in the same answer.
    unit: Option<(OwnedObjectPath, Option<Vec<u8>>)>,
    by_number: bool,
}

async fn describe(
    connection: &Connection,
    path: &OwnedObjectPath,
    invocation: Option<Vec<u8>>,
) -> Result<UnitFacts, UnitManagerError> {
    let reply = call(connection, path.as_str(), PROPERTIES, "GetAll", &(UNIT,)).await?;
    let mut properties: HashMap<String, OwnedVariant> = decode(&reply)?;
    let mut text = |name: &str| properties.remove(name).and_then(|value| String::try_from(value).ok());
    let id = text("Id").ok_or_else(|| UnitManagerError::Refused("the unit has no `Id`".into()))?;
    let fragment_path = text("FragmentPath").filter(|path| !path.is_empty());
    let now = properties.remove("InvocationID").and_then(|value| Vec::<u8>::try_from(value).ok()).unwrap_or_default();
    if invocation.is_some_and(|first| first != now) {
        return Err(UnitManagerError::Refused("the unit was started anew meanwhile".into()));
    }
    let invocation_id = (!now.is_empty()).then(|| hex(&now));
    Ok(UnitFacts { id, fragment_path, invocation_id })
}

/// How a call of systemd failed, as far as it matters what to do.
enum CallError {
    NoUnit,
    AlreadySubscribed,
    UnknownMethod,
    Forbidden(String),
    Gone,
    Refused(String),
    Unreachable(String),
}

impl From<dbus::CallError> for CallError {
    fn from(error: dbus::CallError) -> Self {
        match error {
            dbus::CallError::Named(name, words) => match name.as_str() {
                NO_UNIT | NO_SUCH_UNIT => Self::NoUnit,
                watch::ALREADY_SUBSCRIBED => Self::AlreadySubscribed,
                NO_PROCESS => Self::Gone,
                _ => Self::Refused(format!("{name}: {words}")),
            },
            dbus::CallError::UnknownMethod => Self::UnknownMethod,
            dbus::CallError::Forbidden(words) => Self::Forbidden(words),
            dbus::CallError::Refused(words) => Self::Refused(words),
            dbus::CallError::Unreachable(words) => Self::Unreachable(words),
        }
    }
}

impl From<dbus::CallError> for UnitManagerError {
    fn from(error: dbus::CallError) -> Self {
        CallError::from(error).into()
    }
}

impl From<CallError> for UnitManagerError {
    fn from(error: CallError) -> Self {
        match error {
            CallError::NoUnit => Self::Refused("it knows no such unit".into()),
            CallError::AlreadySubscribed => Self::Refused("it says that we are subscribed already".into()),
            CallError::UnknownMethod => Self::Refused("it does not know the method".into()),
            CallError::Gone => Self::Gone,
            CallError::Refused(words) | CallError::Forbidden(words) => Self::Refused(words),
            CallError::Unreachable(words) => Self::Unreachable(words),
        }
    }
}

async fn call<B: serde::Serialize + DynamicType>(
    connection: &Connection,
    path: &str,
    interface: &str,
    method: &str,
    body: &B,
) -> Result<Message, CallError> {
    Ok(dbus::call(connection, SERVICE, path, interface, method, body).await?)
}

#[cfg(test)]
mod tests;
