//! The Workload API's other end: `tether::client`, against a server that says what the test tells it to.

use std::collections::HashMap;

use bytes::Bytes;
use tether::client::{ClientError, Endpoint, WorkloadApi};
use tether::id::TrustDomain;
use tether::proto::workload::{
    JwtBundlesResponse, Jwtsvid, JwtsvidResponse, ValidateJwtsvidResponse, X509BundlesResponse, X509svid,
    X509svidResponse,
};
use tether::x509::verify;
use tonic::Status;

use crate::harness::{TestAgent, within};
use crate::support::mock::{Mock, Seen};
use crate::support::{AUDIENCE, entry, jwt, run, x509};
use crate::table::{Rule, Shown};

pub const RULES: &[Rule] = &[
    Rule {
        id: "EP-05",
        binds: "cli",
        says: "every call carries `workload.spiffe.io: true`, once",
        shown: Shown::Test(|| run(header())),
    },
    Rule {
        id: "EP-10",
        binds: "cli",
        says: "the endpoint comes from SPIFFE_ENDPOINT_SOCKET unless one is given",
        shown: Shown::Unit(
            "src/client/endpoint.rs",
            "the_environment_names_the_endpoint_and_an_empty_variable_names_none",
        ),
    },
    Rule { id: "EP-11", binds: "cli", says: "an endpoint's scheme is unix or tcp", shown: ADDRESSES },
    Rule { id: "EP-12", binds: "cli", says: "a Unix endpoint is an absolute path and nothing else", shown: ADDRESSES },
    Rule {
        id: "EP-13",
        binds: "cli",
        says: "a TCP endpoint is an IP address and a port and nothing else",
        shown: ADDRESSES,
    },
    Rule {
        id: "EP-17",
        binds: "cli",
        says: "InvalidArgument and Unimplemented are not worth repeating; Unavailable, PermissionDenied and silence are",
        shown: Shown::Test(|| run(retries())),
    },
    Rule {
        id: "WL-07",
        binds: "cli",
        says: "a message with an empty mandatory field is reported and dropped whole",
        shown: Shown::Test(|| run(empty_fields())),
    },
    Rule {
        id: "WL-08",
        binds: "cli",
        says: "each message replaces the one before: what is no longer in it is gone",
        shown: Shown::Test(|| run(replaced())),
    },
    Rule {
        id: "WL-09",
        binds: "cli",
        says: "a watch survives the restart of its agent",
        shown: Shown::Test(|| run(reconnects())),
    },
    Rule {
        id: "WL-11",
        binds: "cli,val",
        says: "a peer is judged by the bundle of its own trust domain; without one it is not trusted",
        shown: Shown::Test(|| run(peers())),
    },
    Rule {
        id: "WL-14",
        binds: "cli",
        says: "of two SVIDs with one hint the first counts",
        shown: Shown::Test(|| run(repeated_hint())),
    },
    Rule {
        id: "WL-16",
        binds: "cli",
        says: "absent and unexpected hints do no harm",
        shown: Shown::Test(|| run(strange_hints())),
    },
    Rule {
        id: "WL-25",
        binds: "cli",
        says: "X.509 bundles authenticate X509-SVIDs only",
        shown: Shown::Review(
            "`x509::verify` takes `X509Authorities`, `jwt::validate` `JwtAuthorities`, `wit::validate` `WitAuthorities`",
        ),
    },
    Rule {
        id: "WL-37",
        binds: "cli",
        says: "JWT bundles authenticate JWT-SVIDs only, chosen by the subject's trust domain",
        shown: Shown::Review("the types as in WL-25; `jwt::validate` asks for the keys of the subject's trust domain"),
    },
    Rule {
        id: "WL-38",
        binds: "cli",
        says: "validation is asked of the agent",
        shown: Shown::Review(
            "`WorkloadApi::validate_jwt` is what `tether validate jwt` calls; the client validates nothing",
        ),
    },
    Rule {
        id: "WL-41",
        binds: "cli",
        says: "a client that is told Unimplemented stops using the WIT profile",
        shown: Shown::Test(|| run(wit_is_not_offered())),
    },
    Rule {
        id: "WL-48",
        binds: "cli",
        says: "WIT bundles authenticate WIT-SVIDs only",
        shown: Shown::Review("the types as in WL-25: `fetch_wit_bundles` gives `WitAuthorities`"),
    },
];

const ADDRESSES: Shown =
    Shown::Unit("src/client/endpoint.rs", "endpoints_are_accepted_or_refused_by_the_rules_of_the_standard");

