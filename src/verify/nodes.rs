//! WITs that other nodes of the trust domain issued: their keys, and whether they stand, come from the node itself.
//!
//! Promises: only configured nodes are asked, each at its own address and by the identity of its agent; a node's keys
//! vouch for its own WITs and for no others; what a node does not say in time is a no, except that policy may accept its
//! last yes about the same WIT for reads, for as long as policy says. What is kept of nodes is bounded. What they tell
//! without being asked is in [`follow`].

pub(super) mod follow;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;
use time::OffsetDateTime;
use tokio::sync::{broadcast, watch};

use self::follow::{Elsewhere, Heard, HeardNodes, Unusable};
use super::introspection::{Answer, ToNode, question};
use super::peer::Peer;
use super::reach::{Reaching, RpcVerdict, is_of};
use super::tls::Tls;
use super::{Agreed, Asker, Call, Decided, InSession, Inactive, Verified, Verifier, call};
use crate::base::clock::Clock;
use crate::base::text::chain;
use crate::id::{SpiffeId, TrustDomain};
use crate::issue::LEEWAY;
use crate::jwt::{Jwk, Jws};
use crate::policy::{Decision, Effect};
use crate::proof::{BodyDigest, CheckedProof, Expected, Presented, check_wpt};
use crate::user::fetch::{Endpoint, EndpointError, Fetcher, Roots};
use crate::wit::{WitAuthorities, WitSession};

/// A node that has not answered by then is not there.
const DEADLINE: Duration = Duration::from_secs(2);
/// The largest answer.
const MAX_ANSWER_BYTES: usize = 256 * 1024;
/// The most keys one node has.
const MAX_KEYS: usize = 32;
/// Keys are fetched again after this, and for a key that is not known no sooner than this.
const KEYS_FOR: time::Duration = time::Duration::minutes(5);
const KEYS_AGAIN: time::Duration = time::Duration::seconds(2);
/// How many good answers of one node are remembered.
const MAX_GOOD: usize = 4096;
/// How many changes of sessions are kept for those who are slow to hear of them.
const BACKLOG: usize = 1024;

/// Where other nodes answer: base URLs by node id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeUrls(BTreeMap<String, String>);

impl NodeUrls {
    /// Each node and its URL, in the order of the nodes.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(node, url)| (node.as_str(), url.as_str()))
    }
}

impl FromIterator<(String, String)> for NodeUrls {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(urls: I) -> Self {
        Self(urls.into_iter().collect())
    }
}

/// The configured nodes.
#[derive(Debug)]
pub struct Nodes {
    nodes: BTreeMap<String, Node>,
    heard: watch::Sender<HeardNodes>,
    changes: broadcast::Sender<Elsewhere>,
}

struct Node {
    agent: SpiffeId,
    /// As it is configured, and as the node's WITs say it.
    url: String,
    keys_at: Endpoint,
    introspect_at: Endpoint,
    changes_at: Endpoint,
    fetcher: Fetcher,
    tls: Tls,
    /// Locked while they are fetched: whoever comes meanwhile waits for the same answer.
    keys: tokio::sync::Mutex<Keys>,
    good: Mutex<Good>,
    unusable: Mutex<Unusable>,
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node").field("agent", &self.agent).field("url", &self.url).finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Keys {
    known: Option<(Arc<WitAuthorities>, OffsetDateTime)>,
    /// When the last attempt was over, and why it gave none.
    tried: Option<(OffsetDateTime, Option<String>)>,
}

/// The last yes about each WIT, by its digest.
#[derive(Default)]
struct Good {
    answers: HashMap<String, (Known, OffsetDateTime)>,
    order: VecDeque<String>,
}

/// What a node said of a WIT.
#[derive(Clone, Debug)]
struct Known {
    binding: u8,
    facts: ToNode,
}

