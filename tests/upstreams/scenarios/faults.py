"""Rows 1 to 6 of the table of faults: a service that dies, hangs, lies, or closes idle connections."""

import asyncio
import time

from client import Broken, Connection, Load, described, joined, new_id, once, percentile, scheduled, served
from gateway import Gateway, fetch, free_port, route, stop, upstream
from services import faulty, node


async def broken_off(world):
    """Row 1."""
    service, _, log = faulty(world)
    other, _, _ = node(world, "other")
    sections = (
        upstream("faulty", [service]) + upstream("other", [other]) + route("/", "faulty") + route("/work", "other")
    )
    gateway = Gateway(world.wxgate, world.work / "gateway", sections)
    load = Load(gateway.port, clients=4)
    wrong, count = [], 0
    for path in ("/half-length", "/half-length-fin", "/half-chunked", "/half-chunked-fin"):
        for _ in range(25):
            count += 1
            try:
                response = await once(gateway.port, "GET", path, [f"X-Id: {new_id()}"], within=10)
                if response.complete or response.status != 200:
                    wrong.append(f"{path}: {response.status}, complete, {len(response.body)} bytes")
            except (Broken, OSError):
                pass
    text = await curl_h2(gateway, "/half-length")
    over_h2 = "complete" if text.startswith("0 ") else "an error"
    if over_h2 == "complete":
        wrong.append(f"over HTTP/2: {text}")
    records = await load.stop()
    failed = [record for record in records if not record.ok]
    world.promise(
        "a truncated response is truncated for its client, others go on",
        not wrong and not failed,
        f"{count + 1} broken off, {len(wrong)} looked complete {wrong[:2] or ''}; {len(failed)} of {len(records)} "
        f"other requests failed",
        row="1",
    )
    again = served(log)
    world.promise(
        "nothing is sent again after a response has begun",
        len(again) == 100 and max(again.values()) == 1,
        f"{len(again)} requests, each sent at most {max(again.values())} times",
    )


async def curl_h2(gateway, path):
    process = await asyncio.create_subprocess_exec(
        "curl",
        "-s",
        "--http2-prior-knowledge",
        "-o",
        "/dev/null",
        "-w",
        "%{exitcode} %{http_code}",
        f"http://127.0.0.1:{gateway.port}{path}",
        stdout=asyncio.subprocess.PIPE,
    )
    return (await process.communicate())[0].decode()


async def no_response(world):
    """Row 2."""
    service, _, log = faulty(world)
    gateway = Gateway(
        world.wxgate,
        world.work / "gateway",
        upstream("faulty", [service], "[upstream.ejection]\nfailures = 0\n") + route("/", "faulty"),
    )
    for path in ("/reset", "/close"):
        for method, wanted in (("GET", 3), ("PUT", 3), ("POST", 1)):
            times, statuses = [], set()
            ids = []
            connection = Connection(gateway.port)
            for number in range(20):
                ids.append(f"{path}{method}{number}")
                began = time.monotonic()
                response = await connection.request(
                    method, path, [f"X-Id: {ids[-1]}"], b"a" if method != "GET" else b""
                )
                times.append(time.monotonic() - began)
                statuses.add(response.status)
            connection.close()
            counts = served(log)
            attempts = {counts.get(identity, 0) for identity in ids}
            # After 20 requests the budget may have ended, which allows ten in ten seconds.
            holds = (
                statuses == {502}
                and max(times) <= 0.1
                and max(attempts) <= wanted
                and (method != "POST" or attempts == {1})
            )
            world.promise(
                f"{method} to a service that ends the connection ({path[1:]}): 502, sent at most {wanted} times",
                holds,
                f"status {sorted(statuses)}, slowest {1000 * max(times):.0f} ms, each sent {sorted(attempts)} times",
                row="2",
            )


async def down_and_back(world):
    """Row 3."""
    port = free_port()
    check = '[upstream.health_check]\npath = "/healthz"\ninterval = "1s"\ntimeout = "500ms"\n'
    check += "unhealthy_after = 1\nhealthy_after = 1\n"
    for kind, more in (("with checks", check), ("without checks", "")):
        _, process, _ = faulty(world, "service", port=port)
        gateway = Gateway(world.wxgate, world.work / kind, upstream("service", [port], more) + route("/", "service"))
        await asyncio.sleep(1.5)
        stop(process)
        await asyncio.sleep(1.5)
        seconds = 10
        before = connects(gateway)
        records = await scheduled(gateway.port, 50, seconds, "/ok")
        probes = (connects(gateway) - before) / seconds
        statuses = sorted({record.status for record in records})
        slowest = percentile(records, 0.99)
        _, process, _ = faulty(world, "service", port=port)
        began, back = time.monotonic(), None
        while back is None and time.monotonic() - began < 5:
            if fetch(gateway.port, "/ok")[0] == 200:
                back = time.monotonic() - began
            await asyncio.sleep(0.01)
        stop(process)
        holds = set(statuses) <= {502, 503} and slowest <= 50 and back is not None and back <= 2
        if more:
            holds = holds and probes <= 1.2
        world.promise(
            f"a service is down and comes back, {kind}",
            holds,
            f"status {statuses}, p99 of {len(records)} {slowest:.0f} ms, {probes:.1f} connects/s; "
            f"served {back and round(back, 2)} s after it was back",
            row="3",
        )
        gateway.stop()


