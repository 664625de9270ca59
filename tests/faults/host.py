"""What the agent needs of its host: a bus, descriptors, watches, a log that is read, names that resolve."""

import fcntl
import os
import pathlib
import re
import resource
import socket
import subprocess
import threading
import time

import wire
from agent import AGENT, ENTRIES, Agent, Caller, Failure, Load, Seen, Stream, check, full, is_served, nothing_is_lost, plain, recovers, sh, until

OF_A_UNIT = """
[[entry]]
id = "unit"
spiffe_id = "spiffe://faults.test/unit"
match = ["unix:uid:61001", "systemd:fragment_path:/etc/systemd/system/web.service"]
owner = "faults"
audiences = ["*"]
"""


# A host that systemd started, as far as can be seen.
BOOTED = 'mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/system && exec "$@"'


class Mute:
    """Something that accepts connections and never answers."""

    def __init__(self, path):
        self.listener, self.held = socket.socket(socket.AF_UNIX), []
        self.listener.bind(str(path))
        path.chmod(0o666)
        self.listener.listen(64)
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                self.held.append(self.listener.accept()[0])
            except OSError:
                return

    def close(self):
        # Wakes the thread too.
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for one in self.held:
            one.close()


BUS = """<busconfig><type>session</type><listen>unix:path={path}</listen><auth>EXTERNAL</auth><allow_anonymous/>
<policy context="default"><allow user="*"/><allow send_destination="*"/><allow receive_sender="*"/><allow own="*"/></policy></busconfig>"""


def the_message_bus_hangs_and_goes(work):
    """The D-Bus system bus accepts and never answers; then it is gone; then there is one without systemd."""
    bus = work.parent / "bus"
    agent = Agent(work, f'[attest.systemd]\nbus_address = "unix:path={bus}"\n', ENTRIES.replace("61001", "61009") + OF_A_UNIT)
    mute = Mute(bus)
    agent.start(prefix=["unshare", "--mount", "sh", "-c", BOOTED, "sh"])
    times = {}

    def asks(what):
        """A caller whose entry needs no bus, and one whose does: not to know is never a no."""
        with Caller(61002, "measure", agent.socket, 2) as other, Caller(61001, "measure", agent.socket, 2) as needs:
            served, refused = other.says(), needs.says()
        check(not served["failed"] and served["served"], f"{what}: callers that need no bus: {served}")
        check(not refused["served"], f"{what}: an identity for which nobody vouched")
        check(set(refused["failed"]) == {"UNAVAILABLE"}, f"{what}: {refused}")
        times[what] = served

    asks("hung")
    mute.close()
    bus.unlink()
    asks("gone")
    (work.parent / "bus.conf").write_text(BUS.format(path=bus))
    daemon = subprocess.Popen(["dbus-daemon", "--nofork", f"--config-file={work.parent / 'bus.conf'}"], stderr=subprocess.DEVNULL)
    try:
        until("the bus", bus.exists)
        asks("back, without systemd")
        with Load(agent) as load:
            load.gives(100)
        load.only()
        # Stopped in the middle: connected, and silent from now on.
        daemon.send_signal(19)
        asks("stopped")
        daemon.send_signal(18)
    finally:
        daemon.kill()
        daemon.wait()
    check(not agent.panicked(), agent.panicked())
    slowest = max(times.values(), key=lambda one: one["p99"])
    return Seen(
        f"callers whose entries need no systemd are served (p50 {slowest['p50'] * 1000:.1f} ms, p99 {slowest['p99'] * 1000:.1f} ms, each with a new "
        "connection); those whose do: Unavailable, never another identity",
        "nothing",
        agent.line("tether::attest", "WARN"),
        "by itself, with the next question after a rest of at most 15 s",
    )


def no_inotify_instance_is_left(work):
    """Another program of the agent's user has taken all inotify instances before the agent starts."""
    agent = Agent(work)
    with Caller(AGENT, "inotify", 100_000) as thief:
        held = thief.says()["held"]
        agent.start()
        check(is_served(agent), "the entries are not loaded")
        said = agent.weaker("not watched")
        check(said, f"it does not say so: {agent.status()['weaker']}")
        file = agent.entries / "more.toml"
        file.write_text('[[entry]]\nid = "more"\nspiffe_id = "spiffe://faults.test/more"\nmatch = ["unix:uid:5"]\nowner = "faults"\n')
        seconds = until("the new entry", lambda: agent.status()["entries"]["count"] == 4)[1]
    until("the watch", lambda: not agent.weaker("not watched"))
    file.unlink()
    watched = until("the change", lambda: agent.status()["entries"]["count"] == 3)[1]
    check(not agent.panicked(), agent.panicked())
    return Seen(
        f"nothing: entries are loaded, a change of them is in force after {seconds:.0f} s (they are read every 10 s)",
        "nothing",
        f"`tether status`: {said}",
        f"by itself within 10 s once there is an instance (a change is in force after {watched * 1000:.0f} ms again)",
    )


