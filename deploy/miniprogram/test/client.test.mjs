import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { createClient, WxgateError } from "../dist/wxgate-client.mjs";
import { World } from "./world.mjs";
import { Phone, Storage } from "./wx.mjs";

/** What hangs is a failure. */
const LIMITS = { concurrency: true, timeout: 60_000 };

let world;
before(async () => (world = await World.start()));
after(() => world.close());

/** A phone with the app, and its client of the gateway. */
function app(habits, options) {
  const phone = new Phone(habits);
  const client = createClient({ baseUrl: world.baseUrl, wx: phone, ...options });
  return { phone, client };
}

/** The only thing stored. */
const held = (storage) => storage.entries()[0]?.[1];
const tokenOf = (storage) => held(storage)?.token;
const seen = (url) => world.seen.filter((asked) => asked.url === url);
const together = (count, make) => Promise.all(Array.from({ length: count }, (_, i) => make(i)));

async function failure(promise) {
  const error = await promise.then(
    (result) => assert.fail(`it succeeded: ${JSON.stringify(result)}`),
    (error) => error,
  );
  assert.ok(error instanceof WxgateError, error.stack);
  return error;
}

describe("one login", LIMITS, () => {
  test("a cold start with twenty parallel requests logs in once", async () => {
    const { phone, client } = app();
    const answers = await together(20, (i) => client.request({ url: `/cold/${i}` }));
    assert.deepEqual(answers.map(({ statusCode }) => statusCode), Array(20).fill(200));
    assert.equal(new Set(answers.map(({ data }) => data.headers["x-openid"])).size, 1);
    assert.deepEqual([phone.count("login"), phone.count("POST /login")], [1, 1]);
    assert.ok(phone.mostAtOnce <= 10);
  });

  test("clients of one app share the session", async () => {
    const { phone, client } = app();
    const other = createClient({ baseUrl: `${world.baseUrl}/`, wx: phone });
    await Promise.all([client.request({ url: "/a" }), other.request({ url: "/b" }), client.login()]);
    assert.equal(phone.count("login"), 1);
  });

  test("a session survives the end of the app", async () => {
    const storage = new Storage();
    await app({ storage }).client.request({ url: "/" });
    const { phone, client } = app({ storage });
    await client.request({ url: "/" });
    assert.deepEqual(phone.log, ["GET /"]);
  });

  test("a session that must be over is not tried", async () => {
    const { phone, client } = app();
    await client.request({ url: "/" });
    const [[key, value]] = phone.storage.entries();
    phone.storage.setStorageSync(key, { ...value, endsAt: Date.now() - 1 });
    const later = app({ storage: phone.storage });
    await later.client.request({ url: "/" });
    assert.deepEqual(later.phone.log, ["login", "POST /login", "GET /"]);
  });

  test("an answered request moves the stored end", async () => {
    const storage = new Storage();
    await app({ storage }).client.request({ url: "/" });
    const [[key, value]] = storage.entries();
    storage.setStorageSync(key, { ...value, endsAt: Date.now() + 60_000 });
    const before = Date.now();
    await app({ storage }).client.request({ url: "/" });
    assert.ok(held(storage).endsAt >= before + 7200_000, JSON.stringify(held(storage)));
  });

  test("a phone whose storage fails logs in once all the same", async () => {
    const { phone, client } = app();
    phone.getStorageSync = phone.setStorageSync = phone.removeStorageSync = () => {
      throw new Error("quota");
    };
    await client.request({ url: "/" });
    await client.request({ url: "/" });
    assert.equal(phone.count("login"), 1);
  });

  test("a failing wx.checkSession forces no login", async () => {
    const { phone, client } = app();
    phone.checkSession();
    await client.request({ url: "/" });
    phone.checkSession();
    await client.request({ url: "/" });
    assert.equal(phone.count("login"), 1);
  });

  test("an app that the gateway does not know is an error", async () => {
    const { phone, client } = app({}, { appId: "wxunknown" });
    const error = await failure(client.request({ url: "/" }));
    assert.deepEqual([error.error, error.action, error.statusCode], ["bad_request", "none", 400]);
    assert.match(error.requestId, /^[0-9a-f]{32}$/);
    assert.equal(phone.count("login"), 1);
  });

  test("an app is named to the gateway", async () => {
    const { client } = app({}, { appId: "wx0123456789abcdef" });
    assert.equal((await client.session()).app_id, "wx0123456789abcdef");
  });
});

