"""The Bloom filter of a sealed run: in memory, or in the run's file and read page by page as a batch needs it.

Laws
    - A filter only says where not to look. What is lost of it is built again from the run's blocks, so that a lost
      filter neither drops a fresh row nor passes a duplicate.
    - Pages of 4 KiB are verified whenever they are read: their checksums stay in memory, a thousandth of the
      filter. A page that does not hold is built from the blocks that lie behind it; filter and blocks ascend with
      the hash, so that these are few and neighbours.
    - One owner at a time.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from engine._core.crc32c import crc32c
from engine._core.id_run import (
    BLOCK_SIZE_BYTES,
    FILTER_PAGE_BYTES,
    DamagedBlockError,
    FilterMemory,
    RunIndex,
    add_to_filter,
    page_checksums,
)
from engine.stages.run_file import Footer, damaged, pieces_of, read, read_pages
from engine.storage import File

__all__ = ["PAGES_AT_ONCE", "FilterSource", "RunFilter"]

PAGES_AT_ONCE = 256
"""Pages read at once: 1 MiB."""

_BLOCK_BYTES = 32
_PAGE_BLOCKS = FILTER_PAGE_BYTES // _BLOCK_BYTES


class FilterSource:
    """The blocks of a run as what its filter is made of."""

    def __init__(self, file: File, index: RunIndex, seed: bytes, filter_blocks: int) -> None:
        self.file = file
        self.filter_blocks = filter_blocks
        self._index = index
        self._seed = seed

    @property
    def page_count(self) -> int:
        """Pages of the filter; the last one may be short."""
        return -(-self.filter_blocks // _PAGE_BLOCKS)

    def pages(self, first: int, stop: int) -> bytes:
        """The pages [first, stop), built from the blocks behind them. Raises CorruptState."""
        first_block, stop_block = first * _PAGE_BLOCKS, min(stop * _PAGE_BLOCKS, self.filter_blocks)
        built = bytearray((stop_block - first_block) * _BLOCK_BYTES)
        behind = self._index.blocks_behind(first_block, stop_block, self.filter_blocks)
        for number, blocks in pieces_of(self.file, *behind):
            try:
                add_to_filter(self._seed, blocks, number, self.filter_blocks, first_block, built)
            except DamagedBlockError as error:
                raise damaged(self.file, error.number * BLOCK_SIZE_BYTES, str(error)) from error
        return bytes(built)

    def windows(self) -> Iterator[bytes]:
        """The whole filter, built 1 MiB at a time."""
        for first in range(0, self.page_count, PAGES_AT_ONCE):
            yield self.pages(first, min(first + PAGES_AT_ONCE, self.page_count))


class RunFilter:
    """One run's filter. ``blocks`` is all of it while it is in memory, else None."""

    def __init__(self, source: FilterSource, offset: int, checksums: bytes, blocks: FilterMemory | None) -> None:
        self.blocks = blocks
        self._source = source
        self._offset = offset
        self._checksums = np.frombuffer(checksums, np.uint32)

    @classmethod
    def open(cls, source: FilterSource, footer: Footer) -> "RunFilter":
        """The filter of a run that is being opened, not in memory; verified."""
        windows = _stored_windows(source.file, footer)
        checksums, crc = [], 0
        for window in windows:
            checksums.append(page_checksums(window))
            crc = crc32c(window, crc)
        if crc != footer.filter_crc:
            checksums = [page_checksums(window) for window in source.windows()]
        return cls(source, footer.filter_offset, b"".join(checksums), None)

    @property
    def block_count(self) -> int:
        """Blocks of 32 bytes."""
        return self._source.filter_blocks

    @property
    def size_bytes(self) -> int:
        """Bytes of the whole filter."""
        return self.block_count * _BLOCK_BYTES

    @property
    def memory_bytes(self) -> int:
        """Bytes that it takes in memory now."""
        return (0 if self.blocks is None else len(self.blocks)) + self._checksums.nbytes

    def load(self) -> None:
        """Bring it into memory. Raises CorruptState where pages and the blocks behind them are damaged."""
        if self.blocks is not None:
            return
        blocks = FilterMemory(self.size_bytes)
        target = memoryview(blocks)
        for first in range(0, self._source.page_count, PAGES_AT_ONCE):
            numbers = np.arange(first, min(first + PAGES_AT_ONCE, self._source.page_count), dtype=np.uint32)
            pages = self._verified(numbers)
            start = first * FILTER_PAGE_BYTES
            target[start : start + len(pages)] = pages
        self.blocks = blocks

    def unload(self) -> None:
        """Leave it to the file."""
        self.blocks = None

    def pages(self, numbers: NDArray[np.uint32]) -> bytes:
        """The pages with these ascending numbers, 4 KiB each, verified. Raises CorruptState as ``load``."""
        return self._verified(numbers).ljust(len(numbers) * FILTER_PAGE_BYTES, b"\0")

    def _verified(self, numbers: NDArray[np.uint32]) -> bytes:
        last = self._source.page_count - 1
        if numbers[-1] == last and (short := self.size_bytes - last * FILTER_PAGE_BYTES) < FILTER_PAGE_BYTES:
            found = (
                read_pages(self._source.file, numbers[:-1], FILTER_PAGE_BYTES, self._offset)
                if len(numbers) > 1
                else b""
            )
            found += read(self._source.file, short, self._offset + last * FILTER_PAGE_BYTES)
        else:
            found = read_pages(self._source.file, numbers, FILTER_PAGE_BYTES, self._offset)
        wrong = np.frombuffer(page_checksums(found), np.uint32) != self._checksums[numbers]
        if not wrong.any():
            return found
        mended = bytearray(found)
        for at in np.flatnonzero(wrong).tolist():
            page = int(numbers[at])
            mended[at * FILTER_PAGE_BYTES : (at + 1) * FILTER_PAGE_BYTES] = self._source.pages(page, page + 1)
        return bytes(mended)


def _stored_windows(file: File, footer: Footer) -> Iterator[bytes]:
    window_bytes = PAGES_AT_ONCE * FILTER_PAGE_BYTES
    for at in range(0, footer.filter_bytes, window_bytes):
        yield read(file, min(window_bytes, footer.filter_bytes - at), footer.filter_offset + at)
