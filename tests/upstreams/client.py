"""Clients that keep a record of every request: one connection, load in a closed loop, load on a schedule."""

import asyncio
import itertools
import os
import random
import time
from dataclasses import dataclass, field

run = os.urandom(3).hex()
numbers = itertools.count()


def new_id():
    return f"{run}-{next(numbers)}"


@dataclass
class Response:
    status: int
    headers: dict
    body: bytes = b""
    # Whether the body ended where its framing said.
    complete: bool = True
    informational: list = field(default_factory=list)


@dataclass
class Record:
    id: str
    method: str
    # When it was due, and when it was over.
    begin: float
    end: float = 0.0
    status: int = 0
    server: str = ""
    problem: str = ""
    # Whether its connection was a new one.
    is_first: bool = False

    @property
    def seconds(self):
        return self.end - self.begin

    @property
    def ok(self):
        return self.status == 200 and not self.problem


class Broken(Exception):
    """The connection ended, or the response is no HTTP."""


class Connection:
    def __init__(self, port, host="127.0.0.1"):
        self.host, self.port, self.reader, self.writer = host, port, None, None

    async def open(self):
        self.reader, self.writer = await asyncio.open_connection(self.host, self.port, limit=1 << 20)
        return self

    def close(self, abort=False):
        if self.writer is not None:
            if abort:
                self.writer.transport.abort()
            else:
                self.writer.close()
        self.reader = self.writer = None

    async def send(self, method, path, headers=(), body=b"", chunked=False):
        if self.writer is None:
            await self.open()
        lines = [f"{method} {path} HTTP/1.1", "Host: shop.example.com", *headers]
        if chunked:
            lines.append("Transfer-Encoding: chunked")
        elif body or method in ("POST", "PUT"):
            lines.append(f"Content-Length: {len(body)}")
        message = "\r\n".join(lines).encode() + b"\r\n\r\n"
        if chunked:
            step = max(1, len(body) // 3)
            for start in range(0, len(body), step):
                piece = body[start : start + step]
                message += b"%x\r\n%s\r\n" % (len(piece), piece)
            message += b"0\r\n\r\n"
        else:
            message += body
        self.writer.write(message)
        await self.writer.drain()

    async def header(self):
        try:
            text = await self.reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, OSError) as error:
            raise Broken(f"no response: {error!r}"[:80]) from error
        first, *lines = text.decode("latin-1").split("\r\n")
        headers = {}
        for line in lines:
            name, _, value = line.partition(":")
            if name:
                headers[name.lower()] = value.strip()
        return int(first.split(" ", 2)[1]), headers

    async def receive(self, method="GET"):
        between = []
        while True:
            status, headers = await self.header()
            if status >= 200 or status == 101:
                break
            between.append((status, headers))
        response = Response(status, headers, informational=between)
        if method != "HEAD" and status not in (101, 204, 304):
            await self.body(response)
        if headers.get("connection") == "close" or not response.complete:
            self.close()
        return response

    async def body(self, response):
        pieces = []
        try:
            if response.headers.get("transfer-encoding") == "chunked":
                while size := int((await self.reader.readuntil(b"\r\n")).strip() or b"z", 16):
                    pieces.append((await self.reader.readexactly(size + 2))[:-2])
                while await self.reader.readuntil(b"\r\n") != b"\r\n":
                    pass
            else:
                pieces.append(await self.reader.readexactly(int(response.headers.get("content-length", 0))))
        except asyncio.IncompleteReadError as error:
            pieces.append(error.partial)
            response.complete = False
        except (OSError, ValueError):
            response.complete = False
        response.body = b"".join(pieces)

    async def request(self, method, path, headers=(), body=b"", chunked=False, within=60):
        async def both():
            await self.send(method, path, headers, body, chunked)
            return await self.receive(method)

        return await asyncio.wait_for(both(), within)


