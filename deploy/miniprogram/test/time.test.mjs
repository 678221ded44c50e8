/** What takes long, on a clock that the tests move, and without sockets. */

import assert from "node:assert/strict";
import { afterEach, beforeEach, test } from "node:test";
import { createClient } from "../dist/wxgate-client.mjs";
import { Storage } from "./wx.mjs";

const real = { setTimeout, clearTimeout, now: Date.now };
let now;
let timers;

beforeEach(() => {
  now = 1_800_000_000_000;
  timers = new Map();
  Date.now = () => now;
  globalThis.setTimeout = (call, wait) => {
    const timer = Symbol("timer");
    timers.set(timer, { call, at: now + wait });
    return timer;
  };
  globalThis.clearTimeout = (timer) => timers.delete(timer);
});
afterEach(() => {
  Date.now = real.now;
  Object.assign(globalThis, { setTimeout: real.setTimeout, clearTimeout: real.clearTimeout });
});

/** Time goes on. */
function tick(milliseconds) {
  now += milliseconds;
  for (const [timer, { call, at }] of [...timers]) {
    if (at <= now && timers.delete(timer)) call();
  }
}

/** A phone whose gateway gives these answers, one after the other, and then the last for ever. */
function app(...answers) {
  const storage = new Storage();
  const phone = {
    codes: 0,
    sent: [],
    login: ({ success }) => success({ code: `code-${++phone.codes}`, errMsg: "login:ok" }),
    request(option) {
      phone.sent.push(option);
      const answer = answers.length > 1 ? answers.shift() : answers[0];
      if (answer.errMsg) option.fail(answer);
      else option.success(answer);
    },
    getStorageSync: (key) => storage.getStorageSync(key),
    setStorageSync: (key, value) => storage.setStorageSync(key, value),
    removeStorageSync: (key) => storage.removeStorageSync(key),
  };
  const client = createClient({ baseUrl: "https://api.example.com", wx: phone });
  return { phone, client };
}

const refused = (statusCode, error, header = {}) => ({
  statusCode,
  header: { "X-Wxgate-Error": error, ...header },
  data: {},
});
const granted = { statusCode: 200, header: {}, data: { token: "t", expires_in: 7200 } };
const lost = { errMsg: "request:fail timeout" };

/** The outcome, after the clock was moved so often by a second that there is one. */
async function outcome(promise, seconds = 120) {
  let settled;
  promise.then((value) => (settled = { value }), (error) => (settled = { error }));
  for (let waited = 0; waited <= seconds; waited++) {
    // Whatever can happen without time has happened after this.
    await new Promise(setImmediate);
    if (settled) return { waited, ...settled };
    tick(1000);
  }
  return { waited: Infinity };
}

test("a wx.login that answers by promise only is not waited for", async () => {
  const { phone, client } = app(granted);
  phone.login = () => Promise.resolve({ code: "promised", errMsg: "login:ok" });
  assert.deepEqual(await outcome(client.login()), { waited: 0, value: undefined });
  assert.equal(phone.sent[0].data.code, "promised");
  phone.login = () => Promise.resolve({ errMsg: "login:ok" });
  const { waited, error } = await outcome(client.login());
  assert.deepEqual([waited, error.error], [0, "login_failed"]);
});

test("a wx.login that never says anything is an error", async () => {
  const { phone, client } = app(granted);
  phone.login = () => {};
  const { waited, error } = await outcome(client.login());
  assert.deepEqual([waited, error.error], [15, "login_failed"]);
});

test("failures are followed by longer and longer waits, and then by none", async () => {
  const { phone, client } = app(refused(403, "user_blocked"));
  const waits = [];
  for (let i = 0; i < 5; i++) waits.push((await outcome(client.login())).waited);
  assert.deepEqual(waits, [0, 2, 4, 8, 0]);
  assert.equal(phone.codes, 4);
  tick(16_000);
  await outcome(client.login());
  assert.equal(phone.codes, 5);
});

test("a login that works ends the waiting", async () => {
  const blocked = refused(403, "user_blocked");
  const { client } = app(blocked, granted, granted, blocked, granted);
  const waits = [];
  for (let i = 0; i < 5; i++) waits.push((await outcome(client.login())).waited);
  assert.deepEqual(waits, [0, 2, 0, 0, 2]);
});

