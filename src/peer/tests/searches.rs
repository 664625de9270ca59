//! Looking for the descriptors of connections: what many callers cost.

use std::os::fd::AsFd;

use futures_util::FutureExt;
use futures_util::future::join_all;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use super::*;
use crate::base::quota::{Queue, Quota, Turns};

/// A fixture with one turn for searches and one place for those that wait: whatever needs more is refused.
fn with_one_search() -> (Fixture, Turns) {
    let turns = Turns::new(1, 1);
    let queue = Queue::new(turns.clone(), Quota::new(1, 1));
    let instances = Instances::with_searches(Kernel::probe(), queue).expect("proc is mounted");
    (Fixture::with(instances, Limits::default()), turns)
}

fn uid() -> u32 {
    nix::unistd::geteuid().as_raw()
}

#[tokio::test]
async fn one_search_answers_for_all_connections_of_a_process_that_wait_for_it_and_for_each_by_itself() {
    const CONNECTIONS: usize = 50;
    let (fixture, turns) = with_one_search();
    let mut open = Vec::new();
    for _ in 0..CONNECTIONS {
        open.push((fixture.connect(), fixture.accept().await));
    }
    fcntl(open[7].0.as_fd(), FcntlArg::F_SETFD(FdFlag::empty())).expect("cleared");
    let (gone, alone) = open.pop().expect("there are many");
    drop(gone);
    open.push((fixture.connect(), alone));

    let held = turns.turn(uid()).await;
    let mut answers = Box::pin(join_all(open.iter().map(|(_, stream)| stream.conn().holds_cloexec())));
    assert!((&mut answers).now_or_never().is_none(), "they wait");
    drop(held);
    let mut answers = answers.await;
    let closed = answers.pop().expect("one for each").expect_err("closed at the other end");
    assert!(closed.contains("is closed"), "{closed}");
    let survives = answers.remove(7).expect_err("it survives exec");
    assert!(survives.contains("FD_CLOEXEC"), "{survives}");
    assert_eq!(answers, vec![Ok(()); CONNECTIONS - 2], "nobody needed a search of its own");
}

#[tokio::test]
async fn calls_that_give_up_while_they_wait_leave_no_search_behind() {
    let (fixture, turns) = with_one_search();
    let (_client, stream) = (fixture.connect(), fixture.accept().await);
    let held = turns.turn(uid()).await;
    for _ in 0..100 {
        assert!(stream.conn().holds_cloexec().now_or_never().is_none(), "there was a place to wait in");
    }
    drop(held);
    turns.turn(uid()).now_or_never().expect("nobody has or wants the turn");
    stream.conn().holds_cloexec().await.expect("held close-on-exec");
}

/// With one thread for long work, which is taken: a search that has its turn has begun and does not end.
#[test]
fn a_search_that_has_begun_does_not_answer_for_connections_that_come_later() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build();
    runtime.expect("a runtime").block_on(async {
        let (fixture, _turns) = with_one_search();
        let (let_go, wait) = std::sync::mpsc::channel::<()>();
        tokio::task::spawn_blocking(move || wait.recv());
        let (_early_client, early) = (fixture.connect(), fixture.accept().await);
        let mut first = Box::pin(early.conn().holds_cloexec());
        assert!((&mut first).now_or_never().is_none(), "it has begun");

        let (_late_client, late) = (fixture.connect(), fixture.accept().await);
        let refused =
            late.conn().holds_cloexec().await.expect_err("that takes a search of its own, and there is no room");
        assert!(refused.contains("ask again"), "{refused}");
        drop(let_go);
        first.await.expect("held close-on-exec");
        late.conn().holds_cloexec().await.expect("a refusal for want of room is not kept");
    });
}