def no_descriptor_is_left(work):
    """The limit of open files of the running agent falls below what it has open, and rises again."""
    agent = Agent(work)
    agent.start(preexec=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (2000, 2000)))
    with Load(agent) as load, Stream(agent) as stream:
        load.gives(50)
        # Below all that is open: what is closed meanwhile makes no room.
        agent.limit_descriptors(3)
        until("the end of what had begun", lambda: agent.says("no connection can be accepted"))
        # Nobody is accepted: who connects waits.
        waiting = wire.Connection(agent.socket)
        call = waiting.open("FetchX509SVID")
        try:
            waiting.next(call, 1.0)
            raise Failure("a connection was accepted without a descriptor")
        except wire.Failed as failed:
            check(failed.kind == "late", f"a caller does not wait: {failed}")
        check(stream.is_quiet(), "an open stream ended")
        words = agent.line("no connection can be accepted", "LimitNOFILE")
        agent.limit_descriptors(2000)
        begin = time.monotonic()
        check(waiting.next(call), "who waited is not served")
        seconds = time.monotonic() - begin
        waiting.close()
        load.gives(50)
    # Accepted with the last one: there is none left to look at it, and it is told so.
    load.only("late", "UNAVAILABLE", "goaway")
    told = [failed.text for failed in load.failed if failed.kind == "goaway"]
    check(all("Too many open files" in text for text in told), f"callers are not told why: {told[:3]}")
    agent.stop()
    # So few from the start that the limits must be lowered: refused in words, before there are none.
    agent.start(preexec=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128)))
    lower = agent.weaker("LimitNOFILE")
    check(lower, "it does not say that its limits are lower than configured")
    with Caller(61001, "idle", agent.socket, 500) as idle:
        said = idle.says()
        check(said["refused"] and "limit" in said["refused"], f"not refused in words: {said}")
        with Caller(61002, "measure", agent.socket, 0.5) as other:
            served = other.says()
            check(served["served"] and not served["failed"], f"another user: {served}")
        agent.status()
    check(not agent.panicked(), agent.panicked())
    given = nothing_is_lost(agent, load.given)
    return Seen(
        f"who connects waits, and is served {seconds * 1000:.0f} ms after there are descriptors; open connections and streams go on. "
        f"With 128 from the start: connection {said['held'] + 1} of one user is refused with the reason, others are served",
        f"nothing ({given} checked)",
        f"{words}; with 128 from the start, `tether status`: {lower}",
        "by itself",
    )


def nobody_reads_the_log(work):
    """The reader of standard error stops reading, goes on, and later is gone, with the log at its loudest."""
    agent = Agent(work, '[log]\nlevel = "trace"\n')
    out, into = os.pipe()
    fcntl.fcntl(into, fcntl.F_SETPIPE_SZ, 4096)
    agent.start(stderr=into, wait=False)
    os.close(into)
    reads, gone, read = threading.Event(), threading.Event(), []

    def reader():
        with os.fdopen(out) as log:
            while not gone.is_set():
                if reads.wait(0.1):
                    line = log.readline()
                    if "svid_issued" in line or "are lost" in line:
                        read.append(line)

    thread = threading.Thread(target=reader, daemon=True)
    thread.start()
    # Somebody reads until it is ready.
    reads.set()
    until("the start", lambda: agent.ready.is_set() or agent.ended())
    with Load(agent, callers=4, pause=0) as load:
        load.gives(50)
        reads.clear()
        try:
            load.gives(1500)
        except Failure:
            raise Failure("a log that nobody reads stops the agent")
        reads.set()
        until("the number of lost lines", lambda: any("are lost" in line for line in list(read)))
    # And all of them are told: what is issued is a line each. Once nobody else asks, the reader comes to the end.
    last = []

    def is_at_the_end():
        last.append(wire.fetch_jwt(agent.socket)["jti"])
        return any(one in line for line in read[-len(last) :] for one in last)

    until("the end of the lines that wait", is_at_the_end)
    lines = list(read)
    missing = set(load.given) - {word for line in lines for word in re.findall(r'serial="([^"]+)"', plain(line))}
    told = [int(re.search(r"in_all=(\d+)", plain(line)).group(1)) for line in lines if "are lost" in line]
    check(len(missing) <= told[-1], f"{len(missing)} lines are missing, {told[-1]} are said to be")
    with Load(agent) as unread:
        gone.set()
        thread.join()
        unread.gives(300)
    load.only()
    unread.only()
    check(not agent.ended(), "it ended")
    agent.stop()
    agent.start()
    given = nothing_is_lost(agent, load.given + unread.given)
    return Seen(
        f"nothing ({load.seen()})",
        f"{told[-1]} lines of the log, none of the audit log ({given} checked)",
        "once somebody reads again: lines of the log are lost: whoever reads it is too slow (and their number)",
        "by itself",
    )


