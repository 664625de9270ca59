//! Revocation lists as verifiers see them: what is on them when, who is told, and who refuses.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use rustls::pki_types::CertificateRevocationListDer;
use rustls::pki_types::pem::PemObject;
use serde_json::Value;
use tether::id::TrustDomain;
use tether::proto::admin::{RevokeAuthorityRequest, RotateAuthorityRequest, ShowAuthoritiesRequest};
use tether::proto::workload::{X509BundlesRequest, X509BundlesResponse, X509svidRequest};
use tether::x509::{Chain, Crl, Serial, X509Authorities, X509Error, verify};
use x509_parser::prelude::{CertificateRevocationList, FromDer};

use crate::handshake::{Credentials, handshake, is_revoked, server};
use crate::harness::{TestAgent, next, uid, within};

const TETHER: &str = env!("CARGO_BIN_EXE_tether");
const SECOND: std::time::Duration = std::time::Duration::from_secs(1);

/// Another process that holds an X.509-SVID whose key somebody copied.
pub struct Victim {
    child: KilledInTheEnd,
    svid: Value,
}

impl Victim {
    /// Starts it; what it is issued ends with it.
    pub async fn of(agent: &TestAgent) -> Self {
        let socket = format!("unix://{}", agent.socket().display());
        let work = tokio::task::spawn_blocking(move || {
            let child = Command::new(TETHER)
                .env("SPIFFE_ENDPOINT_SOCKET", socket)
                .args(["fetch", "x509", "--watch", "--output", "json", "--spiffe-id"])
                .arg("spiffe://dev.tether.internal/victim")
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            let mut child = KilledInTheEnd(child);
            let mut line = String::new();
            BufReader::new(child.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
            let mut document: Value = serde_json::from_str(&line).expect("one object a line");
            Self { child, svid: document["svids"][0].take() }
        });
        within(work).await.unwrap()
    }

    fn text(&self, field: &str) -> &str {
        self.svid[field].as_str().unwrap()
    }

    /// What its certificate has on a list.
    pub fn serial(&self) -> Serial {
        Serial::from_hex(self.text("serial")).unwrap()
    }

    /// Its certificate and what leads from it.
    pub fn chain(&self) -> Chain {
        Chain::from_pem(self.text("x509_svid_pem").as_bytes()).unwrap()
    }

    /// What a thief has.
    pub fn stolen(&self) -> Credentials {
        Credentials::from_pem(self.text("x509_svid_pem"), self.text("x509_svid_key_pem"))
    }

    /// Kills it and waits until the agent has noticed.
    pub async fn die(&mut self, agent: &TestAgent) {
        let before = agent.state().crls().current().await.revoked();
        self.child.0.kill().unwrap();
        self.child.0.wait().unwrap();
        within(async {
            while agent.state().crls().current().await.revoked() == before {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
}

/// A process that does not outlive its test.
struct KilledInTheEnd(Child);

impl Drop for KilledInTheEnd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An agent that gives each process of `tether` the identity `/victim`.
pub async fn agent() -> TestAgent {
    let agent = TestAgent::start().await;
    victims(&agent).await;
    agent
}

/// From now on each process of `tether` has the identity `/victim`.
pub async fn victims(agent: &TestAgent) {
    let entry = format!(
        "[[entry]]\nid = \"victim\"\nspiffe_id = \"spiffe://dev.tether.internal/victim\"\nbind = \"process\"\n\
         match = [\"unix:uid:{}\", \"unix:path:{}\"]\n",
        uid(),
        Path::new(TETHER).canonicalize().unwrap().display(),
    );
    agent.write_entries("victim.toml", &entry).await;
}

/// What `tether` prints as an administrator.
async fn tether(agent: &TestAgent, arguments: &[&str]) -> String {
    let mut command = Command::new(TETHER);
    command.args(arguments).arg("--socket").arg(agent.admin_socket());
    let output = within(tokio::task::spawn_blocking(move || command.output().unwrap())).await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn lists(crl: &[impl AsRef<[u8]>]) -> Vec<Crl> {
    crl.iter().map(|der| Crl::from_der(der.as_ref()).unwrap()).collect()
}

/// Whether the certificate is on one of these lists.
pub fn revokes(crl: &[impl AsRef<[u8]>], victim: &Victim) -> bool {
    lists(crl).iter().any(|list| list.revokes(&victim.serial()))
}

/// Whether somebody who enforces the lists believes it, by the agent's clock.
pub fn believe(agent: &TestAgent, victim: &Victim, answer: &X509BundlesResponse) -> Result<(), X509Error> {
    let domain = TrustDomain::parse("dev.tether.internal").unwrap();
    let authorities = X509Authorities::from_der(domain, &answer.bundles["spiffe://dev.tether.internal"]).unwrap();
    verify(&victim.chain(), &authorities, agent.clock().now(), &lists(&answer.crl)).map(drop)
}

/// What is published now.
pub async fn bundles(agent: &TestAgent) -> X509BundlesResponse {
    let mut stream = agent.workload().await.fetch_x509_bundles(X509BundlesRequest {}).await.unwrap().into_inner();
    next(&mut stream).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copied_key_is_refused_by_rustls_and_openssl_as_soon_as_its_process_has_ended() {
    let agent = agent().await;
    let mut victim = Victim::of(&agent).await;
    let other = Victim::of(&agent).await;
    let own = other.stolen();
    let roots = tether(&agent, &["bundle", "export", "--format", "pem"]).await;
    let before = tether(&agent, &["bundle", "export", "--format", "crl"]).await;
    handshake(server(&own, &roots, &before), &victim.stolen()).expect("its process lives");
    assert!(openssl(agent.dir(), &victim, &roots, &before).status.success());

    victim.die(&agent).await;
    let after = tether(&agent, &["bundle", "export", "--format", "crl"]).await;
    let refused = handshake(server(&own, &roots, &after), &victim.stolen()).expect_err("its process is gone");
    assert!(is_revoked(&refused), "{refused}");
    let refused = openssl(agent.dir(), &victim, &roots, &after);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("certificate revoked"), "{said}");

    handshake(server(&own, &roots, &after), &own).expect("the other process lives");
    assert!(openssl(agent.dir(), &other, &roots, &after).status.success());
}

/// What `openssl verify` says when every certificate of a path must have a list.
fn openssl(dir: &Path, victim: &Victim, roots: &str, lists: &str) -> Output {
    let file = |name: &str, text: &str| -> PathBuf {
        let path = dir.join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let chain = file("svid.pem", victim.text("x509_svid_pem"));
    Command::new("openssl")
        .args(["verify", "-x509_strict", "-crl_check", "-crl_check_all", "-CAfile"])
        .arg(file("roots.pem", roots))
        .arg("-CRLfile")
        .arg(file("crl.pem", lists))
        .arg("-untrusted")
        .args([&chain, &chain])
        .output()
        .expect("openssl is there")
}

#[tokio::test(flavor = "multi_thread")]
async fn revocations_reach_bundle_streams_at_most_once_a_second_and_wake_no_svid_stream() {
    let agent = agent().await;
    let (mut first, mut second, mut third) =
        (Victim::of(&agent).await, Victim::of(&agent).await, Victim::of(&agent).await);
    let mut client = agent.workload().await;
    let mut svids = client.fetch_x509svid(X509svidRequest {}).await.unwrap().into_inner();
    let told = next(&mut svids).await.unwrap();
    assert_eq!(told.crl.len(), 2, "the lists of the root and of the signing CA ride along");
    let mut pushed = client.fetch_x509_bundles(X509BundlesRequest {}).await.unwrap().into_inner();
    let answer = next(&mut pushed).await.unwrap();
    assert_eq!(answer.crl, told.crl);
    believe(&agent, &first, &answer).expect("its process lives");

    // What was announced at the start is a second ago.
    agent.clock().advance(SECOND);
    first.die(&agent).await;
    let answer = next(&mut pushed).await.unwrap();
    assert!(matches!(believe(&agent, &first, &answer), Err(X509Error::Revoked)));
    believe(&agent, &second, &answer).expect("its process lives");
    second.die(&agent).await;
    third.die(&agent).await;
    agent.clock().advance(SECOND);
    // Streams are ordered: had the second been told alone, that would come before this.
    let answer = next(&mut pushed).await.unwrap();
    assert!([&second, &third].iter().all(|victim| revokes(&answer.crl, victim)));

    agent
        .write_entries(
            "more.toml",
            &format!(
                "[[entry]]\nid = \"more\"\nspiffe_id = \"spiffe://dev.tether.internal/more\"\nmatch = [\"unix:uid:{}\"]\n",
                uid()
            ),
        )
        .await;
    let told = next(&mut svids).await.unwrap();
    assert_eq!(told.svids.len(), 2, "the first message since is about the new entry");
    assert!(
        [&first, &second, &third].iter().all(|victim| revokes(&told.crl, victim)),
        "and has the lists that were announced"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watched_directory_has_a_revocation_without_a_new_svid() {
    let agent = agent().await;
    let mut victim = Victim::of(&agent).await;
    let dir = agent.dir().join("files");
    let keeper = Command::new(TETHER)
        .env("SPIFFE_ENDPOINT_SOCKET", format!("unix://{}", agent.socket().display()))
        .args(["fetch", "x509", "--watch", "--write"])
        .arg(&dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut keeper = KilledInTheEnd(keeper);
    let (told, mut said) = tokio::sync::mpsc::unbounded_channel();
    let stderr = BufReader::new(keeper.0.stderr.take().unwrap());
    std::thread::spawn(move || stderr.lines().map_while(Result::ok).for_each(|line| drop(told.send(line))));
    let mut says = async |wanted: &str| {
        let line = async { while !said.recv().await.expect("it goes on").contains(wanted) {} };
        within(line).await;
    };
    says("and crl.pem, to").await;
    let svid = std::fs::read(dir.join("svid.pem")).unwrap();
    agent.clock().advance(SECOND);
    victim.die(&agent).await;
    says("wrote crl.pem").await;
    let lists = std::fs::read(dir.join("crl.pem")).unwrap();
    let lists = CertificateRevocationListDer::pem_slice_iter(&lists).map(Result::unwrap).collect::<Vec<_>>();
    assert!(revokes(&lists, &victim));
    assert_eq!(std::fs::read(dir.join("svid.pem")).unwrap(), svid);
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_outlive_the_rotation_of_their_ca_and_end_with_its_revocation() {
    let agent = agent().await;
    let mut victim = Victim::of(&agent).await;
    let mut authorities = agent.authorities().await;
    let rotate = RotateAuthorityRequest { kind: "x509-signing".to_owned(), now: true };
    authorities.rotate(rotate).await.unwrap();
    victim.die(&agent).await;
    let answer = bundles(&agent).await;
    assert_eq!(answer.crl.len(), 3, "of the root, the retired and the new signing CA");
    assert!(matches!(believe(&agent, &victim, &answer), Err(X509Error::Revoked)));

    let signed_by = victim.chain().intermediates()[0].serial().to_string();
    let shown = authorities.show(ShowAuthoritiesRequest {}).await.unwrap().into_inner().authorities;
    assert!(shown.iter().any(|authority| authority.id == signed_by && authority.state == "retired"));
    authorities.revoke(RevokeAuthorityRequest { id: signed_by }).await.unwrap();
    let answer = bundles(&agent).await;
    assert!(!revokes(&answer.crl, &victim) && answer.crl.len() == 2, "its root is gone, and with it all it signed");
    assert!(matches!(believe(&agent, &victim, &answer), Err(X509Error::UnknownAuthority)));
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restart_nothing_revoked_comes_back_and_the_numbers_of_lists_have_grown() {
    let mut agent = agent().await;
    let mut victim = Victim::of(&agent).await;
    let mut died_meanwhile = Victim::of(&agent).await;
    victim.die(&agent).await;
    let number = |answer: &X509BundlesResponse| {
        let list =
            |der: &bytes::Bytes| CertificateRevocationList::from_der(der).unwrap().1.crl_number().unwrap().clone();
        answer.crl.iter().map(list).max().unwrap()
    };
    let before = bundles(&agent).await;
    agent.stop().await;
    died_meanwhile.child.0.kill().unwrap();
    died_meanwhile.child.0.wait().unwrap();
    agent.restart().await;
    let after = bundles(&agent).await;
    for victim in [&victim, &died_meanwhile] {
        assert!(matches!(believe(&agent, victim, &after), Err(X509Error::Revoked)));
    }
    assert!(number(&after) > number(&before));
}
