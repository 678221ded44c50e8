"""Java without libraries: the JDK verifies. Also as an OAuth2 resource server, as Spring Security is one."""

import subprocess

import gateway
from service import EXAMPLES, Service


def install(work):
    if not gateway.apt("javac", "default-jdk-headless"):
        return "javac is missing (Debian: default-jdk-headless)"
    compiler = ["javac", "-Xlint:all", "-Werror", "-d", work / "classes", EXAMPLES / "java/Identity.java"]
    subprocess.run(compiler, check=True)
    return None


def services(work):
    version = subprocess.run(["javac", "-version"], capture_output=True, text=True, check=True).stdout.split()[1]
    given = {"command": ["java", "-cp", work / "classes", "Identity"], "libraries": f"JDK {version}"}
    bearer = {"header": "Authorization", "environment": {"WXGATE_HEADER": "Authorization"}}
    return [Service("java", **given), Service("java-resource-server", **given, **bearer)]
