//! A backup and its way back: what comes back, what must not, and what is refused.

use std::fs::{File, Permissions};
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tether::agent::{self, Deps};
use tether::base::archive::{Archive, Sealer};
use tether::base::entropy::Entropy;
use tether::base::secret::Secret;
use tether::proto::admin::{
    BackupRequest, BackupSealing, CreateEntryRequest, DeleteEntryRequest, ListEntriesRequest, RevokeAuthorityRequest,
    ShowAuthoritiesRequest,
};
use tether::proto::workload::{JwtsvidRequest, ValidateJwtsvidRequest};
use tonic::Code;

use crate::harness::{TestAgent, uid, within};
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
    // The CAs that came after the backup it cannot know: what ends their certificates is the root.
    let end = format!("`tether authority revoke {}` ends them", id_of(&before, "x509-root", "active"));
    assert!(said(&restored).contains(&end), "{restored:?}");
    let restored: Value = serde_json::from_slice(&restored.stdout).unwrap();
    let former = PathBuf::from(restored["former_states"][0].as_str().unwrap());
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
    // Nothing of it may reach a terminal as it is.
    let about = |node: &str, made_at: &str| {
        let title = serde_json::json!({
            "version": 1, "node": node, "trust_domain": "dev.tether.internal", "agent_version": "0", "made_at": made_at,
        });
        Archive::new(title.to_string()).to_bytes().expose().clone()
    };
    let mut outside = Archive::new("\u{1b}[2J".to_owned());
    outside.add("store", b"rows".to_vec());
    let rows = [
        (about("0123456789abcdef0123456789abcdef", "\u{1b}]0;gone\u{7}"), "does not say when"),
        (about("\u{1b}[2Jnode", "2026-01-01T00:00:00Z"), "does not say of which node"),
        (outside.to_bytes().expose().clone(), "does not say what it is of"),
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
        assert!(!said(&refused).contains('\u{1b}'), "{refused:?}");
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
    assert!(!refused.status.success() && said(&refused).contains("run chmod 0600 on it"), "{refused:?}");
    std::fs::set_permissions(&passphrase, Permissions::from_mode(0o600)).unwrap();
    let refused = tether(&agent, &["backup", file_arg, "--passphrase-file", passphrase_arg]);
    assert!(!refused.status.success() && said(&refused).contains("16 characters"), "{refused:?}");
    std::fs::write(&passphrase, "a passphrase that nobody guesses\n").unwrap();
    let made = tether(&agent, &["backup", file_arg, "--passphrase-file", passphrase_arg]);
    assert!(made.status.success(), "{made:?}");
    other.stop().await;
    let refused = restore(&dir_of(&other), &file, &[]);
    assert!(said(&refused).contains("--passphrase-file"), "{refused:?}");
    // A backup that is not sealed, in its place: what anybody can make.
    let plain = agent.dir().join("plain");
    assert!(tether(&agent, &["backup", plain.to_str().unwrap()]).status.success());
    let refused = restore(&dir_of(&other), &plain, &["--passphrase-file", passphrase_arg]);
    assert!(refused.status.code() == Some(5) && said(&refused).contains("it is not sealed"), "{refused:?}");
    let restored = restore(&dir_of(&other), &file, &["--passphrase-file", passphrase_arg]);
    assert!(restored.status.success() && !said(&restored).contains("Nothing shows who made"), "{restored:?}");
    let audit = other.config().audit_log().dir;
    assert!(audit.join("before-restore-1").is_dir(), "the log of the node that was there is kept");
    other.restart().await;
    assert_eq!(id_of(&authorities(&other).await, "x509-root", "active"), root);
    let verified = tether(&other, &["audit", "verify"]);
    assert!(verified.status.success(), "the log of a host that never had one begins anew: {verified:?}");
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
    let restored = restore(&dir_of(&agent), &file, &[]);
    assert!(restored.status.success() && said(&restored).contains("Nothing shows who made"), "{restored:?}");
    let restored: Value = serde_json::from_slice(&restored.stdout).unwrap();
    let aside = ["before-restore-1", "before-restore-2"].map(|name| state.join(name).display().to_string());
    assert_eq!(restored["former_states"], serde_json::json!(aside), "all that was there is named");
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
    std::fs::set_permissions(dir_of(&agent), Permissions::from_mode(0o711)).unwrap();
    std::fs::set_permissions(agent.dir(), Permissions::from_mode(0o755)).unwrap();
    let program = Program::copied_to(agent.dir());
    let (socket, file) = (agent.admin_socket().to_str().unwrap().to_owned(), "/tmp/tether-no-backup");
    let mut asked = program.as_user(NOBODY, &["--socket", &socket, "backup", file]);
    let refused = asked.output().unwrap();
    assert_eq!(refused.status.code(), Some(6), "{refused:?}");
    assert!(said(&refused).contains("no role is enough") && !Path::new(file).exists(), "{refused:?}");
    let status = program.as_user(NOBODY, &["--socket", &socket, "status"]).output().unwrap();
    assert!(status.status.success(), "it is an operator: {status:?}");
    let root = agent.agent().await.backup(BackupRequest { sealing: None }).await;
    assert!(root.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_revoked_after_a_backup_stays_revoked_and_what_was_deleted_is_named() {
    let mut agent = TestAgent::start().await;
    agent.entries().await.create(entry("stays")).await.unwrap();
    agent.entries().await.create(entry("deleted")).await.unwrap();
    let file = agent.dir().join("backup");
    assert!(tether(&agent, &["backup", file.to_str().unwrap()]).status.success());
    let before = authorities(&agent).await;
    let stolen = ["x509-root", "jwt"].map(|kind| id_of(&before, kind, "active"));
    for id in &stolen {
        agent.authorities().await.revoke(RevokeAuthorityRequest { id: id.clone() }).await.unwrap();
    }
    agent.entries().await.delete(DeleteEntryRequest { id: "deleted".to_owned() }).await.unwrap();
    agent.stop().await;
    let restored = restore(&dir_of(&agent), &file, &[]);
    assert!(restored.status.success(), "{restored:?}");
    let notes = said(&restored);
    assert!(
        notes.contains("`deleted` was deleted after the backup and is back") && !notes.contains("`stays`"),
        "{notes}"
    );
    for id in &stolen {
        assert!(notes.contains(&format!("{id} was revoked after the backup: it is left out")), "{notes}");
    }
    agent.restart().await;
    let after = authorities(&agent).await;
    assert!(after.iter().all(|(_, _, id)| !stolen.contains(id)), "{after:?}");
    let keys = files(&agent.config().state_dir.join("keys"));
    assert!(stolen.iter().all(|id| keys.iter().all(|(path, _)| !path.ends_with(format!("{id}.pk8")))), "{keys:?}");
    let new = token(&agent).await;
    assert_eq!(validate(&agent, &new).await, Ok(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_is_restored_twice_is_followed_by_greater_bundle_sequences() {
    let mut agent = TestAgent::start().await;
    let file = agent.dir().join("backup");
    assert!(tether(&agent, &["backup", file.to_str().unwrap()]).status.success());
    let mut published = Vec::new();
    for _ in 0..2 {
        agent.stop().await;
        let restored = restore(&dir_of(&agent), &file, &[]);
        assert!(restored.status.success(), "{restored:?}");
        agent.restart().await;
        let shown = agent.authorities().await.show(ShowAuthoritiesRequest {}).await.unwrap().into_inner();
        published.push(shown.sequence);
        let jwt = id_of(&authorities(&agent).await, "jwt", "active");
        let revoked = agent.authorities().await.revoke(RevokeAuthorityRequest { id: jwt }).await;
        published.push(revoked.unwrap().into_inner().sequence);
    }
    assert!(published.is_sorted_by(|before, after| before < after), "{published:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_fails_before_anything_changed_lets_the_agent_start() {
    let mut agent = TestAgent::start().await;
    let file = agent.dir().join("backup");
    assert!(tether(&agent, &["backup", file.to_str().unwrap()]).status.success());
    agent.stop().await;
    let (dir, state) = (dir_of(&agent), agent.config().state_dir.clone());
    let before = files(&dir);
    // As on a full disk: what is written gets no larger than a few blocks.
    let mut limited = Command::new("sh");
    limited.args(["-c", "trap '' XFSZ; ulimit -f 8; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_tether"), "restore"]);
    let failed =
        limited.env_clear().env("PATH", "/bin:/usr/bin").arg(&file).args(["--dev", "--dir"]).arg(&dir).output();
    let failed = failed.unwrap();
    assert!(failed.status.code() == Some(1) && said(&failed).contains("nothing was changed"), "{failed:?}");
    assert_eq!(files(&dir), before);
    assert!(!state.join("restore-unfinished").exists() && !state.join("restore-new").exists());
    assert!(!state.join("before-restore-1").exists());
    agent.restart().await;
    token(&agent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_and_a_restore_never_have_the_state_at_the_same_time() {
    let mut agent = TestAgent::start().await;
    let file = agent.dir().join("backup");
    assert!(tether(&agent, &["backup", file.to_str().unwrap()]).status.success());
    agent.stop().await;
    // An agent that begins has not opened the store yet.
    let state = File::open(&agent.config().state_dir).unwrap();
    state.lock_shared().unwrap();
    let refused = restore(&dir_of(&agent), &file, &[]);
    assert!(refused.status.code() == Some(1) && said(&refused).contains("tether-agent-admin.socket"), "{refused:?}");
    state.unlock().unwrap();
    // A restore that is at work.
    state.lock().unwrap();
    let refused = agent::build(agent.config().clone(), Deps::default()).await.err().expect("not now");
    assert!(refused.to_string().contains("`tether restore` is at work"), "{refused}");
    state.unlock().unwrap();
    agent.restart().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_gives_keys_to_nobody_who_could_put_the_directory_there() {
    if !is_root() {
        eprintln!("skipped: giving directories away takes root");
        return;
    }
    let mut agent = TestAgent::start().await;
    let file = agent.dir().join("backup");
    assert!(tether(&agent, &["backup", file.to_str().unwrap()]).status.success());
    agent.stop().await;
    let (dir, state) = (dir_of(&agent), agent.config().state_dir.clone());
    let before = files(&dir);
    chown(&state, Some(NOBODY), None).unwrap();
    let refused = restore(&dir, &file, &[]);
    assert!(said(&refused).contains("belongs to uid 65534, who would get the keys"), "{refused:?}");
    chown(&state, Some(0), None).unwrap();
    for (owner, mode, why) in [(0, 0o777, "can be changed by others"), (NOBODY, 0o755, "belongs to uid 65534")] {
        chown(&dir, Some(owner), None).unwrap();
        std::fs::set_permissions(&dir, Permissions::from_mode(mode)).unwrap();
        let refused = restore(&dir, &file, &[]);
        assert!(refused.status.code() == Some(1) && said(&refused).contains(why), "{refused:?}");
        assert_eq!(files(&dir), before);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_takes_the_place_of_files_alone() {
    let agent = TestAgent::start().await;
    let (link, target) = (agent.dir().join("link"), agent.dir().join("target"));
    std::fs::write(&target, "something else").unwrap();
    symlink(&target, &link).unwrap();
    for path in [link.as_path(), agent.admin_socket(), agent.dir(), Path::new("/dev/stdout")] {
        let refused = tether(&agent, &["backup", path.to_str().unwrap()]);
        let (code, why) = (refused.status.code(), said(&refused));
        assert!(code == Some(2) && why.contains("no regular file"), "{}: {refused:?}", path.display());
    }
    assert!(link.is_symlink() && std::fs::read(&target).unwrap() == b"something else");
    assert!(tether(&agent, &["backup", target.to_str().unwrap()]).status.success(), "an older backup is replaced");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_passphrase_a_backup_is_sealed_before_it_leaves_the_agent() {
    let agent = TestAgent::start().await;
    let sent = async |sealing| {
        let answer = agent.agent().await.backup(BackupRequest { sealing }).await?;
        let (mut chunks, mut content) = (answer.into_inner(), Vec::new());
        while let Some(chunk) = within(chunks.message()).await? {
            content.extend_from_slice(&chunk.content);
        }
        Ok::<_, tonic::Status>(content)
    };
    let passphrase = Secret::new(b"a passphrase that nobody guesses".to_vec());
    let sealer = Sealer::of_passphrase(&passphrase, &Entropy::system());
    let sealing = BackupSealing {
        salt: sealer.salt().to_vec().into(),
        rounds: sealer.rounds(),
        key: sealer.key().expose().to_vec().into(),
    };
    let keys = files(&agent.config().state_dir.join("keys"));
    let has_keys =
        |content: &[u8]| keys.iter().any(|(_, key)| content.windows(key.len()).any(|part| part == key.as_slice()));
    let plain = sent(None).await.unwrap();
    assert!(!keys.is_empty() && has_keys(&plain), "they are found where they are");
    let sealed = sent(Some(sealing.clone())).await.unwrap();
    assert!(!has_keys(&sealed));
    assert!(Archive::read(&sealed, Some(&passphrase)).is_ok());
    for wrong in [BackupSealing { rounds: 0, ..sealing.clone() }, BackupSealing { key: vec![0; 31].into(), ..sealing }]
    {
        assert_eq!(sent(Some(wrong)).await.unwrap_err().code(), Code::InvalidArgument);
    }
}
