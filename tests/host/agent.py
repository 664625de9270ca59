"""The agent as the package runs it: activation, reload, watchdog, log, privileges, and what its drop-ins open."""

import json
import time

from booted import ADMIN, SERVICE, SOCKET_UNIT, WORKLOAD, Failure, check, until
from calls import FETCH, Calls
from package import ID, initialised

EXPOSURE = 2.0  # of `systemd-analyze security`, at most
CAPABILITIES = {"cap_sys_ptrace": 19, "cap_dac_read_search": 2}
DROP_INS = "/usr/share/tether/tether-agent.service.d"
HTTP = "127.0.0.1:9466"

# A client that is only bytes: it connects, sends what begins an HTTP/2 connection, says so, and tells which frames come.
QUEUED = r"""
use Socket; $| = 1;
socket(my $s, AF_UNIX, SOCK_STREAM, 0) or die "socket: $!";
connect($s, pack_sockaddr_un($ARGV[0])) or die "connect: $!";
syswrite($s, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" . pack("H*", "000000040000000000"));
print "sent\n";
my ($all, $part, %seen) = ("");
while (!$seen{"settings acknowledged"} && sysread($s, $part, 65536)) {
    $all .= $part;
    while (length($all) >= 9) {
        my ($high, $low, $kind, $flags) = unpack("CnCC", $all);
        my $length = 9 + $high * 65536 + $low;
        last if length($all) < $length;
        $seen{$kind == 4 ? ($flags & 1 ? "settings acknowledged" : "settings") : $kind == 7 ? "goaway" : "other"} = 1;
        $all = substr($all, $length);
    }
}
print join(",", sort keys %seen), "\n";
"""

# Connects, says as much as is wanted, and nothing ever again.
SILENT = r"""
use Socket; $| = 1;
socket(my $s, AF_UNIX, SOCK_STREAM, 0) or die "socket: $!";
connect($s, pack_sockaddr_un($ARGV[0])) or die "connect: $!";
syswrite($s, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" . pack("H*", "000000040000000000")) if $ARGV[1] eq "http2";
print "there\n"; sleep 600;
"""

ENTRY = ('match = ["unix:uid:0"]', f'spiffe_id = "{ID}/root"', 'audiences = ["*"]')


def prepare(host):
    initialised(host)
    host.entry("root", *ENTRY)


def status_of(host, pid):
    lines = host.out("cat", f"/proc/{pid}/status").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def journal_records(host, *matches):
    lines = host.out("journalctl", "-q", "-o", "json", "-u", SERVICE, *matches).splitlines()
    return [json.loads(line) for line in lines]


# --- the checks --------------------------------------------------------------------------------------------------------


def the_first_connection_starts_the_agent(host):
    host.out("systemctl", "stop", SERVICE)
    check(host.is_active(SOCKET_UNIT), "the socket went with the agent")
    host.out(*FETCH)
    check(host.is_active(SERVICE), "the agent did not start")


def bytes_that_were_there_before_the_agent_are_answered(host):
    host.out("systemctl", "stop", SERVICE)
    # Nothing is read before /run/go is there.
    host.drop_in("late", "[Service]\nExecStartPre=+/bin/sh -c 'until test -e /run/go; do sleep 0.05; done'\nNoExecPaths=\n")
    host.write("/run/queued.pl", QUEUED)
    with host.in_background("perl", "/run/queued.pl", WORKLOAD) as raw, host.in_background(*FETCH) as fetch:
        check(raw.stdout.readline() == "sent\n", "it could not connect")
        until("the start", lambda: host.show(SERVICE, "SubState") == "start-pre")
        host.out("touch", "/run/go")
        got = raw.stdout.readline().strip().split(",")
        check("settings acknowledged" in got and "goaway" not in got, f"the answer is {got}")
        output, errors = fetch.communicate()
        check(fetch.returncode == 0, f"`tether fetch` ended with {fetch.returncode}: {errors}{output}")
    host.no_drop_in("late")


def both_sockets_are_those_of_systemd(host):
    def inodes():
        return host.out("stat", "-c", "%i", WORKLOAD, ADMIN)

    before = inodes()
    host.out("systemctl", "restart", SERVICE)
    check(inodes() == before, "the agent made sockets of its own")
    host.crash()
    check(inodes() == before, "a crash takes the sockets away")


