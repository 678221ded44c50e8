"""WebSockets, server-sent events, long polls and gRPC streams: unbuffered, and longer than a reload."""

import asyncio
import json
import queue
import time

from client import Connection, once
from gateway import Gateway, route, upstream
from services import faulty, grpc_server, node
from .grpc_calls import channel

WEBSOCKET = [
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
]


async def events(connection, count):
    """Milliseconds from the service's writing of each event to its arrival here."""
    late = []
    while len(late) < count:
        line = await asyncio.wait_for(connection.reader.readline(), 10)
        if line.startswith(b"data: "):
            late.append(time.time() * 1000 - int(line[6:]))
    return late


class Chat:
    """A bidirectional call that stays open."""

    def __init__(self, port):
        self.channel, self.sent = channel(port), queue.Queue()
        self.replies = self.channel.stream_stream("/shop.Orders/Chat")(iter(self.sent.get, None), timeout=120)

    def ask(self, text):
        self.sent.put(text)
        return next(self.replies)

    def close(self):
        self.sent.put(None)
        rest = list(self.replies)
        self.channel.close()
        return rest


async def streams_outlive_reloads(world):
    old, _, _ = faulty(world, "old")
    new, _, _ = faulty(world, "new")
    h1, _, _ = node(world, "http1")
    h2, _, _ = node(world, "h2", "http2")
    first, _, _ = grpc_server(world, "first")
    second, _, _ = grpc_server(world, "second")

    def sections(server, orders):
        return (
            upstream("socket", [server])
            + upstream("http1", [h1])
            + upstream("h2", [h2], 'protocol = "h2"\n')
            + upstream("orders", [orders], 'protocol = "h2"\n')
            + route("/websocket", "socket", "websocket = true")
            + route("/shop.Orders", "orders")
            + "".join(
                route(f"/{name}", name, f'strip_prefix = "/{name}"\nread_timeout = "30s"') for name in ("http1", "h2")
            )
            + route("/ok", "socket")
        )

    gateway = Gateway(world.wxgate, world.work / "gateway", sections(old, first))
    socket = await Connection(gateway.port).open()
    await socket.send("GET", "/websocket", WEBSOCKET)
    response = await asyncio.wait_for(socket.receive(), 10)
    world.promise("a WebSocket opens", response.status == 101, response.status)
    streams = {}
    for name in ("http1", "h2"):
        streams[name] = await Connection(gateway.port).open()
        await streams[name].send("GET", f"/{name}/events")
        await asyncio.wait_for(streams[name].header(), 10)
    reading = {name: asyncio.create_task(events(stream, 60)) for name, stream in streams.items()}
    chat = Chat(gateway.port)
    first_reply = await asyncio.to_thread(chat.ask, b"before")
    poll = asyncio.create_task(once(gateway.port, "GET", "/http1/poll?ms=8000"))
    poll2 = asyncio.create_task(once(gateway.port, "GET", "/h2/poll?ms=8000"))
    await asyncio.sleep(0.3)

    await asyncio.to_thread(gateway.reload, sections(new, second))
    response = await once(gateway.port, "GET", "/ok")
    world.promise(
        "after a reload requests go to the new server",
        response.headers.get("x-server") == "new",
        response.headers.get("x-server"),
    )
    other = Chat(gateway.port)
    await asyncio.to_thread(other.ask, b"x")
    other.close()

    echoed = 0
    for number in range(20):
        socket.writer.write(b"message %d" % number)
        echoed += await asyncio.wait_for(socket.reader.read(100), 5) == b"message %d" % number
        await asyncio.sleep(0.05)
    world.promise("a WebSocket outlives it", echoed == 20, f"{echoed} of 20 messages came back")
    socket.close()
    for name, stream in streams.items():
        late = sorted(await reading[name])
        world.promise(
            f"server-sent events outlive it, unbuffered, {name}",
            late[57] < 100,
            f"60 events, median {late[30]:.1f} ms late, p95 {late[57]:.1f}",
        )
        stream.close()
    replies = [first_reply] + [await asyncio.to_thread(chat.ask, b"%d" % number) for number in range(20)]
    rest = await asyncio.to_thread(chat.close)
    holds = replies == [b"before"] + [b"%d" % number for number in range(20)] and rest == []
    world.promise(
        "a bidirectional gRPC stream outlives it, and ends as it should", holds, f"{len(replies)} of 21 replies"
    )
    for name, task in (("http1", poll), ("h2", poll2)):
        response = await asyncio.wait_for(task, 30)
        seen = json.loads(response.body) if response.status == 200 else {}
        world.promise(f"a long poll outlives it, {name}", "path" in seen, f"{response.status} after 8 s")


SCENARIOS = [streams_outlive_reloads]
