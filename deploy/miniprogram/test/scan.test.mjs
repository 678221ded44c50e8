/** Logins of web pages by scan, and tickets: `client.scan` and what follows it, `client.ticket`. */

import assert from "node:assert/strict";
import http from "node:http";
import { after, before, describe, test } from "node:test";
import { createClient, scanId, WxgateError } from "../dist/wxgate-client.mjs";
import { World } from "./world.mjs";
import { Phone } from "./wx.mjs";

/** What hangs is a failure. */
const LIMITS = { concurrency: true, timeout: 60_000 };

/** Where the web pages are, as browsers name it. */
const HOST = "127.0.0.1:1234";

const FEATURES = `
  browser = [{ base_url = "http://${HOST}" }]
  scan = { enabled = true }
  ticket = { enabled = true }
`;

let world;
before(async () => (world = await World.start(FEATURES)));
after(() => world.close());

function app(options) {
  const phone = new Phone();
  return { phone, client: createClient({ baseUrl: world.baseUrl, wx: phone, ...options }) };
}

/** A request of the web page. */
function browse(method, path, headers = {}) {
  const [host, port] = world.gateway.split(":");
  return new Promise((resolve, reject) => {
    const agent = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0";
    const option = { host, port, method, path, headers: { Host: HOST, "User-Agent": agent, ...headers } };
    const request = http.request(option, async (response) => {
      const chunks = [];
      for await (const chunk of response) chunks.push(chunk);
      const body = JSON.parse(Buffer.concat(chunks).toString() || "null");
      const cookies = (response.headers["set-cookie"] || []).map((line) => line.split(";")[0]);
      resolve({ status: response.statusCode, body, cookies });
    });
    request.on("error", reject).end();
  });
}

/** A page that shows a code. */
async function page() {
  const { status, body, cookies } = await browse("POST", "/scan");
  assert.equal(status, 200, JSON.stringify(body));
  const poll = (state) => browse("GET", `/scan/${body.scan_id}?state=${state}`, { Cookie: cookies[0] });
  return { id: body.scan_id, content: body.content, poll };
}

async function failure(promise) {
  const error = await promise.then(
    (result) => assert.fail(`it succeeded: ${JSON.stringify(result)}`),
    (error) => error,
  );
  assert.ok(error instanceof WxgateError, error.stack);
  return [error.error, error.action, error.statusCode];
}

const ID = "AbCdEf-hIjKlMn_pQrStUv";

test("the id of a scan is found in whatever a code gives", () => {
  const url = `https://h5.example.com/scan/${ID}`;
  for (const code of [
    ID,
    url,
    encodeURIComponent(url),
    `pages/index/index?scene=${ID}`,
    { scene: ID },
    { scene: encodeURIComponent(ID), q: "" },
    { q: encodeURIComponent(url) },
    { path: "pages/index/index", scene: 1047, query: { scene: ID } },
    { scene: 1011, query: { q: encodeURIComponent(url), scancode_time: "1764000000" } },
  ]) {
    assert.equal(scanId(code), ID, JSON.stringify(code));
  }
  for (const code of [
    "",
    "id=1",
    ID.slice(1),
    `${ID}${ID}`,
    `${ID}.png`,
    `${url}/x`,
    "%E0%A4%A",
    {},
    { scene: 1047 },
    { scene: 1047, query: {} },
    { scene: "id=1" },
    { q: "https%3A%2F%2Fh5.example.com%2F" },
  ]) {
    assert.equal(scanId(code), undefined, JSON.stringify(code));
  }
});

