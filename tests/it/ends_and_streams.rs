//! What ends credentials at awkward moments, and what open streams make of it.

use std::sync::Mutex;
use std::sync::mpsc::channel;
use std::time::Duration;

use tether::agent::{self, Deps};
use tether::audit::{Audit, Event};
use tether::base::entropy::Entropy;
use tether::config::ByteSize;
use tether::proto::admin::{CredentialFilter, ListCredentialsRequest, RevokeCredentialsRequest};
use tether::proto::session::HoldX509Request;
use tether::proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use tether::proto::workload::{JwtsvidRequest, X509svidRequest};
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tonic::Code;
use tonic::transport::{Endpoint, Uri};

use crate::another::Another;
use crate::harness::{Header, TestAgent, event, next, uid, within};
use crate::raw::get;

/// An entry for processes of a user.
fn entry(id: &str, uid: u32) -> String {
    format!(
        "[[entry]]\nid = \"{id}\"\nspiffe_id = \"spiffe://dev.tether.internal/{id}\"\nmatch = [\"unix:uid:{uid}\"]\n\
         owner = \"team\"\naudiences = [\"*\"]\nmay_act_for = [\"spiffe://dev.tether.internal/*\"]\n"
    )
}

/// Writes an entry file and waits until the last entry in it, `id`, is in force.
async fn write(agent: &TestAgent, name: &str, toml: &str, id: &str) {
    agent.write_entries(name, toml).await;
    // What was waited for may have been another look at the directory.
    let in_force = async {
        while agent.state().registry().index().entry(id).is_none() {
            tokio::task::yield_now().await;
        }
    };
    within(in_force).await;
}

/// Has this process issued a token for each of its identities.
async fn issue(agent: &TestAgent) {
    let request = JwtsvidRequest { audience: vec!["demo".to_owned()], spiffe_id: String::new() };
    agent.workload().await.fetch_jwtsvid(request).await.expect("tokens");
}

/// The entry and the reason of each credential, in order of the entries.
async fn ended(agent: &TestAgent) -> Vec<(String, String)> {
    let all = ListCredentialsRequest { all: true, ..ListCredentialsRequest::default() };
    let list = agent.credentials().await.list(all).await.unwrap().into_inner().credentials;
    let mut ended: Vec<_> = list.into_iter().map(|credential| (credential.entry, credential.reason)).collect();
    ended.sort();
    ended
}

fn reasons<const N: usize>(expected: [(&str, &str); N]) -> Vec<(String, String)> {
    expected.map(|(entry, reason)| (entry.to_owned(), reason.to_owned())).to_vec()
}

