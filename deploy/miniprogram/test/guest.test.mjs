/** Calls that do without a login: `login: "optional"` and `login: false`. */

import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { createClient, WxgateError } from "../dist/wxgate-client.mjs";
import { World } from "./world.mjs";
import { Phone } from "./wx.mjs";

/** What hangs is a failure. */
const LIMITS = { concurrency: true, timeout: 60_000 };

const file = join(mkdtempSync(join(tmpdir(), "wxgate-")), "photo");
writeFileSync(file, "a photo");

let world;
before(async () => (world = await World.start()));
after(() => world.close());

function app(habits, options) {
  const phone = new Phone(habits);
  const client = createClient({ baseUrl: world.baseUrl, wx: phone, ...options });
  return { phone, client };
}

const tokenOf = (phone) => phone.storage.entries()[0]?.[1].token;
const seen = (url) => world.seen.filter((request) => request.url === url);
const openid = ({ data }) => (typeof data === "string" ? JSON.parse(data) : data).headers["x-openid"];

async function failure(promise) {
  const error = await promise.then(
    (result) => assert.fail(`it succeeded: ${JSON.stringify(result)}`),
    (error) => error,
  );
  assert.ok(error instanceof WxgateError, error.stack);
  return error;
}

/** A client whose session was ended behind its back. */
async function revoked() {
  const { phone, client } = app();
  await client.login();
  await world.revoke(tokenOf(phone));
  phone.log.length = 0;
  return { phone, client };
}

/** A client that did not just see its session to be good: the app was started again. */
function restarted({ phone }) {
  return app({ storage: phone.storage });
}

describe("an optional call", LIMITS, () => {
  const login = "optional";

  test("is sent without a token where there is none, and nobody is logged in", async () => {
    const { phone, client } = app();
    const response = await client.request({ url: "/optional/none", login });
    assert.deepEqual([response.statusCode, openid(response)], [200, undefined]);
    assert.deepEqual(phone.log, ["GET /optional/none"]);
  });

  test("is sent with the token at hand", async () => {
    const { phone, client } = app();
    await client.login();
    assert.match(openid(await client.request({ url: "/optional/known", login })), /^o/);
    assert.equal(phone.count("login"), 1);
  });

  test("works where wx.login fails, the user is blocked or the app is misconfigured", async () => {
    for (const [habits, options] of [
      [{ codes: [new Error("login:fail")] }],
      [{ codes: ["err-40226-guest"] }],
      [{ codes: ["err-40013-guest"] }],
      [{}, { appId: "wxunknown" }],
    ]) {
      const { phone, client } = app(habits, options);
      await failure(client.login());
      assert.equal((await client.request({ url: "/optional/guest", login })).statusCode, 200);
      assert.equal(phone.count("login"), 1);
    }
  });

  test("drops a token that is not good and is sent once more without it, whatever the method", async () => {
    const { phone, client } = await revoked();
    const response = await client.request({ url: "/optional/dead", method: "POST", data: { i: 1 }, login });
    assert.deepEqual([openid(response), JSON.parse(response.data.body)], [undefined, { i: 1 }]);
    assert.deepEqual(phone.log, ["POST /optional/dead", "POST /optional/dead"]);
    assert.equal(seen("/optional/dead").length, 1);
    // It is gone for good.
    const next = restarted({ phone });
    await next.client.request({ url: "/optional/dead", login });
    assert.deepEqual([phone.storage.entries(), next.phone.log], [[], ["GET /optional/dead"]]);
  });

  test("on a required route is an error and no login", async () => {
    const { phone, client } = app();
    const none = await failure(client.request({ url: "/", login }));
    assert.deepEqual([none.error, none.action, none.statusCode], ["missing_token", "login", 401]);
    assert.deepEqual(phone.log, ["GET /"]);
    const dead = await revoked();
    assert.equal((await failure(dead.client.request({ url: "/", login }))).error, "missing_token");
    assert.deepEqual(dead.phone.log, ["GET /", "GET /"]);
  });

  test("does not keep a required one from its login", async () => {
    const { phone, client } = await revoked();
    const urls = ["/optional/both", "/both"];
    const [, required] = await Promise.all(
      urls.map((url) => client.request({ url, login: url === "/both" ? "required" : login })),
    );
    assert.match(openid(required), /^o/);
    assert.equal(phone.count("login"), 1);
  });

  test("does not take the token of a login that came after a logout", async () => {
    const { phone, client } = app();
    await client.login();
    const request = phone.request;
    let release;
    const isHeld = new Promise((held) => {
      phone.request = (option) => {
        phone.request = request;
        release = () => request(option);
        held();
      };
    });
    const call = client.request({ url: "/optional/before", method: "POST", login });
    await isHeld;
    await client.logout();
    phone.user = "somebody-else";
    await client.login();
    release();
    assert.equal(openid(await call), undefined);
    assert.match(openid(await client.request({ url: "/optional/after", login })), /^o/);
  });

  test("of an upload looks at the session first, and is sent once", async () => {
    const upload = (client) => client.uploadFile({ url: "/optional/upload", filePath: file, name: "photo", login });
    const guest = app();
    assert.equal(openid(await upload(guest.client)), undefined);
    assert.deepEqual(guest.phone.log, ["POST /optional/upload"]);
    const dead = restarted(await revoked());
    assert.equal(openid(await upload(dead.client)), undefined);
    assert.deepEqual(dead.phone.log, ["GET /session", "POST /optional/upload"]);
    const user = app();
    await user.client.login();
    assert.match(openid(await upload(user.client)), /^o/);
  });

  test("of an upload is sent where the look at the session fails", async () => {
    const { phone, client } = app();
    await client.login();
    const later = restarted({ phone });
    later.phone.loseAnswer("/session");
    const upload = { url: "/optional/upload", filePath: file, name: "photo", login };
    assert.match(openid(await later.client.uploadFile(upload)), /^o/);
  });

  test("of a download works for guests and with a token that is not good", async () => {
    for (const { phone, client } of [app(), await revoked()]) {
      const { tempFilePath } = await client.downloadFile({ url: "/optional/file", login });
      assert.equal(openid({ data: readFileSync(tempFilePath, "utf8") }), undefined);
      assert.equal(phone.count("login"), 0);
    }
  });

  test("of a socket opens one without a session, or with a good one", async () => {
    const user = app();
    await user.client.login();
    const openids = [];
    for (const [name, { phone, client }] of Object.entries({
      guest: app(),
      dead: restarted(await revoked()),
      user: restarted(user),
    })) {
      const socket = await client.connectSocket({ url: `/optional/socket/${name}`, login });
      await new Promise((resolve, reject) => {
        socket.onError(({ errMsg }) => reject(new Error(errMsg)));
        socket.onOpen(resolve);
      });
      socket.close();
      openids.push(typeof seen(`/optional/socket/${name}`)[0].headers["x-openid"]);
      assert.equal(phone.count("login"), 0);
    }
    assert.deepEqual(openids, ["undefined", "undefined", "string"]);
  });
});