test("sessions that end at once make no more than ten logins a minute", async () => {
  const { phone, client } = app(granted);
  for (let i = 0; i < 10; i++) await outcome(client.login());
  const { error } = await outcome(client.login());
  assert.deepEqual([error.error, error.action, error.retryAfter], ["too_many_logins", "retry", 60]);
  assert.equal(phone.codes, 10);
  tick(60_000);
  await outcome(client.login());
  assert.equal(phone.codes, 11);
});

test("a clock that is set back stops nobody", async () => {
  const { phone, client } = app(refused(403, "user_blocked"), granted);
  for (let i = 0; i < 9; i++) await outcome(client.login());
  await outcome(client.login());
  now -= 86_400_000;
  assert.deepEqual(await outcome(client.login()), { waited: 0, value: undefined });
  assert.ok(phone.codes >= 10);
});

test("who was offline is not kept waiting for longer than a call may", async () => {
  const { client } = app(lost);
  for (let i = 0; i < 6; i++) await outcome(client.login());
  const { waited } = await outcome(client.login());
  assert.ok(waited > 0 && waited <= 12, `${waited}`);
});

test("an answer to a login that is nobody's is no reason to ask again", async () => {
  for (const action of ["explode", "retry", "login"]) {
    const { phone, client } = app({ statusCode: 404, header: { Server: "x" }, data: { error: "e", action } });
    const { error } = await outcome(client.login());
    assert.deepEqual([error.error, error.action, phone.codes], ["unexpected_answer", "none", 1]);
  }
});

test("headers that only an event shows count, as do bodies where there are none at all", async () => {
  const { phone, client } = app(granted);
  const { header } = refused(403, "wrong_app");
  for (const event of [header, {}]) {
    phone.uploadFile = (option) => {
      const data = JSON.stringify({ error: "rate_limited", action: "retry", request_id: "r" });
      setTimeout(() => option.success({ statusCode: 403, header: {}, data }), 0);
      return { onHeadersReceived: (listener) => listener({ header: event }) };
    };
    const call = client.uploadFile({ url: "/", filePath: "f", name: "n" });
    const { error } = await outcome(call);
    assert.equal(error.error, event === header ? "wrong_app" : "rate_limited");
  }
});

test("a failure without words is an error", async () => {
  const { phone, client } = app(granted);
  await outcome(client.login());
  phone.request = ({ fail }) => fail();
  assert.equal((await outcome(client.request({ url: "/" }))).error.error, "network");
  phone.request = () => {
    throw new TypeError("odd");
  };
  assert.equal((await outcome(client.request({ url: "/" }))).error.errMsg, "odd");
});

test("what was asked before a logout logs nobody in", async () => {
  const { phone, client } = app(granted);
  await outcome(client.login());
  let answer;
  const request = phone.request;
  phone.request = (option) => (answer = option.success);
  const call = client.request({ url: "/slow" });
  await new Promise(setImmediate);
  const late = answer;
  phone.request = ({ success }) => success({ statusCode: 204, header: {}, data: "" });
  await outcome(client.logout());
  phone.request = request;
  late(refused(401, "session_expired"));
  assert.equal((await outcome(call)).error.error, "session_expired");
  assert.equal(phone.codes, 1);
});

/** A gateway whose service shows the token of a request, and that takes the tokens of `good` only. */
function guests(good) {
  const { phone, client } = app(granted);
  const { request, login } = phone;
  phone.request = (option) => {
    const token = option.header && option.header["X-3rd-Session"];
    if (/login$/.test(option.url)) return request(option);
    phone.sent.push(option);
    if (token && !good.includes(token)) return option.success(refused(401, "session_expired"));
    option.success({ statusCode: 200, header: {}, data: token || "guest" });
  };
  /** `wx.login` says nothing until this is called. */
  const holdLogin = () => {
    let goOn;
    phone.login = (option) => (goOn = () => login(option));
    return () => goOn();
  };
  const optional = () => client.request({ url: "/", login: "optional" }).then(({ data }) => data);
  return { phone, client, holdLogin, optional };
}

