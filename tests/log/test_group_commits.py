"""Several that commit for one consumer group: each through a log of its own, in this process and in others."""

import subprocess
import sys
import threading

import pyarrow as pa
import pytest

from engine import Log
from engine.errors import LogError
from engine.log import groups
from engine.storage import Storage

ROWS = 200

COMMITTER = """
import sys
from engine import Log

path, partition, rows = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with Log(path, write=False) as log:
    group = log.groups["readers"]
    print("ready", flush=True)
    sys.stdin.readline()
    for offset in range(1, rows + 1):
        group.commit(offset, partition=partition)
        assert group.offsets()[partition] == offset, (offset, group.offsets())
"""


def filled(path, partitions):
    with Log(path, partitions=partitions) as log:
        for partition in range(partitions):
            log.append(pa.table({"n": range(ROWS)}), partition=partition)


class Interposed(Storage):
    """Calls ``between`` once, when the group was read and its next version is about to be written."""

    def __init__(self, between):
        self._between = between

    def create(self, path, **options):
        if path.endswith("/readers.tmp"):
            between, self._between = self._between, lambda: None
            between()
        return super().create(path, **options)


class Waiting(Storage):
    """Says when it is made to wait, and waits for an event in place of the clock."""

    def __init__(self, waits, go_on):
        self._waits = waits
        self._go_on = go_on
        self.pauses = 0

    def pause(self, seconds):
        self.pauses += 1
        self._waits.set()
        self._go_on.wait()


@pytest.mark.parametrize("partition", [0, 1])
def test_a_commit_in_the_middle_of_another_one_is_not_lost(tmp_path, partition):
    filled(tmp_path / "log", 2)
    settled, done = threading.Event(), threading.Event()
    waiting = Waiting(settled, done)

    def commit_too():
        with Log(tmp_path / "log", write=False, storage=waiting) as log:
            log.groups["readers"].commit(150, partition=partition)
        settled.set()

    other = threading.Thread(target=commit_too)

    def between():
        other.start()
        settled.wait()

    with Log(tmp_path / "log", write=False, storage=Interposed(between)) as log:
        group = log.groups["readers"]
        group.commit(100, partition=0)
        done.set()
        other.join()
        assert group.offsets() == ((150, 0) if partition == 0 else (100, 150))
    assert waiting.pauses >= 1


def test_processes_that_commit_at_the_same_time(tmp_path):
    filled(tmp_path / "log", 3)
    command = [sys.executable, "-c", COMMITTER, str(tmp_path / "log")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([*command, str(partition), str(ROWS)], **pipes) for partition in range(3)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        process.communicate()
    assert [process.returncode for process in processes] == [0, 0, 0]
    with Log(tmp_path / "log", write=False) as log:
        assert log.groups["readers"].offsets() == (ROWS, ROWS, ROWS)
        assert list(log.groups) == ["readers"]


def test_a_group_that_another_process_never_lets_go_of(tmp_path, monkeypatch):
    filled(tmp_path / "log", 1)
    monkeypatch.setattr(groups, "LOOKS_LIMIT", 3)
    with Log(tmp_path / "log", write=False) as log:
        group = log.groups["readers"]
        group.commit(5)
        holder = Storage().lock(str(tmp_path / "log" / "groups" / "readers.lock"))
        with pytest.raises(LogError, match=r"pid \d+ on host .* has been at it since (.|\n)*Stop that process"):
            group.commit(6)
        assert group.offsets() == (5,)
        holder.release()
        group.commit(6)
        assert group.offsets() == (6,)
        group.delete()
        assert list((tmp_path / "log" / "groups").iterdir()) == []
