//! Held keys over the end of the agent, with a service manager that keeps a descriptor for it and with none.

use std::fs::File;
use std::io::Write as _;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::Signal;
use tether::proto::admin::ListCredentialsRequest;
use tether::proto::admin::credentials_client::CredentialsClient;
use tether::sys::memfd;

use crate::another::Another;
use crate::harness::channel;
use crate::manager::Manager;
use crate::program::AgentProcess;

/// What another process gets once it has noticed that there is another agent.
fn prove(another: &mut Another, key: &str) -> String {
    again(another, &format!("prove {key} GET https://a/"))
}

fn again(another: &mut Another, what: &str) -> String {
    loop {
        let answer = another.ask(what);
        if !["Unavailable", "Unknown", "Cancelled"].iter().any(|away| answer.starts_with(away)) {
            return answer;
        }
    }
}

#[test]
fn held_keys_survive_the_end_of_the_agent_in_a_sealed_file_for_processes_that_still_live() {
    for end in [Signal::SIGKILL, Signal::SIGTERM] {
        let dir = tempfile::tempdir().unwrap();
        let mut manager = Manager::new(dir.path());
        let agent = manager.start();
        let (mut lives, mut dies) = (Another::start(&agent.workload()), Another::start(&agent.workload()));
        dies.hold_wit();
        // Killed in the moment in which the answer is there.
        let (key, wit) = lives.hold_wit();
        match end {
            Signal::SIGKILL => agent.kill(),
            _ => drop(agent.stop()),
        }
        manager.settle();
        assert!(matches!(&manager.stored[..], [(_, file)] if memfd::is_sealed(file)), "one file, sealed");
        dies.end();

        let mut agent = manager.start();
        let log = agent.log_line("held keys from before the restart");
        assert!(log.contains("taken=1") && log.contains("of=2"), "{log}");
        manager.settle();
        assert_eq!(manager.stored.len(), 1, "the old one was given up");
        let proven = prove(&mut lives, &key);
        assert!(proven.contains(&wit), "the same key and the same WIT: {proven}");
        assert_eq!(lives.hold_wit(), (key, wit));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_service_manager_held_keys_end_with_the_agent_and_the_ledger_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let agent = AgentProcess::start(dir.path(), &[], &[]);
    let mut another = Another::start(&agent.workload());
    let (key, _) = another.hold_wit();
    drop(agent);
    let agent = AgentProcess::start(dir.path(), &[], &[]);
    let refused = prove(&mut another, &key);
    assert!(refused.starts_with("PermissionDenied"), "{refused}");
    let mut ledger = CredentialsClient::new(channel(&agent.admin()).await);
    let all = ListCredentialsRequest { all: true, ..ListCredentialsRequest::default() };
    let list = ledger.list(all).await.unwrap().into_inner().credentials;
    let held: Vec<_> = list
        .iter()
        .filter(|credential| credential.binding.as_ref().is_some_and(|binding| binding.level == 3))
        .collect();
    assert_eq!(held.len(), 1);
    assert_eq!(held[0].reason, "agent_restart");
}

#[test]
fn a_session_goes_on_after_a_crash_with_the_same_key() {
    let dir = tempfile::tempdir().unwrap();
    let mut manager = Manager::new(dir.path());
    let agent = manager.start();
    let (mut lives, mut dies) = (Another::start(&agent.workload()), Another::start(&agent.workload()));
    let over = dies.ask("start t https://a/");
    let id = lives.ask("start t https://a/");
    let before = lives.ask(&format!("in {id} GET https://a/"));
    assert!(before.starts_with('{'), "{before}");
    let newest = lives.ask("start t https://a/");
    manager.kill(agent);
    dies.end();

    let _agent = manager.start();
    let after = again(&mut lives, &format!("in {id} GET https://a/"));
    assert_eq!(key_of(&after), key_of(&before), "one session is one key");
    for (session, state) in [(&id, "Active "), (&newest, "Active "), (&over, "Ended process_exit")] {
        assert_eq!(lives.ask(&format!("state {session}")), state);
    }
    assert!(lives.ask(&format!("in {newest} GET https://a/")).starts_with('{'), "begun just before the crash");
    assert_eq!(lives.ask(&format!("end {newest}")), "completed");
}

#[test]
fn a_session_that_has_ended_stays_ended_and_its_key_wiped_over_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let mut manager = Manager::new(dir.path());
    let agent = manager.start();
    let mut another = Another::start(&agent.workload());
    let id = another.ask("start t https://a/");
    another.ask(&format!("end {id}"));
    manager.kill(agent);
    let mut agent = manager.start();
    assert!(agent.log_line("held keys from before the restart").contains("of=0"));
    let refused = again(&mut another, &format!("in {id} GET https://a/"));
    assert!(!refused.starts_with('{'), "{refused}");
}

#[test]
fn a_file_that_the_agent_before_did_not_write_is_not_believed() {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let made = |content: &[u8], seals| {
        let mut file = File::from(memfd_create("forged", flags).unwrap());
        file.write_all(content).unwrap();
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).unwrap();
        file
    };
    let other = [b"tether held keys 2\n".as_slice(), &[0; 8192]].concat();
    let rows = [
        (made(b"tether held keys 3\n", SealFlag::empty()), "not sealed"),
        (made(&other, SealFlag::all()), "this version does not know"),
        (made(&[0; 8192], SealFlag::all()), "this version does not know"),
        (File::open("/proc/self/exe").unwrap(), "not sealed"),
    ];
    for (file, why) in rows {
        let dir = tempfile::tempdir().unwrap();
        let mut manager = Manager::new(dir.path());
        manager.stored.push(("tether-held-forged".to_owned(), file));
        let mut agent = manager.start();
        let log = agent.log_line("cannot be taken back");
        assert!(log.contains(why), "{log}");
        manager.settle();
        assert!(manager.stored.iter().all(|(name, _)| name != "tether-held-forged"), "it is given up");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_manager_that_keeps_too_little_is_reported_with_the_line_that_mends_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut manager = Manager::new(dir.path());
    manager.env = vec![("FDSTORE", "1")];
    let agent = manager.start();
    let mut admin = tether::proto::admin::agent_client::AgentClient::new(channel(&agent.admin()).await);
    let status = admin.status(tether::proto::admin::StatusRequest {}).await.unwrap().into_inner().json;
    assert!(status.contains("FileDescriptorStoreMax="), "{status}");
    manager.settle();
    assert!(manager.stored.is_empty());
}

/// The key that the WIT among these headers names.
fn key_of(headers: &str) -> serde_json::Value {
    let headers: std::collections::HashMap<String, String> =
        serde_json::from_str(headers).unwrap_or_else(|_| panic!("{headers}"));
    let wit = tether::jwt::Jws::parse(&headers["Workload-Identity-Token"]).unwrap().claims().unwrap();
    wit["cnf"].clone()
}
