"""Plain PHP, and Laravel of Debian's package; both with firebase/php-jwt.

Debian has no package of firebase/php-jwt. It is taken from Composer, or from the folder PHP_JWT, which is a
copy of its repository. Debian's Laravel is version 8; the middleware uses nothing that newer ones do not have.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import gateway
from languages import debian
from service import EXAMPLES, Service

LIBRARY = "firebase/php-jwt"
LARAVEL = "/usr/share/php/Illuminate/Foundation/Application.php"
HERE = Path(__file__).resolve().parent


def install(work):
    if not gateway.apt("php", "php-cli"):
        return "php is missing (Debian: php-cli)"
    plain = work / "plain"
    plain.mkdir(exist_ok=True)
    # Its folder is where Composer's would be.
    shutil.copy(EXAMPLES / "php/identity.php", plain)
    why = library(plain)
    if why:
        return why
    packages = ["php-apcu", "php-mbstring", "php-laravel-framework", "php-guzzlehttp-guzzle"]
    if not debian.install(LARAVEL, *packages) or not extensions() >= {"apcu", "mbstring", "openssl", "sodium"}:
        return f"an extension or Laravel is missing (Debian: {' '.join(packages)})"
    return None


def extensions():
    return set(subprocess.run(["php", "-m"], capture_output=True, text=True, check=True).stdout.split())


def library(plain):
    """Installs firebase/php-jwt; why not."""
    copied, vendor = os.environ.get("PHP_JWT"), plain / "vendor"
    if copied:
        shutil.rmtree(vendor, ignore_errors=True)
        shutil.copytree(Path(copied) / "src", vendor / LIBRARY / "src")
        changes = Path(copied) / "CHANGELOG.md"
        if changes.exists():
            shutil.copy(changes, vendor / LIBRARY)
        (vendor / "autoload.php").write_text((HERE / "autoload.php").read_text())
    elif not (vendor / "autoload.php").exists() and shutil.which("composer"):
        command = ["composer", "--no-interaction", "--quiet", "require", f"{LIBRARY}:^7.0"]
        subprocess.run(command, cwd=plain, timeout=120, check=False)
    if not (vendor / "autoload.php").exists():
        return f"Debian has no {LIBRARY}: install composer, or set PHP_JWT to a copy of its repository"
    return None


def version(plain):
    changes = plain / "vendor" / LIBRARY / "CHANGELOG.md"
    found = changes.exists() and re.search(r"\d+\.\d+\.\d+", changes.read_text())
    return f"php-jwt {found[0]}" if found else "php-jwt"


def services(work):
    plain, laravel = work / "plain", work / "laravel"
    for folder in ("bootstrap/cache", "storage/framework/views", "resources/views", "lang"):
        (laravel / folder).mkdir(parents=True, exist_ok=True)
    # The keys are cached where all processes have them.
    server = 'exec php -d apc.enable_cli=1 -d display_errors=stderr -S "127.0.0.1:$PORT" "$0"'
    several = {"PHP_CLI_SERVER_WORKERS": "4"}
    places = {"VENDOR": plain / "vendor", "EXAMPLE": EXAMPLES / "php/laravel", "BASE": laravel}
    verifier = version(plain)
    framework = f"Laravel {debian.version('php-laravel-framework')}"
    return [
        Service("php", ["sh", "-c", server, plain / "identity.php"], libraries=verifier, environment=several),
        Service(
            "php-laravel",
            ["sh", "-c", server, HERE / "laravel.php"],
            libraries=f"{framework}, {verifier}",
            environment={**several, **places},
        ),
    ]