describe("a login of a web page by scan", LIMITS, () => {
  test("is shown, and confirmed", async () => {
    const { phone, client } = app();
    const { id, content, poll } = await page();
    assert.equal(content, `http://${HOST}/scan/${id}`);
    const shown = await client.scan({ q: encodeURIComponent(content) });
    assert.deepEqual(Object.keys(shown).sort(), ["address", "browser", "since"]);
    assert.deepEqual([shown.browser, shown.address], ["Firefox on Linux", "127.0.0.1"]);
    assert.ok(Math.abs(Date.parse(shown.since) - Date.now()) < 60_000, shown.since);
    assert.deepEqual((await poll("waiting")).body, { state: "scanned" });
    assert.equal(await client.confirmScan(id), undefined);
    const confirmed = await poll("scanned");
    assert.deepEqual(confirmed.body, { state: "confirmed" });
    const cookie = confirmed.cookies.find((cookie) => cookie.startsWith("wxgate="));
    const { body } = await browse("GET", "/hello", { Cookie: cookie });
    assert.equal(body.headers["x-openid"], (await client.request({ url: "/hello" })).data.headers["x-openid"]);
    assert.equal(phone.count("login"), 1);
  });

  test("is denied", async () => {
    const { client } = app();
    const { id, poll } = await page();
    await client.scan({ scene: id });
    assert.equal(await client.denyScan({ scene: id }), undefined);
    assert.deepEqual((await poll("scanned")).body, { state: "denied" });
  });

  test("fails with the gateway's word", async () => {
    const [mine, other] = [app(), app()];
    const { id } = await page();
    assert.deepEqual(await failure(mine.client.confirmScan(id)), ["not_allowed", "none", 403]);
    await mine.client.scan(id);
    assert.deepEqual(await failure(other.client.scan(id)), ["not_allowed", "none", 403]);
    assert.deepEqual(await failure(other.client.denyScan(id)), ["not_allowed", "none", 403]);
    assert.deepEqual(await failure(mine.client.scan(ID)), ["no_route", "none", 404]);
  });

  test("sends nothing where the code is for something else", async () => {
    const { phone, client } = app();
    for (const code of [{ scene: "id=1" }, { scene: 1047 }, "https://example.com/"]) {
      for (const call of [client.scan, client.confirmScan, client.denyScan]) {
        assert.deepEqual(await failure(call(code)), ["no_scan_code", "none", 0]);
      }
    }
    assert.deepEqual(phone.log, []);
  });

  test("that another session begins to confirm is not confirmed", async () => {
    const { client } = app();
    const { id, poll } = await page();
    await client.scan(id);
    await client.logout();
    assert.deepEqual(await failure(client.confirmScan(id)), ["not_allowed", "none", 403]);
    assert.deepEqual((await poll("waiting")).body, { state: "scanned" });
  });
});

describe("a ticket", LIMITS, () => {
  test("serves its path once, with the session", async () => {
    const { client } = app();
    const { ticket, expires_in, url } = await client.ticket("/photo?id=1");
    assert.equal(expires_in, 30);
    assert.equal(url, `${world.baseUrl}/photo?id=1&wxgate_ticket=${ticket}`);
    const served = await fetch(url);
    const { url: target, headers } = await served.json();
    assert.deepEqual([served.status, target], [200, "/photo?id=1"]);
    assert.match(headers["x-openid"], /^o/);
    assert.equal((await fetch(url)).status, 401);
  });

  test("may be used again where it is for a video", async () => {
    const { client } = app();
    const { url } = await client.ticket("/video", { reuse: true });
    assert.match(url, /\/video\?wxgate_ticket=/);
    for (let part = 0; part < 3; part++) assert.equal((await fetch(url)).status, 200);
  });

  test("may be for another host", async () => {
    const { client } = app();
    const { url } = await client.ticket("/h5/", { cookie: true, baseUrl: "https://h5.example.com/" });
    assert.match(url, /^https:\/\/h5\.example\.com\/h5\/\?wxgate_ticket=[\w-]+$/);
  });

  test("fails with the gateway's word", async () => {
    const { client } = app();
    assert.deepEqual(await failure(client.ticket("no path")), ["bad_request", "none", 400]);
  });
});