describe("the end of a session", LIMITS, () => {
  test("twenty requests that meet it log in once, and each is repeated", async () => {
    const { phone, client } = app();
    await client.request({ url: "/" });
    await world.revoke(tokenOf(phone.storage));
    const answers = await together(20, (i) =>
      client.request({ url: `/revoked/${i}`, method: "POST", data: { i } }),
    );
    assert.deepEqual(answers.map(({ data }) => JSON.parse(data.body).i), [...Array(20).keys()]);
    assert.deepEqual([phone.count("login"), phone.mostLogins], [2, 1]);
    for (let i = 0; i < 20; i++) assert.equal(seen(`/revoked/${i}`).length, 1);
  });

  test("logout ends it for the gateway and the phone", async () => {
    const { phone, client } = app();
    await client.request({ url: "/" });
    const token = tokenOf(phone.storage);
    await client.logout();
    assert.deepEqual(phone.storage.entries(), []);
    const headers = { "X-3rd-Session": token };
    assert.equal((await fetch(`${world.baseUrl}/session`, { headers })).status, 401);
    await client.logout();
    assert.equal(phone.count("POST /logout"), 1);
    await client.request({ url: "/" });
    assert.equal(phone.count("login"), 2);
  });

  test("a logout during a login ends what the login began", async () => {
    const { phone, client } = app();
    const call = client.request({ url: "/" }).catch((error) => error);
    await client.logout();
    // Whether it came first or not, it begins no other session.
    assert.ok([undefined, "session_expired"].includes((await call).error));
    assert.deepEqual([phone.count("POST /logout"), phone.count("login")], [1, 1]);
    assert.deepEqual(phone.storage.entries(), []);
  });

  test("a logout whose answer is lost can be repeated", async () => {
    const { phone, client } = app();
    await client.request({ url: "/" });
    phone.loseAnswer("/logout");
    assert.equal((await failure(client.logout())).error, "network");
    await client.logout();
    assert.deepEqual(phone.storage.entries(), []);
  });

  test("calls that begin during a login wait for it", async () => {
    const { phone, client } = app();
    await client.request({ url: "/" });
    await world.revoke(tokenOf(phone.storage));
    const login = phone.login;
    const asked = new Promise((resolve) => (phone.login = (option) => resolve(() => login(option))));
    const first = client.request({ url: "/waits/1" });
    const goOn = await asked;
    const others = [
      client.request({ url: "/waits/2" }),
      client.uploadFile({ url: "/waits/3", filePath: import.meta.filename ?? process.argv[1], name: "x" }),
    ];
    goOn();
    await Promise.all([first, ...others]);
    const counts = ["GET /waits/1", "GET /waits/2", "POST /waits/3", "login"].map((what) => phone.count(what));
    assert.deepEqual(counts, [2, 1, 1, 2]);
  });

  test("a stored token that is dead, too, costs one more try", async () => {
    const storage = new Storage();
    const [one, other] = [app({ storage }), app({ storage })];
    await one.client.request({ url: "/" });
    await other.client.login();
    const [[, { token }]] = storage.entries();
    await world.revoke(token);
    await world.revoke(one.phone.sent);
    await one.client.request({ url: "/dead" });
    assert.equal(one.phone.count("login"), 2);
  });

  test("two tabs go on with the session of the one that logged in", async () => {
    const storage = new Storage();
    const [one, other] = [app({ storage }), app({ storage })];
    await one.client.request({ url: "/" });
    await other.client.request({ url: "/" });
    assert.equal(other.phone.count("login"), 0);
    await one.client.logout();
    await other.client.request({ url: "/" });
    assert.equal(other.phone.count("login"), 1);
    await one.client.request({ url: "/" });
    assert.deepEqual([one.phone.count("login"), one.phone.count("GET /")], [1, 2]);
    const old = tokenOf(storage);
    await one.client.login();
    await world.revoke(old);
    await other.client.request({ url: "/" });
    assert.deepEqual([other.phone.count("login"), other.phone.count("GET /")], [1, 5]);
  });

  test("a session that runs out is followed by another", async () => {
    const short = await World.start('session = { ttl = "1s", idle_timeout = "1s" }');
    try {
      const { phone, client } = app({}, { baseUrl: short.baseUrl });
      await client.request({ url: "/" });
      const headers = { "X-3rd-Session": tokenOf(phone.storage) };
      while ((await fetch(`${short.baseUrl}/session`, { headers })).status !== 401);
      assert.equal((await client.request({ url: "/" })).statusCode, 200);
      assert.equal(phone.count("login"), 2);
    } finally {
      short.close();
    }
  });

  test("a gateway that was started anew costs one login", async () => {
    const other = await World.start();
    try {
      const { phone, client } = app({}, { baseUrl: other.baseUrl });
      await client.request({ url: "/" });
      await other.stopGateway();
      assert.equal((await failure(client.request({ url: "/" }))).error, "network");
      await other.startGateway();
      const answers = await together(20, () => client.request({ url: "/" }));
      assert.ok(answers.every(({ statusCode }) => statusCode === 200));
      assert.equal(phone.count("login"), 2);
    } finally {
      other.close();
    }
  });
});

