"""A proxy and the service behind it, and the bytes of requests."""

import os
import re
import socket
import struct
import subprocess
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
WEBSOCKET = (
    b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Proxy:
    """`program` is a wxgate, or "nginx". With `tls` its clients must speak TLS."""

    def __init__(self, program, tls=False):
        self.name = Path(program).name
        self.port, self.http2, self.admin, service = (free_port() for _ in range(4))
        if self.name != "nginx":
            self.http2 = self.port
        self.service = subprocess.Popen(["python3", HERE / "service.py", str(service)], stdout=subprocess.PIPE)
        self.service.stdout.readline()
        directory = Path(tempfile.mkdtemp(prefix="wxgate-connections-"))
        text = (HERE / ("nginx.conf" if self.name == "nginx" else "gateway.toml")).read_text()
        values = {"PORT": self.port, "HTTP2": self.http2, "ADMIN": self.admin, "SERVICE": service, "DIRECTORY": directory}
        for key, value in values.items():
            text = text.replace(f"@{key}@", str(value))
        if tls:
            text = with_tls(text, directory)
        (directory / "conf").write_text(text)
        command = [program, "-p", directory, "-c", directory / "conf"]
        if self.name != "nginx":
            command = [program, "run", "-c", directory / "conf"]
        with open(directory / "log", "w") as log:
            self.process = subprocess.Popen(command, stderr=log, env={**os.environ, "APP_SECRET": "x" * 32})
        for _ in range(600):
            try:
                return self.connect().close()
            except OSError:
                time.sleep(0.05)
        raise RuntimeError((directory / "log").read_text())

    def connect(self, number=0, receive_buffer=None, port=None):
        """The number spreads connections over addresses of this machine, each of which has 28,000 ports."""
        client = socket.socket()
        if receive_buffer:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        client.connect((f"127.0.0.{1 + number % 8}", port or self.port))
        client.settimeout(60)
        return client

    def pids(self):
        found, waiting = [], [self.process.pid]
        while waiting:
            found.append(waiting.pop())
            for task in Path(f"/proc/{found[-1]}/task").iterdir():
                waiting += map(int, (task / "children").read_text().split())
        return found

    def memory(self):
        """RSS in KiB."""
        texts = (Path(f"/proc/{pid}/status").read_text() for pid in self.pids())
        return sum(int(re.search(r"VmRSS:\s+(\d+)", text).group(1)) for text in texts)

    def descriptors(self):
        return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in self.pids())

    def metric(self, name):
        text = subprocess.run(["curl", "-s", f"http://127.0.0.1:{self.admin}/metrics"], capture_output=True, text=True).stdout
        return float(re.search(rf"^{name} (\S+)", text, re.M).group(1))

    def close(self):
        self.service.kill()
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()


def with_tls(text, directory):
    """The same configuration with TLS on the listener for HTTP/2."""
    certificate, key = directory / "cert.pem", directory / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        + ["-subj", "/CN=localhost", "-days", "30", "-keyout", key, "-out", certificate],
        check=True,
        capture_output=True,
    )
    if "http2 backlog" in text:
        return text.replace("http2 backlog=4096;", f"ssl http2 backlog=4096; ssl_certificate {certificate}; ssl_certificate_key {key};")
    # There HTTP/2 needs no h2c, and `check` rejects it.
    return text.replace("h2c = true\n", "") + f'[server.tls]\ncert_file = "{certificate}"\nkey_file = "{key}"\n'


def get(target, more=b""):
    return (
        b"GET " + target + b" HTTP/1.1\r\nHost: h\r\nUser-Agent: Mozilla/5.0 MicroMessenger/8.0.66\r\n"
        b"Accept-Encoding: gzip,br\r\n" + more + b"\r\n"
    )


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def http2_get(stream, target):
    """A HEADERS frame with all lines as literals."""
    lines = [(b":method", b"GET"), (b":scheme", b"http"), (b":path", target), (b":authority", b"h")]
    block = b"".join(b"\x10" + bytes([len(n)]) + n + bytes([len(v)]) + v for n, v in lines)
    return frame(1, 5, stream, block)
