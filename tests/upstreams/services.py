"""Starts the real services."""

import os
import shutil
import sys

from gateway import HERE, free_port, start, wait_for, wait_until

PEERS = HERE / "peers"


def node(world, name, protocol="http", port=None, **environment):
    """Port, process and log of its requests."""
    port = port or free_port()
    requests, log = world.work / f"{name}.requests", world.work / f"{name}.log"
    process = start(
        ["node", PEERS / "service.mjs"], log, PORT=port, PROTOCOL=protocol, NAME=name, LOG=requests, **environment
    )
    wait_for(port, process, log)
    return port, process, requests


def faulty(world, name="faulty", *options, port=None, host="127.0.0.1"):
    port = port or free_port()
    requests, log = world.work / f"{name}.requests", world.work / f"{name}.log"
    command = [sys.executable, PEERS / "faulty.py", port, "--name", name, "--log", requests, "--host", host, *options]
    process = start(command, log)
    wait_for(port, process, log, host)
    return port, process, requests


def uvicorn(world, name, port=None, *options):
    port = port or free_port()
    requests, log = world.work / f"{name}.requests", world.work / f"{name}.log"
    command = [
        sys.executable,
        "-m",
        "uvicorn",
        "--app-dir",
        PEERS,
        "--port",
        port,
        "--no-access-log",
        *options,
        "app:asgi",
    ]
    process = start(command, log, NAME=name, LOG=requests)
    wait_for(port, process, log)
    return port, process, requests


def gunicorn(world, name, port=None, *options):
    port = port or free_port()
    requests, log = world.work / f"{name}.requests", world.work / f"{name}.log"
    command = [sys.executable, "-m", "gunicorn", "--chdir", PEERS, "--bind", f"127.0.0.1:{port}", "--threads", 8]
    process = start([*command, *options, "app:wsgi"], log, NAME=name, LOG=requests, PYTHONDONTWRITEBYTECODE=1)
    wait_for(port, process, log)
    return port, process, requests


def grpc_server(world, name, port=None, **environment):
    port = port or free_port()
    requests, log = world.work / f"{name}.requests", world.work / f"{name}.log"
    process = start([sys.executable, PEERS / "grpc_server.py", port], log, NAME=name, LOG=requests, **environment)
    wait_for(port, process, log)
    return port, process, requests


def nginx(world, name, servers):
    """`servers` are the blocks of its configuration, with @FOLDER@ for its directory."""
    folder = world.work / name
    folder.mkdir(exist_ok=True)
    folder.chmod(0o755)
    (folder / "files").mkdir(exist_ok=True)
    user = "user root;" if os.getuid() == 0 else ""
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"{user} worker_processes 1; pid {folder}/pid; error_log {folder}/error.log; daemon off;\n"
        f"events {{ worker_connections 4096; }}\n"
        f"http {{ access_log off; {temporary} client_max_body_size 0;\n{servers.replace('@FOLDER@', str(folder))}\n}}\n"
    )
    log = world.work / f"{name}.log"
    return start([world.program("nginx"), "-p", folder, "-e", folder / "error.log", "-c", folder / "nginx.conf"], log)


def apache(world, name, port, more=""):
    """Serves echo.cgi as /, and the files of its directory as /files."""
    folder = world.work / name
    (folder / "cgi").mkdir(parents=True)
    (folder / "files").mkdir()
    shutil.copy(PEERS / "echo.cgi", folder / "cgi/echo.cgi")
    modules = "mpm_event authz_core alias cgid ssl http2 socache_shmcb mime"
    loads = "".join(
        f"LoadModule {module}_module /usr/lib/apache2/modules/mod_{module}.so\n" for module in modules.split()
    )
    (folder / "apache.conf").write_text(
        f"{loads}ServerName localhost\nListen 127.0.0.1:{port}\nPidFile {folder}/pid\nErrorLog {folder}/error.log\n"
        f"DefaultRuntimeDir {folder}\nScriptSock {folder}/cgi.sock\nUser www-data\nGroup www-data\n"
        f"TypesConfig /dev/null\n"
        f"Alias /files {folder}/files\nScriptAlias / {folder}/cgi/echo.cgi/\n"
        f"<Directory {folder}>\nRequire all granted\n</Directory>\n{more}\n"
    )
    log = world.work / f"{name}.log"
    process = start([world.program("apache2"), "-D", "FOREGROUND", "-f", folder / "apache.conf"], log)
    wait_for(port, process, log)
    return process


def php_fpm(world, name):
    """The path of its socket."""
    folder = world.work / name
    folder.mkdir()
    (folder / "fpm.conf").write_text(
        f"[global]\nerror_log = {folder}/error.log\ndaemonize = no\n[www]\nlisten = {folder}/php.sock\n"
        "pm = static\npm.max_children = 4\nuser = www-data\ngroup = www-data\nlisten.mode = 0666\n"
    )
    process = start([world.program("php-fpm"), "-y", folder / "fpm.conf", "-R"], world.work / f"{name}.log")
    assert wait_until(lambda: (folder / "php.sock").exists(), 10) is not None, process
    return folder / "php.sock"


def nghttpd(world, name, port, *key_and_certificate):
    """Serves its directory, and echoes what is sent to it; without a key it speaks h2c."""
    folder = world.work / name
    folder.mkdir()
    log = world.work / f"{name}.log"
    process = start(
        [
            world.program("nghttpd"),
            "--echo-upload",
            "-d",
            folder,
            *([] if key_and_certificate else ["--no-tls"]),
            port,
            *key_and_certificate,
        ],
        log,
    )
    wait_for(port, process, log)
    return folder
