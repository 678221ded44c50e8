// What pages of other sites can make a browser do that is logged in.
import { DESK, PHONE } from '../chromium.mjs';
import * as step from '../steps.mjs';
import { until } from '../world.mjs';

const EVIL = 'evil.example.net';
/** Another host of the same site: the browser sends SameSite cookies. */
const SIBLING = 'shop.example.com';

async function loggedIn(world, person) {
    const context = await world.chromium.person(person);
    const page = await context.newPage();
    await step.logIn(world, page, world.url('h5', '/h5/home'));
    return { context, page, openid: await step.openidShown(page) };
}

/** Opens a page of another site, with this HTML. */
async function visit(world, page, host, html) {
    world.elsewhere.pages['/page'] = `<!doctype html><title>elsewhere</title>${html}`;
    await page.goto(world.foreign(host, '/page'));
}

export async function forms(world) {
    for (const person of [PHONE, DESK]) {
        const { context, page } = await loggedIn(world, person);
        const form = (path, type) =>
            `<form method=post action="${world.url('h5', path)}" enctype="${type}"><input name=a value=b><button>send</button></form>`;
        for (const [host, path, wanted] of [
            [EVIL, '/h5/form-evil', [401, 'missing_token']],
            [SIBLING, '/h5/form-sibling', [403, 'cross_site']],
        ]) {
            for (const type of ['application/x-www-form-urlencoded', 'text/plain', 'multipart/form-data']) {
                await visit(world, page, host, form(path, type));
                const [response] = await Promise.all([
                    page.waitForResponse((response) => response.url().includes(path)),
                    page.getByRole('button').click(),
                ]);
                const headers = await response.allHeaders();
                world.same(
                    `${person.name}: a form of ${host}, ${type}`,
                    [response.status(), headers['x-wxgate-error']],
                    wanted,
                );
                world.same(
                    `${person.name}: and the session stays in the browser`,
                    (await step.sessionCookie(context)) !== undefined,
                    true,
                );
            }
            world.same(`${person.name}: the service sees none of them`, world.service.asked(path).length, 0);
        }
        world.service.pages['/open/form'] =
            `<!doctype html><title>form</title>${form('/h5/form-own', 'application/x-www-form-urlencoded')}`;
        await page.goto(world.url('h5', '/open/form'));
        const [response] = await Promise.all([
            page.waitForResponse((response) => response.url().includes('/h5/form-own')),
            page.getByRole('button').click(),
        ]);
        world.same(`${person.name}: a form of the site itself`, response.status(), 200);
        const { body, headers } = world.service.asked('/h5/form-own').at(-1);
        world.promise(
            `${person.name}: reaches the service with the identity`,
            body === 'a=b' && headers['x-openid'] !== undefined,
        );
    }
}

export async function links_and_images(world) {
    for (const person of [PHONE, DESK]) {
        const { page, openid } = await loggedIn(world, person);
        for (const [host, status] of [
            [EVIL, 401],
            [SIBLING, 200],
        ]) {
            const url = world.url('h5', `/h5/image-${host}-${person.name}.png`);
            await visit(
                world,
                page,
                host,
                `<img src="${url}"><a href="${world.url('h5', '/h5/link')}">link</a><a target=_blank href="${world.url('h5', '/h5/link')}">window</a>`,
            );
            const lines = await step.logged(world, new URL(url).pathname);
            world.same(
                `${person.name}: an image in a page of ${host}`,
                lines.map((line) => line.status),
                [status],
            );
            await page.getByRole('link', { name: 'link' }).click();
            await step.arrived(page, world.url('h5', '/h5/link'));
            world.same(
                `${person.name}: a link of ${host} is a visit of the user`,
                await step.openidShown(page),
                openid,
            );
        }
    }
}

export async function scripts_of_other_sites(world) {
    const { page } = await loggedIn(world, DESK);
    const options = (more) => ({ credentials: 'include', ...more });
    const tried = async (url, more) =>
        step.fetchIn(page, url, options(more)).then(
            ({ status, type }) => `${type} ${status}`,
            () => 'blocked',
        );
    for (const host of [EVIL, SIBLING]) {
        await visit(world, page, host, '');
        world.same(`a fetch of ${host} cannot read a page`, await tried(world.url('h5', '/h5/read')), 'blocked');
        await tried(world.url('h5', `/json/post-${host}`), { method: 'POST', body: 'x', mode: 'no-cors' });
        const [{ status, error }] = await step.logged(world, `/json/post-${host}`);
        world.same(
            `a POST of ${host} by script is rejected`,
            [status, error],
            host === EVIL ? [401, 'missing_token'] : [403, 'cross_site'],
        );
        world.same('and not forwarded', world.service.asked(`/json/post-${host}`).length, 0);
        for (const path of ['/ticket', '/logout', '/scan/abc']) {
            await tried(world.url('h5', path), { method: 'POST', body: '{"path":"/h5/x"}', mode: 'no-cors' });
        }
    }
    await visit(world, page, SIBLING, '');
    world.same(
        'an origin of cors.origins may POST by cookie where cors.credentials is set',
        await tried(world.url('h5', '/cors/data'), { method: 'POST', body: 'x' }),
        'cors 200',
    );
    const json = { method: 'PUT', body: '{}', headers: { 'Content-Type': 'application/json' } };
    world.same('also after a preflight', await tried(world.url('h5', '/cors/data'), json), 'cors 200');
    world.same('but not where cors is not set', await tried(world.url('h5', '/json/data'), json), 'blocked');
    world.promise('with the identity', world.service.asked('/cors/data').at(-1)?.headers['x-openid'] !== undefined);
    await visit(world, page, EVIL, '');
    world.same(
        'another origin may not',
        await tried(world.url('h5', '/cors/data'), { method: 'POST', body: 'x' }),
        'blocked',
    );
    await page.goto(world.url('h5', '/h5/home'));
    world.promise('the session has survived', (await step.openidShown(page)) !== undefined);
}

