// What people do in many scenarios, and what must hold wherever the gateway shows a page of its own.
import { join } from 'node:path';

import { pause, until } from './world.mjs';

export const SESSION = '__Host-wxgate';
/** Names of the gateway's cookies in a browser. */
export const ourCookies = async (context) =>
    (await context.cookies())
        .filter(({ name, domain }) => /^(__Host-)?wxgate/.test(name) && domain.endsWith('.example.com'))
        .map(({ name }) => name);
export const sessionCookie = async (context, host) =>
    (await context.cookies()).find(
        ({ name, domain }) => name === SESSION && (host === undefined || domain.startsWith(host)),
    );

/** Every response to a page's requests, in the order in which the requests were sent. */
export class Trail {
    requests = [];

    constructor(page) {
        page.on('request', (request) => this.requests.push(request));
    }

    clear() {
        this.requests = [];
    }

    async all() {
        const rows = this.requests.map(async (request) => {
            const response = await soon(request.response());
            // Of a response that the browser throws away there are no details.
            const provisional = Object.entries(response?.headers() ?? {}).map(([name, value]) => ({ name, value }));
            const headers = (await soon(response?.headersArray())) ?? provisional;
            return {
                url: request.url(),
                path: new URL(request.url()).pathname,
                method: request.method(),
                status: response?.status(),
                cookies: headers.filter(({ name }) => name.toLowerCase() === 'set-cookie').map(({ value }) => value),
                header: (name) => headers.find((header) => header.name.toLowerCase() === name.toLowerCase())?.value,
            };
        });
        return Promise.all(rows);
    }

    async of(path) {
        return (await this.all()).filter((row) => row.path === path);
    }
}

/** A blocked or ended navigation never gets its response. */
const soon = (promise) => Promise.race([promise, pause(2000)]).catch(() => undefined);

/** On WeChat's page: a button or a link with this name. */
export async function choose(page, name) {
    const pattern = new RegExp(`(^|\\b)${name}(\\b|$)`, 'i');
    const control = page
        .getByRole('button', { name: pattern })
        .or(page.getByRole('link', { name: pattern }))
        .first();
    await control.click();
}

/** Waits until a page is at a URL of the gateway, after redirects. A login adds an empty fragment. */
export async function arrived(page, url) {
    await page
        .waitForURL((at) => withoutFragment(at.href) === url, { timeout: 10_000 })
        .catch(async () => {
            const text = await page.evaluate(() => document.body.innerText).catch(() => '');
            throw new Error(`at ${page.url()} instead of ${url}: ${text.slice(0, 200)}`);
        });
}

