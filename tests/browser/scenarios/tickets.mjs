// Tickets: places that can send no header.
import { AGENTS, DESK, PEOPLE, PHONE } from '../chromium.mjs';
import * as step from '../steps.mjs';
import { MINI_PROGRAM, until } from '../world.mjs';

const REDIRECTED = 'wxgate_ticket';

/** A Mini Program gets a ticket, and makes the URL's path with it. */
async function ticket(world, token, path, more = {}) {
    const response = await world.ask('POST', world.url('h5', '/ticket'), {
        headers: { 'X-3rd-Session': token },
        body: { path, ...more },
    });
    if (response.status !== 200) throw new Error(`ticket: ${response.status} ${response.text}`);
    const { ticket, expires_in } = response.json();
    return { expires_in, at: `${path}${path.includes('?') ? '&' : '?'}wxgate_ticket=${ticket}` };
}

export async function tickets_of_images(world) {
    for (const person of [PHONE, DESK]) {
        const context = await world.chromium.person(person);
        const page = await context.newPage();
        const token = await step.miniProgramToken(world, 'tina');
        const { at, expires_in } = await ticket(world, token, '/h5/picture.png?id=1');
        world.same(`${person.name}: it is good for 30 s`, expires_in, 30);
        world.service.requests = [];
        world.service.pages['/open/image'] = `<!doctype html><title>image</title><img src="${at}">`;
        await page.goto(world.url('h5', '/open/image'));
        world.same(`${person.name}: the image is shown`, await page.evaluate(() => document.images[0].naturalWidth), 1);
        const { url, headers } = world.service.one('/h5/picture.png');
        world.same(`${person.name}: the service does not see the ticket`, url, '/h5/picture.png?id=1');
        world.promise(`${person.name}: it sees the user`, headers['x-openid'] !== undefined);
        const again = await step.fetchIn(page, at);
        world.same(`${person.name}: a second time`, [again.status, again.redirected], [401, false]);
        const { at: swapped } = await ticket(world, token, '/h5/picture.png?id=1');
        for (const path of [swapped.replace('id=1', 'id=2'), swapped.replace('picture', 'other')]) {
            const found = await step.fetchIn(page, path);
            world.same(`${person.name}: with another path or query`, found.status, 401);
        }
        const posted = await step.fetchIn(page, swapped, { method: 'POST' });
        world.same(`${person.name}: with another method`, posted.status, 401);
        const beside = await step.fetchIn(page, swapped, { headers: { 'X-3rd-Session': token } });
        world.same(`${person.name}: beside a session header`, beside.status, 400);
        const found = await step.fetchIn(page, swapped);
        world.same(`${person.name}: none of these has used it up`, found.status, 200);
        world.same(
            `${person.name}: its response`,
            [found.headers['referrer-policy'], found.headers['cache-control']],
            ['no-referrer', 'private'],
        );
        world.same(`${person.name}: no cookie is set`, await step.ourCookies(context), []);
    }
}

export async function tickets_of_videos(world) {
    const context = await world.chromium.person(PHONE);
    const page = await context.newPage();
    const token = await step.miniProgramToken(world, 'tina');
    const { at } = await ticket(world, token, '/h5/film.wav', { reuse: true });
    world.service.pages['/open/video'] =
        `<!doctype html><title>video</title><video muted preload=auto src="${at}"></video>`;
    await page.goto(world.url('h5', '/open/video'));
    const played = await page.evaluate(async () => {
        const video = document.querySelector('video');
        const ready = () =>
            new Promise((resolve, reject) =>
                Object.assign(video, { onseeked: resolve, onerror: () => reject(new Error(video.error.message)) }),
            );
        await video.play();
        video.currentTime = 45;
        await ready();
        return [video.duration, Math.floor(video.currentTime)];
    });
    world.same('a player loads it in ranges, and seeks', played, [60, 45]);
    const asked = world.service.asked('/h5/film.wav');
    world.promise(
        'several requests with one ticket',
        asked.length >= 2 &&
            asked.every(({ headers, url }) => headers.range && headers['x-openid'] && !url.includes('ticket')),
        asked.map(({ headers }) => headers.range).join(' '),
    );
    const { at: once } = await ticket(world, token, '/h5/once.wav');
    world.same(
        'without reuse it is good for one request',
        [(await step.fetchIn(page, once)).status, (await step.fetchIn(page, once)).status],
        [200, 401],
    );
}

export async function tickets_of_websockets(world) {
    const context = await world.chromium.person(DESK);
    const page = await context.newPage();
    const token = await step.miniProgramToken(world, 'tina');
    await page.goto(world.url('h5', '/open/page'));
    const connect = (path) =>
        page.evaluate(
            (url) =>
                new Promise((resolve) => {
                    const socket = new WebSocket(url);
                    socket.onmessage = ({ data }) => resolve(JSON.parse(data)['x-openid']);
                    socket.onerror = () => resolve('refused');
                }),
            world.url('h5', path).replace('https', 'wss'),
        );
    const { at } = await ticket(world, token, '/ws/ticket');
    world.promise('a WebSocket with a ticket has the identity', /^[\w-]{20,}$/.test(await connect(at)));
    world.same('only once', await connect(at), 'refused');
}

