"""Gigabytes in flat memory, `Expect: 100-continue`, early hints, and a response before the end of the request."""

import asyncio
import json
import os
import subprocess
import threading
import time

from client import Connection, once
from gateway import Authority, Gateway, free_port, route, upstream, wait_for
from services import faulty, nginx, node

GIB = 1 << 30
SIZE = int(os.environ.get("BODY_SIZE", 2 * GIB))
# How much more memory than before any number of gigabytes may take, in KiB.
FLAT = 16 * 1024


class Memory:
    """The largest RSS while it is watched, above that before, in KiB."""

    def __init__(self, gateway):
        self.gateway, self.before, self.most, self.ends = gateway, gateway.memory(), 0, threading.Event()
        self.thread = threading.Thread(target=self.watch)

    def watch(self):
        while not self.ends.wait(0.02):
            self.most = max(self.most, self.gateway.memory())

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.ends.set()
        self.thread.join()

    @property
    def growth(self):
        return max(0, self.most - self.before)


def curl(gateway, *words):
    """Status, bytes down, bytes up and the response's body of one transfer."""
    written = ["-w", "\n%{http_code} %{size_download} %{size_upload}"]
    done = subprocess.run(
        ["curl", "-sS", "--noproxy", "*", "-H", "Expect:", *written, *words], capture_output=True, timeout=300
    )
    body, _, figures = done.stdout.rpartition(b"\n")
    status, down, up = (int(float(word)) for word in figures.split())
    return status, down, up, body


def gigabytes(world):
    authority = Authority(world.work / "authority")
    certificate, key = authority.issue()
    trust = f'server_name = "localhost"\nca_file = "{authority.file}"\n'
    h2 = 'protocol = "h2"\n'
    files = free_port()
    process = nginx(world, "nginx", f"server {{ listen 127.0.0.1:{files} http2; root @FOLDER@/files; }}")
    wait_for(files, process, world.work / "nginx.log")
    with open(world.work / "nginx/files/sparse", "wb") as file:
        file.truncate(SIZE)
    upload = world.work / "upload"
    with open(upload, "wb") as file:
        file.truncate(SIZE)
    sections = ""
    for name, section in (
        ("http1", upstream("http1", [node(world, "http1")[0]])),
        ("h2", upstream("h2", [node(world, "h2", "http2")[0]], h2)),
        ("h2-tls", upstream("h2-tls", [node(world, "h2-tls", "http2s", CERT=certificate, KEY=key)[0]], h2, trust)),
        ("nginx-h2", upstream("nginx-h2", [files], h2)),
    ):
        sections += section + route(f"/{name}", name, f'strip_prefix = "/{name}"\nmax_body = "{SIZE}B"')
    gateway = Gateway(world.wxgate, world.work / "gateway", sections)
    url = f"http://127.0.0.1:{gateway.port}"
    for name in ("http1", "h2", "h2-tls", "nginx-h2"):
        for version in ("--http1.1", "--http2-prior-knowledge"):
            words = f"{'HTTP/2' if 'http2' in version else 'HTTP/1'} to {name}, {SIZE / GIB:g} GiB"
            path = "/sparse" if name == "nginx-h2" else f"/download?size={SIZE}"
            began = time.monotonic()
            with Memory(gateway) as memory:
                status, down, _, _ = curl(gateway, version, "-o", "/dev/null", f"{url}/{name}{path}")
            rate = SIZE / (1 << 20) / (time.monotonic() - began)
            holds = status == 200 and down == SIZE and memory.growth <= FLAT
            world.promise(
                f"download, {words}: memory is flat",
                holds,
                f"{status}, {down} bytes, {rate:.0f} MiB/s, RSS + {memory.growth} KiB",
            )
            if name == "nginx-h2":
                continue
            for sent in (["-T", upload], ["-T", upload, "-H", "Transfer-Encoding: chunked"]):
                if len(sent) > 2 and version != "--http1.1":
                    continue
                began = time.monotonic()
                with Memory(gateway) as memory:
                    status, _, up, body = curl(gateway, version, *sent, f"{url}/{name}/upload")
                rate = SIZE / (1 << 20) / (time.monotonic() - began)
                arrived = json.loads(body)["length"] if status == 200 else body[:80]
                holds = arrived == SIZE and memory.growth <= FLAT
                kind = " in chunks" * (len(sent) > 2)
                world.promise(
                    f"upload{kind}, {words}: memory is flat",
                    holds,
                    f"{status}, {arrived} bytes, {rate:.0f} MiB/s, RSS + {memory.growth} KiB",
                )


async def expectations(world):
    h1, _, _ = node(world, "http1")
    h2, _, _ = node(world, "h2", "http2")
    early, _, _ = faulty(world)
    sections = upstream("http1", [h1]) + upstream("h2", [h2], 'protocol = "h2"\n') + upstream("early", [early])
    for name in ("http1", "h2", "early"):
        sections += route(f"/{name}", name, f'strip_prefix = "/{name}"')
    gateway = Gateway(world.wxgate, world.work / "gateway", sections)
    for name in ("http1", "h2"):
        connection = Connection(gateway.port)
        await connection.send("POST", f"/{name}/upload", ["Expect: 100-continue"])
        connection.close()
        connection = await Connection(gateway.port).open()
        lines = f"POST /{name}/upload HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
        connection.writer.write(lines.encode())
        status, _ = await asyncio.wait_for(connection.header(), 10)
        connection.writer.write(b"hello")
        response = await asyncio.wait_for(connection.receive("POST"), 10)
        length = json.loads(response.body)["length"] if response.status == 200 else response.body[:80]
        world.promise(
            f"Expect: 100-continue, {name}",
            (status, length) == (100, 5),
            f"{status}, then {response.status} for {length} bytes",
        )
        connection.close()

        connection = await Connection(gateway.port).open()
        lines = lines.replace("/upload", "/refuse").replace("Content-Length: 5", "Content-Length: 5000000")
        connection.writer.write(lines.encode())
        status, _ = await asyncio.wait_for(connection.header(), 10)
        world.promise(f"Expect: 100-continue, refused without the body, {name}", status == 413, status)
        connection.close()

        response = await once(gateway.port, "GET", f"/{name}/hints")
        hints = [(status, headers.get("link")) for status, headers in response.informational]
        holds = response.status == 200 and hints == [(103, "</style.css>; rel=preload; as=style")]
        world.promise(f"103 Early Hints, {name}", holds, f"{hints}, then {response.status}")

    connection = await Connection(gateway.port).open()
    connection.writer.write(
        b"POST /early/early HTTP/1.1\r\nHost: h\r\nContent-Length: 5000000\r\n\r\n" + b"a" * 100_000
    )
    response = await asyncio.wait_for(connection.receive("POST"), 10)
    connection.close()
    world.promise(
        "a response before the end of the request", response.body == b"early", f"{response.status} {response.body}"
    )


SCENARIOS = [gigabytes, expectations]
