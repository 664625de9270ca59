use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex};

use futures_util::stream::{self, BoxStream, StreamExt};
use tonic::service::Routes;
use tonic::{Request, Response, Status};

use super::*;
use crate::client::fake::Served;
use crate::proto::session::sessions_server::{Sessions, SessionsServer};

/// Sessions that answer what a test tells them to.
#[derive(Clone, Default)]
struct FakeSessions(Arc<Mutex<Script>>);

#[derive(Default)]
struct Script {
    session: VecDeque<Result<wire::Session, Status>>,
    watch: Vec<wire::Session>,
    prove: VecDeque<Result<wire::ProveResponse, Status>>,
    started: Vec<wire::StartRequest>,
    proven: Vec<wire::ProveRequest>,
    minted: Vec<wire::MintRequest>,
    /// The answer to who wants a token of the session it is in.
    no_session: Option<Status>,
    /// For whom each request was.
    named: Vec<Option<wire::OnBehalfOf>>,
}

impl FakeSessions {
    fn next(&self) -> Result<Response<wire::Session>, Status> {
        let next = self.0.lock().expect("unpoisoned").session.pop_front();
        next.unwrap_or_else(|| Err(Status::internal("nothing to say"))).map(Response::new)
    }
}

#[tonic::async_trait]
impl Sessions for FakeSessions {
    type WatchStream = BoxStream<'static, Result<wire::Session, Status>>;
    type HoldX509Stream = BoxStream<'static, Result<wire::HoldX509Response, Status>>;

    async fn start(&self, request: Request<wire::StartRequest>) -> Result<Response<wire::Session>, Status> {
        self.0.lock().expect("unpoisoned").started.push(request.into_inner());
        self.next()
    }

    async fn get(&self, request: Request<wire::GetRequest>) -> Result<Response<wire::Session>, Status> {
        self.0.lock().expect("unpoisoned").named.push(request.into_inner().on_behalf_of);
        self.next()
    }

    async fn list(&self, _: Request<wire::ListRequest>) -> Result<Response<wire::ListResponse>, Status> {
        Ok(Response::new(wire::ListResponse { sessions: vec![self.next()?.into_inner()] }))
    }

    async fn watch(&self, request: Request<wire::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let mut script = self.0.lock().expect("unpoisoned");
        script.named.push(request.into_inner().on_behalf_of);
        let states = script.watch.clone();
        Ok(Response::new(stream::iter(states.into_iter().map(Ok)).boxed()))
    }

    async fn heartbeat(&self, _: Request<wire::HeartbeatRequest>) -> Result<Response<wire::Session>, Status> {
        self.next()
    }

    async fn mint(&self, request: Request<wire::MintRequest>) -> Result<Response<wire::MintResponse>, Status> {
        let request = request.into_inner();
        let mut script = self.0.lock().expect("unpoisoned");
        script.named.push(request.on_behalf_of);
        script.minted.push(request.clone());
        if let Some(status) = script.no_session.clone().filter(|_| !request.without_session) {
            return Err(status);
        }
        let target = request.target;
        let (token, expires_at) = ("eyJ".to_owned(), "2026-11-23T12:00:00Z".to_owned());
        Ok(Response::new(wire::MintResponse {
            token,
            expires_at,
            target,
            one_use: true,
            ..wire::MintResponse::default()
        }))
    }

    async fn delegate(&self, request: Request<wire::DelegateRequest>) -> Result<Response<wire::Session>, Status> {
        self.0.lock().expect("unpoisoned").started.extend(request.into_inner().child);
        self.next()
    }

    async fn end(&self, request: Request<wire::EndRequest>) -> Result<Response<wire::DisposalReceipt>, Status> {
        let session = request.into_inner().session;
        Ok(Response::new(wire::DisposalReceipt {
            ended: vec![session.clone(), "n.2".to_owned()],
            session,
            end_reason: "completed".to_owned(),
            ended_at: "2026-11-23T12:00:00Z".to_owned(),
            keys_wiped: 2,
            revoked: vec![wire::Disposed { kind: "wit".to_owned(), id: "n.9".to_owned(), ..wire::Disposed::default() }],
            kept: vec![wire::Kept { what: "audit".to_owned(), until: String::new() }],
            ..wire::DisposalReceipt::default()
        }))
    }

