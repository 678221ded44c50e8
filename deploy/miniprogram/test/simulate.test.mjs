/** The example in `miniprogram-simulate`, which runs components of Mini Programs. */

import assert from "node:assert/strict";
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
