"""Rows 33 and 34 of the table of faults: more load than the service can take, and clients that leave."""

import asyncio
import contextlib
import json
import random
import time

import h2.config
import h2.connection
import h2.errors
import h2.exceptions

from client import Broken, Connection, described, percentile, scheduled
from gateway import Gateway, fetch, route, upstream, wait_until
from services import faulty, node

# The service: so many requests at a time, each takes so long.
SLOTS, WORK = 5, 0.05


async def overload(world):
    """Row 33."""
    servers = [faulty(world, f"server{number}", "--slots", SLOTS, "--work", WORK) for number in range(2)]
    ports = [port for port, _, _ in servers]
    section = f'max_connections = {SLOTS}\nmax_pending = 16\npending_timeout = "200ms"\nbalance = "least_requests"\n'
    gateway = Gateway(world.wxgate, world.work / "gateway", upstream("shop", ports, section) + route("/", "shop"))

    # The capacity as it is on this machine: as many clients as there are slots.
    done, ends = [], time.monotonic() + 4

    async def busy():
        connection = Connection(gateway.port)
        while time.monotonic() < ends:
            response = await connection.request("GET", "/work")
            done.append(response.status == 200)
        connection.close()

    await asyncio.gather(*(busy() for _ in range(2 * SLOTS)))
    capacity = sum(done) / 4
    quiet = await scheduled(gateway.port, 0.3 * capacity, 6)
    quiet_p99 = percentile([record for record in quiet if record.ok], 0.99)
    for method in ("GET", "POST"):
        seconds = 10
        records = await scheduled(gateway.port, 3 * capacity, seconds, method=method)
        admitted = [record for record in records if record.ok]
        rejected = [record for record in records if record.status == 503]
        others = [record for record in records if not record.ok and record.status != 503]
        goodput = len(admitted) / seconds / capacity
        p99 = percentile(admitted, 0.99)
        holds = goodput >= 0.8 and p99 <= 5 * quiet_p99 and not others
        world.promise(
            f"three times the capacity, open loop, {method}",
            holds,
            f"capacity {capacity:.0f}/s, offered {3 * capacity:.0f}/s, goodput {100 * goodput:.0f} % of capacity; "
            f"admitted p99 {p99:.0f} ms, quiet {quiet_p99:.0f} ms "
            f"({p99 / max(quiet_p99, 0.1):.1f} times); {len(rejected)} rejected with 503, "
            f"median {percentile(rejected, 0.5):.1f} ms, p99 {percentile(rejected, 0.99):.0f} ms; "
            f"{len(others)} others {described(others)}",
            row="33",
        )
        await asyncio.sleep(1)
    after = await scheduled(gateway.port, 0.3 * capacity, 3)
    failed = [record for record in after if not record.ok]
    world.promise(
        "afterwards it serves as before",
        not failed,
        f"{len(failed)} of {len(after)} failed, p99 {percentile(after, 0.99):.0f} ms",
    )


async def leave(gateway, paths):
    """One client that leaves at a random point."""
    connection = Connection(gateway.port)
    try:
        await connection.open()
        path = random.choice(paths)
        if path.endswith("upload"):
            connection.writer.write(
                f"POST {path} HTTP/1.1\r\nHost: h\r\nContent-Length: 200000\r\n\r\n".encode()
                + b"a" * random.randint(0, 150_000)
            )
        else:
            message = f"GET {path} HTTP/1.1\r\nHost: h\r\n\r\n".encode()
            # Sometimes in the middle of the header.
            connection.writer.write(message[: random.randint(1, 20)] if random.random() < 0.05 else message)
        if random.random() < 0.5:
            await asyncio.wait_for(connection.reader.read(random.randint(1, 100_000)), random.uniform(0.001, 0.05))
        else:
            await asyncio.sleep(random.uniform(0, 0.05))
    except (OSError, asyncio.TimeoutError, Broken):
        pass
    finally:
        connection.close(abort=random.random() < 0.5)


