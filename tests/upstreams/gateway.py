"""The gateway under test, its configuration and what it says of itself; programs and certificates."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
APP = "wx0123456789abcdef"
processes = []


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start(command, log, limit=None, **environment):
    """Starts a program; `limit` is its `ulimit -n`."""
    if limit:
        command = ["sh", "-c", f'ulimit -n {limit} && exec "$@"', "sh", *command]
    with open(log, "a") as output:
        process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **{key: str(value) for key, value in environment.items()}},
        )
    processes.append(process)
    return process


def stop(process, how=signal.SIGTERM, within=15):
    """Returns how many seconds it took to end."""
    began = time.monotonic()
    if process.poll() is None:
        process.send_signal(how)
    try:
        process.wait(within)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process in processes:
        processes.remove(process)
    return time.monotonic() - began


def stop_all():
    for process in list(processes):
        process.send_signal(signal.SIGCONT)
        stop(process, within=5)


def wait_for(port, process, log, host="127.0.0.1"):
    end = time.monotonic() + 60
    while True:
        try:
            return socket.create_connection((host, port), 1).close()
        except OSError:
            if process.poll() is not None or time.monotonic() > end:
                raise AssertionError(f"it does not start:\n{Path(log).read_text()[-3000:]}") from None
            time.sleep(0.02)


def wait_until(holds, within, every=0.02):
    """Seconds until it holds; `None` if it does not within the time."""
    began = time.monotonic()
    while time.monotonic() - began < within:
        if holds():
            return time.monotonic() - began
        time.sleep(every)
    return None


def fetch(port, path, method="GET", body=None, headers=None, timeout=30):
    """Status, headers and body of one request on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def replace(file, text):
    """As those who renew files do: a new file takes the place of the old one."""
    file = Path(file)
    following = file.with_name(file.name + ".next")
    following.write_bytes(text if isinstance(text, bytes) else text.encode())
    following.chmod(0o600)
    following.replace(file)


class Gateway:
    """`sections` are the upstreams and routes, as TOML; `server` and `limits` are lines of these sections."""

    def __init__(self, wxgate, work, sections, server="", limits="", log="", limit=None, wechat=None):
        work.mkdir(parents=True, exist_ok=True)
        self.work, self.wxgate = work, wxgate
        self.port, self.admin, self.wechat = free_port(), free_port(), wechat or free_port()
        self.file, self.log = work / "gateway.toml", work / "gateway.log"
        (work / "secret").touch(0o600)
        (work / "secret").write_text("sandbox-secret")
        self.options = (server, limits, log)
        self.write(sections)
        if wechat is None:
            sandbox = start([wxgate, "sandbox", "--listen", f"127.0.0.1:{self.wechat}"], work / "sandbox.log")
            wait_for(self.wechat, sandbox, work / "sandbox.log")
        self.process = start([wxgate, "run", "-c", self.file], self.log, limit=limit)
        wait_for(self.port, self.process, self.log)

    def write(self, sections):
        server, limits, log = self.options
        replace(
            self.file,
            f"""[server]
listen = "127.0.0.1:{self.port}"
h2c = true
{server}
[admin]
listen = "127.0.0.1:{self.admin}"
[wechat]
base_url = "http://127.0.0.1:{self.wechat}"
[log]
access = "off"
{log}
[limits]
{limits}
[login]
rate_per_app = "off"
[[app]]
app_id = "{APP}"
app_secret = {{ file = "{self.work}/secret" }}
{sections}
""",
        )

    def reload(self, sections=None, within=10):
        """Writes the sections if there are any, and waits until the gateway has read them."""
        before = self.reloads()
        if sections is not None:
            self.write(sections)
        self.process.send_signal(signal.SIGHUP)
        done = wait_until(lambda: self.reloads() > before, within)
        assert done is not None, f"no reload:\n{self.messages()[-3000:]}"

    def reloads(self):
        text = self.messages()
        assert "reload rejected" not in text, text[-3000:]
        return text.count("configuration reloaded")

    def login(self, user="alice"):
        code = f"user-{user}-{os.urandom(4).hex()}"
        status, _, body = fetch(
            self.port, "/login", "POST", json.dumps({"code": code}), {"Content-Type": "application/json"}
        )
        assert status == 200, (status, body)
        return json.loads(body)["token"]

    def openid(self, user="alice"):
        path = f"/sns/jscode2session?appid={APP}&secret=sandbox-secret&js_code=user-{user}-0{os.urandom(4).hex()}"
        return json.loads(fetch(self.wechat, path + "&grant_type=authorization_code")[2])["openid"]

    def metrics(self):
        return fetch(self.admin, "/metrics")[2].decode()

    def metric(self, name, **labels):
        """The sum of all series with this name and these labels; 0 if there are none."""
        total = 0.0
        for line in self.metrics().splitlines():
            found = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line)
            if found and found[1] == name:
                has = dict(re.findall(r'(\w+)="([^"]*)"', found[2] or ""))
                if all(has.get(key) == value for key, value in labels.items()):
                    total += float(found[3])
        return total

    def messages(self):
        return self.log.read_text()

    def is_up(self):
        return self.process.poll() is None

    def memory(self):
        """RSS in KiB."""
        return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{self.process.pid}/status").read_text())[1])

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def processor(self):
        """Seconds of processor time so far."""
        words = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self):
        return stop(self.process)


