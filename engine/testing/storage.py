"""A storage in memory that does to a program what disks do: forget, tear, lie, fail, fill up and wait.

    storage = SimulatedStorage(seed=7, faults=[FailCall("sync", nth=3)])
    ...                                      # what is to be tested, on this storage
    after = storage.crash()                  # the power fails: what a reboot would find
    assert storage.fired["sync EIO"] == 1

Laws
    - It replaces the system calls and nothing else: the loop over short writes, the refusal to sync again after a
      failure, and the walk that makes directories are those of ``engine.storage``.
    - What a crash may leave is said in ``engine.testing.disk``, what else may go wrong in
      ``engine.testing.storage_faults``.
    - One seed decides everything: the same calls on the same seed meet the same faults and leave the same ``trace``.
    - Every fault that fired is counted in ``fired`` by its name. A test asserts that its faults fired.
    - After ``crash``, ``kill`` or a power cut every call raises ``PowerLost``, also on files that are open: it is no
      ``Exception``, so nothing that mends errors catches it. ``close`` and ``release`` are harmless.
    - Relative paths begin at the root, which is the only directory of a new storage. There are no links.

Thread-safe; the order of calls of several threads is theirs. A slow call waits first and takes effect then, so a slow
sync also makes durable what others did while it was waiting.
"""

import errno
import posixpath
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, TypeAlias

import pyarrow as pa

from engine.storage import DIRECTORY_MODE, FILE_MODE, File, Held, Lock, Storage
from engine.testing.disk import (
    NOISE_BYTES,
    ROOT,
    Change,
    Disk,
    DropDirty,
    Entry,
    Flip,
    Loss,
    Naming,
    Resize,
    Sync,
    SyncNames,
    Write,
)
from engine.testing.machine import FULL, Begun, Call, Machine, PowerLost, fail
from engine.testing.storage_faults import CutPower, FailCall, Fault, FlipBit, LyingSync, ShortWrite

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Call", "PowerLost", "SimulatedStorage"]

Survival: TypeAlias = Literal["nothing", "some", "everything"]
"""How much of what was not synced outlives a loss of power; "some" is drawn by the seed."""

HELD_SINCE = datetime(2000, 1, 1, tzinfo=UTC)

PATHS_LIMIT = 1024
"""How many are remembered: the same ones are asked for in every run."""


