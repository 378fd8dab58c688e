"""Consumer groups: named sets of offsets up to which rows were taken, one a partition.

    <log>/groups/<escaped name>        a document: {"name": …, "offsets": [partition 0, partition 1, …]}
    <log>/groups/<escaped name>.lock   flock of whoever is changing it

Laws
    - A committed offset is durable when ``commit`` returns, and never goes back unless ``rewind`` is asked to.
    - Only rows that are durable can have been taken: a committed offset proves that they are.
    - Retention keeps every row that a group has not taken; a group that is not wanted any more is to be deleted.
    - Any thread and any process may commit, without the log's lock: they take turns by the lock of the group, and none
      takes back what another one committed.
"""

import operator
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from engine.errors import CorruptLog, LogError
from engine.log.document import read_document, write_document
from engine.storage import Held, Lock, Storage

__all__ = ["Group", "Groups", "whole_number"]

_NAME_LIMIT = 200

LOOK_S = 0.005
LOOKS_LIMIT = 2_000
"""So often, for some 10 s, is looked whether another process has let go of a group; a commit takes milliseconds."""


def whole_number(value: Any, what: str) -> int:
    """An offset or the number of a partition as an int, also one of NumPy's. Raises LogError for anything else."""
    try:
        if not isinstance(value, bool):
            return operator.index(value)
    except TypeError:
        pass
    raise LogError(f"{what} must be a whole number, found {value!r}")


class Group:
    """One consumer group."""

    def __init__(
        self,
        storage: Storage,
        directory: str,
        name: str,
        partitions: int,
        end: Callable[[int], int],
        committing: threading.Lock,
    ) -> None:
        self.name = name
        self._end = end
        self._storage = storage
        self._directory = directory
        self._path = os.path.join(directory, _escaped(name))
        self._lock_path = f"{self._path}.lock"
        self._partitions = partitions
        self._committing = committing

    def __repr__(self) -> str:
        return f"Group({self.name!r}, offsets={self.offsets()})"

    def offsets(self) -> tuple[int, ...]:
        """By partition, the offset of the next row that the group has not taken; zeros before the first commit.

        Raises CorruptLog, LogError.
        """
        with self._explained("cannot be read"):
            document = read_document(self._storage, self._path)
        if document is None:
            return (0,) * self._partitions
        offsets = document.get("offsets")
        if document.get("name") != self.name or not isinstance(offsets, list) or len(offsets) != self._partitions:
            raise CorruptLog(f"{self._path} is damaged: it is not the group {self.name!r}.", path=self._path)
        return tuple(offsets)

    def commit(self, offset: int, *, partition: int = 0) -> None:
        """Everything before ``offset`` was taken; durable when this returns, and ignored where it is below what was
        committed. Raises LogError.
        """
        partition, offset = self._checked(partition, offset)
        with self._alone():
            self._set(partition, max(offset, self.offsets()[partition]))

    def rewind(self, offset: int, *, partition: int = 0) -> None:
        """Take the rows from ``offset`` on again. Raises LogError."""
        partition, offset = self._checked(partition, offset)
        with self._alone():
            self._set(partition, offset)

    def delete(self) -> None:
        """Forget the group: retention no longer waits for it. Harmless when repeated. Raises LogError."""
        if not self._storage.exists(self._path):
            return
        with self._alone(), self._explained("cannot be removed"):
            for path in (self._path, self._lock_path):
                with suppress(FileNotFoundError):  # somebody else was quicker
                    self._storage.unlink(path)
            self._storage.sync_directory(self._directory)

    def _checked(self, partition: int, offset: int) -> tuple[int, int]:
        partition = whole_number(partition, f"group {self.name!r}: the partition")
        offset = whole_number(offset, f"group {self.name!r}: the offset")
        if not 0 <= partition < self._partitions:
            raise LogError(f"group {self.name!r}: there is no partition {partition}; the log has {self._partitions}")
        end = self._end(partition)
        if not 0 <= offset <= end:
            raise LogError(f"group {self.name!r}: offset {offset:,} of partition {partition} is not in 0 to {end:,}")
        return partition, offset

    def _set(self, partition: int, offset: int) -> None:
        offsets = list(self.offsets())
        offsets[partition] = offset
        with self._explained(f"the offset {offset:,} could not be committed"):
            write_document(self._storage, self._path, {"name": self.name, "offsets": offsets})

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Nobody else changes the group meanwhile. Raises LogError."""
        with self._committing:
            with self._explained("cannot be changed"):
                self._storage.make_directory(self._directory)
                lock = self._locked()
            try:
                yield
            finally:
                lock.release()

    def _locked(self) -> Lock:
        looks = 0
        while True:
            try:
                return self._storage.lock(self._lock_path)
            except Held as held:
                if looks == LOOKS_LIMIT:
                    raise LogError(
                        f"{self._path}: cannot be changed: pid {held.pid} on host {held.host} has been at it since "
                        f"{held.since}.\n  What was committed before counts. Stop that process and commit again."
                    ) from held
            looks += 1
            self._storage.pause(LOOK_S)

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise LogError(f"{self._path}: {what}: {error}.\n  What was committed before counts.") from error


class Groups(Mapping[str, Group]):
    """The groups of a log by name; asking for a new name gives a group at offset 0, which its first commit makes."""

    def __init__(self, storage: Storage, directory: str, partitions: int, end: Callable[[int], int]) -> None:
        self._storage = storage
        self._directory = directory
        self._partitions = partitions
        self._end = end
        self._committing = threading.Lock()

    def __getitem__(self, name: str) -> Group:
        if not isinstance(name, str) or not name or len(_escaped(name)) > _NAME_LIMIT:
            raise LogError(f"{name!r} is no name of a group; a text of 1 to some 60 characters is needed")
        return Group(self._storage, self._directory, name, self._partitions, self._end, self._committing)

    def __iter__(self) -> Iterator[str]:
        if not self._storage.exists(self._directory):
            return
        for file in self._storage.list(self._directory):
            if (name := _unescaped(file)) is not None:
                yield name

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and any(name == other for other in self)

    def lowest(self, partition: int) -> int | None:
        """The lowest offset that any group has committed; None without groups. Raises CorruptLog."""
        return min((group.offsets()[partition] for group in self.values()), default=None)

    def highest(self, partition: int) -> int:
        """The highest offset that any group has committed. Raises CorruptLog."""
        return max((group.offsets()[partition] for group in self.values()), default=0)


def _escaped(name: str) -> str:
    """A file name for any text: it has no dot, so that it is never that of a tmp file."""
    return re.sub(rb"[^a-z0-9_]", lambda match: b"%%%02x" % match[0][0], name.encode("utf-8", "surrogatepass")).decode()


def _unescaped(file: str) -> str | None:
    """The name of the group in a file; None for a file of something else."""
    try:
        data = re.sub(rb"%([0-9a-f]{2})", lambda match: bytes([int(match[1], 16)]), file.encode("ascii"))
        name = data.decode("utf-8", "surrogatepass")
    except UnicodeError:
        return None
    return name if _escaped(name) == file else None
