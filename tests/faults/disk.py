"""Disks that are full, read-only, or not what was left on them."""

import glob
import os
import pathlib
import time

import wire
from agent import AGENT, Agent, Caller, Load, Seen, Stream, check, full, mounted, nothing_is_lost, recovers, sh, until

NO_SPACE = "No space left on device"
NOT_READY = 4  # the exit code of `tether` for an agent that cannot do it now
ANOTHER = '[[entry]]\nid = "another"\nspiffe_id = "spiffe://faults.test/another"\nmatch = ["unix:uid:5"]\nowner = "faults"\n'


def the_disk_of_the_state_is_full(work):
    """The file system of `state_dir` fills up while calls run."""
    agent, another = Agent(work), work / "another.toml"
    another.write_text(ANOTHER)
    with mounted(agent, 24):
        agent.start()
        with Load(agent) as load, Stream(agent) as stream, Caller(61001, "token", agent.socket) as caller:
            load.gives(50)
            token = caller.says()["id"]
            with full(agent.state):
                failed = load.fails(20)
                check(NO_SPACE in failed.text, f"callers are not told why: {failed}")
                said = agent.part("audit") or ""
                check(NO_SPACE in said, "the agent does not say that it is not ready, and why")
                # What changes the store is refused in words, and changes nothing.
                for words in (["entry", "create", "--file", another], ["authority", "rotate"]):
                    done = agent.tool(*words)
                    check(done.returncode == NOT_READY and NO_SPACE in done.stderr, f"{words[0]} {words[1]} is not refused: {done}")
                # What ends by itself does not wait for a disk; an operator's word does.
                caller.goes()
                until("the end of the token", lambda: agent.ledger()[token]["standing"] != "stands")
                revoked = agent.tool("credential", "revoke", stream.first[1])
                # A short record may fit into the last block: then it is as good as any.
                is_refused = revoked.returncode == NOT_READY and NO_SPACE in revoked.stderr
                check(is_refused or revoked.returncode == 0, f"a revocation: {revoked}")
            seconds = recovers(agent)
            load.gives(50)
            check(agent.status()["ready"], agent.status()["parts"])
            # And so does the store, which was in the middle of something.
            agent.out("entry", "create", "--file", another)
            agent.out("authority", "rotate")
        load.only("UNAVAILABLE")
        # More than one, where there was room for a record while the last of it was taken.
        interrupted = agent.audit("audit_interrupted")
        check(interrupted, "the audit log does not tell of its interruption")
        refusals = sum(one["lost"] for one in interrupted)
        given = nothing_is_lost(agent, load.given)
        check("another" in agent.out("entry", "list"), "the new entry is gone after a restart")
        known = agent.ledger()
        check(known[token]["standing"] != "stands", "a token that had ended stands after a restart")
        check(is_refused or known[stream.first[1]]["standing"] != "stands", "a revocation that was answered is forgotten")
        check(not agent.panicked(), agent.panicked())
    return Seen(
        f"Unavailable, with the reason; open streams stay ({load.seen()}). The token of a process that ends is over at once; an operator's "
        f"revocation is {'refused, with the reason' if is_refused else 'written where there is room for it'}",
        f"nothing: all {given} credentials handed out are in ledger and audit log; of {refusals} refusals the audit log has the number "
        "(`audit_interrupted`)",
        f"not ready: {said}",
        f"by itself {seconds * 1000:.0f} ms after there was space, the store too",
    )


def audit_full(work, on_failure):
    records = work.parent / (work.name + "-audit")
    records.mkdir()
    agent = Agent(work, f'[audit]\ndir = "{records}"\non_failure = "{on_failure}"\n')
    sh("mount", "-t", "tmpfs", "-o", f"size=4m,mode=0700,uid={AGENT},gid={AGENT}", "tmpfs", records)
    try:
        agent.start()
        with Load(agent) as load:
            load.gives(50)
            with full(records):
                if on_failure == "refuse":
                    load.fails(20)
                else:
                    until("the alarm", lambda: agent.part("audit"))
                    load.gives(50)
                said = agent.part("audit") or ""
                check(NO_SPACE in said, "the agent does not say why it is not ready")
            seconds = until("ready", lambda: agent.status()["ready"])[1]
            load.gives(20)
        load.only(*(["UNAVAILABLE"] if on_failure == "refuse" else []))
        interrupted = agent.audit("audit_interrupted")
        check(interrupted, "the audit log does not tell of its interruption")
        lost = sum(one["lost"] for one in interrupted)
        agent.audit_verifies()
        recorded = {record["serial"] for record in agent.audit("svid_issued")}
        missing = [one for one in load.given if one not in recorded]
        if on_failure == "refuse":
            nothing_is_lost(agent, load.given)
        else:
            check(0 < len(missing) <= lost, f"{len(missing)} missing, {lost} said")
            known = agent.ledger()
            check(all(one in known for one in load.given), "a credential is not in the ledger")
        check(not agent.panicked(), agent.panicked())
        return load, len(missing) or lost, f"not ready: {said}", seconds
    finally:
        agent.kill()
        sh("umount", records)


