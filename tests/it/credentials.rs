//! The ledger as verifiers and operators meet it: what ended is refused, what is for one use counts once, and whoever
//! answers an incident finds who holds what.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use tether::audit::Event;
use tether::config::Config;
use tether::proto::admin::{
    CredentialFilter, CredentialView, ListCredentialsRequest, RevokeAuthorityRequest, RevokeCredentialsRequest,
    RevokeCredentialsResponse, ShowAuthoritiesRequest, ShowCredentialRequest,
};
use tether::proto::session::HoldWitRequest;
use tether::proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use tether::proto::workload::{JwtsvidRequest, ValidateJwtsvidRequest, ValidateJwtsvidResponse, X509svidRequest};
use tonic::{Code, Status};

use crate::harness::{Header, TestAgent, Workload, channel, event, next, uid};
use crate::program::{NOBODY, Program, is_root};

const DOMAIN: &str = "spiffe://dev.tether.internal";
const AUDIENCE: &str = "https://pay.example.com";
/// Names the workload socket for [`holder`].
const HOLDER: &str = "TETHER_TEST_HOLDER";

/// An entry for this user.
fn entry(id: &str, more: &str) -> String {
    let uid = uid();
    format!(
        "[[entry]]\nid = \"{id}\"\nspiffe_id = \"{DOMAIN}/{id}\"\nmatch = [\"unix:uid:{uid}\"]\nowner = \"team-{id}\"\n\
         audiences = [\"*\"]\n{more}\n"
    )
}

async fn agent_with(entries: &str) -> TestAgent {
    let agent = TestAgent::without_entries().await;
    agent.write_entries("test.toml", entries).await;
    agent
}

async fn token_of(client: &mut Workload, id: &str) -> String {
    let request = JwtsvidRequest { audience: vec![AUDIENCE.to_owned()], spiffe_id: format!("{DOMAIN}/{id}") };
    client.fetch_jwtsvid(request).await.expect("a token").into_inner().svids.remove(0).svid
}

async fn validate(client: &mut Workload, token: &str) -> Result<ValidateJwtsvidResponse, Status> {
    let request = ValidateJwtsvidRequest { audience: AUDIENCE.to_owned(), svid: token.to_owned() };
    client.validate_jwtsvid(request).await.map(tonic::Response::into_inner)
}

/// The reason of the next token that is refused.
async fn refused(agent: &TestAgent, client: &mut Workload, token: &str) -> &'static str {
    let mut events = agent.audit();
    let status = validate(client, token).await.expect_err("it does not stand");
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    match event(&mut events, |event| matches!(event, Event::TokenRefused { .. })).await {
        Event::TokenRefused { reason, .. } => reason,
        other => panic!("{other:?}"),
    }
}

async fn list(agent: &TestAgent, filter: CredentialFilter, all: bool) -> Vec<CredentialView> {
    let request = ListCredentialsRequest { filter: Some(filter), all, limit: 0 };
    agent.credentials().await.list(request).await.expect("listed").into_inner().credentials
}

async fn revoke(agent: &TestAgent, filter: CredentialFilter) -> Result<RevokeCredentialsResponse, Status> {
    let request = RevokeCredentialsRequest { filter: Some(filter), reason: "leaked".to_owned(), dry_run: false };
    agent.credentials().await.revoke(request).await.map(tonic::Response::into_inner)
}

fn of_entry(id: &str) -> CredentialFilter {
    CredentialFilter { entry: id.to_owned(), ..CredentialFilter::default() }
}

/// Another process that holds a token.
struct Holder {
    child: Child,
    said: BufReader<ChildStdout>,
    token: String,
}

