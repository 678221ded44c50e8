"""Rotation of the signing key under load, in real time: nobody is refused; and that a rotation done
wrong is refused, or the first would prove nothing."""

import http.client
import json
import threading
import time
from collections import Counter
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.request import ProxyHandler, build_opener

from checks import running
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from gateway import AUDIENCE, ISSUER, Gateway, fetch, free_port, wait_until
from tokens import Key, claims, claims_of, decode, header_of

# In seconds. The keys say `max-age=300`.
CACHED = 300
LIFETIME = 10
# For as long the examples do not ask again after they have asked.
COOLDOWN = 30
# Of each service; the pause is between two requests of one session.
SESSIONS = 5
PAUSE = 0.4


class Strict:
    """A service that asks for the keys every five minutes, and never in between: the worst that a
    rotation must cope with, as the examples also ask when they see an unknown kid."""

    def __init__(self, port, jwks_url):
        self.url, self.keys, self.expiry, self.fetched = jwks_url, {}, 0.0, 0
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                good = outer.verifies(self.headers["X-Wxgate-Jwt"] or "")
                self.send_response(200 if good else 401)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def known(self, kid):
        with self.lock:
            if time.monotonic() >= self.expiry:
                with build_opener(ProxyHandler({})).open(self.url, timeout=5) as response:
                    found = json.load(response)["keys"]
                self.keys = {key["kid"]: key for key in found}
                self.expiry = time.monotonic() + CACHED
                self.fetched += 1
            return self.keys.get(kid)

    def verifies(self, token):
        try:
            content, signature = token.rsplit(".", 1)
            key, said = self.known(header_of(token)["kid"]), claims_of(token)
            x, y = (int.from_bytes(decode(key[name]), "big") for name in "xy")
            r, s = (int.from_bytes(part, "big") for part in (decode(signature)[:32], decode(signature)[32:]))
            public = ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
            public.verify(utils.encode_dss_signature(r, s), content.encode(), ec.ECDSA(hashes.SHA256()))
            return said["aud"] == AUDIENCE and said["iss"] == ISSUER and said["exp"] > time.time()
        except (ValueError, KeyError, TypeError, InvalidSignature):
            return False

    def close(self):
        self.server.shutdown()
        self.server.server_close()


class Load:
    """Requests of one session to one service, one after another, until it is stopped."""

    def __init__(self, gateway, name, session):
        self.gateway, self.name, self.session = gateway, name, session
        # Moment and outcome of each request.
        self.outcomes, self.stopped = [], threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.gateway.port, timeout=30)
        while not self.stopped.wait(PAUSE):
            began = time.monotonic()
            try:
                connection.request("GET", f"/{self.name}/me", headers=self.session)
                response = connection.getresponse()
                response.read()
                outcome = response.status
            except (OSError, http.client.HTTPException) as failure:
                connection.close()
                outcome = type(failure).__name__
            self.outcomes.append((began, outcome))
        connection.close()

    def stop(self):
        self.stopped.set()
        self.thread.join()


def between(loads, begin, end=float("inf")):
    """How often each outcome was had by requests that began in this time, by service."""
    found = {}
    for load in loads:
        counts = found.setdefault(load.name, Counter())
        counts.update(outcome for moment, outcome in list(load.outcomes) if begin <= moment < end)
    return found


def refused(counts):
    return {name: dict(found) for name, found in counts.items() if set(found) - {200}}


def kids(gateway):
    return sorted(key["kid"] for key in gateway.jwks()[1])


