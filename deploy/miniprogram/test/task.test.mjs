/** What a page hears of a call, and how platforms answer: without sockets. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { createClient, WxgateError } from "../dist/wxgate-client.mjs";
import { Storage } from "./wx.mjs";

const BASE = "https://api.example.com";
const KEY = `wxgate:${BASE}:`;
const EVENTS = ["HeadersReceived", "ChunkReceived", "ProgressUpdate"];

const bytes = (text) => new TextEncoder().encode(text).buffer;
const settled = () => new Promise(setImmediate);

/** The gateway's error, as its body and in headers. */
const body = (error, action) => ({ error, message: "m", action, request_id: "r" });
const rejection = (statusCode, error, action) => ({
  statusCode,
  header: { "X-Wxgate-Error": error },
  data: body(error, action),
});
const expired = () => rejection(401, "session_expired", "login");
const served = (data = "ok") => ({ statusCode: 200, header: { Server: "s" }, data });

/** One try that the platform was asked for; the test decides what becomes of it. */
class Try {
  listeners = {};
  aborts = 0;

  constructor(option) {
    this.option = option;
    this.token = option.header?.["X-3rd-Session"];
    this.task = { abort: () => this.aborts++ };
    for (const event of EVENTS) {
      this.task["on" + event] = (listener) => (this.listeners[event] ||= []).push(listener);
      this.task["off" + event] = () => {};
    }
  }
  tell(event, value) {
    (this.listeners[event] || []).forEach((listener) => listener(value));
  }
  /** The headers, the body in chunks, and the end. */
  answer({ statusCode, header, data }, chunks = [JSON.stringify(data)]) {
    this.tell("HeadersReceived", { statusCode, header });
    chunks.forEach((chunk) => this.tell("ChunkReceived", { data: bytes(chunk) }));
    this.option.success({ statusCode, header, data: this.option.enableChunked ? "" : data });
  }
}

/** A phone with the session `t1`, which gets `t2`, `t3` and so on by logins. */
function app(changes = {}) {
  const storage = new Storage();
  storage.setStorageSync(KEY, { token: "t1", expiresIn: 7200, endsAt: Date.now() + 7_200_000 });
  const tries = [];
  const waiting = [];
  const send = (option) => {
    const attempt = new Try(option);
    tries.push(attempt);
    waiting.shift()?.(attempt);
    return attempt.task;
  };
  const phone = {
    storage,
    logins: 0,
    login: ({ success }) => success({ code: `code-${++phone.logins}` }),
    request(option) {
      if (option.url === `${BASE}/session`) return option.success(served({ expires_in: 1, app_id: "a" }));
      if (option.url !== `${BASE}/login`) return send(option);
      const token = `t${phone.logins + 1}`;
      option.success({ statusCode: 200, header: {}, data: { token, expires_in: 7200 } });
    },
    uploadFile: send,
    downloadFile: send,
    getStorageSync: (key) => storage.getStorageSync(key),
    setStorageSync: (key, value) => storage.setStorageSync(key, value),
    removeStorageSync: (key) => storage.removeStorageSync(key),
    ...changes,
  };
  const client = createClient({ baseUrl: BASE, wx: phone });
  const next = () => new Promise((resolve) => waiting.push(resolve));
  return { phone, client, tries, next };
}

/** Everything that a page hears of a call, in order. */
function listen(call, heard = []) {
  for (const event of EVENTS) {
    call["on" + event]((value) => {
      const { data, progress, statusCode } = value;
      heard.push(data ? Buffer.from(data).toString() : (progress ?? statusCode ?? "headers"));
    });
  }
  return heard;
}

async function failure(promise) {
  const error = await promise.then((result) => assert.fail(JSON.stringify(result)), (error) => error);
  assert.ok(error instanceof WxgateError, error.stack);
  return error;
}

test("a page hears nothing of a 401 whose request is repeated", async () => {
  const { client, next } = app();
  const first = next();
  const call = client.request({ url: "/", enableChunked: true });
  const heard = listen(call);
  (await first).answer(expired());
  const second = await next();
  second.tell("HeadersReceived", { statusCode: 200, header: { Server: "s" } });
  second.tell("ChunkReceived", { data: bytes("one") });
  // A stream reaches the page as it comes.
  assert.deepEqual(heard, [200, "one"]);
  second.tell("ChunkReceived", { data: bytes("two") });
  second.option.success(served(""));
  await call;
  assert.deepEqual(heard, [200, "one", "two"]);
});