describe("what the gateway asks for", LIMITS, () => {
  test("a rate limit is waited for, whatever the method", async () => {
    const { client } = app();
    await client.request({ url: "/" });
    const post = (i) => client.request({ url: `/limited/${i}`, method: "POST", data: "x" });
    const answers = [await post("a"), await post("b")];
    assert.deepEqual(answers.map(({ statusCode }) => statusCode), [200, 200]);
    assert.deepEqual([seen("/limited/a").length, seen("/limited/b").length], [1, 1]);
  });

  test("a wait that is too long is an error at once", async () => {
    const { client } = app({}, { maxWait: 0.5 });
    await client.request({ url: "/limited/c" });
    const error = await failure(client.request({ url: "/limited/c" }));
    assert.deepEqual([error.error, error.action, error.statusCode], ["rate_limited", "retry", 429]);
    assert.equal(error.retryAfter, 1);
  });

  test("a service that does not answer is asked again only by what is safe", async () => {
    const { phone, client } = app();
    const got = await failure(client.request({ url: "/nobody/get" }));
    assert.deepEqual([got.error, got.action, got.statusCode], ["bad_gateway", "retry", 502]);
    const posted = await failure(client.request({ url: "/nobody/post", method: "POST" }));
    assert.equal(posted.error, "bad_gateway");
    assert.deepEqual([phone.count("GET /nobody/get"), phone.count("POST /nobody/post")], [3, 1]);
  });

  test("what the service says is passed on, whatever its status", async () => {
    const { phone, client } = app();
    for (const status of [401, 429, 502, 503]) {
      const { statusCode } = await client.request({ url: `/status/${status}` });
      assert.deepEqual([statusCode, phone.count(`GET /status/${status}`)], [status, 1]);
    }
    assert.equal(phone.count("login"), 1);
  });

  test("a code that is not accepted is followed by one fresh one", async () => {
    const { phone, client } = app({ codes: ["err-40029-a"] });
    await client.request({ url: "/" });
    assert.equal(phone.count("login"), 2);
  });

  test("codes that are never accepted are no loop", async () => {
    const { phone, client } = app({ codes: Array(20).fill(0).map((_, i) => `err-40029-b${i}`) });
    const errors = await together(10, () => failure(client.request({ url: "/" })));
    assert.ok(errors.every(({ error, statusCode }) => error === "invalid_code" && statusCode === 401));
    assert.equal(phone.count("login"), 2);
  });

  test("a code that may be spent is followed by a fresh one after a while", async () => {
    const { phone, client } = app({ codes: ["drop-a"] });
    await client.request({ url: "/" });
    assert.equal(phone.count("login"), 2);
  });

  test("a busy WeChat is asked again with a fresh code", async () => {
    const { phone, client } = app({ codes: ["err--1-a"] });
    await client.request({ url: "/" });
    assert.equal(phone.count("login"), 2);
  });

  test("a user of whom WeChat has had enough comes back later", async () => {
    const { phone, client } = app({ codes: ["err-45011-a"] });
    const error = await failure(client.request({ url: "/" }));
    assert.deepEqual([error.error, error.action], ["rate_limited", "retry"]);
    assert.ok(error.retryAfter >= 60, `${error.retryAfter}`);
    // Nobody is asked before.
    assert.equal(await failure(client.request({ url: "/" })), error);
    assert.equal(phone.count("login"), 1);
  });

  test("a user who is blocked is told so", async () => {
    const { phone, client } = app({ codes: ["err-40226-a"] });
    const error = await failure(client.request({ url: "/" }));
    assert.deepEqual([error.error, error.action, error.statusCode], ["user_blocked", "none", 403]);
    assert.equal(phone.count("login"), 1);
  });
});

describe("lost answers", LIMITS, () => {
  test("a login whose answer is lost is asked for again with the same code", async () => {
    const lonely = await World.start();
    try {
      const { phone, client } = app({}, { baseUrl: lonely.baseUrl });
      phone.loseAnswer("/login");
      await client.request({ url: "/" });
      assert.deepEqual(phone.log, ["login", "POST /login", "POST /login", "GET /"]);
      assert.equal(await lonely.exchanges(), 1);
    } finally {
      lonely.close();
    }
  });

  test("a request whose answer is lost is not repeated", async () => {
    const { phone, client } = app();
    phone.loseAnswer("/lost");
    const error = await failure(client.request({ url: "/lost", method: "POST" }));
    assert.deepEqual([error.error, error.action, error.statusCode], ["network", "retry", 0]);
    assert.equal(error.errMsg, "request:fail timeout");
    assert.equal(seen("/lost").length, 1);
  });
});

