"""Rolling restarts of three servers, and lists of servers that change, under load."""

import asyncio
import json
import random

import grpc

from client import Load, described, joined, new_id, percentile, served
from gateway import Gateway, replace, route, stop, upstream
from services import grpc_server, gunicorn, node, uvicorn

CHECK = """connect_timeout = "500ms"
[upstream.health_check]
path = "/healthz"
interval = "500ms"
timeout = "400ms"
"""


async def rolling_restarts(world):
    for kind, starts, more, rounds in (
        ("Node, HTTP/1", lambda name, port=None: node(world, name, port=port), "", 2),
        ("Node, HTTP/2", lambda name, port=None: node(world, name, "http2", port=port), 'protocol = "h2"\n', 2),
        ("uvicorn", lambda name, port=None: uvicorn(world, name, port), "", 1),
        ("gunicorn", lambda name, port=None: gunicorn(world, name, port), "", 1),
    ):
        names = [f"{kind.replace(', ', '-').replace('/', '')}-{number}" for number in range(3)]
        servers = {name: starts(name) for name in names}
        ports = [port for port, _, _ in servers.values()]
        gateway = Gateway(
            world.wxgate, world.work / f"{names[0]}-gateway", upstream("shop", ports, more + CHECK) + route("/", "shop")
        )
        load = Load(gateway.port, clients=16, posts=0.3)
        await asyncio.sleep(1.5)
        restarted = 0
        for _ in range(rounds):
            for name in names:
                port, process, _ = servers[name]
                await asyncio.to_thread(stop, process)
                servers[name] = await asyncio.to_thread(starts, name, port)
                restarted += 1
                # Until its checks have found it.
                await asyncio.sleep(2)
        records = await load.stop()
        gets, posts, duplicated, lost = joined(records, *(log for _, _, log in servers.values()))
        count = sum(record.method == "POST" for record in records)
        # A POST on a connection that the server closes at that moment is 502, and not sent twice.
        holds = not gets and not duplicated and not lost and {record.status for record in posts} <= {502}
        world.promise(
            f"rolling restart of three servers, {kind}",
            holds,
            f"{restarted} restarts: {len(gets)} of {len(records) - count} GETs failed {described(gets)}; "
            f"{len(posts)} of {count} POSTs {described(posts)}; "
            f"{len(duplicated)} duplicated, {len(lost)} lost; p99 {percentile(records, 0.99):.0f} ms",
        )
        gateway.stop()


