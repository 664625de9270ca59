//! Who may do what on the admin socket.

use std::fmt;

use nix::unistd::{Gid, Group, Uid};

use crate::peer::Credentials;

/// What a caller may do; each includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// May look.
    Viewer,
    /// May change entries, authorities and bundles.
    Operator,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
        })
    }
}

/// The groups that have each role.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roles {
    own_uid: u32,
    viewers: Vec<u32>,
    operators: Vec<u32>,
}

impl Roles {
    /// Looks the groups up, by name or number. A group that does not exist has no members and is left out with a
    /// warning; one that cannot be looked up is an error, with its name.
    pub fn new(viewers: &[String], operators: &[String]) -> Result<Self, (String, std::io::Error)> {
        Ok(Self { own_uid: Uid::effective().as_raw(), viewers: ids(viewers)?, operators: ids(operators)? })
    }

    /// The highest role of somebody with these credentials.
    pub fn of(&self, credentials: &Credentials) -> Option<Role> {
        let member = |groups: &[u32]| {
            groups.contains(&credentials.gid) || credentials.groups.iter().any(|gid| groups.contains(gid))
        };
        if credentials.uid == 0 || credentials.uid == self.own_uid || member(&self.operators) {
            Some(Role::Operator)
        } else if member(&self.viewers) {
            Some(Role::Viewer)
        } else {
            None
        }
    }
}

fn ids(names: &[String]) -> Result<Vec<u32>, (String, std::io::Error)> {
    let mut ids = Vec::new();
    for name in names {
        let id = match name.parse::<u32>() {
            Ok(number) => Some(Gid::from_raw(number)),
            Err(_) => Group::from_name(name).map_err(|errno| (name.clone(), errno.into()))?.map(|group| group.gid),
        };
        match id {
            Some(id) => ids.push(id.as_raw()),
            None => tracing::warn!("[admin] names the group `{name}`, which does not exist: nobody has its role"),
        }
    }
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_come_from_groups_and_include_the_lower_ones() {
        let roles = Roles { own_uid: 500, viewers: vec![10], operators: vec![20] };
        let who = |uid, gid, groups: &[u32]| Credentials { uid, gid, groups: groups.to_vec() };
        let table = [
            (who(0, 0, &[]), Some(Role::Operator)),
            (who(500, 500, &[]), Some(Role::Operator)),
            (who(1000, 10, &[]), Some(Role::Viewer)),
            (who(1000, 1000, &[10]), Some(Role::Viewer)),
            (who(1000, 1000, &[20]), Some(Role::Operator)),
            (who(1000, 1000, &[10, 20]), Some(Role::Operator)),
            (who(1000, 1000, &[30]), None),
        ];
        for (credentials, role) in table {
            assert_eq!(roles.of(&credentials), role, "{credentials:?}");
        }
        assert!(Role::Operator > Role::Viewer);
    }

    #[test]
    fn groups_are_named_or_numbered_and_a_missing_one_gives_nobody_a_role() {
        assert_eq!(ids(&["0".to_owned(), "root".to_owned()]).unwrap(), [0, 0]);
        assert_eq!(ids(&["no-such-group".to_owned()]).unwrap(), [0u32; 0]);
    }
}
