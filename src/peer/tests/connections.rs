//! Connections: every byte of theirs has the right sender, or is their last.

use super::*;
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use futures_util::FutureExt;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// The server's own first frame: SETTINGS without any.
const SETTINGS: &[u8] = b"\0\0\0\x04\0\0\0\0\0";

/// Sends the server's SETTINGS, and with it the challenge.
async fn open(stream: &mut PeerStream) {
    stream.write_all(SETTINGS).await.expect("taken");
    stream.flush().await.expect("sent");
}

/// Reads until the connection ends, and returns why.
async fn end_of(stream: &mut PeerStream) -> Option<Refusal> {
    let mut buffer = [0; 1024];
    loop {
        match stream.read(&mut buffer).await {
            Ok(0) => return None,
            Ok(_) => {}
            Err(error) => return error.into_inner().and_then(|inner| inner.downcast().ok()).map(|refusal| *refusal),
        }
    }
}

fn answer(client: &mut StdStream) {
    let mut ping = read_challenge(client);
    assert_eq!(ping[9..], CHALLENGE);
    ping[4] = 0x1;
    client.write_all(&ping).expect("written");
}

/// Everything the server sent until it closed.
fn drain(mut client: StdStream) -> String {
    let mut bytes = Vec::new();
    // The server closes with our bytes unread, which is an error after its last byte.
    let _ = client.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

#[tokio::test]
async fn a_caller_that_answers_the_challenge_is_proven_and_its_bytes_pass() {
    for kernel in all_kernels() {
        let fixture = Fixture::new(kernel, Limits::default());
        let mut client = fixture.connect();
        client.write_all(PREFACE).expect("written");
        let mut stream = fixture.accept().await;
        let conn = stream.conn().clone();
        open(&mut stream).await;

        let mut preface = vec![0; PREFACE.len()];
        stream.read_exact(&mut preface).await.expect("readable");
        assert_eq!(preface, PREFACE);
        answer(&mut client);
        client.write_all(b"\0\0\0\x04\x01\0\0\0\0").expect("written");
        let mut settings_ack = [0; 9];
        stream.read_exact(&mut settings_ack).await.expect("readable");
        assert_eq!(&settings_ack, b"\0\0\0\x04\x01\0\0\0\0", "the answer to the challenge is kept from the server");
        conn.proven().await.expect("answered");

        let credentials = conn.credentials().expect("we live");
        assert_eq!(credentials.uid, nix::unistd::geteuid().as_raw());
        assert!(fixture.refusals.labels().is_empty());
        drop(stream);
        assert_eq!(conn.proven().await, Err(Refusal::Closed));
        assert!(fixture.refusals.labels().is_empty(), "an ordinary end is no refusal");
    }
}

#[tokio::test]
async fn a_right_answer_before_the_question_proves_nothing() {
    let fixture = Fixture::new(Kernel::probe(), Limits::default());
    let mut client = fixture.connect();
    client.write_all(PREFACE).expect("written");
    client.write_all(&[b"\0\0\x08\x06\x01\0\0\0\0", &CHALLENGE[..]].concat()).expect("written");
    let mut stream = fixture.accept().await;
    let mut preface = vec![0; PREFACE.len()];
    stream.read_exact(&mut preface).await.expect("readable");
    assert!(stream.read(&mut [0; 64]).now_or_never().is_none(), "the answer is read, and kept from the server");
    let conn = stream.conn().clone();
    assert!(conn.proven().now_or_never().is_none());
    open(&mut stream).await;
    assert!(conn.proven().now_or_never().is_none());
}

#[tokio::test]
async fn bytes_of_another_process_end_the_connection_and_the_client_is_told_why() {
    for kernel in all_kernels() {
        let fixture = Fixture::new(kernel, Limits::default());
        let mut client = fixture.connect();
        client.write_all(PREFACE).expect("written");
        let mut stream = fixture.accept().await;
        open(&mut stream).await;
        answer(&mut client);
        let inherited = Stdio::from(OwnedFd::from(client.try_clone().expect("cloned")));
        let mut child = Command::new("printf").arg("x").stdout(inherited).spawn().expect("printf starts");
        let sender = child.id().cast_signed();
        child.wait().expect("it ends");

        let refusal = end_of(&mut stream).await;
        assert_eq!(refusal, Some(Refusal::SenderChanged { sender: Some(sender) }));
        assert_eq!(fixture.refusals.labels(), ["sender_changed"]);
        assert!(stream.write_all(b"secret").await.is_err(), "nothing more goes out");
        let conn = stream.conn().clone();
        drop(stream);
        assert_eq!(conn.proven().await, Err(refusal.expect("cut")), "what was proven is over");
        let said = drain(client);
        assert!(said.contains("another process") && !said.contains("secret"), "{said:?}");
        assert_eq!(fixture.refusals.labels(), ["sender_changed"], "told once");
    }
}

#[tokio::test]
async fn descriptors_end_the_connection() {
    // Where the kernel refuses them at the sender they do not even come.
    let fixture = Fixture::new(Kernel::baseline(), Limits::default());
    let client = fixture.connect();
    let mut stream = fixture.accept().await;
    let passed = [client.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&passed)];
    sendmsg::<()>(client.as_raw_fd(), &[IoSlice::new(PREFACE)], &rights, MsgFlags::empty(), None).expect("sent");
    assert_eq!(end_of(&mut stream).await, Some(Refusal::DescriptorsPassed));
    assert_eq!(fixture.refusals.labels(), ["descriptors_passed"]);
    drop(stream);
    assert!(drain(client).contains("descriptors"));
}

