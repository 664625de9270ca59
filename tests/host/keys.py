"""Keys that the agent holds and keys that it stores: over restarts and crashes, and at rest."""

import contextlib
import json
import pathlib

from booted import SERVICE, Failure, check
from calls import FETCH
from package import ID, initialised

URI = "https://api.example.org/notes"
POLICY = """
@id("tasks")
permit (principal, action, resource) when { context has purpose && context.purpose == "host/test" };
"""
# Proves a request for each line that it reads.
PROVER = """#!/bin/sh
test "$1" = begin && export TETHER_SESSION=$(tether session start --pid $$ --scope tree --purpose host/test --target $2)
echo "$TETHER_SESSION"
while read uri; do tether prove --method GET --uri "$uri" | tr -d '\\n'; echo; done
"""
TARGET = "https://api.example.org/"
RUN = ["tether", "run", "--purpose", "host/test", "--target", TARGET, "--", "/usr/local/bin/prover"]
BEGIN = ["/usr/local/bin/prover", "begin", TARGET]
# What every unencrypted P-256 key has in it, in PKCS#8: the algorithm, then the octets of the key. A certificate has other
# octets after the algorithm.
PLAIN_KEYS = (bytes.fromhex("06072a8648ce3d020106082a8648ce3d03010704"), b"PRIVATE KEY-----")
NO_CREDENTIAL = "[Service]\nLoadCredentialEncrypted=\n"


def prepare(host):
    initialised(host)
    host.entry("asker", 'match = ["unix:uid:0"]', f'spiffe_id = "{ID}/tool"', f'serves = ["{TARGET}"]', 'audiences = ["*"]', 'bind = "node"')
    host.write("/etc/tether/policies/tasks.cedar", POLICY)
    host.write("/usr/local/bin/prover", PROVER)
    host.out("chmod", "755", "/usr/local/bin/prover")
    host.out("systemctl", "reload", SERVICE)


@contextlib.contextmanager
def task(host, command):
    """A person's task, and a function that has it prove a request and asks the agent whether that is good."""
    with host.in_background(*host.logged_in(*command)) as child:
        session = child.stdout.readline().strip()
        if not session:
            raise Failure(f"no session: {child.communicate()[1]}")

        def prove():
            headers = ""
            with contextlib.suppress(BrokenPipeError):
                child.stdin.write(URI + "\n")
                child.stdin.flush()
                headers = child.stdout.readline()
            if not headers.strip():
                child.kill()
                raise Failure(f"no proof: {child.stderr.read()}")
            answer = json.loads(host.run("tether", "verify", "--method", "GET", "--uri", URI, text=headers).stdout)
            check(answer["active"] and answer["session"] == session, f"the proof is not good: {answer['reason']}")
            return headers

        yield session, prove, child


def plain_keys(host):
    """The files in the agent's state that have a key in them for whoever reads them."""
    state = pathlib.Path(f"/proc/{host.leader}/root/var/lib/tether")
    files = [path for path in state.rglob("*") if path.is_file()]
    check(files, "the agent has no state")
    return [str(path.relative_to(state)) for path in files if any(key in path.read_bytes() for key in PLAIN_KEYS)]


# --- the checks --------------------------------------------------------------------------------------------------------


def a_task_goes_on_over_a_restart(host):
    with task(host, BEGIN) as (_, prove, _):
        prove()
        host.out("systemctl", "restart", SERVICE)
        prove()


def a_task_goes_on_over_a_crash(host):
    with task(host, BEGIN) as (_, prove, _):
        prove()
        host.crash()
        prove()
        # And over another one, of an agent that had what it has from the one before.
        host.crash()
        prove()


def a_command_of_tether_run_goes_on_over_both(host):
    with task(host, RUN) as (_, prove, child):
        prove()
        host.out("systemctl", "restart", SERVICE)
        prove()
        host.crash()
        prove()
        child.stdin.close()
        said = child.stderr.read()
        check("not measured" not in said, f"it is not measured: {said}")


def a_task_that_ended_does_not_come_back(host):
    with task(host, RUN) as (session, prove, child):
        headers = prove()
        child.stdin.close()
        check(child.wait(timeout=30) == 0, f"`tether run` ended with {child.returncode}: {child.stderr.read()}")
    for again in (lambda: None, lambda: host.out("systemctl", "restart", SERVICE), host.crash):
        again()
        standing = [one["id"] for one in host.read_json("session", "list", "--admin")["sessions"] if one["state"] != "ended"]
        check(session not in standing, "it stands again")
        done = host.run("tether", "verify", "--method", "GET", "--uri", URI, text=headers)
        check(not json.loads(done.stdout)["active"], "a proof of it is good")


def no_key_that_is_held_reaches_the_disk(host):
    with task(host, BEGIN) as (_, prove, _):
        prove()
        check(plain_keys(host) == [], f"plain keys in {plain_keys(host)}")


def what_was_revoked_stays_revoked(host):
    host.tether("fetch", "jwt", "--audience", "host")
    jwt = host.read_json("credential", "list", "--kind", "jwt")["credentials"][0]["id"]
    host.tether("credential", "revoke", "--jti", jwt, "--reason", "test")
    for again in (lambda: host.out("systemctl", "restart", SERVICE), host.crash):
        again()
        listed = host.read_json("credential", "list", "--kind", "jwt")["credentials"]
        check(jwt not in [one["id"] for one in listed], "it stands again")
    host.tether("audit", "verify")


def keys_of_authorities_are_wrapped_at_rest(host):
    check(host.run("test", "-s", "/etc/credstore.encrypted/tether.key-wrapping-key").returncode == 0, "there is no wrapping key")
    check(plain_keys(host) == [], f"plain keys in {plain_keys(host)}")


def without_the_wrapping_key_the_agent_says_why_it_does_not_start(host):
    host.drop_in("no-credential", NO_CREDENTIAL)
    done = host.run("systemctl", "restart", SERVICE)
    log = host.journal(SERVICE, lines=15)
    check(done.returncode != 0, "it starts with keys that it cannot read")
    check("tether.key-wrapping-key" in log, f"the log does not name the credential: {log}")
    host.no_drop_in("no-credential")
    host.out("systemctl", "restart", SERVICE)
    host.out(*FETCH)


def keys_that_were_plain_are_wrapped_when_there_is_a_wrapping_key(host):
    host.drop_in("no-credential", NO_CREDENTIAL)
    host.shell(f"systemctl stop {SERVICE}; rm -rf /var/lib/tether/*; systemctl start {SERVICE}")
    check(plain_keys(host), "this test does not find plain keys where there are some")
    check("wrap" in host.tether("status"), "`tether status` does not say that keys are plain")
    authorities = host.read_json("authority", "show")["authorities"]
    host.no_drop_in("no-credential")
    host.out("systemctl", "restart", SERVICE)
    check(plain_keys(host) == [], f"plain keys in {plain_keys(host)}")
    again = host.read_json("authority", "show")["authorities"]
    check([one["id"] for one in again] == [one["id"] for one in authorities], "other authorities")


CHECKS = [
    a_task_goes_on_over_a_restart,
    a_task_goes_on_over_a_crash,
    a_command_of_tether_run_goes_on_over_both,
    a_task_that_ended_does_not_come_back,
    no_key_that_is_held_reaches_the_disk,
    what_was_revoked_stays_revoked,
    keys_of_authorities_are_wrapped_at_rest,
    without_the_wrapping_key_the_agent_says_why_it_does_not_start,
    keys_that_were_plain_are_wrapped_when_there_is_a_wrapping_key,
]
