//! Sessions for a person: who is proven, who is not, and what their end does.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::json;
use tether::jwt::{Jws, JwtSigner};
use tether::proto::DENIAL_METADATA;
use tether::proto::session::start_request::User;
use tether::proto::session::{ListRequest, Process, ProveRequest, StartRequest, State, WatchRequest};
use tether::user::{IssuerSettings, KeySource};
use tether::x509::{KeyType, PrivateKey};
use tonic::{Code, Status};

use crate::harness::{TestAgent, next};
use crate::sessions::task;

const ISSUER: &str = "https://login.example.com";
const TOOL: &str = "https://tool.example.com/";

/// An agent that believes tokens of one issuer, and what signs them.
async fn agent_and_issuer() -> (TestAgent, JwtSigner, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let signer = JwtSigner::new(&PrivateKey::generate(KeyType::EcP256).unwrap()).unwrap();
    let mut key = signer.public_key().to_json();
    key.insert("kid".to_owned(), signer.key_id().into());
    let keys = dir.path().join("jwks.json");
    std::fs::write(&keys, json!({ "keys": [key] }).to_string()).unwrap();
    let settings = IssuerSettings {
        audience: "tether".to_owned(),
        keys: KeySource::File(keys),
        algorithms: IssuerSettings::ALGORITHMS.to_vec(),
        authorized_parties: Vec::new(),
        max_age: None,
        max_ttl: None,
        ca_file: None,
    };
    let agent = TestAgent::configured(|config| {
        config.sessions.issuers.insert(ISSUER.to_owned(), settings);
    })
    .await;
    agent.clock().advance(Duration::from_secs(2));
    (agent, signer, dir)
}

fn token(agent: &TestAgent, signer: &JwtSigner, audience: &str) -> String {
    let now = agent.time().now().unix_timestamp();
    let claims = json!({ "iss": ISSUER, "sub": "alice", "aud": audience, "iat": now, "exp": now + 120 });
    signer.sign(&claims).unwrap()
}

fn label(status: &Status) -> (Code, &str) {
    let label = status.metadata().get(DENIAL_METADATA).and_then(|value| value.to_str().ok());
    (status.code(), label.unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_for_the_subject_of_a_token_says_so_in_its_proofs_and_ends_with_the_token() {
    let (agent, signer, _dir) = agent_and_issuer().await;
    let mut sessions = agent.sessions().await;
    let user = Some(User::SubjectToken(token(&agent, &signer, "tether")));
    let session = sessions.start(StartRequest { user, ..task("t", &[TOOL]) }).await.unwrap().into_inner();
    assert_eq!((session.user_issuer.as_str(), session.user_subject.as_str()), (ISSUER, "alice"));
    assert_eq!(session.user, format!("{ISSUER}#alice"));

    let request = ProveRequest {
        session: session.id.clone(),
        method: "GET".to_owned(),
        uri: TOOL.to_owned(),
        ..ProveRequest::default()
    };
    let headers = sessions.prove(request).await.unwrap().into_inner().headers;
    let proof = headers["Authorization"].strip_prefix("WPT ").unwrap();
    let proof = Jws::parse(proof).unwrap().claims().unwrap();
    assert_eq!((&proof["sub"], &proof["act"]["sub"]), (&json!("alice"), &json!(session.spiffe_id)));

    let mut watch =
        sessions.watch(WatchRequest { session: session.id.clone(), ..Default::default() }).await.unwrap().into_inner();
    agent.clock().advance(Duration::from_secs(121));
    let ended = loop {
        let session = next(&mut watch).await.unwrap();
        if session.state() == State::Ended {
            break session;
        }
    };
    assert!(["user_session_end", "expired"].contains(&ended.end_reason.as_str()), "{}", ended.end_reason);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_for_somebody_who_is_not_proven_is_not_begun() {
    let (agent, signer, _dir) = agent_and_issuer().await;
    let mut sessions = agent.sessions().await;
    let stranger = JwtSigner::new(&PrivateKey::generate(KeyType::EcP256).unwrap()).unwrap();
    for (user, expected) in [
        (token(&agent, &signer, "mail"), "token_audience"),
        (token(&agent, &stranger, "tether"), "token_key"),
        ("alice".to_owned(), "token_malformed"),
        (String::new(), "token_malformed"),
    ] {
        let user = Some(User::SubjectToken(user));
        let status = sessions.start(StartRequest { user, ..task("t", &[TOOL]) }).await.unwrap_err();
        assert_eq!(label(&status), (Code::PermissionDenied, expected), "{status:?}");
    }
    assert_eq!(sessions.list(ListRequest::default()).await.unwrap().into_inner().sessions, []);
}

/// A process that gave itself the login uid of somebody else, as any process without one may.
struct Forger(Child);

impl Forger {
    fn start() -> Option<Self> {
        let script = "printf 4242 > /proc/self/loginuid || exit; echo ready; read line";
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let forger = Self(child);
        (line == "ready\n").then_some(forger)
    }
}

impl Drop for Forger {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_wrote_itself_a_login_uid_is_nobodys_agent() {
    // Where these tests run in a login, or the kernel has no login uids, nobody can do this.
    let own = std::fs::read_to_string("/proc/self/loginuid");
    if own.map_or(true, |own| own.trim_end() != u32::MAX.to_string()) {
        return;
    }
    let agent = TestAgent::start().await;
    let mut sessions = agent.sessions().await;
    let user = Some(User::LocalUser(true));
    let status = sessions.start(StartRequest { user: user.clone(), ..task("t", &[TOOL]) }).await.unwrap_err();
    assert_eq!(label(&status), (Code::PermissionDenied, "no_login"), "{status:?}");
    let Some(forger) = Forger::start() else { return };
    let process = Some(Process { pid: forger.0.id().cast_signed(), pidfs_inode: 0 });
    let status = sessions.start(StartRequest { user, process, ..task("t", &[TOOL]) }).await.unwrap_err();
    let (code, label) = label(&status);
    assert_eq!(code, Code::PermissionDenied, "{status:?}");
    assert!(["unproven_login", "no_login_session"].contains(&label), "{status:?}");
}
