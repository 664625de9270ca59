//! A backup and its way back: what comes back, what must not, and what is refused.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tether::agent::{self, Deps};
use tether::proto::admin::{BackupRequest, CreateEntryRequest, ListEntriesRequest, ShowAuthoritiesRequest};
use tether::proto::workload::{JwtsvidRequest, ValidateJwtsvidRequest};
use tonic::Code;

use crate::harness::{TestAgent, uid};
use crate::program::{NOBODY, Program, is_root};

/// Runs a command with the agent's admin socket.
fn tether(agent: &TestAgent, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tether"));
    command.env_clear().arg("--socket").arg(agent.admin_socket()).args(arguments).output().unwrap()
}

/// `tether restore` with the configuration of a `--dev` agent in this directory.
fn restore(dir: &Path, file: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tether"));
    command.env_clear().args(["--output", "json", "restore"]).arg(file).args(["--dev", "--dir"]).arg(dir);
    command.args(more).output().unwrap()
}

fn dir_of(agent: &TestAgent) -> PathBuf {
    agent.config().state_dir.parent().unwrap().to_owned()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn entry(id: &str) -> CreateEntryRequest {
    let uid = uid();
    let toml =
        format!("id = \"{id}\"\nspiffe_id = \"spiffe://dev.tether.internal/{id}\"\nmatch = [\"unix:uid:{uid}\"]\n");
    CreateEntryRequest { toml }
}

async fn token(agent: &TestAgent) -> String {
    let request = JwtsvidRequest { audience: vec!["demo".to_owned()], ..JwtsvidRequest::default() };
    agent.workload().await.fetch_jwtsvid(request).await.unwrap().into_inner().svids.remove(0).svid
}

async fn validate(agent: &TestAgent, token: &str) -> Result<(), Code> {
    let request = ValidateJwtsvidRequest { audience: "demo".to_owned(), svid: token.to_owned() };
    agent.workload().await.validate_jwtsvid(request).await.map(drop).map_err(|status| status.code())
}

/// The authorities by kind and state.
async fn authorities(agent: &TestAgent) -> Vec<(String, String, String)> {
    let shown = agent.authorities().await.show(ShowAuthoritiesRequest {}).await.unwrap().into_inner();
    shown.authorities.into_iter().map(|view| (view.kind, view.state, view.id)).collect()
}

fn id_of(authorities: &[(String, String, String)], kind: &str, state: &str) -> String {
    let found = authorities.iter().find(|(has, is, _)| has == kind && is == state);
    found.unwrap_or_else(|| panic!("{kind} {state}: {authorities:?}")).2.clone()
}

/// Every file below a directory with its content.
fn files(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push((path.clone(), std::fs::read(&path).unwrap()));
        }
    }
    found.sort();
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_brings_back_the_trust_domain_and_nothing_that_was_issued() {
    let mut agent = TestAgent::start().await;
    agent.entries().await.create(entry("before")).await.unwrap();
    let old = token(&agent).await;
    let before = authorities(&agent).await;
    let file = agent.dir().join("backup");
    let made = tether(&agent, &["backup", file.to_str().unwrap()]);
    assert!(made.status.success() && said(&made).contains("whoever reads it can sign"), "{made:?}");
    let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&file).unwrap());
    assert_eq!(mode & 0o777, 0o600);
    agent.entries().await.create(entry("after")).await.unwrap();
    let newer = token(&agent).await;

    let refused = restore(&dir_of(&agent), &file, &[]);
    assert!(!refused.status.success() && said(&refused).contains("stop it first"), "{refused:?}");
    agent.stop().await;
    let restored = restore(&dir_of(&agent), &file, &[]);
    assert!(restored.status.success(), "{restored:?}");
    let restored: Value = serde_json::from_slice(&restored.stdout).unwrap();
    let former = PathBuf::from(restored["former_state"].as_str().unwrap());
    assert!(former.join("store.redb").exists() && former.join("keys").exists(), "what was there is kept");

    agent.restart().await;
    let listed = agent.entries().await.list(ListEntriesRequest::default()).await.unwrap().into_inner();
    let ids: Vec<String> = listed.entries.into_iter().map(|entry| entry.id).collect();
    assert!(ids.contains(&"before".to_owned()) && !ids.contains(&"after".to_owned()), "{ids:?}");
    for token in [&old, &newer] {
        assert_eq!(validate(&agent, token).await, Err(Code::InvalidArgument), "nothing that was issued stands");
    }
    let after = authorities(&agent).await;
    assert_eq!(id_of(&after, "x509-root", "active"), id_of(&before, "x509-root", "active"), "the same trust domain");
    let signed = id_of(&before, "x509-signing", "active");
    assert_eq!(id_of(&after, "x509-signing", "retired"), signed, "its list is still there");
    assert_ne!(id_of(&after, "x509-signing", "active"), signed);
    assert_eq!(restored["retired_authorities"][0], signed.as_str());
    let new = token(&agent).await;
    assert_eq!(validate(&agent, &new).await, Ok(()));
    let verified = tether(&agent, &["audit", "verify"]);
    assert!(verified.status.success(), "the log goes on: {verified:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_cannot_be_used_is_refused_with_words_and_changes_nothing() {
    let mut agent = TestAgent::start().await;
    let file = agent.dir().join("backup");
    assert!(tether(&agent, &["backup", file.to_str().unwrap()]).status.success());
    agent.stop().await;
    let (dir, whole) = (dir_of(&agent), std::fs::read(&file).unwrap());
    let before = files(&dir);
    let changed = |at: usize| {
        let mut changed = whole.clone();
        changed[at] ^= 1;
        changed
    };
    let mut newer = whole.clone();
    newer[15] = 9;
    let rows = [
        (whole[..whole.len() / 2].to_vec(), "damaged or not complete"),
        (changed(whole.len() / 3), "damaged or not complete"),
        (newer, "newer version"),
        (b"something else".to_vec(), "no backup"),
        (Vec::new(), "no backup"),
    ];
    for (content, why) in rows {
        std::fs::write(&file, content).unwrap();
        let refused = restore(&dir, &file, &[]);
        assert!(refused.status.code() == Some(5) && said(&refused).contains(why), "{why}: {refused:?}");
        assert_eq!(files(&dir), before, "{why}");
    }
    std::fs::write(&file, &whole).unwrap();
    let refused = restore(&dir, &file, &["--set", "trust_domain=other.example"]);
    assert!(said(&refused).contains("dev.tether.internal") && said(&refused).contains("other.example"), "{refused:?}");
    assert_eq!(files(&dir), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sealed_backup_is_restored_on_another_host_without_the_key_wrapping_key() {
    let (agent, mut other) = (TestAgent::start().await, TestAgent::start().await);
    let root = id_of(&authorities(&agent).await, "x509-root", "active");
    assert_ne!(id_of(&authorities(&other).await, "x509-root", "active"), root);
    let (file, passphrase) = (agent.dir().join("backup"), agent.dir().join("passphrase"));
    let (file_arg, passphrase_arg) = (file.to_str().unwrap(), passphrase.to_str().unwrap());
    std::fs::write(&passphrase, "short\n").unwrap();
    let refused = tether(&agent, &["backup", file_arg, "--passphrase-file", passphrase_arg]);
    assert!(!refused.status.success() && said(&refused).contains("16 characters"), "{refused:?}");
    std::fs::write(&passphrase, "a passphrase that nobody guesses\n").unwrap();
    let made = tether(&agent, &["backup", file_arg, "--passphrase-file", passphrase_arg]);
    assert!(made.status.success(), "{made:?}");
    other.stop().await;
    let refused = restore(&dir_of(&other), &file, &[]);
    assert!(said(&refused).contains("--passphrase-file"), "{refused:?}");
    let restored = restore(&dir_of(&other), &file, &["--passphrase-file", passphrase_arg]);
    assert!(restored.status.success(), "{restored:?}");
    let audit = other.config().audit_log().dir;
    assert!(audit.join("before-restore-1").is_dir(), "the log of the node that was there is kept");
    other.restart().await;
    assert_eq!(id_of(&authorities(&other).await, "x509-root", "active"), root);
    let verified = tether(&other, &["audit", "verify"]);
    assert!(verified.status.success(), "{verified:?}");
    let new = token(&other).await;
    assert_eq!(validate(&other, &new).await, Ok(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_was_interrupted_lets_no_agent_start_until_it_is_made_again() {
    let mut agent = TestAgent::start().await;
    let file = agent.dir().join("backup");
    assert!(tether(&agent, &["backup", file.to_str().unwrap()]).status.success());
    agent.stop().await;
    // It died when the old state was aside and the new one was not there.
    let state = agent.config().state_dir.clone();
    std::fs::create_dir(state.join("restore-unfinished")).unwrap();
    std::fs::create_dir(state.join("before-restore-1")).unwrap();
    for name in ["store.redb", "store.copy", "keys"] {
        std::fs::rename(state.join(name), state.join("before-restore-1").join(name)).unwrap();
    }
    let refused = agent::build(agent.config().clone(), Deps::default()).await.err().expect("it does not begin anew");
    assert!(refused.to_string().contains("tether restore"), "{refused}");
    assert!(restore(&dir_of(&agent), &file, &[]).status.success());
    agent.restart().await;
    token(&agent).await;
    assert!(state.join("before-restore-1/store.redb").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_neither_root_nor_the_agent_gets_no_backup_whatever_its_role() {
    if !is_root() {
        eprintln!("skipped: being two users takes root");
        return;
    }
    let agent = TestAgent::configured(|config| config.admin.operators = vec!["65534".to_owned()]).await;
    std::fs::set_permissions(dir_of(&agent), std::os::unix::fs::PermissionsExt::from_mode(0o711)).unwrap();
    std::fs::set_permissions(agent.dir(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let program = Program::copied_to(agent.dir());
    let (socket, file) = (agent.admin_socket().to_str().unwrap().to_owned(), "/tmp/tether-no-backup");
    let mut asked = program.as_user(NOBODY, &["--socket", &socket, "backup", file]);
    let refused = asked.output().unwrap();
    assert_eq!(refused.status.code(), Some(6), "{refused:?}");
    assert!(said(&refused).contains("no role is enough") && !Path::new(file).exists(), "{refused:?}");
    let status = program.as_user(NOBODY, &["--socket", &socket, "status"]).output().unwrap();
    assert!(status.status.success(), "it is an operator: {status:?}");
    let root = agent.agent().await.backup(BackupRequest { plain_keys: false }).await;
    assert!(root.is_ok());
}
