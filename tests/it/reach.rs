//! Calls that TLS alone speaks for, calls inside requests, and delegates in the sessions of others.

use std::collections::HashMap;

use bytes::Bytes;
use tether::proto::admin::approvals_client::ApprovalsClient;
use tether::proto::admin::{ApproveRequest, CredentialFilter, ListCredentialsRequest, RevokeCredentialsRequest};
use tether::proto::session::mint_request::Kind;
use tether::proto::session::{
    CheckRequest, CheckResponse, Effect, EndRequest, GetRequest, MintRequest, OnBehalfOf, ProveRequest, Rpc, State,
    WatchRequest,
};
use tether::proto::workload::X509svidRequest;
use tether::proto::{APPROVAL_METADATA, SESSION_END_METADATA};
use tether::x509::Chain;
use tonic::{Code, Status};

use crate::another::Another;
use crate::approvals::open_to_all;
use crate::harness::{TestAgent, channel, next, uid, within};
use crate::sessions::task;

const TOOL: &str = "https://tool.example.com/";
const URI: &str = "https://tool.example.com/mcp";

async fn with_entries(entries: &str) -> TestAgent {
    let agent = TestAgent::without_entries().await;
    agent.write_entries("entries.toml", entries).await;
    agent.write_policies("all.cedar", ALL).await;
    agent
}

const ALL: &str = r#"
@id("all") permit(principal, action in [Action::"start", Action::"mint", Action::"call"], resource);
"#;

fn entry(id: &str, more: &str) -> String {
    format!(
        "[[entry]]\nid = \"{id}\"\nspiffe_id = \"spiffe://dev.tether.internal/{id}\"\nmatch = [\"unix:uid:{}\"]\n\
         owner = \"team\"\naudiences = [\"*\"]\nserves = [\"*\"]\n{more}\n",
        uid()
    )
}

/// The certificates of each identity of this process, as it would show them in TLS.
async fn certificates(agent: &TestAgent) -> HashMap<String, Vec<Bytes>> {
    let mut stream = agent.workload().await.fetch_x509svid(X509svidRequest {}).await.unwrap().into_inner();
    let svids = next(&mut stream).await.unwrap().svids;
    let shown = |der: &[u8]| -> Vec<Bytes> {
        let chain = Chain::from_der(der).unwrap();
        chain.certificates().iter().map(|certificate| Bytes::copy_from_slice(certificate.der())).collect()
    };
    svids.into_iter().map(|svid| (svid.spiffe_id, shown(&svid.x509_svid))).collect()
}

async fn check(agent: &TestAgent, request: CheckRequest) -> CheckResponse {
    let request = CheckRequest { method: "POST".to_owned(), uri: URI.to_owned(), ..request };
    agent.verifier().await.check(request).await.unwrap().into_inner()
}