impl Nodes {
    /// Asks these, as the agent that `tls` is.
    ///
    /// # Errors
    /// A URL is none that may be asked, or a node id is none; with the node.
    pub fn new(urls: &NodeUrls, domain: &TrustDomain, tls: &Tls) -> Result<Self, (String, EndpointError)> {
        let mut nodes = BTreeMap::new();
        for (id, url) in urls.iter() {
            let wrong = |error| (id.to_owned(), error);
            let agent = SpiffeId::parse(&format!("spiffe://{domain}/tether/agent/{id}"));
            let agent = agent.map_err(|_| wrong(EndpointError::Malformed))?;
            let at = |path: &str| Endpoint::parse(&format!("{}/{path}", url.trim_end_matches('/'))).map_err(wrong);
            let roots = Roots::Tls(Arc::new(tls.client(agent.clone())));
            let node = Node {
                agent,
                url: url.to_owned(),
                keys_at: at("keys")?,
                introspect_at: at("introspect")?,
                changes_at: at("changes")?,
                fetcher: Fetcher::new(roots).within(DEADLINE).at_most(MAX_ANSWER_BYTES),
                keys: tokio::sync::Mutex::default(),
                good: Mutex::default(),
                unusable: Mutex::default(),
                tls: tls.clone(),
            };
            nodes.insert(id.to_owned(), node);
        }
        let unheard = Heard { since: tls.clock.now(), silent: Some("it was not heard yet".to_owned()) };
        let heard = nodes.keys().map(|id| (id.clone(), unheard.clone())).collect();
        Ok(Self { nodes, heard: watch::Sender::new(heard), changes: broadcast::Sender::new(BACKLOG) })
    }

    /// Whether this is the agent of one of them.
    pub(super) fn is_agent_of_one(&self, id: &SpiffeId) -> bool {
        self.nodes.values().any(|node| node.agent == *id)
    }

    fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }
}

impl Node {
    /// The node's keys, with one of this name if there is one. Whoever is shown a WIT chooses its name, so it is not asked
    /// for more often than every few seconds.
    async fn keys(&self, kid: &str, clock: &Clock) -> Result<Arc<WitAuthorities>, String> {
        let mut keys = self.keys.lock().await;
        let now = clock.now();
        let within = |at: OffsetDateTime, most: time::Duration| (now - at).abs() < most;
        let known = keys.known.as_ref().filter(|(_, at)| within(*at, KEYS_FOR)).map(|(known, _)| known.clone());
        if let Some(known) = known.as_ref().filter(|known| known.find(kid).is_some()) {
            return Ok(known.clone());
        }
        if let Some((_, why)) = keys.tried.as_ref().filter(|(at, _)| within(*at, KEYS_AGAIN)) {
            return known.ok_or_else(|| why.clone().unwrap_or_default());
        }
        let fetched = self.fetch_keys().await;
        let now = clock.now();
        keys.tried = Some((now, fetched.as_ref().err().cloned()));
        let fetched = fetched?;
        keys.known = Some((fetched.clone(), now));
        Ok(fetched)
    }

    async fn fetch_keys(&self) -> Result<Arc<WitAuthorities>, String> {
        let fetched = self.fetcher.get(&self.keys_at, "application/json").await.map_err(|error| chain(&error))?;
        if fetched.status != http::StatusCode::OK {
            return Err(format!("`{}` answers {}", self.keys_at.as_str(), fetched.status));
        }
        let parsed = authorities(&self.agent.trust_domain(), &fetched.body);
        parsed.map(Arc::new).ok_or_else(|| format!("`{}` has no keys for WITs", self.keys_at.as_str()))
    }

    /// What the node says of one request; `None`: that it is not good.
    async fn ask(&self, call: &Call, presented: Presented<'_>) -> Result<Option<Known>, String> {
        let form = Bytes::from(question(call, presented));
        let kind = "application/x-www-form-urlencoded";
        let fetched = self.fetcher.post(&self.introspect_at, kind, form).await.map_err(|error| chain(&error))?;
        if fetched.status != http::StatusCode::OK {
            return Err(format!("`{}` answers {}", self.introspect_at.as_str(), fetched.status));
        }
        let answer: Answer = serde_json::from_slice(&fetched.body).map_err(|error| error.to_string())?;
        if !answer.active {
            return Ok(None);
        }
        let facts = answer.tether.ok_or_else(|| "it does not take this agent for a node of its own".to_owned())?;
        Ok(Some(Known { binding: answer.binding, facts }))
    }