async def once(port, method, path, headers=(), body=b"", **more):
    """One request on a connection of its own."""
    connection = Connection(port)
    try:
        return await connection.request(method, path, headers, body, **more)
    finally:
        connection.close()


async def recorded(connection, record, path, within):
    """Sends one request and completes its record. Never raises."""
    body = b'{"count":1}' if record.method == "POST" else b""
    record.is_first = connection.writer is None
    try:
        response = await connection.request(record.method, path, [f"X-Id: {record.id}"], body, within=within)
        record.status, record.server = response.status, response.headers.get("x-server", "")
        if not response.complete:
            record.problem = "incomplete"
    except (Broken, OSError, asyncio.TimeoutError, ValueError) as error:
        record.problem = f"{type(error).__name__} {error}"[:90]
        connection.close(abort=True)
    record.end = time.monotonic()
    return record


class Load:
    """Clients on kept connections, each sends its next request when it has the response, until it is stopped.

    One in ten requests is a POST, unless `posts` says otherwise. Between two requests is a random
    pause, in seconds.
    """

    def __init__(self, port, path="/work", clients=16, posts=0.1, pause=(0.002, 0.002), within=30):
        self.port, self.path, self.posts, self.pause, self.within = port, path, posts, pause, within
        self.records, self.running = [], True
        self.tasks = [asyncio.create_task(self.client()) for _ in range(clients)]

    async def client(self):
        connection = Connection(self.port)
        while self.running:
            method = "POST" if random.random() < self.posts else "GET"
            record = Record(new_id(), method, time.monotonic())
            await recorded(connection, record, self.path, self.within)
            self.records.append(record)
            await asyncio.sleep(random.uniform(*self.pause))
        connection.close()

    async def stop(self):
        self.running = False
        await asyncio.gather(*self.tasks)
        return self.records


async def scheduled(port, rate, seconds, path="/work", method="GET", within=30):
    """An open loop: each request has its time, and is late from that time on, whatever delays it.

    Connections are kept and reused; a request that finds none idle opens one, so that no request
    waits for another.
    """
    idle, tasks, records = [], [], []

    async def one(record):
        connection = idle.pop() if idle else Connection(port)
        await recorded(connection, record, path, within)
        if connection.writer is not None:
            idle.append(connection)

    began = time.monotonic()
    for number in range(int(rate * seconds)):
        due = began + number / rate
        delay = due - time.monotonic()
        if delay > 0:
            await asyncio.sleep(delay)
        record = Record(new_id(), method, due)
        records.append(record)
        tasks.append(asyncio.create_task(one(record)))
    await asyncio.gather(*tasks)
    for connection in idle:
        connection.close()
    return records


def percentile(records, share):
    """Milliseconds."""
    values = sorted(record.seconds for record in records)
    return 1000 * values[min(len(values) - 1, int(len(values) * share))] if values else 0.0


def served(*logs):
    """How often the logs of the servers have each id."""
    counts = {}
    for log in logs:
        if log.exists():
            for line in log.read_text().splitlines():
                identity = line.split(" ")[0]
                counts[identity] = counts.get(identity, 0) + 1
    return counts


def joined(records, *logs):
    """The clients' records against the servers' logs: failed GETs, failed POSTs, duplicated and lost POSTs."""
    counts = served(*logs)
    failed = {method: [r for r in records if r.method == method and not r.ok] for method in ("GET", "POST")}
    posts = [record for record in records if record.method == "POST"]
    duplicated = [record for record in posts if counts.get(record.id, 0) > 1]
    lost = [record for record in posts if record.ok and counts.get(record.id, 0) == 0]
    return failed["GET"], failed["POST"], duplicated, lost


def described(records):
    """Why requests failed, with counts."""
    counts = {}
    for record in records:
        why = record.problem or str(record.status)
        counts[why] = counts.get(why, 0) + 1
    return ", ".join(f"{count} x {why}" for why, count in sorted(counts.items())[:5])
