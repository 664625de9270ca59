//! Damaged state, whole agent: what can be made good is, nothing that was taken away comes back, and it is said.

use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;
use tether::audit::Event;
use tether::proto::admin::{
    CreateEntryRequest, DeleteEntryRequest, ListEntriesRequest, ShowAuthoritiesRequest, StatusRequest,
};
use tether::proto::workload::{JwtsvidRequest, ValidateJwtsvidRequest, X509svidRequest};
use tonic::Code;

use crate::harness::{TestAgent, event, next, uid};
use crate::program::AgentProcess;

fn entry(id: &str) -> CreateEntryRequest {
    let uid = uid();
    let toml =
        format!("id = \"{id}\"\nspiffe_id = \"spiffe://dev.tether.internal/{id}\"\nmatch = [\"unix:uid:{uid}\"]\n");
    CreateEntryRequest { toml }
}

async fn status(agent: &TestAgent) -> Value {
    let answer = agent.agent().await.status(StatusRequest {}).await.unwrap().into_inner();
    serde_json::from_str(&answer.json).unwrap()
}

/// What a command prints that asks an agent of its own process.
fn admin(agent: &AgentProcess, command: &str) -> String {
    let mut asked = Command::new(env!("CARGO_BIN_EXE_tether"));
    asked.env_clear().arg("--socket").arg(agent.admin()).arg(command);
    String::from_utf8(asked.output().unwrap().stdout).unwrap()
}

fn weaker(status: &Value) -> Vec<&str> {
    status["weaker"].as_array().unwrap().iter().map(|line| line.as_str().unwrap()).collect()
}

async fn authorities(agent: &TestAgent) -> Vec<String> {
    let shown = agent.authorities().await.show(ShowAuthoritiesRequest {}).await.unwrap().into_inner();
    shown.authorities.into_iter().map(|authority| authority.id).collect()
}

async fn token(agent: &TestAgent) -> String {
    let request = JwtsvidRequest { audience: vec!["demo".to_owned()], ..JwtsvidRequest::default() };
    agent.workload().await.fetch_jwtsvid(request).await.unwrap().into_inner().svids.remove(0).svid
}

