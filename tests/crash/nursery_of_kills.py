"""Runs jobs in forked children and kills them: the client of the zygote, and a reader that looks on."""

import dataclasses
import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow.parquet as pq
from crash import jobs, model

from engine.checkpoint import manifest

KILLED = -signal.SIGKILL


class Zygote:
    """The process that forks the jobs of a module. ``run`` gives a job's exit status: 0, or ``KILLED``."""

    def __init__(self, log: Path, module: str = jobs.__file__) -> None:
        command = [sys.executable, str(Path(__file__).with_name("zygote.py")), module]
        self._log = log.open("w")
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True
        )

    def run(self, job: Any, *, kill_after_s: float | None = None, stopped: Callable[[int], None] | None = None) -> int:
        """Run a job to its end, or kill it after a time; ``stopped`` is given its pid whenever it has been stopped."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(dataclasses.asdict(job)) + "\n")
        self._process.stdin.flush()
        pid = int(self._process.stdout.readline())
        if kill_after_s is not None:
            ended, _, _ = select.select([self._process.stdout], [], [], kill_after_s)
            if not ended:
                os.kill(pid, signal.SIGKILL)
        while (said := self._process.stdout.readline()) == "stopped\n":
            assert stopped is not None
            stopped(pid)
        return int(said)

    def said(self) -> str:
        """What the jobs wrote to their standard error, such as why they ended."""
        return Path(self._log.name).read_text()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._log.close()


class Onlooker:
    """Lists and reads the output all the time: every file it sees is whole and belongs to a committed epoch."""

    def __init__(self, output: Path, state: Path) -> None:
        self._output = output
        self._state = state
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.files_read = 0
        self.faults: list[str] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        seen: set[str] = set()
        last = False
        while not last:
            last = self._stop.wait(0.002)  # what is there in the end is looked at too
            names = set(os.listdir(self._output)) if self._output.is_dir() else set()
            fresh = sorted(names - seen)
            committed = self._last_commit() if fresh else 0
            for name in fresh:
                self._check(name, committed)
            seen |= names

    def _check(self, name: str, committed: int) -> None:
        match = model.NAME.fullmatch(name)
        if match is None:
            self.faults.append(f"{name} is no finished data file")
            return
        if int(match[2]) > committed:
            self.faults.append(f"{name} is visible, but epoch {committed} is the last that is committed")
        try:
            pq.ParquetFile(self._output / name).read()
        except Exception as error:
            self.faults.append(f"{name} is not whole: {error}")
        self.files_read += 1

    def _last_commit(self) -> int:
        """The last committed epoch, read after the files were listed: what was visible then must be committed now."""
        while True:
            newest = max(path for path in self._state.iterdir() if re.fullmatch(r"manifest-\d+", path.name))
            try:
                records = manifest.decode(newest.read_bytes()).records
            except FileNotFoundError:
                continue
            return max((record.epoch for record in records if isinstance(record, manifest.Commit)), default=0)
