/** The code of the button `open-type="getPhoneNumber"`: `client.phoneNumber`. */

import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { createClient, WxgateError } from "../dist/wxgate-client.mjs";
import { World } from "./world.mjs";
import { Phone } from "./wx.mjs";

/** What hangs is a failure. */
const LIMITS = { concurrency: true, timeout: 60_000 };

const url = "/phone";

let world;
before(async () => (world = await World.start()));
after(() => world.close());

function app(options) {
  const phone = new Phone();
  return { phone, client: createClient({ baseUrl: world.baseUrl, wx: phone, ...options }) };
}

/** The event of a tap, as the button reports it. */
const tapped = (code) => ({ type: "getphonenumber", detail: { code, errMsg: "getPhoneNumber:ok" } });

/** What the service got with this code. */
const sent = (code) => world.seen.filter(({ body, url: at }) => at === url && JSON.parse(body).code === code);

async function failure(promise) {
  const error = await promise.then(
    (result) => assert.fail(`it succeeded: ${JSON.stringify(result)}`),
    (error) => error,
  );
  assert.ok(error instanceof WxgateError, error.stack);
  return error;
}

describe("a phone number", LIMITS, () => {
  test("is what the service responds to the button's code", async () => {
    const { phone, client } = app();
    const option = { url, data: { order: 7 }, header: { "X-Page": "order" } };
    assert.deepEqual(await client.phoneNumber(tapped("one"), option), { phone_number: "13800138000" });
    const [{ method, headers, body }, ...others] = sent("one");
    assert.deepEqual([method, JSON.parse(body), others], ["POST", { order: 7, code: "one" }, []]);
    assert.match(headers["x-openid"], /^o/);
    assert.equal(headers["x-page"], "order");
    assert.deepEqual(option.data, { order: 7 });
    assert.deepEqual(phone.log, ["login", "POST /login", "POST /phone"]);
  });

  test("that the user does not give is an error, and nothing is sent", async () => {
    const { phone, client } = app();
    for (const detail of [{ errMsg: "getPhoneNumber:fail user deny" }, { code: "" }, {}]) {
      const error = await failure(client.phoneNumber({ detail }, { url }));
      assert.deepEqual([error.error, error.action], ["no_phone_code", "none"]);
      assert.equal(error.errMsg, detail.errMsg || "");
    }
    assert.deepEqual(phone.log, []);
  });

  test("whose code was used is an error without a login or another try", async () => {
    const { phone, client } = app();
    await client.login();
    phone.log.length = 0;
    const error = await failure(client.phoneNumber(tapped("used"), { url }));
    assert.deepEqual([error.error, error.action, error.statusCode], ["invalid_phone_code", "none", 422]);
    assert.match(error.requestId, /^[0-9a-f]{32}$/);
    assert.deepEqual(phone.log, ["POST /phone"]);
    await client.session();
    assert.equal(phone.count("login"), 0);
  });

  test("is sent again once after the end of the session", async () => {
    const { phone, client } = app();
    await client.login();
    await world.revoke(phone.storage.entries()[0][1].token);
    phone.log.length = 0;
    await client.phoneNumber(tapped("after"), { url });
    assert.deepEqual(phone.log, ["POST /phone", "login", "POST /login", "POST /phone"]);
    assert.equal(sent("after").length, 1);
  });

  test("that the service cannot get has its error, whatever the body", async () => {
    const { phone, client } = app();
    for (const [status, action] of [[404, "none"], [500, "retry"]]) {
      const error = await failure(client.phoneNumber(tapped("x"), { url: `/status/${status}` }));
      assert.deepEqual([error.error, error.action, error.statusCode], ["unexpected_answer", action, status]);
      assert.equal(phone.count(`POST /status/${status}`), 1);
    }
    const error = await failure(client.phoneNumber(tapped("x"), { url: "/nobody" }));
    assert.equal(error.error, "bad_gateway");
    assert.equal(phone.count("POST /nobody"), 1);
  });
});
