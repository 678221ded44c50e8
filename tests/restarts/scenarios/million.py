"""A million sessions: how long they take to be saved, loaded and handed over, under load."""

import os
import statistics
import threading
import time

from load import Load, fill, milliseconds
from processes import wait_until
from scenarios.upgrades import new_gateway, upgrade

# Seconds of a round in which the latency is measured.
ROUND = 2


class Watch:
    """Notes when a snapshot is being written: then there is a file beside it."""

    def __init__(self, gateway):
        self.file, self.windows, self.is_running = f"{gateway.snapshot}.new", [], True
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        began = None
        while self.is_running:
            is_there = os.path.exists(self.file)
            if is_there and began is None:
                began = time.time()
            if not is_there and began is not None:
                self.windows.append((began, time.time()))
                began = None
            time.sleep(0.004)

    def stop(self):
        self.is_running = False
        self.thread.join()
        return self.windows


def rounds_of(lines, windows):
    """p99 of each round of two seconds: those that a save overlaps, and those that are quiet."""
    begin, end = lines[0]["t0"] + 1, lines[-1]["t1"]
    quiet, during = [], []
    # Rounds begin with the saves, so that each has the same share of one.
    starts = [at for at, _ in windows if at + ROUND < end]
    at = begin
    while at + ROUND < end:
        if all(to + 0.3 < at or at + ROUND + 0.3 < since for since, to in windows):
            starts.append(at)
            at += ROUND
        else:
            at += 0.1
    for start in starts:
        times = sorted(milliseconds(line) for line in lines if start <= line["t0"] < start + ROUND)
        if len(times) >= 100:
            is_save = any(since < start + ROUND and start < to for since, to in windows)
            (during if is_save else quiet).append(times[int(len(times) * 0.99)])
    return quiet, during


def shown(values):
    if not values:
        return "none"
    return f"median {statistics.median(values):.1f} ms ({min(values):.1f} to {max(values):.1f}, {len(values)} rounds)"


def million(world):
    count = world.sessions
    gateway = new_gateway(
        world, "world", session=f"capacity = {count + 100_000}\nmax_per_user = 10", snapshot='interval = "5s"'
    )
    text = gateway.file.read_text()
    gateway.file.write_text(text.replace('interval = "5s"', 'interval = "24h"'))
    gateway.start()
    began = time.monotonic()
    sample = fill(gateway, count)
    seconds = time.monotonic() - began
    sessions = gateway.metric("wxgate_sessions")
    world.promise(
        f"{count} sessions by logging in",
        sessions == count,
        f"{sessions:.0f}, {count / seconds:.0f} logins/s, RSS {gateway.process.memory() // 1024} MiB",
    )
    code, seconds = gateway.terminate(within=120)
    size = gateway.snapshot.stat().st_size
    world.promise("SIGTERM saves them", code == 0, f"exit {code} after {seconds:.2f} s, {size >> 20} MiB")

    gateway.file.write_text(text)
    seconds = gateway.start(within=120)
    found = {gateway.use(token) for token in sample[:200]}
    world.promise(
        "a start loads them",
        found == {200} and gateway.metric("wxgate_sessions") == count,
        f"ready after {seconds:.2f} s, RSS {gateway.process.memory() // 1024} MiB",
    )

    watch = Watch(gateway)
    load = Load(gateway, world.rate, websockets=0, streams=0, slow=0.3, users=16)
    time.sleep(world.rounds or 90)
    durations = gateway.metric("wxgate_snapshot_duration_seconds")
    windows = watch.stop()
    outcome = load.stop()
    faults = outcome.faults()
    quiet, during = rounds_of(outcome.lines, windows)
    saves = [to - since for since, to in windows]
    world.promise("no request fails while they are saved", not faults and bool(windows), faults or outcome.summary())
    world.promise(
        "requests do not notice a save",
        bool(during) and bool(quiet) and statistics.median(during) <= max(quiet) * 1.2 + 1,
        f"p99 in rounds of {ROUND} s: quiet {shown(quiet)}, with a save {shown(during)}; {len(saves)} saves of "
        f"{min(saves, default=0):.2f} to {max(saves, default=0):.2f} s (the metric says {durations:.2f} s)",
    )
    gaps = [later[0] - earlier[1] for earlier, later in zip(windows, windows[1:])]
    world.promise(
        "the next save begins no sooner than ten times the duration of the last",
        all(gap > 8 * took for gap, took in zip(gaps, saves)),
        f"gaps of {', '.join(f'{gap:.1f}' for gap in gaps[:5])} s",
    )

    took, drained, code = upgrade(gateway, by_signal=True)
    found = {gateway.use(token) for token in sample[:200]}
    world.promise(
        "an upgrade without requests hands them over",
        code == 0 and found == {200},
        f"serves after {took:.2f} s, the old process ended after {drained:.2f} s",
    )

    load = Load(gateway, world.rate, name="overlap", websockets=0, streams=0, slow=0.3, users=16)
    time.sleep(2)
    began = time.time()
    took, drained, code = upgrade(gateway, by_signal=True)
    ended = time.time()
    outcome = load.stop()
    faults = outcome.faults()
    overlap = sorted(milliseconds(line) for line in outcome.lines if began <= line["t0"] <= began + took)
    before = sorted(milliseconds(line) for line in outcome.lines if line["t0"] < began)
    found = {gateway.use(token) for token in sample[200:400]}
    world.promise(
        "an upgrade hands them over, and no request fails",
        not faults and code == 0 and found == {200},
        faults
        or f"serves after {took:.2f} s, the old process ended after {drained:.2f} s; p99 {at(before):.1f} ms before, "
        f"{at(overlap):.1f} ms meanwhile (max {max(overlap):.0f} ms); RSS {gateway.process.memory() // 1024} MiB",
    )
    leaver = sample[400]
    status = gateway.logout(leaver)[0]
    gateway.kill()
    seconds = gateway.start(within=120)
    found = {gateway.use(token) for token in sample[401:600]}
    world.promise(
        "kill -9 and a start",
        (status, gateway.use(leaver)) == (204, 401) and found == {200},
        f"ready after {seconds:.2f} s; logged out before: 401",
    )


def at(times, share=0.99):
    return times[min(len(times) - 1, int(len(times) * share))] if times else 0.0


SCENARIOS = [million]
