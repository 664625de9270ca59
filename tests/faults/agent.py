"""A real agent as a process of its own user, with a state directory that can be a file system of its own; and its callers."""

import collections
import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import threading
import time

import wire

ROOT = pathlib.Path(__file__).resolve().parents[2]
TETHER = pathlib.Path(os.environ.get("TETHER_BIN", ROOT / "target/debug/tether")).resolve()
PATIENCE = 30  # seconds until something that does not come is a failure
DOMAIN = "faults.test"
AGENT = 61000  # the user the agent runs as, with the two capabilities that attestation takes
# Callers of whom there are entries.
CALLERS = (0, 61001, 61002)
CAPABILITIES = "+sys_ptrace,+dac_read_search"


class Failure(Exception):
    """A check did not hold."""


def check(holds, what):
    if not holds:
        raise Failure(what)


def until(what, look, patience=PATIENCE):
    """What `look` gives once that is true, and after how many seconds."""
    begin = time.monotonic()
    while not (found := look()):
        if time.monotonic() - begin > patience:
            raise Failure(f"{what} did not happen within {patience} s")
        time.sleep(0.02)
    return found, time.monotonic() - begin


def plain(line):
    """Without colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", line.rstrip("\n"))


def sh(*words, **more):
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False, **more)
    check(done.returncode == 0, f"{' '.join(map(str, words))}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def entries_of(*uids):
    return "".join(
        f"""
[[entry]]
id = "user-{uid}"
spiffe_id = "spiffe://{DOMAIN}/user/{uid}"
match = ["unix:uid:{uid}"]
owner = "faults"
audiences = ["*"]
"""
        for uid in uids
    )


ENTRIES = entries_of(*CALLERS)


class Agent:
    """One agent, which can die and be started again."""

    def __init__(self, work, config="", entries=ENTRIES):
        self.dir, self.child, self.log = work, None, collections.deque(maxlen=20_000)
        work.mkdir()
        work.chmod(0o755)
        self.state, self.run, self.entries = work / "state", work / "run", work / "entries.d"
        for directory, mode in ((self.state, 0o700), (self.run, 0o755), (self.entries, 0o755), (work / "policies", 0o755)):
            directory.mkdir()
            directory.chmod(mode)
        for directory in (self.state, self.run):
            os.chown(directory, AGENT, AGENT)
        self.socket, self.admin = self.run / "workload/workload.sock", self.run / "admin/admin.sock"
        (self.entries / "callers.toml").write_text(entries)
        (work / "tether.toml").write_text(
            f"""trust_domain = "{DOMAIN}"\nstate_dir = "{self.state}"\nentries_dir = "{self.entries}"