def run_is_full(work):
    """The file system of the sockets is full, before and after a start."""
    agent = Agent(work)
    sh("mount", "-t", "tmpfs", "-o", f"size=64k,mode=0755,uid={AGENT},gid={AGENT}", "tmpfs", agent.run)
    try:
        agent.start()
        with Load(agent) as load, full(agent.run):
            load.gives(100)
        load.only()
        agent.stop()
        # Not a file more, either.
        for number in range(1000):
            try:
                (agent.run / f"file-{number}").touch()
            except OSError:
                break
        with full(agent.run):
            agent.start()
            served = recovers(agent)
        given = nothing_is_lost(agent, load.given)
    finally:
        agent.kill()
        sh("umount", agent.run)
    return Seen(f"nothing ({load.seen()}): a socket takes no space", f"nothing ({given} checked)", "nothing", "–")


def names_do_not_resolve(work):
    """There is no DNS, and issuers of subject tokens are known by URL alone."""
    issuer = 'audience = "tether"\njwks_url = "https://login.invalid/keys"\nalgorithms = ["ES256"]\n'
    agent = Agent(work, f'[sessions.issuers."https://login.invalid"]\n{issuer}')
    (agent.dir / "policies/all.cedar").write_text('@id("all") permit (principal, action, resource);')
    agent.start()
    token = work.parent / "token"
    token.write_text(TOKEN)
    with Load(agent) as load:
        load.gives(100)
        begin = time.monotonic()
        words = ["session", "start", "--purpose", "t", "--target", "https://tool.example.com/", "--subject-token", token, "--pid", os.getpid()]
        done = agent.tool(*words)
        took = time.monotonic() - begin
        check(done.returncode != 0, f"a session of a user nobody can check: {done.stdout}")
        check("login.invalid" in done.stderr, f"it does not say who cannot be asked: {done.stderr}")
        check(took < 20, f"the answer takes {took:.0f} s")
        load.gives(100)
    load.only()
    check(not agent.panicked(), agent.panicked())
    why = done.stderr.strip().splitlines()[0].removeprefix("error: ")
    return Seen(
        f"SVIDs are issued ({load.seen()}); a session for a user of that issuer is refused after {took:.1f} s",
        "nothing",
        f"to the caller: {why}",
        "by itself, with the next attempt",
    )


# {"alg":"ES256","kid":"a"} {"iss":"https://login.invalid","aud":"tether","sub":"u","iat":1,"exp":9999999999}, and no signature
TOKEN = (
    "eyJhbGciOiJFUzI1NiIsImtpZCI6ImEifQ."
    "eyJpc3MiOiJodHRwczovL2xvZ2luLmludmFsaWQiLCJhdWQiOiJ0ZXRoZXIiLCJzdWIiOiJ1IiwiaWF0IjoxLCJleHAiOjk5OTk5OTk5OTl9."
    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
)


OF_A_CONTAINER = """
[[entry]]
id = "container"
spiffe_id = "spiffe://faults.test/container"
match = ["unix:uid:61001", "docker:name:web"]
owner = "faults"
audiences = ["*"]
"""


def the_container_engine_hangs(work):
    """The engine's socket accepts and never answers, and then is gone, with a caller in a container of its own."""
    socket_path = work.parent / "docker.sock"
    agent = Agent(work, f'[attest.docker]\nsocket = "{socket_path}"\n', ENTRIES.replace("61001", "61009") + OF_A_CONTAINER)
    root = pathlib.Path("/sys/fs/cgroup/unified")
    root = root if root.is_dir() else pathlib.Path("/sys/fs/cgroup")
    above, group = root / "docker", root / "docker" / ("ab" * 32)
    made = not above.exists()
    above.mkdir(exist_ok=True)
    group.mkdir(exist_ok=True)
    mute = Mute(socket_path)
    try:
        agent.start()
        seen, slowest = set(), 0
        for what in ("hung", "gone"):
            with Caller(61002, "measure", agent.socket, 2) as other, Caller(61001, "measure", agent.socket, 2, group=group) as inside:
                served, refused = other.says(), inside.says()
                inside.goes()
            check(served["served"] and not served["failed"], f"{what}: callers outside of containers: {served}")
            check(not refused["served"], f"{what}: an identity for which nobody vouched")
            check(set(refused["failed"]) == {"UNAVAILABLE"}, f"{what}: in the container: {refused}")
            slowest = max(slowest, served["p99"])
            if what == "hung":
                mute.close()
                socket_path.unlink()
    finally:
        until("the end of the group", lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()
        if made:
            above.rmdir()
    check(not agent.panicked(), agent.panicked())
    return Seen(
        f"callers outside of containers are served, p99 {slowest * 1000:.1f} ms; those in a container whose entries ask for it: "
        "Unavailable, never another identity",
        "nothing",
        agent.line("tether::attest", "WARN"),
        "by itself, with the next question after a rest of at most 15 s (with a real docker: `tests/containers`)",
    )