export async function websockets(world) {
    const { page, openid } = await loggedIn(world, DESK);
    const connect = (path) =>
        page.evaluate(
            (url) =>
                new Promise((resolve) => {
                    const socket = new WebSocket(url);
                    socket.onmessage = ({ data }) => resolve(JSON.parse(data));
                    socket.onerror = () => resolve('refused');
                }),
            world.url('h5', path).replace('https', 'wss'),
        );
    const seen = await connect('/ws/own');
    world.same('a WebSocket of the site itself has the identity', [seen['x-openid'], seen.cookie], [openid, undefined]);
    for (const [host, wanted] of [
        [EVIL, [401, 'missing_token']],
        [SIBLING, [403, 'cross_site']],
    ]) {
        await visit(world, page, host, '');
        world.same(`a WebSocket of ${host} is refused`, await connect(`/ws/${host}`), 'refused');
        const [{ status, error }] = await step.logged(world, `/ws/${host}`);
        world.same(`its error, ${host}`, [status, error], wanted);
    }
}

export async function logout(world) {
    for (const person of [PHONE, DESK]) {
        const { context, page } = await loggedIn(world, person);
        const url = world.url('h5', '/h5/home');
        const label = (text) => `${person.name}: ${text}`;
        const button = `<form method=post action="${world.url('h5', '/logout')}"><button>out</button></form>`;
        for (const [host, status] of [
            [EVIL, 204],
            [SIBLING, 403],
        ]) {
            await visit(world, page, host, button);
            const [response] = await Promise.all([
                page.waitForResponse((response) => response.url().endsWith('/logout')),
                page.getByRole('button').click(),
            ]);
            world.same(label(`a logout by a form of ${host}`), response.status(), status);
            await page.goto(url);
            world.promise(
                label('the user is still logged in'),
                (await step.openidShown(page).catch(() => undefined)) !== undefined,
            );
        }
        const before = await step.sessionCookie(context);
        const trail = new step.Trail(page);
        const found = await step.fetchIn(page, '/logout', { method: 'POST' });
        const [row] = await trail.of('/logout');
        world.same(
            label('a logout of the site itself'),
            [found.status, row.header('cache-control')],
            [204, 'no-store'],
        );
        world.same(label('clears the cookie'), await step.sessionCookie(context), undefined);
        await context.addCookies([before]);
        await page.goto(url);
        await step.atWeChat(world, page);
        world.same(
            label('the session has ended: the old cookie is worth nothing, and is cleared'),
            await step.sessionCookie(context),
            undefined,
        );
        await until('WeChat', async () => (await page.title()) !== '');
    }
}

/** A sibling host sets cookies for the whole domain, to choose the victim's session or state. */
export async function cookie_tossing(world) {
    const context = await world.chromium.person(PHONE);
    const page = await context.newPage();
    const attacker = await (await world.chromium.person(PHONE)).newPage();
    await step.logIn(world, attacker, world.url('h5', '/h5/home'), 'bob');
    const stolen = (await step.sessionCookie(attacker.context())).value;
    await visit(world, page, SIBLING, '');
    await page.evaluate((value) => {
        for (const name of [
            '__Host-wxgate',
            '__Host-wxgate-x',
            'wxgate',
            '__host-wxgate',
            ' __Host-wxgate',
            '=__Host-wxgate',
        ]) {
            document.cookie = `${name}=${value}; Domain=example.com; Path=/; Secure`;
            document.cookie = `${name}=${value}; Domain=example.com; Path=/h5; Secure`;
        }
    }, stolen);
    const tossed = (await context.cookies()).map(
        ({ name, value }) => `${name}=${value === stolen ? '' : value.replace(stolen, '')}`,
    );
    await step.logIn(world, page, world.url('h5', '/h5/home'), 'alice');
    const { headers } = await step.shown(page);
    const [ours, theirs] = [headers['x-openid'], await step.openidShown(attacker)];
    world.promise(
        'the victim is logged in as themselves',
        ours !== undefined && ours !== theirs,
        `cookies of the sibling: ${tossed.join(', ')}`,
    );
    world.promise(
        'the service sees no session of the attacker under our name',
        !new RegExp(`(^|[; ])__Host-wxgate=`).test(headers.cookie ?? ''),
        headers.cookie ?? 'no cookie',
    );
}
