"""Express and Nest, both with jose."""

import json
import shutil
import subprocess

import gateway
from service import EXAMPLES, Service

NAMES = ("express", "nest")


def install(work):
    if not gateway.apt("node", "nodejs") or not gateway.apt("npm", "npm"):
        return "node or npm is missing (Debian: nodejs, npm)"
    version = subprocess.run(["node", "--version"], capture_output=True, text=True).stdout.strip()
    if int(version.lstrip("v").split(".")[0]) < 20:
        return f"jose needs Node 20, this is {version}"
    for name in NAMES:
        # npm writes beside package.json, so not into the sources.
        folder, source = work / name, EXAMPLES / "node" / name
        wanted = (source / "package.json").read_text()
        ready = folder / "ready"
        if not ready.exists() or ready.read_text() != wanted:
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(source, folder)
            npm = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
            subprocess.run(npm, cwd=folder, check=True)
            ready.write_text(wanted)
        shutil.copytree(source, folder, dirs_exist_ok=True)
    subprocess.run(["npm", "run", "--silent", "build"], cwd=work / "nest", check=True)


def services(work):
    def libraries(name, *packages):
        found = json.loads((EXAMPLES / "node" / name / "package.json").read_text())["dependencies"]
        return ", ".join(f"{package} {found[package]}" for package in packages)

    return [
        Service(
            "node-express", ["node", "service.mjs"], work / "express", libraries=libraries("express", "express", "jose")
        ),
        Service(
            "node-nest", ["node", "dist/main.js"], work / "nest", libraries=libraries("nest", "@nestjs/core", "jose")
        ),
    ]
