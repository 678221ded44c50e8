"""Packages of Debian that bring no program, but files."""

import os
import shutil
import subprocess
from pathlib import Path


def install(present, *packages):
    """Whether this file is there; installs the packages first if it is not."""
    if not Path(present).exists() and os.getuid() == 0 and shutil.which("apt-get"):
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
            subprocess.run(["apt-get", "-qq", *command], env=environment, stdout=subprocess.DEVNULL, check=False)
    return Path(present).exists()


def version(package):
    """Of an installed package, without Debian's own part of it."""
    query = ["dpkg-query", "-W", "-f", "${Version}", package]
    return subprocess.run(query, capture_output=True, text=True, check=True).stdout.split(":")[-1].split("+")[0].split("-")[0]
