/** `deploy/web/wxgate-scan.js`, in a simulated browser with a simulated gateway. */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { JSDOM } from "jsdom";
import jsQR from "jsqr";

const source = readFileSync(fileURLToPath(new URL("../../web/wxgate-scan.js", import.meta.url)), "utf8");

const ID = "AbCdEfGhIjKlMnOpQrStUv";
const CONTENT = `https://h5.example.com/scan/${ID}`;
const STARTED = { status: 200, body: { scan_id: ID, expires_in: 120, content: CONTENT } };
const state = (word) => ({ status: 200, body: { state: word } });

/** A page; requests wait until the test answers them, timers until it lets them end. */
class Page {
  requests = [];
  timers = new Map();
  #numbers = 0;

  constructor({ html = '<html lang="en"><div id="login"></div></html>', attributes } = {}) {
    const dom = new JSDOM(html, { url: "https://h5.example.com/login", runScripts: "outside-only" });
    const { window } = dom;
    this.window = window;
    this.document = window.document;
    this.reloads = 0;
    this.visibility = "visible";
    Object.defineProperty(this.document, "visibilityState", { get: () => this.visibility });
    window.TextEncoder = TextEncoder;
    window.setTimeout = (action, time) => {
      const number = ++this.#numbers;
      this.timers.set(number, { action, time });
      return number;
    };
    window.clearTimeout = (number) => this.timers.delete(number);
    window.fetch = (url, options) =>
      new Promise((resolve, reject) => {
        const request = { url, options, method: options.method, isAborted: false };
        request.answer = ({ status, body, headers = {} }) =>
          resolve({
            status,
            headers: new Headers(headers),
            json: async () => (body === undefined ? JSON.parse("") : body),
          });
        request.fail = () => reject(new TypeError("Failed to fetch"));
        options.signal.addEventListener("abort", () => {
          request.isAborted = true;
          reject(new window.DOMException("aborted", "AbortError"));
        });
        this.requests.push(request);
      });
    if (attributes) {
      const script = this.document.createElement("script");
      Object.assign(script.dataset, attributes);
      Object.defineProperty(this.document, "currentScript", { get: () => script });
    }
    window.eval(source);
  }

  start(options) {
    const done = { logins: 0 };
    const element = this.document.getElementById("login");
    done.handle = this.window.WxgateScan.start(element, { onLogin: () => done.logins++, ...options });
    return done;
  }

  /** The request that is not answered, once there is one. */
  async request(count = 1) {
    await until(() => this.requests.length >= count, `${count} requests`);
    assert.equal(this.requests.length, count);
    return this.requests[count - 1];
  }

  async shows(expected) {
    const box = () => this.document.querySelector(".wxgate-scan");
    await until(() => box()?.getAttribute("data-state") === expected, expected);
    return this.text();
  }

  text() {
    return this.document.querySelector(".wxgate-scan-text").textContent;
  }

  get button() {
    return this.document.querySelector(".wxgate-scan-retry");
  }

  /** What shows the code. */
  get code() {
    return this.document.querySelector(".wxgate-scan-code").firstChild;
  }

  hide(isHidden) {
    this.visibility = isHidden ? "hidden" : "visible";
    this.document.dispatchEvent(new this.window.Event("visibilitychange"));
  }

  /** Lets the pause between two tries end, and returns its milliseconds. */
  async endPause() {
    const pauses = () => [...this.timers].filter(([, { time }]) => time !== 60_000 && time !== 15_000);
    await until(() => pauses().length === 1, "a pause");
    const [[number, { action, time }]] = pauses();
    this.timers.delete(number);
    action();
    return time;
  }
}

async function until(holds, what) {
  const end = Date.now() + 20_000;
  while (!holds()) {
    assert.ok(Date.now() < end, `not in time: ${what}`);
    await new Promise(setImmediate);
  }
}

/** Nothing happens any more. */
async function settle() {
  for (let turn = 0; turn < 20; turn++) await new Promise(setImmediate);
}

