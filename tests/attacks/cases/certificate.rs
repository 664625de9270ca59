//! An X.509-SVID whose key was in the workload and was copied. The naive side is a server that enforces no revocation
//! lists; the other one enforces those of tether, with rustls.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::Command;

use super::Attack;
use crate::handshake::{Credentials, is_revoked, server};
use crate::needs;
use crate::orders::{Order, X509};
use crate::scene::{Process, Scene, serial};
use crate::target::Side;
use crate::tls;

pub const ATTACKS: &[Attack] = &[
    Attack::new("a copied X.509 key is used after its process exited", after_exit).needing(needs::network_namespaces),
    Attack::new("a copied X.509 key is used after its process executed another program", after_exec)
        .needing(needs::network_namespaces),
    Attack::new("a copied X.509 key is used after an operator revoked its certificate", after_revocation)
        .needing(needs::network_namespaces),
];

pub const LIMITS: &[Attack] =
    &[Attack::new("KNOWN LIMIT: a copied X.509 key works anywhere while its process lives", alive)
        .needing(needs::network_namespaces)];

/// The agent, what was copied, and the thief: on another network, where it still reaches the server.
struct Theft {
    side: Side,
    scene: Scene,
    victim: Process,
    stolen: X509,
    thief: Process,
}

impl Theft {
    fn on(side: Side) -> Self {
        let scene = Scene::on(if side == Side::Naive { Side::Tether } else { side });
        let mut victim = scene.victim();
        let stolen = victim.fetch_x509();
        let thief = scene.elsewhere(&scene);
        let mut theft = Self { side, scene, victim, stolen, thief };
        theft.used().expect("nothing has ended yet");
        theft
    }

    /// The thief connects to a server of this moment; what that one makes of it.
    fn used(&mut self) -> std::io::Result<()> {
        let own = self.scene.tool().fetch_x509();
        let (roots, lists) = self.scene.roots_and_lists();
        let lists = if self.side == Side::Naive { "" } else { &lists };
        let config = server(&Credentials::from_pem(&own.chain, &own.key), &roots, lists);
        let at = self.scene.stage().path("tls.sock");
        let _ = std::fs::remove_file(&at);
        let listener = UnixListener::bind(&at).unwrap();
        std::fs::set_permissions(&at, PermissionsExt::from_mode(0o777)).unwrap();
        let (chain, key) = (self.stolen.chain.clone(), self.stolen.key.clone());
        self.thief.tell(&Order::Handshake { at, chain, key });
        let served = tls::serve_one(&listener, config);
        assert_eq!(self.thief.told::<String>().is_ok(), served.is_ok(), "both know how it went");
        served
    }

    /// What must come of it when the certificate has ended for `reason`.
    fn judge(mut self, reason: &str) {
        self.scene.recorded(reason);
        let served = self.used();
        if self.side == Side::Naive {
            return served.expect("the attack must succeed on a server that enforces no lists");
        }
        let error = served.expect_err("the certificate is on the list").into_inner().expect("an error of rustls");
        let error = error.downcast::<rustls::Error>().unwrap();
        assert!(is_revoked(&error), "{error}");
        let number = serial(&self.stolen.chain);
        assert!(self.scene.lists().iter().any(|list| list.revokes(&number)), "workloads get it with the bundles");
        self.openssl_refuses();
    }

    /// Another implementation reads the lists the same way.
    fn openssl_refuses(&self) {
        let file = |name: &str, text: &str| -> PathBuf {
            let path = self.scene.stage().path(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let (roots, lists) = self.scene.roots_and_lists();
        let chain = file("svid.pem", &self.stolen.chain);
        let mut openssl = Command::new("openssl");
        openssl.args(["verify", "-x509_strict", "-crl_check", "-crl_check_all", "-CAfile"]);
        openssl.arg(file("roots.pem", &roots)).arg("-CRLfile").arg(file("lists.pem", &lists));
        let said = openssl.arg("-untrusted").args([&chain, &chain]).output().expect("openssl is there");
        let said = String::from_utf8_lossy(&said.stderr).into_owned();
        assert!(said.contains("certificate revoked"), "{said}");
    }
}

fn after_exit(side: Side) {
    let mut theft = Theft::on(side);
    theft.victim.end();
    theft.judge("process_exited");
}

/// A new program is no event: it is noticed when somebody looks, here because the process itself asks for something.
fn after_exec(side: Side) {
    let mut theft = Theft::on(side);
    let thief = theft.scene.stage().thief();
    theft.victim.exec(thief);
    theft.victim.fetch_jwt();
    theft.judge("executable_changed");
}

fn after_revocation(side: Side) {
    let theft = Theft::on(side);
    assert!(theft.scene.revoke("victim").total > 0);
    theft.judge("operator");
}

/// Nobody can tell a copy from the original. Short lives and held keys are what there is against it.
fn alive(side: Side) {
    let mut theft = Theft::on(side);
    theft.used().expect("if this is closed now, SECURITY.md must say so");
}
