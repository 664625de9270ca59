//! `tether session` and `tether prove`, against an agent with scripted answers.

use std::sync::{Arc, Mutex};

use futures_util::stream::{self, BoxStream, StreamExt};
use serde_json::{Value, json};
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::service::Routes;
use tonic::{Code, Request, Response, Status};

use crate::client::fake::Served;
use crate::proto::admin;
use crate::proto::admin::session_admin_server::{SessionAdmin, SessionAdminServer};
use crate::proto::session::sessions_server::{Sessions, SessionsServer};
use crate::proto::session::*;
use crate::session::SessionDocument;

use super::{Exit, tether, tether_with};

const NODE: &str = "00112233445566778899aabbccddeeff";
const RANDOM: &str = "9f8e7d6c5b4a39281706f5e4d3c2b1a0";

fn id() -> String {
    format!("{NODE}.{RANDOM}")
}

/// An agent with two sessions that remembers what it was asked.
#[derive(Clone, Default)]
struct FakeSessions {
    asked: Arc<Mutex<Vec<String>>>,
    started: Arc<Mutex<Vec<StartRequest>>>,
    proved: Arc<Mutex<Vec<ProveRequest>>>,
    /// What becomes of a session that was started, one state after the other.
    states: Vec<Session>,
    refusal: Option<Status>,
}

impl FakeSessions {
    fn served(&self) -> Served {
        let routes = Routes::new(SessionsServer::new(self.clone())).add_service(SessionAdminServer::new(self.clone()));
        Served::routes(routes)
    }

    fn refusing(status: Status) -> Served {
        Self { refusal: Some(status), ..Self::default() }.served()
    }

    fn ask(&self, what: impl Into<String>) -> Result<(), Status> {
        self.asked.lock().expect("unbroken").push(what.into());
        self.refusal.clone().map_or(Ok(()), Err)
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().expect("unbroken"))
    }

    fn all(&self) -> Vec<Session> {
        let other = Session { id: format!("{NODE}.{}", "9f8e7d00".repeat(4)), ..session(State::Active) };
        vec![session(State::Active), other]
    }
}

fn session(state: State) -> Session {
    let ended = state == State::Ended;
    Session {
        id: id(),
        state: state.into(),
        end_reason: if ended { "completed".to_owned() } else { String::new() },
        ended_at: if ended { "2026-11-22T11:59:30Z".to_owned() } else { String::new() },
        spiffe_id: "spiffe://example.org/agent".to_owned(),
        entry: "agent".to_owned(),
        user: "alice@node".to_owned(),
        purpose: "ticket/triage".to_owned(),
        targets: vec!["https://tool.example.com/".to_owned()],
        boundary: Boundary::Task.into(),
        scope: Scope::Tree.into(),
        pid: 4711,
        uid: 1000,
        binding: 3,
        budget: Some(Budget { max_tokens: 0, max_calls: 10 }),
        calls: 2,
        started_at: "2026-11-22T11:59:00Z".to_owned(),
        expires_at: "2026-11-22T12:14:00Z".to_owned(),
        approval: if state == State::PendingApproval { "00ff00ff00ff00ff".to_owned() } else { String::new() },
        ..Session::default()
    }
}

#[tonic::async_trait]
impl Sessions for FakeSessions {
    type WatchStream = BoxStream<'static, Result<Session, Status>>;
    type HoldX509Stream = BoxStream<'static, Result<HoldX509Response, Status>>;