#[tokio::test]
async fn what_is_not_http2_is_refused() {
    let fixture = Fixture::new(Kernel::probe(), Limits::default());
    let mut client = fixture.connect();
    client.write_all(b"GET / HTTP/1.1\r\n\r\n").expect("written");
    let mut stream = fixture.accept().await;
    assert_eq!(end_of(&mut stream).await, Some(Refusal::Wire(wire::WireError::Preface)));
    assert_eq!(fixture.refusals.labels(), ["wire"]);
}

#[tokio::test]
async fn a_caller_that_says_nothing_is_cut_when_its_time_is_over() {
    let fixture = Fixture::new(Kernel::probe(), Limits { half_open: Duration::ZERO, ..Limits::default() });
    let client = fixture.connect();
    let mut stream = fixture.accept().await;
    assert_eq!(end_of(&mut stream).await, Some(Refusal::ChallengeTimeout));
    assert_eq!(fixture.refusals.labels(), ["challenge_timeout"]);
    drop(stream);
    assert!(drain(client).contains("PING"));
}

#[tokio::test]
async fn a_caller_that_hangs_up_before_it_is_proven_is_no_refusal() {
    let fixture = Fixture::new(Kernel::probe(), Limits::default());
    let client = fixture.connect();
    let mut stream = fixture.accept().await;
    let conn = stream.conn().clone();
    let waiter = tokio::spawn(async move { conn.proven().await });
    drop(client);
    assert_eq!(end_of(&mut stream).await, None);
    drop(stream);
    assert_eq!(waiter.await.expect("it returns"), Err(Refusal::Closed));
    assert!(fixture.refusals.labels().is_empty());
}

#[tokio::test]
async fn an_answer_given_by_another_program_in_the_same_process_proves_nothing() {
    for kernel in all_kernels() {
        let fixture = Fixture::new(kernel, Limits::default());
        let mut caller = start_caller("swap", &fixture.path);
        let mut stream = fixture.accept().await;
        open(&mut stream).await;
        assert_eq!(end_of(&mut stream).await, Some(Refusal::ExecutableChanged));
        assert_eq!(stream.conn().proven().await, Err(Refusal::ExecutableChanged));
        assert_eq!(fixture.refusals.labels(), ["executable_changed"]);
        assert_eq!(stream.conn().instance().known_end(), Some(InstanceEnd::ExecutableChanged));
        caller.kill().expect("killed");
        caller.wait().expect("reaped");
    }
}

#[tokio::test]
async fn a_caller_that_was_gone_before_accept_is_refused_although_its_child_holds_the_connection() {
    for kernel in all_kernels() {
        let fixture = Fixture::new(kernel, Limits::default());
        // It closes the standard input of its child, and so waits for its end: it is gone and reaped.
        start_caller("bequeath", &fixture.path).wait().expect("it ends");
        let client = fixture.connect();
        let stream = fixture.accept().await;
        assert_eq!(stream.conn().info().pid, std::process::id().cast_signed(), "the next caller is served");
        assert_eq!(fixture.refusals.labels(), ["caller_gone"]);
        drop(client);
    }
}

#[tokio::test]
async fn the_exit_of_the_caller_cuts_a_connection_that_its_child_still_holds() {
    for kernel in all_kernels() {
        let fixture = Fixture::new(kernel, Limits::default());
        let mut caller = start_caller("bequeath", &fixture.path);
        let mut stream = fixture.accept().await;
        let mut preface = vec![0; PREFACE.len()];
        stream.read_exact(&mut preface).await.expect("readable");
        drop(caller.stdin.take());
        assert_eq!(end_of(&mut stream).await, Some(Refusal::CallerGone));
        assert_eq!(fixture.refusals.labels(), ["caller_gone"]);
        caller.wait().expect("reaped");
    }
}

