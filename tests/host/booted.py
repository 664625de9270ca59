"""A host that is booted for a test: a minimal Debian with its own systemd, in a container, or this machine in one.

It promises a real PID 1 that runs real units, a package that was installed by dpkg, and that nothing written inside outlives it.
It does not have a kernel of its own, and no network but a loopback device.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "tether-test"
# What a server has, beside the minimum: a message bus, logins and their user managers, sudo.
PACKAGES = "systemd,systemd-sysv,dbus,dbus-user-session,libpam-systemd,procps,sudo"
PATIENCE = 30  # seconds until something that does not come is a failure
# systemd-nspawn allows what it knows; a host has no such list.
SYSTEM_CALLS = "landlock_create_ruleset landlock_add_rule landlock_restrict_self memfd_secret"
USER = "you"  # the person whose host it is, who may use sudo
UID = 1000

SERVICE = "tether-agent.service"
SOCKET_UNIT = "tether-agent.socket"
WORKLOAD = "/run/tether/workload/workload.sock"
ADMIN = "/run/tether/admin/admin.sock"


class Failure(Exception):
    """A check did not hold."""


def check(holds, what):
    if not holds:
        raise Failure(what)


def until(what, look, patience=PATIENCE):
    """What `look` gives once that is true."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(0.05)
    raise Failure(f"{what} did not happen within {patience} s")


# --- what is booted ----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Kind:
    """A system to boot."""

    suite: str | None  # of Debian; None: this machine's own files
    cgroups: int  # the version of the hierarchy that systemd finds inside
    words: tuple = ()  # for systemd-nspawn
    boot: tuple = ()  # for systemd itself


KINDS = {
    "bookworm": Kind("bookworm", 2),
    "bookworm-v1": Kind("bookworm", 1),
    "trixie": Kind("trixie", 2),
}
# Not what this machine starts as a rule.
THIS_MACHINE = Kind(None, 2, boot=("systemd.unit=basic.target",))


def mirror():
    """The first archive that this machine takes its own packages from."""
    lists = sorted(pathlib.Path("/etc/apt").glob("sources.list*"))
    for source in lists + sorted(pathlib.Path("/etc/apt/sources.list.d").glob("*")):
        if source.is_file():
            line = r"^(?:URIs:|deb(?: \[[^]]*\])?)\s+(https?://\S+/debian)/?(?:\s|$)"
            if found := re.search(line, source.read_text(), re.M):
                return found.group(1)
    # Some images name their archives in another way.
    return "http://deb.debian.org/debian"


def root_of(suite):
    """A minimal system with `PACKAGES`, which the first run fetches."""
    root = CACHE / f"host-{suite}-{hashlib.sha256(PACKAGES.encode()).hexdigest()[:8]}"
    if not root.is_dir():
        print(f"fetching a minimal {suite} into {root}", flush=True)
        CACHE.mkdir(parents=True, exist_ok=True)
        part = root.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", suite, part, mirror()]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        part.rename(root)
    return root


@contextlib.contextmanager
def this_machine():
    """The files of this machine, with a layer above them that takes what is written."""
    with tempfile.TemporaryDirectory(prefix="tether-machine-") as directory:
        subprocess.run(["mount", "-t", "tmpfs", "tether-test", directory], check=True)
        try:
            upper, work, root = (pathlib.Path(directory) / name for name in ("upper", "work", "root"))
            for each in (upper, work, root):
                each.mkdir()
            layers = f"lowerdir=/,upperdir={upper},workdir={work}"
            subprocess.run(["mount", "-t", "overlay", "tether-test", "-o", layers, root], check=True)
            # Some containers forbid their package manager to start anything.
            (root / "usr/sbin/policy-rc.d").unlink(missing_ok=True)
            try:
                yield root
            finally:
                subprocess.run(["umount", root], check=True)
        finally:
            subprocess.run(["umount", directory], check=True)


