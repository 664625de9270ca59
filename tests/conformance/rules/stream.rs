//! Open streams of the Workload API: complete state at once, then each change once, and the end.
//!
//! That nothing is sent is shown by order: what must not be sent is caused first, then something that must, and that
//! is what comes next.

use std::time::Duration;

use serde_json::json;
use tether::proto::admin::{DeleteEntryRequest, RevokeAuthorityRequest, RotateAuthorityRequest};
use tether::proto::workload::{JwtBundlesRequest, X509BundlesRequest};
use tether::x509::Certificate;
use tonic::Code;

use super::workload::ids;
use super::x509_issuer::{parse, split};
use crate::harness::{TestAgent, next, within};
use crate::support::foreign::{Foreign, federate_with};
use crate::support::{DOMAIN_ID, create, entry, jwt_bundles, refused, run, x509, x509_bundles, x509_stream};
use crate::table::{Rule, Shown};

pub const RULES: &[Rule] = &[
    Rule {
        id: "WL-02",
        binds: "end",
        says: "every message is the whole state: when one of two SVIDs changes, both are in it",
        shown: Shown::Test(|| run(whole_state())),
    },
    Rule {
        id: "WL-03",
        binds: "end",
        says: "every new subscription gets a message at once, though nothing changed",
        shown: Shown::Test(|| run(first_message())),
    },
    Rule {
        id: "WL-04",
        binds: "end",
        says: "entries, renewal, authorities and bundles arrive as events, and what changes nothing is not sent",
        shown: Shown::Test(|| run(events())),
    },
    Rule {
        id: "WL-05",
        binds: "end",
        says: "losing the entry ends every open stream with PermissionDenied",
        shown: Shown::Test(|| run(loss())),
    },
];

const MINUTE: Duration = Duration::from_secs(60);

async fn rotate(agent: &TestAgent, kind: &str) {
    let request = RotateAuthorityRequest { kind: kind.to_owned(), now: true };
    within(async { agent.authorities().await.rotate(request).await }).await.unwrap();
}

async fn whole_state() {
    let agent = TestAgent::without_entries().await;
    let (a, b) = (entry("a", "a", ""), entry("b", "b", ""));
    agent.write_entries("two.toml", &(a.clone() + &b)).await;
    let mut stream = x509_stream(&mut agent.workload().await).await;
    let first = next(&mut stream).await.unwrap();
    assert_eq!(ids(&first).len(), 2);
    // A shorter life for one of them: that one is made anew.
    agent.write_entries("two.toml", &(a + &entry("b", "b", "x509_ttl = \"5m\""))).await;
    let second = next(&mut stream).await.unwrap();
    assert_eq!(ids(&second), ids(&first));
    let changed: Vec<bool> = first.svids.iter().zip(&second.svids).map(|(old, new)| old != new).collect();
    assert_eq!(changed.iter().filter(|&&changed| changed).count(), 1, "one changed, both are there");
}

async fn first_message() {
    let agent = TestAgent::start().await;
    let mut client = agent.workload().await;
    let mut open = x509_stream(&mut client).await;
    let first = next(&mut open).await.unwrap();
    for _ in 0..3 {
        let mut more = x509_stream(&mut client).await;
        assert_eq!(next(&mut more).await.unwrap(), first, "at once, and the same");
        assert_eq!(x509(&agent).await, first, "on a new connection too");
    }
    let bundles = x509_bundles(&agent).await;
    assert_eq!(x509_bundles(&agent).await, bundles);
    assert_eq!(jwt_bundles(&agent).await, jwt_bundles(&agent).await);
}

