//! Sessions: what a copied id, token or proof of one is worth to others, and what is left of them when the task is over.

use tether::jwt::Jws;
use tether::proto::admin::SuspendSessionRequest;
use tether::proto::admin::session_admin_client::SessionAdminClient;

use super::Attack;
use super::tokens::{Verifier, headers};
use crate::harness::channel;
use crate::needs;
use crate::orders::{Begin, Headers, Held, Order, Refused};
use crate::scene::{AUDIENCE, Process, Scene, Setup, URI};
use crate::target::Side;

const BOTH: &[Side] = &[Side::Naive, Side::Tether];
const TETHER: &[Side] = &[Side::Tether];

pub const ATTACKS: &[Attack] = &[
    Attack::new("a session is used by another process of its user, program and identity", sibling),
    Attack::new("a session is used by another program of its user", other_program),
    Attack::new("a session is used by another user", other_user).needing(needs::root),
    Attack::new("a session is used by its process after it executed another program", executed),
    Attack::new("a session is used by a successor after its process exited", successor),
    Attack::new("a session is used after its task is over", after_end).on(TETHER),
    Attack::new("a session is used after an operator suspended it", suspended).on(TETHER),
    Attack::new("a session is used after the one above it has ended", after_parent).on(TETHER),
    Attack::new("a session is used after the agent was restarted", restarted).on(TETHER),
    Attack::new("a session is used on another host of the trust domain", other_host)
        .needing(needs::network_namespaces)
        .on(TETHER),
    Attack::new("another user lists, watches and ends sessions", foreign_eyes).needing(needs::root).on(BOTH),
    Attack::new("a session is begun for a process of another user", for_other_user).needing(needs::root).on(BOTH),
    Attack::new("a child asks for more than its parent has", more_than_parent).on(BOTH),
    Attack::new("a session goes where it was not begun for", elsewhere).on(BOTH),
    Attack::new("a process outside the tree uses the session of a tree", outside_the_tree).on(TETHER),
    Attack::new("a process goes on in the session of a tree whose root is gone", rootless).on(TETHER),
    Attack::new("a token of a session is shown without a proof", no_proof).on(BOTH),
    Attack::new("a proof of a session is shown again", replayed).on(BOTH),
    Attack::new("a proof of a session is shown with another method or URI", other_request).on(BOTH),
    Attack::new("a proof of a session is shown with the token of another session", other_session).on(TETHER),
    Attack::new("a token of a session for one call is shown twice, at two verifiers", one_call).on(TETHER),
    Attack::new("a proof of a session is shown after its task is over", proof_after_end).on(BOTH),
    Attack::new("a proof of a session is shown after an operator suspended it", proof_suspended).on(BOTH),
    Attack::new("a proof of a session is shown after its process exited", proof_after_exit).on(BOTH),
    Attack::new("a proof of a session is shown after its process executed another program", proof_after_exec).on(BOTH),
    Attack::new("a proof of a session is shown after the session above it has ended", proof_after_parent).on(BOTH),
    Attack::new("a proof of a session is shown after the agent was restarted", proof_after_restart).on(TETHER),
    Attack::new("a proof of a session is shown on another host of the trust domain", proof_on_other_host).on(TETHER),
    Attack::new("a bearer token of a session is shown after its task is over", bearer_after_end).on(BOTH),
    Attack::new("a process that serves nothing asks about and reports on the sessions of others", nosy).on(TETHER),
    Attack::new("the user of an agent approves what its agent may do", self_approval).on(TETHER),
];

pub const LIMITS: &[Attack] = &[
    Attack::new("KNOWN LIMIT: a bearer token works after its task is over, where nobody asks", bearer_unasked)
        .on(&[Side::Naive]),
    Attack::new("KNOWN LIMIT: a proof of a session works once for who shows it first", first).on(TETHER),
];

/// A task at the tool.
fn task() -> Begin {
    Begin {
        purpose: "billing".to_owned(),
        targets: vec!["https://tool.example.com/".to_owned(), AUDIENCE.to_owned()],
        ..Begin::default()
    }
}

impl Process {
    fn begin(&mut self, begin: Begin) -> String {
        self.order(&Order::Start(begin)).unwrap()
    }

    /// Proves one POST to the tool in a session.
    fn prove_in(&mut self, session: &str) -> Result<Headers, Refused> {
        self.order(&prove(session, "POST", URI))
    }

    fn mint(&mut self, session: &str, target: &str, bearer: bool) -> Result<Held, Refused> {
        self.order(&Order::Mint { session: session.to_owned(), target: target.to_owned(), bearer })
    }