async fn revoke(agent: &TestAgent, filter: CredentialFilter) {
    let request = RevokeCredentialsRequest { filter: Some(filter), reason: "leaked".to_owned(), dry_run: false };
    agent.credentials().await.revoke(request).await.expect("revoked");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_entries_no_longer_give_after_an_edit_while_the_agent_was_down_has_ended_before_the_first_answer() {
    let mut agent = TestAgent::without_entries().await;
    write(&agent, "test.toml", &(entry("kept", uid()) + &entry("lost", uid())), "lost").await;
    issue(&agent).await;
    agent.stop().await;
    let narrowed = entry("kept", uid()) + &entry("lost", uid() + 1);
    std::fs::write(agent.config().entries_dir.join("test.toml"), narrowed).unwrap();
    agent.restart().await;
    assert_eq!(ended(&agent).await, reasons([("kept", ""), ("lost", "no_longer_matches")]));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edit_after_everything_was_judged_at_the_start_and_before_anybody_watches_is_not_missed() {
    let mut agent = TestAgent::without_entries().await;
    write(&agent, "test.toml", &entry("lost", uid()), "lost").await;
    issue(&agent).await;
    agent.stop().await;
    let audit = Audit::default();
    let mut events = audit.subscribe();
    let deps = Deps { clock: agent.time(), audit, ..Deps::default() };
    let bound = agent::build(agent.config().clone(), deps).await.unwrap();
    std::fs::write(agent.config().entries_dir.join("test.toml"), entry("lost", uid() + 1)).unwrap();
    bound.state.registry().reload().await;
    let (stop, stopped) = oneshot::channel::<()>();
    let running = tokio::spawn(bound.run(async move { drop(stopped.await) }));
    let seen = event(&mut events, |event| matches!(event, Event::CredentialsEnded { .. })).await;
    let Event::CredentialsEnded { reason, count, .. } = seen else { panic!("{seen:?}") };
    assert_eq!((reason, count), ("no_longer_matches", 1));
    drop(stop);
    within(running).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn each_of_many_entries_that_end_at_once_is_recorded_with_what_it_took_along() {
    let agent = TestAgent::without_entries().await;
    write(&agent, "test.toml", &(entry("a", uid()) + &entry("b", uid())), "b").await;
    issue(&agent).await;
    issue(&agent).await;
    let mut events = agent.audit();
    agent.remove_entries("test.toml").await;
    for expected in ["entry a", "entry b"] {
        let seen = event(&mut events, |event| matches!(event, Event::CredentialsEnded { .. })).await;
        let Event::CredentialsEnded { what, reason, count } = seen else { panic!("{seen:?}") };
        assert_eq!((what.as_str(), reason, count), (expected, "entry_gone", 2));
    }
}

/// A client that receives less than a message before it asks for one: meanwhile its stream sees nothing of what happens,
/// and then all of it in the same moment.
async fn sluggish(agent: &TestAgent) -> crate::harness::Workload {
    let socket = agent.socket().to_owned();
    let connect = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(hyper_util::rt::TokioIo::new) }
    });
    let endpoint = Endpoint::from_static("http://localhost").initial_stream_window_size(64);
    SpiffeWorkloadApiClient::with_interceptor(endpoint.connect_with_connector(connect).await.unwrap(), Header)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_operator_revokes_is_not_replaced_because_entries_change_in_the_same_moment() {
    let agent = TestAgent::without_entries().await;
    write(&agent, "test.toml", &entry("mine", uid()), "mine").await;
    let mut events = agent.audit();
    let mut client = sluggish(&agent).await;
    let mut stream = client.fetch_x509svid(X509svidRequest {}).await.unwrap().into_inner();
    event(&mut events, |event| matches!(event, Event::SvidIssued { .. })).await;
    revoke(&agent, CredentialFilter { entry: "mine".to_owned(), ..CredentialFilter::default() }).await;
    write(&agent, "more.toml", &entry("more", uid()), "more").await;
    assert_eq!(next(&mut stream).await.unwrap().svids.len(), 1, "what was sent before");
    let refused = next(&mut stream).await.expect_err("nothing takes its place");
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("revoked (operator)"), "{refused}");
    assert_eq!(ended(&agent).await, reasons([("mine", "operator")]), "nothing was issued in its place");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_judged_again_because_others_lose_their_credentials() {
    let agent = TestAgent::configured(|config| {
        config.http.address = Some("127.0.0.1:0".parse().unwrap());
        config.attest.unix.max_hash = ByteSize::mib(0);
    })
    .await;
    // What cannot be found out is asked anew by whoever judges a process a while later: so it can be seen who did.
    let digest = format!("match = [\"unix:sha256:{}\", ", "0".repeat(64));
    let unknown = entry("unknown", uid()).replace("match = [", &digest);
    write(&agent, "test.toml", &unknown, "unknown").await;
    let mut stream = agent.workload().await.fetch_x509svid(X509svidRequest {}).await.unwrap().into_inner();
    let first = next(&mut stream).await.unwrap();
    let mut others: Vec<Another> = (0..4).map(|_| Another::start(agent.socket())).collect();
    for other in &mut others {
        other.hold_wit();
    }
    agent.clock().advance(Duration::from_secs(2 * 60));
    let before = attestations(&agent).await;
    for other in &others {
        revoke(&agent, CredentialFilter { pid: other.named().pid, ..CredentialFilter::default() }).await;
    }
    agent.clock().advance(Duration::from_secs(10 * 60));
    // Streams are ordered: whatever the revocations led to was before this.
    assert_ne!(next(&mut stream).await.unwrap(), first);
    assert_eq!(attestations(&agent).await, before + 1, "its own renewal");
}

/// How often anybody was attested.
async fn attestations(agent: &TestAgent) -> u64 {
    let (_, text) = get(agent.http(), "/metrics").await;
    let count =
        |line: &str| line.strip_prefix("tether_attestation_duration_seconds_count{attestor=\"unix\"} ")?.parse().ok();
    text.lines().find_map(count).unwrap_or_else(|| panic!("{text}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_in_the_name_of_another_process_ends_with_that_process() {
    let agent = TestAgent::without_entries().await;
    write(&agent, "test.toml", &entry("agent", uid()), "agent").await;
    let another = Another::start(agent.socket());
    let hold = HoldX509Request { spiffe_id: String::new(), on_behalf_of: Some(another.named()) };
    let mut stream = agent.sessions().await.hold_x509(hold).await.unwrap().into_inner();
    assert_eq!(next(&mut stream).await.unwrap().svids.len(), 1);
    another.end();
    assert_eq!(next(&mut stream).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_is_being_signed_while_its_entry_is_deleted_is_not_released_and_does_not_stand() {
    // The agent stops in the middle of signing a token, where it makes the id, until it is told to go on.
    let (entered, in_the_middle) = channel();
    let (go_on, told) = channel::<()>();
    let armed = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (trap, system, told) = (armed.clone(), Entropy::system(), Mutex::new(told));
    let entropy = Entropy::from_fn(move |buffer| {
        system.fill(buffer);
        if buffer.len() == 16 && trap.swap(false, std::sync::atomic::Ordering::SeqCst) {
            entered.send(()).unwrap();
            let _ = told.lock().unwrap().recv();
        }
    });
    let mut agent = TestAgent::without_entries().await;
    write(&agent, "test.toml", &entry("gone", uid()), "gone").await;
    agent.set_entropy(entropy);
    agent.restart().await;
    let mut workload = agent.workload().await;
    let request = || JwtsvidRequest { audience: vec!["demo".to_owned()], spiffe_id: String::new() };
    workload.fetch_jwtsvid(request()).await.expect("a token");

    let mut events = agent.audit();
    armed.store(true, std::sync::atomic::Ordering::SeqCst);
    let signing = tokio::spawn(async move { workload.fetch_jwtsvid(request()).await });
    tokio::task::spawn_blocking(move || in_the_middle.recv().unwrap()).await.unwrap();
    agent.remove_entries("test.toml").await;
    // What the entry gave was looked for and ended; what is being signed was not there to be found.
    event(&mut events, |event| matches!(event, Event::CredentialsEnded { .. })).await;
    go_on.send(()).unwrap();

    let refused = within(signing).await.unwrap().expect_err("the entry is gone");
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused:?}");
    assert_eq!(ended(&agent).await, reasons([("gone", "entry_gone"), ("gone", "no_longer_matches")]));
}