async def rolling_restart_of_grpc(world):
    """First without a word to the gateway, then as orchestrators do it: a server leaves the list before it ends."""
    servers = {name: grpc_server(world, name) for name in ("one", "two", "three")}
    file = world.work / "orders.servers"

    def write(without=None):
        replace(file, "".join(f"127.0.0.1:{port}\n" for name, (port, _, _) in servers.items() if name != without))

    write()
    section = (
        f'protocol = "h2"\nconnect_timeout = "500ms"\nservers_file = "{file}"\n'
        '[upstream.health_check]\ntcp = true\ninterval = "500ms"\ntimeout = "400ms"\n'
    )
    sections = upstream("orders", [], section) + route("/", "orders")
    gateway = Gateway(world.wxgate, world.work / "gateway", sections, server='watch_interval = "50ms"')
    for leaves_first in (False, True):
        calls, running = {}, True

        async def client():
            async with grpc.aio.insecure_channel(
                f"127.0.0.1:{gateway.port}", [("grpc.use_local_subchannel_pool", 1)]
            ) as channel:
                get = channel.unary_unary("/shop.Orders/Get")
                while running:
                    identity = new_id()
                    try:
                        await get(b"order", metadata=[("x-id", identity)], timeout=20)
                        calls[identity] = "OK"
                    except grpc.aio.AioRpcError as error:
                        calls[identity] = f"{error.code().name} {error.details()}"[:100]
                    await asyncio.sleep(random.uniform(0, 0.004))

        clients = [asyncio.create_task(client()) for _ in range(12)]
        await asyncio.sleep(1.5)
        for _ in range(2):
            for name, (port, process, _) in list(servers.items()):
                if leaves_first:
                    write(without=name)
                    await asyncio.sleep(1)
                await asyncio.to_thread(stop, process)
                servers[name] = await asyncio.to_thread(grpc_server, world, name, port)
                write()
                await asyncio.sleep(2)
        running = False
        await asyncio.gather(*clients)
        counts = served(*(log for _, _, log in servers.values()))
        duplicated = sum(counts.get(identity, 0) > 1 for identity in calls)
        lost = sum(status == "OK" and counts.get(identity, 0) == 0 for identity, status in calls.items())
        failed = {identity: status for identity, status in calls.items() if status != "OK"}
        seen = sum(counts.get(identity, 0) for identity in failed)
        holds = not duplicated and not lost
        if leaves_first:
            holds = holds and not failed
        else:
            # grpcio itself responds so to calls that come while it stops, before its service sees them.
            holds = (
                holds
                and set(failed.values()) <= {"CANCELLED CANCELLED"}
                and not seen
                and len(failed) < 0.002 * len(calls)
            )
        how = "which leave the list first" if leaves_first else "which end without a word"
        world.promise(
            f"rolling restart of three grpcio servers, {how}, unary calls",
            holds,
            f"6 restarts: {len(failed)} of {len(calls)} calls failed {sorted(set(failed.values()))[:3] or ''}, "
            f"of which the service saw {seen}; "
            f"{duplicated} duplicated, {lost} lost",
        )


async def list_of_servers_changes(world):
    """`servers_file`, as Nacos' or Consul's agents write it."""
    servers = {f"server{number}": node(world, f"server{number}") for number in range(4)}
    names = list(servers)
    file = world.work / "shop.servers"

    def write(chosen, as_json=False):
        addresses = [f"127.0.0.1:{servers[name][0]}" for name in chosen]
        replace(file, json.dumps(addresses) if as_json else "\n".join(addresses) + "\n")

    write(names[:2])
    gateway = Gateway(
        world.wxgate,
        world.work / "gateway",
        upstream("shop", [], f'servers_file = "{file}"') + route("/", "shop"),
        server='watch_interval = "50ms"',
    )
    load = Load(gateway.port, clients=16)
    changes = 0
    for number in range(30):
        chosen = random.sample(names, random.randint(1, 4))
        write(chosen, as_json=bool(number % 2))
        changes += 1
        await asyncio.sleep(0.3)
    write(names[2:])
    await asyncio.sleep(1)
    last = len(load.records)
    await asyncio.sleep(1)
    after = {record.server for record in load.records[last:]}
    world.promise("requests go to the servers of the new list only", after == set(names[2:]), sorted(after))

    gateway_errors = "reload rejected"
    for bad in ("", "127.0.0.1", "[1, 2", "a b c\n", "http://x/"):
        before = gateway.messages().count(gateway_errors)
        replace(file, bad)
        for _ in range(50):
            if gateway.messages().count(gateway_errors) > before:
                break
            await asyncio.sleep(0.1)
    last = len(load.records)
    await asyncio.sleep(0.5)
    after = {record.server for record in load.records[last:]}
    rejected = gateway.messages().count(gateway_errors)
    world.promise(
        "a list that cannot be read changes nothing",
        after == set(names[2:]) and rejected >= 5,
        f"{rejected} of 5 rejected; served by {sorted(after)}",
    )

    records = await load.stop()
    gets, posts, duplicated, lost = joined(records, *(log for _, _, log in servers.values()))
    failed = gets + posts
    world.promise(
        "the list changes under load",
        not failed and not duplicated and not lost,
        f"{changes} changes: {len(failed)} of {len(records)} requests failed {described(failed)}; {len(duplicated)} "
        f"POSTs duplicated",
    )


SCENARIOS = [rolling_restarts, rolling_restart_of_grpc, list_of_servers_changes]