    fn good(&self) -> std::sync::MutexGuard<'_, Good> {
        // Whole after every statement: a panic elsewhere leaves nothing half done.
        self.good.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unusable(&self) -> std::sync::MutexGuard<'_, Unusable> {
        self.unusable.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Good {
    fn note(&mut self, wit: &str, known: Known, now: OffsetDateTime) {
        let key = BodyDigest::of(wit.as_bytes()).encoded();
        if self.answers.insert(key.clone(), (known, now)).is_none() {
            self.order.push_back(key);
        }
        if self.order.len() > MAX_GOOD
            && let Some(oldest) = self.order.pop_front()
        {
            self.answers.remove(&oldest);
        }
    }

    fn forget(&mut self, wit: &str) {
        let key = BodyDigest::of(wit.as_bytes()).encoded();
        if self.answers.remove(&key).is_some() {
            self.order.retain(|other| *other != key);
        }
    }

    /// Forgets what was said of WITs of a session that stands elsewhere now.
    fn forget_session(&mut self, session: &str) {
        let is_of = |known: &Known| known.facts.session.as_ref().is_some_and(|view| view.id == session);
        self.answers.retain(|_, (known, _)| !is_of(known));
        self.order.retain(|wit| self.answers.contains_key(wit));
    }

    fn find(&self, wit: &str) -> Option<(Known, OffsetDateTime)> {
        self.answers.get(&BodyDigest::of(wit.as_bytes()).encoded()).cloned()
    }
}

/// The keys for WITs in a JWK set; `None` when it is none, or has too many.
fn authorities(domain: &TrustDomain, body: &[u8]) -> Option<WitAuthorities> {
    let set: Value = serde_json::from_slice(body).ok()?;
    let keys = set.get("keys")?.as_array().filter(|keys| (1..=MAX_KEYS).contains(&keys.len()))?;
    let usable = keys.iter().filter_map(|key| {
        let key = key.as_object().filter(|key| key.get("use").and_then(Value::as_str) == Some("wit-svid"))?;
        Some((key.get("kid")?.as_str()?.to_owned(), Jwk::from_json(key).ok()?))
    });
    Some(WitAuthorities::new(domain.clone(), usable)).filter(|authorities| !authorities.is_empty())
}

/// The node that a WIT says it is from, and the key it says it is signed with. Nothing of it is proven.
pub(super) struct Claimed {
    node: String,
    kid: String,
}

impl Claimed {
    fn read(wit: &str, domain: &TrustDomain) -> Option<Self> {
        let jws = Jws::parse(wit).ok()?;
        let claims = jws.claims().ok()?;
        let subject = SpiffeId::parse(claims.get("sub")?.as_str()?).ok()?;
        let (node, _) = claims.get("jti")?.as_str()?.split_once('.')?;
        let kid = jws.header().key_id.clone()?;
        subject.is_member_of(domain).then(|| Self { node: node.to_owned(), kid })
    }
}

impl Verifier {
    /// The other node that a WIT names, where other nodes are asked at all.
    pub(super) fn of_other_node(&self, presented: Presented<'_>) -> Option<Claimed> {
        if self.nodes.is_empty() {
            return None;
        }
        let claimed = Claimed::read(presented.wit, self.issuer.trust.current().domain())?;
        (!self.issuer.ledger.is_of_this_node(&format!("{}.", claimed.node))).then_some(claimed)
    }

