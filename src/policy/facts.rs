//! A question in Cedar's terms: request, entities, and what they are members of.
//!
//! Paths, hosts and prefixes become parents only where a policy speaks of them: a question costs no more for a long path
//! than for a short one.

use std::collections::{HashMap, HashSet};

use cedar_policy::{Context, Entities, Entity, EntityUid, Request, RestrictedExpression as Value};
use time::OffsetDateTime;

use super::question::{Action, AgentFacts, Question, SessionFacts, ToolFacts};
use super::words::{ACTION_WORDS, KINDS, index_of};
use crate::id::SpiffeId;
use crate::proof::{TargetUri, UriPrefix};
use crate::user::{User, UserProof};

/// What policies speak of that others can be members of.
#[derive(Debug, Default)]
pub(super) struct Mentioned {
    agent_paths: HashMap<String, EntityUid>,
    hosts: HashMap<String, EntityUid>,
    prefixes: Vec<(UriPrefix, EntityUid)>,
}

impl Mentioned {
    pub(super) fn of<'a>(policies: impl Iterator<Item = &'a cedar_policy::Policy>) -> Self {
        let mut found = Self::default();
        let mut seen = HashSet::new();
        for uid in policies.flat_map(cedar_policy::Policy::entity_literals) {
            if !seen.insert(uid.clone()) {
                continue;
            }
            let id = uid.id().as_ref() as &str;
            if KINDS.agent_path.is_of(&uid) {
                found.agent_paths.insert(id.to_owned(), uid);
            } else if KINDS.host.is_of(&uid) {
                found.hosts.insert(id.to_owned(), uid);
            } else if KINDS.prefix.is_of(&uid)
                && let Ok(prefix) = TargetUri::parse(id)
            {
                found.prefixes.push((UriPrefix::Below(prefix), uid));
            }
        }
        found
    }

    /// The paths that are this ID, or above it.
    fn above_agent(&self, id: &SpiffeId) -> HashSet<EntityUid> {
        if self.agent_paths.is_empty() {
            return HashSet::new();
        }
        let id = id.as_str();
        let domain = "spiffe://".len();
        let ends = id[domain..].match_indices('/').map(|(at, _)| domain + at).chain([id.len()]);
        ends.filter_map(|end| self.agent_paths.get(&id[..end])).cloned().collect()
    }

    /// The host of a tool, and the prefixes that are its URI or above it.
    fn above_tool(&self, uri: &TargetUri, host: &str) -> HashSet<EntityUid> {
        let prefixes = self.prefixes.iter().filter(|(prefix, _)| prefix.covers(uri)).map(|(_, uid)| uid);
        self.hosts.get(host).into_iter().chain(prefixes).cloned().collect()
    }
}

/// A question as Cedar takes it.
pub(super) struct Asked {
    request: Request,
    entities: Entities,
    anchors: HashSet<EntityUid>,
}

impl Asked {
    /// Otherwise what the question lacks.
    pub(super) fn new(question: &Question<'_>, mentioned: &Mentioned) -> Result<Self, String> {
        let mut parts = Parts::default();
        let principal = parts.agent(&question.agent, mentioned)?;
        let user = question.user.map(|user| parts.user(user)).transpose()?;
        let (resource, context) = match question.action {
            Action::Issue => parts.issue(question)?,
            Action::Start | Action::Delegate => {
                let session = parts.session(question, &principal, user.as_ref())?;
                (session.clone(), common(question, session, user)?)
            }
            Action::Mint => {
                let (tool, session) =
                    (given(question.tool, "tool")?, parts.session(question, &principal, user.as_ref())?);
                let mut context = common(question, session, user)?;
                context.push(("kind", text(tool.kind)));
                (parts.tool(&tool, mentioned)?, context)
            }
            Action::Call(effect) => {
                let (tool, session) =
                    (given(question.tool, "tool")?, parts.session(question, &principal, user.as_ref())?);
                let mut context = common(question, session, user)?;
                context.extend([("effect", text(effect.as_str())), ("method", text(tool.method))]);
                context.extend(called(&tool));
                (parts.tool(&tool, mentioned)?, context)
            }
            Action::Reach(effect) => {
                let (tool, reach) = (given(question.tool, "tool")?, given(question.reach, "caller")?);
                let mut context = vec![
                    ("proof", Value::new_bool(reach.proof)),
                    ("binding", Value::new_long(reach.binding.into())),
                    ("time", time(question.now)?),
                    ("effect", text(effect.as_str())),
                    ("method", text(tool.method)),
                ];
                context.extend(called(&tool));
                (parts.tool(&tool, mentioned)?, context)
            }
            Action::Classify => {
                let tool = given(question.tool, "tool")?;
                let mut context = vec![("time", time(question.now)?), ("method", text(tool.method))];
                context.extend(called(&tool));
                (parts.tool(&tool, mentioned)?, context)
            }
        };
        let word = &ACTION_WORDS[index_of(question.action)];
        parts.anchors.extend([principal.clone(), resource.clone()]);
        let context = context.into_iter().map(|(name, value)| (name.to_owned(), value));
        let context = Context::from_pairs(context).map_err(|error| error.to_string())?;
        let request = Request::new(principal, word.uid.clone(), resource, context, None);
        let entities = parts.entities.into_iter().chain([word.entity.clone()]);
        Ok(Self {
            request: request.map_err(|error| error.to_string())?,
            entities: Entities::from_entities(entities, None).map_err(|error| error.to_string())?,
            anchors: parts.anchors,
        })
    }

