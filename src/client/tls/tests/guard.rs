//! Open connections, and what closes them.

use std::pin::pin;

use futures_util::FutureExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::x509::X509Error;

/// A server's open connection with `/client` (serial 2), and the guard over it.
async fn guarded() -> (Site, Documents, X509Source, Guard) {
    let (site, td, server, client) = two_held().await;
    let (client_config, server_config) = configs((&client, Authorize::Anyone), (&server, Authorize::Anyone));
    let open =
        connect(&client_config, &server_config).await.map_err(|errors| format!("{errors:?}")).expect("connected");
    let peer = PeerCertificates::of(open.server.get_ref().1).expect("a peer");
    let guard = Guard::new(&server, &td.id("/client").into(), &peer).expect("believed");
    assert_eq!(guard.peer(), &td.id("/client"));
    (site, td, server, guard)
}

#[tokio::test]
async fn an_open_connection_is_cut_by_the_list_that_names_its_peer_and_by_no_other() {
    let (site, td, server, guard) = guarded().await;
    let (mut cut, mut changes) = (pin!(guard.cut()), server.changes());
    for innocent in [td.crl(&[]), td.crl(&[9])] {
        site.agent.believe(&[&td], vec![innocent]);
        changes.next().await.expect("the source is there");
        assert!(cut.as_mut().now_or_never().is_none());
    }
    site.agent.hold(&td, &[("/server", 3), ("/client", 4)]);
    changes.next().await.expect("the source is there");
    assert!(cut.as_mut().now_or_never().is_none(), "a rotation of its own is no reason");
    site.agent.believe(&[&td], vec![td.crl(&[2])]);
    let cut = cut.await;
    assert!(matches!(cut, Cut::Peer(PeerError::Certificate(X509Error::Revoked))), "{cut:?}");
}

#[tokio::test]
async fn an_open_connection_is_cut_when_the_authority_behind_its_peer_is_gone() {
    let other = Documents::of("example.org");
    let foreign = Documents::of("partner.example");
    for bundle in [&other, &foreign] {
        let (site, _td, _server, guard) = guarded().await;
        site.agent.believe(&[bundle], vec![]);
        let cut = guard.cut().await;
        assert!(
            matches!(cut, Cut::Peer(PeerError::Certificate(X509Error::UnknownAuthority | X509Error::NoBundle(_)))),
            "{cut:?}"
        );
    }
}

#[tokio::test]
async fn what_came_between_the_handshake_and_the_guard_is_not_missed() {
    let (site, td, server, client) = two_held().await;
    let (client_config, server_config) = configs((&client, Authorize::Anyone), (&server, Authorize::Anyone));
    let open =
        connect(&client_config, &server_config).await.map_err(|errors| format!("{errors:?}")).expect("connected");
    let peer = PeerCertificates::of(open.server.get_ref().1).expect("a peer");
    let not_authorised = Guard::new(&server, &td.id("/other").into(), &peer).expect_err("another");
    assert!(matches!(not_authorised, PeerError::NotAuthorised(_)));
    let guard = Guard::new(&server, &Authorize::Anyone, &peer).expect("believed");
    let mut changes = server.changes();
    site.agent.believe(&[&td], vec![td.crl(&[2])]);
    changes.next().await.expect("the source is there");
    assert!(matches!(guard.cut().now_or_never(), Some(Cut::Peer(_))), "it was judged before");
    assert!(Guard::new(&server, &Authorize::Anyone, &peer).is_err());
}

#[tokio::test]
async fn the_end_of_the_certificate_is_told_apart() {
    let (site, td, server, guard) = guarded().await;
    let (mut cut, mut expired) = (pin!(guard.cut()), pin!(guard.expired()));
    assert!(expired.as_mut().now_or_never().is_none());
    site.hand.advance(Duration::from_secs(3601));
    expired.await;
    assert!(guard.not_after() < site.clock.now());
    let mut changes = server.changes();
    site.agent.believe(&[&td], vec![]);
    changes.next().await.expect("the source is there");
    assert!(cut.as_mut().now_or_never().is_none(), "its authority stands");
    site.agent.believe(&[&Documents::of("example.org")], vec![]);
    assert!(matches!(cut.await, Cut::Peer(_)));
}

#[tokio::test]
async fn a_connection_under_a_guard_fails_for_who_reads_and_for_who_writes_once_it_is_cut() {
    let (site, td, _server, guard) = guarded().await;
    let (near, mut far) = tokio::io::duplex(8);
    let (mut reads, mut writes) = tokio::io::split(guard.over(near));
    writes.write_all(b"hello").await.expect("open");
    far.write_all(b"world").await.expect("open");
    let mut heard = [0; 5];
    reads.read_exact(&mut heard).await.expect("open");
    far.read_exact(&mut heard).await.expect("open");

    // Both wait: nothing is sent, and nothing is taken.
    let reading = tokio::spawn(async move { reads.read_u8().await });
    let writing = tokio::spawn(async move { writes.write_all(&[7; 64]).await });
    tokio::task::yield_now().await;
    site.agent.believe(&[&td], vec![td.crl(&[2])]);
    let read = reading.await.expect("not cancelled").expect_err("cut");
    let written = writing.await.expect("not cancelled").expect_err("cut");
    let told = |error: &io::Error| error.get_ref().is_some_and(|inner| inner.is::<Cut>());
    for error in [&read, &written] {
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted, "{error}");
    }
    assert!(told(&read) || told(&written), "one of them says why");
    // Both halves are gone, and the connection with them.
    let mut rest = Vec::new();
    far.read_to_end(&mut rest).await.expect("closed");
    assert_eq!(rest, [7; 8]);
}