    /// Checks a request whose WIT another node issued. That node says whether the WIT stands and what its session is;
    /// what is decided here is decided here.
    pub(super) async fn judge_elsewhere(
        &self,
        asker: &Asker,
        call: &Call,
        peer: Option<&Peer>,
        presented: Presented<'_>,
        claimed: &Claimed,
    ) -> Result<Verified, Inactive> {
        // Who asks for its own askers asks the node that issued it, and not by way of us.
        let node = self.nodes.nodes.get(&claimed.node).filter(|_| !asker.is_node);
        let node = node.ok_or_else(|| Inactive::NodeUnknown(claimed.node.clone()))?;
        let unreachable = |why| Inactive::NodeUnreachable { node: claimed.node.clone(), why };
        let keys = node.keys(&claimed.kid, &self.issuer.clock).await.map_err(unreachable)?;
        let checked = check_elsewhere(call, presented, &keys, claimed, self.issuer.clock.now())?;
        is_of(peer, checked.wit.spiffe_id())?;
        let of_wit = WitSession::of(checked.wit.claims()).map_err(|_| Inactive::Claim("tether"))?;
        if of_wit.as_ref().and_then(|wit| wit.introspect.as_ref()).is_some_and(|url| *url != node.url) {
            return Err(Inactive::NodeUnknown(claimed.node.clone()));
        }
        let stands = || of_wit.as_ref().map_or(Ok(()), |wit| node.stands(&wit.sid));
        stands()?;
        if let Some(wit) = &of_wit {
            self.let_hear(asker, &wit.sid);
        }
        // A replay is to use nothing up at the node either.
        self.not_seen(asker, &checked)?;
        let asked = node.ask(call, presented).await;
        // Nothing waits after this. What the node told meanwhile is newer than its answer.
        stands()?;
        let now = self.issuer.clock.now();
        let (known, age) = match asked {
            Ok(Some(known)) => {
                node.good().note(presented.wit, known.clone(), now);
                (known, None)
            }
            Ok(None) => {
                node.good().forget(presented.wit);
                return Err(Inactive::NotAtNode(claimed.node.clone()));
            }
            Err(why) => {
                let (known, at) = node.good().find(presented.wit).ok_or_else(|| unreachable(why))?;
                (known, Some(now - at))
            }
        };
        self.believe(asker, call, checked, of_wit, known, age, now).map_err(|error| match error {
            TooOld => unreachable("and its last word is too old for policy".to_owned()),
            No(inactive) => inactive,
        })
    }

