//! Clocks that are set, and hosts that sleep: to the agent both are a wall clock that stands elsewhere all at once.

use tether::id::TrustDomain;
use tether::proto::admin::{CredentialFilter, RevokeCredentialsRequest, VerifyAuditRequest};
use tether::proto::session::{GetRequest, ProveRequest, State};
use tether::proto::workload::{
    JwtsvidRequest, ValidateJwtsvidRequest, X509BundlesRequest, X509svidRequest, X509svidResponse,
};
use tether::x509::{Chain, X509Authorities, X509Error, verify};
use time::{Duration, OffsetDateTime};
use tonic::Code;

use crate::harness::{TestAgent, Workload, next, within};
use crate::revocation::{self, Victim, believe, bundles, revokes};
use crate::sessions::task;

/// By how much the clock is set.
const JUMPS: [Duration; 4] = [Duration::hours(1), Duration::days(1), Duration::hours(-1), Duration::days(-1)];
const TOOL: &str = "https://tool.example.com/";

fn set_by(agent: &TestAgent, jump: Duration) {
    agent.clock().set(agent.clock().now() + jump);
}

/// Whether a peer whose clock stands there believes it, by the bundle that came with it.
fn believed(answer: &X509svidResponse, now: OffsetDateTime) -> Result<(), X509Error> {
    let svid = &answer.svids[0];
    let domain = TrustDomain::parse("dev.tether.internal").unwrap();
    let authorities = X509Authorities::from_der(domain, &svid.bundle).unwrap();
    verify(&Chain::from_der(&svid.x509_svid).unwrap(), &authorities, now, &[]).map(drop)
}

async fn token(client: &mut Workload) -> Result<String, tonic::Status> {
    let request = JwtsvidRequest { audience: vec!["demo".to_owned()], spiffe_id: String::new() };
    client.fetch_jwtsvid(request).await.map(|answer| answer.into_inner().svids.remove(0).svid)
}

async fn is_valid(client: &mut Workload, token: &str) -> bool {
    let request = ValidateJwtsvidRequest { audience: "demo".to_owned(), svid: token.to_owned() };
    client.validate_jwtsvid(request).await.is_ok()
}

