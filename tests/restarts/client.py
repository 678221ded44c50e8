#!/usr/bin/env python3
"""The load: users who log in, use their sessions and log out, and check every response.

    client.py SPECIFICATION

The specification is a JSON file, see `load.py`. Each user does one thing after the other, on kept
and on new connections, and knows which tokens are good and which have ended. Each request is a line
of the log, a JSON object. Commands come as lines on standard input, and each is answered by a line:
`check` tries all tokens, `pause` and `resume` stop and continue the users, `stop` ends everything.
"""

import asyncio
import hashlib
import itertools
import json
import os
import random
import ssl
import sys
import time
import zlib

from http1 import Broken, ClosedBetween, Connection, Refused, websocket_lines
from http2 import Http2Connection

with open(sys.argv[1]) as file:
    SPEC = json.load(file)
LOG = open(SPEC["log"], "a", buffering=1)
PATTERN = bytes(range(32, 127)) * 800
RUN = os.urandom(3).hex()
numbers = itertools.count()
TLS = None
if SPEC.get("ca"):
    TLS = ssl.create_default_context(cafile=SPEC["ca"])
    TLS.set_alpn_protocols(["http/1.1"])


def short(token):
    """What the log has of a token."""
    return hashlib.sha256(token.encode()).hexdigest()[:12]


class Session:
    def __init__(self, token):
        self.token, self.since, self.shown = token, time.time(), short(token)


