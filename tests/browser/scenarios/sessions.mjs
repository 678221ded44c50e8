// Sessions that end while a browser has the cookie, and clients that send a token in a header as well.
import { DESK, PEOPLE, PHONE } from '../chromium.mjs';
import * as step from '../steps.mjs';
import { OFFICIAL, WEBSITE } from '../world.mjs';

export async function revoked_session(world) {
    for (const person of PEOPLE) {
        const context = await world.chromium.person(person);
        const page = await context.newPage();
        const user = `revoked${PEOPLE.indexOf(person)}`;
        const url = world.url('h5', '/h5/revoked');
        const { callback } = await step.begin(world, page, url);
        await page.goto(callback(step.codeOf(`user-${user}`)));
        await step.arrived(page, url);
        const openid = await step.openidShown(page);
        const app = person.isPhone ? OFFICIAL : WEBSITE;
        const revoked = await world.operator('DELETE', `/sessions?app_id=${app}&openid=${encodeURIComponent(openid)}`);
        world.same(`${person.name}: the operator ends the session`, revoked.status, 204);
        const trail = new step.Trail(page);
        const found = await step.fetchIn(page, '/h5/data');
        world.same(
            `${person.name}: a script gets 401`,
            [found.status, found.redirected, typeof found.json?.login_url],
            [401, false, 'string'],
        );
        const [row] = await trail.of('/h5/data');
        world.same(
            `${person.name}: the response clears the cookie, and is not stored`,
            [row.cookies.length, row.header('cache-control')],
            [1, 'no-store'],
        );
        world.same(`${person.name}: the browser has none`, await step.sessionCookie(context), undefined);
        await page.goto(url);
        await step.atWeChat(world, page);
        world.promise(`${person.name}: the next page leads to WeChat`, true);
    }
}

/** A cookie that was never ours. */
export async function wrong_cookie(world) {
    for (const value of ['nonsense', 'A'.repeat(43), '']) {
        const context = await world.chromium.person(PHONE);
        const page = await context.newPage();
        const cookie = { name: step.SESSION, value, url: world.url('h5'), secure: true };
        await context.addCookies([cookie]);
        await page.goto(world.url('h5', '/h5/wrong-cookie'));
        await step.atWeChat(world, page);
        world.same(
            `the cookie "${value}" counts as none, and is cleared`,
            await step.sessionCookie(context),
            undefined,
        );
        await context.addCookies([cookie]);
        const response = await page.goto(world.url('h5', '/maybe/anonymous'));
        world.same(
            `with "${value}" an optional route is anonymous`,
            [response.status(), await step.openidShown(page)],
            [200, undefined],
        );
        world.same(`and clears "${value}"`, await step.sessionCookie(context), undefined);
    }
}

/** A header takes precedence over the cookie, good or bad. */
export async function header_and_cookie(world) {
    const context = await world.chromium.person(DESK);
    const page = await context.newPage();
    await step.logIn(world, page, world.url('h5', '/h5/both'));
    const byCookie = await step.openidShown(page);
    const token = await step.miniProgramToken(world, 'dora');
    const asked = async (headers) => {
        const found = await step.fetchIn(page, '/h5/both', { headers });
        return found.status === 200 ? found.json.headers['x-openid'] : found.json.error;
    };
    world.same('by cookie', await asked({}), byCookie);
    const byHeader = await asked({ 'X-3rd-Session': token });
    world.promise('a session header takes precedence', byHeader !== byCookie && byHeader !== undefined);
    world.same('a Bearer of our shape takes precedence', await asked({ Authorization: `Bearer ${token}` }), byHeader);
    world.same(
        'a wrong session header is not saved by the cookie',
        await asked({ 'X-3rd-Session': 'A'.repeat(43) }),
        'session_expired',
    );
    world.same(
        'a Bearer of another shape is not ours: the cookie counts',
        await asked({ Authorization: 'Bearer eyJ.of.another' }),
        byCookie,
    );
    world.promise('the cookie is still there', (await step.sessionCookie(context)) !== undefined);
    const other = await step.miniProgramToken(world, 'dora');
    const second = await step.fetchIn(page, '/h5/both', { headers: { 'X-3rd-Session': other } });
    world.same('two sessions of one user have one X-OpenId', second.json.headers['x-openid'], byHeader);
}
