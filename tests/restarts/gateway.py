"""The gateway under test: its files, its process (and the new one of an upgrade), its metrics."""

import base64
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from processes import Process, free_port, start, wait_for_port, wait_until

HERE = Path(__file__).resolve().parent
APP = "wx0123456789abcdef"
OPERATOR = "restarts-operator-0123456789abcdef"
FAKETIME = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1"


def fetch(port, path, method="GET", body=None, headers=None, timeout=30):
    """Status, headers and body of one request on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


class Exchange:
    """One request on a connection of its own, of which a part can be kept back."""

    def __init__(self, port, method, path, token=None, body="", more=(), within=40, back=0):
        lines = [f"{method} {path} HTTP/1.1", "Host: localhost", *more]
        if token is not None:
            lines.append(f"X-3rd-Session: {token}")
        if body or method == "POST":
            lines.append(f"Content-Length: {len(body)}")
        message = ("\r\n".join(lines) + "\r\n\r\n" + body).encode()
        self.rest = message[len(message) - back :]
        self.socket = socket.create_connection(("127.0.0.1", port), within)
        self.socket.sendall(message[: len(message) - back])

    @classmethod
    def login(cls, port, code, **more):
        lines = ["Content-Type: application/json"]
        return cls(port, "POST", "/login", body=json.dumps({"code": code}), more=lines, **more)

    def finish(self):
        """Sends the rest. Returns status and body; the status is 0 if there is no response."""
        try:
            self.socket.sendall(self.rest)
            response = http.client.HTTPResponse(self.socket)
            response.begin()
            return response.status, response.read()
        except (OSError, http.client.HTTPException) as error:
            return 0, repr(error).encode()
        finally:
            self.socket.close()


class Surroundings:
    """WeChat and the service: processes that go on while the gateway restarts."""

    def __init__(self, wxgate, work):
        self.wxgate, self.work = wxgate, work
        self.wechat, self.service = free_port(), free_port()
        self.requests = work / "requests.log"
        sandbox = start([wxgate, "sandbox", "--listen", f"127.0.0.1:{self.wechat}"], work / "sandbox.log")
        service = start([sys.executable, HERE / "upstream.py", self.service, self.requests], work / "upstream.log")
        wait_for_port(self.wechat, sandbox, work / "sandbox.log")
        wait_for_port(self.service, service, work / "upstream.log")

    def openid(self, user):
        """Whom WeChat knows by this name."""
        code = f"user-{user}-0{os.urandom(6).hex()}"
        path = f"/sns/jscode2session?appid={APP}&secret=sandbox-secret&js_code={code}&grant_type=authorization_code"
        return json.loads(fetch(self.wechat, path)[2])["openid"]


class Gateway:
    """`server`, `session`, `snapshot` and `more` are lines of TOML; `redis` is a port.

    The program is started by a link in its folder, which can be replaced as a new release is.
    """

    def __init__(self, surroundings, server="", session="", snapshot='interval = "1s"', more="", login="", redis=None, folder=None):
        self.around, self.work = surroundings, surroundings.work / "gateway"
        self.work.mkdir()
        self.folder = folder or self.work / "state"
        self.folder.mkdir(exist_ok=True)
        self.folder.chmod(0o700)
        (self.work / "run").mkdir(mode=0o700)
        self.program, self.socket = self.work / "wxgate", self.work / "run/upgrade.sock"
        self.program.symlink_to(surroundings.wxgate)
        self.snapshot = self.folder / "sessions"
        self.port, self.admin = free_port(), free_port()
        self.file, self.log = self.work / "gateway.toml", self.work / "gateway.log"
        for name, text in (
            ("secret", "sandbox-secret"),
            ("operator", OPERATOR),
            ("seal", base64.b64encode(os.urandom(32)).decode()),
        ):
            (self.work / name).touch(0o600)
            (self.work / name).write_text(text)
        kept = f'[session.redis]\nurl = "redis://127.0.0.1:{redis}"\ntimeout = "2s"\n'
        if redis is None:
            kept = f'[session.snapshot]\npath = "{self.snapshot}"\n{snapshot}\n'
        if snapshot is None:
            kept = ""
        sealed = f'seal_key = {{ file = "{self.work}/seal" }}' if kept else ""
        self.file.write_text(
            f"""[server]
