#!/usr/bin/env python3
"""A tool that knows nothing of identities: notes over plain HTTP, on a Unix socket.

usage: plain_notes.py SOCKET

Who may ask it is the business of what stands before it (`tether proxy inbound`), which also says who asks: in headers, which
this tool may believe because nobody else can connect to its socket.

    GET /notes/NAME            the note
    DELETE /notes/NAME         deletes it
    POST /notes/NAME/publish   shows it to everybody
    GET /whoami                what is known of whoever asks
    GET /changes               a stream of events (SSE) that has no end
"""

import http.server
import os
import socketserver
import sys
import threading
import time

NOTES = {"plan": "ship on Friday", "idea": "a boat"}
TOLD = ("Tether-Spiffe-Id", "Tether-Session", "Tether-Purpose")


class Notes(http.server.BaseHTTPRequestHandler):
    """Answers one connection."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        name = self.path.removeprefix("/notes/")
        if self.path == "/whoami":
            self.answer(200, "".join(f"{header}: {self.headers.get(header, '')}\n" for header in TOLD))
        elif self.path == "/changes":
            self.stream()
        elif name in NOTES:
            self.answer(200, f"{NOTES[name]}\n")
        else:
            self.answer(404, "there is no such note\n")

    def do_DELETE(self):
        note = NOTES.pop(self.path.removeprefix("/notes/"), None)
        self.answer(404 if note is None else 200, "deleted\n")

    def do_POST(self):
        self.answer(200, "published\n")

    def answer(self, status, text):
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def stream(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        try:
            while True:
                self.wfile.write(b"data: nothing new\n\n")
                self.wfile.flush()
                time.sleep(0.2)
        except OSError:
            self.close_connection = True  # whoever listened is gone

    def address_string(self):
        return "socket"

    def log_message(self, *_):
        """Says nothing: the proxy and the agent's audit log say who asked for what."""


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    os.umask(0o077)  # nobody else connects
    with Server(sys.argv[1], Notes) as server:
        print(f"listening at unix:{sys.argv[1]}", flush=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        threading.Event().wait()


if __name__ == "__main__":
    main()
