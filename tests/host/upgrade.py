"""From one version of the package to the next, and back, while somebody needs the agent all the time."""

from booted import ADMIN, SERVICE, WORKLOAD, check
from calls import FETCH, Calls
from keys import BEGIN, task
from keys import prepare as prepare_tasks
from package import NEXT, apt, install

HEALED = 5  # seconds after which a call is answered, at most


def prepare(host):
    prepare_tasks(host)


def version(host):
    return host.out("dpkg-query", "-W", "-f", "${Version}", "tether")


def nobody_notices_an_upgrade(host):
    before, pid = version(host), host.main_pid()
    sockets = host.out("stat", "-c", "%i", WORKLOAD, ADMIN)
    with task(host, BEGIN) as (_, prove, _), Calls(host) as calls:
        prove()
        install(host, "/share/tether-next.deb")
        check(version(host) == NEXT and before != NEXT, f"it is {version(host)} after {before}")
        check(host.main_pid() not in (0, pid), "the agent before it goes on")
        prove()
        calls.went_on(within=HEALED)
        print(f"      {calls.answered} calls, {len(calls.failed)} tried again, {calls.longest:.2f} s the longest")
    check(host.out("stat", "-c", "%i", WORKLOAD, ADMIN) == sockets, "other sockets")
    check(host.is_ready(), "it is not ready")


def what_was_edited_is_kept_without_a_question(host):
    host.write("/etc/tether/tether.toml.d/20-mine.toml", '[svid]\nx509_ttl = "20m"\n')
    install(host, "/share/tether-next.deb", "--reinstall")
    shown = host.tether("config", "show", "--origin")
    check("20-mine.toml" in shown and "10-init.toml" in shown, shown)


def a_downgrade_goes_on_or_says_why_not(host):
    said = apt(host, "install", "--allow-downgrades", "/share/tether.deb")
    check(version(host) != NEXT, "it was not done")
    check("older" in said or "downgrad" in said, f"nothing is said of it: {said}")
    if not host.is_active(SERVICE):
        check("newer" in host.journal(SERVICE), f"the log does not say why: {host.journal(SERVICE)}")
        return
    host.out(*FETCH)


def an_upgrade_of_a_stopped_agent_does_not_start_it(host):
    host.out("systemctl", "stop", SERVICE, "tether-agent.socket", "tether-agent-admin.socket")
    install(host, "/share/tether-next.deb")
    check(not host.is_active(SERVICE), "it was started")


CHECKS = [
    nobody_notices_an_upgrade,
    what_was_edited_is_kept_without_a_question,
    a_downgrade_goes_on_or_says_why_not,
    an_upgrade_of_a_stopped_agent_does_not_start_it,
]
