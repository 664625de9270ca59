//! The words of the schema as Cedar's values, made once.

use std::sync::LazyLock;

use cedar_policy::{Entity, EntityId, EntityTypeName, EntityUid, Schema};

use super::question::{Action, Effect};

/// The schema that every policy is checked against.
pub const SCHEMA: &str = include_str!("built_in/tether.cedarschema");

/// The schema, read.
pub(super) static READ_SCHEMA: LazyLock<Schema> = LazyLock::new(|| {
    let (schema, _warnings) = Schema::from_cedarschema_str(SCHEMA).expect("the built-in schema is tested");
    schema
});

/// A type of entities.
#[derive(Debug)]
pub(super) struct Kind(EntityTypeName);

impl Kind {
    fn new(name: &str) -> Self {
        Self(name.parse().expect("the names of the schema are identifiers"))
    }

    /// The entity of this type with this id.
    pub(super) fn entity(&self, id: &str) -> EntityUid {
        EntityUid::from_type_name_and_id(self.0.clone(), EntityId::new(id))
    }

    /// Whether an entity is of this type.
    pub(super) fn is_of(&self, uid: &EntityUid) -> bool {
        uid.type_name() == &self.0
    }
}

/// The types of the schema.
#[derive(Debug)]
pub(super) struct Kinds {
    pub(super) agent: Kind,
    pub(super) agent_path: Kind,
    pub(super) user: Kind,
    pub(super) session: Kind,
    pub(super) tool: Kind,
    pub(super) host: Kind,
    pub(super) prefix: Kind,
    pub(super) credential: Kind,
}

pub(super) static KINDS: LazyLock<Kinds> = LazyLock::new(|| Kinds {
    agent: Kind::new("Agent"),
    agent_path: Kind::new("AgentPath"),
    user: Kind::new("User"),
    session: Kind::new("Session"),
    tool: Kind::new("Tool"),
    host: Kind::new("Host"),
    prefix: Kind::new("Prefix"),
    credential: Kind::new("Credential"),
});

/// The name of every action that may be asked about, and whether it is a call.
const ACTIONS: [(&str, bool); ACTION_COUNT] = [
    ("issue", false),
    ("start", false),
    ("delegate", false),
    ("mint", false),
    ("read", true),
    ("write", true),
    ("irreversible", true),
    ("reach", false),
    ("classify", false),
];

/// How many actions may be asked about.
pub(super) const ACTION_COUNT: usize = 9;

/// Where `reach` and `classify` stand.
pub(super) const REACH: usize = 7;
pub(super) const CLASSIFY: usize = 8;

/// One action as Cedar knows it.
#[derive(Debug)]
pub(super) struct ActionWord {
    pub(super) uid: EntityUid,
    /// The group it is in.
    pub(super) group: Option<EntityUid>,
    /// Itself, with its group above.
    pub(super) entity: Entity,
}

/// In the order of [`index_of`].
pub(super) static ACTION_WORDS: LazyLock<[ActionWord; ACTION_COUNT]> = LazyLock::new(|| {
    let kind = Kind::new("Action");
    ACTIONS.map(|(name, is_call)| {
        let (uid, group) = (kind.entity(name), is_call.then(|| kind.entity("call")));
        let entity = Entity::new_no_attrs(uid.clone(), group.clone().into_iter().collect());
        ActionWord { uid, group, entity }
    })
});

/// Where an action stands among those that may be asked about.
pub(super) fn index_of(action: Action) -> usize {
    match action {
        Action::Issue => 0,
        Action::Start => 1,
        Action::Delegate => 2,
        Action::Mint => 3,
        Action::Call(Effect::Read) => 4,
        Action::Call(Effect::Write) => 5,
        Action::Call(Effect::Irreversible) => 6,
        Action::Reach(_) => REACH,
        Action::Classify => CLASSIFY,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_action_that_may_be_asked_about_is_in_the_schema_and_the_other_way_round() {
        let mut known: Vec<_> = READ_SCHEMA.actions().map(ToString::to_string).collect();
        let mut asked: Vec<_> = ACTION_WORDS.iter().map(|word| word.uid.to_string()).collect();
        asked.push("Action::\"call\"".to_owned()); // the group
        known.sort();
        asked.sort();
        assert_eq!(known, asked);
    }
}
