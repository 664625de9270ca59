//! Units in systemd's word, which a test plays.

use futures_util::future::{BoxFuture, ready};
use futures_util::{StreamExt, stream};
use tokio::sync::watch;

use super::*;
use crate::attest::{UnitChanges, UnitFacts};
use crate::peer::{Limits, Listener, ListenerConfig};

/// A systemd that nobody should ask.
pub struct NoUnits;

impl UnitWatcher for NoUnits {
    fn running<'a>(&'a self, unit: &'a str) -> BoxFuture<'a, Result<Option<String>, UnitManagerError>> {
        panic!("nobody should ask for `{unit}`")
    }

    fn changes<'a>(&'a self, unit: &'a str) -> BoxFuture<'a, Result<UnitChanges, UnitManagerError>> {
        panic!("nobody should listen to `{unit}`")
    }
}

/// A systemd with one unit, whose state the test sets.
pub struct Units {
    state: watch::Sender<State>,
    /// How often somebody has begun to listen.
    listeners: watch::Sender<usize>,
}

#[derive(Clone, Default)]
struct State {
    running: Option<String>,
    silent: bool,
}

impl Default for Units {
    fn default() -> Self {
        Self { state: watch::Sender::default(), listeners: watch::Sender::new(0) }
    }
}

impl Units {
    pub fn set(&self, running: Option<&str>) {
        self.state.send_modify(|state| state.running = running.map(str::to_owned));
    }

    pub fn fall_silent(&self) {
        self.state.send_modify(|state| state.silent = true);
    }

    /// Calls `poll` until somebody has begun to listen after this was called.
    pub async fn listened(&self, mut poll: impl FnMut() -> Option<()>) {
        let mut listeners = self.listeners.subscribe();
        while !listeners.has_changed().expect("we have the sender") {
            poll();
            tokio::task::yield_now().await;
        }
        listeners.mark_unchanged();
    }

    fn answer<T>(&self, answer: T) -> Result<T, UnitManagerError> {
        let silent = self.state.borrow().silent;
        if silent { Err(UnitManagerError::Unreachable("no bus".into())) } else { Ok(answer) }
    }
}

impl UnitWatcher for Units {
    fn running<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Option<String>, UnitManagerError>> {
        let running = self.state.borrow().running.clone();
        ready(self.answer(running)).boxed()
    }

    fn changes<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<UnitChanges, UnitManagerError>> {
        let state = self.state.subscribe();
        self.listeners.send_modify(|count| *count += 1);
        let changes = stream::unfold(state, |mut state| async move {
            state.changed().await.ok()?;
            Some(((), state))
        });
        ready(self.answer(changes.boxed())).boxed()
    }
}

const FIRST: &str = "0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f";
const SECOND: &str = "eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee";

fn billing() -> UnitAnswer {
    let facts = UnitFacts { id: "billing.service".into(), fragment_path: None, invocation_id: Some(FIRST.into()) };
    UnitAnswer { unit: Some(facts), by_number: false }
}

/// A host on which systemd has the units and version 2 has only its root, if this one is like that.
struct Scene {
    bonds: Bonds,
    units: Arc<Units>,
    workload: Workload,
    _booted: tempfile::TempDir,
}

impl Scene {
    fn new(answer: UnitAnswer) -> Option<Self> {
        let booted = tempfile::tempdir().expect("a directory");
        let units = Arc::new(Units::default());
        units.set(Some(FIRST));
        let bonds = bonds(Kernel::probe(), booted.path().into(), answer, units.clone());
        let workload = Workload::start();
        let id = bonds.instance(workload.pid()).look().expect("it lives").cgroup_id;
        if id.is_some_and(|id| id != cgroup::ROOT_ID) {
            eprintln!("skipped: this test does not run in the root cgroup");
            return None;
        }
        Some(Self { bonds, units, workload, _booted: booted })
    }

    async fn tie(&self) -> Result<Tie, BondError> {
        self.bonds.tie_now(&self.bonds.instance(self.workload.pid()), Bind::Unit).await
    }
}

