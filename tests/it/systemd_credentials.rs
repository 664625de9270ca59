//! The socket for systemd credentials, for everybody who is not systemd. What systemd gets from it is shown in a booted
//! one: tests/host.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, bind, connect, socket};
use tether::api::credentials::LARGEST_CREDENTIAL;
use tether::audit::Event;
use tokio::io::AsyncReadExt;

use crate::harness::{TestAgent, event, within};

fn at(agent: &TestAgent) -> PathBuf {
    agent.config().listen.credentials.clone().unwrap()
}

async fn listening() -> TestAgent {
    TestAgent::configured(|config| {
        let dir = config.state_dir.parent().unwrap().to_owned();
        config.listen.credentials = Some(dir.join("credentials/credentials.sock"));
    })
    .await
}

/// Connects from an abstract address, as systemd does, and reads what comes.
async fn ask_as(agent: &TestAgent, address: Option<&str>) -> Vec<u8> {
    let fd: OwnedFd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    if let Some(address) = address {
        bind(fd.as_raw_fd(), &UnixAddr::new_abstract(address.as_bytes()).unwrap()).unwrap();
    }
    connect(fd.as_raw_fd(), &UnixAddr::new(&at(agent)).unwrap()).unwrap();
    let stream = std::os::unix::net::UnixStream::from(fd);
    stream.set_nonblocking(true).unwrap();
    let mut answer = Vec::new();
    within(tokio::net::UnixStream::from_std(stream).unwrap().read_to_end(&mut answer)).await.unwrap();
    answer
}

#[tokio::test]
async fn whoever_is_not_systemd_gets_zeros_alone_whatever_address_it_has_and_is_recorded() {
    let agent = listening().await;
    for address in [Some(format!("{:x}/unit/billing.service/svid_key.pem", std::process::id())), None] {
        let mut events = agent.audit();
        let answer = ask_as(&agent, address.as_deref()).await;
        assert!(answer.len() > LARGEST_CREDENTIAL, "should it be systemd after all, the unit must not start");
        assert!(answer.iter().all(|byte| *byte == 0));
        let refused = event(&mut events, |event| matches!(event, Event::ConnectionRefused { .. })).await;
        let Event::ConnectionRefused { caller, reason, .. } = refused else { unreachable!("picked above") };
        assert_eq!((reason, caller.pid), ("not_systemd", std::process::id().cast_signed()));
    }
    let mut ledger = agent.credentials().await;
    let listed = ledger.list(tether::proto::admin::ListCredentialsRequest::default()).await.unwrap();
    assert_eq!(listed.into_inner().total, 0, "something was issued for a liar");
}

#[tokio::test]
async fn the_socket_is_roots_alone_and_goes_with_the_agent() {
    let mut agent = listening().await;
    let path = at(&agent);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    agent.stop().await;
    assert!(!path.exists());
}

#[tokio::test]
async fn an_agent_has_no_such_socket_unless_it_is_asked_for() {
    let agent = TestAgent::start().await;
    assert_eq!(agent.config().listen.credentials, None);
}