test("an optional call waits for a login under way and has its token", async () => {
  const { phone, client, holdLogin, optional } = guests(["t"]);
  const goOn = holdLogin();
  const login = client.login();
  const call = optional();
  await new Promise(setImmediate);
  goOn();
  assert.deepEqual([await call, await login, phone.codes], ["t", undefined, 1]);
});

test("an optional call waits for no login for longer than two seconds", async () => {
  const { phone, client, holdLogin, optional } = guests(["t"]);
  holdLogin();
  const login = client.login().catch(({ error }) => error);
  assert.deepEqual(await outcome(optional()), { waited: 2, value: "guest" });
  assert.deepEqual((await outcome(login)).value, "login_failed");
  assert.equal(phone.codes, 0);
});

test("an optional call does not wait for a login where the last one failed", async () => {
  const { phone, client, holdLogin, optional } = guests(["t"]);
  phone.login = ({ fail }) => fail({ errMsg: "login:fail" });
  await outcome(client.login());
  holdLogin();
  const login = client.login().catch(() => {});
  assert.deepEqual(await outcome(optional()), { waited: 0, value: "guest" });
  await outcome(login);
});

test("an optional call uses the token at hand while another login is under way", async () => {
  const { client, holdLogin, optional } = guests(["t"]);
  await outcome(client.login());
  const goOn = holdLogin();
  const login = client.login();
  assert.deepEqual(await outcome(optional()), { waited: 0, value: "t" });
  goOn();
  await login;
});

test("a 401 of an optional call does not drop a newer token, which is used for the repeat", async () => {
  const { phone, client, optional } = guests(["t2"]);
  await outcome(client.login());
  const { request } = phone;
  let late;
  phone.request = (option) => (late = () => request(option));
  const call = optional();
  await new Promise(setImmediate);
  phone.request = ({ success }) => success({ ...granted, data: { token: "t2", expires_in: 7200 } });
  await outcome(client.login());
  phone.request = request;
  late();
  assert.equal(await call, "t2");
  assert.equal(phone.getStorageSync("wxgate:https://api.example.com:").token, "t2");
  assert.equal(await optional(), "t2");
});

test("a newer token that is not good either is no loop", async () => {
  const { phone, client } = guests([]);
  await outcome(client.login());
  const key = "wxgate:https://api.example.com:";
  const { request } = phone;
  let stored = 0;
  // Another part of the app stores a new token all the time.
  phone.request = (option) => {
    request({
      ...option,
      success: (answer) => {
        phone.setStorageSync(key, { token: `s${++stored}`, expiresIn: 7200, endsAt: now + 7200_000 });
        option.success(answer);
      },
    });
  };
  const { data } = await client.request({ url: "/", login: "optional" });
  assert.deepEqual([data, stored, phone.codes], ["guest", 3, 1]);
});

test("an optional call after a logout is a guest's, also while the logout waits for a login", async () => {
  const { phone, client, holdLogin, optional } = guests(["t"]);
  await outcome(client.login());
  const goOn = holdLogin();
  const login = client.login();
  const { request } = phone;
  phone.request = (option) =>
    /logout$/.test(option.url) ? option.success({ statusCode: 204, header: {}, data: "" }) : request(option);
  const logout = client.logout();
  assert.equal((await outcome(optional())).value, "guest");
  goOn();
  await Promise.all([login, outcome(logout)]);
  assert.equal((await outcome(optional())).value, "guest");
  assert.equal(phone.codes, 2);
});

test("a logout while an optional call is on its way brings no token back", async () => {
  const { phone, client, optional } = guests([]);
  await outcome(client.login());
  const { request } = phone;
  let late;
  phone.request = (option) => (late = () => request(option));
  const call = optional();
  await new Promise(setImmediate);
  phone.request = ({ success }) => success({ statusCode: 204, header: {}, data: "" });
  await outcome(client.logout());
  phone.request = request;
  late();
  assert.equal(await call, "guest");
  assert.equal(phone.getStorageSync("wxgate:https://api.example.com:"), "");
  assert.equal(phone.codes, 1);
});

