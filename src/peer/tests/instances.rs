//! Instances: one for each program in each process, over when either is.

use super::*;
use std::process::Command;

fn sleeper() -> Child {
    Command::new("sleep").arg("600").spawn().expect("sleep starts")
}

fn end(mut child: Child) {
    child.kill().expect("killed");
    child.wait().expect("reaped");
}

#[tokio::test]
async fn whoever_asks_for_the_same_program_in_the_same_process_gets_the_same_instance() {
    for kernel in all_kernels() {
        let instances = Instances::new(kernel).expect("proc is mounted");
        let child = sleeper();
        let pid = child.id().cast_signed();
        let first = instances.of_pid(pid, None).expect("it lives");
        let second = instances.of_pid(pid, None).expect("it lives");
        assert!(Arc::ptr_eq(&first, &second));
        assert_eq!(instances.len(), 1);
        let ourselves = instances.of_pid(std::process::id().cast_signed(), None).expect("we live");
        assert_ne!(ourselves.id(), first.id());
        end(child);
    }
}

#[tokio::test]
async fn an_instance_that_nobody_holds_is_forgotten() {
    let instances = Instances::new(Kernel::probe()).expect("proc is mounted");
    let child = sleeper();
    let instance = instances.of_pid(child.id().cast_signed(), None).expect("it lives");
    let weak = Arc::downgrade(&instance);
    drop(instance);
    assert!(weak.upgrade().is_none());
    assert!(instances.is_empty());
    end(child);
}

#[tokio::test]
async fn the_exit_of_a_process_ends_its_instance_for_all_who_wait() {
    for kernel in all_kernels() {
        let instances = Instances::new(kernel).expect("proc is mounted");
        let child = sleeper();
        let instance = instances.of_pid(child.id().cast_signed(), None).expect("it lives");
        let waiting: Vec<_> = (0..3).map(|_| tokio::spawn(instance.ended_owned())).collect();
        assert!(instance.look().is_ok());
        end(child);
        for waiter in waiting {
            assert_eq!(waiter.await.expect("it returns"), InstanceEnd::Exited);
        }
        assert!(matches!(instance.look(), Err(LookError::Ended(InstanceEnd::Exited))));
        assert!(matches!(instances.of_pid(instance.pid(), None), Err(InstanceError::Gone)));
    }
}

#[tokio::test]
async fn another_program_in_the_same_process_is_another_instance_and_the_first_is_over_for_all() {
    for kernel in all_kernels() {
        let instances = Instances::new(kernel).expect("proc is mounted");
        let mut child = Changeling::start();
        let shell = instances.of_pid(child.pid(), None).expect("it lives");
        let waiter = tokio::spawn(shell.ended_owned());
        shell.look().expect("the same program");

        child.change();
        assert_eq!(shell.known_end(), None, "nobody has looked");
        let end = shell.look().expect_err("another program");
        assert!(matches!(end, LookError::Ended(InstanceEnd::ExecutableChanged)), "{end}");
        assert_eq!(waiter.await.expect("it returns"), InstanceEnd::ExecutableChanged);

        let cat = instances.of_pid(child.pid(), None).expect("it lives");
        assert_ne!(cat.id(), shell.id());
        assert!(cat.id().same_process(shell.id()));
        assert!(shell.look().is_err(), "it does not come back");
        drop(shell);
        assert_eq!(instances.len(), 1, "the first one leaves the place of the second alone");
        child.end();
        assert_eq!(cat.ended().await, InstanceEnd::Exited);
    }
}

#[tokio::test]
async fn asking_for_the_instance_anew_ends_the_one_whose_program_is_gone() {
    let instances = Instances::new(Kernel::probe()).expect("proc is mounted");
    let mut child = Changeling::start();
    let shell = instances.of_pid(child.pid(), None).expect("it lives");
    child.change();
    let cat = instances.of_pid(child.pid(), None).expect("it lives");
    assert_ne!(cat.id(), shell.id());
    assert_eq!(shell.known_end(), Some(InstanceEnd::ExecutableChanged));
    child.end();
}

