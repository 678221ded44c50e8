import {
  CanActivate,
  createParamDecorator,
  ExecutionContext,
  Injectable,
  ServiceUnavailableException,
  UnauthorizedException,
} from "@nestjs/common";
import type { Request } from "express";
import { createRemoteJWKSet, errors, type JWTPayload, jwtVerify } from "jose";

const { WXGATE_JWKS_URL = "", WXGATE_ISSUER = "", WXGATE_AUDIENCE = "" } = process.env;

/** The verified claims. */
export interface Identity extends JWTPayload {
  sub: string;
  app_id: string;
  unionid?: string;
  user_id?: string;
}

type FromGateway = Request & { wxgate?: Identity };

/**
 * Lets only requests with a good token through: others did not come through the gateway, or have no
 * user. It guards the whole application (see main.ts), so that no controller can forget it.
 */
@Injectable()
export class WxgateGuard implements CanActivate {
  // The gateway's public keys, for five minutes. They are fetched again for an unknown kid, but at most
  // every 30 seconds, because anyone can send an unknown kid.
  private readonly keys = createRemoteJWKSet(new URL(WXGATE_JWKS_URL), {
    cacheMaxAge: 300_000,
    cooldownDuration: 30_000,
    timeoutDuration: 5_000,
  });

  async canActivate(context: ExecutionContext): Promise<boolean> {
    const request = context.switchToHttp().getRequest<FromGateway>();
    try {
      const { payload } = await jwtVerify<Identity>(request.get("X-Wxgate-Jwt") ?? "", this.keys, {
        // Never from the token: it could say "none", or HS256 with the public key as the secret.
        algorithms: ["ES256", "EdDSA"],
        issuer: WXGATE_ISSUER,
        // Another service's token is not for this one.
        audience: WXGATE_AUDIENCE,
        requiredClaims: ["exp", "sub"],
        // For clocks that differ. In seconds.
        clockTolerance: 5,
      });
      request.wxgate = payload;
      return true;
    } catch (error) {
      // Not the user's fault: 401 would log them out.
      if (cannotFetch(error)) throw new ServiceUnavailableException("keys_unavailable");
      throw new UnauthorizedException("not_logged_in");
    }
  }
}

/** Everything that is wrong with a token has a code of its own. */
function cannotFetch(error: unknown): boolean {
  return !(error instanceof errors.JOSEError) || error instanceof errors.JWKSTimeout || error.code === "ERR_JOSE_GENERIC";
}

/** The user of the request, as a parameter of a handler. */
export const User = createParamDecorator(
  (_: unknown, context: ExecutionContext) => context.switchToHttp().getRequest<FromGateway>().wxgate,
);
