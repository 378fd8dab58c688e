"""A sealed run: ids that left memory, in one immutable, checksummed file that is asked only when its filter says so.

Laws
    - The file is written once and never changed (``run_file``: what lies where).
    - Nothing read is believed before its checksum held: footer, index and filter when the run is opened, a block
      each time.
    - A damaged filter or index is built again from the blocks. A damaged block or footer raises CorruptState,
      naming file and offset; nothing is changed or deleted.
    - One owner at a time, but for ``pieces``, which another thread may read meanwhile.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from typing import Self

import numpy as np
from numpy.typing import NDArray

from engine._core.crc32c import crc32c
from engine._core.id_run import (
    BLOCK_SIZE_BYTES,
    FILTER_PAGE_BYTES,
    DamagedBlockError,
    FilterMemory,
    RunEncoder,
    RunIndex,
    filter_block_count,
    first_ids_of,
    page_checksums,
)
from engine.background import Steps
from engine.errors import CorruptState
from engine.stages.run_file import Footer, damaged, pieces_of, read, read_footer, read_pages
from engine.stages.run_filter import PAGES_AT_ONCE, FilterSource, RunFilter
from engine.storage import File, Storage

__all__ = ["NOWHERE", "UNFINISHED", "RunWriter", "SealedRun"]

UNFINISHED = ".tmp"
NOWHERE = 2**64 - 1

BLOCKS_AT_ONCE = 128
"""Blocks read at once to find ids in them: 512 KiB."""

SHRINK_BYTES = 64 * 2**20

_FILTER_BLOCK_BYTES = 32


class SealedRun:
    """An open run that covers the positions ``[first, stop)``."""

    def __init__(
        self,
        file: File,
        *,
        name: str,
        footer: Footer,
        footer_crc: int,
        index: RunIndex,
        bloom: RunFilter,
        durable: bool,
    ) -> None:
        self.name = name
        self.durable = durable
        self.footer_crc = footer_crc
        self.count, self.first, self.stop, self.last_position, self._block_count, *_ = footer
        self.filter = bloom
        self._index = index
        self._file = file

    @classmethod
    def open(cls, storage: Storage, directory: str, name: str, seed: bytes) -> Self:
        """Open and verify a finished run. Raises CorruptState, or StateError where another seed wrote it."""
        path = os.path.join(directory, name)
        try:
            file = storage.open(path)
        except FileNotFoundError as error:
            raise CorruptState(f"{path}: the id run is missing; restore the file.", path=path) from error
        try:
            footer, footer_crc = read_footer(file, seed)
            index = RunIndex(seed, _read_index(file, footer))
            bloom = RunFilter.open(FilterSource(file, index, seed, footer.filter_bytes // _FILTER_BLOCK_BYTES), footer)
        except BaseException:
            file.close()
            raise
        return cls(file, name=name, footer=footer, footer_crc=footer_crc, index=index, bloom=bloom, durable=True)

    @property
    def path(self) -> str:
        """Where the file lies, or lay before it was made durable."""
        return self._file.path

    @property
    def size_bytes(self) -> int:
        """Bytes of the file."""
        return self._file.size

    @property
    def index_bytes(self) -> int:
        """Memory of the index."""
        return self._index.size_bytes

    def find(self, ids: bytes) -> NDArray[np.uint64]:
        """The last position of each id (16 bytes) in this run, 2**64 - 1 where it holds none. Raises CorruptState.

        Blocks are read in their order, each once, neighbours together.
        """
        positions = np.full(len(ids) // 16, NOWHERE, dtype=np.uint64)
        plan = np.frombuffer(self._index.plan(ids), dtype=np.uint32).reshape(-1, 2)
        begins = np.flatnonzero(np.diff(plan[:, 0].astype(np.int64), prepend=-1))
        for at in range(0, len(begins), BLOCKS_AT_ONCE):
            some = begins[at : at + BLOCKS_AT_ONCE]
            stop = begins[at + BLOCKS_AT_ONCE] if at + BLOCKS_AT_ONCE < len(begins) else len(plan)
            blocks = read_pages(self._file, plan[some, 0], BLOCK_SIZE_BYTES)
            try:
                self._index.search(blocks, plan[some[0] : stop], ids, positions)
            except DamagedBlockError as error:
                raise self.damaged(error.number) from error
        return positions

    def pieces(self, piece_blocks: int) -> Iterator[tuple[int, bytes]]:
        """The blocks from first to last, so many at a time, each piece with the number of its first block; not
        verified.
        """
        return pieces_of(self._file, 0, self._block_count, piece_blocks)

    def damaged(self, block: int) -> CorruptState:
        """The error that says that a block is damaged."""
        return damaged(self._file, block * BLOCK_SIZE_BYTES, f"block {block} is damaged")

    def content(self) -> bytes:
        """The whole file, not verified."""
        return read(self._file, self._file.size, 0)

    def shrink(self) -> Steps[None]:
        """Give the disk's blocks back, some at a step: the system holds up whoever unlinks a large file."""
        while self._file.writable() and self._file.size > SHRINK_BYTES:
            self._file.truncate(self._file.size - SHRINK_BYTES)
            yield

    def close(self) -> None:
        """Close the file. Harmless when repeated."""
        self._file.close()


