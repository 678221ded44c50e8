// Logins of a browser by a scan with the Mini Program. The phone is played by requests.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';

import { DESK, PEOPLE } from '../chromium.mjs';
import * as step from '../steps.mjs';
import { until } from '../world.mjs';

/** What the Mini Program sends; gives its response. */
const phone = (world, host, id, token) => (action) =>
    world.ask('POST', world.url(host, `/scan/${id}`), { headers: { 'X-3rd-Session': token }, body: { action } });

/** Begins a scan with the requests of a page, without the script. */
async function begin(world, page, host) {
    await page.goto(world.url(host, '/open/page'));
    const { status, json, headers } = await step.fetchIn(page, '/scan', { method: 'POST' });
    if (status !== 200) throw new Error(`scan: ${status} ${JSON.stringify(json)}`);
    return { ...json, headers };
}

const poll = (page, id, state = '') => step.fetchIn(page, `/scan/${id}${state && `?state=${state}`}`);

export async function scan_requests(world) {
    for (const person of [PEOPLE[0], DESK]) {
        const from = world.fromElsewhere();
        const context = await world.chromium.person(person, from);
        const page = await context.newPage();
        const label = (text) => `${person.name}: ${text}`;
        const { scan_id: id, expires_in, content, headers } = await begin(world, page, 'plain');
        world.promise(
            label('it gives an id, its life and what to show'),
            id.length <= 32 && expires_in === 120 && content.length > 0,
            content,
        );
        world.same(label('it is not stored'), headers['cache-control'], 'no-store');
        world.same(
            label('it sets one cookie, no session'),
            [(await step.ourCookies(context)).length, await step.sessionCookie(context)],
            [1, undefined],
        );
        const token = await step.miniProgramToken(world, 'sam');
        const send = phone(world, 'plain', id, token);
        const waiting = poll(page, id);
        const early = await send('confirm');
        world.same(label('a step out of order'), [early.status, early.json().error], [403, 'not_allowed']);
        const scanned = await send('scan');
        const { browser, address, since } = scanned.json();
        world.promise(
            label('the phone sees which browser, where and since when'),
            /\S/.test(browser) &&
                address === from.extraHTTPHeaders['X-Forwarded-For'] &&
                !Number.isNaN(Date.parse(since)),
            `${browser}, ${address}`,
        );
        world.same(label('the page learns of it'), (await waiting).json, { state: 'scanned' });
        const other = await phone(world, 'plain', id, await step.miniProgramToken(world, 'eve'))('confirm');
        world.same(label('another user cannot confirm'), [other.status, other.json().error], [403, 'not_allowed']);
        const stranger = await (await world.chromium.person(person)).newPage();
        await stranger.goto(world.url('plain', '/open/page'));
        world.same(label('another browser sees nothing'), (await poll(stranger, id)).status, 404);
        const answered = poll(page, id, 'scanned');
        world.same(label('the phone confirms'), (await send('confirm')).status, 204);
        world.same(label('the page learns of it, too'), (await answered).json, { state: 'confirmed' });
        const own = await world.ask('GET', world.url('plain', '/json/me'), { headers: { 'X-3rd-Session': token } });
        await page.goto(world.url('plain', '/h5/scanned'));
        world.same(
            label('the browser has a session of the same user'),
            await step.openidShown(page),
            own.json().headers['x-openid'],
        );
        world.promise(label('of its own'), (await step.sessionCookie(context)).value !== token);
        world.same(label('the other browser has none'), (await poll(stranger, id)).status, 404);
    }
}

export async function scan_denied(world) {
    const context = await world.chromium.person(DESK, world.fromElsewhere());
    const page = await context.newPage();
    const { scan_id: id } = await begin(world, page, 'plain');
    const send = phone(world, 'plain', id, await step.miniProgramToken(world, 'sam'));
    await send('scan');
    world.same('denied', (await send('deny')).status, 204);
    world.same('the page learns of it', (await poll(page, id, 'scanned')).json, { state: 'denied' });
    world.same('no session', await step.sessionCookie(context), undefined);
    world.same('an unknown id', (await poll(page, 'abcdefghijklmnop')).status, 404);
    // A page of another site can neither begin a scan nor end one.
    for (const host of ['evil.example.net', 'shop.example.com']) {
        await page.goto(world.foreign(host, '/page-without-scripts'));
        await page.evaluate(
            (url) => fetch(url, { method: 'POST', mode: 'no-cors', credentials: 'include' }),
            world.url('plain', '/scan'),
        );
        const lines = await step.logged(world, '/scan');
        world.same(
            `a page of ${host} cannot begin one`,
            [lines.at(-1).status, lines.at(-1).error],
            [403, 'cross_site'],
        );
    }
}