def upstream(name, ports, more="", tls=None):
    """The section of an upstream; `ports` are ports of this machine or addresses as they are written."""
    servers = ", ".join(f'"127.0.0.1:{port}"' if isinstance(port, int) else f'"{port}"' for port in ports)
    where = f"servers = [{servers}]" if ports else ""
    secure = "" if tls is None else f"[upstream.tls]\n{tls}\n"
    lines, _, sections = more.partition("[upstream.")
    return f'[[upstream]]\nname = "{name}"\n{where}\n{lines}\n{secure}{"[upstream." * bool(sections)}{sections}\n'


def route(path, name, more="", auth="none"):
    return f'[[route]]\npath = "{path}"\nupstream = "{name}"\nauth = "{auth}"\n{more}\n'


class Authority:
    """A certificate authority of the run's own, made with openssl."""

    def __init__(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.count = folder, 0
        self.file = folder / "ca.pem"
        self.openssl(
            "req",
            "-x509",
            *self.new_key,
            "-days",
            "90",
            "-subj",
            "/CN=upstreams",
            "-keyout",
            folder / "ca.key",
            "-out",
            self.file,
        )
        (folder / "index").touch()
        (folder / "serial").write_text(f"{int.from_bytes(os.urandom(7), 'big') | 1 << 55:014X}\n")
        (folder / "ca.conf").write_text(
            f"[ca]\ndefault_ca = here\n[here]\ndatabase = {folder}/index\nserial = {folder}/serial\n"
            f"new_certs_dir = {folder}\ncertificate = {self.file}\nprivate_key = {folder}/ca.key\n"
            "default_md = sha256\npolicy = any\nunique_subject = no\n[any]\ncommonName = supplied\n"
        )

    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")

    @staticmethod
    def openssl(*words):
        done = subprocess.run(["openssl", *map(str, words)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def issue(self, names="DNS:localhost,IP:127.0.0.1", subject="localhost", expired=False):
        """Files of a certificate with its key."""
        self.count += 1
        key, request, certificate, names_file = (
            self.folder / f"{self.count}.{end}" for end in ("key", "csr", "pem", "ext")
        )
        names_file.write_text(f"subjectAltName={names}\nbasicConstraints=CA:FALSE\n")
        self.openssl("req", *self.new_key, "-subj", f"/CN={subject}", "-keyout", key, "-out", request)
        day = 86_400
        begin, end = (-9 * day, -day) if expired else (-day, 60 * day)
        moment = lambda offset: time.strftime("%y%m%d%H%M%SZ", time.gmtime(time.time() + offset))
        self.openssl(
            "ca",
            "-batch",
            "-notext",
            "-config",
            self.folder / "ca.conf",
            "-in",
            request,
            "-out",
            certificate,
            "-startdate",
            moment(begin),
            "-enddate",
            moment(end),
            "-extfile",
            names_file,
        )
        return certificate, key


def serial(certificate):
    done = subprocess.run(["openssl", "x509", "-noout", "-serial", "-in", certificate], capture_output=True, text=True)
    return done.stdout.strip().removeprefix("serial=")