def the_disk_of_the_audit_log_is_full_and_it_refuses(work):
    """The file system of `[audit] dir` fills up, with `on_failure = "refuse"`."""
    load, refusals, said, seconds = audit_full(work, "refuse")
    return Seen(
        f"Unavailable, with the reason ({load.seen()})",
        f"nothing; of {refusals} refusals the audit log has the number (`audit_interrupted`)",
        said,
        f"by itself, {seconds * 1000:.0f} ms after there was space",
    )


def the_disk_of_the_audit_log_is_full_and_it_alarms(work):
    """The same, with `on_failure = "alarm"`."""
    load, missing, said, seconds = audit_full(work, "alarm")
    return Seen(
        f"nothing ({load.seen()})",
        f"{missing} audit records, as configured: their number is in `audit_interrupted`; none of the ledger",
        said,
        f"by itself, {seconds * 1000:.0f} ms after there was space",
    )


def the_disk_of_the_state_becomes_read_only(work):
    """ext4 gives up after an error and remounts itself read-only while calls run."""
    agent = Agent(work)
    with mounted(agent, 24):
        agent.start()
        with Load(agent) as load, Stream(agent) as stream:
            load.gives(50)
            # The ledger is synced within 100 ms, the audit log within a second; so much later, for hosts that are busy.
            in_audit_log = list(load.given)
            time.sleep(3)
            in_ledger = list(load.given)
            time.sleep(2)
            sh("mount", "-o", "remount,abort", agent.state)
            failed = load.fails(20)
            check("ead-only" in failed.text or "Input/output" in failed.text, f"callers are not told why: {failed}")
            check(stream.is_quiet(), "an open stream ended")
            said = agent.part("audit")
            check(said, "the agent does not say that it is not ready")
            check(not agent.ended(), "the agent ended")
        load.only("UNAVAILABLE")
        given = list(load.given)
        agent.stop()
        sh("umount", agent.state)
        # Writable for a moment: the journal of a disk that gave up must be gone through.
        sh("mount", "-o", "loop", agent.dir / "image", agent.state)
        sh("mount", "-o", "remount,ro", agent.state)
        words = agent.refuses_to_start()
        check("ead-only" in words, f"on a read-only disk it does not say why it does not start: {words}")
        sh("umount", agent.state)
        sh("mount", "-o", "loop", agent.dir / "image", agent.state)
        agent.start()
        known = agent.ledger()
        lost = [one for one in given if one not in known]
        recorded = {record["serial"] for record in agent.audit("svid_issued")}
        check(not [one for one in in_audit_log if one not in recorded], "what was synced is not in the audit log")
        unrecorded = [one for one in given if one not in recorded]
        check(not [one for one in in_ledger if one not in known], "what was synced is not in the ledger")
        agent.audit_verifies()
        recovers(agent)
        check(not agent.panicked(), agent.panicked())
    return Seen(
        f"Unavailable, with the reason; open streams stay ({load.seen()})",
        f"{len(lost)} of {len(given)} from the ledger, {len(unrecorded)} from the audit log: at most what was handed out in the last 100 ms, "
        "and recorded in the last second, as with a loss of power",
        f"not ready: {said}; at a start on the read-only disk: {words}",
        "not by itself: stop the agent (the kernel wants that), mount the disk again, start the agent",
    )


def the_permissions_of_the_state_change(work):
    """`state_dir` is given to another user, and later opened to all, under a running agent."""
    agent = Agent(work)
    agent.start()
    with Load(agent) as load:
        load.gives(20)
        os.chown(agent.state, 0, 0)
        load.gives(50)
        rotated = agent.tool("authority", "rotate")
        os.chown(agent.state, AGENT, AGENT)
        agent.out("authority", "rotate")
        load.gives(20)
    load.only()
    agent.state.chmod(0o755)
    agent.stop()
    words = agent.refuses_to_start()
    check("0755" in words and "chmod" in words, words)
    agent.state.chmod(0o700)
    agent.start()
    given = nothing_is_lost(agent, load.given)
    refused = rotated.stderr.strip() or "nothing: files that are open stay usable"
    return Seen(
        f"nothing ({load.seen()}); what needs a new file meanwhile: {refused}",
        f"nothing ({given} checked)",
        f"at a start on a directory that is open to others: {words}",
        "by itself when it is given back",
    )


