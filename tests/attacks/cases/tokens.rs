//! Tokens that were copied, shown to a verifier that believes signatures (the naive side) and to one that asks tether.

use std::time::Duration;

use super::Attack;
use crate::naive_verifier::NaiveVerifier;
use crate::needs;
use crate::orders::{Headers, Refused, Verdict};
use crate::scene::{AUDIENCE, Process, Scene, Setup};
use crate::target::Side;

const BOTH: &[Side] = &[Side::Naive, Side::Tether];

pub const ATTACKS: &[Attack] = &[
    Attack::new("a WIT is shown as a bearer token", wit_as_bearer).on(BOTH),
    Attack::new("a WIT is shown where a JWT-SVID is expected", wit_for_jwt).on(BOTH),
    Attack::new("a JWT-SVID is shown where a WIT is expected", jwt_for_wit).on(BOTH),
    Attack::new("a JWT-SVID is shown after its process exited", jwt_after_exit),
    Attack::new("a JWT-SVID is shown after its process executed another program", jwt_after_exec),
    Attack::new("a JWT-SVID for a single use is shown twice", jwt_twice).on(BOTH),
    Attack::new("JWT-SVID and WIT are shown after they expired", expired).on(BOTH),
];

pub const LIMITS: &[Attack] =
    &[Attack::new("KNOWN LIMIT: a JWT-SVID works for whoever has it, anywhere, while its process lives", bearer)
        .needing(needs::network_namespaces)];

/// Whom tokens are shown to. All of them were issued by tether: what is naive is the verifier.
pub struct Verifier {
    pub scene: Scene,
    naive: Option<NaiveVerifier>,
    tool: Process,
}

impl Verifier {
    pub fn of(side: Side, setup: Setup<'_>) -> Self {
        let scene = Scene::with(if side == Side::Naive { Side::Tether } else { side }, setup);
        let naive = (side == Side::Naive).then(|| NaiveVerifier::new(&scene.bundle()));
        let tool = scene.tool();
        Self { scene, naive, tool }
    }

    pub fn on(side: Side) -> Self {
        Self::of(side, Setup::default())
    }

    /// A request that must be believed by nobody but the naive one, for one of the reasons.
    pub fn refuses_request(&mut self, headers: &Headers, reason: &str) {
        self.refuses_at("POST", crate::scene::URI, headers, reason);
    }

    /// The same, for a request that is not the one that was proven.
    pub fn refuses_at(&mut self, method: &str, uri: &str, headers: &Headers, reason: &str) {
        if let Some(naive) = &self.naive {
            assert!(naive.believes_request(headers), "the attack must succeed on a verifier that believes signatures");
            return;
        }
        let verdict = self.tool.check_at(method, uri, headers);
        assert!(!verdict.active && reason.split('|').any(|reason| reason == verdict.reason), "{reason}: {verdict:?}");
        self.scene.recorded(&verdict.reason);
    }

    /// A request that is good.
    pub fn accepts_request(&mut self, headers: &Headers) {
        match &self.naive {
            Some(naive) => assert!(naive.believes_request(headers)),
            None => assert_eq!(self.tool.check(headers), Verdict { active: true, reason: String::new() }),
        }
    }

    /// A token that stands.
    pub fn accepts_token(&mut self, token: &str) {
        match &self.naive {
            Some(naive) => assert!(naive.believes(token)),
            None => assert!(self.tool.validate(token).is_ok()),
        }
    }

    /// A token that must be believed by nobody but the naive one; what the others are told.
    fn refuses_token(&mut self, token: &str) -> Option<Refused> {
        if let Some(naive) = &self.naive {
            assert!(naive.believes(token), "the attack must succeed on a verifier that believes signatures");
            return None;
        }
        let refused = self.tool.validate(token).expect_err("tether must refuse");
        assert_eq!(refused.code, "InvalidArgument", "{refused:?}");
        Some(refused)
    }

    /// A token that once stood, and why it no longer does.
    pub fn refuses_ended(&mut self, token: &str, reason: &str) {
        if self.refuses_token(token).is_some() {
            self.scene.recorded(reason);
        }
    }