test("a socket that uni-app opens is its task, and one that fails is an error", async () => {
  const { phone, client } = app(granted);
  const task = { send() {} };
  phone.connectSocket = (option) => (option.success ? task : Promise.resolve({ errMsg: "connectSocket:ok" }));
  assert.equal((await outcome(client.connectSocket({ url: "/" }))).value, task);
  phone.connectSocket = () => Promise.reject({ errMsg: "connectSocket:fail" });
  assert.equal((await outcome(client.connectSocket({ url: "/" }))).error.errMsg, "connectSocket:fail");
});

test("what a service says where no headers are seen is its own", async () => {
  const { phone, client } = app(granted);
  for (const [statusCode, data] of [
    [200, { error: 1, msg: "x" }],
    [400, { error: "invalid_file" }],
    [200, { error: "overloaded", action: "retry", request_id: "r" }],
    [503, { error: "overloaded", action: "retry" }],
  ]) {
    phone.uploadFile = ({ success }) => success({ statusCode, header: {}, data: JSON.stringify(data) });
    const { value } = await outcome(client.uploadFile({ url: "/", filePath: "f", name: "n" }));
    assert.equal(value.statusCode, statusCode);
  }
});

test("a token that was refused twice is not used again", async () => {
  const { phone, client } = app(granted, refused(401, "session_expired"));
  const fresh = { ...granted, data: { token: "t2", expires_in: 7200 } };
  const { request } = phone;
  phone.request = (option) => (/login/.test(option.url) && phone.codes > 1 ? option.success(fresh) : request(option));
  assert.equal((await outcome(client.request({ url: "/" }))).error.error, "session_expired");
  phone.uploadFile = ({ header, success }) => success({ statusCode: 200, header: {}, data: header["X-3rd-Session"] });
  fresh.data = { token: "t3", expires_in: 7200 };
  assert.equal((await outcome(client.uploadFile({ url: "/", filePath: "f", name: "n" }))).value.data, "t3");
});

test("a call that begins after a logout has a session of its own", async () => {
  const { phone, client } = app(granted, { statusCode: 204, header: {}, data: "" });
  const { login } = phone;
  let goOn;
  phone.login = (option) => (goOn = () => login(option));
  const before = client.request({ url: "/before" });
  const logout = client.logout();
  const after = client.request({ url: "/after" });
  const next = { ...granted, data: { token: "t2", expires_in: 7200 } };
  const { request } = phone;
  phone.request = (option) => (/login/.test(option.url) && phone.codes > 1 ? option.success(next) : request(option));
  await new Promise(setImmediate);
  phone.login = login;
  goOn();
  await Promise.all([outcome(before), outcome(logout), outcome(after)]);
  const last = phone.sent.find(({ url }) => url.endsWith("/after"));
  assert.equal(last.header["X-3rd-Session"], "t2");
  assert.equal(phone.codes, 2);
});

test("a logout that fails offline can be repeated", async () => {
  const { phone, client } = app(granted, lost, lost, lost, { statusCode: 204, header: {}, data: "" });
  await outcome(client.login());
  const calls = [client.logout(), client.request({ url: "/" })].map((call) => outcome(call));
  assert.deepEqual((await Promise.all(calls)).map(({ error }) => error.error), ["network", "network"]);
  assert.equal((await outcome(client.logout())).error, undefined);
  assert.match(phone.sent.at(-1).url, /logout$/);
  assert.equal(phone.sent.at(-1).header["X-3rd-Session"], "t");
});

test("a socket that cannot be asked for is told to whoever listens, and to nobody else", async () => {
  const { phone, client } = app(granted);
  phone.connectSocket = () => {
    throw new TypeError("odd");
  };
  const told = [];
  const listen = (error) => told.push(error.errMsg);
  await outcome(client.connectSocket({ url: "/", fail: listen, complete: listen }));
  client.connectSocket({ url: "/", success: listen });
  await new Promise(setImmediate);
  assert.deepEqual(told, ["odd", "odd"]);
});

