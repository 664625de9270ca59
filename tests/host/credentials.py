"""SVIDs as systemd credentials: units get them from the agent, and liars do not. See docs/systemd-credentials.md."""

import base64
import json
import pathlib
import re
import subprocess
import tempfile
import time

from booted import SERVICE, check, until
from package import DOMAIN, initialised

SOCKET = "/run/tether/credentials.sock"
NAMES = ["svid.pem", "svid_key.pem", "svid-with-key.pem", "bundle.pem", "tls.crt", "tls.key", "ca.crt", "crl.pem", "jwt"]
AUDIENCE = "https://api.example.com/v1"
JWT_NAME = "jwt-https%3A%2F%2Fapi.example.com%2Fv1"

CONFIG = f"""
[listen]
credentials = "{SOCKET}"
"""

ENTRIES = f"""
[[entry]]
id = "web"
spiffe_id = "spiffe://{DOMAIN}/unit/{{systemd.name}}"
match = ["systemd:unit:web.service", "unix:user:daemon"]
owner = "host"
bind = "unit"
exportable = true
credential_ttl = "2h"
audiences = ["{AUDIENCE}"]

[[entry]]
id = "dynamic"
spiffe_id = "spiffe://{DOMAIN}/unit/{{systemd.name}}"
match = ["systemd:unit:dynamic.service", "systemd:slice:system.slice"]
unless = ["unix:uid:0"]
owner = "host"
bind = "unit"
exportable = true

[[entry]]
id = "kept"
spiffe_id = "spiffe://{DOMAIN}/unit/kept"
match = ["systemd:unit:kept.service"]
owner = "host"
bind = "unit"

[[entry]]
id = "program"
spiffe_id = "spiffe://{DOMAIN}/unit/program"
match = ["systemd:unit:program.service", "unix:path:/bin/sleep"]
owner = "host"
bind = "unit"
exportable = true

[[entry]]
id = "root"
spiffe_id = "spiffe://{DOMAIN}/unit/root"
match = ["systemd:unit:root.service", "unix:uid:0"]
owner = "host"
bind = "unit"
exportable = true
"""

NOTHING = "refusal and 0 bytes\n"

# Binds the kind of address that systemd binds, asks, and prints how many bytes come back that are not zero: a refusal is
# a great many zeros.
LIAR = r"""
use Socket;
socket(my $s, AF_UNIX, SOCK_STREAM, 0) or die "socket: $!";
bind($s, pack_sockaddr_un("\0" . $ARGV[1])) or die "bind: $!";
connect($s, pack_sockaddr_un($ARGV[0])) or do { print "refused: $!\n"; exit 0 };
my $all = ""; while (sysread($s, my $part, 65536)) { $all .= $part }
my $refusal = length($all) > 1024 * 1024; $all =~ tr/\0//d;
print $refusal ? "refusal and " : "", length($all), " bytes\n";
"""


# --- what a unit got ---------------------------------------------------------------------------------------------------


def openssl(*words, text=None):
    done = subprocess.run(["openssl", *words], input=text, capture_output=True, text=True, check=False)
    check(done.returncode == 0, f"openssl {words[0]}: {done.stderr}")
    return done.stdout


def claims_of(token):
    part = token.split(".")[1]
    return json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))


class Set:
    """The credentials that a unit copied to `/run/UNIT`."""

    def __init__(self, host, unit, names):
        self.of = {name: host.out("cat", f"/run/{unit}/{name}") for name in names}
        self.dir = pathlib.Path(tempfile.mkdtemp(dir=host.share))
        for name, text in self.of.items():
            (self.dir / name).write_text(text)

    def path(self, name):
        return str(self.dir / name)

    def serial(self):
        return openssl("x509", "-in", self.path("svid.pem"), "-noout", "-serial").strip().partition("=")[2].lower()

    def spiffe_ids(self):
        return re.findall(r"URI:(\S+)", openssl("x509", "-in", self.path("svid.pem"), "-noout", "-ext", "subjectAltName"))

    def is_coherent(self):
        public = openssl("pkey", "-in", self.path("svid_key.pem"), "-pubout")
        check(public == openssl("x509", "-in", self.path("svid.pem"), "-noout", "-pubkey"), "key and certificate differ")
        bundle, leaf = self.path("bundle.pem"), self.path("svid.pem")
        verified = openssl("verify", "-x509_strict", "-CAfile", bundle, "-untrusted", leaf, leaf)
        check(verified.strip().endswith(": OK"), verified)


def load(names):
    # A per cent sign stands for itself when it is doubled.
    return "".join(f"LoadCredential={name.replace('%', '%%')}:{SOCKET}\n" for name in names)


