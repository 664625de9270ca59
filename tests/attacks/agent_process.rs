//! The agent as a process of its own, to be killed.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustls::pki_types::CertificateRevocationListDer;
use rustls::pki_types::pem::PemObject;
use tether::proto::admin::ShowBundlesRequest;
use tether::proto::admin::bundles_client::BundlesClient;
use tether::x509::Crl;

use crate::scene::EVERYTHING;

/// A running agent.
pub struct AgentProcess {
    child: Child,
    dir: PathBuf,
}

impl AgentProcess {
    /// Starts it in a directory, where it finds what one before it left, and waits until it answers.
    pub fn start(dir: &Path, entries: &str) -> Self {
        let at = |name: &str| dir.join(name).display().to_string();
        std::fs::create_dir_all(dir.join("entries.d")).unwrap();
        std::fs::write(dir.join("entries.d/all.toml"), entries).unwrap();
        std::fs::create_dir_all(dir.join("policies")).unwrap();
        std::fs::write(dir.join("policies/all.cedar"), EVERYTHING).unwrap();
        let config = format!(
            "trust_domain = \"dev.tether.internal\"\nstate_dir = \"{}\"\nentries_dir = \"{}\"\npolicies_dir = \"{}\"\n\
             [listen]\nworkload = \"{}\"\nadmin = \"{}\"\n[attest]\ndeadline = \"20s\"\n",
            at("state"),
            at("entries.d"),
            at("policies"),
            at("s/workload.sock"),
            at("a/admin.sock"),
        );
        std::fs::write(dir.join("tether.toml"), config).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_tether"))
            .args(["agent", "run", "--config", &at("tether.toml")])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let said = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        assert!(said.into_iter().any(|line| line == "ready"), "the agent starts");
        Self { child, dir: dir.to_owned() }
    }

    /// Where it serves workloads.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("s/workload.sock")
    }

    /// The revocation lists.
    pub async fn lists(&self) -> Vec<Crl> {
        let mut bundles = BundlesClient::new(crate::harness::channel(&self.dir.join("a/admin.sock")).await);
        let request = ShowBundlesRequest { trust_domain: "dev.tether.internal".to_owned() };
        let own = bundles.show(request).await.unwrap().into_inner().bundles.remove(0);
        let lists = own.crl_pem.iter().map(|pem| CertificateRevocationListDer::from_pem_slice(pem.as_bytes()).unwrap());
        lists.map(|der| Crl::from_der(&der).unwrap()).collect()
    }
}

impl Drop for AgentProcess {
    /// SIGKILL: nothing is tidied up.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