def clients_that_say_nothing_do_not_hold_up_a_restart(host):
    host.write("/run/silent.pl", SILENT)
    host.drop_in("drain", "[Service]\nTimeoutStopSec=90s\n")
    host.write("/etc/tether/tether.toml.d/60-drain.toml", '[limits]\ndrain = "60s"\n')
    host.out("systemctl", "restart", SERVICE)
    for said in ("nothing", "http2"):
        with host.in_background("perl", "/run/silent.pl", WORKLOAD, said) as silent:
            check(silent.stdout.readline() == "there\n", "it could not connect")
            since = time.monotonic()
            host.out("systemctl", "restart", SERVICE)
            check(time.monotonic() - since < 30, f"it waited for a client that says {said}")
    host.no_drop_in("drain")
    host.out("rm", "/etc/tether/tether.toml.d/60-drain.toml")
    host.out("systemctl", "restart", SERVICE)


def a_reload_with_good_files_succeeds(host):
    pid = host.main_pid()
    host.out("systemctl", "reload", SERVICE)
    check(host.main_pid() == pid, "it was started anew")


def a_reload_with_a_broken_file_fails_and_says_where(host):
    for path, broken in (
        ("/etc/tether/entries.d/broken.toml", "[[entry]]\nid = \n"),
        ("/etc/tether/policies/broken.cedar", "permit (principal, action"),
    ):
        host.write(path, broken)
        done = host.run("systemctl", "reload", SERVICE)
        log = host.journal(SERVICE)
        check(done.returncode != 0, f"`systemctl reload` succeeds with a broken {path}")
        check(f"{path}:" in log, f"the log does not say where in {path}: {log}")
        check(host.is_active(SERVICE), "the agent is gone")
        host.out(*FETCH)
        host.out("rm", path)
        host.out("systemctl", "reload", SERVICE)


def a_start_with_a_broken_configuration_says_where(host):
    path = "/etc/tether/tether.toml.d/99-broken.toml"
    host.write(path, "[limits]\nno_such_setting = 1\n")
    done = host.run("systemctl", "restart", SERVICE)
    check(done.returncode != 0, "it starts with a setting that does not exist")
    check(f"{path}:2" in host.journal(SERVICE), f"the log does not say where: {host.journal(SERVICE)}")
    with host.in_background(*FETCH) as waits:
        host.out("rm", path)
        # Nobody has to start it: it is tried again.
        output, errors = waits.communicate(timeout=60)
        check(waits.returncode == 0, f"who connected meanwhile got {waits.returncode}: {errors}{output}")


def an_agent_that_keeps_crashing_does_not_lose_the_sockets(host):
    host.drop_in("crash", "[Service]\nExecStart=\nExecStart=/usr/bin/tether agent no-such-command\nRestartSec=50ms\n")
    host.run("systemctl", "restart", SERVICE)
    with host.in_background(*FETCH) as waits:
        until("twenty crashes", lambda: int(host.show(SERVICE, "NRestarts")) >= 20, patience=120)
        for unit in (SOCKET_UNIT, "tether-agent-admin.socket"):
            check(host.is_active(unit), f"{unit} is gone")
        check(waits.poll() is None, "who connected meanwhile was sent away")
        host.no_drop_in("crash")
        output, errors = waits.communicate(timeout=60)
        check(waits.returncode == 0, f"who connected meanwhile got {waits.returncode}: {errors}{output}")
    until("the agent", lambda: host.is_ready())


def an_agent_that_hangs_is_killed_by_the_watchdog_and_clients_go_on(host):
    check(int(host.show(SERVICE, "WatchdogUSec").rstrip("smin") or 0) > 0, "the unit has no watchdog")
    host.drop_in("watchdog", "[Service]\nWatchdogSec=2s\n")
    host.out("systemctl", "restart", SERVICE)
    with Calls(host) as calls:
        pid, restarts = host.main_pid(), int(host.show(SERVICE, "NRestarts"))
        host.out("kill", "-STOP", pid)
        until("the end of what hangs", lambda: int(host.show(SERVICE, "NRestarts")) > restarts)
        until("the next agent", lambda: host.main_pid() not in (0, pid) and host.is_active(SERVICE))
        # What it hung for counts too.
        calls.went_on(within=2 + 13)
    check("watchdog" in host.journal(SERVICE, 2000).lower(), "the log does not say why")
    host.no_drop_in("watchdog")
    host.out("systemctl", "restart", SERVICE)


def what_is_logged_can_be_asked_for_by_field(host):
    host.out(*FETCH)
    records = until("its records", lambda: journal_records(host))
    fields = {name for record in records for name in record if name.startswith("TETHER_")}
    check(fields, "no record has a field of ours")
    for record in records:
        if any(name.startswith("TETHER_") for name in record):
            check("PRIORITY" in record and record["MESSAGE"], record)
            check(not record["MESSAGE"].startswith(("{", "20")), f"a time or JSON in the message: {record['MESSAGE']}")
            check(record["SYSLOG_IDENTIFIER"] == "tether", record)
    print(f"      fields: {' '.join(sorted(fields))}")
    # Each is found by its value.
    name = sorted(fields)[0]
    value = next(record[name] for record in records if name in record)
    check(journal_records(host, f"{name}={value}"), f"nothing is found by {name}={value}")


