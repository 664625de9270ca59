//! Who may do what on the admin socket.

use std::fmt;

use nix::unistd::{Gid, Group, Uid};

use crate::peer::Credentials;

/// What a caller may do. Changing things and approving them are apart: neither role includes the other, so that nobody
/// has to be given both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// May look. Whoever has any role may.
    Viewer,
    /// May change entries, authorities and bundles, revoke credentials, and end sessions.
    Operator,
    /// May decide what waits for a person's word.
    Approver,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Approver => "approver",
        })
    }
}

/// The roles of one caller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RoleSet {
    viewer: bool,
    operator: bool,
    approver: bool,
}

impl RoleSet {
    const ALL: Self = Self { viewer: true, operator: true, approver: true };

    /// Whether the caller may do what `role` may.
    pub fn has(self, role: Role) -> bool {
        match role {
            Role::Viewer => !self.is_empty(),
            Role::Operator => self.operator,
            Role::Approver => self.approver,
        }
    }

    /// Whether the caller has no role at all.
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }
}

/// The groups that have each role.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roles {
    own_uid: u32,
    viewers: Vec<u32>,
    operators: Vec<u32>,
    approvers: Vec<u32>,
}

impl Roles {
    /// Looks the groups up, by name or number. A group that does not exist has no members and is left out with a
    /// warning; one that cannot be looked up is an error, with its name.
    pub fn new(
        viewers: &[String],
        operators: &[String],
        approvers: &[String],
    ) -> Result<Self, (String, std::io::Error)> {
        Ok(Self {
            own_uid: Uid::effective().as_raw(),
            viewers: ids(viewers)?,
            operators: ids(operators)?,
            approvers: ids(approvers)?,
        })
    }

    /// The roles of somebody with these credentials. Root and the user the agent runs as have all of them; what is
    /// asked by one's own process or for oneself nobody can approve, whatever their roles
    /// ([`Approvals::decide`](crate::session::approvals::Approvals::decide)).
    pub fn of(&self, credentials: &Credentials) -> RoleSet {
        if credentials.uid == 0 || credentials.uid == self.own_uid {
            return RoleSet::ALL;
        }
        let member = |groups: &[u32]| {
            groups.contains(&credentials.gid) || credentials.groups.iter().any(|gid| groups.contains(gid))
        };
        RoleSet { viewer: member(&self.viewers), operator: member(&self.operators), approver: member(&self.approvers) }
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
    fn roles_come_from_groups_and_whoever_has_one_may_look() {
        let roles = Roles { own_uid: 500, viewers: vec![10], operators: vec![20], approvers: vec![30] };
        let who = |uid, gid, groups: &[u32]| Credentials { uid, gid, groups: groups.to_vec() };
        // Whether they are viewers, operators and approvers.
        let table = [
            (who(0, 0, &[]), [true, true, true]),
            (who(500, 500, &[]), [true, true, true]),
            (who(1000, 10, &[]), [true, false, false]),
            (who(1000, 1000, &[10]), [true, false, false]),
            (who(1000, 1000, &[20]), [true, true, false]),
            (who(1000, 1000, &[10, 20]), [true, true, false]),
            (who(1000, 1000, &[30]), [true, false, true]),
            (who(1000, 30, &[20]), [true, true, true]),
            (who(1000, 1000, &[40]), [false, false, false]),
        ];
        for (credentials, expected) in table {
            let has = roles.of(&credentials);
            let roles = [Role::Viewer, Role::Operator, Role::Approver].map(|role| has.has(role));
            assert_eq!(roles, expected, "{credentials:?}");
            assert_eq!(has.is_empty(), !expected[0], "{credentials:?}");
        }
    }

    #[test]
    fn groups_are_named_or_numbered_and_a_missing_one_gives_nobody_a_role() {
        assert_eq!(ids(&["0".to_owned(), "root".to_owned()]).unwrap(), [0, 0]);
        assert_eq!(ids(&["no-such-group".to_owned()]).unwrap(), [0u32; 0]);
    }
}
