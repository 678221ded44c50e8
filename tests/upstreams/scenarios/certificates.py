"""Certificates of services and of the gateway that are renewed, expire, or are not the right ones."""

import asyncio
import json
import subprocess

from client import Load, described
from gateway import Authority, Gateway, fetch, free_port, replace, route, serial, stop, upstream, wait_for, wait_until
from services import nginx, node


def certificates_of_services(world):
    ours, theirs = Authority(world.work / "ours"), Authority(world.work / "theirs")
    good = ours.issue()
    cases = {
        "good": good,
        "expired": ours.issue(expired=True),
        "other-name": ours.issue("DNS:other.example.com", "other"),
        # Names are in the alternative names only.
        "name-in-subject-only": ours.issue("DNS:other.example.com", "localhost"),
        "other-authority": theirs.issue(),
    }
    for protocol in ("http1", "h2"):
        sections = ""
        for name, (certificate, key) in cases.items():
            port, _, _ = node(
                world, f"{name}-{protocol}", "https" if protocol == "http1" else "http2s", CERT=certificate, KEY=key
            )
            trust = f'server_name = "localhost"\nca_file = "{ours.file}"\n'
            sections += upstream(
                name, [port], f'protocol = "{protocol}"\n[upstream.ejection]\nfailures = 0\n', trust
            ) + route(f"/{name}", name)
        plain, _, _ = node(world, f"plain-{protocol}", "http" if protocol == "http1" else "http2")
        sections += upstream("plain", [plain], f'protocol = "{protocol}"\n', trust) + route("/plain", "plain")
        cases_here = [*cases, "plain"]
        if protocol == "h2":
            port, _, _ = node(world, "no-h2", "https", CERT=good[0], KEY=good[1])
            sections += upstream("no-h2", [port], 'protocol = "h2"\n', trust) + route("/no-h2", "no-h2")
            cases_here.append("no-h2")
        # The system's roots do not have ours.
        port, _, _ = node(
            world, f"system-{protocol}", "https" if protocol == "http1" else "http2s", CERT=good[0], KEY=good[1]
        )
        sections += upstream("system-roots", [port], f'protocol = "{protocol}"\n', 'server_name = "localhost"') + route(
            "/system-roots", "system-roots"
        )
        gateway = Gateway(world.wxgate, world.work / f"gateway-{protocol}", sections)
        for name in [*cases_here, "system-roots"]:
            status = fetch(gateway.port, f"/{name}")[0]
            code = gateway.metric("wxgate_upstream_requests_total", upstream=name, code="tls_error")
            lines = [line for line in gateway.messages().splitlines() if f'"{name}"' in line]
            cause = json.loads(lines[-1]).get("cause", "") if lines else ""
            if name == "good":
                world.promise(f"a good certificate, {protocol}", status == 200, status)
                continue
            holds = status == 502 and code > 0 and cause.startswith("TLS: ")
            world.promise(
                f"{name}, {protocol}: 502, tls_error, a line in the log",
                holds,
                f'{status}, {code:.0f} attempts, "{cause}"',
            )
        stop(gateway.process)

    for name, tls in (("empty", 'server_name = ""'), ("missing for an IP address", f'ca_file = "{ours.file}"')):
        (world.work / "check").mkdir(exist_ok=True)
        file = world.work / "check/gateway.toml"
        text = (world.work / "gateway-http1/gateway.toml").read_text()
        file.write_text(text.split("[[upstream]]")[0] + upstream("good", [port], "", tls) + route("/", "good"))
        done = subprocess.run([world.wxgate, "check", "-c", file], capture_output=True, text=True)
        said = (done.stdout + done.stderr).strip()
        world.promise(
            f"a server_name that is {name} is a problem",
            done.returncode != 0 and "server_name" in said,
            said.splitlines()[0][-200:] if said else "nothing",
        )


