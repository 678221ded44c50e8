// What a scenario gets: a gateway with several hosts, a simulated WeChat, a service, the site of
// someone else, people with browsers, and a place for promises.
import { spawn, execFileSync } from 'node:child_process';
import { createHash, X509Certificate } from 'node:crypto';
import { once } from 'node:events';
import { openSync, readFileSync, writeFileSync } from 'node:fs';
import { request } from 'node:http';
import { request as secureRequest } from 'node:https';
import { createConnection, createServer } from 'node:net';
import { join } from 'node:path';

import { listen } from './servers.mjs';

export const MINI_PROGRAM = 'wx0123456789abcdef';
export const OFFICIAL = 'wx0ff1c1a100000001';
export const WEBSITE = 'wx00eb517e00000001';
const ADMIN_TOKEN = 'an operator of the browser tests, 32 or more';

/** The `[[browser]]` sections: label of the host in example.com, and keys. */
const HOSTS = {
    h5: { official_account: OFFICIAL, website: WEBSITE },
    consent: { official_account: OFFICIAL, website: WEBSITE, scope: 'snsapi_userinfo' },
    wechat: { official_account: OFFICIAL },
    desk: { website: WEBSITE },
    plain: {},
};

export class World {
    scenario = '';
    processes = [];

    constructor({ wxgate, work, root, chromium, say }) {
        Object.assign(this, { wxgate, work, root, chromium, report: say });
    }

    async start() {
        const tls = this.certificates();
        this.service = await listen();
        this.elsewhere = await listen(tls);
        await this.startGateway();
        const domains = ['*.example.com', '*.example.net'];
        await this.chromium.launch({ domains, publicKeyHash: tls.publicKeyHash });
    }

    /** One promise, whether it is kept, and what was found. */
    promise(text, holds, found = '') {
        this.report(this.scenario, text, holds ? 'passed' : 'FAILED', this.tidy(found));
    }

    /** What was found must equal what was promised. */
    same(text, found, wanted) {
        const [left, right] = [JSON.stringify(found), JSON.stringify(wanted)];
        this.promise(text, left === right, left === right ? left : `${left}, not ${right}`);
    }

    skip(text, why) {
        this.report(this.scenario, text, 'SKIPPED', why);
    }

    /** Ports and secrets differ in each run. */
    tidy(found) {
        return `${found}`.replace(/(:|%3A)\d{4,5}\b/g, '$1PORT').replace(/\b[A-Za-z0-9_-]{32,}\b/g, '...');
    }

    /** Options of a person who comes through a proxy, from an address that nobody else has. */
    fromElsewhere() {
        this.addresses = (this.addresses ?? 0) + 1;
        return { extraHTTPHeaders: { 'X-Forwarded-For': `203.0.113.${this.addresses}` } };
    }

    /** URL of a path on one of the gateway's hosts. */
    url(host, path = '/') {
        return `https://${host}.example.com:${this.port}${path}`;
    }

    /** URL of a path of the service of someone else: `evil.example.net`, or `shop.example.com`, which is the same site. */
    foreign(host, path) {
        return `https://${host}:${this.elsewhere.port}${path}`;
    }

    certificates() {
        const openssl = (...words) => execFileSync('openssl', words, { cwd: this.work, stdio: 'pipe' });
        const key = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes'];
        openssl(
            'req',
            '-x509',
            ...key,
            '-keyout',
            'ca.key',
            '-out',
            'ca.pem',
            '-subj',
            '/CN=browser tests',
            '-days',
            '90',
        );
        writeFileSync(join(this.work, 'names'), 'subjectAltName=DNS:*.example.com,DNS:*.example.net\n');
        openssl('req', ...key, '-keyout', 'server.key', '-out', 'server.csr', '-subj', '/CN=example.com');
        const signed = ['-CA', 'ca.pem', '-CAkey', 'ca.key', '-CAcreateserial', '-days', '90', '-extfile', 'names'];
        openssl('x509', '-req', '-in', 'server.csr', '-out', 'server.pem', ...signed);
        const cert = readFileSync(join(this.work, 'server.pem'));
        const publicKey = new X509Certificate(cert).publicKey.export({ type: 'spki', format: 'der' });
        return {
            key: readFileSync(join(this.work, 'server.key')),
            cert,
            publicKeyHash: createHash('sha256').update(publicKey).digest('base64'),
        };
    }

    async startGateway() {
        [this.port, this.adminPort, this.wechatPort] = await freePorts(3);
        for (const [name, secret] of [
            ['secret', 'sandbox-secret'],
            ['operator', ADMIN_TOKEN],
        ]) {
            writeFileSync(join(this.work, name), secret, { mode: 0o600 });
        }
        writeFileSync(join(this.work, 'gateway.toml'), this.configuration());
        const apps = [MINI_PROGRAM, OFFICIAL, WEBSITE].flatMap((app) => ['--app', `${app}:sandbox-secret`]);
        await this.run('sandbox', ['sandbox', '--listen', `127.0.0.1:${this.wechatPort}`, ...apps], this.wechatPort);
        await this.run('gateway', ['run', '-c', join(this.work, 'gateway.toml')], this.port);
    }

