//! The agreement of asker, proof, token and session, as tables.

use time::macros::datetime;

use super::*;
use crate::proof::{Method, SubjectId, TargetUri, TetherClaims};
use crate::user::UserProof;

const AGENT: &str = "spiffe://td/agent";

fn id(text: &str) -> SpiffeId {
    SpiffeId::parse(text).unwrap()
}

fn session(user: bool, delegated_by: &[&str]) -> SessionView {
    let proof = UserProof::Token { expires_at: datetime!(2027-01-01 0:00 UTC), session: None, context: None };
    SessionView {
        id: "n.1".to_owned(),
        parent: None,
        depth: 0,
        spiffe_id: id(AGENT),
        entry: "e".to_owned(),
        owner: String::new(),
        user: user.then(|| User { issuer: "https://i".to_owned(), subject: "alice".to_owned(), proof }),
        purpose: "p".to_owned(),
        targets: vec!["https://tool/a/".to_owned()],
        scopes: vec!["r".to_owned(), "w".to_owned()],
        boundary: "task".to_owned(),
        binding: 3,
        lifetime: 60,
        expires_at: datetime!(2027-01-01 0:00 UTC),
        tokens: 0,
        calls: 0,
        max_tokens: 0,
        max_calls: 0,
        launched: Vec::new(),
        delegated_by: delegated_by.iter().map(|text| id(text)).collect(),
    }
}

fn wit() -> WitSession {
    WitSession {
        sid: "n.1".to_owned(),
        target: "https://tool/a/".to_owned(),
        scope: "r w".to_owned(),
        one_use: false,
        binding: 3,
        introspect: None,
    }
}

fn proof() -> SessionClaims {
    SessionClaims {
        sub: "alice".to_owned(),
        sub_id: Some(SubjectId { format: "iss_sub".to_owned(), iss: "https://i".to_owned(), sub: "alice".to_owned() }),
        act: Some(actor(&[AGENT])),
        scope: Some("r".to_owned()),
        txn: "t".to_owned(),
        tether: TetherClaims {
            sid: "n.1".to_owned(),
            purpose: "p".to_owned(),
            boundary: "task".to_owned(),
            effect: "write".to_owned(),
            tool: None,
            arguments_sha256: None,
            approval: None,
        },
    }
}

fn actor(chain: &[&str]) -> Actor {
    let nested = |inner: Option<Actor>, sub: &&str| Some(Actor { sub: (*sub).to_owned(), act: inner.map(Box::new) });
    chain.iter().rev().fold(None, nested).unwrap()
}

fn call() -> Call {
    let uri = TargetUri::parse("https://tool/a/b").unwrap();
    Call::of(ProofTarget { method: Method::parse("POST").unwrap(), uri, body: None })
}

fn label(session: &SessionView, proof: &SessionClaims) -> &'static str {
    agree(session, &wit(), &id(AGENT), proof, &call()).as_ref().err().map_or("", Inactive::as_str)
}

#[test]
fn a_proof_says_of_its_session_what_the_session_is() {
    let with_user = session(true, &[]);
    assert_eq!(label(&with_user, &proof()), "");
    let wrong: [fn(&mut SessionClaims); 10] = [
        |proof| proof.tether.sid = "n.2".to_owned(),
        |proof| proof.tether.purpose = "q".to_owned(),
        |proof| proof.tether.boundary = "tool_call".to_owned(),
        |proof| proof.sub = "bob".to_owned(),
        |proof| proof.sub_id = None,
        |proof| proof.sub_id.as_mut().unwrap().sub = "bob".to_owned(),
        |proof| proof.sub_id.as_mut().unwrap().iss = "https://j".to_owned(),
        |proof| proof.act = None,
        |proof| proof.act = Some(actor(&["spiffe://td/other"])),
        |proof| proof.act = Some(actor(&[AGENT, "spiffe://td/other"])),
    ];
    for (number, change) in wrong.into_iter().enumerate() {
        let mut proof = proof();
        change(&mut proof);
        assert_eq!(label(&with_user, &proof), "proof_of_another_token", "{number}");
    }
    let another = SessionView { spiffe_id: id("spiffe://td/other"), ..session(true, &[]) };
    assert_eq!(label(&another, &proof()), "proof_of_another_token");
}

#[test]
fn without_a_user_the_first_agent_is_the_one_the_others_act_for() {
    let for_nobody = SessionClaims { sub: AGENT.to_owned(), sub_id: None, act: None, ..proof() };
    assert_eq!(label(&session(false, &[]), &for_nobody), "");
    assert_eq!(label(&session(true, &[]), &for_nobody), "proof_of_another_token");
    let (near, first) = ("spiffe://td/near", "spiffe://td/first");
    let delegated = SessionClaims {
        sub: first.to_owned(),
        act: Some(actor(&[AGENT, near])),
        ..SessionClaims { sub_id: None, ..proof() }
    };
    assert_eq!(label(&session(false, &[near, first]), &delegated), "");
    assert_eq!(label(&session(false, &[near]), &delegated), "proof_of_another_token");
    let for_user = SessionClaims { act: Some(actor(&[AGENT, near])), ..proof() };
    assert_eq!(label(&session(true, &[near]), &for_user), "");
}

#[test]
fn a_token_is_no_wider_than_its_session() {
    let narrow = SessionView { targets: vec!["https://tool/b/".to_owned()], ..session(true, &[]) };
    assert_eq!(label(&narrow, &proof()), "target");
    let narrow = SessionView { scopes: vec!["w".to_owned()], ..session(true, &[]) };
    assert_eq!(label(&narrow, &proof()), "scope");
}

#[test]
fn a_session_lasts_no_longer_than_the_proof_of_its_user() {
    let mut session = session(true, &[]);
    session.expires_at = datetime!(2027-01-02 0:00 UTC);
    assert!(session.lasts(datetime!(2026-12-31 0:00 UTC)));
    assert!(!session.lasts(datetime!(2027-01-01 0:00 UTC)));
    session.user = None;
    assert!(session.lasts(datetime!(2027-01-01 0:00 UTC)));
    assert!(!session.lasts(datetime!(2027-01-02 0:00 UTC)));
}
