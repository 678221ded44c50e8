// An Express service that takes the user from the gateway's signed identity, and from nothing else.
//
// PORT=3000 WXGATE_JWKS_URL=http://127.0.0.1:9464/.well-known/jwks.json \
// WXGATE_ISSUER=https://api.example.com WXGATE_AUDIENCE=https://shop.example.com node service.mjs

import express from "express";
import { createRemoteJWKSet, errors, jwtVerify } from "jose";

const { PORT, WXGATE_JWKS_URL, WXGATE_ISSUER, WXGATE_AUDIENCE } = process.env;

// The gateway's public keys, for five minutes. They are fetched again for an unknown kid, but at most
// every 30 seconds, because anyone can send an unknown kid.
const keys = createRemoteJWKSet(new URL(WXGATE_JWKS_URL), {
  cacheMaxAge: 300_000,
  cooldownDuration: 30_000,
  timeoutDuration: 5_000,
});

const rules = {
  // Never from the token: it could say "none", or HS256 with the public key as the secret.
  algorithms: ["ES256", "EdDSA"],
  issuer: WXGATE_ISSUER,
  // Another service's token is not for this one.
  audience: WXGATE_AUDIENCE,
  requiredClaims: ["exp", "sub"],
  // For clocks that differ. In seconds.
  clockTolerance: 5,
};

// Everything that is wrong with a token has a code of its own.
const cannotFetch = (error) =>
  !(error instanceof errors.JOSEError) || error instanceof errors.JWKSTimeout || error.code === "ERR_JOSE_GENERIC";

// Before all handlers, so that none can forget it: a request without a good token did not come through
// the gateway, or has no user.
async function onlyFromGateway(request, response, next) {
  try {
    const { payload } = await jwtVerify(request.get("X-Wxgate-Jwt") ?? "", keys, rules);
    request.wxgate = payload;
  } catch (error) {
    // Not the user's fault: 401 would log them out.
    if (cannotFetch(error)) return response.status(503).json({ error: "keys_unavailable", action: "retry" });
    return response.status(401).json({ error: "not_logged_in", action: "login" });
  }
  next();
}

const app = express();
app.disable("x-powered-by");
app.use(onlyFromGateway);

app.get("/me", (request, response) => {
  const { app_id, sub, unionid = null, user_id = null } = request.wxgate;
  response.json({ app_id, openid: sub, unionid, user_id });
});

// The same without a signature: good enough where nobody but the gateway can connect. Read X-User-Id
// only if the gateway has a login hook: without one it lets a client's header through.
app.get("/headers", (request, response) => {
  const read = (name) => request.get(name) ?? null;
  response.json({
    app_id: read("X-AppId"),
    openid: read("X-OpenId"),
    unionid: read("X-UnionId"),
    user_id: read("X-User-Id"),
  });
});

app.listen(Number(PORT), "127.0.0.1");
