//! What ends a credential, and that the end is the same for everybody who asks: the verifier of tokens, the verifier of
//! proofs, whoever reads the revocation lists, the signer. And that nothing comes back when the agent does.

use std::path::PathBuf;
use std::time::Duration;

use tether::proto::admin::{
    CredentialFilter, CredentialView, ListCredentialsRequest, RevokeAuthorityRequest, ShowAuthoritiesRequest,
};

use super::Attack;
use crate::agent_process::AgentProcess;
use crate::needs::{self, cgroup_root};
use crate::orders::{Headers, Held, Order, X509};
use crate::scene::{self, Process, Scene, Setup, serial};
use crate::stage::{Actor, NOBODY, Stage};
use crate::target::Side;

const TETHER: &[Side] = &[Side::Tether, Side::OldKernel];

pub const ATTACKS: &[Attack] = &[
    Attack::new("what a process was issued is used after it exited, and after the agent was restarted", exit)
        .on(TETHER),
    Attack::new("what a process was issued is used after it executed another program", exec).on(TETHER),
    Attack::new("what a process was issued is used after it became another user", user).needing(needs::root).on(TETHER),
    Attack::new("what a unit was issued is used after its last process exited", cgroup)
        .needing(needs::cgroups)
        .on(TETHER),
    Attack::new("what an entry gave is used after it was deleted", entry_gone).on(TETHER),
    Attack::new("what an entry gave is used after it was disabled", entry_disabled).on(TETHER),
    Attack::new("what an entry gave is used after the entry expired", entry_expired).on(TETHER),
    Attack::new("what a process was issued is used after an operator revoked it", operator).on(TETHER),
    Attack::new("what an authority signed is used after it was revoked", authority).on(TETHER),
    Attack::new("what a process was issued is used after it exited while there was no agent", meanwhile).on(TETHER),
    Attack::new("what a process was issued is used after it exited, and the agent was killed before or after", killed)
        .on(&[Side::Tether]),
];

/// One of everything that a process can have.
pub struct Loot {
    pub jwt: String,
    pub x509: X509,
    pub held: Held,
    pub wit: Held,
    /// A request that nobody has seen yet.
    pub proven: Headers,
}

impl Loot {
    /// All of it stands.
    pub fn of(victim: &mut Process) -> Self {
        let (jwt, x509, held, wit) = (victim.fetch_jwt(), victim.fetch_x509(), victim.hold_x509(), victim.hold_wit());
        let proven = victim.prove(&wit.key).unwrap();
        Self { jwt, x509, held, wit, proven }
    }
}

struct Theft {
    scene: Scene,
    tool: Process,
    victim: Process,
    loot: Loot,
}

impl Theft {
    fn on(side: Side) -> Self {
        Self::with(side, "")
    }

    fn with(side: Side, entry: &str) -> Self {
        Self::of(side, entry, |_| ())
    }

    fn of(side: Side, entry: &str, place: impl FnOnce(&mut Process)) -> Self {
        let scene = Scene::with(side, Setup { victim: entry, ..Setup::default() });
        let (mut tool, mut victim) = (scene.tool(), scene.victim());
        place(&mut victim);
        let loot = Loot::of(&mut victim);
        tool.validate(&loot.jwt).expect("it stands");
        let fresh = victim.prove(&loot.wit.key).unwrap();
        assert!(tool.check(&fresh).active, "it stands");
        assert!(!scene.lists().iter().any(|list| list.revokes(&serial(&loot.x509.chain))), "it stands");
        Self { scene, tool, victim, loot }
    }

    /// Everybody who asks is told no, and the ledger says why.
    fn refused_everywhere(&mut self, reason: &str) {
        self.scene.recorded(reason);
        self.refused_by_all(reason);
    }

    fn refused_by_all(&mut self, reason: &str) {
        let refused = self.tool.validate(&self.loot.jwt).expect_err("the token does not stand");
        assert_eq!(refused.code, "InvalidArgument", "{refused:?}");
        let verdict = self.tool.check(&self.loot.proven);
        assert!(!verdict.active, "{verdict:?}");
        self.on_the_list();
        for credential in self.ledger() {
            assert_eq!(credential.standing, "ended", "{credential:?}");
            // A held key is its process's alone: it ends with it whatever the entry is bound to, and with the agent.
            let own_ends: &[_] =
                if credential.custody == "tether" { &["process_exited", "agent_restart"] } else { &[] };
            let expected = credential.reason == reason || own_ends.contains(&credential.reason.as_str());
            assert!(expected, "{credential:?}");
        }
    }

