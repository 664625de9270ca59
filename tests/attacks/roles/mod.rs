//! The programs that take part in attacks. The test binary starts itself again in one of these roles, so that victims
//! and thieves are real processes, each with one thread and straight code.
//!
//! A role takes its arguments from the command line and says on standard output what became of it, a line at a time:
//! [`GOT`] and [`NOTHING`] are the verdicts.

mod connection;
mod container;
mod exec;
mod masquerade;
mod placement;
mod reborn;
mod reuse;
mod tracing;
mod workload;

use std::io::{BufRead, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use crate::http2;
use crate::kernel;

/// Names the role of a process.
pub const ROLE: &str = "TETHER_ATTACK_ROLE";
/// The prize was read.
pub const GOT: &str = "got the prize";
/// The connection ended without it.
pub const NOTHING: &str = "got nothing";
/// The kernel refused the attack itself.
pub const BARRED: &str = "barred by the kernel";

/// Longer than any attack takes.
const LIFE: Duration = Duration::from_secs(90);

/// Plays the role this process was started for; `false` if for none.
pub fn play() -> bool {
    let Ok(role) = std::env::var(ROLE) else { return false };
    kernel::die_in(LIFE);
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match (role.as_str(), arguments.as_slice()) {
        ("fetch", [socket]) => connection::fetch(socket),
        ("fetch-when-told", [socket]) => connection::fetch_when_told(socket),
        ("fetch-twice", [socket]) => connection::fetch_twice(socket),
        ("hold", [socket]) => connection::hold(socket),
        ("hand-down", [socket, thief, when]) => connection::hand_down(socket, thief, when),
        ("use-stdin", [how]) => connection::use_stdin(how),
        ("pass-on", [socket, receiver]) => connection::pass_on(socket, receiver),
        ("receive", [at]) => connection::receive(at),
        ("steal", [pid, fd]) => connection::steal(pid, fd),
        ("send-descriptor", [socket]) => connection::send_descriptor(socket),
        ("relay", [socket]) => connection::relay(socket),
        ("leave-behind", [socket, how]) => exec::leave_behind(socket, how),
        ("swap", [socket, thief, trusted]) => exec::swap(socket, thief, trusted),
        ("swap-answering", [socket, thief, trusted]) => exec::swap_answering(socket, thief, trusted),
        ("swap-printing", [socket, thief, trusted]) => exec::swap_printing(socket, thief, trusted),
        ("swap-debugging", [socket, thief, trusted]) => exec::swap_debugging(socket, thief, trusted),
        ("swap-copying", [socket, thief, trusted]) => exec::swap_copying(socket, thief, trusted),
        ("swap-stalled", [socket, thief, trusted]) => exec::swap_stalled(socket, thief, trusted),
        ("swap-streaming", [socket, thief, trusted]) => exec::swap_streaming(socket, thief, trusted),
        ("read-after", [descriptor]) => exec::read_after(descriptor),
        ("speak-through", [descriptor]) => exec::speak_through(descriptor),
        ("masquerade", [socket, trusted]) => masquerade::masquerade(socket, trusted),
        ("forge", [socket, trusted]) => placement::forge(socket, trusted),
        ("enter-cgroup", [directory, socket]) => placement::enter_cgroup(directory, socket),
        ("leave-group", [socket, gid]) => placement::leave_group(socket, gid),
        ("change-user", [socket, uid]) => placement::change_user(connect(socket), uid),
        ("change-user-openly", [socket, uid]) => placement::change_user(openly(connect(socket)), uid),
        ("engine", [socket, pid]) => container::engine(socket, pid),
        ("make-act", [pid, order]) => tracing::make_act(pid, order),
        ("workload", [socket]) => workload::obey(socket),
        ("workload-below", [socket]) => workload::above(socket),
        ("reborn", [pid, socket]) => reborn::reborn(pid, socket),
        ("reuse-pid", [side]) => reuse::reuse_pid(side),
        _ => panic!("no such role: {role} {arguments:?}"),
    }
    true
}

/// Tells the test something.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // Nobody listening is fine: the test is over.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

fn say_whether(prize: bool) {
    say(if prize { GOT } else { NOTHING });
}

/// Waits until the test closes our standard input.
fn wait_for_test() {
    for _line in std::io::stdin().lock().lines().map_while(Result::ok) {}
}

fn connect(socket: &str) -> UnixStream {
    UnixStream::connect(Path::new(socket)).expect("the server listens")
}

/// Keeps it open across exec.
fn openly(server: UnixStream) -> UnixStream {
    nix::fcntl::fcntl(&server, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
    server
}

/// Sends what the server may not be there to take any more.
fn send(to: &UnixStream, bytes: &[u8]) {
    let _ = (&*to).write_all(bytes);
}

/// A whole honest call. Whether it brought the prize.
fn call(server: &UnixStream) -> bool {
    send(server, &http2::opening());
    send(server, &http2::request());
    http2::reads_the_prize(&mut &*server, |answer| send(server, answer))
}

/// Opens the connection and proves to be who connected: everything but the request.
fn introduce(server: &UnixStream) {
    send(server, &http2::opening());
    send(server, &http2::ping());
    loop {
        let frame = http2::read_frame(&mut &*server).unwrap().expect("the server answers PINGs");
        if let Some(answer) = frame.answer() {
            send(server, &answer);
        }
        if frame.is_our_ping_answered() {
            return;
        }
    }
}

/// Starts this program in another role, with `stdin` for its standard input. It may outlive us.
fn thief(program: &str, role: &str, argument: &str, stdin: impl AsFd) -> Child {
    let stdin: OwnedFd = stdin.as_fd().try_clone_to_owned().unwrap();
    Command::new(program).env(ROLE, role).arg(argument).stdin(stdin).spawn().unwrap()
}