async def leave_http2(gateway, paths):
    """A connection of HTTP/2 with ten streams, which are reset, or the connection is ended."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    client = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
    client.initiate_connection()
    streams = []
    for _ in range(10):
        stream = client.get_next_available_stream_id()
        path = random.choice(paths)
        method = "POST" if path.endswith("upload") else "GET"
        client.send_headers(
            stream,
            [(":method", method), (":scheme", "http"), (":authority", "h"), (":path", path)],
            end_stream=method == "GET",
        )
        if method == "POST":
            client.send_data(stream, b"a" * random.randint(1, 1000))
        streams.append(stream)
    try:
        writer.write(client.data_to_send())
        await asyncio.sleep(random.uniform(0, 0.05))
        client.receive_data(await asyncio.wait_for(reader.read(65536), 0.05))
        if random.random() < 0.5:
            for stream in streams:
                with contextlib.suppress(h2.exceptions.ProtocolError):
                    client.reset_stream(stream, h2.errors.ErrorCodes.CANCEL)
            writer.write(client.data_to_send())
            await asyncio.sleep(0.01)
    except (OSError, asyncio.TimeoutError, h2.exceptions.ProtocolError):
        pass
    writer.transport.abort()
    return len(streams)


async def clients_that_leave(world):
    """Row 34."""
    service, _, _ = faulty(world)
    second, _, _ = node(world, "h2", "http2")
    limits = 'max_connections = 200\nmax_pending = 100\npending_timeout = "500ms"\n'
    sections = upstream("http1", [service], limits) + upstream("h2", [second], limits + 'protocol = "h2"\n')
    sections += route("/http1", "http1", 'strip_prefix = "/http1"') + route("/h2", "h2", 'strip_prefix = "/h2"')
    gateway = Gateway(world.wxgate, world.work / "gateway", sections, limits="max_early_resets = 1000000")
    paths = [f"/http1{path}" for path in ("/drip", "/hang", "/big", "/work", "/upload")]
    paths += [f"/h2{path}" for path in ("/events", "/poll?ms=10000", "/download?size=100000000", "/work", "/upload")]
    before, count = gateway.memory(), 0
    began = time.monotonic()

    async def one_after_the_other(number):
        nonlocal count
        for _ in range(number):
            await leave(gateway, paths)
            count += 1

    async def with_http2(number):
        nonlocal count
        for _ in range(number):
            left = await leave_http2(gateway, paths)
            count += left

    await asyncio.gather(*(one_after_the_other(250) for _ in range(32)), *(with_http2(25) for _ in range(8)))
    seconds, over = time.monotonic() - began, time.monotonic()

    def gauges():
        text = {
            "in flight": gateway.metric("wxgate_http_requests_in_flight"),
            "upstream in flight": gateway.metric("wxgate_upstream_requests_in_flight"),
            "pending": gateway.metric("wxgate_upstream_pending"),
            "active connections": gateway.metric("wxgate_upstream_connections", state="active"),
        }
        return {name: value for name, value in text.items() if value}

    def at_services():
        active = [json.loads(fetch(port, "/stats")[2])["active"] for port in (service,)]
        return sum(active)

    quiet = await asyncio.to_thread(wait_until, lambda: not gauges(), 5)
    freed = await asyncio.to_thread(wait_until, lambda: at_services() == 0, 5)
    took = time.monotonic() - over
    h2_active = json.loads(fetch(gateway.port, "/h2/stats")[2])["active"]
    holds = (
        quiet is not None and quiet <= 1.5 and freed is not None and took <= 2 and h2_active == 0 and gateway.is_up()
    )
    world.promise(
        "clients that leave at a random point",
        holds,
        f"{count} left in {seconds:.0f} s; gauges at 0 after {quiet and round(quiet, 2)} s {gauges() or ''}, "
        f"requests at the services {at_services()} + {h2_active} "
        f"after {took:.2f} s; RSS + {gateway.memory() - before} KiB",
        row="34",
    )
    # Whatever was leaked would be missing from the limit now.
    for name, path in (("http1", "/http1/work"), ("h2", "/h2/poll?ms=300")):
        connections = [Connection(gateway.port) for _ in range(200)]
        results = await asyncio.gather(
            *(connection.request("GET", path) for connection in connections), return_exceptions=True
        )
        served = sum(getattr(result, "status", 0) == 200 for result in results)
        world.promise(
            f"all of max_connections is there afterwards, {name}",
            served == 200,
            f"{served} of 200 concurrent requests",
            row="34",
        )
        for connection in connections:
            connection.close()


SCENARIOS = [overload, clients_that_leave]
