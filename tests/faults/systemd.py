"""A booted systemd whose bus, and which itself, stops answering. The host is that of `tests/host`."""

import os
import signal
import sys
import time

from agent import ROOT, TETHER, Seen, check, until

sys.path.insert(0, str(ROOT / "tests/host"))

CONFIG = 'trust_domain = "faults.test"\n'
# Known from the control group too; and known to systemd alone.
ENTRIES = """
[[entry]]
id = "unit"
spiffe_id = "spiffe://faults.test/unit/{systemd.name}"
match = ["unix:user:daemon", "systemd:unit:by-unit.service"]
owner = "faults"

[[entry]]
id = "file"
spiffe_id = "spiffe://faults.test/file"
match = ["unix:user:daemon", "systemd:fragment_path:/run/systemd/system/by-file.service"]
owner = "faults"
"""
SERVICE = """[Service]
Type=notify
ExecStart=/share/tether agent run --config /etc/tether/tether.toml
RuntimeDirectory=tether
StateDirectory=tether
StateDirectoryMode=0700
"""
# Each time another process, which the agent has never seen.
CALLER = """[Service]
User=daemon
ExecStart=/bin/sh -c 'while :; do /share/tether fetch x509 >/dev/null 2>&1; echo $$? >> /run/NAME/codes; sleep 0.05; done'
RuntimeDirectory=NAME
"""


class Codes:
    """The exit codes of the callers of one unit since the last look."""

    def __init__(self, host, name):
        self.host, self.file, self.seen = host, f"/run/{name}/codes", 0

    def more(self, wanted=5):
        """Waits for so many calls that began after this one did."""
        self.seen = len(self.all()) + 1
        until("calls", lambda: len(self.all()) >= self.seen + wanted, 60)
        return set(self.all()[self.seen :])

    def all(self):
        return self.host.run("cat", self.file).stdout.split()


def systemd_and_its_bus_hang(work):
    """In a booted host: the message bus, and then systemd itself, is stopped in the middle, and goes on later."""
    import booted

    shown = []
    with booted.booted(booted.KINDS["bookworm"], {"tether": TETHER}) as host:
        host.write("/etc/tether/tether.toml", CONFIG)
        host.write("/etc/tether/entries.d/units.toml", ENTRIES)
        host.unit("tether-faults.service", SERVICE)
        host.start("tether-faults.service")
        host.start("dbus.service")
        callers = {}
        for name in ("by-unit", "by-file"):
            host.unit(f"{name}.service", CALLER.replace("NAME", name))
            host.start(f"{name}.service")
            callers[name] = Codes(host, name)
        until("both to be served", lambda: all(codes.all()[-1:] == ["0"] for codes in callers.values()))
        leader = int(host.leader)
        bus = host.run("pidof", "dbus-daemon").stdout.split()
        check(bus, "there is no message bus in the host")
        stops = {
            "the bus": (lambda how: host.run("kill", f"-{how.name[3:]}", *bus)),
            "systemd": (lambda how: os.kill(leader, how)),
        }
        for what, send in stops.items():
            send(signal.SIGSTOP)
            by_unit, by_file = callers["by-unit"].more(), callers["by-file"].more()
            send(signal.SIGCONT)
            check(by_unit == {"0"}, f"{what} is stopped: callers known by their unit end with {by_unit}")
            check("0" not in by_file and "3" not in by_file, f"{what} is stopped: callers known to systemd alone: {by_file}")
            begin = time.monotonic()
            until(f"the recovery from {what}", lambda: callers["by-file"].all()[-1] == "0", 40)
            shown.append(f"{time.monotonic() - begin:.1f} s after {what} goes on")
        log = host.journal("tether-faults.service", 200)
        check("panicked" not in log, log)
    return Seen(
        "callers whose unit the control group tells too are served all the while; what systemd alone knows is Unavailable, and "
        "never another identity",
        "nothing",
        "as above",
        "by itself: " + ", ".join(shown),
    )
