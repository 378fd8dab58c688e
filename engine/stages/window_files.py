"""Whether the files that a window's snapshot names are sound: read whole, by the readers that restore them.

Laws
    - Nothing is changed, repaired or cut off, and nobody is kept from using the files meanwhile.
    - What the owner would build again by itself, the index or filter of a run, counts as damaged too, and is told as
      that.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from engine._core.crc32c import crc32c
from engine._core.id_run import BLOCK_SIZE_BYTES, DamagedBlockError, first_ids_of
from engine.errors import CorruptState, StateError
from engine.stages.id_log import IdLog
from engine.stages.id_runs import RunState
from engine.stages.key_log import KeyLog
from engine.stages.key_window import WINDOW_FORMAT
from engine.stages.run_file import damaged, pieces_of, read, read_footer
from engine.storage import File, Storage

__all__ = ["FileCheck", "check_window_files"]

_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class FileCheck:
    """What became of one file. ``size_bytes`` of it are committed; ``problem`` is None where they are sound."""

    path: str
    size_bytes: int
    problem: str | None = None
    offset: int | None = None
    """The byte where the problem begins, where it has a place."""


def check_window_files(storage: Storage, directory: str, state: Mapping[str, Any]) -> Iterator[FileCheck]:
    """Read every file of a window that ``state`` names, one at a time. Raises StateError for what is no window's."""
    if state.get("format") != WINDOW_FORMAT or not {"seed", "segments", "runs"} <= state.keys():
        raise StateError(f"{directory}: its state is of another release; that release can verify it.")
    seed = bytes.fromhex(state["seed"])
    log = IdLog(storage, directory, seed)
    keys = KeyLog(storage, directory, seed, 0)
    key_state = state.get("exact", {}).get("keys") or {"segments": []}
    for segment in state["segments"]:
        yield _checked(directory, segment, partial(log.verify, segment))
    for run in state["runs"]:
        yield _checked(directory, run, partial(_verify_run, storage, directory, run, seed))
    for segment in key_state["segments"]:
        yield _checked(directory, segment, partial(keys.verify, segment))


def _checked(directory: str, named: Mapping[str, Any], verify: Callable[[], None]) -> FileCheck:
    path, size_bytes = os.path.join(directory, named["file"]), int(named["size_bytes"])
    try:
        verify()
    except CorruptState as error:
        return FileCheck(path, size_bytes, str(error), error.offset)
    except (StateError, OSError, EOFError) as error:
        return FileCheck(path, size_bytes, str(error))
    return FileCheck(path, size_bytes)


def _verify_run(storage: Storage, directory: str, state: RunState, seed: bytes) -> None:
    """Read a sealed run from its first block to its footer."""
    path = os.path.join(directory, state["file"])
    try:
        file = storage.open(path)
    except FileNotFoundError as error:
        raise CorruptState(f"{path}: the id run is missing; restore the file.", path=path) from error
    with file:
        footer, footer_crc = read_footer(file, seed)
        found = (file.size, footer_crc, footer.entries, footer.first, footer.stop)
        if found != (state["size_bytes"], state["crc"], state["count"], state["first"], state["stop"]):
            raise CorruptState(f"{path}: is not the id run that the checkpoint names; restore the file.", path=path)
        blocks_crc = 0
        for number, blocks in pieces_of(file, 0, footer.block_count):
            blocks_crc = crc32c(blocks, blocks_crc)
            try:
                first_ids_of(blocks, number)
            except DamagedBlockError as error:
                place = error.number * BLOCK_SIZE_BYTES
                raise damaged(file, place, f"block {error.number} is damaged") from error
        rebuilt = "is damaged; whoever opens the run builds it again from the blocks"
        if blocks_crc != footer.blocks_crc:
            raise damaged(file, 0, "the blocks are not those that were written")
        if _checksum(file, footer.index_offset, footer.index_bytes) != footer.index_crc:
            raise damaged(file, footer.index_offset, f"the index {rebuilt}")
        if _checksum(file, footer.filter_offset, footer.filter_bytes) != footer.filter_crc:
            raise damaged(file, footer.filter_offset, f"the filter {rebuilt}")


def _checksum(file: File, start: int, size: int) -> int:
    crc = 0
    for at in range(0, size, _READ_BYTES):
        crc = crc32c(read(file, min(_READ_BYTES, size - at), start + at), crc)
    return crc