    async fn hold_x509(&self, _: Request<wire::HoldX509Request>) -> Result<Response<Self::HoldX509Stream>, Status> {
        Err(Status::unimplemented("sessions alone"))
    }

    async fn sign_tls(&self, _: Request<wire::SignTlsRequest>) -> Result<Response<wire::SignTlsResponse>, Status> {
        Err(Status::unimplemented("sessions alone"))
    }

    async fn hold_wit(&self, _: Request<wire::HoldWitRequest>) -> Result<Response<wire::HoldWitResponse>, Status> {
        Err(Status::unimplemented("sessions alone"))
    }

    async fn prove(&self, request: Request<wire::ProveRequest>) -> Result<Response<wire::ProveResponse>, Status> {
        let mut script = self.0.lock().expect("unpoisoned");
        let request = request.into_inner();
        script.named.push(request.on_behalf_of);
        script.proven.push(request);
        script.prove.pop_front().expect("an answer").map(Response::new)
    }
}

fn served(fill: impl FnOnce(&mut Script)) -> (FakeSessions, Served, SessionClient) {
    let fake = FakeSessions::default();
    fill(&mut fake.0.lock().expect("unpoisoned"));
    let served = Served::routes(Routes::new(SessionsServer::new(fake.clone())));
    let client = SessionClient::new(served.uri().parse().expect("an endpoint"));
    (fake, served, client)
}

fn session(state: wire::State) -> wire::Session {
    wire::Session {
        id: "n.1".to_owned(),
        state: state.into(),
        spiffe_id: "spiffe://example.org/agent".to_owned(),
        purpose: "billing/refund".to_owned(),
        expires_at: "2026-11-23T12:00:00Z".to_owned(),
        approval: "ap-1".to_owned(),
        ..wire::Session::default()
    }
}

fn ended(reason: &str) -> wire::Session {
    let ended_at = "2026-11-23T11:00:00Z".to_owned();
    wire::Session { end_reason: reason.to_owned(), ended_at, ..session(wire::State::Ended) }
}

fn with(mut status: Status, name: &'static str, value: &str) -> Status {
    status.metadata_mut().insert(name, value.parse().expect("ascii"));
    status
}

#[tokio::test]
async fn a_session_is_asked_for_as_it_was_wished_and_nothing_is_unlimited_by_accident() {
    let (fake, _served, client) = served(|script| script.session.extend([Ok(session(wire::State::Active))]));
    let wish = NewSession {
        scopes: vec!["refund:read".to_owned()],
        budget: Budget { tokens: None, calls: NonZeroU32::new(3) },
        ttl: Some(std::time::Duration::from_millis(500)),
        boundary: Boundary::ToolCall,
        for_local_user: true,
        ..NewSession::new("billing/refund", "https://tool.example.com/")
    };
    let started = client.start(&wish).await.expect("started");
    assert_eq!((started.id.as_str(), &started.state), ("n.1", &State::Active));
    let asked = fake.0.lock().expect("unpoisoned").started.remove(0);
    assert_eq!(
        (asked.purpose.as_str(), asked.targets),
        ("billing/refund", vec!["https://tool.example.com/".to_owned()])
    );
    assert_eq!(asked.ttl_seconds, 1, "half a second is not without limit");
    assert_eq!(asked.budget, Some(wire::Budget { max_tokens: 0, max_calls: 3 }));
    assert_eq!(asked.boundary, i32::from(wire::Boundary::ToolCall));
    assert_eq!(asked.user, Some(wire::start_request::User::LocalUser(true)));
}

