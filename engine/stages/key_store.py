"""The full keys of a window's rows by position: recent ones in memory, older ones on disk.

Laws
    - Every key of the positions [start, tail) that can still answer is here; before ``start`` ids are the keys
      themselves. Which keys are in memory, and when they go to disk, changes no answer.
    - Only committed keys go to disk. Durable: all of them do, and a snapshot names them; else those for which memory
      has no room.
    - Files: ``key_log``. One owner at a time.
"""

import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypedDict

import numpy as np
import pyarrow as pa

from engine._core.key_pages import DamagedKeysError, KeyPages
from engine.errors import CorruptState
from engine.stages.key_log import FRAME_BYTES, KeyLog, KeySegmentState
from engine.storage import Storage

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["KeyStore", "KeyStoreState"]

PAGE_BYTES = 2**18


class KeyStoreState(TypedDict):
    """The committed keys as a snapshot names them: from which position on, up to which on disk, and the segments."""

    start: int
    stop: int
    segments: list[KeySegmentState]


class KeyStore:
    """The keys from position ``start`` on. ``prepare`` is called before a file is made.

    ``memory_bytes`` is the window's budget: a small one gets small pages.
    """

    def __init__(
        self,
        storage: Storage,
        directory: str,
        seed: bytes,
        start: int,
        *,
        durable: bool,
        memory_bytes: int,
        prepare: Callable[[], None],
    ) -> None:
        self.start = start
        self._storage = storage
        self._directory = directory
        self._seed = seed
        self._durable = durable
        self._prepare = prepare
        self._page_bytes = min(max(memory_bytes // 16, 64), PAGE_BYTES)
        self._pages = KeyPages(start, self._page_bytes)
        self._log = KeyLog(storage, directory, seed, start)
        self._garbage: set[str] = set()

    @property
    def tail(self) -> int:
        """The position of the next key."""
        return self._pages.tail

    @property
    def memory_bytes(self) -> int:
        """Keys in memory, and the tables of those on disk."""
        return self._pages.size_bytes + self._log.index_bytes

    @property
    def page_bytes(self) -> int:
        """Keys in memory alone: what ``shrink`` can give back."""
        return self._pages.size_bytes

    @property
    def disk_bytes(self) -> int:
        """Bytes of the files."""
        return self._log.size_bytes

    def append(
        self, rows: pa.RecordBatch, columns: Sequence[int], keyed: "Buffer | None", selection: "Buffer | None"
    ) -> None:
        """Give the next positions to the keys of the rows that are keyed and selected."""
        self._pages.append(rows, columns, keyed=keyed, selection=selection)

    def append_ids(self, ids: "Buffer", keyed: "Buffer | None", selection: "Buffer | None") -> None:
        """As ``append``, for keys that are their own ids."""
        self._pages.append_ids(ids, keyed=keyed, selection=selection)

    def key(self, position: int) -> bytes:
        """The key of a position that is not committed."""
        return self._pages.key(position)

    def truncate(self, position: int) -> None:
        """Take back the keys from ``position`` on. REQUIRES: they are not committed."""
        self._pages.truncate(position)

    def compare(self, sightings: bytes, ids: Callable[[int], bytes]) -> int | None:
        """The lowest position whose key is not that of the previous sighting of its id, or None.

        ``sightings`` are pairs (position, previous), uint64; ``ids`` gives the id of a position. Raises CorruptState.
        """
        pairs = np.frombuffer(sightings, np.uint64)
        lowest, numbers = self._pages.compare(pairs.data)
        if not numbers:
            return lowest
        elsewhere = pairs.reshape(-1, 2)[np.frombuffer(numbers, np.uint32)]
        before = elsewhere[:, 1] < np.uint64(self.start)
        found = [lowest]
        found += [at for at in map(int, elsewhere[before, 0]) if self._pages.key(at) != ids(at)]
        if not before.all():
            found.append(self._log.compare(self._pages, elsewhere[~before]))
        return min((position for position in found if position is not None), default=None)

    def commit(self, committed: int) -> None:
        """The keys below ``committed`` are final: with enough of them, write those that must be written anyway."""
        first = self._log.stop
        if self._durable and committed > first and self._pages.bytes_between(first, committed) >= FRAME_BYTES:
            self._write(committed)

    def shrink(self, limit_bytes: int, committed: int) -> None:
        """Let the oldest committed keys go from memory to disk until at most so many bytes are left."""
        stop = min(self._pages.first_within(limit_bytes), committed)
        self._write(stop)
        self._pages.release_below(stop)

    def _write(self, stop: int) -> None:
        if stop > self._log.stop:
            self._prepare()
            self._log.append(self._pages, stop)

    def drop_below(self, position: int) -> None:
        """No key below this position will be asked for again. REQUIRES: it is not above what is committed."""
        self._pages.release_below(position)
        self._log.skip_to(position)
        for name in self._log.drop_below(position):
            if self._durable:
                self._garbage.add(name)
            else:
                self._storage.unlink(os.path.join(self._directory, name))

    def snapshot(self, committed: int) -> KeyStoreState:
        """Make the committed keys durable and describe them."""
        self._write(committed)
        segments = self._log.sync()
        return KeyStoreState(start=self.start, stop=self._log.stop, segments=segments)

    def restore(self, state: KeyStoreState) -> None:
        """Become what ``snapshot`` described. REQUIRES: nothing was appended. Raises CorruptState."""
        self._log.restore(state["segments"])
        self._log.skip_to(state["stop"])
        self._pages = KeyPages(state["stop"], self._page_bytes)

    def release(self, state: KeyStoreState) -> None:
        """A snapshot with these keys is final: delete files that only earlier ones need."""
        named = {segment["file"] for segment in state["segments"]}
        for name in sorted(self._garbage - named):
            self._storage.unlink(os.path.join(self._directory, name))
            self._garbage.discard(name)

    def contents(self, committed: int) -> tuple[KeyStoreState, list[bytes]]:
        """The committed keys as a description and bytes that stand alone: those in memory, then every file."""
        _, table, blocks = self._pages.encode(self._log.stop, committed, sys.maxsize)
        state = KeyStoreState(start=self.start, stop=self._log.stop, segments=self._log.describe())
        return state, [table, blocks, *self._log.contents()]

    def load(self, state: KeyStoreState, contents: Sequence[bytes]) -> None:
        """Become what ``contents`` gave. REQUIRES: nothing was appended. Raises CorruptState."""
        table, blocks, *files = contents
        if files:
            self._prepare()
        for segment, content in zip(state["segments"], files, strict=True):
            with self._storage.create(os.path.join(self._directory, segment["file"])) as file:
                file.append(content)
        self.restore(state)
        try:
            self._pages.load(table, blocks)
        except DamagedKeysError as error:
            raise CorruptState(f"dedup: the keys in the snapshot are damaged: {error}", path="snapshot") from error

    def close(self) -> None:
        """Close the files; they stay. Harmless when repeated."""
        self._log.close()