#[tokio::test]
async fn without_a_cgroup_of_its_own_a_process_is_tied_to_the_start_of_its_unit_and_outlived_by_it() {
    let Some(mut scene) = Scene::new(billing()) else { return };
    let tie = scene.tie().await.expect("tied");
    assert!(matches!(&tie, Tie::Unit { name, invocation, .. } if name == "billing.service" && invocation == FIRST));
    let hold = scene.bonds.hold(&tie).await.expect("it runs");
    scene.workload.end();
    assert!(hold.ended().now_or_never().is_none(), "the unit goes on");
    let mut ended = Box::pin(hold.ended());
    assert!(ended.as_mut().now_or_never().is_none());
    scene.units.set(None);
    assert_eq!(ended.await, End::UnitStopped);
    assert_eq!(scene.bonds.end_of(&tie).await, Some(End::UnitStopped));
}

#[tokio::test]
async fn another_start_of_the_unit_is_the_end_of_the_one_before() {
    let Some(scene) = Scene::new(billing()) else { return };
    let tie = scene.tie().await.expect("tied");
    let hold = scene.bonds.hold(&tie).await.expect("it runs");
    scene.units.set(Some(SECOND));
    assert_eq!(hold.ended().await, End::UnitStopped);
    assert_eq!(scene.bonds.end_of(&tie).await, Some(End::UnitStopped));
}

#[tokio::test]
async fn a_process_that_is_in_no_unit_is_bound_to_the_node_and_one_of_a_nameless_start_to_nothing() {
    let Some(scene) = Scene::new(UnitAnswer { unit: None, by_number: false }) else { return };
    assert_eq!(scene.tie().await.expect("tied"), Tie::Node);
    let mut nameless = billing();
    nameless.unit.as_mut().expect("a unit").invocation_id = None;
    let Some(scene) = Scene::new(nameless) else { return };
    assert!(matches!(scene.tie().await, Err(BondError::NoInvocation(_))));
}

#[tokio::test]
async fn a_systemd_that_does_not_answer_binds_nothing_and_ends_nothing() {
    let Some(scene) = Scene::new(billing()) else { return };
    let tie = scene.tie().await.expect("tied");
    let hold = scene.bonds.hold(&tie).await.expect("it runs");
    scene.units.fall_silent();
    assert!(matches!(scene.bonds.hold(&tie).await, Err(Unheld::Systemd(_))));
    assert!(hold.ended().now_or_never().is_none());
}

#[tokio::test]
async fn the_tie_of_a_connected_process_is_not_asked_for_again_while_its_unit_is_held() {
    let booted = tempfile::tempdir().expect("a directory");
    let (units, asked) = (Arc::new(Units::default()), Arc::new(AtomicUsize::new(0)));
    units.set(Some(FIRST));
    let bonds = counting(Kernel::probe(), booted.path().into(), Played(billing(), asked.clone()), units.clone());
    let path = booted.path().join("s");
    let config = ListenerConfig {
        instances: bonds.0.instances.clone(),
        limits: Limits::default(),
        observer: Arc::new(|_, _| ()),
        entropy: Entropy::system(),
    };
    let listener = Listener::bind(&path, 0o600, config).expect("listening");
    let _client = std::os::unix::net::UnixStream::connect(&path).expect("connected");
    let stream = listener.accept().await.expect("accepted");
    let ourselves = stream.conn().instance().clone();
    if ourselves.look().expect("we live").cgroup_id.is_some_and(|id| id != cgroup::ROOT_ID) {
        eprintln!("skipped: this test does not run in the root cgroup");
        return;
    }
    let tie = bonds.tie_now(&ourselves, Bind::Unit).await.expect("tied");
    let hold = bonds.hold(&tie).await.expect("it runs");
    for _ in 0..3 {
        assert_eq!(bonds.tie_now(&ourselves, Bind::Unit).await.expect("tied"), tie);
    }
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    units.set(None);
    assert_eq!(hold.ended().await, End::UnitStopped);
    bonds.tie_now(&ourselves, Bind::Unit).await.expect("tied");
    assert_eq!(asked.load(Ordering::SeqCst), 2, "what has ended is asked for again");
}
