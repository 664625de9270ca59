//! Connections that carry anything: every byte of theirs has the right sender and program, or is their last.

use super::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Why a read of one byte fails.
async fn refusal(stream: &mut PlainStream) -> Refusal {
    let error = stream.read_u8().await.expect_err("nothing is handed on");
    *error.into_inner().and_then(|inner| inner.downcast().ok()).expect("it says why")
}

#[tokio::test]
async fn bytes_of_any_meaning_pass_both_ways_and_nobody_is_asked_anything() {
    for kernel in all_kernels() {
        let fixture = Fixture::new(kernel, Limits::default());
        let mut client = fixture.connect();
        client.write_all(b"GET /").expect("written");
        let mut stream = fixture.listener.accept_plain().await.expect("accepted");
        let mut read = [0; 5];
        stream.read_exact(&mut read).await.expect("readable");
        stream.write_all(b"HTTP").await.expect("taken");
        let mut answer = [0; 4];
        client.read_exact(&mut answer).expect("answered");
        assert_eq!((&read, &answer), (b"GET /", b"HTTP"));
        assert!(stream.conn().holds_cloexec().await.is_ok(), "this program has opened it itself");
        drop(client);
        assert_eq!(stream.read(&mut read).await.expect("the end"), 0);
        assert!(fixture.refusals.labels().is_empty());
    }
}

#[tokio::test]
async fn bytes_of_another_process_end_a_plain_connection_for_good() {
    for kernel in all_kernels() {
        let fixture = Fixture::new(kernel, Limits::default());
        let client = fixture.connect();
        let mut stream = fixture.listener.accept_plain().await.expect("accepted");
        let inherited = Stdio::from(OwnedFd::from(client.try_clone().expect("cloned")));
        let mut child = Command::new("printf").arg("x").stdout(inherited).spawn().expect("printf starts");
        let sender = Some(child.id().cast_signed());
        child.wait().expect("it ends");
        assert_eq!(refusal(&mut stream).await, Refusal::SenderChanged { sender });
        assert!(stream.write_all(b"secret").await.is_err(), "nothing more goes out");
        assert_eq!(fixture.refusals.labels(), ["sender_changed"], "told once");
    }
}

#[tokio::test]
async fn a_program_that_another_one_took_the_place_of_is_neither_read_from_nor_written_to() {
    for kernel in all_kernels() {
        let fixture = Fixture::new(kernel, Limits::default());
        let mut caller = start_caller("become", &fixture.path);
        let mut stream = fixture.listener.accept_plain().await.expect("accepted");
        let mut preface = vec![0; PREFACE.len()];
        stream.read_exact(&mut preface).await.expect("what it sent as the program that connected");
        caller.stdin.as_mut().expect("piped").write_all(b"go\n").expect("told");
        assert_eq!(refusal(&mut stream).await, Refusal::ExecutableChanged);
        assert!(stream.write_all(b"secret").await.is_err());
        assert_eq!(fixture.refusals.labels(), ["executable_changed"]);
        caller.kill().expect("killed");
        caller.wait().expect("reaped");
    }
}
