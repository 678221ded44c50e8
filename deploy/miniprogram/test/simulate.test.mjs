/** The example in `miniprogram-simulate`, which runs components of Mini Programs. */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";
import { JSDOM } from "jsdom";
import { World } from "./world.mjs";
import { Phone } from "./wx.mjs";

const require = createRequire(import.meta.url);
const example = fileURLToPath(new URL("../example", import.meta.url));

/** What does not come within so many milliseconds is a failure. */
const LIMIT = 30_000;

let world;
before(async () => {
  world = await World.start();
  const { window } = new JSDOM("<body></body>");
  const { document, CustomEvent, Event } = window;
  Object.assign(globalThis, { window, document, CustomEvent, Event });
});
after(() => world.close());

/** The component, once its first call is over. */
async function shown(phone) {
  const { createClient } = require("../example/wxgate-client.js");
  const client = createClient({ baseUrl: world.baseUrl, wx: phone });
  globalThis.getApp = () => ({ client });
  const simulate = require("miniprogram-simulate");
  const id = simulate.load(`${example}/components/account/account`, { compiler: "simulate", rootPath: example });
  const component = simulate.render(id);
  component.attach(document.body);
  const text = (name) => component.querySelector(`.${name}`).dom.textContent;
  const until = async (name, words) => {
    const end = Date.now() + LIMIT;
    while (!words.test(text(name))) {
      assert.ok(Date.now() < end, `${name} is "${text(name)}", not ${words}`);
      await new Promise(setImmediate);
    }
  };
  const send = (name, event, detail) => component.querySelector(`.${name}`).dispatchEvent(event, { detail });
  return { text, until, tap: (name) => send(name, "tap"), send };
}

test("the example's client is made where wx has only getters, and logs in", async () => {
  const phone = new Phone();
  const wx = {};
  for (const name of ["login", "request", "getStorageSync", "setStorageSync", "removeStorageSync"]) {
    Object.defineProperty(wx, name, { get: () => phone[name], enumerable: true });
  }
  const made = await new Promise((App) => {
    Object.assign(globalThis, { wx, App });
    require("../example/app.js");
  });
  // Nobody listens there, but the login of the example came about.
  const { error } = await made.client.request({ url: "/" }).catch((error) => error);
  assert.ok(["network", undefined].includes(error));
  assert.equal(phone.count("login"), 0);
});

