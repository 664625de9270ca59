// An MCP client on the MCP SDKs of npm, driven line by line: see ../python/client.py, which it repeats.
//
//   node client.mjs v1|v2 URL
//   node client.mjs v1|v2 --stdio COMMAND...
//
// v1 is `@modelcontextprotocol/sdk` (2025-11-25), v2 is `@modelcontextprotocol/client` (2026-07-28 where the server has it).
import { createInterface } from 'node:readline';

const [generation, where, ...command] = process.argv.slice(2);
const say = what => console.log(JSON.stringify(what));

const v1 = async () => {
    const { Client } = await import('@modelcontextprotocol/sdk/client/index.js');
    const { StreamableHTTPClientTransport } = await import('@modelcontextprotocol/sdk/client/streamableHttp.js');
    const { StdioClientTransport } = await import('@modelcontextprotocol/sdk/client/stdio.js');
    const { ElicitRequestSchema, LATEST_PROTOCOL_VERSION } = await import('@modelcontextprotocol/sdk/types.js');
    const client = new Client({ name: 'test', version: '1' }, { capabilities: { elicitation: {} } });
    client.setRequestHandler(ElicitRequestSchema, agree);
    const call = (params, options) => client.callTool(params, undefined, options);
    return { client, call, version: () => LATEST_PROTOCOL_VERSION, StreamableHTTPClientTransport, StdioClientTransport };
};

const v2 = async () => {
    const { Client, StreamableHTTPClientTransport } = await import('@modelcontextprotocol/client');
    const { StdioClientTransport } = await import('@modelcontextprotocol/client/stdio');
    const options = { capabilities: { elicitation: {} }, versionNegotiation: { mode: 'auto' } };
    const client = new Client({ name: 'test', version: '1' }, options);
    client.setRequestHandler('elicitation/create', agree);
    const call = (params, options) => client.callTool(params, options);
    const version = () => client.getNegotiatedProtocolVersion();
    return { client, call, version, StreamableHTTPClientTransport, StdioClientTransport };
};

const agree = async () => ({ action: 'accept', content: { really: true } });

// An error of JSON-RPC has a number; one of the transport has not.
const failed = error =>
    typeof error.code === 'number' && error.name !== 'StreamableHTTPError'
        ? say({ error: { code: error.code, message: error.message, data: error.data } })
        : say({ broken: `${error.name}: ${error.message}` });

const { client, call, version, StreamableHTTPClientTransport, StdioClientTransport } = await { v1, v2 }[generation]();
const transport = where === '--stdio'
    ? new StdioClientTransport({ command: command[0], args: command.slice(1), env: process.env })
    : new StreamableHTTPClientTransport(new URL(where));
client.onerror = error => say({ lost: error.message });
try {
    await client.connect(transport);
    say({ connected: version() });
} catch (error) {
    failed(error);
    process.exit(1);
}
for await (const line of createInterface({ input: process.stdin })) {
    const asked = JSON.parse(line);
    try {
        if (asked.call) {
            const onprogress = ({ progress }) => say({ progress });
            const result = await call({ name: asked.call, arguments: asked.arguments }, { onprogress });
            say({ failed: result.isError ?? false, text: result.content.map(part => part.text).join('\n') });
        } else {
            say({ tools: (await client.listTools()).tools.map(tool => tool.name).sort() });
        }
    } catch (error) {
        failed(error);
    }
}
await client.close();
process.exit(0);
