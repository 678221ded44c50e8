"""A client as a team might script it, with the requests library."""

import sys

import requests

gateway, openid = sys.argv[1:]
http = requests.Session()
http.trust_env = False

login = http.post(f"{gateway}/login", json={"code": "user-alice-1"})
assert login.status_code == 200, login.text
session = {"X-3rd-Session": login.json()["token"]}

seen = http.post(f"{gateway}/orders?x=1", data="payload", headers=session | {"X-OpenId": "mallory"})
assert seen.json() == {"openid": openid, "path": "/orders?x=1", "body": "payload"}, seen.text

def pieces():
    yield b"in "
    yield b"pieces"

seen = http.post(f"{gateway}/orders", data=pieces(), headers=session)
assert seen.json()["body"] == "in pieces", seen.text

refused = http.get(f"{gateway}/orders")
assert refused.status_code == 401 and refused.headers["X-Wxgate-Error"] == "missing_token"

assert http.get(f"{gateway}/session", headers=session).json()["expires_in"] > 0
assert http.post(f"{gateway}/logout", headers=session).status_code == 204
assert http.get(f"{gateway}/orders", headers=session).json()["error"] == "session_expired"
print("all well")