/** The text of a code's modules. */
function read(modules, scale = 4) {
  const quiet = 4;
  const size = (modules.length + 2 * quiet) * scale;
  const pixels = new Uint8ClampedArray(size * size * 4).fill(255);
  modules.forEach((row, y) =>
    row.forEach((isDark, x) => {
      for (let dy = 0; dy < scale; dy++) {
        for (let dx = 0; dx < scale; dx++) {
          const at = (((y + quiet) * scale + dy) * size + (x + quiet) * scale + dx) * 4;
          if (isDark) pixels.fill(0, at, at + 3);
        }
      }
    }),
  );
  const found = jsQR(pixels, size, size);
  return found && { text: Buffer.from(found.binaryData).toString(), version: found.version };
}

/** The modules of a drawn code. */
function modulesOf(svg) {
  const width = Number(svg.getAttribute("viewBox").split(" ")[2]) - 8;
  const modules = Array.from({ length: width }, () => new Array(width).fill(false));
  for (const [, x, y] of svg.querySelector("path").getAttribute("d").matchAll(/M(\d+) (\d+)h1v1h-1z/g)) {
    modules[y - 4][x - 4] = true;
  }
  return modules;
}

test("a page shows the Mini Program code, follows the phone, and calls back", async () => {
  const page = new Page();
  const done = page.start();
  assert.equal(await page.shows("loading"), "One moment…");
  const start = await page.request();
  assert.deepEqual([start.method, start.url], ["POST", "/scan"]);
  assert.equal(start.options.credentials, "same-origin");
  assert.equal(start.options.cache, "no-store");
  start.answer(STARTED);
  assert.equal(await page.shows("waiting"), "Scan this code with WeChat");
  assert.equal(page.code.getAttribute("src"), `/scan/${ID}.png`);
  assert.ok(page.code.alt && page.button.hidden);
  const waiting = await page.request(2);
  assert.deepEqual([waiting.method, waiting.url], ["GET", `/scan/${ID}?state=waiting`]);
  waiting.answer(state("scanned"));
  assert.equal(await page.shows("scanned"), "Scanned. Confirm the login on your phone.");
  const scanned = await page.request(3);
  assert.equal(scanned.url, `/scan/${ID}?state=scanned`);
  assert.equal(done.logins, 0);
  scanned.answer(state("confirmed"));
  assert.equal(await page.shows("confirmed"), "Logged in.");
  assert.equal(page.code, null);
  await until(() => done.logins === 1, "the callback");
  page.hide(true);
  page.hide(false);
  await settle();
  assert.deepEqual([page.requests.length, page.timers.size], [3, 0]);
});

test("where there is no Mini Program code, the content is drawn", async () => {
  const page = new Page();
  page.start();
  (await page.request()).answer(STARTED);
  await page.shows("waiting");
  page.code.dispatchEvent(new page.window.Event("error"));
  assert.equal(page.code.localName, "svg");
  assert.equal(page.code.getAttribute("role"), "img");
  assert.equal(read(modulesOf(page.code)).text, CONTENT);

  const other = new Page();
  other.start({ image: "qr" });
  (await other.request()).answer(STARTED);
  await other.shows("waiting");
  assert.equal(read(modulesOf(other.code)).text, CONTENT);
});

test("codes of every version can be read", () => {
  const { qrCode } = new Page().window.WxgateScan;
  const capacities = [14, 26, 42, 62, 84, 106, 122, 152, 180, 213];
  const characters = "https://h5.example.com/scan/中文-_0aZ~?&%";
  let least = 1;
  capacities.forEach((most, at) => {
    for (const length of [least, Math.floor((least + most) / 2), most]) {
      let text = "";
      for (let i = 0; Buffer.byteLength(text) < length; i++) {
        const next = [...characters][(i * 7 + length) % [...characters].length];
        text += Buffer.byteLength(text + next) > length ? "." : next;
      }
      const modules = qrCode(text);
      assert.equal(modules.length, 21 + 4 * at, `${length} bytes`);
      assert.deepEqual(read(modules), { text, version: at + 1 }, `${length} bytes`);
    }
    least = most + 1;
  });
  assert.equal(qrCode("x".repeat(214)), undefined);
  for (let number = 0; number < 200; number++) {
    const text = `https://h5.example.com/scan/${(number * 2654435761).toString(36)}${number}`;
    assert.equal(read(qrCode(text)).text, text);
  }
});