    async fn start(&self, request: Request<StartRequest>) -> Result<Response<Session>, Status> {
        self.ask("start")?;
        self.started.lock().expect("unbroken").push(request.into_inner());
        Ok(Response::new(self.states.first().cloned().unwrap_or_else(|| session(State::Active))))
    }
    async fn get(&self, request: Request<GetRequest>) -> Result<Response<Session>, Status> {
        self.ask(format!("get {}", request.into_inner().session))?;
        Ok(Response::new(session(State::Active)))
    }
    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        self.ask(format!("list {}", request.into_inner().all))?;
        Ok(Response::new(ListResponse { sessions: self.all() }))
    }
    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        self.ask(format!("watch {}", request.into_inner().session))?;
        Ok(Response::new(stream::iter(self.states.clone().into_iter().map(Ok)).boxed()))
    }
    async fn heartbeat(&self, request: Request<HeartbeatRequest>) -> Result<Response<Session>, Status> {
        self.ask(format!("heartbeat {}", request.into_inner().session))?;
        let heartbeat_due = "2026-11-22T12:00:30Z".to_owned();
        Ok(Response::new(Session { heartbeat_due, ..session(State::Active) }))
    }
    async fn mint(&self, request: Request<MintRequest>) -> Result<Response<MintResponse>, Status> {
        let request = request.into_inner();
        self.ask(format!("mint {} {} {:?}", request.session, request.target, request.scopes))?;
        let bearer = request.kind() == mint_request::Kind::Jwt;
        Ok(Response::new(MintResponse {
            session: id(),
            kind: request.kind,
            token: "header.claims.signature".to_owned(),
            id: "jti".to_owned(),
            target: request.target,
            expires_at: "2026-11-22T12:05:00Z".to_owned(),
            binding: if bearer { 0 } else { 3 },
            binding_meaning: if bearer { "bearer" } else { "held" }.to_owned(),
            ..MintResponse::default()
        }))
    }
    async fn delegate(&self, _: Request<DelegateRequest>) -> Result<Response<Session>, Status> {
        Err(Status::unimplemented("not here"))
    }
    async fn end(&self, request: Request<EndRequest>) -> Result<Response<DisposalReceipt>, Status> {
        self.ask(format!("end {}", request.into_inner().session))?;
        let token = |kind: &str| Disposed {
            kind: kind.to_owned(),
            id: "jti".to_owned(),
            target: "https://tool.example.com/".to_owned(),
            until: "2026-11-22T12:05:00Z".to_owned(),
        };
        Ok(Response::new(DisposalReceipt {
            session: id(),
            end_reason: "completed".to_owned(),
            ended_at: "2026-11-22T12:00:00Z".to_owned(),
            had_ended: false,
            ended: vec![id(), format!("{NODE}.child")],
            keys_wiped: 2,
            revoked: vec![token("wit"), token("jwt")],
            remaining: vec![token("jwt"), Disposed { kind: "proof".to_owned(), ..Disposed::default() }],
            kept: vec![Kept { what: "audit".to_owned(), until: String::new() }],
        }))
    }
    async fn hold_x509(&self, _: Request<HoldX509Request>) -> Result<Response<Self::HoldX509Stream>, Status> {
        Err(Status::unimplemented("not here"))
    }
    async fn sign_tls(&self, _: Request<SignTlsRequest>) -> Result<Response<SignTlsResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }
    async fn hold_wit(&self, _: Request<HoldWitRequest>) -> Result<Response<HoldWitResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }
    async fn prove(&self, request: Request<ProveRequest>) -> Result<Response<ProveResponse>, Status> {
        self.ask("prove")?;
        let request = request.into_inner();
        let headers = [("Authorization".to_owned(), "WPT proof".to_owned())].into();
        let (expires_at, session) = ("2026-11-22T12:00:30Z".to_owned(), request.session.clone());
        self.proved.lock().expect("unbroken").push(request);
        Ok(Response::new(ProveResponse { headers, expires_at, session, txn: "txn".to_owned() }))
    }
}

#[tonic::async_trait]
impl SessionAdmin for FakeSessions {
    async fn list(
        &self,
        request: Request<admin::ListSessionsRequest>,
    ) -> Result<Response<admin::ListSessionsResponse>, Status> {
        let request = request.into_inner();
        self.ask(format!("admin list {} {}", request.all, request.session))?;
        let all = self.all();
        let json = all.iter().map(|session| serde_json::to_string(&SessionDocument::from(session)));
        let json = json.collect::<Result<_, _>>().expect("plain data");
        Ok(Response::new(admin::ListSessionsResponse { json, total: 7 }))
    }
    async fn end(
        &self,
        request: Request<admin::EndSessionsRequest>,
    ) -> Result<Response<admin::EndSessionsResponse>, Status> {
        let request = request.into_inner();
        self.ask(format!("admin end {} {}", request.session, request.reason))?;
        Ok(Response::new(admin::EndSessionsResponse { ended: vec![request.session] }))
    }
    async fn suspend(
        &self,
        request: Request<admin::SuspendSessionRequest>,
    ) -> Result<Response<admin::SuspendSessionResponse>, Status> {
        self.ask(format!("admin suspend {}", request.into_inner().session))?;
        Ok(Response::new(admin::SuspendSessionResponse {}))
    }
    async fn resume(
        &self,
        request: Request<admin::ResumeSessionRequest>,
    ) -> Result<Response<admin::ResumeSessionResponse>, Status> {
        self.ask(format!("admin resume {}", request.into_inner().session))?;
        Ok(Response::new(admin::ResumeSessionResponse {}))
    }
}