/** A web-view inside the Mini Program takes over its session. */
export async function tickets_of_web_views(world) {
    const phone = PEOPLE.filter(({ isPhone }) => isPhone);
    for (const person of phone) {
        const context = await world.chromium.person(person, { userAgent: AGENTS.miniProgram(MINI_PROGRAM) });
        const page = await context.newPage();
        const token = await step.miniProgramToken(world, 'wendy');
        const { at } = await ticket(world, token, '/h5/view?id=1&b=%20', { cookie: true });
        const trail = new step.Trail(page);
        await page.goto(world.url('h5', at));
        const [first] = (await trail.all()).filter(({ url }) => url.includes(REDIRECTED));
        world.same(
            `${person.name}: it redirects, no-store`,
            [first.status, first.header('cache-control'), first.header('referrer-policy')],
            [302, 'no-store', 'no-referrer'],
        );
        world.same(`${person.name}: to the URL without the ticket`, page.url(), world.url('h5', '/h5/view?id=1&b=%20'));
        const { headers, url } = await step.shown(page);
        const own = await world.ask('GET', world.url('h5', '/json/me'), { headers: { 'X-3rd-Session': token } });
        world.same(
            `${person.name}: the same X-OpenId as in the Mini Program`,
            headers['x-openid'],
            own.json().headers['x-openid'],
        );
        world.same(`${person.name}: the service sees no ticket`, url, '/h5/view?id=1&b=%20');
        const cookie = await step.sessionCookie(context);
        world.promise(
            `${person.name}: the browser has a session of its own`,
            cookie !== undefined && cookie.value !== token,
        );
        await page.goto(world.url('h5', '/h5/next'));
        world.same(`${person.name}: the next page has it, too`, await step.openidShown(page), headers['x-openid']);
        await page.goBack();
        world.promise(`${person.name}: the ticket is not in the history`, !page.url().includes(REDIRECTED), page.url());

        const late = await (
            await world.chromium.person(person, { userAgent: AGENTS.miniProgram(MINI_PROGRAM) })
        ).newPage();
        const used = await late.goto(world.url('h5', at));
        world.same(
            `${person.name}: the used ticket in another web-view: 401, no login`,
            [used.status(), await step.ourCookies(late.context())],
            [401, []],
        );
        const other = await step.miniProgramToken(world, 'oscar');
        const second = await ticket(world, other, '/h5/view?id=2', { cookie: true });
        await page.goto(world.url('h5', second.at));
        world.same(
            `${person.name}: the session of another user is not replaced`,
            (await step.sessionCookie(context)).value,
            cookie.value,
        );
    }
    for (const [what, agent, from] of [
        ["WeChat's own browser", AGENTS.wechat],
        ['a desktop browser', AGENTS.desktop],
        ['a web-view of another Mini Program', AGENTS.miniProgram('wxffffffffffffffff')],
        ['a web-view, from a link of another site', AGENTS.miniProgram(MINI_PROGRAM), 'evil.example.net'],
        ['a web-view, from a link of a sibling', AGENTS.miniProgram(MINI_PROGRAM), 'shop.example.com'],
    ]) {
        const context = await world.chromium.person(PHONE, { userAgent: agent });
        const page = await context.newPage();
        const token = await step.miniProgramToken(world, 'wendy');
        const { at } = await ticket(world, token, '/h5/view?id=3', { cookie: true });
        if (from === undefined) await page.goto(world.url('h5', at));
        else {
            world.elsewhere.pages['/link'] =
                `<!doctype html><title>link</title><a href="${world.url('h5', at)}">link</a>`;
            await page.goto(world.foreign(from, '/link'));
            await page.getByRole('link').click();
        }
        await until('the page', async () => (await page.title()) === 'service');
        const { url, headers } = await step.shown(page);
        world.same(
            `${what}: the page is served once`,
            [url, headers['x-openid'] !== undefined],
            ['/h5/view?id=3', true],
        );
        world.same(`${what}: without a cookie`, await step.ourCookies(context), []);
    }
}

/** A page that was served by a ticket does not tell it to what it loads. */
export async function tickets_and_referer(world) {
    const context = await world.chromium.person(DESK);
    const page = await context.newPage();
    const token = await step.miniProgramToken(world, 'tina');
    world.service.pages['/h5/leak'] =
        `<!doctype html><title>leak</title><img src="${world.foreign('evil.example.net', '/leak.png')}">`;
    const { at } = await ticket(world, token, '/h5/leak');
    world.elsewhere.requests = [];
    await page.goto(world.url('h5', at));
    await until('the image', () => world.elsewhere.asked('/leak.png').length > 0);
    world.same('another site gets no Referer', world.elsewhere.one('/leak.png').headers.referer, undefined);
}

/** Who may ask for a ticket by cookie. */
export async function tickets_by_cookie(world) {
    const context = await world.chromium.person(DESK);
    const page = await context.newPage();
    await step.logIn(world, page, world.url('h5', '/h5/home'));
    const openid = await step.openidShown(page);
    const body = JSON.stringify({ path: '/h5/mine' });
    const found = await step.fetchIn(page, '/ticket', {
        method: 'POST',
        body,
        headers: { 'Content-Type': 'application/json' },
    });
    world.same('the site itself may', [found.status, found.headers['cache-control']], [200, 'no-store']);
    const served = await step.fetchIn(page, `/h5/mine?wxgate_ticket=${found.json.ticket}`, { credentials: 'omit' });
    world.same('and the ticket is of its user', served.json?.headers['x-openid'], openid);
    await page.goto(world.foreign('shop.example.com', '/nothing'));
    await page.evaluate(
        ([url, body]) => fetch(url, { method: 'POST', body, mode: 'no-cors', credentials: 'include' }),
        [world.url('h5', '/ticket'), body],
    );
    const lines = await step.logged(world, '/ticket');
    world.same('another host of the same site may not', [lines.at(-1).status, lines.at(-1).error], [403, 'cross_site']);
    world.same(
        'without a session, 401',
        (await world.ask('POST', world.url('other', '/ticket'), { body: { path: '/h5/x' } })).status,
        401,
    );
}
