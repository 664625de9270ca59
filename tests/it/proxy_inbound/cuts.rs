//! What is open does not outlive what it stands on.

use std::time::Duration;

use http::Method;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tether::proxy::empty;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::stage::Stage;
use crate::harness::within;
use crate::revocation::Victim;

/// A stream of events that has begun.
async fn is_open(stage: &Stage, events: &mut Incoming) {
    stage.tool.event("on");
    assert_eq!(within(events.frame()).await.expect("an event").unwrap().into_data().unwrap(), "on");
}

async fn is_cut(events: &mut Incoming) {
    let cut = within(async {
        loop {
            match events.frame().await {
                Some(Ok(_)) => {}
                Some(Err(_)) => return true,
                None => return false,
            }
        }
    });
    assert!(cut.await, "it is cut, and does not look finished");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_client_is_cut_in_the_middle_of_streams_and_websockets_and_others_are_not() {
    let stage = Stage::start().await;
    let mut victim = Victim::of(&stage.agent).await;
    let get = || stage.request(Method::GET, "/events").body(empty()).unwrap();
    let mut thief = stage.client_of(stage.tls_stolen(&victim.stolen()), true).await;
    let mut stolen = thief.send(get()).await.into_body();
    let tls = stage.tls_stolen(&victim.stolen());
    let mut socket = stage.websocket_of(tls, "websocket", &http::HeaderMap::new()).await;
    let mut other = stage.client(true).await;
    let mut others = other.send(get()).await.into_body();
    is_open(&stage, &mut stolen).await;
    is_open(&stage, &mut others).await;
    socket.write_all(b"?").await.unwrap();
    assert_eq!(within(socket.read_u8()).await.unwrap(), b'?');

    // The last list was announced a second ago or more, so the next one is announced at once.
    stage.agent.clock().advance(Duration::from_secs(1));
    victim.die(&stage.agent).await;
    is_cut(&mut stolen).await;
    let mut rest = Vec::new();
    let _ = within(socket.read_to_end(&mut rest)).await;
    assert!(rest.is_empty());
    is_open(&stage, &mut others).await;
    let again = stage.connect(stage.tls_stolen(&victim.stolen()), b"h2").await;
    let let_in = match again {
        Ok(mut stream) => within(stream.read_u8()).await.is_ok(),
        Err(_) => false,
    };
    assert!(!let_in, "nor does it come in again");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_open_for_a_session_ends_with_it_and_the_connection_goes_on_for_others() {
    let stage = Stage::start().await;
    let (ends, stays) = (stage.session("ends").await, stage.session("stays").await);
    let mut client = stage.client(true).await;
    let mut open = Vec::new();
    for session in [&ends, &stays] {
        let mut request = stage.request(Method::GET, "/events").body(empty()).unwrap();
        request.headers_mut().extend(stage.prove(session, Method::GET, "/events").await);
        open.push(client.send(request).await.into_body());
    }
    let proof = stage.prove(&ends, Method::GET, "/ws").await;
    let mut socket = stage.websocket_of(stage.tls("client"), "websocket", &proof).await;
    for events in &mut open {
        is_open(&stage, events).await;
        // The other one has the event too.
    }
    within(stage.sessions().end(Some(&ends))).await.unwrap();
    is_cut(&mut open[0]).await;
    let mut rest = Vec::new();
    let _ = within(socket.read_to_end(&mut rest)).await;
    assert!(rest.is_empty(), "{rest:?}");
    is_open(&stage, &mut open[1]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_clients_certificate_ends_nothing_new_begins_on_its_connection_and_open_streams_go_on() {
    let stage = Stage::start().await;
    let mut client = stage.client(true).await;
    let mut events = client.send(stage.request(Method::GET, "/events").body(empty()).unwrap()).await.into_body();
    is_open(&stage, &mut events).await;
    // The client's source renews at half of the life; the connection has the old certificate.
    stage.renewed().await;
    assert_eq!(client.send(stage.request(Method::GET, "/a").body(empty()).unwrap()).await.status(), 200);
    stage.agent.clock().advance(Duration::from_secs(6 * 60));
    let refused = within(async {
        loop {
            match client.try_send(stage.request(Method::GET, "/a").body(empty()).unwrap()).await {
                Ok(answer) if answer.status() == 200 => {}
                Ok(answer) => return answer.status() == 401,
                Err(_) => return true,
            }
        }
    });
    assert!(refused.await);
    is_open(&stage, &mut events).await;
    let mut renewed = stage.client(true).await;
    assert_eq!(renewed.send(stage.request(Method::GET, "/a").body(empty()).unwrap()).await.status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_cannot_be_heard_of_after_the_agent_was_away_does_not_keep_its_streams() {
    let mut stage = Stage::start().await;
    let session = stage.session("forgotten").await;
    let mut client = stage.client(true).await;
    let mut request = stage.request(Method::GET, "/events").body(empty()).unwrap();
    request.headers_mut().extend(stage.prove(&session, Method::GET, "/events").await);
    let mut events = client.send(request).await.into_body();
    let mut outside = client.send(stage.request(Method::GET, "/events").body(empty()).unwrap()).await.into_body();
    is_open(&stage, &mut outside).await;
    stage.agent.restart().await;
    is_cut(&mut events).await;
    is_open(&stage, &mut outside).await;
}
