// `wxgate demo`, clicked through as its tour says. Plain HTTP on loopback: HTTP/1.1, and cookies
// without a prefix.
import { PEOPLE } from '../chromium.mjs';
import * as step from '../steps.mjs';
import { freePorts } from '../world.mjs';

export async function demo(world) {
    const [port, admin, internal] = await freePorts(3);
    const listen = [
        '--listen',
        `127.0.0.1:${port}`,
        '--admin',
        `127.0.0.1:${admin}`,
        '--internal',
        `127.0.0.1:${internal}`,
    ];
    const process = await world.run('demo', ['demo', ...listen], port);
    for (const person of PEOPLE) await clickThrough(world, person, `http://127.0.0.1:${port}/demo/`);
    await world.end(process);
}

async function clickThrough(world, person, url) {
    const context = await world.chromium.person(person);
    const page = await context.newPage();
    const label = (text) => `${person.name}: ${text}`;
    const faults = [];
    page.on('pageerror', (error) => faults.push(`${error}`));
    const hosts = new Set();
    page.on('request', (request) => hosts.add(new URL(request.url()).hostname));
    const user = () => page.locator('#user').innerText();
    const choose = async (path) => {
        await page.waitForURL((at) => at.pathname.startsWith('/connect/'));
        await step.choose(page, 'alice');
        await page.waitForURL((at) => at.pathname === path);
    };

    const response = await page.goto(url);
    world.same(label('the page is there'), response.status(), 200);
    await page.locator('[data-state=waiting]').waitFor();
    await step.look(world, page, `${person.name}-guest`);
    const found = await step.facts(page);
    world.promise(
        label('it is readable'),
        found.contrast >= 4.5 &&
            found.overflow <= 0 &&
            found.smallest >= 13 &&
            found.viewport !== '' &&
            found.lang.startsWith(person.locale.slice(0, 2)),
        `contrast ${found.contrast.toFixed(1)} of "${found.of}", ${found.overflow} px too wide, text of ${found.smallest} px, ${found.lang}`,
    );

    await page.locator('#login').click();
    await choose('/demo/');
    const byRedirect = await user();
    world.promise(label('the login by redirect ends at the page, which shows the user'), /[\w-]{20,}/.test(byRedirect));
    world.same(label('scripts see no cookie'), await page.evaluate(() => document.cookie), '');
    world.promise(
        label('the service sees no cookie of the gateway'),
        !(await page.locator('table').innerText()).includes('wxgate='),
    );
    await page.locator('#load-picture').click();
    await page.waitForFunction(() => document.getElementById('picture').naturalWidth > 0);
    await step.look(world, page, `${person.name}-user`);
    world.promise(label('a picture with a ticket'), true);
    await page.locator('#logout').click();
    await page.locator('#login').waitFor();
    world.promise(label('the logout'), true);

    await page.locator('[data-state=waiting]').waitFor();
    await page.locator('#scan img').waitFor();
    await page.locator('#phone-scan').click();
    await page.locator('[data-state=scanned]').waitFor();
    await page.locator('#phone-confirm').waitFor();
    await step.look(world, page, `${person.name}-phone`);
    world.promise(
        label('the phone shows browser and address'),
        (await page.locator('#phone-shows').innerText()).includes('127.0.0.1'),
        await page
            .locator('#phone-shows')
            .innerText()
            .then((text) => text.split(', ').slice(0, -1).join(', ')),
    );
    await page.locator('#phone-confirm').click();
    await page.locator('#logout').waitFor();
    world.promise(label('the login by a scan: another app, another openid'), (await user()) !== byRedirect);
    await page.locator('#logout').click();

    await page.locator('[data-state=waiting]').waitFor();
    await page.locator('#scan img').waitFor();
    await page.locator('#phone-scan').click();
    await page.locator('#phone-deny').click();
    await page.locator('[data-state=denied]').waitFor();
    await step.look(world, page, `${person.name}-denied`);
    world.promise(label('a scan that the phone denies'), true);

    await page.locator('#members').click();
    await choose('/demo/private/');
    await step.look(world, page, `${person.name}-members`);
    world.same(label('a page for members asks for the login by itself'), await user(), byRedirect);
    world.same(label('no script fails'), faults, []);
    world.same(label('nothing comes from elsewhere'), [...hosts], ['127.0.0.1']);
}
