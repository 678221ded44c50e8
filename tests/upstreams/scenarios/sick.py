"""One of three servers is killed, hangs, drips, or lies to its checks; the others serve."""

import asyncio
import json
import os
import signal
import time

from client import Load, described, joined, percentile
from gateway import Gateway, fetch, route, upstream
from services import faulty, node

# Short times, so that a run shows a whole cycle.
SECTION = """balance = "{balance}"
connect_timeout = "500ms"
[upstream.health_check]
path = "/healthz"
interval = "500ms"
timeout = "400ms"
unhealthy_after = 2
healthy_after = 2
[upstream.ejection]
failures = 3
duration = "2s"
[upstream.retry]
per_try_timeout = "500ms"
"""


def share(records, name):
    return 100 * sum(record.server == name for record in records) / max(1, len(records))


async def one_of_three(world):
    for balance in ("round_robin", "least_requests"):
        section = SECTION.format(balance=balance)
        for what, number in (("kill -9", signal.SIGKILL), ("SIGSTOP", signal.SIGSTOP)):
            names = [f"{balance}-{number}-{server}" for server in range(3)]
            servers = [node(world, name) for name in names]
            gateway = Gateway(
                world.wxgate,
                world.work / names[0],
                upstream("shop", [port for port, _, _ in servers], section) + route("/", "shop"),
            )
            load = Load(gateway.port, clients=16)
            await asyncio.sleep(2)
            os.kill(servers[0][1].pid, number)
            began = time.monotonic()
            await asyncio.sleep(5)
            if number == signal.SIGSTOP:
                os.kill(servers[0][1].pid, signal.SIGCONT)
            else:
                node(world, names[0], port=servers[0][0])
            back = time.monotonic()
            await asyncio.sleep(5)
            records = await load.stop()
            gets, posts, duplicated, lost = joined(records, *(log for _, _, log in servers))
            during = [record for record in records if began <= record.begin < back]
            late = [record for record in records if record.begin > back + 3]
            count = sum(record.method == "POST" for record in records)
            # A POST that the server may have begun is not sent again.
            holds = not gets and not duplicated and not lost and share(late, names[0]) > 15
            world.promise(
                f"{what} of one of three, {balance}",
                holds,
                f"{len(gets)} of {len(records) - count} GETs failed {described(gets)}; {len(posts)} of {count} "
                f"POSTs {described(posts)}; "
                f"{len(duplicated)} POSTs duplicated; p99 {percentile(during, 0.99):.0f} ms, "
                f"longest {percentile(during, 1):.0f}; "
                f"share of the server afterwards {share(late, names[0]):.0f} %",
            )
            gateway.stop()


async def slow_drip(world):
    """The header of each response takes ten seconds: the first byte is in time, so that nothing is a failure."""
    for balance in ("round_robin", "least_requests"):
        names = [f"{balance}-{server}" for server in range(3)]
        good = [faulty(world, name) for name in names[:2]]
        slow = faulty(world, names[2], "--slots", "0")
        ports = [port for port, _, _ in (*good, slow)]
        sections = upstream("shop", ports, SECTION.format(balance=balance)) + route("/", "shop", 'timeout = "2s"')
        gateway = Gateway(world.wxgate, world.work / balance, sections)
        load = Load(gateway.port, clients=24, posts=0)
        await asyncio.sleep(8)
        records = await load.stop()
        failed = [record for record in records if not record.ok]
        longest = percentile(records, 1)
        wrong = [record for record in failed if record.status != 504]
        most = 45 if balance == "round_robin" else 10
        percent = 100 * len(failed) / len(records)
        holds = longest < 2500 and not wrong and percent < most
        world.promise(
            f"one of three drips its header, {balance}, with a timeout of 2 s for the exchange",
            holds,
            f"{len(records)} requests, {percent:.1f} % ended by the timeout {described(failed)}, "
            f"longest {longest:.0f} ms; others p99 "
            f"{percentile([record for record in records if record.ok], 0.99):.0f} ms",
        )
        gateway.stop()


async def healthy_but_resets(world):
    servers = [faulty(world, f"good{number}") for number in range(2)] + [faulty(world, "sick", "--sick")]
    logs = [log for _, _, log in servers]
    section = SECTION.format(balance="round_robin")
    gateway = Gateway(
        world.wxgate,
        world.work / "gateway",
        upstream("shop", [port for port, _, _ in servers], section) + route("/", "shop"),
    )
    load = Load(gateway.port, clients=16)
    await asyncio.sleep(10)
    ejected = gateway.metric("wxgate_upstream_servers", upstream="shop", state="ejected")
    records = await load.stop()
    gets, posts, duplicated, lost = joined(records, *logs)
    # The sick server notes what it resets; a retried POST would be with another server too.
    stats = json.loads(fetch(servers[2][0], "/stats")[2])
    count = sum(record.method == "POST" for record in records)
    reached = 100 * (stats["requests"] - 1) / len(records)
    holds = not gets and not duplicated and not lost and reached < 2 and ejected == 1 and stats["checks"] > 10
    world.promise(
        "a server passes its checks and resets everything else",
        holds,
        f"{len(gets)} of {len(records) - count} GETs failed; {len(posts)} of {count} POSTs {described(posts)}; "
        f"{len(duplicated)} POSTs duplicated; "
        f"it got {stats['requests'] - 1} requests ({reached:.2f} %) and {stats['checks']} checks in 10 s; "
        f"ejected: {ejected:.0f}",
    )


SCENARIOS = [one_of_three, slow_drip, healthy_but_resets]
