"""Requests of every shape to real services: nginx, Apache, Node, gunicorn, uvicorn, nghttpd, PHP-FPM."""

import asyncio
import hashlib
import json
import os

from client import Connection, once
from gateway import Authority, Gateway, fetch, free_port, route, upstream, wait_for
from services import PEERS, apache, gunicorn, nghttpd, nginx, node, php_fpm, uvicorn


async def shapes(gateway, token, openid, body_limit=5 << 20, chunked=True):
    """What is not as it should be, after requests of every shape on two connections."""
    wrong, count = [], 0
    session = [f"X-3rd-Session: {token}", "X-OpenId: mallory", "X_OpenId: mallory"]
    big = os.urandom(body_limit)
    for _ in range(2):
        connection = Connection(gateway.port)
        for method, path, body, parts in (
            ("GET", "/orders/1?a=b&c=%20", b"", False),
            ("HEAD", "/orders/1", b"", False),
            ("POST", "/orders", b"a=1", False),
            ("PUT", "/orders/2", b"", False),
            ("DELETE", "/orders/2", b"", False),
            ("POST", "/orders", big, False),
            ("POST", "/orders", b"in three parts", True),
            ("POST", "/orders", big[: 1 << 20], True),
            ("GET", "/orders/3", b"", False),
        ):
            if parts and not chunked:
                continue
            count += 1
            what = f"{method} of {len(body)} bytes{' in chunks' * parts}"
            try:
                response = await connection.request(method, path, session, body, parts)
            except Exception as error:
                wrong.append(f"{what}: {error!r}"[:150])
                connection = Connection(gateway.port)
                continue
            if response.status != 200 or not response.complete:
                wrong.append(f"{what}: {response.status} {response.body[:80]}")
            elif method != "HEAD":
                seen = json.loads(response.body)
                wanted = {
                    "method": method,
                    "path": path,
                    "openid": openid,
                    "length": len(body),
                    "sha256": hashlib.sha256(body).hexdigest(),
                    "host": "shop.example.com",
                }
                wrong += [f"{what}: {key} is {seen[key]!r}" for key, value in wanted.items() if seen[key] != value]
        connection.close()
    return wrong, count


def real_services(world):
    authority = Authority(world.work / "authority")
    certificate, key = authority.issue()
    mine, mine_key = authority.issue("DNS:gateway", "gateway")
    trust = f'server_name = "localhost"\nca_file = "{authority.file}"\n'
    both = trust + f'cert_file = "{mine}"\nkey_file = "{mine_key}"\n'
    keys = {"CERT": certificate, "KEY": key}
    collected = 'buffer_body = "2MiB"\n'
    ports = [free_port() for _ in range(6)]
    socket = php_fpm(world, "php")
    (world.work / "nginx").mkdir()
    ssl = f"ssl_certificate {certificate}; ssl_certificate_key {key};"
    fastcgi = (
        f"location / {{ fastcgi_pass unix:{socket}; fastcgi_param SCRIPT_FILENAME @FOLDER@/echo.php;"
        " fastcgi_param REQUEST_METHOD $request_method; fastcgi_param REQUEST_URI $request_uri;"
        " fastcgi_param HTTP_X_OPENID $http_x_openid; fastcgi_param HTTP_HOST $http_host;"
        " fastcgi_param CONTENT_LENGTH $content_length; fastcgi_param CONTENT_TYPE $content_type; }"
    )
    (world.work / "nginx/echo.php").write_bytes((PEERS / "echo.php").read_bytes())
    process = nginx(
        world,
        "nginx",
        f"server {{ listen 127.0.0.1:{ports[0]}; {fastcgi} }}\n"
        f"server {{ listen unix:@FOLDER@/http.sock; {fastcgi} }}\n"
        f"server {{ listen 127.0.0.1:{ports[1]} ssl; {ssl} ssl_client_certificate {authority.file}; ssl_verify_client on; {fastcgi} }}\n"
        f"server {{ listen 127.0.0.1:{ports[2]} ssl http2; {ssl} ssl_client_certificate {authority.file}; ssl_verify_client on; {fastcgi} }}\n"
        f"server {{ listen 127.0.0.1:{ports[3]} http2; {fastcgi} }}\n",
    )
    wait_for(ports[0], process, world.work / "nginx.log")
    apache(world, "apache", ports[4])
    apache(
        world,
        "apache2",
        ports[5],
        f"Protocols h2 http/1.1\nSSLEngine on\nSSLCertificateFile {certificate}\nSSLCertificateKeyFile {key}\n",
    )
    h2 = 'protocol = "h2"\n'
    unix = f"unix:{world.work}/nginx/http.sock"
    cases = [
        ("nginx and PHP-FPM", [ports[0]], "", None),
        ("nginx and PHP-FPM, unix socket", [unix], "", None),
        ("nginx, TLS, client certificate", [ports[1]], "", both),
        ("nginx, TLS, HTTP/2, client certificate", [ports[2]], h2, both),
        ("nginx, h2c", [ports[3]], h2, None),
        # mod_cgid gives a script no body without a length.
        ("Apache and CGI", [ports[4]], collected, None),
        ("Apache and CGI, TLS, HTTP/2", [ports[5]], h2 + collected, trust),
        ("Node", [node(world, "node")[0]], "", None),
        (
            "Node, TLS, client certificate",
            [node(world, "node-tls", "https", CLIENT_CA=authority.file, **keys)[0]],
            "",
            both,
        ),
        ("Node, h2c", [node(world, "node-h2c", "http2")[0]], h2, None),
        ("Node, TLS, HTTP/2", [node(world, "node-h2", "http2s", **keys)[0]], h2, trust),
        ("gunicorn", [gunicorn(world, "gunicorn")[0]], collected, None),
        (
            "gunicorn, TLS",
            [gunicorn(world, "gunicorn-tls", None, "--certfile", certificate, "--keyfile", key)[0]],
            collected,
            trust,
        ),
        ("uvicorn", [uvicorn(world, "uvicorn")[0]], "", None),
        (
            "uvicorn, TLS",
            [uvicorn(world, "uvicorn-tls", None, "--ssl-certfile", certificate, "--ssl-keyfile", key)[0]],
            "",
            trust,
        ),
    ]
    gateway = None
    for name, servers, more, tls in cases:
        sections = upstream("service", servers, more, tls) + route("/", "service", auth="required")
        if gateway is None:
            gateway = Gateway(world.wxgate, world.work / "gateway", sections)
            token, openid = gateway.login(), gateway.openid()
        else:
            gateway.reload(sections)
        wrong, count = asyncio.run(shapes(gateway, token, openid))
        world.promise(f"{name}: all shapes of requests", not wrong, "; ".join(wrong) or f"{count} of {count} as sent")


