"""Go with go-jose, of Debian's package."""

import os
import shutil
import subprocess

import gateway
from languages import debian
from service import EXAMPLES, Service

PACKAGE = "golang-gopkg-square-go-jose.v2-dev"
SOURCES = "/usr/share/gocode"


def install(work):
    if not gateway.apt("go", "golang-go"):
        return "go is missing (Debian: golang-go)"
    if not debian.install(f"{SOURCES}/src/gopkg.in/square/go-jose.v2/jwt", PACKAGE):
        return f"go-jose is missing (Debian: {PACKAGE})"
    environment = {**os.environ, "GO111MODULE": "off", "GOPATH": SOURCES, "GOFLAGS": "", "GOCACHE": str(work / "cache")}
    source = EXAMPLES / "go/identity.go"
    for command in (["vet"], ["build", "-o", work / "identity"]):
        subprocess.run([shutil.which("go"), *command, source], env=environment, check=True)
    return None


def services(work):
    return [Service("go", [work / "identity"], libraries=f"go-jose {debian.version(PACKAGE)}")]