const START: &str = "session start --purpose ticket/triage --target https://tool.example.com/";

#[test]
fn start_prints_the_bare_id_or_the_document_that_scripts_rely_on() {
    let fake = FakeSessions::default();
    let served = fake.served();
    let done = tether(&format!("{START} --scope cgroup"), &served);
    assert_eq!((done.exit, done.data), (Exit::Ok, format!("{}\n", id())), "{}", done.chatter);
    let json = tether(&format!("{START} --scope cgroup --output json"), &served).json();
    let expected = json!({
        "version": 1, "id": id(), "state": "active", "end_reason": null, "parent": null, "depth": 0,
        "spiffe_id": "spiffe://example.org/agent", "entry": "agent", "user": "alice@node", "user_issuer": null,
        "user_subject": null, "purpose": "ticket/triage", "task_sha256": null,
        "targets": ["https://tool.example.com/"], "scopes": [], "boundary": "task", "scope": "tree", "tie": "",
        "pid": 4711, "uid": 1000, "binding": 3, "max_tokens": 0, "max_calls": 10, "tokens": 0, "calls": 2,
        "started_at": "2026-11-22T11:59:00Z", "expires_at": "2026-11-22T12:14:00Z", "ended_at": null,
        "heartbeat_seconds": null, "heartbeat_due": null, "approval": null, "key_thumbprint": "", "resumes": null,
        "launched": [],
    });
    assert_eq!(json, expected);
}

#[test]
fn start_passes_on_what_was_asked_for() {
    let fake = FakeSessions::default();
    let served = fake.served();
    let pid = std::process::id();
    let line = format!(
        "{START} --target api --scope-name read --scope-name write --ttl 1h --boundary tool_call --max-calls 3 \
         --max-tokens 4 --heartbeat 30s --user local --spiffe-id spiffe://example.org/agent --pid {pid} --scope tree \
         --resumes node.old --socket {}",
        served.path().display()
    );
    assert_eq!(tether_with(&line, &[], "").exit, Exit::Ok);
    let token = format!("{START} --subject-token - --pid {pid} --socket {}", served.path().display());
    assert_eq!(tether_with(&token, &[], "the.users.token\n").exit, Exit::Ok);
    let started = fake.started.lock().expect("unbroken").clone();
    let process = started[0].process.expect("a process");
    assert_eq!(process.pid, i32::try_from(pid).expect("a number"));
    let kernel = crate::sys::Kernel::probe();
    assert_eq!(
        process.pidfs_inode != 0,
        kernel.unique_inode,
        "named so that a later process with its number is not meant"
    );
    let expected = StartRequest {
        purpose: "ticket/triage".to_owned(),
        targets: vec!["https://tool.example.com/".to_owned(), "api".to_owned()],
        scopes: vec!["read".to_owned(), "write".to_owned()],
        boundary: Boundary::ToolCall.into(),
        budget: Some(Budget { max_tokens: 4, max_calls: 3 }),
        ttl_seconds: 3600,
        heartbeat_seconds: 30,
        scope: Scope::Tree.into(),
        process: Some(process),
        spiffe_id: "spiffe://example.org/agent".to_owned(),
        user: Some(start_request::User::LocalUser(true)),
        resumes: "node.old".to_owned(),
        ..StartRequest::default()
    };
    assert_eq!(started[0], expected);
    assert_eq!(started[1].user, Some(start_request::User::SubjectToken("the.users.token".to_owned())));
    assert_eq!(started[1].scope(), Scope::Process);
}

#[test]
fn a_session_for_a_command_that_is_gone_at_once_is_refused_with_what_to_say_instead() {
    let fake = FakeSessions::default();
    let served = fake.served();
    for scope in ["", " --scope process", " --scope tree"] {
        let done = tether(&format!("{START}{scope}"), &served);
        assert_eq!(done.exit, Exit::Usage);
        for advice in ["--pid N ", "--pid $$ --scope tree", "--scope cgroup", "tether run"] {
            assert!(done.chatter.contains(advice), "{}", done.chatter);
        }
    }
    for wrong in ["--ttl 500ms", "--ttl 1x", "--heartbeat 1500ms", "--pid 0"] {
        assert_eq!(tether(&format!("{START} --scope cgroup {wrong}"), &served).exit, Exit::Usage, "{wrong}");
    }
    assert_eq!(tether(&format!("{START} --pid 2147483647"), &served).exit, Exit::Failure, "there is no such process");
    assert_eq!(fake.asked(), [""; 0]);
}