const withoutFragment = (url) => url.replace(/#$/, '');
export const urlOf = (page) => withoutFragment(page.url());

/** Opens a page, and logs in at WeChat on the way. */
export async function logIn(world, page, url, user = 'alice') {
    await page.goto(url);
    await atWeChat(world, page);
    await choose(page, user);
    await arrived(page, url);
}

/** Waits for WeChat's page; gives its URL. */
export async function atWeChat(world, page) {
    await page
        .waitForURL((at) => at.port === `${world.wechatPort}`, { timeout: 10_000 })
        .catch(async () => {
            const text = await page.evaluate(() => document.body.innerText).catch(() => '');
            throw new Error(`at ${page.url()} instead of WeChat's page: ${text.slice(0, 200)}`);
        });
    return new URL(page.url());
}

let counter = 0;
/** A code of WeChat's for a user, or one that makes it fail, such as `err-40029`. */
export const codeOf = (what) => `${what}-${process.pid}x${(counter += 1)}`;

/** The callback that WeChat's page, which is shown, would redirect to, with any code. */
export function callbackOf(page) {
    const at = new URL(page.url());
    return (code) => {
        const to = new URL(at.searchParams.get('redirect_uri'));
        if (code !== undefined) to.searchParams.set('code', code);
        to.searchParams.set('state', at.searchParams.get('state'));
        return to.href;
    };
}

/** Opens a page, and stops at WeChat's. */
export async function begin(world, page, url) {
    await page.goto(url);
    const at = await atWeChat(world, page);
    return { at, state: at.searchParams.get('state'), callback: callbackOf(page) };
}

/** What the service says it was asked by the page that is shown. */
export async function shown(page) {
    return JSON.parse(await page.locator('pre').textContent());
}

export const openidShown = async (page) => (await shown(page)).headers['x-openid'];

/** `fetch` in a page: status, headers and body, and whether it was redirected. */
export function fetchIn(page, url, options = {}) {
    return page.evaluate(
        async ([url, options]) => {
            const response = await fetch(url, options);
            const text = await response.text();
            let json = null;
            try {
                json = JSON.parse(text);
            } catch {}
            const headers = Object.fromEntries(response.headers);
            return {
                status: response.status,
                type: response.type,
                redirected: response.redirected,
                headers,
                text,
                json,
            };
        },
        [url, options],
    );
}

/** Logs in as a Mini Program does, and gives the token. */
export async function miniProgramToken(world, user, host = 'h5') {
    const response = await world.ask('POST', world.url(host, '/login'), { body: { code: codeOf(`user-${user}`) } });
    if (response.status !== 200) throw new Error(`login: ${response.status} ${response.text}`);
    return response.json().token;
}

/** Status and error of the access log's lines for a path, once there are so many of them. */
export async function logged(world, path, count = 1) {
    return until(`${count} log lines for ${path}`, () => {
        const lines = world
            .log('gateway')
            .split('\n')
            .filter((line) => line.includes(`"path":"${path}"`));
        return lines.length >= count && lines.map((line) => JSON.parse(line));
    });
}

/** Takes a screenshot for people to look at. */
export async function look(world, page, name) {
    const path = join(world.chromium.screenshots, `${world.scenario}-${name}.png`);
    await page.screenshot({ path, fullPage: true });
}

/** One of the gateway's own pages: what it says, and everything that must hold for all of them. */
export async function ownPage(world, page, response, { person, name, status, error, external = [] }) {
    await look(world, page, name);
    const headers = Object.fromEntries(
        (await response.headersArray()).map(({ name, value }) => [name.toLowerCase(), value]),
    );
    const csp = headers['content-security-policy'] ?? '';
    const faults = [];
    const need = (holds, text) => holds || faults.push(text);
    need(response.status() === status, `status ${response.status()}, not ${status}`);
    need(
        error === undefined ? headers['x-wxgate-error'] : headers['x-wxgate-error'] === error,
        `X-Wxgate-Error ${headers['x-wxgate-error']}, not ${error}`,
    );
    need(/^text\/html; ?charset=utf-8$/i.test(headers['content-type']), `Content-Type ${headers['content-type']}`);
    need(headers['cache-control'] === 'no-store', `Cache-Control ${headers['cache-control']}`);
    need(csp.includes("default-src 'none'") && csp.includes("frame-ancestors 'none'"), `CSP ${csp}`);
    need(!csp.includes('unsafe-inline') || !/script-src[^;]*unsafe-inline/.test(csp), `CSP ${csp}`);
    need(headers['x-frame-options']?.toUpperCase() === 'DENY', `X-Frame-Options ${headers['x-frame-options']}`);
    need(
        headers['x-content-type-options'] === 'nosniff',
        `X-Content-Type-Options ${headers['x-content-type-options']}`,
    );
    need(headers['referrer-policy'] === 'no-referrer', `Referrer-Policy ${headers['referrer-policy']}`);
    const vary = (headers.vary ?? '').toLowerCase();
    need(headers['cache-control'] === 'no-store' || vary.includes('accept-language'), `Vary ${vary}`);
    const scheme = [];
    for (const colorScheme of ['light', 'dark']) {
        await page.emulateMedia({ colorScheme });
        scheme.push(await facts(page));
        if (colorScheme === 'dark') await look(world, page, `${name}-dark`);
    }
    await page.emulateMedia({ colorScheme: null });
    const [found] = scheme;
    const isChinese = person.locale.startsWith('zh');
    need(found.lang.startsWith(isChinese ? 'zh' : 'en'), `lang ${found.lang}`);
    // An English text quotes what WeChat's own buttons say.
    need(
        isChinese === /[\u4e00-\u9fff]/.test(found.text.replace(/“[^”]*”/g, '')),
        `language of: ${found.text.slice(0, 80)}`,
    );
    need(found.viewport.includes('width=device-width'), `viewport ${found.viewport}`);
    need(!/user-scalable=no|maximum-scale/.test(found.viewport), 'it cannot be magnified');
    need(found.title !== '', 'no title');
    need(found.headings === 1, `${found.headings} h1`);
    need(found.overflow <= 0, `wider than the screen by ${found.overflow}px`);
    need(found.smallest >= 14, `text of ${found.smallest}px`);
    need(found.targets >= 40, `a link or button of ${found.targets}px height`);
    need(found.scripts === 0 || csp.includes('script-src'), 'scripts');
    need(
        found.resources.every((url) => external.includes(url)),
        `loads ${found.resources}`,
    );
    for (const { contrast, of } of scheme) need(contrast >= 4.5, `contrast ${contrast.toFixed(1)} of "${of}"`);
    world.promise(
        `${person.name}: the page ${name} is readable and closed`,
        faults.length === 0,
        faults.join('; ') || `${status}, "${found.heading}"`,
    );
    return found.text;
}

/** What a person sees of a page, in numbers. */
export const facts = (page) => page.evaluate(measure);

function measure() {
    const channel = (value) => (value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
    const parse = (color) => color.match(/[\d.]+/g).map(Number);
    const luminance = ([r, g, b]) => 0.2126 * channel(r / 255) + 0.7152 * channel(g / 255) + 0.0722 * channel(b / 255);
    const background = (element) => {
        for (let at = element; at !== null; at = at.parentElement) {
            const color = parse(getComputedStyle(at).backgroundColor);
            if (color[3] !== 0) return color;
        }
        return matchMedia('(prefers-color-scheme: dark)').matches &&
            getComputedStyle(document.documentElement).colorScheme.includes('dark')
            ? [18, 18, 18]
            : [255, 255, 255];
    };
    let contrast = 21;
    let of = '';
    let smallest = 99;
    for (const element of document.body.querySelectorAll('*')) {
        const text = [...element.childNodes]
            .filter((node) => node.nodeType === 3)
            .map((node) => node.data.trim())
            .join('');
        if (text === '' || element.offsetParent === null) continue;
        const style = getComputedStyle(element);
        const pair = [luminance(parse(style.color)), luminance(background(element))].sort((a, b) => b - a);
        const ratio = (pair[0] + 0.05) / (pair[1] + 0.05);
        if (ratio < contrast) [contrast, of] = [ratio, text.slice(0, 30)];
        smallest = Math.min(smallest, parseFloat(style.fontSize));
    }
    const heights = [...document.querySelectorAll('a, button')].map(
        (element) => element.getBoundingClientRect().height,
    );
    return {
        lang: document.documentElement.lang,
        viewport: document.querySelector('meta[name=viewport]')?.content ?? '',
        title: document.title,
        heading: document.querySelector('h1')?.innerText ?? '',
        headings: document.querySelectorAll('h1').length,
        text: document.body.innerText,
        overflow: document.documentElement.scrollWidth - innerWidth,
        contrast,
        of,
        smallest,
        targets: Math.min(99, ...heights),
        scripts: document.scripts.length,
        resources: performance.getEntriesByType('resource').map((entry) => entry.name),
    };
}
