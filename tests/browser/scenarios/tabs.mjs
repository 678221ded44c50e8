// One browser, several tabs, and people who go back, reload and click twice.
import { DESK, PEOPLE, PHONE } from '../chromium.mjs';
import * as step from '../steps.mjs';

export async function two_tabs(world) {
    for (const person of PEOPLE) {
        const context = await world.chromium.person(person);
        const urls = [1, 2].map((tab) => world.url('h5', `/h5/tab?tab=${tab}`));
        const pages = [await context.newPage(), await context.newPage()];
        await Promise.all(pages.map((page, tab) => page.goto(urls[tab])));
        await Promise.all(pages.map((page) => step.atWeChat(world, page)));
        await Promise.all(pages.map((page) => step.choose(page, 'alice')));
        await Promise.all(pages.map((page, tab) => step.arrived(page, urls[tab])));
        const openids = await Promise.all(pages.map((page) => step.openidShown(page)));
        world.promise(
            `${person.name}: two tabs that log in at once end at their own pages, as one user`,
            openids[0] === openids[1] && openids[0] !== undefined,
        );
        await pages[0].reload();
        world.same(`${person.name}: the first tab is still logged in`, await step.openidShown(pages[0]), openids[0]);
    }
}

/** Five logins may be under way in one browser; with the sixth, the first one must begin again. */
export async function six_tabs(world) {
    const context = await world.chromium.person(DESK);
    const tabs = [];
    for (let tab = 1; tab <= 6; tab += 1) {
        const page = await context.newPage();
        const url = world.url('h5', `/h5/six?tab=${tab}`);
        tabs.push({ page, url, ...(await step.begin(world, page, url)) });
    }
    const ours = await step.ourCookies(context);
    world.promise('the browser holds at most five states', ours.length <= 5, ours.length);
    const size = (await context.cookies()).reduce((sum, { name, value }) => sum + name.length + value.length, 0);
    world.promise('they take less than 4 KiB', size < 4096, `${size} bytes`);
    const [oldest, ...others] = tabs;
    const response = await oldest.page.goto(oldest.callback(step.codeOf('user-alice')));
    world.same('the oldest login is refused', response.status(), 400);
    await step.look(world, oldest.page, 'oldest');
    for (const { page, url, callback } of others) {
        await page.goto(callback(step.codeOf('user-alice')));
        await step.arrived(page, url);
    }
    world.promise('the other five end at their pages', true);
    world.same(
        'no state is left, or only what answers a second call',
        (await step.ourCookies(context)).length <= 6,
        true,
    );
}

/** The states of long URLs fit into a request header, however many there are. */
export async function six_tabs_with_long_urls(world) {
    const context = await world.chromium.person(PHONE);
    const page = await context.newPage();
    const url = (tab) => world.url('h5', `/h5/long?tab=${tab}&q=${'x'.repeat(2000)}`);
    let last;
    for (let tab = 1; tab <= 6; tab += 1) last = await step.begin(world, page, url(tab));
    const size = (await context.cookies()).reduce((sum, { name, value }) => sum + name.length + value.length, 0);
    world.promise('the cookies stay below 8 KiB', size < 8192, `${size} bytes`);
    await page.goto(last.callback(step.codeOf('user-alice')));
    await step.arrived(page, url(6));
    world.promise('the last login ends at its page', true);
}

/** After the login the person goes back, to WeChat's page, and chooses again. */
export async function back_button(world) {
    for (const person of PEOPLE) {
        const context = await world.chromium.person(person);
        const page = await context.newPage();
        const url = world.url('h5', '/h5/back?id=1');
        await step.logIn(world, page, url);
        const openid = await step.openidShown(page);
        await page.goBack();
        await step.atWeChat(world, page);
        const callback = page.waitForResponse((response) => response.url().includes('/login/callback'));
        await step.choose(page, 'alice');
        const response = await callback;
        await page.waitForLoadState();
        await step.look(world, page, person.name);
        world.promise(
            `${person.name}: WeChat's page again, with the same state: no failure of the gateway`,
            response.status() < 500,
            response.status(),
        );
        if (response.status() >= 400) {
            const link = page.getByRole('link').first();
            world.promise(`${person.name}: that page offers a way on`, (await link.count()) > 0);
        }
        await page.goto(url);
        world.same(`${person.name}: the session is as before`, await step.openidShown(page), openid);
        await page.goForward().catch(() => null);
        await page.goto(world.url('h5', '/h5/next'));
        await page.goBack();
        await step.arrived(page, url);
        world.same(
            `${person.name}: back from the next page shows the page, without a login`,
            await step.openidShown(page),
            openid,
        );
    }
}