    fn on_the_list(&self) {
        let number = serial(&self.loot.x509.chain);
        assert!(self.scene.lists().iter().any(|list| list.revokes(&number)), "the certificate is on the list");
    }

    /// A process that lives cannot use what was held for it either.
    fn keys_are_gone(&mut self) {
        let (proof, signature) = (self.victim.prove(&self.loot.wit.key), self.victim.sign(&self.loot.held.key));
        for refused in [proof.unwrap_err(), signature.unwrap_err()] {
            assert_eq!(refused.code, "PermissionDenied", "{refused:?}");
        }
    }

    /// What the ledger has of the loot.
    fn ledger(&self) -> Vec<CredentialView> {
        let filter = CredentialFilter { entry: "victim".to_owned(), ..CredentialFilter::default() };
        let request = ListCredentialsRequest { filter: Some(filter), all: true, limit: 0 };
        let list = self.scene.wait(async {
            self.scene.agent().credentials().await.list(request).await.unwrap().into_inner().credentials
        });
        assert_eq!(list.len(), 4, "a token, a certificate, a held certificate and a held WIT: {list:?}");
        list
    }

    fn write_entries(&self, change: impl FnOnce(String) -> String) {
        let file = self.scene.agent().config().entries_dir.join("all.toml");
        let entries = change(std::fs::read_to_string(file).unwrap());
        self.scene.wait(self.scene.agent().write_entries("all.toml", &entries));
    }
}

fn exit(side: Side) {
    let mut theft = Theft::on(side);
    theft.victim.end();
    theft.refused_everywhere("process_exited");
    theft.scene.restart();
    theft.refused_by_all("process_exited");
}

/// The verifier that asks makes the agent look; so does the process when it asks for anything.
fn exec(side: Side) {
    let mut theft = Theft::on(side);
    theft.victim.exec(theft.scene.stage().thief());
    assert!(theft.tool.validate(&theft.loot.jwt).is_err(), "whoever asks first is told already");
    theft.refused_everywhere("executable_changed");
    theft.keys_are_gone();
}

/// It is still the same program in the same process, and the entry is about another user.
fn user(side: Side) {
    let mut theft = Theft::on(side);
    theft.victim.order::<String>(&Order::BecomeUser(NOBODY)).unwrap();
    assert!(!theft.tool.check(&theft.loot.proven).active, "whoever asks first is told already");
    assert!(theft.tool.validate(&theft.loot.jwt).is_err());
    theft.refused_everywhere("no_longer_matches");
    theft.keys_are_gone();
}

/// The entry binds to the unit: the process that asked may go, as long as somebody of the unit is there.
fn cgroup(side: Side) {
    let group = Group::new(side);
    let mut theft = Theft::of(side, "bind = \"unit\"", |victim| group.take(victim));
    let mut other = theft.scene.victim();
    group.take(&mut other);
    theft.victim.end();
    theft.tool.validate(&theft.loot.jwt).expect("somebody of the unit is there");
    other.end();
    theft.refused_everywhere("cgroup_empty");
}

fn entry_gone(side: Side) {
    let mut theft = Theft::on(side);
    theft.write_entries(|entries| {
        let (_, others) = entries[1..].split_once("[[entry]]").unwrap();
        format!("[[entry]]{others}")
    });
    theft.refused_everywhere("entry_gone");
    theft.keys_are_gone();
}

fn entry_disabled(side: Side) {
    let mut theft = Theft::on(side);
    theft.write_entries(|entries| entries.replacen("id = \"victim\"", "id = \"victim\"\ndisabled = true", 1));
    theft.refused_everywhere("entry_disabled");
    theft.keys_are_gone();
}