    fn end_session(&mut self, session: &str) {
        let reason: String = self.order(&Order::EndSession(session.to_owned())).unwrap();
        assert_eq!(reason, "completed");
    }

    fn end_of(&mut self, session: &str) -> String {
        self.order(&Order::Look(session.to_owned())).unwrap()
    }
}

fn prove(session: &str, method: &str, uri: &str) -> Order {
    Order::ProveIn { session: session.to_owned(), method: method.to_owned(), uri: uri.to_owned() }
}

/// The id of a session that works for whose it is.
fn stolen_from(victim: &mut Process) -> String {
    let session = victim.begin(task());
    victim.prove_in(&session).expect("its own session");
    session
}

/// Neither a proof nor a token comes of it.
fn judge_use(scene: &mut Scene, side: Side, session: &str, thief: &mut Process, code: &str, reason: &str) {
    scene.judge(thief.prove_in(session), code, reason);
    if side != Side::Naive {
        scene.judge(thief.mint(session, URI, false), code, reason);
        scene.judge(thief.mint(session, AUDIENCE, true), code, reason);
    }
}

const NO_MEMBER: &str = "use by a process that is no member";
/// What ends with its process ends when somebody has seen it: until then the successor is no member.
const OVER: (&str, &str) = ("PermissionDenied|FailedPrecondition", "use by a process that is no member|session_ended");

fn used_by(side: Side, thief: fn(&Scene) -> Process, code: &str, reason: &str) {
    let mut scene = Scene::on(side);
    let mut victim = scene.victim();
    let stolen = stolen_from(&mut victim);
    let mut thief = thief(&scene);
    judge_use(&mut scene, side, &stolen, &mut thief, code, reason);
    victim.prove_in(&stolen).expect("the attempt costs the victim nothing");
}

fn sibling(side: Side) {
    used_by(side, Scene::victim, "PermissionDenied", NO_MEMBER);
}

fn other_program(side: Side) {
    used_by(side, Scene::thief, "PermissionDenied", NO_MEMBER);
}

/// To whom there is no such session.
fn other_user(side: Side) {
    used_by(side, Scene::other_user, "NotFound", "no_session");
}

fn executed(side: Side) {
    let mut scene = Scene::on(side);
    let mut victim = scene.victim();
    let stolen = stolen_from(&mut victim);
    victim.exec(scene.stage().thief());
    judge_use(&mut scene, side, &stolen, &mut victim, OVER.0, OVER.1);
}

fn successor(side: Side) {
    let mut scene = Scene::on(side);
    let mut victim = scene.victim();
    let stolen = stolen_from(&mut victim);
    victim.end();
    let mut next = scene.victim();
    judge_use(&mut scene, side, &stolen, &mut next, OVER.0, OVER.1);
}

fn after_end(side: Side) {
    let mut scene = Scene::on(side);
    let mut victim = scene.victim();
    let stolen = stolen_from(&mut victim);
    victim.end_session(&stolen);
    let mut others = [scene.victim(), scene.thief()];
    for process in others.iter_mut().chain([&mut victim]) {
        judge_use(&mut scene, side, &stolen, process, "FailedPrecondition", "session_ended");
    }
}

fn suspend(scene: &Scene, session: &str) {
    scene.wait(async {
        let mut admin = SessionAdminClient::new(channel(scene.agent().admin_socket()).await);
        admin.suspend(SuspendSessionRequest { session: session.to_owned() }).await.unwrap();
    });
}

fn suspended(side: Side) {
    let mut scene = Scene::on(side);
    let mut victim = scene.victim();
    let stolen = stolen_from(&mut victim);
    suspend(&scene, &stolen);
    judge_use(&mut scene, side, &stolen, &mut victim, "FailedPrecondition", "session_suspended");
}

/// A session of one process, and one below it of another.
fn with_child(parent: &mut Process, child: &mut Process) -> (String, String) {
    let above = parent.begin(task());
    let targets = vec![URI.to_owned()];
    let begin = Begin { targets, process: Some(child.named()), ..Begin::default() };
    let below: String = parent.order(&Order::Delegate { session: above.clone(), child: begin }).unwrap();
    child.prove_in(&below).expect("its own session");
    (above, below)
}

fn after_parent(side: Side) {
    let mut scene = Scene::on(side);
    let (mut parent, mut child) = (scene.victim(), scene.victim());
    let (above, below) = with_child(&mut parent, &mut child);
    scene.judge(parent.prove_in(&below), "PermissionDenied", NO_MEMBER);
    parent.end();
    scene.recorded("parent_ended");
    scene.judge(child.prove_in(&below), "FailedPrecondition", "session_ended");
    scene.judge(child.prove_in(&above), OVER.0, OVER.1);
}

