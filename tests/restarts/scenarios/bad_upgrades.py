"""Upgrades that fail: the old process goes on, and no request fails."""

import os
import random
import shutil
import signal
import socket
import sys
import time
from pathlib import Path

from gateway import HERE, Gateway
from load import Load, fill
from processes import start, wait_until
from scenarios.restarts import add_up
from scenarios.upgrades import DRAIN, new_gateway, upgrade

SUCCESSOR = HERE / "successor.py"
# What a process that is played does, and how long it may be given.
PLAYED = {
    "connect": ("connects and says nothing", 8),
    "old": ("speaks an older protocol only", 5),
    "new": ("speaks a newer protocol only", 5),
    "garbage": ("sends garbage", 8),
    "endless": ("announces a frame of 4 GiB", 8),
    "any": ("hangs after the hello", 35),
    "deaf": ("reads nothing after the hello", 35),
    "mute": ("answers no question", 35),
    "dies": ("dies when it is to serve", 35),
    "hangs": ("hangs when it is to serve", 35),
}


def goes_on(gateway, old):
    return old.poll() is None and gateway.serves(old) and gateway.ready() == 200


def program(gateway, text):
    """Puts another program in the place of the gateway's, as a release does."""
    new = gateway.work / "wxgate.next"
    new.unlink(missing_ok=True)
    if text is None:
        new.symlink_to(gateway.around.wxgate)
    else:
        new.write_text(text)
        new.chmod(0o755)
    new.replace(gateway.program)


def by_signal(world, gateway, title, text, within=5):
    """SIGQUIT with another program behind the path."""
    old, errors = gateway.process, len(gateway.errors())
    program(gateway, text)
    new = gateway.quit(2)
    if new is not None:
        wait_until(lambda: new.poll() is not None, within)
    program(gateway, None)
    said = wait_until(lambda: len(gateway.errors()) > errors, 3) is not None
    holds = goes_on(gateway, old)
    world.promise(f"SIGQUIT, {title}: the old process goes on", holds and said, (gateway.errors() or ["no error logged"])[-1][:160])
    return new


def bad_upgrades(world):
    gateway = new_gateway(world, "world")
    gateway.start()
    load = Load(gateway, world.rate, h2=True)
    time.sleep(1)
    old = gateway.process

    by_signal(world, gateway, "the new program fails at once", "#!/bin/sh\nexit 1\n")
    by_signal(world, gateway, "the new program cannot be run", "not a program")
    text = gateway.file.read_text()
    gateway.file.write_text(text + "\n[nonsense]\n")
    by_signal(world, gateway, "the configuration is bad", None)
    new = gateway.run_upgrade()
    code = new.wait(10)
    world.promise("a bad configuration ends --upgrade with 1", code == 1 and goes_on(gateway, old), f"code {code}")
    gateway.file.write_text(text)

    yielding = []
    for how, (title, within) in PLAYED.items():
        began = time.monotonic()
        if how in ("dies", "hangs"):
            yielding.append(time.time())
        new = gateway.run_upgrade([sys.executable, SUCCESSOR, how])
        # It is cut off, or it ends by itself; a process that is deaf does not see this.
        errors = len(gateway.errors())
        wait_until(lambda: len(gateway.errors()) > errors, within)
        seconds = time.monotonic() - began
        said = gateway.errors()[errors:]
        new.end(signal.SIGKILL)
        holds = goes_on(gateway, old) and said
        world.promise(
            f"a new process that {title}: the old one goes on",
            bool(holds),
            f"after {seconds:.1f} s: {(said or ['no error logged'])[-1][:220]}",
        )
        # What depends on the files works again.
        token = gateway.token("after")
        status = wait_until(lambda: gateway.logout(token)[0] == 204, 10)
        if status is None or status > 1:
            world.promise(f"logouts after a new process that {title}", False, f"204 only after {status} s")

    delays = []
    # So many that it takes longer to hand them over than to start.
    fill(gateway, 50_000)
    # Not so late that it may serve already: then its end is that of the gateway.
    took = min(upgrade(gateway, by_signal=False)[0] for _ in range(3))
    old = gateway.process
    for _ in range(world.rounds or 15):
        delays.append(random.uniform(0, took * 0.3))
        new = gateway.run_upgrade()
        time.sleep(delays[-1])
        new.end(signal.SIGKILL)
        if wait_until(lambda: goes_on(gateway, old), 7) is None:
            break
        time.sleep(0.2)
    world.promise(
        "a new process that is killed in the middle: the old one goes on",
        goes_on(gateway, old),
        f"{len(delays)} kills, {1000 * min(delays):.0f} to {1000 * max(delays):.0f} ms after the start; it serves after {1000 * took:.0f}",
    )
    program(gateway, f"#!/bin/sh\nexec {sys.executable} {SUCCESSOR} sleep\n")
    hung = gateway.quit()
    # Not before it has begun to run this program.
    wait_until(lambda: SUCCESSOR.name in Path(f"/proc/{hung.pid}/cmdline").read_text(), 5)
    program(gateway, None)
    world.promise("SIGQUIT, the new program hangs: the old process goes on", goes_on(gateway, old), "")
    took, drained, code = upgrade(gateway, by_signal=True)
    world.promise("a good upgrade afterwards, while that one still hangs", code == 0, f"serves after {took:.2f} s")
    hung.end(signal.SIGKILL)
    outcome = load.stop()
    # Until the new process is known to hang, it has the files.
    unavailable = [line for line in outcome.wrong if line["kind"] in ("logout", "revoke") and line["status"] == 503]
    in_time = [line for line in unavailable if any(begin <= line["t1"] <= begin + 2 for begin in yielding)]
    outcome.wrong = [line for line in outcome.wrong if line not in in_time]
    faults = outcome.faults()
    world.promise(
        "no request fails, no session is lost, none comes back",
        not faults,
        faults or f"{outcome.summary()}; {len(in_time)} logouts and revocations 503 while a new process died or hung",
    )
    world.promise(
        "no request waits long",
        outcome.percentile(1) < 3000,
        f"p50 {outcome.percentile(0.5):.0f} ms, p99 {outcome.percentile(0.99):.0f} ms, max {outcome.percentile(1):.0f} ms",
    )
    add_up(world, gateway)


