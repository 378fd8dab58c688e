"""A data file while it is being written: the stream that an encoder writes to.

Laws
    - Used by one thread at a time.
    - What an encoder writes piece by piece goes to the system together, by ``GATHER_BYTES`` and at each ``flush``: a
      call costs the same for the eight bytes between two columns as for a column, and more than them where other
      threads wait to run meanwhile.
    - After ``discard``, or a failed write, later bytes are dropped silently: encoders write footers from their
      destructors.
    - ``checksum`` is the CRC32C of all bytes written, so that a publication after a crash can tell a damaged file.
"""

from typing import TYPE_CHECKING

import pyarrow as pa

from engine._core.crc32c import crc32c
from engine.storage import File

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["StagedFile"]

GATHER_BYTES = 1 << 20


class StagedFile:
    """A binary stream into a new file in the staging directory."""

    def __init__(self, name: str, file: File) -> None:
        self.name = name
        self.path = file.path
        self.checksum = 0
        self._file = file
        self._waiting: list[Buffer] = []
        self._waiting_bytes = 0
        self._dropping = False

    @property
    def size(self) -> int:
        """Bytes written, those that wait with them."""
        return self._file.size + self._waiting_bytes

    @property
    def closed(self) -> bool:
        """Never, for the encoder: ``finish`` and ``discard`` are the owner's."""
        return False

    def write(self, data: "Buffer") -> int:
        """Append all of ``data``, now or with what follows. Raises OSError."""
        size_bytes = memoryview(data).nbytes
        if not self._dropping:
            # What waits must not change: encoders give bytes of their own, or columns, which are immutable.
            self._waiting.append(data if isinstance(data, bytes | pa.Buffer) else bytes(data))
            self._waiting_bytes += size_bytes
            if self._waiting_bytes >= GATHER_BYTES:
                self.flush()
        return size_bytes

    def tell(self) -> int:
        """The position of the next write."""
        return self.size

    def flush(self) -> None:
        """Write what waits. Raises OSError."""
        waiting = self._waiting
        if not waiting:
            return
        self._waiting, self._waiting_bytes = [], 0
        self._dropping = True
        self._file.append(*waiting)
        for data in waiting:
            self.checksum = crc32c(data, self.checksum)
        self._dropping = False

    def readable(self) -> bool:
        """Never."""
        return False

    def writable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Never."""
        return False

    def finish(self) -> None:
        """Make the bytes durable and close the file. Raises OSError."""
        self.flush()
        self._file.sync()
        self._file.close()

    def discard(self) -> None:
        """Close the file and drop what an encoder may still write. Harmless when repeated."""
        self._dropping = True
        self._waiting, self._waiting_bytes = [], 0
        self._file.close()
