//! WIT-SVIDs in the ledger: who has them, and how they end.

use tether::proto::admin::{
    CredentialFilter, CredentialView, ListCredentialsRequest, RevokeAuthorityRequest, RevokeCredentialsRequest,
};
use tether::proto::workload::{WitBundlesRequest, Witsvid, WitsvidRequest, WitsvidResponse};
use tether::wit::UnverifiedWit;
use tonic::{Code, Streaming};

use crate::harness::{TestAgent, next, within};

async fn agent() -> TestAgent {
    TestAgent::configured(|config| config.wit.enabled = true).await
}

async fn stream(agent: &TestAgent) -> Streaming<WitsvidResponse> {
    let mut client = agent.workload().await;
    within(client.fetch_witsvid(WitsvidRequest::default())).await.unwrap().into_inner()
}

async fn listed(agent: &TestAgent) -> Vec<CredentialView> {
    let filter = CredentialFilter { kind: "wit".to_owned(), ..CredentialFilter::default() };
    let request = ListCredentialsRequest { filter: Some(filter), all: true, limit: 0 };
    agent.credentials().await.list(request).await.unwrap().into_inner().credentials
}

fn signed_by(svid: &Witsvid) -> String {
    tether::jwt::Jws::parse(&svid.wit_svid).unwrap().header().key_id.clone().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wit_is_in_the_ledger_before_anybody_has_it_with_its_key_in_the_workload() {
    let agent = agent().await;
    let svid = next(&mut stream(&agent).await).await.unwrap().svids.remove(0);
    let [row] = &listed(&agent).await[..] else { panic!("one") };
    assert_eq!((row.spiffe_id.as_str(), row.custody.as_str()), (svid.spiffe_id.as_str(), "workload"));
    let claims = tether::jwt::Jws::parse(&svid.wit_svid).unwrap().claims().unwrap();
    assert_eq!(claims["jti"], row.id.as_str());
    assert!(row.id.starts_with(&format!("{}.", agent.state().node())), "{}", row.id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_wit_authority_takes_its_wits_along_and_streams_get_others() {
    let agent = agent().await;
    let mut stream = stream(&agent).await;
    let mut client = agent.workload().await;
    let mut bundles = within(client.fetch_wit_bundles(WitBundlesRequest {})).await.unwrap().into_inner();
    let first = next(&mut stream).await.unwrap().svids.remove(0);
    next(&mut bundles).await.unwrap();
    let revoked = signed_by(&first);
    let request = RevokeAuthorityRequest { id: revoked.clone() };
    within(async { agent.authorities().await.revoke(request).await }).await.unwrap();
    let second = next(&mut stream).await.unwrap().svids.remove(0);
    assert_ne!(signed_by(&second), revoked);
    assert_ne!(second.wit_svid_key, first.wit_svid_key, "with another key");
    let set = next(&mut bundles).await.unwrap().bundles.into_values().next().unwrap();
    assert!(!set.contains(&revoked) && set.contains(&signed_by(&second)), "{set}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wit_that_an_operator_revoked_is_not_quietly_replaced_on_its_stream() {
    let agent = agent().await;
    let mut stream = stream(&agent).await;
    next(&mut stream).await.unwrap();
    let id = listed(&agent).await.remove(0).id;
    let filter = CredentialFilter { id, ..CredentialFilter::default() };
    let request = RevokeCredentialsRequest { filter: Some(filter), reason: "leaked".to_owned(), dry_run: false };
    within(async { agent.credentials().await.revoke(request).await }).await.unwrap();
    assert_eq!(next(&mut stream).await.unwrap_err().code(), Code::PermissionDenied);
}

#[tokio::test(flavor = "multi_thread")]
async fn over_a_restart_a_wit_stands_as_long_as_its_process_lives() {
    let mut agent = agent().await;
    let svid = next(&mut stream(&agent).await).await.unwrap().svids.remove(0);
    let before = listed(&agent).await;
    agent.restart().await;
    assert_eq!(listed(&agent).await, before);
    // What is asked for now is new: keys are in no file, and the agent has forgotten this one.
    let another = next(&mut stream(&agent).await).await.unwrap().svids.remove(0);
    assert_eq!(signed_by(&another), signed_by(&svid), "by the same authority");
    let named = |svid: &Witsvid| UnverifiedWit::read(&svid.wit_svid).unwrap().confirmation;
    assert_ne!(named(&another), named(&svid));
}