/// Its key was in the memory of the agent, and nobody kept it.
fn restarted(side: Side) {
    let mut scene = Scene::on(side);
    let mut victim = scene.victim();
    let stolen = stolen_from(&mut victim);
    scene.restart();
    judge_use(&mut scene, side, &stolen, &mut victim, "FailedPrecondition", "session_ended");
    assert_eq!(victim.end_of(&stolen), "agent_restart");
}

/// Its agent signs for the same trust domain, by the same root, and knows nothing of the session.
fn other_host(side: Side) {
    let (here, mut there) = Scene::two_hosts(side);
    let mut victim = here.victim();
    let stolen = stolen_from(&mut victim);
    let mut thief = here.elsewhere(&there);
    judge_use(&mut there, side, &stolen, &mut thief, "NotFound", "no_session");
}

fn foreign_eyes(side: Side) {
    let scene = Scene::on(side);
    let mut victim = scene.victim();
    let session = victim.begin(task());
    let mut thief = scene.other_user();
    let listed: Vec<String> = thief.order(&Order::List).unwrap();
    assert_eq!(listed.contains(&session), side == Side::Naive, "{listed:?}");
    let orders = [Order::Look(session.clone()), Order::Watch(session.clone()), Order::EndSession(session.clone())];
    for order in orders {
        let outcome = thief.order::<String>(&order);
        if side == Side::Naive {
            outcome.expect("the attack must succeed against a naive service");
        } else {
            // As of a session that never was: that there is one is not told either.
            let another = match &order {
                Order::Look(id) => Order::Look(format!("{id}0")),
                Order::Watch(id) => Order::Watch(format!("{id}0")),
                _ => Order::EndSession(format!("{session}0")),
            };
            assert_eq!(outcome.unwrap_err(), thief.order::<String>(&another).unwrap_err());
        }
    }
    victim.prove_in(&session).expect("it goes on");
}

fn for_other_user(side: Side) {
    let mut scene = Scene::on(side);
    let (victim, mut thief) = (scene.victim(), scene.other_user());
    let begin = Begin { process: Some(victim.named()), ..task() };
    scene.judge(thief.order::<String>(&Order::Start(begin)), "NotFound", "target");
}

fn more_than_parent(side: Side) {
    let mut scene = Scene::on(side);
    let mut victim = scene.victim();
    let child = scene.victim();
    let targets = vec!["https://tool.example.com/api/".to_owned()];
    let scopes = vec!["read".to_owned()];
    let parent = Begin { targets: targets.clone(), scopes, seconds: 100, calls: 10, ..task() };
    let parent = victim.begin(parent);
    let less = || Begin { targets: targets.clone(), process: Some(child.named()), ..Begin::default() };
    let more = [
        Begin { targets: vec!["https://tool.example.com/".to_owned()], ..less() },
        Begin { targets: vec!["https://tool.example.com/apiary".to_owned()], ..less() },
        Begin { scopes: vec!["write".to_owned()], ..less() },
        Begin { seconds: 101, ..less() },
        Begin { calls: 11, ..less() },
        Begin { purpose: "another".to_owned(), ..less() },
    ];
    for child in more {
        let outcome = victim.order::<String>(&Order::Delegate { session: parent.clone(), child });
        scene.judge(outcome, "PermissionDenied", "a child asked for more than its parent has");
    }
}

fn elsewhere(side: Side) {
    let mut scene = Scene::on(side);
    let mut victim = scene.victim();
    let session = victim.begin(Begin { targets: vec![URI.to_owned()], ..task() });
    for uri in ["https://tool.example.com/refund", "https://else.example.com/charge", "http://tool.example.com/charge"]
    {
        let outcome = victim.order::<Headers>(&prove(&session, "POST", uri));
        scene.judge(outcome, "PermissionDenied", "a target outside the session");
    }
    victim.prove_in(&session).expect("where it was begun for");
}