async fn header() {
    let dir = tempfile::tempdir().unwrap();
    let mock = Mock::default();
    let client = mock.serve(dir.path());
    within(async {
        client.fetch_x509().await.expect_err("no answer");
        client.fetch_x509_bundles().await.expect_err("no answer");
        client.fetch_jwt(&[AUDIENCE.to_owned()], None).await.expect_err("no answer");
        client.fetch_jwt_bundles().await.expect_err("no answer");
        client.validate_jwt(AUDIENCE, "token").await.expect_err("no answer");
        client.fetch_wit().await.expect_err("no answer");
        client.fetch_wit_bundles().await.expect_err("no answer");
    })
    .await;
    let methods = [
        "FetchX509SVID",
        "FetchX509Bundles",
        "FetchJWTSVID",
        "FetchJWTBundles",
        "ValidateJWTSVID",
        "FetchWITSVID",
        "FetchWITBundles",
    ];
    let expected = methods.map(|method| Seen { method, header: vec!["true".to_owned()] });
    assert_eq!(*mock.seen.lock().unwrap(), expected);
}

async fn retries() {
    let dir = tempfile::tempdir().unwrap();
    let mock = Mock::default();
    let client = mock.serve(dir.path());
    for (status, worth_it) in [
        (Status::invalid_argument("x"), false),
        (Status::unimplemented("x"), false),
        (Status::unavailable("x"), true),
        (Status::permission_denied("x"), true),
    ] {
        mock.x509.lock().unwrap().push_back(vec![Err(status.clone())]);
        let error = within(client.fetch_x509()).await.expect_err("the status");
        assert_eq!(error.is_retryable(), worth_it, "{status:?} is {error:?}");
    }
    let nobody = WorkloadApi::new(Endpoint::Unix(dir.path().join("nobody.sock")));
    let error = within(nobody.fetch_x509()).await.expect_err("nobody is there");
    assert!(error.is_retryable() && matches!(error, ClientError::Unreachable { .. }), "{error:?}");
}

async fn wit_is_not_offered() {
    let dir = tempfile::tempdir().unwrap();
    let mock = Mock::default();
    let client = mock.serve(dir.path());
    let (mut wits, mut bundles) = (client.watch_wit(), client.watch_wit_bundles());
    for error in [within(wits.next()).await.unwrap_err(), within(bundles.next()).await.unwrap_err()] {
        assert!(matches!(error, ClientError::NotOffered(_)) && !error.is_retryable(), "{error:?}");
    }
    assert_eq!(mock.seen.lock().unwrap().len(), 2, "nobody asks again by himself");
    // A program that watches goes by that word, as `tether fetch wit --watch` does: it ends.
}

/// A sound message, from a real agent, with two SVIDs.
async fn sound() -> X509svidResponse {
    let agent = TestAgent::start().await;
    agent.write_entries("more.toml", &entry("more", "more", "hint = \"more\"")).await;
    x509(&agent).await
}

async fn empty_fields() {
    let sound = sound().await;
    type Empty = fn(&mut X509svid);
    let fields: [(&str, Empty); 4] = [
        ("spiffe_id", |svid| svid.spiffe_id.clear()),
        ("x509_svid", |svid| svid.x509_svid.clear()),
        ("x509_svid_key", |svid| svid.x509_svid_key.clear()),
        ("bundle", |svid| svid.bundle.clear()),
    ];
    for (name, empty) in fields {
        let mut wrong = sound.clone();
        empty(&mut wrong.svids[1]);
        let (dir, mock) = (tempfile::tempdir().unwrap(), Mock::default());
        mock.x509.lock().unwrap().push_back(vec![Ok(wrong), Ok(sound.clone())]);
        let mut watch = mock.serve(dir.path()).watch_x509();
        let error = within(watch.next()).await.expect_err(name);
        assert!(matches!(error, ClientError::Malformed(_)), "{error:?}");
        assert_eq!(within(watch.next()).await.expect("the next message is sound").svids.len(), 2);
    }
    let (dir, mock) = (tempfile::tempdir().unwrap(), Mock::default());
    let client = mock.serve(dir.path());
    let none = X509svidResponse { svids: Vec::new(), ..sound };
    mock.x509.lock().unwrap().push_back(vec![Ok(none)]);
    within(client.fetch_x509()).await.expect_err("no SVID");
    *mock.jwt.lock().unwrap() = Some(JwtsvidResponse::default());
    within(client.fetch_jwt(&[AUDIENCE.to_owned()], None)).await.expect_err("no SVID");
    *mock.jwt.lock().unwrap() = Some(JwtsvidResponse { svids: vec![Jwtsvid::default()] });
    within(client.fetch_jwt(&[AUDIENCE.to_owned()], None)).await.expect_err("an empty SVID");
    *mock.x509_bundles.lock().unwrap() = Some(X509BundlesResponse::default());
    within(client.fetch_x509_bundles()).await.expect_err("no bundle");
    *mock.jwt_bundles.lock().unwrap() = Some(JwtBundlesResponse::default());
    within(client.fetch_jwt_bundles()).await.expect_err("no bundle");
    let id = "spiffe://dev.tether.internal".to_owned();
    *mock.jwt_bundles.lock().unwrap() = Some(JwtBundlesResponse { bundles: HashMap::from([(id, Bytes::new())]) });
    within(client.fetch_jwt_bundles()).await.expect_err("an empty bundle");
    *mock.validated.lock().unwrap() = Some(ValidateJwtsvidResponse::default());
    within(client.validate_jwt(AUDIENCE, "token")).await.expect_err("nobody's token");
}