/** WeChat's browser sometimes calls the callback twice; people reload. */
export async function callback_again(world) {
    for (const person of PEOPLE) {
        const context = await world.chromium.person(person);
        const page = await context.newPage();
        const url = world.url('h5', '/h5/twice?id=1');
        const { callback } = await step.begin(world, page, url);
        const to = callback(step.codeOf('user-alice'));
        const created = await world.metric('wxgate_sessions_created_total');
        const before = await context.cookies();
        const headers = {
            'User-Agent': await page.evaluate(() => navigator.userAgent),
            Cookie: before.map(({ name, value }) => `${name}=${value}`).join('; '),
        };
        const [first, second] = await Promise.all([1, 2].map(() => world.ask('GET', to, { headers })));
        world.same(
            `${person.name}: two calls at once get one answer`,
            [first, second].map(({ status, headers }) => [status, headers.location]),
            [1, 2].map(() => [302, '/h5/twice?id=1#']),
        );
        const cookie = ({ headers }) => /__Host-wxgate=([^;]*)/.exec(headers['set-cookie'])?.[1];
        world.promise(
            `${person.name}: with one session`,
            cookie(first) !== undefined && cookie(first) === cookie(second),
        );
        world.same(
            `${person.name}: and make one session`,
            (await world.metric('wxgate_sessions_created_total')) - created,
            1,
        );
        // A browser that lost the answer still has its state cookie.
        await context.clearCookies();
        await context.addCookies(before);
        await page.goto(to);
        await step.arrived(page, url);
        const openid = await step.openidShown(page);
        world.promise(
            `${person.name}: a third call from a browser that lost the answer ends at the page`,
            openid !== undefined,
        );
        const reloaded = await page.goto(to);
        await step.look(world, page, person.name);
        world.same(
            `${person.name}: the callback, reloaded after it was answered, ends at the page`,
            [reloaded.status(), step.urlOf(page)],
            [200, url],
        );
        world.same(
            `${person.name}: and no further session`,
            (await world.metric('wxgate_sessions_created_total')) - created,
            1,
        );
    }
}

/** What a browser loads in advance starts no login. */
export async function prefetch(world) {
    const context = await world.chromium.person(DESK);
    const page = await context.newPage();
    const rules = (kind, path) =>
        `<script type=speculationrules>{"${kind}":[{"source":"list","urls":["${path}"],"eagerness":"immediate"}]}</script>`;
    const started = await world.metric('wxgate_http_requests_total{route="@start",code="302"}');
    world.service.pages['/open/prefetch'] = `<!doctype html><title>prefetch</title>
        <link rel=prefetch href=/h5/prefetch-link><link rel=prefetch href=/h5/prefetch-document as=document>
        <link rel=prerender href=/h5/prerender-link><link rel=prefetch href=/login/start>
        ${rules('prefetch', '/h5/prefetch-rule')}${rules('prerender', '/h5/prerender-rule')}`;
    await page.goto(world.url('h5', '/open/prefetch'));
    for (const path of [
        '/h5/prefetch-link',
        '/h5/prefetch-document',
        '/h5/prefetch-rule',
        '/h5/prerender-link',
        '/h5/prerender-rule',
    ]) {
        const lines = await step.logged(world, path).catch(() => []);
        if (lines.length === 0) world.skip(`${path} gets 401`, 'Chromium does not load it');
        else
            world.same(
                `${path} gets 401`,
                lines.map(({ status }) => status),
                lines.map(() => 401),
            );
    }
    world.same('no state is set', await step.ourCookies(context), []);
    world.same(
        'no login is started',
        await world.metric('wxgate_http_requests_total{route="@start",code="302"}'),
        started,
    );
    await page.goto(world.url('h5', '/h5/prerender-rule'));
    await step.atWeChat(world, page);
    world.promise('a click on such a page starts one', true);
}

/** Pages of someone else frame the site and its login. */
export async function frames(world) {
    for (const person of [PHONE, DESK]) {
        for (const host of ['evil.example.net', 'shop.example.com']) {
            const context = await world.chromium.person(person);
            const page = await context.newPage();
            const label = (text) => `${person.name}, ${host}: ${text}`;
            const paths = [
                '/h5/framed',
                '/login/start?return=/h5/framed',
                '/login/callback?code=x&state=y',
                '/login/callback?state=y',
            ];
            const parts = paths.map((path) => `<iframe src="${world.url('h5', path)}"></iframe>`);
            parts.push(
                `<embed type=text/html src="${world.url('h5', '/h5/embedded')}"><object type=text/html data="${world.url('h5', '/h5/object')}"></object>`,
            );
            world.elsewhere.pages['/frames'] = `<!doctype html><title>frames</title>${parts.join('')}`;
            const trail = new step.Trail(page);
            await page.goto(world.foreign(host, '/frames'), { waitUntil: 'load' });
            const rows = await trail.all();
            const framed = rows
                .filter(({ path }) => path.startsWith('/h5/'))
                .map(({ path, status }) => `${path} ${status}`);
            world.same(label('a framed page without a session gets 401 and no redirect'), framed.sort(), [
                '/h5/embedded 401',
                '/h5/framed 401',
                '/h5/object 401',
            ]);
            world.promise(
                label('WeChat is never framed'),
                rows.every(({ url }) => !url.includes(`:${world.wechatPort}`)),
                rows.map(({ path, status }) => `${path} ${status}`).join(', '),
            );
            for (const row of rows.filter(({ path }) => path.startsWith('/login/'))) {
                const csp = row.header('content-security-policy') ?? '';
                const closed = row.header('x-frame-options') === 'DENY' && csp.includes("frame-ancestors 'none'");
                world.promise(
                    label(`${row.path} cannot be framed`),
                    row.status === 401 || closed,
                    `${row.status} ${row.header('x-frame-options')}`,
                );
            }
            world.same(label('no cookie is set'), await step.ourCookies(context), []);
        }
    }
}
