// Logins that fail: what the page says, and that nobody is logged in.
import { PEOPLE, PHONE } from '../chromium.mjs';
import * as step from '../steps.mjs';
import { until } from '../world.mjs';

/** The page of a failed login: it offers to begin again, and no session exists. */
async function failed(world, { context, page, person, name, response, status, error }) {
    const text = await step.ownPage(world, page, response, { person, name: `${person.name}-${name}`, status, error });
    world.same(`${person.name}: ${name}: no session`, await step.sessionCookie(context), undefined);
    return text;
}

/** Follows the page's link to begin again, and logs in. */
async function again(world, page, person, name, url) {
    const link = page.getByRole('link').or(page.getByRole('button')).first();
    if ((await link.count()) === 0)
        return world.promise(`${person.name}: ${name}: the page has a link to log in again`, false);
    await link.click();
    await step.atWeChat(world, page);
    await step.choose(page, 'alice');
    await step.arrived(page, url);
    world.promise(
        `${person.name}: ${name}: its link leads to a login that returns to the page`,
        true,
        new URL(url).pathname,
    );
}

/** The user says no: WeChat redirects without a code. */
export async function denied(world) {
    for (const person of PEOPLE) {
        const context = await world.chromium.person(person);
        const page = await context.newPage();
        const url = world.url(person.isPhone ? 'consent' : 'h5', '/h5/denied?id=1');
        await page.goto(url);
        await step.atWeChat(world, page);
        const callback = page.waitForResponse((response) => response.url().includes('/login/callback'));
        await step.choose(page, 'deny|refuse|cancel|拒绝|取消');
        const response = await callback;
        await page.waitForLoadState();
        await failed(world, { context, page, person, name: 'denied', response, status: 403 });
        const reloaded = await page.reload();
        world.promise(
            `${person.name}: denied: a reload says something, too`,
            reloaded.status() >= 400 && reloaded.status() < 500,
            reloaded.status(),
        );
        const link = page.getByRole('link').first();
        if ((await link.count()) > 0) await again(world, page, person, 'denied', url);
        else world.promise(`${person.name}: denied: the page has a link to log in again`, false);
    }
}

/** The user says no, and WeChat closes its page: the gateway hears nothing, and the next visit begins anew. */
export async function closed(world) {
    for (const person of PEOPLE) {
        const context = await world.chromium.person(person);
        const page = await context.newPage();
        const url = world.url('h5', '/h5/closed');
        await page.goto(url);
        await step.atWeChat(world, page);
        await step.choose(page, 'without a redirect');
        world.same(`${person.name}: no session`, await step.sessionCookie(context), undefined);
        await step.logIn(world, page, url);
        world.promise(`${person.name}: the next visit ends well`, (await step.openidShown(page)) !== undefined);
    }
}

/** WeChat's errors while the code is exchanged. */
export async function broken(world) {
    for (const [what, status, error] of [
        ['err-40029', 401, 'invalid_code'],
        ['err-40163', 401, 'invalid_code'],
        ['err-40226', 403, 'user_blocked'],
        ['err-45011', 429, 'rate_limited'],
        ['err-40125', 502, 'wechat_rejected'],
        ['garbage', 502, 'wechat_rejected'],
        ['drop', 504, 'wechat_timeout'],
    ]) {
        for (const person of what === 'err-40029' || what === 'drop' ? PEOPLE : [PEOPLE[0], PEOPLE[3]]) {
            const context = await world.chromium.person(person);
            const page = await context.newPage();
            const url = world.url('h5', '/h5/broken?id=1');
            const { callback } = await step.begin(world, page, url);
            const response = await page.goto(callback(step.codeOf(what)));
            await failed(world, { context, page, person, name: what, response, status, error });
            if (what === 'err-40029') await again(world, page, person, what, url);
        }
    }
}

