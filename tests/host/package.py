"""The package under test: built from the binary that is given, installed and set up as its user does."""

import os
import pathlib
import subprocess

from booted import ADMIN, SERVICE, SOCKET_UNIT, USER, WORKLOAD, Failure, check, until

ROOT = pathlib.Path(__file__).resolve().parents[2]
TETHER = pathlib.Path(os.environ.get("TETHER_BIN", ROOT / "target/release/tether")).resolve()
DOMAIN = "example.org"
ID = f"spiffe://{DOMAIN}"
# Above the one that is built by default, whatever that is.
NEXT = "99.0"

APT = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq", "--yes", "--no-install-recommends"]


def build(directory, version=None):
    """The package of `TETHER`. Two of different versions hold the same program."""
    command = [ROOT / "packaging/deb/build", "--output", directory, *(["--version", version] if version else [])]
    done = subprocess.run(
        [str(word) for word in command], env=os.environ | {"TETHER_BIN": str(TETHER)}, capture_output=True, text=True
    )
    if done.returncode != 0:
        raise Failure(f"packaging/deb/build: {done.stderr}")
    return pathlib.Path(done.stdout.splitlines()[-1])


def packages(directory):
    """The name of each package in /share, and its file."""
    return {"tether.deb": build(directory), "tether-next.deb": build(directory, NEXT)}


def apt(host, *words):
    return host.out(*APT, *words)


def install(host, package="/share/tether.deb", *options):
    return apt(host, "install", *options, package)


def initialised(host):
    """Installed and set up by `USER`, ready."""
    install(host)
    host.as_user("sudo", "tether", "init", "--trust-domain", DOMAIN)
    check(host.is_ready(), f"`tether init` has returned and the agent is not ready: {host.journal(SERVICE)}")