#[test]
fn a_session_that_waits_for_an_approval_has_its_exit_code_and_says_what_to_do() {
    let fake = FakeSessions { states: vec![session(State::PendingApproval)], ..FakeSessions::default() };
    let done = tether(&format!("{START} --scope cgroup"), &fake.served());
    assert_eq!((done.exit, done.data), (Exit::Waiting, format!("{}\n", id())));
    assert!(done.chatter.contains("\n  tether approval approve 00ff00ff00ff00ff\n"), "{}", done.chatter);
}

#[test]
fn start_waits_for_the_word_of_an_approver_when_told_to() {
    let denied = Session { end_reason: "policy_denied".to_owned(), ..session(State::Ended) };
    let table = [
        (session(State::Active), Exit::Ok, "tether approval approve"),
        (denied, Exit::Denied, "said no"),
        (session(State::Ended), Exit::Invalid, "completed"),
        (session(State::PendingApproval), Exit::Unreachable, "stopping"),
    ];
    for (last, exit, said) in table {
        let states = vec![session(State::PendingApproval), session(State::PendingApproval), last];
        let fake = FakeSessions { states, ..FakeSessions::default() };
        let done = tether(&format!("{START} --scope cgroup --wait"), &fake.served());
        assert_eq!((done.exit, done.chatter.contains(said)), (exit, true), "{}", done.chatter);
        assert_eq!(fake.asked(), ["start".to_owned(), format!("watch {}", id())]);
    }
}

#[test]
fn a_session_is_named_whole_or_by_its_first_digits_or_by_the_environment() {
    let fake = FakeSessions::default();
    let served = fake.served();
    let socket = format!("--socket {}", served.path().display());
    let whole = id();
    let show = |id: &str, env: Option<&str>| {
        let env: Vec<(&str, &str)> = env.map(|id| ("TETHER_SESSION", id)).into_iter().collect();
        tether_with(&format!("session show {id} {socket}"), &env, "")
    };
    let table = [
        (whole.as_str(), None, vec![format!("get {whole}")]),
        ("9f8e7d6", None, vec!["list true".to_owned(), format!("get {whole}")]),
        ("9F8E7D6", None, vec!["list true".to_owned(), format!("get {whole}")]),
        ("", Some(whole.as_str()), vec![format!("get {whole}")]),
        ("9f8e7d6", Some("other.session"), vec!["list true".to_owned(), format!("get {whole}")]),
        ("", None, vec!["get ".to_owned()]),
        ("", Some(""), vec!["get ".to_owned()]),
    ];
    for (id, env, expected) in table {
        assert_eq!(show(id, env).exit, Exit::Ok, "{id}");
        assert_eq!(fake.asked(), expected);
    }
    for (wrong, exit, said) in [
        ("9f8e7", Exit::Usage, "6 or more"),
        ("9f8e7d6x", Exit::Usage, "6 or more"),
        ("9f8e7d", Exit::Failure, "2 sessions begin with `9f8e7d`"),
        ("abcdef", Exit::Failure, "no session begins with `abcdef`"),
    ] {
        let done = show(wrong, None);
        assert_eq!((done.exit, done.chatter.contains(said)), (exit, true), "{}", done.chatter);
    }
}

#[test]
fn show_and_list_tell_a_person_who_acts_for_whom_and_until_when() {
    let served = FakeSessions::default().served();
    let shown = tether(&format!("session show {}", id()), &served).data;
    for expected in [
        "state      active until 2026-11-22T12:14:00Z (14m left)\n",
        "for        alice@node\n",
        "acts       process 4711 and all it starts, uid 1000\n",
        "calls      2 of 10\n",
    ] {
        assert!(shown.contains(expected), "{shown}");
    }
    let listed = tether("session list", &served).data;
    assert!(listed.lines().nth(1).expect("a row").starts_with("9f8e7d6c5b  active  ticket/triage"), "{listed}");
    let json = tether("session list --admin --all --output json", &served);
    assert!(json.chatter.contains("only the newest 2 of 7"), "{}", json.chatter);
    let json = json.json();
    assert_eq!((&json["version"], &json["total"], &json["sessions"][0]["id"]), (&json!(1), &json!(7), &json!(id())));
}