test("the example logs in, calls, and logs out", async () => {
  const phone = new Phone();
  const page = await shown(phone);
  await page.until("state", /^已登录，7200 秒后过期$/);
  assert.match(page.text("answer"), /"url":"\/hello".*"x-openid":"o/);
  page.tap("many");
  await page.until("answer", /^收到 20 个响应$/);
  assert.equal(phone.count("login"), 1);
  page.tap("logout");
  await page.until("state", /^未登录$/);
  page.tap("call");
  await page.until("state", /^已登录/);
  assert.equal(phone.count("login"), 2);
});

test("the example tells what went wrong", async () => {
  const page = await shown(new Phone({ codes: ["err-40226-a"] }));
  await page.until("answer", /^出错了：user_blocked（请求 ID：[0-9a-f]{32}）$/);
});

test("the example sends the button's code, and tells what went wrong with it", async () => {
  const page = await shown(new Phone());
  await page.until("state", /^已登录/);
  page.send("phone", "getphonenumber", { code: "good", errMsg: "getPhoneNumber:ok" });
  await page.until("answer", /^{"phone_number":"13800138000"}$/);
  page.send("phone", "getphonenumber", { errMsg: "getPhoneNumber:fail user deny" });
  await page.until("answer", /^没有得到手机号授权：no_phone_code$/);
  page.send("phone", "getphonenumber", { code: "used", errMsg: "getPhoneNumber:ok" });
  await page.until("answer", /^请再点一次“获取手机号”：invalid_phone_code（请求 ID：[0-9a-f]{32}）$/);
});

/** The page of a scan, over a client that the test answers for. */
function scanPage(client) {
  globalThis.getApp = () => ({ client });
  const path = require.resolve("../example/pages/scan/scan.js");
  delete require.cache[path];
  let page;
  globalThis.Page = (definition) => {
    page = { ...definition, data: { ...definition.data } };
    page.setData = (change) => Object.assign(page.data, change);
  };
  require(path);
  return page;
}

const BROWSER = { browser: "Chrome on Windows", address: "203.0.113.9", since: "2026-11-28T12:00:00Z" };

/** What the page shows; `miniprogram-simulate` has no pages, so its template is read as text. */
const TEMPLATE = readFileSync(`${example}/pages/scan/scan.wxml`, "utf8");

test("the example shows browser and address before it confirms a login by scan", async () => {
  const calls = [];
  const client = {
    scan: async (code) => (calls.push(["scan", code]), BROWSER),
    confirmScan: async (code) => void calls.push(["confirm", code]),
    denyScan: async (code) => void calls.push(["deny", code]),
  };
  for (const [verb, words] of [["confirm", /^登录成功/], ["deny", /^已取消登录/]]) {
    const [page, query] = [scanPage(client), { scene: "an-id" }];
    await page.onLoad(query);
    assert.deepEqual(calls.splice(0), [["scan", query]]);
    assert.deepEqual([page.data.browser, page.data.address], [BROWSER.browser, BROWSER.address]);
    assert.ok(page.data.since);
    await page[verb]();
    assert.deepEqual(calls.splice(0), [[verb, query]]);
    assert.match(page.data.answer, words);
    assert.equal(page.data.browser, "", "there is nothing to confirm any more");
  }
  const [, block] = /<block wx:if="{{browser}}">([^]*)<\/block>/.exec(TEMPLATE);
  for (const part of ["{{browser}}", "{{address}}", "{{since}}", 'bindtap="confirm"', 'bindtap="deny"']) {
    assert.ok(block.includes(part), part);
  }
});

test("the example tells what is wrong with a code", async () => {
  const { WxgateError } = require("../example/wxgate-client.js");
  for (const [error, words] of [
    [new WxgateError("no_scan_code", "none", ""), /^这不是登录网页的二维码：no_scan_code$/],
    [new WxgateError("no_route", "none", "", { requestId: "r1" }), /^二维码已过期.*：no_route（请求 ID：r1）$/],
    [new WxgateError("not_allowed", "none", ""), /^二维码已被扫描过/],
  ]) {
    const page = scanPage({ scan: () => Promise.reject(error) });
    await page.onLoad({});
    assert.match(page.data.answer, words);
    assert.equal(page.data.browser, "");
  }
  // What may get better can be tried again.
  const page = scanPage({
    scan: async () => BROWSER,
    confirmScan: () => Promise.reject(new WxgateError("store_unavailable", "retry", "")),
  });
  await page.onLoad({});
  await page.confirm();
  assert.deepEqual([page.data.browser, page.data.isBusy], [BROWSER.browser, false]);
});

test("the example's first page opens the page of a scan for a Mini Program code", () => {
  const opened = [];
  let page;
  Object.assign(globalThis, { wx: { navigateTo: ({ url }) => opened.push(url) } });
  globalThis.Page = (definition) => (page = definition);
  require("../example/pages/index/index.js");
  page.onLoad({});
  page.onLoad({ scene: "id%3D1" });
  assert.deepEqual(opened, []);
  const id = "AbCdEfGhIjKlMnOpQrStUv";
  page.onLoad({ scene: id });
  globalThis.wx.scanCode = ({ success }) => success({ result: `https://h5.example.com/scan/${id}` });
  page.scan();
  const { scanId } = require("../example/wxgate-client.js");
  const queries = opened.map((url) => Object.fromEntries(url.split("?")[1].split("&").map((part) => part.split("="))));
  assert.deepEqual(queries.map(scanId), [id, id]);
});
