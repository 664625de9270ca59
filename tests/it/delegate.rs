//! Asking in the name of another process (peer rule 9).

use std::collections::HashSet;
use std::path::Path;
use std::process::{Command, Stdio};

use tether::audit::Event;
use tether::proto::admin::credentials_client::CredentialsClient;
use tether::proto::admin::{CredentialFilter, ListCredentialsRequest};
use tether::proto::session::{HoldWitRequest, HoldX509Request, OnBehalfOf, ProveRequest};
use tether::sys::PidFd;
use tether::x509::KeyType;
use tonic::Code;

use crate::another::Another;
use crate::harness::{TestAgent, channel, event, next, uid, within};

/// An agent whose entries tell these tests, which may act for `may_act_for`, from processes whose working group of
/// programs is another: those have the identity `/agent/a`.
async fn agent(may_act_for: &str) -> TestAgent {
    agent_with(may_act_for, KeyType::EcP256).await
}

async fn agent_with(may_act_for: &str, key_type: KeyType) -> TestAgent {
    let agent = TestAgent::without_entries_and(|config| config.authority.key_type = key_type).await;
    let entries = format!(
        r#"
[[entry]]
id = "everyone"
spiffe_id = "spiffe://dev.tether.internal/agent/a"
match = ["unix:uid:{uid}"]
owner = "team"
may_act_for = [{may_act_for}]
"#,
        uid = uid()
    );
    agent.write_entries("entries.toml", &entries).await;
    agent
}

fn hold(other: OnBehalfOf) -> HoldWitRequest {
    HoldWitRequest { spiffe_id: String::new(), on_behalf_of: Some(other) }
}

fn prove(key: &str, other: Option<OnBehalfOf>) -> ProveRequest {
    ProveRequest {
        key: key.to_owned(),
        method: "GET".to_owned(),
        uri: "https://a/".to_owned(),
        on_behalf_of: other,
        ..ProveRequest::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delegate_holds_and_uses_keys_of_another_process_and_ledger_and_audit_show_both() {
    let agent = agent(r#""spiffe://dev.tether.internal/agent/*""#).await;
    let mut audit = agent.audit();
    let mut sessions = agent.sessions().await;
    let mut another = Another::start(agent.socket());
    let other = another.named();
    let held = sessions.hold_wit(hold(other)).await.unwrap().into_inner();
    let seen = event(&mut audit, |event| matches!(event, Event::KeyHeld { .. })).await;
    let Event::KeyHeld { caller, on_behalf_of: Some(target), .. } = seen else { panic!("{seen:?}") };
    assert_eq!(caller.pid, i32::try_from(std::process::id()).unwrap());
    assert_eq!(target.pid, other.pid);

    let mut ledger = CredentialsClient::new(channel(agent.admin_socket()).await);
    let filter = Some(CredentialFilter { pid: other.pid, ..CredentialFilter::default() });
    let list = ledger.list(ListCredentialsRequest { filter, ..Default::default() }).await.unwrap().into_inner();
    assert_eq!(list.credentials.len(), 1);
    assert_eq!(list.credentials[0].delegate, caller.instance);
    assert_eq!(list.credentials[0].instance, target.instance);

    assert!(sessions.prove(prove(&held.key, Some(other))).await.is_ok());
    let as_itself = sessions.prove(prove(&held.key, None)).await.unwrap_err();
    assert_eq!(as_itself.code(), Code::PermissionDenied, "the key is the other's");
    assert!(another.ask(&format!("prove {} GET https://a/", held.key)).starts_with('{'), "whose key it is may use it");
    let (own, _) = another.hold_wit();
    assert_ne!(own, held.key);
    let not_for_me = sessions.prove(prove(&own, Some(other))).await.unwrap_err();
    assert_eq!(not_for_me.code(), Code::PermissionDenied, "a key that the other asked for itself");
    let mut third = Another::start(agent.socket());
    assert!(third.ask(&format!("prove {} GET https://a/", held.key)).starts_with("PermissionDenied"));

    another.end();
    let gone = sessions.prove(prove(&held.key, Some(other))).await.unwrap_err();
    assert_eq!(gone.code(), Code::NotFound, "{gone}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delegate_that_asks_many_times_at_once_gets_one_key_although_the_process_has_no_connection() {
    // Keys that take long to make: everybody has come before the first is there.
    let agent = agent_with(r#""spiffe://dev.tether.internal/agent/*""#, KeyType::Rsa2048).await;
    let mut another = Command::new("/bin/cat").stdin(Stdio::piped()).spawn().unwrap();
    let pid = i32::try_from(another.id()).unwrap();
    let other = OnBehalfOf { pid, pidfs_inode: PidFd::open(pid).unwrap().inode().unwrap(), weak: false };
    let sessions = agent.sessions().await;
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let mut sessions = sessions.clone();
        calls.spawn(async move {
            let wit = sessions.hold_wit(hold(other)).await.unwrap().into_inner();
            let request = HoldX509Request { on_behalf_of: Some(other), ..HoldX509Request::default() };
            let mut states = sessions.hold_x509(request).await.unwrap().into_inner();
            let x509 = next(&mut states).await.unwrap();
            [wit.key, x509.svids[0].key.clone()]
        });
    }
    let keys: HashSet<[String; 2]> = calls.join_all().await.into_iter().collect();
    another.kill().unwrap();
    another.wait().unwrap();
    assert_eq!(keys.len(), 1, "{keys:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_acts_for_a_process_without_an_entry_that_says_so() {
    for may_act_for in ["", r#""spiffe://dev.tether.internal/agent/a/*""#, r#""spiffe://dev.tether.internal/agent""#] {
        let agent = agent(may_act_for).await;
        let another = Another::start(agent.socket());
        let refused = agent.sessions().await.hold_wit(hold(another.named())).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{may_act_for}");
        assert!(refused.message().contains("may_act_for"), "{refused}");
        assert!(!refused.message().contains("agent/a"), "who the other is, is not said: {refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_is_named_by_number_and_inode_and_must_be_there() {
    let agent = agent(r#""spiffe://dev.tether.internal/agent/a""#).await;
    let mut sessions = agent.sessions().await;
    let another = Another::start(agent.socket());
    let other = another.named();
    let by_number = sessions.hold_wit(hold(OnBehalfOf { pidfs_inode: 0, ..other })).await.unwrap_err();
    assert_eq!(by_number.code(), Code::InvalidArgument);
    assert!(by_number.message().contains("pidfs_inode"), "{by_number}");

    // As if the number had been given to another process since.
    let recycled =
        sessions.hold_wit(hold(OnBehalfOf { pidfs_inode: other.pidfs_inode - 1, ..other })).await.unwrap_err();
    assert_eq!(recycled.code(), Code::NotFound);
    assert!(recycled.message().contains("not the one that was meant"), "{recycled}");

    for pid in [0, -1] {
        let nobody = sessions.hold_wit(hold(OnBehalfOf { pid, ..other })).await.unwrap_err();
        assert_eq!(nobody.code(), Code::NotFound, "{pid}");
    }

    assert!(sessions.hold_wit(hold(other)).await.is_ok());
    another.end();
    let gone = sessions.hold_wit(hold(other)).await.unwrap_err();
    assert_eq!(gone.code(), Code::NotFound);
    assert!(gone.message().contains("has exited"), "{gone}");
    within(async {
        while Path::new(&format!("/proc/{}", other.pid)).exists() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}
