// An MCP server on the MCP SDKs of npm, over HTTP: see ../python/server.py, whose tools it has.
//
//   node server.mjs v1|v2       prints `listening http://127.0.0.1:PORT/mcp`; a line on standard input lets `wait` go on
//
// v1 is `@modelcontextprotocol/sdk` with sessions of MCP (2025-11-25), v2 is `@modelcontextprotocol/server` (2026-07-28).
import { randomUUID } from 'node:crypto';
import { createServer } from 'node:http';
import { createInterface } from 'node:readline';
import * as z from 'zod';

const [generation] = process.argv.slice(2);
const lines = createInterface({ input: process.stdin });
const line = () => new Promise(resolve => lines.once('line', resolve));
const text = text => ({ content: [{ type: 'text', text }] });
const called = [];
const name = z.object({ name: z.string() });
const asked = { type: 'object', properties: { really: { type: 'boolean' } }, required: ['really'] };

const addTools = (server, { notify, header, closeStream, elicit }) => {
    const tool = (tool, handler, inputSchema) => server.registerTool(tool, inputSchema ? { inputSchema } : {}, handler);
    const counted = (tool, answer) => tool_ => (called.push(tool), text(answer(tool_.name)));
    tool('read_note', counted('read_note', name => `${name}: ship on Friday`), name);
    tool('publish_note', counted('publish_note', name => `published ${name}`), name);
    tool('delete_note', counted('delete_note', name => `deleted ${name}`), name);
    tool('calls', () => text(called.join(' ')));
    tool('who', extra =>
        text(['tether-spiffe-id', 'tether-purpose', 'authorization'].map(name => header(extra, name) ?? '-').join(' ')));
    tool('wait', async extra => {
        await notify(extra, 1);
        await line();
        await notify(extra, 2);
        return text('done');
    });
    if (elicit) {
        tool('archive_note', async ({ name }, extra) => {
            const answer = await elicit({ mode: 'form', message: `archive ${name}?`, requestedSchema: asked }, extra);
            return text(`archived ${name}: ${answer.content.really ? 'True' : 'False'}`);
        }, name);
        tool('drop', async extra => {
            await notify(extra, 1);
            closeStream(extra);
            return text('found again');
        });
    }
};

const v1 = async () => {
    const { McpServer } = await import('@modelcontextprotocol/sdk/server/mcp.js');
    const { StreamableHTTPServerTransport } = await import('@modelcontextprotocol/sdk/server/streamableHttp.js');
    const transports = new Map();
    const start = async () => {
        const server = new McpServer({ name: 'notes', version: '1' });
        addTools(server, {
            header: (extra, name) => extra.requestInfo.headers[name],
            notify: (extra, progress) => extra.sendNotification({
                method: 'notifications/progress',
                params: { progressToken: extra._meta.progressToken, progress, total: 2 },
            }),
            closeStream: extra => extra.closeSSEStream(),
            elicit: (params, extra) => server.server.elicitInput(params, { relatedRequestId: extra.requestId }),
        });
        const transport = new StreamableHTTPServerTransport({
            sessionIdGenerator: randomUUID,
            eventStore: new Events(),
            retryInterval: 10,
            onsessioninitialized: id => transports.set(id, transport),
            onsessionclosed: id => transports.delete(id),
        });
        await server.connect(transport);
        return transport;
    };
    return async (request, response) => {
        const id = request.headers['mcp-session-id'];
        const transport = id === undefined ? await start() : transports.get(id);
        if (transport === undefined) return response.writeHead(404).end();
        await transport.handleRequest(request, response);
    };
};

const v2 = async () => {
    const { McpServer, createMcpHandler } = await import('@modelcontextprotocol/server');
    const { toNodeHandler } = await import('@modelcontextprotocol/node');
    const tools = {
        header: (extra, name) => extra.http.req.headers.get(name),
        notify: (extra, progress) => extra.mcpReq.notify({
            method: 'notifications/progress',
            params: { progressToken: extra.mcpReq._meta.progressToken, progress, total: 2 },
        }),
    };
    return toNodeHandler(createMcpHandler(() => {
        const server = new McpServer({ name: 'notes', version: '2' });
        addTools(server, tools);
        return server;
    }));
};

// What was sent, to be sent again.
class Events {
    sent = [];

    async storeEvent(stream, message) {
        return String(this.sent.push({ stream, message }) - 1);
    }

    async replayEventsAfter(last, { send }) {
        const { stream } = this.sent[Number(last)];
        for (const [id, event] of this.sent.entries()) {
            if (id > Number(last) && event.stream === stream && event.message?.jsonrpc) await send(String(id), event.message);
        }
        return stream;
    }
}

const handle = await { v1, v2 }[generation]();
const listener = createServer((request, response) => void handle(request, response));
listener.listen(0, '127.0.0.1', () => console.log(`listening http://127.0.0.1:${listener.address().port}/mcp`));
