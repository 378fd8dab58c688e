"""The durable offset of a partition as other processes may read it.

    <partition>/durable   records of 16 bytes: offset, crc32c of log, partition and offset, zeros; the last counts

Laws
    - A record is written after the sync that makes it true, and is not synced itself: it may be missing after a power
      cut, never wrong.
    - A record that is damaged or half written says nothing; the one before it counts. One of another log or partition,
      which a power cut may leave in a file that was not synced, is never taken for one of this.
"""

import os
import struct
from contextlib import suppress

from engine._core.crc32c import crc32c
from engine.storage import File, Storage

__all__ = ["DurableOffset", "durable_identity", "read_durable"]

NAME = "durable"
RECORDS_LIMIT = 1 << 16
READ_RECORDS = 64
_RECORD = struct.Struct("<QII")


def durable_identity(log: str, partition: int) -> int:
    """What the checksums of a partition's records begin with."""
    return crc32c(bytes.fromhex(log) + struct.pack("<I", partition))


def read_durable(storage: Storage, directory: str, identity: int) -> int:
    """The offset that the last sound record in ``directory`` names; 0 where there is none. Raises OSError."""
    path = os.path.join(directory, NAME)
    while True:
        try:
            with storage.open(path) as file:
                return _last_sound(file, identity)
        except FileNotFoundError:
            return 0
        except EOFError:
            continue  # it was replaced by a shorter one just now


def _last_sound(file: File, identity: int) -> int:
    """Offsets only grow, so the last one is the highest: it is looked for from the end."""
    stop = file.size // _RECORD.size * _RECORD.size
    while stop:
        start = max(0, stop - READ_RECORDS * _RECORD.size)
        for record in reversed([*_RECORD.iter_unpack(file.pread(stop - start, start))]):
            if _RECORD.pack(*record) == _record(record[0], identity):
                return int(record[0])
        stop = start
    return 0


class DurableOffset:
    """The writer's side. A failure to publish fails nobody, as rows are no less durable for it: it is tried again with
    the next offset, and at the end.
    """

    def __init__(self, storage: Storage, directory: str, identity: int) -> None:
        self._storage = storage
        self._identity = identity
        self._path = os.path.join(directory, NAME)
        self._file: File | None = None
        self._unpublished: int | None = None

    def begin(self, offset: int) -> None:
        """Replace what earlier writers left by one record. Raises OSError."""
        with suppress(FileNotFoundError):
            self._storage.unlink(f"{self._path}.tmp")
        file = self._storage.create(f"{self._path}.tmp")
        try:
            file.append(_record(offset, self._identity))
            self._storage.rename(f"{self._path}.tmp", self._path)
        except BaseException:
            file.close()
            raise
        before, self._file = self._file, file
        if before is not None:
            before.close()

    def publish(self, offset: int) -> None:
        """Let readers go up to ``offset``."""
        if self._file is None:
            return
        self._unpublished = offset
        with suppress(OSError):
            if self._file.size >= RECORDS_LIMIT * _RECORD.size:
                self.begin(offset)
            else:
                self._file.append(_record(offset, self._identity))
            self._unpublished = None

    def close(self) -> None:
        """Close the file; it stays."""
        if self._unpublished is not None:
            self.publish(self._unpublished)
        if self._file is not None:
            self._file.close()
            self._file = None


def _record(offset: int, identity: int) -> bytes:
    return _RECORD.pack(offset, crc32c(struct.pack("<Q", offset), identity), 0)
