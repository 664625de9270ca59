//! Descent by real processes. What needs a parent of its own runs this test binary once more, as [`parent`].

use super::*;

const ROLE: &str = "TETHER_TEST_PARENT_ROLE";
const MARK: &str = "started ";

/// No test by itself: a process that starts others, says their numbers, and exits with its standard input.
#[test]
fn parent() {
    let Ok(role) = std::env::var(ROLE) else { return };
    if role == "subreaper" {
        nix::sys::prctl::set_child_subreaper(true).expect("set");
    }
    // The shell in the middle exits at once: what it started is an orphan.
    let script = format!("sleep 600 >/dev/null </dev/null & echo '{MARK}'$!");
    let script = if role == "parent" { format!("{script}; read line") } else { script };
    let mut shell =
        Command::new("sh").args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::inherit()).spawn().expect("sh");
    if role != "parent" {
        shell.wait().expect("it exits");
        println!("\n{MARK}0");
    }
    std::io::stdin().read_to_end(&mut Vec::new()).expect("told to exit");
    // A parent's shell ends with its input; whoever asks for it again gets what it had.
    drop(shell.stdin.take());
    shell.wait().expect("it exits");
}

struct Parent {
    child: Child,
    started: i32,
}

impl Parent {
    fn start(role: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("our file"))
            .args(["--exact", "peer::tests::tree::parent", "--nocapture"])
            .env(ROLE, role)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("our file starts");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut said = || loop {
            let line = lines.next().expect("it says so").expect("text");
            if let Some((_, pid)) = line.split_once(MARK) {
                return pid.parse().expect("a number");
            }
        };
        let started = said();
        if role != "parent" {
            assert_eq!(said(), 0, "the shell in between is gone");
        }
        // Between fork and exec it is still the shell.
        while std::fs::read_to_string(format!("/proc/{started}/comm")).is_ok_and(|comm| comm.trim() != "sleep") {
            std::thread::yield_now();
        }
        Self { child, started }
    }

    fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    fn end_orphan(&self) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.started), nix::sys::signal::SIGKILL);
    }

    fn end(mut self) {
        self.end_orphan();
        self.child.kill().expect("killed");
        self.child.wait().expect("reaped");
    }
}

fn of(instances: &Instances, pid: i32) -> Arc<Instance> {
    instances.of_pid(pid, None).expect("it lives")
}

#[tokio::test]
async fn a_grandchild_descends_from_both_and_neither_of_them_from_it() {
    for kernel in all_kernels() {
        let instances = Instances::new(kernel).expect("proc is mounted");
        let parent = Parent::start("parent");
        let (top, middle, ours) = (
            of(&instances, parent.pid()),
            of(&instances, parent.started),
            of(&instances, std::process::id().cast_signed()),
        );
        assert!(middle.descends_from(&top).expect("answered"));
        assert!(middle.descends_from(&ours).expect("answered"));
        assert!(middle.descends_from(&middle).expect("answered"), "it is in its own tree");
        assert!(!top.descends_from(&middle).expect("answered"));
        let numbers = middle.lineage().expect("answered");
        assert!(numbers.starts_with(&[middle.pid()]) && numbers.contains(&top.pid()) && numbers.contains(&ours.pid()));
        assert!(!ours.descends_from(&top).expect("answered"));
        parent.end();
    }
}

#[tokio::test]
async fn a_sibling_of_the_same_user_is_no_descendant() {
    for kernel in all_kernels() {
        let instances = Instances::new(kernel).expect("proc is mounted");
        let (first, second) = (Parent::start("parent"), Parent::start("parent"));
        let (tree, stranger) = (of(&instances, first.pid()), of(&instances, second.started));
        assert!(!stranger.descends_from(&tree).expect("answered"));
        assert!(!of(&instances, second.pid()).descends_from(&tree).expect("answered"));
        first.end();
        second.end();
    }
}

#[tokio::test]
async fn an_orphan_stays_below_a_subreaper_and_leaves_a_process_that_is_none() {
    for kernel in all_kernels() {
        let instances = Instances::new(kernel).expect("proc is mounted");
        let subreaper = Parent::start("subreaper");
        assert!(of(&instances, subreaper.started).descends_from(&of(&instances, subreaper.pid())).expect("answered"));
        let plain = Parent::start("plain");
        assert!(!of(&instances, plain.started).descends_from(&of(&instances, plain.pid())).expect("answered"));
        subreaper.end();
        plain.end();
    }
}

#[tokio::test]
async fn nothing_descends_from_a_process_that_is_over() {
    for kernel in all_kernels() {
        let instances = Instances::new(kernel).expect("proc is mounted");
        let mut parent = Parent::start("parent");
        let (top, child) = (of(&instances, parent.pid()), of(&instances, parent.started));
        assert!(child.descends_from(&top).expect("answered"));
        parent.child.kill().expect("killed");
        // Not reaped: it still has its number, and the kernel still knows who it was.
        assert_eq!(top.ended().await, InstanceEnd::Exited);
        assert!(!child.descends_from(&top).expect("answered"));
        parent.child.wait().expect("reaped");
        assert!(!child.descends_from(&top).expect("answered"));
        parent.end_orphan();
        assert!(matches!(child.ended().await, InstanceEnd::Exited));
        let ours = of(&instances, std::process::id().cast_signed());
        assert!(matches!(child.descends_from(&ours), Err(LookError::Ended(InstanceEnd::Exited))));
    }
}

#[tokio::test]
async fn nothing_descends_from_a_process_that_runs_another_program_by_now() {
    let instances = Instances::new(Kernel::probe()).expect("proc is mounted");
    let mut root = Changeling::start();
    let shell = of(&instances, root.pid());
    assert!(shell.descends_from(&shell).expect("answered"));
    root.change();
    let cat = of(&instances, root.pid());
    assert!(!cat.descends_from(&shell).expect("answered"));
    root.end();
}

#[tokio::test]
async fn a_process_in_a_pid_namespace_of_its_own_is_not_recognised() {
    // Needs the right to make one.
    let sleeper = Command::new("unshare")
        .args(["--pid", "--fork", "--mount-proc", "sh", "-c", "echo up; exec sleep 600"])
        .stdout(Stdio::piped())
        .spawn();
    let Ok(mut outer) = sleeper else { return };
    let mut line = String::new();
    BufReader::new(outer.stdout.take().expect("piped")).read_line(&mut line).expect("read");
    if line != "up\n" {
        return;
    }
    let instances = Instances::new(Kernel::probe()).expect("proc is mounted");
    let pid = outer.id().cast_signed();
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("readable");
    let inner = of(&instances, children.trim().parse().expect("one child"));
    assert!(!inner.descends_from(&of(&instances, pid)).expect("answered"));
    assert!(inner.descends_from(&inner).expect("answered"));
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(inner.pid()), nix::sys::signal::SIGKILL).expect("killed");
    outer.wait().expect("reaped");
}
