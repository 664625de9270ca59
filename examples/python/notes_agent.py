"""An agent that calls one tool of an MCP server, in its session. No model: what it calls is said by whoever runs it.

    python examples/python/notes_agent.py http://127.0.0.1:8700/mcp read_note name=plan

Every HTTP request of the MCP client gets headers of its own, made by the agent of this host, which first asks policy.
"""

import argparse
import asyncio
import sys

import httpx2
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client
from mcp.shared._httpx_utils import create_mcp_http_client

from tethered import Agent, Refused, mcp_call


class Proven(httpx2.Auth):
    """Adds the headers that prove a request: method, URI and body, and which tool is called with which arguments."""

    requires_request_body = True

    def __init__(self, agent, say=None, keep=None):
        self.agent, self.say, self.keep, self.refused = agent, say, keep, None

    def auth_flow(self, request):
        tool, arguments = mcp_call(request.content)
        if tool and self.say:
            tool = self.say
        try:
            headers = self.agent.prove(request.method, str(request.url), request.content, tool, arguments)
        except Refused as refused:
            self.refused = refused
            raise
        request.headers.update(headers)
        if self.keep and tool:
            write_down(self.keep, request)
            raise Kept
        yield request


class Kept(Exception):
    """The request was written down and not sent."""


def write_down(path, request):
    """As a configuration for curl: what a careless log has of a request."""
    lines = [f'header = "{name}: {value}"' for name, value in request.headers.items() if name != "content-length"]
    body = request.content.decode().replace("\\", "\\\\").replace('"', '\\"')
    with open(path, "w", encoding="utf-8") as file:
        file.write("\n".join([f'url = "{request.url}"', *lines, f'data = "{body}"', ""]))


async def call(url, tool, arguments, auth):
    http = create_mcp_http_client(auth=auth)
    async with http, Client(streamable_http_client(url, http_client=http)) as client:
        result = await client.call_tool(tool, arguments)
    return "\n".join(part.text for part in result.content)


def main():
    parser = argparse.ArgumentParser(description="calls one tool of an MCP server in a session")
    parser.add_argument("url")
    parser.add_argument("tool")
    parser.add_argument("arguments", nargs="*", metavar="NAME=VALUE")
    parser.add_argument("--say", metavar="TOOL", help="tell the agent of this host that it is another tool")
    parser.add_argument("--keep", metavar="FILE", help="write the request down for curl --config, and do not send it")
    given = parser.parse_args()
    auth = Proven(Agent(), given.say, given.keep)
    try:
        print(asyncio.run(call(given.url, given.tool, dict(pair.split("=", 1) for pair in given.arguments), auth)))
    except (MCPError, Refused, BaseExceptionGroup) as error:
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        return explain(auth.refused, error)
    return 0


def explain(refused, error):
    """Says what happened, with the exit codes of `tether`."""
    if isinstance(error, Kept):
        print("written down, and not sent", file=sys.stderr)
        return 0
    if refused is None:
        print(f"the tool refused: {error}", file=sys.stderr)
        return 1
    if refused.approval:
        print(f"waiting for approval {refused.approval}: {refused}", file=sys.stderr)
        return 7
    if refused.ended:
        print(f"the session has ended ({refused.ended})", file=sys.stderr)
        return 5
    print(f"refused ({refused.denial}): {refused}", file=sys.stderr)
    return 6


if __name__ == "__main__":
    sys.exit(main())
