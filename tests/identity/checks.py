"""What each service has to do: alone, with a JWKS of the run's own, and behind the gateway."""

import json
from contextlib import contextmanager

import gateway as programs
from gateway import AUDIENCE, ISSUER, Gateway, fetch, free_port, wait_until
from tokens import Key, KeyServer, bad_tokens, claims

# Keys that the identity is signed with are fetched again for an unknown kid; the longest wait for it.
REFETCH = 60
SPELLINGS = ("X-Wxgate-Jwt", "x-wxgate-jwt", "X_Wxgate_Jwt", "X-WXGATE_JWT")


@contextmanager
def running(world, service, jwks_url, port=None):
    """Starts the service; its port."""
    port = port or free_port()
    log = world.work / f"{service.name}.log"
    process = programs.start(
        service.command,
        log,
        service.folder,
        PORT=port,
        WXGATE_JWKS_URL=jwks_url,
        WXGATE_ISSUER=ISSUER,
        WXGATE_AUDIENCE=AUDIENCE,
        **service.environment,
    )
    try:
        programs.wait_for(port, process, log)
        yield port
    finally:
        programs.stop(process)


def ask(port, headers=(), path="/me"):
    """Status and JSON; the body as text if it is no JSON."""
    status, _, body = fetch(port, path, headers=headers)
    try:
        return status, json.loads(body)
    except ValueError:
        return status, body.decode(errors="replace")[:200]


def identity(openid, unionid=None, user_id=None, app_id=programs.APP):
    return {"app_id": app_id, "openid": openid, "unionid": unionid, "user_id": user_id}


def accepted(port, service, token):
    return ask(port, [service.carry(token)])[0] == 200


def wrongly(port, service, catalogue):
    """The bad tokens that were not refused with 401, and what was responded instead."""
    found = {}
    for fault, token in catalogue.items():
        for path in ("/me", "/headers"):
            status, body = ask(port, [service.carry(token), ("X-OpenId", "openid-of-alice")], path)
            if status != 401:
                found[f"{fault}, {path}"] = (status, body)
    return found


def alone(world, service, algorithm):
    """Without a gateway: its tokens are made here."""
    key, published, late = (Key(world.work, algorithm) for _ in range(3))
    server, attacker = KeyServer(key, published), KeyServer()
    good = lambda **more: key.token(claims(ISSUER, AUDIENCE, **more))
    say = lambda text, holds, figure="": world.promise(f"{service.name}, {algorithm}: {text}", holds, figure)
    try:
        with running(world, service, server.url) as port:
            got = ask(port, [service.carry(good())])
            say("a good token is accepted", got == (200, identity("openid-of-alice")), got)
            got = ask(port, [service.carry(good(unionid="union-1", user_id="4711"))])
            say("unionid and user id", got == (200, identity("openid-of-alice", "union-1", "4711")), got)
            got = ask(port, [service.carry(published.token(claims(ISSUER, AUDIENCE)))])
            say("every published key is good", got[0] == 200, got)
            lines = [("X-OpenId", "openid-of-alice"), ("X-AppId", programs.APP), ("X-User-Id", "4711")]
            got = ask(port, [service.carry(good(user_id="4711")), *lines], "/headers")
            say("it reads the headers", got == (200, identity("openid-of-alice", user_id="4711")), got)
            got = [ask(port, lines, path)[0] for path in ("/me", "/headers")]
            say("identity headers without a token are refused", got == [401, 401], got)
            catalogue = bad_tokens(good(), key, published, attacker.url)
            wrong = wrongly(port, service, catalogue)
            say(f"{len(catalogue)} bad tokens are refused", not wrong, wrong or "401")
            got = ask(port, [service.carry(good())])
            say("a good token is accepted after them", got[0] == 200, got)
            say("nobody fetches the keys of an attacker", not attacker.requests, len(attacker.requests))
            fetched = len(server.requests)
            say("unknown kids do not fetch the keys each time", 1 <= fetched <= 3, f"{fetched} times")
            server.keys.append(late)
            waited = wait_until(lambda: accepted(port, service, late.token(claims(ISSUER, AUDIENCE))), REFETCH, 0.5)
            say("a new key is found", waited is not None, waited and f"after {waited:.1f} s")
            server.status = 500
            got = ask(port, [service.carry(good())])
            say("keys that are cached are used while they cannot be fetched", got[0] == 200, got)
            say("it listens on 127.0.0.1 only", not programs.reaches("127.0.0.2", port))
        with running(world, service, server.url) as port:
            got = ask(port, [service.carry(good())])
            say("without keys it refuses", got[0] in (401, 503), got)
            server.status = 200
            waited = wait_until(lambda: accepted(port, service, good()), REFETCH, 0.5)
            say("it recovers when they can be fetched", waited is not None, waited and f"after {waited:.1f} s")
    finally:
        server.close()
        attacker.close()