def it_has_two_capabilities_and_no_way_to_more(host):
    pid = host.main_pid()
    status = status_of(host, pid)
    allowed = sum(1 << bit for bit in CAPABILITIES.values())
    for name in ("CapEff", "CapPrm", "CapBnd"):
        check(int(status[name], 16) & ~allowed == 0, f"{name} is {status[name]}")
    check(status["NoNewPrivs"] == "1", "it could gain privileges by exec")
    check(status["Seccomp"] == "2", "it has no system call filter")
    uid = host.out("id", "-u", "tether").strip()
    check(status["Uid"].split() == [uid] * 4, f"it runs as {status['Uid']}")
    # The files of a process that is not dumpable are root's.
    check(host.out("stat", "-c", "%u", f"/proc/{pid}/environ").strip() == "0", "it is dumpable")
    limits = host.out("cat", f"/proc/{pid}/limits")
    check([line.split()[4:6] for line in limits.splitlines() if line.startswith("Max core file")] == [["0", "0"]], limits)


def nothing_else_can_be_executed_in_it(host):
    pid = host.main_pid()
    done = host.run("nsenter", "-t", pid, "-m", "/bin/true")
    check(done.returncode != 0, "its mount namespace has programs to run")


def its_state_is_its_own(host):
    check(host.out("stat", "-c", "%a %U", "/var/lib/tether").strip() == "700 tether", "/var/lib/tether is open")
    loose = host.out("find", "/var/lib/tether", "-type", "f", "-perm", "/077")
    check(not loose.strip(), f"others may read {loose}")


def systemd_finds_little_to_say_about_its_exposure(host):
    said = host.out("systemd-analyze", "security", "--no-pager", SERVICE)
    line = next(line for line in said.splitlines() if "Overall exposure" in line)
    figure = float(line.split(":")[1].split()[0])
    print(f"      {line.split('Overall')[1].strip()}")
    check(figure <= EXPOSURE, line)


def without_the_drop_in_there_is_no_network(host):
    host.write("/etc/tether/tether.toml.d/50-http.toml", f'[http]\naddress = "{HTTP}"\n')
    done = host.run("systemctl", "restart", SERVICE)
    if done.returncode == 0:
        check(host.run("perl", "-MIO::Socket::INET", "-e", f"IO::Socket::INET->new('{HTTP}') or exit 1").returncode != 0, "it listens")
    check("http" in host.journal(SERVICE), "the log does not say what is missing")
    check("http.conf" in host.journal(SERVICE), f"the log does not name the drop-in: {host.journal(SERVICE)}")


def the_drop_in_opens_the_loopback_device(host):
    there = f"/etc/systemd/system/{SERVICE}.d"
    host.shell(f"mkdir -p {there}; ln -s {DROP_INS}/http.conf {there}/; systemctl daemon-reload; systemctl restart {SERVICE}")
    ask = f"$s = IO::Socket::INET->new('{HTTP}') or die $@; print $s \"GET /readyz HTTP/1.0\\r\\n\\r\\n\"; print scalar <$s>"
    answer = host.out("perl", "-MIO::Socket::INET", "-e", ask)
    check(" 200 " in answer, f"/readyz answers {answer}")
    host.shell(f"rm {there}/http.conf /etc/tether/tether.toml.d/50-http.toml; systemctl daemon-reload; systemctl restart {SERVICE}")


CHECKS = [
    the_first_connection_starts_the_agent,
    bytes_that_were_there_before_the_agent_are_answered,
    both_sockets_are_those_of_systemd,
    clients_that_say_nothing_do_not_hold_up_a_restart,
    a_reload_with_good_files_succeeds,
    a_reload_with_a_broken_file_fails_and_says_where,
    a_start_with_a_broken_configuration_says_where,
    an_agent_that_keeps_crashing_does_not_lose_the_sockets,
    an_agent_that_hangs_is_killed_by_the_watchdog_and_clients_go_on,
    what_is_logged_can_be_asked_for_by_field,
    it_has_two_capabilities_and_no_way_to_more,
    nothing_else_can_be_executed_in_it,
    its_state_is_its_own,
    systemd_finds_little_to_say_about_its_exposure,
    without_the_drop_in_there_is_no_network,
    the_drop_in_opens_the_loopback_device,
]
