// A Nest service that takes the user from the gateway's signed identity, and from nothing else.
//
// npm install && npm run build
// PORT=3000 WXGATE_JWKS_URL=http://127.0.0.1:9464/.well-known/jwks.json \
// WXGATE_ISSUER=https://api.example.com WXGATE_AUDIENCE=https://shop.example.com npm start

import "reflect-metadata";
import { Controller, Get, Headers, Module } from "@nestjs/common";
import { APP_GUARD, NestFactory } from "@nestjs/core";
import { type Identity, User, WxgateGuard } from "./wxgate.guard.js";

@Controller()
class UserController {
  @Get("me")
  me(@User() user: Identity) {
    const { app_id, sub, unionid = null, user_id = null } = user;
    return { app_id, openid: sub, unionid, user_id };
  }

  /**
   * The same without a signature: good enough where nobody but the gateway can connect. Read X-User-Id
   * only if the gateway has a login hook: without one it lets a client's header through.
   */
  @Get("headers")
  headers(
    @Headers("x-appid") app_id: string | null = null,
    @Headers("x-openid") openid: string | null = null,
    @Headers("x-unionid") unionid: string | null = null,
    @Headers("x-user-id") user_id: string | null = null,
  ) {
    return { app_id, openid, unionid, user_id };
  }
}

@Module({ controllers: [UserController], providers: [{ provide: APP_GUARD, useClass: WxgateGuard }] })
class ServiceModule {}

const app = await NestFactory.create(ServiceModule, { logger: ["error", "warn"] });
await app.listen(Number(process.env.PORT), "127.0.0.1");
