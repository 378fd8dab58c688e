"""Rows into Arrow IPC files (the format with a footer, also known as Feather 2).

Laws
    - Every Arrow type comes back as it was.
    - The format lets a dictionary grow within a file but not change. So the dictionaries of a file are unified as rows
      come; rows whose values no longer fit the index type begin another file.
"""

import os
from collections.abc import Iterator, Sequence
from itertools import groupby

import pyarrow as pa
import pyarrow.ipc as ipc

from engine.errors import PipelineError
from engine.sinks.file_sink import FileSink
from engine.sinks.file_writer import FileFull
from engine.sinks.ownership import FileMark
from engine.sinks.staged_file import StagedFile
from engine.sinks.storable_forms import with_plain_dictionaries
from engine.storage import Storage

__all__ = ["ArrowIpcSink", "arrow_ipc"]

BATCH_ROWS = 65_536
"""The most rows of a record batch in the file: what readers of such files take at a time."""

WHOLE_ROWS = BATCH_ROWS // 4
"""Pieces of so many rows are written as they are: to copy them together would cost as much as to write them."""


def arrow_ipc(
    path: str | os.PathLike[str],
    *,
    partition_by: str | Sequence[str] | None = None,
    mode: str = "error",
    compression: str | None = None,
) -> "ArrowIpcSink":
    """Write the rows to a directory of Arrow IPC files: exactly once, each file visible only whole and committed.

    ``path`` is the directory; it must be missing, empty, or of this pipeline, unless ``mode="append"``, which leaves
    others' files alone. ``partition_by`` names columns that become ``column=value`` directories instead of columns in
    the files. ``compression`` is None, "lz4" or "zstd". Raises PipelineError.
    """
    return ArrowIpcSink(path, partition_by=partition_by, mode=mode, compression=compression)


class ArrowIpcSink(FileSink):
    """Arrow IPC files in a directory; made by ``arrow_ipc``."""

    kind = "arrow_ipc"
    extension = "arrow"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        partition_by: str | Sequence[str] | None,
        mode: str,
        compression: str | None,
        storage: Storage | None = None,
    ) -> None:
        if compression not in (None, "lz4", "zstd"):
            raise PipelineError(f"arrow_ipc: compression is {compression!r}; there are lz4, zstd and None")
        self.compression = compression
        super().__init__(
            path,
            partition_by=partition_by,
            mode=mode,
            row_group_rows=BATCH_ROWS,
            max_file_bytes=None,
            storage=storage,
        )

    def _format_faults(self, schema: pa.Schema) -> list[str]:
        return []

    def _read_mark(self, path: str) -> FileMark | None:
        try:
            with self.storage.open_input(path) as file, ipc.open_file(file) as reader:
                return FileMark.from_metadata(reader.schema.metadata)
        except OSError as error:
            if error.errno is not None:
                raise
            return None  # Arrow's word for a footer that it cannot read
        except pa.ArrowMemoryError:
            raise
        except pa.ArrowException:
            return None

    def _open_encoder(self, staged: StagedFile, mark: FileMark, rows: pa.Table) -> "_IpcEncoder":
        return _IpcEncoder(staged, mark, self._file_schema, self.compression)


class _IpcEncoder:
    def __init__(self, staged: StagedFile, mark: FileMark, schema: pa.Schema, compression: str | None) -> None:
        marks = {key.encode(): value.encode() for key, value in mark.to_metadata().items()}
        self._schema = schema.with_metadata({**(schema.metadata or {}), **marks})
        options = ipc.IpcWriteOptions(
            compression=compression,  # type: ignore[arg-type]
            use_threads=False,
            emit_dictionary_deltas=True,
        )
        self._writer = ipc.new_file(staged, self._schema, options=options)  # type: ignore[arg-type]
        self._unify = any(_holds_dictionary(field.type) for field in schema)
        self._known: pa.RecordBatch | None = None

    def write(self, rows: pa.Table) -> None:
        if not self._unify:
            for batch in _worthwhile(rows.to_batches()):
                self._writer.write_batch(batch)
            return
        begun = self._known is not None
        for batch in self._unified(with_plain_dictionaries(rows)):
            try:
                self._writer.write_batch(batch)
            except pa.ArrowInvalid as error:
                if begun:  # the writer does not let an empty dictionary grow; no row of these is in the file
                    raise FileFull from error
                raise
            begun = False

    def close(self) -> None:
        self._writer.close()

    def _unified(self, rows: pa.Table) -> list[pa.RecordBatch]:
        """The rows with dictionaries that begin as those of the batches before. Raises FileFull."""
        pieces = [piece.replace_schema_metadata(None) for piece in rows.to_batches()]
        known = [self._known.slice(0, 0)] if self._known is not None else []
        table = pa.Table.from_batches([*known, *pieces])
        try:
            unified = table.unify_dictionaries()
        except pa.ArrowException as error:
            if not known and len(pieces) == 1:
                raise
            raise FileFull from error
        batches = [batch for batch in unified.to_batches() if batch.num_rows]
        self._known = batches[-1]
        return batches


def _worthwhile(batches: list[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same rows, small neighbours copied together."""
    for large, neighbours in groupby(batches, lambda batch: batch.num_rows >= WHOLE_ROWS):
        if large:
            yield from neighbours
        else:
            yield pa.concat_batches(list(neighbours))  # type: ignore[attr-defined]  # the stubs lack it


def _holds_dictionary(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return True
    if isinstance(kind, pa.BaseExtensionType):
        return _holds_dictionary(kind.storage_type)
    return any(_holds_dictionary(kind.field(index).type) for index in range(kind.num_fields))
