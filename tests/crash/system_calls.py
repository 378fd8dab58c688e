"""The system calls by which a job changes its files: listed, and made deadly one at a time, by strace.

Laws
    - A job waits (SIGSTOP) until strace has it, so the count of its calls begins with its first one.
    - strace counts for each thread and each call by its name. A job with a ``seed`` does all on one thread in one
      order, so the n-th call of one run is the n-th of the next.
    - SIGKILL comes as the call begins: it is not done. To be killed after it is to be killed before the next.
"""

import os
import re
import signal
import subprocess
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from crash.jobs import Job
from crash.nursery_of_kills import KILLED, Zygote

# "?": not every machine has each of them.
CHANGING = (
    "?write,?pwrite64,?writev,?pwritev,?pwritev2,?fsync,?fdatasync,?sync_file_range,?fallocate,?ftruncate,?truncate,"
    "?flock,?openat,?open,?creat,?rename,?renameat,?renameat2,?link,?linkat,?symlink,?symlinkat,?unlink,?unlinkat,"
    "?rmdir,?mkdir,?mkdirat,?chmod,?fchmod,?fchmodat,?copy_file_range,?sendfile"
)

CHECKING = ("newfstatat", "stat", "lstat", "statx")
"""By which a process looks at its lock before it changes anything."""

_LINE = re.compile(r"(\d+) +(\w+)\((.*)")
_OPENING = ("open", "openat")
_VARYING = re.compile(r"[0-9a-f]{16,}|\d+")


@dataclass(frozen=True, slots=True)
class SystemCall:
    """The ``nth`` call of a name in a process; ``pattern`` is the path that it changes, without its numbers."""

    name: str
    nth: int
    pattern: str


def attach(strace: str, pid: int, choices: list[str]) -> subprocess.Popen[str]:
    """Start strace on a process; it is traced when this returns. Raises PermissionError."""
    tracer = subprocess.Popen([strace, *choices, "-p", str(pid)], stderr=subprocess.PIPE, text=True)
    assert tracer.stderr is not None
    said = tracer.stderr.readline()
    if "attached" not in said:
        tracer.communicate()
        os.kill(pid, signal.SIGKILL)
        raise PermissionError(said)
    return tracer


def can_attach(strace: str) -> bool:
    """Whether processes may be traced here."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        try:
            tracer = attach(strace, process.pid, ["-o", os.devnull])
        except PermissionError:
            return False
        process.kill()
        tracer.communicate()
        return True


class Tracer:
    """Runs jobs under strace; their files are below ``directory``."""

    def __init__(self, zygote: Zygote, strace: str, directory: Path) -> None:
        self._zygote = zygote
        self._strace = strace
        self._directory = directory
        self._listing = directory.parent / "strace"

    def calls(self, job: Job) -> tuple[int, list[SystemCall]]:
        """Run a job to its end; its exit status, and every call that changes a file below the directory, or looks at
        one by its name, in order.
        """
        names = ",".join([CHANGING, *(f"?{name}" for name in CHECKING)])
        status = self._run(job, ["-e", f"trace={names}"])
        return status, self._listed()

    def kill(self, job: Job, at: SystemCall) -> int:
        """Run a job that is killed as it begins that call; its exit status."""
        status = self._run(job, ["-e", f"trace={at.name}", "-e", f"inject={at.name}:signal=SIGKILL:when={at.nth}"])
        if status == KILLED:
            last = [line for line in self._listing.read_text().splitlines() if _LINE.match(line)][-1]
            assert str(self._directory) in last, f"killed elsewhere than at {at}: {last}"
        return status

    def suspend(self, job: Job, at: SystemCall, meanwhile: Callable[[], None]) -> int:
        """Run a job that is suspended behind that call until ``meanwhile`` has ended; its exit status."""
        choices = ["-e", f"trace={at.name}", "-e", f"inject={at.name}:signal=SIGSTOP:when={at.nth}"]
        return self._run(job, choices, meanwhile)

    def _run(self, job: Job, choices: list[str], meanwhile: Callable[[], None] | None = None) -> int:
        tracers: list[subprocess.Popen[str]] = []

        def go_on(pid: int) -> None:
            if not tracers:
                tracers.append(attach(self._strace, pid, ["-f", "-y", "-s", "0", "-o", str(self._listing), *choices]))
            elif meanwhile is not None:
                meanwhile()
            os.kill(pid, signal.SIGCONT)

        status = self._zygote.run(replace(job, halted=True), stopped=go_on)
        for tracer in tracers:
            tracer.communicate()
        return status

    def _listed(self) -> list[SystemCall]:
        seen: Counter[tuple[str, str]] = Counter()
        found, threads = [], set()
        for line in self._listing.read_text().splitlines():
            match = _LINE.match(line)
            if match is None:
                continue
            thread, name, rest = match.groups()
            seen[thread, name] += 1
            if str(self._directory) not in rest or (name in _OPENING and "O_CREAT" not in rest):
                continue
            threads.add(thread)
            found.append(SystemCall(name, seen[thread, name], self._pattern(rest)))
        assert len(threads) <= 1, "files are changed on several threads: their calls cannot be counted"
        return found

    def _pattern(self, rest: str) -> str:
        path = rest.split(str(self._directory))[-1]  # of a rename the target
        return _VARYING.sub("#", re.split(r'[>"]', path)[0])
