"""A data file while it is being written: the stream that an encoder writes to.

Laws
    - Used by one thread at a time.
    - After ``discard``, or a failed write, later bytes are dropped silently: encoders write footers from their
      destructors.
    - ``checksum`` is the CRC32C of all bytes written, so that a publication after a crash can tell a damaged file.
"""

from typing import TYPE_CHECKING

from engine._core.crc32c import crc32c
from engine.storage import File

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["StagedFile"]


class StagedFile:
    """A binary stream into a new file in the staging directory."""

    def __init__(self, name: str, file: File) -> None:
        self.name = name
        self.path = file.path
        self.checksum = 0
        self._file = file
        self._dropping = False

    @property
    def size(self) -> int:
        """Bytes written."""
        return self._file.size

    @property
    def closed(self) -> bool:
        """Never, for the encoder: ``finish`` and ``discard`` are the owner's."""
        return False

    def write(self, data: "Buffer") -> int:
        """Append all of ``data``. Raises OSError."""
        size_bytes = memoryview(data).nbytes
        if not self._dropping:
            self._dropping = True
            self._file.append(data)
            self.checksum = crc32c(data, self.checksum)
            self._dropping = False
        return size_bytes

    def tell(self) -> int:
        """The position of the next write."""
        return self._file.size

    def flush(self) -> None:
        """Do nothing: there is no buffer."""

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
        self._file.sync()
        self._file.close()

    def discard(self) -> None:
        """Close the file and drop what an encoder may still write. Harmless when repeated."""
        self._dropping = True
        self._file.close()