class User:
    def __init__(self, name, openid):
        self.name, self.openid = name, openid
        self.live, self.dead, self.checked = [], [], 0
        kind = Http2Connection if SPEC.get("h2") and int(name[-1], 16) % 4 == 0 else Connection
        address = ("127.0.0.1", SPEC["port"])
        self.new = lambda: Connection(address, TLS, SPEC["within"])
        self.kept = [kind(address, TLS, SPEC["within"]) for _ in range(3)]
        self.admin = Connection(("127.0.0.1", SPEC["admin"]), None, SPEC["within"])
        self.lock = asyncio.Lock()

    async def send(self, kind, connection, method, path, session=None, headers=(), body=None, expect=200):
        """One request, which is sent again where any client may do so, and its line of the log."""
        identity = f"{RUN}-{next(numbers)}"
        lines = [f"X-Id: {identity}", *headers]
        if session is not None:
            lines.append(f"X-3rd-Session: {session.token}")
        line = {"id": identity, "kind": kind, "method": method, "user": self.name, "t0": time.time(), "repeats": 0}
        line |= {"refused": 0, "broken": 0, "status": 0, "expect": expect, "problem": "", "new": not connection.is_open}
        if session is not None:
            line |= {"token": session.shown, "since": session.since}
        deadline = time.monotonic() + SPEC["within"]
        response = None
        while response is None:
            try:
                response = await connection.request(method, path, lines, body)
            except ClosedBetween:
                line["repeats"] += 1
                if line["repeats"] > 3:
                    line["problem"] = "closed four times"
                    break
            except Refused as error:
                line["refused"] += 1
                if not SPEC.get("restarts") or time.monotonic() > deadline:
                    line["problem"] = str(error)
                    break
                await asyncio.sleep(0.02)
            except (Broken, OSError, ValueError) as error:
                line["problem"] = f"{type(error).__name__} {error}"[:120]
                connection.abort()
                break
        line["t1"] = time.time()
        if response is not None:
            line["status"] = response.status
        return line, response

    def finish(self, line):
        LOG.write(json.dumps(line, separators=(",", ":")) + "\n")

    def connection(self):
        """A kept one, mostly. A new one is closed by whoever asks for it."""
        return self.new() if random.random() < SPEC.get("new", 0.2) else random.choice(self.kept)

    async def login(self):
        connection = self.connection()
        body = json.dumps({"code": f"user-{self.name}-{RUN}{next(numbers)}"}).encode()
        json_type = ["Content-Type: application/json"]
        line, response = await self.send("login", connection, "POST", "/login", headers=json_type, body=body)
        self.leave(connection)
        if response is not None and response.status == 200:
            session = Session(json.loads(response.body)["token"])
            line["token"] = session.shown
            self.live.append(session)
        else:
            await asyncio.sleep(0.05)
        self.finish(line)

    async def use(self, session, connection=None):
        one = connection or self.connection()
        size = random.choice((0, 0, 100, 2_000, 60_000))
        headers, method, path, body, wait = [f"X-Size: {size}"], "GET", "/echo", None, 0
        chance = random.random()
        if chance < 0.3:
            method, path, body = "POST", "/orders", PATTERN[: random.choice((1, 100, 7_000))]
        elif chance < SPEC.get("slow", 0.33):
            path, wait = "/slow", random.randint(50, 900)
            headers.append(f"X-Wait: {wait}")
        line, response = await self.send("use", one, method, path, session, headers, body)
        if connection is None:
            self.leave(one)
        line["wait"] = wait
        if response is not None and response.status == 200:
            got = f"{self.openid} {len(body or b'')} {zlib.crc32(body or b'')}\n".encode()
            if response.body != got + PATTERN[:size]:
                line["problem"] = f"another response: {response.body[:80]!r}, {len(response.body)} bytes"
        elif session in self.live and line["status"] == 401:
            self.live.remove(session)
        self.finish(line)

    async def try_dead(self, session, connection=None):
        one = connection or self.connection()
        line, _ = await self.send("dead", one, "GET", "/echo", session, expect=401)
        line["ended"] = session.ended
        if connection is None:
            self.leave(one)
        self.finish(line)

    async def view(self, session):
        connection = self.connection()
        line, _ = await self.send("view", connection, "GET", "/session", session)
        self.leave(connection)
        if session in self.live and line["status"] == 401:
            self.live.remove(session)
        self.finish(line)

    async def logout(self):
        session = random.choice(self.live)
        self.live.remove(session)
        connection = self.connection()
        line, _ = await self.send("logout", connection, "POST", "/logout", session, body=b"", expect=204)
        self.leave(connection)
        self.finish(line)
        if line["status"] == 204:
            self.bury([session])
            await self.everywhere(session)

    async def revoke(self):
        """The operator ends all sessions of this user."""
        ended, self.live = self.live, []
        path = f"/sessions?openid={self.openid}"
        operator = [f"Authorization: Bearer {SPEC['operator']}"]
        line, _ = await self.send("revoke", self.admin, "DELETE", path, headers=operator, expect=204)
        self.finish(line)
        if line["status"] == 204:
            self.bury(ended)
            for session in ended[:2]:
                await self.everywhere(session)

    def bury(self, sessions):
        for session in sessions:
            session.ended = time.time()
        self.dead.extend(sessions)

    async def everywhere(self, session):
        """On every connection, at once."""
        fresh = self.new()
        await asyncio.gather(*(self.try_dead(session, connection) for connection in (*self.kept, fresh)))
        fresh.close()

    def leave(self, connection):
        if connection not in self.kept:
            connection.close()

    async def act(self):
        chance = random.random()
        if not self.live or (chance < SPEC["logins"] and len(self.live) < 5):
            await self.login()
        elif 0 <= chance - SPEC["logins"] < SPEC["logouts"]:
            await self.logout()
        elif 0 <= chance - SPEC["logins"] - SPEC["logouts"] < SPEC["revocations"]:
            await self.revoke()
        elif chance < 0.25 and self.dead:
            await self.try_dead(random.choice(self.dead[-5:]))
        elif chance < 0.30:
            await self.view(random.choice(self.live))
        else:
            await self.use(random.choice(self.live))

    async def check(self, most):
        """Tries the tokens: those that have ended since the last check, and some of the others."""
        async with self.lock:
            old = random.sample(self.dead[: self.checked], min(most, self.checked))
            for session in self.dead[self.checked :] + old:
                await self.try_dead(session)
            self.checked = len(self.dead)
            for session in list(self.live):
                await self.use(session)

    async def run(self, load):
        interval = load.users / SPEC["rate"]
        await asyncio.sleep(random.uniform(0, interval))
        while load.is_running:
            await load.may_run.wait()
            began = time.monotonic()
            async with self.lock:
                await self.act()
            await asyncio.sleep(max(0.001, random.uniform(0.7, 1.3) * interval - (time.monotonic() - began)))