def files_of_real_services(world):
    """Downloads of files, conditional and in part, and what nghttpd echoes."""
    authority = Authority(world.work / "authority")
    certificate, key = authority.issue()
    trust = f'server_name = "localhost"\nca_file = "{authority.file}"\n'
    ports = [free_port() for _ in range(4)]
    content = os.urandom(3_000_000)
    (world.work / "nginx").mkdir()
    nginx(world, "nginx", f"server {{ listen 127.0.0.1:{ports[0]}; root @FOLDER@/files; }}")
    apache(world, "apache", ports[1])
    plain = nghttpd(world, "nghttpd", ports[2])
    secure = nghttpd(world, "nghttpd-tls", ports[3], key, certificate)
    h2 = 'protocol = "h2"\n'
    folders = {
        "nginx": world.work / "nginx/files",
        "apache": world.work / "apache/files",
        "nghttpd": plain,
        "nghttpd-tls": secure,
    }
    for folder in folders.values():
        (folder / "file.bin").write_bytes(content)
    sections = ""
    for name, port, more, tls in (
        ("nginx", ports[0], "", None),
        ("apache", ports[1], "", None),
        ("nghttpd", ports[2], h2, None),
        ("nghttpd-tls", ports[3], h2, trust),
    ):
        prefix = 'strip_prefix = "/apache"\nadd_prefix = "/files"' if name == "apache" else f'strip_prefix = "/{name}"'
        sections += upstream(name, [port], more, tls) + route(f"/{name}", name, prefix)
    gateway = Gateway(world.wxgate, world.work / "gateway", sections)
    for name in folders:
        wrong = []
        status, headers, body = fetch(gateway.port, f"/{name}/file.bin")
        if (status, body == content) != (200, True):
            wrong.append(f"GET: {status}, {len(body)} bytes")
        status, _, body = fetch(gateway.port, f"/{name}/absent")
        if status != 404:
            wrong.append(f"absent: {status}")
        if not name.startswith("nghttpd"):
            status, _, body = fetch(gateway.port, f"/{name}/file.bin", headers={"Range": "bytes=100-199"})
            if (status, body) != (206, content[100:200]):
                wrong.append(f"range: {status}, {len(body)} bytes")
            status, _, body = fetch(gateway.port, f"/{name}/file.bin", headers={"If-None-Match": headers["ETag"]})
            if (status, body) != (304, b""):
                wrong.append(f"condition: {status}")
        else:
            response = asyncio.run(once(gateway.port, "POST", f"/{name}/echo", body=content))
            if (response.status, response.body == content) != (200, True):
                wrong.append(f"echo: {response.status}, {len(response.body)} bytes")
        world.promise(
            f"{name}: files, ranges, conditions, errors", not wrong, "; ".join(wrong) or "all as the service sent them"
        )


SCENARIOS = [real_services, files_of_real_services]
