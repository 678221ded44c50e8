// Requests that scripts make, and what of a login is left in them.
import { DESK, PEOPLE, PHONE } from '../chromium.mjs';
import * as step from '../steps.mjs';
import { until } from '../world.mjs';

/** A page that needs no login, to start scripts from. */
async function openPage(world, person, host = 'h5', options = {}) {
    const context = await world.chromium.person(person, options);
    const page = await context.newPage();
    await page.goto(world.url(host, '/open/page'));
    return { context, page };
}

/** A script without a session gets JSON that says where to log in, never a redirect. */
export async function scripts_without_session(world) {
    for (const person of PEOPLE) {
        const { context, page } = await openPage(world, person);
        for (const path of ['/h5/data', '/json/data']) {
            for (const headers of [{}, { Accept: 'text/html' }, { 'X-Requested-With': 'XMLHttpRequest' }]) {
                const found = await step.fetchIn(page, path, { headers });
                const label = `${person.name}: fetch of ${path} ${JSON.stringify(headers)}`;
                world.same(
                    label,
                    [found.status, found.redirected, found.json?.error, found.json?.action],
                    [401, false, 'missing_token', 'login'],
                );
                if (path === '/h5/data')
                    world.promise(
                        `${label}: login_url`,
                        typeof found.json?.login_url === 'string',
                        found.json?.login_url,
                    );
                world.same(`${label}: not stored`, found.headers['cache-control'], 'no-store');
            }
        }
        const start = await step.fetchIn(page, '/login/start?return=/h5/data');
        world.same(
            `${person.name}: fetch of /login/start`,
            [start.status, start.redirected, start.json?.error],
            [401, false, 'missing_token'],
        );
        const post = await step.fetchIn(page, '/h5/data', { method: 'POST', body: 'x' });
        world.same(
            `${person.name}: a POST of a script`,
            [post.status, post.redirected, post.json?.error],
            [401, false, 'missing_token'],
        );
        const status = await page.evaluate(
            () =>
                new Promise((resolve) => {
                    const request = new XMLHttpRequest();
                    request.open('GET', '/h5/xhr');
                    request.setRequestHeader('Accept', 'text/html,application/xhtml+xml');
                    request.onloadend = () => resolve([request.status, new URL(request.responseURL).pathname]);
                    request.send();
                }),
        );
        world.same(`${person.name}: an XMLHttpRequest`, status, [401, '/h5/xhr']);
        world.same(`${person.name}: none of them sets a cookie`, await step.ourCookies(context), []);
        const found = await step.fetchIn(page, '/h5/data?id=1');
        const to = new URL(found.json.login_url, page.url());
        world.same(`${person.name}: login_url is on the same host`, to.origin, new URL(page.url()).origin);
        await page.goto(to.href);
        await step.atWeChat(world, page);
        await step.choose(page, 'alice');
        await page.waitForURL((at) => at.origin === to.origin && at.pathname !== '/login/callback');
        world.promise(
            `${person.name}: login_url leads to a login`,
            (await step.sessionCookie(context)) !== undefined,
            page.url(),
        );
    }
}

/** Where nobody can log in by redirect there is nothing to offer. */
export async function scripts_where_no_login_is(world) {
    const { page } = await openPage(world, DESK, 'plain');
    const found = await step.fetchIn(page, '/h5/data');
    world.same('401 JSON', [found.status, found.json?.error], [401, 'missing_token']);
    world.same('without login_url', found.json?.login_url, undefined);
}

/** A service has cookies of its own, and none of the gateway's. */
export async function cookies(world) {
    const { context, page } = await openPage(world, DESK);
    world.service.pages['/open/cookies'] = {
        body: '<!doctype html><title>cookies</title>',
        headers: {
            'Set-Cookie': [
                'theme=dark; Path=/; Secure',
                '__Host-wxgate=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA; Path=/; Secure',
                '__Host-wxgate-x=y; Path=/; Secure',
                '__Host-wxgateway=mine; Path=/; Secure',
            ],
        },
    };
    await page.goto(world.url('h5', '/open/cookies'));
    world.same('a service cannot set cookies of ours', (await context.cookies()).map(({ name }) => name).sort(), [
        '__Host-wxgateway',
        'theme',
    ]);
    await step.logIn(world, page, world.url('h5', '/h5/cookies'));
    const { headers } = await step.shown(page);
    world.same('the service gets its own cookies, in any order, and none of ours', headers.cookie.split('; ').sort(), [
        '__Host-wxgateway=mine',
        'theme=dark',
    ]);
    await page.goto(world.url('h5', '/open/none'));
    world.same('also on a route with auth = "none"', (await step.shown(page)).headers.cookie.split('; ').sort(), [
        '__Host-wxgateway=mine',
        'theme=dark',
    ]);
    world.same('and there is no identity there', await step.openidShown(page), undefined);
    world.same("scripts see the service's only", (await page.evaluate(() => document.cookie)).split('; ').sort(), [
        '__Host-wxgateway=mine',
        'theme=dark',
    ]);
    await page.goto(world.url('other', '/open/other'));
    world.same('another host gets none of ours', (await step.shown(page)).headers.cookie, undefined);
    await page.goto(world.url('consent', '/open/other'));
    world.same('another browser host gets none of ours', (await step.shown(page)).headers.cookie, undefined);
    const jar = await context.cookies(world.url('h5'));
    await context.addCookies(
        jar.map((cookie) => ({ ...cookie, domain: undefined, path: undefined, url: world.url('other') })),
    );
    await page.goto(world.url('other', '/open/other'));
    world.promise(
        'on a host without [[browser]] it is removed all the same',
        !/__Host-wxgate[=-]/.test((await step.shown(page)).headers.cookie ?? ''),
        (await step.shown(page)).headers.cookie,
    );
    const response = await page.goto(world.url('other', '/h5/other'));
    world.same('and logs nobody in', response.status(), 401);
}