impl Holder {
    fn start(agent: &TestAgent) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "credentials::holder", "--ignored", "--nocapture"])
            .env(HOLDER, agent.socket())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(child.stdout.take().expect("piped"));
        let token = line_after(&mut said, "token ");
        Self { child, said, token }
    }

    /// Has it do something, and waits until it says that it has.
    fn has(&mut self, act: &str) {
        use std::io::Write;
        self.child.stdin.as_mut().expect("piped").write_all(format!("{act}\n").as_bytes()).unwrap();
        line_after(&mut self.said, act);
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn line_after(said: &mut impl BufRead, prefix: &str) -> String {
    loop {
        let mut line = String::new();
        assert!(said.read_line(&mut line).unwrap() > 0, "it ended without `{prefix}`");
        if let Some((_, rest)) = line.split_once(prefix) {
            return rest.trim().to_owned();
        }
    }
}

/// Not a test: the program of [`Holder`]. It fetches a token, and changes when it is told to.
#[test]
#[ignore = "the program of a process that other tests start"]
fn holder() {
    let Some(socket) = std::env::var_os(HOLDER) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let token = runtime.block_on(async {
        let channel = channel(socket.as_ref()).await;
        let mut client = SpiffeWorkloadApiClient::with_interceptor(channel, Header);
        token_of(&mut client, "held").await
    });
    println!("token {token}");
    let mut act = String::new();
    std::io::stdin().read_line(&mut act).unwrap();
    if act.trim() == "changed user" {
        nix::unistd::setuid(NOBODY.into()).unwrap();
        println!("{act}");
        std::io::stdin().read_line(&mut act).unwrap();
    }
    let error = Command::new("/bin/sh").args(["-c", "echo executed; exec sleep 600"]).exec();
    panic!("{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_use_token_is_accepted_once_and_any_other_as_often_as_it_is_shown() {
    let agent = agent_with(&(entry("once", "single_use = true") + &entry("often", ""))).await;
    let mut client = agent.workload().await;
    let mut events = agent.audit();
    let (once, often) = (token_of(&mut client, "once").await, token_of(&mut client, "often").await);
    event(&mut events, |event| matches!(event, Event::SvidIssued { kind: "jwt", binding: 0, .. })).await;
    for _ in 0..3 {
        validate(&mut client, &often).await.expect("valid");
    }
    let wrong = ValidateJwtsvidRequest { audience: "https://else".to_owned(), svid: once.clone() };
    client.validate_jwtsvid(wrong).await.expect_err("for another audience");
    assert_eq!(validate(&mut client, &once).await.expect("the first use").spiffe_id, format!("{DOMAIN}/once"));
    assert_eq!(refused(&agent, &mut client, &once).await, "used");

    let [shown] = list(&agent, of_entry("once"), true).await.try_into().expect("one");
    assert_eq!((shown.standing.as_str(), shown.single_use), ("used", true));
    assert!(!shown.last_asked.is_empty());
    assert!(list(&agent, of_entry("once"), false).await.is_empty(), "it no longer stands");
    assert_eq!(list(&agent, of_entry("often"), false).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_verifiers_that_ask_at_once_cannot_both_be_the_first() {
    let agent = agent_with(&entry("once", "single_use = true")).await;
    let mut client = agent.workload().await;
    for _ in 0..20 {
        let token = token_of(&mut client, "once").await;
        let verifiers = (0..8).map(|_| {
            let (mut client, token) = (client.clone(), token.clone());
            tokio::spawn(async move { validate(&mut client, &token).await.is_ok() })
        });
        let mut accepted = 0;
        for verifier in verifiers.collect::<Vec<_>>() {
            accepted += usize::from(verifier.await.unwrap());
        }
        assert_eq!(accepted, 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_refused_once_its_process_is_gone_or_runs_another_program() {
    let agent = agent_with(&entry("held", "")).await;
    let mut verifier = agent.workload().await;
    let gone = Holder::start(&agent);
    let mut executed = Holder::start(&agent);
    let (of_gone, of_executed) = (gone.token.clone(), executed.token.clone());
    validate(&mut verifier, &of_gone).await.expect("its process lives");
    validate(&mut verifier, &of_executed).await.expect("its process lives");
    drop(gone);
    assert_eq!(refused(&agent, &mut verifier, &of_gone).await, "process_exited");
    executed.has("executed");
    assert_eq!(refused(&agent, &mut verifier, &of_executed).await, "executable_changed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_bound_to_more_than_its_process_outlives_it() {
    // The unit of a short command is that of its shell, and here of this test; without one it is the node.
    for bind in ["unit", "node"] {
        let agent = agent_with(&entry("held", &format!("bind = \"{bind}\""))).await;
        let mut verifier = agent.workload().await;
        let holder = Holder::start(&agent);
        let token = holder.token.clone();
        drop(holder);
        validate(&mut verifier, &token).await.expect(bind);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_refused_once_its_process_has_become_another_user() {
    if !is_root() {
        eprintln!("skipped: becoming another user takes root");
        return;
    }
    for bind in ["process", "node"] {
        let agent = agent_with(&entry("held", &format!("bind = \"{bind}\""))).await;
        let mut verifier = agent.workload().await;
        let mut holder = Holder::start(&agent);
        validate(&mut verifier, &holder.token).await.expect("it is what it was");
        holder.has("changed user");
        assert_eq!(refused(&agent, &mut verifier, &holder.token).await, "no_longer_matches", "{bind}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_the_ledger_does_not_have_does_not_stand() {
    let mut agent = agent_with(&entry("lost", "bind = \"node\"")).await;
    let token = token_of(&mut agent.workload().await, "lost").await;
    agent.restart().await;
    validate(&mut agent.workload().await, &token).await.expect("what stood before a restart stands");
    agent.stop().await;
    std::fs::remove_dir_all(agent.config().state_dir.join("ledger")).unwrap();
    agent.restart().await;
    let mut client = agent.workload().await;
    assert_eq!(refused(&agent, &mut client, &token).await, "unknown");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_ends_what_was_issued_and_whoever_still_matches_is_issued_anew() {
    let agent = agent_with(&(entry("a", "") + &entry("b", ""))).await;
    let mut client = agent.workload().await;
    let (of_a, of_b) = (token_of(&mut client, "a").await, token_of(&mut client, "b").await);
    let mut stream = client.fetch_x509svid(X509svidRequest {}).await.unwrap().into_inner();
    let before = next(&mut stream).await.unwrap();

    let dry = RevokeCredentialsRequest { filter: Some(of_entry("a")), dry_run: true, ..Default::default() };
    let dry = agent.credentials().await.revoke(dry).await.unwrap().into_inner();
    assert_eq!((dry.total, dry.already_ended, dry.revoked[0].standing.as_str()), (2, 0, "stands"));
    validate(&mut client, &of_a).await.expect("nothing has happened");

    let mut events = agent.audit();
    let done = revoke(&agent, of_entry("a")).await.unwrap();
    assert_eq!((done.total, done.already_ended), (2, 0), "the certificate and the token");
    for view in &done.revoked {
        assert_eq!((view.standing.as_str(), view.reason.as_str()), ("ended", "operator"), "{view:?}");
    }
    match event(&mut events, |event| matches!(event, Event::Admin { .. })).await {
        Event::Admin { caller, action, subject } => {
            assert_eq!((caller.uid, action), (uid(), "credential.revoke"));
            assert_eq!(subject, "entry=\"a\": leaked");
        }
        other => panic!("{other:?}"),
    }
    event(&mut events, |event| matches!(event, Event::CredentialsEnded { reason: "operator", count: 2, .. })).await;

    assert_eq!(refused(&agent, &mut client, &of_a).await, "operator");
    validate(&mut client, &of_b).await.expect("another entry's");
    assert_eq!(next(&mut stream).await.expect_err("its holder is told").code(), Code::PermissionDenied);
    let mut stream = client.fetch_x509svid(X509svidRequest {}).await.unwrap().into_inner();
    let after = next(&mut stream).await.expect("it still matches");
    assert_ne!(after.svids[0].x509_svid, before.svids[0].x509_svid);
    assert_eq!(after.svids[1].x509_svid, before.svids[1].x509_svid, "nobody revoked that");

    let again = revoke(&agent, CredentialFilter { kind: "jwt".to_owned(), ..of_entry("a") }).await.unwrap();
    assert_eq!((again.total, again.already_ended), (0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_are_found_by_every_field_and_the_answer_says_when_there_are_more() {
    let agent = agent_with(&(entry("a", "") + &entry("b", "federates_with = [\"partner.example\"]"))).await;
    let mut client = agent.workload().await;
    for id in ["a", "b", "b"] {
        token_of(&mut client, id).await;
        agent.clock().advance(Duration::from_secs(1));
    }
    let mut stream = client.fetch_x509svid(X509svidRequest {}).await.unwrap().into_inner();
    next(&mut stream).await.unwrap();

    let everything = list(&agent, CredentialFilter::default(), false).await;
    assert_eq!(everything.len(), 5);
    let times: Vec<_> = everything.iter().map(|view| view.issued_at.clone()).collect();
    assert!(times.is_sorted_by(|a, b| a >= b), "the newest first: {times:?}");
    let certificate =
        everything.iter().find(|view| (view.kind.as_str(), view.entry.as_str()) == ("x509", "b")).unwrap();
    let token = everything.iter().find(|view| (view.kind.as_str(), view.entry.as_str()) == ("jwt", "a")).unwrap();
    let random = token.id.split_once('.').expect("the node in front").1;
    let pid = std::process::id().cast_signed();

    let none = CredentialFilter::default;
    let upper: Vec<char> = certificate.id.to_uppercase().chars().collect();
    let colons = upper.chunks(2).map(|pair| pair.iter().collect()).collect::<Vec<String>>().join(":");
    let cases = [
        (CredentialFilter { id: certificate.id.clone(), ..none() }, 1),
        (CredentialFilter { id: token.id.clone(), ..none() }, 1),
        (CredentialFilter { id: random[..8].to_owned(), ..none() }, 1),
        (CredentialFilter { serial: colons, ..none() }, 1),
        (CredentialFilter { serial: random.to_owned(), ..none() }, 0),
        (CredentialFilter { jti: random.to_owned(), ..none() }, 1),
        (CredentialFilter { jti: certificate.id.clone(), ..none() }, 0),
        (CredentialFilter { spiffe_id: format!("{DOMAIN}/b"), ..none() }, 3),
        (CredentialFilter { spiffe_id: format!("{DOMAIN}/*"), ..none() }, 5),
        (CredentialFilter { pid, ..none() }, 5),
        (CredentialFilter { pid: 1, ..none() }, 0),
        (CredentialFilter { owner: "team-a".to_owned(), ..none() }, 2),
        (CredentialFilter { kind: "jwt".to_owned(), ..of_entry("b") }, 2),
    ];
    for (filter, expected) in cases {
        assert_eq!(list(&agent, filter.clone(), true).await.len(), expected, "{filter:?}");
    }
    let newest = ListCredentialsRequest { limit: 2, ..Default::default() };
    let newest = agent.credentials().await.list(newest).await.unwrap().into_inner();
    assert_eq!((newest.total, newest.credentials.as_slice()), (5, &everything[..2]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credential_is_shown_with_what_its_theft_is_worth() {
    let agent =
        agent_with(&entry("b", "federates_with = [\"partner.example\"]\nbind = \"node\"\nexportable = true")).await;
    let mut client = agent.workload().await;
    token_of(&mut client, "b").await;
    let mut stream = client.fetch_x509svid(X509svidRequest {}).await.unwrap().into_inner();
    next(&mut stream).await.unwrap();
    for listed in list(&agent, CredentialFilter::default(), false).await {
        let shown = agent.credentials().await.show(ShowCredentialRequest { id: listed.id.clone() }).await.unwrap();
        let shown = shown.into_inner();
        assert_eq!(shown, listed);
        let radius = shown.blast_radius.expect("said");
        assert_eq!(radius.trusted_by, ["dev.tether.internal"]);
        assert_eq!(radius.may_be_trusted_by, ["partner.example"]);
        let (level, audiences, custody): (_, &[&str], _) = match shown.kind.as_str() {
            "jwt" => (0, &[AUDIENCE], "bearer"),
            _ => (1, &[], "workload"),
        };
        assert_eq!((shown.binding.expect("said").level, shown.custody.as_str()), (level, custody));
        assert_eq!(radius.audiences, audiences);
        assert_eq!((shown.owner.as_str(), shown.bind.as_str(), shown.exportable), ("team-b", "node", true));
    }

    let slots = agent.authorities().await.show(ShowAuthoritiesRequest {}).await.unwrap().into_inner().authorities;
    let key = slots.into_iter().find(|slot| slot.kind == "jwt" && slot.state == "active").unwrap();
    agent.authorities().await.revoke(RevokeAuthorityRequest { id: key.id.clone() }).await.unwrap();
    let of_key = list(&agent, CredentialFilter { kind: "jwt".to_owned(), ..of_entry("b") }, true).await;
    assert_eq!(of_key[0].authority, key.id);
    assert!(of_key[0].blast_radius.as_ref().unwrap().trusted_by.is_empty(), "no bundle vouches for it any more");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credential_whose_key_tether_holds_is_shown_as_one() {
    let agent = agent_with(&entry("held", "")).await;
    let held = agent.sessions().await.hold_wit(HoldWitRequest::default()).await.unwrap().into_inner();
    let [wit] = list(&agent, CredentialFilter::default(), false).await.try_into().expect("one");
    assert_eq!((wit.kind.as_str(), wit.custody.as_str(), wit.spiffe_id.as_str()), ("wit", "tether", &*held.spiffe_id));
    assert_eq!(wit.binding.expect("said").level, held.binding);
    assert!(wit.blast_radius.expect("said").trusted_by.is_empty(), "its keys are in no bundle: [wit] is off");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_or_empty_choice_revokes_nothing() {
    let agent = agent_with(&entry("a", "")).await;
    token_of(&mut agent.workload().await, "a").await;
    let none = CredentialFilter::default;
    let cases = [
        (none(), Code::InvalidArgument),
        (CredentialFilter { id: "abc".to_owned(), ..none() }, Code::InvalidArgument),
        (CredentialFilter { id: "not hexadecimal".to_owned(), ..none() }, Code::InvalidArgument),
        (CredentialFilter { spiffe_id: "*".to_owned(), ..none() }, Code::InvalidArgument),
        (CredentialFilter { kind: "pgp".to_owned(), ..none() }, Code::InvalidArgument),
        (CredentialFilter { id: "0".repeat(32), ..none() }, Code::NotFound),
    ];
    for (filter, code) in cases {
        assert_eq!(revoke(&agent, filter.clone()).await.expect_err("refused").code(), code, "{filter:?}");
    }
    for reason in ["a\nb".to_owned(), "x".repeat(257)] {
        let request = RevokeCredentialsRequest { filter: Some(of_entry("a")), reason, dry_run: false };
        let refused = agent.credentials().await.revoke(request).await.expect_err("not one line");
        assert_eq!(refused.code(), Code::InvalidArgument);
    }
    let missing = agent.credentials().await.show(ShowCredentialRequest { id: "0".repeat(32) }).await;
    assert_eq!(missing.expect_err("none").code(), Code::NotFound);
    assert_eq!(list(&agent, none(), false).await.len(), 1, "it stands");
    assert_eq!(revoke(&agent, of_entry("else")).await.unwrap(), RevokeCredentialsResponse::default());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_viewer_may_look_at_the_ledger_and_only_an_operator_may_revoke() {
    if !is_root() {
        eprintln!("skipped: acting as another user takes root");
        return;
    }
    let viewers = |config: &mut Config| config.admin.viewers = vec![NOBODY.to_string()];
    let agent = TestAgent::configured(viewers).await;
    let dir = tempfile::Builder::new().prefix("tether-it-").tempdir().unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    for path in [dir.path(), agent.dir(), &agent.dir().join("agent")] {
        std::fs::set_permissions(path, std::fs::Permissions::clone(&open)).unwrap();
    }
    let program = Program::copied_to(dir.path());
    let socket = agent.admin_socket().display().to_string();
    for (line, expected) in [("credential list", 0), ("credential revoke --kind jwt", 6)] {
        let arguments: Vec<&str> = line.split(' ').chain(["--socket", &socket]).collect();
        let output = program.as_user(NOBODY, &arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(expected), "{line}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cap_of_an_audience_shortens_tokens_for_it_whatever_their_entry_says() {
    let agent = TestAgent::configured(|config| {
        config.svid.jwt_ttl_caps =
            [(AUDIENCE.to_owned(), Duration::from_secs(30)), ("*".to_owned(), Duration::from_secs(90))]
                .into_iter()
                .collect();
    })
    .await;
    agent.write_entries("test.toml", &entry("long", "jwt_ttl = \"20m\"")).await;
    let mut client = agent.workload().await;
    for (audience, seconds) in [(&[AUDIENCE][..], 30), (&["https://else"], 90), (&["https://else", AUDIENCE], 30)] {
        let audience = audience.iter().map(|text| (*text).to_owned()).collect();
        let request = JwtsvidRequest { audience, spiffe_id: format!("{DOMAIN}/long") };
        let token = client.fetch_jwtsvid(request).await.unwrap().into_inner().svids.remove(0).svid;
        let payload = base64::Engine::decode(
            &base64::engine::general_purpose::URL_SAFE_NO_PAD,
            token.split('.').nth(1).expect("three parts"),
        );
        let claims: serde_json::Value = serde_json::from_slice(&payload.unwrap()).unwrap();
        let lifetime = claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap();
        assert_eq!(lifetime, seconds, "{claims}");
    }
}
