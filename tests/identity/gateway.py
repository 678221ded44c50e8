"""The gateway with its signed identity, the simulated WeChat behind it, and programs that are started."""

import http.client
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

APP = "wx0123456789abcdef"
ISSUER = "https://gateway.example"
AUDIENCE = "shop"
processes = []


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start(command, log, folder=None, **environment):
    with open(log, "a") as output:
        process = subprocess.Popen(
            [str(word) for word in command],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **{key: str(value) for key, value in environment.items()}},
            # A service may be a script with children: all of them are ended.
            start_new_session=True,
        )
    processes.append(process)
    return process


def stop(process, within=5):
    for how in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, how)
            process.wait(within)
        except ProcessLookupError:
            break
        except subprocess.TimeoutExpired:
            continue
    process.wait()
    if process in processes:
        processes.remove(process)


def stop_all():
    for process in list(processes):
        stop(process)


def wait_for(port, process, log, within=90):
    end = time.monotonic() + within
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            if process.poll() is not None or time.monotonic() > end:
                raise AssertionError(f"it does not start:\n{Path(log).read_text()[-3000:]}") from None
            time.sleep(0.02)


def reaches(host, port):
    """Whether something accepts connections there."""
    try:
        socket.create_connection((host, port), 2).close()
        return True
    except OSError:
        return False


def apt(program, package):
    """Where the program is; installs Debian's package if it is missing. None: it cannot be had."""
    if not shutil.which(program) and os.getuid() == 0 and shutil.which("apt-get"):
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (["update"], ["install", "-y", "--no-install-recommends", package]):
            subprocess.run(["apt-get", "-qq", *command], env=environment, stdout=subprocess.DEVNULL, check=False)
    return shutil.which(program)


def wait_until(holds, within, every=0.02):
    """Seconds until it holds; `None` if it does not within the time."""
    began = time.monotonic()
    while time.monotonic() - began < within:
        if holds():
            return time.monotonic() - began
        time.sleep(every)
    return None


def fetch(port, path, method="GET", body=None, headers=(), timeout=30):
    """Status, headers and body of one request on a connection of its own. Headers may be pairs: a name
    can then occur twice."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.putrequest(method, path)
        for name, value in headers.items() if isinstance(headers, dict) else headers:
            connection.putheader(name, value)
        content = None if body is None else json.dumps(body).encode()
        if content is not None:
            connection.putheader("Content-Type", "application/json")
            connection.putheader("Content-Length", str(len(content)))
        connection.endheaders(content)
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


class Mirror:
    """A service that responds with the header lines it got, as pairs in JSON; also the login hook."""

    def __init__(self):
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                self.respond([[name, value] for name, value in self.headers.items()])

            def do_POST(self):
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self.respond({"user_id": f"user-of-{asked['openid'][:8]}"})

            def respond(self, value):
                content = json.dumps(value).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


class Gateway:
    """`services` are ports by name: each is an upstream, and the route /NAME, which is stripped. There
    are two upstreams more: "mirror" has the audience of the services, "other" has its own name."""

    def __init__(self, wxgate, work, key, services=(), hook=False, **jwt):
        work.mkdir(parents=True, exist_ok=True)
        self.work, self.services, self.mirror = work, dict(services), Mirror()
        self.port, self.admin, self.internal, self.wechat = (free_port() for _ in range(4))
        self.jwks_url = f"http://127.0.0.1:{self.internal}/.well-known/jwks.json"
        self.file, self.log = work / "gateway.toml", work / "gateway.log"
        self.hook = hook
        for name in ("secret", "internal", "hook"):
            (work / name).touch(0o600)
            (work / name).write_text("sandbox-secret" if name == "secret" else secrets.token_urlsafe(32))
        self.write(key, **jwt)
        sandbox = start([wxgate, "sandbox", "--listen", f"127.0.0.1:{self.wechat}"], work / "sandbox.log")
        wait_for(self.wechat, sandbox, work / "sandbox.log")
        self.process = start([wxgate, "run", "-c", self.file], self.log)
        for port in (self.port, self.internal):
            wait_for(port, self.process, self.log)

    def write(self, key, next_keys=(), previous_keys=(), lifetime="60s", header="X-Wxgate-Jwt"):
        file = lambda key: f'{{ file = "{key.file}" }}'
        several = lambda keys: f"[{', '.join(map(file, keys))}]"
        ports = {**self.services, "mirror": self.mirror.port, "other": self.mirror.port}
        audiences = ", ".join(f'{name} = "{AUDIENCE}"' for name in ports if name != "other")
        upstreams = "".join(f"""