test("a page hears nothing of an error of the gateway that ends the call", async () => {
  const { client, next } = app();
  const attempt = next();
  const call = client.request({ url: "/", enableChunked: true });
  const heard = listen(call);
  (await attempt).answer(rejection(403, "wrong_app", "none"));
  assert.equal((await failure(call)).error, "wrong_app");
  assert.deepEqual(heard, []);
});

test("events that come late of a response that was thrown away are thrown away, too", async () => {
  const { client, next } = app();
  const first = next();
  const call = client.request({ url: "/", enableChunked: true });
  const heard = listen(call);
  (await first).answer(expired());
  const second = await next();
  for (let i = 0; i < 200; i++) (await first).tell("ChunkReceived", { data: bytes("late") });
  (await first).tell("HeadersReceived", { statusCode: 401, header: {} });
  second.answer(served("ok"));
  await call;
  assert.deepEqual(heard, [200, '"ok"']);
});

test("the developer tools show headers without a status, and these are enough", async () => {
  const { client, next } = app();
  const first = next();
  const call = client.request({ url: "/", enableChunked: true });
  const heard = listen(call);
  (await first).tell("HeadersReceived", { header: { "x-wxgate-error": ["session_expired"] } });
  (await first).tell("ChunkReceived", { data: bytes("{}") });
  (await first).option.success({ statusCode: 401, data: "" });
  const second = await next();
  second.tell("HeadersReceived", { header: { Server: "s" } });
  second.tell("ChunkReceived", { data: bytes("one") });
  assert.deepEqual(heard, ["headers", "one"]);
  second.option.success(served(""));
  await call;
});

test("where a platform shows no headers before the end, events wait for it", async () => {
  const { client, next } = app();
  const first = next();
  const call = client.request({ url: "/", enableChunked: true });
  const heard = listen(call);
  (await first).tell("ChunkReceived", { data: bytes(JSON.stringify(body("session_expired", "login"))) });
  (await first).option.success(expired());
  const second = await next();
  second.tell("ChunkReceived", { data: bytes("one") });
  second.tell("ChunkReceived", { data: bytes("two") });
  assert.deepEqual(heard, []);
  second.option.success(served(""));
  await call;
  assert.deepEqual(heard, ["one", "two"]);
});

test("what waits is bounded: a response of many chunks is no error of the gateway", async () => {
  const { client, next } = app();
  const attempt = next();
  const call = client.request({ url: "/", enableChunked: true });
  const heard = listen(call);
  for (let i = 0; i < 100; i++) (await attempt).tell("ChunkReceived", { data: bytes(`${i}`) });
  assert.deepEqual(heard, [...Array(100).keys()].map(String));
  (await attempt).option.success(served(""));
  await call;
});

test("a page hears the headers of a response whose chunks came before them in order", async () => {
  const { client, next } = app();
  const attempt = next();
  const call = client.request({ url: "/", enableChunked: true });
  const heard = listen(call);
  (await attempt).tell("ChunkReceived", { data: bytes("one") });
  (await attempt).answer(served(""), ["two"]);
  await call;
  assert.deepEqual(heard, ["one", 200, "two"]);
});

test("a redirect that ends at the gateway's 401 shows nothing of the 401", async () => {
  const { client, next } = app();
  const first = next();
  const call = client.request({ url: "/", enableChunked: true });
  const heard = listen(call);
  (await first).tell("HeadersReceived", { statusCode: 302, header: { Location: "/b" } });
  (await first).answer(expired());
  (await next()).answer(served("ok"));
  await call;
  assert.deepEqual(heard, [302, 200, '"ok"']);
});

test("the progress of a download that is thrown away is not shown", async () => {
  const { client, next } = app();
  const first = next();
  const call = client.downloadFile({ url: "/" });
  const heard = listen(call);
  (await first).tell("ProgressUpdate", { progress: 100, totalBytesWritten: 90 });
  (await first).answer(expired(), []);
  const second = await next();
  second.tell("ProgressUpdate", { progress: 10, totalBytesWritten: 10 });
  assert.deepEqual(heard, []);
  second.tell("HeadersReceived", { header: { Server: "s" } });
  second.tell("ProgressUpdate", { progress: 100, totalBytesWritten: 100 });
  assert.deepEqual(heard, [10, "headers", 100]);
  second.option.success({ ...served(), tempFilePath: "f" });
  await call;
});

