"""The disk of the snapshot is full, read-only, slow, or fails: what does not need it goes on."""

import os
import shutil
import signal
import subprocess
import time

from gateway import HERE, Gateway
from load import Load
from processes import wait_until

# Requests while the disk is bad, for so long.
BAD = 4


def mounted(world, size_mib=16):
    """A file system of its own; `None` without root."""
    if os.getuid() != 0 or not all(map(shutil.which, ("mount", "mkfs.ext4", "losetup"))):
        return None
    image, folder = world.work / "disk.img", world.work / "disk"
    folder.mkdir()
    with open(image, "wb") as file:
        file.truncate(size_mib << 20)
    for command in (["mkfs.ext4", "-q", "-m", "0", image], ["mount", "-o", "loop", image, folder]):
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
        if done.returncode:
            print(done.stderr)
            return None
    return folder


def unmount(folder):
    subprocess.run(["umount", "-l", folder], capture_output=True)


def spoiler(world, gateway_folder):
    """The environment of a process whose disk can be made to fail, and a function that does it.

    `None` without a compiler.
    """
    if shutil.which("cc") is None:
        return None, None
    library, control = world.work / "disk.so", world.work / "spoil"
    command = ["cc", "-shared", "-fPIC", "-O2", "-o", library, HERE / "disk.c", "-ldl"]
    subprocess.run([str(word) for word in command], check=True)

    def spoil(text=None):
        if text is None:
            control.unlink(missing_ok=True)
        else:
            next_one = control.with_suffix(".next")
            next_one.write_text(text)
            next_one.replace(control)

    return {"LD_PRELOAD": library, "DISK": control, "DISK_BELOW": f"{gateway_folder}/"}, spoil


def survive(world, gateway, environment, title, spoil, heal, may_hang=False):
    """What must hold while the disk is bad, and afterwards. `may_hang`: calls to it may wait."""
    load = Load(gateway, world.rate / 2, logouts=0, revocations=0, name="".join(filter(str.isalnum, title)))
    time.sleep(1.5)
    durable = [gateway.token("durable") for _ in range(3)]
    failures = gateway.metric("wxgate_snapshot_failures_total", stage="save")
    saved = gateway.metric("wxgate_snapshot_last_success_timestamp_seconds")
    spoil()
    began = time.monotonic()
    refused, acknowledged, answers, times = [], [], [], []
    # Until the first is refused, and then some more; a full disk has room in the last block.
    while time.monotonic() - began < (25 if may_hang else 30):
        token = gateway.token(f"leaver{len(answers)}")
        at = time.monotonic()
        status, body = gateway.logout(token)
        times.append(time.monotonic() - at)
        answers.append(status)
        (acknowledged if status == 204 else refused).append(token)
        if status != 204 and b"store_unavailable" not in body:
            world.promise(f"{title}: a refused logout says store_unavailable", False, body[:100])
        if time.monotonic() - began > BAD and len(refused) >= 3:
            break
        time.sleep(0.02 if not refused else 0.3)
    ended = {gateway.use(token) for token in refused + acknowledged}
    world.promise(
        f"{title}: a logout is 503, or 204 and durable; its session has ended in any case",
        (bool(refused) or may_hang) and set(answers) <= {204, 503} and ended == {401},
        f"{answers.count(503)} x 503, {answers.count(204)} x 204, the slowest after {max(times):.1f} s; then {ended}",
    )
    counted = gateway.metric("wxgate_snapshot_failures_total", stage="save") - failures
    if not may_hang:
        world.promise(f"{title}: failed saves are counted and logged", counted > 0 and gateway.errors(), f"{counted:.0f}: {(gateway.errors() or [''])[-1][:200]}")
    world.promise(f"{title}: it stays ready", gateway.ready() == 200, "")
    heal()
    began = time.monotonic()
    again = wait_until(lambda: gateway.logout(gateway.token("again"))[0] == 204, 15, 0.1)
    # After a slow save the next one waits ten times as long.
    within = 0 if may_hang else 30
    newer = lambda: gateway.metric("wxgate_snapshot_last_success_timestamp_seconds") > saved + 0.001
    recovered = wait_until(newer, within, 0.1) is not None
    world.promise(
        f"{title}: it recovers by itself",
        again is not None and (recovered or may_hang),
        f"logouts after {again if again is None else round(again, 1)} s, a snapshot after {time.monotonic() - began:.1f} s"
        if recovered
        else f"logouts after {again if again is None else round(again, 1)} s",
    )
    outcome = load.stop()
    faults = outcome.faults()
    world.promise(
        f"{title}: requests and logins go on",
        not faults and outcome.percentile(1) < 2000,
        f"{faults or outcome.summary()}; p99 {outcome.percentile(0.99):.0f} ms, max {outcome.percentile(1):.0f} ms",
    )
    # What was refused is written later; what was acknowledged was written before.
    time.sleep(2.5)
    gateway.kill()
    gateway.start(environment)
    found = [gateway.use(token) for token in acknowledged], [gateway.use(token) for token in refused]
    kept = [gateway.use(token) for token in durable]
    world.promise(
        f"{title}: after a kill -9 no session has come back",
        set(found[0]) | set(found[1]) <= {401} and (kept == [200] * 3 or not recovered),
        f"204: {set(found[0])}, 503: {set(found[1])}, others: {set(kept)}",
    )