async fn revoke_tokens(agent: &TestAgent) {
    let filter = Some(CredentialFilter { kind: "jwt".to_owned(), ..CredentialFilter::default() });
    let revoke = RevokeCredentialsRequest { filter, reason: String::new(), dry_run: false };
    agent.credentials().await.revoke(revoke).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn wherever_the_clock_is_set_to_streams_and_callers_get_what_is_believed_there() {
    // A node that has just begun trusts a root that is younger than the jump; another one does not.
    for (jump, age) in JUMPS.into_iter().flat_map(|jump| [(jump, 0), (jump, 40)]) {
        let agent = TestAgent::start().await;
        for _ in 0..age {
            agent.clock().advance(std::time::Duration::from_secs(3600));
            tokio::task::yield_now().await;
        }
        let mut client = agent.workload().await;
        let mut stream = client.fetch_x509svid(X509svidRequest {}).await.unwrap().into_inner();
        while believed(&next(&mut stream).await.unwrap(), agent.clock().now()).is_err() {}
        set_by(&agent, jump);
        let now = agent.clock().now();

        // At once, before anything else has noticed: something that lives, or nothing.
        match client.fetch_x509svid(X509svidRequest {}).await {
            Ok(answer) => match next(&mut answer.into_inner()).await {
                Ok(answer) => {
                    let chain = Chain::from_der(&answer.svids[0].x509_svid).unwrap();
                    assert!(chain.leaf().not_after() > now, "{jump}, {age}: an expired SVID");
                }
                Err(status) => assert_eq!(status.code(), Code::Unavailable, "{jump}, {age}: {status}"),
            },
            Err(status) => assert_eq!(status.code(), Code::Unavailable, "{jump}, {age}: {status}"),
        }
        // The stream brings what is believed without being asked.
        while believed(&next(&mut stream).await.unwrap(), now).is_err() {}
        let mut fresh = client.fetch_x509svid(X509svidRequest {}).await.unwrap().into_inner();
        believed(&next(&mut fresh).await.unwrap(), now).unwrap_or_else(|error| panic!("{jump}, {age}: {error}"));
        let token = token(&mut client).await.unwrap();
        assert!(is_valid(&mut client, &token).await, "{jump}, {age}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lists_of_revocations_are_those_of_the_time_the_clock_was_set_to() {
    for jump in JUMPS {
        let agent = revocation::agent().await;
        let mut victim = Victim::of(&agent).await;
        victim.die(&agent).await;
        let mut stream = agent.workload().await.fetch_x509_bundles(X509BundlesRequest {}).await.unwrap().into_inner();
        next(&mut stream).await.unwrap();
        set_by(&agent, jump);
        let is_of_then = |lists: &[tonic::codegen::Bytes]| {
            let now = agent.clock().now().unix_timestamp();
            lists.iter().all(|list| {
                let (_, list) = x509_parser::parse_x509_crl(list).unwrap();
                let next = list.next_update().unwrap().timestamp();
                list.last_update().timestamp() <= now && now < next
            })
        };
        while !is_of_then(&bundles(&agent).await.crl) {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_revoked_is_believed_again_when_the_clock_was_wrong_for_a_while() {
    for jump in JUMPS {
        let agent = revocation::agent().await;
        let mut client = agent.workload().await;
        let mut victim = Victim::of(&agent).await;
        let bearer = token(&mut client).await.unwrap();
        victim.die(&agent).await;
        revoke_tokens(&agent).await;
        assert!(revokes(&bundles(&agent).await.crl, &victim));

        set_by(&agent, jump);
        // What is over is forgotten when the next one is issued, which a rotation may have to come before.
        within(async { while token(&mut client).await.is_err() {} }).await;
        assert!(!is_valid(&mut client, &bearer).await, "{jump}");
        assert!(believe(&agent, &victim, &bundles(&agent).await).is_err(), "{jump}");
        set_by(&agent, -jump);
        within(async { while token(&mut client).await.is_err() {} }).await;
        assert!(!is_valid(&mut client, &bearer).await, "{jump} and back");
        let published = bundles(&agent).await;
        assert!(believe(&agent, &victim, &published).is_err(), "{jump} and back");
        assert!(revokes(&published.crl, &victim), "{jump} and back");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_issued_by_a_clock_that_was_ahead_lasts_longer_and_can_be_ended_all_the_same() {
    let agent = TestAgent::start().await;
    let mut client = agent.workload().await;
    set_by(&agent, Duration::hours(1));
    let of_the_future = token(&mut client).await.unwrap();
    set_by(&agent, Duration::hours(-1));
    assert!(is_valid(&mut client, &of_the_future).await, "`iat` gates nothing (JWT-14)");
    revoke_tokens(&agent).await;
    assert!(!is_valid(&mut client, &of_the_future).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_ends_wherever_the_clock_is_set_to_beyond_its_time_and_stays_ended() {
    for jump in JUMPS {
        let agent = TestAgent::start().await;
        agent.clock().advance(std::time::Duration::from_secs(2));
        let mut sessions = agent.sessions().await;
        let id = sessions.start(task("t", &[TOOL])).await.unwrap().into_inner().id;
        let prove = || ProveRequest {
            session: id.clone(),
            method: "POST".to_owned(),
            uri: TOOL.to_owned(),
            ..ProveRequest::default()
        };
        sessions.prove(prove()).await.unwrap();
        set_by(&agent, jump);
        sessions.prove(prove()).await.unwrap_err();
        set_by(&agent, -jump);
        sessions.prove(prove()).await.unwrap_err();
        let request = GetRequest { session: id.clone(), ..GetRequest::default() };
        let session = sessions.get(request).await.unwrap().into_inner();
        let reason = if jump.is_positive() { "expired" } else { "clock_set_back" };
        assert_eq!((session.state(), session.end_reason.as_str()), (State::Ended, reason), "{jump}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_audit_log_holds_over_a_clock_that_is_set_back_and_a_restart() {
    let mut agent = TestAgent::start().await;
    for jump in JUMPS {
        set_by(&agent, jump);
        let mut client = agent.workload().await;
        within(async { while token(&mut client).await.is_err() {} }).await;
        agent.restart().await;
        let verified = agent.audit_log().await.verify(VerifyAuditRequest::default()).await.unwrap().into_inner();
        assert!(verified.ok, "{jump}: {}", verified.json);
    }
}
