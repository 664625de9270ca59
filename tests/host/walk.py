"""What the person does who installs the package, in order: from nothing to the first SVID, services, and away with it."""

import json

from booted import ADMIN, SERVICE, SOCKET_UNIT, UID, USER, WORKLOAD, check, until
from calls import FETCH
from package import DOMAIN, ID, apt, install

UNITS = [SERVICE, SOCKET_UNIT, "tether-agent-admin.socket", "tether-agent-credentials.socket"]
NO_IDENTITY = 3
DENIED = 6


def ids(text):
    return [svid["spiffe_id"] for svid in json.loads(text)["svids"]]


def fetched_by(host, unit, *more):
    """The identities that a transient service gets."""
    return ids(host.out("systemd-run", "-q", "--wait", "--pipe", "--collect", f"--unit={unit}", *more, *FETCH))


def prepare(_host):
    """Nothing: this begins with a host that has never seen the package."""


def installing_starts_nothing(host):
    install(host)
    for unit in UNITS:
        check(not host.is_active(unit), f"{unit} was started")
        state = host.run("systemctl", "is-enabled", unit).stdout.strip()
        check(state in ("disabled", "indirect", "static"), f"{unit} is {state}")
    check(host.run("test", "-e", WORKLOAD).returncode != 0, f"{WORKLOAD} is there")
    check(host.run("systemctl", "--failed", "--quiet").stdout.strip() == "", "a unit has failed")


def what_a_package_brings_is_where_it_belongs(host):
    files = host.out("dpkg", "-L", "tether").splitlines()
    for file in (
        "/usr/bin/tether",
        *(f"/usr/lib/systemd/system/{unit}" for unit in UNITS),
        "/usr/share/man/man1/tether.1.gz",
        "/usr/share/bash-completion/completions/tether",
        "/usr/share/doc/tether/copyright",
    ):
        check(file in files and host.run("test", "-e", file).returncode == 0, f"{file} is not there")
    conffiles = host.out("dpkg-query", "-W", "-f", "${Conffiles}", "tether")
    check("/etc/tether/tether.toml" in conffiles, f"conffiles: {conffiles}")
    host.out("getent", "passwd", "tether")
    for group in ("tether", "tether-admin"):
        host.out("getent", "group", group)


def an_agent_that_is_not_set_up_says_what_to_do(host):
    done = host.login(*FETCH)
    check(done.returncode == 4, f"`tether fetch` ended with {done.returncode}: {done.stderr}")
    check("init" in done.stderr or "systemctl" in done.stderr, f"it does not say what to do: {done.stderr}")
    done = host.run("systemctl", "start", SERVICE)
    if done.returncode != 0:
        log = host.journal(SERVICE)
        check("tether init" in log or "trust_domain" in log, f"the journal does not say what to do: {log}")
    host.run("systemctl", "stop", *UNITS)
    host.run("systemctl", "reset-failed")


def three_commands_lead_to_the_first_svid(host):
    said = host.as_user("sudo", "tether", "init", "--trust-domain", DOMAIN)
    check("tether fetch x509" in said, f"`tether init` does not say what comes next: {said}")
    got = ids(host.as_user(*FETCH))
    check(got and all(id.startswith(f"{ID}/") for id in got), f"{USER} is {got}")
    for unit in (SERVICE, SOCKET_UNIT):
        check(host.is_active(unit), f"{unit} is not active")
        check(host.run("systemctl", "is-enabled", "-q", unit).returncode == 0, f"{unit} is not enabled")


def setting_up_twice_changes_nothing(host):
    everything = "find /etc/tether /etc/credstore.encrypted -type f -exec sha256sum {} + | sort"
    before, pid = host.shell(everything), host.main_pid()
    again = host.as_user("sudo", "tether", "init", "--trust-domain", DOMAIN)
    check(host.shell(everything) == before, "files are not what they were")
    check(host.main_pid() == pid, "the agent was started anew")
    check("nothing" in again.lower() or "already" in again.lower(), f"it does not say so: {again}")


def another_trust_domain_is_refused_once_there_is_one(host):
    done = host.login("sudo", "tether", "init", "--trust-domain", "another.example")
    check(done.returncode != 0, f"it was changed: {done.stdout}")
    check(DOMAIN in done.stderr, f"it does not name the one there is: {done.stderr}")


def status_tells_what_there_is_and_what_is_weaker(host):
    said = host.as_user("sudo", "tether", "status")
    check(DOMAIN in said, said)
    shown = host.read_json("status")
    check(shown["trust_domain"] == DOMAIN, shown)
    host.out("tether", "doctor")


def operators_are_a_group(host):
    done = host.login("tether", "entry", "list")
    check(done.returncode == DENIED, f"{USER}, who is in no group, got {done.returncode}: {done.stdout}{done.stderr}")
    check("[admin]" in done.stderr, f"it does not say which group it takes: {done.stderr}")
    host.add_user("anna", "-G", "tether-admin")
    host.as_user("tether", "entry", "list", user="anna")


def a_service_with_a_dynamic_user_fetches(host):
    host.entry("dynamic", f'spiffe_id = "{ID}/unit/{{systemd.name}}"', 'match = ["systemd:unit:dynamic.service"]', 'unless = ["unix:uid:0"]')
    got = fetched_by(host, "dynamic", "-p", "DynamicUser=yes")
    check(got == [f"{ID}/unit/dynamic"], f"it is {got}")