async def echo(connection):
    # The service echoes bytes, whatever they mean.
    connection.writer.write(b"\x82\x84\0\0\0\0ping")
    await connection.reader.readexactly(10)
    await asyncio.sleep(0.1)


async def next_chunk(connection):
    size = int(await connection.reader.readuntil(b"\r\n"), 16)
    await connection.reader.readexactly(size + 2)
    if size == 0:
        raise ValueError("it ended as if it were complete")


async def hold(user, load, kind):
    """A WebSocket or a response that does not end: held open, and opened again when it was cut."""
    path, more, expect, step = {
        "websocket": ("/websocket", websocket_lines(), 101, echo),
        "stream": ("/stream", [], 200, next_chunk),
    }[kind]
    while load.is_running:
        await load.may_run.wait()
        if not user.live:
            await user.login()
            continue
        connection = user.new()
        line = {"id": f"{RUN}-{next(numbers)}", "kind": kind, "t0": time.time(), "user": user.name, "problem": ""}
        line |= {"expect": expect, "status": 0, "steps": 0, "refused": 0}
        lines = [f"X-Id: {line['id']}", f"X-3rd-Session: {user.live[-1].token}"]
        try:
            await connection.open()
            message = "\r\n".join([f"GET {path} HTTP/1.1", "Host: localhost", *more, *lines]).encode() + b"\r\n\r\n"
            line["status"] = (await asyncio.wait_for(connection.begin(message), SPEC["within"])).status
            while line["status"] == expect and load.is_running:
                await asyncio.wait_for(step(connection), 10)
                line["steps"] += 1
        except Refused as error:
            line["refused"] = 1
            line["problem"] = "" if SPEC.get("restarts") else str(error)
            line["expect"] = 0
        except (Broken, ClosedBetween, ValueError) as error:
            line["problem"] = f"{type(error).__name__} {error}"[:120]
        except (asyncio.IncompleteReadError, OSError) as error:
            line["cut"] = f"{error!r}"[:80]
        except asyncio.TimeoutError:
            line["problem"] = "nothing for 10 s"
        connection.abort()
        if line["status"] == 401:
            user.live.clear()
        user.finish(line | {"t1": time.time()})
        await asyncio.sleep(0.05)


class Load:
    def __init__(self):
        self.is_running, self.may_run = True, asyncio.Event()
        self.may_run.set()
        self.users = len(SPEC["users"])

    async def run(self):
        users = [User(name, openid) for name, openid in SPEC["users"].items()]
        tasks = [asyncio.create_task(user.run(self)) for user in users]
        for kind in ("websocket", "stream"):
            for name, openid in SPEC[f"{kind}s"].items():
                tasks.append(asyncio.create_task(hold(User(name, openid), self, kind)))
        for task in tasks:
            task.add_done_callback(lambda done: done.cancelled() or done.exception() is None or os._exit(report(done)))
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while command := (await reader.readline()).decode().split():
            answer = {}
            if command[0] == "pause":
                self.may_run.clear()
                for user in users:
                    # What it is doing ends.
                    async with user.lock:
                        pass
            elif command[0] == "resume":
                self.may_run.set()
            elif command[0] == "check":
                await asyncio.gather(*(user.check(int(command[1])) for user in users))
            elif command[0] == "stop":
                self.is_running = False
                self.may_run.set()
                await asyncio.gather(*tasks)
            answer["live"] = sum(len(user.live) for user in users)
            answer["dead"] = sum(len(user.dead) for user in users)
            print(json.dumps(answer), flush=True)
            if command[0] == "stop":
                break


def report(task):
    """A fault of this program must not look like one of the gateway, nor like none."""
    task.print_stack()
    print(repr(task.exception()), file=sys.stderr, flush=True)
    return 3


asyncio.run(Load().run())
