"""Names whose addresses change or vanish, and name servers that do not respond.

Runs in namespaces of its own, with its own /etc/resolv.conf, /etc/hosts and port 53.
"""

import asyncio
import fcntl
import os
import re
import socket
import struct
import subprocess
import sys

from client import Load, described
from gateway import HERE, Gateway, fetch, route, upstream, wait_until
from services import faulty

INSIDE = "UPSTREAMS_INSIDE"


def names_that_move(world):
    if subprocess.run(["unshare", "-rmn", "true"], capture_output=True).returncode:
        return world.skip("names that move", "unshare -rmn is not allowed here")
    # The same scenario once more, inside.
    command = ["unshare", "-rmn", sys.executable, HERE / "run", "--wxgate", world.wxgate, "names-that-move-inside"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, INSIDE: "1"})
    for line in process.stdout:
        said = re.fullmatch(r"names-that-move-inside: (passed|FAILED), (.*?): (.*)\n", line)
        if said:
            world.say(said[2], said[1], said[3], "")
    if process.wait() not in (0, 1):
        world.promise("it runs in its namespaces", False, f"ended with {process.returncode}")
    return None


def prepare(folder):
    """The loopback interface is up; the files that name servers and names are ours."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        # SIOCSIFFLAGS with IFF_UP and IFF_RUNNING.
        fcntl.ioctl(control, 0x8914, struct.pack("16sh22x", b"lo", 0x41))
    for name, text in (
        ("resolv.conf", "nameserver 127.0.0.1\nsearch internal\noptions timeout:1 attempts:1\n"),
        ("hosts", "127.0.0.1 localhost\n::1 localhost\n127.0.0.4 in-hosts\n"),
        ("nsswitch.conf", "hosts: files dns\n"),
    ):
        (folder / name).write_text(text)
        if os.path.exists(f"/etc/{name}"):
            subprocess.run(["mount", "--bind", folder / name, f"/etc/{name}"], check=True)


async def names_that_move_inside(world):
    prepare(world.work)
    sys.path.insert(0, str(HERE / "peers"))
    from names import Names

    names, port = Names(), 3000
    hosts = ["127.0.0.2", "127.0.0.3", "127.0.0.4", "::1"]
    for host in hosts:
        faulty(world, f"at-{host}", port=port, host=host)
    names.zone = {"shop.internal": ["127.0.0.2"], "later.internal": "nxdomain"}
    sections = "".join(
        upstream(name, [f"{address}:{port}"], "[upstream.ejection]\nfailures = 0\n") + route(f"/{name}", name)
        for name, address in (
            ("full", "shop.internal"),
            ("searched", "shop"),
            ("hosts", "in-hosts"),
            ("later", "later.internal"),
            ("quick", "quick.internal"),
        )
    )
    names.zone["quick.internal"] = ["127.0.0.2"]
    gateway = Gateway(world.wxgate, world.work / "gateway", sections)

    def server(path):
        status, headers, _ = fetch(gateway.port, path)
        return headers["X-Server"] if status == 200 else status

    def soon(path, *wanted, within=6):
        """Seconds until one of these serves."""
        return wait_until(lambda: server(path) in wanted, within)

    world.promise(
        "the full name, the search list and the hosts file",
        [server("/full"), server("/searched"), server("/hosts")] == ["at-127.0.0.2", "at-127.0.0.2", "at-127.0.0.4"],
        [server("/full"), server("/searched"), server("/hosts")],
    )
    world.promise(
        "a name that does not resolve at the start: 503, and the gateway runs",
        server("/later") == 503,
        server("/later"),
    )
    names.zone["later.internal"] = ["127.0.0.3"]
    took = await asyncio.to_thread(soon, "/later", "at-127.0.0.3", within=35)
    world.promise("it resolves later", took is not None, f"served after {took and round(took, 1)} s")

    load = Load(gateway.port, "/full", clients=8, posts=0)
    names.zone["shop.internal"] = ["127.0.0.3"]
    took = await asyncio.to_thread(soon, "/full", "at-127.0.0.3")
    world.promise(
        "an address changes, TTL 1 s", took is not None and took <= 3, f"followed after {took and round(took, 2)} s"
    )
    names.zone["shop.internal"] = ["127.0.0.2", "::1"]
    await asyncio.sleep(3)
    last = len(load.records)
    await asyncio.sleep(1)
    seen = {record.server for record in load.records[last:]}
    world.promise("A and AAAA, all addresses", seen == {"at-127.0.0.2", "at-::1"}, sorted(seen))
    for what, answer in (
        ("is empty", []),
        ("is NXDOMAIN", "nxdomain"),
        ("is SERVFAIL", "servfail"),
        ("does not come", "silent"),
    ):
        names.zone["shop.internal"] = answer
        first = len(load.records)
        await asyncio.sleep(6)
        failed = [record for record in load.records[first:] if not record.ok]
        world.promise(
            f"the response {what}: the last addresses stay",
            not failed,
            f"{len(failed)} of {len(load.records) - first} requests failed in 6 s {described(failed)}",
        )
        names.zone["shop.internal"] = ["127.0.0.2"]
        took = await asyncio.to_thread(
            wait_until, lambda: gateway.metric("wxgate_upstream_servers", upstream="full") == 1, 35
        )
        world.promise(f"it is looked up again afterwards ({what})", took is not None, f"after {took and round(took, 1)} s")
        names.zone["shop.internal"] = ["127.0.0.2", "::1"]
        await asyncio.to_thread(wait_until, lambda: gateway.metric("wxgate_upstream_servers", upstream="full") == 2, 35)
    records = await load.stop()
    failed = [record for record in records if not record.ok]
    world.promise("no request failed all the time", not failed, f"{len(failed)} of {len(records)} {described(failed)}")

    names.ttl = 0
    await asyncio.sleep(2)
    names.queries.clear()
    load = Load(gateway.port, "/quick", clients=4, posts=0)
    await asyncio.sleep(6)
    await load.stop()
    asked = sum(name == "quick.internal" for _, name, _ in names.queries) / 6
    world.promise(
        "a TTL of 0 s: looked up at most once a second (A and AAAA)",
        asked <= 2.4,
        f"{asked:.1f} queries/s, {len(load.records)} requests",
    )

    lines = [line for line in gateway.messages().splitlines() if "resolv" in line.lower()]
    world.promise("the log names what does not resolve, and is not flooded", 0 < len(lines) < 40, f"{len(lines)} lines")


SCENARIOS = [names_that_move_inside] if os.environ.get(INSIDE) else [names_that_move]
