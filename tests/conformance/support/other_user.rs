//! This binary once more, run by another user, as a workload that says who the agent takes it for.

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitCode, Output};

use tether::proto::workload::X509svidRequest;
use tether::proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;

use super::run;
use crate::harness::{Header, TestAgent, channel, next, within};

/// Names the socket to ask; its presence makes this binary a workload.
pub const SOCKET_VARIABLE: &str = "CONFORMANCE_WORKLOAD_SOCKET";

/// The workload: prints its SPIFFE IDs, or the name of the status it was refused with.
#[allow(clippy::print_stdout, reason = "the test that started it reads this")]
pub fn fetch(socket: &OsStr) -> ExitCode {
    run(async {
        let channel = channel(Path::new(socket)).await;
        let mut client = SpiffeWorkloadApiClient::with_interceptor(channel, Header);
        match within(client.fetch_x509svid(X509svidRequest {})).await {
            Ok(stream) => match next(&mut stream.into_inner()).await {
                Ok(answer) => answer.svids.iter().for_each(|svid| println!("{}", svid.spiffe_id)),
                Err(status) => println!("{:?}", status.code()),
            },
            Err(status) => println!("{:?}", status.code()),
        }
    });
    ExitCode::SUCCESS
}

/// What the agent answers to a process of another user. Only root can ask this.
pub async fn ask(agent: &TestAgent, uid: u32) -> String {
    // A test's directory is its own; a host's is open down to the socket.
    std::fs::set_permissions(agent.dir(), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::set_permissions(agent.dir().join("agent"), std::fs::Permissions::from_mode(0o755)).unwrap();
    // Wherever the build put it, the other user can execute this copy.
    let program = agent.dir().join("workload");
    std::fs::copy("/proc/self/exe", &program).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new(program);
    command.env(SOCKET_VARIABLE, agent.socket()).uid(uid).gid(uid).current_dir("/");
    let output: Output = within(tokio::task::spawn_blocking(move || command.output())).await.unwrap().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}