describe("a call with login: false", LIMITS, () => {
  const login = false;

  test("is sent without the token that there is, and without a session header of the caller's", async () => {
    const { phone, client } = app();
    await client.login();
    const header = { "x-3RD-session": "mine", "X-Other": "kept" };
    const response = await client.request({ url: "/optional/never", header, login });
    assert.deepEqual([openid(response), response.data.headers["x-other"]], [undefined, "kept"]);
    phone.log.length = 0;
    const upload = { url: "/optional/never", filePath: file, name: "photo", login };
    assert.equal(openid(await client.uploadFile(upload)), undefined);
    await client.downloadFile({ url: "/optional/never", login });
    assert.deepEqual(phone.log, ["POST /optional/never", "GET /optional/never"]);
  });

  test("on a required route is an error, and the session stays", async () => {
    const { phone, client } = app();
    await client.login();
    assert.equal((await failure(client.request({ url: "/", login }))).error, "missing_token");
    assert.deepEqual(phone.log, ["login", "POST /login", "GET /"]);
    assert.match(openid(await client.request({ url: "/" })), /^o/);
    assert.equal(phone.count("login"), 1);
  });
});

describe("the option", LIMITS, () => {
  test("true and required are what a call does without it", async () => {
    for (const login of [true, "required", undefined]) {
      const { phone, client } = app();
      assert.match(openid(await client.request({ url: "/optional/required", login })), /^o/);
      assert.equal(phone.count("login"), 1);
    }
  });

  test("with another value is an error before anything is sent", async () => {
    const { phone, client } = app();
    for (const login of ["none", "Optional", 0, {}]) {
      for (const verb of ["request", "uploadFile", "downloadFile", "connectSocket"]) {
        const error = await failure(client[verb]({ url: "/", filePath: file, name: "photo", login }));
        assert.deepEqual([error.error, error.action], ["bad_option", "none"]);
      }
    }
    assert.deepEqual(phone.log, []);
  });

  test("does not reach the platform", async () => {
    const { phone, client } = app();
    const options = [];
    for (const verb of ["request", "connectSocket"]) {
      const call = phone[verb];
      phone[verb] = (option) => (options.push(Object.keys(option)), call(option));
    }
    await client.request({ url: "/optional/keys", login: "optional" });
    const socket = await client.connectSocket({ url: "/optional/keys", login: false });
    await new Promise((resolve) => socket.onOpen(resolve));
    socket.close();
    assert.deepEqual(options.filter((keys) => keys.includes("login")), []);
    assert.equal(options.length, 2);
  });
});
