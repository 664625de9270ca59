//! A key that tether holds: what its handle is worth to others. The WIT or certificate is public; the handle was copied.

use super::Attack;
use crate::needs;
use crate::orders::Held;
use crate::scene::{Process, Scene};
use crate::target::Side;

pub const ATTACKS: &[Attack] = &[
    Attack::new("the handles of held keys are used by another user", other_user).needing(needs::root),
    Attack::new("the handles of held keys are used by another program of the same user", other_program),
    Attack::new("the handles of held keys are used by a sibling: the same user, program and identity", sibling),
    Attack::new("the handles of held keys are used by their process after it executed another program", executed),
    Attack::new("the handles of held keys are used by a successor after their process exited", successor),
    Attack::new("the handles of held keys are used from another network namespace", namespace)
        .needing(needs::network_namespaces),
    Attack::new("the handles of held keys are used on another host of the trust domain", other_host)
        .needing(needs::network_namespaces)
        .on(&[Side::Tether, Side::OldKernel]),
    Attack::new("the handles of held keys are used after the agent was restarted", restarted)
        .on(&[Side::Tether, Side::OldKernel]),
];

/// The handles that were copied.
struct Stolen {
    wit: Held,
    x509: Held,
}

impl Stolen {
    /// They work for whom they are.
    fn from(victim: &mut Process) -> Self {
        let stolen = Self { wit: victim.hold_wit(), x509: victim.hold_x509() };
        victim.prove(&stolen.wit.key).expect("its own key");
        victim.sign(&stolen.x509.key).expect("its own key");
        stolen
    }

    fn used_by(&self, scene: &mut Scene, thief: &mut Process) {
        scene.judge(thief.prove(&self.wit.key), "PermissionDenied", "held");
        scene.judge(thief.sign(&self.x509.key), "PermissionDenied", "held");
    }
}

fn used_by(side: Side, thief: fn(&Scene) -> Process) {
    let mut scene = Scene::on(side);
    let mut victim = scene.victim();
    let stolen = Stolen::from(&mut victim);
    let mut thief = thief(&scene);
    stolen.used_by(&mut scene, &mut thief);
    victim.prove(&stolen.wit.key).expect("the attempt costs the victim nothing");
}

fn other_user(side: Side) {
    used_by(side, Scene::other_user);
}

fn other_program(side: Side) {
    used_by(side, Scene::thief);
}

fn sibling(side: Side) {
    used_by(side, Scene::victim);
}

/// The socket is a file: a namespace does not keep anybody from it.
fn namespace(side: Side) {
    used_by(side, |scene| scene.elsewhere(scene));
}

fn executed(side: Side) {
    let mut scene = Scene::on(side);
    let mut victim = scene.victim();
    let stolen = Stolen::from(&mut victim);
    victim.exec(scene.stage().thief());
    stolen.used_by(&mut scene, &mut victim);
}

fn successor(side: Side) {
    let mut scene = Scene::on(side);
    let mut victim = scene.victim();
    let stolen = Stolen::from(&mut victim);
    victim.end();
    let mut next = scene.victim();
    stolen.used_by(&mut scene, &mut next);
}

/// Its agent signs for the same trust domain, by the same root, and never had the keys.
fn other_host(side: Side) {
    let (here, mut there) = Scene::two_hosts(side);
    let mut victim = here.victim();
    let stolen = Stolen::from(&mut victim);
    let mut thief = here.elsewhere(&there);
    stolen.used_by(&mut there, &mut thief);
}

/// Keys are in the memory of the agent, and of a service manager that keeps them for it, which this one has not.
fn restarted(side: Side) {
    let mut scene = Scene::on(side);
    let mut victim = scene.victim();
    let stolen = Stolen::from(&mut victim);
    scene.restart();
    stolen.used_by(&mut scene, &mut victim);
    let again = victim.hold_wit();
    assert_ne!(again.key, stolen.wit.key, "the process gets a new key");
    victim.prove(&again.key).expect("which works");
}