test("the progress of an upload is shown at once, and never goes back when it is repeated", async () => {
  const { client, next } = app();
  const first = next();
  const call = client.uploadFile({ url: "/", filePath: "f", name: "n" });
  const heard = listen(call);
  const progress = (attempt, percent) =>
    attempt.tell("ProgressUpdate", { progress: percent, totalBytesSent: percent * 10, totalBytesExpectedToSend: 1000 });
  [0, 30, 60].forEach(async (percent) => progress(await first, percent));
  await first;
  await settled();
  assert.deepEqual(heard, [0, 30, 60]);
  (await first).answer(expired(), []);
  const second = await next();
  [0, 30, 60, 90, 100].forEach((percent) => progress(second, percent));
  second.answer(served(), []);
  await call;
  assert.deepEqual(heard, [0, 30, 60, 90, 100, 200]);
});

test("listeners of before the login and of between the tries hear the response", async () => {
  let goOn;
  const { phone, client, next } = app({ login: (option) => (goOn = () => option.success({ code: "c" })) });
  phone.storage.removeStorageSync(KEY);
  const heard = [];
  const call = client.request({ url: "/", enableChunked: true });
  const early = ({ statusCode }) => heard.push(["early", statusCode]);
  const removed = () => heard.push("removed");
  call.onHeadersReceived(early);
  call.onHeadersReceived(removed);
  call.onChunkReceived(() => heard.push("removed"));
  const first = next();
  await settled();
  phone.login = ({ success }) => success({ code: `code-${++phone.logins}` });
  goOn();
  (await first).answer(expired());
  const second = await next();
  call.onHeadersReceived(({ statusCode }) => heard.push(["late", statusCode]));
  call.offHeadersReceived(removed);
  call.offChunkReceived();
  call.onChunkReceived(({ data }) => heard.push(Buffer.from(data).toString()));
  second.answer(served("ok"));
  await call;
  assert.deepEqual(heard, [["early", 200], ["late", 200], '"ok"']);
});

test("a listener that fails keeps neither the others nor the call from going on", async () => {
  const { client, next } = app();
  const failures = [];
  const attempt = next();
  const call = client.request({ url: "/", enableChunked: true });
  call.onHeadersReceived(() => {
    throw new Error("page");
  });
  const heard = listen(call);
  const listeners = process.listeners("uncaughtException");
  process.removeAllListeners("uncaughtException");
  process.on("uncaughtException", (error) => failures.push(error.message));
  (await attempt).answer(served("ok"));
  assert.equal((await call).statusCode, 200);
  await new Promise((resolve) => setTimeout(resolve));
  process.removeAllListeners("uncaughtException");
  listeners.forEach((listener) => process.on("uncaughtException", listener));
  assert.deepEqual([heard, failures], [[200, '"ok"'], ["page"]]);
});

test("a page hears nothing after it aborts", async () => {
  const { client, next } = app();
  const attempt = next();
  const call = client.request({ url: "/", enableChunked: true });
  const heard = listen(call);
  await attempt;
  call.abort();
  (await attempt).answer(served("ok"));
  assert.equal((await failure(call)).error, "aborted");
  assert.deepEqual([heard, (await attempt).aborts], [[], 1]);
});

test("a call that is aborted while its 401 is on the way logs nobody in and is not repeated", async () => {
  for (const login of ["required", "optional"]) {
    const { phone, client, tries, next } = app();
    const attempt = next();
    const call = client.request({ url: "/", login });
    await attempt;
    call.abort();
    (await attempt).answer(expired());
    assert.equal((await failure(call)).error, "aborted");
    await settled();
    assert.deepEqual([phone.logins, tries.length], [0, 1]);
  }
});

test("a call that is aborted during its login ends, and the login goes on for others", async () => {
  let goOn;
  const { phone, client, tries } = app({ login: (option) => (goOn = () => option.success({ code: "c" })) });
  phone.storage.removeStorageSync(KEY);
  const call = client.request({ url: "/" });
  await settled();
  call.abort();
  assert.equal((await failure(call)).error, "aborted");
  goOn();
  await client.login();
  await settled();
  assert.deepEqual([tries.length, phone.storage.entries().length], [0, 1]);
});

test("the action of an error is read from the chunks where the result has no data", async () => {
  const { client, next } = app();
  const attempt = next();
  const call = client.request({ url: "/", method: "POST", enableChunked: true });
  const whole = bytes(JSON.stringify({ ...body("brand_new", "retry"), message: "稍后再试" }));
  (await attempt).tell("HeadersReceived", { statusCode: 503, header: { "X-Wxgate-Error": "brand_new" } });
  // A chunk may end inside a character.
  for (const chunk of [whole.slice(0, 40), whole.slice(40, 41), whole.slice(41)]) {
    (await attempt).tell("ChunkReceived", { data: chunk });
  }
  (await attempt).option.success({ statusCode: 503, header: { "X-Wxgate-Error": "brand_new" }, data: "" });
  const error = await failure(call);
  assert.deepEqual([error.error, error.action, error.errMsg], ["brand_new", "retry", "稍后再试"]);
});