def the_ledger_is_torn(work):
    """The last record of the ledger is written by half (a crash in the middle of `write`)."""
    agent = Agent(work)
    agent.start()
    with Load(agent) as load:
        load.gives(50)
    agent.kill()
    newest = sorted(glob.glob(f"{agent.state}/ledger/*.log"))[-1]
    content = pathlib.Path(newest).read_bytes()
    pathlib.Path(newest).write_bytes(content + content[-40:-10])
    agent.start()
    said = agent.line("was not written whole")
    given = nothing_is_lost(agent, load.given)
    return Seen("nothing after the restart", f"nothing ({given} checked): nobody had an answer on half a record", said, "at the start")


def the_ledger_is_damaged(work):
    """A byte in the middle of the ledger is another one at the next start."""
    agent = Agent(work)
    agent.start()
    with Load(agent) as load:
        load.gives(50)
        svid = wire.fetch_x509(agent.socket)
    agent.kill()
    newest = pathlib.Path(sorted(glob.glob(f"{agent.state}/ledger/*.log"))[-1])
    content = newest.read_bytes()
    at = len(content) // 2
    newest.write_bytes(content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :])
    agent.start()
    said = agent.weaker("ledger was damaged")
    check(said, f"it does not say so: {agent.status()['weaker']}")
    standing = [one for one, row in agent.ledger().items() if one in load.given and row["standing"] == "stands"]
    check(not standing, f"{len(standing)} credentials stand whose revocation may have been lost")
    again = wire.fetch_x509(agent.socket)
    check(again[1] != svid[1], "an SVID of before is handed out again")
    agent.audit_verifies()
    recorded = {record["serial"] for record in agent.audit("svid_issued")}
    check(not [one for one in load.given if one not in recorded], "a credential is not in the audit log")
    return Seen(
        "streams begin anew with other SVIDs; verifiers that ask refuse all tokens of before",
        "everything issued before has ended, on purpose: what cannot be read may say that something was revoked",
        f"`tether status`: {said}",
        "at the start; the damaged files are set aside",
    )


def the_audit_log_is_torn(work):
    """The last record of the audit log is written by half."""
    agent = Agent(work)
    agent.start()
    with Load(agent) as load:
        load.gives(50)
    agent.kill()
    newest = pathlib.Path(sorted(glob.glob(f"{agent.state}/audit/*.jsonl"))[-1])
    newest.write_bytes(newest.read_bytes() + b'{"version":1,"seq":')
    agent.start()
    repaired = agent.audit("audit_repaired")
    check(len(repaired) == 1 and repaired[0]["cut"] == 19, f"the cut is not on record: {repaired}")
    given = nothing_is_lost(agent, load.given)
    said = f"`audit_repaired`: {repaired[0]['what']}"
    return Seen("nothing after the restart", f"nothing ({given} checked)", said, "at the start")


def the_audit_log_is_damaged(work):
    """Bytes of the audit log's last records are others at the next start."""
    agent = Agent(work)
    agent.start()
    with Load(agent) as load:
        load.gives(50)
    agent.kill()
    newest = pathlib.Path(sorted(glob.glob(f"{agent.state}/audit/*.jsonl"))[-1])
    content = newest.read_bytes()
    newest.write_bytes(content[:-200] + b"#" * 100 + content[-100:])
    agent.start()
    repaired = agent.audit("audit_repaired")
    check(repaired, "the damage is not on record")
    done = agent.tool("audit", "verify")
    found = [" ".join(line.split()) for line in done.stdout.splitlines() if ".jsonl:" in line]
    check(done.returncode == 5 and found, f"verify does not see it: {done.stdout}{done.stderr}")
    check(not [line for line in found if "repeated" in line], f"numbers are used twice: {found}")
    known = agent.ledger()
    check(all(one in known for one in load.given), "a credential is not in the ledger")
    recovers(agent)
    return Seen(
        "nothing after the restart",
        "the damaged records; nothing of the ledger",
        f"`audit_repaired`: {repaired[0]['what']}; `tether audit verify` from then on (exit code 5): {'; '.join(found)}",
        "at the start: the chain goes on in a new file",
    )
