//! Who holds a connection: its owner, a child, somebody it was passed to, a thief.

use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use nix::errno::Errno;

use super::{BARRED, NOTHING, call, connect, introduce, say, say_whether, send, thief, wait_for_test};
use crate::{http2, kernel};

/// An honest workload.
pub fn fetch(socket: &str) {
    say_whether(call(&connect(socket)));
}

/// An honest workload that takes its time.
pub fn fetch_when_told(socket: &str) {
    say("running");
    wait_for_test();
    fetch(socket);
}

/// An honest workload that asks once, and again on a new connection when the test says so, without letting go of the
/// first one.
pub fn fetch_twice(socket: &str) {
    let first = connect(socket);
    say_whether(call(&first));
    wait_for_test();
    say_whether(call(&connect(socket)));
}

/// A workload that connects and has not asked yet. Says which descriptor it uses.
pub fn hold(socket: &str) {
    let server = connect(socket);
    say(&server.as_raw_fd().to_string());
    wait_for_test();
}

/// A workload whose child gets its connection, before the first byte or after it was proven who is calling.
pub fn hand_down(socket: &str, program: &str, when: &str) {
    let server = connect(socket);
    let how = match when {
        "at-once" => "whole",
        _ => {
            introduce(&server);
            "rest"
        }
    };
    let mut child = thief(program, "use-stdin", how, &server);
    child.wait().unwrap();
}

/// Whoever finds a connection where its standard input should be: makes the whole call on it, or the rest of one, or
/// only listens.
pub fn use_stdin(how: &str) {
    let server = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned().unwrap());
    say_whether(match how {
        "whole" => call(&server),
        "rest" => {
            send(&server, &http2::request());
            http2::reads_the_prize(&mut &server, |answer| send(&server, answer))
        }
        "answers" => http2::reads_the_prize(&mut &server, |answer| send(&server, answer)),
        "listens" => http2::reads_the_prize(&mut &server, |_| ()),
        _ => panic!("no such way: {how}"),
    });
}

/// A workload that sends its connection to another process.
pub fn pass_on(socket: &str, receiver: &str) {
    let server = connect(socket);
    kernel::send_with_descriptor(&connect(receiver), b"x", server.as_fd()).unwrap();
    say("passed");
    wait_for_test();
}

/// The other process.
pub fn receive(at: &str) {
    let listener = UnixListener::bind(at).unwrap();
    say("listening");
    let (sender, _) = listener.accept().unwrap();
    say_whether(call(&UnixStream::from(kernel::receive_descriptor(&sender))));
}

/// A thief that helps itself.
pub fn steal(pid: &str, fd: &str) {
    let stolen = kernel::steal(pid.parse().unwrap(), fd.parse().unwrap()).unwrap();
    say_whether(call(&UnixStream::from(stolen)));
}

/// A workload that sends a descriptor along with its request.
pub fn send_descriptor(socket: &str) {
    let server = connect(socket);
    let (any, _other) = UnixStream::pair().unwrap();
    match kernel::send_with_descriptor(&server, &http2::opening(), any.as_fd()) {
        Ok(_) => {}
        Err(Errno::EPERM) => return say(BARRED),
        Err(Errno::EPIPE | Errno::ECONNRESET) => return say(NOTHING),
        Err(error) => panic!("the descriptor is sent: {error}"),
    }
    send(&server, &http2::request());
    say_whether(http2::reads_the_prize(&mut &server, |answer| send(&server, answer)));
}

/// A program like curl or socat: it connects by itself, to where its user says, and carries for its user what comes
/// and goes.
pub fn relay(socket: &str) {
    let server = connect(socket);
    let from_server: OwnedFd = server.as_fd().try_clone_to_owned().unwrap();
    let down = std::thread::spawn(move || copy(&mut UnixStream::from(from_server), &mut std::io::stdout()));
    copy(&mut std::io::stdin(), &mut &server);
    let _ = server.shutdown(std::net::Shutdown::Both);
    down.join().unwrap();
}

fn copy(from: &mut impl Read, to: &mut impl Write) {
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..count]).and_then(|()| to.flush()).is_err() {
            return;
        }
    }
}
