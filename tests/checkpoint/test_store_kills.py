"""The state directory, killed at every storage operation, with and without a loss of power, also while recovering.

Verified: at every operation (before it, after it, in the middle of an append) of a job of several attempts, an
acknowledged commit is there, what is there was appended, no epoch number is used twice, the incarnation stays, and a
directory is never called corrupt. Power loss forgets what was not synced: all, or a random part (bytes and names).
Not verified here: fsyncs that lie; losses inside one file in units other than bytes from its end or 64-byte sectors.
"""

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.checkpoint.manifest import Commit
from engine.checkpoint.store import StateDirectory
from engine.storage import File, Lock, Storage

FINGERPRINT = {"sources": ["memory(a)"], "sink": "out"}
ROLL_AT_BYTES = 700
"""About two commits: files are rolled within a job."""


class Killed(BaseException):
    """The process is gone."""


class DiskFile(File):
    """A file whose operations go past the disk."""

    disk: "Disk"

    def append(self, *buffers):
        data = b"".join(bytes(buffer) for buffer in buffers)
        self.disk.step("before append")
        if self.disk.step("within append", fatal=False):
            super().append(data[: len(data) // 2])
            raise Killed
        size = super().append(data)
        self.disk.step("after append")
        return size

    def sync(self):
        self.disk.step("before sync")
        self.disk.durable_bytes[os.fstat(self._fileno()).st_ino] = self.pread(self.size, 0)
        self.disk.step("after sync")

    def truncate(self, size):
        raise AssertionError("nothing is ever truncated here")


class Disk(Storage):
    """A real directory that knows what a loss of power would leave of it; kills at the ``kill_at``-th step.

    Files are known by their inode; a second link keeps the inode, and so its number, from being used again.
    """

    def __init__(self, root: Path, kill_at: int | None = None) -> None:
        self.root = str(root)
        self.kill_at = kill_at
        self.steps: list[str] = []
        self.durable_bytes: dict[int, bytes] = {}
        self.durable_names: dict[str, dict[str, int]] = {}
        os.mkdir(f"{root}.inodes")

    def step(self, what: str, *, fatal: bool = True) -> bool:
        self.steps.append(what)
        killed = len(self.steps) == self.kill_at
        if killed and fatal:
            raise Killed(what)
        return killed

    def create(self, path: str, *, mode: int = 0o600) -> File:
        self.step("before create")
        super().create(path, mode=mode).close()
        self.keep(path)
        self.step("after create")
        return self.open(path, write=True)

    def open(self, path: str, *, write: bool = False) -> File:
        flags = os.O_RDWR if write else os.O_RDONLY
        file = DiskFile(path, os.open(path, flags | os.O_CLOEXEC), writable=write)
        file.disk = self
        return file

    def lock(self, path: str) -> Lock:
        self.step("before lock")
        lock = super().lock(path)
        self.keep(path)
        self.step("after lock")
        return lock

    def make_directory(self, path: str, *, mode: int = 0o700) -> None:
        self.step("before make_directory")
        super().make_directory(path, mode=mode)
        self.step("after make_directory")

    def rename(self, source: str, target: str) -> None:
        self.step("before rename")
        super().rename(source, target)
        self.step("after rename")

    def unlink(self, path: str) -> None:
        self.step("before unlink")
        super().unlink(path)
        self.step("after unlink")

    def sync_directory(self, path: str) -> None:
        self.step("before sync_directory")
        self.durable_names[os.path.abspath(path)] = self.names(path)
        self.step("after sync_directory")

    def names(self, path: str) -> dict[str, int]:
        return {entry.name: entry.inode() for entry in os.scandir(path)}

    def keep(self, path: str) -> None:
        inode = os.stat(path).st_ino
        link = f"{self.root}.inodes/{inode}"
        if not os.path.exists(link):
            os.link(path, link)
            self.durable_bytes.setdefault(inode, b"")

    def lose_power(self, chance: random.Random | None) -> None:
        """Leave what was synced; with ``chance``, also a random part of what was not."""
        state = f"{self.root}/state"
        if not os.path.isdir(state):
            return
        durable = self.durable_names.get(state, {})
        present = self.names(state)
        known = "state" in self.durable_names.get(self.root, {})
        left: dict[str, bytes] = {}
        for name in present.keys() | durable.keys():
            keeps_new = chance is not None and chance.random() < 0.5
            inode = present.get(name) if keeps_new else durable.get(name)
            if inode is not None and (known or keeps_new):
                left[name] = self.survives(inode, chance)
        for name in present:
            os.unlink(f"{state}/{name}")
        for name, data in left.items():
            Path(state, name).write_bytes(data)
            self.keep(f"{state}/{name}")
            self.durable_bytes[os.stat(f"{state}/{name}").st_ino] = data
        self.durable_names[state] = self.names(state)
        if not left and not known:
            os.rmdir(state)

    def survives(self, inode: int, chance: random.Random | None) -> bytes:
        data = self.durable_bytes[inode]
        if chance is None or chance.random() < 0.3:
            return data
        full = Path(f"{self.root}.inodes/{inode}").read_bytes()
        if not full.startswith(data):  # the LOCK file, which is written anew in place and whose bytes decide nothing
            return full
        if chance.random() < 0.3:
            return full[: chance.randint(len(data), len(full))]
        new = bytearray(full)
        for sector in range(len(data) // 64, len(full) // 64 + 1):
            if chance.random() < 0.5:
                start = max(sector * 64, len(data))
                stop = max(start, min((sector + 1) * 64, len(full)))
                new[start:stop] = bytes(stop - start)
        return bytes(new)


class Oracle:
    """What the attempts may rely on, and what they did."""

    def __init__(self) -> None:
        self.incarnation: str | None = None
        self.used: set[int] = set()
        self.appended: dict[int, Commit] = {}
        self.acknowledged = 0
        self.finished = 0

    def check(self, state: StateDirectory) -> None:
        """What must hold whenever the directory was opened."""
        last = state.last_commit
        epoch = last.epoch if last is not None else 0
        assert epoch >= self.acknowledged
        assert last is None or last == self.appended[epoch]
        assert state.next_epoch not in self.used
        assert state.next_epoch > max(self.used, default=0)
        if epoch <= self.finished:
            assert not state.publish_again
        if self.incarnation is not None:
            assert state.incarnation == self.incarnation
        self.incarnation = state.incarnation
        self.used |= {state.next_epoch, state.next_epoch + 1}


def attempt(disk: Disk, oracle: Oracle, commits: int) -> None:
    """One start of the owner: recover, then some commits. A kill leaves nothing behind but the disk."""
    opened: list[StateDirectory] = []
    try:
        path = f"{disk.root}/state"
        state = StateDirectory.open(disk, path, fingerprint=FINGERPRINT, roll_at_bytes=ROLL_AT_BYTES)
        opened.append(state)
        oracle.check(state)
        if state.publish_again:
            assert state.last_commit is not None
            state.append_final(state.last_commit.epoch)
            oracle.finished = state.last_commit.epoch
        for epoch in range(state.next_epoch, state.next_epoch + commits):
            counters = {"rows_in": epoch * 1000}
            oracle.used |= {epoch, epoch + 1}
            oracle.appended[epoch] = Commit(
                epoch, state.incarnation, state.term, FINGERPRINT, {"memory(a)": epoch}, {}, [["f", epoch]], counters
            )
            state.append_commit(oracle.appended[epoch])
            oracle.acknowledged = epoch
            oracle.used |= {epoch + 2}
            state.append_final(epoch)
            oracle.finished = epoch
    finally:
        for state in opened:
            state.close()


def loses_nothing(disk: Disk) -> None:
    """A kill alone: the page cache lives on."""


def loses_all(disk: Disk) -> None:
    disk.lose_power(None)


def loses_some(seed: int) -> Callable[[Disk], None]:
    chance = random.Random(seed)
    return lambda disk: disk.lose_power(chance)


@pytest.fixture
def fresh_disk(tmp_path):
    count = iter(range(1_000_000))

    def make() -> Disk:
        root = tmp_path / str(next(count))
        root.mkdir()
        disk = Disk(root)
        disk.durable_names[str(tmp_path)] = {root.name: 0}
        return disk

    return make


def run_killed(disk: Disk, oracle: Oracle, commits: int, kill_at: int) -> bool:
    """Whether the attempt was killed at its ``kill_at``-th step, or came to its end before."""
    disk.steps, disk.kill_at = [], kill_at
    try:
        attempt(disk, oracle, commits)
    except Killed:
        return True
    return False


def run_whole(disk: Disk, oracle: Oracle, commits: int) -> None:
    disk.steps, disk.kill_at = [], None
    attempt(disk, oracle, commits)


CRASHES = [loses_nothing, loses_all, loses_some(1)]
CRASH_NAMES = ["kill", "power lost", "power lost in part"]


@pytest.mark.parametrize("crash", CRASHES, ids=CRASH_NAMES)
@pytest.mark.parametrize("earlier", [0, 3], ids=["first start", "later start"])
def test_killed_at_every_step(fresh_disk, crash, earlier):
    kill_at = 1
    seen: set[str] = set()
    while True:
        disk, oracle = fresh_disk(), Oracle()
        if earlier:
            run_whole(disk, oracle, earlier)
        killed = run_killed(disk, oracle, 4, kill_at)
        seen.add(disk.steps[-1])
        if killed:
            crash(disk)
        run_whole(disk, oracle, 1)
        run_whole(disk, oracle, 0)
        if not killed:
            break
        kill_at += 1
    assert kill_at > 50
    assert {"within append", "after sync", "after rename", "after unlink", "before sync_directory"} <= seen


@pytest.mark.parametrize("crash", CRASHES, ids=CRASH_NAMES)
def test_killed_while_recovering_from_a_kill_while_recovering(fresh_disk, crash):
    """A commit that is half appended; then the recovery is killed at every step, and the recovery of that too."""
    chance = random.Random(7)
    within_commit = first_step_within_commit(fresh_disk())
    for kill_at in range(1, 200):
        disk, oracle = fresh_disk(), Oracle()
        run_whole(disk, oracle, 2)
        assert run_killed(disk, oracle, 3, within_commit)
        crash(disk)
        killed = run_killed(disk, oracle, 0, kill_at)
        if killed:
            crash(disk)
        for _ in range(2):
            if run_killed(disk, oracle, 0, chance.randint(1, kill_at)):
                crash(disk)
        run_whole(disk, oracle, 1)
        if not killed:
            assert kill_at > 15
            return
    pytest.fail("the recovery never came to its end")


def first_step_within_commit(disk: Disk) -> int:
    """The step in the middle of the first COMMIT of a second attempt."""
    oracle = Oracle()
    run_whole(disk, oracle, 2)
    run_whole(disk, oracle, 1)
    last_rename = max(at for at, step in enumerate(disk.steps, 1) if step == "after rename")
    return next(at for at, step in enumerate(disk.steps, 1) if at > last_rename and step == "within append")


@pytest.mark.parametrize("seed", range(8))
def test_many_attempts_killed_at_random(fresh_disk, seed):
    chance = random.Random(seed)
    disk, oracle = fresh_disk(), Oracle()
    for _ in range(25):
        if run_killed(disk, oracle, chance.randint(0, 5), chance.randint(1, 90)) and chance.random() < 0.7:
            disk.lose_power(chance if chance.random() < 0.8 else None)
    run_whole(disk, oracle, 1)
    assert oracle.acknowledged > 20
    names = set(os.listdir(f"{disk.root}/state"))
    assert {name for name in names if name.startswith("manifest") and ".torn-" not in name} == {
        max(name for name in names if name.startswith("manifest") and ".torn-" not in name)
    }