#[tokio::test]
async fn every_refusal_is_a_value_that_says_what_to_do() {
    type Is = fn(&SessionError) -> bool;
    let cases: Vec<(Status, Is, &str)> = vec![
        (
            with(Status::failed_precondition("refunds above 100"), "tether-approval", "ap-7"),
            |error| matches!(error, SessionError::WaitingForApproval { approval, .. } if approval == "ap-7"),
            "try again when an approver has agreed",
        ),
        (
            with(Status::failed_precondition("over"), "tether-session-end", "user_session_end"),
            |error| matches!(error, SessionError::Ended { reason, .. } if reason == "user_session_end"),
            "start a new one",
        ),
        (Status::failed_precondition("suspended"), |error| matches!(error, SessionError::NotNow(_)), "suspended"),
        (
            with(Status::permission_denied("no policy permits it"), "tether-denial", "policy_denied"),
            |error| matches!(error, SessionError::Denied { label, .. } if label == "policy_denied"),
            "policy_denied",
        ),
        (Status::not_found("n.1"), |error| matches!(error, SessionError::NotFound(_)), "start one first"),
        (Status::resource_exhausted("4096"), |error| matches!(error, SessionError::Exhausted(_)), "end what is done"),
        (
            Status::unavailable("starting"),
            |error| matches!(error, SessionError::Agent(error) if error.is_retryable()),
            "starting",
        ),
        (
            Status::unimplemented("off"),
            |error| matches!(error, SessionError::Agent(ClientError::NotOffered(_))),
            "does not offer",
        ),
    ];
    for (status, is, says) in cases {
        let shown = format!("{status:?}");
        let (_, _served, client) = served(|script| script.session.push_back(Err(status)));
        let error = client.find(None).await.expect_err(&shown);
        assert!(is(&error), "{shown}: {error:?}");
        assert!(error.to_string().contains(says), "{error}");
    }
}

#[tokio::test]
async fn a_proof_made_outside_any_session_is_not_handed_out() {
    let proof = |session: &str| wire::ProveResponse {
        headers: [
            ("Workload-Identity-Token".to_owned(), "eyJ".to_owned()),
            ("Authorization".to_owned(), "WPT x".to_owned()),
        ]
        .into(),
        expires_at: "2026-11-23T12:00:00Z".to_owned(),
        session: session.to_owned(),
        txn: "t-1".to_owned(),
    };
    let (fake, _served, client) =
        served(|script| script.prove.extend([Ok(proof("n.1")), Ok(proof("")), Ok(proof(""))]));
    let call = Call { arguments: Some(Digest::of(b"{}")), ..Call::new("POST", "https://tool.example.com/mcp") };
    let made = client.prove(None, &call).await.expect("proven");
    assert_eq!((made.session.as_deref(), made.txn.as_deref(), made.headers.len()), (Some("n.1"), Some("t-1"), 2));
    assert!(made.headers.values().all(http::HeaderValue::is_sensitive), "HTTP libraries do not log it");
    assert_eq!(fake.0.lock().expect("unpoisoned").proven[0].arguments_sha256.len(), 32);
    assert!(matches!(client.prove(None, &call).await, Err(SessionError::NotFound(_))));
    let outside = client.prove_any(&call).await.expect("that was asked for");
    assert_eq!((outside.session, outside.headers.len()), (None, 2));
}

#[tokio::test]
async fn a_client_that_acts_for_another_process_says_so_in_every_request_and_begins_and_ends_nothing_for_it() {
    let other = ActFor { pid: 4711, pidfs_inode: 815, weak: true };
    let named = Some(wire::OnBehalfOf { pid: 4711, pidfs_inode: 815, weak: true });
    let (fake, _served, client) = served(|script| {
        script.session.push_back(Ok(session(wire::State::Active)));
        script.watch.push(session(wire::State::Active));
        script.prove.push_back(Err(Status::not_found("gone")));
    });
    let delegate = client.on_behalf_of(other);
    delegate.find(None).await.expect("found");
    delegate.until_active("n.1").await.expect("active");
    delegate.bearer(Within::Session(None), "https://a/").await.expect("minted");
    let call = Call {
        scheme: ProofScheme::Dpop { access_token: None, nonce: Some("n".to_owned()) },
        ..Call::new("GET", "https://a/")
    };
    assert!(matches!(delegate.prove_any(&call).await, Err(SessionError::NotFound(_))));
    {
        let script = fake.0.lock().expect("unpoisoned");
        assert_eq!(script.named, [named, named, named, named]);
        let proven = &script.proven[0];
        assert_eq!((proven.scheme(), proven.nonce.as_str()), (wire::prove_request::Scheme::Dpop, "n"));
    }

    let wish = NewSession::new("billing/refund", "https://a/");
    let refused = [
        delegate.start(&wish).await.err(),
        delegate.delegate(None, &wish).await.err(),
        delegate.list(true).await.err(),
        delegate.heartbeat(None).await.err(),
        delegate.end(None).await.err(),
    ];
    for error in refused {
        assert!(matches!(error, Some(SessionError::Agent(ClientError::Invalid(_)))), "{error:?}");
    }
    assert!(fake.0.lock().expect("unpoisoned").started.is_empty(), "and the agent is not asked");
}