describe("wx.login", LIMITS, () => {
  test("its failure is an error with its words", async () => {
    const { client } = app({ codes: [new Error("login:fail interrupted")] });
    const error = await failure(client.request({ url: "/" }));
    assert.deepEqual([error.error, error.errMsg], ["login_failed", "login:fail interrupted"]);
  });

  test("no code is an error", async () => {
    const { client } = app({ codes: [""] });
    const error = await failure(client.login());
    assert.equal(error.error, "login_failed");
  });
});

describe("files", LIMITS, () => {
  const file = join(mkdtempSync(join(tmpdir(), "wxgate-")), "photo");
  writeFileSync(file, "a photo");

  test("an upload is sent once, with a session that is good", async () => {
    const { phone, client } = app();
    await client.request({ url: "/" });
    await world.revoke(tokenOf(phone.storage));
    const later = app({ storage: phone.storage });
    const progress = { name: "photo", formData: { of: "me" } };
    const { statusCode, data } = await later.client.uploadFile({ url: "/upload", filePath: file, ...progress });
    assert.equal(statusCode, 200);
    assert.match(JSON.parse(data).body, /name="of"\r\n\r\nme\r\n[^]*name="photo"[^]*a photo/);
    assert.deepEqual(later.phone.log, [
      "GET /session",
      "login",
      "POST /login",
      "GET /session",
      "POST /upload",
    ]);
  });

  test("an upload right after a request needs no look", async () => {
    const { phone, client } = app();
    await client.request({ url: "/" });
    await client.uploadFile({ url: "/upload", filePath: file, name: "photo" });
    assert.equal(phone.count("GET /session"), 0);
  });

  test("a download meets the end of a session and goes on", async () => {
    const { phone, client } = app();
    await client.request({ url: "/" });
    await world.revoke(tokenOf(phone.storage));
    const { statusCode, tempFilePath } = await client.downloadFile({ url: "/file" });
    assert.equal(statusCode, 200);
    assert.equal(JSON.parse(readFileSync(tempFilePath, "utf8")).url, "/file");
    assert.equal(phone.count("login"), 2);
  });

  test("a download tells the gateway's errors from the service's", async () => {
    const { client } = app();
    const { statusCode } = await client.downloadFile({ url: "/status/502" });
    assert.equal(statusCode, 502);
    const error = await failure(client.downloadFile({ url: "/nobody" }));
    assert.deepEqual([error.error, error.action], ["bad_gateway", "retry"]);
    assert.match(error.requestId, /^[0-9a-f]{32}$/);
  });
});

describe("sockets", LIMITS, () => {
  test("a socket has the session, and a good one", async () => {
    const { phone, client } = app();
    await client.request({ url: "/" });
    await world.revoke(tokenOf(phone.storage));
    const later = app({ storage: phone.storage });
    const socket = await later.client.connectSocket({ url: "/socket/a" });
    const answer = new Promise((resolve, reject) => {
      socket.onError(({ errMsg }) => reject(new Error(errMsg)));
      socket.onMessage(resolve);
    });
    socket.onOpen(() => socket.send({ data: "hello" }));
    assert.deepEqual(await answer, { data: "hello" });
    assert.match(seen("/socket/a")[0].headers["x-openid"], /^o/);
    assert.equal(later.phone.count("login"), 1);
    socket.close();
  });

  test("a socket without a session fails as wx does", async () => {
    const { client } = app({ codes: [new Error("login:fail a"), new Error("login:fail b")] });
    const told = [];
    const error = await failure(
      client.connectSocket({ url: "/socket", fail: (e) => told.push(e), complete: (e) => told.push(e) }),
    );
    assert.deepEqual(told, [error, error]);
  });
});

