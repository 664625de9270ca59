//! What a thief tries at an outbound proxy.

use nix::sys::signal::Signal;
use serde_json::json;

use super::program::{Program, request};
use super::world::World;
use crate::program::{NOBODY, copy_program, is_root};

#[tokio::test(flavor = "multi_thread")]
async fn bytes_of_another_process_on_the_connection_end_it_and_go_nowhere() {
    let world = World::new().await;
    let proxy = world.proxy(&[]).await;
    let mut a = Program::connected(&world, "a", &proxy);
    assert_eq!(a.call("GET", "/own").status, 200);
    assert_eq!(a.ask(json!({ "hand_over": request("GET", "/stolen") })), "true");
    proxy.logs("sender_changed").await;
    a.is_cut();
    assert_eq!(world.tool.seen().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_becomes_another_one_while_it_is_connected_is_cut_at_its_next_byte() {
    let world = World::new().await;
    let (trusted, file) = (world.dir.path().join("trusted"), world.dir.path().join("request"));
    copy_program(std::path::Path::new("/bin/cat"), &trusted);
    std::fs::write(&file, request("GET", "/as-another")).unwrap();
    let proxy = world.proxy(&[]).await;
    let mut a = Program::connected(&world, "a", &proxy);
    assert_eq!(a.call("GET", "/own").status, 200);
    // Its number and its connection are the same; only the program is not.
    a.tell(json!({ "become": { "program": trusted, "file": file } }));
    proxy.logs("executable_changed").await;
    assert_eq!(world.tool.seen().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_was_sent_before_a_program_became_a_trusted_one_is_not_made_in_its_name() {
    let world = World::new().await;
    let trusted = world.dir.path().join("trusted");
    copy_program(std::path::Path::new("/bin/cat"), &trusted);
    let proxy = world.proxy(&[]).await;
    // What connects and writes now is accepted later.
    proxy.signal(Signal::SIGSTOP);
    let mut thief = Program::connected(&world, "unknown", &proxy);
    assert_eq!(thief.ask(json!({ "keep_over_exec": true })), "kept");
    assert_eq!(thief.ask(json!({ "send": request("GET", "/as-trusted") })), "sent");
    thief.become_trusted(&trusted);
    proxy.signal(Signal::SIGCONT);
    proxy.logs("is known less well").await;
    let line = proxy.logs("request refused").await;
    assert!(line.contains("denied"), "{line}");
    assert!(world.tool.seen().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_without_an_identity_gets_nowhere_whoever_told_it_the_path() {
    let world = World::new().await;
    let proxy = world.proxy(&[]).await;
    let mut a = Program::connected(&world, "a", &proxy);
    assert_eq!(a.call("GET", "/own").status, 200);
    let mut thief = Program::connected(&world, "unknown", &proxy);
    let refused = thief.call("GET", "/");
    assert_eq!((refused.status, &refused.json()["reason"]), (403, &"no_identity".into()), "{refused:?}");
    if is_root() {
        let mut other = Program::of_user(&world, "unknown", NOBODY, &proxy);
        assert_eq!(other.call("GET", "/").status, 403);
    }
    assert_eq!(world.tool.seen().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_is_no_delegate_of_a_program_acts_for_it_in_nothing() {
    let world = World::new().await;
    let file = world.agent.config().entries_dir.join("entries.toml");
    let entries = std::fs::read_to_string(&file).unwrap().replace("internal/program/*", "internal/program/b");
    world.agent.write_entries("entries.toml", &entries).await;
    let proxy = world.proxy(&[]).await;
    let mut a = Program::connected(&world, "a", &proxy);
    let refused = a.call("GET", "/");
    assert_eq!((refused.status, &refused.json()["error"]), (403, &"denied".into()), "{refused:?}");
    let mut b = Program::connected(&world, "b", &proxy);
    assert_eq!(b.call("GET", "/").status, 200);
    assert_eq!(world.tool.seen().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_for_another_place_or_in_two_readings_never_leaves() {
    let world = World::new().await;
    let proxy = world.proxy(&[]).await;
    let elsewhere = [
        ("GET / HTTP/1.1\r\nHost: other.example.com\r\n\r\n", 421),
        ("GET http://other.example.com/ HTTP/1.1\r\nHost: localhost\r\n\r\n", 421),
        ("GET http://169.254.169.254/ HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n", 421),
        ("GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", 400),
        ("CONNECT other.example.com:443 HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
        ("TRACE / HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
        ("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nContent-Length: 30\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: localhost\r\nX: a\r\n b\r\n\r\n", 400),
        ("GET /%2e%2e/admin HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    ];
    for (bytes, status) in elsewhere {
        let mut a = Program::connected(&world, "a", &proxy);
        let answer = a.exchange(bytes);
        // A request that cannot be read may be answered by the end of the connection.
        assert!(answer.status == status || status == 400 && answer.status == 0, "{bytes:?}: {answer:?}");
        assert!(world.tool.seen().is_empty(), "{bytes:?}");
    }
}