def never_ready(world):
    """A new process that answers, and is not ready within 30 s."""
    gateway = new_gateway(world, "world")
    gateway.start()
    load = Load(gateway, world.rate)
    old = gateway.process
    began = time.monotonic()
    new = gateway.run_upgrade([sys.executable, SUCCESSOR, "unready"])
    code = new.wait(40)
    seconds = time.monotonic() - began
    world.promise(
        "a new process that is not ready in 30 s is cut off",
        code == 1 and 29 < seconds < 33 and goes_on(gateway, old),
        f"code {code} after {seconds:.1f} s",
    )
    outcome = load.stop()
    faults = outcome.faults()
    world.promise("no request fails meanwhile", not faults, faults or outcome.summary())


def refused_upgrades(world):
    """Nobody serves, no socket is configured, another user."""
    gateway = new_gateway(world, "world")
    new = gateway.run_upgrade()
    code = new.wait(10)
    world.promise("--upgrade where nobody serves ends with 1", code == 1, f"code {code}")

    gateway.start()
    text = gateway.file.read_text()
    without = "\n".join(line for line in text.splitlines() if not line.startswith("upgrade_socket"))
    gateway.file.write_text(without)
    code = gateway.run_upgrade().wait(10)
    world.promise(
        "--upgrade without a socket in the configuration ends with 1",
        code == 1 and goes_on(gateway, gateway.process),
        f"code {code}",
    )
    gateway.kill()
    gateway.start()
    old = gateway.process
    os.kill(old.pid, signal.SIGQUIT)
    time.sleep(1)
    world.promise("SIGQUIT without a socket changes nothing", goes_on(gateway, old), f"{gateway.messages().splitlines()[-1][:160]}")
    gateway.kill()

    # A socket file that is left over is replaced; a living one is not.
    gateway.file.write_text(text)
    left = socket.socket(socket.AF_UNIX)
    gateway.socket.unlink(missing_ok=True)
    left.bind(str(gateway.socket))
    left.close()
    gateway.start()
    mode = gateway.socket.stat().st_mode & 0o777
    world.promise("a stale socket file is replaced, mode 0600", goes_on(gateway, gateway.process) and mode == 0o600, f"{mode:o}")
    other = start([gateway.program, "run", "-c", gateway.file], gateway.work / "second.log")
    code = other.wait(10)
    world.promise(
        "a second process does not take a living socket",
        code == 1 and goes_on(gateway, gateway.process) and upgrade(gateway, by_signal=False)[2] == 0,
        f"code {code}: {(gateway.work / 'second.log').read_text().strip().splitlines()[-1][:160]}",
    )

    if os.getuid() != 0 or not shutil.which("setpriv"):
        world.skip("another user", "needs root and setpriv")
        return
    old = gateway.process
    nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    for path, mode in ((gateway.work, 0o755), (world.work, 0o755), (world.root, 0o755), (gateway.around.work, 0o755)):
        path.chmod(mode)
    for name in ("secret", "operator", "seal"):
        (gateway.work / name).chmod(0o644)
    code = gateway.run_upgrade([*nobody, gateway.program]).wait(10)
    last = gateway.messages().splitlines()[-1][:200]
    world.promise("another user cannot connect", code == 1 and goes_on(gateway, old), f"code {code}: {last}")
    # And would get nothing if it could.
    gateway.socket.parent.chmod(0o755)
    gateway.socket.chmod(0o666)
    before = len(gateway.messages().splitlines())
    code = gateway.run_upgrade([*nobody, sys.executable, SUCCESSOR, "any"]).wait(10)
    said = " ".join(gateway.messages().splitlines()[before:])
    world.promise(
        "the uid of another user is refused at the socket",
        code == 1 and "welcome" not in said and goes_on(gateway, old),
        f"code {code}: {said[:220]}",
    )
    gateway.kill()

    # Root does not take from others: they would decide what root serves.
    for path in (gateway.work, gateway.folder, gateway.socket.parent):
        os.chown(path, 65534, 65534)
    for path in (*gateway.folder.iterdir(), *(gateway.work / name for name in ("secret", "operator", "seal"))):
        os.chown(path, 65534, 65534)
        path.chmod(0o600)
    gateway.socket.parent.chmod(0o700)
    gateway.socket.unlink(missing_ok=True)
    gateway.log.chmod(0o666)
    gateway.start(before=nobody)
    # setpriv runs the gateway in its own place.
    old = gateway.process
    code = gateway.run_upgrade().wait(10)
    last = gateway.messages().splitlines()[-1][:200]
    world.promise("root takes from nobody else", code == 1 and goes_on(gateway, old), f"code {code}: {last}")


SCENARIOS = [bad_upgrades, never_ready, refused_upgrades]