    /// A token that never was one of this kind, or is one no more. Such can be made up, so nothing is recorded.
    fn refuses_malformed(&mut self, token: &str, said: &str) {
        if let Some(refused) = self.refuses_token(token) {
            assert!(refused.message.contains(said), "{refused:?}");
        }
    }
}

pub fn headers(pairs: &[(&str, &str)]) -> Headers {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn wit_as_bearer(side: Side) {
    let mut verifier = Verifier::on(side);
    let mut victim = verifier.scene.victim();
    for wit in [victim.hold_wit().document, victim.fetch_wit().token] {
        verifier.refuses_request(&headers(&[("Authorization", &format!("Bearer {wit}"))]), "no_proof");
        verifier.refuses_request(&headers(&[("Workload-Identity-Token", &wit)]), "no_proof");
    }
}

fn wit_for_jwt(side: Side) {
    let mut verifier = Verifier::on(side);
    let mut victim = verifier.scene.victim();
    for wit in [victim.hold_wit().document, victim.fetch_wit().token] {
        verifier.refuses_malformed(&wit, "not valid");
    }
}

fn jwt_for_wit(side: Side) {
    let mut verifier = Verifier::on(side);
    let mut victim = verifier.scene.victim();
    let (jwt, wit) = (victim.fetch_jwt(), victim.hold_wit());
    verifier.refuses_request(&headers(&[("Workload-Identity-Token", &jwt)]), "no_proof");
    let proof = &victim.prove(&wit.key).unwrap()["Authorization"];
    verifier.refuses_request(&headers(&[("Workload-Identity-Token", &jwt), ("Authorization", proof)]), "wit_invalid");
}

fn jwt_after_exit(side: Side) {
    let mut verifier = Verifier::on(side);
    let mut victim = verifier.scene.victim();
    let token = victim.fetch_jwt();
    verifier.accepts_token(&token);
    victim.end();
    verifier.refuses_ended(&token, "process_exited");
}

fn jwt_after_exec(side: Side) {
    let mut verifier = Verifier::on(side);
    let mut victim = verifier.scene.victim();
    let token = victim.fetch_jwt();
    verifier.accepts_token(&token);
    victim.exec(verifier.scene.stage().thief());
    verifier.refuses_ended(&token, "executable_changed");
}

fn jwt_twice(side: Side) {
    let mut verifier = Verifier::of(side, Setup { victim: "single_use = true", ..Setup::default() });
    let mut victim = verifier.scene.victim();
    let token = victim.fetch_jwt();
    verifier.accepts_token(&token);
    verifier.refuses_ended(&token, "used");
}

/// Expiry is the only end that a naive verifier could see without asking, if it looked.
fn expired(side: Side) {
    let mut verifier = Verifier::on(side);
    let mut victim = verifier.scene.victim();
    let (jwt, wit) = (victim.fetch_jwt(), victim.hold_wit());
    let proven = victim.prove(&wit.key).unwrap();
    verifier.scene.agent().clock().advance(Duration::from_secs(5 * 60 + 11));
    verifier.refuses_malformed(&jwt, "expired");
    verifier.refuses_request(&proven, "wit_invalid");
}

/// This is what a bearer token is. Its audience, its short life and asking tether are what there is against it.
fn bearer(side: Side) {
    let mut verifier = Verifier::on(side);
    let mut victim = verifier.scene.victim();
    let token = victim.fetch_jwt();
    verifier.accepts_token(&token);
    // The thief is another user on another network; whoever it shows the token to cannot know.
    verifier.accepts_token(&token);
    if side == Side::Naive {
        return;
    }
    let mut asked = verifier.scene.elsewhere(&verifier.scene);
    assert!(asked.validate(&token).is_ok(), "if this is closed now, SECURITY.md must say so");
    let order = crate::orders::Order::Validate { audience: "https://else.example.com".to_owned(), token };
    assert_eq!(asked.order::<String>(&order).unwrap_err().code, "InvalidArgument", "it is for {AUDIENCE} alone");
}