def a_service_without_an_entry_gets_nothing(host):
    done = host.run("systemd-run", "-q", "--wait", "--pipe", "--collect", "-p", "DynamicUser=yes", *FETCH)
    check(done.returncode == NO_IDENTITY, f"it ended with {done.returncode}: {done.stdout}{done.stderr}")


def an_entry_file_is_in_force_when_it_is_saved(host):
    match = 'match = ["systemd:unit:later.service"]'
    host.entry("later", f'spiffe_id = "{ID}/first"', match)
    check(fetched_by(host, "later") == [f"{ID}/first"], "it does not get what the file says")
    host.write("/etc/tether/entries.d/later.toml", f'[[entry]]\nid = "later"\nowner = "host"\nspiffe_id = "{ID}/second"\n{match}\n')
    until("the change", lambda: fetched_by(host, "later") == [f"{ID}/second"])
    host.out("rm", "/etc/tether/entries.d/later.toml")
    until("the removal", lambda: host.run("tether", "entry", "show", "later").returncode != 0)


def instances_of_a_template_are_told_apart(host):
    host.entry("template", f'spiffe_id = "{ID}/{{systemd.prefix}}/{{systemd.instance}}"', 'match = ["systemd:prefix:shop", "unix:user:daemon"]')
    host.service("shop@", "Type=oneshot\nUser=daemon\nRuntimeDirectory=shop-%i\nRuntimeDirectoryPreserve=yes\n"
                 f"ExecStart=/bin/sh -c '{' '.join(FETCH)} > /run/shop-%i/got'\n")  # fmt: skip
    for instance in ("berlin", "oslo"):
        host.start(f"shop@{instance}.service")
        got = ids(host.out("cat", f"/run/shop-{instance}/got"))
        check(got == [f"{ID}/shop/{instance}"], f"shop@{instance} is {got}")


def units_of_a_user_are_told_apart(host):
    match = f'match = ["systemd:user_unit:task.service", "unix:uid:{UID}"]'
    host.entry("user-unit", f'spiffe_id = "{ID}/task"', match)
    inside = ["systemd-run", "--user", "-q", "--wait", "--pipe", "--collect"]
    got = ids(host.as_user(*inside, "--unit=task", *FETCH))
    check(f"{ID}/task" in got, f"task.service of {USER} is {got}")
    got = ids(host.as_user(*inside, "--unit=other", *FETCH))
    check(f"{ID}/task" not in got, "another unit of the same user has its identity")
    # It goes on when the user has logged out, which is what lingering is for.
    host.as_user(*inside[:3], "--collect", "--unit=task", "sh", "-c", "tether fetch x509 --watch --output json > ~/watched")
    until("its SVID", lambda: host.run("test", "-s", f"/home/{USER}/watched").returncode == 0)
    host.as_user("systemctl", "--user", "stop", "--no-block", "task")


def a_service_of_another_user_with_the_same_name_is_not_it(host):
    host.add_user("other")
    inside = ["systemd-run", "--user", "-q", "--wait", "--pipe", "--collect", "--unit=task", *FETCH]
    done = host.login(*inside, user="other")
    check(done.returncode == NO_IDENTITY, f"it ended with {done.returncode}: {done.stdout}")


def removing_keeps_the_state(host):
    kept = json.loads(host.tether("authority", "show", "--output", "json"))
    apt(host, "remove", "tether")
    for unit in UNITS:
        check(not host.is_active(unit), f"{unit} goes on")
    check(host.run("test", "-e", WORKLOAD).returncode != 0, f"{WORKLOAD} is there")
    check(host.run("test", "-e", ADMIN).returncode != 0, f"{ADMIN} is there")
    for path in ("/var/lib/tether", "/etc/tether/tether.toml", "/etc/tether/entries.d/dynamic.toml"):
        check(host.run("test", "-e", path).returncode == 0, f"{path} is gone")
    install(host)
    host.out("systemctl", "enable", "--now", SOCKET_UNIT, SERVICE)
    again = json.loads(host.tether("authority", "show", "--output", "json"))
    check([one["id"] for one in kept["authorities"]] == [one["id"] for one in again["authorities"]], "other authorities")
    ids(host.as_user(*FETCH))


def purging_removes_everything(host):
    apt(host, "purge", "tether")
    left = host.shell("find / -xdev -ipath '*tether*' -not -path '/proc/*' -not -path '/sys/*' -not -path '/share/*' -not -path '/var/log/journal/*'")
    allowed = ("/var/lib/dpkg/", "/var/log/", "/var/cache/apt/")
    left = [path for path in left.splitlines() if not path.startswith(allowed)]
    check(not left, f"left behind: {left}")
    host.out("systemctl", "daemon-reload")
    check(host.run("systemctl", "cat", SERVICE).returncode != 0, "the unit is still known")


CHECKS = [
    installing_starts_nothing,
    what_a_package_brings_is_where_it_belongs,
    an_agent_that_is_not_set_up_says_what_to_do,
    three_commands_lead_to_the_first_svid,
    setting_up_twice_changes_nothing,
    another_trust_domain_is_refused_once_there_is_one,
    status_tells_what_there_is_and_what_is_weaker,
    operators_are_a_group,
    a_service_with_a_dynamic_user_fetches,
    a_service_without_an_entry_gets_nothing,
    an_entry_file_is_in_force_when_it_is_saved,
    instances_of_a_template_are_told_apart,
    units_of_a_user_are_told_apart,
    a_service_of_another_user_with_the_same_name_is_not_it,
    removing_keeps_the_state,
    purging_removes_everything,
]