test("storage that gives out what it holds is not written into", async () => {
  const { phone, client } = app(granted, { statusCode: 200, header: {}, data: "" });
  const { getStorageSync } = phone;
  phone.getStorageSync = (key) => Object.freeze(getStorageSync(key));
  await outcome(client.login());
  assert.equal((await outcome(client.request({ url: "/" }))).value.statusCode, 200);
});

test("a busy gateway is asked four times with four codes", async () => {
  const { phone, client } = app(refused(503, "wechat_busy", { "Retry-After": "3" }));
  const { waited, error } = await outcome(client.login());
  assert.deepEqual([waited, error.error], [9, "wechat_busy"]);
  assert.deepEqual(phone.sent.map(({ data }) => data.code), ["code-1", "code-2", "code-3", "code-4"]);
});

test("Retry-After is waited for before a fresh code", async () => {
  for (const [status, word] of [[504, "wechat_timeout"], [503, "login_unavailable"]]) {
    const { phone, client } = app(refused(status, word, { "retry-after": "4" }), granted);
    assert.equal((await outcome(client.login())).waited, 4);
    assert.equal(phone.codes, 2);
  }
});

test("the message of a login hook that refuses the user is shown by the error", async () => {
  const answer = refused(403, "login_refused");
  answer.data = { ...answer.data, error: "login_refused", action: "none", message: "请先注册", request_id: "r" };
  const { phone, client } = app(answer);
  const { error } = await outcome(client.login());
  assert.deepEqual([error.error, error.action, error.errMsg], ["login_refused", "none", "请先注册"]);
  assert.equal(phone.codes, 1);
});

test("a code is sent again only inside the replay window", async () => {
  const { phone, client } = app(lost);
  const { error } = await outcome(client.login());
  assert.equal(error.error, "network");
  assert.deepEqual(phone.sent.map(({ data }) => data.code), ["code-1", "code-1"]);
  const slow = app(lost);
  const request = slow.phone.request;
  slow.phone.request = (option) => setTimeout(() => request(option), 9500);
  await outcome(slow.client.login());
  assert.equal(slow.phone.sent.length, 1);
});

test("an answer that is not the gateway's is an error", async () => {
  const html = { statusCode: 502, header: {}, data: "<html>" };
  const { error } = await outcome(app(html).client.login());
  assert.deepEqual([error.error, error.action, error.statusCode], ["unexpected_answer", "retry", 502]);
  const portal = { statusCode: 200, header: {}, data: "<html>please log in" };
  assert.equal((await outcome(app(portal).client.login())).error.error, "unexpected_answer");
});

test("errors are told where the body cannot be read", async () => {
  const bytes = { ...refused(503, "overloaded", { "Retry-After": "99" }), data: new ArrayBuffer(3) };
  const { client } = app(granted, bytes);
  await outcome(client.login());
  const { error } = await outcome(client.request({ url: "/" }));
  assert.deepEqual([error.error, error.action, error.retryAfter], ["overloaded", "retry", 99]);
});

test("a logout that the gateway refuses is an error, and can be repeated", async () => {
  const down = refused(503, "store_unavailable", { "Retry-After": "1" });
  const { phone, client } = app(granted, down, { statusCode: 204, header: {}, data: "" });
  await outcome(client.login());
  const { error } = await outcome(client.logout());
  assert.deepEqual([error.error, error.action], ["store_unavailable", "retry"]);
  assert.equal((await outcome(client.logout())).error, undefined);
  assert.deepEqual(phone.sent.map(({ url }) => new URL(url).pathname), ["/login", "/logout", "/logout"]);
});

test("an error that is newer than the client is told by its action", async () => {
  const newer = { ...refused(503, "brand_new"), data: { error: "brand_new", action: "retry" } };
  const { error } = await outcome(app(granted, newer).client.request({ url: "/", method: "POST" }));
  assert.deepEqual([error.error, error.action], ["brand_new", "retry"]);
});

test("a request that is answered 401 for ever is sent twice", async () => {
  const { phone, client } = app(granted, refused(401, "session_expired"), granted, refused(401, "session_expired"));
  const { error } = await outcome(client.request({ url: "/", method: "POST" }));
  assert.equal(error.error, "session_expired");
  assert.deepEqual([phone.codes, phone.sent.length], [2, 4]);
});
