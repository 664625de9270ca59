"""An MCP client on the MCP SDK of PyPI, driven line by line.

    python client.py auto|legacy URL
    python client.py auto|legacy --stdio COMMAND...

Takes one JSON object a line: `{"list": true}`, or `{"call": TOOL, "arguments": {..}}`; prints what comes of it: `{"connected": VERSION}`,
`{"tools": [..]}`, `{"progress": N}`, `{"text": ..}`, `{"error": {..}}` for an error of JSON-RPC, `{"broken": ..}` for any other;
the clients on npm also `{"lost": ..}` when a stream breaks.
"""

import asyncio
import json
import os
import sys

from mcp import Client, MCPError
from mcp.client.stdio import StdioServerParameters
from mcp.types import ElicitResult


def say(**what):
    print(json.dumps(what), flush=True)


async def progress(done, total, message):
    say(progress=done)


async def agree(context, params):
    return ElicitResult(action="accept", content={"really": True})


async def answer(client, command):
    if "call" in command:
        result = await client.call_tool(command["call"], command.get("arguments"), progress_callback=progress)
        say(failed=result.is_error, text="\n".join(part.text for part in result.content))
    else:
        say(tools=sorted(tool.name for tool in (await client.list_tools()).tools))


async def main():
    mode, where, *command = sys.argv[1:]
    if where == "--stdio":
        where = StdioServerParameters(command=command[0], args=command[1:], env=dict(os.environ))
    async with Client(where, mode=mode, elicitation_callback=agree) as client:
        say(connected=client.protocol_version)
        while line := await asyncio.to_thread(sys.stdin.readline):
            try:
                await answer(client, json.loads(line))
            except MCPError as error:
                say(error={"code": error.error.code, "message": error.error.message, "data": error.error.data})


def innermost(error):
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except BaseException as error:
        error = innermost(error)
        if isinstance(error, MCPError):
            say(error={"code": error.error.code, "message": error.error.message, "data": error.error.data})
        else:
            say(broken=f"{type(error).__name__}: {error}")
        sys.exit(1)