#[tokio::test]
async fn a_bearer_token_is_of_the_session_if_there_is_one_where_either_will_do() {
    let in_none = || with(Status::invalid_argument("in no session"), "tether-denial", "no_session");
    // Which session was asked for, and whether none would do.
    type Asked = (&'static str, bool);
    let cases: [(Within<'_>, bool, &[Asked]); 5] = [
        (Within::Session(Some("n.1")), true, &[("n.1", false)]),
        (Within::NoSession, true, &[("", true)]),
        (Within::SessionIfAny, true, &[("", false)]),
        (Within::SessionIfAny, false, &[("", false), ("", true)]),
        (Within::Session(None), false, &[("", false)]),
    ];
    for (within, in_session, asked) in cases {
        let (fake, _served, client) = served(|script| script.no_session = (!in_session).then(in_none));
        let minted = client.bearer(within, "https://a/").await;
        assert_eq!(minted.is_ok(), in_session || within == Within::SessionIfAny, "{within:?}: {minted:?}");
        let script = fake.0.lock().expect("unpoisoned");
        let seen: Vec<_> = script.minted.iter().map(|mint| (mint.session.as_str(), mint.without_session)).collect();
        assert_eq!(seen, asked, "{within:?}");
        assert!(script.minted.iter().all(|mint| mint.kind() == wire::mint_request::Kind::Jwt));
    }
}

#[tokio::test]
async fn waiting_ends_with_the_session_in_use_or_over() {
    let wait = async |states: &[wire::Session]| {
        let (_, _served, client) = served(|script| script.watch = states.to_vec());
        client.until_active("n.1").await
    };
    let pending = session(wire::State::PendingApproval);
    let active = wait(&[pending.clone(), session(wire::State::Active)]).await.expect("approved");
    assert_eq!(active.state, State::Active);
    let refused = wait(&[pending, ended("policy_denied")]).await.expect_err("denied");
    assert!(matches!(refused, SessionError::Ended { reason, .. } if reason == "policy_denied"));
}

#[tokio::test]
async fn a_watch_gives_the_end_and_then_nothing() {
    let (_, _served, client) =
        served(|script| script.watch = vec![session(wire::State::PendingApproval), ended("expired")]);
    let mut watch = client.watch(Some("n.1"));
    let first = watch.next().await.expect("a state").expect("not over");
    assert_eq!(first.state, State::PendingApproval { approval: "ap-1".to_owned() });
    let last = watch.next().await.expect("a state").expect("the end is given");
    assert_eq!(last.state, State::Ended { reason: "expired".to_owned() });
    assert!(last.ended_at.is_some());
    assert!(watch.next().await.expect("no failure").is_none());
}

#[tokio::test]
async fn a_receipt_names_what_is_gone_and_what_is_kept() {
    let (_, _served, client) = served(|_| ());
    let receipt = client.end(Some("n.1")).await.expect("ended");
    assert_eq!((receipt.ended.len(), receipt.keys_wiped, receipt.had_ended), (2, 2, false));
    assert_eq!(receipt.revoked[0].id.as_deref(), Some("n.9"));
    assert_eq!(receipt.kept, [Kept { what: "audit".to_owned(), until: None }]);
    let token = client.mint(None, &NewToken { target: "https://a/".to_owned(), ..NewToken::default() }).await;
    let token = token.expect("minted");
    assert!(token.one_use && !format!("{token:?}").contains("eyJ"), "a token is not printed");
}

#[tokio::test]
async fn an_answer_with_anything_wrong_in_it_is_dropped_whole() {
    let active = || session(wire::State::Active);
    let damaged = [
        ("no id", wire::Session { id: String::new(), ..active() }),
        ("no state", session(wire::State::Unspecified)),
        ("a state from the future", wire::Session { state: 99, ..active() }),
        ("no SPIFFE ID", wire::Session { spiffe_id: String::new(), ..active() }),
        ("no end", wire::Session { expires_at: String::new(), ..active() }),
        ("a time that is none", wire::Session { started_at: "soon".to_owned(), ..active() }),
    ];
    for (what, answer) in damaged {
        let (_, _served, client) = served(|script| script.session.push_back(Ok(answer)));
        let error = client.find(None).await.expect_err(what);
        assert!(matches!(error, SessionError::Agent(ClientError::Malformed(_))), "{what}: {error}");
    }
}
