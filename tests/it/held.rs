//! Keys that the agent holds: who can use them, for what, and when they end.

use std::time::Duration;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, ParsedPublicKey};
use tether::proto::session::{HeldX509, HoldWitRequest, HoldX509Request, ProveRequest, SignTlsRequest};
use tether::proto::workload::X509svidRequest;
use tonic::Code;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::another::Another;
use crate::harness::{Sessions, TestAgent, next, uid};

const SCHEME: u32 = 0x0403;

fn content(who: &str, hash: usize) -> Vec<u8> {
    [&[b' '; 64][..], format!("TLS 1.3, {who} CertificateVerify\0").as_bytes(), &vec![7; hash]].concat()
}

async fn sign(sessions: &mut Sessions, key: &str, content: Vec<u8>) -> Result<Vec<u8>, tonic::Status> {
    let request = SignTlsRequest { key: key.to_owned(), scheme: SCHEME, content: content.into(), on_behalf_of: None };
    sessions.sign_tls(request).await.map(|signed| signed.into_inner().signature.to_vec())
}

fn verifies(held: &HeldX509, content: &[u8], signature: &[u8]) -> bool {
    let (_, leaf) = X509Certificate::from_der(&held.x509_svid).unwrap();
    let key = leaf.public_key().subject_public_key.data.to_vec();
    ParsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &key).unwrap().verify_sig(content, signature).is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_of_a_held_x509_svid_signs_handshakes_of_both_roles_and_nothing_else() {
    let agent = TestAgent::start().await;
    let mut sessions = agent.sessions().await;
    let mut stream = sessions.hold_x509(HoldX509Request::default()).await.unwrap().into_inner();
    let state = next(&mut stream).await.unwrap();
    assert_eq!(state.svids.len(), 1);
    assert_eq!(state.bundles.len(), 1);
    let held = &state.svids[0];
    for who in ["client", "server"] {
        for hash in [32, 48] {
            let content = content(who, hash);
            let signature = sign(&mut sessions, &held.key, content.clone()).await.unwrap();
            assert!(verifies(held, &content, &signature), "{who} {hash}");
        }
    }
    let jws = b"eyJhbGciOiJFUzI1NiIsInR5cCI6IndpdCtqd3QifQ.e30".to_vec();
    for bytes in [Vec::new(), vec![7; 32], jws, content("any", 32), content("client", 20)] {
        assert_eq!(sign(&mut sessions, &held.key, bytes).await.unwrap_err().code(), Code::InvalidArgument);
    }
    let other_scheme = SignTlsRequest {
        key: held.key.clone(),
        scheme: 0x0804,
        content: content("client", 32).into(),
        on_behalf_of: None,
    };
    assert_eq!(sessions.sign_tls(other_scheme).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_for_tls_make_no_proofs_and_those_for_proofs_sign_no_tls() {
    let agent = TestAgent::start().await;
    let mut sessions = agent.sessions().await;
    let mut stream = sessions.hold_x509(HoldX509Request::default()).await.unwrap().into_inner();
    let tls = next(&mut stream).await.unwrap().svids.remove(0).key;
    let proofs = sessions.hold_wit(HoldWitRequest::default()).await.unwrap().into_inner().key;
    let refused = sign(&mut sessions, &proofs, content("client", 32)).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    let request =
        ProveRequest { key: tls, method: "GET".to_owned(), uri: "https://a/".to_owned(), ..ProveRequest::default() };
    assert_eq!(sessions.prove(request).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handle_is_of_no_use_to_another_process_of_the_same_user() {
    let agent = TestAgent::start().await;
    let mut sessions = agent.sessions().await;
    let mine = sessions.hold_wit(HoldWitRequest::default()).await.unwrap().into_inner();
    let mut another = Another::start(agent.socket());
    let refused = another.ask(&format!("prove {} GET https://a/", mine.key));
    assert!(refused.starts_with("PermissionDenied"), "{refused}");
    let unknown = another.ask(&format!("prove {} GET https://a/", "0".repeat(32)));
    assert_eq!(unknown, refused, "whether there is such a key is not said");
    let (theirs, wit) = another.hold_wit();
    assert_ne!(wit, mine.wit_svid);
    let request =
        ProveRequest { key: theirs, method: "GET".to_owned(), uri: "https://a/".to_owned(), ..ProveRequest::default() };
    assert_eq!(sessions.prove(request).await.unwrap_err().code(), Code::PermissionDenied);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_wit_is_the_same_until_half_of_its_life_on_all_connections() {
    let agent = TestAgent::start().await;
    let mut sessions = agent.sessions().await;
    let first = sessions.hold_wit(HoldWitRequest::default()).await.unwrap().into_inner();
    assert_eq!(first.binding, 3);
    let elsewhere = agent.sessions().await.hold_wit(HoldWitRequest::default()).await.unwrap().into_inner();
    assert_eq!(elsewhere, first);
    drop(sessions);
    agent.clock().advance(Duration::from_secs(4 * 60));
    let mut sessions = agent.sessions().await;
    let second = sessions.hold_wit(HoldWitRequest::default()).await.unwrap().into_inner();
    assert_ne!(second.key, first.key);
    let prove = |key: String| ProveRequest {
        key,
        method: "GET".to_owned(),
        uri: "https://a/".to_owned(),
        ..ProveRequest::default()
    };
    assert!(sessions.prove(prove(first.key.clone())).await.is_ok(), "good until its end");
    agent.clock().advance(Duration::from_secs(61));
    assert_eq!(sessions.prove(prove(first.key)).await.unwrap_err().code(), Code::PermissionDenied);
    assert!(sessions.prove(prove(second.key)).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_brings_the_next_key_in_time_and_the_old_one_signs_until_its_end() {
    let agent = TestAgent::start().await;
    let mut sessions = agent.sessions().await;
    let mut stream = sessions.hold_x509(HoldX509Request::default()).await.unwrap().into_inner();
    let first = next(&mut stream).await.unwrap().svids.remove(0);
    agent.clock().advance(Duration::from_secs(10 * 60));
    let second = next(&mut stream).await.unwrap().svids.remove(0);
    assert_ne!(second.key, first.key);
    for held in [&first, &second] {
        let signature = sign(&mut sessions, &held.key, content("server", 32)).await.unwrap();
        assert!(verifies(held, &content("server", 32), &signature));
    }
    agent.clock().advance(Duration::from_secs(6 * 60));
    assert_eq!(
        sign(&mut sessions, &first.key, content("server", 32)).await.unwrap_err().code(),
        Code::PermissionDenied
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn losing_the_identity_ends_the_stream_and_the_key_signs_no_more() {
    let agent = TestAgent::without_entries().await;
    let entry = format!(
        "[[entry]]\nid = \"mine\"\nspiffe_id = \"spiffe://dev.tether.internal/mine\"\nmatch = [\"unix:uid:{}\"]\nowner = \"team\"\n",
        uid()
    );
    agent.write_entries("mine.toml", &entry).await;
    let mut sessions = agent.sessions().await;
    let mut stream = sessions.hold_x509(HoldX509Request::default()).await.unwrap().into_inner();
    let held = next(&mut stream).await.unwrap().svids.remove(0);
    let wanted = HoldX509Request { spiffe_id: "spiffe://dev.tether.internal/other".to_owned(), on_behalf_of: None };
    let mut other = sessions.hold_x509(wanted).await.unwrap().into_inner();
    assert_eq!(next(&mut other).await.unwrap_err().code(), Code::PermissionDenied);
    agent.remove_entries("mine.toml").await;
    assert_eq!(next(&mut stream).await.unwrap_err().code(), Code::PermissionDenied);
    let refused = sign(&mut sessions, &held.key, content("client", 32)).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_endpoints_metadata_our_services_answer_nobody_and_off_they_are_not_there() {
    let agent = TestAgent::start().await;
    let mut bare = tether::proto::session::sessions_client::SessionsClient::new(agent.channel().await);
    let refused = bare.hold_wit(HoldWitRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);

    let agent = TestAgent::configured(|config| config.sessions.enabled = false).await;
    let off = agent.sessions().await.hold_wit(HoldWitRequest::default()).await.unwrap_err();
    assert_eq!(off.code(), Code::Unimplemented);
    let mut stream = agent.workload().await.fetch_x509svid(X509svidRequest {}).await.unwrap().into_inner();
    assert_eq!(next(&mut stream).await.unwrap().svids.len(), 1);
}