async def renewed_certificates(world):
    """Nothing fails while the service, its authority and the gateway's client certificate are renewed."""
    ours, next_one = Authority(world.work / "ours"), Authority(world.work / "next")
    files = {
        name: world.work / name for name in ("cert.pem", "key.pem", "ca.pem", "mine.pem", "mine.key", "clients.pem")
    }

    def put(pair, certificate, key):
        replace(files[certificate], pair[0].read_bytes())
        replace(files[key], pair[1].read_bytes())

    put(ours.issue(), "cert.pem", "key.pem")
    mine = ours.issue("DNS:gateway", "gateway")
    put(mine, "mine.pem", "mine.key")
    replace(files["ca.pem"], ours.file.read_bytes())
    replace(files["clients.pem"], ours.file.read_bytes() + next_one.file.read_bytes())
    port = free_port()
    process = nginx(
        world,
        "nginx",
        f"server {{ listen 127.0.0.1:{port} ssl; ssl_certificate {files['cert.pem']}; ssl_certificate_key {files['key.pem']};\n"
        f"ssl_client_certificate {files['clients.pem']}; ssl_verify_client on; keepalive_requests 20; "
        f"ssl_session_cache off;\n"
        'add_header X-Client-Serial $ssl_client_serial; location / { return 200 "ok"; } }',
    )
    wait_for(port, process, world.work / "nginx.log")
    tls = f'server_name = "localhost"\nca_file = "{files["ca.pem"]}"\n'
    tls += f'cert_file = "{files["mine.pem"]}"\nkey_file = "{files["mine.key"]}"\n'
    gateway = Gateway(
        world.wxgate,
        world.work / "gateway",
        upstream("shop", [port], "", tls) + route("/", "shop"),
        server='watch_interval = "50ms"',
    )
    load = Load(gateway.port, "/", clients=8, posts=0)
    seen = lambda: fetch(gateway.port, "/")[1]["X-Client-Serial"]
    world.promise("the service sees the client certificate", seen() == serial(mine[0]), seen())
    for _ in range(5):
        put(ours.issue(), "cert.pem", "key.pem")
        subprocess.run(
            [
                world.program("nginx"),
                "-c",
                world.work / "nginx/nginx.conf",
                "-e",
                world.work / "nginx/error.log",
                "-s",
                "reload",
            ],
            check=True,
            capture_output=True,
        )
        await asyncio.sleep(0.4)
    changed = []
    for _ in range(3):
        mine = ours.issue("DNS:gateway", "gateway")
        put(mine, "mine.pem", "mine.key")
        changed.append(await asyncio.to_thread(wait_until, lambda: seen() == serial(mine[0]), 5))
    world.promise("a renewed client certificate is used", None not in changed, f"after {changed} s")

    # First both authorities are trusted, then the service moves, then the old one goes.
    replace(files["ca.pem"], ours.file.read_bytes() + next_one.file.read_bytes())
    await asyncio.sleep(1)
    put(next_one.issue(), "cert.pem", "key.pem")
    subprocess.run(
        [
            world.program("nginx"),
            "-c",
            world.work / "nginx/nginx.conf",
            "-e",
            world.work / "nginx/error.log",
            "-s",
            "reload",
        ],
        check=True,
        capture_output=True,
    )
    await asyncio.sleep(0.5)
    replace(files["ca.pem"], next_one.file.read_bytes())
    await asyncio.sleep(1)
    records = await load.stop()
    failed = [record for record in records if not record.ok]
    world.promise(
        "services' certificates, their authority and the gateway's are renewed under load",
        not failed,
        f"10 renewals: {len(failed)} of {len(records)} requests failed {described(failed)}",
    )

    replace(files["ca.pem"], ours.file.read_bytes())
    status = await asyncio.to_thread(wait_until, lambda: fetch(gateway.port, "/")[0] == 502, 5)
    world.promise(
        "an authority that is no longer trusted is not, connections kept from before included",
        status is not None,
        f"502 after {status and round(status, 2)} s",
    )


SCENARIOS = [certificates_of_services, renewed_certificates]
