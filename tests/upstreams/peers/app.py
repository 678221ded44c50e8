"""The same service for gunicorn (`app:wsgi`) and uvicorn (`app:asgi`)."""

import asyncio
import hashlib
import json
import os
import random
import time

NAME, LOG = os.environ.get("NAME", ""), os.environ.get("LOG")


def note(identity, method):
    if identity and LOG:
        with open(LOG, "a") as log:
            log.write(f"{identity} {method}\n")


def said(method, path, openid, host, digest, length):
    seen = {"method": method, "path": path, "openid": openid, "host": host, "length": length}
    return json.dumps({**seen, "sha256": digest}).encode()


def wsgi(environ, start_response):
    note(environ.get("HTTP_X_ID"), environ["REQUEST_METHOD"])
    if environ["PATH_INFO"] == "/work":
        time.sleep(random.uniform(0.002, 0.01))
    length, digest = 0, hashlib.sha256()
    # As most do: what has no length has no body.
    left = int(environ.get("CONTENT_LENGTH") or 0)
    while left and (data := environ["wsgi.input"].read(min(left, 65536))):
        digest.update(data)
        length += len(data)
        left -= len(data)
    path = environ.get("RAW_URI") or environ["PATH_INFO"]
    openid, host = environ.get("HTTP_X_OPENID"), environ.get("HTTP_HOST")
    body = said(environ["REQUEST_METHOD"], path, openid, host, digest.hexdigest(), length)
    lines = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    start_response("200 OK", lines + [("X-Server", NAME)] * bool(NAME))
    return [body]


async def asgi(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    headers = dict(scope["headers"])
    header = lambda name: (value := headers.get(name)) and value.decode()
    note(header(b"x-id"), scope["method"])
    if scope["path"] == "/work":
        await asyncio.sleep(random.uniform(0.002, 0.01))
    length, digest, more = 0, hashlib.sha256(), True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            return
        digest.update(message["body"])
        length += len(message["body"])
        more = message.get("more_body", False)
    query = scope["query_string"].decode()
    path = scope["raw_path"].decode().split("?")[0] + ("?" + query if query else "")
    body = said(scope["method"], path, header(b"x-openid"), header(b"host"), digest.hexdigest(), length)
    lines = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    lines += [(b"x-server", NAME.encode())] * bool(NAME)
    await send({"type": "http.response.start", "status": 200, "headers": lines})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
