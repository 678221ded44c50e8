"""A FastAPI service that takes the user from the gateway's signed identity, and from nothing else.

PORT=3000 WXGATE_JWKS_URL=http://127.0.0.1:9464/.well-known/jwks.json \
WXGATE_ISSUER=https://api.example.com WXGATE_AUDIENCE=https://shop.example.com python3 fastapi_service.py
"""

import asyncio
import os
import time
from typing import Annotated

import httpx
import uvicorn
from fastapi import Depends, FastAPI, Header, HTTPException
from joserfc import jws, jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet
from pydantic import BaseModel

# Never from the token: it could say "none", or HS256 with the public key as the secret.
ALGORITHMS = ["ES256", "EdDSA"]
CLAIMS = jwt.JWTClaimsRegistry(
    # For clocks that differ.
    leeway=5,
    iss={"essential": True, "value": os.environ["WXGATE_ISSUER"]},
    # Another service's token is not for this one.
    aud={"essential": True, "value": os.environ["WXGATE_AUDIENCE"]},
    exp={"essential": True},
    sub={"essential": True},
)


class KeysUnavailable(Exception):
    pass


class Keys:
    """The gateway's public keys, for five minutes. For an unknown kid they are fetched again, but at
    most every ten seconds, because anyone can send an unknown kid."""

    def __init__(self, url):
        self.url, self.keys, self.expiry, self.next_fetch = url, {}, 0.0, 0.0
        self.lock = asyncio.Lock()

    def must_fetch(self, kid):
        now = time.monotonic()
        return now >= self.next_fetch and (now >= self.expiry or kid not in self.keys)

    async def get(self, kid):
        # Requests with a known key do not wait for those with an unknown one.
        if self.must_fetch(kid):
            async with self.lock:
                # Another request may have fetched them meanwhile.
                if self.must_fetch(kid):
                    await self.fetch()
        if time.monotonic() >= self.expiry:
            raise KeysUnavailable
        return self.keys.get(kid)

    async def fetch(self):
        try:
            # Without the proxies of the environment.
            async with httpx.AsyncClient(trust_env=False, timeout=5) as client:
                found = (await client.get(self.url)).raise_for_status().json()
            self.keys = {key.kid: key for key in KeySet.import_key_set(found)}
        except (httpx.HTTPError, JoseError, ValueError):
            # Those that are cached are good until they expire.
            self.next_fetch = time.monotonic() + 1
            return
        now = time.monotonic()
        self.expiry, self.next_fetch = now + 300, now + 10


KEYS = Keys(os.environ["WXGATE_JWKS_URL"])


class Identity(BaseModel):
    app_id: str | None
    openid: str | None
    unionid: str | None
    user_id: str | None


async def verified(x_wxgate_jwt: Annotated[str, Header()] = "") -> Identity:
    """A request without a good token did not come through the gateway, or has no user."""
    try:
        kid = jws.extract_compact(x_wxgate_jwt.encode()).headers().get("kid")
        if not isinstance(kid, str) or not (key := await KEYS.get(kid)):
            raise HTTPException(401, "not_logged_in")
        claims = jwt.decode(x_wxgate_jwt, key, algorithms=ALGORITHMS).claims
        CLAIMS.validate(claims)
    except KeysUnavailable:
        # Not the user's fault: 401 would log them out.
        raise HTTPException(503, "keys_unavailable") from None
    except (JoseError, ValueError):
        raise HTTPException(401, "not_logged_in") from None
    return Identity(
        app_id=claims.get("app_id"),
        openid=claims["sub"],
        unionid=claims.get("unionid"),
        user_id=claims.get("user_id"),
    )


# For the whole service, so that no handler can forget it.
app = FastAPI(dependencies=[Depends(verified)], openapi_url=None)


@app.get("/me")
async def me(identity: Annotated[Identity, Depends(verified)]) -> Identity:
    return identity


@app.get("/headers")
async def headers(
    x_appid: Annotated[str | None, Header()] = None,
    x_openid: Annotated[str | None, Header()] = None,
    x_unionid: Annotated[str | None, Header()] = None,
    x_user_id: Annotated[str | None, Header()] = None,
) -> Identity:
    """The same without a signature: good enough where nobody but the gateway can connect. Read
    X-User-Id only if the gateway has a login hook: without one it lets a client's header through."""
    return Identity(app_id=x_appid, openid=x_openid, unionid=x_unionid, user_id=x_user_id)


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ["PORT"]), log_level="warning")