class SimulatedStorage(Storage):
    """A ``Storage`` in memory with faults. Give it to whatever takes a ``Storage``.

    ``sleep`` is called with the seconds of a slow call, which are only counted without it. ``sector_bytes`` is what
    the disk writes whole: 512 or 4096. With ``record`` all changes are kept for ``engine.testing.crash_states``.

    ``capacity_bytes`` may be set at any time: files hold no more than that in all, as on a disk that is full.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        faults: Sequence[Fault] = (),
        sleep: Callable[[float], None] | None = None,
        sector_bytes: int = 512,
        record: bool = False,
        disk: Disk | None = None,
    ) -> None:
        self.capacity_bytes: int | None = None
        found = disk if disk is not None else Disk(sector_bytes=sector_bytes)
        self._machine = Machine(seed, found, faults, sleep, record=record)
        self._held: set[int] = set()

    # -- what happened --

    @property
    def trace(self) -> list[Call]:
        """Every call so far: (name, absolute path, size_bytes)."""
        return self._machine.trace

    @property
    def fired(self) -> Counter[str]:
        """How often each fault fired, by name."""
        return self._machine.fired

    @property
    def changes(self) -> int:
        """How often the disk changed so far; a sync is a change."""
        return self._machine.changes

    @property
    def recording(self) -> tuple[Disk, Sequence[tuple[Call, Change]]]:
        """The disk at the beginning, and all changes since then. Raises ValueError without ``record=True``."""
        if self._machine.recorded_from is None:
            raise ValueError("this storage keeps no changes; make it with record=True")
        return self._machine.recorded_from, self._machine.recorded

    def contents(self, below: str = "/") -> dict[str, bytes | None]:
        """All that programs see below a directory, by absolute path; None is a directory."""
        parent = f"{_absolute(below).rstrip('/')}/"
        with self._machine.mutex:
            disk = self._machine.disk
            found = ((f"/{path}", number) for path, number in disk.walk())
            return {
                path: bytes(disk.read(number)) if disk.is_file(number) else None
                for path, number in found
                if path.startswith(parent)
            }

    def used_bytes(self) -> int:
        """Bytes of all files that have a name."""
        with self._machine.mutex:
            return self._machine.disk.used_bytes()

    def disk(self) -> Disk:
        """A copy of the disk as programs see it, for another storage; what is not durable stays so."""
        with self._machine.mutex:
            return self._machine.disk.copy()

    def digests(self) -> dict[str, bytes]:
        """As ``contents``, with a digest in place of the bytes of a file, and an empty one for a directory."""
        with self._machine.mutex:
            return {f"/{path}": digest for path, digest in self._machine.disk.digests().items()}

    def copy(self) -> "SimulatedStorage":
        """Another one, without faults, that begins with the same disk; this one goes on."""
        with self._machine.mutex:
            return SimulatedStorage(disk=self._machine.disk.copy())

    # -- the end of the machine, or of the process; damage --

    def crash(self, survives: Survival = "some", *, faults: Sequence[Fault] = ()) -> "SimulatedStorage":
        """Lose power. Gives the storage that is found after the reboot; ``faults`` are its own.

        Called again, it gives what another loss at the same moment might have left.
        """
        machine = self._machine
        with machine.mutex:
            machine.fired["crash"] += 1
            loss = Loss(machine.disk, machine.chance.randbytes(NOISE_BYTES))
            if survives == "some":
                choice = [machine.chance.randrange(way) for way in loss.ways]
            else:
                choice = [way - 1 if survives == "everything" else 0 for way in loss.ways]
            return self._reboot(loss.image(choice).copy(), faults)

    def kill(self, *, faults: Sequence[Fault] = ()) -> "SimulatedStorage":
        """End the process and not the machine: the cache stays, and what was not synced still is not."""
        with self._machine.mutex:
            self._machine.fired["kill"] += 1
            return self._reboot(self._machine.disk.copy(), faults)

    def _reboot(self, disk: Disk, faults: Sequence[Fault]) -> "SimulatedStorage":
        machine = self._machine
        machine.gone = True
        record = machine.recorded_from is not None
        seed = machine.chance.getrandbits(32)
        found = SimulatedStorage(seed, faults=faults, sleep=machine.sleep, record=record, disk=disk)
        found.capacity_bytes = self.capacity_bytes
        return found

    def flip_bit(self, path: str, bit: int | None = None) -> int:
        """Damage a file on the disk: turn over that bit, or one that the seed chooses. Gives its number."""
        with self._machine.mutex:
            number = self._file_at(path)
            chosen = self._machine.chance.randrange(8 * len(self._machine.disk.read(number))) if bit is None else bit
            self._machine.change(Begun(Call("flip", _absolute(path)), []), Flip(number, chosen))
            self._machine.fired["bit flip"] += 1
            return chosen

    # -- Storage --

    def create(self, path: str, *, mode: int = FILE_MODE) -> File:
        """As ``Storage.create``; the mode is not kept."""
        begun = self._machine.begin("create", _absolute(path))
        with self._machine.mutex:
            return SimulatedFile(self, path, self._make(begun, path), writable=True)

    def open(self, path: str, *, write: bool = False) -> File:
        """As ``Storage.open``, but that a directory is refused for reading too."""
        self._machine.begin("open", _absolute(path))
        with self._machine.mutex:
            return SimulatedFile(self, path, self._file_at(path), writable=write)

    def _mkdir(self, path: str, mode: int = DIRECTORY_MODE) -> None:
        begun = self._machine.begin("make_directory", _absolute(path))
        with self._machine.mutex:
            self._make(begun, path, directory=True)

    def _make(self, begun: Begun, path: str, *, directory: bool = False) -> int:
        entry, found = self._entry(path)
        if found is not None:
            fail(errno.EEXIST, path)
        number = self._machine.disk.new_number()
        self._machine.change(begun, Naming(((entry, number),), made=number, directory=directory))
        return number

    def rename(self, source: str, target: str) -> None:
        """As ``Storage.rename``."""
        begun = self._machine.begin("rename", _absolute(source), also=_absolute(target))
        with self._machine.mutex:
            (old, moved), (new, replaced) = self._entry(source), self._entry(target)
            if moved is None:
                fail(errno.ENOENT, source, target)
            if moved == replaced:
                return
            is_file = self._machine.disk.is_file
            if not is_file(moved) and _absolute(target).startswith(_absolute(source) + "/"):
                fail(errno.EINVAL, source, target)
            if replaced is not None and is_file(moved) != is_file(replaced):
                fail(errno.EISDIR if is_file(moved) else errno.ENOTDIR, source, target)
            if replaced is not None and self._machine.disk.names.get(replaced):
                fail(errno.ENOTEMPTY, source, target)
            self._machine.change(begun, Naming(((old, None), (new, moved))))

    def unlink(self, path: str) -> None:
        """As ``Storage.unlink``."""
        begun = self._machine.begin("unlink", _absolute(path))
        with self._machine.mutex:
            self._file_at(path)
            self._machine.change(begun, Naming(((self._entry(path)[0], None),)))

    def remove_directory(self, path: str) -> None:
        """As ``Storage.remove_directory``."""
        begun = self._machine.begin("remove_directory", _absolute(path))
        with self._machine.mutex:
            if self._machine.disk.names[self._directory_at(path)]:
                fail(errno.ENOTEMPTY, path)
            self._machine.change(begun, Naming(((self._entry(path)[0], None),)))

    def list(self, path: str) -> list[str]:
        """As ``Storage.list``."""
        self._machine.begin("list", _absolute(path))
        with self._machine.mutex:
            return sorted(self._machine.disk.names[self._directory_at(path)])

    def tree(self, path: str) -> Iterator[str]:
        """As ``Storage.tree``."""
        self._machine.begin("tree", _absolute(path))
        with self._machine.mutex:
            directory, disk = self._directory_at(path), self._machine.disk
            found = [name for name, number in disk.walk(directory) if disk.is_file(number)]
        yield from found

    def exists(self, path: str) -> bool:
        """As ``Storage.exists``."""
        return self._number(path) is not None

    def is_directory(self, path: str) -> bool:
        """As ``Storage.is_directory``."""
        return self._number(path) in self._machine.disk.names

    def resolve(self, path: str) -> str:
        """As ``Storage.resolve``."""
        return _absolute(path)

    def same_filesystem(self, path: str, other: str) -> bool:
        """Always, where both are there."""
        with self._machine.mutex:
            self._machine.check_power()
            for each in (path, other):
                if self._entry(each)[1] is None:
                    fail(errno.ENOENT, each)
        return True

    def size(self, path: str) -> int:
        """As ``Storage.size``; of files only."""
        self._machine.begin("size", _absolute(path))
        with self._machine.mutex:
            return len(self._machine.disk.read(self._file_at(path)))

    def sync_directory(self, path: str) -> None:
        """As ``Storage.sync_directory``."""
        machine = self._machine
        begun = machine.begin("sync_directory", _absolute(path))
        with machine.mutex:
            number = self._directory_at(path)
            if not machine.fires(begun, LyingSync):
                machine.change(begun, SyncNames(number))

    def open_input(self, path: str) -> pa.NativeFile:
        """The file's bytes as they are now, for Arrow's readers."""
        with self.open(path) as file:
            return pa.BufferReader(file.pread(file.size, 0))

    def pause(self, seconds: float) -> None:
        """As a slow call: by the clock of the storage."""
        if self._machine.sleep is not None:
            self._machine.sleep(seconds)

    def lock(self, path: str) -> Lock:
        """As ``Storage.lock``. Nothing is written into the file, and the holder's name is the same in every run."""
        begun = self._machine.begin("lock", _absolute(path))
        with self._machine.mutex:
            number = self._file_at(path) if self._entry(path)[1] is not None else self._make(begun, path)
            if number in self._held:
                raise Held(path, pid=1, host="simulated", since=HELD_SINCE)
            self._held.add(number)
            return SimulatedLock(self, path, number)

    # -- paths --

    def _number(self, path: str) -> int | None:
        """The number of what a path names, None where there is nothing."""
        with self._machine.mutex:
            self._machine.check_power()
            try:
                return self._entry(path)[1]
            except OSError:
                return None

    def _entry(self, path: str) -> tuple[Entry, int | None]:
        """Where a name stands, and what it means now."""
        names = self._machine.disk.names
        *parents, name = _steps(path)
        directory = ROOT
        for parent in parents:
            below = names[directory].get(parent)
            if below is None:
                fail(errno.ENOENT, path)
            if below not in names:
                fail(errno.ENOTDIR, path)
            directory = below
        return (directory, name), ROOT if not name else names[directory].get(name)

    def _file_at(self, path: str) -> int:
        number = self._entry(path)[1]
        if number is None:
            fail(errno.ENOENT, path)
        if not self._machine.disk.is_file(number):
            fail(errno.EISDIR, path)
        return number

    def _directory_at(self, path: str) -> int:
        number = self._entry(path)[1]
        if number is None:
            fail(errno.ENOENT, path)
        if self._machine.disk.is_file(number):
            fail(errno.ENOTDIR, path)
        return number

    def _free_bytes(self) -> int | None:
        """What the disk still takes; None is any amount."""
        return None if self.capacity_bytes is None else max(0, self.capacity_bytes - self._machine.disk.used_bytes())


