use tonic::Status;

use crate::id::TrustDomain;
use crate::proto::DENIAL_METADATA;
use crate::proto::workload::{
    JwtBundlesResponse, JwtsvidResponse, ValidateJwtsvidResponse, X509BundlesResponse, X509svidResponse,
};
use crate::x509::{Chain, X509Error};

use super::fake::{Documents, FakeWorkloadApi, NOW, Served, nowhere};
use super::*;

fn served(fill: impl FnOnce(&mut super::fake::Script)) -> (FakeWorkloadApi, Served, WorkloadApi) {
    let fake = FakeWorkloadApi::default();
    fill(&mut fake.script());
    let served = Served::workload_api(fake.clone());
    let api = WorkloadApi::new(served.uri().parse().expect("an endpoint"));
    (fake, served, api)
}

fn message(svids: Vec<crate::proto::workload::X509svid>) -> X509svidResponse {
    X509svidResponse { svids, ..X509svidResponse::default() }
}

#[tokio::test]
async fn documents_arrive_parsed_with_what_belongs_to_them() {
    let (td, other) = (Documents::of("example.org"), Documents::of("partner.example"));
    let answer = X509svidResponse {
        svids: vec![td.x509("/a", "internal"), td.x509("/b", "")],
        federated_bundles: [(other.domain_id(), other.bundle().into())].into(),
        ..X509svidResponse::default()
    };
    let (_, _served, api) = served(|script| script.x509.push_back(vec![Ok(answer)]));
    let context = api.fetch_x509().await.expect("fetched");
    let [first, second] = &context.svids[..] else { panic!("two SVIDs: {context:?}") };
    assert_eq!((first.id.as_str(), first.hint.as_deref()), ("spiffe://example.org/a", Some("internal")));
    assert_eq!((second.id.as_str(), second.hint.as_deref()), ("spiffe://example.org/b", None));
    assert_eq!(first.chain.leaf().public_key(), first.key.public_key());
    assert_eq!(first.bundle.to_der(), td.bundle());
    let partner = TrustDomain::parse("partner.example").expect("legal");
    assert_eq!(context.federated[&partner].to_der(), other.bundle());
}

#[tokio::test]
async fn a_peer_is_refused_when_it_is_revoked_when_a_list_is_stale_and_when_its_trust_domain_is_unknown() {
    let (td, other) = (Documents::of("example.org"), Documents::of("partner.example"));
    let bundles = [(td.domain_id(), td.bundle().into()), (other.domain_id(), other.bundle().into())];
    let answer = |lists: Vec<Vec<u8>>| X509BundlesResponse {
        bundles: bundles.clone().into(),
        crl: lists.into_iter().map(Into::into).collect(),
    };
    let (_, _served, api) = served(|script| {
        script.x509_bundles.extend([answer(vec![td.crl(&[])]), answer(vec![td.crl(&[2])])]);
    });
    let peer = |svid: crate::proto::workload::X509svid| Chain::from_der(&svid.x509_svid).expect("a chain");
    let (peer, partner) = (peer(td.x509("/peer", "")), peer(other.x509("/partner", "")));

    let good = api.fetch_x509_bundles().await.expect("bundles");
    assert_eq!(good.verify_peer(&peer, NOW).expect("believed").spiffe_id().path(), "/peer");
    let stale = NOW + std::time::Duration::from_secs(1800);
    assert!(matches!(good.verify_peer(&peer, stale), Err(X509Error::StaleCrl(_))));
    let revoked = api.fetch_x509_bundles().await.expect("bundles");
    assert!(matches!(revoked.verify_peer(&peer, NOW), Err(X509Error::Revoked)));
    let _ = good.verify_peer(&partner, NOW).expect("nobody has a list of the partner's authority");
    let mut alone = good;
    alone.authorities.remove(&TrustDomain::parse("partner.example").expect("legal"));
    assert!(matches!(alone.verify_peer(&partner, NOW), Err(X509Error::NoBundle(_))));
}

#[tokio::test]
async fn every_call_carries_the_header_once() {
    // EP-05
    let td = Documents::of("example.org");
    let (fake, _served, api) = served(|script| {
        script.x509.push_back(vec![Ok(message(vec![td.x509("/a", "")]))]);
        script.jwt.push_back(Ok(JwtsvidResponse { svids: vec![td.jwt("/a", "demo")] }));
        let bundles = [(td.domain_id(), td.bundle().into())].into();
        script.x509_bundles.push_back(X509BundlesResponse { bundles, ..X509BundlesResponse::default() });
        let bundles = [(td.domain_id(), td.jwks().into())].into();
        script.jwt_bundles.push_back(JwtBundlesResponse { bundles });
        let spiffe_id = "spiffe://example.org/a".to_owned();
        script.validate.push_back(Ok(ValidateJwtsvidResponse { spiffe_id, claims: None }));
    });
    api.fetch_x509().await.expect("X.509");
    let jwt = api.fetch_jwt(&["demo".to_owned()], None).await.expect("JWT");
    assert_eq!(jwt[0].expires_at, NOW + std::time::Duration::from_secs(300));
    assert_eq!(api.fetch_x509_bundles().await.expect("bundles").authorities.len(), 1);
    let jwt_bundles = api.fetch_jwt_bundles().await.expect("bundles");
    assert!(jwt_bundles.values().all(|keys| keys.iter().count() == 1));
    api.validate_jwt("demo", "token").await.expect("valid");
    assert_eq!(fake.script().headers, vec![vec!["true".to_owned()]; 5]);
}

