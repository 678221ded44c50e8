// An example service: phone numbers and subscribe messages from wxgate's internal API.

import { createServer } from "node:http";
import { text } from "node:stream/consumers";

const { PORT, WXGATE_INTERNAL_URL, WXGATE_INTERNAL_TOKEN, TEMPLATE_ID } = process.env;

class Failure extends Error {
  constructor(status, error, action = "none") {
    super(error);
    Object.assign(this, { status, body: { error, action } });
  }
}

async function callGateway(path, body) {
  let response, result;
  try {
    response = await fetch(WXGATE_INTERNAL_URL + path, {
      method: "POST",
      headers: { Authorization: `Bearer ${WXGATE_INTERNAL_TOKEN}`, "Content-Type": "application/json" },
      body: JSON.stringify(body),
      redirect: "error",
      signal: AbortSignal.timeout(15_000),
    });
    result = await response.json();
  } catch {
    // Not "retry": the gateway may have used the code.
    throw new Failure(502, "gateway_unreachable");
  }
  if (response.ok) return result;
  // 401 and 403 are about this service's token, not about the user.
  const status = [401, 403].includes(response.status) ? 502 : response.status;
  throw new Failure(status, result.error, result.action);
}

async function phone(user, app, request) {
  let code;
  try {
    ({ code } = JSON.parse(await text(request)));
  } catch {
    throw new Failure(400, "bad_request");
  }
  const found = await callGateway("/v1/phone-number", { app_id: app, openid: user, code });
  return { phone_number: found.phone_number };
}

async function notify(user, app) {
  const message = { touser: user, template_id: TEMPLATE_ID, data: { thing1: { value: "Tea" } } };
  const { errcode } = await callGateway(`/v1/wechat/${app}/cgi-bin/message/subscribe/send`, message);
  // WeChat's errors have status 200. 43101: the user has not agreed to this message.
  if (errcode === 43101) throw new Failure(409, "not_subscribed");
  if (errcode !== 0) throw new Failure(502, "not_sent");
  return { sent: true };
}

const handlers = new Map([["POST /phone", phone], ["POST /notify", notify]]);

const server = createServer({ requestTimeout: 30_000 }, async (request, response) => {
  const respond = (status, body) =>
    response.writeHead(status, { "Content-Type": "application/json" }).end(JSON.stringify(body));
  try {
    // Only the gateway can set these headers. The body is the phone's: no user from there.
    const { "x-openid": user, "x-appid": app } = request.headers;
    if (!user || !app) throw new Failure(401, "not_logged_in", "login");
    const handle = handlers.get(`${request.method} ${request.url}`);
    if (!handle) throw new Failure(404, "not_found");
    respond(200, await handle(user, app, request));
  } catch (error) {
    const known = error instanceof Failure;
    if (!known) console.error(error);
    const { status, body } = known ? error : new Failure(500, "internal_error");
    respond(status, body);
  }
});
server.listen(Number(PORT), "127.0.0.1");
