"""An MCP server on the MCP SDK of PyPI, for the tests: over HTTP, or with `--stdio`. It knows nothing of tether.

    python server.py            prints `listening http://127.0.0.1:PORT/mcp`; a line on standard input lets `wait` go on
    python server.py --stdio
"""

import asyncio
import os
import socket
import subprocess
import sys
from typing import Annotated

import uvicorn
from mcp.server.mcpserver import Context, Elicit, MCPServer, Resolve
from mcp.server.streamable_http import EventMessage, EventStore
from pydantic import BaseModel

server = MCPServer("notes", log_level="WARNING")
called = []


class Answer(BaseModel):
    really: bool


def sure(name: str) -> Elicit[Answer]:
    return Elicit(f"archive {name}?", Answer)


@server.tool()
def read_note(name: str) -> str:
    """The text of one note."""
    called.append("read_note")
    return f"{name}: ship on Friday"


@server.tool()
def publish_note(name: str) -> str:
    """Shows a note to everybody."""
    called.append("publish_note")
    return f"published {name}"


@server.tool()
def delete_note(name: str) -> str:
    """Deletes a note for good."""
    called.append("delete_note")
    return f"deleted {name}"


@server.tool()
def archive_note(name: str, answer: Annotated[Answer, Resolve(sure)]) -> str:
    """Puts a note away, when the user says so."""
    return f"archived {name}: {answer.really}"


@server.tool()
def calls() -> str:
    """What was called so far, apart from this."""
    return " ".join(called)


@server.tool()
def who(ctx: Context) -> str:
    """Whose call this is, as the proxy says it."""
    headers = ctx.headers or {}
    return " ".join(headers.get(name, "-") for name in ("tether-spiffe-id", "tether-purpose", "authorization"))


@server.tool()
async def wait(ctx: Context) -> str:
    """Says that half of it is done, and the rest when somebody lets it."""
    await ctx.report_progress(1, 2)
    await asyncio.to_thread(sys.stdin.readline)
    await ctx.report_progress(2, 2)
    return "done"


@server.tool()
async def drop(ctx: Context) -> str:
    """Loses the connection that waits for its answer. Up to 2025-11-25 the client finds the rest on another one."""
    await ctx.report_progress(1, 2)
    await ctx.close_sse_stream()
    return "found again"


@server.tool()
def prove(uri: str) -> str:
    """On stdio, in a session: whether the host's agent proves a request, and which session this is."""
    command = [os.environ["TETHER_BIN"], "prove", "--method", "GET", "--uri", uri]
    proven = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    return f"{proven.returncode} {os.environ.get('TETHER_SESSION', '-')}"


class Events(EventStore):
    """What was sent, to be sent again."""

    def __init__(self):
        self.sent = []

    async def store_event(self, stream_id, message):
        self.sent.append((stream_id, message))
        return str(len(self.sent) - 1)

    async def replay_events_after(self, last_event_id, send_callback):
        last = int(last_event_id)
        stream = self.sent[last][0]
        for number, (of, message) in enumerate(self.sent):
            if number > last and of == stream and message is not None:
                await send_callback(EventMessage(message, str(number)))
        return stream


def main():
    if "--stdio" in sys.argv:
        server.run("stdio")
        return
    listener = socket.create_server(("127.0.0.1", 0))
    app = server.streamable_http_app(event_store=Events(), retry_interval=10)
    print(f"listening http://127.0.0.1:{listener.getsockname()[1]}/mcp", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])


if __name__ == "__main__":
    main()
