//! Sessions: who may use one, what it gives, and everything that ends it.

use std::collections::HashMap;
use std::time::Duration;

use tether::jwt::Jws;
use tether::proto::session::mint_request::Kind;
use tether::proto::session::start_request::User;
use tether::proto::session::{
    Boundary, Budget, CheckRequest, CheckResponse, DelegateRequest, DisposalReceipt, EndRequest, GetRequest,
    HeartbeatRequest, ListRequest, MintRequest, Process, ProveRequest, Scope, Session, StartRequest, State,
    WatchRequest,
};
use tether::proto::workload::ValidateJwtsvidRequest;
use tether::proto::{DENIAL_METADATA, SESSION_END_METADATA};
use tonic::{Code, Status};

use crate::another::Another;
use crate::harness::{Sessions, TestAgent, next, within};

const TOOL: &str = "https://tool.example.com/";
const URI: &str = "https://tool.example.com/charge";

/// What a test asks for when it asks for a session.
pub fn task(purpose: &str, targets: &[&str]) -> StartRequest {
    let targets = targets.iter().map(|target| (*target).to_owned()).collect();
    StartRequest { purpose: purpose.to_owned(), targets, ..StartRequest::default() }
}

/// An agent that has been up for a while: proofs from before its start are refused.
async fn agent() -> TestAgent {
    let agent = TestAgent::start().await;
    agent.clock().advance(Duration::from_secs(2));
    agent
}

async fn start(sessions: &mut Sessions, request: StartRequest) -> Session {
    sessions.start(request).await.unwrap().into_inner()
}

async fn get(sessions: &mut Sessions, id: &str) -> Session {
    sessions.get(GetRequest { session: id.to_owned(), ..Default::default() }).await.unwrap().into_inner()
}

async fn end(sessions: &mut Sessions, id: &str) -> DisposalReceipt {
    sessions.end(EndRequest { session: id.to_owned() }).await.unwrap().into_inner()
}

async fn prove(sessions: &mut Sessions, session: &str, uri: &str) -> Result<HashMap<String, String>, Status> {
    let (session, method, uri) = (session.to_owned(), "POST".to_owned(), uri.to_owned());
    let request = ProveRequest { session, method, uri, ..ProveRequest::default() };
    sessions.prove(request).await.map(|proven| proven.into_inner().headers)
}

async fn check(agent: &TestAgent, uri: &str, headers: &HashMap<String, String>) -> CheckResponse {
    let (method, uri, headers) = ("POST".to_owned(), uri.to_owned(), headers.clone());
    let request = CheckRequest { method, uri, headers, ..CheckRequest::default() };
    agent.verifier().await.check(request).await.unwrap().into_inner()
}