fn outside_the_tree(side: Side) {
    let mut scene = Scene::on(side);
    let mut root = scene.victim();
    root.order::<String>(&Order::KeepOrphans).unwrap();
    let session = root.begin(Begin { tree: true, ..task() });
    let order = Box::new(prove(&session, "POST", URI));
    root.order::<Headers>(&order).expect("the root");
    root.order::<Headers>(&Order::ByChild(order.clone())).expect("its child");
    root.order::<Headers>(&Order::ByChild(Box::new(Order::ByChild(order.clone())))).expect("its child's child");
    root.order::<Headers>(&Order::ByOrphan(order.clone())).expect("one that was forked twice");
    for mut other in [scene.victim(), scene.thief()] {
        scene.judge(other.order::<Headers>(&order), "PermissionDenied", NO_MEMBER);
        scene.judge(other.order::<Headers>(&Order::ByChild(order.clone())), "PermissionDenied", NO_MEMBER);
    }
    // Below a root that lets its orphans go, one that was forked twice has left.
    let mut careless = scene.victim();
    let session = careless.begin(Begin { tree: true, ..task() });
    let order = Box::new(prove(&session, "POST", URI));
    careless.order::<Headers>(&Order::ByChild(order.clone())).expect("its child");
    scene.judge(careless.order::<Headers>(&Order::ByOrphan(order)), "PermissionDenied", NO_MEMBER);
}

fn rootless(side: Side) {
    let mut scene = Scene::on(side);
    let mut below = scene.victim_below_another();
    let root = below.named();
    let session = below.begin(Begin { tree: true, process: Some(root), ..task() });
    below.prove_in(&session).expect("it is in the tree");
    below.end();
    scene.recorded("process_exit");
    scene.judge(below.prove_in(&session), OVER.0, OVER.1);
}

/// A request in a session that nobody has seen yet.
fn proven(verifier: &Verifier) -> (Process, String, Headers) {
    let mut victim = verifier.scene.victim();
    let session = victim.begin(task());
    let headers = victim.prove_in(&session).unwrap();
    (victim, session, headers)
}

fn no_proof(side: Side) {
    let mut verifier = Verifier::on(side);
    let mut victim = verifier.scene.victim();
    let session = victim.begin(task());
    let wit = victim.mint(&session, URI, false).unwrap().document;
    verifier.refuses_request(&headers(&[("Authorization", &format!("Bearer {wit}"))]), "no_proof");
    verifier.refuses_request(&headers(&[("Workload-Identity-Token", &wit)]), "no_proof");
}

fn replayed(side: Side) {
    let mut verifier = Verifier::on(side);
    let (_victim, _, headers) = proven(&verifier);
    verifier.accepts_request(&headers);
    verifier.refuses_request(&headers, "replayed");
}

fn other_request(side: Side) {
    let mut verifier = Verifier::on(side);
    let (_victim, _, headers) = proven(&verifier);
    verifier.refuses_at("DELETE", URI, &headers, "another_method");
    verifier.refuses_at("POST", "https://tool.example.com/refund", &headers, "another_uri");
    verifier.accepts_request(&headers);
}

/// Each session has a key of its own, also of one process.
fn other_session(side: Side) {
    let mut verifier = Verifier::on(side);
    let (mut victim, _, headers) = proven(&verifier);
    let second = victim.begin(task());
    let mut mixed = victim.prove_in(&second).unwrap();
    mixed.insert("Authorization".to_owned(), headers["Authorization"].clone());
    verifier.refuses_request(&mixed, "proof_invalid");
    verifier.accepts_request(&headers);
}

/// Each verifier has a memory of its own, and the ledger is everybody's.
fn one_call(side: Side) {
    let setup = Setup { victim: "serves = [\"https://tool.example.com/\"]", ..Setup::default() };
    let mut verifier = Verifier::of(side, setup);
    let mut victim = verifier.scene.victim();
    let session = victim.begin(Begin { one_call: true, ..task() });
    let headers = victim.prove_in(&session).unwrap();
    verifier.accepts_request(&headers);
    verifier.refuses_request(&headers, "replayed");
    assert_eq!(verifier.scene.victim().check(&headers).reason, "used");
    verifier.scene.recorded("used");
}

fn proof_after_end(side: Side) {
    let mut verifier = Verifier::on(side);
    let (mut victim, session, headers) = proven(&verifier);
    victim.end_session(&session);
    verifier.refuses_request(&headers, "session_ended");
}

fn proof_suspended(side: Side) {
    let mut verifier = Verifier::on(side);
    let (_victim, session, headers) = proven(&verifier);
    suspend(&verifier.scene, &session);
    verifier.refuses_request(&headers, "session_suspended");
}

fn proof_after_exit(side: Side) {
    let mut verifier = Verifier::on(side);
    let (mut victim, _, headers) = proven(&verifier);
    victim.end();
    verifier.refuses_request(&headers, "session_ended");
}

fn proof_after_exec(side: Side) {
    let mut verifier = Verifier::on(side);
    let (mut victim, session, headers) = proven(&verifier);
    victim.exec(verifier.scene.stage().thief());
    verifier.refuses_request(&headers, "session_ended");
    if side != Side::Naive {
        assert_eq!(victim.end_of(&session), "process_changed");
    }
}