def revoked(host, serial):
    crl = host.tether("bundle", "export", "--format", "crl")
    blocks = re.findall(r"-----BEGIN X509 CRL-----.*?-----END X509 CRL-----\n", crl, re.S)
    return any(re.search(rf"Serial Number: 0*{serial}\b", openssl("crl", "-noout", "-text", text=block), re.I) for block in blocks)


def copying(unit, names, more):
    copy = f"/bin/sh -c 'cp $CREDENTIALS_DIRECTORY/* /run/{unit}/'"
    return f"{load(names)}RuntimeDirectory={unit}\n{more.replace('COPY', copy)}"


# --- the checks --------------------------------------------------------------------------------------------------------


def a_unit_with_a_user_gets_one_coherent_set(host):
    names = [*NAMES, JWT_NAME]
    host.service("web", copying("web", names, "Type=oneshot\nRemainAfterExit=yes\nUser=daemon\nExecStart=COPY\n"))
    host.start("web.service")
    first = Set(host, "web", names)
    first.is_coherent()
    check(first.spiffe_ids() == [f"spiffe://{DOMAIN}/unit/web"], f"another identity: {first.spiffe_ids()}")
    check(first.of["svid.pem"] == first.of["tls.crt"], "svid.pem and tls.crt differ")
    check(first.of["svid_key.pem"] == first.of["tls.key"], "svid_key.pem and tls.key differ")
    check(first.of["bundle.pem"] == first.of["ca.crt"], "bundle.pem and ca.crt differ")
    check(first.of["svid-with-key.pem"] == first.of["svid.pem"] + first.of["svid_key.pem"], "svid-with-key.pem")
    openssl("crl", "-in", first.path("crl.pem"), "-noout")
    for name in ("jwt", JWT_NAME):
        claims = claims_of(first.of[name])
        check(claims["sub"] == f"spiffe://{DOMAIN}/unit/web", claims)
        check(claims["aud"] in (AUDIENCE, [AUDIENCE]), claims)
    given = [record for record in host.audit("credential_given") if record["unit"] == "web.service"]
    check({record["credential"] for record in given} == set(names), "audit lacks a credential")
    serials = {record["serial"] for record in given if not record["credential"].startswith("jwt")}
    check(serials == {first.serial()}, f"one set is of several certificates: {serials}")
    listed = json.loads(host.tether("credential", "list", "--output", "json"))["credentials"]
    shown = next(one for one in listed if one["id"] == first.serial())
    check(shown["exportable"] is True, shown)


def the_lifetime_is_what_the_entry_says(host):
    text = openssl("x509", "-noout", "-enddate", "-in", Set(host, "web", ["svid.pem"]).path("svid.pem"))
    end = time.mktime(time.strptime(text.strip().partition("=")[2], "%b %d %H:%M:%S %Y %Z")) - time.timezone
    check(6600 < end - time.time() <= 7200, f"it lives {end - time.time()} s")


def a_restart_gets_another_set_and_ends_the_first(host):
    first = Set(host, "web", ["svid.pem"]).serial()
    host.out("systemctl", "restart", "web.service")
    again = Set(host, "web", ["svid.pem", "svid_key.pem", "bundle.pem"])
    again.is_coherent()
    check(again.serial() != first, "the same certificate was given twice")
    until("the end of the first certificate", lambda: revoked(host, first))
    check(not revoked(host, again.serial()), "the second certificate is revoked too")


def a_stop_revokes(host):
    serial = Set(host, "web", ["svid.pem"]).serial()
    check(not revoked(host, serial), "it is revoked before the stop")
    host.out("systemctl", "stop", "web.service")
    until("the revocation", lambda: revoked(host, serial))


def a_dynamic_user_gets_the_same_set_for_each_command(host):
    names = ["svid.pem", "svid_key.pem", "bundle.pem"]
    second = "/bin/sh -c 'mkdir -p /run/dynamic/b; cp $CREDENTIALS_DIRECTORY/* /run/dynamic/b/; exec sleep infinity'"
    body = copying("dynamic", names, f"DynamicUser=yes\nExecStartPre=COPY\nExecStart={second}\n")
    host.service("dynamic", body)
    host.start("dynamic.service")
    there = ("sh", "-c", f"test $(ls /run/dynamic/b | wc -l) = {len(names)}")
    until("the second command", lambda: host.run(*there).returncode == 0)
    first, second = Set(host, "dynamic", names), Set(host, "dynamic/b", names)
    first.is_coherent()
    check(first.of == second.of, "two commands of one start got different sets")
    check(first.spiffe_ids() == [f"spiffe://{DOMAIN}/unit/dynamic"], f"another identity: {first.spiffe_ids()}")