test("chunks that are no bytes are no error of the client", async () => {
  for (const data of [undefined, null, "4000000000", 4e9, {}]) {
    const { client, next } = app();
    const attempt = next();
    const call = client.request({ url: "/", method: "POST", enableChunked: true });
    const header = { "X-Wxgate-Error": "overloaded" };
    (await attempt).tell("HeadersReceived", { statusCode: 503, header });
    (await attempt).tell("ChunkReceived", data === undefined ? data : { data });
    (await attempt).option.success({ statusCode: 503, header, data: "" });
    assert.equal((await failure(call)).error, "overloaded");
  }
});

test("an error in chunks is known by its shape where a platform shows no headers at all", async () => {
  const { phone, client, next } = app();
  const first = next();
  const call = client.request({ url: "/", enableChunked: true });
  const heard = listen(call);
  const { data } = expired();
  (await first).tell("ChunkReceived", { data: bytes(JSON.stringify(data)) });
  (await first).option.success({ statusCode: 401, data: "" });
  const second = await next();
  second.tell("ChunkReceived", { data: bytes('{"error":"mine"}') });
  second.option.success({ statusCode: 409, data: "" });
  const { statusCode, data: shown } = await call;
  assert.deepEqual([statusCode, shown, heard, phone.logins], [409, "", ['{"error":"mine"}'], 1]);
});

test("errors are read from bytes, from headers in lists, and with a status that is text", async () => {
  for (const change of [
    { data: bytes(JSON.stringify(body("brand_new", "login"))) },
    { data: new Uint8Array(bytes(JSON.stringify(body("brand_new", "login")))) },
    { data: JSON.stringify(body("brand_new", "login")) },
    { header: { "X-WXGATE-ERROR": ["brand_new"], "x-request-id": ["r1"] } },
    { statusCode: "401" },
    { header: {} },
    { header: null },
  ]) {
    const { phone, client, next } = app();
    const first = next();
    const call = client.request({ url: "/" });
    (await first).option.success({ ...rejection(401, "brand_new", "login"), ...change });
    const second = await next();
    assert.deepEqual([phone.logins, second.token], [1, "t2"], JSON.stringify(change));
    second.option.success({ ...rejection(403, "newer", "none"), ...change, statusCode: "403" });
    const error = await failure(call);
    assert.strictEqual(error.statusCode, 403);
    assert.equal(typeof error.requestId, "string");
  }
});

test("an error that the client does not know does what its action says", async () => {
  for (const [statusCode, action, logins] of [
    [401, "login", 1],
    [401, "none", 0],
    [403, "none", 0],
    [426, "none", 0],
    [401, "explode", 1],
    [403, "explode", 0],
  ]) {
    for (const word of ["brand_new", "constructor"]) {
      const { phone, client, next } = app();
      const first = next();
      const call = client.request({ url: "/" });
      (await first).answer(rejection(statusCode, word, action), []);
      if (logins) (await next()).answer(rejection(statusCode, word, action), []);
      const error = await failure(call);
      const told = action === "explode" ? (logins ? "login" : "none") : action;
      assert.deepEqual([error.error, error.action, phone.logins], [word, told, logins]);
    }
  }
});

test("a platform may answer by promise only", async () => {
  const { phone, client } = app();
  const promised = (call) => (option) =>
    new Promise((success, fail) => call({ ...option, success, fail, complete: undefined }));
  const { request, login } = phone;
  const answers = [expired(), served()];
  phone.login = promised(login);
  phone.request = promised((option) =>
    /login$/.test(option.url) ? request(option) : option.success(answers.shift()),
  );
  assert.equal((await client.request({ url: "/" })).statusCode, 200);
  assert.equal(phone.logins, 1);
  // What interceptors make of a promise's value is no answer.
  phone.request = async ({ success }) => (setImmediate(() => success(served())), { code: 200, data: "mine" });
  assert.equal((await client.request({ url: "/" })).statusCode, 200);
  phone.request = () => Promise.reject({ errMsg: "request:fail timeout" });
  assert.equal((await failure(client.request({ url: "/" }))).errMsg, "request:fail timeout");
  phone.login = () => Promise.reject(new Error("login:fail denied"));
  assert.equal((await failure(client.login())).errMsg, "login:fail denied");
});