fn proof_after_parent(side: Side) {
    let mut verifier = Verifier::on(side);
    let (mut parent, mut child) = (verifier.scene.victim(), verifier.scene.victim());
    let (above, below) = with_child(&mut parent, &mut child);
    let headers = child.prove_in(&below).unwrap();
    parent.end_session(&above);
    verifier.refuses_request(&headers, "session_ended");
}

/// Nobody knows any more which proofs of that time were shown already, and the session is over.
fn proof_after_restart(side: Side) {
    let mut verifier = Verifier::on(side);
    let (_victim, _, headers) = proven(&verifier);
    verifier.scene.restart();
    verifier.refuses_request(&headers, "session_ended|before_start");
}

/// It knows the key that signed the WIT, and not whether the session goes on.
fn proof_on_other_host(side: Side) {
    let (here, mut there) = Scene::two_hosts(side);
    let mut victim = here.victim();
    let session = victim.begin(task());
    let headers = victim.prove_in(&session).unwrap();
    assert!(here.tool().check(&headers).active);
    assert_eq!(there.tool().check(&headers).reason, "another_node");
    there.recorded("another_node");
}

fn bearer(verifier: &mut Verifier) -> String {
    let mut victim = verifier.scene.victim();
    let session = victim.begin(task());
    let token = victim.mint(&session, AUDIENCE, true).unwrap().document;
    verifier.accepts_token(&token);
    victim.end_session(&session);
    token
}

fn bearer_after_end(side: Side) {
    let mut verifier = Verifier::on(side);
    let token = bearer(&mut verifier);
    verifier.refuses_ended(&token, "session_ended");
}

/// Nothing can be taken back of a token that is checked by its signature alone: the receipt of the end names it, and until
/// when.
fn bearer_unasked(side: Side) {
    let mut verifier = Verifier::on(side);
    let token = bearer(&mut verifier);
    verifier.accepts_token(&token);
}

/// The thief is faster, or keeps the request from arriving. The owner of the proof is told.
fn first(side: Side) {
    let mut verifier = Verifier::on(side);
    let (_victim, _, headers) = proven(&verifier);
    verifier.accepts_request(&headers);
    // The owner's own request.
    verifier.refuses_request(&headers, "replayed");
}

fn nosy(side: Side) {
    let mut verifier = Verifier::on(side);
    let (_victim, session, headers) = proven(&verifier);
    let proof = headers["Authorization"].strip_prefix("WPT ").unwrap();
    let txn = Jws::parse(proof).unwrap().claims().unwrap()["txn"].as_str().unwrap().to_owned();
    let report = Order::Report { session, txn };
    let mut thief = verifier.scene.thief();
    let check = Order::Check { method: "POST".to_owned(), uri: URI.to_owned(), headers: headers.clone() };
    let outcome = thief.order::<crate::orders::Verdict>(&check);
    verifier.scene.judge(outcome, "PermissionDenied", "not_served");
    assert_eq!(thief.order::<String>(&report).unwrap_err().code, "NotFound");
    // Who serves may, and only of what it has asked about.
    let mut tool = verifier.scene.tool();
    assert_eq!(tool.order::<String>(&report).unwrap_err().code, "NotFound");
    verifier.accepts_request(&headers);
    tool.order::<String>(&report).expect("it asked");
    assert_eq!(thief.order::<String>(&report).unwrap_err().code, "NotFound");
}

/// The agent of the host runs as the same user here, who therefore has every role: it is not for want of one.
fn self_approval(side: Side) {
    let policies = r#"
        permit (principal, action in [Action::"start", Action::"mint"], resource);
        @id("a-person-agrees") @step_up("money moves")
        permit (principal, action == Action::"write", resource);"#;
    let mut scene = Scene::with(side, Setup { policies, ..Setup::default() });
    let mut victim = scene.victim();
    let session = victim.begin(task());
    let refused = victim.prove_in(&session).unwrap_err();
    assert_eq!(refused.denial, "step_up", "{refused:?}");
    let id = refused.message.split("tether approval approve ").nth(1).unwrap().trim_end_matches('`').to_owned();
    let at = scene.agent().admin_socket().to_owned();
    for mut own in [victim, scene.thief()] {
        let refused = own.order::<String>(&Order::Approve { at: at.clone(), id: id.clone() }).unwrap_err();
        assert_eq!(refused.code, "PermissionDenied", "{refused:?}");
        assert!(refused.message.contains("somebody else must decide"), "{refused:?}");
    }
    scene.recorded("step_up");
}
