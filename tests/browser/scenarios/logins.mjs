// Logins that end well, and where a host cannot log in this browser.
import { AGENTS, DESK, PEOPLE, PHONE } from '../chromium.mjs';
import * as step from '../steps.mjs';
import { OFFICIAL, WEBSITE } from '../world.mjs';

const PATH = '/h5/orders?id=1&name=%E5%BC%A0%20b+c&empty=';

/** Where the person is sent, how, and what is left in the browser at the end. */
async function login(world, person, { host, path, app, scope, user }) {
    const context = await world.chromium.person(person);
    const page = await context.newPage();
    const trail = new step.Trail(page);
    const url = world.url(host, PATH);
    await page.goto(url);
    const at = await step.atWeChat(world, page);
    const label = (text) => `${person.name}: ${text}`;
    const state = at.searchParams.get('state');
    const redirect = world.url(host, '/login/callback');
    const wanted = new URLSearchParams({ appid: app, redirect_uri: redirect, response_type: 'code', scope, state });
    world.same(
        label("WeChat's page gets the parameters in WeChat's order"),
        `${at.pathname}${at.search}${at.hash}`,
        `${path}?${wanted}#wechat_redirect`,
    );
    world.promise(label('the state has 32 letters and digits'), /^[0-9A-Za-z]{32}$/.test(state));
    const [first] = (await trail.all()).filter((row) => row.url === url);
    world.same(
        label('the page answers 302, no-store'),
        [first.status, first.header('cache-control')],
        [302, 'no-store'],
    );
    const started = (await trail.all()).flatMap((row) => row.cookies);
    world.same(label('one cookie holds the state'), started.length, 1);
    world.promise(
        label('the state cookie is Secure, HttpOnly, SameSite=Lax, Path=/, for ten minutes'),
        /^__Host-wxgate-[^=]+=[^;]+; /.test(started[0]) &&
            attributes(started[0]) === 'httponly max-age=600 path=/ samesite=lax secure',
        attributes(started[0]),
    );
    await step.look(world, page, `${person.name}-wechat`);
    const { contrast, overflow, targets, viewport } = await step.facts(page);
    world.promise(
        label("the sandbox's page is readable"),
        contrast >= 4.5 && overflow <= 0 && targets >= 40 && viewport !== '',
        `contrast ${contrast.toFixed(1)}`,
    );
    trail.clear();
    await step.choose(page, user);
    await step.arrived(page, url);
    const [callback] = await trail.of('/login/callback');
    world.same(
        label('the callback answers 302, no-store'),
        [callback.status, callback.header('cache-control')],
        [302, 'no-store'],
    );
    world.same(label('the callback tells nobody its URL'), callback.header('referrer-policy'), 'no-referrer');
    const session = callback.cookies.find((cookie) => cookie.startsWith(`${step.SESSION}=`)) ?? '';
    world.same(label('the session cookie'), attributes(session), 'httponly path=/ samesite=lax secure');
    const { url: asked, headers } = await step.shown(page);
    world.same(label('the service gets the same path and query'), asked, PATH);
    world.same(label('the service gets the app'), headers['x-appid'], app);
    world.promise(label('the service gets an openid'), /^[\w-]{20,}$/.test(headers['x-openid'] ?? ''));
    world.same(label('the service gets no cookie of ours'), headers.cookie, undefined);
    world.promise(
        label('the service gets no Referer with a code'),
        !/code=|state=/.test(headers.referer ?? ''),
        headers.referer ?? 'no Referer',
    );
    world.same(label('scripts see no cookie of ours'), await page.evaluate(() => document.cookie), '');
    world.promise(
        label('scripts see no code in document.referrer'),
        !(await page.evaluate(() => document.referrer)).includes('code='),
    );
    return { context, page, headers };
}

function attributes(cookie) {
    return cookie.toLowerCase().split('; ').slice(1).sort().join(' ');
}

export async function silent_login(world) {
    for (const person of PEOPLE.filter(({ isPhone }) => isPhone)) {
        const { page, headers } = await login(world, person, {
            host: 'h5',
            path: '/connect/oauth2/authorize',
            app: OFFICIAL,
            scope: 'snsapi_base',
            user: 'alice',
        });
        world.same(`${person.name}: a silent login gives no unionid`, headers['x-unionid'], undefined);
        world.same(
            `${person.name}: over HTTP/2`,
            await page.evaluate(() => performance.getEntriesByType('navigation')[0].nextHopProtocol),
            'h2',
        );
        await page.goto(world.url('h5', '/h5/again'));
        world.same(`${person.name}: the next page needs no login`, await step.openidShown(page), headers['x-openid']);
    }
}

/** WeChat knows the user and asks nothing: the person sees the page at once. */
export async function login_without_a_click(world) {
    for (const person of PEOPLE.filter(({ isPhone }) => isPhone)) {
        const context = await world.chromium.person(person);
        const page = await context.newPage();
        await page.goto(`http://127.0.0.1:${world.wechatPort}/sandbox/user?name=alice`);
        await step.look(world, page, `${person.name}-user`);
        const trail = new step.Trail(page);
        const url = world.url('h5', PATH);
        const response = await page.goto(url);
        world.same(`${person.name}: one page load`, [response.status(), page.url()], [200, `${url}#`]);
        const steps = (await trail.all())
            .filter(({ path }) => path !== '/favicon.ico')
            .map(({ path, status }) => `${path} ${status}`);
        world.same(`${person.name}: three redirects`, steps, [
            '/h5/orders 302',
            '/connect/oauth2/authorize 302',
            '/login/callback 302',
            '/h5/orders 200',
        ]);
        world.promise(`${person.name}: the service gets an openid`, (await step.openidShown(page)) !== undefined);
        const length = await page.evaluate(() => history.length);
        await page.goBack();
        world.promise(
            `${person.name}: back leads to the page before, not into the login`,
            page.url().includes('/sandbox/user'),
            `${length} entries`,
        );
    }
}

