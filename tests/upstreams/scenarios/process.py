"""Rows 14, 18 and 32 of the table of faults: the gateway is stopped, has no descriptors, is suspended."""

import asyncio
import os
import signal
import time

import grpc

from client import Broken, Connection, Load, described, once
from gateway import HERE, Gateway, route, stop, upstream
from services import faulty, grpc_server, node


async def sigterm(world):
    """Row 14."""
    service, _, _ = node(world, "node")
    second, _, _ = node(world, "h2", "http2")
    orders, _, _ = grpc_server(world, "orders")
    sections = (
        upstream("shop", [service])
        + route("/", "shop")
        + upstream("orders", [orders], 'protocol = "h2"\n')
        + route("/shop.Orders", "orders")
    )
    sections += upstream("h2", [second], 'protocol = "h2"\n') + route("/h2", "h2", 'strip_prefix = "/h2"')
    # In the first second clients learn that they must connect anew.
    gateway = Gateway(world.wxgate, world.work / "gateway", sections, server='shutdown_delay = "1s"')
    load = Load(gateway.port, clients=16, posts=0.3)
    await asyncio.sleep(1)
    slow = [
        asyncio.create_task(once(gateway.port, "GET", f"{path}?ms=2000"))
        for path in ("/poll", "/h2/poll")
        for _ in range(10)
    ]
    processes = [
        await asyncio.create_subprocess_exec(
            "curl",
            "-s",
            "--http2-prior-knowledge",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            f"http://127.0.0.1:{gateway.port}/poll?ms=2000",
            stdout=asyncio.subprocess.PIPE,
        )
        for _ in range(10)
    ]
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{gateway.port}")
    calls = [asyncio.create_task(call(channel)) for _ in range(10)]
    await asyncio.sleep(0.7)
    began = time.monotonic()
    took = await asyncio.to_thread(stop, gateway.process, signal.SIGTERM, 30)
    code = gateway.process.returncode
    statuses = [(await task).status for task in slow]
    statuses += [int((await process.communicate())[0]) for process in processes]
    replies = await asyncio.gather(*calls, return_exceptions=True)
    good_calls = sum(isinstance(reply, bytes) for reply in replies)
    await channel.close()
    records = await load.stop()
    # A new connection that found no listener any more, or was in its queue, was not accepted.
    failed = [record for record in records if not record.ok and not record.is_first]
    holds = not failed and statuses == [200] * 30 and good_calls == 10 and code == 0 and took <= 25
    world.promise(
        "SIGTERM under load",
        holds,
        f"{len(failed)} of {sum(record.begin < began + took for record in records)} "
        f"requests failed {described(failed)}; in flight for 2 s: {statuses.count(200)} of 30 requests "
        f"and {good_calls} of 10 gRPC calls; exit {code} after {took:.1f} s",
        row="14",
    )


async def call(channel):
    return await channel.unary_unary("/shop.Orders/Deadline")(b"2000", timeout=20)


async def no_descriptors(world):
    """Row 18."""
    service, _, _ = faulty(world)
    sections = upstream("shop", [service]) + route("/", "shop")
    gateway = Gateway(world.wxgate, world.work / "gateway", sections, limits="max_connections = 1000", limit=256)
    kept = []
    for _ in range(400):
        connection = Connection(gateway.port)
        try:
            await asyncio.wait_for(connection.open(), 2)
            kept.append(connection)
        except (OSError, asyncio.TimeoutError):
            break
    before, began = gateway.processor(), time.monotonic()
    await asyncio.sleep(3)
    busy = 100 * (gateway.processor() - before) / (time.monotonic() - began)
    used = gateway.descriptors()
    freed = time.monotonic()
    for connection in kept:
        connection.close()
    back = None
    while back is None and time.monotonic() - freed < 10:
        try:
            if (await once(gateway.port, "GET", "/ok", within=1)).status == 200:
                back = time.monotonic() - freed
        except (OSError, Broken, asyncio.TimeoutError):
            await asyncio.sleep(0.05)
    holds = busy < 20 and back is not None and back <= 2 and gateway.is_up()
    world.promise(
        "no file descriptors (ulimit -n 256)",
        holds,
        f"{len(kept)} connections, {used} descriptors, {busy:.0f} % of a core, serves {back and round(back, 2)} "
        f"s after they are free",
        row="18",
    )


async def suspended(world):
    """Row 32."""
    servers = [faulty(world, f"server{number}") for number in range(2)]
    section = '[upstream.health_check]\npath = "/healthz"\ninterval = "500ms"\ntimeout = "400ms"\nunhealthy_after = 2\n'
    sections = upstream("shop", [port for port, _, _ in servers], section) + route("/", "shop", auth="required")
    gateway = Gateway(world.wxgate, world.work / "gateway", sections)
    tokens = [gateway.login(f"user{number}") for number in range(50)]
    connections = [Connection(gateway.port) for _ in tokens]
    for connection, token in zip(connections, tokens):
        await connection.request("GET", "/ok", [f"X-3rd-Session: {token}"])
    await asyncio.sleep(1.5)
    os.kill(gateway.process.pid, signal.SIGSTOP)
    await asyncio.sleep(10)
    os.kill(gateway.process.pid, signal.SIGCONT)
    began = time.monotonic()
    statuses = []
    for connection, token in zip(connections, tokens):
        try:
            statuses.append((await connection.request("GET", "/ok", [f"X-3rd-Session: {token}"])).status)
        except (Broken, OSError) as error:
            statuses.append(str(error))
    took = time.monotonic() - began
    unhealthy = 0
    for _ in range(10):
        unhealthy = max(
            unhealthy,
            gateway.metric("wxgate_upstream_servers", state="unhealthy")
            + gateway.metric("wxgate_upstream_servers", state="ejected"),
        )
        await asyncio.sleep(0.2)
    holds = statuses == [200] * 50 and took <= 1 and unhealthy == 0
    world.promise(
        "the gateway is suspended for 10 s",
        holds,
        f"{statuses.count(200)} of 50 sessions served within {took:.2f} s {sorted(set(map(str, statuses)))}; "
        f"servers that were taken out: {unhealthy:.0f}",
        row="32",
    )


def measured_elsewhere(world):
    """Rows 30 and 31."""
    result = (HERE.parents[1] / ".ci/RESULT.md").read_text()
    soak = next((line for line in result.splitlines() if line.startswith("| soak |")), "")
    cells = [cell.strip() for cell in soak.split("|")]
    passed = len(cells) > 5 and cells[5] == "passed"
    world.promise(
        "soak: `.ci/full soak` (12 kinds of clients)",
        passed,
        f"{cells[4]} s on {cells[2]}, {cells[5]}" if passed else "never run",
        row="30",
    )


SCENARIOS = [sigterm, no_descriptors, suspended, measured_elsewhere]
