"""Programs that the tests start, and their children: the new process is one of the old process."""

import ctypes
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
started = []


def adopt_orphans():
    """Makes processes whose parent has ended children of this one, which learns how they end."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


class Process:
    """A process by its id, whoever has started it."""

    def __init__(self, pid, popen=None):
        self.pid, self.popen, self.code = pid, popen, None
        started.append(self)

    def poll(self):
        """The exit code; negative if a signal has ended it. `None` while it runs."""
        if self.code is not None:
            return self.code
        if self.popen is not None:
            self.code = self.popen.poll()
            return self.code
        try:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        except ChildProcessError:
            # Its parent is another process, which waits for it.
            if not Path(f"/proc/{self.pid}").exists() or self.state() == "Z":
                self.code = 255
        return self.code

    def state(self):
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except FileNotFoundError:
            return "Z"

    def send(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def wait(self, within):
        """The exit code, or `None` if it still runs."""
        wait_until(lambda: self.poll() is not None, within, 0.005)
        return self.poll()

    def end(self, how=signal.SIGTERM, within=15):
        self.send(how)
        if self.wait(within) is None:
            self.send(signal.SIGKILL)
            self.wait(5)
        return self.code

    def memory(self):
        """RSS in KiB."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
        return 0


def start(command, log, environment=None, **more):
    with open(log, "a") as output:
        popen = subprocess.Popen(
            [str(word) for word in command],
            **{"stdin": subprocess.DEVNULL, "stdout": output, "stderr": output} | more,
            env={**os.environ, **{key: str(value) for key, value in (environment or {}).items()}},
        )
    return Process(popen.pid, popen)


def end_all():
    for process in started:
        process.send(signal.SIGCONT)
        process.end(signal.SIGKILL)
    started.clear()


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_until(holds, within, every=0.02):
    """Seconds until it holds; `None` if it does not within the time."""
    began = time.monotonic()
    while True:
        if holds():
            return time.monotonic() - began
        if time.monotonic() - began > within:
            return None
        time.sleep(every)


def wait_for_port(port, process, log):
    def answers():
        if process.poll() is not None:
            raise AssertionError(f"it does not start:\n{Path(log).read_text()[-3000:]}")
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return True
        except OSError:
            return False

    assert wait_until(answers, 30) is not None, Path(log).read_text()[-3000:]
