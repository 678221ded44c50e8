"""Upgrades under load: a new process takes over, and nobody notices."""

import json
import os
import signal
import socket
import ssl
import statistics
import time

from gateway import Exchange, Gateway, certificate, redis_server
from load import Load
from processes import wait_until
from scenarios.restarts import add_up

# WebSockets and streams are cut after this time.
DRAIN = 3


def socket_line(gateway_work):
    return f'upgrade_socket = "{gateway_work}/run/upgrade.sock"\ndrain_timeout = "{DRAIN}s"\nh2c = true'


def upgrade(gateway, by_signal):
    """Returns the seconds until the new process serves and the old one has ended, and its code."""
    old, began = gateway.process, time.monotonic()
    new = gateway.quit() if by_signal else gateway.run_upgrade()
    assert new is not None, f"no process was started:\n{gateway.messages()[-3000:]}"

    def serves():
        assert new.poll() is None, f"it ended with {new.code}:\n{gateway.messages()[-3000:]}"
        return gateway.serves(new)

    assert wait_until(serves, 35, 0.01) is not None, gateway.messages()[-3000:]
    took = time.monotonic() - began
    code = old.wait(DRAIN + 15)
    assert code is not None, f"the old process does not end:\n{gateway.messages()[-3000:]}"
    gateway.process = new
    return took, time.monotonic() - began, code


def several(gateway, rounds, pause=0.5):
    times, drains, codes = [], [], []
    for number in range(rounds):
        time.sleep(pause)
        took, drained, code = upgrade(gateway, by_signal=number % 2 == 1)
        times.append(took)
        drains.append(drained)
        codes.append(code)
    return times, drains, codes


def report(world, title, outcome, times, drains, codes):
    faults = outcome.faults()
    world.promise(f"{title}: no request fails, no session is lost, none comes back", not faults, faults or outcome.summary())
    world.promise(f"{title}: no connection is refused", not outcome.refused, outcome.refused)
    early = [line for line in outcome.cut if line["t1"] - line["t0"] < DRAIN - 0.5 and line["steps"] == 0]
    lives = [line["t1"] - line["t0"] for line in outcome.cut]
    world.promise(
        f"{title}: the old process ends with 0 when what is open has ended or was cut",
        set(codes) == {0} and max(drains) < DRAIN + 3 and not early,
        f"codes {sorted(set(codes))}, after {min(drains):.2f} to {max(drains):.2f} s; "
        f"{len(outcome.cut)} WebSockets and streams cut, the shortest after {min(lives, default=0):.1f} s",
    )
    world.promise(
        f"{title}: the new process serves soon",
        max(times) < 5,
        f"from its start: median {1000 * statistics.median(times):.0f} ms, max {1000 * max(times):.0f} ms; "
        f"requests p50 {outcome.percentile(0.5):.0f} ms, p99 {outcome.percentile(0.99):.0f} ms, "
        f"max {outcome.percentile(1):.0f} ms",
    )


def new_gateway(world, name, **more):
    around = world.surroundings(name)
    server = socket_line(around.work / "gateway") + more.pop("server", "")
    return Gateway(around, server=server, **more)


def upgrades(world):
    """One after the other, by `--upgrade` and by SIGQUIT in turn."""
    gateway = new_gateway(world, "memory")
    gateway.start()
    load = Load(gateway, world.rate, h2=True)
    rounds = world.rounds or 20
    times, drains, codes = several(gateway, rounds)
    outcome = load.stop()
    report(world, f"{rounds} upgrades", outcome, times, drains, codes)
    restored = gateway.metric("wxgate_sessions_restored_total", source="upgrade")
    world.promise("sessions are counted as restored by an upgrade", restored > 0, f"{restored:.0f}")
    add_up(world, gateway)
    tokens = [gateway.token("again") for _ in range(3)]
    gateway.terminate()
    gateway.start()
    world.promise(
        "the last process wrote the snapshot", all(gateway.use(token) == 200 for token in tokens), f"{len(tokens)} sessions"
    )


