"""kill -9 at random moments, with a snapshot every second."""

import json
import random
import statistics
import time

from gateway import Gateway, metric
from load import Load, described

# A snapshot has what was there when it began; it is known to be there when the metric says so.
ALLOWANCE = 0.1


def may_be_lost(line, kills):
    """Whether a kill came between the login and the next snapshot."""
    return any(line["since"] < after and before < line["t1"] and saved < line["since"] for before, after, saved in kills)


def kill(world):
    rounds = world.rounds or 100
    gateway = Gateway(world.surroundings())
    gateway.start()
    load = Load(gateway, world.rate, restarts=True, users=64, websockets=0, streams=0, logins=0.12, logouts=0.1, h2=False)
    times, kills = [], []
    for number in range(rounds):
        time.sleep(random.uniform(0.05, 2.0 if number % 5 == 0 else 0.6))
        # Logins that were answered before the last snapshot began must be there afterwards.
        text = gateway.metrics()
        saved = metric(text, "wxgate_snapshot_last_success_timestamp_seconds")
        took = metric(text, "wxgate_snapshot_duration_seconds")
        began = time.time()
        gateway.kill()
        # A client may read a response a moment after the process that sent it was killed.
        kills.append((began, time.time() + ALLOWANCE, saved - took - ALLOWANCE if saved else 0))
        times.append(gateway.start())
        if number % 10 == 9:
            load.check(10)
    outcome = load.stop()
    (world.work / "kills.json").write_text(json.dumps(kills))
    # A request that the kill has broken has no response; what came of it is unknown.
    struck = [
        line
        for line in outcome.problems
        if any(line["t0"] <= after and before <= line["t1"] for before, after, _ in kills)
    ]
    outcome.problems = [line for line in outcome.problems if line not in struck]
    # It may have been processed twice, if the client sent it again on a new connection.
    for name in ("duplicated", "leaked", "wrong"):
        lines = getattr(outcome, name)
        setattr(outcome, name, [line for line in lines if not line["repeats"] and line not in struck])
    # Until the sessions are loaded, the operator gets 503.
    starting = lambda line: any(after - ALLOWANCE < line["t1"] < after + 2 for _, after, _ in kills)
    outcome.wrong = [line for line in outcome.wrong if line["kind"] != "revoke" or line["status"] != 503 or not starting(line)]
    lost = [line for line in outcome.lost if not may_be_lost(line, kills)]
    young = len(outcome.lost) - len(lost)
    outcome.lost = lost
    faults = outcome.faults()
    world.promise(
        "no acknowledged logout or revocation comes back",
        not outcome.revived,
        described(outcome.revived) or f"{rounds} kills: {outcome.summary()}",
    )
    world.promise(
        "nothing else fails",
        not faults,
        faults or f"{len(struck)} requests broken by a kill ({described(struck)[:120]}); {young} sessions younger than the last snapshot lost",
    )
    usual = times[1:] or times
    world.promise(
        "it is ready again in 500 ms plus the load",
        statistics.median(usual) < 0.5 and max(usual) < 1.5,
        f"from exec to ready: median {1000 * statistics.median(usual):.0f} ms, max {1000 * max(usual):.0f} ms",
    )
    bad = list(gateway.folder.glob("*.bad"))
    failures = gateway.metric("wxgate_snapshot_failures_total", stage="load")
    world.promise("no file was bad", not bad and not failures, f"{[file.name for file in bad]}, {failures:.0f} failed loads")


SCENARIOS = [kill]
