"""Django with PyJWT, and FastAPI with joserfc."""

import subprocess
import sys

from service import EXAMPLES, Service

SOURCE = EXAMPLES / "python"


def install(work):
    wanted = (SOURCE / "requirements.txt").read_text()
    ready = work / "ready"
    if not ready.exists() or ready.read_text() != wanted:
        subprocess.run([sys.executable, "-m", "venv", work / "venv"], check=True)
        pip = [work / "venv/bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "-r", SOURCE / "requirements.txt"], check=True)
        ready.write_text(wanted)


def services(work):
    programs = work / "venv/bin"
    versions = dict(
        line.replace("[crypto]", "").split("==")
        for line in (SOURCE / "requirements.txt").read_text().splitlines()
        if "==" in line
    )
    version = lambda *names: ", ".join(f"{name} {versions[name]}" for name in names)
    quiet = {"PYTHONDONTWRITEBYTECODE": "1"}
    # For the port.
    gunicorn = [
        "sh",
        "-c",
        'exec "$0" --threads 8 --bind "127.0.0.1:$PORT" django_service:application',
        programs / "gunicorn",
    ]
    fastapi = [programs / "python", "fastapi_service.py"]
    return [
        Service("python-django", gunicorn, SOURCE, libraries=version("Django", "PyJWT"), environment=quiet),
        Service("python-fastapi", fastapi, SOURCE, libraries=version("fastapi", "joserfc"), environment=quiet),
    ]
