//! As whom a unit runs.

use super::*;
use crate::attest::systemd::{UnitName, UnitUser, UnitUsers};

/// `(uid_t)-1`, which stands for no user.
const NOBODY: u32 = u32::MAX;

impl Bus {
    async fn user_now(&self, unit: &UnitName) -> Result<UnitUser, UnitManagerError> {
        let connection = self.connect().await?;
        let object = watch::unit_object(unit.as_str());
        let reply = call(&connection, &object, PROPERTIES, "GetAll", &(interface_of(unit),)).await?;
        Ok(said(decode(&reply)?))
    }
}

impl UnitUsers for Bus {
    fn user_of<'a>(&'a self, unit: &'a UnitName) -> BoxFuture<'a, Result<UnitUser, UnitManagerError>> {
        self.user_now(unit).boxed()
    }
}

/// Where units of each kind have the properties of what they execute.
fn interface_of(unit: &UnitName) -> String {
    let kind = unit.kind();
    let (first, rest) = kind.split_at(kind.len().min(1));
    format!("{SERVICE}.{}{rest}", first.to_ascii_uppercase())
}

/// What systemd says of the user. `UID` and `GID` are there once the process that sets up the unit has looked them up,
/// which it does before it loads credentials. A unit that names no user runs as root, and has neither.
fn said(mut properties: HashMap<String, OwnedVariant>) -> UnitUser {
    let mut number = |name: &str| properties.remove(name).and_then(|value| u32::try_from(value).ok());
    let looked_up = |id: Option<u32>| id.filter(|id| *id != NOBODY);
    let (uid, gid) = (looked_up(number("UID")), looked_up(number("GID")));
    let mut text = |name: &str| properties.remove(name).and_then(|value| String::try_from(value).ok());
    let (user, group) = (text("User"), text("Group"));
    let dynamic = properties.remove("DynamicUser").and_then(|value| bool::try_from(value).ok());
    let is_root = user.as_deref() == Some("") && dynamic == Some(false);
    let is_roots_group = is_root && group.as_deref() == Some("");
    UnitUser { uid: uid.or(is_root.then_some(0)), gid: gid.or(is_roots_group.then_some(0)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(uid: u32, gid: u32, user: &str, group: &str, dynamic: bool) -> UnitUser {
        let value = |value: zbus::Variant<'_>| value.try_to_owned().unwrap();
        said(HashMap::from([
            ("UID".to_owned(), value(uid.into())),
            ("GID".to_owned(), value(gid.into())),
            ("User".to_owned(), value(user.into())),
            ("Group".to_owned(), value(group.into())),
            ("DynamicUser".to_owned(), value(dynamic.into())),
        ]))
    }

    #[test]
    fn a_user_is_what_systemd_looked_up_or_root_where_none_is_named_and_never_a_guess() {
        let known = |uid, gid| UnitUser { uid, gid };
        assert_eq!(of(1, 1, "daemon", "", false), known(Some(1), Some(1)));
        assert_eq!(of(62_180, 62_180, "billing", "", true), known(Some(62_180), Some(62_180)));
        assert_eq!(of(NOBODY, NOBODY, "", "", false), known(Some(0), Some(0)));
        assert_eq!(of(NOBODY, NOBODY, "", "adm", false), known(Some(0), None));
        // Not looked up yet, or not to be had.
        assert_eq!(of(NOBODY, NOBODY, "daemon", "", false), known(None, None));
        assert_eq!(of(NOBODY, NOBODY, "", "", true), known(None, None));
        assert_eq!(said(HashMap::new()), known(None, None));
    }

    #[test]
    fn each_kind_of_unit_has_an_interface_of_its_own() {
        for (unit, interface) in [("a.service", "Service"), ("a.socket", "Socket"), ("a.mount", "Mount")] {
            let unit = UnitName::parse(unit).unwrap();
            assert_eq!(interface_of(&unit), format!("org.freedesktop.systemd1.{interface}"));
        }
    }
}