test("a scan that was denied or has expired begins again when the user wants", async () => {
  for (const [end, words] of [
    ["denied", "The login was denied on the phone."],
    ["expired", "This code has expired."],
  ]) {
    const page = new Page();
    page.start();
    (await page.request()).answer(STARTED);
    (await page.request(2)).answer(state(end));
    assert.equal(await page.shows(end), words);
    assert.equal(page.code, null);
    await settle();
    assert.equal(page.requests.length, 2);
    assert.equal(page.button.hidden, false);
    page.button.click();
    const again = await page.request(3);
    assert.equal(again.method, "POST");
    again.answer({ ...STARTED, body: { ...STARTED.body, scan_id: "another" } });
    assert.equal((await page.request(4)).url, "/scan/another?state=waiting");
    assert.equal(page.button.hidden, true);
  }
});

test("errors are met with longer and longer pauses", async () => {
  const page = new Page();
  page.start();
  (await page.request()).answer(STARTED);
  const failures = [
    (request) => request.fail(),
    (request) => request.answer({ status: 503, body: { error: "store_unavailable", action: "retry" } }),
    (request) => request.answer({ status: 502 }),
    (request) => request.answer({ status: 503, body: {}, headers: { "Retry-After": "30" } }),
    (request) => request.fail(),
  ];
  const pauses = [];
  for (let at = 0; at < failures.length; at++) {
    failures[at](await page.request(2 + at));
    pauses.push(await page.endPause());
    assert.equal(page.text(), "No connection. Trying again…");
    assert.ok(page.code, "the code stays");
  }
  [1, 2, 4, 30, 15].forEach((seconds, at) => {
    assert.ok(pauses[at] >= seconds * 750 && pauses[at] <= seconds * 1250, String(pauses));
  });
  (await page.request(7)).answer(state("scanned"));
  assert.match(await page.shows("scanned"), /^Scanned/);
  (await page.request(8)).fail();
  assert.ok((await page.endPause()) <= 1250, "after a success it begins anew");
});

test("what cannot get better is not tried again", async () => {
  for (const [answer, end, words] of [
    [{ status: 404, body: { error: "no_route" } }, "expired", "This code has expired."],
    [{ status: 403, body: { error: "login_refused" } }, "failed", "This user cannot log in."],
    [
      { status: 403, body: { error: "login_refused", message: "this user may not log in" } },
      "failed",
      "This user cannot log in.",
    ],
    [{ status: 403, body: { error: "login_refused", message: "<b>先注册</b>" } }, "failed", "<b>先注册</b>"],
    [
      { status: 503, body: { error: "login_unavailable" }, headers: { "Retry-After": "3" } },
      "failed",
      "Login is not available at the moment.",
    ],
    [{ status: 403, body: { error: "cross_site" } }, "failed", "Login is not available at the moment."],
    [{ status: 200 }, "failed", "Login is not available at the moment."],
    [{ status: 200, body: { state: "<b>" } }, "failed", "Login is not available at the moment."],
  ]) {
    const page = new Page();
    page.start();
    (await page.request()).answer(STARTED);
    (await page.request(2)).answer(answer);
    assert.equal(await page.shows(end), words);
    await settle();
    assert.equal(page.requests.length, 2);
    assert.equal(page.button.hidden, false);
  }
  for (const [answer, words] of [
    [{ status: 429, body: { error: "rate_limited" } }, "Too many attempts. Try again in a minute."],
    [{ status: 404, body: { error: "no_route" } }, "Login is not available at the moment."],
    [{ status: 200, body: { scan_id: "../x", content: "y" } }, "Login is not available at the moment."],
  ]) {
    const page = new Page();
    page.start();
    (await page.request()).answer(answer);
    assert.equal(await page.shows("failed"), words);
    assert.equal(page.button.hidden, false);
  }
});

test("an answer that comes at once is not asked for again at once", async () => {
  const page = new Page();
  page.start();
  (await page.request()).answer(STARTED);
  (await page.request(2)).answer(state("waiting"));
  const pause = await page.endPause();
  assert.ok(pause > 0 && pause <= 1000, String(pause));
  await page.request(3);
});

