//! Whether a unit still runs, and signals after which that may have changed.

use std::fmt::Write as _;

use futures_util::StreamExt;
use futures_util::stream;
use zbus::{MatchRule, MessageStream, message};

use super::*;
use crate::attest::systemd::{UnitChanges, UnitWatcher};

const UNIT_PATHS: &str = "/org/freedesktop/systemd1/unit/";
pub(super) const ALREADY_SUBSCRIBED: &str = "org.freedesktop.systemd1.AlreadySubscribed";

impl Bus {
    async fn running_now(&self, unit: &str) -> Result<Option<String>, UnitManagerError> {
        let connection = self.connect().await?;
        // A unit that is not loaded is loaded by the question, and does not run.
        let reply = match call(&connection, &unit_object(unit), PROPERTIES, "GetAll", &(UNIT,)).await {
            Err(CallError::NoUnit) => return Ok(None),
            reply => reply?,
        };
        let mut properties: HashMap<String, OwnedVariant> = decode(&reply)?;
        let mut text = |name: &str| properties.remove(name).and_then(|value| String::try_from(value).ok());
        let (active, sub) = (text("ActiveState"), text("SubState").unwrap_or_default());
        let active = active.ok_or_else(|| UnitManagerError::Refused("the unit has no `ActiveState`".into()))?;
        if !runs(&active, &sub) {
            return Ok(None);
        }
        let id = properties.remove("InvocationID").and_then(|value| Vec::<u8>::try_from(value).ok());
        Ok(id.filter(|id| !id.is_empty()).map(|id| hex(&id)))
    }

    /// Signals come on a connection of their own: one that nobody has read yet holds up whatever comes after it.
    async fn subscribe(&self, unit: &str) -> Result<UnitChanges, UnitManagerError> {
        let connection = self.signals.connect(self.address.as_deref()).await?;
        match call(&connection, MANAGER_PATH, MANAGER, "Subscribe", &()).await {
            Ok(_) | Err(CallError::AlreadySubscribed) => {}
            Err(error) => return Err(error.into()),
        }
        let broken = |error: zbus::Error| UnitManagerError::Unreachable(error.to_string());
        let mut streams = Vec::new();
        for rule in rules(unit).map_err(broken)? {
            let heard = MessageStream::for_match_rule(rule, &connection, None).await.map_err(broken)?;
            streams.push(heard.map(|message| message.ok().map(drop)).boxed());
        }
        let owner = MessageStream::for_match_rule(dbus::other_owner(SERVICE).map_err(broken)?, &connection, None).await;
        streams.push(owner.map_err(broken)?.map(|_| None).boxed());
        // With the first stream that ends all do.
        let ends = |heard: stream::BoxStream<'static, Option<()>>| heard.chain(stream::iter([None]));
        let all = stream::select_all(streams.into_iter().map(ends));
        Ok(all.take_while(|heard| std::future::ready(heard.is_some())).map(drop).boxed())
    }
}

impl UnitWatcher for Bus {
    fn running<'a>(&'a self, unit: &'a str) -> BoxFuture<'a, Result<Option<String>, UnitManagerError>> {
        self.running_now(unit).boxed()
    }

    fn changes<'a>(&'a self, unit: &'a str) -> BoxFuture<'a, Result<UnitChanges, UnitManagerError>> {
        self.subscribe(unit).boxed()
    }
}

/// What systemd sends about a unit.
fn rules(unit: &str) -> zbus::Result<[MatchRule<'static>; 2]> {
    let from_systemd = || MatchRule::builder().msg_type(message::Type::Signal).sender(SERVICE);
    Ok([
        from_systemd().path(unit_object(unit)).interface(PROPERTIES).member("PropertiesChanged").build()?,
        from_systemd().path(MANAGER_PATH).member("UnitRemoved").arg(0, unit.to_owned()).build()?,
    ])
}

/// Whether a unit in this state has begun and is not over. One that is stopping still has processes with work to
/// finish; one that waits to be started again has none.
fn runs(active: &str, sub: &str) -> bool {
    !matches!(active, "inactive" | "failed") && !sub.starts_with("auto-restart")
}

/// The object of a unit: systemd escapes all but letters and digits, and a digit in front.
pub(super) fn unit_object(unit: &str) -> String {
    let mut path = UNIT_PATHS.to_owned();
    for (at, byte) in unit.bytes().enumerate() {
        if byte.is_ascii_alphabetic() || (at > 0 && byte.is_ascii_digit()) {
            path.push(char::from(byte));
        } else {
            // Writing to a string does not fail.
            let _ = write!(path, "_{byte:02x}");
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_have_the_object_paths_that_systemd_gives_them() {
        for (unit, object) in [
            ("billing.service", "billing_2eservice"),
            ("getty@tty1.service", "getty_40tty1_2eservice"),
            ("9pfs.mount", "_39pfs_2emount"),
            (r"a\x2db.service", "a_5cx2db_2eservice"),
        ] {
            assert_eq!(unit_object(unit), format!("{UNIT_PATHS}{object}"));
        }
    }

    #[test]
    fn a_unit_runs_from_its_start_until_it_has_stopped_and_not_while_it_waits_for_another_start() {
        for (active, sub, expected) in [
            ("activating", "start-pre", true),
            ("active", "running", true),
            ("active", "exited", true),
            ("reloading", "reload", true),
            ("deactivating", "stop-sigterm", true),
            ("inactive", "dead", false),
            ("failed", "failed", false),
            ("activating", "auto-restart", false),
            ("activating", "auto-restart-queued", false),
        ] {
            assert_eq!(runs(active, sub), expected, "{active} {sub}");
        }
    }
}
