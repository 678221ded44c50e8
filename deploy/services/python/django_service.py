"""A Django service that takes the user from the gateway's signed identity, and from nothing else.

PORT=3000 WXGATE_JWKS_URL=http://127.0.0.1:9464/.well-known/jwks.json \
WXGATE_ISSUER=https://api.example.com WXGATE_AUDIENCE=https://shop.example.com \
gunicorn --threads 8 --bind 127.0.0.1:$PORT django_service:application
"""

import os

import jwt
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import JsonResponse
from django.urls import path

# The gateway's public keys, for five minutes. They are fetched again for an unknown kid, but at most
# every 30 seconds, because anyone can send an unknown kid. Older versions of PyJWT have no such limit.
KEYS = jwt.PyJWKClient(os.environ["WXGATE_JWKS_URL"], lifespan=300, cooldown_duration=30, timeout=5)


def verified(token):
    return jwt.decode(
        token,
        KEYS.get_signing_key_from_jwt(token),
        # Never from the token: it could say "none", or HS256 with the public key as the secret.
        algorithms=["ES256", "EdDSA"],
        issuer=os.environ["WXGATE_ISSUER"],
        # Another service's token is not for this one.
        audience=os.environ["WXGATE_AUDIENCE"],
        # For clocks that differ.
        leeway=5,
        options={"require": ["exp", "iss", "aud", "sub"]},
    )


def only_from_gateway(get_response):
    """A middleware, so that no view can forget it: a request without a good token did not come
    through the gateway, or has no user."""

    def respond(request):
        try:
            request.wxgate = verified(request.headers.get("X-Wxgate-Jwt", ""))
        except jwt.PyJWKClientConnectionError:
            # Not the user's fault: 401 would log them out.
            return JsonResponse({"error": "keys_unavailable", "action": "retry"}, status=503)
        except jwt.PyJWTError:
            return JsonResponse({"error": "not_logged_in", "action": "login"}, status=401)
        return get_response(request)

    return respond


def me(request):
    claims = request.wxgate
    return JsonResponse(
        {
            "app_id": claims.get("app_id"),
            "openid": claims["sub"],
            "unionid": claims.get("unionid"),
            "user_id": claims.get("user_id"),
        }
    )


def headers(request):
    """The same without a signature: good enough where nobody but the gateway can connect. Read
    X-User-Id only if the gateway has a login hook: without one it lets a client's header through."""
    return JsonResponse(
        {
            "app_id": request.headers.get("X-AppId"),
            "openid": request.headers.get("X-OpenId"),
            "unionid": request.headers.get("X-UnionId"),
            "user_id": request.headers.get("X-User-Id"),
        }
    )


settings.configure(
    ROOT_URLCONF=__name__,
    MIDDLEWARE=[f"{__name__}.only_from_gateway"],
    # The gateway checks the host.
    ALLOWED_HOSTS=["*"],
    SECRET_KEY="not used: no sessions, no cookies",
)
urlpatterns = [path("me", me), path("headers", headers)]
application = get_wsgi_application()
