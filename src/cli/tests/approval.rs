//! `tether approval`, against an agent with two approvals.

use std::sync::{Arc, Mutex};

use serde_json::json;
use tonic::metadata::MetadataValue;
use tonic::service::Routes;
use tonic::{Request, Response, Status};

use crate::client::fake::Served;
use crate::proto::admin::approvals_server::{Approvals, ApprovalsServer};
use crate::proto::admin::*;

use super::{Exit, tether};

const ID: &str = "9f8e7d6c5b4a3928";

#[derive(Clone, Default)]
struct FakeApprovals {
    asked: Arc<Mutex<Vec<String>>>,
    own: bool,
}

impl FakeApprovals {
    fn served(&self) -> Served {
        Served::routes(Routes::new(ApprovalsServer::new(self.clone())))
    }

    fn ask(&self, what: impl Into<String>) -> Result<(), Status> {
        self.asked.lock().expect("unbroken").push(what.into());
        if !self.own {
            return Ok(());
        }
        let mut status = Status::permission_denied("user id 1000 runs the agent that asks: somebody else must decide");
        status.metadata_mut().insert("tether-denial", MetadataValue::from_static("own_approval"));
        Err(status)
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().expect("unbroken"))
    }
}

fn pending() -> ApprovalView {
    ApprovalView {
        id: ID.to_owned(),
        state: "pending".to_owned(),
        session: "node.session".to_owned(),
        spiffe_id: "spiffe://example.org/agent".to_owned(),
        user: "alice@node".to_owned(),
        purpose: "ticket/triage".to_owned(),
        action: "call".to_owned(),
        target: "https://tool.example.com/tickets".to_owned(),
        method: "POST".to_owned(),
        tool: "close\u{202e}tekcit".to_owned(),
        arguments_sha256: "00ff".to_owned(),
        effect: "irreversible".to_owned(),
        kind: "jwt".to_owned(),
        scopes: vec!["read".to_owned(), "write".to_owned()],
        session_json: json!({
            "scope": "tree", "pid": 4711, "uid": 1000, "boundary": "task", "max_calls": 3, "max_tokens": 0,
            "expires_at": "2026-11-22T12:14:00Z",
        })
        .to_string(),
        why: "closing is for people \u{2014} ask one\u{200b}".to_owned(),
        policies: vec!["wants-a-person".to_owned()],
        requested_at: "2026-11-22T11:59:00Z".to_owned(),
        expires_at: "2026-11-22T12:59:00Z".to_owned(),
        ..ApprovalView::default()
    }
}

#[tonic::async_trait]
impl Approvals for FakeApprovals {
    async fn list(&self, request: Request<ListApprovalsRequest>) -> Result<Response<ListApprovalsResponse>, Status> {
        self.ask(format!("list {}", request.into_inner().all))?;
        let other = ApprovalView { id: "9f8e7d00aabbccdd".to_owned(), ..pending() };
        Ok(Response::new(ListApprovalsResponse { approvals: vec![pending(), other] }))
    }
    async fn approve(&self, request: Request<ApproveRequest>) -> Result<Response<ApprovalView>, Status> {
        let ApproveRequest { id, ttl_seconds, uses, note } = request.into_inner();
        self.ask(format!("approve {id} {ttl_seconds} {uses} {note}"))?;
        let (state, uses_left) = ("granted".to_owned(), 2);
        Ok(Response::new(ApprovalView { state, uses_left, decided_by: "2000".to_owned(), ..pending() }))
    }
    async fn deny(&self, request: Request<DenyRequest>) -> Result<Response<ApprovalView>, Status> {
        let DenyRequest { id, note } = request.into_inner();
        self.ask(format!("deny {id} {note}"))?;
        Ok(Response::new(ApprovalView { state: "denied".to_owned(), ..pending() }))
    }
}

#[test]
fn an_approver_sees_all_there_is_to_decide_by_and_nothing_that_poses_as_something_else() {
    let served = FakeApprovals::default().served();
    let listed = tether("approval list", &served).data;
    for expected in [
        "approval   9f8e7d6c5b4a3928\n",
        "state      pending, asked 1m ago, 59m left\n",
        "agent      spiffe://example.org/agent, for alice@node\n",
        "wants to   call POST https://tool.example.com/tickets\n",
        "tool       close\\u{202e}tekcit\n",
        "arguments  SHA-256 00ff\n",
        "effect     irreversible\n",
        "why        closing is for people \u{2014} ask one\\u{200b}\n",
        "policies   wants-a-person\n",
        "token      bearer JWT: whoever has it can use it\n",
        "scopes     read write\n",
        "session    node.session: process 4711 and all it starts, uid 1000; one task, 3 calls, any number of tokens, 14m left\n",
    ] {
        assert!(listed.contains(expected), "{listed}");
    }
    let json = tether("approval list --output json", &served).json();
    assert_eq!(json["version"], 1);
    let expected = json!({
        "id": ID, "state": "pending", "session": "node.session", "spiffe_id": "spiffe://example.org/agent",
        "user": "alice@node", "purpose": "ticket/triage", "action": "call",
        "target": "https://tool.example.com/tickets", "method": "POST", "tool": "close\u{202e}tekcit",
        "arguments_sha256": "00ff", "effect": "irreversible",
        "kind": "jwt", "scopes": ["read", "write"], "why": "closing is for people \u{2014} ask one\u{200b}",
        "policies": ["wants-a-person"], "requested_at": "2026-11-22T11:59:00Z", "decided_at": null,
        "expires_at": "2026-11-22T12:59:00Z", "uses_left": 0, "decided_by": null, "note": null,
        "session_document": serde_json::from_str::<serde_json::Value>(&pending().session_json).expect("JSON"),
    });
    assert_eq!(json["approvals"][0], expected);
}

#[test]
fn approve_and_deny_take_whole_ids_and_first_digits() {
    let fake = FakeApprovals::default();
    let served = fake.served();
    for (line, expected) in [
        (format!("approval approve {ID}"), vec![format!("approve {ID} 0 1 ")]),
        (
            "approval approve 9F8E7D6 --ttl 30m --uses 2 --note fine".to_owned(),
            vec!["list true".to_owned(), format!("approve {ID} 1800 2 fine")],
        ),
        ("approval deny 9f8e7d6 --note no".to_owned(), vec!["list true".to_owned(), format!("deny {ID} no")]),
    ] {
        let done = tether(&line, &served);
        assert_eq!(done.exit, Exit::Ok, "{}", done.chatter);
        assert_eq!(fake.asked(), expected, "{line}");
    }
    let granted = tether(&format!("approval approve {ID} --output json"), &served).json();
    assert_eq!((&granted["state"], &granted["uses_left"]), (&json!("granted"), &json!(2)));
    for (wrong, exit) in [
        ("approval approve 9f8e7", Exit::Usage),
        ("approval approve nonsense", Exit::Usage),
        ("approval approve 9f8e7d", Exit::Failure),
        ("approval approve abcdef", Exit::Failure),
        ("approval approve 9f8e7d6 --uses 0", Exit::Usage),
        ("approval approve 9f8e7d6 --ttl 500ms", Exit::Usage),
    ] {
        assert_eq!(tether(wrong, &served).exit, exit, "{wrong}");
    }
}

#[test]
fn whoever_cannot_decide_is_told_the_right_reason() {
    let done =
        tether(&format!("approval approve {ID}"), &FakeApprovals { own: true, ..FakeApprovals::default() }.served());
    assert_eq!(done.exit, Exit::Denied);
    assert!(
        done.chatter.contains("somebody else must decide") && !done.chatter.contains("[admin]"),
        "{}",
        done.chatter
    );
}
