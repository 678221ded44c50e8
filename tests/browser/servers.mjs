// The service behind the gateway, and the site of someone else. Both remember what they were asked,
// and serve what a scenario gives them.
import { createHash } from 'node:crypto';
import http from 'node:http';
import https from 'node:https';

const PIXEL = Buffer.from(
    'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==',
    'base64',
);
/** A minute of silence, long enough for a player to ask for it in ranges. */
const SOUND = silence(60);

/** Listens on any port of 127.0.0.1; `tls` is `{ key, cert }`. */
export async function listen(tls) {
    const site = new Site();
    const handler = (request, response) => site.respond(request, response);
    const server = tls === undefined ? http.createServer(handler) : https.createServer(tls, handler);
    server.on('upgrade', (request, socket) => site.upgrade(request, socket));
    await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
    site.port = server.address().port;
    site.stop = () => server.closeAllConnections() ?? server.close();
    return site;
}

class Site {
    /** What was asked: method, url, headers, body. */
    requests = [];
    /** By path: HTML, or `{ type, body, headers }`. */
    pages = {};

    /** The requests for a path, without its query. */
    asked(path) {
        return this.requests.filter((request) => request.url.split('?')[0] === path);
    }

    /** The only request for a path. */
    one(path) {
        const all = this.asked(path);
        if (all.length !== 1) throw new Error(`${all.length} requests for ${path}, not 1`);
        return all[0];
    }

    async respond(request, response) {
        const parts = [];
        for await (const part of request) parts.push(part);
        const { method, url, headers } = request;
        const seen = { method, url, headers, body: Buffer.concat(parts).toString() };
        this.requests.push(seen);
        const path = url.split('?')[0];
        if (path in this.pages) {
            const page = this.pages[path];
            const {
                type = 'text/html; charset=utf-8',
                body,
                headers: more = {},
            } = typeof page === 'string' ? { body: page } : page;
            response.writeHead(200, { 'Content-Type': type, ...more }).end(body);
        } else if (path.endsWith('.png')) {
            response.writeHead(200, { 'Content-Type': 'image/png' }).end(PIXEL);
        } else if (path.endsWith('.wav')) {
            ranged(request, response);
        } else if (headers.accept?.includes('text/html')) {
            response.writeHead(200, { 'Content-Type': 'text/html; charset=utf-8' });
            response.end(`<!doctype html><title>service</title><h1>service</h1><pre>${escaped(seen)}</pre>`);
        } else {
            response.writeHead(200, { 'Content-Type': 'application/json' }).end(JSON.stringify(seen));
        }
    }

    /** Accepts every WebSocket, and sends it the headers that it came with. */
    upgrade(request, socket) {
        const { method, url, headers } = request;
        this.requests.push({ method, url, headers, body: '' });
        socket.on('error', () => {});
        const accept = createHash('sha1')
            .update(`${headers['sec-websocket-key']}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`)
            .digest('base64');
        socket.write(
            `HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ${accept}\r\n\r\n`,
        );
        const text = Buffer.from(JSON.stringify(headers));
        const length = Buffer.alloc(2);
        length.writeUInt16BE(text.length);
        socket.write(Buffer.concat([Buffer.from([0x81, 126]), length, text]));
    }
}

function escaped(value) {
    return JSON.stringify(value, null, 1).replaceAll('&', '&amp;').replaceAll('<', '&lt;');
}

function ranged(request, response) {
    const range = /^bytes=(\d+)-(\d*)$/.exec(request.headers.range ?? '');
    const headers = { 'Content-Type': 'audio/wav', 'Accept-Ranges': 'bytes' };
    if (range === null) {
        response.writeHead(200, { ...headers, 'Content-Length': SOUND.length }).end(SOUND);
        return;
    }
    const first = Number(range[1]);
    // Small parts, so that the player must come again.
    const last = Math.min(range[2] === '' ? Infinity : Number(range[2]), first + 999_999, SOUND.length - 1);
    headers['Content-Range'] = `bytes ${first}-${last}/${SOUND.length}`;
    headers['Content-Length'] = last - first + 1;
    response.writeHead(206, headers).end(SOUND.subarray(first, last + 1));
}

function silence(seconds) {
    const size = seconds * 44_100 * 2;
    const header = Buffer.alloc(44);
    header.write('RIFF', 0);
    header.writeUInt32LE(36 + size, 4);
    header.write('WAVEfmt ', 8);
    header.writeUInt32LE(16, 16);
    header.writeUInt16LE(1, 20);
    header.writeUInt16LE(1, 22);
    header.writeUInt32LE(44_100, 24);
    header.writeUInt32LE(88_200, 28);
    header.writeUInt16LE(2, 32);
    header.writeUInt16LE(16, 34);
    header.write('data', 36);
    header.writeUInt32LE(size, 40);
    return Buffer.concat([header, Buffer.alloc(size)]);
}
