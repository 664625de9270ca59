//! Reloading a unit: `ReloadOrTryRestartUnit` of systemd's manager, and what became of its job.

use std::time::Duration;

use futures_util::StreamExt;
use thiserror::Error;
use zbus::{MatchRule, MessageStream, OwnedObjectPath, message};

use crate::attest::dbus::{CallError, Link, call, decode};

const SERVICE: &str = "org.freedesktop.systemd1";
const PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
/// A job that conflicts with this one is replaced.
const MODE: &str = "replace";
/// Longer than units take that do not hang; systemd has limits of its own.
const PATIENCE: Duration = Duration::from_secs(100);

/// Why a unit was not reloaded.
#[derive(Debug, Error)]
pub enum UnitError {
    /// systemd refuses, in its words: there is no such unit, or we may not.
    #[error("systemd does not reload `{unit}`: {words}")]
    Refused {
        /// The unit.
        unit: String,
        /// What systemd says.
        words: String,
    },
    /// There is no systemd to be asked.
    #[error("systemd cannot be asked to reload `{unit}`: {words}")]
    Unreachable {
        /// The unit.
        unit: String,
        /// Why.
        words: String,
    },
    /// The unit could not do it.
    #[error("`{unit}` was not reloaded: systemd says `{result}`")]
    Failed {
        /// The unit.
        unit: String,
        /// The result of the job.
        result: String,
    },
    /// The job did not end.
    #[error("`{unit}` has not been reloaded within {} seconds", PATIENCE.as_secs())]
    Late {
        /// The unit.
        unit: String,
    },
}

/// Reloads a unit that runs, or restarts it where it cannot be reloaded; one that does not run stays as it is. `address`
/// is that of another bus than the system's.
pub(super) async fn reload(unit: &str, address: Option<&str>) -> Result<String, UnitError> {
    match tokio::time::timeout(PATIENCE, job(unit, address)).await {
        Err(_) => Err(UnitError::Late { unit: unit.to_owned() }),
        Ok(Err(error)) => Err(match error {
            CallError::Named(name, words) => {
                UnitError::Refused { unit: unit.to_owned(), words: if words.is_empty() { name } else { words } }
            }
            CallError::Refused(words) | CallError::Forbidden(words) => {
                UnitError::Refused { unit: unit.to_owned(), words }
            }
            CallError::UnknownMethod => {
                UnitError::Refused { unit: unit.to_owned(), words: "it does not know the method".to_owned() }
            }
            CallError::Unreachable(words) => UnitError::Unreachable { unit: unit.to_owned(), words },
        }),
        Ok(Ok(result)) if result == "done" => Ok(format!("reloaded `{unit}`")),
        // What is not running needs none.
        Ok(Ok(result)) if result == "skipped" => Ok(format!("`{unit}` does not run")),
        Ok(Ok(result)) => Err(UnitError::Failed { unit: unit.to_owned(), result }),
    }
}

/// The result of the job.
async fn job(unit: &str, address: Option<&str>) -> Result<String, CallError> {
    let link = Link::default();
    let connection = link.connect(address).await?;
    let broken = |error: zbus::Error| CallError::Unreachable(error.to_string());
    let removed = MatchRule::builder().msg_type(message::Type::Signal).sender(SERVICE);
    let removed = removed.path(PATH).interface(MANAGER).member("JobRemoved").build();
    // Before the job is there: its end is not missed.
    let mut removed =
        MessageStream::for_match_rule(removed.map_err(broken)?, &connection, None).await.map_err(broken)?;
    call(&connection, SERVICE, PATH, MANAGER, "Subscribe", &()).await?;
    let reply = call(&connection, SERVICE, PATH, MANAGER, "ReloadOrTryRestartUnit", &(unit, MODE)).await?;
    let job: OwnedObjectPath = decode(&reply)?;
    while let Some(message) = removed.next().await {
        let message = message.map_err(broken)?;
        let (_, path, _, result): (u32, OwnedObjectPath, String, String) = decode(&message)?;
        if path == job {
            return Ok(result);
        }
    }
    Err(CallError::Unreachable("the connection to the bus has ended".to_owned()))
}

#[cfg(test)]
mod tests {
    //! A real message bus with something on it that answers like systemd.

    use std::path::Path;

    use zbus::{Connection, Message, connection};

    use super::*;
    use crate::attest::dbus::tests::{Daemon, address};

    const JOB: &str = "/org/freedesktop/systemd1/job/7";

    async fn pretend_to_be_systemd(dir: &Path) -> Connection {
        let connection = connection::Builder::address(&*address(dir)).build().await.expect("connected");
        let mut calls = MessageStream::from(&connection);
        connection.request_name(SERVICE).await.expect("nobody else has the name");
        let answering = connection.clone();
        tokio::spawn(async move {
            while let Some(Ok(call)) = calls.next().await {
                if call.message_type() == message::Type::MethodCall {
                    answer(&answering, &call).await.expect("answered");
                }
            }
        });
        connection
    }

    async fn answer(connection: &Connection, call: &Message) -> zbus::Result<()> {
        let header = call.header();
        if header.member().is_some_and(|name| name.as_str() == "Subscribe") {
            return connection.reply(&header, &()).await;
        }
        let (unit, mode): (String, String) = call.body().deserialize()?;
        assert_eq!(mode, "replace");
        let result = match unit.as_str() {
            "nginx.service" => "done",
            "broken.service" => "failed",
            _ => {
                let words = format!("Unit {unit} not found.");
                return connection.reply_error(&header, "org.freedesktop.systemd1.NoSuchUnit", &(words,)).await;
            }
        };
        let ended = async |number: u32, job: &str, result: &str| {
            let job = zbus::ObjectPath::try_from(job)?;
            connection.emit_signal(None::<&str>, PATH, MANAGER, "JobRemoved", &(number, job, &*unit, result)).await
        };
        // Of another job, and of this one even before its number is told.
        ended(6, "/org/freedesktop/systemd1/job/6", "failed").await?;
        ended(7, JOB, result).await?;
        connection.reply(&header, &(zbus::ObjectPath::try_from(JOB)?,)).await
    }

    #[tokio::test]
    async fn a_unit_is_reloaded_when_systemd_says_that_its_job_is_done() {
        let dir = tempfile::tempdir().expect("a directory");
        let unreachable = reload("nginx.service", Some(&address(dir.path()))).await.expect_err("no bus");
        assert!(matches!(unreachable, UnitError::Unreachable { .. }), "{unreachable}");
        let Some(_bus) = Daemon::start(dir.path()) else { return };
        let _systemd = pretend_to_be_systemd(dir.path()).await;
        let asked =
            async |unit: &str| reload(unit, Some(&address(dir.path()))).await.map_err(|error| error.to_string());
        assert_eq!(asked("nginx.service").await, Ok("reloaded `nginx.service`".to_owned()));
        let failed = "`broken.service` was not reloaded: systemd says `failed`";
        assert_eq!(asked("broken.service").await, Err(failed.to_owned()));
        let refused = "systemd does not reload `no.service`: Unit no.service not found.";
        assert_eq!(asked("no.service").await, Err(refused.to_owned()));
    }
}