/** After a login nothing that is loaded says how it was done. */
export async function referer(world) {
    world.service.pages['/h5/referer'] = `<!doctype html><title>referer</title><img src=/h5/referer.png>
        <img src="${world.foreign('evil.example.net', '/spy.png')}"><script>fetch('/h5/referer-fetch')</script>`;
    for (const person of [PHONE, DESK]) {
        const page = await (await world.chromium.person(person)).newPage();
        world.service.requests = [];
        world.elsewhere.requests = [];
        await step.logIn(world, page, world.url('h5', '/h5/referer'));
        await until(
            'the requests',
            () => world.service.asked('/h5/referer-fetch').length > 0 && world.elsewhere.asked('/spy.png').length > 0,
        );
        const all = [...world.service.requests, ...world.elsewhere.requests].map(
            ({ headers }) => headers.referer ?? '',
        );
        world.promise(
            `${person.name}: no Referer has a code, a state or the callback`,
            all.every((text) => !/code=|state=|callback/.test(text)),
            [...new Set(all)].join(' '),
        );
    }
}

/** A service worker makes the requests of its pages. */
export async function service_worker(world) {
    world.service.pages['/app/worker.js'] = {
        type: 'text/javascript',
        body: `addEventListener('install', () => skipWaiting());
            addEventListener('activate', (event) => event.waitUntil(clients.claim()));
            addEventListener('fetch', (event) => event.respondWith(fetch(event.request)));
            addEventListener('message', (event) => event.waitUntil(fetch('/app/by-worker').then((response) => event.source.postMessage(response.status + ' ' + response.redirected))));`,
    };
    for (const person of [PHONE, DESK]) {
        const context = await world.chromium.person(person);
        const page = await context.newPage();
        const url = world.url('h5', '/app/page?id=1');
        await page.goto(world.url('h5', '/open/page'));
        const refused = await page.evaluate(() =>
            navigator.serviceWorker.register('/app/worker.js', { scope: '/app/' }).then(
                () => 'registered',
                (error) => error.name,
            ),
        );
        world.same(`${person.name}: without a session its script is not loaded`, refused !== 'registered', true);
        const cached = await page.evaluate(async () => {
            const cache = await caches.open('offline');
            const outcome = await cache.addAll(['/app/offline']).then(
                () => 'cached',
                (error) => error.name,
            );
            return [outcome, (await cache.keys()).length];
        });
        world.same(`${person.name}: and nothing of a login gets into its cache`, cached, ['TypeError', 0]);
        await step.logIn(world, page, url);
        await page.evaluate(async () => {
            await navigator.serviceWorker.register('/app/worker.js', { scope: '/app/' });
            await navigator.serviceWorker.ready;
        });
        await page.reload();
        world.same(
            `${person.name}: it controls the page`,
            await page.evaluate(() => navigator.serviceWorker.controller !== null),
            true,
        );
        const openid = await step.openidShown(page);
        world.promise(`${person.name}: a page through it has the identity`, openid !== undefined);
        const asked = () =>
            page.evaluate(
                () =>
                    new Promise((resolve) => {
                        navigator.serviceWorker.addEventListener('message', (event) => resolve(event.data), {
                            once: true,
                        });
                        navigator.serviceWorker.controller.postMessage('');
                    }),
            );
        world.same(`${person.name}: a request of its own has the session`, await asked(), '200 false');
        await context.clearCookies();
        world.same(`${person.name}: without a session its own request gets 401`, await asked(), '401 false');
        const found = await step.fetchIn(page, '/app/data');
        world.same(
            `${person.name}: and that of its page as well`,
            [found.status, found.redirected, found.json?.error],
            [401, false, 'missing_token'],
        );
        await step.logIn(world, page, url);
        world.same(
            `${person.name}: a page through it is sent to WeChat and comes back`,
            await step.openidShown(page),
            openid,
        );
    }
}

/** Pages of a user are in no shared cache, and in no browser's cache after the logout. */
export async function caches(world) {
    const context = await world.chromium.person(DESK);
    const page = await context.newPage();
    world.service.pages['/h5/cached'] = {
        body: '<!doctype html><title>cached</title><h1>secret</h1>',
        headers: { 'Cache-Control': 'max-age=600' },
    };
    world.service.pages['/h5/plain'] = '<!doctype html><title>plain</title>';
    const url = world.url('h5', '/h5/cached');
    await step.logIn(world, page, url);
    const trail = new step.Trail(page);
    await page.goto(world.url('h5', '/h5/plain'));
    const [plain] = await trail.of('/h5/plain');
    world.same('a page with a session is private', plain.header('cache-control'), 'private');
    world.promise(
        'and varies by the carriers',
        ['cookie', 'authorization', 'x-3rd-session'].every((name) =>
            plain.header('vary')?.toLowerCase().includes(name),
        ),
        plain.header('vary'),
    );
    trail.clear();
    await page.goto(world.url('h5', '/h5/cached?fresh'));
    world.same(
        'max-age of the service stays, private is added',
        (await trail.all())[0].header('cache-control').split(', ').sort(),
        ['max-age=600', 'private'],
    );
    await step.fetchIn(page, '/logout', { method: 'POST' });
    const response = await page.goto(url);
    world.promise(
        'after the logout a cached page is not shown: its Vary names Cookie',
        (await page.locator('h1').textContent()) !== 'secret',
        response.url(),
    );
}