class SimulatedFile(File):
    """A file of a simulated storage: its system calls. The number of the file is its descriptor."""

    def __init__(self, storage: SimulatedStorage, path: str, number: int, *, writable: bool) -> None:
        self._storage = storage
        self._machine = storage._machine
        self._full_path = _absolute(path)
        super().__init__(path, number, writable=writable)

    def _close(self, descriptor: int) -> None:
        """Nothing is held that could be given back."""

    def _fstat_size(self) -> int:
        with self._machine.mutex:
            return len(self._machine.disk.read(self._fileno()))

    def _pwritev(self, buffers: Sequence[memoryview], offset: int) -> int:
        number, machine = self._fileno(), self._machine
        data = b"".join(buffers)
        begun = machine.note("append", self._full_path, size=len(data))
        with machine.mutex:
            if not self._writable:
                fail(errno.EBADF, self.path)
            cut = any(isinstance(f, CutPower) or (isinstance(f, FailCall) and f.errno in FULL) for f in begun.faults)
            if not cut:
                machine.fail_as_planned(begun)
            if cut or machine.fires(begun, ShortWrite):
                data = data[: machine.chance.randrange(len(data)) + (not cut)]
            free = self._storage._free_bytes()
            if free is not None:
                growth = offset + len(data) - len(machine.disk.read(number))
                if growth > free:
                    data = data[: len(data) - (growth - free)]
            if data:
                machine.change(begun, Write(number, offset, data))
            machine.fail_as_planned(begun)
            if not data:
                machine.fired["disk full"] += 1
                fail(errno.ENOSPC, self.path)
            return len(data)

    def _pread(self, size: int, offset: int) -> bytes:
        number, machine = self._fileno(), self._machine
        begun = machine.begin("pread", self._full_path, size=size)
        with machine.mutex:
            contents = machine.disk.read(number)
            stop = min(offset + size, len(contents))
            if stop > offset and machine.fires(begun, FlipBit):
                machine.change(begun, Flip(number, machine.chance.randrange(8 * offset, 8 * stop)))
            return bytes(contents[offset:stop])

    def _preadv(self, target: memoryview, offset: int) -> int:
        piece = self._pread(target.nbytes, offset)
        target[: len(piece)] = piece
        return len(piece)

    def _pread_many(self, offsets: "Buffer", sizes: "Buffer") -> bytes:
        self._fileno()
        pairs = zip(memoryview(offsets).cast("B").cast("q"), memoryview(sizes).cast("B").cast("q"), strict=True)
        return b"".join(self.pread(size, offset) for offset, size in pairs)

    def _ftruncate(self, size: int) -> None:
        begun = self._machine.begin("truncate", self._full_path, size=size)
        with self._machine.mutex:
            if size < 0 or not self._writable:
                fail(errno.EINVAL, self.path)
            self._machine.change(begun, Resize(self._fileno(), size))

    def _fdatasync(self) -> None:
        number, machine = self._fileno(), self._machine
        begun = machine.note("sync", self._full_path, size=self._size)
        with machine.mutex:
            if any(isinstance(fault, FailCall) for fault in begun.faults):
                machine.change(begun, DropDirty(number))
            machine.fail_as_planned(begun)
            if not machine.fires(begun, LyingSync):
                machine.change(begun, Sync(number))

    def _sync_file_range(self, offset: int, size: int) -> None:
        """A hint changes nothing: what it could write may survive anyway."""


class SimulatedLock(Lock):
    """The lock on a file of a simulated storage."""

    def __init__(self, storage: SimulatedStorage, path: str, number: int) -> None:
        self._storage = storage
        super().__init__(path, number)

    def check(self) -> None:
        """As ``Lock.check``."""
        self._storage._machine.begin("check", _absolute(self.path))
        super().check()

    def _is_named(self) -> bool:
        return self._storage._number(self.path) == self._fileno()

    def _close(self, descriptor: int) -> None:
        self._storage._held.discard(descriptor)


@lru_cache(maxsize=PATHS_LIMIT)
def _steps(path: str) -> tuple[str, ...]:
    """The names that lead there from the root; one that is empty for the root itself."""
    return tuple(_absolute(path).split("/")[1:])


@lru_cache(maxsize=PATHS_LIMIT)
def _absolute(path: str) -> str:
    return posixpath.normpath(f"/{path}").replace("//", "/")