class Cgroup:
    """A cgroup of our own for systemd-nspawn: two systems in one would take each other's services for theirs."""

    MOUNTS = {"": ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"], "name=systemd": ["/sys/fs/cgroup/systemd"]}

    def __init__(self, name):
        self.directories = []
        for line in pathlib.Path("/proc/self/cgroup").read_text().splitlines():
            _, hierarchy, path = line.split(":", 2)
            for mount in self.MOUNTS.get(hierarchy, []):
                if os.path.exists(f"{mount}/cgroup.procs"):
                    self.directories.append(pathlib.Path(f"{mount}{path}/{name}"))
                    break
        for directory in self.directories:
            directory.mkdir()

    def enter(self):
        for directory in self.directories:
            (directory / "cgroup.procs").write_text("0")

    def remove(self):
        for directory in self.directories:
            for below, _, _ in os.walk(directory, topdown=False):
                until("the end of a cgroup's processes", lambda: not pathlib.Path(below, "cgroup.procs").read_text())
                os.rmdir(below)


class Host:
    """A systemd that was booted for a test. `share` is a directory of this machine, and `/share` inside."""

    def __init__(self, kind, root, share):
        self.share, self.leader = share, "0"
        name = f"tether-test-{os.getpid()}"
        self.cgroup = Cgroup(name)
        environment = os.environ | {"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": str(kind.cgroups - 1)}
        command = ["systemd-nspawn", "-q", "-D", root, "-M", name, "--register=no", "--keep-unit"]
        command += ["--console=pipe", "--private-network", "--hostname=host", f"--system-call-filter={SYSTEM_CALLS}", f"--bind={share}:/share"]
        command += [*kind.words, "-b", *kind.boot]
        with open(share / "console", "w") as console:
            self.nspawn = subprocess.Popen(
                [str(word) for word in command],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                preexec_fn=self.cgroup.enter,
            )
        children = pathlib.Path(f"/proc/{self.nspawn.pid}/task/{self.nspawn.pid}/children")

        def booted():
            check(self.nspawn.poll() is None, f"systemd-nspawn: {(share / 'console').read_text()}")
            # The first child of systemd-nspawn is another one for a moment.
            self.leader = (children.read_text().split() or ["0"])[0]
            return self.leader != "0" and self.run("systemctl", "is-active", "-q", "basic.target").returncode == 0

        try:
            until("the boot", booted)
        except Failure:
            self.nspawn.kill()
            self.off()
            raise

    def off(self):
        """Like a power failure: nothing that it wrote is kept, and on cgroups of version 1 a container is slow to stop."""
        if int(self.leader):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(self.leader), signal.SIGKILL)
        try:
            self.nspawn.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.nspawn.kill()
            self.nspawn.wait()
        self.cgroup.remove()

    # --- commands ---

    def enter(self, *words):
        """The words of a command that runs inside, as root."""
        return ["nsenter", "-t", self.leader, "-a", *(str(word) for word in words)]

    def run(self, *words, text=None):
        """As root."""
        return subprocess.run(self.enter(*words), input=text, capture_output=True, text=True, check=False)

    @contextlib.contextmanager
    def in_background(self, *words):
        """A command of root's that goes on, with its input, output and errors as files."""
        pipe = subprocess.PIPE
        child = subprocess.Popen(self.enter(*words), stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        try:
            yield child
        finally:
            child.kill()
            child.wait()

    def out(self, *words, text=None):
        """What a command of root's prints, which must succeed."""
        done = self.run(*words, text=text)
        check(done.returncode == 0, f"{' '.join(map(str, words))}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def shell(self, script):
        return self.out("sh", "-euc", script)

    @staticmethod
    def logged_in(*words, user=USER):
        """Words of root's by which a person logs in who runs these: with a session of logind's, a user manager and the
        kernel's login uid."""
        service = ["systemd-run", "-q", "--collect", "--wait", "--pipe", "-p", f"User={user}", "-p", "PAMName=login"]
        return [*service, "-p", "WorkingDirectory=~", *words]

    def login(self, *words, user=USER, text=None):
        return self.run(*self.logged_in(*words, user=user), text=text)

    def as_user(self, *words, user=USER, text=None):
        """What a command prints that a person runs, which must succeed."""
        done = self.login(*words, user=user, text=text)
        check(done.returncode == 0, f"{user}$ {' '.join(words)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def tether(self, *words):
        return self.out("tether", *words)

    def read_json(self, *words):
        return json.loads(self.tether(*words, "--output", "json"))

    def audit(self, event):
        lines = self.tether("audit", "query", "--event", event, "--output", "json").splitlines()
        return [json.loads(line) for line in lines]

    def add_user(self, name, *options):
        """Somebody whose user manager is there from now on: on cgroups of version 1, one that goes takes its time."""
        self.out("useradd", "-m", "-s", "/bin/bash", *options, name)
        # What `loginctl enable-linger` writes, which fails in a container with systemd 257.
        uid = self.out("id", "-u", name).strip()
        self.shell(f"mkdir -p /var/lib/systemd/linger; touch /var/lib/systemd/linger/{name}; systemctl start user@{uid}.service")

    # --- files and units ---

    def write(self, path, text):
        """As an editor or a configuration tool does: another file takes the place of the one before."""
        path = pathlib.Path(path)
        self.out("sh", "-euc", f"mkdir -p {path.parent}; cat > {path.parent}/.new; mv {path.parent}/.new {path}", text=text)

    def unit(self, name, text):
        self.write(f"/run/systemd/system/{name}", text)
        self.out("systemctl", "daemon-reload")

    def service(self, name, body):
        self.unit(f"{name}.service", f"[Unit]\nAfter={SERVICE}\n[Service]\n{body}")

    def drop_in(self, name, text, unit=SERVICE):
        self.unit(f"{unit}.d/{name}.conf", text)

    def no_drop_in(self, name, unit=SERVICE):
        self.out("rm", f"/run/systemd/system/{unit}.d/{name}.conf")
        self.out("systemctl", "daemon-reload")

    def start(self, unit):
        done = self.run("systemctl", "start", unit)
        check(done.returncode == 0, f"{unit} does not start: {self.journal()}")

    def show(self, unit, what):
        return self.out("systemctl", "show", unit, "-P", what).strip()

    def is_active(self, unit):
        return self.run("systemctl", "is-active", "-q", unit).returncode == 0

    def journal(self, unit=None, lines=40):
        words = ["-u", unit] if unit else []
        return self.run("journalctl", "-q", f"-n{lines}", "-o", "cat", *words).stdout

    # --- the agent ---

    def crash(self):
        """Kills the agent without a word, and waits for the next one."""
        pid = self.main_pid()
        self.out("kill", "-9", pid)
        until("the next agent", lambda: self.main_pid() not in (0, pid) and self.is_active(SERVICE))

    def main_pid(self):
        return int(self.show(SERVICE, "MainPID"))

    def is_ready(self):
        return self.run("tether", "status").returncode == 0

    def entry(self, name, *lines):
        """An entry in a file of its own, in force when this returns."""
        text = "\n".join(["[[entry]]", f'id = "{name}"', 'owner = "host"', *lines]) + "\n"
        self.write(f"/etc/tether/entries.d/{name}.toml", text)
        try:
            until(f"the entry {name}", lambda: self.run("tether", "entry", "show", name).returncode == 0)
        except Failure as failure:
            said = self.run("tether", "agent", "reload")
            raise Failure(f"{failure}: {said.stdout}{said.stderr}") from None


@contextlib.contextmanager
def booted(kind, packages):
    """A host of this kind; `packages`, by name, are in /share."""
    with contextlib.ExitStack() as stack:
        share = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tether-host-")))
        share.chmod(0o755)
        for name, file in packages.items():
            shutil.copy2(file, share / name)
        if kind.suite:
            root = root_of(kind.suite)
            kind = dataclasses.replace(kind, words=(*kind.words, "--volatile=overlay"))
        else:
            root = stack.enter_context(this_machine())
        host = Host(kind, root, share)
        stack.callback(host.off)
        if kind.suite:
            host.add_user(USER, "-u", str(UID))
            # The minimal system has the name of the machine that it was made on.
            host.out("hostname", "host")
            host.write("/etc/hosts", "127.0.0.1 localhost host\n")
            host.write(f"/etc/sudoers.d/{USER}", f"{USER} ALL=(ALL) NOPASSWD: ALL\n")
        yield host