listen = "127.0.0.1:{self.port}"
{server}
[admin]
listen = "127.0.0.1:{self.admin}"
token = {{ file = "{self.work}/operator" }}
[wechat]
base_url = "http://127.0.0.1:{surroundings.wechat}"
[log]
access = "off"
[login]
rate_per_app = "off"
{login}
[session]
{sealed}
{session}
{kept}
[[app]]
app_id = "{APP}"
app_secret = {{ file = "{self.work}/secret" }}
[[upstream]]
name = "shop"
servers = ["127.0.0.1:{surroundings.service}"]
[[route]]
path = "/"
upstream = "shop"
auth = "required"
websocket = true
[[route]]
path = "/open"
upstream = "shop"
auth = "none"
{more}
"""
        )
        self.process = None

    def start(self, environment=None, before=(), within=30, listeners=()):
        """Starts it. Returns the seconds from its start until it is ready.

        `listeners` are sockets that it gets as from a service manager.
        """
        began = time.monotonic()
        more = {}
        if listeners:
            # The variable must name the process itself, and the first socket have the number 3.
            files = [listener.fileno() for listener in listeners]
            moved = " ".join(f"{number}<&{file}" for number, file in enumerate(files, 3))
            shell = f'LISTEN_PID=$$ LISTEN_FDS={len(files)} exec "$@" {moved}'
            before, more = ("sh", "-c", shell, "sh", *before), {"pass_fds": files}
        self.process = start([*before, self.program, "run", "-c", self.file], self.log, environment, **more)
        self.wait_until_ready(within)
        return time.monotonic() - began

    def wait_until_ready(self, within=30):
        def is_ready():
            if self.process.poll() is not None:
                raise AssertionError(f"it ended with {self.process.code}:\n{self.messages()[-3000:]}")
            return self.ready() == 200

        assert wait_until(is_ready, within, 0.002) is not None, f"it is not ready:\n{self.messages()[-3000:]}"

    def ready(self):
        try:
            return fetch(self.admin, "/readyz", timeout=5)[0]
        except OSError:
            return 0

    def kill(self):
        self.process.end(signal.SIGKILL)

    def terminate(self, within=30):
        """SIGTERM. Returns exit code and seconds."""
        began = time.monotonic()
        self.process.send(signal.SIGTERM)
        return self.process.wait(within), time.monotonic() - began

    # Upgrades

    def run_upgrade(self, command=None, environment=None):
        """`wxgate run --upgrade`, or another program with these arguments, as a child of this."""
        return start([*(command or [self.program]), "run", "-c", self.file, "--upgrade"], self.log, environment)

    def quit(self, within=5):
        """SIGQUIT. Returns the process that was started; `None` if none was within the time."""
        old = self.process.pid
        before = self.children(old)
        os.kill(old, signal.SIGQUIT)
        new = []

        def has_started():
            new[:] = self.children(old) - before
            return bool(new)

        return Process(new[0]) if wait_until(has_started, within, 0.002) is not None else None

    @staticmethod
    def children(pid):
        """Those that have begun to run a program."""
        found = set()
        for thread in Path(f"/proc/{pid}/task").glob("*/children"):
            try:
                found |= {int(word) for word in thread.read_text().split()}
            except OSError:
                pass
        return found

    def serves(self, process):
        """Whether this process answers on the admin listener: it has a connection's other end."""
        connection = http.client.HTTPConnection("127.0.0.1", self.admin, timeout=5)
        try:
            connection.request("GET", "/healthz")
            connection.getresponse().read()
            inode = accepted_socket(self.admin, connection.sock.getsockname()[1])
            return any(target(link) == f"socket:[{inode}]" for link in Path(f"/proc/{process.pid}/fd").iterdir())
        except OSError:
            return False
        finally:
            connection.close()

    # What it does

    def login(self, user, within=30):
        """Status, and the token or the body."""
        body = json.dumps({"code": f"user-{user}-{os.urandom(6).hex()}"})
        headers = {"Content-Type": "application/json"}
        status, _, body = fetch(self.port, "/login", "POST", body, headers, within)
        return status, json.loads(body)["token"] if status == 200 else json.loads(body)

    def token(self, user):
        status, token = self.login(user)
        assert status == 200, (status, token)
        return token

    def use(self, token, path="/echo"):
        return fetch(self.port, path, headers={"X-3rd-Session": token})[0]

    def expires_in(self, token):
        """Seconds until it ends if it is not used again; `None` if it has ended."""
        status, _, body = fetch(self.port, "/session", headers={"X-3rd-Session": token})
        assert status in (200, 401), (status, body)
        return json.loads(body)["expires_in"] if status == 200 else None

    def logout(self, token, within=30):
        status, _, body = fetch(self.port, "/logout", "POST", b"", {"X-3rd-Session": token}, within)
        return status, body

    def operate(self, openid, more="", method="DELETE"):
        headers = {"Authorization": f"Bearer {OPERATOR}"}
        return fetch(self.admin, f"/sessions?openid={openid}{more}", method, headers=headers)

    def metrics(self):
        return fetch(self.admin, "/metrics", timeout=10)[2].decode()

    def metric(self, name, **labels):
        """The sum of all series with this name and these labels; 0 if there are none."""
        return metric(self.metrics(), name, **labels)

    def messages(self):
        return self.log.read_text() if self.log.exists() else ""

    def errors(self):
        return [line for line in self.messages().splitlines() if '"ERROR"' in line or "panicked" in line]


def accepted_socket(port, client):
    """The inode of the accepted end of a connection of this machine."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        if int(words[1].split(":")[1], 16) == port and int(words[2].split(":")[1], 16) == client:
            return int(words[9])
    return 0


def target(link):
    try:
        return os.readlink(link)
    except OSError:
        return ""


def metric(text, name, **labels):
    total = 0.0
    for line in text.splitlines():
        found = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line)
        if found and found[1] == name:
            has = dict(re.findall(r'(\w+)="([^"]*)"', found[2] or ""))
            if all(has.get(key) == value for key, value in labels.items()):
                total += float(found[3])
    return total


def certificate(folder):
    """Files of a self-signed certificate for localhost, and its key."""
    made, key = folder / "tls.crt", folder / "tls.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30"]
        + ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
        + ["-keyout", key, "-out", made],
        check=True,
        capture_output=True,
    )
    return made, key


def redis_server(work):
    """The port of a Redis server; `None` if there is no such program."""
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        return None
    port = free_port()
    log = work / "redis.log"
    process = start([program, "--port", port, "--bind", "127.0.0.1", "--save", "", "--dir", work], log)
    wait_for_port(port, process, log)
    return port
