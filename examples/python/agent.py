"""A small agent on the standard library alone: it calls a tool with the headers that `tether prove` prints.

    tether run --purpose demo --target http://127.0.0.1:8701/ -- python examples/python/agent.py http://127.0.0.1:8701/x

`tether run` began the session; everything it started is a member of it, `tether prove` too.
"""

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request

TETHER = os.environ.get("TETHER", "tether")
SECONDS = 10


def prove(method, uri, body):
    """The headers of one request. They are good once, so they are made again for each, also for a retry."""
    command = [TETHER, "prove", "--method", method, "--uri", uri, "--body-file", "-"]
    proven = subprocess.run(command, input=body, stdout=subprocess.PIPE, timeout=SECONDS, check=False)
    if proven.returncode != 0:
        # 6: policy says no; 7: a person has to agree first. `tether prove` said so.
        sys.exit(proven.returncode)
    return json.loads(proven.stdout)["headers"]


def call(uri, body):
    """What the tool answers."""
    request = urllib.request.Request(uri, data=body, headers=prove("POST", uri, body), method="POST")
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as refused:
        return refused.code, refused.read().decode()


if __name__ == "__main__":
    print(*call(sys.argv[1], b'{"query":"tether"}'))