class RunWriter:
    """Writes one run under an unfinished name; ``finish`` gives it, readable. Leaving without that: ``discard``.

    The filter is made beside the blocks where it may stay in memory, else from them when they are written.
    """

    def __init__(
        self, storage: Storage, directory: str, name: str, seed: bytes, *, keys: int, filter_in_memory: bool
    ) -> None:
        self.encoder = RunEncoder(seed, keys if filter_in_memory else 0)
        self._storage = storage
        self._name = name
        self._seed = seed
        self._blocks_crc = 0
        self._file = storage.create(os.path.join(directory, name + UNFINISHED))

    def append(self, blocks: bytes) -> None:
        """Add what the encoder gave."""
        if blocks:
            self._file.append(blocks)
            self._blocks_crc = crc32c(blocks, self._blocks_crc)

    def finish(self, first: int, stop: int, *, sync: bool) -> Steps[SealedRun]:
        """Complete the file for the positions ``[first, stop)``, in steps; with ``sync`` its bytes are durable then."""
        self.append(self.encoder.finish())
        block_count = self._file.size // BLOCK_SIZE_BYTES
        first_ids = self.encoder.first_ids
        index = RunIndex(self._seed, first_ids)
        self._file.append(first_ids)
        filter_offset = self._file.size
        blocks = self.encoder.filter
        filter_blocks = len(blocks) // _FILTER_BLOCK_BYTES if blocks else filter_block_count(self.encoder.count)
        source = FilterSource(self._file, index, self._seed, filter_blocks)
        filter_crc, checksums = 0, []
        for window in _windows(blocks) if blocks else source.windows():
            self._file.append(window)
            filter_crc = crc32c(window, filter_crc)
            checksums.append(page_checksums(window))
            yield
        footer = Footer(
            *(self.encoder.count, first, stop, self.encoder.last_position, block_count, len(first_ids)),
            *(self._file.size - filter_offset, self._blocks_crc, crc32c(first_ids), filter_crc),
        )
        packed = footer.packed(self._seed)
        self._file.append(packed)
        if sync:
            self._file.sync()
        bloom = RunFilter(source, filter_offset, b"".join(checksums), blocks)
        footer_crc = int.from_bytes(packed[-4:], "little")
        return SealedRun(
            self._file, name=self._name, footer=footer, footer_crc=footer_crc, index=index, bloom=bloom, durable=False
        )

    def discard(self) -> None:
        """Close and remove the unfinished file. What cannot be removed now, the next start removes."""
        self._file.close()
        with suppress(OSError):
            self._storage.unlink(self._file.path)


def _windows(blocks: FilterMemory) -> Iterator[memoryview]:
    view = memoryview(blocks)
    window_bytes = PAGES_AT_ONCE * FILTER_PAGE_BYTES
    return (view[at : at + window_bytes] for at in range(0, len(view), window_bytes))


def _read_index(file: File, footer: Footer) -> bytes:
    """The first id of each block, from the blocks themselves where the index is damaged."""
    first_ids = read(file, footer.index_bytes, footer.index_offset)
    if crc32c(first_ids) == footer.index_crc:
        return first_ids
    gathered, count = [], 0
    for number, blocks in pieces_of(file, 0, footer.block_count):
        try:
            some, entries = first_ids_of(blocks, number)
        except DamagedBlockError as error:
            raise damaged(file, error.number * BLOCK_SIZE_BYTES, str(error)) from error
        gathered.append(some)
        count += entries
    if count != footer.entries:
        raise damaged(file, 0, f"the blocks hold {count:,} entries, the footer says {footer.entries:,}")
    return b"".join(gathered)