#[tokio::test]
async fn of_svids_with_one_hint_the_first_counts() {
    // WL-14
    let td = Documents::of("example.org");
    let svids = vec![td.x509("/a", "x"), td.x509("/b", "x"), td.x509("/c", ""), td.x509("/d", "")];
    let (_, _served, api) = served(|script| script.x509.push_back(vec![Ok(message(svids))]));
    let ids: Vec<_> = api.fetch_x509().await.expect("fetched").svids.into_iter().map(|svid| svid.id).collect();
    assert_eq!(ids.iter().map(|id| id.path()).collect::<Vec<_>>(), ["/a", "/c", "/d"]);
}

#[tokio::test]
async fn a_message_with_anything_wrong_in_it_is_dropped_whole() {
    // WL-07
    let td = Documents::of("example.org");
    let good = || td.x509("/a", "");
    let damaged: Vec<(&str, Vec<crate::proto::workload::X509svid>)> = vec![
        ("no SVID", vec![]),
        ("no id", vec![good(), with(good(), |svid| svid.spiffe_id.clear())]),
        ("no certificate", vec![with(good(), |svid| svid.x509_svid.clear())]),
        ("no key", vec![with(good(), |svid| svid.x509_svid_key.clear())]),
        ("no bundle", vec![with(good(), |svid| svid.bundle.clear())]),
        ("another id", vec![with(good(), |svid| svid.spiffe_id = "spiffe://example.org/b".to_owned())]),
        ("another key", vec![with(good(), |svid| svid.x509_svid_key = td.x509("/a", "").x509_svid_key)]),
    ];
    for (what, svids) in damaged {
        let (_, _served, api) = served(|script| script.x509.push_back(vec![Ok(message(svids))]));
        let error = api.fetch_x509().await.expect_err(what);
        assert!(matches!(error, ClientError::Malformed(_)), "{what}: {error}");
    }
}

fn with(
    mut svid: crate::proto::workload::X509svid,
    change: impl FnOnce(&mut crate::proto::workload::X509svid),
) -> crate::proto::workload::X509svid {
    change(&mut svid);
    svid
}

#[tokio::test]
async fn a_status_says_what_happened_and_whether_trying_again_can_help() {
    // EP-17
    type Is = fn(&ClientError) -> bool;
    let mut audience = Status::permission_denied("audience `x` is not allowed");
    audience.metadata_mut().insert(DENIAL_METADATA, "audience".parse().expect("ascii"));
    let mut nobody = Status::permission_denied("no identity");
    nobody.metadata_mut().insert(DENIAL_METADATA, "no_identity".parse().expect("ascii"));
    let cases: Vec<(Status, Is, bool)> = vec![
        (Status::invalid_argument("x"), |error| matches!(error, ClientError::Invalid(_)), false),
        (Status::unimplemented("x"), |error| matches!(error, ClientError::NotOffered(_)), false),
        (Status::unavailable("x"), |error| matches!(error, ClientError::NotReady(_)), true),
        (Status::permission_denied("x"), |error| matches!(error, ClientError::NoIdentity(_)), true),
        (nobody, |error| matches!(error, ClientError::NoIdentity(_)), true),
        (audience, |error| matches!(error, ClientError::Denied(_)), true),
        (Status::internal("x"), |error| matches!(error, ClientError::Failed { .. }), true),
    ];
    for (status, is, retryable) in cases {
        let shown = format!("{status:?}");
        let (_, _served, api) = served(|script| script.jwt.push_back(Err(status)));
        let error = api.fetch_jwt(&["x".to_owned()], None).await.expect_err(&shown);
        assert!(is(&error), "{shown}: {error:?}");
        assert_eq!(error.is_retryable(), retryable, "{shown}");
    }
    let api = WorkloadApi::new(Endpoint::Unix(nowhere().to_owned()));
    let error = api.fetch_x509().await.expect_err("nobody there");
    assert!(matches!(&error, ClientError::Unreachable { endpoint, .. } if endpoint == "unix:///nonexistent/socket"));
    assert!(error.is_retryable());
}

