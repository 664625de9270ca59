//! Approvals: another user's agent asks, a person who is neither it nor its user decides. They take root, to be several
//! users.

use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::process::Output;
use std::time::Duration;

use serde_json::Value;
use tether::proto::admin::approvals_client::ApprovalsClient;
use tether::proto::admin::session_admin_client::SessionAdminClient;
use tether::proto::admin::{ApprovalView, ApproveRequest, DenyRequest, ListApprovalsRequest, ListSessionsRequest};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::another::Another;
use crate::harness::{TestAgent, channel, within};
use crate::program::{NOBODY, Program, is_root};

const TOOL: &str = "https://tool.example.com/";
const URI: &str = "https://tool.example.com/charge";
/// Users that are nobody's agent, each with the group of its number.
const APPROVER: u32 = 64001;
const OPERATOR: u32 = 64002;
const VIEWER: u32 = 64003;

const POLICIES: &str = r#"
@id("a-person-agrees") @step_up("money moves")
permit (principal, action == Action::"write", resource);

@id("grave-tasks") @step_up("this task is grave")
permit (principal, action == Action::"start", resource) when { context.session.purpose == "grave" };
"#;

/// An agent where writing takes a person's word, reachable by all users of the host.
async fn agent() -> TestAgent {
    let agent = TestAgent::configured(|config| {
        let private = |dir| std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).unwrap();
        private(&config.policies_dir);
        std::fs::write(config.policies_dir.join("people.cedar"), POLICIES).unwrap();
        // The agent's own user is among the approvers: it is not for want of a role that it cannot decide.
        config.admin.approvers = vec![APPROVER.to_string(), NOBODY.to_string()];
        config.admin.operators = vec![OPERATOR.to_string()];
        config.admin.viewers = vec![VIEWER.to_string()];
    })
    .await;
    let entry = format!(
        "[[entry]]\nid = \"nobody\"\nspiffe_id = \"spiffe://dev.tether.internal/agent\"\nmatch = [\"unix:uid:{NOBODY}\"]\n\
         owner = \"o\"\n"
    );
    agent.write_entries("nobody.toml", &entry).await;
    open_to_all(&agent, 0o755);
    agent
}

/// Lets all users of the host reach an agent.
pub fn open_to_all(agent: &TestAgent, mode: u32) {
    for dir in [agent.dir().to_owned(), agent.dir().join("agent")] {
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(mode)).unwrap();
    }
}

async fn approvals(agent: &TestAgent) -> ApprovalsClient<Channel> {
    ApprovalsClient::new(channel(agent.admin_socket()).await)
}

async fn listed(agent: &TestAgent) -> Vec<ApprovalView> {
    approvals(agent).await.list(ListApprovalsRequest { all: true }).await.unwrap().into_inner().approvals
}

async fn approve(agent: &TestAgent, id: &str, uses: u32) -> Result<ApprovalView, Status> {
    let request = ApproveRequest { id: id.to_owned(), uses, note: "go ahead".to_owned(), ..ApproveRequest::default() };
    approvals(agent).await.approve(request).await.map(tonic::Response::into_inner)
}

async fn deny(agent: &TestAgent, id: &str) -> Result<ApprovalView, Status> {
    let request = DenyRequest { id: id.to_owned(), note: "no".to_owned() };
    approvals(agent).await.deny(request).await.map(tonic::Response::into_inner)
}

/// State and end of a session, as operators see it.
async fn state(agent: &TestAgent, session: &str) -> (String, String) {
    let request = ListSessionsRequest { all: true, session: session.to_owned(), ..ListSessionsRequest::default() };
    let mut admin = SessionAdminClient::new(channel(agent.admin_socket()).await);
    let listed = admin.list(request).await.unwrap().into_inner();
    let document: Value = serde_json::from_str(&listed.json[0]).unwrap();
    let text = |field: &str| document[field].as_str().unwrap_or_default().to_owned();
    (text("state"), text("end_reason"))
}

/// The command line as another user, on the admin socket.
async fn tether(agent: &TestAgent, uid: u32, arguments: &[&str]) -> (Option<i32>, String) {
    let program = Program::copied_to(agent.dir());
    let mut command = program.as_user(uid, arguments);
    command.arg("--socket").arg(agent.admin_socket());
    let output: Output = within(tokio::task::spawn_blocking(move || command.output())).await.unwrap().unwrap();
    let text = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap()).concat();
    (output.status.code(), text)
}