def connects(gateway):
    """Connects to the service: attempts of requests, and checks."""
    return gateway.metric("wxgate_upstream_requests_total") + gateway.metric("wxgate_upstream_health_checks_total")


async def hangs(world):
    """Row 4."""
    service, _, _ = faulty(world)
    for timeout, more in (
        (2.0, 'read_timeout = "2s"\n'),
        (1.0, '[upstream.retry]\nattempts = 0\nper_try_timeout = "1s"\n'),
    ):
        sections = upstream("faulty", [service], more) + route("/", "faulty")
        gateway = Gateway(world.wxgate, world.work / f"gateway{timeout}", sections)
        connections = [Connection(gateway.port) for _ in range(200)]
        await asyncio.gather(*(connection.request("GET", "/ok") for connection in connections))
        before = gateway.memory()

        async def hung(connection):
            await connection.send("GET", "/hang")
            sent = time.monotonic()
            response = await connection.receive()
            return response.status, time.monotonic() - sent

        tasks = [asyncio.create_task(hung(connection)) for connection in connections]
        await asyncio.sleep(timeout * 0.8)
        each = (gateway.memory() - before) / len(connections)
        results = await asyncio.gather(*tasks)
        statuses, times = {status for status, _ in results}, [seconds for _, seconds in results]
        holds = statuses == {504} and min(times) >= 0.9 * timeout and max(times) <= 1.1 * timeout and each <= 64
        world.promise(
            f"a service hangs, {more.split(chr(10))[-2]}",
            holds,
            f"{len(results)} requests, status {sorted(statuses)} after {min(times):.2f} to {max(times):.2f} s; "
            f"{each:.0f} KiB for each",
            row="4",
        )
        for connection in connections:
            connection.close()
        gateway.stop()


async def garbage(world):
    """Row 5."""
    service, _, _ = faulty(world)
    gateway = Gateway(
        world.wxgate,
        world.work / "gateway",
        upstream("faulty", [service], "[upstream.ejection]\nfailures = 0\n") + route("/", "faulty"),
    )
    for _ in range(50):
        await once(gateway.port, "GET", "/ok")
    paths = ("/garbage", "/big-header", "/no-header")
    # The allocator takes memory from the system in pieces of two MiB, and keeps the first ones.
    for path in paths:
        await once(gateway.port, "GET", path)
        await once(gateway.port, "GET", path)
    before = gateway.memory()
    for path in paths:
        statuses, most = set(), 0
        for _ in range(20):
            response = await once(gateway.port, "GET", path, within=30)
            statuses.add(response.status)
            most = max(most, gateway.memory() - before)
        holds = statuses == {502} and most <= 2048 and gateway.is_up() and "panic" not in gateway.messages()
        world.promise(
            f"a service responds with {path[1:]}", holds, f"status {sorted(statuses)}, RSS + {most} KiB", row="5"
        )


async def idle_race(world):
    """Row 6."""
    for words, idle, section, pools in (
        # The gateway learns it from the first one.
        ("at once after each response, without saying so", "0", "", 2),
        # Every pool has one client, whose pauses are around the time at which connections are closed:
        # far more of its requests meet that moment than of any real load.
        ("1 s after a response, when the next request comes", "1", "", 100),
        ("1 s after a response, and the gateway after 900 ms", "1", 'idle_timeout = "900ms"\n', 100),
    ):
        name = f"closes-{idle}-{len(section)}"
        port, _, log = faulty(world, name, "--idle", idle)
        sections = ""
        for number in range(pools):
            sections += upstream(f"service{number}", [port], section) + route(f"/{number}", f"service{number}")
        gateway = Gateway(world.wxgate, world.work / name, sections)
        pause, clients = ((0, 0.004), 4) if pools == 2 else ((0.95, 1.05), 1)
        loads = [Load(gateway.port, f"/{number}/ok", clients, posts=0.5, pause=pause) for number in range(pools)]
        await asyncio.sleep(20)
        records = [record for load in loads for record in await load.stop()]
        gets, posts, duplicated, lost = joined(records, log)
        count = sum(record.method == "POST" for record in records)
        share = len(posts) / max(1, count)
        # The first POST is lost before the gateway has seen a close.
        allowed = 0.0001 if section else 0.002
        holds = (
            not gets
            and not duplicated
            and not lost
            and {record.status for record in posts} <= {502}
            and share < allowed
        )
        world.promise(
            f"the service closes idle connections {words}" + ("" if section else "; POSTs fail only before that was seen, with 502"),
            holds,
            f"{len(gets)} of {len(records) - count} GETs failed; {len(posts)} of {count} POSTs ({100 * share:.3f} "
            f"%) {described(posts)}; "
            f"{len(duplicated)} duplicated; p99 {percentile(records, 0.99):.0f} ms",
            row="6",
        )
        gateway.stop()


SCENARIOS = [broken_off, no_response, down_and_back, hangs, garbage, idle_race]
