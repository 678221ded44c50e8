"""The wall clock set back and forward between a save and a load, and after a new boot."""

import os
import shutil
import time
from pathlib import Path

from gateway import FAKETIME, Gateway
from processes import wait_until

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
TTL = 3600


def fake(offset):
    """The environment of a process whose wall clock is wrong by this, and no other clock."""
    return {"LD_PRELOAD": FAKETIME, "FAKETIME": offset, "DONT_FAKE_MONOTONIC": "1"}


def another_boot(world):
    """What a command begins with to run on a machine that was booted again; `None` without root."""
    if os.getuid() != 0 or not shutil.which("unshare"):
        return None
    file = world.work / "boot_id"
    file.write_text("00000000-1111-2222-3333-444444444444\n")
    script = f'mount --bind {file} {BOOT_ID} && exec "$@"'
    return ["unshare", "-m", "sh", "-c", script, "sh"]


def clock(world):
    if not Path(FAKETIME).exists():
        return world.skip("the wall clock", "there is no libfaketime")
    boot = another_boot(world)
    around = world.surroundings()
    cases = [(offset, None) for offset in ("-1h", "-30d", "-400d", "+20m", "+30d")]
    if boot is not None:
        cases += [(offset, boot) for offset in ("-1h", "-30d", "+0", "+20m", "+30d")]
    else:
        world.skip("another boot", "needs root and unshare")
    for number, (offset, before) in enumerate(cases):
        # WeChat allows a user so many logins a minute.
        user = f"blocked{number}"
        shutil.rmtree(around.work / "gateway", ignore_errors=True)
        gateway = Gateway(around, session=f'ttl = "{TTL}s"\nidle_timeout = "{TTL}s"')
        gateway.start()
        began = time.monotonic()
        token, ended = gateway.token("clock"), gateway.token("clock")
        time.sleep(1.2)
        blocked = around.openid(user)
        gateway.operate(blocked, "&block=4s")
        blocked_at = time.monotonic()
        gateway.logout(ended)
        gateway.terminate()
        down = time.monotonic()
        time.sleep(1.5)
        gateway.start(fake(offset), before or ())
        down = time.monotonic() - down
        left, lived = gateway.expires_in(token), time.monotonic() - began
        # On the same boot the time that has passed is known; on another one the wall clock is
        # believed if it has gone forward.
        most = TTL - lived + 1.1
        if before is not None and offset.startswith("-"):
            most += down
        passed = {"+20m": 1200, "+30d": TTL + 1}.get(offset, 0) if before is not None else 0
        if passed > TTL:
            holds, wanted = left is None, "401"
        else:
            holds = left is not None and left <= most - passed + 1 and left >= most - passed - down - 4
            wanted = f"{most - passed:.0f} s at most"
        others = gateway.use(ended)
        title = f"the clock goes {offset}, {'another boot' if before else 'the same boot'}"
        world.promise(f"{title}: no life is extended", holds and others == 401, f"{left} s left, {wanted}; logged out: {others}")
        if before is None:
            wait_until(lambda: gateway.login(user)[0] == 200, 20, 0.2)
            took = time.monotonic() - blocked_at
            world.promise(f"{title}: a block lasts as long as it should", 3.8 < took < 5.5, f"{took:.1f} s of 4 s")
        gateway.kill()

    # Steps while it runs, between two saves, are those between a save and a load after a kill.
    shutil.rmtree(around.work / "gateway", ignore_errors=True)
    gateway = Gateway(around, session='ttl = "6s"\nidle_timeout = "3s"')
    gateway.start(fake("+1h"))
    began = time.monotonic()
    tokens = [gateway.token("short") for _ in range(3)]
    wait_until(lambda: gateway.metric("wxgate_snapshot_sessions") >= 3, 10)
    first = None
    while time.monotonic() - began < 5:
        gateway.kill()
        gateway.start(fake("-1h"))
        first = first or gateway.use(tokens[0])
        gateway.use(tokens[0])
        gateway.use(tokens[1]) if time.monotonic() - began < 1 else None
        time.sleep(0.8)
    idle = gateway.use(tokens[2])
    wait_until(lambda: time.monotonic() - began > 6.3, 10)
    absolute = gateway.use(tokens[0])
    world.promise(
        "kills and a clock that goes back never extend ttl and idle_timeout",
        first == 200 and (idle, absolute) == (401, 401),
        f"in use {first}, unused for more than 3 s: {idle}, in use for more than 6 s: {absolute}",
    )


SCENARIOS = [clock]