/// The approval that a refusal names.
fn waiting(answer: &str) -> String {
    assert!(answer.starts_with("FailedPrecondition money moves"), "{answer}");
    answer.split("tether approval approve ").nth(1).unwrap().trim_end_matches('`').to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_waits_for_somebody_else_and_is_then_made_as_often_as_they_said() {
    if !is_root() {
        return;
    }
    let agent = agent().await;
    let mut nobody = Another::as_user(&agent, NOBODY);
    let session = nobody.ask(&format!("start task {TOOL}"));
    let call = format!("in {session} POST {URI}");
    let id = waiting(&nobody.ask(&call));
    assert_eq!(waiting(&nobody.ask(&call)), id, "asking again is the same question");

    let asked = &listed(&agent).await[0];
    assert_eq!((asked.state.as_str(), asked.session.as_str()), ("pending", session.as_str()));
    assert_eq!((asked.method.as_str(), asked.target.as_str(), asked.effect.as_str()), ("POST", URI, "write"));
    assert!(asked.policies.contains(&"a-person-agrees".to_owned()), "{:?}", asked.policies);

    let (exit, said) = tether(&agent, NOBODY, &["approval", "approve", &id]).await;
    assert_eq!(exit, Some(6), "{said}");
    assert!(said.contains("user id 65534 runs the agent that asks: somebody else must decide"), "{said}");
    for verdict in ["approve", "deny"] {
        for uid in [OPERATOR, VIEWER] {
            let (exit, said) = tether(&agent, uid, &["approval", verdict, &id]).await;
            assert_eq!((exit, said.contains("needs the approver role")), (Some(6), true), "{said}");
        }
    }
    let (exit, said) = tether(&agent, APPROVER, &["session", "end", &session, "--admin"]).await;
    assert_eq!((exit, said.contains("needs the operator role")), (Some(6), true), "{said}");
    assert_eq!(waiting(&nobody.ask(&call)), id, "nothing came of all that");

    let (exit, said) = tether(&agent, APPROVER, &["approval", "approve", &id[..6], "--uses", "2"]).await;
    assert_eq!(exit, Some(0), "{said}");
    for left in [1, 0] {
        assert!(nobody.ask(&call).starts_with('{'));
        assert_eq!(listed(&agent).await[0].uses_left, left);
    }
    assert_ne!(waiting(&nobody.ask(&call)), id, "what is used up is asked for anew");
    assert!(waiting(&nobody.ask(&format!("in {session} POST {URI}/other"))) != id, "another place, another question");
    let again = approve(&agent, &id, 1).await.unwrap_err();
    assert_eq!((again.code(), again.message().contains("it is used")), (Code::FailedPrecondition, true), "{again}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_approver_refuses_is_refused_and_not_asked_again_in_that_session() {
    if !is_root() {
        return;
    }
    let agent = agent().await;
    let mut nobody = Another::as_user(&agent, NOBODY);
    let session = nobody.ask(&format!("start task {TOOL}"));
    let call = format!("in {session} POST {URI}");
    let id = waiting(&nobody.ask(&call));
    assert_eq!(deny(&agent, &id).await.unwrap().state, "denied");
    let refused = nobody.ask(&call);
    assert!(refused.starts_with("PermissionDenied") && refused.contains("an approver has refused this"), "{refused}");
    assert_eq!(state(&agent, &session).await.0, "active", "the session goes on with what it may");
    nobody.ask(&format!("end {session}"));
    assert_eq!(listed(&agent).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_waits_begins_when_approved_and_ends_when_that_is_taken_back() {
    if !is_root() {
        return;
    }
    let agent = agent().await;
    let mut nobody = Another::as_user(&agent, NOBODY);
    let session = nobody.ask(&format!("start grave {TOOL}"));
    assert_eq!(state(&agent, &session).await.0, "pending_approval");
    let early = nobody.ask(&format!("in {session} GET {URI}"));
    assert!(early.starts_with("FailedPrecondition") && early.contains("waits for an approval"), "{early}");
    let id = listed(&agent).await[0].id.clone();
    assert_eq!(approve(&agent, &id, 1).await.unwrap().state, "granted");
    assert_eq!(state(&agent, &session).await.0, "active", "by the time whoever approved is told");
    assert!(nobody.ask(&format!("in {session} GET {URI}")).starts_with('{'));

    assert_eq!(deny(&agent, &id).await.unwrap().state, "withdrawn");
    let ended = ("ended".to_owned(), "approval_revoked".to_owned());
    assert_eq!(state(&agent, &session).await, ended, "before whoever withdrew it is told");
    assert!(nobody.ask(&format!("in {session} GET {URI}")).starts_with("FailedPrecondition"));

    // The newest is listed first.
    agent.clock().advance(Duration::from_secs(1));
    let refused = nobody.ask(&format!("start grave {TOOL}"));
    let id = listed(&agent).await[0].id.clone();
    assert_eq!(deny(&agent, &id).await.unwrap().state, "denied");
    assert_eq!(state(&agent, &refused).await, ("ended".to_owned(), "policy_denied".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_approval_survives_a_restart_of_the_agent_while_it_waits_and_after_it_was_given() {
    if !is_root() {
        return;
    }
    let mut agent = agent().await;
    let mut nobody = Another::as_user(&agent, NOBODY);
    let session = nobody.ask(&format!("start grave {TOOL}"));
    let id = listed(&agent).await[0].id.clone();
    open_to_all(&agent, 0o700);
    agent.restart().await;
    open_to_all(&agent, 0o755);
    let asked = listed(&agent).await;
    assert_eq!((asked.len(), asked[0].id.as_str(), asked[0].state.as_str()), (1, id.as_str(), "pending"));
    let (exit, said) = tether(&agent, NOBODY, &["approval", "approve", &id]).await;
    assert_eq!((exit, said.contains("somebody else must decide")), (Some(6), true), "{said}");
    approve(&agent, &id, 1).await.unwrap();
    assert_eq!(state(&agent, &session).await.0, "active");
    // Its key was in the memory of the agent, and so it ends; what was asked and answered is still known.
    open_to_all(&agent, 0o700);
    agent.restart().await;
    open_to_all(&agent, 0o755);
    let known = listed(&agent).await;
    assert_eq!((known.len(), known[0].state.as_str(), known[0].decided_by.as_str()), (1, "used", "0"));
}
