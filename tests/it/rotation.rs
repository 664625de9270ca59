//! Renewal and rotation as clients see them, on a clock that the test moves.

use std::time::Duration;

use tether::id::TrustDomain;
use tether::proto::admin::{RevokeAuthorityRequest, RotateAuthorityRequest, ShowAuthoritiesRequest};
use tether::proto::workload::{JwtsvidRequest, ValidateJwtsvidRequest, X509BundlesRequest, X509svid, X509svidRequest};
use tether::x509::{Chain, X509Authorities, verify};
use time::OffsetDateTime;

use crate::harness::{TestAgent, next};

const HOUR: Duration = Duration::from_secs(3600);
const MINUTE: Duration = Duration::from_secs(60);

fn believed(svid: &X509svid, bundle: &[u8], now: OffsetDateTime) {
    let domain = TrustDomain::parse("dev.tether.internal").unwrap();
    let authorities = X509Authorities::from_der(domain, bundle).unwrap();
    let chain = Chain::from_der(&svid.x509_svid).unwrap();
    let believed = verify(&chain, &authorities, now, &[]).expect("a peer believes it");
    assert_eq!(believed.spiffe_id().as_str(), svid.spiffe_id);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_svid_is_renewed_around_half_of_its_life_and_not_before() {
    let agent = TestAgent::start().await;
    let mut stream = agent.workload().await.fetch_x509svid(X509svidRequest {}).await.unwrap().into_inner();
    let first = next(&mut stream).await.unwrap();
    agent.clock().advance(MINUTE * 6);
    let mut second = agent.workload().await.fetch_x509svid(X509svidRequest {}).await.unwrap().into_inner();
    assert_eq!(next(&mut second).await.unwrap(), first, "45 % of 15 minutes is later than 6");
    agent.clock().advance(MINUTE * 3);
    let renewed = next(&mut stream).await.unwrap();
    assert_ne!(renewed.svids[0].x509_svid, first.svids[0].x509_svid);
    assert_ne!(renewed.svids[0].x509_svid_key, first.svids[0].x509_svid_key, "a new key each time");
    believed(&renewed.svids[0], &renewed.svids[0].bundle, agent.clock().now());
}

#[tokio::test(flavor = "multi_thread")]
async fn over_a_year_and_its_root_rotation_every_svid_is_believed_with_the_bundle_of_its_own_message_and_the_one_before()
 {
    let agent = TestAgent::start().await;
    let mut client = agent.workload().await;
    let mut bundle_before = None;
    for _ in 0..400 {
        let mut stream = client.fetch_x509svid(X509svidRequest {}).await.unwrap().into_inner();
        let answer = next(&mut stream).await.unwrap();
        let svid = &answer.svids[0];
        believed(svid, &svid.bundle, agent.clock().now());
        // A verifier that has not heard of a rotation within the last day still believes what is issued now.
        if let Some(before) = bundle_before.replace(svid.bundle.clone()) {
            believed(svid, &before, agent.clock().now());
        }
        drop(stream);
        agent.clock().advance(HOUR * 24);
        let mut changes = agent.state().trust().watch();
        // The rotation runs beside us; what is due now is done before anything is signed by what it replaces.
        let due =
            agent.state().trust().current().signers().slots().iter().any(|slot| slot.not_after <= agent.clock().now());
        if due {
            crate::harness::within(changes.changed()).await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn revoking_the_signing_authority_replaces_svids_and_bundle_in_one_message() {
    let agent = TestAgent::start().await;
    let mut stream = agent.workload().await.fetch_x509svid(X509svidRequest {}).await.unwrap().into_inner();
    let first = next(&mut stream).await.unwrap();
    let mut authorities = agent.authorities().await;
    let shown = authorities.show(ShowAuthoritiesRequest {}).await.unwrap().into_inner().authorities;
    let signing = shown.iter().find(|authority| authority.kind == "x509-signing").unwrap();
    authorities.revoke(RevokeAuthorityRequest { id: signing.id.clone() }).await.unwrap();

    let second = next(&mut stream).await.unwrap();
    believed(&second.svids[0], &second.svids[0].bundle, agent.clock().now());
    let domain = TrustDomain::parse("dev.tether.internal").unwrap();
    let new_bundle = X509Authorities::from_der(domain, &second.svids[0].bundle).unwrap();
    let old = Chain::from_der(&first.svids[0].x509_svid).unwrap();
    assert!(
        verify(&old, &new_bundle, agent.clock().now(), &[]).is_err(),
        "what the revoked authority signed is not believed"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_an_operator_rotates_is_published_first_and_signs_after_the_propagation_time() {
    let agent = TestAgent::start().await;
    let mut client = agent.workload().await;
    let mut bundles = client.fetch_x509_bundles(X509BundlesRequest {}).await.unwrap().into_inner();
    let mut svids = client.fetch_x509svid(X509svidRequest {}).await.unwrap().into_inner();
    let before = next(&mut svids).await.unwrap();
    next(&mut bundles).await.unwrap();
    let rotate = RotateAuthorityRequest { kind: "x509-root".to_owned(), now: false };
    agent.authorities().await.rotate(rotate).await.unwrap();

    let published = next(&mut bundles).await.unwrap();
    let both = &published.bundles["spiffe://dev.tether.internal"];
    assert!(both.len() > before.svids[0].bundle.len(), "the new root is in the bundle");
    let told = next(&mut svids).await.unwrap();
    assert_eq!(told.svids[0].x509_svid, before.svids[0].x509_svid, "and does not sign yet");

    agent.clock().advance(Duration::from_secs(11));
    agent.clock().advance(MINUTE * 9);
    loop {
        let answer = next(&mut svids).await.unwrap();
        believed(&answer.svids[0], both, agent.clock().now());
        if answer.svids[0].x509_svid != before.svids[0].x509_svid {
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_stays_valid_over_the_rotation_of_its_key_and_falls_with_its_revocation() {
    let agent = TestAgent::start().await;
    let mut client = agent.workload().await;
    let request = JwtsvidRequest { audience: vec!["demo".to_owned()], spiffe_id: String::new() };
    let token = client.fetch_jwtsvid(request.clone()).await.unwrap().into_inner().svids.remove(0).svid;
    let validate = |svid: &str| ValidateJwtsvidRequest { audience: "demo".to_owned(), svid: svid.to_owned() };
    let mut authorities = agent.authorities().await;
    authorities.rotate(RotateAuthorityRequest { kind: "jwt".to_owned(), now: true }).await.unwrap();
    client.validate_jwtsvid(validate(&token)).await.expect("its key is retired and still published");

    let shown = authorities.show(ShowAuthoritiesRequest {}).await.unwrap().into_inner().authorities;
    let retired = shown.iter().find(|a| a.kind == "jwt" && a.state == "retired").unwrap();
    authorities.revoke(RevokeAuthorityRequest { id: retired.id.clone() }).await.unwrap();
    client.validate_jwtsvid(validate(&token)).await.expect_err("its key is out of the bundle");
    let fresh = client.fetch_jwtsvid(request).await.unwrap().into_inner().svids.remove(0).svid;
    client.validate_jwtsvid(validate(&fresh)).await.expect("the new key signs");
}
