"""SIGTERM and a new start, with a snapshot between them, under load."""

import signal
import socket
import time

from gateway import Gateway
from load import Load, fill
from processes import start, wait_until

# Streams are cut after this time.
DRAIN = 3


def sigterm(world):
    gateway = Gateway(world.surroundings(), server=f'drain_timeout = "{DRAIN}s"', snapshot='interval = "1h"')
    gateway.start()
    blocked = gateway.around.openid("blocked")
    before = gateway.token("blocked")
    status = gateway.operate(blocked, "&block=1h")[0]
    assert status == 204, status
    load = Load(gateway, world.rate, restarts=True)
    codes, drains, starts, blocks, restored = [], [], [], [], []
    for _ in range(world.rounds or 5):
        time.sleep(2)
        code, seconds = gateway.terminate(within=DRAIN + 10)
        codes.append(code)
        drains.append(seconds)
        starts.append(gateway.start())
        restored.append(int(gateway.metric("wxgate_sessions_restored_total", source="snapshot")))
        status, answer = gateway.login("blocked")
        blocks.append((status, gateway.use(before)))
        load.check()
    outcome = load.stop()
    faults = outcome.faults()
    world.promise(
        "SIGTERM ends the process with 0, when the drain is over",
        codes == [0] * len(codes) and max(drains) < DRAIN + 1.5,
        f"{codes}, after {min(drains):.2f} to {max(drains):.2f} s",
    )
    world.promise("every session comes back, none that has ended, no request fails", not faults, faults or outcome.summary())
    world.promise(
        "sessions are counted as restored from the snapshot", all(count > 0 for count in restored), f"{restored}"
    )
    world.promise(
        "a blocked user stays blocked, and without sessions", set(blocks) == {(403, 401)}, f"login, old token: {blocks}"
    )
    world.promise("it is ready soon after its start", max(starts) < 5, f"{min(starts):.3f} to {max(starts):.3f} s")
    add_up(world, gateway)


def sigterm_with_sockets(world):
    """The same with sockets that outlive the process: connections wait for the next one."""
    gateway = Gateway(world.surroundings(), server=f'drain_timeout = "{DRAIN}s"', snapshot='interval = "1h"')
    ports = gateway.port, gateway.admin
    listeners = [socket.create_server(("127.0.0.1", port), backlog=4096) for port in ports]
    gateway.start(listeners=listeners)
    load = Load(gateway, world.rate)
    codes, starts = [], []
    for _ in range(world.rounds or 5):
        time.sleep(2)
        codes.append(gateway.terminate(within=DRAIN + 10)[0])
        starts.append(gateway.start(listeners=listeners))
        load.check()
    outcome = load.stop()
    faults = outcome.faults()
    world.promise(
        "restarts with sockets of a service manager: every session comes back, none that has ended, no request fails",
        not faults and codes == [0] * len(codes),
        faults or f"{outcome.summary()}; exit codes {codes}",
    )
    world.promise(
        "restarts with sockets of a service manager: no connection is refused",
        outcome.refused == 0,
        f"{outcome.refused}; ready {min(starts):.3f} to {max(starts):.3f} s after the start; requests p50 {outcome.percentile(0.5):.0f} ms, max {outcome.percentile(1):.0f} ms",
    )
    for listener in listeners:
        listener.close()


def add_up(world, gateway):
    """The metrics of sessions against each other."""
    figures = {}

    def holds():
        for name in ("created", "restored", "removed"):
            figures[name] = gateway.metric(f"wxgate_sessions_{name}_total")
        figures["now"] = gateway.metric("wxgate_sessions")
        return figures["created"] + figures["restored"] - figures["removed"] == figures["now"]

    held = wait_until(holds, 5, 0.2) is not None
    world.promise("created + restored - removed = sessions", held, str({name: int(n) for name, n in figures.items()}))


def ends_at_once(world):
    """SIGINT and a second SIGTERM write no snapshot; the journal is enough for logouts."""
    for title, signals in (("SIGINT", [signal.SIGINT]), ("a second SIGTERM", [signal.SIGTERM, signal.SIGTERM])):
        gateway = Gateway(world.surroundings(title.replace(" ", "-")), snapshot='interval = "1s"')
        gateway.start()
        kept, ended = gateway.token("kept"), gateway.token("ended")
        wait_until(lambda: gateway.metric("wxgate_snapshot_sessions") >= 2, 10)
        status = gateway.logout(ended)[0]
        began = time.monotonic()
        for number in signals:
            gateway.process.send(number)
            time.sleep(0.05)
        code = gateway.process.wait(10)
        seconds = time.monotonic() - began
        gateway.start()
        found = gateway.use(kept), gateway.use(ended)
        world.promise(
            f"after {title} what was durable is there",
            status == 204 and seconds < 2 and found == (200, 401),
            f"logout {status}; ended with {code} after {seconds:.2f} s; kept {found[0]}, logged out {found[1]}",
        )
        gateway.kill()


def too_early(world):
    """Requests that come while the sessions are loaded."""
    gateway = Gateway(world.surroundings())
    gateway.start()
    fill(gateway, 5000)
    token, openid = gateway.token("early"), gateway.around.openid("early")
    gateway.terminate()
    found = []
    for _ in range(3):
        # As soon as anybody answers.
        gateway.process = start([gateway.program, "run", "-c", gateway.file], gateway.log)
        status = None

        def is_answered():
            nonlocal status
            try:
                status = gateway.operate(openid)[0]
            except OSError:
                pass
            return status is not None

        wait_until(is_answered, 10, 0)
        gateway.wait_until_ready()
        found.append((status, gateway.use(token)))
        gateway.kill()
    world.promise(
        "a revocation that comes while the sessions are loaded is 503, or it is done",
        all(status == 503 or (status, used) == (204, 401) for status, used in found),
        f"revocation, then the session: {found}",
    )


SCENARIOS = [sigterm, sigterm_with_sockets, ends_at_once, too_early]
