"""The commands of the pages that are about a host, word for word, in one. See tests/documents."""

import os
import subprocess

from booted import Failure
from package import ROOT

PAGES = ["docs/install.md", "docs/entries.md", "docs/operations.md"]


def prepare(_host):
    """Nothing: the first page begins with the package."""


def what_the_pages_say_is_what_happens(host):
    command = [ROOT / "tests/documents", "--host", " ".join(host.enter()), *(ROOT / page for page in PAGES)]
    words = [str(word) for word in command]
    done = subprocess.run(words, env=os.environ | {"TETHER_DEB": "/share/tether.deb"}, capture_output=True, text=True)
    if done.returncode != 0:
        raise Failure(f"tests/documents: {done.stdout[-2000:]}{done.stderr[-2000:]}")


CHECKS = [what_the_pages_say_is_what_happens]
