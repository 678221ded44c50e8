"""Which server gets which share of the requests, which Host it sees, and statuses that are tried again."""

import asyncio
import collections
import json

from client import Connection, once
from gateway import Gateway, route, upstream
from services import node


async def shares(world):
    names = ["one", "two", "three"]
    ports = [node(world, name)[0] for name in names]
    weighted = ", ".join(
        f'{{ address = "127.0.0.1:{port}", weight = {weight} }}' for port, weight in zip(ports, (1, 2, 3))
    )

    def sections(chosen):
        text = ""
        for name, more in (
            ("round_robin", ""),
            ("least_requests", 'balance = "least_requests"\n'),
            ("hash", 'balance = "hash"\nhash = { header = "X-Shop-Id" }\n'),
        ):
            text += upstream(name, [], f"servers = [{weighted}]\n{more}") + route(f"/{name}", name)
        text += upstream("shop", chosen, 'balance = "hash"\nhash = { header = "X-Shop-Id" }\n') + route("/shop", "shop")
        for name, host in (("client", "client"), ("server", "server"), ("fixed", "shop.example.org")):
            text += upstream(f"host-{name}", ports[:1], f'host = "{host}"\n') + route(f"/host-{name}", f"host-{name}")
        retry = '[upstream.retry]\non = ["503"]\nattempts = 1\n'
        return text + upstream("again", ports[:2], retry) + route("/again", "again")

    gateway = Gateway(world.wxgate, world.work / "gateway", sections(ports))

    async def servers_of(path, count):
        async def some(first):
            connection, seen = Connection(gateway.port), []
            for number in range(first, count, 8):
                response = await connection.request("GET", path, [f"X-Shop-Id: {number}"])
                seen.append((number, response.headers.get("x-server")))
            connection.close()
            return seen

        parts = await asyncio.gather(*(some(first) for first in range(8)))
        return dict(pair for part in parts for pair in part)

    for balance, off in (("round_robin", 1), ("least_requests", 12), ("hash", 6)):
        counts = collections.Counter((await servers_of(f"/{balance}", 1200)).values())
        got = [100 * counts[name] / 1200 for name in names]
        holds = all(abs(share - weight * 100 / 6) <= off for share, weight in zip(got, (1, 2, 3)))
        world.promise(f"weights 1, 2 and 3, {balance}", holds, ", ".join(f"{share:.1f} %" for share in got))

    before = await servers_of("/shop", 600)
    await asyncio.to_thread(gateway.reload, sections(ports[:2]))
    after = await servers_of("/shop", 600)
    moved = [number for number in before if before[number] != "three" and before[number] != after[number]]
    left = sum(server == "three" for server in before.values())
    world.promise(
        "a server that leaves moves only its own (hash)",
        not moved and 150 < left < 250,
        f"{left} of 600 were with it; {len(moved)} others moved",
    )
    hosts = {}
    for name in ("client", "server", "fixed"):
        hosts[name] = json.loads((await once(gateway.port, "GET", f"/host-{name}")).body)["host"]
    wanted = {"client": "shop.example.com", "server": f"127.0.0.1:{ports[0]}", "fixed": "shop.example.org"}
    world.promise("Host as configured", hosts == wanted, hosts)
    ids = {}
    for method, body in (("GET", b""), ("POST", b"a")):
        ids[method] = f"again-{method}"
        await once(gateway.port, method, "/again?status=503", [f"X-Id: {ids[method]}"], body)
    lines = "".join((world.work / f"{name}.requests").read_text() for name in names[:2])
    tries = {method: lines.count(identity) for method, identity in ids.items()}
    world.promise('on = ["503"]: a GET is sent again, a POST is not', tries == {"GET": 2, "POST": 1}, tries)


SCENARIOS = [shares]