/** A page with the script, as a site has it: no inline scripts and styles. */
function serve(world, lang, image) {
    const csp =
        "default-src 'none'; script-src 'self'; connect-src 'self'; img-src 'self' data:; style-src 'self'; base-uri 'none'";
    // A rule that many sites have.
    world.service.pages['/open/scan.css'] = { type: 'text/css', body: 'button { display: inline-block; }' };
    world.service.pages['/open/wxgate-scan.js'] = {
        type: 'text/javascript; charset=utf-8',
        body: readFileSync(join(world.root, 'deploy/web/wxgate-scan.js')),
    };
    world.service.pages['/open/scan'] = {
        body: `<!doctype html><html lang=${lang}><meta charset=utf-8><meta name=viewport content="width=device-width, initial-scale=1"><title>scan</title><link rel=icon href=data:,><link rel=stylesheet href=/open/scan.css>
            <h1>wxgate</h1><div id=login></div><script src=/open/wxgate-scan.js data-element=#login data-image=${image} data-return=/h5/scanned defer></script>`,
        headers: { 'Content-Security-Policy': csp },
    };
}

export async function scan_page(world) {
    for (const person of PEOPLE) {
        for (const image of ['mini-program', 'qr']) {
            const lang = person.locale.slice(0, 2);
            serve(world, lang, image);
            const context = await world.chromium.person(person, world.fromElsewhere());
            const page = await context.newPage();
            const label = (text) => `${person.name}, ${image}: ${text}`;
            const look = (name) => step.look(world, page, `${person.name}-${image}-${name}`);
            const faults = [];
            page.on('console', (message) => message.type() === 'error' && faults.push(message.text()));
            page.on('pageerror', (error) => faults.push(`${error}`));
            const begun = page.waitForResponse(
                (response) => response.request().method() === 'POST' && response.url().endsWith('/scan'),
            );
            await page.goto(world.url('plain', '/open/scan'));
            const response = await begun;
            const { scan_id: id } = await response.json();
            await page.locator('[data-state=waiting]').waitFor();
            await page.locator(image === 'qr' ? 'svg' : 'img').waitFor();
            if (image !== 'qr')
                await page.waitForFunction(() => document.images[0]?.complete && document.images[0].naturalWidth > 0);
            await look('waiting');
            world.same(label('no button for another code yet'), await page.getByRole('button').count(), 0);
            const size = await page.locator('.wxgate-scan-code > *').boundingBox();
            world.promise(
                label('the code is large enough, and fits'),
                size.width >= 200 && size.x >= 0 && size.x + size.width <= page.viewportSize().width,
                `${Math.round(size.width)} px`,
            );
            const send = phone(world, 'plain', id, await step.miniProgramToken(world, 'sam'));
            await send('scan');
            await page.locator('[data-state=scanned]').waitFor();
            await look('scanned');
            if (image === 'qr') {
                await send('deny');
                await page.locator('[data-state=denied]').waitFor();
                await look('denied');
                world.same(
                    label('denied: no session, and a button for a new code'),
                    [await step.sessionCookie(context), await page.getByRole('button').isVisible()],
                    [undefined, true],
                );
            } else {
                await send('confirm');
                await page.waitForURL((at) => at.pathname === '/h5/scanned');
                world.promise(label('confirmed: the page is logged in'), (await step.openidShown(page)) !== undefined);
            }
            world.same(label('nothing offends the CSP or fails'), faults, []);
        }
    }
}

/** Ten codes a minute for one address. */
export async function scan_limit(world) {
    const person = PEOPLE[0];
    const page = await (await world.chromium.person(person, world.fromElsewhere())).newPage();
    await page.goto(world.url('plain', '/open/page'));
    const statuses = [];
    for (let count = 0; count < 11; count += 1)
        statuses.push((await step.fetchIn(page, '/scan', { method: 'POST' })).status);
    world.same('ten scans, and no eleventh', statuses, [...Array(10).fill(200), 429]);
    serve(world, 'zh', 'qr');
    await page.goto(world.url('plain', '/open/scan'));
    await page.locator('[data-state=failed]').waitFor();
    await step.look(world, page, 'limited');
    world.same('the page says so, and offers to try again', await page.getByRole('button').isVisible(), true);
}

/** A browser that is no browser of the gateway's, and a code that runs out, with a short life. */
export async function scan_elsewhere(world) {
    const page = await (await world.chromium.person(DESK)).newPage();
    await page.goto(world.url('other', '/open/page'));
    const { status } = await step.fetchIn(page, '/scan', { method: 'POST' });
    world.promise('a host without [[browser]] has no scans', status === 404 || status === 401, status);
}