def behind(world, services):
    """Behind the real gateway, which signs with each algorithm."""
    for header in ("X-Wxgate-Jwt", "Authorization"):
        for algorithm in ("ES256", "EdDSA"):
            chosen = [one for one in services if one.header == header and algorithm in one.algorithms]
            for service in chosen:
                one_behind(world, service, algorithm)


def one_behind(world, service, algorithm):
    key, published = (Key(world.work, algorithm) for _ in range(2))
    port_of = free_port()
    attacker = KeyServer()
    work = world.work / f"{service.name}-{algorithm}"
    gateway = Gateway(
        world.wxgate, work, key, {"service": port_of}, hook=world.hook, next_keys=[published], header=service.header
    )
    say = lambda text, holds, figure="": world.promise(f"{service.name}, {algorithm}: {text}", holds, figure)
    try:
        with running(world, service, gateway.jwks_url, port_of) as port:
            alice, bob = gateway.login("unionalice"), gateway.login("bob")
            seen = gateway.seen(alice)
            wanted = identity(seen.get("x-openid"), seen.get("x-unionid"), seen.get("x-user-id"))
            got = ask(gateway.port, alice, "/service/me")
            say("behind the gateway the user is known", got == (200, wanted), got)
            got = ask(gateway.port, alice, "/service/headers")
            say("the headers say the same", got == (200, wanted), got)
            got = ask(gateway.port, bob, "/service/me")
            say("another session is another user", got[0] == 200 and got[1] != wanted, got)

            real = gateway.token(alice)
            got = ask(port, [service.carry(real)])
            say("the gateway's token is good", got == (200, wanted), got)
            got = ask(port, [service.carry(gateway.token(alice, "other"))])
            say("the gateway's token for another upstream is refused", got[0] == 401, got)
            catalogue = bad_tokens(real, key, published, attacker.url)
            wrong = wrongly(port, service, catalogue)
            say(f"{len(catalogue)} bad tokens, made from a real one, are refused", not wrong, wrong or "401")
            say("nobody fetches the keys of an attacker", not attacker.requests, len(attacker.requests))

            # What a client sends of it never reaches the service: neither bad tokens nor good ones.
            bobs, names = gateway.token(bob), {*SPELLINGS, service.header}
            wrong = {}
            for name in names:
                for token in (bobs, *catalogue.values()):
                    value = f"Bearer {token}" if name == "Authorization" else token
                    got = ask(gateway.port, [*alice.items(), (name, value)], "/service/me")
                    if got != (200, wanted):
                        wrong[name, token[:20]] = got
            say("forged tokens in every spelling are removed", not wrong, wrong or f"{len(names)} names")
            wrong = {}
            for name in names:
                value = f"Bearer {bobs}" if name == "Authorization" else bobs
                got = ask(gateway.port, [(name, value), ("X-OpenId", "somebody")], "/open/service/me")
                if got[0] != 401:
                    wrong[name] = got
            say("also on a route without login", not wrong, wrong or "401")
            lines = [
                ("X-OpenId", "bob"),
                ("x_openid", "bob"),
                ("X-AppId", "wx1"),
                ("X_UnionId", "u"),
                ("X-User-Id", "1"),
            ]
            got = ask(gateway.port, [*alice.items(), *lines], "/service/headers")
            say("forged identity headers are removed", got == (200, wanted), got)
    finally:
        attacker.close()
        gateway.close()
