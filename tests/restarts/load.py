"""Starts the load, and joins what the clients sent with what the service got."""

import json
import random
import re
import socket
import subprocess
import sys
import threading
from pathlib import Path

from gateway import HERE, OPERATOR
from processes import start

# Requests that are forwarded.
FORWARDED = ("use",)
# Logins that are sent in one piece; a connection ends after 1000 requests.
AT_ONCE = 500


class Load:
    """`rate` in requests a second. `restarts`: a refused connection is tried again."""

    def __init__(self, gateway, rate, users=24, name="clients", websockets=2, streams=2, restarts=False, **more):
        around = gateway.around
        self.gateway, self.log = gateway, around.work / f"{name}.jsonl"
        # The sandbox takes what follows a "-" as a part of the code.
        named = lambda prefix, count: {f"{name}{prefix}{n}": None for n in range(count)}
        groups = {"users": named("u", users), "websockets": named("w", websockets), "streams": named("s", streams)}
        self.openids = {}
        for group in groups.values():
            for user in group:
                group[user] = self.openids[user] = around.openid(user)
        specification = {
            "port": gateway.port,
            "admin": gateway.admin,
            "operator": OPERATOR,
            "log": str(self.log),
            "rate": rate,
            "within": 20,
            "logins": 0.06,
            "logouts": 0.05,
            "revocations": 0.003,
            "restarts": restarts,
        }
        self.log.touch()
        file = around.work / f"{name}.json"
        file.write_text(json.dumps(specification | groups | more))
        self.errors = around.work / f"{name}.log"
        self.process = start(
            [sys.executable, HERE / "client.py", file],
            self.errors,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def command(self, text):
        popen = self.process.popen
        popen.stdin.write(f"{text}\n".encode())
        popen.stdin.flush()
        line = popen.stdout.readline()
        assert line, f"the load has ended:\n{self.errors.read_text()[-3000:]}"
        return json.loads(line)

    def check(self, most=20):
        return self.command(f"check {most}")

    def stop(self):
        """Tries all tokens for the last time, ends, and returns what has happened."""
        self.command("pause")
        self.command("check 200")
        self.command("stop")
        self.process.wait(10)
        return Outcome(self.log, self.gateway.around.requests, self.openids)


class Outcome:
    def __init__(self, log, requests, openids):
        self.lines = [json.loads(line) for line in log.read_text().splitlines()]
        seen = {}
        for line in requests.read_text().splitlines():
            identity, _, path, user, *_ = line.split(" ")
            seen.setdefault(identity, []).append((path, user))
        self.problems = [line for line in self.lines if line["problem"]]
        answered = [line for line in self.lines if not line["problem"] and "expect" in line]
        wrong = [line for line in answered if line["status"] != line["expect"]]
        self.lost = [line for line in wrong if line["kind"] in ("use", "view") and line["status"] == 401]
        self.revived = [line for line in wrong if line["kind"] == "dead" and line["status"] < 300]
        self.wrong = [line for line in wrong if line not in self.lost and line not in self.revived]
        # The service has them once if there is a response, and never more often.
        self.duplicated = [line for line in self.lines if len(seen.get(line["id"], ())) > 1]
        self.unseen = [line for line in answered if line["kind"] in FORWARDED and line["status"] == 200]
        self.unseen = [line for line in self.unseen if line["id"] not in seen]
        self.leaked = [line for line in answered if line["status"] == 401 and line["id"] in seen]
        self.foreign = [
            line for line in self.lines if any(user != openids[line["user"]] for _, user in seen.get(line["id"], ()))
        ]
        self.count = len(self.lines)
        self.repeats = sum(line.get("repeats", 0) for line in self.lines)
        self.cut = [line for line in self.lines if "cut" in line]
        self.refused = sum(line.get("refused", 0) for line in self.lines)

    def of(self, kind):
        return [line for line in self.lines if line["kind"] == kind]

    def percentile(self, share, kinds=("use", "dead", "view", "login", "logout", "revoke")):
        """Milliseconds, of requests that did not ask for a delay."""
        times = sorted(milliseconds(line) for line in self.lines if line["kind"] in kinds and not line.get("wait"))
        return times[min(len(times) - 1, int(len(times) * share))] if times else 0.0

    def faults(self, **allowed):
        """What went wrong, in words; empty if nothing did."""
        found = []
        for name in ("problems", "wrong", "lost", "revived", "duplicated", "unseen", "leaked", "foreign"):
            lines = getattr(self, name)
            if lines and name not in allowed:
                found.append(f"{len(lines)} {name}: {described(lines)}")
        return "; ".join(found)

    def summary(self):
        kinds = {kind: len(self.of(kind)) for kind in ("login", "logout", "revoke", "dead")}
        return (
            f"{self.count} requests, of them {kinds['login']} logins, {kinds['logout']} logouts, "
            f"{kinds['revoke']} revocations, {kinds['dead']} with ended tokens; "
            f"{self.repeats} repeated after a kept connection had closed, {self.refused} refused"
        )


def fill(gateway, count):
    """Logs in so many users. Returns some of their tokens."""
    numbers, kept, failed = iter(range(0, count, AT_ONCE)), [], []
    lock = threading.Lock()

    def client():
        while True:
            with lock:
                first = next(numbers, None)
            if first is None:
                return
            connection = socket.create_connection(("127.0.0.1", gateway.port))
            message, tokens, received = b"", [], b""
            for number in range(first, min(first + AT_ONCE, count)):
                body = b'{"code":"user-fill%d-0"}' % number
                message += b"POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                message += b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
            connection.sendall(message)
            wanted = min(AT_ONCE, count - first)
            while received.count(b"HTTP/1.1 ") < wanted or not received.endswith(b"}\n"):
                data = connection.recv(1 << 18)
                if not data:
                    break
                received += data
            connection.close()
            tokens = re.findall(rb'"token":"([^"]{43})"', received)
            if len(tokens) != wanted:
                failed.append(received[:300])
                return
            kept.extend(token.decode() for token in random.sample(tokens, max(1, min(50, 1000 * AT_ONCE // count))))

    threads = [threading.Thread(target=client) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed, failed[0]
    return kept


def milliseconds(line):
    return 1000 * (line["t1"] - line["t0"])


def described(lines):
    """Why requests failed, with counts and one example."""
    counts = {}
    for line in lines:
        why = f"{line['kind']} {line['problem'] or line.get('status')}"
        counts.setdefault(why, []).append(line)
    words = []
    for why, same in sorted(counts.items(), key=lambda item: -len(item[1]))[:4]:
        words.append(f"{len(same)} x {why} ({same[0]['id']} at {same[0]['t0']:.3f})")
    return ", ".join(words)