def run(world, services):
    services = [service for service in services if "ES256" in service.algorithms]
    first, second, unpublished = (Key(world.work) for _ in range(3))
    with ExitStack() as stack:
        gateways, ports, loads = [], {}, []
        for header in sorted({service.header for service in services} | {"X-Wxgate-Jwt"}):
            own = {service.name: free_port() for service in services if service.header == header}
            strict = {"strict": free_port()} if header == "X-Wxgate-Jwt" else {}
            gateway = Gateway(
                world.wxgate,
                world.work / header,
                first,
                {**own, **strict},
                hook=world.hook,
                lifetime=f"{LIFETIME}s",
                header=header,
            )
            stack.callback(gateway.close)
            gateways.append((gateway, header))
            for port in strict.values():
                judge = Strict(port, gateway.jwks_url)
                stack.callback(judge.close)
            for service in services:
                if service.header == header:
                    at = stack.enter_context(running(world, service, gateway.jwks_url, own[service.name]))
                    ports[service.name] = (service, at)
            for number in range(SESSIONS):
                session = gateway.login(f"user{number}")
                loads += [Load(gateway, name, session) for name in (*own, *strict)]
        stack.callback(lambda: [load.stop() for load in loads])

        def reload(key, **more):
            for gateway, header in gateways:
                gateway.reload(key, lifetime=f"{LIFETIME}s", header=header, **more)
            return time.monotonic()

        def signer():
            gateway = gateways[-1][0]
            return header_of(gateway.token(gateway.login()))["kid"]

        def warned():
            return all("do not know this one yet" in gateway.log.read_text() for gateway, _ in gateways)

        def published(text, *keys):
            found = [kids(gateway) for gateway, _ in gateways]
            wanted = sorted(key.kid for key in keys)
            world.promise(text, all(one == wanted for one in found), f"{len(found[0])} keys")

        # Every service has fetched the keys before there is another one: its copy is as old as can be.
        served = lambda: all(found[200] >= SESSIONS for found in between(loads, 0).values())
        wait_until(served, 60)
        began = time.monotonic()
        published("at first one key is published", first)
        world.promise("and signs", signer() == first.kid)
        reload(first, next_keys=[second])
        published("then the next one, which does not sign", first, second)
        world.promise("the first one still signs", signer() == first.kid)
        time.sleep(CACHED + 5)
        reload(second, previous_keys=[first])
        published("after five minutes it signs, and the first one is still published", first, second)
        world.promise("the second one signs", signer() == second.kid)
        time.sleep(LIFETIME + 1)
        reload(second)
        published("after a lifetime the first one is removed", second)
        # So long that each may ask again when its copy of the keys has expired before.
        time.sleep(COOLDOWN + 5)
        end = time.monotonic()
        counts = between(loads, began, end)
        for name, found in counts.items():
            total = sum(found.values())
            enough = total > (end - began) / PAUSE * SESSIONS / 3
            text = f"{name}: no request is refused in {end - began:.0f} s"
            world.promise(text, enough and set(found) == {200}, f"{total} requests, {dict(found)}")
        fetched = f"{judge.fetched} times"
        world.promise("the strict service asks for the keys every five minutes only", judge.fetched == 2, fetched)

        world.promise("the gateway does not warn of it", not warned())

        # Wrong: a key that was never published. An unknown kid has made the examples ask just before.
        for service, port in ports.values():
            strange = Key(world.work).token(claims(ISSUER, AUDIENCE))
            fetch(port, "/me", headers=[service.carry(strange)])
        wrong = reload(unpublished, previous_keys=[second])
        world.promise("the gateway warns of a key that was never published", warned())
        time.sleep(LIFETIME)
        counts = between(loads, wrong)
        for name, found in counts.items():
            text = f"{name}: a key that was never published is refused for a while"
            world.promise(text, found[401] > 0, f"{sum(found.values())} requests, {dict(found)}")
        recovered = lambda: not refused(
            {name: found for name, found in between(loads, time.monotonic() - 3).items() if name != "strict"}
        )
        waited = wait_until(recovered, 60, 1)
        world.promise("the examples fetch it", waited is not None, waited and f"within {waited + LIFETIME:.0f} s")
        found = between(loads, time.monotonic() - 3)["strict"]
        world.promise("the strict service still refuses it", found[401] > 0 and found[200] == 0, dict(found))