    /// Whether it fits the schema. Not part of every decision: that this holds for every question is tested.
    #[cfg(test)]
    pub(super) fn check(&self) -> Result<(), String> {
        let schema = &*super::words::READ_SCHEMA;
        let Self { request, entities, .. } = self;
        Entities::from_entities(entities.iter().cloned(), Some(schema)).map_err(|error| format!("{error:?}"))?;
        let (principal, action, resource) = (request.principal(), request.action(), request.resource());
        let (Some(principal), Some(action), Some(resource)) = (principal, action, resource) else {
            return Err("a part is unknown".to_owned());
        };
        let context = request.context().cloned().unwrap_or_else(Context::empty);
        let again = Request::new(principal.clone(), action.clone(), resource.clone(), context, Some(schema));
        again.map(drop).map_err(|error| format!("{error:?}"))
    }

    pub(super) fn request(&self) -> &Request {
        &self.request
    }

    pub(super) fn entities(&self) -> &Entities {
        &self.entities
    }

    /// The principal, the resource, and everything they are in.
    pub(super) fn anchors(&self) -> impl Iterator<Item = &EntityUid> {
        self.anchors.iter()
    }
}

/// What is gathered for one question.
#[derive(Default)]
struct Parts {
    entities: Vec<Entity>,
    anchors: HashSet<EntityUid>,
}

type Attributes<'a> = Vec<(&'a str, Value)>;

impl Parts {
    fn add(
        &mut self,
        uid: EntityUid,
        attributes: Attributes<'_>,
        above: HashSet<EntityUid>,
    ) -> Result<EntityUid, String> {
        let attributes: HashMap<String, Value> =
            attributes.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        self.anchors.extend(above.iter().cloned());
        self.entities.push(Entity::new(uid.clone(), attributes, above).map_err(|error| error.to_string())?);
        Ok(uid)
    }

    fn agent(&mut self, agent: &AgentFacts<'_>, mentioned: &Mentioned) -> Result<EntityUid, String> {
        let attributes = vec![
            ("trust_domain", text(agent.spiffe_id.trust_domain_name())),
            ("path", text(agent.spiffe_id.path())),
            ("entry", text(agent.entry)),
            ("owner", text(agent.owner)),
        ];
        let uid = KINDS.agent.entity(agent.spiffe_id.as_str());
        self.add(uid, attributes, mentioned.above_agent(agent.spiffe_id))
    }

    fn user(&mut self, user: &User) -> Result<EntityUid, String> {
        let (kind, context) = match &user.proof {
            UserProof::Local { .. } => ("local", None),
            UserProof::Token { context, .. } => ("oidc", context.as_deref()),
        };
        let mut attributes =
            vec![("issuer", text(&user.issuer)), ("subject", text(&user.subject)), ("kind", text(kind))];
        attributes.extend(context.map(|context| ("acr", text(context))));
        self.add(KINDS.user.entity(&user.to_string()), attributes, HashSet::new())
    }

    fn issue(&mut self, question: &Question<'_>) -> Result<(EntityUid, Attributes<'static>), String> {
        let issue = given(question.issue, "credential")?;
        let context = vec![
            ("audience", texts(issue.audience)),
            ("binding", Value::new_long(issue.binding.into())),
            ("time", time(question.now)?),
        ];
        Ok((KINDS.credential.entity(issue.kind), context))
    }

    fn session(
        &mut self,
        question: &Question<'_>,
        agent: &EntityUid,
        user: Option<&EntityUid>,
    ) -> Result<EntityUid, String> {
        let session = given(question.session, "session")?;
        let lifetime = i64::try_from(session.lifetime.as_secs()).unwrap_or(i64::MAX);
        let mut attributes = vec![
            ("agent", Value::new_entity_uid(agent.clone())),
            ("purpose", text(session.purpose)),
            ("targets", texts(session.targets)),
            ("scopes", texts(session.scopes)),
            ("boundary", text(session.boundary)),
            ("binding", Value::new_long(session.binding.into())),
            ("depth", Value::new_long(session.depth.into())),
            ("lifetime_seconds", Value::new_long(lifetime)),
            ("launched", texts(session.launched)),
        ];
        attributes.extend(user.map(|user| ("user", Value::new_entity_uid(user.clone()))));
        self.add(KINDS.session.entity(session.id), attributes, HashSet::new())
    }