fn label(status: &Status) -> &str {
    status.metadata().get(DENIAL_METADATA).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

fn ended_by(status: &Status) -> &str {
    status.metadata().get(SESSION_END_METADATA).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// Waits until a session has ended, and says why.
async fn end_of(sessions: &mut Sessions, id: &str) -> String {
    let mut stream =
        sessions.watch(WatchRequest { session: id.to_owned(), ..Default::default() }).await.unwrap().into_inner();
    loop {
        let session = next(&mut stream).await.unwrap();
        if session.state() == State::Ended {
            return session.end_reason;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_says_what_it_was_started_with_and_who_acts() {
    let agent = agent().await;
    let mut sessions = agent.sessions().await;
    let request = StartRequest {
        scopes: vec!["pay".to_owned()],
        boundary: Boundary::Request.into(),
        budget: Some(Budget { max_tokens: 3, max_calls: 5 }),
        ttl_seconds: 60,
        task_sha256: vec![7; 32].into(),
        ..task("billing.charge", &[TOOL])
    };
    let session = start(&mut sessions, request).await;
    assert_eq!(session.state(), State::Active);
    assert_eq!((session.purpose.as_str(), session.boundary()), ("billing.charge", Boundary::Request));
    assert_eq!(session.targets, [TOOL]);
    assert_eq!(session.scope(), Scope::Process);
    assert_eq!(session.pid, i32::try_from(std::process::id()).unwrap());
    assert_eq!((session.binding, session.depth), (3, 0));
    assert_eq!(session.task_sha256, vec![7; 32]);
    assert_eq!(session.key_thumbprint.len(), 43);
    assert!(session.id.starts_with(agent.state().node()), "{}", session.id);
    assert!(session.spiffe_id.starts_with("spiffe://dev.tether.internal/user/"));
    assert_eq!(get(&mut sessions, &session.id).await, session);
    // The caller is in one session, so it needs no name.
    assert_eq!(get(&mut sessions, "").await.id, session.id);
    let list = sessions.list(ListRequest::default()).await.unwrap().into_inner();
    assert_eq!(list.sessions, [session]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_a_session_names_it_and_its_one_target_and_a_proof_names_purpose_and_agent() {
    let agent = agent().await;
    let mut sessions = agent.sessions().await;
    let request =
        StartRequest { scopes: vec!["pay".to_owned()], ..task("billing", &[TOOL, "https://other.example.com/"]) };
    let session = start(&mut sessions, request).await;
    let headers = prove(&mut sessions, &session.id, URI).await.unwrap();
    let wit = Jws::parse(&headers["Workload-Identity-Token"]).unwrap().claims().unwrap();
    assert_eq!(wit["sub"], session.spiffe_id);
    assert_eq!(wit["tether"]["sid"], session.id);
    assert_eq!(wit["tether"]["target"], TOOL);
    assert_eq!(wit["tether"]["scope"], "pay");
    let proof = headers["Authorization"].strip_prefix("WPT ").unwrap();
    let proof = Jws::parse(proof).unwrap().claims().unwrap();
    assert_eq!(proof["aud"], URI);
    assert_eq!(proof["htm"], "POST");
    assert_eq!(proof["sub"], session.spiffe_id, "it acts for nobody but itself");
    assert_eq!(proof["tether"]["purpose"], "billing");
    assert_eq!(proof["tether"]["effect"], "write");
    assert_eq!(proof["scope"], "pay");
    assert_eq!(proof["txn"].as_str().unwrap().len(), 32);

    let second = prove(&mut sessions, &session.id, URI).await.unwrap();
    assert_eq!(second["Workload-Identity-Token"], headers["Workload-Identity-Token"], "a token serves many calls");
    let elsewhere = prove(&mut sessions, &session.id, "https://other.example.com/x").await.unwrap();
    assert_ne!(elsewhere["Workload-Identity-Token"], headers["Workload-Identity-Token"], "one target per token");
    let outside = prove(&mut sessions, &session.id, "https://third.example.com/").await.unwrap_err();
    assert_eq!((outside.code(), label(&outside)), (Code::PermissionDenied, "target_not_in_session"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_in_a_session_proves_in_it_unless_it_says_otherwise() {
    let agent = agent().await;
    let mut sessions = agent.sessions().await;
    let session = start(&mut sessions, task("t", &[TOOL])).await;
    let request = ProveRequest { method: "GET".to_owned(), uri: URI.to_owned(), ..ProveRequest::default() };
    let inside = sessions.prove(request.clone()).await.unwrap().into_inner();
    assert_eq!(inside.session, session.id);
    let without = ProveRequest { without_session: true, ..request };
    let outside = sessions.prove(without).await.unwrap().into_inner();
    assert_eq!(outside.session, "");
    let wit = Jws::parse(&outside.headers["Workload-Identity-Token"]).unwrap().claims().unwrap();
    assert!(!wit.contains_key("tether"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_receipt_says_what_was_wiped_revoked_and_what_remains_and_stays_the_same() {
    let agent = agent().await;
    let mut sessions = agent.sessions().await;
    let session = start(&mut sessions, task("t", &[TOOL, "billing"])).await;
    let headers = prove(&mut sessions, &session.id, URI).await.unwrap();
    let bearer = MintRequest {
        session: session.id.clone(),
        target: "billing".to_owned(),
        kind: Kind::Jwt.into(),
        ..MintRequest::default()
    };
    let bearer = sessions.mint(bearer).await.unwrap().into_inner();
    assert_eq!(bearer.binding, 0);
    assert!(bearer.binding_meaning.contains("whoever has it"), "{}", bearer.binding_meaning);

    let receipt = end(&mut sessions, &session.id).await;
    assert_eq!((receipt.end_reason.as_str(), receipt.had_ended), ("completed", false));
    assert_eq!(receipt.ended, std::slice::from_ref(&session.id));
    assert_eq!(receipt.keys_wiped, 1);
    let mut kinds: Vec<&str> = receipt.revoked.iter().map(|of| of.kind.as_str()).collect();
    kinds.sort_unstable();
    assert_eq!(kinds, ["jwt", "wit"]);
    let remaining: Vec<(&str, &str)> = receipt.remaining.iter().map(|of| (of.kind.as_str(), of.id.as_str())).collect();
    assert_eq!(remaining, [("jwt", bearer.id.as_str()), ("proof", "")]);
    assert!(receipt.kept.iter().any(|kept| kept.what == "ledger"));

    assert_eq!(get(&mut sessions, &session.id).await.state(), State::Ended);
    let after = prove(&mut sessions, &session.id, URI).await.unwrap_err();
    assert_eq!(
        (after.code(), label(&after), ended_by(&after)),
        (Code::FailedPrecondition, "session_ended", "completed")
    );
    let checked = check(&agent, URI, &headers).await;
    assert!(!checked.active, "{checked:?}");
    let validated = ValidateJwtsvidRequest { audience: "billing".to_owned(), svid: bearer.token };
    assert_eq!(agent.workload().await.validate_jwtsvid(validated).await.unwrap_err().code(), Code::InvalidArgument);
    let again = end(&mut sessions, &session.id).await;
    assert_eq!(again, DisposalReceipt { had_ended: true, ..receipt });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_has_less_than_its_parent_or_is_refused() {
    let agent = agent().await;
    let mut sessions = agent.sessions().await;
    let parent = StartRequest {
        scopes: vec!["read".to_owned(), "write".to_owned()],
        boundary: Boundary::Request.into(),
        budget: Some(Budget { max_tokens: 10, max_calls: 10 }),
        ttl_seconds: 100,
        ..task("billing", &["https://tool.example.com/api/"])
    };
    let parent = start(&mut sessions, parent).await;
    let within_it =
        || StartRequest { targets: vec!["https://tool.example.com/api/v1/".to_owned()], ..Default::default() };
    let too_much = [
        ("targets", StartRequest { targets: vec![TOOL.to_owned()], ..within_it() }),
        ("targets", StartRequest { targets: vec!["https://tool.example.com/apiary".to_owned()], ..within_it() }),
        ("targets", StartRequest { targets: vec!["*".to_owned()], ..within_it() }),
        ("scopes", StartRequest { scopes: vec!["admin".to_owned()], ..within_it() }),
        ("boundary", StartRequest { boundary: Boundary::Task.into(), ..within_it() }),
        ("budget", StartRequest { budget: Some(Budget { max_tokens: 11, max_calls: 1 }), ..within_it() }),
        ("budget", StartRequest { budget: Some(Budget { max_tokens: 1, max_calls: 11 }), ..within_it() }),
        ("ttl_seconds", StartRequest { ttl_seconds: 101, ..within_it() }),
        ("purpose", StartRequest { purpose: "other".to_owned(), ..within_it() }),
        ("user", StartRequest { user: Some(User::LocalUser(true)), ..within_it() }),
    ];
    for (field, child) in too_much {
        let request = DelegateRequest { session: parent.id.clone(), child: Some(child) };
        let status = sessions.delegate(request).await.unwrap_err();
        assert_eq!((status.code(), label(&status)), (Code::PermissionDenied, "exceeds_parent"), "{field}: {status:?}");
        assert!(status.message().starts_with(&format!("`{field}`")), "{status:?}");
    }
    let another = Another::start(agent.socket());
    let child = StartRequest { process: Some(process(&another)), ..within_it() };
    let child = sessions.delegate(DelegateRequest { session: parent.id.clone(), child: Some(child) }).await;
    let child = child.unwrap().into_inner();
    assert_eq!((child.parent.as_str(), child.depth, child.purpose.as_str()), (parent.id.as_str(), 1, "billing"));
    assert_eq!(child.boundary(), Boundary::Request);
    assert!(child.expires_at <= parent.expires_at);
}

fn process(another: &Another) -> Process {
    let named = another.named();
    Process { pid: named.pid, pidfs_inode: named.pidfs_inode }
}

/// A session of the calling process, and a child of it that belongs to another.
async fn with_child(sessions: &mut Sessions, another: &Another, budget: Budget) -> (Session, Session) {
    let parent = start(sessions, StartRequest { budget: Some(budget), ..task("t", &[TOOL]) }).await;
    let child = StartRequest { process: Some(process(another)), targets: vec![TOOL.to_owned()], ..Default::default() };
    let child = sessions.delegate(DelegateRequest { session: parent.id.clone(), child: Some(child) }).await;
    (parent, child.unwrap().into_inner())
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_below_a_session_has_ended_when_its_end_returns() {
    let agent = agent().await;
    let mut sessions = agent.sessions().await;
    let mut another = Another::start(agent.socket());
    let (parent, child) = with_child(&mut sessions, &another, Budget::default()).await;
    let proof = another.ask(&format!("in {} POST {URI}", child.id));
    let headers: HashMap<String, String> = serde_json::from_str(&proof).unwrap_or_else(|_| panic!("{proof}"));

    let receipt = end(&mut sessions, &parent.id).await;
    assert_eq!(receipt.ended, [parent.id.clone(), child.id.clone()]);
    assert_eq!(receipt.keys_wiped, 2);
    assert_eq!(another.ask(&format!("state {}", child.id)), "Ended parent_ended");
    assert!(another.ask(&format!("in {} POST {URI}", child.id)).starts_with("FailedPrecondition"));
    assert!(!check(&agent, URI, &headers).await.active);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_child_uses_its_parent_has_used() {
    let agent = agent().await;
    let mut sessions = agent.sessions().await;
    let mut another = Another::start(agent.socket());
    let budget = Budget { max_tokens: 0, max_calls: 2 };
    let (parent, child) = with_child(&mut sessions, &another, budget).await;
    assert!(another.ask(&format!("in {} POST {URI}", child.id)).starts_with('{'));
    prove(&mut sessions, &parent.id, URI).await.unwrap();
    assert_eq!(get(&mut sessions, &parent.id).await.calls, 2);
    let refused = another.ask(&format!("in {} POST {URI}", child.id));
    assert!(refused.contains("budget"), "{refused}");
    assert_eq!(end_of(&mut sessions, &parent.id).await, "budget_spent");
    assert_eq!(another.ask(&format!("state {}", child.id)), "Ended parent_ended");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spent_budget_ends_the_session_with_the_call_that_is_too_much() {
    let agent = agent().await;
    let mut sessions = agent.sessions().await;
    let budget = Some(Budget { max_tokens: 0, max_calls: 1 });
    let session = start(&mut sessions, StartRequest { budget, ..task("t", &[TOOL]) }).await;
    let headers = prove(&mut sessions, &session.id, URI).await.unwrap();
    assert!(check(&agent, URI, &headers).await.active, "what was within the budget is good");
    let over = prove(&mut sessions, &session.id, URI).await.unwrap_err();
    assert_eq!((label(&over), ended_by(&over)), ("budget_spent", "budget_spent"));
    assert_eq!(get(&mut sessions, &session.id).await.end_reason, "budget_spent");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_clock_ends_sessions_by_time_by_silence_and_when_it_is_set_back() {
    let agent = agent().await;
    let mut sessions = agent.sessions().await;
    let short = start(&mut sessions, StartRequest { ttl_seconds: 30, ..task("t", &[TOOL]) }).await;
    let supervised = StartRequest { ttl_seconds: 600, heartbeat_seconds: 40, ..task("t", &[TOOL]) };
    let supervised = start(&mut sessions, supervised).await;
    let quiet = start(&mut sessions, StartRequest { ttl_seconds: 600, ..task("t", &[TOOL]) }).await;
    agent.clock().advance(Duration::from_secs(31));
    assert_eq!(end_of(&mut sessions, &short.id).await, "expired");
    sessions.heartbeat(HeartbeatRequest { session: supervised.id.clone() }).await.unwrap();
    agent.clock().advance(Duration::from_secs(39));
    prove(&mut sessions, &supervised.id, URI).await.unwrap();
    agent.clock().advance(Duration::from_secs(2));
    assert_eq!(end_of(&mut sessions, &supervised.id).await, "heartbeat_lost");

    prove(&mut sessions, &quiet.id, URI).await.unwrap();
    agent.clock().set(agent.clock().now() - Duration::from_secs(5));
    prove(&mut sessions, &quiet.id, URI).await.unwrap();
    agent.clock().set(agent.clock().now() - Duration::from_secs(60));
    let set_back = prove(&mut sessions, &quiet.id, URI).await.unwrap_err();
    assert_eq!(ended_by(&set_back), "clock_set_back");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_ends_with_its_process() {
    let agent = agent().await;
    let mut sessions = agent.sessions().await;
    let mut another = Another::start(agent.socket());
    let id = another.ask(&format!("start t {TOOL}"));
    let proof = another.ask(&format!("in {id} POST {URI}"));
    let headers: HashMap<String, String> = serde_json::from_str(&proof).unwrap_or_else(|_| panic!("{proof}"));
    another.end();
    assert_eq!(end_of(&mut sessions, &id).await, "process_exit");
    assert!(!check(&agent, URI, &headers).await.active);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_ends_when_its_process_becomes_another_program() {
    let agent = agent().await;
    let mut sessions = agent.sessions().await;
    let mut another = Another::start(agent.socket());
    let id = another.ask(&format!("start t {TOOL}"));
    let proof = another.ask(&format!("in {id} POST {URI}"));
    let headers: HashMap<String, String> = serde_json::from_str(&proof).unwrap_or_else(|_| panic!("{proof}"));
    another.become_another_program();
    // Nobody is told of an exec: whoever relies on the session looks.
    assert!(!check(&agent, URI, &headers).await.active);
    assert_eq!(end_of(&mut sessions, &id).await, "process_changed");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_process_of_the_same_user_may_look_and_end_and_not_use() {
    let agent = agent().await;
    let mut sessions = agent.sessions().await;
    let mut another = Another::start(agent.socket());
    let session = start(&mut sessions, task("t", &[TOOL])).await;
    assert_eq!(another.ask(&format!("state {}", session.id)), "Active ");
    for order in [format!("in {} POST {URI}", session.id), format!("mint {} {TOOL}", session.id)] {
        let refused = another.ask(&order);
        assert!(refused.starts_with("PermissionDenied") && refused.contains("no member"), "{refused}");
    }
    assert_eq!(another.ask(&format!("end {}", session.id)), "completed");
    assert_eq!(get(&mut sessions, &session.id).await.state(), State::Ended);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_one_shot_command_starts_a_session_for_another_process_of_its_user() {
    let agent = agent().await;
    let mut sessions = agent.sessions().await;
    let mut another = Another::start(agent.socket());
    let session = start(&mut sessions, StartRequest { process: Some(process(&another)), ..task("t", &[TOOL]) }).await;
    assert_eq!(session.pid, another.named().pid);
    assert!(another.ask(&format!("in {} POST {URI}", session.id)).starts_with('{'));
    let own = prove(&mut sessions, &session.id, URI).await.unwrap_err();
    assert_eq!(label(&own), "not_member");
    // A number that was given to another process meanwhile, and none at all.
    let wrong = Process { pidfs_inode: another.named().pidfs_inode + 1, ..process(&another) };
    for process in [wrong, Process { pid: i32::MAX, pidfs_inode: 0 }] {
        let status = sessions.start(StartRequest { process: Some(process), ..task("t", &[TOOL]) }).await.unwrap_err();
        assert_eq!(status.code(), Code::NotFound, "{status:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_session_is_for_a_process_and_its_descendants() {
    let agent = agent().await;
    let mut sessions = agent.sessions().await;
    let mut below = Another::start(agent.socket());
    let session = start(&mut sessions, StartRequest { scope: Scope::Tree.into(), ..task("t", &[TOOL]) }).await;
    assert_eq!(session.scope(), Scope::Tree);
    prove(&mut sessions, &session.id, URI).await.unwrap();
    assert!(below.ask(&format!("in {} POST {URI}", session.id)).starts_with('{'), "it is our child");
    assert!(below.ask(&format!("in - POST {URI}")).starts_with('{'), "and knows without being told");

    let of_child = StartRequest { process: Some(process(&below)), scope: Scope::Tree.into(), ..task("t", &[TOOL]) };
    let of_child = start(&mut sessions, of_child).await;
    let above = prove(&mut sessions, &of_child.id, URI).await.unwrap_err();
    assert_eq!(label(&above), "not_member");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_ends_with_its_registration_entry() {
    let agent = agent().await;
    let entry = |id: &str| {
        let uid = crate::harness::uid();
        format!(
            "[[entry]]\nid = \"one\"\nspiffe_id = \"spiffe://dev.tether.internal/{id}\"\nmatch = [\"unix:uid:{uid}\"]\n"
        )
    };
    let as_id =
        |id: &str| StartRequest { spiffe_id: format!("spiffe://dev.tether.internal/{id}"), ..task("t", &[TOOL]) };
    agent.write_entries("one.toml", &entry("a")).await;
    let mut sessions = agent.sessions().await;
    let session = start(&mut sessions, as_id("a")).await;
    agent.write_entries("one.toml", &entry("b")).await;
    assert_eq!(end_of(&mut sessions, &session.id).await, "identity_disabled");
    let session = start(&mut sessions, as_id("b")).await;
    agent.remove_entries("one.toml").await;
    assert_eq!(end_of(&mut sessions, &session.id).await, "identity_disabled");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_policy_that_permits_it_there_is_no_session() {
    let agent = TestAgent::without_entries().await;
    let entry = format!(
        "[[entry]]\nspiffe_id = \"spiffe://dev.tether.internal/a\"\nmatch = [\"unix:uid:{}\"]\nowner = \"o\"\n",
        crate::harness::uid()
    );
    agent.write_entries("one.toml", &entry).await;
    let status = agent.sessions().await.start(task("t", &[TOOL])).await.unwrap_err();
    assert_eq!((status.code(), label(&status)), (Code::PermissionDenied, "policy_denied"));
    assert!(status.message().contains("policies_dir"), "{status:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_has_so_many_sessions_and_no_more() {
    let agent = TestAgent::configured(|config| config.sessions.per_uid = 3).await;
    let mut sessions = agent.sessions().await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(start(&mut sessions, task("t", &[TOOL])).await.id);
    }
    let full = sessions.start(task("t", &[TOOL])).await.unwrap_err();
    assert_eq!(full.code(), Code::ResourceExhausted);
    end(&mut sessions, &ids[0]).await;
    start(&mut sessions, task("t", &[TOOL])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_a_session_is_refused_with_the_field() {
    let agent = agent().await;
    let mut sessions = agent.sessions().await;
    let long = "x".repeat(3000);
    let table = [
        ("purpose", StartRequest { purpose: String::new(), ..task("t", &[TOOL]) }),
        ("purpose", task("two words", &[TOOL])),
        ("purpose", task(&"x".repeat(129), &[TOOL])),
        ("purpose", task("line\nbreak", &[TOOL])),
        ("targets", task("t", &[])),
        ("targets", task("t", &[""])),
        ("targets", task("t", &[&long])),
        ("targets", task("t", &["https://tool.example.com/?q=1"])),
        ("targets", task("t", &["https://TOOL.example.com/"])),
        ("targets", task("t", &["a"; 65])),
        ("scopes", StartRequest { scopes: vec!["a b".to_owned()], ..task("t", &[TOOL]) }),
        ("scopes", StartRequest { scopes: vec!["a".to_owned(); 65], ..task("t", &[TOOL]) }),
        ("task_sha256", StartRequest { task_sha256: vec![1; 31].into(), ..task("t", &[TOOL]) }),
        ("boundary", StartRequest { boundary: 99, ..task("t", &[TOOL]) }),
        ("scope", StartRequest { scope: 99, ..task("t", &[TOOL]) }),
        ("spiffe_id", StartRequest { spiffe_id: "x".to_owned(), ..task("t", &[TOOL]) }),
        ("resumes", StartRequest { resumes: "a b".to_owned(), ..task("t", &[TOOL]) }),
        ("subject_token", StartRequest { user: Some(User::SubjectToken("x".repeat(17 * 1024))), ..task("t", &[TOOL]) }),
    ];
    for (field, request) in table {
        let status = sessions.start(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{field}: {status:?}");
        assert!(status.message().contains(&format!("`{field}`")), "{status:?}");
    }
    assert_eq!(sessions.list(ListRequest { all: true }).await.unwrap().into_inner().sessions, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forged_user_is_no_user() {
    let agent = agent().await;
    let mut sessions = agent.sessions().await;
    let forged = StartRequest { user: Some(User::SubjectToken("a.b.c".to_owned())), ..task("t", &[TOOL]) };
    let status = sessions.start(forged).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
    assert_eq!(sessions.list(ListRequest { all: true }).await.unwrap().into_inner().sessions, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_whose_key_the_agent_could_not_keep_ends_with_the_restart() {
    let mut agent = agent().await;
    let mut sessions = agent.sessions().await;
    let session = start(&mut sessions, task("t", &[TOOL])).await;
    let headers = prove(&mut sessions, &session.id, URI).await.unwrap();
    agent.restart().await;
    agent.clock().advance(Duration::from_secs(2));
    let mut sessions = agent.sessions().await;
    assert_eq!(get(&mut sessions, &session.id).await.end_reason, "agent_restart");
    assert!(!check(&agent, URI, &headers).await.active);
    // Ended is for good: the next restart has forgotten it, or knows it as ended.
    agent.restart().await;
    let status =
        agent.sessions().await.get(GetRequest { session: session.id, ..Default::default() }).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_was_made_while_a_session_ended_stands_afterwards() {
    let agent = agent().await;
    let mut sessions = agent.sessions().await;
    for _ in 0..20 {
        let session =
            start(&mut sessions, StartRequest { boundary: Boundary::ToolCall.into(), ..task("t", &[TOOL]) }).await;
        let mut proofs = tokio::task::JoinSet::new();
        for _ in 0..8 {
            let (mut sessions, id) = (sessions.clone(), session.id.clone());
            proofs.spawn(async move { prove(&mut sessions, &id, URI).await });
        }
        let first = within(proofs.join_next()).await;
        end(&mut sessions, &session.id).await;
        let mut made: Vec<_> = first.into_iter().collect();
        while let Some(proof) = within(proofs.join_next()).await {
            made.push(proof);
        }
        for headers in made.into_iter().filter_map(|proof| proof.unwrap().ok()) {
            let checked = check(&agent, URI, &headers).await;
            assert!(!checked.active, "{checked:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_for_one_call_is_good_for_one_call() {
    let agent = agent().await;
    let mut sessions = agent.sessions().await;
    let session =
        start(&mut sessions, StartRequest { boundary: Boundary::ToolCall.into(), ..task("t", &[TOOL]) }).await;
    let one = prove(&mut sessions, &session.id, URI).await.unwrap();
    let two = prove(&mut sessions, &session.id, URI).await.unwrap();
    assert_ne!(one["Workload-Identity-Token"], two["Workload-Identity-Token"]);
    assert!(check(&agent, URI, &one).await.active);
    assert!(!check(&agent, URI, &one).await.active);
    assert!(check(&agent, URI, &two).await.active);
    assert_eq!(get(&mut sessions, &session.id).await.tokens, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_minted_token_is_for_the_proofs_that_name_it_and_for_no_others() {
    let agent = agent().await;
    let mut sessions = agent.sessions().await;
    let request = StartRequest { scopes: vec!["read".to_owned(), "pay".to_owned()], ..task("t", &[TOOL]) };
    let session = start(&mut sessions, request).await;
    let narrow = MintRequest {
        session: session.id.clone(),
        target: URI.to_owned(),
        scopes: vec!["read".to_owned()],
        ..MintRequest::default()
    };
    let narrow = sessions.mint(narrow).await.unwrap().into_inner();
    let wide = prove(&mut sessions, &session.id, URI).await.unwrap();
    assert_ne!(wide["Workload-Identity-Token"], narrow.token);
    let named = ProveRequest {
        session: session.id.clone(),
        key: narrow.id.clone(),
        method: "POST".to_owned(),
        uri: URI.to_owned(),
        ..ProveRequest::default()
    };
    let headers = sessions.prove(named.clone()).await.unwrap().into_inner().headers;
    assert_eq!(headers["Workload-Identity-Token"], narrow.token);
    assert_eq!(check(&agent, URI, &headers).await.scopes, ["read"]);
    let elsewhere = ProveRequest { uri: format!("{TOOL}other"), ..named.clone() };
    assert_eq!(label(&sessions.prove(elsewhere).await.unwrap_err()), "target_not_in_session");
    let (all_but_one, last) = narrow.id.split_at(narrow.id.len() - 1);
    let another = if last == "0" { "1" } else { "0" };
    let unknown = ProveRequest { key: format!("{all_but_one}{another}"), ..named };
    assert_eq!(label(&sessions.prove(unknown).await.unwrap_err()), "no_token");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bearer_token_is_for_an_audience_in_the_form_its_service_has_it() {
    let agent = agent().await;
    let mut sessions = agent.sessions().await;
    let session = start(&mut sessions, task("t", &["https://api.example.com"])).await;
    let bearer = |audience: &str, scopes: &[&str]| MintRequest {
        session: session.id.clone(),
        target: audience.to_owned(),
        scopes: scopes.iter().map(|scope| (*scope).to_owned()).collect(),
        kind: Kind::Jwt.into(),
        ..MintRequest::default()
    };
    let minted = sessions.mint(bearer("https://api.example.com", &[])).await.unwrap().into_inner();
    let claims = Jws::parse(&minted.token).unwrap().claims().unwrap();
    assert_eq!(claims["aud"], serde_json::json!(["https://api.example.com"]));
    assert_eq!(
        sessions.mint(bearer("https://api.example.com", &["x"])).await.unwrap_err().code(),
        Code::InvalidArgument
    );
}
