//! A trust domain whose keys the test holds, so that it can forge what its issuer would never sign.

use aws_lc_rs::signature::ECDSA_P256_SHA256_FIXED_SIGNING;
use serde_json::{Value, json};

use super::forge::{Ca, Forger};
use super::{AUDIENCE, entry, set_bundle};
use crate::harness::TestAgent;

/// The id of its key.
pub const KEY_ID: &str = "k";

/// A foreign trust domain.
pub struct Foreign {
    /// Its name.
    pub domain: String,
    /// Its one token key.
    pub key: Forger,
    /// Its root.
    pub root: Ca,
}

impl Foreign {
    /// A trust domain of that name, unknown to the agent.
    pub fn new(domain: &str, agent: &TestAgent) -> Self {
        let key = Forger::ec(&ECDSA_P256_SHA256_FIXED_SIGNING);
        Self { domain: domain.to_owned(), key, root: Ca::root(domain, agent.clock().now()) }
    }

    /// Two agents' worth of setting up: an agent that federates with a new trust domain, `partner.example`.
    pub async fn partner() -> (TestAgent, Self) {
        let agent = TestAgent::start().await;
        let foreign = Self::new("partner.example", &agent);
        foreign.federate(&agent).await;
        (agent, foreign)
    }

    /// Gives the agent this bundle, and this process an entry that federates with it.
    pub async fn federate(&self, agent: &TestAgent) {
        self.set(agent, &self.bundle()).await;
        federate_with(agent, &[&self.domain]).await;
    }

    /// Gives the agent another bundle of this trust domain.
    pub async fn set(&self, agent: &TestAgent, bundle: &Value) {
        set_bundle(agent, &self.domain, &bundle.to_string()).await.unwrap();
    }

    /// Its bundle.
    pub fn bundle(&self) -> Value {
        json!({ "keys": [self.root.jwk(), self.jwt_key()] })
    }

    /// Its token key as an element of the bundle.
    pub fn jwt_key(&self) -> Value {
        let mut key = self.key.jwk();
        key["use"] = json!("jwt-svid");
        key["kid"] = json!(KEY_ID);
        key
    }

    /// An identity in it.
    pub fn workload(&self) -> String {
        format!("spiffe://{}/workload", self.domain)
    }

    /// Its SPIFFE ID.
    pub fn id(&self) -> String {
        format!("spiffe://{}", self.domain)
    }

    /// Claims that are valid now.
    pub fn claims(&self, agent: &TestAgent) -> Value {
        let now = agent.clock().now().unix_timestamp();
        json!({ "sub": self.workload(), "aud": [AUDIENCE], "exp": now + 300, "iat": now })
    }

    /// Valid claims with one member set; `null` takes it away.
    pub fn claims_with(&self, agent: &TestAgent, name: &str, value: Value) -> Value {
        let mut claims = self.claims(agent);
        match value {
            Value::Null => drop(claims.as_object_mut().unwrap().remove(name)),
            value => claims[name] = value,
        }
        claims
    }

    /// A token that follows every rule.
    pub fn token(&self, agent: &TestAgent) -> String {
        self.key.sign(&header(), &self.claims(agent))
    }

    /// A token with one claim set or taken away.
    pub fn token_with(&self, agent: &TestAgent, name: &str, value: Value) -> String {
        self.key.sign(&header(), &self.claims_with(agent, name, value))
    }
}

/// A header that follows every rule.
pub fn header() -> Value {
    json!({ "alg": "ES256", "kid": KEY_ID, "typ": "JWT" })
}

/// Gives this process an entry that federates with these trust domains.
pub async fn federate_with(agent: &TestAgent, domains: &[&str]) {
    let more = format!("federates_with = {domains:?}\naudiences = [\"*\"]");
    agent.write_entries("federation.toml", &entry("federation", "federated", &more)).await;
}