#[test]
fn what_an_agent_wrote_cannot_pose_as_something_else() {
    let hidden = Session { purpose: "pay\u{202e}\x1b[2K".to_owned(), ..session(State::Ended) };
    let fake = FakeSessions { states: vec![hidden], ..FakeSessions::default() };
    let served = fake.served();
    let person = tether(&format!("session watch {}", id()), &served).data;
    assert!(person.ends_with("  pay\\u{202e}\\u{1b}[2K\n"), "{person}");
    let program = tether(&format!("session watch {} --output json", id()), &served).json();
    assert_eq!(program["purpose"], "pay\u{202e}\x1b[2K", "programs get what there is");
}

#[test]
fn mint_prints_the_token_alone_and_says_what_a_thief_could_do() {
    let fake = FakeSessions::default();
    let served = fake.served();
    let target = "--target https://tool.example.com/";
    let wit = tether(&format!("session mint {} {target} --scope read", id()), &served);
    assert_eq!((wit.exit, wit.data.as_str()), (Exit::Ok, "header.claims.signature\n"));
    assert!(
        wit.chatter.contains("binding level 3: held") && wit.chatter.contains("without a proof"),
        "{}",
        wit.chatter
    );
    assert_eq!(fake.asked(), [format!("mint {} https://tool.example.com/ [\"read\"]", id())]);
    let jwt = tether(&format!("session mint {} {target} --kind jwt --output json", id()), &served);
    assert!(jwt.chatter.contains("binding level 0: bearer"), "{}", jwt.chatter);
    assert!(jwt.chatter.contains("a thief can use it at `https://tool.example.com/` until"), "{}", jwt.chatter);
    let json = jwt.json();
    assert_eq!((&json["version"], &json["kind"], &json["binding"]), (&json!(1), &json!("jwt"), &json!(0)));
}

#[test]
fn end_prints_what_was_wiped_and_revoked_and_what_remains_until_when() {
    let served = FakeSessions::default().served();
    let done = tether(&format!("session end {}", id()), &served);
    for expected in [
        "ended       completed at 2026-11-22T12:00:00Z\n",
        "with it     00112233445566778899aabbccddeeff.child\n",
        "keys wiped  2\n",
        "revoked     wit jti for https://tool.example.com/\n",
        "remains     jwt jti for https://tool.example.com/; at services that do not ask, until 2026-11-22T12:05:00Z\n",
        "kept        in the audit\n",
    ] {
        assert!(done.data.contains(expected), "{}", done.data);
    }
    let json = tether(&format!("session end {} --output json", id()), &served).json();
    assert_eq!((&json["version"], &json["keys_wiped"], &json["had_ended"]), (&json!(1), &json!(2), &json!(false)));
    assert_eq!((&json["remaining"][1]["id"], &json["kept"][0]["until"]), (&Value::Null, &Value::Null));
}

#[test]
fn operators_end_suspend_and_resume_on_the_admin_socket() {
    let fake = FakeSessions::default();
    let served = fake.served();
    let whole = id();
    for (line, expected) in [
        ("session end 9f8e7d6 --admin --reason incident", format!("admin end {whole} incident")),
        ("session suspend 9f8e7d6", format!("admin suspend {whole}")),
        ("session resume 9f8e7d6", format!("admin resume {whole}")),
        ("session show 9f8e7d6 --admin", format!("admin list true {whole}")),
    ] {
        assert_eq!(tether(line, &served).exit, Exit::Ok, "{line}");
        assert_eq!(fake.asked(), ["admin list true ".to_owned(), expected], "{line}");
    }
    let nobody = tether("session suspend", &served);
    assert_eq!((nobody.exit, nobody.chatter.contains("TETHER_SESSION")), (Exit::Usage, true), "{}", nobody.chatter);
    assert_eq!(tether("session end 9f8e7d6 --reason x", &served).exit, Exit::Usage, "the agent's user gives none");
}

#[test]
fn watch_prints_one_object_a_line_until_the_session_has_ended() {
    let states = vec![session(State::PendingApproval), session(State::Active), session(State::Ended)];
    let fake = FakeSessions { states, ..FakeSessions::default() };
    let served = fake.served();
    let done = tether(&format!("session watch {} --output json", id()), &served);
    assert_eq!(done.exit, Exit::Ok, "{}", done.chatter);
    let lines: Vec<Value> = done.data.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let states: Vec<_> = lines.iter().map(|line| line["state"].as_str().expect("text")).collect();
    assert_eq!(states, ["pending_approval", "active", "ended"]);
    let text = tether(&format!("session watch {}", id()), &served).data;
    let ended = format!("2026-11-22T11:59:30Z  {}  ended: completed  ticket/triage\n", id());
    assert!(text.ends_with(&ended), "{text}");
    let all = tether("session watch", &served);
    assert_eq!(all.exit, Exit::Unreachable, "all of them go on until the agent stops");
}

