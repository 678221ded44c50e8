"""An example service: phone numbers and subscribe messages from wxgate's internal API."""

import json
import os
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.request import HTTPErrorProcessor, ProxyHandler, Request, build_opener

URL = os.environ["WXGATE_INTERNAL_URL"]
TOKEN = os.environ["WXGATE_INTERNAL_TOKEN"]
TEMPLATE_ID = os.environ["TEMPLATE_ID"]


class Failure(Exception):
    def __init__(self, status, error, action="none"):
        self.status, self.body = status, {"error": error, "action": action}


class AnyStatus(HTTPErrorProcessor):
    def http_response(self, request, response):
        return response

    https_response = http_response


# Without the proxies of the environment: the token is for the gateway only.
opener = build_opener(ProxyHandler({}), AnyStatus())


def call_gateway(path, body):
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    request = Request(URL + path, json.dumps(body).encode(), headers)
    try:
        with opener.open(request, timeout=15) as response:
            status, result = response.status, json.load(response)
    except (OSError, HTTPException, ValueError):
        # Not "retry": the gateway may have used the code.
        raise Failure(502, "gateway_unreachable") from None
    if status == 200:
        return result
    # 401 and 403 are about this service's token, not about the user.
    raise Failure(502 if status in (401, 403) else status, result.get("error"), result.get("action"))


class Handler(BaseHTTPRequestHandler):
    timeout = 30

    def do_POST(self):
        try:
            # Only the gateway can set these headers. The body is the phone's: no user from there.
            user, app = self.headers["X-OpenId"], self.headers["X-AppId"]
            if not user or not app:
                raise Failure(401, "not_logged_in", "login")
            handle = {"/phone": self.phone, "/notify": self.notify}.get(self.path)
            if not handle:
                raise Failure(404, "not_found")
            self.respond(200, handle(user, app))
        except Failure as failure:
            self.respond(failure.status, failure.body)

    def phone(self, user, app):
        try:
            code = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["code"]
        except (ValueError, KeyError, TypeError):
            raise Failure(400, "bad_request") from None
        found = call_gateway("/v1/phone-number", {"app_id": app, "openid": user, "code": code})
        return {"phone_number": found["phone_number"]}

    def notify(self, user, app):
        message = {"touser": user, "template_id": TEMPLATE_ID, "data": {"thing1": {"value": "Tea"}}}
        sent = call_gateway(f"/v1/wechat/{app}/cgi-bin/message/subscribe/send", message)
        # WeChat's errors have status 200. 43101: the user has not agreed to this message.
        if sent.get("errcode") == 43101:
            raise Failure(409, "not_subscribed")
        if sent.get("errcode") != 0:
            raise Failure(502, "not_sent")
        return {"sent": True}

    def respond(self, status, body):
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
