//! A process that connects, leaves a reader behind, and becomes a trusted program.
//!
//! The trusted program is `cat`. It is given a file that does not exist and then its standard input, so that it says
//! on standard error that it runs, and then waits: the test knows by that line that the swap has happened.
#![allow(clippy::zombie_processes, reason = "who is left behind outlives who started it")]

use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Command;

use super::{ROLE, connect, introduce, say_whether, send, thief};
use crate::{http2, kernel};

/// `cat` complains about it and goes on.
const NO_FILE: &str = "/no/such/file";

/// Becomes the trusted program.
fn become_trusted(command: &mut Command) -> ! {
    // Nor does it need what was set for us.
    let error = command.env_remove(ROLE).env_remove("LD_LIBRARY_PATH").exec();
    panic!("the trusted program starts: {error}");
}

fn cat(trusted: &str) -> Command {
    let mut command = Command::new(trusted);
    command.args([NO_FILE, "-"]);
    command
}

/// The whole request is queued before the swap.
fn connect_and_ask(socket: &str) -> UnixStream {
    let server = connect(socket);
    send(&server, &http2::opening());
    send(&server, &http2::request());
    server
}

/// Asks, leaves somebody with the connection, and ends.
pub fn leave_behind(socket: &str, how: &str) {
    let server = connect_and_ask(socket);
    let program = std::env::current_exe().unwrap();
    thief(program.to_str().unwrap(), "use-stdin", how, &server);
}

/// The thief only listens: nobody answers what the server asks.
pub fn swap(socket: &str, program: &str, trusted: &str) {
    let server = connect_and_ask(socket);
    thief(program, "use-stdin", "listens", &server);
    become_trusted(&mut cat(trusted));
}

/// The thief answers in place of the trusted program.
pub fn swap_answering(socket: &str, program: &str, trusted: &str) {
    let server = connect_and_ask(socket);
    thief(program, "use-stdin", "answers", &server);
    become_trusted(&mut cat(trusted));
}

/// The trusted program itself prints the whole request on the connection.
pub fn swap_printing(socket: &str, program: &str, trusted: &str) {
    let server = connect(socket);
    let request = format!("{socket}.request");
    std::fs::write(&request, [http2::opening(), http2::request()].concat()).unwrap();
    thief(program, "use-stdin", "listens", &server);
    let mut command = Command::new(trusted);
    become_trusted(command.arg(request).args([NO_FILE, "-"]).stdout(OwnedFd::from(server)));
}

/// The loader of the trusted program prints what it does on the connection, into a frame that was begun for it.
pub fn swap_debugging(socket: &str, program: &str, trusted: &str) {
    let server = connect_and_ask(socket);
    send(&server, &http2::head_of_an_unknown_frame());
    thief(program, "use-stdin", "listens", &server);
    let mut command = Command::new(trusted);
    // Standard error is taken, so it says on standard output that it runs.
    command.args(["/proc/self/comm", "-"]).env("LD_DEBUG", "files").stderr(OwnedFd::from(server));
    become_trusted(&mut command);
}

/// The trusted program copies to the connection whatever the thief says, who hears what the server asks.
pub fn swap_copying(socket: &str, program: &str, trusted: &str) {
    let server = connect(socket);
    let (input, voice) = std::io::pipe().unwrap();
    kernel::keep_over_exec(&voice, true);
    thief(program, "speak-through", &voice.as_raw_fd().to_string(), &server);
    drop(voice);
    become_trusted(cat(trusted).stdin(input).stdout(OwnedFd::from(server)));
}

/// The thief that speaks through `cat`.
pub fn speak_through(descriptor: &str) {
    let mut voice = std::fs::File::from(inherited(descriptor));
    let mut server = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned().unwrap());
    // Whoever was cut meanwhile has nobody to speak through any more, and hears no more either.
    let mut say = |words: &[u8]| drop(voice.write_all(words));
    say(&[http2::opening(), http2::request()].concat());
    say_whether(http2::reads_the_prize(&mut server, say));
}

/// Answers everything, brings the server to a halt, and lets it read the request after the swap.
pub fn swap_stalled(socket: &str, program: &str, trusted: &str) {
    let server = connect(socket);
    introduce(&server);
    kernel::stall(&server, &http2::ping());
    send(&server, &http2::request());
    read_after_exec(program, server);
    become_trusted(&mut cat(trusted));
}

/// Has been served already when it becomes another program; what comes next on its stream is not for that one.
pub fn swap_streaming(socket: &str, program: &str, other: &str) {
    let server = connect(socket);
    say_whether(super::call(&server));
    read_after_exec(program, server);
    become_trusted(&mut cat(other));
}

/// Starts a thief that listens from the moment of our exec on.
fn read_after_exec(program: &str, server: UnixStream) {
    let (until_exec, held_until_exec) = std::io::pipe().unwrap();
    kernel::keep_over_exec(&until_exec, true);
    thief(program, "read-after", &until_exec.as_raw_fd().to_string(), &server);
    kernel::keep_over_exec(&until_exec, false);
    // Closed by exec, and not before.
    let _open = held_until_exec.into_raw_fd();
}

/// The thief that waits for the swap.
pub fn read_after(descriptor: &str) {
    kernel::wait_for_end(inherited(descriptor));
    let mut server = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned().unwrap());
    say_whether(http2::reads_the_prize(&mut server, |_| ()));
}

fn inherited(descriptor: &str) -> OwnedFd {
    let descriptor: RawFd = descriptor.parse().unwrap();
    // SAFETY: whoever started us left this descriptor open for us and told us its number; nobody else here uses it.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}
