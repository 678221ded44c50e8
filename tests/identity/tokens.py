"""Keys, tokens, and what an attacker makes of them: the tokens that each verifier has to refuse.

A bad token is made from a real one, so that nothing but the fault differs. Those that only the
gateway could sign (wrong audience, expired) are signed with its key, which the run itself has made.
"""

import base64
import hashlib
import hmac
import json
import secrets
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils

ALGORITHMS = ("ES256", "EdDSA")


def encode(content):
    """base64url of bytes, or of a value as JSON."""
    if not isinstance(content, bytes):
        content = json.dumps(content, separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def decode(text):
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def header_of(token):
    return json.loads(decode(token.split(".")[0]))


def claims_of(token):
    return json.loads(decode(token.split(".")[1]))


class Key:
    """A private key in a file (PKCS#8, PEM), as openssl writes it."""

    def __init__(self, folder, algorithm="ES256", name=None):
        self.algorithm = algorithm
        self.file = Path(folder) / f"{name or secrets.token_hex(4)}.pem"
        kind = ["ed25519"] if algorithm == "EdDSA" else ["EC", "-pkeyopt", "ec_paramgen_curve:P-256"]
        subprocess.run(["openssl", "genpkey", "-algorithm", *kind, "-out", self.file], check=True, capture_output=True)
        self.file.chmod(0o600)
        self.private = serialization.load_pem_private_key(self.file.read_bytes(), None)
        self.public = self.private.public_key()

    def members(self):
        """What is published of it, and what its thumbprint is made of (RFC 7638, RFC 8037)."""
        if self.algorithm == "EdDSA":
            raw = self.public.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
            return {"crv": "Ed25519", "kty": "OKP", "x": encode(raw)}
        numbers = self.public.public_numbers()
        x, y = (encode(number.to_bytes(32, "big")) for number in (numbers.x, numbers.y))
        return {"crv": "P-256", "kty": "EC", "x": x, "y": y}

    @property
    def kid(self):
        return encode(hashlib.sha256(json.dumps(self.members(), separators=(",", ":")).encode()).digest())

    def jwk(self):
        return {**self.members(), "kid": self.kid, "alg": self.algorithm, "use": "sig"}

    def pem(self):
        return self.public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)

    def sign(self, content):
        if self.algorithm == "EdDSA":
            return self.private.sign(content)
        r, s = utils.decode_dss_signature(self.private.sign(content, ec.ECDSA(hashes.SHA256())))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")

    def token(self, claims, **header):
        """Members of the header that are None are left out."""
        header = {"alg": self.algorithm, "kid": self.kid, "typ": "JWT", **header}
        content = f"{encode({name: value for name, value in header.items() if value is not None})}.{encode(claims)}"
        return f"{content}.{encode(self.sign(content.encode()))}"


def claims(issuer, audience, openid="openid-of-alice", lifetime=60, **more):
    """As the gateway writes them."""
    now = int(time.time())
    return {
        "iss": issuer,
        "sub": openid,
        "aud": audience,
        "iat": now,
        "exp": now + lifetime,
        "app_id": "wx0123456789abcdef",
        "sid": encode(secrets.token_bytes(16)),
        **more,
    }