async fn validate(agent: &TestAgent, token: &str) -> Result<(), Code> {
    let request = ValidateJwtsvidRequest { audience: "demo".to_owned(), svid: token.to_owned() };
    agent.workload().await.validate_jwtsvid(request).await.map(drop).map_err(|status| status.code())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_whose_store_is_damaged_has_all_it_had_nothing_it_gave_up_and_says_so() {
    let mut agent = TestAgent::start().await;
    let mut entries = agent.entries().await;
    for id in ["kept", "deleted"] {
        entries.create(entry(id)).await.unwrap();
    }
    let delete = DeleteEntryRequest { id: "deleted".to_owned() };
    entries.delete(delete).await.unwrap();
    let (before, token) = (authorities(&agent).await, token(&agent).await);
    agent.stop().await;
    let store = agent.config().state_dir.join("store.redb");
    for damaged in [Some(vec![0x5a; 64 * 1024]), None] {
        match &damaged {
            Some(content) => std::fs::write(&store, content).unwrap(),
            None => std::fs::remove_file(&store).unwrap(),
        }
        let mut events = agent.audit();
        agent.restart().await;
        let told = event(&mut events, |event| matches!(event, Event::StateRepaired { .. })).await;
        let Event::StateRepaired { part, what } = told else { unreachable!() };
        assert!(part == "store" && what.contains("nothing is lost"), "{what}");
        assert_eq!(authorities(&agent).await, before, "the same trust domain");
        let listed = agent.entries().await.list(ListEntriesRequest::default()).await.unwrap().into_inner();
        let ids: Vec<String> = listed.entries.into_iter().map(|entry| entry.id).collect();
        assert!(ids.contains(&"kept".to_owned()) && !ids.contains(&"deleted".to_owned()), "{ids:?}");
        assert_eq!(validate(&agent, &token).await, Ok(()), "what was issued stands");
        let status = status(&agent).await;
        assert_eq!(status["ready"], true);
        assert!(weaker(&status).iter().any(|line| line.contains("store.redb.damaged-1")), "{status}");
        agent.stop().await;
    }
    std::fs::remove_file(agent.config().state_dir.join("store.redb.damaged-1")).unwrap();
    agent.restart().await;
    assert!(!weaker(&status(&agent).await).iter().any(|line| line.contains("damaged")));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_whose_ledger_is_damaged_lets_nothing_stand_that_was_issued_before_and_issues_anew() {
    let mut agent = TestAgent::start().await;
    let old = token(&agent).await;
    let mut stream = agent.workload().await.fetch_x509svid(X509svidRequest {}).await.unwrap().into_inner();
    next(&mut stream).await.unwrap();
    drop(stream);
    assert_eq!(validate(&agent, &old).await, Ok(()));
    agent.stop().await;
    let ledger = agent.config().state_dir.join("ledger");
    let mut files: Vec<PathBuf> = std::fs::read_dir(&ledger).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    let mut content = std::fs::read(&files[0]).unwrap();
    let last = content.len() - 2;
    content[last] ^= 0x10;
    std::fs::write(&files[0], content).unwrap();

    let mut events = agent.audit();
    agent.restart().await;
    let told = event(&mut events, |event| matches!(event, Event::StateRepaired { .. })).await;
    let Event::StateRepaired { part, what } = told else { unreachable!() };
    assert!(part == "ledger" && what.contains("damaged at byte"), "{what}");
    assert_eq!(validate(&agent, &old).await, Err(Code::InvalidArgument));
    let new = token(&agent).await;
    assert_eq!(validate(&agent, &new).await, Ok(()));
    let shown = status(&agent).await;
    assert_eq!(shown["ready"], true);
    assert!(weaker(&shown).iter().any(|line| line.contains(".log.damaged")), "{shown}");
    agent.restart().await;
    assert_eq!(validate(&agent, &old).await, Err(Code::InvalidArgument), "it does not come back");
    assert_eq!(validate(&agent, &new).await, Ok(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_credential_keys_on_disk_are_wrapped_and_without_it_the_agent_refuses_to_start() {
    let dir = tempfile::tempdir().unwrap();
    let credentials = dir.path().join("credentials");
    std::fs::create_dir(&credentials).unwrap();
    std::fs::write(credentials.join("tether.key-wrapping-key"), [7; 32]).unwrap();
    let keys = |agent: &AgentProcess| -> Vec<Vec<u8>> {
        let files = std::fs::read_dir(agent.state().join("keys")).unwrap();
        files.map(|file| std::fs::read(file.unwrap().path()).unwrap()).collect()
    };
    let plain = AgentProcess::start(dir.path(), &[], &[]);
    assert!(keys(&plain).iter().all(|key| key.starts_with(&[0x30])), "PKCS#8");
    let said = admin(&plain, "status");
    assert!(said.contains("only their mode protects"), "{said}");
    plain.stop();

    let given = [("CREDENTIALS_DIRECTORY", credentials.to_str().unwrap())];
    let wrapped = AgentProcess::start(dir.path(), &[], &given);
    assert!(keys(&wrapped).iter().all(|key| key.starts_with(b"tethkey")));
    let said = admin(&wrapped, "status");
    assert!(!said.contains("only their mode protects"), "{said}");
    wrapped.stop();

    let mut without = Command::new(env!("CARGO_BIN_EXE_tether"));
    without.env_clear().args(["agent", "run", "--dev", "--dir"]).arg(dir.path().join("agent"));
    let refused = without.output().unwrap();
    let refused = String::from_utf8(refused.stderr).unwrap();
    assert!(refused.contains("/etc/credstore.encrypted/tether.key-wrapping-key"), "{refused}");
    AgentProcess::start(dir.path(), &[], &given).stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_agent_has_given_up_executing_programs_and_still_sees_those_of_its_callers() {
    let dir = tempfile::tempdir().unwrap();
    let agent = AgentProcess::start(dir.path(), &[], &[]);
    let threads = std::fs::read_dir(format!("/proc/{}/task", agent.pid())).unwrap();
    for thread in threads {
        let status = std::fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
        assert!(status.contains("NoNewPrivs:\t1") && status.contains("Seccomp:\t2"), "{status}");
    }
    let explained = admin(&agent, "explain");
    assert!(explained.contains("unix:path:"), "{explained}");
    let said = admin(&agent, "status");
    assert!(!said.contains("could execute programs"), "{said}");
}