/// Nothing lives longer than its entry, whatever a verifier forgives.
fn entry_expired(side: Side) {
    let mut theft = Theft::on(side);
    let soon = theft.scene.agent().clock().now() + Duration::from_secs(60);
    let soon = soon.replace_nanosecond(0).unwrap().format(&time::format_description::well_known::Rfc3339).unwrap();
    theft.write_entries(|entries| {
        entries.replacen("id = \"victim\"", &format!("id = \"victim\"\nexpires_at = \"{soon}\""), 1)
    });
    theft.tool.validate(&theft.loot.jwt).expect("not yet");
    theft.scene.agent().clock().advance(Duration::from_secs(61));
    theft.refused_everywhere("entry_expired");
    theft.keys_are_gone();
}

fn operator(side: Side) {
    let mut theft = Theft::on(side);
    assert_eq!(theft.scene.revoke("victim").total, 4);
    theft.refused_everywhere("operator");
    theft.keys_are_gone();
    theft.scene.restart();
    theft.refused_by_all("operator");
}

/// All of them: what they signed is in no bundle any more, and what is in no bundle needs no list.
fn authority(side: Side) {
    let mut theft = Theft::on(side);
    let revoked: Vec<String> = theft.scene.wait(async {
        let mut authorities = theft.scene.agent().authorities().await;
        let shown = authorities.show(ShowAuthoritiesRequest {}).await.unwrap().into_inner().authorities;
        let signing = shown.into_iter().filter(|known| known.state == "active" && known.kind != "x509-root");
        let ids: Vec<String> = signing.map(|known| known.id).collect();
        for id in &ids {
            authorities.revoke(RevokeAuthorityRequest { id: id.clone() }).await.unwrap();
        }
        ids
    });
    theft.keys_are_gone();
    for _ in revoked {
        theft.scene.recorded("authority_revoked");
    }
    assert!(theft.tool.validate(&theft.loot.jwt).is_err());
    assert!(!theft.tool.check(&theft.loot.proven).active);
    for credential in theft.ledger() {
        assert_eq!((credential.standing.as_str(), credential.reason.as_str()), ("ended", "authority_revoked"));
    }
}

/// Nobody saw it end. The first answer of the next agent knows all the same.
fn meanwhile(side: Side) {
    let mut theft = Theft::on(side);
    theft.scene.stop();
    theft.victim.end();
    theft.scene.restart();
    theft.refused_by_all("process_exited");
}

/// The agent is a process of its own, and SIGKILL leaves it no time for anything.
fn killed(_: Side) {
    let stage = Stage::new();
    let (dir, entries) = (stage.path("agent"), scene::entries(&stage, Setup::default()));
    let agent = AgentProcess::start(&dir, &entries);
    let start = |program| Process::start(Actor::new(program, "workload"), &agent.socket());
    let (mut tool, mut before) = (start(stage.tool()), start(stage.trusted()));
    let (mut meanwhile, mut alive) = (start(stage.trusted()), start(stage.trusted()));
    let loots = [&mut before, &mut meanwhile, &mut alive].map(Loot::of);
    for loot in &loots {
        tool.validate(&loot.jwt).expect("it stands");
    }
    before.end();
    tool.validate(&loots[0].jwt).expect_err("its process is gone");

    drop(agent);
    meanwhile.end();
    let agent = AgentProcess::start(&dir, &entries);
    let lists = tokio::runtime::Runtime::new().unwrap().block_on(agent.lists());
    let listed = |loot: &Loot| lists.iter().any(|list| list.revokes(&serial(&loot.x509.chain)));
    for (loot, ended) in loots.iter().zip([true, true, false]) {
        assert_eq!(listed(loot), ended, "{ended}");
        assert_eq!(tool.validate(&loot.jwt).is_err(), ended);
        // What was held was in the memory of the agent.
        assert!(!tool.check(&loot.proven).active);
    }
    alive.prove(&loots[2].wit.key).expect_err("the key is gone");
    let anew = alive.hold_wit();
    alive.prove(&anew.key).expect("and there is a new one for who is still there");
}

/// A control group.
struct Group(PathBuf);

impl Group {
    fn new(side: Side) -> Self {
        let group = cgroup_root().unwrap().join(format!("tether-ends-{}-{}", std::process::id(), side.name()));
        std::fs::create_dir(&group).unwrap();
        Self(group)
    }

    fn take(&self, process: &mut Process) {
        process.order::<String>(&Order::EnterCgroup(self.0.clone())).unwrap();
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}