    configuration() {
        const wechat = `http://127.0.0.1:${this.wechatPort}`;
        const app = (id, kind) => `
            [[app]]
            app_id = "${id}"
            kind = "${kind}"
            app_secret = { file = "${this.work}/secret" }`;
        const browsers = Object.entries(HOSTS).map(([host, keys]) => {
            const all = { base_url: this.url(host, ''), ...keys };
            if (keys.official_account ?? keys.website) all.authorize_base_url = wechat;
            return `[[browser]]\n${Object.entries(all)
                .map(([key, value]) => `${key} = "${value}"`)
                .join('\n')}`;
        });
        const route = (path, keys) => `[[route]]\npath = "${path}"\nupstream = "service"\n${keys}\n`;
        return `
            server.listen = "127.0.0.1:${this.port}"
            server.tls = { cert_file = "${this.work}/server.pem", key_file = "${this.work}/server.key" }
            server.trusted_proxies = ["127.0.0.1"]
            admin.listen = "127.0.0.1:${this.adminPort}"
            admin.token = { file = "${this.work}/operator" }
            wechat.base_url = "${wechat}"
            ticket.enabled = true
            scan = { enabled = true, app_id = "${MINI_PROGRAM}" }
            ${app(MINI_PROGRAM, 'mini_program')}\ndefault = true
            ${app(OFFICIAL, 'official_account')}
            ${app(WEBSITE, 'website')}
            ${browsers.join('\n')}
            [[upstream]]
            name = "service"
            servers = ["127.0.0.1:${this.service.port}"]
            ${route('/', 'login = "redirect"')}
            ${route('/json', '')}
            ${route('/open', 'auth = "none"')}
            ${route('/maybe', 'auth = "optional"')}
            ${route('/ws', 'websocket = true')}
            ${route('/cors', `cors = { origins = ["${this.foreign('shop.example.com', '')}"], credentials = true }`)}
        `.replace(/^ +/gm, '');
    }

    /** Starts a command of wxgate, and waits until it listens. */
    async run(name, words, port) {
        const log = join(this.work, `${name}.log`);
        const output = openSync(log, 'a');
        const process = spawn(this.wxgate, words, { stdio: ['ignore', output, output] });
        this.processes.push(process);
        for (const end = Date.now() + 30_000; !(await isOpen(port)); await pause(50)) {
            if (process.exitCode !== null || Date.now() > end) {
                throw new Error(`${name} does not start:\n${readFileSync(log, 'utf8')}`);
            }
        }
        return process;
    }

    async end(process) {
        process.kill();
        if (process.exitCode === null && process.signalCode === null) await once(process, 'exit');
    }

    log(name) {
        return readFileSync(join(this.work, `${name}.log`), 'utf8');
    }

    /** A call of the sandbox or of the admin listener, outside the browser. */
    async call(port, method, path, body, headers = {}) {
        return asked(request, { method, port, path, headers }, body);
    }

    /** A request that no browser makes, such as a phone's, to a URL of `example.com`. */
    async ask(method, url, { headers = {}, body } = {}) {
        const { hostname, port, pathname, search, host } = new URL(url);
        const options = { method, port, path: pathname + search, servername: hostname, rejectUnauthorized: false };
        return asked(secureRequest, { ...options, headers: { Host: host, ...headers } }, body);
    }

    async operator(method, path) {
        return this.call(this.adminPort, method, path, undefined, { Authorization: `Bearer ${ADMIN_TOKEN}` });
    }

    async metric(line) {
        const { text } = await this.call(this.adminPort, 'GET', '/metrics');
        const found = text.split('\n').find((row) => row.startsWith(`${line} `));
        return found === undefined ? undefined : Number(found.split(' ')[1]);
    }

    async stop() {
        await this.chromium.stop();
        await Promise.all(this.processes.map((process) => this.end(process)));
        this.service?.stop();
        this.elsewhere?.stop();
    }
}

export const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

/** Waits until a condition holds; the condition may be a promise. */
export async function until(what, condition, seconds = 15) {
    for (const end = Date.now() + seconds * 1000; ; await pause(30)) {
        const found = await condition();
        if (found) return found;
        if (Date.now() > end) throw new Error(`${what}: not within ${seconds} s`);
    }
}

/** Sends JSON, if anything, to 127.0.0.1. */
async function asked(send, options, body) {
    const content = body === undefined ? undefined : JSON.stringify(body);
    const headers = content === undefined ? {} : { 'Content-Type': 'application/json' };
    const sent = send({ ...options, host: '127.0.0.1', agent: false, headers: { ...headers, ...options.headers } }).end(
        content,
    );
    const [response] = await once(sent, 'response');
    const parts = [];
    for await (const part of response) parts.push(part);
    const text = Buffer.concat(parts).toString();
    return { status: response.statusCode, headers: response.headers, text, json: () => JSON.parse(text) };
}

export async function freePorts(count) {
    const servers = await Promise.all(
        Array.from({ length: count }, async () => {
            const server = createServer().listen(0, '127.0.0.1');
            await once(server, 'listening');
            return server;
        }),
    );
    const ports = servers.map((server) => server.address().port);
    await Promise.all(servers.map((server) => once(server.close(), 'close')));
    return ports;
}

function isOpen(port) {
    return new Promise((resolve) => {
        const socket = createConnection(port, '127.0.0.1');
        socket.once('connect', () => resolve(true)).once('error', () => resolve(false));
        socket.once('connect', () => socket.end());
    });
}