fn shown(certificates: &[Bytes]) -> CheckRequest {
    CheckRequest { peer_certificates: certificates.to_vec(), ..CheckRequest::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_tls_showed_may_call_where_policy_permits_to_reach_and_as_long_as_its_certificate_stands() {
    let agent = with_entries(&entry("a", "")).await;
    let own = certificates(&agent).await.remove("spiffe://dev.tether.internal/a").unwrap();
    let reached = check(&agent, shown(&own)).await;
    assert!(reached.active && !reached.proven, "{reached:?}");
    assert_eq!((reached.spiffe_id.as_str(), reached.binding), ("spiffe://dev.tether.internal/a", 1));
    assert_eq!((reached.effect(), reached.policies.as_slice()), (Effect::Write, &["reach".to_owned()][..]));
    assert_eq!(reached.key_thumbprint.len(), 43);

    assert_eq!(check(&agent, CheckRequest::default()).await.reason, "no_proof");
    let strict = CheckRequest { require_session: true, ..shown(&own) };
    assert_eq!(check(&agent, strict).await.reason, "no_session");
    let strict = CheckRequest { min_binding: 2, ..shown(&own) };
    assert_eq!(check(&agent, strict).await.reason, "binding");
    let leaf_alone = shown(&own[..1]);
    assert_eq!(check(&agent, leaf_alone).await.reason, "peer", "nothing leads to an authority");

    let proven = r#"@id("proven") forbid(principal, action == Action::"reach", resource) unless { context.proof };"#;
    agent.write_policies("a.cedar", proven).await;
    let refused = check(&agent, shown(&own)).await;
    assert_eq!((refused.active, refused.reason.as_str()), (false, "policy"));
    let mut sessions = agent.sessions().await;
    let prove = ProveRequest { method: "POST".to_owned(), uri: URI.to_owned(), ..ProveRequest::default() };
    let headers = sessions.prove(prove).await.unwrap().into_inner().headers;
    let both = check(&agent, CheckRequest { headers, ..shown(&own) }).await;
    assert!(both.active && both.proven, "{both:?}");
    agent.remove_policies("a.cedar").await;

    let filter = Some(CredentialFilter { kind: "x509".to_owned(), ..CredentialFilter::default() });
    let mut credentials = agent.credentials().await;
    let list = ListCredentialsRequest { filter: filter.clone(), ..ListCredentialsRequest::default() };
    assert_eq!(credentials.list(list).await.unwrap().into_inner().credentials.len(), 1);
    credentials.revoke(RevokeCredentialsRequest { filter, ..RevokeCredentialsRequest::default() }).await.unwrap();
    assert_eq!(check(&agent, shown(&own)).await.reason, "peer_revoked");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proof_of_another_identity_than_the_certificates_is_refused() {
    let agent = with_entries(&format!("{}{}", entry("a", ""), entry("b", ""))).await;
    let mut shown_by = certificates(&agent).await;
    let mut sessions = agent.sessions().await;
    let prove = ProveRequest { method: "POST".to_owned(), uri: URI.to_owned(), ..ProveRequest::default() };
    let headers = sessions.prove(prove).await.unwrap().into_inner().headers;
    let of_a =
        CheckRequest { headers: headers.clone(), ..shown(&shown_by.remove("spiffe://dev.tether.internal/b").unwrap()) };
    assert_eq!(check(&agent, of_a).await.reason, "peer_of_another");
    let of_a = CheckRequest { headers, ..shown(&shown_by.remove("spiffe://dev.tether.internal/a").unwrap()) };
    assert!(check(&agent, of_a).await.active, "what was refused has used nothing up");
}

const TOOLS: &str = r#"
@id("reads") @effect("read")
permit(principal, action == Action::"classify", resource) when { context.tool == "search" };
@id("asks") @step_up("it cannot be undone")
permit(principal, action == Action::"irreversible", resource) when { context.tool == "delete" };
@id("no-shell")
forbid(principal, action in Action::"call", resource) when { context.tool == "shell" };
@id("no-roots")
forbid(principal, action in Action::"call", resource) when { context.rpc == "roots/list" };
"#;

fn rpc(method: &str, tool: &str) -> Rpc {
    Rpc { method: method.to_owned(), tool: tool.to_owned(), ..Rpc::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_call_inside_a_request_is_decided_apart_and_policy_says_what_it_does() {
    let agent = with_entries(&entry("a", "")).await;
    agent.write_policies("tools.cedar", TOOLS).await;
    let mut sessions = agent.sessions().await;
    let session = sessions.start(task("t", &[TOOL])).await.unwrap().into_inner().id;
    let prove = ProveRequest {
        session: session.clone(),
        method: "POST".to_owned(),
        uri: URI.to_owned(),
        ..ProveRequest::default()
    };
    let headers = sessions.prove(prove.clone()).await.unwrap().into_inner().headers;
    let rpcs = vec![
        rpc("tools/call", "search"),
        rpc("tools/call", "shell"),
        rpc("tools/call", "delete"),
        rpc("tools/call", "other"),
        rpc("roots/list", ""),
        Rpc { effect: Effect::Read.into(), ..rpc("tools/list", "") },
    ];
    let checked = check(&agent, CheckRequest { headers, rpcs, ..CheckRequest::default() }).await;
    assert!(checked.active, "{checked:?}");
    let verdicts: Vec<_> = checked.rpcs.iter().map(|one| (one.allowed, one.effect(), one.reason.as_str())).collect();
    assert_eq!(
        verdicts,
        [
            (true, Effect::Read, ""),
            (false, Effect::Irreversible, "policy"),
            // Of what the agent did not say in its proof nobody is asked.
            (false, Effect::Irreversible, "step_up"),
            (true, Effect::Irreversible, ""),
            (false, Effect::Write, "policy"),
            (true, Effect::Read, ""),
        ]
    );
    assert_eq!(checked.rpcs[1].policies, ["no-shell"]);
    assert_eq!(checked.rpcs[2].approval, "");

    // The agent says which tool it calls: it is asked for there, by the name that the tool's side would give it.
    let delete = ProveRequest { tool: "delete".to_owned(), rpc: "tools/call".to_owned(), ..prove };
    let waiting = sessions.prove(delete.clone()).await.unwrap_err();
    assert_eq!(waiting.code(), Code::FailedPrecondition, "{waiting:?}");
    let approval = waiting.metadata().get(APPROVAL_METADATA).unwrap().to_str().unwrap().to_owned();
    assert!(!approval.is_empty());
    let unsaid = sessions.prove(ProveRequest { tool: "search".to_owned(), ..delete }).await.unwrap().into_inner();
    let two = vec![rpc("tools/call", "search"), rpc("tools/call", "other")];
    let mixed = CheckRequest { headers: unsaid.headers, rpcs: two, ..CheckRequest::default() };
    assert_eq!(check(&agent, mixed).await.reason, "tool", "a proof that names a tool is for one call of it");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_approval_that_the_agent_used_for_a_call_is_the_one_that_the_tools_side_takes() {
    const APPROVER: u32 = 0;
    if uid() != APPROVER {
        return; // The approver must be another user than the agent's, which takes root.
    }
    let agent = TestAgent::configured(|config| config.admin.approvers = vec![APPROVER.to_string()]).await;
    open_to_all(&agent, 0o755);
    agent.write_policies("tools.cedar", TOOLS).await;
    let mut other = Another::as_user(&agent, 10_123);
    let entries = "[[entry]]\nid = \"b\"\nspiffe_id = \"spiffe://dev.tether.internal/b\"\nmatch = [\"unix:uid:10123\"]\nowner = \"team\"\n";
    agent.write_entries("b.toml", entries).await;
    let session = other.ask(&format!("start t {TOOL}"));
    let refused = other.ask(&format!("tool {session} delete POST {URI}"));
    let approval = refused.split("approval:").nth(1).unwrap_or_else(|| panic!("{refused}")).to_owned();
    let approve = ApproveRequest { id: approval, ttl_seconds: 60, uses: 1, ..ApproveRequest::default() };
    ApprovalsClient::new(channel(agent.admin_socket()).await).approve(approve).await.unwrap();
    let headers: HashMap<String, String> =
        serde_json::from_str(&other.ask(&format!("tool {session} delete POST {URI}"))).unwrap();
    let rpcs = vec![rpc("tools/call", "delete")];
    let checked = check(&agent, CheckRequest { headers, rpcs, ..CheckRequest::default() }).await;
    assert!(checked.active && checked.rpcs[0].allowed, "{checked:?}");
}

fn ended_by(status: &Status) -> &str {
    status.metadata().get(SESSION_END_METADATA).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delegate_proves_and_mints_in_the_session_of_whom_it_asks_for_and_not_after_it() {
    let delegate = entry("a", "may_act_for = [\"spiffe://dev.tether.internal/a\"]");
    let agent = with_entries(&delegate).await;
    let mut other = Another::start(agent.socket());
    let session = other.ask(&format!("start t {TOOL}"));
    let named = other.named();
    let mut sessions = agent.sessions().await;
    let of_other = GetRequest { on_behalf_of: Some(named), ..GetRequest::default() };
    assert_eq!(sessions.get(of_other.clone()).await.unwrap().into_inner().id, session);

    let prove = |on_behalf_of: OnBehalfOf| ProveRequest {
        method: "POST".to_owned(),
        uri: URI.to_owned(),
        on_behalf_of: Some(on_behalf_of),
        ..ProveRequest::default()
    };
    let proven = sessions.prove(prove(named)).await.unwrap().into_inner();
    assert_eq!(proven.session, session);
    let checked = check(&agent, CheckRequest { headers: proven.headers, ..CheckRequest::default() }).await;
    assert!(checked.active && checked.session == session && checked.binding == 3, "{checked:?}");
    // Known by less than a connection of its own it is worth less, also where a better token is there already.
    let weak = sessions.prove(prove(OnBehalfOf { weak: true, ..named })).await.unwrap().into_inner();
    let strict = CheckRequest { headers: weak.headers.clone(), min_binding: 3, ..CheckRequest::default() };
    assert_eq!(check(&agent, strict).await.reason, "binding");

    let bearer = MintRequest {
        target: "https://api.example.com".to_owned(),
        kind: Kind::Jwt.into(),
        on_behalf_of: Some(named),
        without_session: true,
        ..MintRequest::default()
    };
    let minted = sessions.mint(bearer.clone()).await.unwrap().into_inner();
    assert!(minted.session.is_empty() && minted.binding == 0 && !minted.token.is_empty(), "{minted:?}");
    let own = sessions.mint(MintRequest { on_behalf_of: None, ..bearer }).await.unwrap_err();
    assert_eq!(own.code(), Code::InvalidArgument, "a process that asks for itself has FetchJWTSVID");

    let mut watch = sessions
        .watch(WatchRequest { on_behalf_of: Some(named), ..WatchRequest::default() })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(next(&mut watch).await.unwrap().state(), State::Active);
    sessions.end(EndRequest { session: session.clone() }).await.unwrap();
    within(async { while next(&mut watch).await.unwrap().state() != State::Ended {} }).await;
    let named_session = ProveRequest { session, ..prove(named) };
    assert_eq!(ended_by(&sessions.prove(named_session).await.unwrap_err()), "completed");
    assert_eq!(sessions.get(of_other).await.unwrap_err().code(), Code::InvalidArgument, "it is in none");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_no_delegate_learns_nothing_of_the_session_of_another() {
    let agent = with_entries(&entry("a", "")).await;
    let mut other = Another::start(agent.socket());
    let session = other.ask(&format!("start t {TOOL}"));
    let mut sessions = agent.sessions().await;
    let get = GetRequest { session, on_behalf_of: Some(other.named()) };
    assert_eq!(sessions.get(get).await.unwrap_err().code(), Code::PermissionDenied);
}