/// Each change is made only after something that must not be seen: had that been sent, it would come first.
async fn events() {
    let agent = TestAgent::start().await;
    let mut client = agent.workload().await;
    let mut svids = x509_stream(&mut client).await;
    let mut x509_bundles = within(client.fetch_x509_bundles(X509BundlesRequest {})).await.unwrap().into_inner();
    let mut jwt_bundles = within(client.fetch_jwt_bundles(JwtBundlesRequest {})).await.unwrap().into_inner();
    let mut state = next(&mut svids).await.unwrap();
    let mut roots = next(&mut x509_bundles).await.unwrap();
    let first_keys = next(&mut jwt_bundles).await.unwrap();

    // An entry of somebody else, a token key, a foreign bundle that no entry of ours names: nothing about X.509 here.
    let other = entry("other", "other", "").replace("unix:uid:", "unix:uid:99");
    agent.write_entries("other.toml", &other).await;
    rotate(&agent, "jwt").await;
    let foreign = Foreign::new("partner.example", &agent);
    foreign.set(&agent, &foreign.bundle()).await;
    let mut keys = next(&mut jwt_bundles).await.unwrap();
    assert_ne!(keys, first_keys, "the token key is an event for those who watch token keys");

    // An entry edit.
    federate_with(&agent, &["partner.example"]).await;
    let told = next(&mut svids).await.unwrap();
    assert_eq!(ids(&told)[0], "federated");
    assert_eq!(told.svids[1], state.svids[0]);
    assert_eq!(told.federated_bundles.keys().collect::<Vec<_>>(), ["spiffe://partner.example"]);
    state = told;
    let told = next(&mut x509_bundles).await.unwrap();
    assert_eq!((roots.bundles.len(), told.bundles.len()), (1, 2));
    roots = told;
    let told = next(&mut jwt_bundles).await.unwrap();
    assert_eq!((keys.bundles.len(), told.bundles.len()), (1, 2));
    keys = told;

    // Only the foreign token key changes, then only the foreign root.
    let key = Foreign::new("partner.example", &agent);
    foreign.set(&agent, &json!({ "keys": [foreign.root.jwk(), key.jwt_key()] })).await;
    let told = next(&mut jwt_bundles).await.unwrap();
    assert_ne!(told, keys);
    keys = told;
    foreign.set(&agent, &json!({ "keys": [key.root.jwk(), key.jwt_key()] })).await;
    let told = next(&mut svids).await.unwrap();
    assert_eq!(told.svids, state.svids, "the SVIDs stay");
    assert_eq!(told.federated_bundles["spiffe://partner.example"], key.root.der);
    state = told;
    let told = next(&mut x509_bundles).await.unwrap();
    assert_ne!(told, roots);
    roots = told;

    // Renewal, which changes no bundle.
    agent.clock().advance(MINUTE * 9);
    loop {
        let told = next(&mut svids).await.unwrap();
        assert_ne!(told, state, "never the same twice");
        state = told;
        if state.svids.iter().all(|svid| lasts(&agent, svid.x509_svid.as_ref()) > MINUTE * 14) {
            break;
        }
    }

    // A new root: in the bundle, and everything signed anew in its time.
    rotate(&agent, "x509-root").await;
    let told = next(&mut x509_bundles).await.unwrap();
    assert!(told.bundles[DOMAIN_ID].len() > roots.bundles[DOMAIN_ID].len());
    let told = next(&mut svids).await.unwrap();
    assert_ne!(told.svids[0].bundle, state.svids[0].bundle);
    state = told;
    // The token keys saw none of this: the next they hear of is their own.
    rotate(&agent, "jwt").await;
    let told = next(&mut jwt_bundles).await.unwrap();
    assert_eq!(told.bundles["spiffe://partner.example"], keys.bundles["spiffe://partner.example"]);
    assert_ne!(told.bundles[DOMAIN_ID], keys.bundles[DOMAIN_ID]);

    // An authority that is revoked: everything it signed is replaced.
    let signed_ours = Certificate::from_der(&split(&state.svids[0].x509_svid)[1]).unwrap().serial().to_string();
    let revoke = RevokeAuthorityRequest { id: signed_ours };
    within(async { agent.authorities().await.revoke(revoke).await }).await.unwrap();
    let before = state.svids[0].x509_svid.clone();
    while state.svids[0].x509_svid == before {
        let told = next(&mut svids).await.unwrap();
        assert_ne!(told, state, "never the same twice");
        state = told;
    }
    assert_ne!(split(&state.svids[0].x509_svid)[1], split(&before)[1]);
}

fn lasts(agent: &TestAgent, chain: &[u8]) -> Duration {
    let end = parse(&split(chain)[0]).validity().not_after.to_datetime();
    (end - agent.clock().now()).try_into().unwrap_or_default()
}

async fn loss() {
    let agent = TestAgent::without_entries().await;
    create(&agent, entry("mine", "mine", "audiences = [\"*\"]")).await.unwrap();
    let mut client = agent.workload().await;
    let mut svids = x509_stream(&mut client).await;
    let mut x509_bundles = within(client.fetch_x509_bundles(X509BundlesRequest {})).await.unwrap().into_inner();
    let mut jwt_bundles = within(client.fetch_jwt_bundles(JwtBundlesRequest {})).await.unwrap().into_inner();
    next(&mut svids).await.unwrap();
    next(&mut x509_bundles).await.unwrap();
    next(&mut jwt_bundles).await.unwrap();
    let delete = DeleteEntryRequest { id: "mine".to_owned() };
    within(async { agent.entries().await.delete(delete).await }).await.unwrap();
    refused(next(&mut svids).await, Code::PermissionDenied, "no registration entry");
    refused(next(&mut x509_bundles).await, Code::PermissionDenied, "no registration entry");
    refused(next(&mut jwt_bundles).await, Code::PermissionDenied, "no registration entry");
    // An entry that ends by itself is lost in the same way.
    let ends = agent.clock().now() + MINUTE;
    let ends = ends.format(&time::format_description::well_known::Rfc3339).unwrap();
    create(&agent, entry("brief", "brief", &format!("expires_at = \"{ends}\""))).await.unwrap();
    let mut svids = x509_stream(&mut client).await;
    next(&mut svids).await.unwrap();
    agent.clock().advance(MINUTE * 2);
    let ended = loop {
        match next(&mut svids).await {
            Ok(renewed) => assert_eq!(ids(&renewed), ["brief"], "shortly before the end"),
            Err(status) => break Err::<(), _>(status),
        }
    };
    refused(ended, Code::PermissionDenied, "no registration entry");
}
