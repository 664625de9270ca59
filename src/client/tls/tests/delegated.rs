//! Sources of processes that this program acts for.

use futures_util::future::join_all;
use tonic::Status;

use super::*;
use crate::client::ActFor;
use crate::x509::Serial;

const PROGRAM: ActFor = ActFor { pid: 4711, pidfs_inode: 815, weak: true };

/// A site whose agent holds `/proxy` (serial 1) for this program and `/program` (serial 2) for the one it acts for, and
/// the sources of both.
async fn proxy() -> (Site, Documents, X509Source, X509Source) {
    let (site, td) = (Site::new(), Documents::of("example.org"));
    site.agent.believe(&[&td], vec![]);
    site.agent.hold(&td, &[("/proxy", 1)]);
    site.agent.hold_for(PROGRAM.pid, &td, &[("/program", 2)]);
    let own = site.source(Custody::Tether).await;
    let program = own.on_behalf_of(PROGRAM).await.expect("it may");
    (site, td, own, program)
}

#[tokio::test]
async fn a_source_for_another_process_presents_what_that_is_and_names_it_at_every_signature() {
    let (site, td, own, program) = proxy().await;
    let (client, server) = configs((&program, td.id("/proxy").into()), (&own, td.id("/program").into()));
    let connected = connect(&client, &server).await.map_err(|errors| format!("{errors:?}")).expect("connected");
    assert_eq!(peer_id(connected.server.get_ref().1), Some(td.id("/program")));
    let named = Some(PROGRAM.to_wire());
    let mut signed: Vec<_> = site.agent.signed().iter().map(|it| (it.key.clone(), it.on_behalf_of)).collect();
    signed.sort_by(|one, other| one.0.cmp(&other.0));
    assert_eq!(signed, [("key-1".to_owned(), None), ("key-2".to_owned(), named)]);

    let mut changes = program.changes();
    site.agent.hold_for(PROGRAM.pid, &td, &[("/program", 3)]);
    let state = changes.next().await.expect("the source is there");
    let serial = Serial::from_random([3; 16]);
    assert_eq!(state.identities()[0].chain().leaf().serial(), &serial, "it rotates");
    assert_eq!(own.state().identities()[0].id(), &td.id("/proxy"));
}

#[tokio::test]
async fn a_source_ends_for_good_with_its_process_and_with_the_right_to_act_for_it() {
    for status in [Status::not_found("process 4711 has exited"), Status::permission_denied("no `may_act_for`")] {
        let (site, td, own, program) = proxy().await;
        let (client, server) = configs((&program, Authorize::Anyone), (&own, Authorize::Anyone));
        let open = connect(&client, &server).await.map_err(|errors| format!("{errors:?}")).expect("connected");
        let server_at = PeerCertificates::of(open.client.get_ref().1).expect("a peer");
        let guard = Guard::new(&program, &Authorize::Anyone, &server_at).expect("believed");

        site.agent.refuse(PROGRAM.pid, status.clone());
        assert!(program.ended().await.contains(status.message()), "{status}");
        assert!(program.state().identities().is_empty());
        assert!(matches!(guard.cut().await, Cut::Ended(reason) if reason.contains(status.message())));
        let [_, by_server] = refusals(connect(&client, &server).await);
        assert_eq!(by_server, Some(Error::NoCertificatesPresented), "{status}");

        assert_eq!(own.standing(), Standing::Live, "the program itself goes on");
        site.agent.hold_for(PROGRAM.pid, &td, &[("/program", 3)]);
        assert!(matches!(program.standing(), Standing::Ended { .. }), "there is no way back");
        assert!(own.on_behalf_of(PROGRAM).await.is_ok(), "but a new one");
    }
}

#[tokio::test]
async fn who_may_not_act_for_a_process_is_told_at_once_and_does_not_wait() {
    let (site, _, own, _) = proxy().await;
    let other = ActFor { pid: 1, ..PROGRAM };
    for status in [Status::permission_denied("not"), Status::not_found("gone"), Status::invalid_argument("no inode")] {
        site.agent.refuse(other.pid, status.clone());
        let refused = own.on_behalf_of(other).await.expect_err("refused");
        let SourceError::Refused(reason) = refused else { panic!("{refused}") };
        assert!(reason.to_string().contains(status.message()), "{reason}");
    }
}

#[tokio::test]
async fn an_agent_that_is_away_ends_nothing() {
    let (mut site, td, own, program) = proxy().await;
    site.served.stop();
    for source in [&own, &program] {
        source.standing_is(|standing| matches!(standing, Standing::Away { .. })).await;
    }
    site.served.start(site.agent.routes());
    for source in [&own, &program] {
        source.standing_is(|standing| *standing == Standing::Live).await;
    }
    let (client, server) = configs((&program, td.id("/proxy").into()), (&own, td.id("/program").into()));
    assert!(connect(&client, &server).await.is_ok());
}

#[tokio::test]
async fn a_process_is_asked_about_as_long_as_somebody_wants_to_know() {
    let (site, _, own, program) = proxy().await;
    let config = client_config(&program, Authorize::Anyone);
    drop(program);
    assert_eq!(own.standing(), Standing::Live);
    drop(config);
    site.agent.is_not_asked_for(PROGRAM.pid).await;
}

#[tokio::test]
async fn many_processes_do_not_keep_a_handshake_from_its_signature() {
    let (site, td, own, _) = proxy().await;
    // More than one connection has room for.
    let others = (5000..5300).map(|pid| ActFor { pid, ..PROGRAM });
    let sources = others.map(|other| {
        site.agent.hold_for(other.pid, &td, &[("/program", 2)]);
        own.on_behalf_of(other)
    });
    let sources: Vec<_> = join_all(sources).await.into_iter().map(|source| source.expect("it may")).collect();
    let (client, server) = configs((&sources[299], Authorize::Anyone), (&own, Authorize::Anyone));
    assert!(connect(&client, &server).await.is_ok());
}

#[tokio::test]
async fn keys_of_other_processes_are_with_tether_whoever_holds_those_of_this_program() {
    let (site, td, _, _) = proxy().await;
    site.agent.give(&td, &[("/proxy", 4)]);
    let own = site.source(Custody::Program).await;
    let program = own.on_behalf_of(PROGRAM).await.expect("it may");
    let (client, server) = configs((&program, Authorize::Anyone), (&own, Authorize::Anyone));
    assert!(connect(&client, &server).await.is_ok());
    assert_eq!(site.agent.signed().len(), 1, "the program's own key signs here");
}
