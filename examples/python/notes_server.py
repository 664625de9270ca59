"""An MCP server that serves only what the agent of this host finds good: notes that can be read, published and deleted.

    python examples/python/notes_server.py 127.0.0.1:8700

The MCP part knows nothing of identities: `Checked` stands before it and asks about each HTTP request.
"""

import asyncio
import json
import sys

import grpc
import uvicorn
from mcp.server.mcpserver import MCPServer

from tethered import Agent, mcp_call

LIMIT = 1 << 20
NOTES = {"plan": "ship on Friday", "idea": "a shorter README"}
# What a caller is told of a refusal: never why, which is for our own log and the agent's audit log.
FORBIDDEN = {"target", "scope", "binding", "tool", "arguments", "effect", "no_session", "policy", "step_up"}

notes = MCPServer("notes", log_level="WARNING")


@notes.tool()
def list_notes() -> list[str]:
    """The names of all notes."""
    return sorted(NOTES)


@notes.tool()
def read_note(name: str) -> str:
    """The text of one note."""
    return NOTES[name]


@notes.tool()
def publish_note(name: str) -> str:
    """Shows a note to everybody."""
    return f"published `{name}`: {NOTES[name]}"


@notes.tool()
def delete_note(name: str) -> str:
    """Deletes a note for good."""
    del NOTES[name]
    return f"deleted `{name}`"


class Checked:
    """ASGI middleware: lets a request through when the agent says that it is good, and says so in `scope["caller"]`."""

    def __init__(self, app, agent, base):
        self.app, self.agent, self.base = app, agent, base

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            raise ValueError("only HTTP is checked, so only HTTP is served")
        body = await whole(receive)
        if body is None:
            return await answer(send, 413, {"error": "too_large"})
        tool, arguments = mcp_call(body)
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
        request = (scope["method"], self.base + scope["raw_path"].decode("latin-1"), headers, body, tool, arguments)
        try:
            checked = await asyncio.to_thread(self.agent.check, *request)
        except grpc.RpcError as error:
            print(f"cannot ask the agent: {error.details()}", flush=True)
            return await answer(send, 503, {"error": "unavailable"})
        if not checked.active:
            print(f"refused: {tool or scope['method']}: {checked.reason}", flush=True)
            return await refuse(send, checked)
        who = f"{checked.spiffe_id} for {checked.user or 'nobody'}"
        print(f"served: {tool or scope['method']} to {who}, {checked.purpose}", flush=True)
        statuses = []

        async def replayed():
            return {"type": "http.request", "body": body} if not statuses else await receive()

        async def noted(message):
            if message["type"] == "http.response.start":
                statuses.append(message["status"])
            await send(message)

        await self.app({**scope, "caller": checked}, replayed, noted)
        await asyncio.to_thread(self.agent.report, checked, bool(statuses) and statuses[0] < 400)


async def whole(receive):
    """The body, up to LIMIT."""
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > LIMIT:
            return None
        if not message.get("more_body"):
            return body


async def refuse(send, checked):
    if checked.reason == "step_up":
        await answer(send, 403, {"error": "step_up", "approval": checked.approval})
    elif checked.reason in FORBIDDEN:
        await answer(send, 403, {"error": "forbidden"})
    else:
        await answer(send, 401, {"error": "unproven"}, [(b"www-authenticate", b"WPT")])


async def answer(send, status, told, headers=()):
    headers = [(b"content-type", b"application/json"), *headers]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(told).encode()})


if __name__ == "__main__":
    address = sys.argv[1]
    host, port = address.rsplit(":", 1)
    app = Checked(notes.streamable_http_app(json_response=True, stateless_http=True), Agent(), f"http://{address}")
    print(f"listening at http://{address}/mcp", flush=True)
    uvicorn.run(app, host=host, port=int(port), log_level="warning")