#[tokio::test]
async fn a_user_at_its_limit_is_told_so_and_its_open_connections_go_on() {
    let limits = Limits { connections_per_uid: 1, ..Limits::default() };
    let fixture = Fixture::new(Kernel::probe(), limits);
    let mut first = fixture.connect();
    first.write_all(PREFACE).expect("written");
    let mut stream = fixture.accept().await;
    let second = fixture.connect();

    // Accepting goes on after the refusal, so that it has no end of its own here.
    tokio::select! {
        biased;
        _ = fixture.accept() => panic!("there is no room"),
        () = async { while fixture.refusals.labels().is_empty() { tokio::task::yield_now().await } } => {}
    }
    assert_eq!(fixture.refusals.labels(), ["too_many_connections"]);
    assert!(drain(second).contains("too many connections are open by this user"));

    open(&mut stream).await;
    answer(&mut first);
    let mut preface = vec![0; PREFACE.len()];
    stream.read_exact(&mut preface).await.expect("still served");
    assert_eq!(fixture.listener.open_connections().len(), 1);
    drop(stream);
    let third = fixture.connect();
    let _stream = fixture.accept().await;
    drop(third);
}

#[tokio::test]
async fn many_connections_of_a_process_share_its_instance_and_leave_nothing_behind() {
    let fixture = Fixture::new(Kernel::probe(), Limits::default());
    let mut open = Vec::new();
    for _ in 0..10 {
        open.push((fixture.connect(), fixture.accept().await));
    }
    assert_eq!(fixture.instances.len(), 1);
    let ids: std::collections::HashSet<_> = open.iter().map(|(_, stream)| stream.conn().id()).collect();
    assert_eq!(ids.len(), 10);
    drop(open);
    assert!(fixture.instances.is_empty());
    assert!(fixture.listener.open_connections().is_empty());
}

#[tokio::test]
async fn a_connection_that_survives_exec_is_no_evidence_of_the_executable() {
    let fixture = Fixture::new(Kernel::probe(), Limits::default());
    let (kept, kept_stream) = (fixture.connect(), fixture.accept().await);
    kept_stream.conn().holds_cloexec().await.expect("held close-on-exec");
    let (inherited, inherited_stream) = (fixture.connect(), fixture.accept().await);
    fcntl(inherited.as_fd(), FcntlArg::F_SETFD(FdFlag::empty())).expect("cleared");
    let why = inherited_stream.conn().holds_cloexec().await.expect_err("it survives exec");
    assert!(why.contains("FD_CLOEXEC"), "{why}");
    fcntl(inherited.as_fd(), FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).expect("set");
    assert!(inherited_stream.conn().holds_cloexec().await.is_err(), "asked once");
    assert_eq!(fixture.refusals.labels(), ["not_close_on_exec"]);
    drop(kept);
    assert!(kept_stream.conn().holds_cloexec().await.is_ok(), "asked once");
}

#[tokio::test]
async fn a_connection_held_by_somebody_else_alone_is_no_evidence_of_the_executable() {
    let fixture = Fixture::new(Kernel::probe(), Limits::default());
    let client = fixture.connect();
    let stream = fixture.accept().await;
    let inherited = Stdio::from(OwnedFd::from(client));
    let mut child = Command::new("sleep").arg("600").stdin(inherited).spawn().expect("sleep starts");
    let why = stream.conn().holds_cloexec().await.expect_err("only the child holds it");
    assert!(why.contains("does not hold"), "{why}");
    child.kill().expect("killed");
    child.wait().expect("reaped");
}

