//! The audit log of the whole agent: what is in it after a kill, what is not done without it, and what a task looks like.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use tether::proto::admin::audit_log_client::AuditLogClient;
use tether::proto::admin::{QueryAuditRequest, TailRequest};
use tether::proto::session::report_request::Outcome;
use tether::proto::session::sessions_client::SessionsClient;
use tether::proto::session::{CheckRequest, EndRequest, ProveRequest, ReportRequest};
use tether::proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use tether::proto::workload::{JwtsvidRequest, JwtsvidResponse};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::harness::{Header, TestAgent, channel, next, within};
use crate::program::{AgentProcess, NOBODY, Program, is_root};
use crate::sessions::task;

const TOOL: &str = "https://tool.example.com/";
const URI: &str = "https://tool.example.com/charge";

/// The records that the agent at this admin socket finds.
async fn query(admin: Channel, request: QueryAuditRequest) -> Vec<Value> {
    let mut found = AuditLogClient::new(admin).query(request).await.unwrap().into_inner();
    let mut records = Vec::new();
    while let Some(message) = within(found.message()).await.unwrap() {
        records.extend(message.lines.iter().map(|line| serde_json::from_str::<Value>(line).unwrap()));
    }
    records
}

fn of_session(session: &str, below: bool) -> QueryAuditRequest {
    QueryAuditRequest { session: session.to_owned(), below, ..QueryAuditRequest::default() }
}

fn events(records: &[Value]) -> Vec<&str> {
    records.iter().map(|record| record["event"].as_str().unwrap()).collect()
}

