"""Backup and restore: on the host it is of, on one that is new, and who may not."""

import json

from booted import SERVICE, SOCKET_UNIT, USER, check
from calls import FETCH
from keys import plain_keys
from package import DOMAIN, ID, apt, initialised, install

BACKUP, SEALED, PASSPHRASE = "/root/tether.backup", "/root/sealed.backup", "/root/passphrase"


def prepare(host):
    initialised(host)
    host.add_user("anna", "-G", "tether-admin")
    host.entry("everybody", 'match = ["unix:uid:0"]', f'spiffe_id = "{ID}/root"')
    host.shell(f"umask 077; head -c 24 /dev/urandom | base64 > {PASSPHRASE}")
    stored = f'id = "stored"\nspiffe_id = "{ID}/stored"\nmatch = ["unix:uid:4711"]\nowner = "host"\n'
    host.write("/root/stored.toml", stored)
    host.tether("entry", "create", "--file", "/root/stored.toml")


def roots(host):
    """The X.509 roots of the trust domain."""
    return {one["id"] for one in host.read_json("authority", "show")["authorities"] if one["kind"] == "x509-root"}


def restored(host, *words):
    host.out("systemctl", "stop", SOCKET_UNIT, "tether-agent-admin.socket", SERVICE)
    done = host.run("tether", "restore", *words)
    if done.returncode == 0:
        host.out("systemctl", "start", SERVICE)
    return done


# --- the checks --------------------------------------------------------------------------------------------------------


def a_backup_is_for_root_alone(host):
    for user in (USER, "anna"):
        done = host.login("tether", "backup", f"/home/{user}/tether.backup", user=user)
        check(done.returncode != 0, f"{user} has one: {done.stdout}")
        check("root" in done.stderr, f"it does not say who may: {done.stderr}")
        check(host.run("test", "-e", f"/home/{user}/tether.backup").returncode != 0, "something is left of it")


def it_is_taken_while_the_agent_runs_and_nobody_else_can_read_it(host):
    pid = host.main_pid()
    host.tether("backup", BACKUP)
    host.tether("backup", "--passphrase-file", PASSPHRASE, SEALED)
    for file in (BACKUP, SEALED):
        check(host.out("stat", "-c", "%a %U", file).strip() == "600 root", f"{file} is open")
    check(host.main_pid() == pid, "the agent was started anew")


def nothing_is_restored_under_a_running_agent(host):
    done = host.run("tether", "restore", BACKUP)
    check(done.returncode != 0, f"it was: {done.stdout}")
    check("stop" in done.stderr, f"it does not say what to do: {done.stderr}")
    host.out(*FETCH)


def on_its_own_host_it_brings_back_everything_but_what_was_issued(host):
    before = roots(host)
    given = {svid["serial"] for svid in json.loads(host.out(*FETCH))["svids"]}
    host.tether("entry", "delete", "stored")
    done = restored(host, BACKUP)
    check(done.returncode == 0, f"it was not restored: {done.stderr}")
    check(before == roots(host), "other roots")
    host.tether("entry", "show", "stored")
    listed = host.read_json("credential", "list", "--all")["credentials"]
    stands = {one["id"] for one in listed if one["standing"] == "stands"}
    check(not given & stands, "what was issued stands")
    host.out(*FETCH)
    check(plain_keys(host) == [], f"plain keys in {plain_keys(host)}")


def a_new_host_opens_it_with_the_passphrase_alone(host):
    before = roots(host)
    apt(host, "purge", "tether")
    install(host)
    host.tether("init", "--trust-domain", DOMAIN, "--no-entry", "--no-start")
    # Without it the keys are wrapped for the host before this one.
    host.tether("restore", BACKUP)
    done = host.run("systemctl", "start", SERVICE)
    check(done.returncode != 0, "keys that were wrapped for another host are opened")
    check("tether.key-wrapping-key" in host.journal(SERVICE), f"it does not say why: {host.journal(SERVICE)}")
    done = restored(host, "--passphrase-file", PASSPHRASE, SEALED)
    check(done.returncode == 0, f"it was not restored: {done.stderr}")
    check(before == roots(host), "other roots")
    host.entry("everybody", 'match = ["unix:uid:0"]', f'spiffe_id = "{ID}/root"')
    host.out(*FETCH)
    host.tether("entry", "show", "stored")
    # What came as it is inside was wrapped for this host at the start.
    host.shell("rm -rf /var/lib/tether/before-restore-*")
    check(plain_keys(host) == [], f"plain keys in {plain_keys(host)}")
    host.tether("audit", "verify")


CHECKS = [
    a_backup_is_for_root_alone,
    it_is_taken_while_the_agent_runs_and_nobody_else_can_read_it,
    nothing_is_restored_under_a_running_agent,
    on_its_own_host_it_brings_back_everything_but_what_was_issued,
    a_new_host_opens_it_with_the_passphrase_alone,
]