#[tokio::test]
async fn grpc_works_over_it_and_the_handler_knows_the_caller() {
    use tonic::service::interceptor::InterceptedService;
    use tonic::transport::{Endpoint, Server};

    for kernel in all_kernels() {
        let fixture = Fixture::new(kernel, Limits::default());
        let Fixture { listener, refusals, path, .. } = fixture;
        let (callers, mut seen) = tokio::sync::mpsc::unbounded_channel();
        let (reporter, health) = tonic_health::server::health_reporter();
        reporter.set_service_status("tether", tonic_health::ServingStatus::Serving).await;
        let health = InterceptedService::new(health, move |request: tonic::Request<()>| {
            let conn = request.extensions().get::<PeerConn>().expect("every request has its caller").clone();
            callers.send(conn).expect("the test listens");
            Ok(request)
        });
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let incoming = Box::pin(listener.incoming());
        let server = Server::builder().add_service(health).serve_with_incoming_shutdown(incoming, async {
            let _ = stopped.await;
        });
        let server = tokio::spawn(server);

        let connector = tower::service_fn(move |_: http::Uri| {
            let path = path.clone();
            async move { tokio::net::UnixStream::connect(path).await.map(hyper_util::rt::TokioIo::new) }
        });
        let endpoint = Endpoint::from_static("http://localhost");
        let channel = endpoint.connect_with_connector(connector).await.expect("connected");
        let mut client = tonic_health::pb::health_client::HealthClient::new(channel);
        for _ in 0..3 {
            let request = tonic_health::pb::HealthCheckRequest { service: "tether".to_owned() };
            let answer = client.check(request).await.expect("answered").into_inner();
            assert_eq!(answer.status, 1);
            let conn = seen.recv().await.expect("called");
            conn.proven().await.expect("a real client answers the challenge");
            conn.holds_cloexec().await.expect("tokio's sockets are close-on-exec");
            conn.instance().look().expect("we live");
            assert_eq!(conn.info().pid, std::process::id().cast_signed());
        }
        drop(client);
        stop.send(()).expect("it runs");
        server.await.expect("it ends").expect("without error");
        assert!(refusals.labels().is_empty());
    }
}

/// Something that is kept with an instance, and says when it is gone.
#[derive(Default)]
struct Kept(Mutex<Option<tokio::sync::oneshot::Sender<()>>>);

#[tokio::test]
async fn what_is_attached_to_an_instance_goes_with_its_last_connection_although_the_instance_is_still_held() {
    let fixture = Fixture::new(Kernel::probe(), Limits::default());
    let (_first_client, first) = (fixture.connect(), fixture.accept().await);
    let (_second_client, second) = (fixture.connect(), fixture.accept().await);
    let held = first.conn().instance().clone();
    assert!(Arc::ptr_eq(&held, second.conn().instance()));
    *held.remembered::<Mutex<i32>>().lock().expect("unpoisoned") = 7;
    let (here, mut gone) = tokio::sync::oneshot::channel();
    *held.attached::<Kept>().0.lock().expect("unpoisoned") = Some(here);

    drop(first);
    assert!(gone.try_recv().is_err_and(|error| error == tokio::sync::oneshot::error::TryRecvError::Empty));
    let call = second.conn().clone();
    drop(second);
    assert!(held.attached::<Kept>().0.lock().expect("unpoisoned").is_some(), "a call of the connection goes on");
    drop(call);
    assert_eq!(gone.try_recv(), Err(tokio::sync::oneshot::error::TryRecvError::Closed), "it is gone");

    let unkept = held.attached::<Kept>();
    *unkept.0.lock().expect("unpoisoned") = Some(tokio::sync::oneshot::channel().0);
    assert!(held.attached::<Kept>().0.lock().expect("unpoisoned").is_none(), "nothing is kept without a connection");
    let (_third_client, _third) = (fixture.connect(), fixture.accept().await);
    assert!(held.attached::<Kept>().0.lock().expect("unpoisoned").is_none(), "nor is it there for the next one");
    assert_eq!(*held.remembered::<Mutex<i32>>().lock().expect("unpoisoned"), 7, "what is only remembered stays");
}

#[tokio::test]
async fn a_process_that_is_held_without_a_connection_still_counts_for_its_user() {
    let limits = Limits { connections_per_uid: 1, ..Limits::default() };
    let fixture = Fixture::new(Kernel::probe(), limits);
    let mut caller = start_caller("bequeath", &fixture.path);
    let mut stream = fixture.accept().await;
    stream.read_exact(&mut vec![0; PREFACE.len()]).await.expect("it has written");
    let held = stream.conn().instance().clone();
    drop(stream);
    assert_ne!(held.pid(), std::process::id().cast_signed());

    let refused = fixture.connect();
    tokio::select! {
        biased;
        _ = fixture.accept() => panic!("there is no room"),
        () = async { while fixture.refusals.labels().is_empty() { tokio::task::yield_now().await } } => {}
    }
    assert!(drain(refused).contains("too many processes of this user"), "it takes descriptors");
    assert_eq!(fixture.refusals.labels(), ["too_many_processes"]);
    drop(held);
    let _client = fixture.connect();
    fixture.accept().await;
    drop(caller.stdin.take());
    caller.wait().expect("it ends");
}
