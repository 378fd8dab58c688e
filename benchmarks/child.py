"""A contender in a process of its own: its memory, its threads and the state of its allocator are its own.

A job is ``module:function`` beside this file; called with the arguments, it makes a ``Contender`` in the child. The two
sides go in step, a line each:

    child   ready               it has imported and prepared
    parent  go                  from here on it looks at the child's memory and threads, every few milliseconds
    child   done SECONDS CPU_S  and does nothing until
    parent  answer
    child   {"answer": …}       JSON: tuples arrive as lists

The parent looks from outside, so the child's work is not disturbed, and making the answer does not count.
"""

import gc
import importlib
import json
import os
import resource
import select
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from contest import Round

__all__ = ["ChildContender"]

LOOK_EVERY_S = 0.02
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class ChildContender:
    """A contender whose rounds are child processes; ``answer`` makes of the child's answer what is compared."""

    name: str
    job: str
    arguments: dict[str, Any]
    answer: Callable[[Any], Any] = lambda answer: answer
    environment: Mapping[str, str] = field(default_factory=dict)

    def round(self, repeat: int) -> Round:
        """Start the child, let it work once, and end it. RuntimeError when it fails."""
        assert repeat == 1, "a child works once"
        settings = [f"{name}={value}" for name, value in self.environment.items()]
        command = [sys.executable, __file__, self.job, json.dumps(self.arguments)]
        with subprocess.Popen(
            ["/usr/bin/env", *settings, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            self._expect(process, "ready")
            self._tell(process, "go")
            watch = _Watch(process.pid)
            assert process.stdout is not None
            while not select.select([process.stdout], [], [], LOOK_EVERY_S)[0]:
                watch.look()
            seconds, cpu_s = self._expect(process, "done")
            watch.look()
            self._tell(process, "answer")
            told = json.loads(process.stdout.readline() or "null")
        if process.returncode:
            raise RuntimeError(f"{self.name}: the child ended with {process.returncode}; its errors are above")
        return Round(
            float(seconds),
            self.answer(told["answer"]),
            told["note"],
            watch.peak_bytes,
            float(cpu_s),
            watch.thread_cpu_s(),
        )

    def _expect(self, process: "subprocess.Popen[str]", word: str) -> list[str]:
        assert process.stdout is not None
        line = process.stdout.readline().split()
        if line[:1] != [word]:
            process.kill()
            raise RuntimeError(f"{self.name}: expected {word!r} of the child, found {line}; its errors are above")
        return line[1:]

    @staticmethod
    def _tell(process: "subprocess.Popen[str]", word: str) -> None:
        assert process.stdin is not None
        process.stdin.write(f"{word}\n")
        process.stdin.flush()


class _Watch:
    """The most anonymous memory of a process, and the CPU time of its threads, those that have ended too."""

    def __init__(self, pid: int) -> None:
        self._process = Path("/proc") / str(pid)
        self._began: dict[str, int] = {}
        self._latest: dict[str, int] = {}
        self.peak_bytes = 0
        self.look()
        self._began = dict(self._latest)

    def look(self) -> None:
        status = (self._process / "status").read_text()
        memory = next((line for line in status.splitlines() if line.startswith("RssAnon")), None)
        if memory is not None:
            self.peak_bytes = max(self.peak_bytes, int(memory.split()[1]) * 1024)
        for thread in (self._process / "task").iterdir():
            try:
                # After the name, which is in parentheses: user and system time are the 12th and 13th field.
                fields = (thread / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has just ended
            self._latest[thread.name] = int(fields[11]) + int(fields[12])

    def thread_cpu_s(self) -> tuple[float, ...]:
        used = [ticks - self._began.get(thread, 0) for thread, ticks in self._latest.items()]
        return tuple(round(ticks * TICK_S, 2) for ticks in sorted(used, reverse=True) if ticks)


def _cpu_s() -> float:
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def main(job: str, arguments: str) -> None:
    """The child's side."""
    # What libraries print must not get between the lines.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    module, _, function = job.partition(":")
    contender = getattr(importlib.import_module(module), function)(**json.loads(arguments))
    prepared = () if contender.prepare is None else (contender.prepare(),)
    gc.collect()
    print("ready", file=answers)
    sys.stdin.readline()
    cpu_s, began_s = _cpu_s(), time.perf_counter()
    result = contender.run(*prepared)
    seconds = time.perf_counter() - began_s
    print(f"done {seconds} {_cpu_s() - cpu_s}", file=answers)
    sys.stdin.readline()
    note = "" if contender.note is None else contender.note(result)
    print(json.dumps({"answer": contender.answer(result), "note": note}), file=answers)


if __name__ == "__main__":
    main(*sys.argv[1:])