def what_a_unit_has_outlives_the_agent_and_still_ends_with_the_unit(host):
    serial = Set(host, "dynamic", ["svid.pem"]).serial()
    host.out("systemctl", "restart", SERVICE)
    check(not revoked(host, serial), "a restart of the agent revokes")
    host.out("systemctl", "stop", "dynamic.service")
    until("the revocation", lambda: revoked(host, serial))


def a_unit_of_roots_is_known_as_such(host):
    names = ["svid.pem", "svid_key.pem", "bundle.pem"]
    host.service("root", copying("root", names, "Type=oneshot\nRemainAfterExit=yes\nExecStart=COPY\n"))
    host.start("root.service")
    Set(host, "root", names).is_coherent()


def an_entry_that_no_longer_gives_it_revokes(host):
    serial = Set(host, "root", ["svid.pem"]).serial()
    changed = ENTRIES.replace('"systemd:unit:root.service"', '"systemd:unit:other.service"')
    host.write("/etc/tether/entries.d/entries.toml", changed)
    until("the revocation", lambda: revoked(host, serial))
    host.write("/etc/tether/entries.d/entries.toml", ENTRIES)
    host.out("systemctl", "reset-failed")


def whoever_may_not_have_it_is_not_started(host):
    for unit, names, reason in [
        ("stranger", ["svid.pem"], "no_identity"),
        ("kept", ["svid.pem"], "not_exportable"),
        ("program", ["svid.pem"], "unavailable"),
        ("web", ["svid.pem", "password"], "unknown_credential"),
        ("web", ["jwt-other"], "audience"),
    ]:
        user = "User=daemon\n" if unit == "web" else ""
        host.service(unit, f"{load(names)}{user}Type=exec\nExecStart=/bin/sleep infinity\n")
        done = host.run("systemctl", "start", f"{unit}.service")
        check(done.returncode != 0, f"{unit} starts with {names}, which it may not have")
        status = host.out("systemctl", "show", f"{unit}.service", "-P", "ExecMainStatus").strip()
        check(status == "243", f"{unit} ended with {status}")
        refused = [r for r in host.audit("refused") if r["reason"] == reason and f"`{unit}.service`" in r["detail"]]
        check(refused, f"audit does not say `{reason}` of {unit}: {host.audit('refused')}")


def liars_get_nothing(host):
    host.write("/run/liar.pl", LIAR)
    victim = "deadbeef/unit/web.service/svid_key.pem"
    perl = ["perl", "/run/liar.pl", SOCKET, victim]

    def refusals():
        return [record for record in host.audit("connection_refused") if record["reason"] == "not_systemd"]

    before = len(refusals())
    # A root shell, which the first process of the host did not start.
    check(host.out(*perl) == NOTHING, "a root shell got something")
    # A unit of root's: a child of the first process, and another program.
    check(host.out("systemd-run", "-q", "--wait", "--pipe", *perl) == NOTHING, "a unit of root's got something")
    # One whose parent has gone, which the first process adopted.
    host.out("sh", "-c", f"(setsid perl /run/liar.pl {SOCKET} {victim} > /run/orphan.part; mv /run/orphan.part /run/orphan) & exit 0")
    until("the answer to an orphan", lambda: host.run("test", "-e", "/run/orphan").returncode == 0)
    check(host.out("cat", "/run/orphan") == NOTHING, "an orphan got something")
    # Another user cannot even connect, and if it could it would get nothing.
    other = ["setpriv", "--reuid=nobody", "--clear-groups", *perl]
    check(host.out(*other) == "refused: Permission denied\n", "another user can connect")
    host.out("chmod", "0666", SOCKET)
    check(host.out(*other) == NOTHING, "another user got something")
    host.out("chmod", "0600", SOCKET)
    until("the records", lambda: len(refusals()) == before + 4)
    uids = {record["caller"]["uid"] for record in refusals()}
    check(uids == {0, 65534}, f"audit names other callers: {uids}")


def prepare(host):
    initialised(host)
    host.write("/etc/tether/tether.toml.d/50-credentials.toml", CONFIG)
    host.write("/etc/tether/entries.d/entries.toml", ENTRIES)
    # The agent knows the socket from its start on.
    host.out("systemctl", "stop", SERVICE)
    host.out("systemctl", "enable", "--now", "tether-agent-credentials.socket")
    host.start(SERVICE)


CHECKS = [
    a_unit_with_a_user_gets_one_coherent_set,
    the_lifetime_is_what_the_entry_says,
    a_restart_gets_another_set_and_ends_the_first,
    a_stop_revokes,
    a_dynamic_user_gets_the_same_set_for_each_command,
    what_a_unit_has_outlives_the_agent_and_still_ends_with_the_unit,
    a_unit_of_roots_is_known_as_such,
    an_entry_that_no_longer_gives_it_revokes,
    whoever_may_not_have_it_is_not_started,
    liars_get_nothing,
]