def upgrades_with_tls(world):
    around = world.surroundings("tls")
    made, key = certificate(around.work)
    line = socket_line(around.work / "gateway").replace("h2c = true", "")
    tls = f'[server.tls]\ncert_file = "{made}"\nkey_file = "{key}"\n'
    gateway = Gateway(around, server=line + tls)
    gateway.start()
    load = Load(gateway, world.rate / 2, ca=str(made))
    context = ssl.create_default_context(cafile=made)
    # In TLS 1.3 a ticket comes after the handshake.
    session = resume(gateway.port, context, None)[1]
    resumed = []
    rounds = world.rounds or 4
    times, drains, codes = [], [], []
    for number in range(rounds):
        time.sleep(0.5)
        took, drained, code = upgrade(gateway, by_signal=number % 2 == 1)
        times.append(took)
        drains.append(drained)
        codes.append(code)
        was_resumed, session = resume(gateway.port, context, session)
        resumed.append(was_resumed)
    outcome = load.stop()
    report(world, f"{rounds} upgrades with TLS", outcome, times, drains, codes)
    world.promise("TLS sessions are resumed with tickets of the old process", all(resumed), f"{resumed}")


def resume(port, context, session):
    """Whether a session was resumed, and the session that follows."""
    with socket.create_connection(("127.0.0.1", port)) as plain:
        with context.wrap_socket(plain, server_hostname="localhost", session=session) as secure:
            secure.sendall(b"GET /open HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            while secure.recv(65536):
                pass
            return secure.session_reused, secure.session


def upgrades_with_redis(world):
    port = redis_server(world.work)
    if port is None:
        return world.skip("upgrades with a shared store", "there is no redis-server")
    gateway = new_gateway(world, "redis", redis=port)
    gateway.start()
    load = Load(gateway, world.rate)
    rounds = world.rounds or 4
    figures = several(gateway, rounds)
    outcome = load.stop()
    report(world, f"{rounds} upgrades with a shared store", outcome, *figures)


def two_at_once(world):
    """A second new process while one takes over; an upgrade while an old process drains."""
    gateway = new_gateway(world, "two")
    gateway.start()
    load = Load(gateway, world.rate)
    time.sleep(1)
    old = gateway.process
    news = [gateway.run_upgrade(), gateway.run_upgrade()]
    began = time.monotonic()
    wait_until(lambda: old.poll() is not None, DRAIN + 15)
    time.sleep(1)
    running = [new for new in news if new.poll() is None]
    codes = [new.code for new in news]
    world.promise(
        "of two new processes one serves, or one after the other",
        old.code == 0 and len(running) == 1 and gateway.serves(running[0]) and set(codes) <= {None, 0, 1},
        f"the old one ended with {old.code} after {time.monotonic() - began:.1f} s, the new ones: {codes}",
    )
    gateway.process = running[0]
    # The WebSockets and streams keep the old process for a while: the next upgrade comes within it.
    old, middle = gateway.process, gateway.run_upgrade()
    wait_until(lambda: gateway.serves(middle), 10)
    last = gateway.run_upgrade()
    old.wait(DRAIN + 15)
    middle_ended = middle.wait(DRAIN + 15)
    gateway.process = last if last.poll() is None else middle
    world.promise(
        "an upgrade while an old process drains serves or is refused",
        old.code == 0 and gateway.process.poll() is None and gateway.serves(gateway.process),
        f"codes: {old.code}, {middle_ended}, {last.code}",
    )
    outcome = load.stop()
    faults = outcome.faults()
    world.promise("no request fails meanwhile", not faults, faults or outcome.summary())
    add_up(world, gateway)


def take_over(gateway):
    """The new process serves; the old one still drains. Returns both."""
    old, new = gateway.process, gateway.run_upgrade()
    assert wait_until(lambda: gateway.serves(new), 35, 0.01) is not None, gateway.messages()[-3000:]
    gateway.process = new
    return old, new


def code(user, delay=None):
    name = f"user-{user}" if delay is None else f"slow-{delay}-{user}"
    return f"{name}-{os.urandom(6).hex()}"


def both_live(world):
    """While the old process drains: what happens at one is known at the other."""
    gateway = new_gateway(world, "both")
    gateway.start()
    token, other = gateway.token("one"), gateway.token("one")
    # Begun at the old process, and finished when the new one serves.
    late = Exchange(gateway.port, "POST", "/late", token, "abcde", back=3)
    torn = Exchange(gateway.port, "GET", "/torn", token, back=9)
    spent = code("slow", "2s")
    login = Exchange.login(gateway.port, spent)
    logout = Exchange(gateway.port, "POST", "/logout", other, back=2)
    time.sleep(0.2)
    old, _ = take_over(gateway)
    status, answer = torn.finish()
    world.promise("a connection whose head was under way is served", status == 200, f"{status} {answer[:60]}")
    status, _ = logout.finish()
    found = gateway.use(other)
    world.promise("a logout at the old process is a 401 at the new one", (status, found) == (204, 401), f"{status}, {found}")
    again = Exchange.login(gateway.port, spent)
    status, answer = login.finish()
    is_alive = old.poll() is None
    made = json.loads(answer)["token"] if status == 200 else ""
    known = gateway.use(made) if made else 0
    world.promise(
        "a login at the old process is known to the new one before it is answered",
        (status, known) == (200, 200) and is_alive,
        f"login {status}, the session at the new process {known}",
    )
    status, answer = again.finish()
    same = status == 200 and json.loads(answer)["token"] == made
    world.promise(
        "the same code at the new process gets the same answer or 401",
        same or (status == 401 and b"invalid_code" in answer),
        f"{status}, {'the same' if same else answer[:60]}",
    )
    status, answer = late.finish()
    world.promise("a request in flight at the old process is finished", status == 200, f"{status} {answer[:60]}")
    ended = old.wait(DRAIN + 5)
    world.promise("the old process ends, the session is there", (ended, gateway.use(token)) == (0, 200), f"code {ended}")


def limits(world):
    """Rate limits are handed over: nobody gains a second quota."""
    gateway = new_gateway(world, "limits", login='rate_per_address = "5/1h"')
    gateway.start()
    before = [gateway.login(f"user{number}")[0] for number in range(4)]
    upgrade(gateway, by_signal=False)
    after = [gateway.login(f"user{number}")[0] for number in range(4)]
    world.promise(
        "a client's quota of logins is handed over",
        before == [200] * 4 and after.count(200) <= 1 and set(after) <= {200, 429},
        f"5 in an hour: {before} before, {after} after",
    )


def stopped_peer(world):
    """One of the two hangs (SIGSTOP) while both live: for the other it is dead after a second."""
    gateway = new_gateway(world, "old")
    gateway.start()
    tokens = [gateway.token("holder") for _ in range(6)]
    held = Exchange(gateway.port, "GET", "/stream", tokens[0])
    time.sleep(0.2)
    old, new = take_over(gateway)
    old.send(signal.SIGSTOP)
    times, statuses = [], []
    for token in tokens[1:]:
        began = time.monotonic()
        statuses.append(gateway.logout(token)[0])
        times.append(time.monotonic() - began)
    began = time.monotonic()
    status, _ = gateway.login("holder")
    times.append(time.monotonic() - began)
    ended = [gateway.use(token) for token in tokens[1:]]
    old.send(signal.SIGCONT)
    held.socket.close()
    code_of_old = old.wait(DRAIN + 10)
    world.promise(
        "the old process hangs: logouts and logins wait for it a second, once",
        statuses == [204] * 5 and status == 200 and max(times) < 1.6 and max(times[1:]) < 0.5 and ended == [401] * 5,
        f"logouts {statuses}, login {status}, after {', '.join(f'{took:.2f}' for took in times)} s; then {ended}; "
        f"the old process ended with {code_of_old}",
    )

    gateway = new_gateway(world, "new")
    gateway.start()
    token = gateway.token("holder")
    login = Exchange.login(gateway.port, code("slow", "3s"))
    logout = Exchange(gateway.port, "POST", "/logout", token, back=2)
    time.sleep(0.2)
    began = time.monotonic()
    old, new = take_over(gateway)
    new.send(signal.SIGSTOP)
    at = time.monotonic()
    first, _ = logout.finish()
    waited = time.monotonic() - at
    second, _ = login.finish()
    answered = time.monotonic() - began
    new.send(signal.SIGCONT)
    world.promise(
        "the new process hangs: the old one answers what it has, a second late at most",
        first in (204, 503) and waited < 1.6 and second in (200, 503) and answered < 6,
        f"logout {first} after {waited:.2f} s, login {second}; then the new process: {gateway.use(token)} for that session",
    )


SCENARIOS = [upgrades, upgrades_with_tls, upgrades_with_redis, two_at_once, both_live, limits, stopped_peer]