#[test]
fn prove_prints_the_headers_and_says_in_which_session() {
    let fake = FakeSessions::default();
    let served = fake.served();
    let dir = tempfile::tempdir().expect("a directory");
    let body = dir.path().join("body");
    std::fs::write(&body, b"{\"amount\":1}").expect("written");
    let line = format!(
        "prove --method POST --uri https://tool.example.com/a --tool pay --arguments-file - --body-file {} \
         --effect irreversible --txn t-1 --socket {}",
        body.display(),
        served.path().display()
    );
    let session = id();
    let done = tether_with(&line, &[("TETHER_SESSION", session.as_str())], "arguments");
    assert_eq!(done.exit, Exit::Ok, "{}", done.chatter);
    let expected = json!({
        "version": 1, "headers": {"Authorization": "WPT proof"}, "expires_at": "2026-11-22T12:00:30Z",
        "session": id(), "txn": "txn",
    });
    assert_eq!(done.json(), expected);
    let sha256 = |text: &[u8]| aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text).as_ref().to_vec();
    let proved = ProveRequest {
        method: "POST".to_owned(),
        uri: "https://tool.example.com/a".to_owned(),
        body_sha256: sha256(b"{\"amount\":1}").into(),
        session: id(),
        tool: "pay".to_owned(),
        arguments_sha256: sha256(b"arguments").into(),
        effect: Effect::Irreversible.into(),
        txn: "t-1".to_owned(),
        ..ProveRequest::default()
    };
    assert_eq!(fake.proved.lock().expect("unbroken")[0], proved);
    let plain = tether("prove --method GET --uri https://tool.example.com/ --no-session", &served);
    assert_eq!(plain.json()["session"], Value::Null);
    assert!(fake.proved.lock().expect("unbroken")[1].without_session);
    let twice = "prove --method GET --uri https://tool.example.com/ --body-file - --arguments-file -";
    assert_eq!(tether(twice, &served).exit, Exit::Usage, "standard input can be read once");
}

#[test]
fn what_the_agent_refuses_becomes_the_exit_code_and_says_what_to_do() {
    let with = |code: Code, metadata: &[(&'static str, &'static str)]| {
        let mut map = MetadataMap::new();
        for (name, value) in metadata {
            map.insert(*name, MetadataValue::from_static(value));
        }
        Status::with_metadata(code, "the agent says so", map)
    };
    let (denial, approval, end) = ("tether-denial", "tether-approval", "tether-session-end");
    let table = [
        (with(Code::FailedPrecondition, &[(approval, "00ff"), (denial, "step_up")]), Exit::Waiting, "approve 00ff"),
        (with(Code::FailedPrecondition, &[(denial, "session_pending")]), Exit::Waiting, "says so"),
        (
            with(Code::FailedPrecondition, &[(end, "expired"), (denial, "session_ended")]),
            Exit::Invalid,
            "session start",
        ),
        (with(Code::PermissionDenied, &[(denial, "policy_denied")]), Exit::Denied, "says so"),
        (with(Code::PermissionDenied, &[(denial, "no_identity")]), Exit::NoIdentity, "tether explain"),
        (with(Code::PermissionDenied, &[]), Exit::NoIdentity, "says so"),
        (with(Code::InvalidArgument, &[(denial, "no_session")]), Exit::Failure, "says so"),
        (with(Code::InvalidArgument, &[(denial, "field")]), Exit::Invalid, "says so"),
        (with(Code::NotFound, &[]), Exit::Failure, "says so"),
        (with(Code::ResourceExhausted, &[]), Exit::Failure, "says so"),
        (with(Code::Unimplemented, &[]), Exit::Failure, "sessions.enabled"),
        (with(Code::Unavailable, &[]), Exit::Unreachable, "says so"),
    ];
    for (status, exit, said) in table {
        let what = format!("{status:?}");
        let done = tether("prove --method GET --uri https://tool.example.com/", &FakeSessions::refusing(status));
        assert_eq!((done.exit, done.data.as_str()), (exit, ""), "{what}");
        assert!(done.chatter.contains(said), "{}", done.chatter);
    }
}