    /// What follows from an answer, which is `age` old if it is not of this moment.
    #[expect(clippy::too_many_arguments, reason = "each is a fact of its own, and there is one caller")]
    fn believe(
        &self,
        asker: &Asker,
        call: &Call,
        checked: CheckedProof,
        of_wit: Option<WitSession>,
        known: Known,
        age: Option<time::Duration>,
        now: OffsetDateTime,
    ) -> Result<Verified, Unbelieved> {
        let Known { binding, facts } = known;
        call.is_bound(binding)?;
        let (session, decided, rpcs) = match (of_wit.zip(checked.session.as_ref()), facts.session) {
            (None, None) => {
                if facts.one_use && call.rpcs.len() > 1 {
                    return Err(Inactive::Several.into());
                }
                // Nobody says how old an answer about a call without a session may be.
                if age.is_some() {
                    return Err(TooOld);
                }
                let caller = Reaching { spiffe_id: checked.wit.spiffe_id(), row: None, binding, proof: true };
                let (decided, rpcs) = self.reaches(asker, call, &caller, now)?;
                (None, decided, rpcs)
            }
            (Some((wit, proof)), Some(mut view)) => {
                if !view.lasts(now) {
                    return Err(Inactive::SessionEnded(None).into());
                }
                view.binding = view.binding.min(binding);
                if wit.one_use && call.rpcs.len() > 1 {
                    return Err(Inactive::Several.into());
                }
                let mut agreed = call::agree(&view, &wit, checked.wit.spiffe_id(), proof, call)?;
                // An old answer says that the WIT stood, and nothing of this call.
                let approved = facts.approved && age.is_none();
                let ask = |agreed: &Agreed, approved| {
                    // Who approves is asked where the session is.
                    let permit = self.issuer.policy.call(&agreed.question(call, &view, approved, now));
                    let decision = permit.map_err(Inactive::from)?.into_decision();
                    if age.is_some_and(|age| !accepts(&decision, &wit, agreed.effect, age)) {
                        return Err(TooOld);
                    }
                    Ok(Decided::of(agreed.effect, decision))
                };
                let txn = proof.txn.clone();
                if call.rpcs.is_empty() {
                    agreed.effect = agreed.graver(self.classified(view.agent(), call, agreed.named(), now));
                    let decided = ask(&agreed, approved)?;
                    (Some(InSession { view, agreed, txn, approved }), Some(decided), Vec::new())
                } else {
                    let mut rpcs = Vec::with_capacity(call.rpcs.len());
                    // An answer about other calls says nothing of these.
                    let said = |index: usize| facts.rpcs.get(index).filter(|_| age.is_none());
                    for (index, rpc) in call.rpcs.iter().enumerate() {
                        let of_rpc = self.of_rpc(call, &view, &agreed, rpc, now);
                        let approved = said(index).is_some_and(|said| said.approved);
                        let outcome = match ask(&of_rpc, approved) {
                            // The session's node decides too, and who approves is asked there.
                            Ok(decided) => match said(index) {
                                Some(said) if !said.allowed && said.approval.is_some() => {
                                    Err(Inactive::StepUp(said.approval.clone()).into())
                                }
                                Some(said) if !said.allowed => Err(Inactive::Policy(Vec::new()).into()),
                                Some(_) => Ok(decided),
                                None if age.is_some() => Ok(decided),
                                None => Err(Inactive::Policy(Vec::new()).into()),
                            },
                            Err(No(Inactive::StepUp(_))) => {
                                let approval = said(index).and_then(|said| said.approval.clone());
                                Err(Inactive::StepUp(approval).into())
                            }
                            Err(No(inactive)) => Err(inactive.into()),
                            Err(TooOld) => return Err(TooOld),
                        };
                        rpcs.push(RpcVerdict { effect: of_rpc.effect, outcome, approved });
                    }
                    (Some(InSession { view, agreed, txn, approved: false }), None, rpcs)
                }
            }
            _ => return Err(Inactive::Claim("sid").into()),
        };
        self.first_time(asker, &checked, now)?;
        Ok(Verified {
            spiffe_id: checked.wit.spiffe_id().clone(),
            binding,
            proven: true,
            token_id: checked.wit.token_id().unwrap_or_default().to_owned(),
            proof_id: checked.jti,
            made_at: checked.made_at,
            expires_at: checked.expires_at,
            thumbprint: checked.thumbprint,
            one_use: facts.one_use,
            session,
            decided,
            rpcs,
        })
    }
}

/// Why an answer is of no use.
enum Unbelieved {
    /// Policy does not take one that old.
    TooOld,
    No(Inactive),
}

use Unbelieved::{No, TooOld};

impl From<Inactive> for Unbelieved {
    fn from(inactive: Inactive) -> Self {
        No(inactive)
    }
}

/// Whether policy takes an answer that is so old: of reads alone, and never about a token for one call, of whose use only
/// the node knows.
fn accepts(decision: &Decision, wit: &WitSession, effect: Effect, age: time::Duration) -> bool {
    let most = decision.obligations.stale.and_then(|stale| time::Duration::try_from(stale).ok());
    effect == Effect::Read && !wit.one_use && !age.is_negative() && most.is_some_and(|most| age <= most)
}

/// Whether WIT and proof hold by the keys of the node that the WIT names, for a WIT that it may issue.
fn check_elsewhere(
    call: &Call,
    presented: Presented<'_>,
    keys: &WitAuthorities,
    claimed: &Claimed,
    now: OffsetDateTime,
) -> Result<CheckedProof, Inactive> {
    let target = &call.target;
    let expected = Expected { method: &target.method, uri: &target.uri, body: target.body };
    let checked =
        check_wpt(presented, expected, |domain| Some(keys).filter(|keys| keys.trust_domain() == domain), now, LEEWAY)?;
    let named = checked.wit.token_id().and_then(|id| id.split_once('.'));
    if named.is_some_and(|(node, _)| node == claimed.node) { Ok(checked) } else { Err(Inactive::AnotherNode) }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;
    use crate::base::entropy::Entropy;
    use crate::policy::Obligations;
    use crate::proof::{Method, ProofKey, ProofTarget, TargetUri};
    use crate::wit::{Confirmation, WitClaims, WitSigner};
    use crate::x509::{KeyType, PrivateKey};

    const NOW: OffsetDateTime = datetime!(2026-11-01 12:00 UTC);

    fn signer() -> WitSigner {
        WitSigner::new(&PrivateKey::generate(KeyType::EcP256).unwrap()).unwrap()
    }

    #[test]
    fn the_keys_of_a_node_vouch_for_its_own_tokens_and_for_no_others() {
        let (a, c) = (signer(), signer());
        let domain = TrustDomain::parse("example.org").unwrap();
        let keys = |signer: &WitSigner| {
            WitAuthorities::new(domain.clone(), [(signer.key_id().to_owned(), signer.public_key().clone())])
        };
        let key = ProofKey::new(&PrivateKey::generate(KeyType::EcP256).unwrap()).unwrap();
        let uri = TargetUri::parse("https://tool.example.com/").unwrap();
        let call = Call::of(ProofTarget { method: Method::parse("GET").unwrap(), uri, body: None });
        let rows = [
            ("of a, by a", "a.1", &a, &a, "a", ""),
            ("of a, by c", "a.1", &c, &a, "a", "wit_invalid"),
            ("of c, by a, given out as of a", "c.1", &a, &a, "a", "another_node"),
            ("of c, by a, judged by c", "c.1", &a, &c, "c", "wit_invalid"),
        ];
        for (what, jti, by, known, claimed, expected) in rows {
            let wit = by.sign(&WitClaims {
                sub: &SpiffeId::parse("spiffe://example.org/agent").unwrap(),
                exp: NOW + Duration::from_secs(60),
                iat: NOW,
                jti,
                cnf: &Confirmation::of(key.public_key().clone()),
                session: None,
            });
            let wit = wit.unwrap();
            let proof = key.wpt(&wit, &call.target, None, &Entropy::system(), NOW).unwrap().token;
            let presented = Presented { wit: &wit, proof: &proof, txn_token: None };
            let claimed = Claimed { node: claimed.to_owned(), kid: by.key_id().to_owned() };
            let checked = check_elsewhere(&call, presented, &keys(known), &claimed, NOW);
            let label = checked.as_ref().err().map_or("", Inactive::as_str);
            assert_eq!(label, expected, "{what}");
        }
    }

    #[test]
    fn an_old_answer_is_taken_for_reads_and_for_as_long_as_policy_says() {
        let says = |stale: Option<u64>| Decision {
            allowed: true,
            obligations: Obligations { stale: stale.map(Duration::from_secs), ..Obligations::default() },
            policies: [].into(),
            errors: Vec::new(),
            set: "".into(),
        };
        let rows = [
            (Some(30), Effect::Read, 30, true),
            (Some(30), Effect::Read, 31, false),
            (Some(30), Effect::Read, -1, false),
            (Some(30), Effect::Write, 1, false),
            (Some(30), Effect::Irreversible, 1, false),
            (None, Effect::Read, 0, false),
        ];
        let wit = |one_use| WitSession {
            sid: "n.1".to_owned(),
            target: "*".to_owned(),
            scope: String::new(),
            one_use,
            binding: 3,
            introspect: None,
        };
        for (stale, effect, age, expected) in rows {
            let age_of = time::Duration::seconds(age);
            assert!(!accepts(&says(stale), &wit(true), effect, age_of), "{stale:?} {effect:?} {age}");
            assert_eq!(accepts(&says(stale), &wit(false), effect, age_of), expected, "{stale:?} {effect:?} {age}");
        }
    }

    #[test]
    fn what_is_remembered_of_a_node_is_bounded_and_forgotten_with_its_next_no() {
        let known =
            Known { binding: 3, facts: ToNode { session: None, approved: false, one_use: false, rpcs: Vec::new() } };
        let mut good = Good::default();
        for number in 0..=MAX_GOOD {
            good.note(&number.to_string(), known.clone(), NOW);
        }
        assert!(good.find("0").is_none(), "the oldest gives way");
        assert_eq!(good.answers.len(), MAX_GOOD);
        good.note("1", known, NOW + Duration::from_secs(5));
        assert_eq!(good.find("1").unwrap().1, NOW + Duration::from_secs(5));
        good.forget("1");
        assert!(good.find("1").is_none());
        assert_eq!(good.order.len(), good.answers.len());
    }
}