def full(world):
    folder = mounted(world)
    if folder is None:
        return world.skip("a full disk", "needs root, a loop device and mkfs.ext4")
    filler = folder / "filler"

    def spoil():
        with open(filler, "wb", buffering=0) as file:
            size = 1 << 20
            while size >= 512:
                try:
                    file.write(b"a" * size)
                except OSError:
                    size //= 2

    try:
        gateway = Gateway(world.surroundings(), folder=folder / "state", session="max_per_user = 0")
        gateway.start()
        survive(world, gateway, None, "a full disk", spoil, filler.unlink)
        # Acknowledged on a full disk, and killed on it.
        spoil()
        tokens = [gateway.token("killed") for _ in range(5)]
        answers = [(gateway.logout(token)[0], token) for token in tokens]
        gateway.kill()
        gateway.start()
        back = [token for status, token in answers if status == 204 and gateway.use(token) != 401]
        world.promise("a full disk: it starts, and what was acknowledged on it is durable", not back, [status for status, _ in answers])
        usual = gateway.login("user")[0], gateway.ready()
        filler.unlink()
        took = wait_until(lambda: gateway.logout(gateway.token("again"))[0] == 204, 15, 0.1)
        world.promise("a full disk at the start: it recovers by itself", usual == (200, 200) and took is not None, f"login, ready: {usual}; 204 after {took} s")
        gateway.kill()
    finally:
        unmount(folder)


def read_only(world):
    folder = mounted(world)
    if folder is None:
        return world.skip("a read-only disk", "needs root, a loop device and mkfs.ext4")
    try:
        gateway = Gateway(world.surroundings(), folder=folder / "state", session="max_per_user = 0")
        gateway.start()
        kept = gateway.token("kept")

        def attribute(sign):
            """Makes even open files read-only; a remount is refused as long as there are any."""
            for path in (*gateway.folder.iterdir(), gateway.folder):
                subprocess.run(["chattr", f"{sign}i", path], check=True, capture_output=True)

        survive(world, gateway, None, "a read-only disk", lambda: attribute("+"), lambda: attribute("-"))
        time.sleep(1.5)
        gateway.terminate()
        subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
        try:
            gateway.start(within=5)
            started = True
        except AssertionError as failure:
            started = str(failure).strip().splitlines()[-1][:300]
        if started is not True:
            world.promise("a disk that is read-only at the start", "cannot" in started, f"it does not start, and says why: {started}")
        else:
            answers = gateway.use(kept), gateway.login("user")[0], gateway.logout(gateway.token("leaver"))[0]
            subprocess.run(["mount", "-o", "remount,rw", folder], check=True)
            took = wait_until(lambda: gateway.logout(gateway.token("again"))[0] == 204, 15, 0.1)
            world.promise(
                "a disk that is read-only at the start: sessions are there, and it recovers",
                answers == (200, 200, 503) and took is not None,
                f"use, login, logout: {answers}; then 204 after {took} s",
            )
        gateway.kill()
    finally:
        subprocess.run(f"chattr -R -i {folder}", shell=True, capture_output=True)
        unmount(folder)


def slow(world):
    gateway = Gateway(world.surroundings(), session="max_per_user = 0")
    environment, spoil = spoiler(world, gateway.folder)
    if environment is None:
        return world.skip("a slow or failing disk", "needs a C compiler")
    gateway.start(environment)
    survive(world, gateway, environment, "fsync takes 10 s", lambda: spoil("s 10000 0"), spoil, may_hang=True)
    survive(world, gateway, environment, "fsync fails (EIO)", lambda: spoil("s 0 5"), spoil)
    survive(world, gateway, environment, "writes fail (EROFS)", lambda: spoil("wor 0 30"), spoil)
    gateway.kill()


def frozen(world):
    """The file system stands still (fsfreeze): every call to it waits."""
    folder = mounted(world)
    if folder is None or shutil.which("fsfreeze") is None:
        return world.skip("a disk that hangs", "needs root, a loop device and fsfreeze")
    freeze = lambda: subprocess.run(["fsfreeze", "-f", folder], check=True)
    thaw = lambda: subprocess.run(["fsfreeze", "-u", folder], capture_output=True)
    try:
        gateway = Gateway(world.surroundings(), folder=folder / "state", session="max_per_user = 0")
        gateway.start()
        survive(world, gateway, None, "a disk that hangs", freeze, thaw, may_hang=True)
        token = gateway.token("last")
        freeze()
        at = time.monotonic()
        gateway.process.send(signal.SIGTERM)
        time.sleep(3)
        hangs = gateway.process.poll() is None
        thaw()
        code = gateway.process.wait(30)
        took = time.monotonic() - at
        gateway.start()
        world.promise(
            "SIGTERM while the disk hangs for 3 s: it ends when the snapshot is written",
            code == 0 and hangs and gateway.use(token) == 200,
            f"code {code} after {took:.1f} s; the session of the last login: {gateway.use(token)}",
        )
    finally:
        thaw()
        unmount(folder)


SCENARIOS = [full, read_only, slow, frozen]