policies_dir = "{work / 'policies'}"\n{config}
[listen]\nworkload = "{self.socket}"\nadmin = "{self.admin}"\n"""
        )

    def start(self, prefix=(), environment=None, preexec=None, stderr=subprocess.PIPE, wait=True, group=None):
        drop = ["setpriv", f"--reuid={AGENT}", f"--regid={AGENT}", "--clear-groups"]
        drop += [f"--inh-caps={CAPABILITIES}", f"--ambient-caps={CAPABILITIES}"]
        drop += ["env", *(f"{name}={value}" for name, value in (environment or {}).items())]
        if group:  # from before it is an agent
            prefix = ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh", *prefix]
        words = [*prefix, *drop, TETHER, "agent", "run", "--config", self.dir / "tether.toml"]
        self.child = subprocess.Popen(
            [str(word) for word in words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            preexec_fn=preexec,
        )
        self.ready, begin = threading.Event(), time.monotonic()
        for pipe in filter(None, (self.child.stdout, self.child.stderr)):
            threading.Thread(target=self.read, args=[pipe], daemon=True).start()
        if wait:
            until("the start", lambda: self.ready.is_set() or self.ended())
            if self.ended():
                time.sleep(0.1)  # for its last words
                raise Failure(f"the agent does not start: {self.last_words()}")
        return time.monotonic() - begin

    def read(self, pipe):
        for line in pipe:
            self.log.append(plain(line))
            if line == "ready\n":
                self.ready.set()

    def refuses_to_start(self, **more):
        """What it says instead of starting."""
        self.start(wait=False, **more)
        until("the refusal", lambda: self.child.poll() is not None or self.ready.is_set())
        if self.ready.is_set():
            raise Failure("the agent starts")
        time.sleep(0.1)
        return self.last_words()

    def last_words(self):
        said = [line for line in self.log if " INFO " not in line]
        return said[-1] if said else "nothing was said"

    def ended(self):
        return self.child is None or self.child.poll() is not None

    def pid(self):
        return self.child.pid

    def kill(self):
        self.end(signal.SIGKILL)

    def stop(self):
        self.end(signal.SIGTERM)

    def end(self, how):
        if self.child is not None and self.child.poll() is None:
            self.child.send_signal(how)
            try:
                self.child.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.child.kill()
                self.child.wait()
                raise Failure(f"the agent does not end by {how.name}") from None

    def says(self, *parts):
        """A line of the log with all of these in it."""
        return next((line for line in list(self.log) if all(part in line for part in parts)), None)

    def line(self, *parts):
        """The text of such a line: there must be one."""
        found = self.says(*parts)
        check(found, f"the log has no line with {' and '.join(map(repr, parts))}")
        return re.sub(r"^\S+Z\s+[A-Z]+ \S+: ", "", found)

    def panicked(self):
        return next((line for line in list(self.log) if "panicked" in line or "BUG" in line), None)

    # What the tool says, as root.

    def tool(self, *words):
        environment = os.environ | {"TETHER_ADMIN_SOCKET": str(self.admin), "SPIFFE_ENDPOINT_SOCKET": f"unix://{self.socket}"}
        command = [str(TETHER), *map(str, words)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)

    def out(self, *words):
        done = self.tool(*words)
        check(done.returncode == 0, f"tether {' '.join(map(str, words))}: {done.stderr.strip()}")
        return done.stdout

    def status(self):
        return json.loads(self.out("status", "--output", "json"))

    def part(self, name):
        """Why a part of the agent is not ready; `None` when it is."""
        return self.status()["parts"][name]["reason"]

    def weaker(self, text):
        """The line of `weaker` in `tether status` that has this in it."""
        return next((line for line in self.status()["weaker"] if text in line), None)

    def ledger(self):
        listed = json.loads(self.out("credential", "list", "--all", "--limit", 100_000, "--output", "json"))
        return {one["id"]: one for one in listed["credentials"]}

    def audit_verifies(self):
        done = self.tool("audit", "verify")
        check(done.returncode == 0, f"the audit log does not verify: {done.stdout}{done.stderr}")

    def audit(self, event):
        lines = self.out("audit", "query", "--event", event, "--output", "json").splitlines()
        return [json.loads(line) for line in lines]

    def resident(self):
        """How much memory it has, in MiB."""
        status = pathlib.Path(f"/proc/{self.pid()}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status).group(1)) / 1024

    def limit_descriptors(self, most):
        # Its own user may lower it and raise it again; root only with a capability that containers lack.
        sh("setpriv", f"--reuid={AGENT}", f"--regid={AGENT}", "--clear-groups", "prlimit", f"--nofile={most}:2000", "--pid", self.pid())

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.pid()}/fd"))


def is_served(agent):
    try:
        return wire.fetch_x509(agent.socket, patience=5)
    except wire.Failed:
        return None


def recovers(agent, patience=PATIENCE):
    """How long it takes until a caller is served again."""
    return until("the recovery", lambda: is_served(agent), patience)[1]


def nothing_is_lost(agent, handed_out, expired=()):
    """What callers got is in the ledger and in the audit log, before and after a restart, and the chain holds.

    The ledger shows nothing that has expired.
    """
    agent.audit_verifies()
    for when in ("now", "after a restart"):
        known = agent.ledger()
        missing = [one for one in handed_out if one not in known and one not in expired]
        check(not missing, f"{len(missing)} of {len(handed_out)} credentials are not in the ledger {when}: {missing[:3]}")
        recorded = {record["serial"] for record in agent.audit("svid_issued")}
        missing = [one for one in handed_out if one not in recorded]
        check(not missing, f"{len(missing)} credentials are not in the audit log {when}: {missing[:3]}")
        if when == "now":
            agent.stop()
            agent.start()
    agent.audit_verifies()
    return len(handed_out)


class Load:
    """Callers that ask without a break. Each answer and each failure is kept."""

    def __init__(self, agent, callers=2, pause=0.002):
        self.agent, self.pause, self.end = agent, pause, threading.Event()
        self.given, self.failed, self.kinds, self.ends = [], [], collections.Counter(), {}
        self.longest, self.lock = 0.0, threading.Lock()
        self.threads = [threading.Thread(target=self.ask, args=[bool(n % 2)], daemon=True) for n in range(callers)]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.end.set()
        for thread in self.threads:
            thread.join(PATIENCE)

    def ask(self, anew):
        """Tokens on one connection, or on a new one each time."""
        connection = None
        while not self.end.is_set():
            connection = self.ask_once(connection)
            if anew and connection is not None:
                connection = connection.close()
            time.sleep(self.pause)
        if connection is not None:
            connection.close()

    def ask_once(self, connection):
        """Returns the connection, where it is still of use."""
        begin = time.monotonic()
        try:
            connection = connection or wire.Connection(self.agent.socket)
            claims = wire.claims_of(connection.call("FetchJWTSVID", wire.field(1, "demo")))[0]
            with self.lock:
                self.given.append(claims["jti"])
                self.ends[claims["jti"]] = claims["exp"]
                self.longest = max(self.longest, time.monotonic() - begin)
            return connection
        except wire.Failed as failed:
            with self.lock:
                self.failed.append(wire.Failed(failed.kind, failed.text))
                self.kinds[failed.kind] += 1
            time.sleep(0.01)
            if failed.kind not in wire.BROKEN:
                return connection
            if connection is not None:
                connection.close()
            return None

    def gives(self, more=1):
        """Waits until so many more were given."""
        goal = len(self.given) + more
        return until(f"{more} more answers", lambda: len(self.given) >= goal)[1]

    def fails(self, more=1):
        """Waits until so many more calls failed, and returns how the last did."""
        goal = len(self.failed) + more
        until(f"{more} more failures", lambda: len(self.failed) >= goal)
        return self.failed[-1]

    def seen(self):
        """What callers saw, for the table."""
        if not self.kinds:
            return f"{len(self.given)} answers, no failure"
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.kinds.items()))
        return f"{len(self.given)} answers; {kinds}"

    def only(self, *kinds):
        """No call failed in another way."""
        others = [str(failed) for failed in self.failed if failed.kind not in kinds]
        check(not others, f"callers saw something else: {others[:3]}")


@contextlib.contextmanager
def group(name, controller):
    """A control group in which `controller` is, of either version."""
    for root in (pathlib.Path("/sys/fs/cgroup", controller), pathlib.Path("/sys/fs/cgroup")):
        if not (root / "cgroup.procs").exists():
            continue
        with contextlib.suppress(OSError):
            (root / "cgroup.subtree_control").write_text(f"+{controller}")
        made = root / f"tether-faults-{os.getpid()}-{name}"
        made.mkdir()
        try:
            if any(file.name.startswith(f"{controller}.") for file in made.iterdir()):
                yield made
                return
        finally:
            until("the end of the group", lambda: not (made / "cgroup.procs").read_text())
            made.rmdir()
    raise Failure(f"no control group can limit `{controller}` here: run this where one can")


@contextlib.contextmanager
def mounted(agent, megabytes, kind="ext4"):
    """The agent's state directory is a file system of its own."""
    if kind == "tmpfs":
        sh("mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0700,uid={AGENT},gid={AGENT}", "tmpfs", agent.state)
    else:
        image = agent.dir / "image"
        with open(image, "wb") as file:
            file.truncate(megabytes << 20)
        sh("mkfs.ext4", "-q", "-m", "0", "-E", f"root_owner={AGENT}:{AGENT}", image)
        sh("mount", "-o", "loop,errors=remount-ro", image, agent.state)
        agent.state.chmod(0o700)
    try:
        yield
    finally:
        agent.end(signal.SIGKILL)
        if os.path.ismount(agent.state):
            sh("umount", agent.state)


