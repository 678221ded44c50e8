// A service as a team might have it: says what it received, and ends without losing a request.
//
//   PROTOCOL=http|https|http2|http2s PORT=3000 node service.mjs
//
// LOG: a line for each request, with its X-Id. NAME: sent as X-Server. KEEP_ALIVE: idle time in ms.
import { appendFileSync, readFileSync } from 'node:fs';
import { createHash } from 'node:crypto';
import http from 'node:http';
import https from 'node:https';
import http2 from 'node:http2';

const { PROTOCOL = 'http', PORT, LOG, NAME = '', KEEP_ALIVE, CERT, KEY, CLIENT_CA } = process.env;
const tls = CERT && {
  cert: readFileSync(CERT),
  key: readFileSync(KEY),
  ...(CLIENT_CA && { ca: readFileSync(CLIENT_CA), requestCert: true, rejectUnauthorized: true }),
};
const piece = Buffer.alloc(1 << 18, 'a');
let active = 0;
let draining = false;

async function respond(request, response) {
  const { pathname, searchParams } = new URL(request.url, 'http://service');
  const id = request.headers['x-id'];
  if (id && LOG) appendFileSync(LOG, `${id} ${request.method}\n`);
  if (NAME) response.setHeader('X-Server', NAME);
  if (draining && request.httpVersionMajor === 1) response.setHeader('Connection', 'close');

  if (pathname === '/stats') return response.end(JSON.stringify({ active: active - 1 }));
  if (pathname === '/events') {
    response.setHeader('Content-Type', 'text/event-stream');
    for (let number = 0; !response.destroyed && number < 600; number++) {
      response.write(`data: ${Date.now()}\n\n`);
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
    return response.end();
  }
  if (pathname === '/download') {
    let left = Number(searchParams.get('size'));
    response.setHeader('Content-Length', left);
    while (left > 0 && !response.destroyed) {
      const next = left < piece.length ? piece.subarray(0, left) : piece;
      left -= next.length;
      if (!response.write(next)) {
        await new Promise((resolve) => {
          response.once('drain', resolve);
          response.once('close', resolve);
        });
      }
    }
    return response.end();
  }
  if (pathname === '/hints') response.writeEarlyHints({ link: '</style.css>; rel=preload; as=style' });
  if (pathname === '/poll') await new Promise((resolve) => setTimeout(resolve, Number(searchParams.get('ms'))));
  if (pathname === '/work') await new Promise((resolve) => setTimeout(resolve, 2 + Math.random() * 8));

  const digest = createHash('sha256');
  let length = 0;
  for await (const data of request) {
    length += data.length;
    if (pathname !== '/upload') digest.update(data);
  }
  const status = Number(searchParams.get('status') ?? 200);
  response.statusCode = status;
  if (status === 204 || status === 304) return response.end();
  response.setHeader('Content-Type', 'application/json');
  return response.end(
    JSON.stringify({
      method: request.method,
      path: request.url,
      openid: request.headers['x-openid'] ?? null,
      host: request.headers.host ?? request.headers[':authority'],
      length,
      sha256: digest.digest('hex'),
    }),
  );
}

function handle(request, response) {
  active++;
  let counted = true;
  const over = () => {
    if (counted) active--;
    counted = false;
  };
  response.once('close', over);
  respond(request, response).catch(() => {
    over();
    response.destroy?.();
  });
}

const server = {
  http: () => http.createServer(handle),
  https: () => https.createServer(tls, handle),
  http2: () => http2.createServer(handle),
  http2s: () => http2.createSecureServer({ ...tls, allowHTTP1: false }, handle),
}[PROTOCOL]();
if (KEEP_ALIVE) server.keepAliveTimeout = Number(KEEP_ALIVE);
// A service that looks at the header before it lets the body come.
server.on('checkContinue', (request, response) => {
  if (request.url.startsWith('/refuse')) {
    response.statusCode = 413;
    response.setHeader('Connection', 'close');
    return response.end();
  }
  response.writeContinue();
  return handle(request, response);
});
const sessions = new Set();
server.on('session', (session) => {
  sessions.add(session);
  session.once('close', () => sessions.delete(session));
  session.on('error', () => {});
});
process.on('SIGTERM', () => {
  draining = true;
  server.close(() => process.exit(0));
  // GOAWAY; what is in flight is finished.
  for (const session of sessions) session.close();
});
process.on('SIGUSR1', () => sessions.forEach((session) => session.goaway()));
server.listen(Number(PORT), '127.0.0.1');