/** The state is not one that this browser began with: altered, removed, of another browser, made up. */
export async function wrong_state(world) {
    const exchanges = async () => (await world.call(world.wechatPort, 'GET', '/sandbox/stats')).text;
    for (const person of PEOPLE) {
        for (const what of ['altered', 'removed', 'other-browser', 'made-up', 'empty', 'no-state', 'two-states']) {
            // One page for all languages and sizes is enough for what looks the same.
            if (what !== 'removed' && person !== PEOPLE[0]) continue;
            const context = await world.chromium.person(person);
            const page = await context.newPage();
            const { callback, state } = await step.begin(world, page, world.url('h5', '/h5/state?id=1'));
            let to = callback(step.codeOf('user-alice'));
            const cookies = (await context.cookies()).filter(({ name }) => name.startsWith(step.SESSION));
            if (what === 'altered') {
                const flip = (value) => value.slice(0, -4) + (value.at(-4) === 'A' ? 'B' : 'A') + value.slice(-3);
                await context.addCookies(cookies.map((cookie) => ({ ...cookie, value: flip(cookie.value) })));
            } else if (what === 'removed') await context.clearCookies();
            else if (what === 'other-browser') {
                const victim = await world.chromium.person(person);
                const { callback } = await step.begin(world, await victim.newPage(), world.url('h5', '/h5/state'));
                to = callback(step.codeOf('user-mallory'));
            } else if (what === 'made-up') to = to.replace(state, 'a'.repeat(32));
            else if (what === 'empty') to = to.replace(state, '');
            else if (what === 'no-state') to = to.replace(/[?&]state=[^&]*/, '');
            else to += `&state=${state}`;
            const before = await exchanges();
            const response = await page.goto(to);
            await failed(world, { context, page, person, name: `state-${what}`, response, status: 400 });
            world.same(`${person.name}: ${what}: WeChat is not asked`, await exchanges(), before);
        }
    }
}

/** A preview of the page, for which WeChat makes up a user. */
export async function snapshot_user(world) {
    for (const person of PEOPLE) {
        const context = await world.chromium.person(person);
        const page = await context.newPage();
        await page.goto(world.url('h5', '/h5/snapshot'));
        await step.atWeChat(world, page);
        const callback = page.waitForResponse((response) => response.url().includes('/login/callback'));
        // Websites have no snapshots; the gateway must not rely on that.
        if (person.isPhone) await step.choose(page, 'snapshot');
        else await page.goto(step.callbackOf(page)(step.codeOf('snapshot-alice')));
        const response = await callback;
        await page.waitForLoadState();
        await failed(world, { context, page, person, name: 'snapshot', response, status: 403, error: 'snapshot_user' });
    }
}

/** A state is good for one code. */
export async function other_code(world) {
    const context = await world.chromium.person(PHONE);
    const page = await context.newPage();
    const url = world.url('h5', '/h5/other-code');
    const { callback } = await step.begin(world, page, url);
    await page.goto(callback(step.codeOf('user-alice')));
    await step.arrived(page, url);
    const openid = await step.openidShown(page);
    const response = await page.goto(callback(step.codeOf('user-mallory')));
    world.promise(
        'the state with another code is refused',
        response.status() >= 400 && response.status() < 500,
        response.status(),
    );
    await step.look(world, page, 'refused');
    await page.goto(url);
    world.same('the session stays as it was', await step.openidShown(page), openid);
}

/** What comes back in a page is text there, never markup. */
export async function markup_in_pages(world) {
    const context = await world.chromium.person(PHONE);
    const page = await context.newPage();
    const evil = '"><img src=x onerror="window.hurt=1"><script>window.hurt=1</script>\'&lt;';
    const pages = [];
    await page.goto(world.url('h5', `/login/start?return=${encodeURIComponent(`/h5?x=${evil}`)}`));
    const at = await step.atWeChat(world, page);
    pages.push(`/login/callback?state=${at.searchParams.get('state')}`);
    pages.push(`/login/callback?state=${encodeURIComponent(evil)}&code=${encodeURIComponent(evil)}`);
    pages.push(`/login/callback?error=${encodeURIComponent(evil)}&error_description=${encodeURIComponent(evil)}`);
    for (const path of pages) {
        const response = await page.goto(world.url('h5', path));
        world.promise('an error page', response.status() >= 400 && response.status() < 500, response.status());
        const found = await page.evaluate(() => ({
            images: document.images.length,
            hurt: window.hurt ?? 0,
            scripts: document.scripts.length,
        }));
        world.same('has no markup of the request', found, { images: 0, hurt: 0, scripts: 0 });
        await step.look(world, page, `page-${pages.indexOf(path)}`);
    }
    const link = page.getByRole('link').first();
    if ((await link.count()) > 0)
        world.promise(
            'its link stays on the host',
            (await link.evaluate((at) => at.host)) === new URL(world.url('h5')).host,
        );
}

/** WeChat is slow: the person waits, and is logged in. */
export async function slow(world) {
    const context = await world.chromium.person(PHONE);
    const page = await context.newPage();
    const url = world.url('h5', '/h5/slow');
    const { callback } = await step.begin(world, page, url);
    await page.goto(callback(step.codeOf('slow-2s-alice')));
    await step.arrived(page, url);
    await until('an openid', () => step.openidShown(page));
    world.promise('a login that takes two seconds ends well', true);
}