@contextlib.contextmanager
def full(directory):
    """No byte more fits; what is freed meanwhile is taken too."""
    filler = directory / "filler"
    with open(filler, "wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"\0" * size)
    try:
        yield filler
    finally:
        filler.unlink(missing_ok=True)


class Stream:
    """A caller with an open stream of X.509-SVIDs."""

    def __init__(self, agent):
        self.connection = wire.Connection(agent.socket)
        self.call = self.connection.open("FetchX509SVID")
        self.first = self.next()

    def next(self, patience=PATIENCE):
        return wire.x509_of(self.connection.next(self.call, patience))[0]

    def is_quiet(self, seconds=0.2):
        """Whether it is open and nothing new comes."""
        try:
            self.next(seconds)
        except wire.Failed as failed:
            return failed.kind == "late"
        return False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.connection.close()


# A row of the table: what clients saw, what was lost, what the agent said, and how it came back.
Seen = collections.namedtuple("Seen", "saw lost said recovered")


class Caller:
    """`caller.py` as a process of another user."""

    def __init__(self, uid, *words, group=None):
        program = pathlib.Path(__file__).with_name("caller.py")
        # In this control group, from before it is what it will be.
        enter = ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh"] if group else []
        self.child = subprocess.Popen(
            [*enter, "setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "python3", "-B", *map(str, [program, *words])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def says(self, patience=120):
        """The next thing it has to say."""
        line, timer = [], threading.Timer(patience, self.child.kill)
        timer.start()
        line = self.child.stdout.readline()
        timer.cancel()
        check(line, f"{' '.join(self.child.args[-3:])} said nothing")
        return json.loads(line)

    def goes(self):
        """Tells it to end, and returns its last words, if it has any."""
        self.child.stdin.close()
        said = self.child.stdout.read()
        self.child.wait(PATIENCE)
        return json.loads(said) if said else None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.child.kill()
        self.child.wait()