describe("calls", LIMITS, () => {
  test("callbacks are called as wx does", async () => {
    const { client } = app();
    const told = [];
    const listen = (name) => (result) => told.push([name, result.statusCode]);
    const option = { success: listen("success"), fail: listen("fail"), complete: listen("complete") };
    await client.request({ url: "/", ...option });
    await client.request({ url: "/nobody", method: "POST", ...option }).catch(() => {});
    await new Promise(setImmediate);
    assert.deepEqual(told, [["success", 200], ["complete", 200], ["fail", 502], ["complete", 502]]);
  });

  test("a call is handled like a task, over all its tries", async () => {
    const { phone, client } = app();
    await client.request({ url: "/" });
    await world.revoke(tokenOf(phone.storage));
    const call = client.request({ url: "/" });
    const statuses = [];
    call.onHeadersReceived(({ statusCode }) => statuses.push(statusCode));
    await call;
    assert.deepEqual([statuses, phone.count("GET /")], [[200], 3]);
  });

  test("a page that reads a stream hears the service only, whatever the gateway rejected before", async () => {
    const { phone, client } = app();
    await client.login();
    await world.revoke(tokenOf(phone.storage));
    const call = client.request({ url: "/stream", enableChunked: true });
    const chunks = [];
    call.onChunkReceived(({ data }) => chunks.push(data));
    await call;
    assert.equal(JSON.parse(Buffer.concat(chunks)).url, "/stream");
    const error = client.request({ url: "/nobody/stream", method: "POST", enableChunked: true });
    error.onChunkReceived(() => assert.fail("a chunk of the gateway's error"));
    assert.equal((await failure(error)).error, "bad_gateway");
  });

  test("functions that reject besides calling back, as Taro's do, disturb nobody", async () => {
    const { phone } = app({ codes: [new Error("login:fail once")] });
    const rejecting = (name) => (option) => {
      let reject;
      const promise = new Promise((_, no) => (reject = no));
      const fail = (result) => (option.fail?.(result), reject(result));
      return Object.assign(promise, phone[name]({ ...option, fail }));
    };
    const taro = { login: rejecting("login"), request: rejecting("request") };
    const client = createClient({ baseUrl: world.baseUrl, wx: { ...phone, ...taro } });
    assert.equal((await failure(client.login())).error, "login_failed");
    phone.loseAnswer("/taro");
    assert.equal((await failure(client.request({ url: "/taro" }))).error, "network");
  });

  test("a call that is aborted ends, and is not sent", async () => {
    const { phone, client } = app();
    const call = client.request({ url: "/aborted" });
    call.abort();
    const error = await failure(call);
    assert.deepEqual([error.error, error.errMsg], ["aborted", "request:fail abort"]);
    await client.request({ url: "/" });
    assert.equal(phone.count("GET /aborted"), 0);
  });

  test("the token goes to nobody but the gateway", async () => {
    const { phone, client } = app();
    const beside = ["/../other", "/a/%2E%2e/other", "/..\\other", "/a/.", "/.\t./x", "/.. "];
    const elsewhere = [`http://${world.service}/`, "//elsewhere/", `${world.baseUrl}.evil/`, "relative", ""];
    for (const url of [...beside, ...elsewhere, undefined]) {
      assert.equal((await failure(client.request({ url }))).error, "foreign_url", url);
      assert.equal((await failure(client.connectSocket({ url }))).error, "foreign_url", url);
    }
    assert.deepEqual(phone.log, []);
    assert.equal((await client.request({ url: `${world.baseUrl}/whole` })).data.url, "/whole");
  });

  test("what the caller changes afterwards is not sent", async () => {
    const { client } = app();
    const option = { url: "/changed", method: "POST", data: { i: 0 }, header: { "X-I": "0" } };
    const calls = [1, 2, 3].map((i) => {
      option.data.i = i;
      option.header["X-I"] = `${i}`;
      return client.request(option);
    });
    const sent = (await Promise.all(calls)).map(({ data }) => [JSON.parse(data.body).i, data.headers["x-i"]]);
    assert.deepEqual(sent, [[1, "1"], [2, "2"], [3, "3"]]);
  });

  test("a session header of the caller's gives way", async () => {
    const { client } = app();
    const header = { "x-3RD-session": "mine", "X-Other": "kept" };
    const { data } = await client.request({ url: "/", header });
    assert.equal(data.headers["x-other"], "kept");
  });

  test("no error holds the token or a code, and nothing is logged", async () => {
    const { phone, client } = app({ codes: ["err-40226-secret"] });
    const said = [];
    const [log, error] = [console.log, console.error];
    console.log = console.error = (...words) => said.push(words);
    const refused = await failure(client.request({ url: "/" }));
    await client.request({ url: "/" });
    const failed = await failure(client.request({ url: "/nobody", method: "POST" }));
    [console.log, console.error] = [log, error];
    const shown = [refused, failed].map((e) => JSON.stringify(e) + e.stack).join();
    assert.ok(!shown.includes("secret") && !shown.includes(tokenOf(phone.storage)));
    assert.deepEqual(said, []);
  });
});