#[tokio::test]
async fn a_program_whose_file_is_unlinked_is_the_same_program() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("sleep");
    // Not copied by ourselves: a descriptor open for writing would leak into a child of another test, and keep the
    // file from being executed.
    let sleep = Command::new("sh").args(["-c", "command -v sleep"]).output().expect("sh runs").stdout;
    let sleep = String::from_utf8(sleep).expect("a path");
    assert!(Command::new("cp").arg(sleep.trim_end()).arg(&file).status().expect("cp runs").success());
    let child = Command::new(&file).arg("600").spawn().expect("it starts");
    let instances = Instances::new(Kernel::probe()).expect("proc is mounted");
    let instance = instances.of_pid(child.id().cast_signed(), None).expect("it lives");
    std::fs::remove_file(&file).expect("removed");
    instance.look().expect("unchanged");
    end(child);
}

#[tokio::test]
async fn a_process_named_by_number_and_inode_is_that_process_or_nobody() {
    let kernel = Kernel::probe();
    if !kernel.unique_inode {
        return;
    }
    let instances = Instances::new(kernel).expect("proc is mounted");
    let child = sleeper();
    let pid = child.id().cast_signed();
    let inode = instances.of_pid(pid, None).expect("it lives").id().pidfs_inode().expect("pidfs");
    assert!(instances.of_pid(pid, Some(inode)).is_ok());
    assert!(matches!(instances.of_pid(pid, Some(inode + 1)), Err(InstanceError::AnotherProcess { .. })));
    let old = Instances::new(Kernel::baseline()).expect("proc is mounted");
    assert!(matches!(old.of_pid(pid, Some(inode)), Err(InstanceError::NoInodes)));
    end(child);
}

#[tokio::test]
async fn an_old_kernel_makes_instances_weak_and_says_so_in_their_name() {
    let instances = Instances::new(Kernel::baseline()).expect("proc is mounted");
    let ourselves = instances.of_pid(std::process::id().cast_signed(), None).expect("we live");
    assert_eq!(ourselves.weak(), Some(Weakness::OldKernel));
    assert!(ourselves.id().to_string().contains("/pid-"));
    assert!(ourselves.executable_evidence().is_ok(), "who sends is still known");
}

#[tokio::test]
async fn old_and_new_calls_agree_on_the_facts() {
    let pid = std::process::id().cast_signed();
    let [new, old] = all_kernels().map(|kernel| {
        let instances = Instances::new(kernel).expect("proc is mounted");
        instances.of_pid(pid, None).expect("we live").look().expect("we live")
    });
    assert_eq!((new.uid, new.gid), (old.uid, old.gid));
    if let Some(cgroup) = old.cgroup_id {
        assert_eq!(new.cgroup_id, Some(cgroup));
    }
}

#[tokio::test]
async fn a_process_whose_namespace_root_can_forge_senders_is_no_evidence_of_its_executable() {
    // `cat` answers once it runs, inside a pid namespace that its own user namespace owns.
    let mut unshare = Command::new("unshare")
        .args(["--user", "--map-root-user", "--pid", "--fork", "--kill-child", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("unshare is there");
    let (mut stdin, stdout) = (unshare.stdin.take().expect("piped"), unshare.stdout.take().expect("piped"));
    let mut line = String::new();
    let running = stdin.write_all(b"hello\n").is_ok() && BufReader::new(stdout).read_line(&mut line).is_ok();
    if !running || line != "hello\n" {
        // This host does not let us make user namespaces.
        let _ = unshare.wait();
        return;
    }
    let children = format!("/proc/{0}/task/{0}/children", unshare.id());
    let inside: i32 = std::fs::read_to_string(children).expect("readable").trim().parse().expect("one child");
    for kernel in all_kernels() {
        let instances = Instances::new(kernel).expect("proc is mounted");
        let instance = instances.of_pid(inside, None).expect("it lives");
        assert_eq!(instance.weak(), Some(Weakness::ForeignPidNamespace));
        assert!(instance.executable_evidence().is_err());
    }
    drop(stdin);
    unshare.wait().expect("it ends");
}
