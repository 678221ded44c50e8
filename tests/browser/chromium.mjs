// One Chromium for all scenarios, and the people who use it: with a phone inside WeChat, or at a
// desk; in Chinese or in English.
import { mkdirSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';

const WECHAT =
    'Mozilla/5.0 (Linux; Android 14; 23127PN0CC Build/UKQ1.230804.001; wv) AppleWebKit/537.36 (KHTML, like Gecko) ' +
    'Version/4.0 Chrome/130.0.6723.103 Mobile Safari/537.36 XWEB/1300333 MMWEBSDK/20241202 MMWEBID/4158 ' +
    'MicroMessenger/8.0.56.2800(0x28003855) WeChat/arm64 Weixin NetType/WIFI Language/zh_CN ABI/arm64';
const DESKTOP =
    'Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/130.0.0.0 Safari/537.36';

/** User-Agents as captured. */
export const AGENTS = {
    wechat: WECHAT,
    desktop: DESKTOP,
    wecom: `${DESKTOP} wxwork/4.1.31 (MicroMessenger/6.2) WindowsWechat`,
    miniProgram: (appId) => `${WECHAT} miniProgram/${appId}`,
};

/** Every flow is tried by each of these. */
export const PEOPLE = [
    { name: 'phone-zh', isPhone: true, locale: 'zh-CN' },
    { name: 'phone-en', isPhone: true, locale: 'en-US' },
    { name: 'desktop-zh', isPhone: false, locale: 'zh-CN' },
    { name: 'desktop-en', isPhone: false, locale: 'en-US' },
];
export const [PHONE, , , DESK] = PEOPLE;

export class Chromium {
    constructor(tools) {
        const require = createRequire(join(tools, 'package.json'));
        this.library = require('playwright-core').chromium;
        this.screenshots = join(tools, 'screenshots');
        mkdirSync(this.screenshots, { recursive: true });
    }

    /** Starts the browser. Every name of the tests is this machine; no other name exists. */
    async launch({ domains, publicKeyHash }) {
        this.browser = await this.library.launch({
            executablePath: '/usr/bin/chromium',
            args: [
                '--headless',
                '--no-sandbox',
                '--disable-gpu',
                '--disable-quic',
                '--no-first-run',
                '--disable-background-networking',
                '--disable-component-update',
                '--disable-sync',
                `--host-resolver-rules=${domains.map((name) => `MAP ${name} 127.0.0.1`).join(', ')}, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1`,
                // Unlike ignoreHTTPSErrors this holds for service workers, too.
                `--ignore-certificate-errors-spki-list=${publicKeyHash}`,
            ],
        });
        this.version = `Chromium ${this.browser.version()}`;
    }

    /** A browser of its own: no cookies, no cache. */
    async person({ isPhone, locale }, options = {}) {
        const context = await this.browser.newContext({
            userAgent: isPhone ? WECHAT : DESKTOP,
            viewport: isPhone ? { width: 375, height: 740 } : { width: 1280, height: 800 },
            deviceScaleFactor: 1,
            isMobile: isPhone,
            hasTouch: isPhone,
            locale,
            ignoreHTTPSErrors: true,
            ...options,
        });
        context.setDefaultTimeout(15_000);
        return context;
    }

    async closeContexts() {
        await Promise.all((this.browser?.contexts() ?? []).map((context) => context.close()));
    }

    async stop() {
        await this.browser?.close();
    }
}
