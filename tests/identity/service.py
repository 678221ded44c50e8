"""What the runner must know of an example service, and what it expects of one.

Each language is a module of `languages` (`python.py`, `node.py`, `php.py`, `go.py`, `java.py`) with two
functions. `work` is target/identity/LANGUAGE: it is kept, so that the next run installs nothing. The
examples themselves are in `EXAMPLES` (deploy/services), and nothing is written there.

    def install(work):   installs (apt, PyPI, npm) and builds. Returns None, or why the services of
                         this language cannot run here: they are then skipped
    def services(work):  a list of `Service`. The runner starts and stops them; several may run at
                         the same time

`gateway.apt(program, package)` installs a package of Debian if the program is missing. A module
writes `from service import EXAMPLES, Service` and `import gateway`. Try it without a gateway:
`tests/identity/run --alone php`.

A service gets these environment variables:

    PORT             it listens on 127.0.0.1:PORT, and on no other address
    WXGATE_JWKS_URL  where the keys are; it must not be asked before the first request is served, but
                     may be, and need not respond then
    WXGATE_ISSUER    `iss`
    WXGATE_AUDIENCE  `aud`

and serves

    GET /me       200 {"app_id":..., "openid":..., "unionid":..., "user_id":...} from the verified token;
                  null where there is no such claim. 401 if the request did not come through the gateway:
                  no token, or one that is not good. 503 if the keys cannot be fetched (401 will do)
    GET /headers  the same JSON from the headers X-AppId, X-OpenId, X-UnionId and X-User-Id, behind the
                  same guard: without a good token 401

It keeps the keys for five minutes, and asks for them again for an unknown kid, but at most once in a
while (30 seconds or less; the runner waits up to 60). No request may end with another 5xx than 503.
"""

from dataclasses import dataclass, field
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[2] / "deploy/services"


@dataclass
class Service:
    # Of the language and of what it uses: "python-django".
    name: str
    # The program and its arguments, without a shell.
    command: list
    folder: Path | None = None
    # "Authorization": it expects `Bearer TOKEN` there, as an OAuth2 resource server.
    header: str = "X-Wxgate-Jwt"
    # Those that its library can verify.
    algorithms: tuple = ("ES256", "EdDSA")
    # Of the libraries that verify, for RESULTS.md: "PyJWT 2.15.1".
    libraries: str = ""
    environment: dict = field(default_factory=dict)

    def carry(self, token):
        """The header line with this token."""
        return self.header, f"Bearer {token}" if self.header == "Authorization" else token