test("a promise that says nothing of the answer does not end the call", async () => {
  for (const value of [undefined, null, {}, "task"]) {
    const { phone, client, next } = app();
    const { request, login } = phone;
    phone.storage.removeStorageSync(KEY);
    phone.login = async (option) => (setImmediate(() => login(option)), value);
    phone.request = async (option) => (request(option), value);
    const attempt = next();
    const call = client.request({ url: "/" });
    await attempt;
    await settled();
    (await attempt).option.success(served("by callback"));
    assert.equal((await call).data, "by callback");
  }
  // Nor does it take the place of the task that has it.
  const { phone, client } = app();
  let aborts = 0;
  phone.request = () => Object.assign(Promise.resolve({}), { abort: () => aborts++ });
  const call = client.request({ url: "/" });
  await settled();
  call.abort();
  assert.equal((await failure(call)).error, "aborted");
  assert.equal(aborts, 1);
});

test("a task that comes by promise is the task", async () => {
  const { phone, client, next } = app();
  const { request } = phone;
  phone.request = async (option) => request(option);
  const attempt = next();
  const call = client.request({ url: "/", enableChunked: true });
  const heard = listen(call);
  await attempt;
  await settled();
  (await attempt).answer(served("ok"));
  assert.equal((await call).statusCode, 200);
  assert.deepEqual(heard, [200, '"ok"']);
  const aborted = next();
  const other = client.request({ url: "/" });
  await aborted;
  await settled();
  other.abort();
  assert.equal((await aborted).aborts, 1);
  await failure(other);
});

test("whatever has a status code is an answer, also where the platform calls it a failure", async () => {
  const fail = (answer) => ({ errMsg: "request:fail", ...answer });
  for (const by of ["callback", "promise", "error"]) {
    const { phone, client } = app();
    const { request } = phone;
    const answers = [expired(), served()];
    phone.request = (option) => {
      if (/login$/.test(option.url)) return request(option);
      const answer = answers.shift();
      if (answer.statusCode === 200) return void option.success(answer);
      if (by === "callback") return void option.fail(fail(answer));
      return Promise.reject(by === "error" ? Object.assign(new Error("Unauthorized"), answer) : fail(answer));
    };
    assert.equal((await client.request({ url: "/" })).statusCode, 200, by);
    assert.equal(phone.logins, 1, by);
    answers.push({ statusCode: "404", header: { Server: "s" }, data: "the service's" });
    const { statusCode, data } = await client.request({ url: "/" });
    assert.deepEqual([statusCode, data], [404, "the service's"], by);
    answers.push(rejection(503, "overloaded", "retry"));
    const error = await failure(client.request({ url: "/", method: "POST" }));
    assert.deepEqual([error.error, error.statusCode], ["overloaded", 503], by);
  }
});

test("an answer without anything is no error of the client", async () => {
  const { phone, client } = app();
  for (const value of [undefined, null, {}]) {
    phone.request = ({ success }) => success(value);
    assert.deepEqual(await client.request({ url: "/" }), { statusCode: undefined, header: {} });
  }
});

test("a login that the platform calls a failure of the gateway's is the gateway's error", async () => {
  const { phone, client } = app();
  phone.request = ({ fail }) => fail({ errMsg: "request:fail", ...rejection(403, "user_blocked", "none") });
  const error = await failure(client.login());
  assert.deepEqual([error.error, error.action, error.statusCode], ["user_blocked", "none", 403]);
});

test("a failure without a status of an error is one of the phone", async () => {
  for (const statusCode of [undefined, 0, -1, "", 200, "abc"]) {
    const { phone, client } = app();
    phone.downloadFile = ({ fail }) => fail({ errMsg: "downloadFile:fail disk full", statusCode });
    const error = await failure(client.downloadFile({ url: "/" }));
    assert.deepEqual([error.error, error.errMsg], ["network", "downloadFile:fail disk full"]);
  }
});

test("the first answer counts, however often and in whatever way a platform answers", async () => {
  const { phone, client } = app();
  const told = [];
  phone.request = (option) => {
    option.success(served("first"));
    option.success(served("second"));
    option.fail({ errMsg: "request:fail", statusCode: 401 });
    option.complete?.(served("third"));
    return Promise.resolve(served("fourth"));
  };
  const listen = ({ data }) => told.push(data);
  assert.equal((await client.request({ url: "/", success: listen, complete: listen })).data, "first");
  phone.request = (option) => {
    option.success(served("thrown"));
    throw new Error("odd");
  };
  assert.equal((await client.request({ url: "/" })).data, "thrown");
  assert.deepEqual([told, phone.logins], [["first", "first"], 0]);
});

test("a task whose functions fail does not fail the call", async () => {
  const { phone, client } = app();
  phone.request = ({ success }) => {
    setImmediate(() => success(served()));
    return { onHeadersReceived: () => assert.fail("not supported") };
  };
  assert.equal((await client.request({ url: "/" })).statusCode, 200);
});