    fn tool(&mut self, tool: &ToolFacts<'_>, mentioned: &Mentioned) -> Result<EntityUid, String> {
        let Ok(uri) = TargetUri::parse(tool.uri) else {
            let attributes = vec![
                ("uri", text(tool.uri)),
                ("scheme", text("")),
                ("host", text("")),
                ("port", Value::new_long(0)),
                ("path", text("")),
            ];
            return self.add(KINDS.tool.entity(tool.uri), attributes, HashSet::new());
        };
        let place = Place::of(uri.as_str());
        let attributes = vec![
            ("uri", text(uri.as_str())),
            ("scheme", text(place.scheme)),
            ("host", text(place.host)),
            ("port", Value::new_long(place.port.into())),
            ("path", text(place.path)),
        ];
        self.add(KINDS.tool.entity(uri.as_str()), attributes, mentioned.above_tool(&uri, place.host))
    }
}

/// What every question in a session has.
fn common(question: &Question<'_>, session: EntityUid, user: Option<EntityUid>) -> Result<Attributes<'static>, String> {
    let facts: SessionFacts<'_> = given(question.session, "session")?;
    let count = |count: u32| Value::new_long(count.into());
    let budget = [
        ("tokens".to_owned(), count(facts.tokens)),
        ("calls".to_owned(), count(facts.calls)),
        ("max_tokens".to_owned(), count(facts.max_tokens)),
        ("max_calls".to_owned(), count(facts.max_calls)),
    ];
    let mut context = vec![
        ("session", Value::new_entity_uid(session)),
        ("purpose", text(facts.purpose)),
        ("approved", Value::new_bool(question.approved)),
        ("binding", Value::new_long(facts.binding.into())),
        ("budget", Value::new_record(budget).map_err(|error| error.to_string())?),
        ("time", time(question.now)?),
    ];
    context.extend(user.map(|user| ("user", Value::new_entity_uid(user))));
    Ok(context)
}

/// What is called behind the URI.
fn called(tool: &ToolFacts<'_>) -> [(&'static str, Value); 3] {
    [("tool", text(tool.name)), ("rpc", text(tool.rpc)), ("arguments_sha256", text(tool.arguments_sha256))]
}

fn given<T>(fact: Option<T>, what: &str) -> Result<T, String> {
    fact.ok_or_else(|| format!("BUG: the question has no {what}"))
}

fn time(now: OffsetDateTime) -> Result<Value, String> {
    let now = now.to_offset(time::UtcOffset::UTC);
    let record = [
        ("hour".to_owned(), Value::new_long(now.hour().into())),
        ("weekday".to_owned(), Value::new_long(now.weekday().number_from_monday().into())),
        ("unix".to_owned(), Value::new_long(now.unix_timestamp())),
    ];
    Value::new_record(record).map_err(|error| error.to_string())
}

fn text(text: &str) -> Value {
    Value::new_string(text.to_owned())
}

fn texts(texts: &[String]) -> Value {
    Value::new_set(texts.iter().map(|one| text(one)))
}

/// The parts of a URI in normal form.
struct Place<'a> {
    scheme: &'a str,
    host: &'a str,
    port: u16,
    path: &'a str,
}

impl<'a> Place<'a> {
    fn of(uri: &'a str) -> Self {
        let (scheme, rest) = uri.split_once("://").unwrap_or_default();
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let own_port = if scheme == "https" { 443 } else { 80 };
        // A colon inside the brackets of an IPv6 address is none before a port.
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, port.parse().unwrap_or(own_port)),
            _ => (authority, own_port),
        };
        Self { scheme, host, port, path }
    }
}

/// What is wrong with an entity that a policy names: it could never be met, and a `forbid` that never holds is an open
/// door.
pub(super) fn never_met(uid: &EntityUid) -> Option<String> {
    let id = uid.id().as_ref() as &str;
    if KINDS.agent.is_of(uid) || KINDS.agent_path.is_of(uid) {
        let wrong = SpiffeId::parse(id).err()?;
        return Some(format!("`{uid}` is never met: its id is no SPIFFE ID: {wrong}"));
    }
    if KINDS.prefix.is_of(uid) {
        return match TargetUri::parse(id) {
            Ok(_) => None,
            Err(wrong) => Some(format!("`{uid}` is never met: {wrong}")),
        };
    }
    if KINDS.host.is_of(uid) {
        let probe = TargetUri::parse(&format!("https://{id}/"));
        let is_host = probe.is_ok_and(|uri| Place::of(uri.as_str()).host == id);
        let hint = "write the name alone, in lower case and without port, such as `Host::\"tool.example.com\"`";
        return (!is_host).then(|| format!("`{uid}` is never met: {hint}"));
    }
    if KINDS.tool.is_of(uid) && id.contains("://") {
        return match TargetUri::parse(id) {
            Ok(uri) if uri.as_str() == id => None,
            Ok(uri) => Some(format!("`{uid}` is never met: write its URI in normal form, `Tool::\"{uri}\"`")),
            Err(_) => None, // the audience of a bearer token may be any text
        };
    }
    None
}