def bad_tokens(real, key, published, attacker_url):
    """The catalogue: what is wrong, and the token.

    `real` is a token that `key` has signed, and `published` another key of the same JWKS.
    `attacker_url` is a JWKS that nobody may fetch; the attacker's key is not in it, because a
    verifier that fetches it at all has failed.
    """
    was = claims_of(real)
    head, payload, signature = real.split(".")
    now = int(time.time())
    attacker = Key(key.file.parent, key.algorithm)
    unsigned = lambda algorithm: encode({**header_of(real), "alg": algorithm}) + "." + payload
    other_user = encode({**was, "sub": "openid-of-somebody-else"})

    def without(name):
        return key.token({claim: value for claim, value in was.items() if claim != name})

    def keyed(secret, **header):
        """Signed with HMAC, where the verifier's public key is the secret."""
        header = {**header_of(real), "alg": "HS256", **header}
        content = encode({name: value for name, value in header.items() if value is not None}) + "." + other_user
        return f"{content}.{encode(hmac.new(secret, content.encode(), hashlib.sha256).digest())}"

    found = {
        "empty": "",
        "no token": "not-a-token",
        "wrong audience": key.token({**was, "aud": "another-service"}),
        "another upstream's token": key.token({**was, "aud": "other"}),
        "audience that begins the same": key.token({**was, "aud": f"{was['aud']}-admin"}),
        "wrong issuer": key.token({**was, "iss": "https://attacker.example"}),
        "issuer with a slash more": key.token({**was, "iss": was["iss"] + "/"}),
        "expired a minute ago": key.token({**was, "iat": now - 120, "exp": now - 60}),
        "expired 20 seconds ago": key.token({**was, "iat": now - 80, "exp": now - 20}),
        "not yet valid": key.token({**was, "nbf": now + 60, "exp": now + 120}),
        "no audience": without("aud"),
        "no issuer": without("iss"),
        "no expiry": without("exp"),
        "no subject": without("sub"),
        "expiry that is no number": key.token({**was, "exp": "never"}),
        "alg none, no signature": f"{unsigned('none')}.",
        "alg none, with the signature": f"{unsigned('none')}.{signature}",
        "alg None in capitals": f"{unsigned('NONE')}.",
        "alg none, without the last dot": unsigned("none"),
        "key confusion, PEM": keyed(key.pem()),
        "key confusion, PEM without its last line end": keyed(key.pem().strip()),
        "key confusion, JWK": keyed(json.dumps(key.jwk(), separators=(",", ":")).encode()),
        "key confusion, JWK as sent": keyed(json.dumps(key.jwk()).encode()),
        "key confusion, x of the JWK": keyed(decode(key.jwk()["x"])),
        "key confusion, empty secret": keyed(b""),
        "key confusion, PEM without kid": keyed(key.pem(), kid=None),
        "unknown kid": attacker.token(was),
        "kid missing": attacker.token(was, kid=None),
        "kid of the key, attacker's signature": attacker.token(was, kid=key.kid),
        "kid of another key": key.token(was, kid=published.kid),
        "kid that is no text": key.token(was, kid=[key.kid]),
        "kid that is a path": attacker.token(was, kid="../../../../dev/null"),
        "algorithm that is not the key's": key.token(was, alg="ES384"),
        "another key's algorithm": key.token(was, alg="EdDSA" if key.algorithm == "ES256" else "ES256"),
        "critical extension that nobody knows": key.token(was, crit=["example"], example=True),
        "tampered payload": f"{head}.{other_user}.{signature}",
        "tampered header": f"{unsigned('ES384')}.{signature}",
        "payload and signature swapped": f"{head}.{signature}.{payload}",
        "signature truncated": real[:-8],
        "signature left out": f"{head}.{payload}.",
        "two parts": f"{head}.{payload}",
        "four parts": f"{real}.{signature}",
        "only the header": head,
        "signature of zeros": f"{head}.{other_user}.{encode(bytes(64))}",
        "signature of r and s equal to the order": f"{head}.{other_user}.{encode(ORDER + ORDER)}",
        # A verifier that does not check the point takes this for any message (RFC 8032: small order).
        "signature with the neutral point": f"{head}.{other_user}.{encode(bytes([1]) + bytes(63))}",
        "JSON serialization, flattened": json.dumps(
            {"protected": head, "payload": payload, "signature": signature}, separators=(",", ":")
        ),
        "JSON serialization, general": json.dumps(
            {"payload": payload, "signatures": [{"protected": head, "signature": signature}]}, separators=(",", ":")
        ),
        "attacker's jwk in the header": attacker.token(was, jwk=attacker.jwk(), kid=attacker.kid),
        "attacker's jwk, kid of the key": attacker.token(was, jwk=attacker.jwk(), kid=key.kid),
        "attacker's jwk, no kid": attacker.token(was, jwk=attacker.jwk(), kid=None),
        "attacker's jku": attacker.token(was, jku=attacker_url),
        "attacker's jku, kid of the key": attacker.token(was, jku=attacker_url, kid=key.kid),
        "attacker's x5u": attacker.token(was, x5u=attacker_url),
        "encrypted instead of signed": ".".join(
            [
                encode({"alg": "dir", "enc": "A128GCM", "kid": key.kid}),
                "",
                encode(bytes(12)),
                payload,
                encode(bytes(16)),
            ]
        ),
        # What nobody could sign, but the gateway's key has: that a service checks what it reads.
        "audience that is a list of others": key.token({**was, "aud": ["other", "another-service"]}),
        "audience that is no text": key.token({**was, "aud": {was["aud"]: 1}}),
        "expiry that is infinite": key.token({**was, "exp": float("inf")}),
        "claims that are a list": key.token([was]),
        # Nothing of it may end with a 5xx.
        "header that is a list": f"{encode([])}.{payload}.{signature}",
        "header that is nested deeply": f"{encode(b'[' * 4000)}.{payload}.{signature}",
        "alg that is a list": f"{unsigned([key.algorithm])}.{signature}",
        "kid that is an object": key.token(was, kid={}),
        "kid that a prototype has": key.token(was, kid="__proto__"),
        "not ASCII": f"{real[:-1]}\u00e9",
        "3,000 dots": "." * 3000,
        "two tokens": f"{real}, {real}",
    }
    return found


# Of P-256.
ORDER = bytes.fromhex("ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551")


class KeyServer:
    """A JWKS of the run's own, for verifiers without a gateway, and for the attacker's URL."""

    def __init__(self, *keys):
        self.keys, self.requests, self.status = list(keys), [], 200
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.requests.append(self.path)
                content = json.dumps({"keys": [key.jwk() for key in outer.keys]}).encode()
                if outer.status != 200:
                    content = b"{}"
                self.send_response(outer.status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Cache-Control", "max-age=300")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/.well-known/jwks.json"

    def close(self):
        self.server.shutdown()
        self.server.server_close()
