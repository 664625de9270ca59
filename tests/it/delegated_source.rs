//! The library's sources and session clients on behalf of another process, against a real agent: what a proxy does.

use std::time::Duration;

use tether::client::session::{Call, SessionClient, SessionError, Within};
use tether::client::tls::{Authorize, Custody, Cut, Guard, PeerCertificates, SourceError, Standing, X509Source};
use tether::client::{ActFor, Endpoint};

use crate::another::Another;
use crate::harness::{TestAgent, uid, within};

const TARGET: &str = "https://tool.example.com/";

fn entries(may_act_for: &str) -> String {
    format!(
        r#"
[[entry]]
id = "everyone"
spiffe_id = "spiffe://dev.tether.internal/agent/a"
match = ["unix:uid:{uid}"]
owner = "team"
may_act_for = [{may_act_for}]
"#,
        uid = uid()
    )
}

/// An agent whose entry lets these tests act for other processes of their kind.
async fn agent() -> TestAgent {
    let agent = TestAgent::without_entries().await;
    agent.write_entries("entries.toml", &entries(r#""spiffe://dev.tether.internal/agent/*""#)).await;
    agent
}

async fn own(agent: &TestAgent) -> X509Source {
    let endpoint = Endpoint::Unix(agent.socket().to_owned());
    within(X509Source::connect_by(endpoint, Custody::Tether, agent.time())).await.unwrap()
}

fn act_for(another: &Another) -> ActFor {
    let named = another.named();
    ActFor { pid: named.pid, pidfs_inode: named.pidfs_inode, weak: false }
}

/// The leaf that a source presents, as a peer sees it.
fn presented(source: &X509Source) -> PeerCertificates {
    let state = source.state();
    let chain = state.identities()[0].chain();
    PeerCertificates::proven(chain.certificates().iter().map(|certificate| certificate.der().clone()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_presents_what_its_program_is_until_that_has_ended() {
    let agent = agent().await;
    let (own, another) = (own(&agent).await, Another::start(agent.socket()));
    let program = within(own.on_behalf_of(act_for(&another))).await.unwrap();
    assert_eq!(program.standing(), Standing::Live);
    assert_ne!(presented(&program), presented(&own), "each process has a certificate of its own");
    let guard = Guard::new(&program, &Authorize::Anyone, &presented(&own)).unwrap();

    another.end();
    let reason = within(program.ended()).await;
    assert!(!reason.is_empty());
    assert!(program.state().identities().is_empty());
    assert!(matches!(within(guard.cut()).await, Cut::Ended(_)), "and its connections end");
    assert_eq!(own.standing(), Standing::Live);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_may_no_longer_act_for_its_program_has_nothing_of_it() {
    let agent = agent().await;
    let (own, another) = (own(&agent).await, Another::start(agent.socket()));
    let program = within(own.on_behalf_of(act_for(&another))).await.unwrap();
    agent.write_entries("entries.toml", &entries("")).await;
    within(program.ended()).await;
    let refused = within(own.on_behalf_of(act_for(&another))).await.unwrap_err();
    assert!(matches!(refused, SourceError::Refused(_)), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delegate_proves_and_mints_in_the_session_of_its_program_and_outside_when_there_is_none() {
    // Under --dev policy permits sessions, and the entry lets every process of this user act for the others.
    let agent = TestAgent::start().await;
    agent.clock().advance(Duration::from_secs(2));
    let mut another = Another::start(agent.socket());
    let sessions = SessionClient::new(Endpoint::Unix(agent.socket().to_owned())).on_behalf_of(act_for(&another));
    let call = Call::new("GET", TARGET);

    let outside = sessions.prove_any(&call).await.unwrap();
    assert_eq!(outside.session, None);
    let none = sessions.find(None).await.unwrap_err();
    assert!(matches!(none, SessionError::NotFound(_)), "{none}");
    let token = sessions.bearer(Within::SessionIfAny, "https://outside.example/").await.unwrap();
    assert_eq!(token.session, None);

    let session = another.ask(&format!("start demo {TARGET}"));
    assert_eq!(sessions.find(None).await.unwrap().id, session);
    let inside = sessions.prove_any(&call).await.unwrap();
    assert_eq!(inside.session.as_deref(), Some(session.as_str()));
    let mut watch = sessions.watch(None);
    assert_eq!(within(watch.next()).await.unwrap().unwrap().id, session);

    another.end();
    let gone = sessions.prove_any(&call).await.unwrap_err();
    assert!(matches!(gone, SessionError::NotFound(_)), "{gone}");
}
