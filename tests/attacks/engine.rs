//! A container engine, as far as anybody asks it: it says that every container it is asked about is the trusted one, or
//! that one is and others are not. And the naive way to find out which container a process is in.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

/// What the trusted container has, and no other.
pub const LABEL: &str = "app:trusted";
const DIGITS: usize = 64;

/// Whom an engine calls the trusted container.
#[derive(Clone, Debug)]
pub enum Trusted {
    /// The one with this id.
    Only(String),
    /// Whichever it is asked about: a lie.
    Any,
}

/// Answers for good. `pid` is the first process of any container.
pub fn serve(listener: &UnixListener, trusted: &Trusted, pid: impl Fn(&str) -> u32) {
    for stream in listener.incoming().map_while(Result::ok) {
        let mut reader = BufReader::new(&stream);
        loop {
            let mut lines = reader.by_ref().lines().map_while(Result::ok);
            let Some(first) = lines.next() else { break };
            lines.find(String::is_empty);
            let path = first.split(' ').nth(1).unwrap_or_default();
            let body = match path.strip_prefix("/containers/").and_then(|rest| rest.strip_suffix("/json")) {
                None => "OK".to_owned(),
                Some(id) => {
                    let is_trusted = match trusted {
                        Trusted::Only(only) => only == id,
                        Trusted::Any => true,
                    };
                    let app = if is_trusted { "trusted" } else { "other" };
                    format!(
                        r#"{{"Id":"{id}","Name":"/x","State":{{"Running":true,"Pid":{}}},"Config":{{"Labels":{{"app":"{app}"}}}}}}"#,
                        pid(id)
                    )
                }
            };
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
            if (&stream).write_all((head + &body).as_bytes()).is_err() {
                break;
            }
        }
    }
}

/// Whether the engine at `socket`, whoever that is, calls this container the trusted one.
pub fn says_trusted(socket: &Path, id: &str) -> bool {
    let Ok(stream) = UnixStream::connect(socket) else { return false };
    let request = format!("GET /containers/{id}/json HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    if (&stream).write_all(request.as_bytes()).is_err() || stream.shutdown(std::net::Shutdown::Write).is_err() {
        return false;
    }
    let mut answer = String::new();
    let _ = (&stream).read_to_string(&mut answer);
    answer.contains(r#""app":"trusted""#)
}

/// The last id that is anywhere in a control group of the process, or else in its mounts: whatever it may have put there.
pub fn naively_found(pid: i32) -> Option<String> {
    let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let id = |text: String| {
        let words: Vec<String> = text.split(|letter: char| !letter.is_ascii_hexdigit()).map(str::to_owned).collect();
        words.into_iter().rfind(|word| word.len() == DIGITS)
    };
    id(read("cgroup")).or_else(|| id(read("mountinfo")))
}
