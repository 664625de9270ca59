"""A small tool on the standard library alone: it asks the agent by RFC 7662 introspection whether to serve a request.

    python examples/python/tool.py 127.0.0.1:8701 http://127.0.0.1:8710/introspect

The second address is `[http] address` of the agent. Which requests this tool may ask about is decided by its registration
entry, which lists http://127.0.0.1:8701/ under `serves`. With grpcio, `tethered.Agent.check` does the same and says why not.
"""

import base64
import hashlib
import json
import sys
import urllib.error
import urllib.parse
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LIMIT = 1 << 20
SECONDS = 10


def introspect(endpoint, method, uri, headers, body):
    """What the agent says of a request; `active` is the only member of a request that is not good."""
    wit, authorization = headers.get_all("Workload-Identity-Token", []), headers.get_all("Authorization", [])
    if len(wit) != 1 or len(authorization) != 1 or not authorization[0].lower().startswith("wpt "):
        return {"active": False}
    form = {
        "token": wit[0],
        "proof": authorization[0][4:].strip(),
        "method": method,
        "uri": uri,
        "body_sha256": base64.urlsafe_b64encode(hashlib.sha256(body).digest()).rstrip(b"=").decode(),
        "require_session": "true",
        "min_binding": "2",
    }
    # No proxy: the agent finds out who asks by the connection.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(endpoint, urllib.parse.urlencode(form).encode(), timeout=SECONDS) as answer:
        return json.load(answer)


class Tool(BaseHTTPRequestHandler):
    """Answers POST with who called."""

    def do_POST(self):
        length = int(self.headers.get("Content-Length", "0"))
        if not 0 <= length <= LIMIT:
            return self.answer(413, {"error": "too_large"})
        body = self.rfile.read(length)
        uri = self.server.base + self.path.split("?")[0]
        try:
            caller = introspect(self.server.endpoint, "POST", uri, self.headers, body)
        except (urllib.error.URLError, ValueError) as error:
            print(f"cannot ask the agent: {error}", flush=True)
            return self.answer(503, {"error": "unavailable"})
        if caller.get("active") is not True:
            return self.answer(401, {"error": "unproven"})
        self.answer(200, {name: caller[name] for name in ("client_id", "purpose", "session", "txn") if name in caller})

    def answer(self, status, told):
        body = json.dumps(told).encode()
        self.send_response(status)
        if status == 401:
            self.send_header("WWW-Authenticate", "WPT")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    address, endpoint = sys.argv[1:]
    host, port = address.rsplit(":", 1)
    server = ThreadingHTTPServer((host, int(port)), Tool)
    # From our own configuration: what a request says of its host is not asked.
    server.base, server.endpoint = f"http://{address}", endpoint
    print(f"listening at {server.base}", flush=True)
    server.serve_forever()