async fn replaced() {
    let first = sound().await;
    let foreign = HashMap::from([("spiffe://partner.example".to_owned(), first.svids[0].bundle.clone())]);
    let with = X509svidResponse { federated_bundles: foreign, ..first.clone() };
    let mut without = first;
    without.svids.truncate(1);
    let (dir, mock) = (tempfile::tempdir().unwrap(), Mock::default());
    mock.x509.lock().unwrap().push_back(vec![Ok(with), Ok(without)]);
    let mut watch = mock.serve(dir.path()).watch_x509();
    let state = within(watch.next()).await.unwrap();
    assert_eq!((state.svids.len(), state.federated.len()), (2, 1));
    let state = within(watch.next()).await.unwrap();
    assert_eq!((state.svids.len(), state.federated.len()), (1, 0));
}

async fn reconnects() {
    let mut agent = TestAgent::start().await;
    let mut watch = WorkloadApi::new(Endpoint::Unix(agent.socket().to_owned())).watch_x509();
    let before = within(watch.next()).await.unwrap();
    agent.restart().await;
    let after = within(async {
        loop {
            match watch.next().await {
                Ok(state) => break state,
                Err(error) => assert!(error.is_retryable(), "{error:?}"),
            }
        }
    })
    .await;
    assert_eq!(after.svids[0].id, before.svids[0].id);
    assert_eq!(after.svids[0].bundle, before.svids[0].bundle);
}

async fn peers() {
    let (agent, foreign) = crate::support::foreign::Foreign::partner().await;
    let state = within(WorkloadApi::new(Endpoint::Unix(agent.socket().to_owned())).fetch_x509()).await.unwrap();
    let now = agent.clock().now();
    let chain = tether::x509::Chain::from_der(&foreign.root.leaf(&foreign.workload(), now, |_| ())).unwrap();
    let partner = TrustDomain::parse(&foreign.domain).unwrap();
    let believed = verify(&chain, &state.federated[&partner], now, &[]).expect("by its own bundle");
    assert_eq!(believed.spiffe_id().as_str(), foreign.workload());
    verify(&chain, &state.svids[0].bundle, now, &[]).expect_err("not by ours");
    verify(&state.svids[0].chain, &state.federated[&partner], now, &[]).expect_err("nor ours by theirs");
    assert!(!state.federated.contains_key(&TrustDomain::parse("unknown.example").unwrap()));
}

async fn repeated_hint() {
    let mut message = sound().await;
    for svid in &mut message.svids {
        svid.hint = "internal".to_owned();
    }
    let first = message.svids[0].spiffe_id.clone();
    let (dir, mock) = (tempfile::tempdir().unwrap(), Mock::default());
    mock.x509.lock().unwrap().push_back(vec![Ok(message)]);
    let state = within(mock.serve(dir.path()).fetch_x509()).await.unwrap();
    assert_eq!(state.svids.len(), 1);
    assert_eq!(state.svids[0].id.as_str(), first);
}

async fn strange_hints() {
    let mut message = sound().await;
    message.svids[0].hint = "\u{1f511} a hint\nof \"any\" kind".repeat(100);
    message.svids[1].hint.clear();
    let hint = message.svids[0].hint.clone();
    let (dir, mock) = (tempfile::tempdir().unwrap(), Mock::default());
    mock.x509.lock().unwrap().push_back(vec![Ok(message)]);
    let state = within(mock.serve(dir.path()).fetch_x509()).await.unwrap();
    assert_eq!(state.svids[0].hint.as_deref(), Some(hint.as_str()));
    assert_eq!(state.svids[1].hint, None);

    let agent = TestAgent::start().await;
    assert_eq!(jwt(&agent, &[AUDIENCE], "").await.unwrap()[0].hint, "");
}
