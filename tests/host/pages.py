"""The commands of the pages that are about a host, word for word, in one. See tests/documents."""

import os
import subprocess

from booted import Failure
from package import ROOT


def prepare(_host):
    """Nothing: the first page begins with the package."""


def does_what_it_says(host, page):
    command = [ROOT / "tests/documents", "--host", " ".join(host.enter()), ROOT / page]
    words = [str(word) for word in command]
    done = subprocess.run(words, env=os.environ | {"TETHER_DEB": "/share/tether.deb"}, capture_output=True, text=True)
    if done.returncode != 0:
        raise Failure(f"tests/documents: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    print(f"      {done.stdout.splitlines()[-1].removeprefix(f'{ROOT}/')}")


def the_page_about_installing_holds(host):
    does_what_it_says(host, "docs/install.md")


def the_page_about_entries_holds(host):
    does_what_it_says(host, "docs/entries.md")


def the_page_about_operations_holds(host):
    does_what_it_says(host, "docs/operations.md")


CHECKS = [the_page_about_installing_holds, the_page_about_entries_holds, the_page_about_operations_holds]