export async function login_with_consent(world) {
    for (const person of PEOPLE.filter(({ isPhone }) => isPhone)) {
        await login(world, person, {
            host: 'consent',
            path: '/connect/oauth2/authorize',
            app: OFFICIAL,
            scope: 'snsapi_userinfo',
            user: 'alice',
        });
    }
}

export async function website_login(world) {
    for (const person of PEOPLE.filter(({ isPhone }) => !isPhone)) {
        await login(world, person, {
            host: 'h5',
            path: '/connect/qrconnect',
            app: WEBSITE,
            scope: 'snsapi_login',
            user: 'alice',
        });
    }
}

/** WeChat's browser where only the website can log in, and the other way round. */
export async function wrong_browser(world) {
    for (const person of PEOPLE) {
        const context = await world.chromium.person(person);
        const page = await context.newPage();
        const host = person.isPhone ? 'desk' : 'wechat';
        const response = await page.goto(world.url(host, '/h5/wrong?id=1'));
        const text = await step.ownPage(world, page, response, {
            person,
            name: `${person.name}-wrong-browser`,
            status: 403,
        });
        world.promise(
            `${person.name}: the page says where to open the site`,
            /WeChat|微信|browser|浏览器/.test(text),
            text.replaceAll('\n', ' '),
        );
        world.same(`${person.name}: nothing is started`, await step.ourCookies(context), []);
        const started = await page.goto(world.url(host, '/login/start?return=/h5/wrong'));
        world.same(`${person.name}: the same at /login/start`, started.status(), 403);
    }
    const french = await (await world.chromium.person({ isPhone: false, locale: 'fr-FR' })).newPage();
    await french.goto(world.url('wechat', '/h5/wrong'));
    world.same('every other language gets English', await french.evaluate(() => document.documentElement.lang), 'en');
    world.same('the service sees none of it', world.service.asked('/h5/wrong').length, 0);
}

/** WeCom's browser names MicroMessenger as well, but is another. */
export async function wecom_browser(world) {
    const context = await world.chromium.person(DESK, { userAgent: AGENTS.wecom });
    const page = await context.newPage();
    await page.goto(world.url('h5', '/h5/wecom'));
    const at = await step.atWeChat(world, page);
    world.same(
        'it gets the login of websites',
        [at.pathname, at.searchParams.get('appid')],
        ['/connect/qrconnect', WEBSITE],
    );
    const response = await page.goto(world.url('wechat', '/h5/wecom'));
    world.same('where only the official account is set, 403', response.status(), 403);
    await step.look(world, page, 'page');
}

/** A host that logs nobody in, and one that is no browser host. */
export async function host_without_login(world) {
    for (const [host, person] of [
        ['plain', PHONE],
        ['plain', DESK],
        ['other', PHONE],
        ['other', DESK],
    ]) {
        const context = await world.chromium.person(person);
        const page = await context.newPage();
        const response = await page.goto(world.url(host, '/h5/plain'));
        world.same(`${person.name}, ${host}: a page gets 401`, response.status(), 401);
        world.same(`${person.name}, ${host}: no cookies`, await step.ourCookies(context), []);
    }
}

/** Where `return` may lead. */
export async function return_path(world) {
    const context = await world.chromium.person(PHONE);
    const page = await context.newPage();
    const home = world.url('h5', '/');
    for (const [given, wanted] of [
        ['/h5/a?b=c&d=%20e', '/h5/a?b=c&d=%20e'],
        ['/h5/%E4%B8%AD', '/h5/%E4%B8%AD'],
        // The route of a page with a router of its own.
        ['/h5/#/orders/5?id=1', '/h5/#/orders/5?id=1'],
        ['', '/'],
        ['//evil.example.net/', '/'],
        ['///evil.example.net/', '/'],
        ['/\\evil.example.net/', '/'],
        ['\\\\evil.example.net/', '/'],
        ['/\t/evil.example.net/', '/'],
        ['/\n/evil.example.net/', '/'],
        ['https://evil.example.net/', '/'],
        ['javascript:alert(1)', '/'],
        ['h5', '/'],
        // Whether this is a path that the gateway takes depends on its routes.
        ['/%2f/evil.example.net', undefined],
        ['/h5/../..//evil.example.net', undefined],
        [`/h5/${'x'.repeat(2100)}`, '/'],
    ]) {
        await page.goto(world.url('h5', `/login/start?return=${encodeURIComponent(given)}`));
        await step.atWeChat(world, page);
        await step.choose(page, 'alice');
        await page.waitForURL((at) => at.host === new URL(home).host && at.pathname !== '/login/callback');
        const shown = JSON.stringify(given).slice(0, 40);
        const path = step.urlOf(page).replace(home.slice(0, -1), '');
        if (wanted === undefined) world.promise(`return=${shown} stays on the host`, path.startsWith('/'), path);
        else world.same(`return=${shown}`, path, wanted);
    }
}
