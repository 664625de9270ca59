//! A process in a namespace, a control group or a user of its choice.

use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use super::{ROLE, call, connect, introduce, say_whether, send};
use crate::{http2, kernel};

/// As root of a user and pid namespace of its own: starts the trusted program, takes its connection, and sends in its
/// name.
pub fn forge(socket: &str, trusted: &str) {
    let mut victim = Command::new(trusted)
        .arg(socket)
        .env(ROLE, "hold")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(victim.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let pid = i32::try_from(victim.id()).unwrap();
    let stolen = UnixStream::from(kernel::steal(pid, line.trim().parse().unwrap()).unwrap());
    let speak = |bytes: &[u8]| {
        // The server may have cut the connection already.
        let _ = kernel::send_as(&stolen, bytes, pid);
    };
    speak(&http2::opening());
    speak(&http2::request());
    say_whether(http2::reads_the_prize(&mut &stolen, speak));
    drop(victim.stdin.take());
    victim.wait().unwrap();
}

/// Makes a control group in a delegated one, moves there and asks.
pub fn enter_cgroup(directory: &str, socket: &str) {
    let directory = Path::new(directory);
    std::fs::create_dir(directory).unwrap();
    std::fs::write(directory.join("cgroup.procs"), "0").unwrap();
    say_whether(call(&connect(socket)));
}

/// Becomes another user than the one that connected, and asks.
pub fn change_user(server: UnixStream, uid: &str) {
    introduce(&server);
    let uid = nix::unistd::Uid::from_raw(uid.parse().unwrap());
    nix::unistd::setresuid(uid, uid, uid).unwrap();
    send(&server, &http2::request());
    say_whether(http2::reads_the_prize(&mut &server, |answer| send(&server, answer)));
}

/// Asks as a member of a group, and again, on a new connection, when it is one no more.
pub fn leave_group(socket: &str, gid: &str) {
    let group = nix::unistd::Gid::from_raw(gid.parse().unwrap());
    nix::unistd::setgroups(&[group]).unwrap();
    let first = connect(socket);
    say_whether(call(&first));
    nix::unistd::setgroups(&[]).unwrap();
    say_whether(call(&connect(socket)));
}