/// What the program prints, without waiting on this thread.
async fn tether(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tether"));
    command.env_clear().args(arguments);
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

async fn verify_offline(dir: &Path) -> Output {
    tether(&["audit", "verify", "--output", "json", "--dir", dir.to_str().unwrap()]).await
}

async fn fetch_jwt(socket: &Path) -> Result<JwtsvidResponse, Status> {
    let mut workload = SpiffeWorkloadApiClient::with_interceptor(channel(socket).await, Header);
    let request = JwtsvidRequest { audience: vec!["demo".to_owned()], ..JwtsvidRequest::default() };
    within(workload.fetch_jwtsvid(request)).await.map(tonic::Response::into_inner)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_answered_is_in_the_log_after_a_kill_and_a_torn_record_is_repaired() {
    let dir = tempfile::tempdir().unwrap();
    let agent = AgentProcess::start(dir.path(), &[], &[]);
    let audit = agent.state().join("audit");
    let mut sessions = SessionsClient::with_interceptor(channel(&agent.workload()).await, Header);
    let session = sessions.start(task("billing", &[TOOL])).await.unwrap().into_inner().id;
    let request = ProveRequest {
        session: session.clone(),
        method: "POST".to_owned(),
        uri: URI.to_owned(),
        ..ProveRequest::default()
    };
    let proven = sessions.prove(request).await.unwrap().into_inner();
    let token = fetch_jwt(&agent.workload()).await.unwrap();
    agent.kill();

    let report: Value = serde_json::from_str(&stdout(&verify_offline(&audit).await)).unwrap();
    assert_eq!((&report["version"], &report["ok"]), (&1.into(), &true.into()), "{report}");
    let file = std::fs::read_dir(&audit).unwrap().next().unwrap().unwrap().path();
    let content = std::fs::read_to_string(&file).unwrap();
    let last: Vec<Value> = content.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let last = &last[last.len() - 4..];
    assert_eq!(events(last), ["session_started", "token_minted", "proof_made", "svid_issued"]);
    assert_eq!(last[2]["txn"], proven.txn);
    assert!(!content.contains(&token.svids[0].svid), "a token is never in the log");
    assert!(!content.contains(&proven.headers["Authorization"]["WPT ".len()..]));

    // As if the kill had come in the middle of a write.
    let mut torn = std::fs::OpenOptions::new().append(true).open(&file).unwrap();
    torn.write_all(br#"{"version":1,"seq":99,"ti"#).unwrap();
    let agent = AgentProcess::start(dir.path(), &[], &[]);
    let admin = channel(&agent.admin()).await;
    let repaired = QueryAuditRequest { events: vec!["audit_repaired".to_owned()], ..QueryAuditRequest::default() };
    let repaired = query(admin.clone(), repaired).await;
    assert_eq!((repaired.len(), &repaired[0]["cut"]), (1, &25.into()), "{repaired:?}");
    let of_session = query(admin, of_session(&session, false)).await;
    let names = events(&of_session);
    assert_eq!(names[..3], ["session_started", "token_minted", "proof_made"]);
    assert_eq!(names.last(), Some(&"session_ended"), "the key is gone with the agent: {names:?}");
    assert_eq!(of_session.last().unwrap()["reason"], "agent_restart");
    let (status, _) = agent.stop();
    assert!(status.success());
    let verified = verify_offline(&audit).await;
    let report: Value = serde_json::from_str(&stdout(&verified)).unwrap();
    assert_eq!((&report["head"], &report["begins"]), (&"found".into(), &"at_the_first".into()), "{report}");

    // And then somebody makes another session of it.
    let content = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, content.replacen("billing", "charity", 1)).unwrap();
    let broken = verify_offline(&audit).await;
    assert_eq!(broken.status.code(), Some(5), "{broken:?}");
    let report: Value = serde_json::from_slice(&broken.stdout).unwrap();
    assert_eq!(report["problems"][0]["kind"], "changed");
    assert_eq!(report["problems"][0]["file"], file.file_name().unwrap().to_str().unwrap());
    assert!(report["problems"][0]["line"].as_u64() > Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_full_disk_nothing_is_issued_and_the_agent_says_so_until_there_is_room() {
    if !is_root() {
        eprintln!("skipped: a file system of one's own takes root");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut agent = AgentProcess::with_small_audit_disk(dir.path(), "128k");
    fetch_jwt(&agent.workload()).await.unwrap();
    let filler = agent.sees(&dir.path().join("audit/filler"));
    let mut file = std::fs::File::create(&filler).unwrap();
    while file.write_all(&[0; 512]).is_ok() {}
    // What is left of the last page is used up.
    let refused = loop {
        if let Err(refused) = fetch_jwt(&agent.workload()).await {
            break refused;
        }
    };
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    let why = refused.message();
    assert!(why.contains("audit log") && why.contains("No space left"), "{refused:?}");
    agent.log_line("the audit log cannot be written");
    let admin = agent.admin();
    let status = tether(&["status", "--output", "json", "--socket", admin.to_str().unwrap()]).await;
    let status: Value = serde_json::from_str(&stdout(&status)).unwrap();
    assert_eq!(status["ready"], false);
    assert!(status["parts"]["audit"]["reason"].as_str().unwrap().contains("cannot be written"), "{status}");

    // An open file keeps its room.
    drop(file);
    std::fs::remove_file(&filler).unwrap();
    fetch_jwt(&agent.workload()).await.unwrap();
    let interrupted =
        QueryAuditRequest { events: vec!["audit_interrupted".to_owned()], ..QueryAuditRequest::default() };
    let interrupted = query(channel(&admin).await, interrupted).await;
    assert!(!interrupted.is_empty());
    assert!(interrupted[0]["why"].as_str().unwrap().contains("append to"), "{interrupted:?}");
    let verified = tether(&["audit", "verify", "--socket", admin.to_str().unwrap()]).await;
    assert!(stdout(&verified).contains("in order"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_is_a_tree_from_its_start_to_its_end() {
    let agent = TestAgent::start().await;
    agent.clock().advance(std::time::Duration::from_secs(2));
    let mut sessions = agent.sessions().await;
    let session = sessions.start(task("billing", &[TOOL])).await.unwrap().into_inner().id;
    let prove = |uri: &str| ProveRequest {
        session: session.clone(),
        method: "POST".to_owned(),
        uri: uri.to_owned(),
        tool: "charge".to_owned(),
        ..ProveRequest::default()
    };
    let proven = sessions.prove(prove(URI)).await.unwrap().into_inner();
    let check = CheckRequest {
        method: "POST".to_owned(),
        uri: URI.to_owned(),
        headers: proven.headers,
        tool: "charge".to_owned(),
        ..CheckRequest::default()
    };
    let checked = agent.verifier().await.check(check).await.unwrap().into_inner();
    assert!(checked.active, "{checked:?}");
    let report = ReportRequest {
        session: session.clone(),
        txn: checked.txn.clone(),
        outcome: Outcome::Done.into(),
        note: "charged".to_owned(),
        ..ReportRequest::default()
    };
    agent.verifier().await.report(report).await.unwrap();
    sessions.prove(prove("https://elsewhere.example.com/")).await.unwrap_err();
    sessions.end(EndRequest { session: session.clone() }).await.unwrap();

    let records = query(channel(agent.admin_socket()).await, of_session(&session, true)).await;
    let expected = [
        "session_started",
        "token_minted",
        "proof_made",
        "call_checked",
        "call_reported",
        "suspicious_use",
        "session_ended",
    ];
    assert_eq!(events(&records), expected);
    for record in &records[2..5] {
        assert_eq!(record["txn"], checked.txn, "the call, the check and the report are of one transaction: {record}");
    }
    let by_txn = QueryAuditRequest { txn: checked.txn.clone(), limit: 2, ..QueryAuditRequest::default() };
    assert_eq!(events(&query(channel(agent.admin_socket()).await, by_txn).await), ["proof_made", "call_checked"]);

    let socket = agent.admin_socket().to_str().unwrap();
    let digits = &session[session.find('.').unwrap() + 1..][..8];
    let trace = stdout(&tether(&["session", "trace", digits, "--socket", socket]).await);
    let lines: Vec<&str> = trace.lines().collect();
    assert!(lines[0].contains(&session) && lines[0].contains("ended: completed"), "{trace}");
    let at = |wanted: &str| {
        lines.iter().position(|line| line.contains(wanted)).unwrap_or_else(|| panic!("{wanted}: {trace}"))
    };
    let order = [
        "started by pid",
        "token wit",
        "call POST",
        "checked by",
        "the tool says: done",
        "SUSPICIOUS",
        "Z  ended: completed",
    ];
    let places: Vec<usize> = order.iter().map(|wanted| at(wanted)).collect();
    assert!(places.is_sorted(), "{trace}");
    let json = stdout(&tether(&["session", "trace", &session, "--output", "json", "--socket", socket]).await);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["version"], &json["id"], &json["state"]), (&1.into(), &session.as_str().into(), &"ended".into()));
    assert_eq!(json["records"].as_array().unwrap().len(), expected.len());
    let unknown = tether(&["session", "trace", "0123456789", "--socket", socket]).await;
    assert_eq!(unknown.status.code(), Some(1), "{unknown:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tail_goes_on_until_the_agent_stops_and_does_not_hold_that_up() {
    let mut agent = TestAgent::start().await;
    let mut client = agent.audit_log().await;
    let mut tail = client.tail(TailRequest { last: 1, once: false }).await.unwrap().into_inner();
    assert_eq!(next(&mut tail).await.unwrap().lines.len(), 1);
    fetch_jwt(agent.socket()).await.unwrap();
    let line = next(&mut tail).await.unwrap().lines.remove(0);
    assert!(line.contains("\"event\":\"svid_issued\""), "{line}");
    agent.stop().await;
    while let Ok(Some(_)) = within(tail.message()).await {}

    agent.restart().await;
    let mut client = agent.audit_log().await;
    let mut last = client.tail(TailRequest { last: 3, once: true }).await.unwrap().into_inner();
    let lines = next(&mut last).await.unwrap().lines;
    assert_eq!(lines.len(), 3);
    assert!(within(last.message()).await.unwrap().is_none(), "once is once");
    let all = query(channel(agent.admin_socket()).await, QueryAuditRequest::default()).await;
    let names = events(&all);
    let stopped = names.iter().position(|name| *name == "agent_stopped").unwrap();
    assert_eq!(names[stopped + 1], "agent_started", "{names:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_asked_is_refused_and_who_has_no_role_learns_nothing() {
    let agent = TestAgent::start().await;
    let mut client = agent.audit_log().await;
    let unknown = QueryAuditRequest { events: vec!["svid_isued".to_owned()], ..QueryAuditRequest::default() };
    let refused = client.query(unknown).await.unwrap_err();
    assert!(refused.code() == Code::InvalidArgument && refused.message().contains("svid_isued"), "{refused:?}");
    let no_time = QueryAuditRequest { since: "yesterday".to_owned(), ..QueryAuditRequest::default() };
    assert_eq!(client.query(no_time).await.unwrap_err().code(), Code::InvalidArgument);
    if is_root() {
        let program = Program::copied_to(agent.dir());
        std::fs::set_permissions(agent.dir(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let above = agent.admin_socket().parent().unwrap().parent().unwrap();
        std::fs::set_permissions(above, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let socket = agent.admin_socket().to_str().unwrap().to_owned();
        let mut command = program.as_user(NOBODY, &["audit", "tail", "--socket", &socket]);
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        assert_eq!(output.status.code(), Some(6), "{output:?}");
        assert!(output.stdout.is_empty());
    }
}