test("a poll that is never answered is given up", async () => {
  const page = new Page();
  page.start();
  (await page.request()).answer(STARTED);
  const poll = await page.request(2);
  const [timer] = [...page.timers.values()];
  assert.equal(timer.time, 60_000);
  timer.action();
  assert.ok(poll.isAborted);
  await page.endPause();
  await page.request(3);
});

test("a page that is hidden polls nothing", async () => {
  const page = new Page();
  page.start();
  (await page.request()).answer(STARTED);
  const poll = await page.request(2);
  page.hide(true);
  assert.ok(poll.isAborted);
  await settle();
  assert.equal(page.requests.length, 2);
  page.hide(false);
  const next = await page.request(3);
  assert.equal(next.url, `/scan/${ID}?state=waiting`);
  page.window.dispatchEvent(new page.window.Event("pagehide"));
  assert.ok(next.isAborted);
  await settle();
  assert.equal(page.requests.length, 3);
  // From the cache of the back button.
  page.window.dispatchEvent(new page.window.Event("pageshow"));
  await page.request(4);
});

test("stop ends everything, and a second start replaces the first", async () => {
  const page = new Page();
  const first = page.start();
  (await page.request()).answer(STARTED);
  const poll = await page.request(2);
  const second = page.start();
  assert.ok(poll.isAborted);
  const start = await page.request(3);
  assert.equal(page.document.querySelectorAll(".wxgate-scan").length, 1);
  start.answer(STARTED);
  const last = await page.request(4);
  first.handle.stop();
  assert.equal(last.isAborted, false);
  second.handle.stop();
  assert.ok(last.isAborted);
  assert.equal(page.document.querySelector(".wxgate-scan"), null);
  page.hide(true);
  page.hide(false);
  await settle();
  assert.deepEqual([page.requests.length, page.timers.size], [4, 0]);
});

test("it speaks Chinese where the page or the option says so", async () => {
  const html = '<html lang="zh-CN"><div id="login"></div></html>';
  const page = new Page({ html });
  page.start();
  (await page.request()).answer(STARTED);
  assert.equal(await page.shows("waiting"), "请用微信扫描二维码登录");
  assert.equal(page.button.textContent, "刷新二维码");
  const other = new Page({ html });
  other.start({ lang: "en" });
  assert.equal(await other.shows("loading"), "One moment…");
});

test("the attributes of the script are its options", async () => {
  const page = new Page({ attributes: { element: "#login", endpoint: "/api/scan/", lang: "zh" } });
  const start = await page.request();
  assert.equal(start.url, "/api/scan");
  start.answer(STARTED);
  assert.equal(await page.shows("waiting"), "请用微信扫描二维码登录");
  assert.equal(page.code.getAttribute("src"), `/api/scan/${ID}.png`);
});

test("it works under a strict policy, and takes no text for markup", () => {
  assert.doesNotMatch(source, /innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|new Function/);
  // A property of `style` is allowed; the attribute and a sheet are not.
  assert.doesNotMatch(source, /"style"|cssText|insertRule|\bimport\b|https?:\/\/(?!www\.w3\.org\/2000\/svg)/);
});

test("it leaves only for a path of its site", async () => {
  for (const [returnTo, expected] of [
    ["/orders?id=1#x", "assign /orders?id=1#x"],
    ["//evil.example", "reload"],
    ["/\\evil.example", "reload"],
    ["https://evil.example", "reload"],
    ["javascript:alert(1)", "reload"],
    ["/\t/evil.example", "reload"],
    ["", "reload"],
    [undefined, "reload"],
  ]) {
    const page = new Page();
    // jsdom's location cannot be replaced: the script gets another window.
    const went = [];
    const location = { assign: (path) => went.push(`assign ${path}`), reload: () => went.push("reload") };
    const window = new Proxy(page.window, {
      get: (target, name) => {
        if (name === "location") return location;
        const value = Reflect.get(target, name);
        return typeof value === "function" && !/^[A-Z]/.test(String(name)) ? value.bind(target) : value;
      },
    });
    new Function("window", source)(window);
    page.start({ returnTo, onLogin: undefined });
    (await page.request()).answer(STARTED);
    (await page.request(2)).answer(state("confirmed"));
    await until(() => went.length, "the end");
    assert.deepEqual(went, [expected]);
  }
});