[[upstream]]
name = "{name}"
servers = ["127.0.0.1:{port}"]
[[route]]
path = "/{name}"
upstream = "{name}"
strip_prefix = "/{name}"
[[route]]
path = "/open/{name}"
upstream = "{name}"
strip_prefix = "/open/{name}"
auth = "none"
""" for name, port in ports.items())
        hook = (
            f'[login.hook]\nurl = "http://127.0.0.1:{self.mirror.port}/hook"\ntoken = {{ file = "{self.work}/hook" }}'
        )
        hook = hook if self.hook else ""
        # By default a client may send its session token in Authorization.
        carriers = '[session]\ncarriers = ["header"]' if header == "Authorization" else ""
        following = self.file.with_suffix(".next")
        following.write_text(f"""[server]
listen = "127.0.0.1:{self.port}"
[admin]
listen = "127.0.0.1:{self.admin}"
[internal]
listen = "127.0.0.1:{self.internal}"
token = {{ file = "{self.work}/internal" }}
[wechat]
base_url = "http://127.0.0.1:{self.wechat}"
[log]
access = "off"
[login]
rate_per_app = "off"
{hook}
{carriers}
[identity.jwt]
algorithm = "{key.algorithm}"
key = {file(key)}
next_keys = {several(next_keys)}
previous_keys = {several(previous_keys)}
issuer = "{ISSUER}"
audience = {{ {audiences} }}
lifetime = "{lifetime}"
header = "{header}"
[[app]]
app_id = "{APP}"
app_secret = {{ file = "{self.work}/secret" }}
{upstreams}
""")
        following.replace(self.file)

    def reload(self, key, **jwt):
        """With these keys; waits until the gateway uses them."""
        before = self.reloads()
        self.write(key, **jwt)
        self.process.send_signal(signal.SIGHUP)
        done = wait_until(lambda: self.reloads() > before, 20)
        assert done is not None, f"no reload:\n{self.log.read_text()[-3000:]}"

    def reloads(self):
        text = self.log.read_text()
        assert "reload rejected" not in text, text[-3000:]
        return text.count("configuration reloaded")

    def login(self, user="alice"):
        """The header of a new session."""
        code = f"user-{user}-{secrets.token_hex(4)}"
        status, _, body = fetch(self.port, "/login", "POST", {"code": code})
        assert status == 200, (status, body)
        return {"X-3rd-Session": json.loads(body)["token"]}

    def seen(self, session, upstream="mirror"):
        """The header lines that a service gets with a request of this session, by name in lower case."""
        status, _, body = fetch(self.port, f"/{upstream}/seen", headers=session)
        assert status == 200, (status, body)
        return {name.lower(): value for name, value in json.loads(body)}

    def token(self, session, upstream="mirror"):
        """The JWT that a service of this upstream gets."""
        seen = self.seen(session, upstream)
        token = seen.get("x-wxgate-jwt") or seen.get("authorization", "").removeprefix("Bearer ")
        assert token, f"no token: {seen}"
        return token

    def jwks(self):
        status, headers, body = fetch(self.internal, "/.well-known/jwks.json")
        assert status == 200, (status, body)
        return headers, json.loads(body)["keys"]

    def close(self):
        self.mirror.close()
        stop(self.process)