#[tokio::test]
async fn a_watch_goes_on_at_once_after_a_stream_that_had_delivered_was_cut() {
    // WL-09
    let td = Documents::of("example.org");
    let (_, _served, api) = served(|script| {
        script.x509.push_back(vec![Ok(message(vec![td.x509("/a", "")])), Ok(message(vec![td.x509("/b", "")]))]);
        script.x509.push_back(vec![Ok(message(vec![td.x509("/c", "")])), Err(Status::unavailable("restarting"))]);
        script.x509.push_back(vec![Ok(message(vec![td.x509("/d", "")]))]);
    });
    let mut watch = api.watch_x509();
    let mut seen = Vec::new();
    for _ in 0..5 {
        match watch.next().await {
            Ok(context) => seen.push(context.svids[0].id.path().to_owned()),
            Err(error) => seen.push(error.to_string()),
        }
    }
    assert_eq!(seen, ["/a", "/b", "/c", "the agent is not ready: restarting", "/d"]);
}

#[tokio::test]
async fn claims_keep_whole_numbers_whole() {
    use prost_types::value::Kind;
    let number = |n: f64| prost_types::Value { kind: Some(Kind::NumberValue(n)) };
    let fields = [("exp".to_owned(), number(1_800_000_000.0)), ("share".to_owned(), number(0.5))].into();
    let spiffe_id = "spiffe://example.org/a".to_owned();
    let answer = ValidateJwtsvidResponse { spiffe_id, claims: Some(prost_types::Struct { fields }) };
    let (_, _served, api) = served(|script| script.validate.push_back(Ok(answer)));
    let valid = api.validate_jwt("demo", "token").await.expect("valid");
    assert_eq!(serde_json::Value::from(valid.claims), serde_json::json!({ "exp": 1_800_000_000, "share": 0.5 }));
}

#[tokio::test]
async fn a_wit_arrives_with_the_key_it_names_or_not_at_all() {
    // WL-43, WL-44
    use crate::proto::workload::{Witsvid, WitsvidResponse};
    let (td, other) = (Documents::of("example.org"), Documents::of("partner.example"));
    let sound = td.wit("/a", "internal");
    let (_, _server, api) =
        served(|script| script.wit.push_back(WitsvidResponse { svids: vec![sound.clone(), td.wit("/b", "internal")] }));
    let [wit] = &api.fetch_wit().await.expect("fetched")[..] else { panic!("of two with one hint the first counts") };
    assert_eq!((wit.id.as_str(), wit.hint.as_deref()), ("spiffe://example.org/a", Some("internal")));
    assert_eq!(wit.confirmation.key(), &crate::jwt::Jwk::from_spki(wit.key.public_key()).expect("a key"));
    assert_eq!((wit.token.as_str(), wit.key_jwk.expose()), (sound.wit_svid.as_str(), &sound.wit_svid_key));

    type Change<'a> = Box<dyn Fn(&mut Witsvid) + 'a>;
    let changes: [Change<'_>; 6] = [
        Box::new(|svid| svid.spiffe_id.clear()),
        Box::new(|svid| svid.wit_svid.clear()),
        Box::new(|svid| svid.wit_svid_key.clear()),
        Box::new(|svid| svid.wit_svid_key = td.wit("/a", "").wit_svid_key),
        Box::new(|svid| svid.wit_svid = other.wit("/a", "").wit_svid),
        Box::new(|svid| svid.wit_svid = td.jwt("/a", "demo").svid),
    ];
    for (i, change) in changes.iter().enumerate() {
        let mut svid = sound.clone();
        change(&mut svid);
        let (_, _server, api) = served(|script| script.wit.push_back(WitsvidResponse { svids: vec![svid] }));
        let error = api.fetch_wit().await.expect_err("unusable");
        assert!(matches!(error, ClientError::Malformed(_)), "{i}: {error:?}");
    }
}

#[tokio::test]
async fn wit_bundles_are_sets_of_their_own_and_an_agent_without_the_profile_is_not_asked_twice() {
    // WL-41, WL-48
    use crate::proto::workload::WitBundlesResponse;
    let td = Documents::of("example.org");
    let answer = WitBundlesResponse { bundles: [(td.domain_id(), td.wit_jwks())].into() };
    let (fake, _server, api) = served(|script| script.wit_bundles.push_back(answer));
    let bundles = api.fetch_wit_bundles().await.expect("fetched");
    assert_eq!(bundles[&TrustDomain::parse("example.org").expect("legal")].iter().count(), 1);
    let error = api.fetch_wit_bundles().await.expect_err("no more");
    assert!(matches!(error, ClientError::NotOffered(_)) && !error.is_retryable(), "{error:?}");
    assert!(matches!(api.watch_wit().next().await, Err(ClientError::NotOffered(_))));
    assert_eq!(fake.script().headers.len(), 3, "each call asked once");
}
